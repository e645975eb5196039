"""A trace as TensorBoard event files.

The horizontal axis counts optimizer steps from 1 (training losses: iterations from 1); 0 is before the run.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from ..text import shorten
from .series import budgets
from .terminal import describe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    from torch.utils.tensorboard.writer import SummaryWriter

    from ..trace import Histogram, Tensor, Trace

#: TensorBoard sorts by name, and the head is what one looks for.
GROUPS = {"head": "head", "base": "the_base"}


def write(trace: Trace, directory: str | PathLike[str]) -> None:
    """Write the whole trace as event files into ``directory`` (one directory a run).

    :raises ImportError: the package ``tensorboard`` is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "writing event files needs the package tensorboard: pip install 'pytest-ftcheck[tensorboard]'"
        ) from error
    with SummaryWriter(log_dir=str(directory)) as writer:
        for tag, value, x in scalars(trace):
            writer.add_scalar(tag, value, x)
        for t, tag in tags(trace):
            for histogram in t.histograms:
                _write_histogram(writer, f"{tag}/weights", histogram)
        writer.add_text("trace", f"```\n{describe(trace, unicode=True)}\n```", 0)


def scalars(trace: Trace) -> Iterator[tuple[str, float, int]]:
    """Every scalar of the event files: tag, value and place on the horizontal axis.

    >>> from pytest_ftcheck.trace import example_trace
    >>> next(scalars(example_trace()))
    ('loss/train', 0.7, 1)
    """
    for i, iteration in enumerate(trace.iterations):
        if iteration.loss is not None:
            yield "loss/train", iteration.loss, i + 1
    if trace.probe is not None:
        for point in trace.probe.points:
            yield "loss/probe", point.loss, point.step
            if trace.probe.prior_entropy is not None:
                yield "loss/class_prior", trace.probe.prior_entropy, point.step
    for s, step in enumerate(trace.steps):
        for group, lr in enumerate(step.lrs):
            yield f"lr/group_{group}", lr, s + 1
        yield "gradient/norm", step.grad_norm, s + 1
        if step.grad_norm_unclipped is not None:
            yield "gradient/norm_unclipped", step.grad_norm_unclipped, s + 1
    for metric in trace.metrics:
        for x, value in ((0, metric.first), (len(trace.steps), metric.last)):
            yield f"metric/{_clean(metric.name)}", value, x
            if metric.baseline is not None:
                yield f"metric/{_clean(metric.name)}_baseline", metric.baseline, x
    for t, tag in tags(trace):
        for name, series in (
            ("gradient_norm", t.grad_norms),
            ("update_rms", t.updates),
            ("displacement_rms", t.displacements),
        ):
            for s, value in zip(trace.recorded, series, strict=False):
                if value < 0:  # no gradient at that step: a gap in the curve
                    continue
                yield f"{tag}/{name}", value, s + 1
        for s, value, budget in zip(trace.recorded, t.displacements, budgets(trace, t), strict=False):
            if budget > 0:
                yield f"{tag}/displacement_over_lr_sum", value / budget, s + 1


def tags(trace: Trace) -> list[tuple[Tensor, str]]:
    """Each tensor with its tag, the head's first; no two alike, however long or odd the names."""
    ordered = sorted(trace.tensors, key=lambda t: t.part != "head")
    used: set[str] = set()
    result = []
    for t in ordered:
        plain = tag = f"{GROUPS.get(t.part, t.part)}/{shorten(_clean(t.name), 200).replace('…', '__')}"
        number = 2
        while tag in used:
            tag, number = f"{plain}_{number}", number + 1
        used.add(tag)
        result.append((t, tag))
    return result


def _clean(name: str) -> str:
    # the characters that SummaryWriter keeps, less the slash, which would open another group
    return re.sub(r"[^-\w.]", "_", name)


def _write_histogram(writer: SummaryWriter, tag: str, histogram: Histogram) -> None:
    low, high, counts = histogram.low, histogram.high, histogram.counts
    total = sum(counts)
    if not total or not (math.isfinite(low) and math.isfinite(high)):
        return
    width = (high - low) / len(counts)
    # TensorBoard drops empty bins at the ends, and takes min and max as the outer edges of what is left
    first = next(i for i, c in enumerate(counts) if c)
    last = next(i for i in reversed(range(len(counts))) if counts[i])
    middles = [low + (i + 0.5) * width for i in range(len(counts))]
    writer.add_histogram_raw(
        tag,
        min=low + first * width,
        max=high if last == len(counts) - 1 else low + (last + 1) * width,
        num=total,
        sum=math.fsum(c * m for c, m in zip(counts, middles, strict=True)),
        # values spread evenly over a bin have a mean square of middle^2 + width^2 / 12
        sum_squares=math.fsum(c * (m * m + width * width / 12) for c, m in zip(counts, middles, strict=True)),
        bucket_limits=[*(low + (i + 1) * width for i in range(len(counts) - 1)), high],
        bucket_counts=list(counts),
        global_step=histogram.step + 1,
    )
