"""Which fault is behind gradients that are missing, zero, negligible or not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from ...core.formatting import block_of, number, shorten
from ...core.observations import Tensor
from ...core.trace import Trace
from ..expected_roles import frozen_in_trained_head
from ..head import faults as head_faults
from ..loop.record import LoopCalls
from ..optimizer.faults import HEAD_PARTLY_FROZEN
from ..optimizer.partly_frozen_head import blocks_gradients, explain_partly_frozen_head
from ..spec import Fault
from ..tensor_state import epsilon, stack_of
from . import faults
from .grads_reach_depth import check_grads_reach_depth
from .reference_faults import found_by_reference
from .severed import explain_severed

#: Nobody clips to so little on purpose: shared by a million weights it is an rms of 1e-6.
TINY_NORM = 1e-3
#: Clipping that leaves less than this share of a gradient, or a loss below this share of the standard loss, explains a negligible gradient.
NEARLY_NOTHING = 1e-3

#: What it can find where a gradient is missing, zero or negligible.
FAULTS = (
    HEAD_PARTLY_FROZEN,
    faults.LOSS_CUT_OFF,
    faults.LOSS_IS_FLAT,
    faults.BACKWARD_REACHES_NOTHING,
    faults.GRADS_GONE_BEFORE_STEP,
    faults.NO_GRADIENT_AT_ALL,
    faults.NAN_GRADIENTS_REPLACED,
    faults.CLIPPED_TO_NOTHING,
    faults.GRADS_REMOVED,
    faults.ADAPTERS_SILENT,
    faults.GATE_ZERO,
    faults.GRADIENT_BLOCKED,
    faults.GRAPH_CUT,
    faults.LAYERS_NOT_USED,
    faults.NOT_IN_GRAPH,
    faults.CUT_BELOW_HEAD,
    head_faults.UNITS_DEAD,
    faults.GRADS_VANISH,
    faults.LAYER_STAYS_ZERO,
    faults.GRADIENT_ZERO,
    faults.GRADIENT_NEGLIGIBLE,
)
#: ``seldom``: zero at most steps.
MissingKind = Literal["none", "zero", "seldom", "negligible", "nonfinite"]


def explain_missing_gradient(tensors: Sequence[Tensor], kind: MissingKind, trace: Trace) -> Fault:
    """The fault behind the gradients of these tensors, which are all of one kind, with its cause and remedy in this run.

    >>> from pytest_ftcheck import example_trace
    >>> trace = example_trace()
    >>> explain_missing_gradient(trace.select("head"), "none", trace).title
    'parameters take no part in the loss'
    """
    if kind == "none":
        return _none(tensors, trace)
    if kind == "zero":
        return _zero(tensors, trace)
    if kind == "seldom":
        if decayed := _decayed_constants(tensors, trace):
            return decayed
        return explain_severed(tensors, trace, smooth=False) or faults.GRADIENT_ZERO
    if kind == "negligible":
        return _negligible(tensors, trace)
    return faults.NONFINITE.with_details(step=tensors[0].gradients.first_nonfinite)


# ------------------------------------------------------------------ no gradient
def _none(tensors: Sequence[Tensor], trace: Trace) -> Fault:
    if all(t.gradients.none == t.gradients.steps for t in trace.tensors if t.trainable):
        shown = found_by_reference(
            trace, faults.LOSS_CUT_OFF, faults.BACKWARD_REACHES_NOTHING, faults.GRADS_GONE_BEFORE_STEP
        )
        return shown or _cut_in_loop(trace) or faults.NO_GRADIENT_AT_ALL
    alive = [t for t in trace.tensors if t.gradients.max_norm > 0]
    names = {t.name for t in tensors}
    if all(t.part != "base" for t in alive) and all(
        t.name in names for t in trace.tensors if t.part == "base" and t.trainable
    ):
        cut = faults.ADAPTERS_CHECKPOINTED_AWAY if all(_adapter(t) for t in tensors) else faults.CUT_BELOW_HEAD
        return cut if alive else faults.NOT_IN_GRAPH
    if fault := explain_severed(tensors, trace, smooth=False):
        return fault
    if unused := _unused_blocks(tensors, alive):
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        return faults.LAYERS_NOT_USED.with_details(layers=f"{shorten(unused[0])}{more}")
    return faults.NOT_IN_GRAPH


def _cut_in_loop(trace: Trace) -> Fault | None:
    loop = trace.measured(LoopCalls)
    if loop is None or not loop.detached:
        return None
    return faults.LOSS_CUT_OFF.because(
        f"the graph is cut between the model's output and the loss: none of the loop's {loop.backwards} observed calls of backward() "
        "reached an output of the model (.detach(), .data, .item(), argmax, a tensor made anew)",
    )


def _unused_blocks(tensors: Sequence[Tensor], alive: Sequence[Tensor]) -> list[str]:
    """Blocks without any gradient, if some are of a stack whose other blocks have one, or no stack has one; else none."""
    blocks = sorted({block_of(t.name) for t in tensors} - {block_of(t.name) for t in alive})
    stacks = _stacks(blocks)
    stacks_alive = _stacks(block_of(t.name) for t in alive if t.part == "base")
    in_stack = bool(stacks) and (stacks <= stacks_alive or not stacks_alive)
    return blocks if in_stack and all(t.part == "base" for t in tensors) else []


def _stacks(blocks: Iterable[str]) -> set[str]:
    return {stack for block in blocks if (stack := stack_of(block)) is not None}


# ------------------------------------------------------------------ gradients of exactly zero
def _zero(tensors: Sequence[Tensor], trace: Trace) -> Fault:
    if shown := found_by_reference(
        trace, faults.NAN_GRADIENTS_REPLACED, faults.GRADS_GONE_BEFORE_STEP, faults.GRADS_REMOVED
    ):
        return shown
    if all(_adapter(t) for t in tensors):
        more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
        return faults.ADAPTERS_SILENT.with_details(tensors=f"{shorten(tensors[0].name)}{more}")
    if decayed := _decayed_constants(tensors, trace):
        return decayed
    if fault := explain_severed(tensors, trace, smooth=True):
        return fault
    if all(t.gradients.max_norm == 0 for t in trace.tensors if t.trainable):
        frozen = frozen_in_trained_head(trace)
        return explain_partly_frozen_head(frozen) if blocks_gradients(frozen) else faults.LOSS_IS_FLAT
    if module := _module_with_zero_input(trace):
        return head_faults.UNITS_DEAD.because(
            f"the input of {module} is zero for every row (its bias gets a gradient, its weight exactly none): the units before it are "
            "dead, such as ReLUs that never fire (a large negative bias, a large step)",
            f"check the input of {module}: initialize or normalize the layer before it so that its units fire",
        )
    zeroed = [t for t in trace.tensors if t.part == "head" and len(t.shape) > 1 and t.last.rms == 0]
    if zeroed:
        return faults.LAYER_STAYS_ZERO.with_details(layer=zeroed[0].name)
    if all(t.part == "base" for t in tensors) and (fault := explain_severed(tensors, trace, smooth=False)):
        return fault
    return faults.GRADIENT_ZERO


def _decayed_constants(tensors: Sequence[Tensor], trace: Trace) -> Fault | None:
    """All of them are the originals of parametrised weights, had a gradient before they were decayed, and have had none since."""
    groups = {group.index: group for group in trace.optimizer.groups}
    originals = [t for t in tensors if ".parametrizations." in f".{t.name}" and ".original" in t.name]
    decayed = [
        t
        for t in originals
        if t.group in groups
        and groups[t.group].weight_decay > 0
        and t.gradients.first_nonzero == 0
        and t.motion.share_changed
    ]
    if not decayed or len(decayed) < len(tensors):
        return None
    group = groups[decayed[0].group or 0]
    return faults.PARAMETRIZATION_DECAYED.with_details(
        tensor=shorten(decayed[0].name), decay=number(group.weight_decay)
    )


def _adapter(t: Tensor) -> bool:
    return t.role == "adapter" or "lora_" in t.name.lower()


def _module_with_zero_input(trace: Trace) -> str | None:
    """The last module whose bias has a gradient while that of its weight is exactly zero: its input is zero."""
    gradients = {t.name: t.gradients for t in trace.tensors}
    for t in reversed(trace.tensors):
        module, _, leaf = t.name.rpartition(".")
        bias = gradients.get(f"{module}.bias")
        if leaf == "weight" and len(t.shape) > 1 and bias is not None and bias.max_norm > 0:
            g = t.gradients
            if g.max_norm == 0 and g.none < g.steps:
                return module
    return None


# ------------------------------------------------------------------ negligible gradients
def _negligible(tensors: Sequence[Tensor], trace: Trace) -> Fault:
    if shown := found_by_reference(trace, faults.CLIPPED_TO_NOTHING):
        return shown
    depth = check_grads_reach_depth(trace)
    if depth.fault == faults.GRADS_VANISH.name:
        return faults.GRADS_VANISH.because(depth.causes[0], depth.remedy)
    if clipped := _clipped(trace):
        return faults.CLIPPED_TO_NOTHING.because(clipped)
    largest, eps = max(t.gradients.max_rms for t in tensors), epsilon(tensors[0], trace)
    beside = f" beside the eps of {trace.optimizer.name} ({number(eps)})" if eps else ""
    small = eps is None or largest < eps
    size = f"their rms is {number(largest)} at most, {'small' if small else 'not small'}{beside}"
    if scaled := _scaled_down(trace):
        return faults.GRADIENT_NEGLIGIBLE.because(
            f"{scaled} (gradients of rms {number(largest)} at most)",
            "undo the scaling of the loss: it should start near the standard loss",
        )
    if not small:  # Adam would make full steps of these
        return faults.GRADIENT_NEGLIGIBLE.because(
            f"the gradients cancel from step to step, occur at few steps, or one burst of them shrinks the steps after it: {size}",
            "check the gradient norms step by step: is there a burst, followed by almost nothing?",
        )
    clipped_away = "" if _norm_before_clipping_known(trace) else ", or they are clipped to nothing"
    return faults.GRADIENT_NEGLIGIBLE.because(
        f"the gradients vanish on the way (saturated activations, tiny weights above), or the loss is scaled down{clipped_away}: {size}"
    )


def _norm_before_clipping_known(trace: Trace) -> bool:
    """Known where `finetune` did the clipping."""
    return any(s.grad_norm_unclipped is not None for s in trace.steps)


def _clipped(trace: Trace) -> str | None:
    """How it shows that gradients are clipped to almost nothing, if they are."""
    if _norm_before_clipping_known(trace):
        for s in trace.steps:
            if s.grad_norm_unclipped is not None and s.grad_norm < NEARLY_NOTHING * s.grad_norm_unclipped:
                before, after = number(s.grad_norm_unclipped), number(s.grad_norm)
                return f"max_norm is far too small: clipping leaves a norm of {after} of {before}"
        return None
    norms = [s.grad_norm for s in trace.steps if s.grad_norm > 0]
    if len(norms) > 2 and max(norms) <= 1.02 * min(norms) and max(norms) < TINY_NORM:
        return (
            f"max_norm is far too small: the gradient norm is {number(norms[0])} at every step, as after clipping to it"
        )
    return None


def _scaled_down(trace: Trace) -> str | None:
    """The loss beside the standard loss of the same logits, if it is a thousandth of it or less."""
    point = trace.probe_loss.points[0] if trace.probe_loss is not None and trace.probe_loss.points else None
    if point is None or not point.reference or not math.isfinite(point.loss):
        return None
    if abs(point.loss) > NEARLY_NOTHING * point.reference:
        return None
    return (
        f"the loss is scaled down: it starts at {number(point.loss)}, where the standard loss of the same logits is "
        f"{number(point.reference)}"
    )
