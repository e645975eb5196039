"""The bases of a model that a twin can be made of."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch import nn

from .....instruments.base_model import BaseModel, find_base_models, is_library


def find_bases(model: nn.Module) -> list[BaseModel]:
    """The bases inside, those of a library's class if there are any; without one inside, the model."""
    found = {base.name: base for base in find_base_models(model)}
    for name, module in model.named_modules():
        # by the forward of its class: the instance's may be replaced
        if name and name not in found and is_library(module) and _takes_ids(module):
            found[name] = BaseModel(name, module, ())
    if not found and is_library(model) and _takes_ids(model):
        return [BaseModel("", model, ())]
    return [b for b in found.values() if b.library] or list(found.values())


def outermost(bases: Sequence[BaseModel]) -> list[BaseModel]:
    """Those that are not inside another one."""
    return [b for b in bases if not any(b.name.startswith(f"{other.name}.") for other in bases)]


def _takes_ids(module: nn.Module) -> bool:
    return {"input_ids", "attention_mask"} <= set(inspect.signature(type(module).forward).parameters)
