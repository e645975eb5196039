"""Every tensor that should learn moves, as far as the learning rate allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...core import arguments
from ...core.formatting import percent, plural
from ...core.observations import Tensor
from ...core.trace import Trace
from ...core.verdict import Status, Verdict
from ...seeds.thresholds import Threshold
from ..expected_roles import FROZEN_BY_DESIGN, ever_trainable, not_yet_unfrozen, should_learn
from ..gradients import faults as gradient_faults
from ..gradients import missing_gradient
from ..gradients.severed import by_design, by_design_note, severed, unread_note
from ..no_step import no_step_verdict
from ..optimizer import faults as optimizer_faults
from ..spec import Stage, Symptom, check
from ..tensor_state import (
    LEAST_SHARE_CHANGED,
    RUN_LONGER,
    STEPS_FOR_ZERO,
    all_frozen,
    frozen_note,
    gradient_state,
    largest_norm,
    lr_rises,
    split_faulty,
)
from . import faults
from .no_update import (
    BELOW_BUDGET,
    DESCRIPTIONS,
    DID_NOT_LEARN,
    UpdateState,
    decay_cause,
    describe,
    explain_no_update,
    steps_before,
)

NAME = "weights_move"
#: States of norms and biases that are no fault: their values lie far apart in a narrow dtype, beside the steps of the matrices.
ROUNDED = ("rounded_away", "rounded_in_loop")
#: Healthy Adam uses 0.15 to 0.7 of the summed learning rates in dense tensors; a random walk of a million steps uses 1e-3.
LEAST_BUDGET = 1e-3
#: Fine-tunes last 100 to 10,000 steps. A matrix that would need more steps than that, all in one direction, before its
#: output can change by its own size, is not being trained.
MOST_STEPS = 10_000
#: Inputs below which a matrix is a gain or a single feature, not a layer.
LEAST_FAN_IN = 8
#: Learning rate of a group over the largest of any group: layer-wise and discriminative rates go down to 1e-3.
LEAST_SHARE = 1e-4
#: Learning rate of SGD over (1 - momentum) that is usual for Adam and too small for SGD (in use: 1e-3 to 1); judged only where at its
#: pace `MOST_STEPS` would change the loss by less than this share of itself.
ADAM_LR = 2e-4
LEAST_GAIN = 0.05


@check(
    stage=Stage.WEIGHTS,
    position=1,
    faults=(
        optimizer_faults.NO_STEP_TAKEN,
        optimizer_faults.STALE_OPTIMIZER,
        optimizer_faults.NOT_IN_OPTIMIZER,
        optimizer_faults.FROZEN_BY_MISTAKE,
        optimizer_faults.LR_ZERO,
        optimizer_faults.LR_BELOW_SPACING,
        optimizer_faults.LR_TOO_SMALL,
        gradient_faults.GRADIENTS_SWITCHED_OFF,
        *missing_gradient.FAULTS,
        faults.WEIGHTS_OVERWRITTEN,
        faults.WEIGHTS_ROUNDED,
        faults.WEIGHTS_STILL,
    ),
    thresholds=(
        Threshold("min_budget", "at least", "least displacement by gradients over the summed LR", 1e-12, 1 - 1e-9),
        Threshold("max_steps", "at most", "most steps for a layer's output to change by its own size", 1e-6, 1e12),
    ),
    shows=(
        Symptom.STANDS_STILL,
        Symptom.BLOWS_UP,
        Symptom.INPUT_LOST,
    ),
)
def check_weights_move(
    trace: Trace,
    part: str = "all",
    *,
    include: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] | None = None,
    min_budget: float = LEAST_BUDGET,
    max_steps: float = MOST_STEPS,
) -> Verdict:
    """Every tensor that should learn moves, elementwise, through its gradients, by enough of what its learning rate allows.

    Histograms are not compared: a weight of N(0, 0.02) trained for 200 steps at 5e-5 may move by 0.005 in all, which no histogram
    shows. For Adam and its relatives the displacement is compared with the sum of the learning rates of the tensor's group (Adam
    moves a weight by about one learning rate a step at most, Kingma and Ba 2015, section 2.1), after subtracting what weight decay
    did. For every optimizer: how many steps, all in one direction, the layer's output would need to change by its own
    size, ``rms(w) / (rms update * sqrt(fan-in))``. Tensors whose gradient is rounding noise, such as attention key biases, are exempt.

    :param part: ``head``, ``base`` or ``all``.  :param include, ignore: globs or prefixes of names.
    :param min_budget: least rms displacement by gradients over the summed learning rates.
    :param max_steps: most steps for the output of a matrix to change by its own size.
    :raises ValueError: a selection that matches nothing, or a limit out of range.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_weights_move(example_trace(), "head"))
    weights_move: pass. 2 of 2 head tensors moved, by 25 % of their LR budget (rms, median).
    """
    arguments.fraction("min_budget", min_budget)
    arguments.number("max_steps", max_steps, above=0)
    chosen = trace.select(part, include, ignore)
    tensors = [t for t in chosen if _is_judged(t, trace) and t.numel]
    what = f"{part} tensors" if part != "all" else "tensors"
    measured = f"elementwise, before against after {plural(len(trace.steps), 'step')}; all elements of the head, a fixed sample elsewhere"
    if not tensors and any(ever_trainable(t) for t in chosen):
        reason = "all of them are declared frozen or unused, or are still to be unfrozen."
        return Verdict(NAME, "skipped", reason, measured=measured)
    if not tensors:
        return all_frozen(NAME, part, chosen)
    if (verdict := no_step_verdict(NAME, trace, measured)) is not None:
        return verdict
    largest = largest_norm(trace)
    states = _states(tensors, trace, largest, min_budget, max_steps)
    noisy = [t for t in tensors if states[t.name] is None and gradient_state(t, trace, largest) == "noise"]
    exempt = _exempt([t for t in tensors if t not in noisy], states, trace)
    faulty = [t for t in tensors if states[t.name] is not None and t.name not in exempt]
    designed = exempt & by_design(trace).keys()
    notes = (*frozen_note(tensors, chosen), *_notes(tensors, noisy, exempt - designed, states, trace))
    notes += by_design_note(designed, trace)
    budget_limit = (
        f"rms displacement by gradients >= {min_budget:g} of the summed learning rates (healthy Adam: 0.15 to 0.7)"
    )
    steps_limit = f"at most {max_steps:,.0f} steps for a matrix to change its output by its own size"
    if not faulty:
        moved = len(tensors) - len(exempt) - len(noisy)
        headline = f"{moved} of {len(tensors)} {what} moved{_budget_used(tensors, trace)}."
        return Verdict(NAME, "pass", headline, limit=f"{budget_limit}; {steps_limit}", measured=measured, notes=notes)
    by_state = _by_state(faulty, states)
    state = max(by_state, key=lambda s: len(by_state[s]))
    affected = by_state[state]
    fault = explain_no_update(state, affected, trace)
    further = [explain_no_update(s, by_state[s], trace).cause for s in list(by_state)[:4] if s != state]
    decay = [decay_cause(affected, trace)] if state == "decay_only" else []
    status, remedy = _status(state, affected, faulty, trace, largest)
    if state in BELOW_BUDGET:
        limit = budget_limit
    elif state == "slow":
        limit = steps_limit
    elif state == "rounded_away":
        limit = f"at least {percent(LEAST_SHARE_CHANGED)} of the elements of a matrix move in {affected[0].dtype}"
    else:
        limit = "every tensor that should learn moves"
    verb = "did not learn" if state in DID_NOT_LEARN else "did not move"
    return fault.verdict(
        NAME,
        f"{len(faulty)} of {len(tensors)} {what}{_which(faulty, tensors)} {verb}: "
        f"{describe(state, affected, trace, several=len(faulty) > 1)}.",
        status,
        evidence=tuple(_row(t, states[t.name]) for t in sorted(faulty, key=lambda t: (t.part != "head", t.name))),
        limit=limit,
        causes=(fault.cause, *decay, *further),
        remedy=remedy or fault.remedy,
        measured=measured,
        notes=notes,
        fault=fault.name if status == "fail" else "",
    )


def _is_judged(t: Tensor, trace: Trace) -> bool:
    """Whether it should have learned by now; "everything" does not include what is frozen by design."""
    if not_yet_unfrozen(t, trace) or not should_learn(t, trace):
        return False
    return ever_trainable(t) or t.part == "head" or t.role not in FROZEN_BY_DESIGN


def _by_state(tensors: Sequence[Tensor], states: Mapping[str, UpdateState | None]) -> dict[UpdateState, list[Tensor]]:
    """State -> its tensors, in the order of their first."""
    grouped: dict[UpdateState, list[Tensor]] = {}
    for t in tensors:
        if (state := states[t.name]) is not None:
            grouped.setdefault(state, []).append(t)
    return grouped


def _status(
    state: UpdateState, affected: Sequence[Tensor], faulty: Sequence[Tensor], trace: Trace, largest: float
) -> tuple[Status, str]:
    """Fail; or inconclusive, where the run may yet be healthy, and what would settle it (empty: the fault's remedy)."""
    if len(trace.steps) < STEPS_FOR_ZERO and all(gradient_state(t, trace, largest) == "zero" for t in faulty):
        return "inconclusive", RUN_LONGER
    if state == "slow" and (remedy := _may_be_healthy(affected, trace)):
        return "inconclusive", remedy
    if state == "lr_zero" and len(trace.steps) == 1 and not steps_before(trace):
        return "inconclusive", "run more than one step: a warm-up may start at a learning rate of zero"
    return "fail", ""


def _budget_used(tensors: Sequence[Tensor], trace: Trace) -> str:
    used = sorted(t.budget_used for t in tensors if t.budget_used is not None and t.gradients.max_norm > 0)
    if not used or trace.optimizer.family != "adam":
        return ""
    return f", by {percent(used[len(used) // 2])} of their LR budget (rms, median)"


# ------------------------------------------------------------------ the state of each tensor
def _states(
    tensors: Sequence[Tensor], trace: Trace, largest: float, min_budget: float, max_steps: float
) -> dict[str, UpdateState | None]:
    """Name -> how it failed to learn; None: it did learn, or it is not known what its gradients would have done."""
    states = {t.name: _state(t, trace, largest, min_budget, max_steps) for t in tensors}
    states |= dict.fromkeys(_pruned(tensors, states))
    return _slow_groups(tensors, trace, _spare_slow(tensors, trace, states, max_steps), largest)


def _pruned(tensors: Sequence[Tensor], states: dict[str, UpdateState | None]) -> list[str]:
    """Tensors that began at zero and were set to zero again, where others of that kind that were written to, too, were not: AdaLoRA sets
    singular values of little use to zero, in some layers all of them."""
    written = [t for t in tensors if t.first.rms == 0 and t.motion.between_steps_writes > 0]
    zero = [t.name for t in written if t.last.rms == 0 and states[t.name] == "restored" and not t.replaced]
    return zero if any(t.last.rms > 0 for t in written) else []


def _state(t: Tensor, trace: Trace, largest: float, min_budget: float, max_steps: float) -> UpdateState | None:
    if not ever_trainable(t):
        return "frozen"
    m, gradient = t.motion, gradient_state(t, trace, largest)
    if t.group is None and m.share_changed == 0:
        return "not_in_optimizer"
    if t.group is not None and t.lr_sum == 0:
        return "lr_zero"
    if gradient == "noise":
        return None
    if gradient in ("none", "zero"):
        if m.share_changed > 0 and m.by_decay > 0:
            return "decay_only"
        return "no_gradient" if gradient == "none" else "zero_gradient"
    if m.share_with_gradient == 0:
        return None  # only rows outside the sample got gradients: a large embedding table
    low_precision = t.dtype in ("bfloat16", "float16")
    if low_precision and m.share_changed < LEAST_SHARE_CHANGED * m.share_with_gradient:
        return "rounded_away"
    if m.share_changed == 0 and m.roundings and m.roundings == m.between_steps_writes:
        return "rounded_in_loop"
    if m.share_changed == 0:
        return "restored" if m.between_steps > 0 or t.replaced else "unexplained"
    used = t.budget_used
    # the net displacement of a small tensor may cancel by chance; its largest single step does not
    small_steps = m.max_update < 10 * min_budget * t.lr_peak
    watched = t.group is not None  # what another optimizer's learning rates allow is not known
    if trace.optimizer.family == "adam" and watched and used is not None and used < min_budget and small_steps:
        if gradient == "negligible":
            return "below_eps"
        return "decay_only" if m.by_decay > m.by_gradient else "below_budget"
    return "slow" if (steps := steps_to_matter(t)) is not None and steps > max_steps else None


def steps_to_matter(t: Tensor) -> float | None:
    """Steps, all in one direction and of the largest size observed, for a matrix to change its output by its own size.

    None for vectors, biases, embeddings and gains, where fan-in has no such meaning, and for a matrix that starts at zero.
    """
    if len(t.shape) < 2 or t.role in ("embedding", "bias") or t.fan_in < LEAST_FAN_IN:
        return None
    if t.first.rms == 0 or t.motion.max_update <= 0:
        return None
    return t.first.rms / (t.motion.max_update * math.sqrt(t.fan_in))


def _spare_slow(
    tensors: Sequence[Tensor], trace: Trace, states: dict[str, UpdateState | None], max_steps: float
) -> dict[str, UpdateState | None]:
    """Without Adam's normalization the steps of healthy layers differ by orders of magnitude: all must be slow, or the learning rate of
    a group far below that of another."""
    if trace.optimizer.family == "adam":
        return states
    matrices = [
        t
        for t in trace.tensors
        if t.trainable and t.fan_in >= LEAST_FAN_IN and t.role not in ("embedding", "bias") and t.motion.max_update > 0
    ]
    if all((steps := steps_to_matter(t)) is not None and steps > max_steps for t in matrices):
        return states
    highest = _highest_lr(trace)
    spared = {t.name for t in tensors if states[t.name] == "slow" and t.lr_peak >= LEAST_SHARE * highest}
    return {name: None if name in spared else state for name, state in states.items()}


def _slow_groups(
    tensors: Sequence[Tensor], trace: Trace, states: dict[str, UpdateState | None], largest: float
) -> dict[str, UpdateState | None]:
    """Where every matrix of a parameter group is slow, so are its biases: the learning rate is the group's."""
    out = dict(states)
    for group in {t.group for t in tensors if states[t.name] == "slow" and t.group is not None}:
        members = [t for t in tensors if t.group == group]
        if all(states[t.name] == "slow" for t in members if steps_to_matter(t) is not None):
            for t in members:
                if states[t.name] is None and gradient_state(t, trace, largest) != "noise":
                    out[t.name] = "slow"
    return out


def _exempt(tensors: Sequence[Tensor], states: Mapping[str, UpdateState | None], trace: Trace) -> set[str]:
    """Names of the tensors that did not learn because of the architecture or the dtype, not of a fault.

    What is wrong with the optimizer or the schedule counts for each tensor; a missing or negligible gradient is judged by where it is,
    among the tensors that could have a real one.
    """
    missing = [
        t
        for t in tensors
        if states[t.name] in ("no_gradient", "zero_gradient", "decay_only") and t.gradients.max_norm == 0
    ]
    negligible = [t for t in tensors if states[t.name] in BELOW_BUDGET and t.gradients.max_norm > 0]
    exempt = {t.name for t in split_faulty(missing, tensors).exempt} - severed(trace).keys()
    exempt |= by_design(trace).keys() & {t.name for t in missing}
    names = {t.name for t in negligible}
    lenient = split_faulty([*missing, *negligible], tensors, matrices=True)
    exempt |= {t.name for t in lenient.exempt if t.name in names}
    return exempt | {t.name for t in tensors if states[t.name] in ROUNDED and t.role in ("norm", "bias")}


# ------------------------------------------------------------------ slow steps that may be healthy
def _may_be_healthy(slow: Sequence[Tensor], trace: Trace) -> str | None:
    """What would settle whether slow steps are healthy; None: they are not."""
    if all(lr_rises(t, trace) for t in slow):
        return "the warm-up is still under way: run past its peak"
    if _adam_lr_for_sgd(trace):
        return None
    if trace.optimizer.family != "adam" and all(t.lr_peak >= LEAST_SHARE * _highest_lr(trace) for t in slow):
        return "raise the learning rate, or run a model that has not converged: the steps are small because the gradients are"
    return None


def _adam_lr_for_sgd(trace: Trace) -> bool:
    """SGD at a learning rate usual for Adam, under which a loss that is far from zero hardly changes."""
    if trace.optimizer.family != "sgd" or trace.probe_loss is None or not trace.steps:
        return False
    groups = trace.optimizer.groups
    effective = [g.lr_peak / max(1e-9, 1 - min(1.0, g.settings.get("momentum", 0.0))) for g in groups]
    points, prior = trace.probe_loss.points, trace.probe_loss.prior_entropy
    if not effective or max(effective) > ADAM_LR or len(points) < 2 or prior is None:
        return False
    first, last = points[0].loss, points[-1].loss
    gain = (first - last) * MOST_STEPS / len(trace.steps)
    return first >= 0.5 * prior > 0 and abs(gain) < LEAST_GAIN * first


def _highest_lr(trace: Trace) -> float:
    return max((g.lr_peak for g in trace.optimizer.groups), default=0.0)


# ------------------------------------------------------------------ the message
def _row(t: Tensor, state: UpdateState | None) -> dict[str, Any]:
    steps = steps_to_matter(t)
    return {
        "tensor": t.name,
        "moved": percent(t.motion.share_changed),
        "by gradient/LR sum": t.budget_used,
        "by decay": t.motion.by_decay,
        "LR sum": t.lr_sum,
        "steps to matter": int(min(steps, 1e12)) if steps is not None and state == "slow" else None,
        "why": DESCRIPTIONS[state or "unexplained"].one,
    }


def _which(faulty: Sequence[Tensor], tensors: Sequence[Tensor]) -> str:
    """Which they are, where that takes only a few words."""
    names = {t.name for t in faulty}
    for part in ("head", "base"):
        members = {t.name for t in tensors if t.part == part}
        if members and names == members and len(members) < len(tensors):
            return f" (the whole {part})"
    return f" ({faulty[0].name})" if len(faulty) == 1 else ""


def _notes(
    tensors: Sequence[Tensor],
    noisy: Sequence[Tensor],
    exempt: set[str],
    states: Mapping[str, UpdateState | None],
    trace: Trace,
) -> tuple[str, ...]:
    notes = []
    if noisy:
        notes.append(
            f"{plural(len(noisy), 'tensor')} exempt, with a gradient that is rounding noise: {noisy[0].name}{_others(noisy)} "
            "(a constant that softmax or a norm layer cancels)"
        )
    rounded = sorted(n for n in exempt if states[n] in ROUNDED)
    dtype = (
        "in this dtype"
        if any(states[n] == "rounded_away" for n in rounded)
        else "by steps this short: they are rounded back"
    )
    without_gradient = {t.name for t in tensors if t.gradients.max_norm == 0}
    unused = sorted(exempt & without_gradient)
    negligible = sorted(exempt - without_gradient - set(rounded))
    if unused:
        notes.append(unread_note(unused, trace))
    if negligible:
        notes.append(
            f"{plural(len(negligible), 'base tensor')} with a negligible gradient, in blocks whose matrices learn: {negligible[0]}"
        )
    if rounded:
        notes.append(f"{plural(len(rounded), 'norm or bias tensor')} cannot move {dtype}: {rounded[0]}")
    written = [t for t in tensors if t.motion.between_steps > 0.01 * t.motion.rms > 0]
    if written:
        notes.append(
            f"{plural(len(written), 'tensor')} also changed between optimizer steps (weight averaging, a reset, another optimizer): "
            f"{written[0].name}"
        )
    return tuple(notes)


def _others(found: Sequence[object]) -> str:
    return " and others" if len(found) > 1 else ""
