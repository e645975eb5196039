"""The gradient at the step is that of the loss: in direction, sign and scale."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...core.formatting import number, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, Symptom, check, not_measured
from . import faults
from .record import ReferenceGradient, ReferenceStep
from .reference_faults import NAME, OTHER, Comparison, descended_gradients, reference_verdicts, settled

#: The note of a verdict on minus the gradient.
MINUS = "the optimizer maximizes (maximize=True): compared is minus the gradient that it found, which it descends"
LIMIT = (
    "the optimizer finds the gradient of the loss (cosine >= 0.99), and not exactly (cosine >= 0.999) that of the last batch alone, of the "
    "step before, or of all batches since the run began; no part points backwards; the length is the declared one"
)
MEASURED = (
    "gradients recomputed with the same batches, weights and random states, compared with those that the optimizer found; slopes by "
    "differences of the loss with dropout off"
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
    leave there. A length that is constantly wrong is judged for optimizers that it affects, and against the declared ``max_grad_norm``.
    In addition, each part is moved along its own gradient: does the loss change as the gradient predicts?

    >>> from pytest_ftcheck import example_trace
    >>> check_grads_match_reference(example_trace()).status
    'inconclusive'
    """
    found_by_optimizer = trace.measured(ReferenceGradient)
    record = None if found_by_optimizer is None else descended_gradients(trace, found_by_optimizer)
    rows = _rows(record) if record is not None else ()
    if found := reference_verdicts(trace):
        first, *others = found
        return dataclasses.replace(
            first,
            evidence=rows,
            limit=LIMIT,
            causes=(*first.causes, *(v.causes[0] for v in others if v.status == "fail")),
            measured=MEASURED,
            notes=tuple(v.headline for v in others),
        )
    if record is None:
        return not_measured(NAME, trace, ReferenceGradient)
    view = Comparison(trace, record)
    cosines = [m.cosine for _, m in view.matches("all") if m.cosine is not None]
    fresh = [s for s in record.watched_steps if s.fresh >= OTHER]
    slopes = [s.ratio for s in record.slopes if settled(s)]
    if not cosines and not record.watched_steps and not slopes:
        headline = f"{(record.reason or 'no gradient to compare').rstrip('.')}."
        return Verdict(NAME, "skipped", headline, measured=MEASURED)
    results: list[str] = []
    notes = [] if record is found_by_optimizer else [MINUS]
    if cosines:
        least = min(cosines)
        gradient = "the loss's gradient" if least >= OTHER else "a gradient of another direction than the loss's"
        results.append(
            f"at {plural(len(cosines), 'step')} the optimizer found {gradient} (cosine {number(least)} or more)"
        )
        if least < OTHER:
            notes.append(
                "something in the loop changes the gradient's direction, such as noise, sharpness-aware steps or projections"
                if view.reproduced
                else "the loop computes another loss than was recomputed (other random states, augmented rows, other weights, a second "
                "term): only the sign of its gradient is judged"
            )
    if fresh:
        results.append(
            f"at {plural(len(fresh), 'step')} of the watched loop the optimizer found what backward() had just brought"
        )
    elif record.watched_steps:
        results.append(
            f"at {plural(len(record.watched_steps), 'step')} of the watched loop the optimizer found another gradient than the new one, "
            "but not the new one added to that of the step before"
        )
    if slopes:
        results.append(
            f"moved along its gradient, the loss changes by {number(min(slopes))} to {number(max(slopes))} times what the gradient predicts"
        )
    if record.reason:
        notes.append(record.reason)
    text = "; ".join(results)
    headline = f"{text[:1].upper()}{text[1:]}."
    return Verdict(NAME, "pass", headline, rows, LIMIT, measured=MEASURED, notes=tuple(notes))


def _rows(record: ReferenceGradient) -> tuple[dict[str, Any], ...]:
    slopes = tuple({"part": s.part, "slope/gradient": s.ratio} for s in record.slopes)
    return (*(_row(s) for s in record.steps), *slopes)


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
        "last batch": None if every is None else every.last_batch,
        "step before": None if every is None else every.previous_step,
        "since the start": None if every is None else every.since_start,
    }
