"""Trains again from the run's start and restores everything afterwards: what both retraining probes share.

Memory: a copy of the trained weights and of the buffers from the run's first iteration on; while training again another copy of the
weights, their gradients, and the optimizer's state (two more copies for Adam).
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.adamw import adamw

from ....instruments.batches import split
from ....instruments.global_state import seed_everything
from ....instruments.kept_tensors import set_values
from ....instruments.optimizers import needs_closure
from ....instruments.probe import LeftOut, ProbeContext
from ....instruments.reader import Reader
from ....instruments.sampled_elements import gradient_norm
from ....instruments.task_readers.registered import prior_entropy
from ....instruments.tasks import IGNORED
from ....instruments.undisturbed import perturbed, quiet
from ...head.ablation_record import Outcome
from ...head.probe.ablation import correct
from ...head.probe.head import rows_of


class InitialState:
    """The trainable weights, the buffers and the modes of a model when the run began."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]
        self.buffers = [(b, b.detach().clone()) for b in model.buffers()]
        self.modes = [(m, m.training) for m in model.modules()]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable weights."""
        return [p for p, _ in self.weights]

    @contextlib.contextmanager
    def retraining(self, *, loads: bool = False) -> Iterator[None]:
        """Inside, the weights may be trained; afterwards they are as before. To be used inside `undisturbed`, which restores the rest.

        :param loads: frozen weights may be written to as well, by loading a checkpoint.
        :raises LeftOut: a weight of the start is no longer the model's.
        """
        now = {id(p) for p in self.model.parameters()}
        if any(id(p) not in now for p, _ in self.weights):
            raise LeftOut("a layer was replaced in the run, so its start cannot be restored")
        chosen = {id(p) for p, _ in self.weights}
        for p in self.model.parameters():
            if p.requires_grad != (id(p) in chosen):
                p.requires_grad_(id(p) in chosen)
            p.grad = None
        with (
            perturbed([*(self.model.parameters() if loads else self.parameters), *(b for b, _ in self.buffers)]),
            torch.backends.cudnn.flags(enabled=False),
        ):  # cudnn's RNNs have no gradients in evaluation
            yield

    def restore(self) -> None:
        """Sets the weights, the buffers and the modes of the start."""
        for tensor, was in (*self.weights, *self.buffers):
            set_values(tensor, was)
        for module, mode in self.modes:
            module.training = mode

    def displacement(self) -> float:
        """Root mean square of the weights' displacement from the start."""
        total = sum(float(((p.detach() - was).float() ** 2).sum()) for p, was in self.weights)
        return float((total / max(1, sum(p.numel() for p, _ in self.weights))) ** 0.5)


class Adam:
    """Adam without an optimizer object, so that hooks on optimizers are not called."""

    def __init__(self, parameters: Sequence[torch.Tensor], lr: float) -> None:
        self.parameters, self.lr = parameters, lr
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]
        self.counts = [torch.zeros((), device="cpu") for _ in parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """One step; parameters without a gradient stay unchanged."""
        with_gradient = [i for i, g in enumerate(gradients) if g is not None]
        by_dtype: dict[bool, list[int]] = defaultdict(list)
        for i in with_gradient:
            by_dtype[self.parameters[i].dtype == torch.float16].append(i)
        for half, chosen in by_dtype.items():
            adamw(
                [self.parameters[i] for i in chosen],
                [g.to_dense() if (g := gradients[i]).is_sparse else g for i in chosen],  # type: ignore[union-attr, misc]
                [self.first[i] for i in chosen],
                [self.second[i] for i in chosen],
                [],
                [self.counts[i] for i in chosen],
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=self.lr,
                weight_decay=0.0,
                eps=1e-4 if half else 1e-8,  # 1e-8 is zero in float16
                maximize=False,
            )


class OptimizerCopy:
    """A copy of the run's own optimizer, as it was when the copy was made, over the same tensors, without hooks or scheduler."""

    def __init__(self, optimizer: torch.optim.Optimizer, trained: Sequence[torch.Tensor]) -> None:
        self._tensors = {id(p): p for g in optimizer.param_groups for p in g["params"]}
        self._groups = [[id(p) for p in g["params"]] for g in optimizer.param_groups]
        self._trained = {id(p) for p in trained}
        self._initial = self._copied(optimizer)
        self.closure = needs_closure(optimizer)
        self.optimizer = self._initial

    def _copied(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        memo: dict[int, Any] = dict(self._tensors)
        copied = copy.deepcopy(optimizer, memo)
        for name, value in vars(optimizer).items():  # torch's rules do not copy what a class keeps beside its state
            if name not in vars(copied) and not callable(value):
                setattr(copied, name, copy.deepcopy(value, memo))
        return copied

    def same_groups(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the optimizer still holds the same tensors."""
        return [[id(p) for p in g["params"]] for g in optimizer.param_groups] == self._groups

    def reset(self) -> None:
        """Back to the initial state."""
        self.optimizer = self._copied(self._initial)
        for group in self.optimizer.param_groups:  # tensors that are not the model's must not be changed
            group["params"] = [p for p in group["params"] if id(p) in self._trained]
        step = type(self.optimizer).step
        # torch calls hooks in a wrapper around the step
        self._step: Callable[..., Any] = step.__wrapped__ if getattr(step, "hooked", False) else step  # type: ignore[attr-defined]

    def step(self, settings: Sequence[dict[str, Any]], backward: Callable[[], torch.Tensor]) -> None:
        """One step with the settings that were in force; ``backward`` leaves gradients in ``.grad``."""
        for i, group in enumerate(self.optimizer.param_groups):
            group.update(settings[i])
        if self.closure:
            self._step(self.optimizer, backward)
        else:
            backward()
            self._step(self.optimizer)


def settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The settings of each group of an optimizer, without the tensors."""
    return [
        {
            k: v.detach().clone() if isinstance(v, torch.Tensor) else copy.copy(v)
            for k, v in group.items()
            if k != "params"
        }
        for group in optimizer.param_groups
    ]


def gradients_of(loss: torch.Tensor, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """Gradients; all None where the loss has no graph. Hooks on gradient accumulation are not called."""
    if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
        return [None] * len(parameters)
    return list(torch.autograd.grad(loss, list(parameters), allow_unused=True))


def clip(gradients: Sequence[torch.Tensor | None], max_norm: float | None) -> None:
    """Clips to a total norm, in place; gradients that are not finite stay unchanged."""
    present = [g for g in gradients if g is not None]
    if max_norm is None or not present:
        return
    total = torch.linalg.vector_norm(
        torch.stack([gradient_norm(g, 1).to(present[0].device, torch.float32) for g in present])
    )
    if torch.isfinite(total):
        factor = torch.clamp(max_norm / (total + 1e-6), max=1.0)
        for g in present:
            g.mul_(factor.to(g.device))


def casting(context: ProbeContext) -> contextlib.AbstractContextManager[Any]:
    """The autocast of our own loop."""
    kind = context.recipe.autocast if context.recipe_loop else None
    return torch.autocast(context.device.type, getattr(torch, kind)) if kind else contextlib.nullcontext()


def score(context: ProbeContext, batches: Sequence[Any]) -> Outcome:
    """Standard loss (the run's own where there is none) and accuracy, dropout off."""
    reader, total, rows, right, count = context.reader, 0.0, 0, 0, 0
    with quiet(context.model):
        seed_everything(0)
        for batch in batches:
            labels, size = split(batch)[1], rows_of(batch)
            logits = logits_for(reader, batch)
            if logits is None:
                total += float(reader.loss(batch)[0]) * size
            else:
                total += float(reader.reference(logits.float(), labels)) * size
                hits = correct(reader.task, logits, reader.targets(labels))
                if hits is not None:
                    right, count = right + int(hits.sum()), count + hits.numel()
            rows += size
    return Outcome(total / max(1, rows), right / count if count else None)


def logits_for(reader: Reader, batch: Any) -> torch.Tensor | None:
    """Logits that can be compared with the labels; None: there are none."""
    labels = split(batch)[1]
    if reader.task is None or not isinstance(labels, torch.Tensor):
        return None
    return reader.logits(batch)


def constant_prediction_loss(task: str | None, labels: Sequence[torch.Tensor]) -> float | None:
    """Standard loss of the best constant prediction: the labels' entropy, or their variance.

    >>> constant_prediction_loss("regression", [torch.tensor([1.0, 3.0])])
    1.0
    """
    if task == "regression":
        flat = torch.cat([y.detach().cpu().double().reshape(len(y), -1) for y in labels])
        return float(flat.var(0, unbiased=False).mean())
    return prior_entropy(task, list(labels))


def counted(task: str | None, labels: torch.Tensor) -> torch.Tensor:
    """A mask of the labels that count."""
    if task == "single_label" and not labels.is_floating_point():
        return labels != IGNORED
    return torch.ones_like(labels, dtype=torch.bool)


class Deadline:
    """The run's time limit, counted from the creation of this object."""

    def __init__(self, seconds: float | None) -> None:
        self.end = None if seconds is None else time.perf_counter() + seconds

    def check(self) -> None:
        """`LeftOut` if it has passed."""
        if self.end is not None and time.perf_counter() > self.end:
            raise LeftOut("the time limit (max_seconds) was reached while it trained")
