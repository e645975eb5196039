"""A run in a few numbers, by name: for reports, JUnit properties and ``ftcheck compare``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.formatting import number, one_line, percent
from .trace_table import sparkline
from .weight_motion import explain_weight_motion

if TYPE_CHECKING:
    from ..core.trace import Trace

#: Metrics that differ each time.
CLOCK = ("seconds", "seconds.step")


def run_metrics(trace: Trace) -> dict[str, float]:
    """The most informative numbers of a run; those that it did not measure are left out.

    ``steps``; ``seconds`` (whole call) and ``seconds.step`` (training alone, a step); ``loss.initial`` and ``loss.final`` (training
    loss, nats for cross-entropies); ``probe.initial`` and ``probe.final`` (fixed rows, dropout off); ``metric.NAME.initial``,
    ``.final`` and ``.baseline``; ``lr.peak`` and ``lr.sum`` (largest over the parameter groups); ``grad_norm.max`` and ``.final`` (L2
    over all tensors, as the optimizer saw it); ``motion.head`` and ``motion.base`` (median over the trainable tensors of: rms
    displacement by gradients over the LR budget); ``gradient.head`` and ``gradient.base`` (largest L2 norm of one tensor at any step).

    >>> from pytest_ftcheck import example_trace
    >>> numbers = run_metrics(example_trace())
    >>> numbers["loss.initial"], numbers["loss.final"], numbers["motion.head"]
    (0.7, 0.32, 0.25)
    """
    from statistics import median  # slow to import

    found: dict[str, float] = {"steps": float(len(trace.steps)), "seconds": trace.seconds}
    if trace.steps and trace.training_seconds > 0:
        found["seconds.step"] = trace.training_seconds / len(trace.steps)
    if losses := trace.losses:
        found |= {"loss.initial": losses[0], "loss.final": losses[-1]}
    if trace.probe_loss is not None and trace.probe_loss.points:
        found |= {"probe.initial": trace.probe_loss.points[0].loss, "probe.final": trace.probe_loss.points[-1].loss}
    for metric in trace.metrics:
        name = f"metric.{one_line(metric.name, 100)}"
        found |= {f"{name}.initial": metric.first, f"{name}.final": metric.last}
        if metric.baseline is not None:
            found[f"{name}.baseline"] = metric.baseline
    if groups := trace.optimizer.groups:
        found |= {"lr.peak": max(g.lr_peak for g in groups), "lr.sum": max(g.lr_sum for g in groups)}
    if trace.steps:
        norms = [step.grad_norm for step in trace.steps]
        found |= {"grad_norm.max": _largest(norms), "grad_norm.final": norms[-1]}
    for part in ("head", "base"):
        tensors = [t for t in trace.tensors if (t.part == "head") == (part == "head") and t.trainable]
        used = [t.budget_used for t in tensors if t.budget_used is not None]
        if used:
            found[f"motion.{part}"] = math.nan if any(map(math.isnan, used)) else median(used)
        if tensors:
            found[f"gradient.{part}"] = _largest(t.gradients.max_norm for t in tensors)
    return {name: float(value) for name, value in found.items()}


def head_stands_still(trace: Trace) -> bool:
    """Whether there is a head of which nothing moved.

    >>> from pytest_ftcheck import example_trace
    >>> head_stands_still(example_trace())
    False
    """
    head = [t for t in trace.tensors if t.part == "head"]
    return bool(head) and not any(t.motion.share_changed for t in head)


def _largest(values: Iterable[float]) -> float:
    """A NaN counts as the largest, so that it is shown."""
    return max(values, key=lambda v: math.inf if math.isnan(v) else v)


# ------------------------------------------------------------------ the row of a run in the terminal's table
#: Columns of a loss curve, where there is room and where there is little.
CURVES = (14, 8)


@dataclass(frozen=True)
class SummaryRow:
    """One run in the terminal's table, and what ``-v`` explains below it."""

    steps: int
    #: First and last training loss.
    loss: str
    #: The loss curve in the widths of `CURVES`.
    curves: tuple[str, ...]
    #: Median share of the LR budget that the head's tensors used; ``still``: none of them moved.
    head: str
    #: The lines of `explain_weight_motion`.
    explanation: tuple[str, ...]


def summary_row(trace: Trace) -> SummaryRow:
    """The run's row in the terminal's table.

    >>> from pytest_ftcheck import example_trace
    >>> row = summary_row(example_trace())
    >>> row.loss, row.curves[1], row.head
    ('0.700 -> 0.320', '█▇▆▅▄▃▂▁', '25 %')
    """
    losses, head = trace.losses, run_metrics(trace).get("motion.head")
    return SummaryRow(
        steps=len(trace.steps),
        loss=f"{number(losses[0])} -> {number(losses[-1])}" if losses else "-",
        curves=tuple(sparkline(losses, width) for width in CURVES),
        head="still" if head is None and head_stands_still(trace) else percent(head),
        explanation=tuple(explain_weight_motion(trace).splitlines()) if trace.tensors else (),
    )
