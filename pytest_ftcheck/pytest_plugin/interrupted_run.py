"""A fine-tune that an exception stopped (a timeout, an error in your code): how far it got."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.formatting import number, one_line

if TYPE_CHECKING:
    from ..core.trace import Trace

#: Exceptions of a chain that are followed, from the last to its cause or context.
_LINKS = 10


def partial_trace(error: BaseException | None) -> Trace | None:
    """The partial trace that an exception, or one that caused it, carries as ``ftcheck_trace``; None: there is none.

    >>> partial_trace(RuntimeError("no fine-tune was running")) is None
    True
    """
    for _ in range(_LINKS):
        if error is None:
            return None
        if (trace := getattr(error, "ftcheck_trace", None)) is not None:
            found: Trace = trace
            return found
        error = error.__cause__ or error.__context__
    return None


def how_far(trace: Trace) -> str:
    """How many steps were made, and the numbers of the last one.

    >>> from pytest_ftcheck import example_trace
    >>> print(how_far(example_trace(stopped="Failed: Timeout (>9.0s)")))
    the fine-tune stopped after 20/20 steps (1.00 s): Failed: Timeout (>9.0s)
    last step: loss 0.320 (first step: 0.700), learning rate 2.78e-06, gradient norm 0.900
    """
    total = "" if trace.recipe is None else f"/{trace.recipe.steps:,}"
    reason = one_line(trace.stopped or "an exception", 500)
    lines = [f"the fine-tune stopped after {len(trace.steps):,}{total} steps ({number(trace.seconds)} s): {reason}"]
    if trace.steps:
        last, losses = trace.steps[-1], trace.losses
        parts = [f"loss {number(losses[-1])} (first step: {number(losses[0])})"] if losses else []
        parts += [f"learning rate {number(max(last.lrs))}"] if last.lrs else []
        lines.append(f"last step: {', '.join([*parts, f'gradient norm {number(last.grad_norm)}'])}")
    return "\n".join(lines)
