"""Which heads are trained, in what order the rows come, and what is measured of each head: plain values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..core.init_scheme import InitScheme
from ..core.recipe import Recipe

#: Rows that a head is judged on, at most: the standard error of an accuracy is then 3 points, and judging costs a sixth of 30 steps.
JUDGED_ROWS = 256
#: Steps, evenly spread, whose own batch is evaluated before and after them: eleven of twelve that lower their loss are significant at
#: 1 % (sign test, 0.3 %), and each costs one more forward pass of its batch.
DESCENTS = 12


@dataclass(frozen=True)
class Job:
    """One head to train."""

    #: How it is initialised; None: with the weights of the given head.
    scheme: InitScheme | None
    lr: float
    #: Seeds the initial weights, the order of the rows and the dropout masks.
    seed: int


@dataclass(frozen=True)
class Plan:
    """What all heads have in common."""

    #: Optimizer, schedule, steps, weight decay, clipping; each job has its own ``lr`` and ``seed``.
    recipe: Recipe
    batch_size: int = 32
    #: Momentum of ``sgd``.
    momentum: float = 0.0

    @property
    def evaluated_steps(self) -> tuple[int, ...]:
        """Steps whose own batch is evaluated before and after."""
        steps = self.recipe.steps
        if steps <= DESCENTS:
            return tuple(range(steps))
        return tuple(sorted({round(i * (steps - 1) / (DESCENTS - 1)) for i in range(DESCENTS)}))


@dataclass(frozen=True, eq=False)
class Run:
    """The training of one head. Losses are means over rows, dropout off unless said otherwise."""

    #: Training loss of each step, dropout on.
    losses: tuple[float, ...]
    #: Loss on the judged rows before and after.
    first: float
    last: float
    #: ``(step, before, after)``: the loss of a step's own batch.
    descents: tuple[tuple[int, float, float], ...]
    #: L2 norm of the whole gradient at the first step, before clipping.
    grad_norm: float
    #: Standard deviation of the initial weights, and rms displacement, of the first and of the last linear layer.
    std_first: float
    std_last: float
    moved_first: float
    moved_last: float
    #: Share of the hidden units that are dead on all judged rows at the end; None: there is no hidden unit.
    dead: float | None
    #: All losses and weights are finite.
    finite: bool
    #: Logits on the judged rows before and after, ``[rows, outputs]``.
    logits_first: torch.Tensor
    logits_last: torch.Tensor


def order_of(rows: int, batch_size: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Row numbers of every step, ``[rows in a batch]``: random orders of all rows in turn, cut into batches.

    >>> [batch.tolist() for batch in order_of(4, 3, 3, seed=0)]
    [[0, 1, 3], [2, 0, 2], [3, 1, 3]]
    """
    size = min(batch_size, rows)
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(left) < size:
            left = torch.cat([left, torch.randperm(rows, generator=generator, device="cpu")])
        yield left[:size]
        left = left[size:]


def judged_rows(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows to judge by, every k-th of them where there are more than `JUDGED_ROWS`."""
    if len(x) <= JUDGED_ROWS:
        return x, y
    chosen = torch.linspace(0, len(x) - 1, JUDGED_ROWS).round().long().to(x.device)
    return x[chosen], y[chosen]


def std(values: torch.Tensor) -> float:
    """Standard deviation of a matrix; exactly 0 where all values are the same.

    >>> std(torch.full((8, 8), 0.01))
    0.0
    """
    if not values.numel() or bool((values == values.reshape(-1)[0]).all()):
        return 0.0  # and not the rounding error of the mean
    return float(values.double().std(correction=0))


def rms(values: torch.Tensor) -> float:
    """Root of the mean square."""
    return float(values.double().square().mean().sqrt()) if values.numel() else 0.0


def schemes_first(jobs: Sequence[Job]) -> list[int]:
    """Numbers of the jobs, sorted so that neighbours share a seed, then a learning rate: those can be computed together.

    >>> schemes_first([Job(None, 1e-3, 1), Job(None, 1e-3, 0)])
    [1, 0]
    """
    return sorted(range(len(jobs)), key=lambda i: (jobs[i].seed, jobs[i].lr, i))
