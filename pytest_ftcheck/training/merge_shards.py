"""One tensor that is sharded over ranks, from what each rank measured of its shard: sums of squares and counts are added."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from ..core.observations import Gradients, Motion, Statistics, Tensor


def merge_shards(shards: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """The whole tensor; histograms and the Wasserstein distance are those of the first shard that has elements.

    :param shards: the same tensor as each rank measured it.
    :param counts: elements of each shard.
    """
    held = [(t, n) for t, n in zip(shards, counts, strict=True) if n]
    if len(held) < 2:
        return dataclasses.replace(held[0][0] if held else shards[0], shard=None)
    tensors, sizes = [t for t, _ in held], [n for _, n in held]
    sampled = [t.motion.elements for t in tensors]
    return dataclasses.replace(
        tensors[0],
        shard=None,
        unchanged=_all(t.unchanged for t in tensors),
        gradients=_gradients(tensors, sizes),
        motion=_motion([t.motion for t in tensors], [t.first for t in tensors], sizes),
        first=_statistics([t.first for t in tensors], sizes),
        last=_statistics([t.last for t in tensors], sizes),
        grad_norms=_series([t.grad_norms for t in tensors], _norm),
        updates=_series([t.updates for t in tensors], lambda values: _rms(values, sampled)),
        displacements=_series([t.displacements for t in tensors], lambda values: _rms(values, sampled)),
    )


def _gradients(tensors: Sequence[Tensor], sizes: Sequence[int]) -> Gradients:
    """A shard without a gradient counts where all are without one; zero, where all are zero.

    The largest norm is that of the recorded steps; of a run that is longer it is at most this, the largest norms of all shards together.
    """
    shards = [t.gradients for t in tensors]
    series = _series([t.grad_norms for t in tensors], _norm)
    most = _norm([g.max_norm for g in shards])
    max_norm = max(series) if len(series) == shards[0].steps and math.isfinite(most) else most
    most_rms = _rms([g.max_rms for g in shards], sizes)
    nonzero = [g.first_nonzero for g in shards if g.first_nonzero is not None]
    nonfinite = [g.first_nonfinite for g in shards if g.first_nonfinite is not None]
    return dataclasses.replace(
        shards[0],
        none=min(g.none for g in shards),
        zero=min(g.zero for g in shards),
        nonfinite=max(g.nonfinite for g in shards),
        first_nonzero=min(nonzero, default=None),
        first_nonfinite=min(nonfinite, default=None),
        max_norm=max_norm,
        last_norm=_norm([g.last_norm for g in shards]),
        max_rms=most_rms * max_norm / most if most else most_rms,
    )


def _motion(shards: Sequence[Motion], first: Sequence[Statistics], sizes: Sequence[int]) -> Motion:
    counts = [m.elements for m in shards]
    rms = _rms([m.rms for m in shards], counts)
    start = _rms([s.rms for s in first], sizes)
    kept = [(m.retained, n * m.rms**2) for m, n in zip(shards, counts, strict=True) if m.retained is not None]
    weight = sum(w for _, w in kept)
    return dataclasses.replace(
        shards[0],
        elements=sum(counts),
        share_changed=_mean([m.share_changed for m in shards], counts),
        share_with_gradient=_mean([m.share_with_gradient for m in shards], counts),
        rms=rms,
        largest=max(m.largest for m in shards),
        relative=rms / start if start else None,
        by_gradient=_rms([m.by_gradient for m in shards], counts),
        by_decay=_rms([m.by_decay for m in shards], counts),
        between_steps=_rms([m.between_steps for m in shards], counts),
        max_update=max(m.max_update for m in shards),
        between_steps_writes=max(m.between_steps_writes for m in shards),
        between_steps_largest=max(m.between_steps_largest for m in shards),
        resets=max(m.resets for m in shards),
        projections=max(m.projections for m in shards),
        roundings=max(m.roundings for m in shards),
        retained=sum(r * w for r, w in kept) / weight if weight else None,
    )


def _statistics(shards: Sequence[Statistics], sizes: Sequence[int]) -> Statistics:
    """Sums of values and of squares are added; the mean, deviation and extremes follow."""
    mean, rms = _mean([s.mean for s in shards], sizes), _rms([s.rms for s in shards], sizes)
    return Statistics(
        mean=mean,
        std=math.sqrt(max(0.0, rms**2 - mean**2)),
        rms=rms,
        low=min(s.low for s in shards),
        high=max(s.high for s in shards),
        nonfinite=sum(s.nonfinite for s in shards),
    )


def _norm(values: Sequence[float]) -> float:
    """L2 norm of pieces with these norms; negative where no piece has a gradient."""
    present = [v for v in values if not v < 0]
    return math.sqrt(sum(v * v for v in present)) if present else values[0]


def _rms(values: Sequence[float], counts: Sequence[int]) -> float:
    return math.sqrt(_mean([v * v for v in values], counts))


def _mean(values: Sequence[float], counts: Sequence[int]) -> float:
    return sum(v * n for v, n in zip(values, counts, strict=True)) / max(1, sum(counts))


def _series(shards: Sequence[tuple[float, ...]], merged: Callable[[Sequence[float]], float]) -> tuple[float, ...]:
    return tuple(float(f"{merged(values):.4g}") for values in zip(*shards, strict=False))


def _all(values: Iterable[bool | None]) -> bool | None:
    known = [v for v in values if v is not None]
    return all(known) if known else None
