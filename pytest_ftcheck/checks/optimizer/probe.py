"""The probe of the optimizer's state before the run."""

from __future__ import annotations

from typing import Any

import torch

from ...instruments.probe import LeftOut, ModelProbe
from ...instruments.sharded_tensors import local
from .record import OptimizerStart


class OptimizerStartProbe(ModelProbe):
    """Read the state that the optimizer brings along."""

    name = "optimizer_start"
    order = 3

    found: OptimizerStart | None = None

    def before(self) -> None:
        """Read it."""
        optimizer: Any = self.context.optimizer
        if optimizer is None or not optimizer.param_groups:
            raise LeftOut("no optimizer was known before the loop began")
        own = {id(p) for p in self.context.model.parameters()}
        states = [state for p, state in optimizer.state.items() if id(p) in own and state]
        steps = [_number(state["step"]) for state in states if "step" in state]
        # some count their steps for a whole group
        steps += [_number(group["step"]) for group in optimizer.param_groups if "step" in group]
        kept = sum(
            any(isinstance(v, torch.Tensor) and v.dim() and bool((local(v) != 0).any()) for v in s.values())
            for s in states
        )
        self.found = OptimizerStart(max(steps, default=0), kept)

    def record(self) -> OptimizerStart | None:
        """What was read."""
        return self.found


def _number(step: Any) -> int:
    if isinstance(step, torch.Tensor):
        return int(local(step))
    return int(step) if isinstance(step, (int, float)) else 0
