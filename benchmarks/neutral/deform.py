"""DEForm's operators for encoders, run from its authors' package (``pip install --no-deps defaultplusplus==0.4.1``)."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any

import torch
from torch import nn

from .task import Fault, Run

PACKAGE = "defaultplusplus"
WHERE = "https://pypi.org/project/defaultplusplus/0.4.1/ (deform/operators.py)"
#: The package's severities are places in an operator's list of values, (low, medium, high).
SEVERITIES = {"low": 0, "medium": 1, "high": 2}
_BASE = ("base_altered",)
_WEIGHTS = ("pretrained_",)
#: Component of the operator -> what a first cause may be. An operator that exchanges functions alters the base; one that writes
#: weights is found by what it writes.
_CAUSES: dict[str, tuple[str, ...]] = {
    "masking": (*_BASE, "mask"),
    "qkv": (*_WEIGHTS, "tokens_not_mixed", "query", "key", "value", "frozen"),
    "score": _BASE,
    "positional": (*_BASE, "position"),
    "kernel": _BASE,
    "variant": _BASE,
    "embedding": (*_WEIGHTS, "embedding"),
    "ffn": (*_WEIGHTS, *_BASE, "intermediate", "output.dense"),
    "layernorm": (*_WEIGHTS, *_BASE, "LayerNorm", "norm"),
    "residual": (*_BASE, "clip"),
    "output": (*_BASE, "classifier", "head", "logits", "labels_permuted", "temperature"),
}


def faults(severity: str = "high") -> list[Fault]:
    """One fault an operator, with its value for ``severity``; empty where the package is not installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        return []
    from defaultplusplus.deform.operators import list_operators

    found = []
    for op in list_operators("encoder"):
        values = op.param_grid
        value = values[min(SEVERITIES[severity], len(values) - 1)] if values else None
        story = op.action + (f" {op.param_name}={value}" if values else "")
        name = op.op_id if severity == "high" else f"{op.op_id}-{severity}"
        found.append(Fault("DEForm", name, story, WHERE, partial(inject, op.op_id, value), _CAUSES[op.component.value]))
    return [*found, *(RECREATED if severity == "high" else ())]


def inject(op_id: str, value: object, run: Run) -> None:
    """Enter the package's own injector; the run's model is thrown away with it."""
    from defaultplusplus.deform.operator_impls import get_injector

    get_injector(op_id, param_value=value)(run.model).__enter__()


def _unscaled(run: Run) -> None:
    for layer in run.model.bert.encoder.layer:
        layer.attention.self.scaling = 1.0


def _shifted(run: Run) -> None:
    table = run.model.bert.embeddings.position_embeddings
    table.register_forward_pre_hook(lambda _, given: (given[0] + 4,))


def _causal(run: Run) -> None:
    def masked(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = given[0] if given else named["hidden_states"]
        length = hidden.shape[1]
        future = torch.full((length, length), torch.finfo(hidden.dtype).min).triu(1)[None, None]
        if len(given) > 1:
            mask = future if given[1] is None else given[1] + future
            return (hidden, mask, *given[2:]), named
        mask = named.get("attention_mask")
        return given, {**named, "attention_mask": future if mask is None else mask + future}

    for layer in run.model.bert.encoder.layer:
        layer.attention.register_forward_pre_hook(masked, with_kwargs=True)


def _other_dropout(run: Run) -> None:
    for layer in run.model.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.5


_AGAIN = "; re-created from its description, for the package's own changes nothing in this version of transformers"
#: Operators whose published code changes nothing here, as their descriptions say.
RECREATED = tuple(
    Fault("DEForm", f"{name}*", story + _AGAIN, WHERE, apply, cause)
    for name, story, apply, cause in (
        ("SDS", "Drop the 1/sqrt(d_k) score scaling.", _unscaled, _BASE),
        ("PSI", "Shift position indices by 4.", _shifted, (*_BASE, "position")),
        ("VEC", "Apply a broadcast-compatible causal mask in an encoder layer.", _causal, (*_BASE, "mask")),
        (
            "KMD",
            "Mismatched dropout probabilities between training and kernel: 0.5.",
            _other_dropout,
            (*_BASE, "dropout"),
        ),
    )
)
