"""What is expected of each tensor: to learn, to stay frozen, or to be unfrozen later; as declared, else as its ``requires_grad`` says."""

from __future__ import annotations

from ..core.observations import Tensor
from ..core.trace import Trace

#: Roles of base tensors that may be frozen by design where "everything" is declared to learn: tables of sines, constant slopes.
FROZEN_BY_DESIGN = ("embedding", "bias")


def names_of(tensor: Tensor) -> set[str]:
    """All names of a tensor."""
    return {tensor.name, *tensor.aliases}


def should_learn(tensor: Tensor, trace: Trace) -> bool:
    """Whether the tensor should learn: declared so, or, where nothing is declared of it, trainable.

    A tied tensor stays frozen if one of its names is declared frozen; otherwise it learns if one of them should.

    >>> from pytest_ftcheck import Intent, example_trace
    >>> trace = example_trace(intent=Intent(frozen="base_model"))
    >>> [should_learn(t, trace) for t in trace.tensors]
    [False, False, True, True]
    """
    if declared_frozen(tensor, trace):
        return False
    names = sorted(names_of(tensor))
    declarations = [trace.intent.wants_trained(name) for name in names] if trace.intent is not None else []
    if True in declarations:
        return True
    return ever_trainable(tensor) and False not in declarations


def declared_frozen(tensor: Tensor, trace: Trace) -> bool:
    """Whether the tensor is declared frozen, by any of its names."""
    return trace.intent is not None and any(trace.intent.wants_frozen(name) for name in names_of(tensor))


def ever_trainable(tensor: Tensor) -> bool:
    """Whether it had ``requires_grad`` when the run began or when it ended."""
    return tensor.trainable or tensor.trainable_last


def not_yet_unfrozen(tensor: Tensor, trace: Trace) -> bool:
    """Whether the run ended before the tensor was due to be unfrozen (`Intent.thaw_step`)."""
    step = trace.intent.thaw_step if trace.intent is not None else None
    return bool(step) and tensor.part != "head" and len(trace.steps) <= (step or 0)
