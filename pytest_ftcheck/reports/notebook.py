"""A trace, a verdict and a diagnosis in a notebook: plain HTML, one element, no script, no request.

Text and background have the notebook's own colours, light or dark; our coloured text has its own background. Names are escaped and
shortened.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..core.formatting import number, one_line, percent, plural
from . import chart_data
from .sparkline import polylines
from .trace_table import describe

if TYPE_CHECKING:
    from ..checks.diagnosis import Diagnosis
    from ..core.trace import Trace
    from ..core.verdict import Verdict

#: Background colours; white text has a contrast of at least 4.5 on each.
GROUNDS = {
    "pass": "#1b7837",
    "healthy": "#1b7837",
    "fail": "#b3261e",
    "unhealthy": "#b3261e",
    "inconclusive": "#7a5c00",
    "undecided": "#7a5c00",
    "advice": "#2b6cb0",
    "skipped": "#5f6368",
}
#: Curves that are shown besides the learning rates, by kind.
CURVES = {
    "train": "training loss",
    "probe": "probe loss, dropout off",
    "total": "gradient norm",
    "head": "gradient norm of the head",
}
#: Characters of a name, and of a sentence.
NAME, SENTENCE = 60, 600
#: Points, width and height of a curve in pixels.
POINTS, WIDTH, HEIGHT = 200, 200, 36
#: Layers shown as bars.
LAYERS = 12

_CELL = "padding:2px 12px 2px 0;text-align:left;vertical-align:baseline;border:0;background:transparent;color:inherit"


def of_trace(trace: Trace) -> str:
    """A trace: small curves, the share of its LR budget that each layer used, `explain_weight_motion`, and the table, folded.

    >>> from pytest_ftcheck import example_trace
    >>> "<script" in of_trace(example_trace())
    False
    """
    rows = []
    for lines in (chart_data.loss(trace), chart_data.rates(trace), chart_data.gradients(trace)):
        for curve in lines.series:
            if name := {"lr": curve.name, **CURVES}.get(curve.kind):
                rows.append((name, _ends(curve), _spark(curve, f"{name}, {_ends(curve)}")))
    if trace.probe_loss is not None and trace.probe_loss.prior_entropy is not None:
        rows.append(("loss of the class prior", number(trace.probe_loss.prior_entropy), ""))
    for metric in trace.metrics:
        baseline = f"; majority baseline {number(metric.baseline)}" if metric.baseline is not None else ""
        rows.append((metric.name, f"{number(metric.first)} -> {number(metric.last)}{baseline}", ""))
    bars = chart_data.motion(trace, LAYERS)
    body = [
        _headline("", "", repr(trace).strip("<>")),
        _table((_escaped(n), _escaped(v), drawn) for n, v, drawn in rows),
    ]
    if bars.layers:
        body.append(f"<div style='margin-top:8px'><b>{_escaped(bars.title)}</b> {_escaped(bars.note, SENTENCE)}</div>")
        body.append(_table(_bar(layer) for layer in bars.layers))
    if trace.tensors:
        body.append("<div style='margin-top:8px'><b>Should the weights move more?</b></div>")
        explanation = chart_data.weights(trace).explanation
        body.append(_table((f"<i>{_escaped(label)}</i>", _escaped(text, SENTENCE)) for label, text in explanation))
    body.append(_folded("the whole trace as a table", describe(trace, unicode=True)))
    return _whole(body)


def of_verdict(verdict: Verdict) -> str:
    """A verdict: its headline, and the whole message, unfolded where it failed or was inconclusive.

    >>> from pytest_ftcheck import Verdict
    >>> "weights_move" in of_verdict(Verdict("weights_move", "pass", "4 of 4 tensors moved."))
    True
    """
    message = str(verdict)
    body = [_headline(verdict.status, verdict.check, verdict.headline)]
    if "\n" in message:
        body.append(_folded("the whole message", message, unfolded=not verdict.ok))
    return _whole(body)


def of_diagnosis(diagnosis: Diagnosis) -> str:
    """A diagnosis: its causes with their remedies, what was judged and what was left out, then every verdict.

    >>> from pytest_ftcheck import diagnose, example_trace
    >>> "healthy" in of_diagnosis(diagnose(example_trace()))
    True
    """
    body = [_headline(diagnosis.status, "", diagnosis.headline)]
    if diagnosis.causes:
        items = []
        for cause in diagnosis.causes:
            lines = [f"<b>{_escaped(cause.title, SENTENCE)}</b> ({_escaped(cause.confidence)})"]
            lines += [
                f"{_escaped(check)}: {_escaped(line, SENTENCE)}"
                for check, line in zip(cause.checks, cause.evidence, strict=False)
            ][:1]
            lines += [f"cause: {_escaped(cause.why, SENTENCE)}"] if cause.why else []
            lines += [f"do: <b>{_escaped(cause.remedy, SENTENCE)}</b>"] if cause.remedy else []
            lines += [f"explains: {_escaped(', '.join(cause.checks[1:]), SENTENCE)}"] if cause.checks[1:] else []
            items.append(f"<li style='margin:4px 0'>{'<br>'.join(lines)}</li>")
        body.append(f"<ol style='margin:6px 0 6px 20px;padding:0'>{''.join(items)}</ol>")
    body.append(f"<div>{_escaped(diagnosis.coverage, SENTENCE)}.</div>")
    rows = _table(
        (_chip(v.status, _left_out(v)), _escaped(v.check), _escaped(v.headline, SENTENCE)) for v in diagnosis.verdicts
    )
    body.append(_details(plural(len(diagnosis.verdicts), "verdict"), rows))
    return _whole(body)


# ------------------------------------------------------------------ pieces
def _left_out(verdict: Verdict) -> str:
    if verdict.status != "skipped":
        return ""
    return "not measured" if verdict.unmeasured else "does not apply"


def _whole(body: Iterable[str]) -> str:
    style = "font-size:13px;line-height:1.45;max-width:900px;overflow-x:auto;color:inherit"
    return f"<div class='ftcheck' style='{style}'>{''.join(body)}</div>"


def _headline(status: str, name: str, text: str) -> str:
    parts = [_chip(status)] * bool(status) + [f"<b>{_escaped(name)}</b>"] * bool(name) + [_escaped(text, SENTENCE)]
    return f"<div style='margin-bottom:4px'>{' '.join(parts)}</div>"


def _chip(status: str, words: str = "") -> str:
    ground = GROUNDS.get(status, GROUNDS["skipped"])
    style = f"background:{ground};color:#fff;border-radius:3px;padding:0 6px;font-weight:bold;white-space:nowrap"
    return f"<span style='{style}'>{_escaped(words or status)}</span>"


def _table(rows: Iterable[Sequence[str]]) -> str:
    lines = [
        "<tr style='background:transparent'>" + "".join(f"<td style='{_CELL}'>{c}</td>" for c in row) + "</tr>"
        for row in rows
    ]
    return (
        f"<table style='border-collapse:collapse;margin:0;border:0;font-size:inherit;color:inherit'>{''.join(lines)}</table>"
        if lines
        else ""
    )


def _bar(layer: chart_data.Layer) -> tuple[str, str, str]:
    used = layer.used if layer.used is not None and math.isfinite(layer.used) else 0.0
    # the full width is the whole budget; a larger share has its number
    width = max(0.0, min(1.0, used)) * WIDTH
    ground = "#d55e00" if layer.part == "head" else "#0072b2"
    frame = f"width:{WIDTH}px;height:10px;border:1px solid rgba(127,127,127,.5);box-sizing:border-box"
    drawn = f"<div style='{frame}'><div style='width:{width:.0f}px;height:8px;background:{ground};max-width:100%'></div></div>"
    share = percent(layer.used) if layer.used is not None else ""
    state = f"<b>{_escaped(layer.state)}</b>" if layer.state else ""
    return _escaped(layer.name), drawn, ": ".join(filter(None, (share, state)))


def _spark(curve: chart_data.Series, label: str) -> str:
    """A curve as a small image in the text's colour; gaps where it is not finite."""
    pieces = polylines(curve, WIDTH, HEIGHT, most=POINTS)
    if not pieces:
        return ""
    drawn = "".join(
        f"<polyline points='{piece}' fill='none' stroke='currentColor' stroke-width='1.5'/>" for piece in pieces
    )
    size = f"width='{WIDTH}' height='{HEIGHT}' viewBox='0 0 {WIDTH} {HEIGHT}'"
    return f"<svg {size} role='img' aria-label='{_escaped(label)}'>{drawn}</svg>"


def _ends(curve: chart_data.Series) -> str:
    known = [y for y in curve.y if y is not None]
    if not known:
        return "-"
    nonfinite = sum(not math.isfinite(y) for y in known)
    return f"{number(known[0])} -> {number(known[-1])}" + (f", {nonfinite:,} not finite" if nonfinite else "")


def _folded(title: str, text: str, *, unfolded: bool = False) -> str:
    style = "font-size:12px;line-height:1.35;overflow-x:auto;margin:4px 0;background:transparent;color:inherit"
    return _details(title, f"<pre style='{style}'>{html.escape(text)}</pre>", unfolded=unfolded)


def _details(title: str, inside: str, *, unfolded: bool = False) -> str:
    return f"<details style='margin-top:6px'{' open' * unfolded}><summary>{_escaped(title)}</summary>{inside}</details>"


def _escaped(text: str, width: int = NAME) -> str:
    """Foreign text as one line: control characters spelled out, shortened; it cannot end an element or an attribute."""
    return html.escape(one_line(text, width), quote=True)
