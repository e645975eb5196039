"""Does the loss fall?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from ...core.arguments import fraction
from ...core.formatting import more_steps, number, percent, plural
from ...core.observations import Descent, ProbePoint, ProbeRows
from ...core.trace import Trace
from ...core.verdict import Status, Verdict
from ...seeds.thresholds import Threshold
from ..spec import Stage, Symptom, check
from ..tensor_state import nothing_happened

#: Least relative drop of the probe loss that counts by itself: no broken trainer of 60 x 4 passed it (needs 60 steps or so).
LEAST_DROP = 0.05
#: False-pass rate of the sign test on same-batch descents, and of the trend test.
ALPHA = 0.01
#: A rise of the textbook loss, as a share of knowing nothing, that no other sound objective explains.
RISE = 0.25
#: A change of the loss below this share of it is rounding (float32 has 6e-8; a mean over a batch a few times that).
ROUNDING = 1e-6
#: Rounding in other dtypes: half a spacing at 1.
_ROUNDING = {"bfloat16": 4e-3, "float16": 5e-4}


@check(
    stage=Stage.OUTCOME,
    position=1,
    thresholds=(
        Threshold("min_drop", "at least", "relative drop of the probe loss", 1e-9, 1 - 1e-9, {"alpha": 1e-300}),
    ),
    shows=(Symptom.OUTCOME,),
)
def check_loss_decreases(trace: Trace, *, min_drop: float = LEAST_DROP, alpha: float = ALPHA) -> Verdict:
    """The loss falls, judged on fixed rows with dropout off and on each step's own batch; never by "last < first".

    Passes if the probe loss fell by ``min_drop`` and nothing speaks against it; or, at a learning rate too small for that in
    so few steps, if it fell at all and significantly many steps lowered the loss of the very batch they were computed
    from (sign test). Fails if the steps leave the loss as it is, or raise it, or if it is a cross-entropy and negative. What
    cannot be told from so few steps is ``inconclusive``. Without probes the trend of the training losses is all there is
    (Mann-Kendall on block means).

    :param min_drop: least relative drop of the probe loss.  :param alpha: error rate of the sign test and the trend test.
    :raises ValueError: a limit out of range.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_loss_decreases(example_trace()))
    loss_decreases: pass. The probe loss fell by 56 %, 0.7000 -> 0.3100; 12 of 12 steps lowered the loss of their own batch.
    """
    fraction("min_drop", min_drop)
    fraction("alpha", alpha)
    probe = trace.probe
    measured = _measured(probe)
    # an optimizer that no hook sees may have stepped: falling losses say so
    if (stuck := nothing_happened(trace)) and (trace.backward_error or not _falls(trace.losses, alpha)):
        headline, causes, remedy = stuck
        return Verdict(
            "loss_decreases",
            "fail",
            f"{headline[:1].upper()}{headline[1:]}.",
            causes=causes,
            remedy=remedy,
            measured=measured,
        )
    limit = (
        f"probe loss down by {percent(min_drop)}, or down at all with significantly many steps lowering their own batch's "
        f"loss (sign test, p < {alpha:g})"
    )

    def verdict(
        status: Status, headline: str, causes: Sequence[str] = (), remedy: str = "", notes: Sequence[str] = ()
    ) -> Verdict:
        rows = () if status == "pass" else _rows(trace)
        return Verdict("loss_decreases", status, headline, rows, limit, tuple(causes), remedy, measured, tuple(notes))

    bad = next((i for i, v in enumerate(trace.iterations) if v.loss is not None and not math.isfinite(v.loss)), None)
    points = list(probe.points) if probe is not None else []
    if bad is not None or any(not math.isfinite(p.loss) for p in points):
        return verdict(
            "fail",
            f"The loss is not finite{f' from iteration {bad} on' if bad is not None else ' on the probe'}.",
            [
                "the run diverged, or computes something undefined; assert_all_finite names the first bad step and tensor"
            ],
            "lower the learning rate; look for log(0), division by zero, overflow in low precision",
        )
    if negative := _negative(trace):
        return negative
    if len(points) < 2:
        return _by_trend(trace, alpha, verdict, probe)
    first, last = points[0], points[-1]
    scale = abs(first.loss) or max((abs(p.loss) for p in points), default=1.0) or 1.0
    drop = (first.loss - last.loss) / scale
    descents = _counted(trace, probe)
    down, still, total = _tally(trace, descents)
    p = _sign_test(down, total - still)
    moved = (
        f"{'fell' if drop > 0 else 'rose'} by {percent(abs(drop))}, {number(first.loss, 4)} -> {number(last.loss, 4)}"
    )
    own = f"{down} of {total} steps lowered the loss of their own batch" if total else ""
    if last.reference is not None and first.reference is not None and drop >= min_drop:
        # another sound objective (smoothed labels, class weights, a teacher) may raise it a little: beside what knowing nothing scores
        rise = (last.reference - first.reference) / max(abs(first.reference), probe_scale(trace))
        if rise > RISE and not _on_another_scale(trace):
            return verdict(
                "fail",
                f"The loss {moved}, but the textbook loss of the same logits rose, "
                f"{number(first.reference, 4)} -> {number(last.reference, 4)}.",
                [
                    "what is minimised is not the task's loss: a flipped sign, the wrong targets, or a loss on the wrong scale"
                ],
                "compare your loss with cross_entropy(logits, labels) on one batch",
            )
    if _dead(trace) and all(d.after == d.before for d in descents) and last.loss == first.loss:
        return verdict(
            "fail",
            "The steps do not change the loss: it is exactly as it was before"
            f"{f', also on the own batch of each of {total}' if total else ''}.",
            ["the weights do not move, or what moves has no part in the loss; assert_weights_move says which"],
            "see assert_weights_move and assert_grads_nonzero for the reason",
        )
    if total - still >= 8 and down <= (total - still) / 4 and drop < min_drop:
        return verdict(
            "fail",
            f"The steps raise the loss: only {down} of {total} lowered the loss of their own batch; on the probe it {moved}.",
            [
                "the sign is flipped (loss negated, maximize=True, gradient ascent), or the learning rate is far too high"
            ],
            "check the sign of the loss; try a tenth of the learning rate",
        )
    if drop <= -min_drop and (best := _had_fallen(points, min_drop)) is not None and _falls(trace.losses, alpha):
        return verdict(
            "pass",
            f"The training loss falls; the probe loss was down to {number(best.loss, 4)} after {plural(best.step, 'step')}, "
            f"but {number(last.loss, 4)} at the very end.",
            notes=["one bad step at the end of a run that learns: a schedule that decays to zero would smooth it away"],
        )
    if -RISE < drop <= -min_drop and 2 * down > total - still:
        return verdict(
            "inconclusive",
            f"{plural(len(trace.steps), 'step')} cannot tell: the probe loss {moved}, while {own}.",
            ["too few steps: guesses that grow sure before they are right cost more than knowing nothing at first"],
            f"run longer (steps={more_steps(len(trace.steps))}), or at a lower learning rate",
        )
    if drop <= -min_drop:
        return verdict(
            "fail",
            f"The probe loss {moved}.",
            ["the learning rate is too high and the run diverges, or the loss that is minimised is another one"],
            "try a tenth of the learning rate; look at the losses above",
        )
    if drop >= min_drop and (drop >= 2 * min_drop or not total or 2 * down >= total or _falls(trace.losses, alpha)):
        return verdict(
            "pass",
            f"The probe loss {moved}{'; ' + own if own else ''}.",
            notes=_prior_note(probe, last.loss, trace),
        )
    if last.reference is not None and first.reference is not None and drop > 0:
        against = last.reference - first.reference > ROUNDING * max(abs(first.reference), 1e-12)
        if against and drop < min_drop:
            return verdict(
                "inconclusive",
                f"The loss {moved}, and the textbook loss of the same logits rose, "
                f"{number(first.reference, 6)} -> {number(last.reference, 6)}.",
                ["what is minimised may not be the task's loss: a flipped sign, or the wrong targets"],
                "compare your loss with cross_entropy(logits, labels) on one batch, and run longer",
            )
    if drop > ROUNDING and p < alpha and down >= 0.75 * (total - still):
        return verdict(
            "pass",
            f"The loss falls, slowly: {own} (p = {number(p)}); on the probe it {moved}.",
            notes=[
                f"{plural(len(trace.steps), 'step')} at these learning rates show that the steps lower the loss, not yet "
                "that the labels are learnt; assert_metric_improves asks for that"
            ],
        )
    warming = _still_warming_up(trace)
    return verdict(
        "inconclusive",
        f"{plural(len(trace.steps), 'step')} cannot tell: the probe loss {moved}{'; ' + own if own else ''}{warming}.",
        [
            *_silent(trace),
            *(
                [f"{still} of {total} steps changed the loss of their own batch by less than its rounding"]
                if still > total / 2
                else []
            ),
            "too few steps at too small a learning rate",
            "or a task that this model cannot learn (shuffled labels, unreadable inputs)",
        ],
        "shorten the warm-up (its length is in optimizer steps of this run), or run on until it is over"
        if warming
        else f"run longer (steps={more_steps(len(trace.steps))}) or at a higher learning rate",
        notes=_prior_note(probe, last.loss, trace),
    )


def _still_warming_up(trace: Trace) -> str:
    """What there is to say of a learning rate that did nothing but rise, to more than twice its first value; else empty."""
    rates = [max(s.lrs, default=0.0) for s in trace.steps]
    if len(rates) < 2 or any(b <= a for a, b in itertools.pairwise(rates)) or rates[-1] <= 2 * rates[0]:
        return ""
    meant = trace.intent.peak_lr if trace.intent is not None else None
    of = f" of the {number(meant)} that was meant" if meant and meant > rates[-1] else ""
    return f"; the learning rate was still warming up at the last step, at {number(rates[-1])}{of}"


def _on_another_scale(trace: Trace) -> bool:
    """Numbers are predicted, better than luck: the loss has a link (a sigmoid, an exponential) or scales the labels itself."""
    return trace.reading.task == "regression" and any(
        m.p_value is not None and m.p_value <= ALPHA for m in trace.metrics
    )


def _had_fallen(points: Sequence[ProbePoint], min_drop: float) -> ProbePoint | None:
    """The best point in between, if there the loss, and the textbook loss, had clearly fallen."""
    first, best = points[0], min(points[1:-1], key=lambda p: p.loss, default=None)
    if best is None or best.loss > first.loss - min_drop * abs(first.loss):
        return None
    if None not in (first.reference, best.reference) and best.reference > (1 - min_drop) * first.reference:  # type: ignore[operator]
        return None
    return best


def probe_scale(trace: Trace) -> float:
    """The loss of knowing nothing: the entropy of the labels, or of equal classes."""
    entropy = trace.probe.prior_entropy if trace.probe is not None else None
    return entropy or math.log(max(2, trace.reading.classes or 2))


def _dead(trace: Trace) -> bool:
    """Nothing that is meant to learn moved, or none of it got a gradient: then an unchanged loss is no rounding."""
    meant = [t for t in trace.tensors if t.trainable and t.numel]
    return all(t.motion.share_changed == 0 for t in meant) or all(t.gradients.max_norm == 0 for t in meant)


def _silent(trace: Trace) -> list[str]:
    """Most tensors without any gradient: then that comes first."""
    trainable = [t for t in trace.tensors if t.trainable]
    silent = [t for t in trainable if t.gradients.max_norm == 0]
    if len(silent) <= len(trainable) / 2:
        return []
    return [
        f"{len(silent)} of {len(trainable)} tensors get no gradient, or one of exactly zero; see assert_grads_nonzero"
    ]


def _by_trend(trace: Trace, alpha: float, verdict: Callable[..., Verdict], probe: ProbeRows | None) -> Verdict:
    """Only training losses: their trend."""
    losses = trace.losses
    why = f" (the probe was skipped: {probe.skipped})" if probe is not None and probe.skipped else ""
    if len(losses) < 8:
        return verdict(
            "inconclusive",
            f"There is no probe{why}, and {plural(len(losses), 'training loss', 'training losses')} cannot tell.",
            ["nothing to judge by"],
            "tell the losses with w.loss(loss), and give watch a probe_batch= (and loss_fn=)",
        )
    n = max(1, len(losses) // 4)
    first, last = sum(losses[:n]) / n, sum(losses[-n:]) / n
    change = f"the first quarter's mean is {number(first, 4)}, the last quarter's {number(last, 4)}"
    if _falls(losses, alpha) and last < first:
        return verdict(
            "pass",
            f"The training loss falls: {change}.",
            notes=[
                f"judged by the trend of {len(losses)} training losses alone{why}",
                *(
                    ["the loss is negative, which no cross-entropy can be: is its sign right?"]
                    if min(losses) < 0
                    else []
                ),
            ],
        )
    if _falls([-v for v in losses], alpha) and last > first:
        return verdict(
            "fail",
            f"The training loss rises: {change}.",
            ["the learning rate is too high, or the sign is flipped"],
            "try a tenth of the learning rate; check the sign of the loss",
        )
    return verdict(
        "inconclusive",
        f"No trend in {len(losses)} training losses: {change}{why}.",
        ["too few steps for the noise of the batches, or nothing is learnt"],
        "run longer, or give a probe_batch= so that the same rows are compared with dropout off",
    )


def _negative(trace: Trace) -> Verdict | None:
    if trace.reading.task not in ("single_label", "multi_label") or trace.probe is None:
        return None
    # an entropy bonus may make a sound loss a little negative; half the entropy of the labels below the textbook loss is no bonus
    gap = 0.5 * (trace.probe.prior_entropy or math.log(trace.reading.classes or 2))
    point = next(
        (p for p in trace.probe.points if p.reference is not None and p.loss < min(-1e-6, p.reference - gap)), None
    )
    if point is None or point.reference is None:
        return None
    return Verdict(
        "loss_decreases",
        "fail",
        f"The loss is negative ({number(point.loss, 4)} after {plural(point.step, 'step')}), which no cross-entropy can be; "
        f"the textbook loss of the same logits is {number(point.reference, 4)}.",
        _rows(trace),
        "a cross-entropy is >= 0",
        ("the loss is not a negative log-likelihood: NLL on raw logits or on probabilities, or a flipped sign",),
        "use cross_entropy on raw logits, or nll_loss on log_softmax",
        _measured(trace.probe),
    )


def _counted(trace: Trace, probe: ProbeRows | None) -> list[Descent]:
    """Descents of steps that had a learning rate: a warm-up may begin at zero."""
    if probe is None:
        return []
    return [
        d
        for d in probe.descents
        if d.step >= len(trace.steps) or any(lr > 0 for lr in trace.steps[d.step].lrs) or _never(trace)
    ]


def _never(trace: Trace) -> bool:
    return not any(lr > 0 for s in trace.steps for lr in s.lrs)


def _tally(trace: Trace, descents: Sequence[Descent]) -> tuple[int, int, int]:
    """Steps that lowered the loss, that left it within rounding, and all."""
    dtype = trace.environment.get("dtype", "float32")
    share = max([ROUNDING, *(v for k, v in _ROUNDING.items() if k in dtype)])
    floor = 1e-3 * max((abs(d.before) for d in descents), default=0.0)  # a loss near zero is rounded by its terms' size
    still = [d for d in descents if abs(d.after - d.before) <= share * max(abs(d.before), floor)]
    down = sum(d.after < d.before for d in descents if d not in still)
    return down, len(still), len(descents)


def _sign_test(down: int, total: int) -> float:
    """P(at least ``down`` of ``total`` by luck)."""
    if total <= 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(down, total, 0.5, alternative="greater").pvalue)


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


def _prior_note(probe: ProbeRows | None, last: float, trace: Trace) -> list[str]:
    if probe is None or probe.prior_entropy is None or "user" in trace.reading.loss:
        return []
    if last < probe.prior_entropy - 1e-3:
        return []
    return [
        f"the loss is not yet below the entropy of the labels ({number(probe.prior_entropy)}): "
        "a model that knows the class frequencies and nothing else scores that"
    ]


def _rows(trace: Trace) -> tuple[dict[str, Any], ...]:
    if trace.probe is None or len(trace.probe.points) < 2:
        return ()
    return tuple(
        {"after steps": p.step, "probe loss": number(p.loss, 5), "textbook loss": number(p.reference, 5)}
        for p in trace.probe.points
    )


def _measured(probe: ProbeRows | None) -> str:
    if probe is None or not probe.points:
        return "training losses only"
    return f"dropout off, on {plural(probe.rows, 'row')} ({probe.source}), and on the own batch of {plural(len(probe.descents), 'step')}"
