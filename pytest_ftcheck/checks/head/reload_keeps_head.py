"""Saving and loading keeps the trained model, head and all."""

from __future__ import annotations

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, check, not_measured
from . import faults
from .record import Head, Reload

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
    that want a gradient but are no parameters of the model: layers in a plain python list, a head in a closure. Those are neither
    saved, nor moved by ``model.to()``, nor in ``model.parameters()``.

    >>> from pytest_ftcheck import example_trace
    >>> check_reload_keeps_head(example_trace()).status
    'skipped'
    """
    name, head = "reload_keeps_head", trace.measured(Head)
    if head is None:
        return not_measured(name, trace, Head)
    found = head.reload
    if found is None:
        return Verdict(name, "skipped", f"{(head.skipped or {}).get('reload', 'the run ended before it was made')}.")
    limit = f"logits after reloading within {percent(DIFFERENCE)} of their rms; every trainable tensor saved"
    measured = (
        f"{plural(found.tensors, 'tensor')} of the {found.scope} written as safetensors, overwritten and read back; the graph of the "
        "logits followed to its leaves"
    )
    for look in (_outside, _missing, _refused, _other_logits, _buffers, _drawn):
        if told := look(found):
            headline, cause, remedy, fault = told
            return Verdict(
                name,
                "fail",
                headline,
                limit=limit,
                causes=(cause,),
                remedy=remedy,
                measured=measured,
                fault=fault,
                notes=_notes(found),
            )
    return Verdict(
        name,
        "pass",
        f"{plural(found.tensors, 'tensor')} of the {found.scope} saved and read back: the logits differ by {number(found.difference)} "
        f"(their rms is {number(found.size)}).",
        measured=measured,
        notes=_notes(found),
    )


Told = tuple[str, str, str, str]


def _outside(found: Reload) -> Told | None:
    stray = [o for o in found.outside if not o.in_optimizer]
    if not stray:
        return None
    shapes = ", ".join(" x ".join(map(str, o.shape)) or "a number" for o in stray[:3])
    return (
        f"The logits depend on {plural(len(stray), 'tensor')} ({shapes}{', ...' if len(stray) > 3 else ''}) that want a gradient but "
        "are no parameters of the model: they are not saved, and no optimizer of model.parameters() trains them.",
        "layers are kept in a plain python list or dict, in a closure, or as bare tensors: torch does not see them",
        "use nn.ModuleList, nn.ModuleDict or nn.Parameter, or assign the layer to an attribute of the module",
        "outside_the_model",
    )


def _missing(found: Reload) -> Told | None:
    if not found.missing:
        return None
    return (
        f"{plural(len(found.missing), 'trainable parameter')} would not be saved: {', '.join(found.missing[:4])}.",
        "what is saved leaves trained parameters out (a state_dict of its own, _keys_to_ignore_on_save, or adapters without "
        "modules_to_save)",
        'name the head in modules_to_save=["classifier"] of the adapter config, or save the whole state_dict',
        "not_saved",
    )


def _refused(found: Reload) -> Told | None:
    if found.error is None:
        return None
    return (
        f"The model does not load its own state_dict: {found.error.splitlines()[0][:160]}",
        "names in state_dict() and load_state_dict() differ: one of them is overridden or hooked",
        "make load_state_dict() take what state_dict() gives",
        "does_not_load",
    )


def _other_logits(found: Reload) -> Told | None:
    if found.difference <= DIFFERENCE * found.size:  # false for NaN
        return None
    return (
        f"After saving and reloading the logits differ by {number(found.difference)}; their rms is {number(found.size)}.",
        "state_dict() or load_state_dict() leaves out, or changes, what the logits depend on",
        "register every tensor with the module (nn.Parameter, register_buffer) under one name, and load what was saved",
        "reload_changes_logits",
    )


def _buffers(found: Reload) -> Told | None:
    if not found.buffers:
        return None
    return (
        f"{plural(len(found.buffers), 'tensor')} changed in training, decide the logits and are not saved: {', '.join(found.buffers[:4])}.",
        "they are registered with persistent=False, or kept as plain attributes",
        "register_buffer(..., persistent=True)",
        "buffer_not_saved",
    )


def _drawn(found: Reload) -> Told | None:
    if not found.drawn:
        return None
    return (
        f"{plural(len(found.drawn), 'tensor')} of random numbers {'decides' if len(found.drawn) == 1 else 'decide'} the logits and "
        f"{'is' if len(found.drawn) == 1 else 'are'} not saved: {', '.join(found.drawn[:4])}.",
        "drawn when the model is built, and registered with persistent=False or kept as a plain attribute: a model that is built anew "
        "to load the rest into has drawn others",
        "register_buffer(name, tensor) without persistent=False, or nn.Parameter(tensor, requires_grad=False)",
        "buffer_not_saved",
    )


def _notes(found: Reload) -> tuple[str, ...]:
    own = [o for o in found.outside if o.in_optimizer]
    if not own:
        return ()
    return (
        f"{plural(len(own), 'tensor')} outside the model that the optimizer trains: save them by yourself, model.state_dict() has "
        "them not",
    )
