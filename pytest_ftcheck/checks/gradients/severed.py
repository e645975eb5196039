"""Tensors without gradient that the output depends on all the same: the graph is cut, blocked, shut or saturated there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.formatting import percent, shorten
from ...core.observations import Tensor
from ...core.trace import Trace
from .record import ReferenceGradient, Silent

#: Noise changes the logits by this share of their rms: a tensor that nothing depends on changes no bit of them.
DEPENDS = 1e-3
#: A function that is smooth there changes by at least this share of the stride (2 %): a step function or a dead unit not at all.
SMOOTH = 1e-5
#: A gradient that is there at some steps is called missing only where the output depends on the tensor by this much.
STRONGLY = 0.05


@dataclass(frozen=True)
class Blame:
    """A fault, its cause and the line to change."""

    fault: str
    cause: str
    remedy: str


def blocked(trace: Trace) -> dict[str, Silent]:
    """Name -> what was measured, of the tensors whose gradient is lost on its way; none of those that take no part."""
    record = trace.measured(ReferenceGradient)
    found = [s for s in record.silent if _judged(s)] if record is not None else []
    return {n: s for s in found for n in s.tensors}


def seldom(trace: Trace) -> set[str]:
    """Those of `blocked` that do get a gradient at a few steps."""
    return {n for n, s in blocked(trace).items() if s.kind == "seldom"}


def _judged(s: Silent) -> bool:
    return s.gate is not None or s.far > max(STRONGLY if s.kind == "seldom" else DEPENDS, 10 * s.floor)


def blame(ill: Sequence[Tensor], trace: Trace, *, smooth: bool) -> Blame | None:
    """What to say of the tensors among these that are blocked, if any is.

    :param smooth: only where the output follows small changes smoothly, or a gate is known: neither a step function nor a dead unit does.
    """
    known = blocked(trace)
    found = [known[t.name] for t in ill if t.name in known]
    if smooth:
        found = [s for s in found if s.gate is not None or s.near > max(SMOOTH, 10 * s.floor)]
    if not found:
        return None
    names = [t.name for t in ill if t.name in known and known[t.name] in found]
    worst = max(found, key=lambda s: (s.gate is not None, s.far))
    first = next(n for n in names if known[n] is worst)
    what = shorten(first) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    depends = f"noise as large as the weights themselves changes the logits by {percent(worst.far)} of their rms"
    if worst.gate is not None:
        return Blame(
            "gate_zero",
            f"{worst.gate} is exactly zero and shuts the branch of {what}: with 1 in its place {_they(names)} would get a gradient",
            f"make {worst.gate} a parameter that learns, or start it above zero (a gate that is zero, with a branch that is not, learns)",
        )
    if worst.kind == "seldom":
        share = min(t.gradients.zero / t.gradients.steps for t in ill if t.name in names)
        return Blame(
            "gradient_saturated",
            f"the gradient of {what} is exactly zero at {percent(share)} of the steps, and yet the output depends on {_it(names)} "
            f"({depends}): a softmax, sigmoid or tanh on the way is saturated, for what goes into it is far too large",
            "look at what is divided by a temperature or an eps before it: scores should be of the order of 1",
        )
    if worst.kind == "zero":
        hook = (
            "a hook is registered on it"
            if worst.hooked
            else "a hook, a mask or a hand-written backward sets it to zero"
        )
        more = (
            ""
            if worst.hooked
            else ", or a function whose derivative is zero lies on the way (round, sign, floor, clamp)"
        )
        return Blame(
            "gradient_blocked",
            f"the gradient of {what} is exactly zero, and yet the output depends on {_it(names)} ({depends}): {hook}{more}",
            "take the hook or mask off, or look at what multiplies this gradient",
        )
    how = (
        "the output follows them in steps: argmax, argmin, a comparison, rounding or topk without a straight-through estimator"
        if worst.near <= max(SMOOTH, 10 * worst.floor)
        else ".detach(), .data, torch.no_grad(), numpy or a tensor made anew lies on the way"
    )
    return Blame(
        "graph_cut",
        f"the output depends on {what} ({depends}), and no gradient comes back: {how}",
        "let these tensors reach the loss as they are (or x + (hard - x).detach()); if they are to stay, requires_grad_(False) says so",
    )


def _it(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "them"


def _they(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "they"
