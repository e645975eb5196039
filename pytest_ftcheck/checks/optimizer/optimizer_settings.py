"""The optimizer's settings are those that were meant, and none is absurd."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ...core.formatting import block_of, number, plural
from ...core.observations import Group, Tensor
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..expected_roles import meant_to_learn
from ..gradients import faults as gradients_faults
from ..spec import Stage, check
from ..tensor_state import EPS_SHARE
from . import faults

#: Decoupled decay shrinks a weight by LR x decay at each step. Above this share the weights forget what they hold within 200
#: steps; the strongest in use are near 1e-3 (ViT: 3e-3 x 0.3, Lion: 1e-4 x 10), the usual ones near 1e-6 (5e-5 x 0.01).
MOST_SHRINK = 5e-3
#: Up to here a decay is an ordinary one (AdamW's default is 0.01, large pretraining runs take 0.1): if it takes too much, the rate is
#: at fault.
USUAL_DECAY = 0.1
#: Decay that joins the gradient of an Adam: it takes over when it is this many times the largest gradient. Only where it is at least
#: `LARGE_DECAY`, for 0.01 is common and outgrows small gradients without much harm.
OUTGROWN = 10.0
LARGE_DECAY = 0.5
#: A velocity that halves in 700 steps or more; 0.9 to 0.99 are in use.
MOST_MOMENTUM = 0.9995
#: Norm at a step over the declared maximum: exact norms, and those estimated from every k-th row of large tensors.
CLIP_EXACT, CLIP_ESTIMATED = 1.05, 3.0
#: Half of the smallest number of float16: a smaller eps becomes 0.
HALF_TINY = 2.0**-25
#: Steps needed to speak of what happens at each of them.
STEPS = 3
#: Learning rate of the head over that of the lowest block, in rates that fall towards the head: well beyond a factor of two or
#: three that someone might have tried.
INVERTED = 0.1
_PREFIXES = re.compile(r"^(paged|fused|foreach|deepspeed|cpu|scheduled|torch)+|(cpu|fp8|[48]bit|fused)+$")


@dataclass(frozen=True)
class _Fault:
    fault: str
    headline: str
    cause: str
    remedy: str
    limit: str
    rows: tuple[dict[str, Any], ...] = ()


@check(
    stage=Stage.OPTIMIZER,
    position=2,
    faults=(
        gradients_faults.CLIPPED_TO_NOTHING,
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
    """The optimizer's settings are those that were meant, and none is absurd.

    Against `Intent`: its class, weight decay, no decay on norms and biases, the gradient norm after clipping. Against nothing but
    arithmetic: betas for which Adam's steps have no bound, an eps that swallows every gradient or vanishes in float16, a decay that
    shrinks the weights faster than they can learn, an optimizer or a state that is made anew all the time, learning rates that fall
    from the embeddings to the head.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_optimizer_settings(example_trace()))
    optimizer_settings: pass. AdamW: weight decay 0.0100, eps 1.00e-08, betas[0] 0.900.
    """
    if not trace.optimizer.groups:
        return Verdict("optimizer_settings", "skipped", "the optimizer has no parameter groups.")
    found = [
        fault
        for fault in (
            _rebuilt(trace),
            _forgetful(trace),
            _maximizes(trace),
            _negative(trace),
            _momentum(trace),
            _dampened(trace),
            _decay_dominates(trace),
            _betas(trace),
            _eps(trace),
            _inverted(trace),
            _class(trace),
            _decay(trace),
            _decay_on_norms(trace),
            _clipping(trace),
            _clipped_away(trace),
        )
        if fault is not None
    ]
    measured = f"read off {trace.optimizer.name} at {plural(len(trace.steps), 'step')} and at the end"
    if found:
        first = found[0]
        return Verdict(
            "optimizer_settings",
            "fail",
            first.headline,
            evidence=first.rows,
            limit=first.limit,
            causes=(first.cause, *(f.headline for f in found[1:])),
            remedy=first.remedy,
            measured=measured,
            fault=first.fault,
        )
    notes = [n for n in (_handed_over(trace), _two_levels(trace)) if n]
    return Verdict("optimizer_settings", "pass", f"{_summary(trace)}.", measured=measured, notes=tuple(notes))


def _summary(trace: Trace) -> str:
    groups = trace.optimizer.groups
    decays = sorted({g.weight_decay for g in groups})
    parts = [f"weight decay {' and '.join(number(d) for d in decays)}"]
    parts += [
        f"{k} {number(v)}" for k, v in groups[0].settings.items() if k in ("eps", "betas[0]", "betas[1]", "momentum")
    ]
    return f"{trace.optimizer.name}: {', '.join(parts)}"


# ------------------------------------------------------------------ made anew
def _rebuilt(trace: Trace) -> _Fault | None:
    times = trace.optimizer.rebuilt
    if times < 2:
        return None
    every = len(trace.steps) / (times + 1)
    pace = "at every step" if every < 1.5 else f"every {every:.0f} steps or so"
    return _Fault(
        "optimizer_rebuilt",
        f"A new optimizer took over the same tensors {times} times in {plural(len(trace.steps), 'step')}: its running averages start anew "
        f"{pace}.",
        "the optimizer is built inside the loop",
        "build it once, before the loop",
        "a single optimizer for the same tensors",
    )


def _forgetful(trace: Trace) -> _Fault | None:
    o = trace.optimizer
    if (
        o.state_steps is None
        or o.other_optimizer_steps
        or o.gradient_steps < STEPS
        or 2 * o.state_steps > o.gradient_steps
    ):
        return None
    return _Fault(
        "state_cleared",
        f"{o.name} counts {plural(o.state_steps, 'update')} in its state after {o.gradient_steps} steps: its running averages are "
        "thrown away.",
        "the state is cleared or loaded again during training (optimizer.state.clear(), load_state_dict)",
        "leave the state alone between steps",
        "the state counts every step",
    )


# ------------------------------------------------------------------ absurd on their own
def _maximizes(trace: Trace) -> _Fault | None:
    """Only where the loss did rise: maximize=True with a loss whose sign is turned as well is two minus signs."""
    points = trace.probe.points if trace.probe is not None else ()
    losses = [p.loss for p in points] if len(points) > 1 else list(trace.losses)
    fell = len(losses) > 1 and losses[-1] < losses[0]
    negative = bool(losses) and losses[0] < 0
    ill = [g for g in trace.optimizer.groups if g.settings.get("maximize") and g.tensors]
    if not ill or fell or negative:
        return None
    rose = f": the loss went from {number(losses[0])} to {number(losses[-1])}" if len(losses) > 1 else ""
    return _Fault(
        "maximizes",
        f"{trace.optimizer.name} has maximize=True in {plural(len(ill), 'parameter group')}{rose}.",
        "maximize=True makes the optimizer climb: it is for rewards and adversaries, not for a loss",
        "take maximize=True out",
        "maximize=False where a loss is to fall",
    )


def _negative(trace: Trace) -> _Fault | None:
    below = [s for s in trace.steps if s.by_watched_optimizer and any(r < 0 for r in s.lrs)]
    if not below:
        return None
    worst = min(r for s in below for r in s.lrs)
    return _Fault(
        "lr_negative",
        f"The learning rate is negative at {len(below)} of {plural(len(trace.steps), 'step')} ({number(worst)} at the worst): the "
        "optimizer climbs there.",
        "the schedule runs past its end (a linear or polynomial decay that is not held at zero), or a factor has the wrong sign",
        "clamp the factor at zero: max(0.0, ...); see that the schedule is as long as the run",
        "learning rate >= 0",
    )


def _momentum(trace: Trace) -> _Fault | None:
    for g in trace.optimizer.groups:
        value = g.settings.get("momentum", 0.0)
        if not g.tensors or value < MOST_MOMENTUM:
            continue
        lasts = f"decays by {1 - value:.1g} a step" if value < 1 else "never decays"
        return _Fault(
            "momentum_too_large",
            f"The momentum of {trace.optimizer.name} is {value:g}: the velocity {lasts}, and every gradient ever seen is applied for good.",
            f"momentum={value:g}" + (" (1 - 0.9 written the wrong way round, or a percentage?)" if value > 1 else ""),
            "0.9 is usual; it must be below 1",
            f"momentum < {MOST_MOMENTUM:g}: at 0.999 a gradient is felt for 1,000 steps",
        )
    return None


def _dampened(trace: Trace) -> _Fault | None:
    for g in trace.optimizer.groups:
        value = g.settings.get("dampening", 0.0)
        if g.tensors and value >= 1 and g.settings.get("momentum", 0.0) > 0:
            return _Fault(
                "gradient_damped_away",
                f"The dampening of {trace.optimizer.name} is {value:g}: after the first step no gradient enters the velocity "
                f"(it is multiplied by {1 - value:g}).",
                f"dampening={value:g}: a share of each gradient that is left out, taken for something else",
                "leave it at 0",
                "dampening < 1",
            )
    return None


def _decay_dominates(trace: Trace) -> _Fault | None:
    sgd = trace.optimizer.family == "sgd"
    for g in trace.optimizer.groups:
        members = [
            t for t in trace.tensors if t.group == g.index and meant_to_learn(t, trace) and t.gradients.max_norm > 0
        ]
        if not members or not g.weight_decay > 0:
            continue
        shrink = g.lr_peak * g.weight_decay
        if (g.decoupled or sgd) and shrink > MOST_SHRINK:
            gone = -math.expm1(-g.lr_sum * g.weight_decay)
            ordinary = g.decoupled and g.weight_decay <= USUAL_DECAY
            if ordinary:
                why = f"the learning rate is {number(g.lr_peak)}; the weight decay, {number(g.weight_decay)}, is an ordinary one"
                remedy = "lower the learning rate (1e-5 to 1e-3 is usual for Adam)"
            else:
                why = (
                    f"weight decay is {number(g.weight_decay)}{_meant(trace)}: what is learned is forgotten within "
                    f"{1 / shrink:,.0f} steps"
                )
                remedy = "lower it (0.01 is torch's default for AdamW, 0 to 0.1 is usual)"
            return _Fault(
                "lr_too_large" if ordinary else "decay_dominates",
                f"Weight decay {number(g.weight_decay)} at LR {number(g.lr_peak)} takes {_share(shrink)} off every weight of group "
                f"{g.index} at each step, {_share(gone)} over this run's {plural(len(trace.steps), 'step')}.",
                why,
                remedy,
                f"LR x weight decay <= {_share(MOST_SHRINK)} a step",
                _decay_rows(members),
            )
        outgrown = [
            t for t in members if g.weight_decay * t.first.rms > OUTGROWN * t.gradients.max_rms and len(t.shape) > 1
        ]
        matrices = [t for t in members if len(t.shape) > 1 and t.first.rms > 0]
        coupled = trace.optimizer.family == "adam" and not g.decoupled and g.weight_decay >= LARGE_DECAY
        if coupled and matrices and 2 * len(outgrown) > len(matrices):
            worst = outgrown[0]
            return _Fault(
                "decay_dominates",
                f"Weight decay {number(g.weight_decay)} joins the gradient of {trace.optimizer.name} and is more than {OUTGROWN:.0f} times "
                f"as large in {len(outgrown)} of {plural(len(matrices), 'matrix', 'matrices')}: steps follow the decay.",
                f"weight decay is {number(g.weight_decay)}{_meant(trace)}: {number(g.weight_decay * worst.first.rms)} a weight (rms) in "
                f"{worst.name}, beside gradients of {number(worst.gradients.max_rms)}",
                "lower it, or use AdamW, whose decay is apart from the gradient",
                f"decay x weight <= {OUTGROWN:.0f} x gradient (rms)",
            )
    return None


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


def _meant(trace: Trace) -> str:
    wanted = trace.intent.weight_decay if trace.intent is not None else None
    return "" if wanted is None else f" (you meant {number(float(wanted))})"


def _betas(trace: Trace) -> _Fault | None:
    if not any("adam" in c.lower() for c in (trace.optimizer.name, *trace.optimizer.classes)):
        return None
    for g in trace.optimizer.groups:
        one, two = g.settings.get("betas[0]"), g.settings.get("betas[1]")
        if one is None or two is None or one <= math.sqrt(max(two, 0.0)):
            continue
        return _Fault(
            "betas_swapped",
            f"betas are ({one:g}, {two:g}): beta1 is above the root of beta2, so {trace.optimizer.name}'s steps have no bound.",
            "the two were swapped" if two < one else "a setting landed in the wrong place",
            "betas=(0.9, 0.999) is the default; name it as a keyword",
            "beta1 < sqrt(beta2) (Kingma and Ba 2015; Reddi et al. 2018)",
        )
    return None


def _eps(trace: Trace) -> _Fault | None:
    if trace.optimizer.family != "adam":
        return None
    for g in trace.optimizer.groups:
        eps = g.settings.get("eps")
        if eps is None:
            continue
        members = [t for t in trace.tensors if t.group == g.index and t.gradients.max_norm > 0 and len(t.shape) > 1]
        small = [t for t in members if t.gradients.max_rms < EPS_SHARE * eps]
        if eps > 1e-7 and members and 2 * len(small) > len(members):
            return _Fault(
                "eps_dominates",
                f"eps is {number(eps)}, more than {1 / EPS_SHARE:.0f} times the gradients (rms) of {len(small)} of "
                f"{plural(len(members), 'matrix', 'matrices')}: their steps are less than 1 % of the learning rate.",
                f"eps={eps:g} is out of the ordinary: another setting may have landed in its place",
                "leave eps at 1e-8, and name the settings as keywords",
                f"gradient rms >= {EPS_SHARE:g} x eps",
                tuple({"tensor": t.name, "largest gradient (rms)": t.gradients.max_rms, "eps": eps} for t in small),
            )
        halves = [t for t in members if t.dtype == "float16"]
        broken = [t for t in halves if t.last.nonfinite]
        if eps < HALF_TINY and broken:
            return _Fault(
                "eps_underflows",
                f"eps {number(eps)} is 0 in float16, and {len(broken)} of {plural(len(halves), 'float16 matrix', 'float16 matrices')} are "
                "not finite at the end.",
                f"{trace.optimizer.name} divides by sqrt(v) + eps, and in float16 both underflow to 0: parameters of pure float16 cannot "
                "be trained like that",
                "keep the parameters in float32 and use torch.autocast with a GradScaler, or bfloat16; else eps=1e-4",
                f"eps >= {HALF_TINY:.0e}, which is half the smallest float16",
                tuple({"tensor": t.name, "not finite": t.last.nonfinite, "dtype": t.dtype} for t in broken),
            )
    return None


def _levels(trace: Trace) -> tuple[list[tuple[str, float]], float] | None:
    """Peak learning rates of the base's embeddings and blocks from below to above, and the head's highest."""
    blocks: dict[str, float] = {}
    for t in trace.tensors:
        if t.part == "base" and t.group is not None and t.lr_peak > 0 and meant_to_learn(t, trace):
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


def _inverted(trace: Trace) -> _Fault | None:
    found = _levels(trace)
    if found is None:
        return None
    levels, head = found
    rates = [r for _, r in levels]
    falling = all(b <= a for a, b in pairwise(rates)) and rates[-1] < 0.9 * rates[0]
    if not falling or head > INVERTED * rates[0] or head > rates[-1]:
        return None
    return _Fault(
        "layerwise_lr_inverted",
        f"Learning rates fall from {levels[0][0]} ({number(rates[0])}) to the head ({number(head)}), which has the most to learn.",
        "layer-wise decay counts from the wrong end",
        "give the head the full rate and multiply by the factor once for each layer below it",
        f"the head's rate is not below {INVERTED:g} of the lowest layer's where rates fall with depth (Howard and Ruder 2018: the "
        "other way round)",
        (*({"layers": u, "peak LR": r} for u, r in levels), {"layers": "head", "peak LR": head}),
    )


def _two_levels(trace: Trace) -> str:
    found = _levels(trace)
    if found is None or _inverted(trace) or found[1] > INVERTED * max(r for _, r in found[0]):
        return ""
    return f"the head's learning rate ({number(found[1])}) is far below the base's ({number(max(r for _, r in found[0]))}): is that meant?"


def _handed_over(trace: Trace) -> str:
    times = trace.optimizer.rebuilt
    return "a new optimizer took over the same tensors once: its running averages started anew" if times == 1 else ""


# ------------------------------------------------------------------ against what was declared
def _class(trace: Trace) -> _Fault | None:
    wanted, o = trace.intent.optimizer if trace.intent is not None else None, trace.optimizer
    if wanted is None:
        return None
    names = [_plain(c) for c in (o.name, *o.classes)]
    plain = _plain(wanted.rpartition(".")[2])
    twin = {plain, *names} == {"adam", "adamw"} and all(g.decoupled or not g.weight_decay for g in o.groups)
    if plain in names or twin:
        return None
    return _Fault(
        "other_optimizer",
        f"You meant {wanted}; the optimizer is {o.name}.",
        f"{o.name} was built instead"
        + (": its weight decay joins the gradient" if plain == "adamw" and "adam" in names else ""),
        f"build torch.optim.{wanted}, or declare {o.name}",
        "the declared class",
    )


def _plain(name: str) -> str:
    low = name.lower().replace("_", "")
    return _PREFIXES.sub("", low) or low


def _decay(trace: Trace) -> _Fault | None:
    wanted = trace.intent.weight_decay if trace.intent is not None else None
    groups = [g for g in trace.optimizer.groups if g.tensors]
    if (
        wanted is None
        or not groups
        or any(math.isclose(g.weight_decay, wanted, rel_tol=1e-3, abs_tol=1e-12) for g in groups)
    ):
        return None
    largest = max(g.weight_decay for g in groups)
    return _Fault(
        "weight_decay_differs",
        f"You meant a weight decay of {number(float(wanted))}; it is {number(largest)}.",
        _slipped(groups, wanted) or f"it was left at the default of {trace.optimizer.name}, or set elsewhere",
        f"pass weight_decay={wanted:g} as a keyword",
        "the declared weight decay in at least one group",
    )


def _slipped(groups: Sequence[Group], wanted: float) -> str:
    """The setting that has the value meant for the decay, if one has: it was given in the wrong place."""
    for g in groups:
        for key, value in g.settings.items():
            if wanted and math.isclose(value, wanted, rel_tol=1e-6):
                return f"{key} is {value:g}: the weight decay landed in its place"
    return ""


def _decay_on_norms(trace: Trace) -> _Fault | None:
    if trace.intent is None or not trace.intent.no_decay:
        return None
    decays = {g.index: g.weight_decay for g in trace.optimizer.groups}
    ill = [
        t
        for t in trace.tensors
        if (t.role == "norm" or t.name.endswith("bias"))
        and len(t.shape) <= 1
        and t.group is not None
        and decays.get(t.group, 0.0) > 0
        and meant_to_learn(t, trace)
    ]
    if not ill:
        return None
    norms = sum(t.role == "norm" for t in ill)
    what = " and ".join(
        text
        for n, text in (
            (norms, plural(norms, "norm tensor")),
            (len(ill) - norms, plural(len(ill) - norms, "bias", "biases")),
        )
        if n
    )
    return _Fault(
        "decay_on_norms",
        f"You meant no weight decay on norms and biases; {what} have {number(max(decays[t.group or 0] for t in ill))}.",
        f"the list of names that are spared does not fit this model: {ill[0].name} is in none of its patterns",
        "choose by kind, not by name: p.ndim < 2, or isinstance(module, (nn.LayerNorm, ...))",
        "weight decay 0 on norms and biases",
        tuple({"tensor": t.name, "weight decay": decays[t.group or 0], "role": t.role} for t in ill),
    )


def _norms(trace: Trace) -> list[float] | None:
    """Gradient norms at the watched optimizer's steps; None where they are of more than it clips."""
    if (
        any(t.group is None and t.gradients.max_norm > 0 for t in trace.tensors)
        or trace.optimizer.other_optimizer_steps
    ):
        return None
    norms = [s.grad_norm for s in trace.steps if math.isfinite(s.grad_norm)]
    return norms if len(norms) >= STEPS else None


def _clipping(trace: Trace) -> _Fault | None:
    wanted, norms = trace.intent.max_grad_norm if trace.intent is not None else None, _norms(trace)
    if not wanted or norms is None:
        return None
    exact = all(t.gradients.stride == 1 for t in trace.tensors)
    limit = wanted * (CLIP_EXACT if exact else CLIP_ESTIMATED)
    above = sum(n > limit for n in norms)
    if not above:
        return None
    return _Fault(
        "not_clipped",
        f"You meant gradients clipped to a norm of {number(float(wanted))}; it was above at {above} of {len(norms)} steps, "
        f"{number(max(norms))} at most.",
        "clipping is missing, comes after the step or before backward, is done to other tensors, or before scaler.unscale_()",
        f"call clip_grad_norm_(model.parameters(), {wanted:g}) between backward() and step(); with a GradScaler, after "
        "scaler.unscale_(optimizer)",
        f"gradient norm at the step <= {number(limit)}" + ("" if exact else " (norms of large tensors are estimated)"),
    )


def _clipped_away(trace: Trace) -> _Fault | None:
    wanted, norms = trace.intent.max_grad_norm if trace.intent is not None else None, _norms(trace)
    if not wanted or norms is None or any(t.gradients.stride > 1 for t in trace.tensors):
        return None
    low, high = min(norms), max(norms)
    if not low > 0 or high > 1.001 * low or high > 0.5 * wanted:
        return None
    return _Fault(
        "clipped_to_nothing" if high < 1e-3 * wanted else "clipped_too_far",
        f"You meant gradients clipped to a norm of {number(float(wanted))}; it is {number(high)} at each of {len(norms)} steps.",
        f"they are clipped to {number(high)} (max_norm is the total norm, not eps), or before scaler.unscale_()",
        f"clip_grad_norm_(model.parameters(), {wanted:g}), after scaler.unscale_(optimizer) where a GradScaler is used",
        "a norm that is the same at every step is the maximum really in force",
    )


def _share(value: float) -> str:
    return f"{100 * value:.2g} %"
