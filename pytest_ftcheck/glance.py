"""A run at a glance: what the terminal's table shows of it, in builtins, for it crosses processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .explain import explain_weight_motion
from .figures import figures, head_stands_still
from .reports.terminal import sparkline
from .text import number, percent

if TYPE_CHECKING:
    from .trace import Trace

#: Columns of a curve, where there is room and where there is little.
CURVES = (14, 8)


def glance(trace: Trace) -> dict[str, dict[str, Any]]:
    """Steps, loss, its curve in two widths, the median share of the LR budget that the head's tensors used (``still``: none moved), and the
    four lines of the founding question.

    >>> from pytest_ftcheck import example_trace
    >>> seen = glance(example_trace())["glance"]
    >>> seen["loss"], seen["curves"][1], seen["head"]
    ('0.700 -> 0.320', '█▇▆▅▄▃▂▁', '25 %')
    """
    losses, head = trace.losses, figures(trace).get("motion.head")
    told = "still" if head is None and head_stands_still(trace) else percent(head)
    return {
        "glance": {
            "steps": len(trace.steps),
            "loss": f"{number(losses[0])} -> {number(losses[-1])}" if losses else "-",
            "curves": [sparkline(losses, width) for width in CURVES],
            "head": told,
            "explanation": explain_weight_motion(trace).splitlines() if trace.tensors else [],
        }
    }
