"""A trace as charts: data, table and legend, as plain data; ``charts.js`` draws each kind. A missing chart has a sentence instead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...checks.head.ablation_record import Counterfactuals
from ...core.formatting import number, one_line, percent, plural
from .. import chart_data
from ..layer_groups import labels
from .chart import Chart, Column, Key

if TYPE_CHECKING:
    from ...checks.head.ablation_record import Outcome
    from ...core.observations import Metric
    from ...core.trace import Trace
    from ..chart_data import Lines, Series

#: Points of one curve: a chart has no more columns of pixels.
LOSS_POINTS = 400
TENSOR_POINTS = 150
#: Histograms of one tensor in the picture over time.
HISTOGRAMS = 24
#: Curves of the base get these strokes in turn, so that they can be distinguished without colour.
DASHES: tuple[tuple[int, ...], ...] = ((), (7, 3), (2, 2), (8, 3, 2, 3))
#: Kind of curve -> colour (a variable of the page's style), width, dash.
STYLES: dict[str, tuple[str, float, tuple[int, ...]]] = {
    "train": ("var(--train)", 1.6, ()),
    "probe": ("var(--probe)", 2.6, ()),
    "prior": ("var(--prior)", 1.6, (6, 4)),
    "lr": ("var(--lr)", 2.0, ()),
    "total": ("var(--total)", 1.8, ()),
    "unclipped": ("var(--total)", 1.2, (2, 3)),
    "head": ("var(--head)", 2.8, ()),
    "displacement": ("var(--head)", 2.8, ()),
    "budget": ("var(--total)", 1.8, (6, 4)),
    "std": ("var(--prior)", 1.6, (2, 3)),
}
BASES = 8


def charts(trace: Trace) -> dict[str, Chart]:
    """All charts of a run by id: ``loss``, ``motion``, ``gradients``, ``histogram``, ``time``, ``displacement``, ``rewound``, and
    ``metric-0``, ``metric-1`` and so on.

    >>> from pytest_ftcheck import example_trace
    >>> list(charts(example_trace()))
    ['loss', 'motion', 'gradients', 'histogram', 'time', 'displacement', 'rewound', 'metric-0']
    """
    found = [
        _loss(trace),
        _motion(trace),
        _lines("gradients", chart_data.gradients(trace), TENSOR_POINTS),
        *_weights(trace),
        _rewound(trace),
        *_metrics(trace.metrics),
    ]
    return {chart.id: chart for chart in found}


# ------------------------------------------------------------------ curves
def _loss(trace: Trace) -> Chart:
    """Losses, and below them the learning rates over the same steps."""
    losses, rates = chart_data.loss(trace), chart_data.rates(trace)
    chart = _lines("loss", losses, LOSS_POINTS)
    below = _lines("lr", rates, LOSS_POINTS)
    if not (chart.drawn or below.drawn):
        return replace(chart, missing=_joined(chart.missing, below.missing))
    if not chart.drawn:
        return replace(below, id="loss", note=_joined(below.note, chart.missing))
    if not below.drawn:
        return replace(chart, note=_joined(chart.note, below.missing))
    return Chart(
        id="loss",
        title="Loss, and the learning rate below it",
        kind="loss",
        description=f"{chart.description} {below.description}",
        data={"lines": chart.data["lines"], "below": below.data["lines"]},
        columns=chart.columns,
        pivot=True,
        legend=(*chart.legend, *below.legend),
        note=_joined(chart.note, below.note),
    )


def _lines(name: str, lines: Lines, most: int) -> Chart:
    if lines.missing:
        return Chart(name, lines.title, "lines", missing=_sentence(lines.missing))
    blocks, keys, bases = [], [], 0
    for curve in lines.series:
        ink, wide, dash = _style(curve, bases)
        bases += curve.kind == "base"
        thin = curve.thinned(most)
        blocks.append(
            {
                "same": {
                    "series": curve.name,
                    "kind": curve.kind,
                    "ink": ink,
                    "wide": wide,
                    "dash": list(dash),
                    # a single point without a line would be invisible
                    "dots": len(thin.x) <= 24 and curve.kind not in ("prior", "std", "budget", "lr"),
                },
                "columns": {"x": list(thin.x), "y": list(thin.y)},
            }
        )
        keys.append(Key(curve.name, ink, wide, dash))
    left_out = sum(len(curve.x) > most for curve in lines.series)
    return Chart(
        id=name,
        title=lines.title,
        kind="log" if lines.log else "lines",
        description=f"{lines.title} over the steps: " + "; ".join(map(_described, lines.series)) + ".",
        data={"lines": blocks},
        columns=(Column("x", "step"), Column("y", lines.y)),
        pivot=True,
        legend=tuple(keys),
        note=_joined(
            lines.note, f"long curves are thinned to about {most:,} points; every peak is kept" if left_out else ""
        ),
    )


def _style(curve: Series, bases: int) -> tuple[str, float, tuple[int, ...]]:
    if curve.kind == "base":
        return f"var(--base-{bases % BASES})", 1.6, DASHES[bases % len(DASHES)]
    return STYLES.get(curve.kind, STYLES["total"])


def _described(curve: Series) -> str:
    points = [y for y in curve.y if y is not None]
    if not points:
        return f"{curve.name}: nothing"
    bad = curve.nonfinite
    nonfinite = f", not finite at {plural(len(bad), 'point')} from step {number(bad[0])} on" if bad else ""
    if len(set(points)) == 1:
        return f"{curve.name} {number(points[0])} throughout{nonfinite}"
    return f"{curve.name} from {number(points[0])} to {number(points[-1])}{nonfinite}"


# ------------------------------------------------------------------ bars
def _motion(trace: Trace) -> Chart:
    bars = chart_data.motion(trace)
    title = "Motion against the LR budget, by layer"
    if bars.missing:
        return Chart("motion", title, "motion", missing=_sentence(bars.missing))
    layers = bars.layers
    descriptions = []
    rows: dict[str, list[Any]] = {"layer": [], "label": []}
    for layer in layers:
        name = f"head: {layer.name}" if layer.part == "head" else layer.name
        label = percent(layer.used) if layer.used is not None else "no budget" if not layer.state else ""
        shown = ", ".join(filter(None, (label, layer.state)))
        rows["layer"].append(name)
        rows["label"].append(one_line(shown, 60))
        descriptions.append(f"{name} {shown}")
    for field in ("part", "used", "low", "high", "tensors", "state"):
        rows[field] = [getattr(layer, field) for layer in layers]
    description = f"{bars.x}, median of each layer's tensors: {'; '.join(descriptions)}."
    band: list[dict[str, Any]] = []
    healthy: tuple[Key, ...] = ()
    if bars.healthy is not None:
        low, high = bars.healthy
        band = [{"same": {}, "columns": {"from": [low], "to": [high]}}]
        usual = f"healthy dense tensors under Adam: {100 * low:.0f}-{100 * high:.0f} %"
        healthy = (Key(usual, "var(--band)", shape="box"),)
    legend = (
        Key("head", "var(--head)", shape="box"),
        Key("base", "var(--base-0)", shape="box"),
        Key("smallest to largest tensor of the layer", "var(--ink)"),
        *healthy,
    )
    return Chart(
        id="motion",
        title=title,
        kind="motion",
        description=description,
        data={"bars": [{"same": {}, "columns": rows}], "band": band},
        columns=(
            Column("layer", "layer"),
            Column("used", "share of the LR budget (median)"),
            Column("low", "smallest"),
            Column("high", "largest"),
            Column("tensors", "tensors"),
            Column("state", "remarks"),
        ),
        legend=legend,
        note=bars.note,
    )


def _rewound(trace: Trace) -> Chart:
    """By loss, which distinguishes parts that accuracy on few rows does not."""
    found = trace.measured(Counterfactuals)
    empty = Chart("rewound", "What if a part were reset?", "rewound")
    if found is None or not found.parts:
        reason = trace.skipped.get("counterfactuals", "")
        missing = "no part was reset in this run" + (f": {one_line(reason, 200)}" if reason else "")
        return replace(empty, missing=_sentence(missing))
    rows: dict[str, list[Any]] = {k: [] for k in ("part", "how", "loss", "accuracy", "ink", "label")}
    descriptions, hows = [], {"initial values": "var(--head)", "initial values, shuffled": "var(--base-0)"}
    for part, name in zip(found.parts, labels([p.part for p in found.parts]), strict=True):
        for (how, ink), outcome in zip(hows.items(), (part.rewound, part.shuffled), strict=True):
            if outcome is None:
                continue
            label = _outcome(outcome)
            entries = (name, how, outcome.loss, outcome.accuracy, ink, label)
            for column, entry in zip(rows.values(), entries, strict=True):
                column.append(entry)
            descriptions.append(f"{name} with {how}: loss {label}")
    loss, accuracy, trained = found.trained.loss, found.trained.accuracy, _outcome(found.trained)
    if not any(math.isfinite(v) for v in (*rows["loss"], loss)):
        return replace(empty, missing="The loss is not finite, as trained and whichever part is reset.")
    majority = f"; majority baseline {percent(found.baseline)}" if found.baseline is not None else ""
    rules = [
        {
            "same": {"what": f"as trained: {trained}", "ink": "var(--ink)", "dash": []},
            "columns": {"at": [loss], "accuracy": [accuracy]},
        }
    ]
    legend = [Key(how, ink, shape="box") for how, ink in hows.items() if how in rows["how"]]
    return replace(
        empty,
        description=f"Loss of {plural(found.rows, 'row')} as trained {trained}; {'; '.join(descriptions)}{majority}.",
        data={"bars": [{"same": {}, "columns": rows}], "rules": rules},
        columns=(
            Column("part", "part"),
            Column("how", "reset to"),
            Column("loss", "loss"),
            Column("accuracy", "accuracy"),
        ),
        legend=(*legend, Key(f"as trained: {trained}", "var(--ink)", shape="tick")),
        note=f"{plural(found.rows, 'row')}, dropout off, everything else as trained{majority}. A part that can be reset without a higher "
        "loss has learnt nothing useful.",
    )


def _outcome(outcome: Outcome) -> str:
    return number(outcome.loss) + (f", {percent(outcome.accuracy)} accuracy" if outcome.accuracy is not None else "")


def _metrics(metrics: Sequence[Metric]) -> list[Chart]:
    """Metrics between 0 and 1 share an axis; any other has its own."""
    axes = [_axis(metric) for metric in metrics]
    shared = max((high for low, high in axes if low == 0 and high <= 1), default=1.0)
    return [
        _metric(i, metric, (low, shared if low == 0 and high <= 1 else high))
        for i, (metric, (low, high)) in enumerate(zip(metrics, axes, strict=True))
    ]


def _axis(metric: Metric) -> tuple[float, float]:
    """From zero to the largest value, or from the smallest."""
    values = [v for v in (metric.first, metric.last, metric.baseline) if v is not None and math.isfinite(v)]
    low, high = min(0.0, *values), max(0.0, *values)
    return (low, high) if low < high else (low, low + 1.0)


def _metric(place: int, metric: Metric, axis: tuple[float, float]) -> Chart:
    rows = {"when": ["before", "after"], "value": [metric.first, metric.last], "ink": ["var(--base-0)", "var(--head)"]}
    baseline = "majority class" if metric.actual else "baseline"
    rules = []
    if metric.baseline is not None:
        rules = [
            {"same": {"what": baseline, "ink": "var(--prior)", "dash": [5, 4]}, "columns": {"at": [metric.baseline]}}
        ]
    name = one_line(metric.name, 60)
    against = f", {baseline} {number(metric.baseline)}" if metric.baseline is not None else ""
    luck = f"; {percent(metric.p_value)} of label permutations score as well" if metric.p_value is not None else ""
    return Chart(
        id=f"metric-{place}",
        title=f"{name} against the majority baseline" if metric.baseline is not None else name,
        kind="metric",
        description=f"{name}: before {number(metric.first)}, after {number(metric.last)}{against}.",
        data={"bars": [{"same": {"low": axis[0], "high": axis[1]}, "columns": rows}], "rules": rules},
        columns=(Column("when", "when"), Column("value", name)),
        legend=(
            Key("before", "var(--base-0)", shape="box"),
            Key("after", "var(--head)", shape="box"),
            *((Key(baseline, "var(--prior)", dash=(5, 4), shape="tick"),) if rules else ()),
        ),
        note=f"{plural(metric.rows, 'row')}, {one_line(metric.source, 80)}{luck}"
        + ("" if rules else "; the baseline is not known"),
    )


# ------------------------------------------------------------------ weights
def _weights(trace: Trace) -> tuple[Chart, Chart, Chart]:
    found = chart_data.weights(trace)
    of = f" of {found.tensor}" if found.tensor else ""
    displacement = _lines("displacement", found.displacement, TENSOR_POINTS)
    if not any(y and y > 0 for s in found.displacement.series if s.kind == "displacement" for y in s.y):
        # a logarithmic axis would show the budget only
        displacement = Chart(
            "displacement",
            "",
            "log",
            missing=displacement.missing or _sentence(displacement.note) or "It did not move.",
        )
    displacement = replace(displacement, title=f"Displacement of the elements{of}")
    first, over = f"Histogram{of}, before and after", "The same histogram over time"
    if found.missing or not found.histograms:
        reason = _sentence(found.missing or "the trace holds no histogram of it")
        return (
            Chart("histogram", first, "histogram", missing=reason),
            Chart("time", over, "time", missing=reason),
            displacement,
        )

    def block(place: int, name: str, ink: str, wide: float, dash: Sequence[int]) -> dict[str, Any]:
        h = found.histograms[place]
        return {
            # edges and densities follow from these, and would be most of a page
            "same": {
                "series": name,
                "step": h.step,
                "ink": ink,
                "wide": wide,
                "dash": list(dash),
                "low": h.edges[0],
                "high": h.edges[-1],
            },
            "columns": {"count": list(h.counts)},
        }

    last = found.histograms[-1].step
    ends = [
        block(0, "before", "var(--base-0)", 2.2, ()),
        block(-1, f"after {last:,} steps", "var(--head)", 1.8, (6, 3)),
    ]
    if len(found.histograms) == 1:
        ends = ends[:1]
    keep = range(0, len(found.histograms), 1 + (len(found.histograms) - 1) // HISTOGRAMS)
    time = [block(k, "", "var(--head)", 1.0, ()) for k in sorted({*keep, len(found.histograms) - 1})]
    columns = (Column("series", "when"), Column("from", "from"), Column("to", "to"), Column("count", "weights"))
    lines = dict(found.explanation)
    histogram = Chart(
        id="histogram",
        title=first,
        kind="histogram",
        description=f"Histogram before and after the run: {lines.get('Histogram', '')}",
        data={"bins": ends},
        columns=columns,
        legend=tuple(
            Key(b["same"]["series"], b["same"]["ink"], b["same"]["wide"], tuple(b["same"]["dash"])) for b in ends
        ),
    )
    over_time = Chart(
        id="time",
        title=over,
        kind="time",
        description=f"{plural(len(time), 'histogram')} from step {found.histograms[0].step:,} to {last:,}, the darker the denser.",
        data={"bins": time},
        columns=(Column("step", "step"), *columns[1:]),
        note="each row is one histogram, the darker the denser",
        missing="" if len(time) > 1 else _sentence("the trace holds one histogram only"),
    )
    return histogram, over_time, displacement


# ------------------------------------------------------------------ helpers
def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""


def _joined(*texts: str) -> str:
    return " ".join(_sentence(text) for text in texts if text)
