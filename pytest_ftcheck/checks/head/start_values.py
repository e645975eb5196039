"""What `head_init` (beside a training) and `init_sane` (before any) judge alike: the weights that the head starts with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.verdict import Verdict
from ..spec import Fault
from . import faults
from .record import Layer

#: Largest weight that any initialisation draws; memory that was never written holds anything.
ABSURD = 1e4


def find_uninitialised(check: str, layers: Sequence[Layer], measured: str) -> Verdict | None:
    """Layers of memory that was never written: not finite, or absurdly large."""
    faulty = [la for la in layers if la.nonfinite or la.largest > ABSURD or _has_absurd_bias(la)]
    if not faulty:
        return None
    layer = faulty[0]
    if layer.nonfinite:
        values = plural(layer.nonfinite, "NaN or infinite value")
    elif _has_absurd_bias(layer):
        values = f"a bias of {number(layer.bias)}"
    else:
        values = f"values up to {number(layer.largest)}"
    return faults.HEAD_UNINITIALISED.with_details(layer=layer.name).verdict(
        check,
        f"{layer.name} starts with {values}: no initialisation draws such weights.",
        evidence=layer_rows(faulty),
        limit=f"finite weights, none above {ABSURD:,.0f}",
        measured=measured,
    )


def _has_absurd_bias(layer: Layer) -> bool:
    return not (layer.bias or 0.0) <= ABSURD  # true for NaN


def is_zero(layer: Layer) -> bool:
    """Whether every weight is zero."""
    return layer.constant and layer.mean == 0 and not layer.nonfinite


def gain(layer: Layer) -> float:
    """How much the weights enlarge a signal: std * sqrt(fan-in). He: 1.4, LeCun: 1."""
    return layer.std * math.sqrt(layer.fan_in)


def explain_huge(layers: Sequence[Layer]) -> Fault:
    """The fault of weights that are too large, by the layer with the largest gain."""
    layer = max(layers, key=gain)
    return faults.HEAD_INIT_HUGE.with_details(
        layer=layer.name, std=number(layer.std), fan_in=layer.fan_in, he=number(math.sqrt(2 / layer.fan_in))
    )


def explain_symmetric(layer: Layer) -> tuple[Fault, str]:
    """The fault of units that are the same in and out, and its headline."""
    kind = "constant" if layer.constant else "repeated"
    headline = (
        f"{percent(layer.twins)} of the {layer.units} units of {layer.name} have the same weights as another unit, in and out: they get "
        "the same gradient and stay identical."
    )
    return faults.HEAD_SYMMETRIC.with_details(layer=layer.name, kind=kind), headline


def layer_rows(layers: Sequence[Layer], declared: Mapping[str, float] | None = None) -> tuple[dict[str, Any], ...]:
    """The evidence: a row a layer; ``declared`` is the declared standard deviation by layer."""
    return tuple(
        {
            "layer": la.name,
            "shape": f"{la.units} x {la.fan_in}",
            "std": la.std,
            "declared": None if declared is None else declared[la.name],
            "torch's default": 1 / math.sqrt(3 * la.fan_in),
            "mean": la.mean,
            "largest": la.largest,
            "bias up to": la.bias,
            "identical units": percent(la.twins) if la.twins else None,
        }
        for la in layers
    )
