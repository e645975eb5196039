"""Does the run learn better with its labels than with permuted ones?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.arguments import fraction
from ...core.formatting import more_steps, number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ...seeds.thresholds import Threshold
from ..head.ablation_record import Outcome
from ..spec import Stage, Symptom, check, not_measured
from . import faults
from .record import Permuted, Rerun

NAME = "beats_permuted_labels"
#: Error rate of a pass, shared by the comparisons made; and of "no better", which a failure requires.
ALPHA, DOUBT = 0.05, 0.05
#: Share of the best constant prediction's loss that a run must have removed, with permuted labels too, to have memorised the rows.
MEMORISED = 0.5
#: An advantage over permuted labels below this share of the best constant prediction's loss is none, above `CLEAR` it is a clear one.
NONE, CLEAR = 0.05, 0.25
#: Rows trained on, and held out, that a failure requires: sixteen rows are memorised as fast whatever their labels.
LEAST_ROWS, LEAST_HELD_OUT = 128, 64
#: The weights moved at least this share of their displacement under the standard loss: the run did train. (Steps that contradict each other
#: move them less far than those that agree: after 60 of them about a quarter to a half.)
LEAST_DISPLACEMENT = 0.25
#: The own loss counts as a loss of these labels if it starts within this factor of the standard loss.
SIMILAR = 2.0


@check(
    stage=Stage.OUTCOME,
    position=8,
    faults=(
        faults.LOSS_MISSES_LABELS,
        faults.NO_BETTER_THAN_PERMUTED,
    ),
    thresholds=(Threshold("alpha", "at most", "error rate at which true labels beat permuted ones", 1e-9, 1 - 1e-9),),
    measurements=(Permuted,),
    shows=(Symptom.OUTCOME,),
)
def check_beats_permuted_labels(trace: Trace, *, alpha: float = ALPHA) -> Verdict:
    """The run learns better with its own labels than with the same labels permuted among the rows at random.

    Measured only when asked for (``probes=["permuted"]``, beside others), and only for a loop of ours. The run is repeated from its
    initial weights with the same batches, optimizer and learning rates: once with the true labels, six times with permuted ones. Passes
    if the true labels are fitted better, or score better on held-out rows, than the prediction interval of the permuted runs allows.
    Fails if permuted labels are memorised as well as the true ones, for many rows and held-out rows, or if the standard loss clearly
    beats permuted labels where the run's own loss does not. Else ``inconclusive``.

    :param alpha: error rate of a pass.
    :raises ValueError: a limit out of range.

    >>> from pytest_ftcheck import finetune, tiny_distilbert, toy_batches
    >>> trace = finetune(tiny_distilbert(seed=0), toy_batches(4), steps=8, lr=1e-3, probes=["permuted"])
    >>> check_beats_permuted_labels(trace).status
    'pass'
    """
    fraction("alpha", alpha)
    runs = trace.measured(Permuted)
    if runs is None:
        return not_measured(NAME, trace, Permuted)
    held_out = f" and {runs.held_out_rows} held out" if runs.held_out_rows else ""
    return dataclasses.replace(
        _judge(runs, alpha),
        evidence=_rows(runs),
        limit="outside the permuted runs' prediction interval (Student's t; accuracies also a binomial test; error rate "
        f"{alpha:g} over all comparisons); a failure requires {LEAST_ROWS} rows trained on and {LEAST_HELD_OUT} held out, and an "
        f"advantage below {percent(NONE)} of the best constant prediction's loss",
        measured=f"the run's {plural(runs.steps, 'step')} again from its initial weights, once with the true "
        f"and {plural(len(runs.permuted), 'time')} with permuted labels; dropout off, on {plural(runs.scored_rows, 'row')} trained "
        f"on{held_out}",
    )


def _judge(runs: Permuted, alpha: float) -> Verdict:
    own = _comparisons(runs, runs.true)
    if not own:
        return Verdict(
            NAME,
            "inconclusive",
            f"The runs with permuted labels did not end in finite losses ({number(runs.permuted[0].fit.loss)}).",
            causes=("the run diverges: with such steps it learns nothing, whatever the labels",),
            remedy="see assert_loss_stable and assert_all_finite",
        )
    standard = [] if runs.standard is None else _comparisons(runs, runs.standard)
    if _loss_misses_labels(runs, own, standard, alpha):
        return faults.LOSS_MISSES_LABELS.verdict(
            NAME,
            f"The run does no better than with permuted labels ({own[0]}), but with the standard loss it does ({standard[0]}).",
        )
    best = max(own, key=lambda c: c.advantage_t)
    if best.advantage_t > _quantile(alpha / len(own), len(runs.permuted)):
        return Verdict(NAME, "pass", f"The run learns from its labels: {best}.", notes=_notes(runs))
    all_comparisons = "; ".join(str(c) for c in own)
    memorised = _memorised(runs)
    enough_rows = runs.rows >= LEAST_ROWS and runs.held_out_rows >= LEAST_HELD_OUT
    if memorised and enough_rows and _no_advantage(own, runs):
        fault = faults.NO_BETTER_THAN_PERMUTED
        return fault.verdict(
            NAME,
            f"The run memorises its labels, and permuted ones as well: {all_comparisons}.",
            causes=(
                fault.cause,
                "or the rule can at first only be memorised (parity, modular arithmetic): then allow this",
            ),
        )
    return Verdict(
        NAME,
        "inconclusive",
        f"The run cannot be distinguished from one with permuted labels: {all_comparisons}.",
        causes=(
            "the labels are memorised, and there are too few rows to decide whether they belong to the inputs"
            if memorised
            else "the run is too short, or its steps are too small, to learn any labels yet",
            "or the labels do not belong to the rows (shuffled, shifted), or the model cannot read the inputs",
        ),
        remedy="give more rows, and eval_batches="
        if memorised
        else f"run longer (steps={more_steps(runs.steps)}) or at a higher learning rate",
        notes=_notes(runs),
    )


@dataclass(frozen=True)
class _Comparison:
    """One number of a run beside those of the permuted runs."""

    what: str
    value: float
    others: tuple[float, ...]
    #: Student's t of the run's advantage; and the advantage as a share of the best constant prediction's loss (None: it is not a loss).
    advantage_t: float
    advantage: float | None
    format: Callable[[float], str]

    def __str__(self) -> str:
        low, high = min(self.others), max(self.others)
        return f"{self.what} {self.format(self.value)}, with permuted labels {self.format(low)} to {self.format(high)}"


def _comparisons(runs: Permuted, run: Rerun) -> list[_Comparison]:
    """Loss on the rows trained on, each run with the labels it was trained on; loss and accuracy held out."""
    comparisons: list[_Comparison] = []
    losses = [p.fit.loss for p in runs.permuted]
    drops = [p.start - p.fit.loss for p in runs.permuted]
    level = _compared("training loss", run.fit.loss, losses, -1, runs.constant_loss)
    drop = _compared("training loss", run.start - run.fit.loss, drops, 1, runs.constant_loss)
    if level is not None and drop is not None:
        # labels may happen to suit the initial weights: the smaller of the two advantages counts, at the end and since the start
        if level.advantage_t > drop.advantage_t:
            level = dataclasses.replace(level, advantage_t=drop.advantage_t, advantage=drop.advantage)
        comparisons.append(level)
    held_out = [p.held_out for p in runs.permuted if p.held_out is not None]
    if run.held_out is not None and len(held_out) == len(runs.permuted):
        of_losses = _compared(
            "held-out loss", run.held_out.loss, [o.loss for o in held_out], -1, runs.held_out_constant_loss
        )
        of_accuracies = _compared_accuracies(runs, run.held_out.accuracy, [o.accuracy for o in held_out])
        comparisons += [c for c in (of_losses, of_accuracies) if c is not None]
    return comparisons


def _compared(
    what: str, value: float, others: Sequence[float], sign: int, constant_loss: float | None
) -> _Comparison | None:
    """Student's t of the run beside the permuted runs; a loss above that of the best constant prediction counts as that."""
    if not all(math.isfinite(v) for v in (value, *others)):
        return None
    mean = sum(others) / len(others)
    spread = math.sqrt(sum((v - mean) ** 2 for v in others) / (len(others) - 1))
    advantage = sign * (value - mean)
    if sign < 0 and constant_loss is not None:
        advantage = min(mean, constant_loss) - value
    rounding = 1e-6 * max(abs(mean), abs(value), constant_loss or 0.0, 1e-12)
    error = max(spread, rounding) * math.sqrt(1 + 1 / len(others))
    share = advantage / constant_loss if constant_loss else None
    return _Comparison(what, value, tuple(others), advantage / error, share, _format_loss)


def _compared_accuracies(runs: Permuted, value: float | None, others: Sequence[float | None]) -> _Comparison | None:
    """Held-out accuracy by the less significant of two tests: Student's t beside the permuted runs (which may by chance have learnt the
    classes, or their opposite), and a binomial test against the best constant prediction."""
    known = [a for a in others if a is not None]
    if value is None or len(known) < len(others):
        return None
    from scipy.stats import binomtest, t

    chance = min(1.0, max(sum(known) / len(known), runs.baseline or 0.0))
    right = round(value * runs.held_out_rows)
    p = float(binomtest(right, runs.held_out_rows, chance, alternative="greater").pvalue)
    binomial = float(t.isf(min(max(p, 1e-12), 1 - 1e-12), len(others) - 1))
    comparison = _compared("held-out accuracy", value, known, 1, None)
    if comparison is None:
        return None
    return dataclasses.replace(comparison, advantage_t=min(binomial, comparison.advantage_t), format=percent)


def _format_loss(value: float) -> str:
    return number(value, 4)


def _quantile(alpha: float, runs: int) -> float:
    """Student's t for the prediction of one more run from ``runs`` of them, one-sided."""
    from scipy.stats import t

    return float(t.ppf(1 - alpha, runs - 1))


def _negligible(own: Sequence[_Comparison]) -> bool:
    """The advantage is negligible in every loss."""
    losses = [c.advantage for c in own if c.advantage is not None]
    return bool(losses) and max(losses) < NONE


def _no_advantage(own: Sequence[_Comparison], runs: Permuted) -> bool:
    """The advantage is negligible in every loss, and not significant in any comparison."""
    limit = _quantile(DOUBT, len(runs.permuted))
    return _negligible(own) and all(c.advantage_t < limit for c in own)


def _loss_misses_labels(
    runs: Permuted, own: Sequence[_Comparison], standard: Sequence[_Comparison], alpha: float
) -> bool:
    """The standard loss learns what this loss does not, although it is a loss of these labels and moves the weights."""
    if runs.standard is None or not standard or not runs.standard_first or runs.own_first is None:
        return False
    similar = 1 / SIMILAR <= abs(runs.own_first) / runs.standard_first <= SIMILAR
    moved = runs.true.displacement >= LEAST_DISPLACEMENT * runs.standard.displacement
    return similar and moved and _negligible(own) and _clear_advantage(standard, alpha, runs)


def _clear_advantage(comparisons: Sequence[_Comparison], alpha: float, runs: Permuted) -> bool:
    """The advantage is large in every loss, and significant in one comparison."""
    limit = _quantile(alpha / len(comparisons), len(runs.permuted))
    losses = [c for c in comparisons if c.advantage is not None]
    return any(c.advantage_t > limit for c in comparisons) and all((c.advantage or 0.0) > CLEAR for c in losses)


def _memorised(runs: Permuted) -> bool:
    """True and permuted labels alike are fitted far below the best constant prediction's loss."""
    if runs.constant_loss is None:
        return False
    return all(r.fit.loss < (1 - MEMORISED) * runs.constant_loss for r in (runs.true, *runs.permuted))


def _notes(runs: Permuted) -> tuple[str, ...]:
    run, true = runs.run.fit.loss, runs.true.fit.loss
    if not runs.constant_loss or not abs(run - true) > CLEAR * runs.constant_loss:
        return ()
    return (
        f"the run itself ended at a training loss of {number(run, 4)}, its repetition at {number(true, 4)}: something other than the loop "
        "changed the training (a callback, a random state of its own, weights written from outside)",
    )


def _rows(runs: Permuted) -> tuple[dict[str, Any], ...]:
    rows = [("the run", runs.run), ("true labels", runs.true)]
    if runs.standard is not None:
        rows.append(("true labels, standard loss", runs.standard))
    rows += [(f"permuted labels {i + 1}", r) for i, r in enumerate(runs.permuted)]
    return tuple(
        {
            "trained with": what,
            "first loss": number(r.start, 4),
            "last loss": number(r.fit.loss, 4),
            "right": _accuracy(r.fit),
            "held out: loss": None if r.held_out is None else number(r.held_out.loss, 4),
            "held out: right": None if r.held_out is None else _accuracy(r.held_out),
        }
        for what, r in rows
    )


def _accuracy(outcome: Outcome) -> str | None:
    return None if outcome.accuracy is None else percent(outcome.accuracy)
