"""The logits of somebody else's loss: the output of the module that is called last on the way to it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from ..instruments.model_outputs import logits_in


class OutermostCalls:
    """Notes the calls that are made inside the block, and not inside another one, of the modules with parameters.

    :param transparent: modules of the loss: calls inside them count.

    >>> model = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 3))
    >>> with OutermostCalls(model) as calls:
    ...     loss = model(torch.ones(5, 2)).sum()
    >>> calls.logits().shape
    torch.Size([5, 3])
    """

    def __init__(self, module: nn.Module, transparent: Collection[nn.Module] = ()) -> None:
        self.module, self.transparent = module, [id(m) for m in transparent]
        self.calls: list[tuple[nn.Module, Any]] = []
        self._depth = 0
        self._handles: list[Any] = []

    def __enter__(self) -> OutermostCalls:
        for m in self.module.modules():
            if id(m) not in self.transparent and not isinstance(m, torch.jit.ScriptModule):
                self._handles.append(m.register_forward_pre_hook(self._enters))
                self._handles.append(m.register_forward_hook(self._leaves, always_call=True))
        return self

    def __exit__(self, *_: Any) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _enters(self, *_: Any) -> None:
        self._depth += 1

    def _leaves(self, module: nn.Module, _: Any, output: Any) -> None:
        self._depth -= 1
        if self._depth == 0 and any(True for _ in module.parameters()):
            self.calls.append((module, output))

    def logits(self) -> torch.Tensor | None:
        """The output of the last call; None: it has none, or its module was called several times (two texts of a pair), for embeddings."""
        if not self.calls:
            return None
        last, output = self.calls[-1]
        return logits_in(output) if [m for m, _ in self.calls].count(last) == 1 else None
