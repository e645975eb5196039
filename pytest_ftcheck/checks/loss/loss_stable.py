"""The training does not blow up, and does not collapse to one answer."""

from __future__ import annotations

import math
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, Symptom, check
from . import faults
from .record import LossShape

#: Peak of the training losses over the first one (or over knowing nothing) that no healthy run reached and came back from for nothing:
#: the healthy ones measured stay below 2, single batches of 4 included.
SPIKE = 5.0
#: A peak after which the weights are others, whatever the loss does later.
EXPLOSION = 50.0
#: The final loss over the first that is a divergence.
RISE = 1.5
#: Spread of the logits over the rows, after over before, that is a collapse to one answer. Healthy runs: 0.76 or more, slow ones too.
COLLAPSE = 0.02
#: Training losses that fall to this share of the first within `FAST` iterations are worth a remark.
SUSPICIOUS, FAST = 0.01, 5
#: A BatchNorm over two values gives +-1 whatever they were.
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
    """The training does not blow up, and does not collapse to one answer.

    Every loss is compared with the first, or with what knowing nothing scores, never with an early mean in which a spike hides. Fails
    if the loss exploded on the way (also where it came back: the weights are not those of before), if it ended far above its start, if
    all rows get the same logits that did not before, or if a BatchNorm normalises over two values. Noise of small batches passes.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_loss_stable(example_trace()))
    loss_stable: pass. The training loss never rose above 1.00 times its first value, 0.700.
    """
    losses = trace.losses
    points = trace.probe.points if trace.probe is not None else ()
    if len(losses) < 2 and len(points) < 2:
        return Verdict("loss_stable", "skipped", "Fewer than two losses were told, and there is no probe.")
    for judge in (_not_finite, _collapsed, _exploded, _diverged, _pairs, _fast):
        if (found := judge(trace)) is not None:
            return found
    if len(losses) < 2:
        said = f"The probe loss ended at {number(points[-1].loss, 4)}."
    elif losses[0] > 0:
        said = f"The training loss never rose above {number(max(losses) / losses[0])} times its first value, {number(losses[0])}."
    else:
        said = f"The training loss stayed between {number(min(losses))} and {number(max(losses))}."
    return Verdict("loss_stable", "pass", said)


def _fail(headline: str, fault: str, cause: str, remedy: str, limit: str, rows: Any = ()) -> Verdict:
    return Verdict("loss_stable", "fail", headline, tuple(rows), limit, (cause,), remedy, _MEASURED, fault=fault)


def _rates(trace: Trace) -> str:
    peak = max((g.lr_peak for g in trace.optimizer.groups), default=0.0)
    return f"{trace.optimizer.name} at a learning rate of {number(peak)}"


def _start(trace: Trace) -> float | None:
    """The loss of knowing nothing, in the units of the training loss: the largest of what the run began with and what theory says."""
    first = next((v for v in trace.losses[:1] if math.isfinite(v)), None)
    if first is None:
        return None
    candidates = [abs(first)]
    if trace.reading.task in ("single_label", "multi_label"):
        shape = trace.measured(LossShape)
        scale = shape.scale if shape is not None and shape.known else None
        classes = 2 if trace.reading.task == "multi_label" else max(2, trace.reading.classes or 2)
        candidates.append((scale if scale and scale > 0 else 1.0) * math.log(classes))
    if trace.probe is not None and trace.probe.points and math.isfinite(trace.probe.points[0].loss):
        candidates.append(abs(trace.probe.points[0].loss))
    start = max(candidates)
    return start if start > 0 else None


def _not_finite(trace: Trace) -> Verdict | None:
    losses = trace.losses
    bad = next((i for i, v in enumerate(losses) if not math.isfinite(v)), None)
    if bad is None and (trace.probe is None or all(math.isfinite(p.loss) for p in trace.probe.points)):
        return None
    if bad == 0 or (trace.probe is not None and trace.probe.points and not math.isfinite(trace.probe.points[0].loss)):
        where = "from the start: it is not a matter of stability"
    else:
        where = f"from iteration {bad} on" if bad is not None else "on the probe, after training"
    finite = [v for v in losses if math.isfinite(v)]
    start = _start(trace)
    peak = max(finite, default=0.0)
    grew = start is not None and peak > SPIKE * start
    return _fail(
        f"The loss is not finite {where}{f', after a peak of {number(peak)}' if grew else ''}.",
        "diverged" if grew else "loss_not_finite",
        f"the run diverged: {_rates(trace)} is too high"
        if grew
        else "overflow, log(0) or division by zero; assert_all_finite names the first bad tensor",
        "try a tenth of the learning rate, a warm-up, clipping" if grew else "see assert_all_finite",
        "every loss is finite",
        _curve(trace),
    )


def _exploded(trace: Trace) -> Verdict | None:
    start = _start(trace)
    if start is None or len(trace.losses) < 2 or trace.reading.task is None:
        return None
    peak = max(trace.losses)
    at, times = trace.losses.index(peak), peak / start
    if at == 0 or times < SPIKE or (times < EXPLOSION and not _in_vain(trace)):
        return None
    shape = trace.measured(LossShape)
    return _fail(
        f"The training loss rose to {number(peak)} at iteration {at}, {number(times)} times where it began ({number(start)}), "
        f"and ended at {number(trace.losses[-1])}.",
        "diverged",
        f"the steps are too long: {_rates(trace)}"
        + (", on a loss summed over the rows" if shape is not None and (shape.scale or 0) > 3 else ""),
        "try a tenth of the learning rate; a warm-up and clipping (max_norm=1) help",
        f"a peak of {EXPLOSION:g} times the start, or of {SPIKE:g} times and nothing learnt at the end; healthy runs stay below 2",
        _curve(trace),
    )


def _in_vain(trace: Trace) -> bool:
    """At the end the fixed rows score no better than at the start, or than knowing nothing."""
    points = trace.probe.points if trace.probe is not None else ()
    if len(points) < 2:
        return False
    first = points[0].reference if points[0].reference is not None else points[0].loss
    last = points[-1].reference if points[-1].reference is not None else points[-1].loss
    return not last < 0.9 * first


def _collapsed(trace: Trace) -> Verdict | None:
    shape = trace.measured(LossShape)
    if shape is None or shape.spread_first is None or shape.spread_last is None or not _in_vain(trace):
        return None
    size = max(shape.size_first or 0.0, shape.size_last or 0.0)
    before, after = shape.spread_first, shape.spread_last
    if (
        before <= 1e-6 * max(size, 1e-3)
        or after >= COLLAPSE * before
        or not any(t.motion.share_changed > 0 for t in trace.tensors)
    ):
        return None
    return _fail(
        f"All rows get the same answer after training: their logits differ by {number(after)} (standard deviation), where they differed by "
        f"{number(before)} before.",
        "collapsed",
        f"the network collapsed to one constant prediction: {_rates(trace)} is too high for it, and units saturated or died",
        "try a hundredth of the learning rate, with a warm-up",
        f"logits keep {percent(COLLAPSE)} of their spread over the rows; in healthy runs it grows, in slow ones it stays",
        [{"rows' logits": when, "spread": number(v)} for when, v in (("before", before), ("after", after))],
    )


def _diverged(trace: Trace) -> Verdict | None:
    points = trace.probe.points if trace.probe is not None else ()
    start = _start(trace)
    if len(points) < 2 or start is None or trace.reading.task not in ("single_label", "multi_label"):
        return None
    quarter = trace.losses[-max(1, len(trace.losses) // 4) :]
    if (
        quarter and sum(quarter) / len(quarter) < 0.9 * trace.losses[0]
    ):  # one bad step at the very end of a run that learns
        return None
    first, last = points[0], points[-1]
    # the textbook loss tells for a loss of any scale; both must have risen, for another sound objective may raise one
    pairs = [(first.loss, last.loss, start)]
    if first.reference is not None and last.reference is not None:
        pairs.append(
            (first.reference, last.reference, max(first.reference, math.log(max(2, trace.reading.classes or 2))))
        )
    if not all(b > RISE * max(abs(a), s) for a, b, s in pairs):
        return None
    return _fail(
        f"The loss on the same rows rose from {number(first.loss, 4)} to {number(last.loss, 4)}.",
        "diverged",
        f"the steps are too long ({_rates(trace)}), or lead uphill",
        "try a tenth of the learning rate; check the sign of the loss",
        f"at the end at most {RISE:g} times the start, and knowing nothing",
        _curve(trace),
    )


def _pairs(trace: Trace) -> Verdict | None:
    shape = trace.measured(LossShape)
    if shape is None or shape.norm_values is None or shape.norm_values > PAIR:
        return None
    return _fail(
        f"{shape.norm_name} (BatchNorm, training mode) normalises over {plural(shape.norm_values, 'value')} a channel: what comes out "
        "is +-1, and all that is left is which of the two was larger.",
        "batchnorm_tiny_batch",
        f"batches of {shape.norm_values} rows in front of BatchNorm: training sees another function than evaluation",
        "use LayerNorm or GroupNorm, larger batches, or put the BatchNorm into eval mode",
        "more than two values a channel: (a, b) is normalised to (+1, -1) or (-1, +1) whatever a and b are",
    )


def _fast(trace: Trace) -> Verdict | None:
    losses, start = trace.losses, _start(trace)
    if start is None or trace.reading.task not in ("single_label", "multi_label") or losses[0] < 0.5 * start:
        return None
    early = losses[1 : FAST + 1]
    at = next((i + 1 for i, v in enumerate(early) if 0 <= v < SUSPICIOUS * losses[0]), None)
    if at is None:
        return None
    return Verdict(
        "loss_stable",
        "advice",
        f"The training loss fell from {number(losses[0])} to {number(losses[at])} within {plural(at, 'step')}: suspiciously fast.",
        causes=("the labels can be read off the inputs, all rows are of one class, or the task is very easy",),
        remedy="look at one batch: is the label, or something made from it, among the inputs?",
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
