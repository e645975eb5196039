"""Do the weights move, as far as the schedule lets them?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..text import number, percent, plural
from ..trace import Tensor, Trace
from ..verdict import Status, Verdict
from .kinds import STEPS_FOR_ZERO, ZERO_AT_FIRST, epsilon, fraction, kind_of, largest_norm, nothing_happened, weigh

#: Healthy Adam uses 0.15 to 0.7 of the summed learning rates in dense tensors; a random walk of a million steps uses 1e-3.
LEAST_BUDGET = 1e-3
#: Fine-tunes last 100 to 10,000 steps. A matrix that would need more steps than that, all in one direction, before its
#: output can change by its own size, is not being trained.
MOST_STEPS = 10_000
#: Share of a matrix that must change in low precision (bf16 cannot add 5e-5 to 43 % of N(0, 0.02), measured).
LEAST_MOVED = 0.5

_WHY = {
    "out": "in no parameter group of the optimizer",
    "lr0": "the learning rate of its group was 0",
    "none": "no gradient reached it",
    "zero": "its gradient is exactly zero",
    "decay": "moved by weight decay alone",
    "eps": "its gradient is negligible beside Adam's eps",
    "budget": "moved far less than its learning rate allows",
    "slow": "its steps are negligible beside its size",
    "rounding": "its updates are rounded away",
    "back": "moved by the optimizer, then put back",
    "still": "did not change",
}


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
    fraction("min_budget", min_budget)
    fraction("max_steps", max_steps, high=math.inf)
    chosen = trace.select(part, include, ignore)
    tensors = [t for t in chosen if t.trainable or t.trainable_last]
    what = f"{part} tensors" if part != "all" else "tensors"
    measured = f"elementwise, before against after {plural(len(trace.steps), 'step')}; all elements of the head, a fixed sample elsewhere"
    if not tensors:
        return Verdict(
            "weights_move",
            "skipped",
            f"all {len(chosen)} selected tensors are frozen (requires_grad=False).",
            measured=measured,
        )
    if stuck := nothing_happened(trace):
        headline, causes, remedy = stuck
        return Verdict("weights_move", "fail", f"{_cap(headline)}.", causes=causes, remedy=remedy, measured=measured)
    largest = largest_norm(trace)
    found = {t.name: _fault(t, trace, largest, min_budget, max_steps) for t in tensors}
    found = _spare_slow(tensors, trace, found)
    # whatever is wrong with the optimizer or the schedule counts for each tensor; a dead gradient is weighed by where it is
    dead = [t for t in tensors if found[t.name] in ("none", "zero", "decay")]
    feeble = {t.name for t in tensors if found[t.name] in ("eps", "budget")}
    odd = {t.name for t in weigh(dead, tensors).odd}
    both = [t for t in tensors if t in dead or t.name in feeble]
    odd |= {t.name for t in weigh(both, tensors, matrices=True).odd if t.name in feeble}
    odd |= {t.name for t in tensors if found[t.name] == "rounding" and t.role in ("norm", "bias")}
    ill = [t for t in tensors if found[t.name] is not None and t.name not in odd]
    notes = _notes(tensors, trace, largest, odd, found)
    limit = (
        f"rms displacement by gradients >= {min_budget:g} of the summed learning rates (healthy Adam: 0.15 to 0.7); "
        f"at most {max_steps:,.0f} steps for a matrix to change its output by its own size"
    )
    if not ill:
        used = sorted(t.budget_used for t in tensors if t.budget_used is not None and t.gradients.max_norm > 0)
        share = (
            f", by {percent(used[len(used) // 2])} of their LR budget (rms, median)"
            if used and trace.optimizer.family == "adam"
            else ""
        )
        good = len(tensors) - len(odd)
        return Verdict(
            "weights_move",
            "pass",
            f"{good} of {len(tensors)} {what} moved{share}.",
            limit=limit,
            measured=measured,
            notes=notes,
        )
    kinds = Counter(str(found[t.name]) for t in ill)
    kind = kinds.most_common(1)[0][0]
    status: Status = "fail"
    if kind == "lr0" and len(trace.steps) == 1:
        status = "inconclusive"  # a warm-up that begins at zero
    causes, remedy = _explain(kind, [t for t in ill if found[t.name] == kind], trace)
    if len(trace.steps) < STEPS_FOR_ZERO and all(kind_of(t, trace, largest) == "zero" for t in ill):
        status = "inconclusive"
        remedy = f"run at least {STEPS_FOR_ZERO} steps: {ZERO_AT_FIRST}"
    for other in list(kinds)[:4]:
        if other != kind:
            causes += _explain(other, [t for t in ill if found[t.name] == other], trace)[0][:1]
    verb = "did not learn" if kind in ("decay", "eps", "budget", "slow") else "did not move"
    return Verdict(
        "weights_move",
        status,
        f"{len(ill)} of {len(tensors)} {what}{_which(ill, tensors)} {verb}: {_WHY[kind]}{_where(kind, ill, trace)}.",
        evidence=tuple(_row(t, found[t.name]) for t in sorted(ill, key=lambda t: (t.part != "head", t.name))),
        limit=limit,
        causes=causes,
        remedy=remedy,
        measured=measured,
        notes=notes,
    )


def _fault(t: Tensor, trace: Trace, largest: float, min_budget: float, max_steps: float) -> str | None:
    """What is the matter with one tensor; None: nothing."""
    m, kind = t.motion, kind_of(t, trace, largest)
    if t.group is None and m.moved == 0:
        return "out"
    if t.group is not None and t.lr_sum == 0:
        return "lr0"
    if kind == "noise":
        return None
    if kind in ("none", "zero"):
        return "decay" if m.moved > 0 and m.by_decay > 0 else kind
    if m.touched == 0:
        return None  # only rows that are not looked at got gradients: a large embedding table
    low = t.dtype in ("bfloat16", "float16")
    if low and m.moved < LEAST_MOVED * m.touched:
        return "rounding"
    if m.moved == 0:
        return "back" if m.outside > 0 or t.replaced else "still"
    used = t.budget_used
    if trace.optimizer.family == "adam" and used is not None and used < min_budget:
        if kind == "negligible":
            return "decay" if m.by_decay > m.by_gradient else "eps"
        return "decay" if m.by_decay > m.by_gradient else "budget"
    return "slow" if (steps := steps_to_matter(t)) is not None and steps > max_steps else None


def steps_to_matter(t: Tensor) -> float | None:
    """Steps, all in one direction at the fastest pace seen, for a matrix to change its output by its own size.

    None for vectors and embeddings, where fan-in has no such meaning, and for a matrix that starts at zero.
    """
    if len(t.shape) < 2 or t.role == "embedding" or t.first.rms == 0 or t.motion.max_update <= 0:
        return None
    return t.first.rms / (t.motion.max_update * math.sqrt(t.fan_in))


def _spare_slow(tensors: Sequence[Tensor], trace: Trace, found: dict[str, str | None]) -> dict[str, str | None]:
    """Without Adam's normalisation paces differ by orders of magnitude between healthy layers: all of a part must be slow."""
    if trace.optimizer.family == "adam":
        return found
    for part in ("head", "base"):
        matrices = [t for t in tensors if t.part == part and steps_to_matter(t) is not None]
        if any(found[t.name] != "slow" for t in matrices):
            found = {n: None if k == "slow" and any(t.name == n for t in matrices) else k for n, k in found.items()}
    return found


def _row(t: Tensor, kind: str | None) -> dict[str, Any]:
    steps = steps_to_matter(t)
    return {
        "tensor": t.name,
        "moved": percent(t.motion.moved),
        "by gradient/LR sum": t.budget_used,
        "by decay": t.motion.by_decay,
        "LR sum": t.lr_sum,
        "steps to matter": int(min(steps, 1e12)) if steps is not None and kind == "slow" else None,
        "why": _WHY[kind or "still"],
    }


def _which(ill: Sequence[Tensor], tensors: Sequence[Tensor]) -> str:
    """Which they are, where that can be said in three words."""
    names = {t.name for t in ill}
    for part in ("head", "base"):
        members = {t.name for t in tensors if t.part == part}
        if members and names == members and len(members) < len(tensors):
            return f" (the whole {part})"
    return f" ({ill[0].name})" if len(ill) == 1 else ""


def _where(kind: str, ill: Sequence[Tensor], trace: Trace) -> str:
    peaks = sorted({t.lr_peak for t in ill})
    if kind == "slow" and peaks:
        return f" (peak LR {number(peaks[-1])})"
    if kind == "out":
        return f" ({trace.optimizer.name} holds {sum(g.tensors for g in trace.optimizer.groups)} tensors of this model)"
    return ""


def _explain(kind: str, ill: Sequence[Tensor], trace: Trace) -> tuple[tuple[str, ...], str]:
    """Causes and remedy for one kind of fault."""
    first, name = ill[0], trace.optimizer.name
    group = (
        trace.optimizer.groups[first.group]
        if first.group is not None and first.group < len(trace.optimizer.groups)
        else None
    )
    if kind == "out":
        stale = sum(g.foreign for g in trace.optimizer.groups)
        cause = (
            f"{name} holds {plural(stale, 'tensor')} that are not in this model: it was built before the layer was replaced, or before "
            "the model was copied or wrapped"
            if stale
            else f"{name} was built without them (only another part's parameters were handed over, or they were added later)"
        )
        return (
            (cause,),
            f"build {name} over model.parameters() after the model is complete, or call optimizer.add_param_group",
        )
    if kind == "lr0":
        return (
            (
                f"the learning rate was 0 at each of the {len(trace.steps)} steps of parameter group {first.group}: "
                "lr=0, or a schedule that never leaves zero",
            ),
            "give that group a learning rate; print scheduler.get_last_lr() over the first steps",
        )
    if kind in ("none", "zero"):
        return dead_causes(kind, ill, trace)
    if kind == "decay":
        return (
            (
                f"what they moved by ({number(first.motion.by_decay)} rms) is weight decay"
                f"{f' {group.weight_decay:g}' if group else ''}; gradients moved them by {number(first.motion.by_gradient)}: "
                + (
                    "no gradient reaches them"
                    if first.gradients.max_norm == 0
                    else f"their largest gradient has rms {number(first.gradients.max_rms)}"
                ),
                *dead_causes("zero" if first.gradients.max_norm == 0 else "eps", ill, trace)[0],
            ),
            "find out why no gradient reaches them (assert_grads_nonzero names the place); weight decay only hides it",
        )
    if kind in ("eps", "budget"):
        return dead_causes("eps", ill, trace)
    if kind == "slow":
        others = [g.lr_peak for g in trace.optimizer.groups if g.index != first.group]
        beside = f"; the other groups have up to {number(max(others))}" if others else ""
        return (
            (
                f"the learning rate of parameter group {first.group} peaks at {number(first.lr_peak)}{beside}: "
                f"too small for weights of rms {number(first.first.rms)}",
            ),
            "raise that group's learning rate (1e-5 to 1e-3 is usual for Adam; SGD needs far more)",
        )
    if kind == "rounding":
        return (
            (
                f"{first.dtype} cannot add an update of {number(first.lr_peak)} to weights of rms {number(first.first.rms)}: "
                "it is less than half the spacing of its numbers",
            ),
            "keep the parameters in float32 (dtype=torch.float32; transformers 5 loads the checkpoint's dtype) and use autocast",
        )
    return (
        (
            f"{name} changed them (rms {number(first.motion.max_update)} a step), and between steps something put them back: an EMA, "
            "a checkpoint loaded again, a layer initialised again",
        )
        if kind == "back"
        else ("nothing that was measured explains it: does the optimizer's step() really write to these tensors?",),
        "look for writes to the weights outside optimizer.step()",
    )


def dead_causes(kind: str, ill: Sequence[Tensor], trace: Trace) -> tuple[tuple[str, ...], str]:
    """Causes and remedy for tensors whose gradient is missing, zero, or negligible."""
    first = ill[0]
    head_alive = any(t.part == "head" and t.gradients.max_norm > 0 for t in trace.tensors)
    if kind == "none":
        if head_alive and all(t.part == "base" for t in ill):
            return (
                (
                    "the graph is cut between the base and the head: features pass through .detach(), .data, torch.no_grad(), numpy, "
                    "or the base is frozen at run time",
                ),
                "let the base's output tensor reach the head as it is; or freeze the base on purpose with requires_grad_(False)",
            )
        return (
            (
                "they take no part in the loss: another layer is used instead, the output is not what the loss is computed from, "
                "or the graph is cut above them",
            ),
            "compute the loss from what these layers output; freeze or remove them if they are not needed",
        )
    if kind == "zero":
        zeroed = [t for t in trace.tensors if t.part == "head" and len(t.shape) > 1 and t.last.rms == 0]
        return (
            (
                f"{zeroed[0].name} is zero and stays zero, so nothing passes through it"
                if zeroed and zeroed[0].name != first.name
                else "they are connected to the loss, but what they do is multiplied by zero: dead ReLUs (a large negative bias, a large "
                "step), zero weights above them, a saturated or constant output, a mask or weight of zero",
            ),
            "look at the activations above them: how many are exactly zero for every input?",
        )
    eps = epsilon(first, trace)
    clipped = [
        s for s in trace.steps if s.grad_norm_unclipped is not None and s.grad_norm < 1e-3 * s.grad_norm_unclipped
    ]
    causes = []
    if clipped:
        s = clipped[0]
        causes.append(
            f"gradients are clipped to nothing: norm {number(s.grad_norm_unclipped)} before, {number(s.grad_norm)} after"
        )
    causes.append(
        f"their gradients (rms {number(first.gradients.max_rms)} at most) are small"
        + (
            f" beside the eps of {trace.optimizer.name} ({number(eps)}): it divides by sqrt(v) + eps, so the step shrinks with them"
            if eps
            else ""
        )
    )
    if not clipped:
        causes.append(
            "the loss is scaled down (a tiny factor, a mean over too many elements), gradients are clipped to nothing, "
            "or they vanish on the way"
        )
    return tuple(
        causes
    ), "undo the scaling of the loss or the clipping; the loss should begin near the entropy of the labels"


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
    unused = [n for n in odd if found[n] in ("none", "zero", "decay")]
    if unused:
        notes.append(
            f"{plural(len(unused), 'base tensor')} without gradient, in modules that nothing else depends on: {min(unused)}"
            f"{' and others' if len(unused) > 1 else ''}; freeze them to say that this is meant"
        )
    rounded = [n for n in odd if found[n] == "rounding"]
    if rounded:
        notes.append(f"{plural(len(rounded), 'norm or bias tensor')} cannot move in this dtype: {min(rounded)}")
    outside = [t for t in tensors if t.motion.outside > 0.01 * t.motion.rms > 0]
    if outside:
        notes.append(
            f"{plural(len(outside), 'tensor')} also changed between optimizer steps (weight averaging, a reset, another optimizer): "
            f"{outside[0].name}"
        )
    return tuple(notes)


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]
