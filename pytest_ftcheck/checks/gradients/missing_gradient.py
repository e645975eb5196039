"""Which fault is behind gradients that are missing, zero or negligible, where the run shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.formatting import block_of, number, shorten
from ...core.observations import Tensor
from ...core.trace import Trace
from .grads_reach_depth import check_grads_reach_depth
from .no_update_causes import silenced
from .reference_faults import Finding, findings
from .severed import Blame, blame

#: Nobody clips to so little on purpose: shared by a million weights it is an rms of 1e-6.
TINY = 1e-3


@dataclass(frozen=True)
class Why:
    """A fault, and what is said of it in place of the general cause; empty: the general one will do."""

    fault: str
    cause: str = ""
    remedy: str = ""


def why(kind: str, ill: Sequence[Tensor], trace: Trace) -> Why:
    """The fault behind tensors whose gradients are of one kind (``none``, ``zero``, ``negligible``, ``nonfinite``)."""
    known = {f.fault: f for f in findings(trace) if f.status == "fail"}
    if kind == "none":
        return _none(ill, trace, known)
    if kind == "seldom":
        found = blame(ill, trace, smooth=False)
        return _blamed(found) if found is not None else Why("gradient_zero")
    if kind == "zero":
        return _zero(ill, trace, known)
    return _negligible(trace, known) if kind == "negligible" else Why("nonfinite")


def _from(finding: Finding) -> Why:
    return Why(finding.fault, finding.cause, finding.remedy)


def _blamed(found: Blame) -> Why:
    return Why(found.fault, found.cause, found.remedy)


def _none(ill: Sequence[Tensor], trace: Trace, known: dict[str, Finding]) -> Why:
    if all(t.gradients.none == t.gradients.steps for t in trace.tensors if t.trainable):
        for fault in ("loss_cut_off", "backward_reaches_nothing", "grads_gone_before_step"):
            if fault in known:
                return _from(known[fault])
        return Why("no_gradient_at_all")
    alive = [t for t in trace.tensors if t.gradients.max_norm > 0]
    bases = [t for t in trace.tensors if t.part == "base" and t.trainable]
    if not any(t.part == "base" for t in alive) and {t.name for t in bases} <= {t.name for t in ill}:
        return Why("cut_below_head") if alive else Why("not_in_graph")
    if (cut := blame(ill, trace, smooth=False)) is not None:
        return _blamed(cut)
    blocks = sorted({block_of(t.name) for t in ill} - {block_of(t.name) for t in alive})
    stacks = {b.rpartition(".")[0] for b in blocks if b.rpartition(".")[2].isdigit()}
    units = {block_of(t.name) for t in alive if t.part == "base"}
    living = {u.rpartition(".")[0] for u in units if u.rpartition(".")[2].isdigit()}
    if blocks and stacks and (stacks <= living or not living) and all(t.part == "base" for t in ill):
        more = f" and {len(blocks) - 1} more" if len(blocks) > 1 else ""
        return Why(
            "layers_not_used",
            f"{shorten(blocks[0])}{more} takes no part in the loss while what lies below does: the features are taken too early "
            "(hidden_states[k] instead of hidden_states[-1]), or the forward pass leaves it out",
            "take the features from the last layer (last_hidden_state, hidden_states[-1]), or remove the layers that are not needed",
        )
    return Why("not_in_graph")


def _zero(ill: Sequence[Tensor], trace: Trace, known: dict[str, Finding]) -> Why:
    if "nan_gradients_replaced" in known:
        return _from(known["nan_gradients_replaced"])
    if "grads_gone_before_step" in known:
        return _from(known["grads_gone_before_step"])
    if "grads_removed" in known:
        return _from(known["grads_removed"])
    adapters = all(_adapter(t) for t in ill)
    if not adapters and (shut := blame(ill, trace, smooth=True)) is not None:
        return _blamed(shut)
    if adapters:
        return Why(
            "adapters_silent",
            f"the adapters' output is multiplied by zero ({shorten(ill[0].name)} and {len(ill) - 1} more): a scaling of 0 (alpha // rank), "
            "adapters that are switched off, or both of their matrices at zero",
            "scaling = alpha / rank, one of the two matrices not zero, and the adapters enabled",
        )
    if all(t.gradients.max_norm == 0 for t in trace.tensors if t.trainable):
        return Why(
            "loss_is_flat",
            "the loss has a graph and does not change with any weight: softmax over one output, a clamp or rounding on the way, a "
            "factor of zero, every label ignored",
            "look at what lies between the logits and the loss: one small change of a logit should change the loss",
        )
    if silenced(trace):
        return Why("units_dead")
    if any(t.part == "head" and len(t.shape) > 1 and t.last.rms == 0 for t in trace.tensors):
        return Why("layer_stays_zero")
    if (steps := blame(ill, trace, smooth=False)) is not None and all(t.part == "base" for t in ill):
        return _blamed(steps)
    return Why("gradient_zero")


def _negligible(trace: Trace, known: dict[str, Finding]) -> Why:
    if "clipped_to_nothing" in known:
        return _from(known["clipped_to_nothing"])
    depth = check_grads_reach_depth(trace)
    if depth.fault == "grads_vanish":
        return Why(depth.fault, depth.causes[0], depth.remedy)
    norms = [s.grad_norm for s in trace.steps if s.grad_norm > 0]
    told = any(
        s.grad_norm_unclipped is not None for s in trace.steps
    )  # by our own clipping: then the general cause has both numbers
    if told and any(s.grad_norm < 1e-3 * (s.grad_norm_unclipped or 0.0) for s in trace.steps):
        return Why("clipped_to_nothing")
    if not told and len(norms) > 2 and max(norms) <= 1.02 * min(norms) and max(norms) < TINY:
        return Why(
            "clipped_to_nothing",
            f"the gradient norm is {number(norms[0])} at every step, as after clipping to it",
            "clip to a norm of about 1 (max_norm is a norm, not eps)",
        )
    return Why("gradient_negligible")


def _adapter(t: Tensor) -> bool:
    return t.role == "adapter" or "lora_" in t.name.lower()
