"""The trainability map: initial standard deviation against learning rate, as a matplotlib figure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..core.formatting import number, plural, shorten
from .result import MAJORITY, SweepResult, mark_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Where the loss ends above that of a class-prior prediction, and where a run was not finite: light greys, which are not on the scale
#: (cividis, made for colour-blind eyes).
WORSE, NOT_FINITE = "#c9c9c9", "#8f8f8f"
#: A displacement of this many standard deviations, independent of the weights it is added to, makes their histogram 1 % wider
#: (sqrt(1 + r^2) = 1.01): less than a pixel to either side in a picture of 200 pixels.
INVISIBLE = math.sqrt(1.01**2 - 1)

DASHED = (0, (2.2, 2.2))


def draw(result: SweepResult, mark: Any = None) -> Figure:
    """The map of a sweep; see :meth:`SweepResult.plot`.

    Only objects of the figure are made: pyplot, its current figure and its backend are not touched.

    >>> import torch
    >>> from pytest_ftcheck import Features, sweep
    >>> from pytest_ftcheck.initialization.heads import Head
    >>> x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    >>> found = sweep(Head(8, 2), Features.of(x, (x[:, 0] > 0).long()), schemes=[0.01, 0.1], lrs=[1e-3, 1e-2], seeds=1)
    >>> [ax.get_title(loc="left") for ax in draw(found, mark=(0.02, 5e-5)).axes[:2]]
    ['Loss drop', 'Motion of the first layer']
    """
    try:
        from matplotlib.colors import LogNorm, Normalize
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the map needs matplotlib: pip install 'pytest-ftcheck[plot]'") from error
    marked = mark_of(mark) or result.mark
    numeric = len(result.stds) > 1 and None not in result.stds
    rows = len(result.schemes)
    figure = Figure(figsize=(12.5, 5.6 if numeric else max(3.6, 2.2 + 0.34 * rows)), layout="constrained")
    figure.get_layout_engine().set(wspace=0.08)  # type: ignore[union-attr, call-arg]
    left, right = figure.subplots(1, 2, sharey=True)
    order = sorted(range(rows), key=lambda i: result.stds[i] or 0.0) if numeric else list(range(rows))
    learnt = [result.grid("learnt")[i] for i in order]
    motion = [[v if math.isfinite(v) and v > 0 else math.nan for v in result.grid("motion")[i]] for i in order]
    share = [result.trainable[i] for i in order]
    ys = _edges([result.stds[i] or 1.0 for i in order]) if numeric else [i - 0.5 for i in range(rows + 1)]
    xs = _edges(result.lrs)
    known = [v for line in motion for v in line if not math.isnan(v)]
    low, high = (min(known), max(known)) if known else (0.1, 1.0)
    gone = f"share of the class-prior loss that is gone after {plural(result.recipe.steps, 'step')}"
    moved = "rms displacement / std of the initial weights"
    panels = (
        (left, learnt, "cividis", Normalize(0, 1), "Loss drop", gone),
        (right, motion, "viridis", LogNorm(low / 1.001, high * 1.001), "Motion of the first layer", moved),
    )
    for ax, values, colours, norm, title, what in panels:
        _panel(figure, ax, xs, ys, values, colours, norm, title, what)
        _border(ax, xs, ys, share)
        ax.set_xscale("log")
        ax.set_xlabel("peak learning rate")
        if numeric:
            ax.set_yscale("log")
        if marked is not None:
            _mark(ax, marked, xs, ys, numeric=numeric)
    if numeric:
        left.set_ylabel("standard deviation of the initial weights")
    else:
        left.set_yticks(range(rows), [shorten(result.names[i], 40) for i in order])
        left.invert_yaxis()
    _invisible_motion(right, xs, ys, motion)
    _captions(figure, result)
    return figure


def _edges(values: Sequence[float]) -> list[float]:
    """Borders of the cells around values on a logarithmic axis.

    >>> [round(v, 6) for v in _edges([0.01, 0.1])]
    [0.003162, 0.031623, 0.316228]
    """
    logs = [math.log10(v) for v in values]
    if len(logs) == 1:
        return [10 ** (logs[0] - 0.5), 10 ** (logs[0] + 0.5)]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(logs)]
    return [10**v for v in (2 * logs[0] - middles[0], *middles, 2 * logs[-1] - middles[-1])]


def _panel(
    figure: Figure,
    ax: Axes,
    xs: Sequence[float],
    ys: Sequence[float],
    values: Sequence[Sequence[float]],
    colours: str,
    norm: Any,
    title: str,
    what: str,
) -> None:
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.ticker import PercentFormatter

    share = norm.vmin == 0
    scale = colormaps[colours].with_extremes(bad=NOT_FINITE, under=WORSE)
    cells = np.ma.masked_invalid(np.asarray(values, dtype=float))
    mesh = ax.pcolormesh(np.asarray(xs), np.asarray(ys), cells, cmap=scale, norm=norm, shading="flat", rasterized=True)
    bar = figure.colorbar(mesh, ax=ax, extend="min" if share else "neither", label=what, pad=0.02)
    if share:
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_title(title, loc="left", fontweight="bold", fontsize=11)


def _segments(xs: Sequence[float], ys: Sequence[float], inside: Sequence[Sequence[bool]]) -> list[Any]:
    """The line between the cells that are inside and those that are not, open at the edge of the grid."""
    lines = []
    for i, row in enumerate(inside):
        for j, here in enumerate(row):
            if j and here != row[j - 1]:
                lines.append([(xs[j], ys[i]), (xs[j], ys[i + 1])])
            if i and here != inside[i - 1][j]:
                lines.append([(xs[j], ys[i]), (xs[j + 1], ys[i])])
    return lines


def _border(ax: Axes, xs: Sequence[float], ys: Sequence[float], share: Sequence[Sequence[float]]) -> None:
    """A line around the cells in which most seeds learn."""
    from matplotlib.collections import LineCollection

    lines = _segments(xs, ys, [[v > MAJORITY for v in line] for line in share])
    # the halos of all segments lie under all segments: else each would cover its neighbour
    for colour, width, name in (("black", 4.4, "halo"), ("white", 2.2, "border")) if lines else ():
        made = LineCollection(lines, colors=colour, linewidths=width, capstyle="projecting", gid=name)
        ax.add_collection(made, autolim=False)


def _mark(ax: Axes, mark: tuple[float, float], xs: Sequence[float], ys: Sequence[float], *, numeric: bool) -> None:
    """A star at the user's own recipe; among named schemes, which have no scale, a line at its learning rate."""
    std, lr = mark
    halo = _halo(3)
    if not numeric:
        ax.axvline(lr, color="white", linewidth=1.6, linestyle=(0, (4, 3)), path_effects=halo, gid="mark")
        ax.set_xlim(min(xs[0], lr / 1.5), max(xs[-1], lr * 1.5))
        return
    star: dict[str, Any] = {"marker": "*", "markersize": 17, "color": "white", "markeredgecolor": "black"}
    ax.plot([lr], [std], **star, linestyle="none", gid="mark", zorder=5)
    ax.set_xlim(min(xs[0], lr / 1.5), max(xs[-1], lr * 1.5))
    ax.set_ylim(min(ys[0], std / 1.5), max(ys[-1], std * 1.5))
    to_the_left = math.log(lr / xs[0]) > 0.6 * math.log(xs[-1] / xs[0])
    ax.annotate(
        f"std {number(std, 2)}, lr {lr:.0e}".replace("e-0", "e-"),
        (lr, std),
        xytext=(-11 if to_the_left else 11, 9),
        ha="right" if to_the_left else "left",
        textcoords="offset points",
        color="white",
        fontweight="bold",
        path_effects=halo,
        zorder=6,
    )  # fmt: skip


def _invisible_motion(ax: Axes, xs: Sequence[float], ys: Sequence[float], motion: Sequence[Sequence[float]]) -> None:
    """A dashed line around the cells whose motion is too small to show in a histogram."""
    from matplotlib.collections import LineCollection

    lines = _segments(xs, ys, [[v < INVISIBLE for v in line] for line in motion])
    if lines:
        made = LineCollection(lines, colors="white", linewidths=1.8, linestyles=[DASHED], gid="unseen")
        made.set_path_effects(_halo(3.2))
        ax.add_collection(made, autolim=False)


def _captions(figure: Figure, result: SweepResult) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure.suptitle(
        f"{result.head}: {plural(len(result.cells), 'head')} = {len(result.schemes)} initialisations x {len(result.lrs)} learning "
        f"rates x {plural(len(result.seeds), 'seed')}, {result.recipe.optimizer}, "
        f"{plural(result.recipe.steps, 'step')} of {result.batch_size}; judged on {result.judged:,} {result.judged_by}",
        fontsize=10,
    )
    invisible = f"motion of {INVISIBLE:.2f} std: with less, the histogram looks the same"
    handles: list[Any] = [
        Line2D([], [], color="white", linewidth=2.2, label="most seeds learn inside this line", path_effects=_halo()),
        Line2D([], [], color="white", linewidth=1.8, linestyle=DASHED, path_effects=_halo(3.2), label=invisible),
        Patch(facecolor=WORSE, label="worse than a class-prior prediction"),
    ]  # fmt: skip
    if any(not c.finite for c in result.cells):
        handles.append(Patch(facecolor=NOT_FINITE, label="not finite"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)


def _halo(width: float = 4.4) -> list[Any]:
    from matplotlib import patheffects

    return [patheffects.withStroke(linewidth=width, foreground="black")]
