"""Does the run learn better with its labels than with labels that mean nothing?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...core.arguments import fraction
from ...core.formatting import more_steps, number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Status, Verdict
from ...seeds.thresholds import Threshold
from ..head.ablation_record import Outcome
from ..spec import Stage, Symptom, check, not_measured
from . import faults
from .record import Permuted, Rerun

#: Error rate of a pass, shared by the comparisons made; and of "no better", before a failure is spoken of.
ALPHA, DOUBT = 0.05, 0.05
#: Share of the blind answer's loss that a run must have fitted away, with permuted labels too, to have learnt by heart.
BY_HEART = 0.5
#: An advantage over permuted labels below this share of the blind answer's loss is none, above `PLAIN` it is a plain one.
NONE, PLAIN = 0.05, 0.25
#: Rows trained on, and held out, below which learning by heart is no wonder: sixteen rows are fitted as fast whatever their labels.
LEAST_ROWS, LEAST_HELD_OUT = 128, 64
#: The weights came at least this share of the way that the textbook loss makes them come: the run did train. (Steps that contradict each
#: other get less far than those that agree: after 60 of them about a quarter to a half.)
AS_FAR = 0.25
#: The own loss counts as one of the labels if it starts within this factor of the textbook loss.
KINDRED = 2.0


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
    """The run learns better with its own labels than with the same labels dealt out among the rows at random.

    Measured only when asked for (``probes=["permuted"]``, beside others), and only where the loop is ours. The run is repeated from
    its initial weights with the same batches, optimizer and learning rates: once with the true labels, six times with permuted ones.
    Passes if the true labels are fitted better, or do better on held-out rows, than the prediction interval of the permuted runs
    allows for. Fails if permuted labels are learnt by heart as well as the true ones, many rows and held-out rows agreeing, or if
    the textbook loss beats permuted labels plainly where the run's own loss does not. Else ``inconclusive``.

    :param alpha: error rate of a pass.
    :raises ValueError: a limit out of range.

    >>> from pytest_ftcheck import finetune, tiny_distilbert, toy_batches
    >>> trace = finetune(tiny_distilbert(seed=0), toy_batches(4), steps=8, lr=1e-3, probes=["permuted"])
    >>> check_beats_permuted_labels(trace).status
    'pass'
    """
    fraction("alpha", alpha)
    name, found = "beats_permuted_labels", trace.measured(Permuted)
    if found is None:
        return not_measured(name, trace, Permuted)
    measured = (
        f"the run's {plural(found.steps, 'step')} again from its initial weights, once with the true and "
        f"{plural(len(found.permuted), 'time')} with permuted labels; dropout off, on {plural(found.looked_at, 'row')} trained on"
        + (f" and {found.held_out_rows} held out" if found.held_out_rows else "")
    )
    limit = (
        f"outside the permuted runs' prediction interval (Student's t; of shares a binomial test, too; error rate {alpha:g} over all "
        f"comparisons); a failure asks for "
        f"{LEAST_ROWS} rows trained on and {LEAST_HELD_OUT} held out, and an advantage below {percent(NONE)} of the blind answer's loss"
    )

    def verdict(
        status: Status,
        headline: str,
        causes: Sequence[str] = (),
        remedy: str = "",
        fault: str = "",
        notes: Sequence[str] = (),
    ) -> Verdict:
        return Verdict(
            name, status, headline, _rows(found), limit, tuple(causes), remedy, measured, tuple(notes), fault
        )

    own = _comparisons(found, found.true)
    if not own:
        return verdict(
            "inconclusive",
            f"The runs with permuted labels did not end in finite losses ({number(found.permuted[0].fit.loss)}).",
            ["the run diverges: with such steps it learns nothing, whatever the labels"],
            "see assert_loss_stable and assert_all_finite",
        )
    better = [] if found.textbook is None else _comparisons(found, found.textbook)
    if _misses(found, own, better, alpha):
        return verdict(
            "fail",
            f"The run does no better than with permuted labels ({own[0]}), though with the textbook loss it does ({better[0]}).",
            [
                "the loss that is minimised does not ask for the labels of these rows: it shuffles or shifts them, takes others, or has "
                "the wrong sign"
            ],
            "compare your loss with cross_entropy(logits, labels) on one batch; see assert_loss_matches_task",
            "loss_misses_labels",
        )
    best = max(own, key=lambda c: c.away)
    if best.away > _quantile(alpha / len(own), len(found.permuted)):
        return verdict("pass", f"The run learns from its labels: {best}.", notes=_notes(found))
    alike = _none(own, found)
    heart = _by_heart(found)
    if alike and heart and found.rows >= LEAST_ROWS and found.held_out_rows >= LEAST_HELD_OUT:
        return verdict(
            "fail",
            f"The run learns its labels by heart, and learns permuted ones as well: {'; '.join(str(c) for c in own)}.",
            [
                "the labels do not belong to the rows: shuffled, shifted, or joined to the wrong texts",
                "or a rule that can at first only be learnt by heart (parity, modular arithmetic): then allow this",
            ],
            "print ten rows with their labels, as they enter the model",
            "no_better_than_permuted",
        )
    return verdict(
        "inconclusive",
        f"The run cannot be told from one with permuted labels: {'; '.join(str(c) for c in own)}.",
        [
            "it has learnt by heart, and the rows are too few to tell from that whether their labels mean anything"
            if heart
            else "it is too short, or its steps are too small, to learn anything from any labels yet",
            "or the labels do not belong to the rows (shuffled, shifted), or the model cannot read the inputs",
        ],
        "give more rows, and eval_batches="
        if heart
        else f"run longer (steps={more_steps(found.steps)}) or at a higher learning rate",
        notes=_notes(found),
    )


@dataclass(frozen=True)
class _Comparison:
    """One number of a run beside those of the permuted runs."""

    what: str
    value: float
    others: tuple[float, ...]
    #: Student's t of the run's advantage; and the advantage as a share of the blind answer's loss (None: it is none of a loss).
    away: float
    advantage: float | None
    shown: Any

    def __str__(self) -> str:
        low, high = min(self.others), max(self.others)
        return f"{self.what} {self.shown(self.value)}, with permuted labels {self.shown(low)} to {self.shown(high)}"


def _comparisons(found: Permuted, run: Rerun) -> list[_Comparison]:
    """Loss on the rows trained on, each with the labels it was trained on; loss and accuracy held out."""
    made: list[_Comparison] = []
    fits = [p.fit.loss for p in found.permuted]
    falls = [p.start - p.fit.loss for p in found.permuted]
    level = _compared("training loss", run.fit.loss, fits, -1, found.prior)
    fall = _compared("training loss", run.start - run.fit.loss, falls, 1, found.prior)
    if level is not None and fall is not None:
        # labels may happen to suit the initial weights: what counts is the smaller of the two advantages, at the end and since the start
        made.append(level if level.away <= fall.away else replace(level, away=fall.away, advantage=fall.advantage))
    held = [p.held_out for p in found.permuted if p.held_out is not None]
    if run.held_out is not None and len(held) == len(found.permuted):
        losses = _compared("held-out loss", run.held_out.loss, [o.loss for o in held], -1, found.held_out_prior)
        shares = _shares(found, run.held_out.accuracy, [o.accuracy for o in held])
        made += [c for c in (losses, shares) if c is not None]
    return made


def _compared(what: str, mine: float, others: Sequence[float], sign: int, prior: float | None) -> _Comparison | None:
    """Student's t of the run beside the permuted runs; what costs more than the blind answer is no worse than that."""
    if not all(math.isfinite(v) for v in (mine, *others)):
        return None
    mean = sum(others) / len(others)
    spread = math.sqrt(sum((v - mean) ** 2 for v in others) / (len(others) - 1))
    gain = sign * (mine - mean)
    if sign < 0 and prior is not None:
        gain = min(mean, prior) - mine
    rounding = 1e-6 * max(abs(mean), abs(mine), prior or 0.0, 1e-12)
    error = max(spread, rounding) * math.sqrt(1 + 1 / len(others))
    return _Comparison(what, mine, tuple(others), gain / error, gain / prior if prior else None, _loss)


def _shares(found: Permuted, mine: float | None, others: Sequence[float | None]) -> _Comparison | None:
    """Share of right predictions held out: the less telling of two tests, Student's t beside the permuted runs (which may by luck have
    learnt the classes, or their opposite), and a binomial one beside saying the same for every row."""
    known = [a for a in others if a is not None]
    if mine is None or len(known) < len(others):
        return None
    from scipy.stats import binomtest, t

    luck = min(1.0, max(sum(known) / len(known), found.baseline or 0.0))
    p = float(binomtest(round(mine * found.held_out_rows), found.held_out_rows, luck, alternative="greater").pvalue)
    by_rows = float(t.isf(min(max(p, 1e-12), 1 - 1e-12), len(others) - 1))
    beside = _compared("held-out accuracy", mine, known, 1, None)
    return None if beside is None else replace(beside, away=min(by_rows, beside.away), shown=percent)


def _loss(value: float) -> str:
    return number(value, 4)


def _quantile(alpha: float, runs: int) -> float:
    """Student's t for the prediction of one more run from ``runs`` of them, one-sided."""
    from scipy.stats import t

    return float(t.ppf(1 - alpha, runs - 1))


def _small(own: Sequence[_Comparison]) -> bool:
    """No advantage worth the name, in any loss."""
    losses = [c.advantage for c in own if c.advantage is not None]
    return bool(losses) and max(losses) < NONE


def _none(own: Sequence[_Comparison], found: Permuted) -> bool:
    """Not even a hint of an advantage, in any comparison."""
    limit = _quantile(DOUBT, len(found.permuted))
    return _small(own) and all(c.away < limit for c in own)


def _misses(found: Permuted, own: Sequence[_Comparison], better: Sequence[_Comparison], alpha: float) -> bool:
    """The textbook loss learns what this loss, though it is one of labels and moves the weights, does not."""
    if found.textbook is None or not better or not found.textbook_first or found.own_first is None:
        return False
    kindred = 1 / KINDRED <= abs(found.own_first) / found.textbook_first <= KINDRED
    as_far = found.true.moved >= AS_FAR * found.textbook.moved
    return kindred and as_far and _small(own) and _plain(better, alpha, found)


def _plain(better: Sequence[_Comparison], alpha: float, found: Permuted) -> bool:
    """An advantage that nobody doubts: large in every loss, and beyond luck."""
    limit = _quantile(alpha / len(better), len(found.permuted))
    losses = [c for c in better if c.advantage is not None]
    return any(c.away > limit for c in better) and all((c.advantage or 0.0) > PLAIN for c in losses)


def _by_heart(found: Permuted) -> bool:
    """True and permuted labels alike are fitted far below the blind answer's loss."""
    if found.prior is None:
        return False
    return all(r.fit.loss < (1 - BY_HEART) * found.prior for r in (found.true, *found.permuted))


def _notes(found: Permuted) -> list[str]:
    run, true = found.run.fit.loss, found.true.fit.loss
    if found.prior and abs(run - true) > PLAIN * found.prior:
        return [
            f"the run itself ended at a training loss of {number(run, 4)}, its repetition at {number(true, 4)}: something beside "
            "the loop had a part in it (a callback, a random state of its own, weights written from outside)"
        ]
    return []


def _rows(found: Permuted) -> tuple[dict[str, Any], ...]:
    rows = [("the run", found.run), ("true labels", found.true)]
    if found.textbook is not None:
        rows.append(("true labels, textbook loss", found.textbook))
    rows += [(f"permuted labels {i + 1}", r) for i, r in enumerate(found.permuted)]
    return tuple(
        {
            "trained with": what,
            "first loss": number(r.start, 4),
            "last loss": number(r.fit.loss, 4),
            "right": _share(r.fit),
            "held out: loss": None if r.held_out is None else number(r.held_out.loss, 4),
            "held out: right": None if r.held_out is None else _share(r.held_out),
        }
        for what, r in rows
    )


def _share(outcome: Outcome) -> str | None:
    return None if outcome.accuracy is None else percent(outcome.accuracy)
