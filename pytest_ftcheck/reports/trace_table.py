"""A trace as a table in plain text, 80 columns wide: what ``print(trace)`` shows."""

from __future__ import annotations

import math
import sys
import textwrap
from collections import Counter
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

from ..core.formatting import BARS, number, percent, plural, printable, shorten
from .layer_groups import blocks, kinds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..core.observations import ProbeLoss, Tensor
    from ..core.trace import Trace

WIDTH = 80
#: Columns of a label, and of a sparkline.
LABEL = 13
SPARK = 14
#: Head tensors shown one by one; a larger head is shown by block, as the base is.
HEAD_ROWS = 16
#: Blocks shown; of more, the first and the last.
BLOCKS = 40
#: Characters shown of a note or an exception.
LONGEST = 600

#: A table's column: the header's two rows.
Column = tuple[str, str]


def describe(trace: Trace, *, unicode: bool | None = None) -> str:
    """The trace as a text of at most 80 columns.

    :param unicode: draw with block characters; None: if ``sys.stdout`` can print them.

    >>> from pytest_ftcheck.core.example_trace import example_trace
    >>> print(describe(example_trace()).splitlines()[0])
    finetune: 20 optimizer steps in 1.0 s (training: 0.8 s)
    """
    sections = (_header(trace), _course(trace), _head(trace), _base(trace), _remarks(trace))
    text = "\n\n".join("\n".join(lines) for lines in sections if lines)
    if unicode is None:
        return printable(text, getattr(sys.stdout, "encoding", None))
    return text if unicode else printable(text, "ascii")


# ------------------------------------------------------------------ the parts
def _header(trace: Trace) -> list[str]:
    steps, iterations = len(trace.steps), len(trace.iterations)
    head = f"{trace.source}: {plural(steps, 'optimizer step')}"
    if iterations and iterations != steps:
        head += f" from {plural(iterations, 'iteration')}"
    head += f" in {_seconds(trace.seconds)}"
    if trace.training_seconds > 0:
        head += f" (training: {_seconds(trace.training_seconds)})"
    lines = _wrap(head, indent="", hang="  ")

    environment = dict(trace.environment)
    place = [environment.pop("device", ""), environment.pop("dtype", "")]
    place += [f"{key} {value}" for key, value in environment.items()]
    reading = trace.reading
    classes = plural(reading.classes, "class", "classes") if reading.classes else ""
    kind = ", ".join(filter(None, [reading.reader or (reading.task or "").replace("_", " "), classes]))
    trainable = sum(t.trainable for t in trace.tensors)
    weights = sum(t.numel for t in trace.tensors)
    model = f"{plural(len(trace.tensors), 'tensor')} of {plural(weights, 'weight')}"
    if trace.tensors:
        model += f", {trainable:,} trainable" if trainable < len(trace.tensors) else ", all trainable"
    model += f"; head: {_names(trace.head, 4)}"
    optimizer = trace.optimizer
    decays = sorted({g.weight_decay for g in optimizer.groups})
    how = [optimizer.name or "none"]
    if len(optimizer.groups) > 1:
        how.append(f"{len(optimizer.groups):,} parameter groups")
    if decays:
        how.append("weight decay " + " and ".join(f"{d:g}" for d in decays[:4]))
    foreign = sum(g.not_in_model for g in optimizer.groups)
    if foreign:
        how.append(f"{plural(foreign, 'tensor')} that the model does not own")
    if optimizer.other_optimizer_steps:
        how.append(f"{plural(optimizer.other_optimizer_steps, 'step')} by other optimizers")
    for label, value in (
        ("ran on", ", ".join(filter(None, place))),
        ("inputs", reading.inputs),
        ("outputs", f"{reading.outputs} ({kind})" if kind else reading.outputs),
        ("loss", reading.loss),
        ("model", model),
        ("optimizer", ", ".join(how)),
    ):
        if value:
            lines += _wrap(value, indent=f"  {label:<{LABEL}}  ", hang=" " * (LABEL + 4))
    return lines


#: A row of the course: label, first -> last, curve, remark beside it, remark below it.
Row = tuple[str, str, str, str, str]


def _course(trace: Trace) -> list[str]:
    """Losses, learning rates and metrics over the steps; one aligned row each."""
    losses = trace.losses
    nonfinite = sum(not math.isfinite(v) for v in losses)
    remark = plural(len(losses), "iteration") + (f", {nonfinite:,} not finite" if nonfinite else "")
    rows: list[Row] = [("training loss", _span(losses), sparkline(losses), remark if losses else "not reported", "")]
    rows += _probe(trace.probe_loss) if trace.probe_loss is not None else ()
    rows += _rates(trace)
    baseline = "mean alone" if trace.reading.task in ("class_probabilities", "regression") else "majority class"
    for metric in trace.metrics:
        source = metric.source if metric.source.endswith(" rows") else f"rows ({metric.source})"
        remarks = [f"{metric.rows:,} {source}" if metric.rows else metric.source]
        if metric.p_value is not None:
            remarks.append(f"p {metric.p_value:.2g}")
        if len(metric.predicted) > 1 and sum(n > 0 for n in metric.predicted) == 1:
            remarks.append("all predicted as one class")
        beside = f"{baseline} {number(metric.baseline)}" if metric.baseline is not None else ""
        rows.append((metric.name, _span((metric.first, metric.last)), "", beside, ", ".join(remarks)))

    label = min(LABEL + 3, max(LABEL, *(len(r[0]) for r in rows)))
    # a row without a curve and a remark is running text
    values = max((len(r[1]) for r in rows if r[2] or r[3]), default=0)
    curve = max(len(r[2]) for r in rows)
    lines = [f"  {'':<{label}}  first -> last"]
    for name, span, spark, beside, below in rows:
        start = f"  {_name(name, label):<{label}}  "
        if spark or beside:
            start += f"{span:<{values}}  {spark:<{curve}}  "
        lines += _wrap(beside or ("" if spark else span), indent=start, hang=" " * len(start))
        if below:
            lines += _wrap(below, indent=" " * (label + 4), hang=" " * (label + 4))
    return lines


def _probe(probe: ProbeLoss) -> Iterable[Row]:
    losses = [p.loss for p in probe.points]
    if losses:
        beside = f"class prior {number(probe.prior_entropy)}" if probe.prior_entropy is not None else ""
        below = f"{plural(probe.rows, 'row')} ({probe.source}), dropout off"
        yield "probe loss", _span(losses), sparkline(losses), beside, below
    else:
        yield "probe loss", f"not taken: {probe.skipped or 'no reason given'}", "", "", ""
    if probe.descents:
        fell = sum(d.after < d.before for d in probe.descents)
        steps = plural(len(probe.descents), "step")
        yield "same batch", f"{fell:,} of {steps} lowered the loss of their own batch, dropout off", "", "", ""


def _rates(trace: Trace) -> Iterable[Row]:
    groups = trace.optimizer.groups
    for group in groups[:6]:
        rates = [s.lrs[group.index] for s in trace.steps if group.index < len(s.lrs)]
        yield (
            "learning rate" if len(groups) == 1 else f"lr of group {group.index}",
            f"{number(group.lr_first, 2)} -> {number(rates[-1], 2)}" if rates else "-",
            sparkline(rates),
            f"peak {number(group.lr_peak, 2)}, sum {number(group.lr_sum)}",
            "",
        )
    if len(groups) > 6:
        yield "...", "", "", f"and {len(groups) - 6:,} more groups", ""


_LEGEND = (
    "of LR sum: displacement over the sum of the learning rates: rms of the part that gradients caused, and "
    "the largest of all."
)
_LEGENDS = {
    "adam": " Adam moves a weight by about one learning rate a step, seldom more.",
    "sgd": " SGD moves a weight by lr * |gradient|, so the sum is no limit here.",
}


def _head(trace: Trace) -> list[str]:
    tensors = [t for t in trace.tensors if t.part == "head"]
    if not tensors:
        return []
    if len(tensors) > HEAD_ROWS:
        return _folded("head", tensors)
    columns: list[Column] = [
        ("", "shape"),
        ("moved", ""),
        ("rel.", "L2"),
        ("of LR sum", "rms"),
        ("", "max"),
        ("|g|", "max"),
    ]
    columns += [("std", "first"), ("", "last")]
    cells = [
        [
            _name("x".join(str(n) for n in t.shape) or "scalar", 20),
            percent(t.motion.share_changed),
            percent(t.motion.relative),
            percent(t.budget_used),
            percent(t.motion.largest / t.lr_sum if t.lr_sum > 0 else None),
            number(t.gradients.max_norm, 2),
            number(t.first.std),
            number(t.last.std),
        ]
        for t in tensors
    ]
    names = [_name(t.name, WIDTH - 4) for t in tensors]
    remarks = [_remark(t) for t in tensors]
    longest = max(len(n) for n in names)
    inline = _widths(columns, cells)
    if 2 + longest + sum(w + 2 for w in inline) <= WIDTH:
        return _grid("head", longest, names, columns, cells, remarks)
    # long names get a line of their own, with the shape, and the numbers follow below
    columns, shapes, cells = columns[1:], [c[0] for c in cells], [c[1:] for c in cells]
    room = WIDTH - 2 - sum(w + 2 for w in _widths(columns, cells))
    return _grid("head", max(4, min(20, room)), names, columns, cells, remarks, shapes=shapes)


def _base(trace: Trace) -> list[str]:
    tensors = [t for t in trace.tensors if t.part != "head"]
    lines = _folded("base", tensors) if tensors else []
    if trace.tensors:
        legend = _LEGEND + _LEGENDS.get(trace.optimizer.family, "")
        if any(t.motion.elements < t.numel for t in trace.tensors):
            legend += " Large tensors: a fixed random sample of their elements."
        lines += ([""] if lines else []) + _wrap(legend, indent="  ", hang="  ")
    return lines


def _folded(title: str, tensors: Sequence[Tensor]) -> list[str]:
    """One row a block."""
    folded = blocks(tensors)
    columns: list[Column] = [("", "trainable"), ("moved", "min"), ("", "max"), ("of LR sum, rms", "min"), ("", "max")]
    columns.append(("|g|", "max"))
    cells, remarks = [], []
    for members in folded.values():
        moving = [t for t in members if t.trainable or t.motion.share_changed > 0]
        used = [t.budget_used for t in moving if t.budget_used is not None]
        moved = [t.motion.share_changed for t in moving]
        cells.append(
            [
                f"{sum(t.trainable for t in members):,} of {len(members):,}",
                *(percent(v) for v in _ends(moved)),
                *(percent(v) for v in _ends(used)),
                number(max((t.gradients.max_norm for t in moving), key=_nan_first, default=None), 2),
            ]
        )
        count = Counter(chain.from_iterable(kinds(t) for t in members))
        remarks.append(", ".join(f"{n:,} of {len(members):,}: {kind}" for kind, n in count.items() if kind != "frozen"))
    room = WIDTH - 2 - sum(w + 2 for w in _widths(columns, cells))
    names = [_name(n, max(8, room)) for n in folded]
    left_out = len(names) - BLOCKS
    if left_out > 1:
        half = BLOCKS // 2
        names = [*names[:half], f"... {left_out:,} more blocks ...", *names[-half:]]
        names[half] = shorten(names[half], max(8, room))
        cells = [*cells[:half], [""] * len(columns), *cells[-half:]]
        remarks = [*remarks[:half], "", *remarks[-half:]]
    return _grid(title, max(len(n) for n in names), names, columns, cells, remarks)


def _remarks(trace: Trace) -> list[str]:
    lines = []
    if trace.stopped:
        lines += _wrap(f"stopped early: {trace.stopped}", indent="  ", hang="    ")
    if trace.backward_error:
        lines += _wrap(f"backward could not run: {trace.backward_error}", indent="  ", hang="    ")
    changed = [b for b in trace.buffers if not b.unchanged]
    if changed:
        names = [f"{_name(b.name, 60)}{' (of a frozen module)' if b.frozen else ''}" for b in changed]
        text = f"buffers changed: {len(changed):,} of {len(trace.buffers):,}: {_names(names, 6)}"
        lines += _wrap(text, indent="  ", hang="    ")
    for note in trace.notes:
        lines += _wrap(f"note: {note}", indent="  ", hang="    ")
    return lines


# ------------------------------------------------------------------ peculiarities
def _remark(t: Tensor) -> str:
    found = list(kinds(t))
    if t.aliases:
        found.append(f"tied to {_names(t.aliases, 3)}")
    return ", ".join(found)


# ------------------------------------------------------------------ drawing
def sparkline(values: Sequence[float], width: int = SPARK) -> str:
    """A series in a few characters, ``x`` where it was not finite.

    >>> sparkline([3.0, 2.0, 1.0, float("nan")])
    '█▅▁x'
    """
    if not values:
        return ""
    cuts = [round(i * len(values) / width) for i in range(width + 1)] if len(values) > width else range(len(values) + 1)
    means = []
    for start, end in pairwise(cuts):
        part = values[start:end]
        # scaled before adding, so that a diverged run does not overflow
        means.append(sum(v / len(part) for v in part) if all(map(math.isfinite, part)) else math.nan)
    finite = [m for m in means if math.isfinite(m)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)

    def bar(mean: float) -> str:
        if not math.isfinite(mean):
            return "x"
        if high == low:
            return BARS[3]
        # halves: the range itself may overflow
        return BARS[min(7, max(0, round(7 * ((mean / 2 - low / 2) / (high / 2 - low / 2)))))]

    # denormal ranges vanish when halved
    return "".join(map(bar, means)) if high / 2 - low / 2 > 0 or high == low else BARS[3] * len(means)


def _widths(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> list[int]:
    widths = [max(len(c[1]), *(len(row[i]) for row in cells)) for i, c in enumerate(columns)]
    for i, (top, _) in enumerate(columns):
        # a title may reach over the next column if that has none of its own
        room = widths[i] + (2 + widths[i + 1] if i + 1 < len(columns) and not columns[i + 1][0] else 0)
        widths[i] += max(0, len(top) - room)
    return widths


def _grid(
    title: str,
    name_width: int,
    names: Sequence[str],
    columns: Sequence[Column],
    cells: Sequence[Sequence[str]],
    remarks: Sequence[str],
    *,
    shapes: Sequence[str] | None = None,
) -> list[str]:
    """A table under a header of two rows. With ``shapes``, names and shapes stand above their numbers."""
    widths = _widths(columns, cells)
    margin = 2 + name_width

    def row(texts: Sequence[str]) -> str:
        return "".join("  " + t.rjust(w) for t, w in zip(texts, widths, strict=True))

    top, i = "", 0
    while i < len(columns):
        pair = bool(columns[i][0]) and i + 1 < len(columns) and not columns[i + 1][0] and bool(columns[i + 1][1])
        room = widths[i] + (2 + widths[i + 1] if pair else 0)
        top += "  " + (columns[i][0].center(room) if pair else columns[i][0].rjust(room))
        i += 2 if pair else 1
    lines = [(title.ljust(margin) + top).rstrip(), (" " * margin + row([c[1] for c in columns])).rstrip()]
    for k, (name, texts, remark) in enumerate(zip(names, cells, remarks, strict=True)):
        if shapes is None:
            lines.append(f"  {name:<{name_width}}{row(texts)}".rstrip())
        else:
            beside = 2 + len(name) + 2 + len(shapes[k]) <= WIDTH
            lines.append(f"  {name}  {shapes[k]}" if beside else f"  {name}")
            lines.append((" " * margin + row(texts)).rstrip())
        if remark:
            lines += _wrap(f"^ {remark}", indent="    ", hang="      ")
    return lines


def _wrap(text: str, *, indent: str, hang: str) -> list[str]:
    short = _name(" ".join(text.split()), LONGEST)
    return textwrap.wrap(short, WIDTH, initial_indent=indent, subsequent_indent=hang, break_on_hyphens=False) or [
        indent.rstrip()
    ]


def _name(name: str, width: int) -> str:
    return shorten("".join(c if c.isprintable() else "?" for c in name), width)


def _names(names: Sequence[str], most: int) -> str:
    listed = ", ".join(_name(n, 60) for n in names[:most])
    return f"{listed} and {len(names) - most:,} more" if len(names) > most else listed or "none"


def _span(values: Sequence[float]) -> str:
    return f"{number(values[0])} -> {number(values[-1])}" if values else "-"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if math.isfinite(seconds) and seconds < 1e5 else f"{number(seconds)} s"


def _nan_first(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _ends(values: Sequence[float]) -> tuple[Any, Any]:
    """Smallest and largest; a NaN counts as the largest, so that it is shown."""
    return (min(values, key=_nan_first), max(values, key=_nan_first)) if values else (None, None)
