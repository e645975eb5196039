"""Which mask the loop itself gives the base, whatever our own calls give it."""

from __future__ import annotations

from typing import Any

from ...core.formatting import percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..effects import LIMIT, matters, share
from ..loop.record import BaseCall, LoopCalls, all_observed
from ..spec import Fault
from . import faults

#: What the base received as its mask -> the fault, where the loop is to blame.
_FAULTS = {"none": faults.MASK_NOT_PASSED, "all ones": faults.MASK_ALL_ONES, "inverted": faults.MASK_INVERTED}


def judge_mask_in_loop(trace: Trace, name: str) -> Verdict | None:
    """The verdict where every observed call of the base got one and the same wrong mask, and that matters; else None.

    Padding that has no part in what the base gives at real tokens (a causal model with padding on the right) does no harm.
    """
    loop = trace.measured(LoopCalls)
    if loop is None or not loop.calls or loop.mask_effect is None or not matters(loop.mask_effect):
        return None
    received = {call.mask for call in loop.calls}
    if len(received) > 1 or not received <= _FAULTS.keys():
        return None
    first, times = loop.calls[0], len(loop.calls)
    fault = _fault(first)
    rows = sum(call.padded for call in loop.calls)
    headline = (
        f"In the loop {loop.base} received {_IN_WORDS[first.mask]} in {all_observed(times)} on {plural(rows, 'row')} with padding: "
        f"with the right one its vectors at real tokens change by {share(loop.mask_effect)} of the spread between rows."
    )
    details: dict[str, Any] = {
        "evidence": tuple(
            {"iteration": call.iteration, "rows": call.rows, "with padding": call.padded, "attention mask": call.mask}
            for call in loop.calls[:3]
        ),
        "limit": f"at most {percent(LIMIT)} of the spread",
        "measured": f"the loop's own calls in {plural(len(loop.iterations), 'iteration')}; the effect in evaluation mode, last weights",
    }
    names = ", ".join((*first.misplaced, *first.unknown))
    return fault.with_details(base=loop.base, names=names).verdict(name, headline, **details)


def mask_not_seen(trace: Trace, name: str) -> Verdict | None:
    """No verdict, where the user's own loop was observed, and never called the base that our own call reaches."""
    loop = trace.measured(LoopCalls)
    if loop is None or loop.recipe_loop or not loop.candidates or loop.base is not None or not loop.backwards:
        return None
    return Verdict(
        name,
        "skipped",
        "Not seen in your loop: it does not call the base with input_ids, as our own call does.",
        remedy="train through the model that is passed in, with token ids as its input",
        unmeasured=LoopCalls.probe,
    )


_IN_WORDS = {
    "none": "no attention mask",
    "all ones": "an attention mask of ones",
    "inverted": "an inverted attention mask",
}


def _fault(call: BaseCall) -> Fault:
    if call.mask == "none" and call.misplaced:
        return faults.MASK_MISPLACED
    if call.mask == "none" and any("mask" in name for name in call.unknown):
        return faults.MASK_MISSPELT
    return _FAULTS[call.mask]
