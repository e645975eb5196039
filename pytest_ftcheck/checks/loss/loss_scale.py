"""What was backpropagated for an optimizer step, beside the mean loss of the rows that the step has seen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Status, Verdict
from ..gradients import faults as gradient_faults
from ..spec import Fault, Rank, Stage, Symptom, check, not_measured
from .loss_scale_record import LossScale, Window

NAME = "loss_scale"
#: Two factors are one: bfloat16 rounds to 2^-9, and so do the two or three factors that a loss goes through.
SAME = 0.02
#: A factor within this ratio of 1 is nearer to it than to 2, the least number of micro-batches or processes (on a scale of ratios).
NEAR = math.sqrt(2)
#: Below this share of effective items, half of what the step has seen is in effect thrown away (Kish 1965, *Survey Sampling*).
LEAST_EVEN = 0.5
#: Loss scales of a GradScaler are powers of two; those in use are at least this large.
LEAST_SCALE = 2.0**8
#: Steps that must agree.
LEAST_STEPS = 2
#: Steps that must have lost the same number of micro-batches. A GradScaler that begins with too large a scale skips the first steps, one
#: after the other, and the loop clears their gradients: they are all in the first window, which alone proves nothing.
LEAST_LOST = 3
#: Share of the observed steps that may have lost another number, or none: those of an epoch's last batches.
MOST_OTHERS = 0.2

NUM_ITEMS_IGNORED = Fault(
    "num_items_ignored",
    Rank.HEAD + 400,
    "the loss of each micro-batch is a mean, though num_items_in_batch asks for a share of the step's",
    cause="the trainer passes num_items_in_batch and leaves the division to the loss, but the loss of the model (or compute_loss_func) "
    "ignores it; **kwargs in the model's forward are taken for support",
    remedy="set model.accepts_loss_kwargs = False before the Trainer is built: without a compute_loss_func, transformers 4.48 or later "
    "then divides by gradient_accumulation_steps itself; or compute sum(losses) / num_items_in_batch in the model or in compute_loss_func",
    explains=(Symptom.BLOWS_UP,),
    confidence="certain",
)
LOSS_SCALED_BY_RANKS = Fault(
    "loss_scaled_by_ranks",
    Rank.HEAD + 410,
    "the loss is scaled by the number of processes",
    cause="the loss is {operation} the number of processes, but distributed training averages the gradients over them already",
    remedy="remove the factor",
    explains=(Symptom.BLOWS_UP,),
    confidence="certain",
)
UNEVEN_MICRO_BATCHES_AVERAGED = Fault(
    "uneven_micro_batches_averaged",
    Rank.HEAD + 420,
    "the means of micro-batches of very different sizes are averaged",
    cause="each micro-batch counts the same, however many label positions it has, so those in short ones count many times as much",
    remedy="count the label positions of all micro-batches of the step first, and backpropagate the sum of each one's losses divided by it",
    confidence="certain",
)


@check(
    stage=Stage.LOSS_FUNCTION,
    position=30,
    faults=(
        gradient_faults.MICRO_BATCHES_LOST,
        gradient_faults.ACCUMULATION_NOT_AVERAGED,
        gradient_faults.ACCUMULATION_DIVIDED_TWICE,
        gradient_faults.GRADS_STILL_SCALED,
        NUM_ITEMS_IGNORED,
        LOSS_SCALED_BY_RANKS,
        UNEVEN_MICRO_BATCHES_AVERAGED,
    ),
    measurements=(LossScale,),
)
def check_loss_scale(trace: Trace) -> Verdict:
    """What is backpropagated for a step is the mean loss of the rows (or label positions) that the step has seen.

    At a few steps the graph tells with which weight each loss of torch enters the values that ``backward()`` is called on; over all
    micro-batches of a step the weights add up to 1 where the mean is backpropagated. What becomes of the gradients between the last
    ``backward()`` and the step (a GradScaler, a division, ``clip_grad_norm_``) is taken into account. A wrong factor is a failure where it
    changes more than eps: where gradients are clipped, or with SGD.

    >>> from pytest_ftcheck import example_trace
    >>> from pytest_ftcheck.checks.loss.loss_scale_record import Backward, LossScale, Term, Window
    >>> def four(weight):
    ...     term = Term("cross_entropy", "mean", 8, weight)
    ...     return tuple(Window(i, (Backward(0.7, (term,), 8),) * 4, change=1.0) for i in range(3))
    >>> check_loss_scale(example_trace(measurements={"loss_scale": LossScale(four(0.25))})).headline
    'At 3 steps the mean loss of what the step has seen is backpropagated (4 micro-batches a step).'
    >>> check_loss_scale(example_trace(measurements={"loss_scale": LossScale(four(1.0))})).causes
    ('the loss of each batch is not divided by the number of accumulated batches',)
    """
    found = trace.measured(LossScale)
    if found is None:
        return not_measured(NAME, trace, LossScale)
    if not found.windows:
        return _skipped("no step of an optimizer followed a call of backward()")
    if lost := _lost(found.windows):
        return lost
    windows, reason = _comparable(found.windows)
    if not windows:
        return _skipped(reason)
    scale = _Scale(trace, found, windows)
    for finder in FINDERS:
        if verdict := finder(scale):
            return verdict
    return _no_fault(scale)


class _Scale:
    """The steps that can be compared, and the factor of each."""

    def __init__(self, trace: Trace, found: LossScale, windows: Sequence[Window]) -> None:
        self.trace, self.windows, self.ranks = trace, windows, found.ranks
        self.size = windows[0].size
        #: Before anything became of the gradients, but for a GradScaler.
        self.backpropagated = [w.backpropagated for w in windows]
        changes = [w.other_change for w in windows]
        #: Some step's gradients were changed, and not by one factor; clip_grad_norm_ may clip groups of tensors by one factor each.
        self.changed_unevenly = any(
            c is None and (w.clipped is None or self.ranks > 1) for c, w in zip(changes, windows, strict=True)
        )
        #: As the optimizer found it, but for clipping.
        self.factors = [b * (1.0 if c is None else c) for b, c in zip(self.backpropagated, changes, strict=True)]
        self.factor = median(self.factors)
        self.clipped = sum(w.clipped is not None and w.clipped < 1 for w in windows)
        self.terms = max(len(b.terms) for w in windows for b in w.backwards)

    def is_constantly(self, factor: float) -> bool:
        """Whether every step has this factor."""
        return all(abs(f / factor - 1) <= SAME for f in self.factors)

    @property
    def no_micro_batches(self) -> str:
        """Why the calls of ``backward()`` for one step may be for losses that are meant to be added up; empty: no reason is known."""
        if self.size > 1 and any(b.repeated for w in self.windows for b in w.backwards):
            return "several losses of the same rows are backpropagated before one step"
        if any(w.places > 1 for w in self.windows):
            return "backward() is called from several lines before one step, so these may be losses of different kinds"
        return ""

    @property
    def is_known(self) -> bool:
        """Whether there is one factor for what the optimizer found."""
        return not self.changed_unevenly and self.is_constantly(self.factor)

    @property
    def per_row(self) -> float:
        """Items for each row that the model was called with, in losses that are not means; 1 for means, or where it is not known."""
        backwards = [b for w in self.windows for b in w.backwards if any(t.reduction != "mean" for t in b.terms)]
        rows = sum(b.rows or 0 for b in backwards)
        return sum(b.items for b in backwards) / rows if rows else 1.0

    def verdict(self, fault: Fault, what: str, effect: str) -> Verdict:
        """A factor that is wrong: a failure where it changes more than eps."""
        status: Status = "fail" if self.clipped or self.trace.optimizer.family == "sgd" else "advice"
        if len(self.windows) < LEAST_STEPS:
            status = "inconclusive"
            effect += "; one step is too few to tell it from chance"
            fault = fault.because(fault.cause, "more steps, or another name for it: watch a longer part of the loop")
        times = f"{number(self.factor)} times the mean over the step, at {plural(len(self.windows), 'observed step')}"
        return fault.verdict(
            NAME,
            f"{what} ({times}): {effect}.",
            status,
            evidence=_rows(self.windows),
            limit="the weights of all rows (or label positions) of a step add up to 1; the number of micro-batches, one over it, the "
            "number of processes or a loss scale in its place is wrong (within 2 %)",
            measured=MEASURED,
            **({} if status == "fail" else {"fault": ""}),
        )

    def effect(self) -> str:
        """What the factor changes in this run."""
        factor, optimizer = number(self.factor), self.trace.optimizer
        if self.clipped:
            where = f"clip_grad_norm_ shortens it at {self.clipped} of them, as if its limit were {number(1 / self.factor)} times as large"
            return where if optimizer.family != "sgd" else f"{where}, and the other steps are {factor} times as long"
        if optimizer.family == "sgd":
            return f"the steps of {optimizer.name} are {factor} times as long"
        if optimizer.family == "adam":
            coupled = any(g.weight_decay and not g.decoupled for g in optimizer.groups)
            more = " and weight decay, which it adds to the gradient" if coupled else ""
            called = any(w.clipped is not None for w in self.windows)
            clipping = "clip_grad_norm_ did not act at these steps" if called else "nothing is clipped"
            return f"the steps of {optimizer.name} depend on this factor only through eps{more}, and {clipping}"
        return f"what it changes depends on {optimizer.name}; a limit of clip_grad_norm_ would"


MEASURED = "weights read off the graph of each value that backward() was called on; gradients before and after"


def _comparable(windows: Sequence[Window]) -> tuple[list[Window], str]:
    """The windows that can be compared, of the most frequent number of micro-batches; or why there are none."""
    reasons: Counter[str] = Counter()
    good = []
    for window in windows:
        reason = _not_comparable(window)
        if reason:
            reasons[reason] += 1
        else:
            good.append(window)
    if not good:
        return [], reasons.most_common(1)[0][0]
    size = Counter(w.size for w in good).most_common(1)[0][0]  # the last step of an epoch may have fewer
    return [w for w in good if w.size == size], ""


def _not_comparable(window: Window) -> str:
    if any(not b.terms for b in window.backwards):
        return "the loss is computed without the losses of torch, or a function of the user's own follows them"
    if window.disturbed:
        return "gradients of an earlier step were still there, or were changed between two calls of backward()"
    if not math.isfinite(window.backpropagated) or window.backpropagated <= 0:
        return "the weights of the losses are not finite, or add up to zero or less"
    return ""


def _skipped(reason: str) -> Verdict:
    return Verdict(NAME, "skipped", f"Not judged: {reason}.", measured=MEASURED)


# ------------------------------------------------------------------ one function a fault
def _lost(windows: Sequence[Window]) -> Verdict | None:
    """Gradients are cleared between the micro-batches of a step.

    A loop may clear them on purpose: it skips a batch (now and then, not the same number at each step), collects the gradient of each row
    elsewhere and puts their sum in place of the last one (which is then no multiple of it), or takes two gradients of the same rows.
    """
    lost = [w for w in windows if w.cleared and w.change is not None]
    k = Counter(w.cleared + w.size for w in lost).most_common(1)[0][0] if lost else 0
    lost = [w for w in lost if w.cleared + w.size == k]
    others = len(windows) - len(lost)  # the last step of an epoch may have fewer micro-batches
    if len(lost) < LEAST_LOST or others > MOST_OTHERS * len(windows):
        return None
    cleared = lost[0].cleared
    return gradient_faults.MICRO_BATCHES_LOST.with_details(share=percent(cleared / k)).verdict(
        NAME,
        f"At {plural(len(lost), 'step')} the gradients of {cleared} of {k} micro-batches were cleared before the optimizer stepped.",
        evidence=_rows(lost),
        limit="what is backpropagated for a step is there when the optimizer steps",
        measured=MEASURED,
    )


def _summed(scale: _Scale) -> Verdict | None:
    k = scale.size
    if k == 1 or not scale.is_known or not any(scale.is_constantly(f) for f in _multiples(scale, k)):
        return None
    if scale.no_micro_batches:
        return _skipped(scale.no_micro_batches)
    given = all(b.num_items for w in scale.windows for b in w.backwards)
    if given:
        fault = NUM_ITEMS_IGNORED
        what = f"The mean losses of {k} micro-batches are added up, though the model was given num_items_in_batch"
    else:
        fault = gradient_faults.ACCUMULATION_NOT_AVERAGED.with_details(batches=k)
        what = f"The losses of {k} micro-batches are added up and not averaged"
    return scale.verdict(fault, what, scale.effect())


def _divided_twice(scale: _Scale) -> Verdict | None:
    k = scale.size
    if k == 1 or scale.terms > 1 or not scale.is_known or not scale.is_constantly(1 / k):
        return None
    what = f"The loss of {k} micro-batches is divided by {k} twice"
    return scale.verdict(gradient_faults.ACCUMULATION_DIVIDED_TWICE, what, scale.effect())


def _by_ranks(scale: _Scale) -> Verdict | None:
    ranks = scale.ranks
    if ranks == 1 or not scale.is_known:
        return None
    for operation, factor in (("multiplied by", float(ranks)), ("divided by", 1.0 / ranks)):
        if scale.is_constantly(factor):
            fault = LOSS_SCALED_BY_RANKS.with_details(operation=operation)
            what = f"The loss is {operation} the {ranks} processes, which average their gradients"
            return scale.verdict(fault, what, scale.effect())
    return None


def _still_scaled(scale: _Scale) -> Verdict | None:
    exponent = math.log2(scale.factor)
    means = all(t.reduction == "mean" for w in scale.windows for b in w.backwards for t in b.terms)
    power = 2.0 ** round(exponent)
    if not means or power < LEAST_SCALE or not scale.is_known or not scale.is_constantly(power):
        return None
    what = f"The loss is multiplied by {power:,.0f} = 2^{round(exponent)}, and the gradients are not divided by it before the step"
    return scale.verdict(gradient_faults.GRADS_STILL_SCALED, what, scale.effect())


def _uneven(scale: _Scale) -> Verdict | None:
    even = median(w.even for w in scale.windows)
    rows = [b.rows or 0 for w in scale.windows for b in w.backwards]
    # one row a micro-batch: that each row counts the same may be meant
    if scale.size == 1 or not even < LEAST_EVEN or min(rows) <= 1 or len(scale.windows) < LEAST_STEPS:
        return None
    items = [b.items for w in scale.windows for b in w.backwards]
    return UNEVEN_MICRO_BATCHES_AVERAGED.verdict(
        NAME,
        f"The means of micro-batches with {number(min(items))} to {number(max(items))} label positions are averaged: in effect the step "
        f"has {percent(even)} of the positions that it has seen.",
        evidence=_rows(scale.windows),
        limit=f"an effective sample size of at least {percent(LEAST_EVEN)} (Kish 1965)",
        measured=MEASURED,
    )


#: The most certain first.
FINDERS: tuple[Callable[[_Scale], Verdict | None], ...] = (_summed, _divided_twice, _by_ranks, _still_scaled, _uneven)


def _multiples(scale: _Scale, k: int) -> tuple[float, ...]:
    """Factors that show that k micro-batches were added up. Several losses may be averaged or added up on purpose, and so may the items of
    a row: a factor that these explain is no evidence."""
    meant = [1.0, float(scale.terms), scale.per_row, scale.terms * scale.per_row]
    found = (float(k), float(k * scale.terms))
    return tuple(f for f in found if all(abs(f / m - 1) > SAME for m in meant))


# ------------------------------------------------------------------ no fault
def _no_fault(scale: _Scale) -> Verdict:
    steps, k = plural(len(scale.windows), "step"), scale.size
    batches = f" ({k} micro-batches a step)" if k > 1 else ""
    notes = _notes(scale)
    low, high = min(scale.backpropagated), max(scale.backpropagated)
    if low > 1 / NEAR and high < NEAR:
        exact = low > 1 - SAME and high < 1 + SAME
        how = "" if exact else f", but for a factor of {_between(low, high)}"
        if scale.is_known and not scale.is_constantly(1.0):
            notes.append(f"the gradients are then multiplied by {number(scale.factor)} before the step")
        headline = f"At {steps} the mean loss of what the step has seen is backpropagated{batches}{how}."
        return _passed(scale, headline, notes)
    if scale.is_known and scale.is_constantly(1.0):
        headline = (
            f"At {steps} the optimizer finds the gradient of the mean loss{batches}: it is divided after backward()."
        )
        return _passed(scale, headline, notes)
    if scale.is_known:
        headline = f"At {steps} {number(scale.factor)} times the mean loss of what the step has seen is backpropagated{batches}."
        if abs(scale.factor / scale.per_row - 1) <= SAME and scale.per_row != 1:
            notes.append("the losses of a row are added up, and the rows averaged")
        else:
            notes.append(
                "no number of micro-batches or processes explains this factor; whether it is meant is not judged"
            )
        return _passed(scale, headline, notes)
    if high / low <= 1 + SAME:
        return _skipped("something other than clip_grad_norm_ changes the gradients between backward() and the step")
    between = _between(low, high)
    return _skipped(
        f"what is backpropagated is no constant multiple of the mean of the losses of torch ({between} times)"
    )


def _passed(scale: _Scale, headline: str, notes: Sequence[str]) -> Verdict:
    return Verdict(NAME, "pass", headline, _rows(scale.windows), measured=MEASURED, notes=tuple(notes))


def _notes(scale: _Scale) -> list[str]:
    notes = []
    even = median(w.even for w in scale.windows)
    if scale.size > 1 and even < 1 - SAME:
        notes.append(
            "each micro-batch counts the same, whatever its number of label positions: an effective sample size of "
            f"{percent(even)} of them"
        )
    return notes


def _between(low: float, high: float) -> str:
    one = number(low)
    return one if one == number(high) else f"{one} to {number(high)}"


def _rows(windows: Sequence[Window]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "step": w.step,
            "backward() calls": w.size,
            "items": _between(min(b.items for b in w.backwards), max(b.items for b in w.backwards)),
            "weight of each": _between(min(b.weight for b in w.backwards), max(b.weight for b in w.backwards)),
            "sum of weights": w.backpropagated,
            "clipped to": w.clipped,
            "other change": w.other_change,
        }
        for w in windows
    )
