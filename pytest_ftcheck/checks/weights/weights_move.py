"""Do the weights move, as far as the schedule lets them?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ...core import arguments
from ...core.formatting import percent, plural
from ...core.observations import Tensor
from ...core.trace import Trace
from ...core.verdict import Status, Verdict
from ...seeds.thresholds import Threshold
from ..expected_roles import FROZEN_BY_DESIGN, not_yet_unfrozen, should_learn
from ..gradients.missing_gradient import why
from ..gradients.no_update_causes import FAULTS, WHY, explain, headline_of
from ..gradients.severed import blocked
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

#: Healthy Adam uses 0.15 to 0.7 of the summed learning rates in dense tensors; a random walk of a million steps uses 1e-3.
LEAST_BUDGET = 1e-3
#: Fine-tunes last 100 to 10,000 steps. A matrix that would need more steps than that, all in one direction, before its
#: output can change by its own size, is not being trained.
MOST_STEPS = 10_000
#: Inputs below which a matrix is a gain or a single feature, not a layer.
LEAST_FAN_IN = 8
#: Learning rate of a group over the largest of any group: layer-wise and discriminative rates go down to 1e-3.
LEAST_SHARE = 1e-4
#: Learning rate of SGD over (1 - momentum) at which Adam is at home and SGD stands still (in use: 1e-3 to 1); judged only where at its
#: pace `MOST_STEPS` would change the loss by less than this share of itself.
ADAMS_RATE = 2e-4
LEAST_GAIN = 0.05
#: Share of a matrix that must change in low precision (bf16 cannot add 5e-5 to 43 % of N(0, 0.02), measured).
LEAST_MOVED = 0.5


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
        faults.WEIGHTS_OVERWRITTEN,
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
    """Every tensor that is meant to learn moved, elementwise, through its gradients, by a sensible share of what was allowed.

    Not judged: the histogram. A weight of N(0, 0.02) trained for 200 steps at 5e-5 may move by 0.005 in all, which no histogram
    shows. For Adam and its relatives the yardstick is the sum of the learning rates that the tensor's group really had (Adam
    moves a weight by about one learning rate a step at most, Kingma and Ba 2015, section 2.1); what weight decay did is
    subtracted. For every optimizer: how many steps, all in one direction, the layer's output would need to change by its own
    size, ``rms(w) / (rms update * sqrt(fan-in))``. Attention key biases and other tensors with rounding noise for a gradient are exempt.

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
    tensors = [t for t in chosen if _judged(t, trace) and t.numel]
    what = f"{part} tensors" if part != "all" else "tensors"
    measured = f"elementwise, before against after {plural(len(trace.steps), 'step')}; all elements of the head, a fixed sample elsewhere"
    if not tensors and any(t.trainable or t.trainable_last for t in chosen):
        return Verdict(
            "weights_move",
            "skipped",
            "all of them are declared frozen or unused, or are still to be thawed.",
            measured=measured,
        )
    if not tensors:
        return all_frozen("weights_move", part, chosen)
    if stuck := nothing_happened(trace):
        headline, causes, remedy = stuck
        fault = broken_fault(trace) if trace.backward_error else "no_step_taken"
        return Verdict(
            "weights_move",
            "fail",
            f"{_cap(headline)}.",
            causes=causes,
            remedy=remedy,
            measured=measured,
            fault=fault,
        )
    largest = largest_norm(trace)
    found = {t.name: _fault(t, trace, largest, min_budget, max_steps) for t in tensors}
    found = _whole_groups(tensors, trace, _spare_slow(tensors, trace, found, max_steps), largest)
    exempt = [t for t in tensors if found[t.name] is None and kind_of(t, trace, largest) == "noise"]
    # whatever is wrong with the optimizer or the schedule counts for each tensor; a dead or feeble gradient is weighed by
    # where it is, among the tensors that could have a real one
    judged = [t for t in tensors if t not in exempt]
    dead = [t for t in judged if found[t.name] in ("none", "zero", "decay") and t.gradients.max_norm == 0]
    feeble = [t for t in judged if found[t.name] in ("eps", "budget", "decay") and t.gradients.max_norm > 0]
    weak = {t.name for t in feeble}
    odd = {t.name for t in weigh(dead, judged).odd} - blocked(trace).keys()
    odd |= {t.name for t in weigh([*dead, *feeble], judged, matrices=True).odd if t.name in weak}
    odd |= {t.name for t in tensors if found[t.name] == "rounding" and t.role in ("norm", "bias")}
    ill = [t for t in tensors if found[t.name] is not None and t.name not in odd]
    notes = (*frozen_note(tensors, chosen), *_notes(tensors, trace, largest, odd, found))
    budget = f"rms displacement by gradients >= {min_budget:g} of the summed learning rates (healthy Adam: 0.15 to 0.7)"
    pace = f"at most {max_steps:,.0f} steps for a matrix to change its output by its own size"
    if not ill:
        used = sorted(t.budget_used for t in tensors if t.budget_used is not None and t.gradients.max_norm > 0)
        share = (
            f", by {percent(used[len(used) // 2])} of their LR budget (rms, median)"
            if used and trace.optimizer.family == "adam"
            else ""
        )
        good = len(tensors) - len(odd) - len(exempt)
        return Verdict(
            "weights_move",
            "pass",
            f"{good} of {len(tensors)} {what} moved{share}.",
            limit=f"{budget}; {pace}",
            measured=measured,
            notes=notes,
        )
    kinds = Counter(str(found[t.name]) for t in ill)
    kind = kinds.most_common(1)[0][0]
    status: Status = "fail"
    if kind == "lr0" and len(trace.steps) == 1:
        status = "inconclusive"  # a warm-up that begins at zero
    worst = [t for t in ill if found[t.name] == kind]
    causes, remedy = explain(kind, worst, trace)
    if kind in ("none", "zero", "decay") and all(t.gradients.max_norm == 0 for t in worst):
        root = why("none" if all(t.gradients.none == t.gradients.steps for t in worst) else "zero", worst, trace)
        causes, remedy = ((root.cause, *causes[1:]), root.remedy) if root.cause else (causes, remedy)
    if kind == "slow" and (open_question := _undecided([t for t in ill if found[t.name] == "slow"], trace)):
        status, remedy = "inconclusive", open_question
    if len(trace.steps) < STEPS_FOR_ZERO and all(kind_of(t, trace, largest) == "zero" for t in ill):
        status = "inconclusive"
        remedy = f"run at least {STEPS_FOR_ZERO} steps: {ZERO_AT_FIRST}"
    for other in list(kinds)[:4]:
        if other != kind:
            causes += explain(other, [t for t in ill if found[t.name] == other], trace)[0][:1]
    verb = "did not learn" if kind in ("decay", "eps", "budget", "slow") else "did not move"
    return Verdict(
        "weights_move",
        status,
        f"{len(ill)} of {len(tensors)} {what}{_which(ill, tensors)} {verb}: {headline_of(kind, worst, trace, many=len(ill) > 1)}.",
        evidence=tuple(_row(t, found[t.name]) for t in sorted(ill, key=lambda t: (t.part != "head", t.name))),
        limit={
            "slow": pace,
            "rounding": f"at least {percent(LEAST_MOVED)} of the elements of a matrix move in {worst[0].dtype}",
        }.get(kind, budget if kind in ("eps", "budget", "decay") else "every tensor that is meant to learn moves"),
        causes=causes,
        remedy=remedy,
        measured=measured,
        notes=notes,
        fault=_root(kind, worst, trace) if status == "fail" else "",
    )


def _judged(t: Tensor, trace: Trace) -> bool:
    """Meant to learn; not yet thawed is not yet meant to. "Everything" does not mean what is frozen by design."""
    if not_yet_unfrozen(t, trace) or not should_learn(t, trace):
        return False
    return t.trainable or t.trainable_last or t.part == "head" or t.role not in FROZEN_BY_DESIGN


def _root(kind: str, worst: Sequence[Tensor], trace: Trace) -> str:
    """Name of the fault behind one kind."""
    if kind == "decay":
        dead = all(t.gradients.max_norm == 0 for t in worst)
        absent = all(t.gradients.none == t.gradients.steps for t in worst)
        kind = "none" if absent else "zero" if dead else "budget"
    if kind in ("none", "zero"):
        return why(kind, worst, trace).fault
    if kind in ("eps", "budget"):
        return why("negligible", worst, trace).fault
    if kind == "out":
        return "stale_optimizer" if any(g.not_in_model for g in trace.optimizer.groups) else "not_in_optimizer"
    return FAULTS[kind]


def _fault(t: Tensor, trace: Trace, largest: float, min_budget: float, max_steps: float) -> str | None:
    """What is the matter with one tensor; None: nothing."""
    if not t.trainable and not t.trainable_last:
        return "frozen"
    m, kind = t.motion, kind_of(t, trace, largest)
    if t.group is None and m.share_changed == 0:
        return "out"
    if t.group is not None and t.lr_sum == 0:
        return "lr0"
    if kind == "noise":
        return None
    if kind in ("none", "zero"):
        return "decay" if m.share_changed > 0 and m.by_decay > 0 else kind
    if m.share_with_gradient == 0:
        return None  # only rows that are not looked at got gradients: a large embedding table
    low = t.dtype in ("bfloat16", "float16")
    if low and m.share_changed < LEAST_MOVED * m.share_with_gradient:
        return "rounding"
    if m.share_changed == 0:
        return "back" if m.between_steps > 0 or t.replaced else "still"
    used = t.budget_used
    # net displacement of a small tensor may cancel by luck: the largest single step tells
    feeble = m.max_update < 10 * min_budget * t.lr_peak
    mine = t.group is not None  # of another optimizer it is not known what its learning rates allow
    if trace.optimizer.family == "adam" and mine and used is not None and used < min_budget and feeble:
        if kind == "negligible":
            return "eps"
        return "decay" if m.by_decay > m.by_gradient else "budget"
    return "slow" if (steps := steps_to_matter(t)) is not None and steps > max_steps else None


def steps_to_matter(t: Tensor) -> float | None:
    """Steps, all in one direction at the fastest pace seen, for a matrix to change its output by its own size.

    None for vectors, biases, embeddings and gains, where fan-in has no such meaning, and for a matrix that starts at zero.
    """
    if len(t.shape) < 2 or t.role in ("embedding", "bias") or t.fan_in < LEAST_FAN_IN:
        return None
    if t.first.rms == 0 or t.motion.max_update <= 0:
        return None
    return t.first.rms / (t.motion.max_update * math.sqrt(t.fan_in))


def _spare_slow(
    tensors: Sequence[Tensor], trace: Trace, found: dict[str, str | None], max_steps: float
) -> dict[str, str | None]:
    """Without Adam's normalisation paces differ by orders of magnitude between healthy layers: all must be slow, or the learning
    rate of a group far below that of another."""
    if trace.optimizer.family == "adam":
        return found
    matrices = [
        t
        for t in trace.tensors
        if t.trainable and t.fan_in >= LEAST_FAN_IN and t.role not in ("embedding", "bias") and t.motion.max_update > 0
    ]
    if all((steps := steps_to_matter(t)) is not None and steps > max_steps for t in matrices):
        return found
    fastest = max((g.lr_peak for g in trace.optimizer.groups), default=0.0)
    slow = {t.name for t in tensors if found[t.name] == "slow" and t.lr_peak >= LEAST_SHARE * fastest}
    return {n: None if n in slow else k for n, k in found.items()}


def _undecided(ill: Sequence[Tensor], trace: Trace) -> str | None:
    """Why slow steps may yet be healthy, if so."""
    if all(_rising(t, trace) for t in ill):
        return "the warm-up is still under way: run past its peak"
    fastest = max((g.lr_peak for g in trace.optimizer.groups), default=0.0)
    if _hopeless(trace):
        return None
    if trace.optimizer.family != "adam" and all(t.lr_peak >= LEAST_SHARE * fastest for t in ill):
        return "raise the learning rate, or run a model that has not converged: the steps are small because the gradients are"
    return None


def _hopeless(trace: Trace) -> bool:
    """SGD at a learning rate of Adam's, which has gained nothing, and has everything yet to gain."""
    if trace.optimizer.family != "sgd" or trace.probe is None or not trace.steps:
        return False
    felt = [g.lr_peak / max(1e-9, 1 - min(1.0, g.settings.get("momentum", 0.0))) for g in trace.optimizer.groups]
    points, prior = trace.probe.points, trace.probe.prior_entropy
    if not felt or max(felt) > ADAMS_RATE or len(points) < 2 or prior is None:
        return False
    first, last = points[0].loss, points[-1].loss
    gain = (first - last) * MOST_STEPS / len(trace.steps)
    return first >= 0.5 * prior > 0 and abs(gain) < LEAST_GAIN * first


def _rising(t: Tensor, trace: Trace) -> bool:
    rates = [s.lrs[t.group] for s in trace.steps if t.group is not None and t.group < len(s.lrs)]
    # another optimizer's steps are among them: theirs neither rise with ours nor end at our peak
    rising = len(rates) > 1 and all(a <= b for a, b in pairwise(rates))
    return rising and rates[-1] == t.lr_peak and rates[0] <= 0.5 * rates[-1]


def _whole_groups(
    tensors: Sequence[Tensor], trace: Trace, found: dict[str, str | None], largest: float
) -> dict[str, str | None]:
    """Where every matrix of a parameter group is slow, so are its biases: the learning rate is the group's."""
    out = dict(found)
    for group in {t.group for t in tensors if found[t.name] == "slow" and t.group is not None}:
        members = [t for t in tensors if t.group == group]
        if all(found[t.name] == "slow" for t in members if steps_to_matter(t) is not None):
            out.update(
                {t.name: "slow" for t in members if found[t.name] is None and kind_of(t, trace, largest) != "noise"}
            )
    return out


def _row(t: Tensor, kind: str | None) -> dict[str, Any]:
    steps = steps_to_matter(t)
    return {
        "tensor": t.name,
        "moved": percent(t.motion.share_changed),
        "by gradient/LR sum": t.budget_used,
        "by decay": t.motion.by_decay,
        "LR sum": t.lr_sum,
        "steps to matter": int(min(steps, 1e12)) if steps is not None and kind == "slow" else None,
        "why": WHY[kind or "still"],
    }


def _which(ill: Sequence[Tensor], tensors: Sequence[Tensor]) -> str:
    """Which they are, where that can be said in three words."""
    names = {t.name for t in ill}
    for part in ("head", "base"):
        members = {t.name for t in tensors if t.part == part}
        if members and names == members and len(members) < len(tensors):
            return f" (the whole {part})"
    return f" ({ill[0].name})" if len(ill) == 1 else ""


def _notes(
    tensors: Sequence[Tensor], trace: Trace, largest: float, odd: set[str], found: dict[str, str | None]
) -> tuple[str, ...]:
    notes = []
    noise = [t for t in tensors if kind_of(t, trace, largest) == "noise" and found[t.name] is None]
    if noise:
        notes.append(
            f"{plural(len(noise), 'tensor')} exempt, whose gradient is rounding noise: {noise[0].name}"
            f"{' and others' if len(noise) > 1 else ''} (a constant that softmax or a norm layer cancels)"
        )
    silent = {t.name for t in tensors if t.gradients.max_norm == 0}
    unused = [n for n in odd if n in silent]
    if unused:
        notes.append(
            f"{plural(len(unused), 'base tensor')} without gradient, in modules that nothing else depends on: {min(unused)}"
            f"{' and others' if len(unused) > 1 else ''}; freeze them to say that this is meant"
        )
    feeble = [n for n in odd - set(unused) if found[n] != "rounding"]
    if feeble:
        notes.append(
            f"{plural(len(feeble), 'base tensor')} with next to no gradient, in blocks whose matrices learn: {min(feeble)}"
        )
    rounded = [n for n in odd if found[n] == "rounding"]
    if rounded:
        notes.append(f"{plural(len(rounded), 'norm or bias tensor')} cannot move in this dtype: {min(rounded)}")
    outside = [t for t in tensors if t.motion.between_steps > 0.01 * t.motion.rms > 0]
    if outside:
        notes.append(
            f"{plural(len(outside), 'tensor')} also changed between optimizer steps (weight averaging, a reset, another optimizer): "
            f"{outside[0].name}"
        )
    return tuple(notes)


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]
