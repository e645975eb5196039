"""Do gradients reach the layers, and are they more than rounding noise?"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.observations import Tensor
from ...core.trace import Trace
from ...core.verdict import Status, Verdict
from ..no_step import backward_fault, no_step_verdict
from ..optimizer import faults as optimizer_faults
from ..spec import Stage, Symptom, check
from ..tensor_state import (
    RUN_LONGER,
    STEPS_FOR_ZERO,
    all_frozen,
    frozen_note,
    gradient_state,
    largest_norm,
    split_faulty,
)
from . import faults
from .missing_gradient import FAULTS, MissingKind, explain_missing_gradient
from .penalty_alone import penalty_alone_verdict
from .severed import by_design, by_design_note, seldom, severed, unread_note

NAME = "grads_nonzero"
LIMIT = (
    "some step with a gradient that is not zero, not rounding noise and, under Adam, of rms >= eps / 100 (its step is then 1 % of the "
    "learning rate)"
)
#: State of the gradients -> what is said of them.
DESCRIPTIONS: dict[MissingKind, str] = {
    "none": "no gradient at any step",
    "zero": "gradient exactly zero at every step",
    "seldom": "gradient exactly zero at most steps",
    "negligible": "gradient negligible beside Adam's eps",
    "nonfinite": "gradient not finite",
}


@check(
    stage=Stage.GRADIENTS,
    position=1,
    faults=(
        optimizer_faults.NO_STEP_TAKEN,
        faults.GRADIENTS_SWITCHED_OFF,
        faults.LOSS_WITHOUT_OUTPUT,
        faults.PARAMETRIZATION_DECAYED,
        faults.GRADIENT_SATURATED,
        faults.NONFINITE,
        *FAULTS,
    ),
    shows=(Symptom.STANDS_STILL, Symptom.BLOWS_UP, Symptom.INPUT_LOST),
)
def check_grads_nonzero(
    trace: Trace,
    part: str = "all",
    *,
    include: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] | None = None,
) -> Verdict:
    """A real gradient reaches every tensor that should learn, at some step.

    At some step, because a zero last layer or LoRA's B = 0 gives exactly zero gradients below it at the first step only. Rounding noise,
    such as the gradient of attention key biases, whose true value is zero, is distinguished from a small real gradient by whether it
    survives rescaling the loss, not by its size. Gradients are those that the optimizer saw.

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
    if not tensors and any(_exempt(t, trace) for t in chosen):
        return Verdict(NAME, "skipped", "All selected tensors are declared frozen or unused.", measured=measured)
    if not tensors:
        return all_frozen(NAME, part, chosen)
    if (verdict := no_step_verdict(NAME, trace, measured)) is not None:
        return verdict
    if trace.backward_error:
        return backward_fault(trace).verdict(
            NAME,
            f"After {plural(len(trace.steps), 'step')} backward cannot run any more: {trace.backward_error}.",
            limit="backward runs at every iteration",
            measured=measured,
        )
    if (verdict := penalty_alone_verdict(NAME, trace, measured)) is not None:
        return verdict
    states = _states(tensors, trace)
    missing = [t for t in tensors if states[t.name] in ("none", "zero", "seldom")]
    bad = _faulty(tensors, states, missing, trace)
    faulty = [t for t in tensors if t.name in bad]
    designed = by_design(trace)
    exempt = [t for t in missing if t.name not in bad]
    notes = frozen_note(tensors, chosen) + _notes(tensors, states)
    if unread := [t.name for t in exempt if t.name not in designed]:
        notes += (unread_note(unread, trace),)
    notes += by_design_note({t.name for t in exempt}, trace)
    if not faulty:
        norms = [t.gradients.max_norm for t in tensors if states[t.name] in ("fine", "transient")]
        spread = f"; norms {number(min(norms))} to {number(max(norms))}" if norms else ""
        headline = f"Gradients reach {len(norms)} of {len(tensors)} {what}{spread}."
        return Verdict(NAME, "pass", headline, limit=LIMIT, measured=measured, notes=notes)
    counts = Counter(kind for t in faulty for kind in DESCRIPTIONS if kind == states[t.name])
    kind = counts.most_common(1)[0][0]
    affected = [t for t in faulty if states[t.name] == kind]
    fault = explain_missing_gradient(affected, kind, trace)
    undecided = kind == "zero" and len(trace.steps) < STEPS_FOR_ZERO
    status: Status = "inconclusive" if undecided else "fail"
    return fault.verdict(
        NAME,
        f"{len(faulty)} of {len(tensors)} {what}: {DESCRIPTIONS[kind]}{_but_the_head(kind, affected, trace)}.",
        status,
        evidence=tuple(_row(t, states[t.name]) for t in faulty),
        limit=LIMIT,
        measured=measured,
        notes=notes,
        **({"remedy": RUN_LONGER, "fault": ""} if undecided else {}),
    )


def _states(tensors: Sequence[Tensor], trace: Trace) -> dict[str, str]:
    """Name -> state of its gradients; ``seldom`` for those that the output depends on although they are zero at most steps."""
    largest = largest_norm(trace)
    states: dict[str, str] = {t.name: gradient_state(t, trace, largest) for t in tensors}
    states.update({name: "seldom" for name in seldom(trace) if states.get(name, "noise") != "noise"})
    return states


def _faulty(tensors: Sequence[Tensor], states: Mapping[str, str], missing: Sequence[Tensor], trace: Trace) -> set[str]:
    """Names of the tensors whose gradients are a fault, not a peculiarity of the architecture."""
    # rounding noise says nothing about the block that it is in
    judged = [t for t in tensors if states[t.name] != "noise"]
    negligible = [t for t in judged if states[t.name] == "negligible"]
    strict = split_faulty(missing, judged)
    lenient = split_faulty([*missing, *negligible], judged, matrices=True)
    names = {t.name for t in strict.faulty} | {t.name for t in lenient.faulty if states[t.name] == "negligible"}
    without_excuse = severed(trace)
    names |= {t.name for t in missing if _declared_by_name(t, trace) or t.name in without_excuse}
    names -= by_design(trace).keys()
    return names | {t.name for t in tensors if states[t.name] == "nonfinite"}


def _but_the_head(kind: str, affected: Sequence[Tensor], trace: Trace) -> str:
    base_only = kind == "none" and all(t.part == "base" for t in affected)
    head_alive = any(t.part == "head" and t.gradients.max_norm > 0 for t in trace.tensors)
    return ", while the head gets some" if base_only and head_alive else ""


def _exempt(t: Tensor, trace: Trace) -> bool:
    """Declared to be frozen or unused, or not yet unfrozen."""
    intent = trace.intent
    if intent is None:
        return False
    names = (t.name, *t.aliases)
    waits = t.part != "head" and intent.thaw_step is not None and len(trace.steps) <= intent.thaw_step
    return waits or any(intent.wants_frozen(n) or intent.is_unused(n) for n in names)


def _declared_by_name(t: Tensor, trace: Trace) -> bool:
    """Declared to be trained by name, not by "everything"."""
    intent = trace.intent
    if intent is None or "expert" in t.name.lower():  # which tokens an expert gets is chance
        return False
    by_name = dataclasses.replace(intent, trained=tuple(p for p in intent.trained if p.strip("*")))
    return any(by_name.wants_trained(n) is True for n in (t.name, *t.aliases))


def _row(t: Tensor, state: str) -> dict[str, Any]:
    g = t.gradients
    return {
        "tensor": t.name,
        "largest norm": g.max_norm,
        "rms": g.max_rms,
        "steps without": percent(g.none / g.steps) if g.steps else "-",
        "steps at zero": percent(g.zero / g.steps) if g.steps else "-",
        "why": next((text for kind, text in DESCRIPTIONS.items() if kind == state), state),
    }


def _notes(tensors: Sequence[Tensor], states: Mapping[str, str]) -> tuple[str, ...]:
    notes = []
    for state, text in (
        ("noise", "whose true gradient is zero (what is measured is rounding noise)"),
        ("transient", "with zero gradient at first and a real one later, as below a zero last layer"),
    ):
        found = [t for t in tensors if states[t.name] == state]
        if found:
            others = " and others" if len(found) > 1 else ""
            notes.append(f"{plural(len(found), 'tensor')} {text}: {found[0].name}{others}")
    for t in tensors:
        reached = t.motion.share_with_gradient
        if t.part == "head" and states[t.name] == "fine" and reached < 0.5:
            notes.append(f"{percent(1 - reached)} of {t.name} never got a gradient: dead units, or unused rows")
            break
    return tuple(notes)
