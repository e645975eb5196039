"""The result of a sweep: plain data, one cell a head."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..core import arguments
from ..core.arguments import as_positive
from ..core.files import load_text, save_text
from ..core.formatting import as_given, number, percent, plural, table
from ..core.late_binding import provided
from ..core.recipe import Recipe
from ..core.serialization import decode, encode

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.figure import Figure

#: Version of the JSON layout.
SCHEMA = 1
#: Share of the seeds that must learn for a combination to count as trainable: more than half.
MAJORITY = 0.5


@dataclass(frozen=True)
class Cell:
    """One head: initialised under a scheme and a seed, trained at a learning rate. Losses with dropout off, on the judged rows."""

    #: ``repr`` of the scheme, which makes it again.
    scheme: str
    lr: float
    seed: int
    loss_first: float
    loss_last: float
    #: Relative drop of the loss: 1 is all of it, below 0 it rose.
    drop: float
    #: Share of the class-prior loss (the labels' entropy; their variance for numbers) that is gone: 1 is all, 0 none, below 0 the head
    #: is worse than a class-prior prediction. A head that starts at ten times that loss and falls back to it has learnt nothing yet.
    learnt: float
    #: Accuracy (R squared for numbers) before and after, and the share of label permutations that do as well as the latter.
    metric_first: float
    metric_last: float
    p_value: float
    #: L2 norm of the whole gradient at the first step, before clipping.
    grad_norm: float
    #: Standard deviation of the initial weights of the first and of the last linear layer.
    std_first: float
    std_last: float
    #: rms displacement of their weights.
    moved_first: float
    moved_last: float
    #: Share of the hidden units that are dead on all judged rows at the end; None: there is no hidden unit.
    dead: float | None
    #: All losses and weights are finite.
    finite: bool
    #: ``yes``, ``no`` or ``unclear``: as `loss_decreases` and `metric_improves` judge.
    trainable: str
    #: The headline of the check that decides.
    why: str

    @property
    def motion(self) -> float:
        """rms displacement of the first linear layer over the standard deviation of its initial weights."""
        return self.moved_first / self.std_first if self.std_first > 0 else math.inf

    @property
    def motion_last(self) -> float:
        """The same of the last linear layer."""
        return self.moved_last / self.std_last if self.std_last > 0 else math.inf


#: Measures of a cell that :meth:`SweepResult.grid` can lay out.
MEASURES = (
    "drop", "learnt", "loss_first", "loss_last", "metric_first", "metric_last", "p_value", "grad_norm", "motion", "motion_last", "dead",
)  # fmt: skip


@dataclass(frozen=True)
class SweepResult:
    """Many heads, each with its own initial weights, learning rate and seed: which learn, how far, and a map of them.

    Made by :func:`sweep`. ``print(result)`` shows it, ``pandas.DataFrame(result.frame())`` is a table of it, ``result.plot()`` the map.

    >>> import torch
    >>> from pytest_ftcheck import Features, sweep
    >>> from pytest_ftcheck.initialization.heads import Head
    >>> result = sweep(Head(6, 2), Features.of(torch.eye(6), torch.tensor([0, 1] * 3)), schemes=[0.02], lrs=[1e-3, 1.0], seeds=1)
    >>> SweepResult.from_json(result.to_json()) == result
    True
    >>> result.frame()["lr"]
    [0.001, 1.0]
    """

    cells: tuple[Cell, ...]
    #: ``repr`` and name of each scheme, in order; its std where all weights are drawn from one normal distribution.
    schemes: tuple[str, ...]
    names: tuple[str, ...]
    stds: tuple[float | None, ...]
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    #: The head in a line, and where its features come from.
    head: str
    source: str
    rows: int
    #: Rows judged by, and what they are.
    judged: int
    judged_by: str
    metric: str
    #: Score of the majority baseline, and loss of a class-prior prediction: the entropy of the judged labels (numbers: their variance).
    baseline: float | None
    blind_loss: float
    recipe: Recipe
    batch_size: int
    momentum: float
    #: ``vectorised``, or ``one by one: ...`` with the reason.
    engine: str
    seconds: float
    #: The user's own ``(std, learning rate)``, marked on the map; None: none was given.
    mark: tuple[float, float] | None = None
    schema: int = SCHEMA

    # ------------------------------------------------------------------ reading
    def frame(self) -> dict[str, list[Any]]:
        """Columns, one entry a cell: what ``pandas.DataFrame`` and ``polars.DataFrame`` take."""
        names = [f.name for f in fields(Cell)]
        columns: dict[str, list[Any]] = {n: [getattr(c, n) for c in self.cells] for n in names}
        std = dict(zip(self.schemes, self.stds, strict=True))
        return {**columns, "std": [std[c.scheme] for c in self.cells], "motion": [c.motion for c in self.cells]}

    def grid(self, measure: str = "drop") -> list[list[float]]:
        """``[schemes][learning rates]``: the median over the seeds of one measure; NaN where a run was not finite.

        :param measure: a number of `Cell`: ``drop``, ``motion`` (rms displacement over initial std of the first layer), ``dead``, ...
        :raises ValueError: no such measure.
        """
        arguments.one_of("measure", measure, MEASURES)
        return [[_median([getattr(c, measure) for c in same]) for same in line] for line in self._lines()]

    @property
    def trainable(self) -> list[list[float]]:
        """``[schemes][learning rates]``: share of the seeds that learn."""
        return [[sum(c.trainable == "yes" for c in same) / len(same) for same in line] for line in self._lines()]

    def border(self) -> list[dict[str, Any]]:
        """For each scheme the lowest and the highest learning rate at which most seeds learn; None where none does.

        Where ``lowest_lr`` is the lowest that was tried, the region may go on below it; likewise for the highest.
        """
        out = []
        for name, std, line in zip(self.names, self.stds, self.trainable, strict=True):
            learns = [lr for lr, share in zip(self.lrs, line, strict=True) if share > MAJORITY]
            out.append(
                {
                    "scheme": name,
                    "std": std,
                    "lowest_lr": min(learns, default=None),
                    "highest_lr": max(learns, default=None),
                }
            )
        return out

    def _lines(self) -> list[list[list[Cell]]]:
        found: dict[tuple[str, float], list[Cell]] = {}
        for cell in self.cells:
            found.setdefault((cell.scheme, cell.lr), []).append(cell)
        return [[found[s, lr] for lr in self.lrs] for s in self.schemes]

    # ------------------------------------------------------------------ writing
    def to_json(self) -> str:
        """All of it as standard JSON (NaN and infinities as strings)."""
        return json.dumps(encode(self), allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> SweepResult:
        """The inverse of :meth:`to_json`.

        :raises ValueError: not a sweep, or one of another version; names the field that does not fit.
        """
        arguments.text("text", text)
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not a sweep: no valid JSON ({error})") from None
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA or "cells" not in raw:
            found = raw.get("schema") if isinstance(raw, dict) else None
            raise ValueError(
                f"not a sweep that this version of pytest-ftcheck reads: schema {found!r}, expected {SCHEMA}"
            )
        result = decode(cls, raw, "sweep")
        assert isinstance(result, cls)
        return result

    def save(self, path: str | PathLike[str]) -> None:
        """Write :meth:`to_json` to a file, as :meth:`pytest_ftcheck.Trace.save` does.

        :raises TypeError, ValueError: no path, or none of a regular file.  :raises OSError: it cannot be written.
        """
        save_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> SweepResult:
        """Read what :meth:`save` wrote.

        :raises TypeError, ValueError: no path, or none of a sweep's file.  :raises OSError: it cannot be read.
        """
        return load_text(path, cls.from_json)

    def plot(self, mark: tuple[float, float] | Recipe | None = None) -> Figure:
        """The trainability map as a matplotlib figure: ``result.plot().savefig("map.png")``.

        Left the share of the class-prior loss that is gone, right the rms displacement over the initial std, both as medians over the
        seeds; a line around the combinations at which most seeds learn.

        :param mark: your own ``(std, lr)``, or a `Recipe` (its learning rate, at std 0.02); None: the one given to the sweep.
        :raises ValueError: a mark that is not a pair of positive numbers.  :raises ImportError: matplotlib is not installed.
        """
        figure: Figure = provided("heatmap")(self, mark)
        return figure

    def __repr__(self) -> str:
        learn = sum(c.trainable == "yes" for c in self.cells)
        return (
            f"<Sweep of {plural(len(self.cells), 'head')} in {self.seconds:.1f} s ({self.engine.partition(':')[0]}): "
            f"{plural(len(self.schemes), 'scheme')} x {plural(len(self.lrs), 'learning rate')} x {plural(len(self.seeds), 'seed')}, "
            f"{learn} learn>"
        )

    def __str__(self) -> str:
        lines = [
            repr(self)[1:-1] + ".",
            f"{self.head} on {self.source}; {self.recipe.steps} steps of {self.batch_size} of {self.rows:,} rows, judged on "
            f"{self.judged:,} {self.judged_by} (class-prior baseline: {self.metric} {number(self.baseline)}, "
            f"loss {number(self.blind_loss)}).",
        ]
        if self.engine.startswith("one by one"):
            lines.append(f"The heads were trained {self.engine}.")
        rows = []
        for border, drops, motion in zip(self.border(), self.grid("learnt"), self.grid("motion"), strict=True):
            low, high = border["lowest_lr"], border["highest_lr"]
            best = max((v for v in drops if not math.isnan(v)), default=None)
            at = drops.index(best) if best is not None else 0
            rows.append(
                {
                    "scheme": border["scheme"],
                    "learns from lr": number(low),
                    "to": number(high),
                    "learnt at best": percent(best) if best is not None and best >= 0 else number(best),
                    "at lr": number(self.lrs[at]) if best is not None else "-",
                    "motion / std there": number(motion[at]) if best is not None else "-",
                }
            )
        return "\n".join([*lines, *table(rows, most=40)])


def _median(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None and not math.isnan(v)]
    if not known or (len(known) < len(values) and None not in values):
        return math.nan
    return statistics.median(known)


def mark_of(mark: Any) -> tuple[float, float] | None:
    """``(std, lr)`` of a mark; a recipe's std is 0.02, the default of transformers and of the founding question.

    >>> mark_of(Recipe(lr=5e-5))
    (0.02, 5e-05)
    """
    if mark is None:
        return None
    if isinstance(mark, Recipe):
        return 0.02, as_positive("mark.lr", mark.lr)
    if not isinstance(mark, (tuple, list)) or len(mark) != 2:
        raise ValueError(f"mark={as_given(mark)}: expected (std, learning rate), or a Recipe")
    return as_positive("mark[0]", mark[0]), as_positive("mark[1]", mark[1])
