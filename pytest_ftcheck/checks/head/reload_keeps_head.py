"""Saving and loading keeps the trained model, its head included."""

from __future__ import annotations

from dataclasses import replace

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Fault, Stage, check, not_measured
from . import faults
from .record import Head, Reload

NAME = "reload_keeps_head"
#: Difference of the logits after reloading over their rms. Bit for bit is the rule; kernels may round otherwise.
DIFFERENCE = 0.05


@check(
    stage=Stage.OUTCOME,
    position=9,
    faults=(
        faults.OUTSIDE_THE_MODEL,
        faults.NOT_SAVED,
        faults.BUFFER_NOT_SAVED,
        faults.RELOAD_CHANGES_LOGITS,
        faults.DOES_NOT_LOAD,
    ),
    measurements=(Head,),
)
def check_reload_keeps_head(trace: Trace) -> Verdict:
    """What was trained survives ``state_dict`` -> safetensors -> ``load_state_dict``, and nothing trainable lives outside the model.

    The tensors are written as safetensors, overwritten in the model, and read back: the logits must come back (largest difference at
    most 5 % of their rms). Every trainable parameter must be in what is saved. And the graph of the logits must not end in tensors
    that require gradients but are not parameters of the model: layers in a plain python list, a head in a closure. Those are neither
    saved, nor moved by ``model.to()``, nor in ``model.parameters()``.

    >>> from pytest_ftcheck import example_trace
    >>> check_reload_keeps_head(example_trace()).status
    'inconclusive'
    """
    head = trace.measured(Head)
    if head is None:
        return not_measured(NAME, trace, Head)
    found = head.reload
    if found is None:
        reason = (head.skipped or {}).get("reload", "the run ended before the model was saved and reloaded")
        return not_measured(NAME, trace, Head, reason)
    measured = (
        f"{plural(found.tensors, 'tensor')} of the {found.scope} written as safetensors, overwritten and read back; the graph of the "
        "logits followed to its leaves"
    )
    without_effect = _adapters_without_effect(trace)
    found = replace(found, missing=tuple(n for n in found.missing if not n.startswith(without_effect)))
    if loss := _find_loss(found):
        fault, headline = loss
        limit = f"logits after reloading within {percent(DIFFERENCE)} of their rms; every trainable tensor saved"
        return fault.verdict(NAME, headline, limit=limit, measured=measured, notes=_notes(found))
    return Verdict(
        NAME,
        "pass",
        f"{plural(found.tensors, 'tensor')} of the {found.scope} saved and read back: the logits differ by {number(found.difference)} "
        f"(their rms is {number(found.size)}).",
        measured=measured,
        notes=_notes(found),
    )


def _adapters_without_effect(trace: Trace) -> tuple[str, ...]:
    """What the names of low-rank adapters begin with that have a factor of zero: AdaLoRA prunes them, and does not save them."""
    zero = [t.name for t in trace.tensors if t.role == "adapter" and ".lora_" in t.name and t.last.rms == 0]
    return tuple(f"{name.partition('.lora_')[0]}.lora_" for name in zero)


def _find_loss(found: Reload) -> tuple[Fault, str] | None:
    """What saving loses, the most fundamental first: the fault, and a headline."""
    unregistered = [o for o in found.outside if not o.in_optimizer]
    if unregistered:
        shapes = ", ".join(" x ".join(map(str, o.shape)) or "a number" for o in unregistered[:3])
        return faults.OUTSIDE_THE_MODEL, (
            f"The logits depend on {plural(len(unregistered), 'trainable tensor')} outside the model "
            f"({shapes}{', ...' if len(unregistered) > 3 else ''}): not saved, and not in model.parameters()."
        )
    if found.missing:
        return faults.NOT_SAVED, (
            f"{plural(len(found.missing), 'trainable parameter')} would not be saved: {', '.join(found.missing[:4])}."
        )
    if found.error is not None:
        return faults.DOES_NOT_LOAD, f"The model does not load its own state_dict: {found.error.splitlines()[0][:160]}"
    if not found.difference <= DIFFERENCE * found.size:  # true for NaN
        return faults.RELOAD_CHANGES_LOGITS, (
            f"After saving and reloading the logits differ by {number(found.difference)}; their rms is {number(found.size)}."
        )
    if found.buffers:
        return faults.BUFFER_NOT_SAVED, (
            f"The logits depend on {plural(len(found.buffers), 'tensor')} that changed in training and would not be saved: "
            f"{', '.join(found.buffers[:4])}."
        )
    if found.drawn:
        return faults.RANDOM_TENSOR_NOT_SAVED, (
            f"The logits depend on {plural(len(found.drawn), 'tensor')} of random numbers that would not be saved: "
            f"{', '.join(found.drawn[:4])}."
        )
    return None


def _notes(found: Reload) -> tuple[str, ...]:
    trained = [o for o in found.outside if o.in_optimizer]
    if not trained:
        return ()
    return (
        f"the optimizer trains {plural(len(trained), 'tensor')} outside the model: save them yourself, model.state_dict() lacks them",
    )
