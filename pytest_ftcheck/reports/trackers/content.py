"""What every tracker shows of a trace: scalars by tag and step, histograms, settings, texts.

Steps count optimizer steps from 1; 0 is before the run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...core import formatting
from ...core.formatting import one_line, shorten
from ...core.trace_writer import Setting
from .. import chart_data
from ..run_metrics import run_metrics
from ..trace_table import describe
from ..weight_motion import explain_weight_motion

if TYPE_CHECKING:
    from ...checks.diagnosis import Diagnosis
    from ...core.observations import Histogram, Tensor
    from ...core.trace import Trace

#: Trackers sort by name: the head comes first.
GROUPS = {"head": "head", "base": "the_base"}


def scalars(trace: Trace, *, tensors: bool = True) -> Iterator[tuple[str, float, int]]:
    """Every scalar: tag, value and step.

    :param tensors: also those of each tensor; else only those of the head and of the base's blocks.

    >>> from pytest_ftcheck.core.example_trace import example_trace
    >>> next(scalars(example_trace()))
    ('loss/train', 0.7, 1)
    """
    yield from _losses(trace)
    for s, step in enumerate(trace.steps):
        for group, lr in enumerate(step.lrs):
            yield f"lr/group_{group}", lr, s + 1
        yield "gradient/norm", step.grad_norm, s + 1
        if step.grad_norm_unclipped is not None:
            yield "gradient/norm_unclipped", step.grad_norm_unclipped, s + 1
    for group_name, lines in (("gradient_by_block", chart_data.gradients(trace)), ("motion", chart_data.course(trace))):
        for curve in lines.series:
            if curve.kind in ("head", "base"):
                tag = f"{group_name}/{clean(curve.name)}"
                for x, y in zip(curve.x, curve.y, strict=True):
                    if y is not None:
                        yield tag, y, int(x)
    for metric in trace.metrics:
        for x, value in ((0, metric.first), (len(trace.steps), metric.last)):
            yield f"metric/{clean(metric.name)}", value, x
            if metric.baseline is not None:
                yield f"metric/{clean(metric.name)}_baseline", metric.baseline, x
    if tensors:
        yield from _of_tensors(trace)


def _losses(trace: Trace) -> Iterator[tuple[str, float, int]]:
    # the batches of one optimizer step are one point, for the axis counts steps
    losses_at: dict[int, list[float]] = {}
    for place, iteration in zip(chart_data.positions(trace), trace.iterations, strict=True):
        if iteration.loss is not None:
            losses_at.setdefault(math.ceil(place), []).append(iteration.loss)
    for x, losses in losses_at.items():
        yield "loss/train", sum(v / len(losses) for v in losses), x
    if trace.probe_loss is not None:
        for point in trace.probe_loss.points:
            yield "loss/probe", point.loss, point.step
            if trace.probe_loss.prior_entropy is not None:
                yield "loss/class_prior", trace.probe_loss.prior_entropy, point.step


def _of_tensors(trace: Trace) -> Iterator[tuple[str, float, int]]:
    for t, tag in tags(trace):
        for name, values in (
            ("gradient_norm", t.grad_norms),
            ("update_rms", t.updates),
            ("displacement_rms", t.displacements),
        ):
            for s, value in zip(trace.recorded, values, strict=False):
                if value < 0:  # no gradient at that step: a gap in the curve
                    continue
                yield f"{tag}/{name}", value, s + 1
        for s, value, budget in zip(trace.recorded, t.displacements, chart_data.budgets(trace, t), strict=False):
            if budget > 0:
                yield f"{tag}/displacement_over_lr_sum", value / budget, s + 1


def tags(trace: Trace) -> list[tuple[Tensor, str]]:
    """Each tensor with its tag, the head's first; no two alike, whatever the names.

    >>> from pytest_ftcheck.core.example_trace import example_trace
    >>> [tag for _, tag in tags(example_trace())][:2]
    ['head/classifier.weight', 'head/classifier.bias']
    """
    ordered = sorted(trace.tensors, key=lambda t: t.part != "head")
    used: set[str] = set()
    result = []
    for t in ordered:
        plain = tag = f"{GROUPS.get(t.part, t.part)}/{clean(t.name)}"
        number = 2
        while tag in used:
            tag, number = f"{plain}_{number}", number + 1
        used.add(tag)
        result.append((t, tag))
    return result


def histograms(trace: Trace, *, tensors: bool = True) -> Iterator[tuple[str, int, Histogram]]:
    """Every histogram that has values: tag, step and the histogram itself.

    :param tensors: of all tensors; else of the head's only.

    >>> from pytest_ftcheck.core.example_trace import example_trace
    >>> list(histograms(example_trace()))
    []
    """
    for t, tag in tags(trace):
        if tensors or t.part == "head":
            for h in t.histograms:
                if sum(h.counts) and math.isfinite(h.low) and math.isfinite(h.high):
                    yield f"{tag}/weights", h.step + 1, h


def results(trace: Trace, diagnosis: Diagnosis) -> dict[str, float]:
    """The run in a few numbers (:func:`pytest_ftcheck.reports.run_metrics.run_metrics`), and how many checks judged it, failed, or were
    left out; by tag.

    >>> from pytest_ftcheck import diagnose, example_trace
    >>> results(example_trace(), diagnose(example_trace()))["result/loss.final"]
    0.32
    """
    return {
        "result/checks_failed": float(len(diagnosis.having("fail"))),
        "result/checks_judged": float(len(diagnosis.judged)),
        "result/checks_not_measured": float(len(diagnosis.not_measured)),
        **{f"result/{clean(name)}": value for name, value in run_metrics(trace).items()},
    }


def settings(trace: Trace, diagnosis: Diagnosis) -> dict[str, Setting]:
    """The run's status and first cause, and its hyper-parameters: a row in a tracker's table of runs.

    >>> from pytest_ftcheck import diagnose, example_trace
    >>> found = settings(example_trace(), diagnose(example_trace()))
    >>> found["status"], found["lr"], found["optimizer"]
    ('healthy', 5e-05, 'AdamW')
    """
    causes = diagnosis.causes
    found: dict[str, Setting] = {
        "status": diagnosis.status,
        "cause": one_line(causes[0].title, 120) if causes else "none",
        "not_measured": one_line(", ".join(v.check for v in diagnosis.not_measured), 400) or "none",
    }
    for name, value in trace.recipe_in_force.items():
        found[name] = "none" if value is None else value
    groups = trace.optimizer.groups
    found["optimizer"] = one_line(trace.optimizer.name, 80) or "none"
    if groups:  # the values in effect, not those of the recipe
        found["lr"] = float(max(g.lr_peak for g in groups))
        found["weight_decay"] = float(max(g.weight_decay for g in groups))
    found["steps"] = len(trace.steps)
    found["source"] = trace.source
    found["head"] = one_line(", ".join(trace.head), 120) or "none"
    for name in ("device", "dtype"):
        if trace.environment.get(name) and found.get(name) in (None, "none"):
            found[name] = one_line(trace.environment[name], 80)
    return found


def texts(trace: Trace, diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    """Name and text: the trace as a table, the diagnosis, and whether the weights should have moved more.

    >>> from pytest_ftcheck import diagnose, example_trace
    >>> [name for name, _ in texts(example_trace(), diagnose(example_trace()))]
    ['trace', 'diagnosis', 'should_the_weights_move_more']
    """
    yield "trace", formatting.clean(describe(trace, unicode=True))
    yield "diagnosis", str(diagnosis)
    if trace.tensors:
        yield "should_the_weights_move_more", formatting.clean(explain_weight_motion(trace))


def clean(name: str) -> str:
    """A name as one segment of a tag: letters, digits, ``-``, ``_`` and dots, 200 characters at most; a slash would open another group.

    >>> clean("a b/c"), clean("..")
    ('a_b_c', '__')
    """
    plain = re.sub(r"[^-\w.]", "_", name)
    # dots alone would be another folder in a file store
    return shorten(plain if plain.strip(".") else "_" * len(plain) or "_", 200).replace("…", "__")
