"""The last third of a run trains as the first did: steps are taken, gradients arrive, weights move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ...core.formatting import plural
from ...core.observations import Tensor
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..expected_roles import should_learn
from ..no_step import no_step_verdict
from ..spec import Fault, Rank, Stage, Symptom, check, combine

NAME = "training_continues"
#: Iterations, or recorded steps, at the end: fewer may be chance (a GradScaler that looks for its scale, a batch without gradient).
LEAST = 4
#: Times that it was there before: once is an experiment, or the first step of a sparse schedule.
LEAST_BEFORE = 2
#: A gap that is this many times longer than all before it is no longer accumulation, nor training by turns.
LONGER = 2
LIMIT = f"there in the last third, or missing for at most {LONGER} times as long as before"
MEASURED = "steps by iteration; gradients and updates of each tensor at the recorded steps"

STEPS_STOP = Fault(
    "steps_stop",
    Rank.OPTIMIZER + 222,
    "the optimizer stops taking steps in the middle of the run",
    cause="optimizer.step() is under a condition that is no longer true: a counter that is not reset, a flag that an evaluation sets, a "
    "limit on steps, or a GradScaler that finds infinite gradients at every step",
    remedy="look at the conditions around optimizer.step(), or end the loop where the training ends",
    explains=(Symptom.STANDS_STILL,),
    confidence="certain",
)
GRADS_STOP = Fault(
    "grads_stop",
    Rank.GRADIENTS + 300,
    "gradients stop arriving in the middle of the run",
    cause="from that step on the optimizer finds .grad None or zero: it is cleared after backward(), the loss or the features are "
    "detached, or backward() is no longer called",
    remedy="look for what begins at that step: a phase of the training, an evaluation that leaves no_grad() or a frozen part behind",
    explains=(Symptom.STANDS_STILL,),
    confidence="certain",
)
UPDATES_STOP = Fault(
    "updates_stop",
    Rank.OPTIMIZER + 232,
    "the optimizer stops moving weights that have gradients",
    cause="from that step on the optimizer no longer holds these tensors, or something undoes its steps",
    remedy="look at what changes optimizer.param_groups, or writes weights back, from that step on",
    explains=(Symptom.STANDS_STILL, "optimizer_settings"),  # the state counts the steps that moved weights
    confidence="certain",
)


@check(
    stage=Stage.WEIGHTS,
    position=4,
    faults=(STEPS_STOP, GRADS_STOP, UPDATES_STOP),
    shows=(Symptom.STANDS_STILL, Symptom.BLOWS_UP),
)
def check_training_continues(trace: Trace) -> Verdict:
    """Steps, gradients and motion of the last third are judged like those before.

    Failures are: no optimizer step in the last third of the training iterations, where steps were at most half as far apart before; a part
    (the head, the base) none of whose tensors has a gradient in the last third of the steps, though they had one before; and one
    none of whose tensors moves there, though gradients arrive and the learning rate is not zero.

    >>> from pytest_ftcheck import example_trace
    >>> check_training_continues(example_trace()).status
    'pass'
    """
    if trace.backward_error or trace.stopped:
        return Verdict(NAME, "skipped", "The run ended early.", measured=MEASURED)
    if no_step_verdict(NAME, trace) is not None:
        return Verdict(NAME, "skipped", "No optimizer step was taken at all.", measured=MEASURED)
    found = combine((_steps_stop(trace), _parts_stop(trace)), measured=MEASURED)
    if found is not None:
        return found
    if len(trace.recorded) // 3 < LEAST:
        return Verdict(NAME, "skipped", f"{plural(len(trace.steps), 'step')} are too few to tell.", measured=MEASURED)
    return Verdict(
        NAME,
        "pass",
        f"In the last third of {plural(len(trace.steps), 'step')} gradients arrive and weights move as before.",
        measured=MEASURED,
    )


# ------------------------------------------------------------------ steps
def _steps_stop(trace: Trace) -> Verdict | None:
    """No step in the last third of the training iterations; an evaluation at the end does not count."""
    training = [i.steps for i in trace.iterations if i.training]
    stop = _stop([bool(steps) for steps in training], from_start=True)
    if stop is None:
        return None
    after = len(training) - stop
    return STEPS_STOP.verdict(
        NAME,
        f"No optimizer step follows iteration {stop - 1} of {len(training)}: the last {after} iterations train nothing.",
        limit=LIMIT,
    )


def _stop(there: Sequence[bool], *, from_start: bool = False) -> int | None:
    """From which place on something is not there any more; None: it is there in the last third, or was missing nearly as long before.

    :param from_start: what is missing at the start counts as a gap, too: accumulation begins with one.

    >>> _stop([True] * 12 + [False] * 48), _stop([False, True] * 30), _stop([True] * 50 + [False] * 10)
    (12, None, None)
    """
    at = [place for place, is_there in enumerate(there) if is_there]
    if len(at) < LEAST_BEFORE:
        return None
    missing = len(there) - 1 - at[-1]
    ends = (-1, *at) if from_start else at
    gap = max(b - a for a, b in pairwise(ends))
    return at[-1] + 1 if missing >= LEAST and 3 * missing > len(there) and missing > LONGER * gap else None


# ------------------------------------------------------------------ parts
def _parts_stop(trace: Trace) -> Verdict | None:
    """The whole model, or else a part of it."""
    count = len(trace.recorded)
    if trace.optimizer.other_optimizer_steps:
        return None
    learning = [t for t in trace.tensors if should_learn(t, trace) and t.trainable_last]
    learning = [t for t in learning if len(t.grad_norms) == count == len(t.updates)]
    for part in ("model", "head", "base"):
        tensors = [t for t in learning if part in ("model", t.part)]
        if tensors and (found := _grads_stop(trace, part, tensors) or _updates_stop(trace, part, tensors)):
            return found
    return None


def _grads_stop(trace: Trace, part: str, tensors: Sequence[Tensor]) -> Verdict | None:
    norms = list(zip(*(t.grad_norms for t in tensors), strict=True))
    stop = _stop([any(n > 0 or math.isnan(n) for n in at_step) for at_step in norms])
    if stop is None:
        return None
    missing = all(n < 0 for at_step in norms[stop:] for n in at_step)
    # a loss that has reached zero has no gradient; nor has a base below units that are dead
    if not missing and (part == "base" or not _loss_is_left(trace, stop)):
        return None
    state = "no gradient (.grad is None)" if missing else "a gradient of exactly zero, or none"
    headline = f"From step {trace.recorded[stop]} of {len(trace.steps)} on {_whole(part, tensors)} has {state}, and had one before."
    return GRADS_STOP.verdict(NAME, headline, limit=LIMIT, evidence=_rows(tensors, stop))


def _loss_is_left(trace: Trace, stop: int) -> bool:
    """Whether the training losses from there on are known, and none is zero."""
    start = trace.steps[trace.recorded[stop]].iteration
    losses = [] if start is None else [i.loss for i in trace.iterations[start:]]
    return bool(losses) and all(loss is not None and loss != 0 for loss in losses)


def _updates_stop(trace: Trace, part: str, tensors: Sequence[Tensor]) -> Verdict | None:
    """Rates that are zero are `lr_follows_schedule`'s; updates that are rounded away in a short dtype are `weights_move`'s."""
    if any(t.dtype not in ("float32", "float64") for t in tensors):
        return None
    stop = _stop([any(u != 0 for u in at_step) for at_step in zip(*(t.updates for t in tensors), strict=True)])
    if stop is None:
        return None
    places = range(stop, len(trace.recorded))
    if not all(t.grad_norms[i] > 0 and _has_rate(trace, t, i) for t in tensors for i in places):
        return None
    headline = f"From step {trace.recorded[stop]} of {len(trace.steps)} on {_whole(part, tensors)} is not moved, though it has gradients."
    return UPDATES_STOP.verdict(NAME, headline, limit=LIMIT, evidence=_rows(tensors, stop))


def _has_rate(trace: Trace, tensor: Tensor, place: int) -> bool:
    """Whether the learning rate of the tensor's group is not zero there; True, too, for a group that is gone."""
    lrs = trace.steps[trace.recorded[place]].lrs
    return tensor.group is None or tensor.group >= len(lrs) or lrs[tensor.group] > 0


def _whole(part: str, tensors: Sequence[Tensor]) -> str:
    return f"the whole {part} ({plural(len(tensors), 'tensor')})"


def _rows(tensors: Sequence[Tensor], stop: int) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "tensor": t.name,
            "gradient before": t.grad_norms[stop - 1],
            "after": "none" if t.grad_norms[-1] < 0 else t.grad_norms[-1],
            "update before": t.updates[stop - 1],
            "update after": t.updates[-1],
        }
        for t in tensors
    )
