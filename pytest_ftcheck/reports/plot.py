"""A trace as a matplotlib figure, drawn from `chart_data`.

Colours are those of Okabe and Ito, safe for colour-blind readers. Curves also differ in line or marker, and every bar has its number, so
that a grey print shows the same.
"""

from __future__ import annotations

import functools
import io
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..core import arguments
from ..core.formatting import as_given, number, percent, plural, shorten
from . import chart_data
from .chart_data import FAR, Lines, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

    from ..core.trace import Trace

PANELS = ("loss", "gradients", "motion", "weights")

BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7f7f7f"
#: By kind of curve: colour, line, width, marker.
STYLES: dict[str, tuple[str, Any, float, str]] = {
    "train": (GREY, "-", 1.0, ""),
    "probe": (BLUE, "-", 2.2, "o"),
    "prior": (VERMILLION, "--", 1.6, ""),
    "lr": (GREEN, "-", 1.6, ""),
    "unclipped": (GREY, ":", 1.2, ""),
    "total": (GREY, "-", 1.6, ""),
    "head": (VERMILLION, "-", 2.4, "s"),
    "displacement": (VERMILLION, "-", 2.4, "s"),
    "budget": (BLUE, "--", 1.8, ""),
    "std": (GREY, ":", 2.0, ""),
}
#: Lines of the base's blocks, which share a scale of colours by depth.
DASHES: tuple[Any, ...] = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (6, 2)), (0, (1, 1)), (0, (3, 3)))
#: Learning rates with a legend; the strip is low.
RATES = 4
#: A loss that spans more than this factor has a logarithmic axis.
SPAN = 1000


def draw(trace: Trace, which: str | Sequence[str] | None = None, *, tensor: str | None = None) -> Figure:
    """The figure of a trace; see :meth:`pytest_ftcheck.Trace.plot`.

    pyplot, its current figure and its backend are not touched.

    >>> from pytest_ftcheck import example_trace
    >>> [ax.get_title(loc="left") for ax in draw(example_trace(), ["loss", "gradients"]).axes]
    ['Loss', 'Learning rate', 'Gradient norms']
    """
    panels = _panels(which)
    arguments.text("tensor", tensor, optional=True)
    if tensor is not None:
        trace.tensor(tensor)  # raises for an unknown name before anything is drawn
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot() needs matplotlib: pip install 'pytest-ftcheck[plot]'") from error
    rows = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    figure = Figure(figsize=(12.0 if panels != ("loss",) else 7.0, 0.6 + 4.0 * len(rows)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    grid = figure.add_gridspec(len(rows), 6)
    for r, row in enumerate(rows):
        # `weights` has two charts
        middle = 6 if len(row) == 1 else 4 if row[0] == "weights" else 2 if row[1] == "weights" else 3
        places = (grid[r, :middle],) if len(row) == 1 else (grid[r, :middle], grid[r, middle:])
        for name, place in zip(row, places, strict=True):
            if name == "weights":
                _weights(figure, place, trace, tensor)
            else:
                _PANELS[name](figure, place, trace)
    figure.suptitle(_drawable(_title(trace), 150), fontsize=11, parse_math=False)
    # IPython displays figures only once pyplot was imported, which this module does not do
    figure._repr_png_ = functools.partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _panels(which: str | Sequence[str] | None) -> tuple[str, ...]:
    if which is None:
        return PANELS
    names = arguments.texts("which", which, f"one or several of {', '.join(PANELS)}")
    for name in names:
        if name not in PANELS:
            raise ValueError(f"which={as_given(name)}: expected one or several of {', '.join(PANELS)}")
    if not names:
        raise ValueError(f"which={as_given(which)}: expected at least one of {', '.join(PANELS)}")
    return tuple(dict.fromkeys(names))


def _title(trace: Trace) -> str:
    title = f"{trace.source}: {plural(len(trace.steps), 'optimizer step')}"
    if trace.optimizer.groups:
        title += f", {trace.optimizer.name}, peak lr {number(max(g.lr_peak for g in trace.optimizer.groups), 2)}"
    return f"{title}; head: {', '.join(trace.head) or 'none'}" + (
        f"; stopped: {trace.stopped}" if trace.stopped else ""
    )


# ------------------------------------------------------------------ the panels
def _loss(figure: Figure, place: SubplotSpec, trace: Trace) -> None:
    inner = place.subgridspec(2, 1, height_ratios=(3, 1), hspace=0.0)
    losses, rates = chart_data.loss(trace), chart_data.rates(trace)
    top = figure.add_subplot(inner[0])
    _lines(top, losses, log=_spans(losses))
    bottom = figure.add_subplot(inner[1], sharex=top)
    _lines(bottom, rates, legend=1 < len(rates.series) <= RATES)
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    bottom.yaxis.set_major_locator(MaxNLocator(3))
    bottom.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: number(rate, 2)))
    bottom.set_xlabel("optimizer step")
    top.tick_params(labelbottom=False)


def _gradients(figure: Figure, place: SubplotSpec, trace: Trace) -> None:
    ax = figure.add_subplot(place)
    _lines(ax, chart_data.gradients(trace))
    ax.set_xlabel("optimizer step")


def _motion(figure: Figure, place: SubplotSpec, trace: Trace) -> None:
    bars = chart_data.motion(trace)
    ax = figure.add_subplot(place)
    _titled(ax, bars.title, bars.note)
    if bars.missing:
        _empty(ax, bars.missing)
        return
    known = [layer.used or 0.0 for layer in bars.layers]
    shown = [v if math.isfinite(v) and abs(v) < FAR else 0.0 for v in known]
    for k, (layer, value) in enumerate(zip(bars.layers, shown, strict=True)):
        head = layer.part == "head"
        colour, hatch = (VERMILLION, "//") if head else (BLUE, "")
        ax.barh(k, value, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5, gid=f"{layer.part}-motion")
        ends = [v if v is not None and math.isfinite(v) and abs(v) < FAR else value for v in (layer.low, layer.high)]
        if layer.tensors > 1 and ends[0] < ends[1]:
            ax.plot(ends, [k, k], color=GREY, linewidth=1.2, marker="|", markersize=6, gid="range")
        if layer.used is not None and not layer.state:
            label = percent(layer.used)
        else:
            label = f"{percent(layer.used)}: {layer.state}" if layer.used is not None else layer.state or "no budget"
        ax.annotate(
            _drawable(label, 48),
            (max(value, ends[1]), k),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            fontweight="bold" if layer.state else "normal",
            parse_math=False,
            gid="label",
        )
    most = max(
        [*shown, *(v for layer in bars.layers if (v := layer.high) is not None and math.isfinite(v) and v < FAR)]
    )
    ax.set_xlim(0, max(0.6, 1.7 * most))
    if bars.healthy is not None:
        low, high = bars.healthy
        ax.axvspan(low, high, color=GREEN, alpha=0.15, linewidth=0, gid="healthy")
        ax.annotate(
            f" usual for dense tensors: {100 * low:.0f}-{100 * high:.0f} %",
            (low, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -2),
            textcoords="offset points",
            ha="left",
            va="top",
            fontsize=7,
        )
    ax.set_ylim(-0.6, len(bars.layers) - 0.1)
    ax.set_yticks(
        range(len(bars.layers)), [_drawable(layer.name, 32) for layer in bars.layers], fontsize=8, parse_math=False
    )
    from matplotlib.ticker import PercentFormatter

    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_xlabel(bars.x, fontsize=9)


def _weights(figure: Figure, place: SubplotSpec, trace: Trace, tensor: str | None) -> None:
    found = chart_data.weights(trace, tensor)
    inner = place.subgridspec(1, 2)
    ax = figure.add_subplot(inner[0])
    _titled(ax, f"Histogram: {shorten(found.tensor, 26)}" if found.tensor else "Histogram", found.note)
    if found.missing or not found.histograms:
        _empty(ax, found.missing)
    else:
        first, last = found.histograms[0], found.histograms[-1]
        when = "before the run" if first.step == 0 else f"after step {first.step:,}"
        ax.stairs(first.density, first.edges, fill=True, color=GREY, alpha=0.45, label=when, gid="first")
        if last is not first:
            after = f"after step {last.step:,}"
            ax.stairs(
                last.density, last.edges, color=VERMILLION, linewidth=1.6, linestyle="--", label=after, gid="last"
            )
        ax.set_xlabel("weight")
        ax.set_ylabel("density")
        ax.legend(fontsize=8, frameon=False, loc="upper right")
    ax = figure.add_subplot(inner[1])
    _lines(ax, found.displacement, title="Displacement of its elements")
    ax.set_xlabel("optimizer step")


_PANELS: dict[str, Callable[[Figure, SubplotSpec, Trace], None]] = {
    "loss": _loss,
    "gradients": _gradients,
    "motion": _motion,
}


# ------------------------------------------------------------------ parts of a panel
def _lines(ax: Axes, lines: Lines, *, log: bool | None = None, legend: bool = True, title: str = "") -> None:
    _titled(ax, title or lines.title, lines.note)
    if lines.missing and not lines.series:
        _empty(ax, lines.missing)
        return
    log = lines.log if log is None else log
    base = [s for s in lines.series if s.kind == "base"]
    handles: list[tuple[Any, str]] = []
    for k, curve in enumerate(lines.series):
        points = [(x, y if abs(y) < FAR else math.nan) for x, y in _gaps(curve)]
        if log:
            points = [(x, y if y > 0 else math.nan) for x, y in points]
        colour, line, width, marker = _style(curve, base, k if curve.kind == "lr" else 0)
        few = marker if len(points) <= 60 else ""
        (drawn,) = ax.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=colour,
            linestyle=line,
            linewidth=width,
            marker=few or ("." if len(points) == 1 else ""),
            markersize=3.5,
            gid=curve.kind,
        )
        handles.append((drawn, _drawable(curve.name, 40)))
        lost = [x for x, y in zip(curve.x, curve.y, strict=True) if y is not None and not abs(y) < FAR]
        if lost:
            (marks,) = ax.plot(
                lost,
                [0.97] * len(lost),
                color=colour,
                linestyle="none",
                marker="x",
                transform=ax.get_xaxis_transform(),
                gid="nonfinite",
            )
            handles.append((marks, f"not finite: {_drawable(curve.name, 28)}"))
    positive = any(0 < y < FAR for s in lines.series for _, y in s.finite)
    if log and positive:
        ax.set_yscale("log")
    ax.set_ylabel(lines.y, fontsize=9)
    if legend and handles:
        drawn_legend = ax.legend(
            [h for h, _ in handles],
            # matplotlib omits names that begin with an underscore
            [" " + name if name.startswith("_") else name for _, name in handles],
            fontsize=8,
            frameon=False,
        )
        drawn_legend.set_in_layout(False)  # it is inside the axes
        for text in drawn_legend.get_texts():
            text.set_parse_math(False)
    if lines.missing:
        ax.text(0.5, 0.02, lines.missing, transform=ax.transAxes, ha="center", va="bottom", fontsize=8, color=GREY)


def _style(curve: Series, base: Sequence[Series], index: int) -> tuple[Any, Any, float, str]:
    if curve.kind != "base":
        colour, line, width, marker = STYLES[curve.kind]
        return colour, DASHES[index % len(DASHES)] if curve.kind == "lr" else line, width, marker
    from matplotlib import colormaps

    k = next(i for i, s in enumerate(base) if s is curve)
    # the ends of the scale are too dark and too pale to stand out from the axes
    return colormaps["viridis"](0.1 + 0.7 * k / max(1, len(base) - 1)), DASHES[k % len(DASHES)], 1.3, ""


def _gaps(curve: Series) -> Iterator[tuple[float, float]]:
    return ((x, math.nan if y is None or not math.isfinite(y) else y) for x, y in zip(curve.x, curve.y, strict=True))


def _spans(lines: Lines) -> bool:
    known = [y for s in lines.series for _, y in s.finite if abs(y) < FAR]
    return bool(known) and min(known) > 0 and max(known) / min(known) > SPAN


def _titled(ax: Axes, title: str, note: str) -> None:
    lines = textwrap.wrap(_drawable(note, 110), 58)[:2]
    ax.set_title(
        _drawable(title, 40), loc="left", fontweight="bold", fontsize=10, pad=6 + 10 * len(lines), parse_math=False
    )
    ax.spines[["top", "right"]].set_visible(False)
    if lines:
        annotation = ax.annotate(
            "\n".join(lines),
            (0.0, 1.0),
            xycoords="axes fraction",
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=7.5,
            va="bottom",
            parse_math=False,
            gid="note",
        )
        annotation.set_in_layout(False)  # text must not shrink the panels


def _empty(ax: Axes, reason: str) -> None:
    ax.text(
        0.5,
        0.5,
        _drawable(reason, 60),
        transform=ax.transAxes,
        ha="center",
        va="center",
        color=GREY,
        parse_math=False,
        gid="missing",
    )
    ax.set_xticks([])
    ax.set_yticks([])


def _drawable(text: str, width: int) -> str:
    """Text that the font can draw: matplotlib warns of every other character."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    return shorten("".join(c if font.get_char_index(ord(c)) and c.isprintable() else "?" for c in text), width)


def _png(figure: Figure) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    return image.getvalue()
