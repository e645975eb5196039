"""What is expected of each tensor: to learn, to stay frozen, or to be unfrozen later; as declared, else as its ``requires_grad`` says."""

from __future__ import annotations

from collections.abc import Sequence

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
    """Whether the tensor is declared frozen, by any of its names; or by a flag on its module that does not freeze it, where nothing else is
    declared."""
    if trace.intent is not None:
        if any(trace.intent.wants_frozen(name) for name in names_of(tensor)):
            return True
        if any(trace.intent.wants_trained(name) for name in names_of(tensor)):
            return False
    return tensor.frozen_in_name_by is not None


def ever_trainable(tensor: Tensor) -> bool:
    """Whether it had ``requires_grad`` when the run began or when it ended."""
    return tensor.trainable or tensor.trainable_last


def frozen_in_trained_head(trace: Trace) -> tuple[Tensor, ...]:
    """Tensors of the head that are frozen while others of it train, and of which nothing is declared.

    Left out: a head with adapters, the original that PEFT keeps beside its copy, embedding tables, tensors tied to the base.

    >>> from pytest_ftcheck import example_trace
    >>> frozen_in_trained_head(example_trace())
    ()
    """
    head = [t for t in trace.tensors if t.part == "head" and t.numel]
    if not any(ever_trainable(t) for t in head) or any(t.role == "adapter" for t in head):
        return ()
    return tuple(
        t
        for t in head
        if not ever_trainable(t)
        and not t.replaced
        and t.role != "embedding"
        and "original_module" not in t.name.split(".")
        and all(_is_under(name, trace.head) for name in names_of(t))
        and (trace.intent is None or all(trace.intent.wants_trained(name) is None for name in names_of(t)))
    )


def _is_under(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in prefixes)


def not_yet_unfrozen(tensor: Tensor, trace: Trace) -> bool:
    """Whether the run ended before the tensor was due to be unfrozen (`Intent.thaw_step`)."""
    step = trace.intent.thaw_step if trace.intent is not None else None
    return bool(step) and tensor.part != "head" and len(trace.steps) <= (step or 0)
