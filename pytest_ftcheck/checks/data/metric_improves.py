"""Does a metric get better than knowing nothing?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...core.arguments import fraction
from ...core.formatting import more_steps, number, percent, plural
from ...core.observations import Metric
from ...core.trace import Trace
from ...core.verdict import Verdict
from ...seeds.thresholds import Threshold
from ..spec import Stage, Symptom, check

#: Share of label permutations that may do as well by luck: the false-pass rate.
ALPHA = 0.01
#: Worse than luck is a score so many standard deviations below that of permuted labels (2.3e-4 of a normal distribution is below that).
#: A share of permutations does not do: of few different scores the lowest has no permutation below it.
WORSE = 3.5


@check(
    stage=Stage.OUTCOME,
    position=6,
    thresholds=(Threshold("alpha", "at most", "share of label permutations that score as well", 1e-9, 1 - 1e-9),),
    shows=(Symptom.OUTCOME,),
)
def check_metric_improves(trace: Trace, metric: str | None = None, *, alpha: float = ALPHA) -> Verdict:
    """A metric beats the best prediction that looks at no input, by more than luck.

    The baseline is the majority class (each tag's majority; the mean for regression) on the same rows; luck is measured by permuting
    the labels, so the test is exact for any metric and any class balance. With imbalance treated by class weights accuracy may
    rightly stay below the majority's: then macro recall decides.

    :param metric: name of one of the trace's metrics; default: the first of yours, else accuracy or R squared.
    :param alpha: largest share of label permutations that may do as well.
    :raises ValueError: no such metric, or a limit out of range.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_metric_improves(example_trace()))
    metric_improves: pass. accuracy 0.500 -> 0.900 on 64 held-out rows, against 0.530 for the majority class (p = 0.00100).
    """
    fraction("alpha", alpha)
    if metric is not None and metric not in [m.name for m in trace.metrics]:
        have = ", ".join(m.name for m in trace.metrics) or "none"
        raise ValueError(f"metric={metric!r}: the trace has {have}")
    if not trace.metrics:
        why = next((n for n in trace.notes if n.startswith("metrics skipped")), "no logits or labels could be read")
        return Verdict("metric_improves", "skipped", f"there is no metric: {why}.")
    chosen = next(m for m in trace.metrics if metric in (None, m.name))
    blind = "the mean" if trace.reading.task == "regression" else "the majority class"
    against = f", against {number(chosen.baseline)} for {blind}" if chosen.baseline is not None else ""
    luck = f" (p = {number(chosen.p_value)})" if chosen.p_value is not None else ""
    rows = f" on {plural(chosen.rows, chosen.source.removesuffix('s'))}" if chosen.rows else ""
    headline = f"{chosen.name} {number(chosen.first)} -> {number(chosen.last)}{rows}{against}{luck}."
    limit = f"above {blind}'s score, and matched by at most {percent(alpha)} of label permutations"
    measured = "the same rows before and after the run, dropout off" if chosen.rows else "the user's own evaluate()"

    def verdict(
        status: Any, text: str, causes: Sequence[str] = (), remedy: str = "", notes: Sequence[str] = ()
    ) -> Verdict:
        return Verdict(
            "metric_improves",
            status,
            text,
            _rows(chosen),
            limit,
            tuple(causes),
            remedy,
            measured,
            tuple(notes),
        )

    if not math.isfinite(chosen.last):
        return verdict(
            "fail",
            headline,
            ["the metric is not a number: the outputs are not finite"],
            "see assert_all_finite",
        )
    one = _one_class(chosen)
    if chosen.p_value is None:
        if chosen.last > chosen.first and (chosen.baseline is None or chosen.last > chosen.baseline):
            return Verdict(
                "metric_improves",
                "pass",
                headline,
                limit="higher than before",
                measured=measured,
                notes=("how much of it is luck was not measured",),
            )
        status = (
            "fail"
            if chosen.last < chosen.first and chosen.baseline is not None and chosen.last < chosen.baseline
            else "inconclusive"
        )
        return verdict(status, f"No improvement: {headline}", one, "run longer; evaluate on more rows")
    if _dropped(chosen):
        return verdict(
            "fail",
            f"It got worse: {headline}",
            [
                "what the model knew is being destroyed: the learning rate is too high, or the labels mean something else",
                *one,
            ],
            "try a tenth of the learning rate; check the mapping of the labels",
        )
    if chosen.p_value <= alpha:
        if chosen.last <= chosen.first and (chosen.baseline is None or chosen.first > chosen.baseline):
            return verdict(
                "inconclusive",
                f"No improvement: {headline}",
                ["the model knew it before the run: what this run added cannot be told"],
                "judge a model with a new head, or another metric",
            )
        if chosen.baseline is None or chosen.last > chosen.baseline:
            return Verdict("metric_improves", "pass", headline, limit=limit, measured=measured)
        recall = next((m for m in trace.metrics if m.name == "recall"), None)
        if (
            recall is not None
            and recall.p_value is not None
            and recall.p_value <= alpha
            and recall.last > (recall.baseline or 0)
        ):
            return Verdict(
                "metric_improves",
                "pass",
                headline,
                limit=limit,
                measured=measured,
                notes=(
                    f"below the majority class in {chosen.name}, but macro recall is {number(recall.last)} "
                    f"against {number(recall.baseline)}: "
                    "the rare classes are found, as with treated imbalance",
                ),
            )
        return verdict(
            "inconclusive",
            f"Better than luck, yet not better than {blind}: {headline}",
            [
                *one,
                "the outputs go with the labels and are not on their scale: a link between them (a sigmoid, an exponential, a "
                "logarithm), a loss of ranks, or labels that the loss rescales"
                if trace.reading.task == "regression"
                else "what was learnt does not yet outweigh the frequencies of the classes",
            ],
            "judge by a metric on the outputs' own scale or by a rank correlation (metrics=)"
            if trace.reading.task == "regression"
            else "run longer, or judge by a metric that counts each class alike (metrics=)",
        )
    if chosen.deviations is not None and chosen.deviations <= -WORSE and not one and _worse(chosen):
        return verdict(
            "fail",
            f"Worse than luck: {headline}",
            [
                "predictions and labels are systematically crossed: labels shifted or permuted, a flipped sign, argmin for argmax"
            ],
            "look at ten predictions beside their labels",
        )
    if sum(n > 0 for n in chosen.actual) == 1:
        return verdict(
            "inconclusive",
            f"Nothing to tell: {headline}",
            ["all rows carry the same label, so that a constant prediction is right for all of them"],
            "use rows of several classes; is the label column the right one?",
        )
    return verdict(
        "inconclusive",
        f"Not better than knowing nothing, so far: {headline}",
        [*one, "too few steps, too small a learning rate, or too few rows to tell"],
        f"run longer (steps={more_steps(len(trace.steps))}, or --ftcheck-steps), or evaluate on more rows (eval_batches=)",
    )


def _one_class(metric: Metric) -> list[str]:
    if metric.predicted and max(metric.predicted) == sum(metric.predicted):
        return [
            f"all {plural(sum(metric.predicted), 'row')} are predicted as class {metric.predicted.index(max(metric.predicted))}"
        ]
    return []


def _worse(metric: Metric) -> bool:
    """Lower than before the run: a random head may begin anywhere, below luck too."""
    return metric.rows > 0 and metric.last < metric.first - 1 / metric.rows


def _dropped(metric: Metric) -> bool:
    """Significantly lower than before the run (three standard errors of two shares; only for scores of rows in 0..1)."""
    if metric.name != "accuracy" or not metric.rows:
        return False
    spread = math.sqrt(max(metric.first * (1 - metric.first) + metric.last * (1 - metric.last), 1e-9) / metric.rows)
    return metric.last < metric.first - 3 * spread and metric.first > (metric.baseline or 0) + 3 * spread


def _rows(metric: Metric) -> tuple[dict[str, Any], ...]:
    if not metric.predicted:
        return ()
    return tuple(
        {"class": i, "rows": metric.actual[i] if i < len(metric.actual) else 0, "predicted": n}
        for i, n in enumerate(metric.predicted)
    )
