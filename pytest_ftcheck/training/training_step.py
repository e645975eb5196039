"""One iteration of a fine-tune: the user's own step, or the recipe's."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..core import arguments
from ..core.recipe import Recipe
from ..instruments.averaged_weights import start_training
from ..instruments.batches import device_of, to_device
from ..instruments.loop_calls import unobserved
from ..instruments.model_outputs import as_loss
from ..instruments.optimizers import expects_metric, needs_closure
from ..instruments.reader import Reader
from ..instruments.sampled_elements import gradient_norm, is_plain
from ..instruments.undisturbed import quiet
from .finetune_arguments import StepFn
from .loss_graph import has_no_graph
from .recorder import Recorder

#: What the user's own loop body is called with, in words, and its signature.
_OF_STEP = ("the model, the batch, the optimizer and the scheduler", "(model, batch, optimizer, scheduler) -> loss")


class TrainingStep:
    """Trains on one batch at a time.

    :param reader: None: the batches cannot be read, and the user's own step trains.
    :param user_step: the user's own loop body; None: the recipe's.
    """

    def __init__(
        self,
        model: nn.Module,
        reader: Reader | None,
        recipe: Recipe,
        optimizer: Optimizer,
        scheduler: Any,
        user_step: StepFn | None,
        recorder: Recorder,
    ) -> None:
        self._model, self._reader, self._recipe = model, reader, recipe
        self._optimizer, self._scheduler, self._user_step = optimizer, scheduler, user_step
        self._recorder = recorder
        self._device = device_of(model)
        ours = user_step is None
        scaled = ours and recipe.autocast == "float16" and self._device.type == "cuda"
        self._scaler = torch.amp.GradScaler("cuda") if scaled else None
        self._scheduler_takes_loss = ours and scheduler is not None and expects_metric(scheduler)
        self._closure = ours and needs_closure(optimizer)
        if ours:
            start_training(optimizer)

    def run(self, batch: Any) -> tuple[Any, str | None]:
        """One iteration; the loss, and why backward could not run, if so."""
        try:
            if self._user_step is not None:
                given = (self._model, batch, self._optimizer, self._scheduler)
                return _loss_of(arguments.call("step", self._user_step, given, *_OF_STEP)), None
            return self._recipe_step(batch), None
        except RuntimeError as error:
            if not has_no_graph(error):
                raise
            return None, self._where_the_graph_ends(batch)

    # ------------------------------------------------------------------ the recipe's step
    def _recipe_step(self, batch: Any) -> Any:
        if self._closure:
            loss: Any = self._optimizer.step(lambda: self._backward(batch))  # type: ignore[arg-type, return-value]
            self._step_scheduler(loss)
            return loss
        loss = self._backward(batch)
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        if self._recipe.max_grad_norm is not None:
            with unobserved():
                self._recorder.unclipped = self._clip(self._recipe.max_grad_norm)
        if self._scaler is not None:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        else:
            self._optimizer.step()
        self._step_scheduler(loss)
        return loss

    def _backward(self, batch: Any) -> torch.Tensor:
        assert self._reader is not None
        with unobserved():
            self._model.zero_grad(set_to_none=True)
        kind = self._recipe.autocast
        precision = torch.autocast(self._device.type, getattr(torch, kind)) if kind else contextlib.nullcontext()
        with precision:
            # a loss_fn that ends in .item() gives a number: backward then reports that it has no graph
            loss = as_loss(self._reader.training_loss(batch)[0])
        (self._scaler.scale(loss) if self._scaler is not None else loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _clip(self, max_norm: float) -> torch.Tensor | None:
        """As ``clip_grad_norm_``, for sparse gradients, too. Gradients that are not finite are left alone, so that it stays visible
        which they are (clipping would multiply all of them by NaN)."""
        grads = [p.grad for g in self._optimizer.param_groups for p in g["params"] if p.grad is not None]
        if not grads:
            return None
        # the usual gradients in one call: of thousands of small ones the calls cost more than the numbers
        together = all(is_plain(g, grads[0].device) for g in grads)
        norms = torch._foreach_norm(grads) if together else [gradient_norm(g, 1) for g in grads]
        total: torch.Tensor = torch.linalg.vector_norm(
            torch.stack([norm.to(grads[0].device, torch.float32) for norm in norms])
        )
        if torch.isfinite(total):
            share = torch.clamp(max_norm / (total + 1e-6), max=1.0)
            if together:
                torch._foreach_mul_(grads, share)
            else:
                for grad in grads:
                    grad.mul_(share.to(grad.device))
        return total

    def _step_scheduler(self, loss: Any) -> None:
        if self._scheduler is not None:
            self._scheduler.step(*([float(loss)] if self._scheduler_takes_loss else []))

    # ------------------------------------------------------------------ no backward
    def _where_the_graph_ends(self, batch: Any) -> str:
        """Whether the model or the loss detaches the graph."""
        if not torch.is_grad_enabled():  # still so after the step
            return (
                "gradients are switched off: torch.set_grad_enabled(False), or a no_grad() or inference_mode() entered and never left, "
                "in an evaluation or an earlier step"
            )
        if self._reader is None:
            return "the loss has no graph"
        with quiet(self._model, grad=True), contextlib.suppress(Exception):
            logits = self._reader.logits(to_device(batch, self._device))
            if logits is not None and logits.requires_grad:
                return (
                    "the loss has no graph, though the model's logits have one: it is detached between logits and loss "
                    "(argmax, .detach(), .data, .item(), a new tensor, torch.no_grad())"
                )
            if logits is not None:
                return (
                    "the loss has no graph, because the model's logits have none: it is detached inside the model "
                    "(.detach(), .data, torch.no_grad(), numpy)"
                )
        return "the loss has no graph"


def _loss_of(returned: Any) -> Any:
    """What a user's step returned, as a number or a scalar tensor; None where it is neither."""
    if isinstance(returned, torch.Tensor):
        return returned.detach() if returned.numel() == 1 else returned.detach().float().mean()
    if isinstance(returned, (int, float)):
        return float(returned)
    return None
