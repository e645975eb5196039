"""What can be wrong with the gradient that the optimizer finds, beside the recomputed one: one function a fault.

Each looks at the steps whose gradient was recomputed and returns the verdict of `grads_match_reference`, or None. Where the optimizer found
exactly what a fault leaves (cosine 0.999), that decides. Where it only found *something else*, the loop must have computed the same loss,
which its losses show: other dropout masks, augmented rows or a second term give another gradient, and rightly so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

from ...core.formatting import number, percent, plural, shorten
from ...core.trace import Trace
from ...core.verdict import Status, Verdict
from ..loss.objective import descends_minus_measured
from ..spec import Fault
from . import faults
from .record import GradientMatch, ReferenceGradient, ReferenceStep, Slope

NAME = "grads_match_reference"
#: Two gradients of one direction: recomputed ones reach 0.999999 (measured), float16 sums 0.9999.
SAME = 0.999
#: Below this the direction differs beyond all rounding.
OTHER = 0.99
#: A whole part that points this far backwards is negated.
NEGATED = -0.9
#: Two losses are one: float32 forward passes with the same masks agree to 1e-6, float16 ones to 1e-3.
SAME_LOSS = 2e-3
#: Two norms are one: those of large tensors are estimated from a part of their elements.
SAME_NORM = 0.02
#: A gradient norm above the declared one by this factor was not clipped; where parts are clipped on their own, sqrt(2) is reached.
UNCLIPPED = 1.1
CLIPPED_APART = 1.5
#: Clipped to less than this share of the declared norm.
TOO_HARD = 0.5
#: Loss scales of a GradScaler are powers of two; those in use are at least this large.
LEAST_SCALE = 2.0**8
#: A gradient that points this far against that of the same loss.
BACKWARDS = -0.3
#: A slope is that of the tangent if a stride a fifth as long changes it by less than this share.
SETTLED = 0.2
#: The loss goes the other way than its own gradient says. Over 103 architectures the slope lay between 0.93 and 1.01; where the rows'
#: gradients nearly cancel, curvature alone gave 0.0 to 0.4 in healthy runs, so only the reverse is judged.
REVERSED = -0.5
#: Adam divides by sqrt(v) + eps: at an rms of eps / 100 its step is 1 % of the learning rate.
EPS_SHARE = 0.01


class Comparison:
    """The recomputed steps of a trace that can be judged, and what is known of the loop."""

    def __init__(self, trace: Trace, record: ReferenceGradient) -> None:
        self.trace, self.record = trace, record
        self.steps = [s for s in self.record.steps if s.part("all") is not None and s.losses]
        #: Those with finite gradients, of which the optimizer's is not zero.
        self.comparable = [
            s for s in self.steps if s.nonfinite == 0 and s.actual_nonfinite == 0 and _whole(s).actual > 0
        ]
        self.accumulation = self._accumulation()
        self.loss_factor = self._loss_factor()

    def _accumulation(self) -> int | None:
        """Batches for one optimizer step, where it is the same number throughout; else None."""
        batches, count = [], 0
        for iteration in self.trace.iterations:
            count += 1
            if iteration.steps:
                batches.append(count)
                count = 0
        return batches[0] if batches and len(set(batches)) == 1 else None

    def _loss_factor(self) -> float | None:
        """The loop's loss over the recomputed one, where it is the same for every batch; None: it is not, or is not known."""
        ratios = []
        for step in self.steps:
            for i, recomputed in zip(step.iterations, step.losses, strict=True):
                loss = self.trace.iterations[i].loss if i < len(self.trace.iterations) else None
                if loss is None or not math.isfinite(loss) or not math.isfinite(recomputed) or recomputed == 0:
                    return None
                ratios.append(loss / recomputed)
        if not ratios or ratios[0] == 0:
            return None
        centre = median(ratios)
        same = all(abs(r - centre) <= SAME_LOSS * abs(centre) for r in ratios)
        # a single ratio is always constant
        return centre if same and (len(ratios) > 2 or abs(centre - 1) <= SAME_LOSS) else None

    @property
    def reproduced(self) -> bool:
        """The loop computed the very loss that was recomputed, or a multiple of it."""
        return self.loss_factor is not None

    def matches(self, part: str) -> list[tuple[ReferenceStep, GradientMatch]]:
        """The part at each step where both gradients are there."""
        found = [(s, s.part(part)) for s in self.comparable]
        return [(s, m) for s, m in found if m is not None and m.cosine is not None]

    @property
    def same_direction(self) -> bool:
        """At every step the optimizer's gradient has the direction of the recomputed one."""
        return all(_reaches(_whole(s).cosine, OTHER) for s in self.comparable)

    @property
    def ratios(self) -> list[float]:
        """Length of what the optimizer found over that of the mean over the batches, a number a step."""
        pairs = [(_whole(s), len(s.iterations)) for s in self.comparable]
        return [m.actual * k / m.reference for m, k in pairs if m.reference > 0]


def reference_verdicts(trace: Trace) -> tuple[Verdict, ...]:
    """One verdict for each fault of a trace, those that fail first."""
    record = trace.measured(ReferenceGradient)
    found: list[Verdict | None] = [clipping_without_effect(trace)]
    if record is not None:
        view = Comparison(trace, descended_gradients(trace, record))
        found = [*(finder(view) for finder in FINDERS), *found]
    return tuple(sorted((v for v in found if v is not None), key=lambda v: v.status != "fail"))


def found_by_reference(trace: Trace, *candidates: Fault) -> Fault | None:
    """The first of these faults that the recomputed gradients show, with its cause and remedy."""
    failed = {v.fault: v for v in reference_verdicts(trace) if v.status == "fail"}
    for fault in candidates:
        if fault.name in failed:
            verdict = failed[fault.name]
            return fault.because(verdict.causes[0], verdict.remedy)
    return None


def descended_gradients(trace: Trace, record: ReferenceGradient) -> ReferenceGradient:
    """The record, with what an optimizer that maximizes descends: minus the gradient that it found.

    That is so where it found the opposite of the loss's gradient at every step (a log-likelihood). If the loss is itself minus that of
    the task, its opposite is what it climbs.
    """
    cosines = [m.cosine for s in record.steps if (m := s.part("all")) is not None and m.cosine is not None]
    limit = BACKWARDS if Comparison(trace, record).reproduced else NEGATED
    if not trace.optimizer.maximizes or not cosines or max(cosines) > limit or descends_minus_measured(trace):
        return record
    return replace(record, steps=tuple(_of_minus(step) for step in record.steps))


def _of_minus(step: ReferenceStep) -> ReferenceStep:
    """The step, with minus the gradient that the optimizer found; which tensors then fit least is not known."""

    def minus(cosine: float | None) -> float | None:
        return None if cosine is None else -cosine

    parts = tuple(
        replace(
            m,
            cosine=minus(m.cosine),
            last_batch=minus(m.last_batch),
            previous_step=minus(m.previous_step),
            since_start=minus(m.since_start),
        )
        for m in step.parts
    )
    return replace(step, parts=parts, wrong_direction=(), least_aligned=())


# ------------------------------------------------------------------ one function a fault
def nan_gradients_replaced(view: Comparison) -> Verdict | None:
    """The gradient is NaN, and the optimizer finds numbers."""
    bad = [s for s in view.steps if s.nonfinite and not s.actual_nonfinite and all(map(math.isfinite, s.losses))]
    if not view.reproduced or not bad or (len(bad) < 2 < len(view.steps)):
        return None
    most = max(s.nonfinite for s in bad)
    return faults.NAN_GRADIENTS_REPLACED.verdict(
        NAME,
        f"The gradient of the loss is NaN or infinite in {most} of {bad[0].tensors} tensors at {len(bad)} of {len(view.steps)} recomputed "
        "steps, but the optimizer found finite numbers there.",
    )


def gradient_lost(view: Comparison) -> Verdict | None:
    """The loss has a gradient, and the optimizer finds none."""
    empty = [s for s in view.steps if _whole(s).actual == 0 and not s.actual_nonfinite and _whole(s).reference > 0]
    if not empty or len(empty) < len(view.steps):
        return None
    loss = f"The loss has a gradient (norm {number(median(_whole(s).reference for s in empty))})"
    steps = f"at {len(empty)} of {len(view.steps)} recomputed steps"
    if all(s.backward_reached is False for s in empty):
        return faults.BACKWARD_REACHES_NOTHING.verdict(
            NAME, f"{loss}, but {steps} the loop's backward() brought none to any tensor."
        )
    return faults.GRADS_GONE_BEFORE_STEP.verdict(NAME, f"{loss}, but {steps} the optimizer found none.")


def loss_cut_off(view: Comparison) -> Verdict | None:
    """The loss does not depend on any weight."""
    if view.record.loss_connected is not False or not view.steps or any(_whole(s).actual > 0 for s in view.steps):
        return None
    headline = f"The loss depends on none of the {view.steps[0].tensors} trainable tensors"
    if view.record.logits_connected:
        fault = faults.LOSS_CUT_OFF.because(
            "the logits lose their graph on the way into the loss: .data, .detach(), argmax, .item(), numpy or a new tensor "
            "(loss.requires_grad_(True) only silences autograd)",
            "compute the loss from the logits as the model returns them, and do not call requires_grad_(True) on it",
        )
        return fault.verdict(NAME, f"{headline}, though the logits do: the graph is cut between them.")
    fault = faults.LOSS_CUT_OFF.because(
        "nothing connects the loss to the weights: .detach(), .data, torch.no_grad() or numpy in the forward pass",
        "let the tensors of the forward pass reach the loss unchanged",
    )
    where = " inside the model" if view.record.logits_connected is False else ""
    return fault.verdict(NAME, f"{headline}: the graph is cut{where}.")


def grads_negated(view: Comparison) -> Verdict | None:
    """The optimizer climbs."""
    for part in ("all", "head", "base"):
        cosines = [m.cosine for _, m in view.matches(part) if m.cosine is not None]
        limit = NEGATED if not view.reproduced else BACKWARDS
        if len(cosines) < min(2, len(view.steps)) or not cosines or max(cosines) > limit:
            continue
        gradient = "The gradient" if part == "all" else f"The gradient of the {part}"
        return faults.GRADS_NEGATED.verdict(
            NAME,
            f"{gradient} that the optimizer found points against that of the loss, so the optimizer climbs (cosine "
            f"{number(median(cosines))} at {plural(len(cosines), 'step')}).",
        )
    return None


def grads_never_zeroed(view: Comparison) -> Verdict | None:
    """zero_grad is missing, or leaves out a part."""
    for part in ("all", "head", "base"):
        found = [(s, m) for s, m in view.matches(part) if m.since_start is not None]
        # only steps at which the two differ decide: a part that had no gradient before has the same sum
        decisive = [(s, m) for s, m in found if not _reaches(m.cosine, OTHER)]
        if not decisive or not all(_reaches(m.since_start, SAME) for _, m in found):
            continue
        step, match = min(decisive, key=lambda row: row[1].cosine or 0.0)
        where = "" if part == "all" else f" in the {part}"
        return faults.GRADS_NEVER_ZEROED.verdict(
            NAME,
            f"At step {step.step} the optimizer found{where} the sum of all gradients since the run began (cosine "
            f"{number(match.since_start)}), not that of the step's own {_batches(step)} (cosine {number(match.cosine)}).",
        )
    return None


def grads_never_zeroed_while_watched(view: Comparison) -> Verdict | None:
    """zero_grad is missing in a watched loop."""
    steps = view.record.watched_steps
    # only steps at which the two differ decide: a gradient in the direction of the last one adds up to the same direction
    decisive = [s for s in steps if s.fresh < OTHER]
    if len(decisive) < 2 or not all(s.accumulated >= SAME for s in steps):
        return None
    step = min(decisive, key=lambda s: s.fresh)
    return faults.GRADS_NEVER_ZEROED.verdict(
        NAME,
        f"At {plural(len(steps), 'step')} the optimizer found the new gradient added to that of the step before (cosine "
        f"{number(min(s.accumulated for s in steps))} or more), not the new one alone (cosine {number(step.fresh)} at step {step.step}).",
    )


def micro_batches_lost(view: Comparison) -> Verdict | None:
    """Of several batches for a step only the last one counts."""
    found = [(s, m) for s, m in view.matches("all") if m.last_batch is not None]
    declared = view.trace.intent.accumulation if view.trace.intent is not None else None
    known = view.accumulation is not None or (declared is not None and declared > 1)
    if not known or len(found) < min(2, len(view.comparable)) or not found:
        return None
    if not all(_reaches(m.last_batch, SAME) for _, m in found) or all(_reaches(m.cosine, OTHER) for _, m in found):
        return None
    step, match = min(found, key=lambda row: row[1].cosine or 0.0)
    k = len(step.iterations)
    return faults.MICRO_BATCHES_LOST.with_details(share=percent(1 - 1 / k)).verdict(
        NAME,
        f"Of the {k} batches for one optimizer step only the last one counts: the optimizer found the gradient of the last (cosine "
        f"{number(match.last_batch)}), not that of all {k} (cosine {number(match.cosine)}).",
    )


def grads_one_step_late(view: Comparison) -> Verdict | None:
    """Each step uses the gradient of the step before."""
    found = [(s, m) for s, m in view.matches("all") if m.previous_step is not None]
    if not found or not all(_reaches(m.previous_step, SAME) and not _reaches(m.cosine, OTHER) for _, m in found):
        return None
    step, match = found[0]
    return faults.GRADS_ONE_STEP_LATE.verdict(
        NAME,
        f"At step {step.step} the optimizer found the gradient of the step before (cosine {number(match.previous_step)}), not that of this "
        f"step (cosine {number(match.cosine)}).",
    )


def clipped_to_nothing(view: Comparison) -> Verdict | None:
    """Clipped to far less than was declared, or to less than Adam needs."""
    clipped = [(s, r) for s, r in zip(view.comparable, view.ratios, strict=False) if r < 1 - SAME_NORM]
    norms = [view.trace.steps[s.step].grad_norm for s, _ in clipped if s.step < len(view.trace.steps)]
    if len(norms) < 2 or not view.same_direction or not _constant(norms):
        return None
    norm = median(norms)
    declared = view.trace.intent.max_grad_norm if view.trace.intent is not None else None
    size = sum(t.numel for t in view.trace.tensors if t.trainable and t.group is not None)
    eps = [g.settings.get("eps", 0.0) for g in view.trace.optimizer.groups]
    below_eps = view.trace.optimizer.family == "adam" and bool(eps) and norm < EPS_SHARE * max(eps) * math.sqrt(size)
    if not below_eps and not (declared and norm < TOO_HARD * declared):
        return None
    fault = faults.CLIPPED_TO_NOTHING
    scale = declared / norm if declared else 0.0
    if declared and scale >= LEAST_SCALE and _is_power_of_two(scale):
        fault = fault.because(
            f"scaler.unscale_(optimizer) is missing before clip_grad_norm_: the gradient is clipped while it is still multiplied by the "
            f"GradScaler's scale ({_power_of_two(scale)})",
            "call scaler.unscale_(optimizer) before clip_grad_norm_",
        )
    before = median(_whole(s).reference / len(s.iterations) for s, _ in clipped)
    against = f"where {declared:g} is declared" if declared else "too little beside Adam's eps"
    return fault.verdict(
        NAME,
        f"The gradient is clipped from a norm of {number(before)} to {number(norm)} at {len(norms)} of {len(view.comparable)} recomputed "
        f"steps, {against}.",
    )


def gradient_reversed(view: Comparison) -> Verdict | None:
    """The gradient itself is wrong: the loss falls where its gradient says that it rises."""
    reversed_slopes = [s for s in view.record.slopes if max(s.longer_stride_ratio, s.ratio) < REVERSED and settled(s)]
    if not reversed_slopes:
        return None
    slope = min(
        reversed_slopes, key=lambda s: (s.part == "embeddings", s.ratio)
    )  # the embeddings are a part of the base
    return faults.GRADIENT_REVERSED.verdict(
        NAME,
        f"Moving the {slope.part} along its own gradient lowers the loss: it changes by {number(slope.ratio)} times what the gradient "
        "predicts (dropout off).",
    )


def grads_removed(view: Comparison) -> Verdict | None:
    """Some tensors lose their gradient before the step."""
    intent = view.trace.intent
    thaw = (intent.thaw_step or 0) if intent is not None else 0
    steps = [s for s in view.steps if s.step >= thaw and _whole(s).actual > 0]
    if intent is None or not view.reproduced or not steps or (len(steps) < 2 <= len(view.steps)):
        return None
    names = set(steps[0].missing).intersection(*(s.missing for s in steps))
    names = {n for n in names if intent.wants_trained(n)}
    if not names:
        return None
    return faults.GRADS_REMOVED.verdict(
        NAME,
        f"Backward gives a gradient to {plural(len(names), 'tensor')} declared to be trained, but the optimizer found none at "
        f"{plural(len(steps), 'recomputed step')}: {_first(names)}.",
    )


def grads_of_another(view: Comparison) -> Verdict | None:
    """Tensors with the gradient of something else."""
    steps = view.comparable
    if len(steps) < 2:
        return None
    if found := _exchanged(steps):
        return found
    if not view.reproduced:
        return None
    names = set(steps[0].wrong_direction).intersection(*(s.wrong_direction for s in steps))
    if not names:
        return None
    known = [m.cosine for s in steps for m in s.least_aligned if m.name in names and m.cosine is not None]
    cosine = f" (lowest cosine {number(min(known))})" if known else ""
    return faults.GRADS_OF_ANOTHER.verdict(
        NAME,
        f"{plural(len(names), 'tensor')} got a gradient of about the right size in another direction{cosine} at each of {len(steps)} "
        f"recomputed steps: {_first(names)}.",
    )


def _exchanged(steps: Sequence[ReferenceStep]) -> Verdict | None:
    """Tensors with the gradient of another one, at each step the same: no other loss gives them that."""
    pairs = set.intersection(*({(e.tensor, e.of) for e in s.exchanged} for s in steps))
    if not pairs:
        return None
    tensor, other = min(pairs)
    known = [e for s in steps for e in s.exchanged if (e.tensor, e.of) == (tensor, other)]
    cosine, own = min(e.other_cosine for e in known), max(e.own_cosine for e in known)
    return faults.GRADS_OF_ANOTHER.because("gradients are assigned in another order than the parameters").verdict(
        NAME,
        f"{plural(len(pairs), 'tensor')} got the gradient of another tensor at each of {len(steps)} recomputed steps: {shorten(tensor)} "
        f"has that of {shorten(other)} (cosine {number(cosine)}; with its own {number(own)} at most).",
    )


def wrong_length(view: Comparison) -> Verdict | None:
    """The direction is right, and the length is constantly wrong."""
    ratios = view.ratios
    if len(ratios) < 2 or not _constant(ratios) or not view.same_direction:
        return None
    k = view.accumulation or 1
    # a loss in another unit has a gradient in that unit; one that is a k-th of it has the right mean over k batches
    ratio = median(ratios) / (abs(view.loss_factor or 1.0) if k == 1 else 1.0)
    status: Status = "advice" if view.trace.optimizer.family == "adam" else "fail"
    effect = (
        "the steps of Adam depend on this factor only through eps"
        if status == "advice"
        else "the steps are that much longer"
    )
    if k > 1 and abs(ratio / k - 1) <= SAME_NORM:
        return faults.ACCUMULATION_NOT_AVERAGED.with_details(batches=k).verdict(
            NAME,
            f"The gradients of {k} batches are summed, not averaged: {number(ratio)} times the mean; {effect}.",
            status,
        )
    if k > 1 and abs(ratio * k - 1) <= SAME_NORM and status == "fail":
        return faults.ACCUMULATION_DIVIDED_TWICE.verdict(
            NAME,
            f"The gradient of {k} batches is divided by {k} twice: {number(ratio)} times their mean, so the steps are that much shorter.",
        )
    declared = view.trace.intent.accumulation if view.trace.intent is not None else None
    if k == 1 and declared and declared > 1 and abs(ratio * declared - 1) <= SAME_NORM:
        return faults.BATCHES_NOT_ACCUMULATED.with_details(batches=declared).verdict(
            NAME,
            f"The optimizer steps at every batch, on 1/{declared} of its gradient, but accumulation over {declared} batches is declared.",
        )
    if ratio >= LEAST_SCALE and _is_power_of_two(ratio):
        return faults.GRADS_STILL_SCALED.verdict(
            NAME,
            f"The optimizer found {_power_of_two(ratio)} times the gradient of the loss at {len(ratios)} recomputed steps; {effect}.",
            status,
        )
    return None


def clipping_without_effect(trace: Trace) -> Verdict | None:
    """The gradient norm exceeds the declared maximum; known without recomputed gradients."""
    declared = trace.intent.max_grad_norm if trace.intent is not None else None
    if not declared or not math.isfinite(declared):
        return None
    if "lbfgs" in trace.optimizer.name.lower():  # it computes its gradients itself
        return None
    estimated = any(t.gradients.stride > 1 for t in trace.tensors)
    groups = max(1, len(trace.optimizer.groups))
    record = trace.measured(ReferenceGradient)
    factor = CLIPPED_APART if record is not None and _parts_clipped_apart(record.steps) else UNCLIPPED
    limit = declared * factor * math.sqrt(groups) * (2.0 if estimated else 1.0)
    norms = [s.grad_norm for s in trace.steps if math.isfinite(s.grad_norm)]
    above = [n for n in norms if n > limit]
    if len(above) < max(3, 0.1 * len(norms)):
        return None
    return faults.CLIPPING_WITHOUT_EFFECT.verdict(
        NAME,
        f"Gradients are declared to be clipped to a norm of {declared:g}, but the norm exceeded {number(limit)} at {len(above)} of "
        f"{len(norms)} steps ({number(max(above))} at most).",
    )


def _parts_clipped_apart(steps: Sequence[ReferenceStep]) -> bool:
    """Whether head and base were shortened by different factors at some step."""
    for step in steps:
        shares = [m.actual / m.reference for m in step.parts if m.name != "all" and m.reference > 0 and m.actual > 0]
        if len(shares) == 2 and not _constant(shares):
            return True
    return False


#: The most certain first.
FINDERS: tuple[Callable[[Comparison], Verdict | None], ...] = (
    nan_gradients_replaced,
    loss_cut_off,
    gradient_lost,
    grads_negated,
    grads_never_zeroed,
    grads_never_zeroed_while_watched,
    micro_batches_lost,
    grads_one_step_late,
    clipped_to_nothing,
    gradient_reversed,
    grads_removed,
    grads_of_another,
    wrong_length,
)


# ------------------------------------------------------------------ helpers
def settled(slope: Slope) -> bool:
    """A shorter stride gives the same: the loss is smooth there, and near enough to its tangent."""
    return abs(slope.longer_stride_ratio - slope.ratio) <= SETTLED * max(abs(slope.ratio), 0.1)


def _whole(step: ReferenceStep) -> GradientMatch:
    match = step.part("all")
    assert match is not None
    return match


def _reaches(cosine: float | None, limit: float) -> bool:
    return cosine is not None and cosine >= limit


def _constant(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) <= (1 + SAME_NORM) * min(values)


def _is_power_of_two(value: float) -> bool:
    exponent = math.log2(value)
    return abs(exponent - round(exponent)) <= SAME_NORM


def _power_of_two(value: float) -> str:
    """The nearest power of two, in digits."""
    return f"{2.0 ** round(math.log2(value)):,.0f}"


def _first(names: set[str]) -> str:
    return f"{shorten(min(names))}{' and others' if len(names) > 1 else ''}"


def _batches(step: ReferenceStep) -> str:
    count = len(step.iterations)
    return "batch" if count == 1 else f"{count} batches"
