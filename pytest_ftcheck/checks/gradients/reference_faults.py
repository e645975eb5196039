"""What can be the matter with the gradient that the optimizer finds, beside the one that it should find: one function a fault.

Each looks at the steps whose gradient was recomputed and returns a `Finding`, or None. Where the optimizer found exactly what the
hypothesis says (cosine 0.999), nothing else needs to be known. Where it only found *something else*, the loop must have computed the
same loss, which shows in the losses it told: other dropout masks, augmented rows or a second term would be another gradient, rightly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from ...core.formatting import number, percent, plural, shorten
from ...core.trace import Trace
from ...core.verdict import Status
from .record import GradientMatch, ReferenceGradient, ReferenceStep, Slope

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
APART = 1.5
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


@dataclass(frozen=True)
class Finding:
    """One fault."""

    fault: str
    #: What is said of it in one sentence (no full stop), the cause, and the line to change.
    headline: str
    cause: str
    remedy: str
    status: Status = "fail"


class View:
    """The steps that can be judged, and what is known of them."""

    def __init__(self, trace: Trace) -> None:
        record = trace.measured(ReferenceGradient)
        assert record is not None
        self.trace, self.record = trace, record
        self.steps = [s for s in self.record.steps if s.part("all") is not None and s.losses]
        self.alive = [s for s in self.steps if s.nonfinite == 0 and s.actual_nonfinite == 0 and _all(s).actual > 0]
        self.accumulation = self._accumulation()
        self.factor = self._factor()

    def _accumulation(self) -> int | None:
        """Batches for one optimizer step, where it is the same number throughout; else None."""
        gaps, since = [], 0
        for iteration in self.trace.iterations:
            since += 1
            if iteration.steps:
                gaps.append(since)
                since = 0
        return gaps[0] if gaps and len(set(gaps)) == 1 else None

    def _factor(self) -> float | None:
        """The told loss over the recomputed one, where it is the same for every batch; None: it is not, or none was told."""
        ratios = []
        for step in self.steps:
            for i, loss in zip(step.iterations, step.losses, strict=True):
                told = self.trace.iterations[i].loss if i < len(self.trace.iterations) else None
                if told is None or not math.isfinite(told) or not math.isfinite(loss) or loss == 0:
                    return None
                ratios.append(told / loss)
        if not ratios or ratios[0] == 0:
            return None
        centre = median(ratios)
        same = all(abs(r - centre) <= SAME_LOSS * abs(centre) for r in ratios)
        # one ratio alone is constant always
        return centre if same and (len(ratios) > 2 or abs(centre - 1) <= SAME_LOSS) else None

    @property
    def reproduced(self) -> bool:
        """The loop computed the very loss that was recomputed, or a multiple of it."""
        return self.factor is not None

    def matches(self, part: str) -> list[tuple[ReferenceStep, GradientMatch]]:
        """The part at each step where both gradients are there."""
        found = [(s, s.part(part)) for s in self.alive]
        return [(s, m) for s, m in found if m is not None and m.cosine is not None]

    @property
    def ratios(self) -> list[float]:
        """Length of what the optimizer found over that of the mean over the batches, a number a step."""
        pairs = [(_all(s), len(s.iterations)) for s in self.alive]
        return [m.actual * k / m.reference for m, k in pairs if m.reference > 0]


def _all(step: ReferenceStep) -> GradientMatch:
    match = step.part("all")
    assert match is not None
    return match


def nan_replaced(view: View) -> Finding | None:
    """The gradient is NaN, and the optimizer finds numbers."""
    bad = [s for s in view.steps if s.nonfinite and not s.actual_nonfinite and all(map(math.isfinite, s.losses))]
    if not view.reproduced or not bad or (len(bad) < 2 < len(view.steps)):
        return None
    most = max(s.nonfinite for s in bad)
    return Finding(
        "nan_gradients_replaced",
        f"the gradient of the loss is NaN or infinite in {most} of {bad[0].tensors} tensors at {len(bad)} of {len(view.steps)} recomputed "
        "steps, and the optimizer found finite numbers in their place",
        "NaN gradients are replaced on the way (torch.nan_to_num, a mask), so those tensors learn nothing from such batches",
        "take the replacement out and look for the cause under torch.autograd.set_detect_anomaly(True): sqrt or norm at 0, 0/0, log(0)",
    )


def dropped(view: View) -> Finding | None:
    """backward() gives a gradient, the optimizer finds none."""
    empty = [s for s in view.steps if _all(s).actual == 0 and not s.actual_nonfinite and _all(s).reference > 0]
    if not empty or len(empty) < len(view.steps):
        return None
    size = median(_all(s).reference for s in empty)
    if all(s.accumulated is False for s in empty):
        return Finding(
            "backward_reaches_nothing",
            f"the loss has a gradient (norm {number(size)}), and at {len(empty)} of {len(view.steps)} recomputed steps the loop's "
            "backward() brought none to any tensor",
            "the loss that the loop calls backward() on is cut off from the weights (.item(), .detach(), torch.no_grad(), a tensor made "
            "anew, to which requires_grad=True gives no graph), or backward() is not called at all",
            "call backward() on the loss as the loss function returns it",
        )
    return Finding(
        "grads_gone_before_step",
        f"the loss has a gradient (norm {number(size)}), and at {len(empty)} of {len(view.steps)} recomputed steps "
        "the optimizer found none",
        "zero_grad() comes between backward() and optimizer.step(), or backward() is not called on this loss at all (another one, or one "
        "that the loop cut off from the weights: torch.no_grad(), .item(), a tensor made anew)",
        "order the loop as zero_grad(), backward(), step()",
    )


def loss_cut(view: View) -> Finding | None:
    """The loss does not depend on any weight."""
    if view.record.loss_connected is not False or not view.steps or any(_all(s).actual > 0 for s in view.steps):
        return None
    if view.record.logits_connected:
        return Finding(
            "loss_cut_off",
            f"the loss depends on none of the {view.steps[0].tensors} trainable tensors, though the logits do: "
            "the graph is cut between them",
            "the logits lose their graph on the way into the loss: .data, .detach(), argmax, .item(), numpy or a tensor made anew "
            "(and loss.requires_grad_(True) only silences autograd)",
            "compute the loss from the logits as the model returns them, and take requires_grad_(True) off the loss",
        )
    where = " inside the model" if view.record.logits_connected is False else ""
    return Finding(
        "loss_cut_off",
        f"the loss depends on none of the {view.steps[0].tensors} trainable tensors: the graph is cut{where}",
        "nothing links the loss to the weights: .detach(), .data, torch.no_grad() or numpy in the forward pass",
        "let the tensors of the forward pass reach the loss as they are",
    )


def negated(view: View) -> Finding | None:
    """The optimizer climbs."""
    for part in ("all", "head", "base"):
        found = view.matches(part)
        cosines = [m.cosine for _, m in found if m.cosine is not None]
        limit = NEGATED if not view.reproduced else BACKWARDS
        if len(cosines) < min(2, len(view.steps)) or not cosines or max(cosines) > limit:
            continue
        what = "the gradient" if part == "all" else f"the gradient of the {part}"
        return Finding(
            "grads_negated",
            f"{what} that the optimizer found points against that of the loss (cosine {number(median(cosines))} at "
            f"{plural(len(cosines), 'step')}): it climbs",
            "a minus sign too many: backward() on -loss, maximize=True kept beside it, or gradients negated by hand",
            "take the minus sign away: the optimizer descends on its own",
        )
    return None


def summed_up(view: View) -> Finding | None:
    """zero_grad is missing, or misses a part."""
    for part in ("all", "head", "base"):
        found = [(s, m) for s, m in view.matches(part) if m.total is not None]
        # where the two differ: a part that had no gradient before has the same sum
        telling = [(s, m) for s, m in found if not _is(m.cosine, OTHER)]
        if not telling or not all(_is(m.total, SAME) for _, m in found):
            continue
        step, worst = min(telling, key=lambda row: row[1].cosine or 0.0)
        what = "the optimizer found" if part == "all" else f"the optimizer found in the {part}"
        return Finding(
            "grads_never_zeroed",
            f"at step {step.step} {what} the sum of all gradients since the run began (cosine {number(worst.total)}), not that of the "
            f"step's own {_batches(step)} (cosine {number(worst.cosine)})",
            "zero_grad() is never called, or on another optimizer, so the gradients of all steps add up",
            "call optimizer.zero_grad() once a step",
        )
    return None


def left_over(view: View) -> Finding | None:
    """zero_grad is missing in a watched loop."""
    steps = view.record.leftovers
    # where the two differ: a gradient of the direction of the last one adds up to the same direction
    telling = [s for s in steps if s.own < OTHER]
    if len(telling) < 2 or not all(s.kept >= SAME for s in steps):
        return None
    worst = min(telling, key=lambda s: s.own)
    return Finding(
        "grads_never_zeroed",
        f"at {plural(len(steps), 'step')} the optimizer found the gradient of the step before with the new one added to it (cosine "
        f"{number(min(s.kept for s in steps))} or more), not what backward() had just brought (cosine {number(worst.own)} at step "
        f"{worst.step})",
        "zero_grad() is never called, or on another optimizer, so the gradients of all steps add up",
        "call optimizer.zero_grad() once a step",
    )


def lost_batches(view: View) -> Finding | None:
    """Of several batches for a step only the last one counts."""
    found = [(s, m) for s, m in view.matches("all") if m.last is not None]
    meant = view.trace.intent.accumulation if view.trace.intent is not None else None
    known = view.accumulation is not None or (meant is not None and meant > 1)
    if not known or len(found) < min(2, len(view.alive)) or not found:
        return None
    if not all(_is(m.last, SAME) for _, m in found) or all(_is(m.cosine, OTHER) for _, m in found):
        return None
    step, worst = min(found, key=lambda row: row[1].cosine or 0.0)
    k = len(step.iterations)
    return Finding(
        "micro_batches_lost",
        f"of the {k} batches for one optimizer step only the last one counts: the gradient found is that of the last (cosine "
        f"{number(worst.last)}), not that of all {k} (cosine {number(worst.cosine)})",
        f"zero_grad() is called at every batch, so {percent(1 - 1 / k)} of the rows never reach the weights",
        "call zero_grad() only after optimizer.step()",
    )


def stale(view: View) -> Finding | None:
    """Each step uses the gradient of the step before."""
    found = [(s, m) for s, m in view.matches("all") if m.previous is not None]
    if not found or not all(_is(m.previous, SAME) and not _is(m.cosine, OTHER) for _, m in found):
        return None
    step, worst = found[0]
    return Finding(
        "grads_one_step_late",
        f"at step {step.step} the optimizer found the gradient of the step before (cosine {number(worst.previous)}), not its own "
        f"(cosine {number(worst.cosine)})",
        "optimizer.step() comes before backward(): each step uses the gradient of the batch before",
        "order the loop as zero_grad(), backward(), step()",
    )


def missing(view: View) -> Finding | None:
    """Some tensors lose their gradient before the step."""
    intent = view.trace.intent
    thaw = (intent.thaw_step or 0) if intent is not None else 0
    steps = [s for s in view.steps if s.step >= thaw and _all(s).actual > 0]
    if intent is None or not view.reproduced or not steps or (len(steps) < 2 <= len(view.steps)):
        return None
    names = set(steps[0].missing).intersection(*(s.missing for s in steps))
    names = {n for n in names if intent.wants_trained(n)}
    if not names:
        return None
    first = min(names)
    return Finding(
        "grads_removed",
        f"{plural(len(names), 'tensor')} that should learn (declared) got a gradient from backward, and the optimizer found none of it "
        f"at {plural(len(steps), 'recomputed step')}: {shorten(first)}{' and others' if len(names) > 1 else ''}",
        "something between backward() and optimizer.step() sets these gradients to zero or None: a mask, a freeze by hand, a hook, a "
        "loss of the loop's own that leaves them out",
        "look at what the loop does with .grad, and at what its own loss depends on",
    )


def elsewhere(view: View) -> Finding | None:
    """Tensors with the gradient of something else."""
    steps = view.alive
    if not view.reproduced or len(steps) < 2:
        return None
    names = set(steps[0].astray).intersection(*(s.astray for s in steps))
    if not names:
        return None
    first = min(names)
    known = [m.cosine for s in steps for m in s.worst if m.name in names and m.cosine is not None]
    cosine = f" (cosine {number(min(known))} at the worst)" if known else ""
    return Finding(
        "grads_of_another",
        f"{plural(len(names), 'tensor')} got a gradient of about the right size that is not theirs{cosine} at each of {len(steps)} "
        f"recomputed steps: {shorten(first)}{' and others' if len(names) > 1 else ''}",
        "gradients are assigned in another order than the parameters, come from another batch or model, or their sign is turned for some",
        "look at what the loop writes into .grad: zip(parameters, gradients) must pair like with like",
    )


def not_clipped(trace: Trace) -> Finding | None:
    """The declared clipping never bites."""
    meant = trace.intent.max_grad_norm if trace.intent is not None else None
    if (
        not meant or not math.isfinite(meant) or "lbfgs" in trace.optimizer.name.lower()
    ):  # it computes its gradients itself
        return None
    estimated = any(t.gradients.stride > 1 for t in trace.tensors)
    groups = max(1, len(trace.optimizer.groups))
    record = trace.measured(ReferenceGradient)
    factor = APART if record is not None and _parts_clipped_apart(record.steps) else UNCLIPPED
    limit = meant * factor * math.sqrt(groups) * (2.0 if estimated else 1.0)
    norms = [s.grad_norm for s in trace.steps if math.isfinite(s.grad_norm)]
    above = [n for n in norms if n > limit]
    if len(above) < max(3, 0.1 * len(norms)):
        return None
    return Finding(
        "clipping_without_effect",
        f"the gradient norm was {number(max(above))} at a step, and above {number(limit)} at {len(above)} of {len(norms)}, where you meant "
        f"it to be clipped to {meant:g}",
        "clip_grad_norm_ comes before backward() or after step(), is given other parameters, or is not called",
        "call clip_grad_norm_(model.parameters(), max_norm) between backward() (after scaler.unscale_) and step()",
    )


def _parts_clipped_apart(steps: Sequence[ReferenceStep]) -> bool:
    """Whether head and base were shortened by different factors at some step."""
    for step in steps:
        shares = [m.actual / m.reference for m in step.parts if m.name != "all" and m.reference > 0 and m.actual > 0]
        if len(shares) == 2 and not _level(shares):
            return True
    return False


def clipped_too_hard(view: View) -> Finding | None:
    """Clipped to far less than was meant, or to nothing."""
    ratios = view.ratios
    cut = [(s, r) for s, r in zip(view.alive, ratios, strict=False) if r < 1 - SAME_NORM]
    norms = [view.trace.steps[s.step].grad_norm for s, _ in cut if s.step < len(view.trace.steps)]
    if len(norms) < 2 or not all(_is(_all(s).cosine, OTHER) for s in view.alive) or not _level(norms):
        return None
    cap = median(norms)
    meant = view.trace.intent.max_grad_norm if view.trace.intent is not None else None
    size = sum(t.numel for t in view.trace.tensors if t.trainable and t.group is not None)
    eps = [g.settings.get("eps", 0.0) for g in view.trace.optimizer.groups]
    nothing = view.trace.optimizer.family == "adam" and bool(eps) and cap < EPS_SHARE * max(eps) * math.sqrt(size)
    if not nothing and not (meant and cap < TOO_HARD * meant):
        return None
    scale = meant / cap if meant else 0.0
    before = median(s_norm for s_norm in (_all(s).reference / len(s.iterations) for s, _ in cut))
    cause = "max_norm is the norm that is left over all tensors together, not a precision or a rate"
    if meant and scale >= LEAST_SCALE and _power_of_two(scale):
        cause = (
            f"it is clipped while still multiplied by the GradScaler's scale ({_power(scale)}), and divided by it "
            "afterwards: scaler.unscale_(optimizer) is missing before clip_grad_norm_"
        )
    said = f"where you meant {meant:g}" if meant else "which Adam's eps swallows"
    return Finding(
        "clipped_to_nothing",
        f"the gradient is clipped from a norm of {number(before)} to {number(cap)} at {len(norms)} of {len(view.alive)} recomputed steps, "
        f"{said}",
        cause,
        "call scaler.unscale_(optimizer) first" if "unscale_" in cause else "clip to a norm of about 1",
    )


def scaled(view: View) -> Finding | None:
    """A direction that is right, and a length that is not."""
    ratios = view.ratios
    if len(ratios) < 2 or not _level(ratios) or not all(_is(_all(s).cosine, OTHER) for s in view.alive):
        return None
    k = view.accumulation or 1
    # a loss that is told in another unit has a gradient in that unit; told a k-th of it, the mean over k batches is as it should be
    ratio = median(ratios) / (abs(view.factor or 1.0) if k == 1 else 1.0)
    status: Status = "advice" if view.trace.optimizer.family == "adam" else "fail"
    family = "Adam divides it away, all but its eps" if status == "advice" else "its steps are that much longer"
    if k > 1 and abs(ratio / k - 1) <= SAME_NORM:
        return Finding(
            "accumulation_not_averaged",
            f"the gradients of {k} batches are summed, not averaged: {number(ratio)} times the mean; {view.trace.optimizer.name}: {family}",
            "the losses of the batches are not divided by their number",
            f"(loss / {k}).backward(), or divide the learning rate by {k}",
            status,
        )
    if k > 1 and abs(ratio * k - 1) <= SAME_NORM and status == "fail":
        return Finding(
            "accumulation_divided_twice",
            f"the gradient of {k} batches is divided by {k} twice: {number(ratio)} times their mean, so the steps are that much shorter",
            "the loss is a mean already when it is divided again (the framework divides, and so does the loop)",
            "divide once",
        )
    meant = view.trace.intent.accumulation if view.trace.intent is not None else None
    if k == 1 and meant and meant > 1 and abs(ratio * meant - 1) <= SAME_NORM:
        return Finding(
            "batches_not_accumulated",
            f"the optimizer steps at every batch, on 1/{meant} of its gradient, where you meant to accumulate {meant} batches for one step",
            f"the loss is divided by {meant}, and optimizer.step() is not held back",
            f"step and zero_grad only when (i + 1) % {meant} == 0",
        )
    if ratio >= LEAST_SCALE and _power_of_two(ratio):
        return Finding(
            "grads_still_scaled",
            f"the optimizer found {_power(ratio)} times the gradient of the loss at {len(ratios)} recomputed steps: {family}",
            "the loss scale is still in it: scaler.scale(loss).backward() is followed by optimizer.step() "
            "instead of scaler.step(optimizer)",
            "scaler.step(optimizer); scaler.update()",
            status,
        )
    return None


def backwards(view: View) -> Finding | None:
    """The gradient itself is wrong: the loss does not go where it says."""
    ill = [s for s in view.record.slopes if max(s.slope, s.near) < REVERSED and settled(s)]
    if not ill:
        return None
    worst = min(ill, key=lambda s: (s.part == "embeddings", s.near))  # the embeddings are a part of the base
    return Finding(
        "gradient_reversed",
        f"moving the {worst.part} along its own gradient lowers the loss: it changes by {number(worst.near)} times what the gradient says "
        "(dropout off)",
        "the backward pass is not that of the forward pass: a gradient-reversal layer, a custom autograd.Function "
        "or a hook with a wrong sign",
        "check the custom backward with torch.autograd.gradcheck",
    )


#: The faults, the most certain first.
FAULTS: tuple[Callable[[View], Finding | None], ...] = (
    nan_replaced,
    loss_cut,
    dropped,
    negated,
    summed_up,
    left_over,
    lost_batches,
    stale,
    clipped_too_hard,
    backwards,
    missing,
    elsewhere,
    scaled,
)


def findings(trace: Trace) -> tuple[Finding, ...]:
    """All faults of a trace, those that fail first."""
    found = (
        [f for f in (fault(View(trace)) for fault in FAULTS) if f is not None]
        if trace.measured(ReferenceGradient) is not None
        else []
    )
    if (loose := not_clipped(trace)) is not None:
        found.append(loose)
    return tuple(sorted(found, key=lambda f: f.status != "fail"))


def settled(slope: Slope) -> bool:
    """A shorter stride gives the same: the loss is smooth there, and near enough to its tangent."""
    return abs(slope.slope - slope.near) <= SETTLED * max(abs(slope.near), 0.1)


def _is(value: float | None, limit: float) -> bool:
    return value is not None and value >= limit


def _level(values: Sequence[float]) -> bool:
    """Whether all are one number."""
    return min(values) > 0 and max(values) <= (1 + SAME_NORM) * min(values)


def _power_of_two(value: float) -> bool:
    exponent = math.log2(value)
    return abs(exponent - round(exponent)) <= SAME_NORM


def _power(value: float) -> str:
    return f"{2.0 ** round(math.log2(value)):,.0f}"


def _batches(step: ReferenceStep) -> str:
    return plural(len(step.iterations), "batch", "batches")
