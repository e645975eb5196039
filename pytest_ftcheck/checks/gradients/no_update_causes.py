"""Why tensors do not learn: for each kind of fault its name, its likely causes with their numbers, and what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...core.formatting import number, plural
from ...core.observations import Tensor
from ...core.trace import Trace
from ..tensor_state import epsilon

#: Kind of fault -> its name, where it is the same for all tensors.
FAULTS = {
    "frozen": "frozen_by_mistake",
    "lr0": "lr_zero",
    "slow": "lr_too_small",
    "rounding": "lr_below_spacing",
    "back": "weights_overwritten",
    "still": "weights_still",
}
#: Kind of fault -> what is said of one tensor.
WHY = {
    "frozen": "frozen (requires_grad=False)",
    "out": "in no parameter group of the optimizer",
    "lr0": "learning rate 0",
    "none": "no gradient reached it",
    "zero": "gradient exactly zero",
    "decay": "moved by weight decay alone",
    "eps": "gradient negligible beside Adam's eps",
    "budget": "moved far less than its learning rate allows",
    "slow": "steps negligible beside its size",
    "rounding": "updates rounded away",
    "back": "moved by the optimizer, then put back",
    "still": "nothing changed it",
}
_THEY = {
    "frozen": "they are frozen (requires_grad=False)",
    "out": "they are in no parameter group of the optimizer",
    "lr0": "their learning rate was 0",
    "none": "no gradient reached them",
    "zero": "their gradient is exactly zero",
    "decay": "they were moved by weight decay alone",
    "eps": "their gradients are negligible beside Adam's eps",
    "budget": "they moved far less than their learning rates allow",
    "slow": "their steps are negligible beside their size",
    "rounding": "their updates are rounded away",
    "back": "the optimizer moved them, and something put them back",
    "still": "nothing changed them",
}


def headline_of(kind: str, ill: Sequence[Tensor], trace: Trace, *, many: bool) -> str:
    """What is the matter with the tensors of one kind, with the number that decides; ``many``: the sentence is about several."""
    words = _THEY[kind] if many else WHY[kind]
    if kind == "slow":
        peak = max(t.lr_peak for t in ill)
        return f"{words} (peak LR {number(peak)})" if peak else words
    if kind == "out":
        held = sum(g.tensors for g in trace.optimizer.groups)
        return f"{words} ({trace.optimizer.name} holds {plural(held, 'tensor')} of this model)"
    return words


def explain(kind: str, ill: Sequence[Tensor], trace: Trace) -> tuple[tuple[str, ...], str]:
    """Causes, the root first, and the remedy, for tensors with one kind of fault."""
    if kind in _DEAD:
        return _DEAD[kind](ill, trace)
    return {
        "frozen": _frozen,
        "out": _out,
        "lr0": _lr0,
        "decay": _decay,
        "slow": _slow,
        "rounding": _rounding,
        "back": _back,
    }.get(kind, _still)(ill, trace)


def _frozen(ill: Sequence[Tensor], _: Trace) -> tuple[tuple[str, ...], str]:
    return (
        (
            f"{ill[0].name} has requires_grad=False, though it is declared to learn: frozen by mistake or with another part",
        ),
        "call requires_grad_(True) on it, before the optimizer is built",
    )


def _out(_: Sequence[Tensor], trace: Trace) -> tuple[tuple[str, ...], str]:
    name, stale = trace.optimizer.name, sum(g.not_in_model for g in trace.optimizer.groups)
    cause = (
        f"{name} holds {plural(stale, 'tensor')} that are not in this model: it was built before the layer was replaced, or before "
        "the model was copied or wrapped"
        if stale
        else f"{name} was built without them (only another part's parameters were handed over, or they were added later)"
    )
    return (
        cause,
    ), f"build {name} over model.parameters() after the model is complete, or call optimizer.add_param_group"


def _lr0(ill: Sequence[Tensor], trace: Trace) -> tuple[tuple[str, ...], str]:
    if trace.recipe is not None and trace.recipe.lr == 0 and len(trace.optimizer.groups) == 1:
        return ("the run was asked for with lr=0",), "give it a learning rate (5e-5 is usual for Adam)"
    group = f" of parameter group {ill[0].group}" if len(trace.optimizer.groups) > 1 else ""
    steps = f"at each of the {len(trace.steps)} steps" if len(trace.steps) > 1 else "at the only step"
    return (
        (f"the learning rate{group} was 0 {steps}: lr=0, or a schedule that never leaves zero",),
        "give it a learning rate; print scheduler.get_last_lr() over the first steps",
    )


def _decay(ill: Sequence[Tensor], trace: Trace) -> tuple[tuple[str, ...], str]:
    moved = [t.motion.by_decay for t in ill]
    spread = f"{number(min(moved))} to {number(max(moved))}" if len(ill) > 1 else number(moved[0])
    index = ill[0].group
    group = trace.optimizer.groups[index] if index is not None and index < len(trace.optimizer.groups) else None
    decay = f"weight decay {group.weight_decay:g}" if group is not None else "weight decay"
    if all(t.gradients.none == t.gradients.steps for t in ill):
        (causes, remedy), why = _none(ill, trace), "no gradient reached them"
    elif all(t.gradients.max_norm == 0 for t in ill):
        (causes, remedy), why = _zero(ill, trace), "their gradient is exactly zero"
    else:
        (causes, remedy), why = _feeble(ill, trace), "their gradients did less"
    return (*causes, f"what moved them (rms {spread}) is {decay}; {why}"), remedy


def _slow(ill: Sequence[Tensor], trace: Trace) -> tuple[tuple[str, ...], str]:
    worst = max(ill, key=lambda t: t.first.rms)
    if worst.group is None:
        return (
            (
                f"another optimizer than {trace.optimizer.name} moves them, by rms {number(worst.motion.max_update)} a step at most, "
                f"too small for weights of rms {number(worst.first.rms)}",
            ),
            "raise the learning rate of that optimizer",
        )
    others = [g.lr_peak for g in trace.optimizer.groups if g.index != worst.group]
    which = f"parameter group {worst.group}" if others else "the learning rate"
    beside = f" (other groups: up to {number(max(others))})" if others else ""
    return (
        (
            f"{which} peaks at {'LR ' if others else ''}{number(worst.lr_peak)}{beside}, too small for weights of rms "
            f"{number(worst.first.rms)}",
        ),
        "raise that learning rate (1e-5 to 1e-3 is usual for Adam; SGD needs far more)",
    )


def _rounding(ill: Sequence[Tensor], _: Trace) -> tuple[tuple[str, ...], str]:
    t = ill[0]
    return (
        (
            f"{t.dtype} cannot add an update of {number(t.lr_peak)} to weights of rms {number(t.first.rms)}: "
            "it is less than half the spacing of its numbers",
        ),
        "keep the parameters in float32 (dtype=torch.float32; transformers 5 loads the checkpoint's dtype) and use autocast",
    )


def _back(ill: Sequence[Tensor], trace: Trace) -> tuple[tuple[str, ...], str]:
    largest = max(t.motion.max_update for t in ill)
    size = f" (rms {number(largest)} a step)" if largest else ""
    return (
        (
            f"{trace.optimizer.name} changed them{size}, and between steps something put them back: an EMA, a checkpoint loaded "
            "again, a layer initialised again",
        ),
        "look for writes to the weights outside optimizer.step()",
    )


def _still(ill: Sequence[Tensor], trace: Trace) -> tuple[tuple[str, ...], str]:
    return (
        (f"nothing that was measured explains it: does {trace.optimizer.name}.step() really write to {ill[0].name}?",),
        "look at what the optimizer does with these tensors",
    )


# ------------------------------------------------------------------ dead and feeble gradients
def _none(ill: Sequence[Tensor], trace: Trace) -> tuple[tuple[str, ...], str]:
    if all(t.gradients.none == t.gradients.steps for t in trace.tensors if t.trainable):
        return (
            (
                "no tensor had a gradient when the optimizer stepped: loss.backward() is not called, or zero_grad() comes between it and "
                "optimizer.step()",
            ),
            "call loss.backward() right before optimizer.step(), and zero_grad() after it or before the forward pass",
        )
    head_alive = any(t.part == "head" and t.gradients.max_norm > 0 for t in trace.tensors)
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


def _zero(ill: Sequence[Tensor], trace: Trace) -> tuple[tuple[str, ...], str]:
    remedy = "look at the activations above them: how many are exactly zero for every input?"
    if name := silenced(trace):
        return (
            (
                f"the input of {name} is zero for every row (its bias gets a gradient, its weight exactly none): what comes before it is "
                "dead, as ReLUs that never fire are (a large negative bias, a large step)",
            ),
            f"look at what goes into {name}: initialise or normalise what comes before it so that units fire",
        )
    zeroed = [t for t in trace.tensors if t.part == "head" and len(t.shape) > 1 and t.last.rms == 0]
    if zeroed and any(t.name != zeroed[0].name for t in ill):
        return (f"{zeroed[0].name} is zero and stays zero, so nothing passes through it",), remedy
    return (
        (
            "they are connected to the loss, but what they do is multiplied by zero: dead ReLUs (a large negative bias, a large "
            "step), zero weights above them, a saturated or constant output, a mask or weight of zero",
        ),
        remedy,
    )


def silenced(trace: Trace) -> str | None:
    """The module whose bias learns while its weight gets exactly nothing: its input is zero."""
    norms = {t.name: t.gradients for t in trace.tensors}
    for t in reversed(trace.tensors):
        stem, _, leaf = t.name.rpartition(".")
        bias = norms.get(f"{stem}.bias")
        if leaf == "weight" and len(t.shape) > 1 and bias is not None and bias.max_norm > 0:
            g = t.gradients
            if g.max_norm == 0 and g.none < g.steps:
                return stem
    return None


def _feeble(ill: Sequence[Tensor], trace: Trace) -> tuple[tuple[str, ...], str]:
    causes = []
    scaled = _scaled_down(trace)
    clipped = [
        s for s in trace.steps if s.grad_norm_unclipped is not None and s.grad_norm < 1e-3 * s.grad_norm_unclipped
    ]
    if scaled:
        causes.append(scaled)
    if clipped:
        s = clipped[0]
        causes.append(
            f"gradients are clipped to nothing: norm {number(s.grad_norm_unclipped)} before, {number(s.grad_norm)} after"
        )
    eps, largest = epsilon(ill[0], trace), max(t.gradients.max_rms for t in ill)
    if eps is not None and largest >= eps:  # Adam would make full steps of these
        causes.append(
            f"their gradients (rms {number(largest)} at most) are not small beside the eps of {trace.optimizer.name} ({number(eps)}): "
            "they cancel from step to step, come at few of the steps, or one burst of them shrinks the steps after it"
        )
        if not scaled and not clipped:
            return tuple(
                causes
            ), "look at their gradient norms step by step: is there a burst, and then next to nothing?"
    else:
        beside = f" beside the eps of {trace.optimizer.name} ({number(eps)})" if eps else ""
        how = ": it divides by sqrt(v) + eps, so the step shrinks with them" if eps else ""
        causes.append(f"their gradients (rms {number(largest)} at most) are small{beside}{how}")
    if not scaled and not clipped:
        known = any(s.grad_norm_unclipped is not None for s in trace.steps)
        causes.append(
            "they vanish on the way (saturated activations, tiny weights above), or the loss is scaled down"
            + ("" if known else ", or gradients are clipped to nothing")
        )
    remedy = (
        "undo the scaling of the loss: it should begin near that textbook loss"
        if scaled
        else "undo the clipping (max_norm is a norm, not eps)"
        if clipped
        else "look at the gradient norms layer by layer: where do they fall?"
    )
    return tuple(causes), remedy


def _scaled_down(trace: Trace) -> str | None:
    """The loss beside the textbook loss of the same logits, if it is a thousandth of it or less."""
    point = trace.probe.points[0] if trace.probe is not None and trace.probe.points else None
    if (
        point is None
        or not point.reference
        or not math.isfinite(point.loss)
        or abs(point.loss) > 1e-3 * point.reference
    ):
        return None
    return (
        f"the loss is scaled down: it begins at {number(point.loss)}, where the textbook loss of the same logits is "
        f"{number(point.reference)}"
    )


_DEAD = {"none": _none, "zero": _zero, "eps": _feeble, "budget": _feeble, "negligible": _feeble}
