"""Weights of the ranks: the same tensors, the same values before the first step and at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.verdict import Verdict
from . import faults
from .record import Rank, RankWeights
from .sketch_distance import distance, norm, relative

NAME = "ranks_agree"
#: Relative distance up to which start weights are the same: ten roundings of float32. Weights that one rank sends to the others are the
#: same to the bit; those of another seed are about 1.4 apart.
SAME = 1e-6
#: Distance of the end weights over how far the run moved them. Ranks of one kind of machine that step with one gradient agree to the bit;
#: unlike machines round differently, each step by some 1e-7 of the weights.
DRIFTED = 0.01


def other_models(ranks: Sequence[Rank]) -> str | None:
    """Whether ranks hold different tensors, as in pipeline parallelism; None: they do not."""
    first = [(w.name, w.shape) for w in ranks[0].weights]
    for rank in ranks[1:]:
        if [(w.name, w.shape) for w in rank.weights] != first:
            return (
                f"The ranks hold different models: {plural(len(first), 'tensor')} on rank {ranks[0].rank}, {len(rank.weights)} on rank "
                f"{rank.rank}, or other names and shapes."
            )
    return None


def start_differs(ranks: Sequence[Rank]) -> Verdict | None:
    """Weights before the first optimizer step."""
    found = [
        (w, other, rank, relative(w.first, other.first))
        for rank, pairs in _pairs(ranks)
        for w, other in pairs
        if w.first and other.first and relative(w.first, other.first) > SAME
    ]
    if not found:
        return None
    names = list(dict.fromkeys(w.name for w, *_ in found))
    compared = sum(bool(w.first) for w in ranks[0].weights)
    evidence: tuple[dict[str, Any], ...] = tuple(
        {"tensor": w.name, "ranks": f"{ranks[0].rank} and {rank.rank}", "relative distance": apart}
        for w, _, rank, apart in sorted(found, key=lambda one: -one[3])
    )
    headline = (
        f"Before the first step {len(names)} of {plural(compared, 'tensor')} differ between ranks, {names[0]} first."
    )
    return faults.START_WEIGHTS_DIFFER.verdict(NAME, headline, evidence=evidence)


def apart_at_end(ranks: Sequence[Rank]) -> list[dict[str, Any]]:
    """The tensors whose end weights differ between ranks, the farthest first: a row each."""
    rows: list[dict[str, Any]] = []
    for rank, pairs in _pairs(ranks):
        for w, other in pairs:
            if not (w.last and other.last and w.first):
                continue
            apart, moved = (
                distance(w.last, other.last),
                max(distance(w.first, w.last), distance(other.first, other.last)),
            )
            if apart > max(DRIFTED * moved, SAME * norm(w.last)):
                share = apart / moved if moved else float("inf")
                rows.append(
                    {
                        "tensor": w.name,
                        "ranks": f"{ranks[0].rank} and {rank.rank}",
                        "apart": apart,
                        "moved": moved,
                        "ratio": share,
                    }
                )
    return sorted(rows, key=lambda row: -row["ratio"])


def agree_again(ranks: Sequence[Rank]) -> bool:
    """Whether the weights differed before some step, and were the same before a later one: something averages them now and then."""
    differed = False
    for at_step in zip(*(rank.steps for rank in ranks), strict=False):
        same = all(relative(at_step[0].weights, other.weights) <= SAME for other in at_step[1:])
        if differed and same:
            return True
        differed = differed or not same
    return False


def drift_apart(ranks: Sequence[Rank]) -> Verdict | None:
    """Weights at the end, where gradients, starts, settings and steps do not explain it: those findings come first."""
    rows = apart_at_end(ranks)
    if not rows or agree_again(ranks) or written_after_last_step(ranks):
        return None
    step = _first_apart(ranks)
    since = "" if step is None else f" from step {step} on"
    worst, names = rows[0], {row["tensor"] for row in rows}
    share = (
        f"{percent(worst['ratio'])} of how far it moved"
        if worst["moved"]
        else f"{number(worst['apart'])}, and it never moved"
    )
    headline = (
        f"The weights of {plural(len(names), 'tensor')} differ between ranks{since}: {worst['tensor']} by {share}."
    )
    return faults.RANKS_DRIFT_APART.verdict(NAME, headline, evidence=tuple(rows))


def written_after_last_step(ranks: Sequence[Rank]) -> bool:
    """Whether followed tensors differ at the end, and did not before the last step, which had the same gradients: an average that one rank
    evaluates, or a checkpoint that it loads, when the training is over."""
    names = {row["tensor"] for row in apart_at_end(ranks)} & set(ranks[0].sampled)
    last = [
        rank.steps[-1]
        for rank in ranks
        if rank.steps and rank.run is not None and rank.steps[-1].step == rank.run.steps - 1
    ]
    if not names or len(last) < len(ranks) or len({step.step for step in last}) > 1:
        return False
    same = (relative(last[0].gradients, other.gradients) <= SAME for other in last[1:])
    return _first_apart(ranks) is None and all(same)


def _first_apart(ranks: Sequence[Rank]) -> int | None:
    """First recorded step before which the followed tensors differ."""
    for at_step in zip(*(rank.steps for rank in ranks), strict=False):
        if any(relative(at_step[0].weights, other.weights) > SAME for other in at_step[1:]):
            return int(at_step[0].step)
    return None


def _pairs(ranks: Sequence[Rank]) -> Iterator[tuple[Rank, list[tuple[RankWeights, RankWeights]]]]:
    """Each other rank, and its tensors beside those of the first."""
    for rank in ranks[1:]:
        yield rank, list(zip(ranks[0].weights, rank.weights, strict=True))
