"""Gains and biases of a base that no training leaves behind, where no checkpoint says what they should be."""

from __future__ import annotations

from collections.abc import Sequence

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Fault, Rank, Symptom
from .base_twin_record import FilledVector, TwinComparison
from .harm import harm_of_alteration
from .record import Pretrained

#: Distance of a gain from 1, or of a bias from 0, from which a fill is told: half a standard deviation of what a norm makes.
FAR = 0.5
#: Share of negative gains from which they were drawn around 0, which gives a half. Of the 4,992 gains of MiniLM's norms 3 are below 0.
DRAWN = 0.25
#: Gains below which their signs say nothing: of 100 that were drawn around 0, fewer than a quarter are below 0 once in ten million times.
MIN_GAINS = 100
VECTORS_OVERWRITTEN = Fault(
    "base_vectors_overwritten",
    Rank.START + 2,
    "gains of norms or biases of the base do not start as its class makes them",
    cause="an initialisation was applied to every parameter of the base, vectors included; or they were multiplied, shifted or filled",
    remedy="initialise matrices alone (if p.dim() > 1), and leave gains of norms at 1 and biases at 0",
    explains=(Symptom.INPUT_LOST, Symptom.STANDS_STILL, Symptom.BLOWS_UP, "padding_ignored", "rows_independent"),
)


def judge_vectors(name: str, trace: Trace, bases: Sequence[TwinComparison]) -> Verdict | None:
    """The verdict of the check of that name where vectors were overwritten; None: none was.

    What was compared with a checkpoint, declared or named, is left to `pretrained_kept`.
    """
    if trace.measured(Pretrained) is not None:
        return None
    for base in bases:
        if found := _overwritten(base):
            headline, limit, filled = found
            harm = harm_of_alteration(trace)
            return VECTORS_OVERWRITTEN.verdict(
                name,
                headline,
                harm.status,
                evidence=tuple({"vector": v.name, "filled with": v.value, "by its class": v.of_class} for v in filled),
                limit=limit,
                measured="values before the first step, beside those of a fresh twin",
                notes=harm.notes_on_learning,
            )
    return None


def _overwritten(base: TwinComparison) -> tuple[str, str, Sequence[FilledVector]] | None:
    """Headline, limit and vectors."""
    if base.vectors is None:
        return None
    filled = [v for v in base.vectors.filled if not abs(v.value - v.of_class) <= FAR]
    if filled:
        example = f"{filled[0].name} with {number(filled[0].value)} in place of {number(filled[0].of_class)}"
        return (
            f"{plural(len(filled), 'gain or bias vector')} of {base.base} start filled with another value than {base.class_name} gives: "
            f"{example}.",
            f"at most {FAR:g} from the value of the class; training leaves no vector with one value throughout",
            filled,
        )
    gains, negative = base.vectors.gains, base.vectors.negative
    if gains < MIN_GAINS or negative < DRAWN * gains:
        return None
    return (
        f"{percent(negative / gains)} of the {gains:,} gains of norms in {base.base} start below 0; {base.class_name} starts them at 1.",
        f"below {percent(DRAWN)}: a draw around 0 gives half, and training hardly moves a gain across 0",
        (),
    )
