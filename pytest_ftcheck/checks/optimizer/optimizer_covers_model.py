"""Every tensor that should learn is in exactly one group of the optimizer, by identity, and steps are taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ...core.formatting import plural
from ...core.intent import Intent
from ...core.observations import Tensor
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..expected_roles import (
    FROZEN_BY_DESIGN,
    ever_trainable,
    frozen_in_trained_head,
    names_of,
    not_yet_unfrozen,
    should_learn,
)
from ..no_step import no_step_verdict
from ..spec import Stage, check, combine
from . import faults
from .partly_frozen_head import explain_partly_frozen_head, listed

NAME = "optimizer_covers_model"
#: Iterations that both optimizers must step in, and steps that an accumulation must imply, before they are judged: a GradScaler skips a
#: few steps while it looks for its scale.
LEAST_ITERATIONS = 3


@check(
    stage=Stage.OPTIMIZER,
    position=1,
    faults=(
        faults.NO_STEP_TAKEN,
        faults.STALE_OPTIMIZER,
        faults.REPLACED_IN_LOOP,
        faults.NOT_IN_OPTIMIZER,
        faults.NEVER_THAWED,
        faults.FROZEN_BY_MISTAKE,
        faults.HEAD_PARTLY_FROZEN,
        faults.UNTIED,
        faults.DUPLICATED_PARAMETERS,
        faults.TWO_OPTIMIZERS,
        faults.STEPS_TOO_SELDOM,
        faults.STEPS_TOO_OFTEN,
    ),
)
def check_optimizer_covers_model(trace: Trace) -> Verdict:
    """Every tensor that should learn is in exactly one group of the optimizer, by identity, and steps are taken.

    Should learn: what `Intent.trained` names, less what is declared frozen or unused; where nothing is declared, what has
    ``requires_grad``. Objects are compared, not names or values: an optimizer built before the head was replaced still holds the old
    head. Tensors that other optimizers step count as covered. A part of the head that is frozen while the rest trains gets advice.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_optimizer_covers_model(example_trace()))
    optimizer_covers_model: pass. AdamW holds each of the 4 tensors that should learn, once.
    """
    learning = [t for t in trace.tensors if t.numel and should_learn(t, trace)]
    measured = "by identity (the same object), at every step"
    limit = "each tensor that should learn is in one group of one optimizer, once, and steps are taken"
    findings = (
        _stale(learning, trace),
        _missing(learning, trace),
        _frozen(learning, trace),
        _replaced(trace),
        _untied(trace),
        _duplicated(learning, trace),
        _two_optimizers(learning, trace),
        None if trace.backward_error else no_step_verdict(NAME, trace),
        _accumulation(trace),
        _updated_through_others(learning, trace),
    )
    if failure := combine(findings, limit=limit, measured=measured):
        return failure
    if not learning:
        return Verdict(NAME, "skipped", "no tensor should learn: none has requires_grad.", measured=measured)
    if advice := _partly_frozen_head(learning, trace):
        return dataclasses.replace(advice, limit=limit, measured=measured)
    others = sum(t.group is None for t in learning)
    held = (
        f"{trace.optimizer.name} holds each of the {plural(len(learning) - others, 'tensor')} that should learn, once"
    )
    more = f"; another optimizer holds {others} more" if others else ""
    return Verdict(NAME, "pass", f"{held}{more}.", limit=limit, measured=measured, notes=_notes(learning, trace))


def _rows(tensors: Sequence[Tensor], why: str) -> tuple[dict[str, Any], ...]:
    ordered = sorted(tensors, key=lambda t: t.part != "head")
    return tuple({"tensor": t.name, "shape": "x".join(map(str, t.shape)), "why": why} for t in ordered)


def _subject(tensors: Sequence[Tensor], trace: Trace) -> tuple[str, str]:
    """The tensors in words, as a subject and its verb: the whole head is, three tensors are."""
    names = {t.name for t in tensors}
    for part in ("head", "base"):
        members = {t.name for t in trace.tensors if t.part == part}
        if members and members <= names:
            rest = len(names - members)
            first = next(t.name for t in tensors if t.name in members)
            whole = f"The whole {part} ({plural(len(members), 'tensor')}, {first} first)"
            return (f"{whole} and {plural(rest, 'more tensor')}", "are") if rest else (whole, "is")
    if len(tensors) == 1:
        return tensors[0].name, "is"
    return f"{len(tensors)} tensors ({tensors[0].name} first)", "are"


def _not_in_optimizer(learning: Sequence[Tensor], trace: Trace) -> list[Tensor]:
    """Tensors that could learn and that no optimizer holds; none where no optimizer is known (a watched loop without a step)."""
    if not trace.optimizer.groups:
        return []
    return [
        t
        for t in learning
        if t.group is None
        and not t.in_other_optimizer
        and ever_trainable(t)
        and not t.replaced
        and not not_yet_unfrozen(t, trace)
        # a tensor outside the graph cannot learn anyway; a head, or a tensor declared to learn, must
        and (t.gradients.none < t.gradients.steps or t.part == "head" or _named(t, trace))
    ]


def _named(tensor: Tensor, trace: Trace) -> bool:
    """Declared to learn, by more than "everything"."""
    patterns = trace.intent.trained if trace.intent is not None else ()
    if all(p.strip("*") for p in patterns):
        return bool(patterns)
    return any(Intent(trained=(p,)).wants_trained(n) for p in patterns if p.strip("*") for n in names_of(tensor))


def _stale(learning: Sequence[Tensor], trace: Trace) -> Verdict | None:
    missing, stale = _not_in_optimizer(learning, trace), sum(g.not_in_model for g in trace.optimizer.groups)
    if not missing or not stale or _all_moved(missing):
        return None
    name = trace.optimizer.name
    subject, verb = _subject(missing, trace)
    return faults.STALE_OPTIMIZER.with_details(optimizer=name).verdict(
        NAME,
        f"{subject} should learn but {verb} not in {name}, which holds {plural(stale, 'tensor')} that are not in this model.",
        evidence=_rows(missing, "in no group of the optimizer"),
    )


def _all_moved(tensors: Sequence[Tensor]) -> bool:
    return all(t.motion.share_changed > 0 for t in tensors)


def _updated_through_others(learning: Sequence[Tensor], trace: Trace) -> Verdict | None:
    """No optimizer holds them, and all moved: the optimizer's tensors may be copies of them, or the memory that they are part of."""
    missing, stale = _not_in_optimizer(learning, trace), sum(g.not_in_model for g in trace.optimizer.groups)
    if not missing or not stale or not _all_moved(missing):
        return None
    subject, verb = _subject(missing, trace)
    return Verdict(
        NAME,
        "inconclusive",
        f"{subject} {verb} not in {trace.optimizer.name}, which holds {plural(stale, 'tensor')} outside this model (master weights?), and "
        "moved all the same.",
        evidence=_rows(missing, "in no group of the optimizer, and moved"),
        remedy="give the optimizer the model's own parameters, so that what it does to them can be read at its steps",
    )


def _missing(learning: Sequence[Tensor], trace: Trace) -> Verdict | None:
    missing = _not_in_optimizer(learning, trace)
    if not missing or any(g.not_in_model for g in trace.optimizer.groups):
        return None
    name = trace.optimizer.name
    held = sum(g.tensors for g in trace.optimizer.groups)
    subject, verb = _subject(missing, trace)
    return faults.NOT_IN_OPTIMIZER.with_details(optimizer=name).verdict(
        NAME,
        f"{subject} should learn but {verb} in no group of {name}, which holds {plural(held, 'tensor')} of this model.",
        evidence=_rows(missing, "in no group of the optimizer"),
    )


def _frozen(learning: Sequence[Tensor], trace: Trace) -> Verdict | None:
    frozen = [t for t in learning if not t.trainable_last and not t.replaced and not not_yet_unfrozen(t, trace)]
    if all(t.part == "base" and t.role in FROZEN_BY_DESIGN and not _named(t, trace) for t in frozen):
        return None
    thaw = trace.intent.thaw_step if trace.intent is not None else None
    due = bool(thaw) and all(t.part != "head" for t in frozen)
    subject, verb = _subject(frozen, trace)
    when = f" after {plural(len(trace.steps), 'step')}, although unfreezing was declared for step {thaw}" if due else ""
    return (faults.NEVER_THAWED if due else faults.FROZEN_BY_MISTAKE).verdict(
        NAME,
        f"{subject} should learn but {verb} frozen (requires_grad=False){when}.",
        evidence=_rows(frozen, "requires_grad=False"),
    )


def _partly_frozen_head(learning: Sequence[Tensor], trace: Trace) -> Verdict | None:
    frozen = frozen_in_trained_head(trace)
    if not frozen:
        return None
    head = sum(t.part == "head" for t in trace.tensors)
    verb = "is" if len(frozen) == 1 else "are"
    return explain_partly_frozen_head(frozen).verdict(
        NAME,
        f"{len(frozen)} of {plural(head, 'tensor')} of the head {verb} frozen (requires_grad=False) while the rest of it trains: "
        f"{listed([t.name for t in frozen])}.",
        "advice",
        evidence=_rows(frozen, "requires_grad=False"),
        notes=_notes(learning, trace),
    )


def _replaced(trace: Trace) -> Verdict | None:
    replaced = [t for t in trace.tensors if t.orphaned and should_learn(t, trace)]
    if not replaced:
        return None
    subject, verb = _subject(replaced, trace)
    return faults.REPLACED_IN_LOOP.verdict(
        NAME,
        f"{subject} {verb} replaced during the run, and no optimizer holds the replacement.",
        evidence=_rows(replaced, "another tensor now"),
    )


def _untied(trace: Trace) -> Verdict | None:
    pairs = trace.intent.tied if trace.intent is not None else ()
    untied = [(a, b) for a, b in pairs if not any({a, b} <= names_of(t) for t in trace.tensors)]
    replaced = [t for t in trace.tensors if t.replaced and any(n in names_of(t) for pair in pairs for n in pair)]
    if not untied and not replaced:
        return None
    first, second = untied[0] if untied else next(p for p in pairs if any(n in names_of(replaced[0]) for n in p))
    return faults.UNTIED.with_details(first=first, second=second).verdict(
        NAME,
        f"{first} and {second} are declared tied but are two tensors.",
        evidence=tuple({"tensor": a, "declared tied to": b, "why": "not the same object"} for a, b in untied),
    )


def _duplicated(learning: Sequence[Tensor], trace: Trace) -> Verdict | None:
    duplicated = [t for t in learning if t.entries > 1 and t.gradients.max_norm > 0]
    if not duplicated:
        return None
    times = max(t.entries for t in duplicated)
    subject, verb = _subject(duplicated, trace)
    return faults.DUPLICATED_PARAMETERS.verdict(
        NAME,
        f"{subject} {verb} in {trace.optimizer.name} {times} times, and so updated {times} times at each step.",
        evidence=_rows(duplicated, f"{times} entries"),
    )


def _two_optimizers(learning: Sequence[Tensor], trace: Trace) -> Verdict | None:
    both = [t for t in learning if t.group is not None and t.in_other_optimizer and t.gradients.max_norm > 0]
    watched = {s.iteration for s in trace.steps if s.by_watched_optimizer and s.iteration is not None}
    other = {s.iteration for s in trace.steps if not s.by_watched_optimizer and s.iteration is not None}
    shared = len(watched & other)
    if not both or shared < LEAST_ITERATIONS or 2 * shared < len(watched | other):
        return None
    subject, verb = _subject(both, trace)
    return faults.TWO_OPTIMIZERS.verdict(
        NAME,
        f"{subject} {verb} held by two optimizers, and both step in {shared} of {len(trace.iterations)} iterations.",
        evidence=_rows(both, "in two optimizers"),
    )


def _accumulation(trace: Trace) -> Verdict | None:
    """Steps in the second half of the run against those that the declared accumulation implies."""
    accumulation = trace.intent.accumulation if trace.intent is not None else None
    if accumulation is None or trace.optimizer.other_optimizer_steps or not trace.steps:
        return None
    half = trace.iterations[len(trace.iterations) // 2 :]
    taken, implied = sum(i.steps for i in half), len(half) / accumulation
    if implied < LEAST_ITERATIONS or 0.6 * implied - 0.5 <= taken <= 1.6 * implied + 1:
        return None
    batches = "batch" if accumulation == 1 else f"{accumulation} batches"
    counts = (
        f"{taken} optimizer steps in the last {len(half)} iterations; one step every {batches} would be {implied:.0f}."
    )
    if taken > implied:
        headline = f"Gradients are not accumulated: {counts}"
        return faults.STEPS_TOO_OFTEN.with_details(batches=batches).verdict(NAME, headline)
    headline = f"Optimizer steps are left out: {counts}"
    return faults.STEPS_TOO_SELDOM.with_details(batches=batches).verdict(NAME, headline)


def _notes(learning: Sequence[Tensor], trace: Trace) -> tuple[str, ...]:
    notes = []
    if stale := sum(g.not_in_model for g in trace.optimizer.groups):
        notes.append(f"{trace.optimizer.name} also holds {plural(stale, 'tensor')} that are not in this model")
    waiting = [t for t in learning if not_yet_unfrozen(t, trace)]
    unused = [t for t in learning if t.group is None and not t.in_other_optimizer and t not in waiting]
    if unused:
        notes.append(f"{plural(len(unused), 'tensor')} in no group and not used by the loss: {unused[0].name}")
    if waiting:
        notes.append(f"{plural(len(waiting), 'tensor')} still to be unfrozen: {waiting[0].name}")
    head = [t for t in trace.tensors if t.part == "head"]
    if head and not any(ever_trainable(t) for t in head):
        notes.append(f"the whole head is frozen ({plural(len(head), 'tensor')}): only the base learns")
    return tuple(notes)
