"""Experiments on a model and its batches, beside the training: here they are measured, elsewhere judged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .battery import Battery, Bench, Experiment, allowance, tokens_of
from .counterfactuals import CounterfactualsExperiment
from .data import DataExperiment
from .fixed import BATCHES, DESCENTS, FixedProbe, MetricProbe, gather_logits, small_gradients
from .head import HeadExperiment
from .inputs import InputsExperiment
from .loss_shape import LossShapeExperiment
from .modes import ModesExperiment
from .overfit import OverfitExperiment
from .permuted import PermutedExperiment
from .reference import ReferenceGradientExperiment

#: The experiments, the cheapest and most telling first: those at the end are the first to be left out of a long run.
EXPERIMENTS: tuple[type[Experiment], ...] = (
    DataExperiment,
    ModesExperiment,
    LossShapeExperiment,
    ReferenceGradientExperiment,
    InputsExperiment,
    HeadExperiment,
    CounterfactualsExperiment,
    OverfitExperiment,
    PermutedExperiment,
)
#: Names that ``probes=`` accepts.
PROBES = ("loss", "descent", "noise", "metrics", *(e.name for e in EXPERIMENTS))


def chosen_probes(probes: Sequence[str] | None) -> tuple[str, ...]:
    """The probes to make; ``ValueError`` for a name that is none."""
    if probes is None:
        return tuple(p for p in PROBES if all(e.default for e in EXPERIMENTS if e.name == p))
    names = tuple(probes) if isinstance(probes, Iterable) and not isinstance(probes, str) else None
    if names is None or not all(isinstance(p, str) for p in names):
        raise TypeError(f"probes={probes!r}: expected a sequence of names, any of {', '.join(PROBES)}")
    if unknown := [p for p in names if p not in PROBES]:
        raise ValueError(f"probes={probes!r}: {unknown[0]!r} is none of {', '.join(PROBES)}")
    return names


__all__ = [
    "BATCHES",
    "DESCENTS",
    "EXPERIMENTS",
    "PROBES",
    "Battery",
    "Bench",
    "Experiment",
    "FixedProbe",
    "MetricProbe",
    "allowance",
    "chosen_probes",
    "gather_logits",
    "small_gradients",
    "tokens_of",
]
