"""What a user passes becomes what a run needs: recipe, model, optimizer, scheduler; checked before any training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..core.arguments import call
from ..core.formatting import as_given, describe_type, first_line_of, text_of
from ..core.recipe import OPTIMIZERS, Recipe
from ..instruments.given import device as device_named
from ..instruments.given import listable, switchable
from ..instruments.optimizers import held_optimizers
from ..instruments.snapshots import ModelSnapshot, OptimizerSnapshot, SchedulerSnapshot
from ..instruments.undisturbed import named_parameters_of
from ..instruments.undo import Undo

#: Recipe fields that a user's optimizer decides itself, and those that a user's scheduler does.
OPTIMIZER_FIELDS = ("lr", "weight_decay", "warmup", "schedule")
SCHEDULE_FIELDS = ("warmup", "schedule")
#: Optimizers of a recipe that take sparse gradients, without weight decay.
TAKE_SPARSE = ("sgd", "adagrad")


def resolve_recipe(recipe: Recipe | None, fields: Mapping[str, Any], optimizer: Any, scheduler: Any) -> Recipe:
    """The recipe with single fields replaced.

    :raises TypeError: not a Recipe, or an unknown field.  :raises ValueError: a field that would be silently ignored.
    """
    if recipe is not None and not isinstance(recipe, Recipe):
        raise TypeError(f"recipe={as_given(recipe)}: expected a Recipe")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer) and not callable(optimizer):
        raise TypeError(
            f"optimizer is {describe_type(optimizer)}: expected a torch.optim.Optimizer, a callable(model) -> optimizer, or a name "
            f"({', '.join(OPTIMIZERS)})"
        )
    unknown = sorted(set(fields) - set(Recipe.field_names()))
    if unknown:
        raise TypeError(
            f"finetune() has no argument {unknown[0]!r}; besides its own it takes the fields of Recipe: "
            f"{', '.join(Recipe.field_names())}"
        )
    for what, given, decided in (
        ("optimizer", optimizer, OPTIMIZER_FIELDS),
        ("scheduler", scheduler, SCHEDULE_FIELDS),
    ):
        clash = [name for name in decided if name in fields]
        if given is not None and clash:
            raise ValueError(
                f"{clash[0]}={as_given(fields[clash[0]])} is given together with your own {what}, which decides it: leave one out"
            )
    made = replace(recipe or Recipe(), **fields)
    return made if optimizer is None else made.for_own_optimizer()


def resolve_model(model: Any, optimizer: Any, recipe: Recipe, undo: Undo) -> nn.Module:
    """The module to train, on its device; a module that the user passed is snapshotted first.

    :raises TypeError: neither a module nor a factory of one.  :raises ValueError: nothing can be trained.
    """
    from_factory = not isinstance(model, nn.Module)
    if from_factory:
        if not callable(model):
            raise TypeError(
                f"model is {describe_type(model)}: expected a torch.nn.Module or a function without arguments that makes one"
            )
        if isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(
                "optimizer is an instance, but model is a factory: the optimizer cannot hold parameters that do not exist yet; "
                "pass optimizer=callable(model) -> optimizer, or the module itself"
            )
        model = call("model", model, (), "no argument", "() -> torch.nn.Module")
        if not isinstance(model, nn.Module):
            raise TypeError(f"the model factory returned {describe_type(model)}: expected a torch.nn.Module")
    check_parameters(model)
    switchable(model)
    if not from_factory:
        undo.keep(ModelSnapshot(model, known=undo.parameters))
    if recipe.device is not None or recipe.dtype is not None:
        try:
            device = device_named("device", recipe.device) if recipe.device is not None else None
            model.to(device=device, dtype=getattr(torch, recipe.dtype) if recipe.dtype else None)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device={as_given(recipe.device)}: {first_line_of(error)}") from error
    return model  # type: ignore[no-any-return]


def check_parameters(model: nn.Module) -> None:
    """``ValueError`` for a model that cannot be trained or measured."""
    listable(model)
    trainable = 0
    for name, p in model.named_parameters():
        if p.device.type == "meta":
            raise ValueError(
                f"model: parameter {name!r} is on the meta device and has no values: load it first (model.to_empty, from_pretrained)"
            )
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"model: parameter {name!r} is not initialised yet (a lazy module): run one forward pass first"
            )
        if p.is_inference():
            raise ValueError(
                f"model: parameter {name!r} was created under torch.inference_mode() and cannot be trained: create the model outside it"
            )
        if p.is_complex():
            raise ValueError(
                f"model: parameter {name!r} is complex ({p.dtype}); expected real floating-point parameters"
            )
        if not p.is_floating_point():
            raise ValueError(
                f"model: parameter {name!r} is quantized ({p.dtype}); expected floating-point parameters: check the model before "
                "quantization, or its floating-point adapters on an unquantized base"
            )
        trainable += p.requires_grad
    if not trainable:
        how = "unfreeze what should learn"
        if any(hasattr(module, "peft_config") for module in model.modules()):
            how = "adapters are loaded for inference unless is_trainable=True: PeftModel.from_pretrained(model, path, is_trainable=True)"
        raise ValueError(
            f"model: no trainable parameter: every parameter has requires_grad=False, or there is none; {how}"
        )


def refuse_sparse(model: nn.Module, recipe: Recipe) -> None:
    """``ValueError`` for embeddings whose gradients are sparse, under an optimizer of the recipe that takes none."""
    if recipe.optimizer in TAKE_SPARSE and not recipe.weight_decay:
        return
    for name, module in model.named_modules():
        if getattr(module, "sparse", False) is True and isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            if not module.weight.requires_grad:
                continue
            raise ValueError(
                f"optimizer={recipe.optimizer!r} takes no sparse gradients, and {name or type(module).__name__} makes them (sparse=True): "
                f"expected optimizer=callable(model) -> optimizer with torch.optim.SparseAdam for it, {' or '.join(TAKE_SPARSE)} "
                "with weight_decay=0, or an embedding with sparse=False"
            )


def resolve_optimizer(model: nn.Module, optimizer: Any, recipe: Recipe, undo: Undo) -> torch.optim.Optimizer:
    """The user's optimizer, or the recipe's; an instance is snapshotted first."""
    if optimizer is None:
        refuse_sparse(model, recipe)
        kind = getattr(torch.optim, OPTIMIZERS[recipe.optimizer], None)
        if kind is None:
            raise ValueError(
                f"optimizer={recipe.optimizer!r}: torch {torch.__version__} has no torch.optim.{OPTIMIZERS[recipe.optimizer]}; "
                "upgrade torch, name another optimizer, or pass a callable(model) -> optimizer"
            )
        trainable = [p for p in model.parameters() if p.requires_grad]
        made: torch.optim.Optimizer = kind(trainable, lr=recipe.lr, weight_decay=recipe.weight_decay)
        return made
    if isinstance(optimizer, torch.optim.Optimizer):
        for each in held_optimizers(optimizer):  # one inside another has a state of its own
            undo.keep(OptimizerSnapshot(each, undo.parameters))
        return optimizer
    if not callable(optimizer):
        raise TypeError(
            f"optimizer is {describe_type(optimizer)}: expected a torch.optim.Optimizer, a callable(model) -> optimizer, or a name "
            f"({', '.join(OPTIMIZERS)})"
        )
    built = _built_optimizer(optimizer, model)
    if not isinstance(built, torch.optim.Optimizer):
        raise TypeError(f"optimizer(model) returned {describe_type(built)}: expected a torch.optim.Optimizer")
    known = undo.parameters | {id(p) for _, p in named_parameters_of(model)}
    for each in held_optimizers(built):
        undo.keep(OptimizerSnapshot(each, known))
    return built


def _built_optimizer(factory: Callable[[nn.Module], Any], model: nn.Module) -> Any:
    """What the user's function, or class, makes of the model."""
    if not (isinstance(factory, type) and issubclass(factory, torch.optim.Optimizer)):
        return call("optimizer", factory, (model,), "the model", "(model) -> optimizer")
    make: Callable[..., Any] = factory
    try:
        return make(model)
    except TypeError as error:
        raise TypeError(
            f"optimizer={factory.__name__} is a class, called with the model, and raised TypeError: {text_of(error)}; "
            f"expected an optimizer or a callable(model) -> optimizer: lambda model: {factory.__name__}(model.parameters(), lr=...)"
        ) from error


def resolve_scheduler(
    optimizer: torch.optim.Optimizer, scheduler: Any, recipe: Recipe, *, own_optimizer: bool, undo: Undo
) -> Any:
    """The user's scheduler; else the recipe's, with the recipe's optimizer only; else none."""
    if scheduler is None:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.lr_factor) if own_optimizer else None
    if callable(getattr(scheduler, "step", None)) and not isinstance(scheduler, type):
        undo.keep(SchedulerSnapshot(scheduler))
        return scheduler
    if not callable(scheduler):
        raise TypeError(
            f"scheduler is {describe_type(scheduler)}: expected a learning-rate scheduler or a callable(optimizer) -> scheduler"
        )
    built = _built_scheduler(scheduler, optimizer)
    if not callable(getattr(built, "step", None)):
        raise TypeError(f"scheduler(optimizer) returned {describe_type(built)}: expected a learning-rate scheduler")
    return built


def _built_scheduler(factory: Any, optimizer: torch.optim.Optimizer) -> Any:
    """What the user's function, or class, makes of the optimizer."""
    if not isinstance(factory, type):
        return call("scheduler", factory, (optimizer,), "the optimizer", "(optimizer) -> scheduler")
    try:
        return factory(optimizer)
    except TypeError as error:
        raise TypeError(
            f"scheduler={factory.__name__} is a class, called with the optimizer alone, and raised TypeError: {text_of(error)}; expected a "
            f"learning-rate scheduler or a callable(optimizer) -> scheduler: lambda optimizer: {factory.__name__}(optimizer, ...)"
        ) from error
