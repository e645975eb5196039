"""The user's own metric agrees with a reference metric on the same rows."""

from __future__ import annotations

import math

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Fault, Stage, check, not_measured
from . import faults
from .record import Data, Evaluation

NAME = "metric_matches_reference"
#: Held-out rows below which no metric is called wrong.
MIN_ROWS = 32
#: Agreement of a share (in its own unit), and of a loss (relative; absolute near 0).
SHARE_TOLERANCE, LOSS_TOLERANCE, LOSS_NEAR_ZERO = 0.02, 0.02, 1e-6
#: A mistake is recognised by exact agreement: rounding of float32 averages is below this.
EXACT = 1e-4
#: The reference accuracy must rise by this much, and end this much above the majority class, before a metric is called wrong.
RISE = 0.25
#: A share of correct predictions stays at the baseline within this (or within two standard errors); one that fell by this share of the
#: rise is an error rate.
NEAR_BASELINE, FALL = 0.05, 0.5
#: A share of rows is a fraction of whole numbers: largest denominator tried.
MOST_COUNTED = 1000
#: Share of the predictions that changed, and rise of the accuracy, at which a metric cannot stay the same to the last digit.
CHANGED, GAIN = 0.2, 0.15
#: References that are losses: compared relative to their size, and only as they are or with the sign flipped.
LOSSES = ("loss", "MSE", "RMSE", "MAE")
#: How a share may be written: words, factor and offset.
LOSS_FORMS: tuple[tuple[str, float, float], ...] = (("", 1.0, 0.0), (" with the sign flipped", -1.0, 0.0))
SHARE_FORMS = (
    *LOSS_FORMS,
    (" in per cent", 100.0, 0.0),
    (", as an error (1 - it)", -1.0, 1.0),
    (", as an error in per cent", -100.0, 100.0),
)


@check(
    stage=Stage.OUTCOME,
    position=7,
    faults=(
        faults.METRIC_WRONG,
        faults.METRIC_BLIND,
        faults.METRIC_SCALED,
    ),
    measurements=(Data,),
)
def check_metric_matches_reference(trace: Trace) -> Verdict:
    """Your ``evaluate`` agrees with a standard metric on the held-out rows, or at least does not contradict them.

    Compared before and after the run with accuracy, macro and weighted F1, precision, recall, losses, MSE, R squared and the like, as a
    share, in per cent, as an error or with the sign flipped. A metric that is none of them passes, unless it equals a known mistake
    (``argmax`` over the rows), stays the same to the last digit while predictions change, or is a share of rows that stays at the
    majority baseline while the accuracy on the same rows rises by a quarter or more.

    >>> from pytest_ftcheck import example_trace
    >>> check_metric_matches_reference(example_trace()).status
    'skipped'
    """
    if not any(m.source == "the user's own" for m in trace.metrics):
        return Verdict(NAME, "skipped", "There is no metric of yours (evaluate=) to compare.")
    data = trace.measured(Data)
    e = (data.evaluation if data is not None else None) or _from_metrics(trace)
    if e is None:
        reason = "" if data is None else "no held-out rows, no readable logits, or too many rows for the budget"
        return not_measured(NAME, trace, Data, reason)
    if reference := matching(e):
        return _passed(e, f"that is {reference} on the held-out rows")
    if e.rows < MIN_ROWS:
        return _passed(e, f"none of the references, and {plural(e.rows, 'held-out row')} are too few to call it wrong")
    if mistaken := _judge_mistakes(e):
        return mistaken
    # a constant prediction's share of one class is its precision, too; a recall may well stay at 0 or 1
    stuck = e.first == e.last and e.last not in (0.0, 1.0)
    if not stuck and (reference := matching(e, of_one_class=True)):
        return _passed(e, f"that is {reference} on the held-out rows")
    for judge in (_judge_unchanged, _judge_scale, _judge_at_baseline):
        if verdict := judge(e):
            return verdict
    return _passed(
        e,
        f"none of {plural(len(e.references), 'reference metric')}, and nothing contradicts them",
        "a custom metric, or other rows than eval_batches: it was not checked further",
    )


def matching(e: Evaluation, *, of_one_class: bool = False) -> str | None:
    """The reference metric that it is, in which unit; None: none.

    :param of_one_class: among the recalls and precisions of single classes, which a constant may equal by chance.

    >>> matching(Evaluation(64, 33.0, 91.0, {"accuracy": (0.33, 0.91)}, {}))
    'accuracy in per cent'
    """
    for name, values in e.references.items():
        if (" of class " in name) != of_one_class:
            continue
        for form, factor, offset in LOSS_FORMS if name in LOSSES else SHARE_FORMS:
            if all(
                math.isclose(
                    mine,
                    factor * reference + offset,
                    rel_tol=LOSS_TOLERANCE if name in LOSSES else 0,
                    abs_tol=LOSS_NEAR_ZERO if name in LOSSES else SHARE_TOLERANCE * abs(factor),
                )
                for mine, reference in zip((e.first, e.last), values, strict=True)
            ):
                return name + form
    return None


def _judge_mistakes(e: Evaluation) -> Verdict | None:
    if not _learns(e):
        return None
    for mistake, (first, last) in e.mistakes.items():
        if (
            max(first, last) > EXACT  # that both are 0 has many other causes
            and abs(e.first - first) <= EXACT
            and abs(e.last - last) <= EXACT
            and abs(e.last - e.references["accuracy"][1]) > SHARE_TOLERANCE
        ):
            return _failure(
                e,
                faults.METRIC_WRONG.because(
                    f"evaluate() makes a common mistake: {mistake}",
                    "logits.argmax(dim=-1) == labels, both of shape (rows,)",
                ),
                f"exactly what this mistake gives: {mistake}",
            )
    return None


def _judge_unchanged(e: Evaluation) -> Verdict | None:
    if e.first != e.last or e.changed is None or e.changed < CHANGED or _gain(e) < GAIN:
        return None
    return _failure(
        e, faults.METRIC_BLIND, f"the same to the last digit, though {percent(e.changed)} of the predictions changed"
    )


def _judge_scale(e: Evaluation) -> Verdict | None:
    """The accuracy times the rows of a batch."""
    if e.batches < 2 or "accuracy" not in e.references:
        return None
    rows = e.rows / e.batches
    first, last = e.references["accuracy"]
    equal = all(abs(mine - rows * reference) <= EXACT * rows for mine, reference in ((e.first, first), (e.last, last)))
    if not equal or last <= 0 or rows <= 1 or math.isclose(rows, 100):
        return None
    return _failure(e, faults.METRIC_SCALED, f"{number(rows)} times the accuracy: the number of rows in a batch")


def _judge_at_baseline(e: Evaluation) -> Verdict | None:
    if not _learns(e) or not _is_share_of_rows(e) or not _stays_at_baseline(e):
        return None
    return _failure(
        e,
        faults.METRIC_WRONG,
        "a share of correct predictions that stays at the majority baseline while the model learns",
    )


def _failure(e: Evaluation, fault: Fault, finding: str) -> Verdict:
    beside = ""
    if "accuracy" in e.references:
        first, last = e.references["accuracy"]
        beside = f", the accuracy on the held-out rows {number(first)} -> {number(last)}"
    yours = {"metric": "yours", "before": e.first, "after": e.last}
    return fault.verdict(
        NAME,
        f"{_yours(e)}{beside}: it is {finding}.",
        evidence=(yours, *({"metric": k, "before": a, "after": b} for k, (a, b) in e.references.items())),
        limit=f"equal to a reference, or rising by itself where the accuracy rose by {100 * RISE:.0f} points or more, "
        f"to {100 * RISE:.0f} points above the majority class",
        measured=_measured(e),
    )


def _passed(e: Evaluation, finding: str, *notes: str) -> Verdict:
    return Verdict(NAME, "pass", f"{_yours(e)}: {finding}.", measured=_measured(e), notes=notes)


def _yours(e: Evaluation) -> str:
    return f"evaluate() went {number(e.first)} -> {number(e.last)}"


def _measured(e: Evaluation) -> str:
    return f"logits of {plural(e.rows, 'held-out row')} before and after the run, dropout off"


def _from_metrics(trace: Trace) -> Evaluation | None:
    """Where no references were computed: the trace's other metrics on the held-out rows."""
    mine = next(m for m in trace.metrics if m.source == "the user's own")
    others = [m for m in trace.metrics if m.source == "held-out rows" and m.predicted]
    if not others or others[0].name != "accuracy":
        return None
    return Evaluation(
        rows=others[0].rows,
        first=mine.first,
        last=mine.last,
        references={m.name: (m.first, m.last) for m in others},
        mistakes={},
        baseline=others[0].baseline,
    )


def _gain(e: Evaluation) -> float:
    first, last = e.references.get("accuracy", (0.0, 0.0))
    return last - first


def _learns(e: Evaluation) -> bool:
    """The model clearly learns, on these rows."""
    if "accuracy" not in e.references or e.baseline is None:
        return False
    return _gain(e) >= RISE and e.references["accuracy"][1] - e.baseline >= RISE


def _stays_at_baseline(e: Evaluation) -> bool:
    baseline = e.baseline or 0.0
    near = max(NEAR_BASELINE, 2 * math.sqrt(max(baseline * (1 - baseline), 0.0) / max(1, e.rows)))
    return e.last <= min(baseline + near, e.references["accuracy"][1] - RISE) and e.first - e.last < FALL * _gain(e)


def _is_share_of_rows(e: Evaluation) -> bool:
    """Both values are fractions of one whole number of rows."""
    if not (0 <= e.first <= 1 and 0 <= e.last <= 1):
        return False
    return any(
        all(abs(v * n - round(v * n)) <= 2e-7 * n for v in (e.first, e.last)) for n in range(1, MOST_COUNTED + 1)
    )
