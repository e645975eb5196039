"""A fine-tune that an exception ended (a timeout, an error in your code): how far it had come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.formatting import number

if TYPE_CHECKING:
    from ..core.trace import Trace

#: How far a chain of exceptions is followed, from the last to the one it came from.
_LINKS = 10


def partial_trace(error: BaseException | None) -> Trace | None:
    """The partial trace that an exception, or one that it came from, carries as ``ftcheck_trace``; None: there is none.

    >>> partial_trace(RuntimeError("no fine-tune was at work")) is None
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


def told(trace: Trace) -> str:
    """How far the run had come, in one or two lines.

    >>> from pytest_ftcheck import example_trace
    >>> print(told(example_trace(stopped="Failed: Timeout (>9.0s)")).splitlines()[1])
    last step: loss 0.320 (at first 0.700), learning rate 2.78e-06, gradient norm 0.900
    """
    done, asked = len(trace.steps), trace.recipe.steps if trace.recipe is not None else None
    of = "" if asked is None else f" of {asked:,}"
    lines = [
        f"the fine-tune had made {done:,}{of} steps in {number(trace.seconds)} s when it was ended by {trace.stopped or 'an exception'}"
    ]
    if trace.steps:
        last, losses = trace.steps[-1], trace.losses
        parts = [f"loss {number(losses[-1])} (at first {number(losses[0])})"] if losses else []
        parts += [f"learning rate {number(max(last.lrs))}"] if last.lrs else []
        lines.append(f"last step: {', '.join([*parts, f'gradient norm {number(last.grad_norm)}'])}")
    return "\n".join(lines)
