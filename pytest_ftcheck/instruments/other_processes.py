"""A probe in one of several processes says nothing to the others: they may not be probing, and would not listen.

While a probe measures, a ``DistributedDataParallel`` is the module inside it: its forward would broadcast buffers, and prepare the reducer
for a backward pass that never comes. Whatever else calls a collective (a loss that gathers embeddings, ``SyncBatchNorm`` in training, a
module whose parameters are sharded) raises `CollectiveInProbe` in place of it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from .sharded_tensors import gathers_in_forward

#: Namespaces of torch's collectives.
_COLLECTIVES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "c10d_functional")
#: What of these only waits for a collective that was called before.
_WAITS = ("wait_tensor",)
#: What was refused since `refusals` began.
_refused: list[str] = []


class CollectiveInProbe(RuntimeError):
    """A probe came upon a collective, and did not call it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}, a collective that the other ranks do not call while this one measures")
        _refused.append(str(self))


@contextlib.contextmanager
def refusals() -> Iterator[list[str]]:
    """The collectives that are refused inside, in words."""
    _refused.clear()
    yield _refused


def processes() -> int:
    """How many processes train together."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 1
    return int(distributed.get_world_size())


class _Refusing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises in place of a collective."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Hands every other call on."""
        name = func._schema.name.partition("::")
        if name[0] in _COLLECTIVES and name[2] not in _WAITS:
            raise CollectiveInProbe(f"the model or its loss calls {name[2].strip('_')}")
        return func(*args, **(kwargs or {}))


def _inner(self: Any, *inputs: Any, **kwargs: Any) -> Any:
    """In place of ``DistributedDataParallel.forward``."""
    return self.module(*inputs, **kwargs)


def _refuse_gathering(module: nn.Module, _: Any) -> None:
    """Before torch's own hooks, which begin to gather."""
    if gathers_in_forward(module):
        raise CollectiveInProbe(f"a forward pass of {type(module).__name__} gathers its parameters")


def _nothing() -> None:
    pass


def alone() -> Callable[[], None]:
    """Say nothing to other processes until the returned function is called; it may be called several times."""
    if processes() < 2 or any(isinstance(mode, _Refusing) for mode in _get_current_dispatch_mode_stack()):
        return _nothing
    wrapper: Any = nn.parallel.DistributedDataParallel
    forward = vars(wrapper)["forward"]
    mode: Any = _Refusing()  # type: ignore[no-untyped-call]
    mode.__enter__()
    hook = nn.modules.module.register_module_forward_pre_hook(_refuse_gathering)
    wrapper.forward = _inner

    def together() -> None:
        wrapper.forward = forward
        hook.remove()
        if any(one is mode for one in _get_current_dispatch_mode_stack()):
            mode.__exit__(None, None, None)

    return together
