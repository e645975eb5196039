"""Does the training diverge, or collapse to one output?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...core.formatting import at_iterations, number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Fault, Stage, Symptom, check
from . import faults
from .record import OF_CLASSES, LossShape

#: Peak of the training losses over the first one (or over the loss of a uniform prediction) that is a fault if the run learns nothing in
#: the end. The healthy runs measured stay below 2, single batches of 4 included.
SPIKE = 5.0
#: A peak after which the weights are far from the initial ones, whatever the loss does later.
EXPLOSION = 50.0
#: The final loss over the first that is a divergence.
RISE = 1.5
#: Spread of the logits over the rows, after over before, that is a collapse to one output. Healthy runs: 0.76 or more, slow ones too.
COLLAPSE = 0.02
#: Training losses that fall to this share of the first within `FAST` iterations are suspicious.
SUSPICIOUS, FAST = 0.01, 5
#: A BatchNorm over two values returns +-1 whatever they were.
PAIR = 2
_MEASURED = "training losses; losses and logits of the probe rows before and after, dropout off"


@check(
    stage=Stage.OUTCOME,
    position=2,
    faults=(
        faults.BATCHNORM_TINY_BATCH,
        faults.DIVERGED,
        faults.LOSS_NOT_FINITE,
        faults.COLLAPSED,
    ),
    shows=(Symptom.OUTCOME,),
)
def check_loss_stable(trace: Trace) -> Verdict:
    """The training neither diverges nor collapses to one output.

    Every loss is compared with the first, or with that of a uniform prediction, never with an early mean, which a spike would raise.
    Fails if the loss exploded (also if it came back: the weights are no longer those of before), if it ended far above its start, if the
    rows' logits became equal during training, or if a BatchNorm normalises over two values. Noise of small batches passes.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_loss_stable(example_trace()))
    loss_stable: pass. The training loss never rose above 1.00 times its first value, 0.700.
    """
    losses = trace.losses
    points = trace.probe_loss.points if trace.probe_loss is not None else ()
    if len(losses) < 2 and len(points) < 2:
        return Verdict("loss_stable", "skipped", "Fewer than two training losses were recorded, and there is no probe.")
    for find in (
        _find_not_finite,
        _find_collapse,
        _find_explosion,
        _find_divergence,
        _find_tiny_batch,
        _find_fast_fall,
    ):
        if (verdict := find(trace)) is not None:
            return verdict
    if len(losses) < 2:
        headline = f"The probe loss ended at {number(points[-1].loss, 4)}."
    elif losses[0] > 0:
        ratio = number(max(losses) / losses[0])
        headline = f"The training loss never rose above {ratio} times its first value, {number(losses[0])}."
    else:
        headline = f"The training loss stayed between {number(min(losses))} and {number(max(losses))}."
    return Verdict("loss_stable", "pass", headline)


def _fail(fault: Fault, headline: str, limit: str, evidence: Sequence[Mapping[str, Any]] = ()) -> Verdict:
    return fault.verdict("loss_stable", headline, evidence=tuple(evidence), limit=limit, measured=_MEASURED)


def _learning_rate(trace: Trace) -> str:
    peak = max((g.lr_peak for g in trace.optimizer.groups), default=0.0)
    return f"{trace.optimizer.name} at {number(peak)}"


def _start(trace: Trace) -> float | None:
    """Where the run began, in the units of the training loss: the largest of its first losses and that of a uniform prediction."""
    first = next((v for v in trace.losses[:1] if math.isfinite(v)), None)
    if first is None:
        return None
    candidates = [abs(first)]
    if trace.reading.task in OF_CLASSES:
        shape = trace.measured(LossShape)
        scale = shape.scale if shape is not None and shape.known else None
        classes = 2 if trace.reading.task == "multi_label" else max(2, trace.reading.classes or 2)
        candidates.append((scale if scale and scale > 0 else 1.0) * math.log(classes))
    if trace.probe_loss is not None and trace.probe_loss.points and math.isfinite(trace.probe_loss.points[0].loss):
        candidates.append(abs(trace.probe_loss.points[0].loss))
    start = max(candidates)
    return start if start > 0 else None


def _find_not_finite(trace: Trace) -> Verdict | None:
    losses = trace.losses_by_iteration
    bad = [i for i, v in losses.items() if not math.isfinite(v)]
    if not bad and (trace.probe_loss is None or all(math.isfinite(p.loss) for p in trace.probe_loss.points)):
        return None
    if (bad and bad == [*losses]) or (
        trace.probe_loss is not None and trace.probe_loss.points and not math.isfinite(trace.probe_loss.points[0].loss)
    ):
        where = "from the start, before any instability"
    else:
        where = at_iterations(bad, [*losses]) if bad else "on the probe, after training"
    start = _start(trace)
    peak = max((v for v in trace.losses if math.isfinite(v)), default=0.0)
    grew = start is not None and peak > SPIKE * start
    diverged = faults.DIVERGED.with_details(learning_rate=_learning_rate(trace))
    return _fail(
        diverged if grew else faults.LOSS_NOT_FINITE,
        f"The loss is not finite {where}{f', after a peak of {number(peak)}' if grew else ''}.",
        "every loss is finite",
        _curve(trace),
    )


def _find_explosion(trace: Trace) -> Verdict | None:
    start = _start(trace)
    if start is None or len(trace.losses) < 2 or trace.reading.task in (None, "embedding"):
        return None
    peak = max(trace.losses)
    at, ratio = trace.losses.index(peak), peak / start
    if at == 0 or ratio < SPIKE or (ratio < EXPLOSION and not _learnt_nothing(trace)):
        return None
    shape = trace.measured(LossShape)
    summed = ", on a loss summed over the rows" if shape is not None and (shape.scale or 0) > 3 else ""
    return _fail(
        faults.DIVERGED.with_details(learning_rate=_learning_rate(trace) + summed),
        f"The training loss rose to {number(peak)} at iteration {at}, {number(ratio)} times where it began ({number(start)}), "
        f"and ended at {number(trace.losses[-1])}.",
        f"a peak below {SPIKE:g} times the start, or below {EXPLOSION:g} times if the run learns in the end; healthy runs stay below 2",
        _curve(trace),
    )


def _learnt_nothing(trace: Trace) -> bool:
    """At the end the loss on the fixed rows is less than 10 % below the start."""
    points = trace.probe_loss.points if trace.probe_loss is not None else ()
    if len(points) < 2:
        return False
    first = points[0].reference if points[0].reference is not None else points[0].loss
    last = points[-1].reference if points[-1].reference is not None else points[-1].loss
    return not last < 0.9 * first


def _find_collapse(trace: Trace) -> Verdict | None:
    shape = trace.measured(LossShape)
    if shape is None or shape.spread_first is None or shape.spread_last is None or not _learnt_nothing(trace):
        return None
    size = max(shape.size_first or 0.0, shape.size_last or 0.0)
    before, after = shape.spread_first, shape.spread_last
    differed = before > 1e-6 * max(size, 1e-3)
    if not differed or after >= COLLAPSE * before or not any(t.motion.share_changed > 0 for t in trace.tensors):
        return None
    return _fail(
        faults.COLLAPSED.with_details(learning_rate=_learning_rate(trace)),
        f"All rows get the same output after training: their logits differ by {number(after)} (standard deviation), and differed by "
        f"{number(before)} before.",
        f"logits keep {percent(COLLAPSE)} of their spread over the rows; in healthy runs it grows, in slow ones it stays",
        [{"rows' logits": when, "spread": number(v)} for when, v in (("before", before), ("after", after))],
    )


def _find_divergence(trace: Trace) -> Verdict | None:
    points = trace.probe_loss.points if trace.probe_loss is not None else ()
    start = _start(trace)
    if len(points) < 2 or start is None or trace.reading.task not in OF_CLASSES:
        return None
    last_quarter = trace.losses[-max(1, len(trace.losses) // 4) :]
    learns = bool(last_quarter) and sum(last_quarter) / len(last_quarter) < 0.9 * trace.losses[0]
    if learns:  # one bad step at the very end of a run that learns
        return None
    first, last = points[0], points[-1]
    # the standard loss has a known scale; both must have risen, because another sound objective may raise one
    rises = [(first.loss, last.loss, start)]
    if first.reference is not None and last.reference is not None:
        uniform = math.log(max(2, trace.reading.classes or 2))
        rises.append((first.reference, last.reference, max(first.reference, uniform)))
    if not all(after > RISE * max(abs(before), least) for before, after, least in rises):
        return None
    rate = _learning_rate(trace)
    return _fail(
        faults.DIVERGED.because(
            f"the learning rate is too high ({rate}), or the steps raise the loss",
            "try a tenth of the learning rate; check the sign of the loss",
        ),
        f"The loss on the same rows rose from {number(first.loss, 4)} to {number(last.loss, 4)}.",
        f"at the end at most {RISE:g} times the start, and {RISE:g} times the loss of a uniform prediction",
        _curve(trace),
    )


def _find_tiny_batch(trace: Trace) -> Verdict | None:
    shape = trace.measured(LossShape)
    if shape is None or shape.norm_values is None or shape.norm_values > PAIR:
        return None
    return _fail(
        faults.BATCHNORM_TINY_BATCH,
        f"{shape.norm_name} (BatchNorm, training mode) normalises over {plural(shape.norm_values, 'value')} a channel: its output is +-1, "
        "and says only which of the two was larger.",
        "more than two values a channel: (a, b) is normalised to (+1, -1) or (-1, +1) whatever a and b are",
    )


def _find_fast_fall(trace: Trace) -> Verdict | None:
    losses, start = trace.losses, _start(trace)
    if start is None or trace.reading.task not in OF_CLASSES or losses[0] < 0.5 * start:
        return None
    early = losses[1 : FAST + 1]
    at = next((i + 1 for i, v in enumerate(early) if 0 <= v < SUSPICIOUS * losses[0]), None)
    if at is None:
        return None
    return Verdict(
        "loss_stable",
        "advice",
        f"The training loss fell from {number(losses[0])} to {number(losses[at])} within {plural(at, 'step')}: suspiciously fast.",
        causes=("the inputs contain the labels, all rows are of one class, or the task is very easy",),
        remedy="look at one batch: is the label, or something derived from it, among the inputs?",
        limit=f"{percent(SUSPICIOUS)} of the first loss within {FAST} iterations",
        measured=_MEASURED,
    )


def _curve(trace: Trace) -> list[dict[str, Any]]:
    """A few training losses: the first, the peak, the last."""
    losses = trace.losses
    if not losses:
        return []
    finite = [(v, i) for i, v in enumerate(losses) if math.isfinite(v)]
    wanted = {0, len(losses) - 1, *([max(finite)[1]] if finite else [])}
    return [{"iteration": i, "training loss": number(losses[i], 4)} for i in sorted(wanted)]
