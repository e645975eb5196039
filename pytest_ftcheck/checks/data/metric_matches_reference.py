"""The user's own metric agrees with a reference metric on the same rows."""

from __future__ import annotations

import math

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, check, not_measured
from . import faults
from .record import Data, Evaluation

#: Held-out rows below which nothing is called wrong.
LEAST_ROWS = 32
#: Agreement of a share (in its own unit), and of a loss (relative).
SHARE, RELATIVE = 0.02, 0.02
#: A mistake is recognised by exact agreement: rounding of float32 averages is below this.
EXACT = 1e-4
#: The reference accuracy must rise by this much, and end this much above the commonest class, before anything is called wrong.
RISE = 0.25
#: A share of right answers that ends this near to knowing nothing has not seen it (or within two standard errors); one that fell by
#: half of the rise is an error rate.
NEAR, FELL = 0.05, 0.5
#: A count of right rows over rows: its denominator is at most this.
COUNTED = 1000
#: Share of the predictions that changed, and rise of the accuracy, at which a metric cannot stay the same to the last digit.
CHANGED, GAIN = 0.2, 0.15


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
    """Your ``evaluate`` agrees with a metric in common use on the held-out rows, or at least does not contradict them.

    Compared before and after the run with accuracy, macro and weighted F1, precision, recall, losses, MSE, R squared and the like, as a
    share, in per cent, as an error or with the sign turned. A metric that is none of them passes, unless it equals a known mistake
    (``argmax`` over the rows), stays the same to the last digit while predictions change, or is a share of counted rows that stays at
    knowing nothing while the accuracy on the same rows rises by a quarter or more.

    >>> from pytest_ftcheck import example_trace
    >>> check_metric_matches_reference(example_trace()).status
    'skipped'
    """
    check = "metric_matches_reference"
    data = trace.measured(Data)
    if not any(m.source == "the user's own" for m in trace.metrics):
        return Verdict(check, "skipped", "there is no metric of yours (evaluate=) to compare.")
    e = (data.evaluation if data is not None else None) or _from_metrics(trace)
    if e is None:
        why = "" if data is None else "no held-out rows, no readable logits, or too many rows for the budget"
        return not_measured(check, trace, Data, why)
    measured = f"logits of {plural(e.rows, 'held-out row')} before and after the run, dropout off"
    yours = f"evaluate() went {number(e.first)} -> {number(e.last)}"
    if same := matching(e):
        return Verdict(check, "pass", f"{yours}: that is {same} on the held-out rows.", measured=measured)
    rows = tuple({"metric": k, "before": a, "after": b} for k, (a, b) in e.references.items())
    rows = ({"metric": "yours", "before": e.first, "after": e.last}, *rows)
    limit = (
        f"the same as a reference, or a rise of its own: the accuracy rose by {percent(RISE)} or more of all rows, "
        f"to {percent(RISE)} above the commonest class"
    )
    beside = _beside(e)
    if e.rows < LEAST_ROWS:
        return Verdict(
            check,
            "pass",
            f"{yours}: none of the references, and {plural(e.rows, 'held-out row')} are too few to doubt it.",
            measured=measured,
        )
    rises = _rises(e)
    for mistake, (first, last) in e.mistakes.items():
        if (
            rises
            and abs(e.first - first) <= EXACT
            and abs(e.last - last) <= EXACT
            and abs(e.last - e.references["accuracy"][1]) > SHARE
        ):
            return Verdict(
                check,
                "fail",
                f"{yours}{beside}: it is exactly what {mistake} gives.",
                rows,
                limit,
                (f"the metric takes {mistake}" if "argm" in mistake else f"the metric counts {mistake}",),
                "logits.argmax(dim=-1) == labels, both of shape (rows,)",
                measured,
                fault="metric_wrong",
            )
    if e.first == e.last and e.changed is not None and e.changed >= CHANGED and _gain(e) >= GAIN:
        return Verdict(
            check,
            "fail",
            f"{yours}{beside}: it did not change in the last digit while {percent(e.changed)} of the predictions did.",
            rows,
            limit,
            (
                "the metric does not see what the model says: a copy of it made before training, or always the same prediction",
            ),
            "evaluate(model) must use the model it is given; argmax and thresholds must fit its outputs",
            measured,
            fault="metric_blind",
        )
    if per_batch := _per_batch(e):
        return Verdict(
            check,
            "fail",
            f"{yours}{beside}: it is {number(per_batch)} times the accuracy, the number of rows in a batch.",
            rows,
            limit,
            ("the right answers are divided by the number of batches instead of rows",),
            "divide by the number of rows: total += len(labels)",
            measured,
            fault="metric_scaled",
        )
    if rises and _counted(e) and _stays(e):
        return Verdict(
            check,
            "fail",
            f"{yours}{beside}: a share of right answers that stays at knowing nothing while the model learns.",
            rows,
            limit,
            ("the metric compares the wrong things (a wrong axis, rows in another order, other labels)",),
            "print ten predictions and labels inside evaluate()",
            measured,
            fault="metric_wrong",
        )
    return Verdict(
        check,
        "pass",
        f"{yours}: none of {plural(len(e.references), 'reference metric')}, and nothing that contradicts them.",
        measured=measured,
        notes=("a metric of your own making, or other rows than eval_batches: it was not checked further",),
    )


def matching(e: Evaluation) -> str | None:
    """The reference metric that it is, in which unit; None: none.

    >>> matching(Evaluation(64, 33.0, 91.0, {"accuracy": (0.33, 0.91)}, {}))
    'accuracy in per cent'
    """
    for name, (first, last) in e.references.items():
        loss = name in ("loss", "MSE", "RMSE", "MAE")
        ways: tuple[tuple[str, float, float], ...] = (("", 1.0, 0.0), (" with the sign turned", -1.0, 0.0))
        if not loss:
            ways += (
                (" in per cent", 100.0, 0.0),
                (", as an error (1 - it)", -1.0, 1.0),
                (", as an error in per cent", -100.0, 100.0),
            )
        for word, factor, shift in ways:
            near = all(
                math.isclose(
                    mine,
                    factor * theirs + shift,
                    rel_tol=RELATIVE if loss else 0,
                    abs_tol=1e-6 if loss else SHARE * abs(factor),
                )
                for mine, theirs in ((e.first, first), (e.last, last))
            )
            if near:
                return name + word
    return None


def _from_metrics(trace: Trace) -> Evaluation | None:
    """Where no references were computed: the metrics of our own on the held-out rows."""
    mine = next(m for m in trace.metrics if m.source == "the user's own")
    ours = [m for m in trace.metrics if m.source == "held-out rows" and m.predicted]
    if not ours or ours[0].name != "accuracy":
        return None
    return Evaluation(
        rows=ours[0].rows,
        first=mine.first,
        last=mine.last,
        references={m.name: (m.first, m.last) for m in ours},
        mistakes={},
        baseline=ours[0].baseline,
    )


def _beside(e: Evaluation) -> str:
    if "accuracy" in e.references:
        first, last = e.references["accuracy"]
        return f", while the accuracy on the held-out rows went {number(first)} -> {number(last)}"
    return ""


def _rises(e: Evaluation) -> bool:
    """The model plainly learnt, on these rows."""
    if "accuracy" not in e.references or e.baseline is None:
        return False
    first, last = e.references["accuracy"]
    return last - first >= RISE and last - e.baseline >= RISE


def _gain(e: Evaluation) -> float:
    first, last = e.references.get("accuracy", (0.0, 0.0))
    return last - first


def _stays(e: Evaluation) -> bool:
    blind = e.baseline or 0.0
    near = max(NEAR, 2 * math.sqrt(max(blind * (1 - blind), 0.0) / max(1, e.rows)))
    return e.last <= min(blind + near, e.references["accuracy"][1] - RISE) and e.first - e.last < FELL * _gain(e)


def _per_batch(e: Evaluation) -> float | None:
    """Rows of a batch, if the metric is the accuracy times that."""
    if e.batches < 2 or "accuracy" not in e.references:
        return None
    size = e.rows / e.batches
    first, last = e.references["accuracy"]
    near = all(abs(mine - size * theirs) <= EXACT * size for mine, theirs in ((e.first, first), (e.last, last)))
    return size if near and last > 0 and size > 1 and not math.isclose(size, 100) else None


def _counted(e: Evaluation) -> bool:
    """Both values are fractions of one whole number of rows."""
    if not (0 <= e.first <= 1 and 0 <= e.last <= 1):
        return False
    return any(all(abs(v * n - round(v * n)) <= 2e-7 * n for v in (e.first, e.last)) for n in range(1, COUNTED + 1))
