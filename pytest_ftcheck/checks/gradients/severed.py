"""Tensors without gradient that the output depends on all the same: the graph is cut, blocked, gated or saturated there."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ...core.formatting import percent, plural, shorten
from ...core.observations import Tensor
from ...core.trace import Trace
from ..head.base_twin_record import BaseTwin
from ..spec import Fault
from . import faults
from .record import MissingGradient, ReferenceGradient

#: Noise changes the logits by this share of their rms: a tensor that nothing depends on changes no bit of them.
DEPENDS = 1e-3
#: A function that is smooth there changes by at least this share for noise of 2 %: a step function or a dead unit not at all.
SMOOTH = 1e-5
#: A gradient that is there at some steps is called missing only where the output depends on the tensor by this much.
STRONGLY = 0.05


def severed(trace: Trace) -> dict[str, MissingGradient]:
    """Name -> what was measured, of the tensors that the output depends on although they get no gradient, but for those `by_design`."""
    record = trace.measured(ReferenceGradient)
    found = [m for m in record.missing if _output_depends(m)] if record is not None else []
    exempt = by_design(trace)
    return {name: m for m in found for name in m.tensors if name not in exempt}


def by_design(trace: Trace) -> dict[str, str]:
    """Name -> class, of the tensors that get no gradient in a fresh twin of an unchanged base, or model, of a library's class either.

    The class does not use them, or only for a choice that has no derivative (the largest k of an indexer): no training script can change
    that. Of what is changed, or was not compared, nothing is exempt.
    """
    twins = trace.measured(BaseTwin)
    compared = [c for c in (*twins.bases, twins.model) if c is not None] if twins is not None else []
    return {name: c.class_name for c in compared if c.first is None for name in c.without_gradient}


def by_design_note(names: Collection[str], trace: Trace) -> tuple[str, ...]:
    """What is said of these tensors, where they get no gradient by design; nothing where there are none."""
    found = {name: kind for name, kind in by_design(trace).items() if name in names}
    if not found:
        return ()
    first, kind = next(iter(found.items()))
    others = " and others" if len(found) > 1 else ""
    count = plural(len(found), "tensor")
    return (
        f"{count} exempt, to which {kind} gives no gradient by design (nor does a fresh twin of it): {shorten(first)}{others}",
    )


def seldom(trace: Trace) -> set[str]:
    """Those of `severed` that do get a gradient at a few steps."""
    return {name for name, m in severed(trace).items() if m.kind == "seldom"}


def _output_depends(m: MissingGradient) -> bool:
    least = STRONGLY if m.kind == "seldom" else DEPENDS
    return m.gate is not None or m.full_noise > max(least, 10 * m.no_noise)


def _smooth(m: MissingGradient) -> bool:
    return m.small_noise > max(SMOOTH, 10 * m.no_noise)


def explain_severed(tensors: Sequence[Tensor], trace: Trace, *, smooth: bool) -> Fault | None:
    """The fault of the tensors among these that are severed; None: none is.

    :param smooth: only where the output follows small changes smoothly, or a gate is known: neither a step function nor a dead unit does.
    """
    known = severed(trace)
    found = [known[t.name] for t in tensors if t.name in known]
    if smooth:
        found = [m for m in found if m.gate is not None or _smooth(m)]
    if not found:
        return None
    members = [t for t in tensors if t.name in known and known[t.name] in found]
    strongest = max(found, key=lambda m: (m.gate is not None, m.full_noise))
    first = next(t for t in members if known[t.name] is strongest)
    names = shorten(first.name) + (f" and {len(members) - 1} more" if len(members) > 1 else "")
    if strongest.gate is not None:
        return faults.GATE_ZERO.with_details(gate=strongest.gate, tensors=names)
    effect = f"noise as large as the weights changes the logits by {percent(strongest.full_noise)} of their rms"
    if strongest.kind == "seldom":
        share = percent(min(t.gradients.zero / t.gradients.steps for t in members))
        return faults.GRADIENT_SATURATED.with_details(tensors=names, share=share, effect=effect)
    if strongest.kind == "zero":
        reason = (
            "a registered hook"
            if strongest.hooked
            else "a hook, a mask, a custom backward or a function whose derivative is zero (round, sign, floor, clamp)"
        )
        return faults.GRADIENT_BLOCKED.with_details(tensors=names, effect=effect, reason=reason)
    reason = (
        ".detach(), .data, torch.no_grad(), numpy or a new tensor"
        if _smooth(strongest)
        else "a step function (argmax, argmin, a comparison, rounding, topk) without a straight-through estimator"
    )
    return faults.GRAPH_CUT.with_details(tensors=names, effect=effect, reason=reason)


def unread_note(names: Sequence[str], trace: Trace) -> str:
    """What is said of tensors of the base without gradient that are no fault; that nothing reads them is said where it was measured."""
    measured = trace.measured(ReferenceGradient) is not None
    why = (
        "in modules that nothing else depends on"
        if measured
        else "and whether an output depends on them was not measured"
    )
    others = " and others" if len(names) > 1 else ""
    return f"{plural(len(names), 'base tensor')} without gradient, {why}: {names[0]}{others}; freeze them if that is intended"
