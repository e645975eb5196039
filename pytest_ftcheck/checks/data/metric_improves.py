"""A metric beats the majority-class baseline, by more than chance."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ...core import arguments
from ...core.arguments import fraction
from ...core.formatting import as_given, more_steps, number, percent, plural
from ...core.observations import Metric
from ...core.trace import Trace
from ...core.verdict import Status, Verdict
from ...seeds.thresholds import Threshold
from ..learning import loss_fell
from ..spec import Stage, Symptom, check, run_not_measured
from . import faults
from .exchanged_classes import EXCHANGED_ROWS, exchanged_classes
from .held_out_apart import held_out_apart

NAME = "metric_improves"
#: Begins the note of a run whose metrics could not be measured; the reason follows.
METRICS_SKIPPED = "metrics skipped"
#: Share of label permutations that may do as well by chance: the false-pass rate.
ALPHA = 0.01
#: Worse than chance is a score so many standard deviations below that of permuted labels (2.3e-4 of a normal distribution is below that).
#: A share of permutations does not do: of few different scores the lowest has no permutation below it.
WORSE = 3.5
#: Standard errors of two shares by which a score must drop to have got worse.
DROP = 3


@check(
    stage=Stage.OUTCOME,
    position=6,
    faults=(
        faults.CLASSES_EXCHANGED,
        faults.TOKENS_APART,
        faults.NUMBERS_APART,
        faults.LABELS_APART,
    ),
    thresholds=(Threshold("alpha", "at most", "share of label permutations that score as well", 1e-9, 1 - 1e-9),),
    shows=(Symptom.OUTCOME,),
)
def check_metric_improves(trace: Trace, metric: str | None = None, *, alpha: float = ALPHA) -> Verdict:
    """A metric beats the best prediction that looks at no input, by more than chance.

    The baseline is the majority class (each tag's majority; the mean for regression and for class probabilities) on the same rows; chance
    is measured by permuting the labels, so the test is exact for any metric and any class balance. With class weights against imbalance,
    accuracy may rightly stay below the majority's: then macro recall decides. Where every row has the same prediction, as with rare tags,
    no such metric sees anything, yours neither: then the area under the ROC curve decides, by permutation, too. Where held-out rows are
    unlike the training rows, by their labels, numbers or tokens, that is named among the causes of a metric that does not improve.

    :param metric: name of one of the trace's metrics; default: the first of yours, else accuracy, R squared, or the
        correlation of predicted and given probabilities.
    :param alpha: largest share of label permutations that may do as well.
    :raises ValueError: no such metric, or a limit out of range.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_metric_improves(example_trace()))
    metric_improves: pass. accuracy 0.500 -> 0.900 on 64 held-out rows, against 0.530 for the majority class (p = 0.00100).
    """
    fraction("alpha", alpha)
    arguments.text("metric", metric, optional=True)
    if not trace.metrics and "metrics" in trace.skipped:
        return run_not_measured(NAME, trace, "metrics", "There is no metric.")
    if metric is not None and metric not in [m.name for m in trace.metrics]:
        have = ", ".join(m.name for m in trace.metrics) or "none"
        raise ValueError(f"metric={as_given(metric)}: the trace has {have}")
    if failed := _declared_and_failed(trace, metric):
        return failed
    if not trace.metrics:
        return Verdict(
            NAME, "skipped", f"There is no metric: {_skipped(trace) or 'no logits or labels could be read'}."
        )
    if exchanged := _judge_exchange(trace):
        return exchanged
    judged = _Judged(trace, next(m for m in trace.metrics if metric in (None, m.name)), alpha)
    return _with_split(judged, _judge(judged))


def _skipped(trace: Trace) -> str | None:
    """The note that says why metrics could not be measured; None: there is none."""
    return next((n for n in trace.notes if n.startswith(METRICS_SKIPPED)), None)


def _declared_and_failed(trace: Trace, metric: str | None) -> Verdict | None:
    """The verdict where metrics of the user's, or held-out batches, were passed and cannot be measured; None: that is not so."""
    reason = _skipped(trace)
    # what evaluate= returned may be there all the same, and may be asked for
    if reason is None or metric is not None:
        return None
    why = reason.removeprefix(f"{METRICS_SKIPPED}: ").rstrip(".")
    # that metrics of ours cannot be computed of outputs of several shapes is no fault of the batches
    given = {"metrics=": "metrics" in trace.own_arguments, "eval_batches=": why.startswith("eval_batches[")}
    if not any(given.values()):
        return None
    return Verdict(
        NAME,
        "inconclusive",
        f"Declared, and not judged: {' and '.join(name for name, so in given.items() if so)}. Not measured: {why}.",
        remedy="let metrics= be functions (logits, labels) -> float, and eval_batches= batches like the training's",
        unmeasured="metrics",
    )


@dataclass(frozen=True)
class _Judged:
    """The metric that is judged, and how its numbers are worded."""

    trace: Trace
    metric: Metric
    alpha: float

    @property
    def regression(self) -> bool:
        return self.trace.reading.task == "regression"

    @property
    def baseline(self) -> str:
        if self.trace.reading.task == "class_probabilities":
            return "the mean label"
        return "the mean" if self.regression else "the majority class"

    @property
    def scores(self) -> str:
        m = self.metric
        rows = f" on {plural(m.rows, m.source.removesuffix('s'))}" if m.rows else ""
        against = f", against {number(m.baseline)} for {self.baseline}" if m.baseline is not None else ""
        p_value = f" (p = {number(m.p_value)})" if m.p_value is not None else ""
        return f"{m.name} {number(m.first)} -> {number(m.last)}{rows}{against}{p_value}."

    @property
    def beats_baseline(self) -> bool:
        return self.metric.baseline is None or self.metric.last > self.metric.baseline

    @property
    def limit(self) -> str:
        return f"above {self.baseline}'s score, and matched by at most {percent(self.alpha)} of label permutations"

    @property
    def measured(self) -> str:
        return (
            "the same rows before and after the run, dropout off" if self.metric.rows else "the user's own evaluate()"
        )

    def verdict(self, status: Status, headline: str, *causes: str, remedy: str, fault: str = "") -> Verdict:
        evidence = _evidence(self.metric)
        return Verdict(NAME, status, headline, evidence, self.limit, causes, remedy, self.measured, fault=fault)

    def passed(self, *notes: str, limit: str | None = None) -> Verdict:
        return Verdict(NAME, "pass", self.scores, limit=limit or self.limit, measured=self.measured, notes=notes)


def _judge(judged: _Judged) -> Verdict:
    if not math.isfinite(judged.metric.last):
        return _judge_no_number(judged)
    if judged.metric.p_value is None:
        return _judge_without_p_value(judged)
    if _dropped(judged.metric):
        return judged.verdict(
            "fail",
            f"The metric got worse: {judged.scores}",
            "training destroys what the model knew: the learning rate is too high, or the labels have another meaning",
            *_single_prediction(judged.metric),
            remedy="try a tenth of the learning rate; check the label mapping",
        )
    return _judge_better(judged) if judged.metric.p_value <= judged.alpha else _judge_not_better(judged)


def _judge_no_number(judged: _Judged) -> Verdict:
    """The metric is NaN or infinite: because of the outputs, or of itself."""
    m = judged.metric
    what = "NaN" if math.isnan(m.last) else "infinite"
    if m.outputs_finite:
        cause = f"metrics[{m.name!r}] is {what} although the outputs are finite: it divides by zero, or takes the logarithm of zero"
        return judged.verdict("fail", judged.scores, cause, remedy=f"let metrics[{m.name!r}] return a finite number")
    cause = "the metric is not a number: the outputs are not finite"
    if m.outputs_finite is None and not m.rows:  # it was not computed of outputs that are known
        cause = f"evaluate(model) is {what}: by itself, or because the outputs are not finite"
    return judged.verdict("fail", judged.scores, cause, remedy="see assert_all_finite")


def _with_split(judged: _Judged, verdict: Verdict) -> Verdict:
    """The verdict with what tells held-out from training rows among its causes; where a metric got worse on such rows, that comes first.

    Where nearly all held-out tokens are one id that the training rows do not have, and the model learns those, it is a failure.
    """
    if verdict.status not in ("fail", "inconclusive") or judged.metric.source == "training rows":
        return verdict
    apart = held_out_apart(judged.trace)
    if not apart:
        return verdict
    first, m = apart[0], judged.metric
    blind = first.decisive and m.p_value is not None and m.p_value > judged.alpha and loss_fell(judged.trace)
    if blind:
        fault, headline = first.fault, f"{first.headline} {verdict.headline}"
        return judged.verdict("fail", headline, fault.cause, *verdict.causes, remedy=fault.remedy, fault=fault.name)
    worse = verdict.status == "fail" and _dropped(m)
    return dataclasses.replace(
        verdict,
        fault=first.fault.name if worse else verdict.fault,
        causes=(*(f"{a.headline.rstrip('.')}: {a.fault.cause}" for a in apart), *verdict.causes),
        remedy=f"{first.fault.remedy}; {verdict.remedy}" if verdict.remedy else first.fault.remedy,
    )


def _judge_exchange(trace: Trace) -> Verdict | None:
    """Classes of the held-out rows that are predicted as each other."""
    found = exchanged_classes(trace)
    if found is None:
        return None
    metric, moved, share, known = found
    pairs = ", ".join(f"{c} as {guess}" for c, guess in sorted(moved.items()))
    others = "others" if known else "each other"
    right = f"; of the training rows of class {known.label}, {known.right} of {known.rows} are right" if known else ""
    return faults.CLASSES_EXCHANGED.verdict(
        NAME,
        f"On the held-out rows, classes are predicted as {others}: {pairs}, each in {percent(share)} of its rows or more{right}.",
        evidence=_evidence(metric),
        limit=f"no classes of {EXCHANGED_ROWS} held-out rows or more that are taken for each other this consistently",
        measured="the same rows before and after the run, dropout off",
    )


def _judge_without_p_value(judged: _Judged) -> Verdict:
    m = judged.metric
    better = m.last < m.first if m.lower_is_better else m.last > m.first
    if better and judged.beats_baseline:
        limit = f"{'lower' if m.lower_is_better else 'higher'} than before"
        return judged.passed("how much of it is chance was not measured", limit=limit)
    worse = m.last < m.first and m.baseline is not None and m.last < m.baseline
    return judged.verdict(
        "fail" if worse else "inconclusive",
        f"No improvement: {judged.scores}",
        *_single_prediction(m),
        remedy="train for more steps; evaluate on more rows",
    )


def _judge_better(judged: _Judged) -> Verdict:
    """Better than permuted labels: is it better than the baseline, and through this run?"""
    m = judged.metric
    if m.last <= m.first and (m.baseline is None or m.first > m.baseline):
        return judged.verdict(
            "inconclusive",
            f"No improvement: {judged.scores}",
            "the model was already this good before the run, as one that another fold or trial has trained: what the run added is "
            "unknown",
            remedy="build the model anew for each fold and each trial, for it was as good before the first step; where a training is "
            "continued on purpose, judge by another metric",
        )
    if judged.beats_baseline:
        return judged.passed()
    recall = next((r for r in judged.trace.metrics if r.name == "recall"), None)
    if (
        recall is not None
        and recall.p_value is not None
        and recall.p_value <= judged.alpha
        and recall.last > (recall.baseline or 0)
    ):
        return judged.passed(
            f"below the majority class in {m.name}, but macro recall is {number(recall.last)} against {number(recall.baseline)}: "
            "rare classes are predicted correctly, as expected with class weighting"
        )
    if judged.regression:
        cause = (
            "the outputs correlate with the labels but are not on their scale: a link between them (a sigmoid, an exponential, "
            "a logarithm), a ranking loss, or labels that the loss rescales"
        )
        remedy = "judge by a metric on the outputs' own scale or by a rank correlation (metrics=)"
    else:
        cause = "what was learnt does not yet outweigh the class frequencies"
        remedy = "train for more steps, or judge by a metric that weights all classes equally (metrics=)"
    return judged.verdict(
        "inconclusive",
        f"Better than chance, but not better than {judged.baseline}: {judged.scores}",
        *_single_prediction(m),
        cause,
        remedy=remedy,
    )


def _judge_not_better(judged: _Judged) -> Verdict:
    """Not better than permuted labels: worse, or too early to tell?"""
    m, single = judged.metric, _single_prediction(judged.metric)
    if ranked := _judge_ranking(judged):
        return ranked
    if m.deviations is not None and m.deviations <= -WORSE and not single and _fell(m):
        return judged.verdict(
            "fail",
            f"Worse than chance: {judged.scores}",
            "predictions and labels are systematically mismatched: labels shifted or permuted, a flipped sign, argmin for argmax",
            remedy="compare ten predictions with their labels",
        )
    if sum(n > 0 for n in m.actual) == 1:
        return judged.verdict(
            "inconclusive",
            f"Nothing to distinguish: {judged.scores}",
            "all rows have the same label, so a constant prediction is correct for all of them",
            remedy="use rows of several classes; check that the label column is the right one",
        )
    return judged.verdict(
        "inconclusive",
        f"Not yet better than {judged.baseline}: {judged.scores}",
        *single,
        "too few steps, too low a learning rate, or too few rows to decide",
        remedy=f"train for more steps (steps={more_steps(len(judged.trace.steps))}, or --ftcheck-steps), "
        "or evaluate on more rows (eval_batches=)",
    )


def _judge_ranking(judged: _Judged) -> Verdict | None:
    """Every row has the same prediction, as where tags are rare: do the outputs rank the rows all the same?

    Half of alpha, because it is the second test of the same run.
    """
    m, ranked = judged.metric, judged.metric.ranking
    if ranked is None or ranked.p_value > judged.alpha / 2 or ranked.last <= max(0.5, ranked.first):
        return None
    if ranked.rise_p_value is not None and ranked.rise_p_value > judged.alpha / 2:  # random weights rank some rows, too
        return None
    return Verdict(
        NAME,
        "pass",
        f"Every row has the same prediction, so {m.name} cannot show what was learnt; the outputs rank the rows: area under the ROC curve "
        f"{number(ranked.first)} -> {number(ranked.last)} on {plural(m.rows, m.source.removesuffix('s'))}, against 0.500 by chance "
        f"(p = {number(ranked.p_value)}).",
        limit=f"matched by at most {percent(judged.alpha / 2)} of label permutations, and so is the rise",
        measured=judged.measured,
        notes=(
            "no row has another prediction than the majority: train for more steps, lower the threshold, or weight the rare class "
            "(pos_weight=, weight=)",
        ),
    )


def _single_prediction(metric: Metric) -> tuple[str, ...]:
    """A cause, if all rows are predicted as one class."""
    if not metric.predicted or max(metric.predicted) != sum(metric.predicted):
        return ()
    rows, label = sum(metric.predicted), metric.predicted.index(max(metric.predicted))
    return (f"all {plural(rows, 'row')} are predicted as class {label}",)


def _fell(metric: Metric) -> bool:
    """Lower than before the run: a random head may begin anywhere, below chance too."""
    return metric.rows > 0 and metric.last < metric.first - 1 / metric.rows


def _dropped(metric: Metric) -> bool:
    """Significantly lower than before the run (only for scores of rows in 0..1)."""
    if metric.name != "accuracy" or not metric.rows:
        return False
    error = math.sqrt(max(metric.first * (1 - metric.first) + metric.last * (1 - metric.last), 1e-9) / metric.rows)
    return metric.last < metric.first - DROP * error and metric.first > (metric.baseline or 0) + DROP * error


def _evidence(metric: Metric) -> tuple[dict[str, Any], ...]:
    if not metric.predicted:
        return ()
    return tuple(
        {"class": i, "rows": metric.actual[i] if i < len(metric.actual) else 0, "predicted": n}
        for i, n in enumerate(metric.predicted)
    )
