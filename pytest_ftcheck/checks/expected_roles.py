"""What each tensor is meant to do: learn, stay, or wait; as declared, else as its ``requires_grad`` says."""

from __future__ import annotations

from ..core.observations import Tensor
from ..core.trace import Trace

#: Roles of base tensors that may be frozen by design where "everything" is declared to learn: tables of sines, constant slopes.
BY_DESIGN = ("embedding", "bias")


def names_of(t: Tensor) -> set[str]:
    """All names of a tensor."""
    return {t.name, *t.aliases}


def meant_to_learn(t: Tensor, trace: Trace) -> bool:
    """Whether the tensor should learn: declared so, or, where nothing is declared of it, trainable.

    A tied tensor stays if one of its names was declared frozen, else learns if one of them should.

    >>> from pytest_ftcheck import Intent, example_trace
    >>> trace = example_trace(intent=Intent(frozen="base_model"))
    >>> [meant_to_learn(t, trace) for t in trace.tensors]
    [False, False, True, True]
    """
    wants = [trace.intent.wants_trained(n) for n in sorted(names_of(t))] if trace.intent is not None else []
    if trace.intent is not None and any(trace.intent.wants_frozen(n) for n in names_of(t)):
        return False
    if True in wants:
        return True
    return (t.trainable or t.trainable_last) and False not in wants


def meant_to_stay(t: Tensor, trace: Trace) -> bool:
    """Whether the tensor was declared frozen, by any of its names."""
    return trace.intent is not None and any(trace.intent.wants_frozen(n) for n in names_of(t))


def waits_for_thaw(t: Tensor, trace: Trace) -> bool:
    """Whether the run ended before the tensor was to be thawed."""
    thaw = trace.intent.thaw_step if trace.intent is not None else None
    return bool(thaw) and t.part != "head" and len(trace.steps) <= (thaw or 0)
