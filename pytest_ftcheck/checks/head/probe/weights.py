"""The probes of the values that are stored in the model before the run: the head's, and the declared pretrained ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ....core.formatting import text_of
from ....instruments.configs import config_of
from ....instruments.model_call import unwrapped
from ....instruments.parameter_roles import outside_head
from ....instruments.probe import OUT_OF_BUDGET, LeftOut, ModelContext, ModelProbe
from ....instruments.sharded_tensors import is_sharded
from ..record import HeadWeights, Layer, Pretrained
from .layers import describe_layer, linear_layers, matrix_of
from .named_checkpoint import named_checkpoint
from .pretrained import compare

#: Why whole matrices are not read.
SHARDED = "the parameters are sharded over the ranks, and this rank holds parts of them"


class PretrainedProbe(ModelProbe):
    """Compare the parameters with the declared pretrained values, or with the checkpoint that the base's config names, before the run."""

    name = "pretrained"
    order = 1

    def __init__(self, context: ModelContext) -> None:
        super().__init__(context)
        declared = context.intent.pretrained
        self.named = named_checkpoint(context.model) if declared is None else None
        self.found: Pretrained | None = None

    def before(self) -> None:
        """Compare."""
        context = self.context
        if self.named is not None:
            self.found = replace(compare(context.model, self.named, context.head), named=self.named.named)
            self.named = None  # the file is closed
            context.edited = edited_with_their_layers(self.found)
            return
        assert context.intent.pretrained is not None
        own_range = initializer_range(context.model)
        try:
            if any(map(is_sharded, context.model.parameters())):
                raise ValueError(SHARDED)
            self.found = compare(context.model, context.intent.pretrained, context.head, own_range)
        except Exception as error:  # noqa: BLE001 - values that are declared and cannot be compared are no pass
            self.found = Pretrained(0, 0, error=f"it raised {type(error).__name__}: {text_of(error).strip()[:200]}")

    def record(self) -> Pretrained | None:
        """What was measured."""
        return self.found


def edited_with_their_layers(found: Pretrained) -> tuple[str, ...]:
    """The edited tensors, and what differs beside them in the same layers: a swapped bias merely looks unrelated."""
    layers = {d.name.rpartition(".")[0] for d in found.differing if d.edited}
    return tuple(
        d.name
        for d in found.differing
        if d.part != "head" and d.shape == d.declared_shape and d.name.rpartition(".")[0] in layers
    )


class HeadWeightsProbe(ModelProbe):
    """Read the head's initial weights, and what lies between it and the base."""

    name = "head_weights"
    order = 2

    def __init__(self, context: ModelContext) -> None:
        super().__init__(context)
        self.layers: tuple[Layer, ...] = ()
        self.outside: tuple[str, ...] = ()

    def before(self) -> None:
        """Read them."""
        context = self.context
        if any(map(is_sharded, context.model.parameters())):
            raise LeftOut(f"{OUT_OF_BUDGET} {SHARDED}")
        self.layers = stored_layers(linear_layers(context.model, context.head))
        self.outside = outside_head(context.model, context.head)

    def record(self) -> HeadWeights | None:
        """What was measured."""
        return HeadWeights(self.layers, initializer_range(self.context.model), self.outside)


def stored_layers(modules: dict[str, nn.Module]) -> tuple[Layer, ...]:
    """The layers as they are stored. Without a pass it is not known which of them are called: those are taken that train, if any do,
    and each is taken to feed the next if that has as many inputs as it has units.
    """
    trained = {n: m for n, m in modules.items() if any(p.requires_grad for p in m.parameters(recurse=False))}
    used = trained or modules
    names, found = list(used), []
    for i, (name, module) in enumerate(used.items()):
        following = used[names[i + 1]] if i + 1 < len(names) else None
        if following is not None and matrix_of(following).shape[1] != matrix_of(module).shape[0]:
            following = None
        found.append(describe_layer(name, module, following, last=following is None))
    return tuple(found)


def initializer_range(model: nn.Module) -> float | None:
    """``config.initializer_range`` of the model, or of a module right inside it."""
    inside: Any = unwrapped(model)
    config = config_of(inside)
    if config is None:
        config = next((c for m in model.children() if (c := config_of(m)) is not None), None)
    value = getattr(config, "initializer_range", None)
    return float(value) if isinstance(value, (int, float)) else None
