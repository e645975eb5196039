"""The optimizer's settings are the declared ones, and none is absurd."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ...core.formatting import block_of, number, plural
from ...core.observations import Group, Tensor
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..expected_roles import should_learn
from ..gradients import faults as gradient_faults
from ..loss.objective import descends_minus_measured
from ..spec import Stage, check, combine
from ..tensor_state import EPS_SHARE
from . import faults

NAME = "optimizer_settings"
#: Decoupled decay shrinks a weight by LR x decay at each step. Above this share the weights lose their values within 200
#: steps; the strongest in use are near 1e-3 (ViT: 3e-3 x 0.3, Lion: 1e-4 x 10), the usual ones near 1e-6 (5e-5 x 0.01).
MOST_SHRINK = 5e-3
#: Up to here a decay is usual (AdamW's default is 0.01, large pretraining runs use 0.1): if it takes too much, the learning rate is
#: at fault.
USUAL_DECAY = 0.1
#: Decay that is added to the gradient of an Adam dominates when it is this many times the largest gradient. Only where it is at least
#: `LARGE_DECAY`, for 0.01 is common and exceeds small gradients without much harm.
DECAY_TO_GRADIENT = 10.0
LARGE_DECAY = 0.5
#: A velocity that halves in 1,400 steps or more; 0.9 to 0.99 are in use.
MOST_MOMENTUM = 0.9995
#: Norm at a step over the declared maximum: exact norms, and those estimated from every k-th row of large tensors.
CLIP_EXACT, CLIP_ESTIMATED = 1.05, 3.0
#: Half of the smallest number of float16: a smaller eps becomes 0.
HALF_TINY = 2.0**-25
#: Fewer steps are too few to judge what happens at every step.
LEAST_STEPS = 3
#: Learning rate of the head over that of the lowest block, in rates that fall towards the head: well beyond a factor of two or
#: three, which may be deliberate.
INVERTED = 0.1
_PREFIXES = re.compile(r"^(paged|fused|foreach|deepspeed|cpu|scheduled|torch)+|(cpu|fp8|[48]bit|fused)+$")


@check(
    stage=Stage.OPTIMIZER,
    position=2,
    faults=(
        gradient_faults.CLIPPED_TO_NOTHING,
        faults.OPTIMIZER_REBUILT,
        faults.STATE_CLEARED,
        faults.MAXIMIZES,
        faults.MOMENTUM_TOO_LARGE,
        faults.GRADIENT_DAMPED_AWAY,
        faults.LR_NEGATIVE,
        faults.LAYERWISE_LR_INVERTED,
        faults.BETAS_SWAPPED,
        faults.EPS_UNDERFLOWS,
        faults.EPS_DOMINATES,
        faults.DECAY_DOMINATES,
        faults.OTHER_OPTIMIZER,
        faults.WEIGHT_DECAY_DIFFERS,
        faults.DECAY_ON_NORMS,
        faults.NOT_CLIPPED,
        faults.CLIPPED_TOO_FAR,
        faults.LR_TOO_LARGE,
    ),
)
def check_optimizer_settings(trace: Trace) -> Verdict:
    """The optimizer's settings are the declared ones, and none is absurd.

    Compared with `Intent`: its class, weight decay, no decay on norms and biases, the gradient norm after clipping. Absurd on their own:
    betas for which Adam's steps are unbounded, an eps that exceeds every gradient or vanishes in float16, a decay that shrinks the weights
    faster than they can learn, an optimizer or a state that is rebuilt during training, learning rates that fall from the embeddings to
    the head.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_optimizer_settings(example_trace()))
    optimizer_settings: pass. AdamW: weight decay 0.0100, eps 1.00e-08, betas[0] 0.900.
    """
    if not trace.optimizer.groups:
        return Verdict(NAME, "skipped", "the optimizer has no parameter groups.")
    findings = (
        _rebuilt(trace),
        _state_cleared(trace),
        _maximizes(trace),
        _negative(trace),
        _momentum(trace),
        _dampening(trace),
        _decay_dominates(trace),
        _betas(trace),
        _eps(trace),
        _inverted(trace),
        _class(trace),
        _decay(trace),
        _decay_on_norms(trace),
        _not_clipped(trace),
        _clipped_too_far(trace),
    )
    measured = f"read off {trace.optimizer.name} at {plural(len(trace.steps), 'step')} and at the end"
    if failure := combine(findings, measured=measured):
        return failure
    notes = [note for note in (_replacement(trace), _head_below_base(trace)) if note]
    return Verdict(NAME, "pass", f"{_summary(trace)}.", measured=measured, notes=tuple(notes))


def _summary(trace: Trace) -> str:
    groups = trace.optimizer.groups
    decays = sorted({g.weight_decay for g in groups})
    parts = [f"weight decay {' and '.join(number(d) for d in decays)}"]
    parts += [
        f"{k} {number(v)}" for k, v in groups[0].settings.items() if k in ("eps", "betas[0]", "betas[1]", "momentum")
    ]
    return f"{trace.optimizer.name}: {', '.join(parts)}"


# ------------------------------------------------------------------ rebuilt during training
def _rebuilt(trace: Trace) -> Verdict | None:
    times = trace.optimizer.rebuilt
    if times < 2:
        return None
    interval = len(trace.steps) / (times + 1)
    when = "at every step" if interval < 1.5 else f"about every {interval:.0f} steps"
    return faults.OPTIMIZER_REBUILT.verdict(
        NAME,
        f"A new optimizer replaced the one before it {times} times in {plural(len(trace.steps), 'step')}: its moment estimates are reset "
        f"{when}.",
        limit="a single optimizer for the same tensors",
    )


def _state_cleared(trace: Trace) -> Verdict | None:
    o = trace.optimizer
    if o.state_steps is None or o.other_optimizer_steps or o.gradient_steps < LEAST_STEPS:
        return None
    if 2 * o.state_steps > o.gradient_steps:
        return None
    return faults.STATE_CLEARED.verdict(
        NAME,
        f"The state of {o.name} counts {plural(o.state_steps, 'update')} after {o.gradient_steps} steps: its moment estimates are lost.",
        limit="the state counts every step",
    )


# ------------------------------------------------------------------ absurd on their own
def _maximizes(trace: Trace) -> Verdict | None:
    """Only where the loss did rise: maximize=True with a negated loss is a descent."""
    points = trace.probe_loss.points if trace.probe_loss is not None else ()
    losses = [p.loss for p in points] if len(points) > 1 else list(trace.losses)
    fell = len(losses) > 1 and losses[-1] < losses[0]
    negative = bool(losses) and losses[0] < 0
    maximizing = [g for g in trace.optimizer.groups if g.settings.get("maximize") and g.tensors]
    if not maximizing or fell or negative or descends_minus_measured(trace):
        return None
    rose = f": the loss went from {number(losses[0])} to {number(losses[-1])}" if len(losses) > 1 else ""
    return faults.MAXIMIZES.verdict(
        NAME,
        f"{trace.optimizer.name} has maximize=True in {plural(len(maximizing), 'parameter group')}{rose}.",
        limit="maximize=False for a loss that should fall",
    )


def _negative(trace: Trace) -> Verdict | None:
    below = [s for s in trace.steps if s.by_watched_optimizer and any(r < 0 for r in s.lrs)]
    if not below:
        return None
    lowest = min(r for s in below for r in s.lrs)
    return faults.LR_NEGATIVE.verdict(
        NAME,
        f"The learning rate is negative at {len(below)} of {plural(len(trace.steps), 'step')} (lowest: {number(lowest)}): the optimizer "
        "ascends there.",
        limit="learning rate >= 0",
    )


def _momentum(trace: Trace) -> Verdict | None:
    for g in trace.optimizer.groups:
        value = g.settings.get("momentum", 0.0)
        if not g.tensors or value < MOST_MOMENTUM:
            continue
        decay = f"decays by {1 - value:.1g} a step" if value < 1 else "never decays"
        return faults.MOMENTUM_TOO_LARGE.with_details(momentum=f"{value:g}").verdict(
            NAME,
            f"The momentum of {trace.optimizer.name} is {value:g}: the velocity {decay}, so past gradients dominate every step.",
            limit=f"momentum < {MOST_MOMENTUM:g}; at 0.999 a gradient acts for about 1,000 steps",
        )
    return None


def _dampening(trace: Trace) -> Verdict | None:
    for g in trace.optimizer.groups:
        value = g.settings.get("dampening", 0.0)
        if g.tensors and value >= 1 and g.settings.get("momentum", 0.0) > 0:
            return faults.GRADIENT_DAMPED_AWAY.with_details(dampening=f"{value:g}").verdict(
                NAME,
                f"The dampening of {trace.optimizer.name} is {value:g}: after the first step every gradient is multiplied by "
                f"{1 - value:g}.",
                limit="dampening < 1",
            )
    return None


def _decay_dominates(trace: Trace) -> Verdict | None:
    for g in trace.optimizer.groups:
        members = [
            t for t in trace.tensors if t.group == g.index and should_learn(t, trace) and t.gradients.max_norm > 0
        ]
        if not members or not g.weight_decay > 0:
            continue
        if (g.decoupled or trace.optimizer.family == "sgd") and g.lr_peak * g.weight_decay > MOST_SHRINK:
            return _shrinks(g, members, trace)
        if dominated := _decay_in_gradient(g, members, trace):
            return dominated
    return None


def _shrinks(group: Group, members: Sequence[Tensor], trace: Trace) -> Verdict:
    """Decay that multiplies the weights takes too large a share of them at each step."""
    shrink = group.lr_peak * group.weight_decay
    lost = -math.expm1(-group.lr_sum * group.weight_decay)
    lr, decay = number(group.lr_peak), number(group.weight_decay)
    if group.decoupled and group.weight_decay <= USUAL_DECAY:
        fault = faults.LR_TOO_LARGE.because(
            f"the learning rate is {lr}; the weight decay, {decay}, is usual",
            "lower the learning rate (1e-5 to 1e-3 is usual for Adam)",
        )
    else:
        fault = faults.DECAY_DOMINATES.with_details(decay=f"{decay}{_declared(trace)}", steps=f"{1 / shrink:,.0f}")
    return fault.verdict(
        NAME,
        f"Weight decay {decay} at LR {lr} removes {_share(shrink)} of every weight of group {group.index} at each step, {_share(lost)} "
        f"over the run's {plural(len(trace.steps), 'step')}.",
        limit=f"LR x weight decay <= {_share(MOST_SHRINK)} a step",
        evidence=_decay_rows(members),
    )


def _decay_in_gradient(group: Group, members: Sequence[Tensor], trace: Trace) -> Verdict | None:
    """Decay that Adam adds to the gradient is much larger than the gradient."""
    if trace.optimizer.family != "adam" or group.decoupled or group.weight_decay < LARGE_DECAY:
        return None
    matrices = [t for t in members if len(t.shape) > 1]
    dominated = [t for t in matrices if group.weight_decay * t.first.rms > DECAY_TO_GRADIENT * t.gradients.max_rms]
    count = sum(t.first.rms > 0 for t in matrices)
    if not count or not 2 * len(dominated) > count:
        return None
    first, decay = dominated[0], number(group.weight_decay)
    return faults.DECAY_DOMINATES.because(
        f"weight decay is {decay}{_declared(trace)}: {number(group.weight_decay * first.first.rms)} per weight (rms) in {first.name}, "
        f"where gradients have rms {number(first.gradients.max_rms)}",
        "lower it, or use AdamW, which decouples decay from the gradient",
    ).verdict(
        NAME,
        f"Weight decay {decay}, which {trace.optimizer.name} adds to the gradient, is more than {DECAY_TO_GRADIENT:.0f} times the gradient "
        f"in {len(dominated)} of {plural(count, 'matrix', 'matrices')}: steps follow the decay.",
        limit=f"decay x weight <= {DECAY_TO_GRADIENT:.0f} x gradient (rms)",
    )


def _decay_rows(tensors: Sequence[Tensor]) -> tuple[dict[str, Any], ...]:
    chosen = sorted(tensors, key=lambda t: -t.motion.by_decay)
    return tuple(
        {
            "tensor": t.name,
            "by decay": t.motion.by_decay,
            "by gradient": t.motion.by_gradient,
            "rms before": t.first.rms,
        }
        for t in chosen
    )


def _declared(trace: Trace) -> str:
    declared = trace.intent.weight_decay if trace.intent is not None else None
    return "" if declared is None else f" (declared: {number(float(declared))})"


def _betas(trace: Trace) -> Verdict | None:
    if not any("adam" in c.lower() for c in (trace.optimizer.name, *trace.optimizer.classes)):
        return None
    for g in trace.optimizer.groups:
        one, two = g.settings.get("betas[0]"), g.settings.get("betas[1]")
        if one is None or two is None or one <= math.sqrt(max(two, 0.0)):
            continue
        return faults.BETAS_SWAPPED.verdict(
            NAME,
            f"betas are ({one:g}, {two:g}): beta1 exceeds the square root of beta2, so {trace.optimizer.name}'s steps are unbounded.",
            limit="beta1 < sqrt(beta2) (Kingma and Ba 2015; Reddi et al. 2018)",
        )
    return None


def _eps(trace: Trace) -> Verdict | None:
    if trace.optimizer.family != "adam":
        return None
    for g in trace.optimizer.groups:
        eps = g.settings.get("eps")
        if eps is None:
            continue
        members = [t for t in trace.tensors if t.group == g.index and t.gradients.max_norm > 0 and len(t.shape) > 1]
        small = [t for t in members if t.gradients.max_rms < EPS_SHARE * eps]
        if eps > 1e-7 and members and 2 * len(small) > len(members):
            return faults.EPS_DOMINATES.with_details(eps=f"{eps:g}").verdict(
                NAME,
                f"eps is {number(eps)}, more than {1 / EPS_SHARE:.0f} times the gradients (rms) of {len(small)} of "
                f"{plural(len(members), 'matrix', 'matrices')}: their steps are less than 1 % of the learning rate.",
                limit=f"gradient rms >= {EPS_SHARE:g} x eps",
                evidence=tuple(
                    {"tensor": t.name, "largest gradient (rms)": t.gradients.max_rms, "eps": eps} for t in small
                ),
            )
        halves = [t for t in members if t.dtype == "float16"]
        nonfinite = [t for t in halves if t.last.nonfinite]
        if eps < HALF_TINY and nonfinite:
            return faults.EPS_UNDERFLOWS.with_details(optimizer=trace.optimizer.name).verdict(
                NAME,
                f"eps {number(eps)} is 0 in float16, and {len(nonfinite)} of "
                f"{plural(len(halves), 'float16 matrix', 'float16 matrices')} are not finite at the end.",
                limit=f"eps >= {HALF_TINY:.0e}, half the smallest float16 number",
                evidence=tuple({"tensor": t.name, "not finite": t.last.nonfinite, "dtype": t.dtype} for t in nonfinite),
            )
    return None


def _levels(trace: Trace) -> tuple[list[tuple[str, float]], float] | None:
    """Peak learning rates of the base's embeddings and blocks from input to output, and the head's highest."""
    blocks: dict[str, float] = {}
    for t in trace.tensors:
        if t.part == "base" and t.group is not None and t.lr_peak > 0 and should_learn(t, trace):
            unit = "embeddings" if t.role == "embedding" else block_of(t.name)
            if unit == "embeddings" or unit.rpartition(".")[2].isdigit():
                blocks[unit] = max(blocks.get(unit, 0.0), t.lr_peak)
    head = [t.lr_peak for t in trace.tensors if t.part == "head" and t.group is not None and t.lr_peak > 0]
    if not blocks or not head:
        return None
    order = sorted(blocks, key=lambda u: (u != "embeddings", u.rpartition(".")[0], _index(u)))
    return [(u, blocks[u]) for u in order], max(head)


def _index(unit: str) -> int:
    last = unit.rpartition(".")[2]
    return int(last) if last.isdigit() else -1


def _inverted(trace: Trace) -> Verdict | None:
    found = _levels(trace)
    if found is None:
        return None
    levels, head = found
    rates = [r for _, r in levels]
    falling = all(b <= a for a, b in pairwise(rates)) and rates[-1] < 0.9 * rates[0]
    if not falling or head > INVERTED * rates[0] or head > rates[-1]:
        return None
    return faults.LAYERWISE_LR_INVERTED.verdict(
        NAME,
        f"Learning rates fall from {levels[0][0]} ({number(rates[0])}) to the head ({number(head)}), which has the most to learn.",
        limit=f"where rates fall with depth, the head's is at least {INVERTED:g} of the lowest layer's (Howard and Ruder 2018: they "
        "should rise)",
        evidence=(*({"layers": u, "peak LR": r} for u, r in levels), {"layers": "head", "peak LR": head}),
    )


def _head_below_base(trace: Trace) -> str:
    found = _levels(trace)
    if found is None or _inverted(trace) or found[1] > INVERTED * max(r for _, r in found[0]):
        return ""
    base = number(max(r for _, r in found[0]))
    return f"the head's learning rate ({number(found[1])}) is far below the base's ({base}); usually it is higher"


def _replacement(trace: Trace) -> str:
    once = trace.optimizer.rebuilt == 1
    return "a new optimizer replaced the one before it once: its moment estimates were reset" if once else ""


# ------------------------------------------------------------------ against the declaration
def _class(trace: Trace) -> Verdict | None:
    declared, o = trace.intent.optimizer if trace.intent is not None else None, trace.optimizer
    if declared is None:
        return None
    names = [_plain(c) for c in (o.name, *o.classes)]
    plain = _plain(declared.rpartition(".")[2])
    twin = {plain, *names} == {"adam", "adamw"} and all(g.decoupled or not g.weight_decay for g in o.groups)
    if plain in names or twin:
        return None
    fault = faults.OTHER_OPTIMIZER.with_details(optimizer=o.name, declared=declared)
    if plain == "adamw" and "adam" in names:
        fault = fault.because(f"{fault.cause}: it adds weight decay to the gradient")
    return fault.verdict(NAME, f"Declared: {declared}; the optimizer is {o.name}.", limit="the declared class")


def _plain(name: str) -> str:
    low = name.lower().replace("_", "")
    return _PREFIXES.sub("", low) or low


def _decay(trace: Trace) -> Verdict | None:
    declared = trace.intent.weight_decay if trace.intent is not None else None
    groups = [g for g in trace.optimizer.groups if g.tensors]
    if declared is None or not groups:
        return None
    if any(math.isclose(g.weight_decay, declared, rel_tol=1e-3, abs_tol=1e-12) for g in groups):
        return None
    largest = max(g.weight_decay for g in groups)
    fault = faults.WEIGHT_DECAY_DIFFERS.with_details(optimizer=trace.optimizer.name, declared=f"{declared:g}")
    if setting := _misplaced(groups, declared):
        fault = fault.because(f"{setting} is {declared:g}: the weight decay was passed in its place")
    return fault.verdict(
        NAME,
        f"Declared: a weight decay of {number(float(declared))}; it is {number(largest)}.",
        limit="the declared weight decay in at least one group",
    )


def _misplaced(groups: Sequence[Group], declared: float) -> str:
    """The setting that has the value declared for the decay, if any: it was passed in the wrong place."""
    for g in groups:
        for key, value in g.settings.items():
            if declared and math.isclose(value, declared, rel_tol=1e-6):
                return key
    return ""


def _decay_on_norms(trace: Trace) -> Verdict | None:
    if trace.intent is None or not trace.intent.no_decay:
        return None
    decays = {g.index: g.weight_decay for g in trace.optimizer.groups}
    decayed = [
        t
        for t in trace.tensors
        if (t.role == "norm" or t.name.endswith("bias"))
        and len(t.shape) <= 1
        and t.group is not None
        and decays.get(t.group, 0.0) > 0
        and should_learn(t, trace)
    ]
    if not decayed:
        return None
    norms = sum(t.role == "norm" for t in decayed)
    counts = ((norms, "norm tensor", "norm tensors"), (len(decayed) - norms, "bias", "biases"))
    subject = " and ".join(plural(count, one, many) for count, one, many in counts if count)
    verb = "has" if len(decayed) == 1 else "have"
    return faults.DECAY_ON_NORMS.with_details(tensor=decayed[0].name).verdict(
        NAME,
        f"Declared: no weight decay on norms and biases; {subject} {verb} {number(max(decays[t.group or 0] for t in decayed))}.",
        limit="weight decay 0 on norms and biases",
        evidence=tuple({"tensor": t.name, "weight decay": decays[t.group or 0], "role": t.role} for t in decayed),
    )


def _norms(trace: Trace) -> list[float] | None:
    """Gradient norms at the watched optimizer's steps; None where they cover more tensors than its clipping does."""
    outside = any(t.group is None and t.gradients.max_norm > 0 for t in trace.tensors)
    if outside or trace.optimizer.other_optimizer_steps:
        return None
    norms = [s.grad_norm for s in trace.steps if math.isfinite(s.grad_norm)]
    return norms if len(norms) >= LEAST_STEPS else None


def _not_clipped(trace: Trace) -> Verdict | None:
    declared, norms = trace.intent.max_grad_norm if trace.intent is not None else None, _norms(trace)
    if not declared or norms is None:
        return None
    exact = all(t.gradients.stride == 1 for t in trace.tensors)
    limit = declared * (CLIP_EXACT if exact else CLIP_ESTIMATED)
    above = sum(n > limit for n in norms)
    if not above:
        return None
    return faults.NOT_CLIPPED.with_details(max_norm=f"{declared:g}").verdict(
        NAME,
        f"Declared: gradients clipped to a norm of {number(float(declared))}; the norm exceeds it at {above} of {len(norms)} steps "
        f"(largest: {number(max(norms))}).",
        limit=f"gradient norm at the step <= {number(limit)}{'' if exact else ' (norms of large tensors are estimated)'}",
    )


def _clipped_too_far(trace: Trace) -> Verdict | None:
    declared, norms = trace.intent.max_grad_norm if trace.intent is not None else None, _norms(trace)
    if not declared or norms is None or any(t.gradients.stride > 1 for t in trace.tensors):
        return None
    low, high = min(norms), max(norms)
    if not low > 0 or high > 1.001 * low or high > 0.5 * declared:
        return None
    fault = faults.CLIPPED_TOO_FAR.with_details(norm=number(high), max_norm=f"{declared:g}")
    if high < 1e-3 * declared:
        fault = gradient_faults.CLIPPED_TO_NOTHING.because(fault.cause, fault.remedy)
    return fault.verdict(
        NAME,
        f"Declared: gradients clipped to a norm of {number(float(declared))}; the norm is {number(high)} at each of {len(norms)} steps.",
        limit="a norm that is the same at every step is the maximum in force",
    )


def _share(value: float) -> str:
    return f"{100 * value:.2g} %"
