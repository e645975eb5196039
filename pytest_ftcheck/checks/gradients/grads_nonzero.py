"""Do gradients reach the layers, and are they more than nothing?"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.observations import Tensor
from ...core.trace import Trace
from ...core.verdict import Status, Verdict
from ..head import faults as head_faults
from ..optimizer import faults as optimizer_faults
from ..spec import Stage, Symptom, check
from ..tensor_state import (
    STEPS_FOR_ZERO,
    ZERO_AT_FIRST,
    all_frozen,
    broken_fault,
    frozen_note,
    kind_of,
    largest_norm,
    nothing_happened,
    weigh,
)
from . import faults
from .missing_gradient import why
from .no_update_causes import explain
from .severed import blocked, seldom

_WHY = {
    "none": "no gradient at any step",
    "zero": "gradient exactly zero at every step",
    "negligible": "gradient negligible beside Adam's eps",
    "nonfinite": "gradient not finite",
    "seldom": "gradient exactly zero at most steps",
}


@check(
    stage=Stage.GRADIENTS,
    position=1,
    faults=(
        faults.GRADIENTS_SWITCHED_OFF,
        faults.LOSS_CUT_OFF,
        faults.LOSS_IS_FLAT,
        faults.BACKWARD_REACHES_NOTHING,
        faults.GRADS_GONE_BEFORE_STEP,
        faults.NO_GRADIENT_AT_ALL,
        faults.NAN_GRADIENTS_REPLACED,
        faults.CLIPPED_TO_NOTHING,
        faults.GRADS_REMOVED,
        faults.ADAPTERS_SILENT,
        faults.GATE_ZERO,
        faults.GRADIENT_BLOCKED,
        faults.GRAPH_CUT,
        faults.LAYERS_NOT_USED,
        faults.NOT_IN_GRAPH,
        faults.CUT_BELOW_HEAD,
        faults.GRADIENT_SATURATED,
        faults.GRADS_VANISH,
        faults.LAYER_STAYS_ZERO,
        faults.NONFINITE,
        faults.GRADIENT_ZERO,
        faults.GRADIENT_NEGLIGIBLE,
        head_faults.UNITS_DEAD,
        optimizer_faults.NO_STEP_TAKEN,
    ),
    shows=(
        Symptom.STANDS_STILL,
        Symptom.BLOWS_UP,
        Symptom.INPUT_LOST,
    ),
)
def check_grads_nonzero(
    trace: Trace,
    part: str = "all",
    *,
    include: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] | None = None,
) -> Verdict:
    """A gradient that is more than nothing reaches every tensor that is meant to learn, at some step.

    Over several steps, so that a zero last layer or LoRA's B = 0 (exactly zero gradients below it at the first step only) is
    no alarm; and by kind, not by size: rounding noise, such as the gradient of attention key biases, whose true value is zero, is told
    from a small real gradient by whether it survives rescaling the loss. Gradients are those that the optimizer saw.

    :param part: ``head``, ``base`` or ``all``.  :param include, ignore: globs or prefixes of names.
    :raises ValueError: a selection that matches nothing.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_grads_nonzero(example_trace(), part="head"))
    grads_nonzero: pass. Gradients reach 2 of 2 head tensors; norms 0.500 to 0.500.
    """
    chosen = trace.select(part, include, ignore)
    tensors = [t for t in chosen if (t.trainable or t.trainable_last) and t.numel and not _exempt(t, trace)]
    what = f"{part} tensors" if part != "all" else "tensors"
    measured = f"gradients as {trace.optimizer.name} saw them, over {plural(len(trace.steps), 'step')}"
    if not tensors:
        if any(_exempt(t, trace) for t in chosen):
            return Verdict(
                "grads_nonzero", "skipped", "All tensors selected are declared frozen or unused.", measured=measured
            )
        return all_frozen("grads_nonzero", part, chosen)
    if stuck := nothing_happened(trace):
        headline, causes, remedy = stuck
        return Verdict(
            "grads_nonzero",
            "fail",
            f"{headline[:1].upper()}{headline[1:]}.",
            causes=causes,
            remedy=remedy,
            measured=measured,
            fault=broken_fault(trace) if trace.backward_error else "no_step_taken",
        )
    if trace.backward_error:
        return Verdict(
            "grads_nonzero",
            "fail",
            f"After {plural(len(trace.steps), 'step')} backward cannot run any more: {trace.backward_error}.",
            causes=(trace.backward_error,),
            remedy="look at what ran right before: gradients are switched off by `with torch.no_grad():`, which switches them on again",
            limit="backward runs at every iteration",
            measured=measured,
            fault=broken_fault(trace),
        )
    largest = largest_norm(trace)
    kinds = {t.name: kind_of(t, trace, largest) for t in tensors}
    # what has rounding noise for a gradient says nothing about the block it is in
    judged = [t for t in tensors if kinds[t.name] != "noise"]
    lost = blocked(trace)
    kinds.update({t.name: "seldom" for t in judged if t.name in seldom(trace)})
    dead = [t for t in judged if kinds[t.name] in ("none", "zero", "seldom")]
    feeble = [t for t in judged if kinds[t.name] == "negligible"]
    strict, lenient = weigh(dead, judged), weigh([*dead, *feeble], judged, matrices=True)
    bad = {t.name for t in strict.ill} | {t.name for t in lenient.ill if kinds[t.name] == "negligible"}
    bad |= {t.name for t in dead if _named(t, trace) or t.name in lost}
    ill = [t for t in tensors if t.name in bad or kinds[t.name] == "nonfinite"]
    notes = frozen_note(tensors, chosen) + _notes(tensors, kinds, [t for t in dead if t.name not in bad])
    limit = (
        "some step with a gradient that is not zero, not rounding noise and, under Adam, of rms >= eps / 100 "
        "(its step is then 1 % of the learning rate)"
    )
    if not ill:
        norms = [t.gradients.max_norm for t in tensors if kinds[t.name] in ("fine", "transient")]
        spread = f"; norms {number(min(norms))} to {number(max(norms))}" if norms else ""
        return Verdict(
            "grads_nonzero",
            "pass",
            f"Gradients reach {len(norms)} of {len(tensors)} {what}{spread}.",
            limit=limit,
            measured=measured,
            notes=notes,
        )
    kind = Counter(kinds[t.name] for t in ill).most_common(1)[0][0]
    worst = [t for t in ill if kinds[t.name] == kind]
    status: Status = "fail"
    if kind == "zero" and len(trace.steps) < STEPS_FOR_ZERO:
        status = "inconclusive"
    if kind == "nonfinite":
        causes = (
            f"NaN or infinite from step {worst[0].gradients.first_nonfinite} on; assert_all_finite says where it began",
        )
        remedy = "lower the learning rate, or look for log(0), sqrt(0), division by zero and overflow in low precision"
    else:
        causes, remedy = explain("zero" if kind == "seldom" else kind, worst, trace)
    root = why(kind, worst, trace)
    if root.cause:
        causes, remedy = (root.cause, *(causes[1:] if kind == "negligible" else ())), root.remedy
    if status == "inconclusive":
        remedy = f"run at least {STEPS_FOR_ZERO} steps: {ZERO_AT_FIRST}"
    side = ""
    if (
        kind == "none"
        and all(t.part == "base" for t in worst)
        and any(t.part == "head" and t.gradients.max_norm > 0 for t in trace.tensors)
    ):
        side = ", while the head gets some"
    return Verdict(
        "grads_nonzero",
        status,
        f"{len(ill)} of {len(tensors)} {what}: {_WHY[kind]}{side}.",
        evidence=tuple(_row(t, kinds[t.name]) for t in ill),
        limit=limit,
        causes=causes,
        remedy=remedy,
        measured=measured,
        notes=notes,
        fault=root.fault if status == "fail" else "",
    )


def _exempt(t: Tensor, trace: Trace) -> bool:
    """Declared to stay as it is, or to take no part; or not yet thawed."""
    intent = trace.intent
    if intent is None:
        return False
    names = (t.name, *t.aliases)
    waits = t.part != "head" and intent.thaw_step is not None and len(trace.steps) <= intent.thaw_step
    return waits or any(intent.wants_frozen(n) or intent.is_unused(n) for n in names)


def _named(t: Tensor, trace: Trace) -> bool:
    """Declared to learn, by more than "everything"."""
    intent = trace.intent
    if intent is None or "expert" in t.name.lower():  # which tokens an expert gets is chance
        return False
    named = dataclasses.replace(intent, trained=tuple(p for p in intent.trained if p.strip("*")))
    return any(named.wants_trained(n) is True for n in (t.name, *t.aliases))


def _row(t: Tensor, kind: str) -> dict[str, Any]:
    g = t.gradients
    return {
        "tensor": t.name,
        "largest norm": g.max_norm,
        "rms": g.max_rms,
        "steps without": percent(g.none / g.steps) if g.steps else "-",
        "steps at zero": percent(g.zero / g.steps) if g.steps else "-",
        "why": _WHY.get(kind, kind),
    }


def _notes(tensors: Sequence[Tensor], kinds: Mapping[str, str], odd: Sequence[Tensor]) -> tuple[str, ...]:
    notes = []
    for kind, words in (
        ("noise", "whose true gradient is zero (what is measured is rounding noise)"),
        ("transient", "zero at first and alive later, as below a zero last layer"),
    ):
        found = [t for t in tensors if kinds[t.name] == kind]
        if found:
            notes.append(
                f"{plural(len(found), 'tensor')} {words}: {found[0].name}{' and others' if len(found) > 1 else ''}"
            )
    partial = [
        t for t in tensors if t.part == "head" and kinds[t.name] == "fine" and t.motion.share_with_gradient < 0.5
    ]
    if partial:
        notes.append(
            f"{percent(1 - partial[0].motion.share_with_gradient)} of {partial[0].name} never got a gradient: dead units, or rows that nothing uses"
        )
    if odd:
        notes.append(
            f"{plural(len(odd), 'base tensor')} without gradient, in modules that nothing else depends on: {odd[0].name}"
            f"{' and others' if len(odd) > 1 else ''}; freeze them to say that this is meant"
        )
    return tuple(notes)
