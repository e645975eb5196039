"""Does the loss fall?"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...core.arguments import fraction
from ...core.formatting import at_iterations, more_steps, number, percent, plural
from ...core.observations import Descent, ProbeLoss, ProbeLossPoint
from ...core.trace import Trace
from ...core.verdict import Status, Verdict
from ...seeds.thresholds import Threshold
from ..expected_roles import frozen_in_trained_head
from ..loop.record import LoopCalls
from ..no_step import no_step_verdict
from ..optimizer.faults import HEAD_PARTLY_FROZEN
from ..optimizer.partly_frozen_head import blocks_gradients, explain_partly_frozen_head
from ..spec import Stage, Symptom, check
from . import faults
from .loss_in_loop import judge_loss_in_loop
from .objective import MINUS, descended_losses, descended_shape

NAME = "loss_decreases"
#: Least relative drop of the probe loss that counts by itself: no broken trainer of 60 x 4 passed it (needs 60 steps or so).
LEAST_DROP = 0.05
#: False-pass rate of the sign test on same-batch descents, and of the trend test.
ALPHA = 0.01
#: A rise of the standard loss, as a share of the class-prior loss, that no other sound objective explains.
RISE = 0.25
#: A change of the loss below this share of it is rounding (float32 has 6e-8; a mean over a batch a few times that).
ROUNDING = 1e-6
#: Rounding in other dtypes: half a spacing at 1.
_ROUNDING = {"bfloat16": 4e-3, "float16": 5e-4}
#: Minus the standard loss, but for label smoothing and rows that are weighed differently.
_MINUS = 0.1
#: The standard losses of classes and tags, on logits.
_STANDARD = ("cross_entropy", "binary_cross_entropy_with_logits")
_COMPARE_WITH_CROSS_ENTROPY = "compare your loss with cross_entropy(logits, labels) on one batch"


@check(
    stage=Stage.OUTCOME,
    position=1,
    faults=(faults.LOSS_NEGATED, HEAD_PARTLY_FROZEN),
    thresholds=(
        Threshold("min_drop", "at least", "relative drop of the probe loss", 1e-9, 1 - 1e-9, {"alpha": 1e-300}),
    ),
    shows=(Symptom.OUTCOME,),
)
def check_loss_decreases(trace: Trace, *, min_drop: float = LEAST_DROP, alpha: float = ALPHA) -> Verdict:
    """The loss falls on fixed rows with dropout off, and each step lowers the loss of its own batch; never "last < first".

    Passes if the probe loss fell by ``min_drop`` and nothing contradicts it. At a learning rate too small for that in so few steps, it
    also passes if the probe loss fell at all and significantly many steps lowered the loss of the very batch they were computed from
    (sign test). Fails if the steps leave the loss unchanged or raise it, or if a cross-entropy is negative. What so few steps cannot
    decide is ``inconclusive``. Without a probe, the trend of the training losses is judged (Mann-Kendall on block means).

    :param min_drop: least relative drop of the probe loss.  :param alpha: error rate of the sign test and the trend test.
    :raises ValueError: a limit out of range.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_loss_decreases(example_trace()))
    loss_decreases: pass. The probe loss fell by 56 %, 0.7000 -> 0.3100; 12 of 12 steps lowered the loss of their own batch.
    """
    fraction("min_drop", min_drop)
    fraction("alpha", alpha)
    descended = descended_losses(trace)
    verdict = _judge_fall(descended, min_drop, alpha)
    return verdict if descended is trace else dataclasses.replace(verdict, notes=(*verdict.notes, MINUS))


def _judge_fall(trace: Trace, min_drop: float, alpha: float) -> Verdict:
    no_step = no_step_verdict(NAME, trace, _measured(trace.probe_loss))
    # an optimizer that no hook sees may have stepped: then the weights change, or the losses fall
    if no_step is not None and no_step.status == "fail" and (trace.backward_error or not _falls(trace.losses, alpha)):
        return dataclasses.replace(no_step, fault="")
    judge = _Judge(trace, min_drop, alpha)
    if (verdict := _not_finite(judge) or _negative(judge)) is not None:
        return verdict
    points = trace.probe_loss.points if trace.probe_loss is not None else ()
    if len(points) < 2:
        return _or_frozen_head(_by_trend(judge), trace)
    change = _probe_change(trace, points)
    for decide in (
        _standard_loss_rises,
        _unchanged,
        _steps_raise,
        _bad_last_step,
        _rises_at_first,
        _rises,
        _falls_clearly,
        _standard_loss_rises_slightly,
        _falls_slowly,
    ):
        if (verdict := decide(judge, change)) is not None:
            # steps that raise the loss of their own batch do so whatever is frozen
            return _or_frozen_head(verdict, trace) if decide is _unchanged or _lowers(change) else verdict
    return _or_frozen_head(_undecided(judge, change), trace)


@dataclass(frozen=True)
class _Judge:
    """The run, and the limits it is judged by."""

    trace: Trace
    min_drop: float
    alpha: float

    def verdict(
        self, status: Status, headline: str, causes: Sequence[str] = (), remedy: str = "", notes: Sequence[str] = ()
    ) -> Verdict:
        """A verdict with what all of them show."""
        return Verdict(
            NAME,
            status,
            headline,
            () if status == "pass" else _rows(self.trace),
            f"probe loss down by {percent(self.min_drop)}, or down at all with significantly many steps lowering their own batch's "
            f"loss (sign test, p < {self.alpha:g})",
            tuple(causes),
            remedy,
            _measured(self.trace.probe_loss),
            tuple(notes),
        )

    @property
    def steps(self) -> str:
        """How many steps the run has."""
        return plural(len(self.trace.steps), "step")


@dataclass(frozen=True)
class _Change:
    """How the loss on the probe changed, and that of the steps' own batches."""

    first: ProbeLossPoint
    last: ProbeLossPoint
    points: Sequence[ProbeLossPoint]
    #: Relative drop of the probe loss.
    drop: float
    descents: Sequence[Descent]
    #: Steps that lowered the loss of their own batch; that left it unchanged within rounding; all.
    lowered: int
    unchanged: int
    steps: int

    @property
    def changed(self) -> int:
        """Steps that changed the loss of their own batch."""
        return self.steps - self.unchanged

    @property
    def on_probe(self) -> str:
        """The change on the probe in words."""
        verb = "fell" if self.drop > 0 else "rose"
        return f"{verb} by {percent(abs(self.drop))}, {number(self.first.loss, 4)} -> {number(self.last.loss, 4)}"

    @property
    def on_own_batches(self) -> str:
        """The change on the steps' own batches in words."""
        return f"{self.lowered} of {self.steps} steps lowered the loss of their own batch" if self.steps else ""

    @property
    def both(self) -> str:
        """Both changes in words."""
        return f"{self.on_probe}{'; ' + self.on_own_batches if self.steps else ''}"

    def standard(self, digits: int) -> str:
        """The standard loss before and after, in words."""
        return f"{number(self.first.reference, digits)} -> {number(self.last.reference, digits)}"


def _probe_change(trace: Trace, points: Sequence[ProbeLossPoint]) -> _Change:
    first, last = points[0], points[-1]
    scale = abs(first.loss) or max((abs(p.loss) for p in points), default=1.0) or 1.0
    descents = _counted(trace, trace.probe_loss)
    lowered, unchanged, steps = _tally(trace, descents)
    return _Change(first, last, points, (first.loss - last.loss) / scale, descents, lowered, unchanged, steps)


# ------------------------------------------------------------------ whether the losses can be judged
def _not_finite(judge: _Judge) -> Verdict | None:
    trace = judge.trace
    losses = trace.losses_by_iteration
    bad = [i for i, v in losses.items() if not math.isfinite(v)]
    if not bad and (trace.probe_loss is None or all(math.isfinite(p.loss) for p in trace.probe_loss.points)):
        return None
    return judge.verdict(
        "fail",
        f"The loss is not finite {at_iterations(bad, [*losses]) if bad else 'on the probe'}.",
        ["the run diverged, or computes something undefined; assert_all_finite names the first bad step and tensor"],
        "lower the learning rate; look for log(0), division by zero, overflow in low precision",
    )


def _negative(judge: _Judge) -> Verdict | None:
    trace = judge.trace
    # that a probability of each class is a cross-entropy's label is not certain: the likelihood of a density may be above 1
    if trace.reading.task not in ("single_label", "multi_label") or trace.probe_loss is None or not _of_classes(trace):
        return None
    # an entropy bonus may make a sound loss a little negative; half the entropy of the labels below the standard loss is no bonus
    gap = 0.5 * (trace.probe_loss.prior_entropy or math.log(trace.reading.classes or 2))
    point = next(
        (p for p in trace.probe_loss.points if p.reference is not None and p.loss < min(-1e-6, p.reference - gap)), None
    )
    if point is None:
        return None
    negative = judge.verdict(
        "fail",
        f"The loss is negative ({number(point.loss, 4)} after {plural(point.step, 'step')}), which a cross-entropy cannot be; "
        f"the standard loss of the same logits is {number(point.reference, 4)}.",
        ["the loss is not a negative log-likelihood: NLL on raw logits or on probabilities, or a flipped sign"],
        "use cross_entropy on raw logits, or nll_loss on log_softmax",
    )
    negative = dataclasses.replace(negative, limit="a cross-entropy is >= 0")
    assert point.reference is not None
    if abs(point.loss + point.reference) > _MINUS * point.reference:
        return negative
    flipped = faults.LOSS_NEGATED
    return dataclasses.replace(negative, causes=(flipped.cause,), remedy=flipped.remedy, fault=flipped.name)


# ------------------------------------------------------------------ decisions, in the order in which they are made
def _standard_loss_rises(judge: _Judge, change: _Change) -> Verdict | None:
    first, last = change.first.reference, change.last.reference
    if first is None or last is None or change.drop < judge.min_drop:
        return None
    # another sound objective (smoothed labels, class weights, a teacher) may raise it a little: compare with the class-prior loss
    rise = (last - first) / max(abs(first), _class_prior_loss(judge.trace))
    if (
        not rise > RISE
        or _on_another_scale(judge.trace)
        or not _of_classes(judge.trace)
        or _raises_the_labels(judge.trace)
    ):
        return None
    return judge.verdict(
        "fail",
        f"The loss {change.on_probe}, but the standard loss of the same logits rose, {change.standard(4)}.",
        ["the minimised loss is not the task's: a flipped sign, the wrong targets, or another scale"],
        _COMPARE_WITH_CROSS_ENTROPY,
    )


def _unchanged(judge: _Judge, change: _Change) -> Verdict | None:
    if change.last.loss != change.first.loss or any(d.after != d.before for d in change.descents):
        return None
    if not _cannot_learn(judge.trace):
        return None
    own = f", also on the own batch of each of {change.steps}" if change.steps else ""
    return judge.verdict(
        "fail",
        f"The steps do not change the loss: it is exactly as it was before{own}.",
        ["the weights do not move, or those that move do not affect the loss; assert_weights_move says which"],
        "see assert_weights_move and assert_grads_nonzero for the reason",
    )


def _steps_raise(judge: _Judge, change: _Change) -> Verdict | None:
    if change.changed < 8 or change.lowered > change.changed / 4 or change.drop >= judge.min_drop:
        return None
    return judge.verdict(
        "fail",
        f"The steps raise the loss: only {change.lowered} of {change.steps} lowered the loss of their own batch; "
        f"on the probe it {change.on_probe}.",
        ["the sign is flipped (loss negated, maximize=True, gradient ascent), or the learning rate is far too high"],
        "check the sign of the loss; try a tenth of the learning rate",
    )


def _bad_last_step(judge: _Judge, change: _Change) -> Verdict | None:
    if change.drop > -judge.min_drop:
        return None
    best = _clearly_lower_before(change.points, judge.min_drop)
    if best is None or not _falls(judge.trace.losses, judge.alpha):
        return None
    return judge.verdict(
        "pass",
        f"The training loss falls; the probe loss was down to {number(best.loss, 4)} after {plural(best.step, 'step')}, "
        f"but {number(change.last.loss, 4)} at the very end.",
        notes=["one bad step at the end of a run that learns: a schedule that decays to zero would avoid it"],
    )


def _rises_at_first(judge: _Judge, change: _Change) -> Verdict | None:
    if not -RISE < change.drop <= -judge.min_drop or 2 * change.lowered <= change.changed:
        return None
    return judge.verdict(
        "inconclusive",
        f"{judge.steps} are too few to decide: the probe loss {change.on_probe}, while {change.on_own_batches}.",
        ["too few steps: predictions that become confident before they are right raise the loss at first"],
        f"run longer (steps={more_steps(len(judge.trace.steps))}), or at a lower learning rate",
    )


def _rises(judge: _Judge, change: _Change) -> Verdict | None:
    if change.drop > -judge.min_drop:
        return None
    before, after = change.first.reference, change.last.reference
    if (
        before is not None
        and after is not None
        and after <= (1 - judge.min_drop) * before
        and change.first.loss != before
    ):
        return judge.verdict(
            "inconclusive",
            f"The probe loss {change.on_probe}, but the standard loss of the same logits fell, {change.standard(4)}.",
            [
                "the loss function computes something else from call to call: a weight that grows, a mean, a table that it overwrites"
            ],
            "keep the function as it is while it is compared: look at what it assigns to self, or to an outer name, in each call",
        )
    if _probe_rows_are_others(judge.trace, judge.alpha):
        return judge.verdict(
            "inconclusive",
            f"The training loss falls, but on the rows of probe_batch it {change.on_probe}.",
            ["the probe rows are unlike the rows that are trained on, or these are memorised"],
            "compare the classes of probe_batch with those of the training rows (a balanced set beside an unbalanced one), or pass "
            "training rows as probe_batch=",
        )
    return judge.verdict(
        "fail",
        f"The probe loss {change.on_probe}.",
        ["the learning rate is too high and the run diverges, or another loss is minimised"],
        "try a tenth of the learning rate; look at the losses above",
    )


def _falls_clearly(judge: _Judge, change: _Change) -> Verdict | None:
    if change.drop < judge.min_drop:
        return None
    confirmed = (
        change.drop >= 2 * judge.min_drop
        or not change.steps
        or 2 * change.lowered >= change.steps
        or _falls(judge.trace.losses, judge.alpha)
    )
    if not confirmed:
        return None
    return judge.verdict("pass", f"The probe loss {change.both}.", notes=_class_prior_note(judge.trace, change.last))


def _standard_loss_rises_slightly(judge: _Judge, change: _Change) -> Verdict | None:
    first, last = change.first.reference, change.last.reference
    if first is None or last is None or not 0 < change.drop < judge.min_drop:
        return None
    other = _raises_the_labels(judge.trace) or not _of_classes(judge.trace)
    if other or not last - first > ROUNDING * max(abs(first), 1e-12):
        return None
    return judge.verdict(
        "inconclusive",
        f"The loss {change.on_probe}, and the standard loss of the same logits rose, {change.standard(6)}.",
        ["the minimised loss may not be the task's: a flipped sign, or the wrong targets"],
        f"{_COMPARE_WITH_CROSS_ENTROPY}, and run longer",
    )


def _falls_slowly(judge: _Judge, change: _Change) -> Verdict | None:
    p = _sign_test(change.lowered, change.changed)
    if change.drop <= ROUNDING or p >= judge.alpha or change.lowered < 0.75 * change.changed:
        return None
    return judge.verdict(
        "pass",
        f"The loss falls, slowly: {change.on_own_batches} (p = {number(p)}); on the probe it {change.on_probe}.",
        notes=[
            f"{judge.steps} at these learning rates show that the steps lower the loss, not yet that the labels are learnt; "
            "assert_metric_improves checks that"
        ],
    )


def _undecided(judge: _Judge, change: _Change) -> Verdict:
    if _loaded_after_the_last_step(judge.trace) and _falls(judge.trace.losses, judge.alpha):
        return judge.verdict(
            "inconclusive",
            f"The training loss falls, but the weights were replaced after the last step, and with those the probe loss {change.on_probe}.",
            [
                "the state that is loaded at the end is not the best one: a loss for which greater counts as better, or the first state"
            ],
            "compare the loss before and after load_state_dict; of a loss the least is the best (greater_is_better=False)",
        )
    warming_up = _still_warming_up(judge.trace)
    causes = _without_gradient(judge.trace)
    if change.unchanged > change.steps / 2:
        causes.append(
            f"{change.unchanged} of {change.steps} steps changed the loss of their own batch by less than its rounding"
        )
    causes += [
        "too few steps at too small a learning rate",
        "or a task that this model cannot learn (shuffled labels, unreadable inputs)",
    ]
    return judge.verdict(
        "inconclusive",
        f"{judge.steps} are too few to decide: the probe loss {change.both}{warming_up}.",
        causes,
        "shorten the warm-up (its length is in optimizer steps of this run), or run until it is over"
        if warming_up
        else f"run longer (steps={more_steps(len(judge.trace.steps))}) or at a higher learning rate",
        notes=_class_prior_note(judge.trace, change.last),
    )


def _by_trend(judge: _Judge) -> Verdict:
    """The trend of the training losses, where there is no probe."""
    losses, probe = judge.trace.losses, judge.trace.probe_loss
    reason = f" (the probe was skipped: {probe.skipped})" if probe is not None and probe.skipped else ""
    if len(losses) < 8:
        return judge.verdict(
            "inconclusive",
            f"There is no probe{reason}, and {plural(len(losses), 'training loss', 'training losses')} are too few to decide.",
            ["nothing to judge by"],
            "record the losses with w.loss(loss), and give watch a probe_batch= (and loss_fn=)",
        )
    n = max(1, len(losses) // 4)
    first, last = sum(losses[:n]) / n, sum(losses[-n:]) / n
    change = f"the first quarter's mean is {number(first, 4)}, the last quarter's {number(last, 4)}"
    if _falls(losses, judge.alpha) and last < first:
        if why := _says_nothing(judge.trace):
            return judge.verdict("inconclusive", f"The training loss falls: {change}. That says nothing: {why}.")
        notes = [f"judged only by the trend of {len(losses)} training losses{reason}"]
        if min(losses) < 0:
            notes.append("the loss is negative, which a cross-entropy cannot be: is its sign right?")
        return judge.verdict("pass", f"The training loss falls: {change}.", notes=notes)
    if _falls([-v for v in losses], judge.alpha) and last > first:
        return judge.verdict(
            "fail",
            f"The training loss rises: {change}.",
            ["the learning rate is too high, or the sign is flipped"],
            "try a tenth of the learning rate; check the sign of the loss",
        )
    return judge.verdict(
        "inconclusive",
        f"No trend in {len(losses)} training losses: {change}{reason}.",
        ["too few steps for the noise of the batches, or nothing is learnt"],
        "run longer, or give a probe_batch= so that the same rows are compared with dropout off",
    )


# ------------------------------------------------------------------ facts about the run
def _says_nothing(trace: Trace) -> str:
    """Why a training loss that falls may not be the task's; empty: nothing speaks against it."""
    if judge_loss_in_loop(trace, NAME) is not None:
        return "it is not the loss of the task (assert_loss_matches_task)"
    loop = trace.measured(LoopCalls)
    if loop is not None and loop.backwards and not loop.losses and min(trace.losses) < 0:
        return "it is negative, and computed without the losses of torch, so its sign is not known; give watch a probe_batch= and loss_fn="
    return ""


def _lowers(change: _Change) -> bool:
    return not change.changed or 2 * change.lowered > change.changed


def _or_frozen_head(verdict: Verdict, trace: Trace) -> Verdict:
    """The verdict; where the run does not learn, although parameters have gradients and move, or none past a frozen layer of zeros, the
    first cause is the head that is partly frozen."""
    if verdict.status not in ("fail", "inconclusive") or not (frozen := frozen_in_trained_head(trace)):
        return verdict
    trained = [t for t in trace.tensors if t.trainable and t.numel]
    moves = any(t.gradients.max_norm > 0 and t.motion.share_changed > 0 for t in trained)
    blocked = blocks_gradients(frozen) and all(t.gradients.max_norm == 0 for t in trained)
    if not moves and not blocked:
        return verdict
    fault = explain_partly_frozen_head(frozen)
    causes = (fault.cause, *verdict.causes)
    if verdict.status == "inconclusive":
        return dataclasses.replace(verdict, causes=causes)
    return dataclasses.replace(verdict, causes=causes, remedy=fault.remedy, fault=fault.name)


def _loaded_after_the_last_step(trace: Trace) -> bool:
    """Most of the matrices that learnt have been written to since the last step."""
    matrices = [t for t in trace.tensors if len(t.shape) > 1 and t.motion.max_update > 0]
    return 2 * sum(t.motion.between_steps > 0 for t in matrices) > len(matrices)


def _still_warming_up(trace: Trace) -> str:
    """A clause on a learning rate that only rose, to more than twice its first value; else empty."""
    rates = [max(s.lrs, default=0.0) for s in trace.steps]
    if len(rates) < 2 or any(b <= a for a, b in itertools.pairwise(rates)) or rates[-1] <= 2 * rates[0]:
        return ""
    declared = trace.intent.peak_lr if trace.intent is not None else None
    of_declared = f" of the declared {number(declared)}" if declared and declared > rates[-1] else ""
    return f"; the learning rate was still warming up at the last step, at {number(rates[-1])}{of_declared}"


def _probe_rows_are_others(trace: Trace, alpha: float) -> bool:
    """A watched loop whose own loss falls, and was seen to be the standard one of the model's output: then it is the rows that differ.

    `finetune` measures the loss on rows of the training itself.
    """
    loop = trace.measured(LoopCalls)
    if trace.source != "watch" or loop is None or not loop.losses or judge_loss_in_loop(trace, NAME) is not None:
        return False
    standard = all(c.input == "output" and c.function in _STANDARD for c in loop.losses)
    losses = trace.losses
    n, few = max(1, len(losses) // 4), max(1, len(losses) // 20)
    # a loss that shot up and comes down again falls, too
    return standard and _falls(losses, alpha) and sum(losses[-n:]) / n < sum(losses[:few]) / few


def _on_another_scale(trace: Trace) -> bool:
    """Numbers are predicted, better than by chance: the loss has a link (a sigmoid, an exponential) or scales the labels itself."""
    return trace.reading.task == "regression" and any(
        m.p_value is not None and m.p_value <= ALPHA for m in trace.metrics
    )


def _of_classes(trace: Trace) -> bool:
    """False where the outputs were seen to be no logits of the labels: then no standard loss of them says anything."""
    shape = descended_shape(trace)
    return shape is None or shape.of_classes


def _raises_the_labels(trace: Trace) -> bool:
    """The loss was measured at chosen logits, and raises the label's own logit in every row: it is the task's, though it may weight rows
    otherwise than the standard loss (class weights, focal)."""
    shape = descended_shape(trace)
    return shape is not None and shape.direction_known and shape.agreement == 1


def _clearly_lower_before(points: Sequence[ProbeLossPoint], min_drop: float) -> ProbeLossPoint | None:
    """The best point between first and last, if the loss, and the standard loss, were clearly lower there than at first."""
    first, best = points[0], min(points[1:-1], key=lambda p: p.loss, default=None)
    if best is None or best.loss > first.loss - min_drop * abs(first.loss):
        return None
    if None not in (first.reference, best.reference) and best.reference > (1 - min_drop) * first.reference:  # type: ignore[operator]
        return None
    return best


def _class_prior_loss(trace: Trace) -> float:
    """The loss of predicting the class priors: the entropy of the labels, or of equal classes."""
    entropy = trace.probe_loss.prior_entropy if trace.probe_loss is not None else None
    return entropy or math.log(max(2, trace.reading.classes or 2))


def _cannot_learn(trace: Trace) -> bool:
    """No trainable tensor moved, or none got a gradient: then an unchanged loss is no rounding."""
    trainable = [t for t in trace.tensors if t.trainable and t.numel]
    return all(t.motion.share_changed == 0 for t in trainable) or all(t.gradients.max_norm == 0 for t in trainable)


def _without_gradient(trace: Trace) -> list[str]:
    """The first cause, where most tensors get no gradient."""
    trainable = [t for t in trace.tensors if t.trainable]
    without = [t for t in trainable if t.gradients.max_norm == 0]
    if len(without) <= len(trainable) / 2:
        return []
    return [f"{len(without)} of {len(trainable)} tensors get no gradient, or only zeros; see assert_grads_nonzero"]


def _counted(trace: Trace, probe: ProbeLoss | None) -> list[Descent]:
    """Descents of steps that had a learning rate: a warm-up may begin at zero."""
    if probe is None:
        return []
    return [
        d
        for d in probe.descents
        if d.step >= len(trace.steps) or any(lr > 0 for lr in trace.steps[d.step].lrs) or _lr_always_zero(trace)
    ]


def _lr_always_zero(trace: Trace) -> bool:
    return not any(lr > 0 for s in trace.steps for lr in s.lrs)


def _tally(trace: Trace, descents: Sequence[Descent]) -> tuple[int, int, int]:
    """Steps that lowered the loss, that left it unchanged within rounding, and all."""
    dtype = trace.environment.get("dtype", "float32")
    share = max([ROUNDING, *(v for k, v in _ROUNDING.items() if k in dtype)])
    floor = 1e-3 * max((abs(d.before) for d in descents), default=0.0)  # a loss near zero is rounded by its terms' size
    unchanged = [d for d in descents if abs(d.after - d.before) <= share * max(abs(d.before), floor)]
    lowered = sum(d.after < d.before for d in descents if d not in unchanged)
    return lowered, len(unchanged), len(descents)


def _sign_test(lowered: int, total: int) -> float:
    """P(at least ``lowered`` of ``total`` by chance)."""
    if total <= 0:
        return 1.0
    from scipy.special import bdtrc  # scipy.stats takes half a second to import, and this is needed in most runs

    return float(bdtrc(lowered - 1, total, 0.5))


def _falls(losses: Sequence[float], alpha: float) -> bool:
    """Mann-Kendall test for a downward trend, on at most 20 block means (neighbouring losses are correlated)."""
    if len(losses) < 8:
        return False
    from scipy.stats import kendalltau

    blocks = min(20, len(losses))
    edges = [round(i * len(losses) / blocks) for i in range(blocks + 1)]
    means = [sum(losses[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    if len(set(means)) < 2:
        return False
    return bool(kendalltau(range(blocks), means, alternative="less").pvalue < alpha)


def _class_prior_note(trace: Trace, last: ProbeLossPoint) -> list[str]:
    probe = trace.probe_loss
    if probe is None or probe.prior_entropy is None or "user" in trace.reading.loss:
        return []
    if last.loss < probe.prior_entropy - 1e-3:
        return []
    return [
        f"the loss is not yet below the entropy of the labels ({number(probe.prior_entropy)}), the loss of predicting the class priors"
    ]


def _rows(trace: Trace) -> tuple[dict[str, Any], ...]:
    if trace.probe_loss is None or len(trace.probe_loss.points) < 2:
        return ()
    return tuple(
        {"after steps": p.step, "probe loss": number(p.loss, 5), "standard loss": number(p.reference, 5)}
        for p in trace.probe_loss.points
    )


def _measured(probe: ProbeLoss | None) -> str:
    if probe is None or not probe.points:
        return "training losses only"
    return f"dropout off, on {plural(probe.rows, 'row')} ({probe.source}), and on the own batch of {plural(len(probe.descents), 'step')}"
