"""Every tensor that should learn is in exactly one group of the optimizer, by identity, and steps are really taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...core.formatting import plural
from ...core.intent import Intent
from ...core.observations import Tensor
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..expected_roles import BY_DESIGN, meant_to_learn, names_of, waits_for_thaw
from ..spec import Stage, check
from ..tensor_state import nothing_happened
from . import faults

#: Iterations an accumulation must have had before its steps are counted: a few may be skipped by a GradScaler that looks for its scale.
FEW = 3


@dataclass(frozen=True)
class _Fault:
    """One thing that is wrong."""

    fault: str
    headline: str
    cause: str
    remedy: str
    rows: tuple[dict[str, Any], ...] = ()


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
        faults.UNTIED,
        faults.DUPLICATED_PARAMETERS,
        faults.TWO_OPTIMIZERS,
        faults.STEPS_TOO_SELDOM,
        faults.STEPS_TOO_OFTEN,
    ),
)
def check_optimizer_covers_model(trace: Trace) -> Verdict:
    """Every tensor that should learn is in exactly one group of the optimizer, by identity, and steps are really taken.

    Should learn: what `Intent.trained` names, less what is declared frozen or unused; where nothing is declared, what has
    ``requires_grad``. Compared are objects, not names or values: an optimizer that was built before the head was replaced holds the old
    head. Tensors that other optimizers step are theirs.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_optimizer_covers_model(example_trace()))
    optimizer_covers_model: pass. AdamW holds each of the 4 tensors that should learn, once.
    """
    name = trace.optimizer.name
    meant = [t for t in trace.tensors if t.numel and meant_to_learn(t, trace)]
    measured = "by identity (the same object), at every step"
    limit = "each tensor that should learn is in one group of one optimizer, once, and steps are taken"
    found = [
        fault
        for fault in (
            _stale(meant, trace),
            _missing(meant, trace),
            _frozen(meant, trace),
            _replaced(trace),
            _untied(trace),
            _duplicated(meant, trace),
            _two_optimizers(meant, trace),
            _no_step(trace),
            _accumulation(trace),
        )
        if fault is not None
    ]
    if found:
        first = found[0]
        return Verdict(
            "optimizer_covers_model",
            "fail",
            first.headline,
            evidence=first.rows,
            limit=limit,
            causes=(first.cause, *(f.headline for f in found[1:])),
            remedy=first.remedy,
            measured=measured,
            fault=first.fault,
        )
    if not meant:
        return Verdict(
            "optimizer_covers_model",
            "skipped",
            "no tensor is meant to learn: nothing has requires_grad.",
            measured=measured,
        )
    notes = tuple(_notes(meant, trace))
    elsewhere = sum(t.group is None for t in meant)
    held = f"{name} holds each of the {plural(len(meant) - elsewhere, 'tensor')} that should learn, once"
    others = f"; {elsewhere} more are another optimizer's" if elsewhere else ""
    return Verdict("optimizer_covers_model", "pass", f"{held}{others}.", limit=limit, measured=measured, notes=notes)


def _rows(tensors: Sequence[Tensor], why: str) -> tuple[dict[str, Any], ...]:
    ordered = sorted(tensors, key=lambda t: t.part != "head")
    return tuple({"tensor": t.name, "shape": "x".join(map(str, t.shape)), "why": why} for t in ordered)


def _which(ill: Sequence[Tensor], trace: Trace) -> str:
    """In words, with a verb: the whole head is, three tensors are."""
    names = {t.name for t in ill}
    for part in ("head", "base"):
        members = {t.name for t in trace.tensors if t.part == part}
        if members and members <= names:
            rest = len(names - members)
            first = next(t.name for t in ill if t.name in members)
            if not rest:
                return f"The whole {part} ({plural(len(ill), 'tensor')}, {first} first) is"
            return f"The whole {part} ({plural(len(members), 'tensor')}, {first} first) and {rest} more tensors are"
    return f"{ill[0].name} is" if len(ill) == 1 else f"{len(ill)} tensors ({ill[0].name} first) are"


def _outside(meant: Sequence[Tensor], trace: Trace) -> list[Tensor]:
    """Tensors that could learn and that no optimizer holds."""
    return [
        t
        for t in meant
        if t.group is None
        and not t.in_other_optimizer
        and (t.trainable or t.trainable_last)
        and not t.replaced
        and not waits_for_thaw(t, trace)
        # what takes no part in the graph cannot learn anyway; a head, or what was declared, must
        and (t.gradients.none < t.gradients.steps or t.part == "head" or _named(t, trace))
    ]


def _named(t: Tensor, trace: Trace) -> bool:
    """Declared to learn, by more than "everything"."""
    patterns = trace.intent.trained if trace.intent is not None else ()
    if all(p.strip("*") for p in patterns):
        return bool(patterns)
    return any(Intent(trained=(p,)).wants_trained(n) for p in patterns if p.strip("*") for n in names_of(t))


def _stale(meant: Sequence[Tensor], trace: Trace) -> _Fault | None:
    ill, foreign = _outside(meant, trace), sum(g.not_in_model for g in trace.optimizer.groups)
    if not ill or not foreign:
        return None
    name = trace.optimizer.name
    return _Fault(
        "stale_optimizer",
        f"{_which(ill, trace)} meant to learn but not in {name}, which holds {plural(foreign, 'tensor')} that are not "
        "in this model.",
        f"{name} was built before the layer was replaced, resized, copied or wrapped: it goes on updating the old tensors",
        f"build {name} after the model is complete (new head, resized embeddings, adapters, device, wrapping)",
        _rows(ill, "in no group of the optimizer"),
    )


def _missing(meant: Sequence[Tensor], trace: Trace) -> _Fault | None:
    ill = _outside(meant, trace)
    if not ill or any(g.not_in_model for g in trace.optimizer.groups):
        return None
    name = trace.optimizer.name
    held = sum(g.tensors for g in trace.optimizer.groups)
    late = " or was thawed after it was built" if any(not t.trainable for t in ill) else ""
    return _Fault(
        "not_in_optimizer",
        f"{_which(ill, trace)} meant to learn but in no group of {name}, which holds {plural(held, 'tensor')} of this model.",
        f"{name} was built from another part's parameters only{late}, or the layer was added later",
        f"build {name} over model.parameters() when the model is complete, or call optimizer.add_param_group; to leave a part as it is, "
        "say so with requires_grad_(False)",
        _rows(ill, "in no group of the optimizer"),
    )


def _frozen(meant: Sequence[Tensor], trace: Trace) -> _Fault | None:
    ill = [t for t in meant if not t.trainable_last and not t.replaced and not waits_for_thaw(t, trace)]
    if all(t.part == "base" and t.role in BY_DESIGN and not _named(t, trace) for t in ill):
        return None
    thaw = trace.intent.thaw_step if trace.intent is not None else None
    late = bool(thaw) and all(t.part != "head" for t in ill)
    return _Fault(
        "never_thawed" if late else "frozen_by_mistake",
        f"{_which(ill, trace)} meant to learn but frozen (requires_grad=False)"
        + (f" at the end of {len(trace.steps)} steps, though it was to thaw at step {thaw}." if late else "."),
        "requires_grad was never switched on again, or not for these"
        if late
        else "the pattern or loop that freezes parameters catches these as well, or the freeze came after they were to be left out",
        "call requires_grad_(True) on them, and see that the optimizer holds them"
        if late
        else "print [n for n, p in model.named_parameters() if p.requires_grad] after freezing; call requires_grad_(True) on these",
        _rows(ill, "requires_grad=False"),
    )


def _replaced(trace: Trace) -> _Fault | None:
    ill = [t for t in trace.tensors if t.orphaned and meant_to_learn(t, trace)]
    if not ill:
        return None
    return _Fault(
        "replaced_in_loop",
        f"{_which(ill, trace)} replaced by a new tensor during the run, and no optimizer holds the new one.",
        "the loop makes the layer anew (model.head = nn.Linear(...)), so what the optimizer trained is thrown away",
        "make the layer once, before the optimizer; to reset it, write into the tensors that are there",
        _rows(ill, "another tensor now"),
    )


def _untied(trace: Trace) -> _Fault | None:
    pairs = trace.intent.tied if trace.intent is not None else ()
    ill = [(a, b) for a, b in pairs if not any({a, b} <= names_of(t) for t in trace.tensors)]
    loose = [t for t in trace.tensors if t.replaced and any(n in names_of(t) for pair in pairs for n in pair)]
    if not ill and not loose:
        return None
    a, b = ill[0] if ill else next(p for p in pairs if any(n in names_of(loose[0]) for n in p))
    return _Fault(
        "untied",
        f"{a} and {b} are meant to be one tensor, and are two.",
        "the tie was lost: one of them was replaced, loaded with assign=True, re-initialised, or deep-copied apart",
        f"after the last change assign {b} = {a} again, or call model.tie_weights(); then build the optimizer",
        tuple({"tensor": x, "meant to be": y, "why": "not the same object"} for x, y in ill),
    )


def _duplicated(meant: Sequence[Tensor], trace: Trace) -> _Fault | None:
    ill = [t for t in meant if t.entries > 1 and t.gradients.max_norm > 0]
    if not ill:
        return None
    times = max(t.entries for t in ill)
    return _Fault(
        "duplicated_parameters",
        f"{_which(ill, trace)} in {trace.optimizer.name} {times} times, and so stepped {times} times at each step.",
        "the lists of parameters that were put together overlap (list(model.parameters()) + list(model.head.parameters())); "
        "torch only warns of it",
        "hand over each parameter once; for another learning rate make a group of its own and take these out of the other",
        _rows(ill, f"{times} entries"),
    )


def _two_optimizers(meant: Sequence[Tensor], trace: Trace) -> _Fault | None:
    both = [t for t in meant if t.group is not None and t.in_other_optimizer and t.gradients.max_norm > 0]
    own = {s.iteration for s in trace.steps if s.by_watched_optimizer and s.iteration is not None}
    foreign = {s.iteration for s in trace.steps if not s.by_watched_optimizer and s.iteration is not None}
    shared = len(own & foreign)
    if not both or shared < FEW or 2 * shared < len(own | foreign):
        return None
    return _Fault(
        "two_optimizers",
        f"{_which(both, trace)} held by two optimizers, and both step in {shared} of {len(trace.iterations)} iterations.",
        "the second optimizer was built over parameters that the first one holds already",
        "give each parameter to one optimizer",
        _rows(both, "in two optimizers"),
    )


def _no_step(trace: Trace) -> _Fault | None:
    if trace.backward_error or not (stuck := nothing_happened(trace)):
        return None
    headline, causes, remedy = stuck
    return _Fault("no_step_taken", f"{_cap(headline)}.", causes[0], remedy)


def _accumulation(trace: Trace) -> _Fault | None:
    """Steps in the second half of the run against those that the declared accumulation implies."""
    k = trace.intent.accumulation if trace.intent is not None else None
    if k is None or trace.optimizer.other_optimizer_steps or not trace.steps:
        return None
    half = trace.iterations[len(trace.iterations) // 2 :]
    taken, implied = sum(i.steps for i in half), len(half) / k
    if implied < FEW or 0.6 * implied - 0.5 <= taken <= 1.6 * implied + 1:
        return None
    every = f"one for every {plural(k, 'batch', 'batches')}"
    seen = f"{taken} optimizer steps in the last {len(half)} iterations, where {every} would be {implied:.0f}"
    if taken > implied:
        return _Fault(
            "steps_too_often",
            f"{seen}: gradients are not accumulated.",
            "optimizer.step() is reached at every batch, or more than once a batch",
            f"step once every {k} batches",
        )
    return _Fault(
        "steps_too_seldom",
        f"{seen}: steps are left out.",
        "optimizer.step() stands under a condition that is seldom true (an accumulation that is not meant, a GradScaler that skips "
        "steps because the gradients overflow)",
        f"step once every {plural(k, 'batch', 'batches')}; print scaler.get_scale() where one is used",
    )


def _notes(meant: Sequence[Tensor], trace: Trace) -> list[str]:
    notes = []
    if stale := sum(g.not_in_model for g in trace.optimizer.groups):
        notes.append(f"{trace.optimizer.name} also holds {plural(stale, 'tensor')} that are not in this model")
    unused = [t for t in meant if t.group is None and not t.in_other_optimizer and not waits_for_thaw(t, trace)]
    if unused:
        notes.append(f"{plural(len(unused), 'tensor')} in no group take no part in the loss either: {unused[0].name}")
    waiting = [t for t in meant if waits_for_thaw(t, trace)]
    if waiting:
        notes.append(f"{plural(len(waiting), 'tensor')} are still to be thawed: {waiting[0].name}")
    head = [t for t in trace.tensors if t.part == "head"]
    if head and not any(t.trainable or t.trainable_last for t in head):
        notes.append(f"the whole head is frozen ({plural(len(head), 'tensor')}): only the base learns")
    return notes


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]
