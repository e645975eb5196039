"""The iterations of a loop that nobody announces: each begins where a loss is told, or where ``backward`` is called."""

from __future__ import annotations

from typing import Any

import torch

from ..instruments.loop_calls import LoopCallListener
from .loss_graph import nodes_near
from .recorder import Recorder


class LoopLosses(LoopCallListener):
    """Tells the recorder the losses of a loop: those that the user tells (``w.loss(loss)``), else those that ``backward`` is called on.

    From the first loss that the user tells, only these count. A loop may tell its loss before ``backward`` or after the step.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        #: Autograd nodes nearest to the first loss that had a graph.
        self.nodes: frozenset[str] = frozenset()
        self._told = self._told_afterwards = False
        self._open = False  # the current iteration's loss is not told as yet
        self._last: Any = None  # what tells the node that backward was last called on; the node would keep its graph
        #: Factors that the losses since the last unscaling may have been multiplied by, by the number of their iteration.
        self._factors: dict[int, torch.Tensor] = {}
        self._steps = 0  # optimizer steps when the first of them was noted
        recorder.scaled_step = self._step_with_scale

    def told(self, loss: Any) -> None:
        """The user tells the loss of an iteration."""
        if not self._told:
            self._first_told(loss)
        if not self._open:
            self._recorder.begin_iteration()
        self._open = False
        self._recorder.end_iteration(loss)
        self._note_graph(loss)

    def _first_told(self, loss: Any) -> None:
        self._told = True
        node = loss.grad_fn if isinstance(loss, torch.Tensor) else None
        self._told_afterwards = bool(self._recorder.iterations) and (node is None or _identity(node) == self._last)
        if self._told_afterwards:  # the losses that backward was called on until now are those of one iteration
            self._recorder.merge_iterations()
            self._open = True

    def backward_called(self, loss: torch.Tensor) -> None:
        """Without being told, the loss of the next iteration is the one that backward is called on."""
        if self._told and not self._told_afterwards:
            return
        if self._told:
            if not self._open:
                self._open = True
                self._recorder.begin_iteration()
            return
        if loss.numel() != 1 or self._recorder.had_backward_in_this_step():
            return  # a closure is called several times in one step
        self._last = _identity(loss.grad_fn)
        self._recorder.begin_iteration()
        self._recorder.end_iteration(loss)
        self._note_graph(loss)
        if len(self._recorder.steps) != self._steps:
            self._steps = len(self._recorder.steps)
            self._factors.clear()
        if (factor := _factor(loss)) is not None:
            self._factors[len(self._recorder.iterations) - 1] = factor

    def gradients_unscaled(self, inverse: torch.Tensor) -> None:
        """The losses that were multiplied by a GradScaler's factor are divided by it again."""
        for number, factor in self._factors.items():
            iteration = self._recorder.iterations[number]
            scale = 1 / inverse.detach().to(factor)
            one = torch.ones_like(scale)
            is_scale = (factor - scale).abs() <= 1e-6 * scale.abs()
            by = torch.where(is_scale, scale, one)
            self._factors[number] = torch.where(is_scale, one, factor)
            if isinstance(iteration.loss, torch.Tensor):
                iteration.loss = iteration.loss / by.to(iteration.loss.device)
            elif iteration.loss is not None:
                iteration.loss /= float(by)

    def _step_with_scale(self, scale: torch.Tensor) -> None:
        """A fused optimizer divides by the GradScaler's factor itself."""
        self.gradients_unscaled(1 / scale)

    def _note_graph(self, loss: Any) -> None:
        self.nodes = self.nodes or nodes_near(loss)


def _identity(node: Any) -> Any:
    """What no other node of the graphs of this thread has."""
    return None if node is None else (node.name(), node._sequence_nr())


def _factor(loss: torch.Tensor) -> torch.Tensor | None:
    """The number that a loss was last multiplied by, where its graph has it as a tensor."""
    node = loss.grad_fn
    if node is None or not node.name().startswith("MulBackward"):
        return None
    for name in ("_saved_other", "_saved_self"):
        factor = getattr(node, name, None)
        if isinstance(factor, torch.Tensor) and factor.numel() == 1 and not factor.requires_grad:
            return factor.detach().reshape(())
    return None
