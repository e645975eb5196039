"""The gradient at the step is that of the loss: in direction, sign and scale."""

from __future__ import annotations

from typing import Any

from ...core.formatting import number, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, Symptom, check, not_measured
from . import faults
from .record import ReferenceGradient, ReferenceStep
from .reference_faults import OTHER, View, findings, settled

LIMIT = (
    "the optimizer finds the gradient of the loss (cosine >= 0.99), and not exactly (cosine >= 0.999) that of the last batch alone, of the "
    "step before, or of all batches since the run began; no part points backwards; as long as was declared"
)
MEASURED = (
    "gradients recomputed with the same batches, weights and random numbers, beside those that the optimizer found; slopes by central "
    "differences with dropout off"
)


@check(
    stage=Stage.GRADIENTS,
    position=2,
    faults=(
        faults.LOSS_CUT_OFF,
        faults.BACKWARD_REACHES_NOTHING,
        faults.GRADS_GONE_BEFORE_STEP,
        faults.NAN_GRADIENTS_REPLACED,
        faults.MICRO_BATCHES_LOST,
        faults.BATCHES_NOT_ACCUMULATED,
        faults.GRADS_NEVER_ZEROED,
        faults.ACCUMULATION_NOT_AVERAGED,
        faults.ACCUMULATION_DIVIDED_TWICE,
        faults.GRADS_STILL_SCALED,
        faults.CLIPPED_TO_NOTHING,
        faults.CLIPPING_WITHOUT_EFFECT,
        faults.GRADS_NEGATED,
        faults.GRADIENT_REVERSED,
        faults.GRADS_REMOVED,
        faults.GRADS_ONE_STEP_LATE,
        faults.GRADS_OF_ANOTHER,
    ),
    measurements=(ReferenceGradient,),
    shows=(
        Symptom.STANDS_STILL,
        Symptom.INPUT_LOST,
        Symptom.LOSS_WRONG,
    ),
)
def check_grads_match_reference(trace: Trace) -> Verdict:
    """The gradient at the step is that of the loss: in direction, sign and scale.

    At a few steps the gradient is recomputed for the same batches, weights and random states (so with the same dropout masks), and
    compared with what the optimizer found: the cosine of the two, ``<g, r> / |g||r|``, and of ``g`` with what typical faults would
    leave there. A length that is constantly off is judged for optimizers that feel it, and against the declared ``max_grad_norm``.
    Besides, each part is moved along its own gradient: does the loss change as it says?

    >>> from pytest_ftcheck import example_trace
    >>> check_grads_match_reference(example_trace()).status
    'skipped'
    """
    name = "grads_match_reference"
    found = findings(trace)
    record = trace.measured(ReferenceGradient)
    rows = tuple(_row(s) for s in record.steps) if record is not None else ()
    if record is not None and record.slopes:
        rows += tuple({"part": s.part, "slope/gradient": s.near} for s in record.slopes)
    if found:
        first, *rest = found
        return Verdict(
            name,
            first.status,
            f"{first.headline[:1].upper()}{first.headline[1:]}.",
            evidence=rows,
            limit=LIMIT,
            causes=(first.cause, *(f.cause for f in rest if f.status == "fail")),
            remedy=first.remedy,
            measured=MEASURED,
            notes=tuple(f.headline for f in rest),
            fault=first.fault,
        )
    if record is None:
        return not_measured(name, trace, ReferenceGradient)
    view = View(trace)
    compared = [m for s in view.alive if (m := s.part("all")) is not None and m.cosine is not None]
    if not compared and not record.leftovers and not any(settled(s) for s in record.slopes):
        return Verdict(
            name, "skipped", f"{(record.reason or 'no gradient to compare').rstrip('.')}.", measured=MEASURED
        )
    said, notes = [], []
    if compared:
        least = min(m.cosine for m in compared if m.cosine is not None)
        said.append(
            f"at {plural(len(compared), 'step')} the optimizer found the loss's gradient (cosine {number(least)} or more)"
        )
        if least < OTHER:
            said[-1] = (
                f"at {plural(len(compared), 'step')} the optimizer found a gradient with cosine {number(least)} or more"
            )
            notes.append(
                "the loop computes another loss than was recomputed (other random numbers, augmented rows, weights, a second term): "
                "only its sign is judged"
                if not view.reproduced
                else "what the loop does to its gradient turns it, as noise, sharpness-aware steps or projections do"
            )
    if clean := [s for s in record.leftovers if s.own >= OTHER]:
        said.append(
            f"at {plural(len(clean), 'step')} of the watched loop the optimizer found what backward() had just brought"
        )
    if near := [s.near for s in record.slopes if settled(s)]:
        said.append(
            f"moved along its gradient, the loss changes by {number(min(near))} to {number(max(near))} times what it says"
        )
    if record.reason:
        notes.append(record.reason)
    text = "; ".join(said)
    return Verdict(
        name,
        "pass",
        f"{text[:1].upper()}{text[1:]}.",
        evidence=rows,
        limit=LIMIT,
        measured=MEASURED,
        notes=tuple(notes),
    )


def _row(step: ReferenceStep) -> dict[str, Any]:
    every, head, base = step.part("all"), step.part("head"), step.part("base")
    return {
        "step": step.step,
        "batches": len(step.iterations),
        "norm of the sum": None if every is None else every.reference,
        "norm found": None if every is None else every.actual,
        "cosine": None if every is None else every.cosine,
        "head": None if head is None else head.cosine,
        "base": None if base is None else base.cosine,
        "last batch": None if every is None else every.last,
        "step before": None if every is None else every.previous,
        "since the start": None if every is None else every.total,
    }
