"""Draw the README's picture from a real run of the founding question: ``python docs/make_picture.py [TRACE.json]``.

Without a saved trace the run is made first (about a minute) and saved beside the picture's folder as ``runs/founding-question.json``.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

import matplotlib as mpl

from pytest_ftcheck import Trace
from pytest_ftcheck.checks.tensor_state import gradient_state, largest_norm
from pytest_ftcheck.core.formatting import block_of

HERE = Path(__file__).parent
INK, FIRST, LAST, PALE = "#222222", "#8a8a8a", "#0b6e99", "#a9d3e3"


def trace_of(path: Path) -> Trace:
    """The saved trace, or a new one."""
    if path.exists():
        return Trace.load(path)
    sys.path.insert(0, str(HERE / "examples"))
    from founding import make_model, news

    from pytest_ftcheck import finetune

    training, held_out = news()
    trace = finetune(make_model, training, eval_batches=held_out, head="classifier", lr=5e-5, steps=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    trace.save(path)
    return trace


def draw(trace: Trace, path: Path) -> None:
    """Left: what the histogram shows. Right: what the elements did, against what the schedule allowed."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 10, "text.color": INK, "axes.edgecolor": INK, "font.family": "sans-serif"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1, 1.25), layout="constrained")
    weight = max((t for t in trace.tensors if t.part == "head"), key=lambda t: t.numel)
    for histogram, colour, width, label in (
        (weight.histograms[0], FIRST, 4.5, f"before: std {weight.first.std:.4f}"),
        (weight.histograms[-1], LAST, 1.5, f"after {len(trace.steps)} steps: std {weight.last.std:.4f}"),
    ):
        bins = len(histogram.counts)
        step = (histogram.high - histogram.low) / bins
        density = [c / sum(histogram.counts) / step for c in histogram.counts]
        left.plot([histogram.low + (i + 0.5) * step for i in range(bins)], density, color=colour, lw=width, label=label)
    left.set(
        title=f"The histogram of {weight.name}\nstands still ...",
        xlabel="weight",
        xticks=[-0.08, -0.04, 0, 0.04, 0.08],
        yticks=[],
    )
    left.legend(frameon=False, fontsize=9, loc="upper left")
    left.set_ylim(0, left.get_ylim()[1] * 1.3)

    largest = largest_norm(trace)
    # matrices: one kind of tensor, so that the bars can be compared
    chosen = [
        t for t in trace.tensors if t.role == "matrix" and gradient_state(t, trace, largest) == "fine" and t.lr_sum > 0
    ]
    rows = [
        (name, list(members))
        for name, members in groupby(chosen, key=lambda t: t.name if t.part == "head" else block_of(t.name))
    ]
    names = [name.replace("transformer.", "") for name, _ in rows]
    used = [sum(100 * (t.budget_used or 0) for t in ts) / len(ts) for _, ts in rows]
    most = [max(100 * t.motion.largest / t.lr_sum for t in ts) for _, ts in rows]
    colours = [LAST if ts[0].part == "head" else PALE for _, ts in rows]
    right.barh(names, used, color=colours)
    right.plot(most, names, "|", color=INK, ms=12, mew=2)
    right.text(most[0] + 2, names[0], "largest element looked at", va="center", fontsize=9)
    right.axvline(100, color=INK, lw=1, ls=":")
    for name, value in zip(names, used, strict=True):
        right.text(value + 1, name, f"{value:.0f} %", va="center", fontsize=9)
    right.invert_yaxis()
    right.set(
        title="... while its elements move,\nby a good part of what the schedule allows",
        xlabel=f"displacement (rms of a matrix) as % of the summed learning rates, {weight.lr_sum:.3g}",
        xlim=(0, 118),
    )
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "runs" / "founding-question.json"
    draw(trace_of(source), HERE / "images" / "founding-question.png")
