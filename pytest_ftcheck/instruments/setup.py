"""Everything a run needs, checked before any training: model, optimizer, scheduler, data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..core.formatting import describe_type
from ..core.recipe import OPTIMIZERS, Recipe
from .snapshots import ModelSnapshot, OptimizerSnapshot, SchedulerSnapshot

#: Recipe fields that say how the recipe's own optimizer and schedule are built.
OPTIMIZER_FIELDS = ("optimizer", "lr", "weight_decay")
SCHEDULE_FIELDS = ("warmup", "schedule")


def resolve_recipe(recipe: Recipe | None, fields: dict[str, Any], optimizer: Any, scheduler: Any) -> Recipe:
    """The recipe with single fields replaced.

    :raises TypeError: not a Recipe, or an unknown field.  :raises ValueError: a field that would be silently ignored.
    """
    if recipe is not None and not isinstance(recipe, Recipe):
        raise TypeError(f"recipe={recipe!r}: expected a Recipe")
    unknown = sorted(set(fields) - set(Recipe.field_names()))
    if unknown:
        raise TypeError(
            f"finetune() has no argument {unknown[0]!r}; beside its own it takes the fields of Recipe: "
            f"{', '.join(Recipe.field_names())}"
        )
    for given, owned in (
        (optimizer, (*OPTIMIZER_FIELDS[1:], *SCHEDULE_FIELDS)),
        (scheduler, SCHEDULE_FIELDS),
    ):
        clash = [name for name in owned if name in fields]
        if given is not None and clash:
            what = "optimizer" if given is optimizer else "scheduler"
            raise ValueError(
                f"{clash[0]}={fields[clash[0]]!r} is given beside a {what} of your own, which decides that itself: leave one out"
            )
    return replace(recipe or Recipe(), **fields)


@dataclass
class Setup:
    """A run that is ready to go, and how to undo it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    recipe: Recipe
    #: The scheduler is the user's own.
    notes: list[str] = field(default_factory=list)


class Undo:
    """Snapshots of the user's things, restored in reverse order."""

    def __init__(self) -> None:
        self._snapshots: list[Any] = []

    def keep(self, snapshot: Any) -> None:
        """Restore this when all is over."""
        self._snapshots.append(snapshot)

    def restore(self) -> None:
        """Everything back."""
        try:
            while self._snapshots:
                self._snapshots.pop().restore()
        finally:
            if self._snapshots:  # one could not be restored: that must not keep the others from it
                self.restore()


def resolve_model(model: Any, optimizer: Any, recipe: Recipe, undo: Undo) -> nn.Module:
    """The module to train, on its device; a module that was passed in is snapshotted first.

    :raises TypeError: neither a module nor a factory of one.  :raises ValueError: nothing can be trained.
    """
    made = not isinstance(model, nn.Module)
    if made:
        if not callable(model):
            raise TypeError(
                f"model is {describe_type(model)}: expected a torch.nn.Module or a function without arguments that makes one"
            )
        if isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(
                "optimizer is an instance, but model is a factory: the optimizer cannot hold parameters that are not made yet; "
                "pass optimizer=callable(model) -> optimizer, or the module itself"
            )
        model = model()
        if not isinstance(model, nn.Module):
            raise TypeError(f"the model factory returned {describe_type(model)}: expected a torch.nn.Module")
    check_parameters(model)
    if not made:
        undo.keep(ModelSnapshot(model))
    if recipe.device is not None or recipe.dtype is not None:
        try:
            device = torch.device(recipe.device) if recipe.device is not None else None
            model.to(device=device, dtype=getattr(torch, recipe.dtype) if recipe.dtype else None)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device={recipe.device!r}: {str(error).splitlines()[0]}") from error
    return model  # type: ignore[no-any-return]


def check_parameters(model: nn.Module) -> None:
    """``ValueError`` for a model that cannot be trained or measured."""
    trainable = 0
    for name, p in model.named_parameters():
        if p.device.type == "meta":
            raise ValueError(
                f"model: parameter {name!r} is on the meta device and has no values; load it first (model.to_empty, from_pretrained)"
            )
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"model: parameter {name!r} is not initialised yet; run one forward pass first (lazy module)"
            )
        if p.is_inference():
            raise ValueError(
                f"model: parameter {name!r} was made under torch.inference_mode() and cannot be trained; make the model outside it"
            )
        if p.is_complex():
            raise ValueError(
                f"model: parameter {name!r} is complex ({p.dtype}); expected real floating-point parameters"
            )
        if not p.is_floating_point():
            raise ValueError(
                f"model: parameter {name!r} is quantized ({p.dtype}); expected floating-point parameters: judge the model before "
                "quantization, or its floating-point adapters on an unquantized base"
            )
        trainable += p.requires_grad
    if not trainable:
        raise ValueError(
            "model: no trainable parameter: every parameter has requires_grad=False, or there is none; "
            "un-freeze what is meant to learn"
        )


def resolve_optimizer(model: nn.Module, optimizer: Any, recipe: Recipe, undo: Undo) -> torch.optim.Optimizer:
    """The user's optimizer, or the recipe's; an instance is snapshotted first."""
    if optimizer is None:
        kind = getattr(torch.optim, OPTIMIZERS[recipe.optimizer])
        trainable = [p for p in model.parameters() if p.requires_grad]
        made: torch.optim.Optimizer = kind(trainable, lr=recipe.lr, weight_decay=recipe.weight_decay)
        return made
    if isinstance(optimizer, torch.optim.Optimizer):
        seen: list[Any] = []
        inner: Any = optimizer
        while isinstance(inner, torch.optim.Optimizer) and not any(inner is s for s in seen):
            seen.append(inner)  # a wrapper's optimizer has a state of its own
            undo.keep(OptimizerSnapshot(inner))
            inner = getattr(inner, "optimizer", None) or getattr(inner, "base_optimizer", None)
        return optimizer
    if not callable(optimizer):
        raise TypeError(
            f"optimizer is {describe_type(optimizer)}: expected a torch.optim.Optimizer, a callable(model) -> optimizer, or a name "
            f"({', '.join(OPTIMIZERS)})"
        )
    built = optimizer(model)
    if not isinstance(built, torch.optim.Optimizer):
        raise TypeError(f"optimizer(model) returned {describe_type(built)}: expected a torch.optim.Optimizer")
    return built


def resolve_scheduler(
    optimizer: torch.optim.Optimizer, scheduler: Any, recipe: Recipe, *, own_optimizer: bool, undo: Undo
) -> Any:
    """The user's scheduler; the recipe's for the recipe's optimizer; else none, for the user's optimizer is judged as it is."""
    if scheduler is None:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.lr_factor) if own_optimizer else None
    if callable(getattr(scheduler, "step", None)):
        undo.keep(SchedulerSnapshot(scheduler))
        return scheduler
    if not callable(scheduler):
        raise TypeError(
            f"scheduler is {describe_type(scheduler)}: expected a learning-rate scheduler or a callable(optimizer) -> scheduler"
        )
    built = scheduler(optimizer)
    if not callable(getattr(built, "step", None)):
        raise TypeError(f"scheduler(optimizer) returned {describe_type(built)}: expected a learning-rate scheduler")
    return built


def expects_metric(scheduler: Any) -> bool:
    """Whether ``scheduler.step`` wants a number (ReduceLROnPlateau)."""
    return "metrics" in inspect.signature(scheduler.step).parameters


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``optimizer.step`` cannot do without a closure (LBFGS)."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def check_callables(**given: Callable[..., Any] | None) -> None:
    """``TypeError`` for an argument that is given and cannot be called."""
    for name, value in given.items():
        if value is not None and not callable(value):
            raise TypeError(f"{name} is {describe_type(value)}: expected a callable")
