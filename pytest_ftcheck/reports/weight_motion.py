"""The founding question: should the weights have moved more, as their histogram suggests?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..core import arguments
from ..core.formatting import number, percent, plural, shorten
from ..seeds.runs import Runs, one_trace

if TYPE_CHECKING:
    from ..core.observations import Tensor
    from ..core.trace import Trace

#: Wasserstein distance, in initial standard deviations, below which a histogram shows no visible change.
VISIBLE = 0.05
#: Displacement (rms, in initial standard deviations) from which on the initial values no longer dominate.
LARGE = 0.5
#: Share of the LR budget that gradients use: little is below the first; healthy Adam runs, dense tensors.
LITTLE, HEALTHY = 0.05, (0.15, 0.45)
#: Motion by gradients below this share of that by weight decay is what rounding leaves of the subtraction.
DECAY_ONLY = 0.02


def explain_weight_motion(trace: Trace | Runs, tensor: str | None = None) -> str:
    """How far a tensor moved, what the schedule allowed, and what that means: four lines of numbers.

    :param trace: of `Runs` the first seed's.  :param tensor: its name; None: the head's largest trainable matrix.
    :raises ValueError: the trace has no tensor of that name, or none at all.

    >>> from pytest_ftcheck.core.example_trace import example_trace
    >>> print(explain_weight_motion(example_trace()).splitlines()[1])
    Elements:  100 % of 128 moved; displacement: relative L2 0.69 %, rms 1.38e-04, largest 4.40e-04.
    """
    trace = one_trace(trace)
    arguments.text("tensor", tensor, optional=True)
    t = shown_by_default(trace) if tensor is None else trace.tensor(tensor)
    lines = (
        ("Histogram:", f"{shorten(t.name, 60)}: {_histogram(t)}."),
        ("Elements:", f"{_elements(t)}."),
        ("Schedule:", _schedule(trace, t)),
        ("Meaning:", _meaning(trace, t)),
    )
    # names may hold line breaks; there are four lines nevertheless
    return "\n".join(f"{label:<10} {' '.join(text.split())}" for label, text in lines)


def shown_by_default(trace: Trace) -> Tensor:
    """The tensor that is explained where none is named: the head's largest trainable matrix.

    >>> from pytest_ftcheck.core.example_trace import example_trace
    >>> shown_by_default(example_trace()).name
    'classifier.weight'
    """
    if not trace.tensors:
        raise ValueError("the trace has no tensors: nothing to explain")
    return max(trace.tensors, key=lambda t: (t.part == "head", t.trainable, len(t.shape) > 1, t.numel))


# ------------------------------------------------------------------ what was measured
def _histogram(t: Tensor) -> str:
    text = f"std {number(t.first.std)} -> {number(t.last.std)}"
    distance = t.motion.wasserstein
    if t.first.std > 0:
        return f"{text}; Wasserstein distance {percent(distance / t.first.std)} of the initial std"
    return f"{text}; Wasserstein distance {number(distance)}, with no initial std to compare it with"


def _elements(t: Tensor) -> str:
    m = t.motion
    elements = f"{m.elements:,}" if m.elements >= t.numel else f"{m.elements:,} sampled elements (of {t.numel:,})"
    relative = f"relative L2 {percent(m.relative)}, " if m.relative is not None else ""
    far = f"{relative}rms {number(m.rms)}, largest {number(m.largest)}"
    return f"{percent(m.share_changed)} of {elements} moved; displacement: {far}"


def _schedule(trace: Trace, t: Tensor) -> str:
    steps = plural(len(trace.steps), "step")
    if t.group is None:
        return "in no parameter group of the optimizer: no step could move it."
    if not t.lr_sum > 0:
        return f"the learning rates of {steps} sum to {number(t.lr_sum)}: nothing could move."
    of_std = f" = {percent(t.lr_sum / t.first.std)} of the initial std" if t.first.std > 0 else ""
    text = f"the learning rates of {steps} sum to {number(t.lr_sum)}{of_std}"
    used = f"{percent(t.budget_used)} (rms, by gradients), {percent(t.motion.largest / t.lr_sum)} (largest)"
    family = trace.optimizer.family
    if family == "adam":
        return f"{text}; used {used}. Adam moves a weight by about one learning rate a step, seldom more."
    measured = (
        f"peak lr {number(t.lr_peak)}, largest gradient {number(t.gradients.max_rms)} (rms), "
        f"largest step {number(t.motion.max_update)} (rms)"
    )
    if family == "sgd":
        return f"{text}; SGD steps by lr * |gradient|, so the sum is no bound: {measured}."
    return f"{text}; the step size of {trace.optimizer.name} for a learning rate is not known: {measured}."


# ------------------------------------------------------------------ what it means
def _meaning(trace: Trace, t: Tensor) -> str:
    m, std = t.motion, t.first.std
    nonfinite = t.first.nonfinite or t.last.nonfinite
    if nonfinite or not all(map(math.isfinite, (m.share_changed, m.rms, m.by_gradient, m.by_decay, std, t.last.std))):
        return (
            f"NaN or infinite values ({t.first.nonfinite:,} before, {t.last.nonfinite:,} after): the numbers "
            "above say nothing about learning; assert_all_finite finds the first ones."
        )
    if t.replaced:
        return "the layer was replaced during the run: these numbers are those of the original tensor."
    if not trace.steps:
        return "no optimizer step was taken, so nothing could move."
    if m.share_changed == 0:
        return _did_not_move(trace, t)
    if m.between_steps > 0.5 * m.rms:
        return (
            f"it changed mostly outside the optimizer (rms {number(m.between_steps)} between steps): "
            "something else writes to these weights."
        )
    never = t.gradients.first_nonzero is None
    if m.by_decay > 0 and (never or m.by_gradient <= DECAY_ONLY * m.by_decay):
        reason = "its gradient was zero or None" if never else f"gradients account for rms {number(m.by_gradient)}"
        return (
            f"only weight decay moved it (rms {number(m.by_decay)}; {reason}): it shrinks and does not learn; "
            "assert_grads_nonzero finds the cause."
        )
    if std == 0:
        value = "zero" if t.first.rms == 0 else number(t.first.mean)
        return (
            f"every element started at {value}, so there is no std to compare with and any motion shows in the "
            f"histogram (std now {number(t.last.std)}); {_used(trace, t)[0]}."
        )
    ratio, shift = m.rms / std, m.wasserstein / std
    if ratio >= LARGE:
        gone = ", its initial values are gone" if ratio > 3 else ""
        return (
            f"it moved a lot: rms {percent(ratio)} of the initial std{gone}; that can be healthy training "
            f"from scratch or too high a learning rate. {_learned(trace, False)}."
        )
    used, sound = _used(trace, t)
    sound = sound and all(o.motion.share_changed > 0 for o in trace.tensors if o.part == "head" and o.trainable)
    if shift >= VISIBLE:
        shown = f"the histogram shows this motion ({percent(shift)} of the initial std)"
        return f"{shown}; {used}. {_learned(trace, sound)}."
    grows = math.sqrt(1 + ratio * ratio) - 1
    return (
        f"a histogram cannot show it: changes of rms {percent(ratio)} of the std, unrelated to the weights, "
        f"widen it by {percent(grows)}; {used}. {_learned(trace, sound)}."
    )


def _did_not_move(trace: Trace, t: Tensor) -> str:
    if not t.trainable:
        if trace.intent is not None and trace.intent.wants_trained(t.name):
            return "it is frozen (requires_grad is False) and did not move, though it is declared to train."
        return "it is frozen (requires_grad is False) and did not move, as expected."
    if t.unchanged is False:
        return "no sampled element moved, but its checksum changed: other elements did, perhaps rare rows."
    g = t.gradients
    if t.group is None:
        reason = "the optimizer does not hold it"
    elif not t.lr_sum > 0:
        reason = "its learning rate is zero"
    elif g.steps and g.none == g.steps:
        reason = "no gradient reached it"
    elif g.first_nonzero is None:
        reason = "its gradient was zero at every step"
    elif t.dtype in ("bfloat16", "float16"):
        reason = f"it got gradients, but {t.dtype} may be too coarse for steps this small"
    else:
        reason = "although it got gradients"
    return f"it did not move ({reason}): the histogram does not mislead; assert_weights_move finds the cause."


def _used(trace: Trace, t: Tensor) -> tuple[str, bool]:
    """Whether the motion is what the schedule leads to, in words and as a truth value."""
    used, m = t.budget_used, t.motion
    if t.dtype in ("bfloat16", "float16") and m.share_changed < 0.5 * m.share_with_gradient:
        unmoved = f"{percent(1 - m.share_changed)} of the elements did not move"
        return f"{unmoved}: {t.dtype} may be too coarse for steps this small", False
    if trace.optimizer.family != "adam" or used is None:
        return "the elements did move", True
    if used > 1.5:
        return f"gradients moved it by {percent(used)} of the LR sum, more than Adam alone explains", False
    if used >= LITTLE:
        return f"the elements did move, by {percent(used)} of what the schedule allows", True
    usual = t.role == "embedding"
    reason = (
        "usual where most rows are never looked up"
        if usual
        else f"healthy dense tensors: {100 * HEALTHY[0]:.0f}-{100 * HEALTHY[1]:.0f} %"
    )
    return f"the elements moved, but by {percent(used)} of what the schedule allows ({reason})", usual


def _learned(trace: Trace, sound: bool) -> str:
    """Whether the run learned, by its losses; ``sound``: the motion was as expected."""
    points = [p.loss for p in trace.probe_loss.points] if trace.probe_loss is not None else []
    if len(points) > 1:
        first, last, which = points[0], points[-1], "probe loss"
    elif len(trace.losses) >= 10:
        # single batches are noisy: means over tenths of the run
        k = max(5, len(trace.losses) // 10)
        first, last, which = _mean(trace.losses[:k]), _mean(trace.losses[-k:]), "training loss"
    else:
        return "Whether it learns is not measured: there is no loss"
    went = f"{which} {number(first)} -> {number(last)}"
    # noise rarely lowers the loss by a tenth; a run that learns soon does
    if last < 0.9 * first and first > 0:
        return f"{'Nothing is broken' if sound else 'The loss fell nevertheless'}: {went}"
    if last < first:
        return f"Whether it learns is undecided: {went}; see assert_loss_decreases"
    return f"The loss did not fall ({went}): see assert_loss_decreases"


def _mean(values: tuple[float, ...]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan
