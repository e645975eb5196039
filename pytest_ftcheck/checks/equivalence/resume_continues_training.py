"""Does a training continue from a checkpoint as if it had not been interrupted?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, check, not_measured
from . import faults
from .record import Resume

NAME = "resume_continues_training"
#: Weights that end this far apart, over the distance moved, are the same: float32 rounds at 1e-7, and each step may enlarge that.
SAME = 1e-5
#: ... or so many times as far apart as two uninterrupted runs end.
REPEATS = 10.0
#: Two uninterrupted runs that end so far apart cannot be compared with a third.
NOT_REPEATABLE = 0.01
#: All buffers and attributes of the model together.
STATE = "state"
#: Component -> the fault where it is not restored; all other components are buffers and attributes of the model.
_FAULTS = {
    "weights": faults.WEIGHTS_NOT_RESTORED,
    "optimizer": faults.OPTIMIZER_NOT_RESTORED,
    "scheduler": faults.SCHEDULER_NOT_RESTORED,
    "random": faults.RANDOM_STATES_NOT_RESTORED,
}
_CALLED = {
    "weights": "the weights",
    "optimizer": "the optimizer",
    "scheduler": "the scheduler",
    "random": "the random states",
}


@check(
    stage=Stage.OUTCOME,
    position=11,
    faults=(
        faults.CHECKPOINT_FAILS,
        faults.WEIGHTS_NOT_RESTORED,
        faults.STATE_NOT_IN_STATE_DICT,
        faults.OPTIMIZER_NOT_RESTORED,
        faults.SCHEDULER_NOT_RESTORED,
        faults.RANDOM_STATES_NOT_RESTORED,
        faults.DATA_POSITION_LOST,
    ),
    measurements=(Resume,),
)
def check_resume_continues_training(trace: Trace) -> Verdict:
    """Training that is interrupted, saved and resumed in fresh objects gives the same losses and weights as without interruption.

    Measured only when asked for (``probes=["resume"]``, beside others), and only for a loop of ours: three steps, a checkpoint, three
    more. The checkpoint is the ``state_dict`` of model, optimizer and scheduler with the random states, or your own functions
    (``checkpoint=(save, load)``). A failure names what is not restored: put back by hand, the difference goes away.

    >>> from pytest_ftcheck import finetune, tiny_distilbert, toy_batches
    >>> trace = finetune(tiny_distilbert, toy_batches(), steps=6, probes=["resume"])
    >>> check_resume_continues_training(trace).status
    'pass'
    """
    found = trace.measured(Resume)
    if found is None:
        return not_measured(NAME, trace, Resume)
    how = "your functions" if found.own_checkpoint else "state_dict() and torch.save() in memory, with random states"
    return dataclasses.replace(
        _judge(found),
        evidence=_rows(found),
        limit=f"weights apart by at most {SAME:g} of the distance moved, or {REPEATS:g} times as far as two uninterrupted runs",
        measured=f"{plural(found.steps_before, 'step')}, a checkpoint by {how}, {plural(found.steps_after, 'step')}; from the run's start, "
        "with its batches, optimizer and schedule",
    )


def _judge(found: Resume) -> Verdict:
    if found.raised:
        fault = faults.CHECKPOINT_FAILS.with_details(doing=found.raised_while)
        return fault.verdict(NAME, f"{found.raised_while.capitalize()} raised {found.raised.rstrip('.')}.")
    if not found.repeat_difference <= NOT_REPEATABLE:
        return _inconclusive(
            f"Two uninterrupted runs end {percent(found.repeat_difference)} of the distance moved apart.",
            "the training is not repeatable: a random state of its own, state outside the model, or operations that are not deterministic",
            "seed what is random; torch.use_deterministic_algorithms(True)",
        )
    limit = max(SAME, REPEATS * found.repeat_difference)
    apart = (
        f"Resumed after {plural(found.steps_before, 'step')}, the weights end {percent(found.difference)} of the distance moved away from "
        "those without interruption"
    )
    if found.difference <= limit:
        return _same(found)
    if not found.explained:
        return _inconclusive(
            f"{apart}, and it is not known why.",
            f"what differs after loading ({', '.join(found.changed[:4]) or 'nothing that is known'}) does not explain it: state in objects "
            "of the model's, or outside it",
            "keep such state in buffers, or in get_extra_state()",
        )
    return _not_restored(found, apart)


def _same(found: Resume) -> Verdict:
    headline = (
        f"Training continues as without interruption: the weights end {percent(found.difference)} of the distance moved apart, "
        f"{plural(found.steps_after, 'step')} after the checkpoint."
    )
    notes = tuple(
        f"torch.load(weights_only=True) refuses the state_dict of the {part}; it was copied in memory"
        for part in found.refused
    )
    if found.same_batches is False:
        return faults.DATA_POSITION_LOST.verdict(
            NAME, f"{headline} But reading the batches again gives others.", status="advice", notes=notes
        )
    return Verdict(NAME, "pass", headline, notes=notes)


def _not_restored(found: Resume, apart: str) -> Verdict:
    """The verdict on all components that it takes; the most fundamental names the fault."""
    of_model = [name for name in found.needed if name not in _FAULTS]
    own = {STATE: faults.STATE_NOT_IN_STATE_DICT.with_details(what=_names(of_model)), **_FAULTS}
    groups = [name for name in (*_FAULTS, STATE) if name in found.needed or (name == STATE and of_model)]
    groups.sort(key=lambda name: own[name].rank)
    listed = _and([_names(of_model) if name == STATE else _CALLED[name] for name in groups])
    first = own[groups[0]]
    return first.verdict(
        NAME,
        f"{apart}, because {listed} {'is' if _singular(found.needed) else 'are'} not restored; put back by hand, there is no difference.",
        status="advice" if groups == ["random"] else "fail",
        causes=tuple(own[name].cause for name in groups),
    )


def _singular(needed: Sequence[str]) -> bool:
    return len(needed) == 1 and needed[0] not in ("weights", "random")


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _inconclusive(headline: str, cause: str, remedy: str) -> Verdict:
    return Verdict(NAME, "inconclusive", headline, causes=(cause,), remedy=remedy)


def _rows(found: Resume) -> tuple[dict[str, Any], ...]:
    steps = range(found.steps_before + 1, found.steps_before + 1 + len(found.losses))
    return tuple(
        {"step": step, "loss without interruption": number(a, 6), "resumed": number(b, 6)}
        for step, a, b in zip(steps, found.losses, found.resumed_losses, strict=False)
    )
