"""metric_improves: above the baseline, and by more than chance."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pytest_ftcheck import check_metric_improves, example_trace, finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.checks.data.metric_improves import ALPHA, WORSE
from pytest_ftcheck.checks.data.record import Data, NumberShift, Order, Tokens, TokenShift
from pytest_ftcheck.core.observations import Metric, Ranking
from pytest_ftcheck.core.trace import Trace
from pytest_ftcheck.instruments.metrics import measure

GOOD = example_trace()
ACCURACY = Metric("accuracy", 0.5, 0.9, 64, "held-out rows", 0.53, 0.001, (31, 33), (34, 30))


def judge(*metrics, **arguments):
    return check_metric_improves(replace(GOOD, metrics=metrics), **arguments)


def accuracy(**changes):
    return replace(ACCURACY, **changes)


def test_better_than_the_majority_and_than_chance():
    verdict = judge(ACCURACY)
    assert verdict.status == "pass"
    for part in ("0.500 -> 0.900 on 64 held-out rows", "0.530 for the majority class", "p = 0.00100"):
        assert part in verdict.headline


@pytest.mark.parametrize(("p", "status"), [(ALPHA, "pass"), (ALPHA * 1.01, "inconclusive")])
def test_the_limit_of_chance(p, status):
    verdict = judge(accuracy(p_value=p))
    assert verdict.status == status
    assert judge(accuracy(p_value=p), alpha=0.05).status == "pass"
    if status == "inconclusive":
        assert "Not yet better than the majority class" in verdict.headline
        assert "eval_batches=" in verdict.remedy


@pytest.mark.parametrize(("last", "status"), [(0.54, "pass"), (0.53, "inconclusive"), (0.40, "inconclusive")])
def test_the_baseline(last, status):
    assert judge(accuracy(last=last)).status == status


def test_without_a_baseline_chance_alone_decides():
    assert judge(accuracy(baseline=None)).status == "pass"
    assert "against" not in judge(accuracy(baseline=None)).headline


def test_macro_recall_decides_with_class_weighting():
    low = accuracy(last=0.85, baseline=0.9)
    recall = Metric("recall", 0.5, 0.8, 64, "held-out rows", 0.5, 0.002)
    verdict = judge(low, recall)
    assert verdict.status == "pass"
    assert "macro recall is 0.800 against 0.500" in verdict.notes[0]
    assert judge(low, replace(recall, p_value=0.2)).status == "inconclusive"
    assert judge(low, replace(recall, p_value=None)).status == "inconclusive"
    assert judge(low, replace(recall, last=0.5)).status == "inconclusive"
    assert judge(low).status == "inconclusive"
    assert judge(accuracy(last=0.85, baseline=0.9, p_value=0.2), recall).status == "inconclusive"


@pytest.mark.parametrize(
    ("deviations", "status"), [(-WORSE, "fail"), (-WORSE + 0.01, "inconclusive"), (None, "inconclusive")]
)
def test_worse_than_chance(deviations, status):
    verdict = judge(accuracy(last=0.1, p_value=1.0, deviations=deviations))
    assert verdict.status == status
    if status == "fail":
        assert "Worse than chance" in verdict.headline
        assert "labels shifted or permuted" in verdict.causes[0]


def test_one_class_for_all_rows():
    verdict = judge(accuracy(last=0.53, p_value=1.0, predicted=(64, 0)))
    assert verdict.status == "inconclusive"  # every permutation scores the same: that is no mismatch
    assert verdict.causes[0] == "all 64 rows are predicted as class 0"
    assert verdict.evidence == (
        {"class": 0, "rows": 34, "predicted": 64},
        {"class": 1, "rows": 30, "predicted": 0},
    )
    assert judge(accuracy(last=0.53, p_value=1.0, predicted=(0, 64))).causes[0].endswith("as class 1")


def test_a_class_that_occurs_only_in_the_predictions():
    assert judge(accuracy(last=0.5, p_value=0.5, predicted=(30, 30, 4), actual=(34, 30))).evidence[2] == {
        "class": 2,
        "rows": 0,
        "predicted": 4,
    }


def test_it_got_worse():
    verdict = judge(accuracy(first=0.95, last=0.6))
    assert verdict.status == "fail"
    assert verdict.headline.startswith("The metric got worse: accuracy 0.950 -> 0.600")
    assert "destroys what the model knew" in verdict.causes[0]


def test_worse_within_three_standard_errors_is_not_worse():
    # first 0.95, 64 rows: the standard error of the difference at 0.85 is 0.052
    verdict = judge(accuracy(first=0.95, last=0.80))
    assert verdict.status == "inconclusive"
    assert verdict.headline.startswith("No improvement: accuracy 0.950 -> 0.800")
    assert judge(accuracy(first=0.95, last=0.75)).status == "fail"
    # what was no better than the majority cannot be destroyed
    assert judge(accuracy(first=0.60, last=0.2, p_value=0.5)).status == "inconclusive"
    # other metrics are no shares of rows
    assert judge(Metric("f1", 0.95, 0.6, 64, "held-out rows", 0.5, 0.001)).status == "inconclusive"


@pytest.mark.parametrize(
    ("first", "last", "baseline", "status"),
    [
        (0.9, 0.91, 0.53, "pass"),
        (0.9, 0.9, 0.53, "inconclusive"),
        (0.54, 0.54, 0.53, "inconclusive"),
        (0.9, 0.9, None, "inconclusive"),
        (0.53, 0.53, 0.53, "inconclusive"),
        (0.54, 0.55, 0.53, "pass"),
    ],
)
def test_what_the_model_knew_before_is_not_due_to_the_run(first, last, baseline, status):
    verdict = judge(accuracy(first=first, last=last, baseline=baseline))
    assert verdict.status == status
    if status == "inconclusive" and first != baseline:
        assert verdict.headline.startswith("No improvement: ")
        assert "already this good before the run" in verdict.causes[0]


@pytest.mark.parametrize(
    ("last", "status"), [(0.2 - 1.01 / 64, "fail"), (0.2 - 0.99 / 64, "inconclusive"), (0.3, "inconclusive")]
)
def test_worse_than_chance_only_if_it_went_down(last, status):
    """A random head may begin below chance, and be on its way up."""
    verdict = judge(accuracy(first=0.2, last=last, p_value=1.0, deviations=-4.0))
    assert verdict.status == status
    assert ("Worse than chance" in verdict.headline) is (status == "fail")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_not_finite(value):
    verdict = judge(accuracy(last=value))
    assert verdict.status == "fail"
    assert "not a number" in verdict.causes[0]


# ------------------------------------------------------------------ without a p-value
OWN = Metric("evaluate", 0.5, 0.7, 0, "the user's own")


@pytest.mark.parametrize(
    ("first", "last", "baseline", "status"),
    [
        (0.5, 0.7, None, "pass"),
        (0.5, 0.5, None, "inconclusive"),
        (0.5, 0.4, None, "inconclusive"),
        (0.5, 0.7, 0.6, "pass"),
        (0.5, 0.55, 0.6, "inconclusive"),
        (0.5, 0.4, 0.6, "fail"),
        (0.9, 0.8, 0.6, "inconclusive"),
    ],
)
def test_a_metric_whose_chance_is_unknown(first, last, baseline, status):
    verdict = judge(replace(OWN, first=first, last=last, baseline=baseline))
    assert verdict.status == status
    if status == "pass":
        assert verdict.notes == ("how much of it is chance was not measured",)
    else:
        assert verdict.headline.startswith("No improvement: evaluate")


def test_the_users_own_evaluate_names_no_rows():
    assert judge(OWN).headline == "evaluate 0.500 -> 0.700."


# ------------------------------------------------------------------ which one
def test_the_first_metric_or_the_one_that_is_named():
    assert judge(OWN, ACCURACY).headline.startswith("evaluate")
    assert judge(OWN, ACCURACY, metric="accuracy").headline.startswith("accuracy")
    with pytest.raises(ValueError, match=r"metric='f1': the trace has evaluate, accuracy"):
        judge(OWN, ACCURACY, metric="f1")
    with pytest.raises(ValueError, match=r"metric='f1': the trace has none"):
        judge(metric="f1")


def test_regression_is_compared_with_the_mean():
    trace = replace(
        GOOD,
        reading=replace(GOOD.reading, task="regression"),
        metrics=(Metric("r_squared", -0.2, 0.6, 32, "training rows", 0.0, 0.002),),
    )
    headline = check_metric_improves(trace).headline
    assert headline.startswith("r_squared -0.200 -> 0.600 on 32 training rows, against 0 for the mean")


def test_no_metric_is_skipped_with_a_reason():
    verdict = judge()
    assert verdict.status == "skipped"
    assert "no logits or labels could be read" in verdict.headline
    noted = replace(GOOD, metrics=(), notes=("other", "metrics skipped: IndexError: boo"))
    assert "metrics skipped: IndexError: boo" in check_metric_improves(noted).headline


@pytest.mark.parametrize(("alpha", "error"), [(0, ValueError), (1, ValueError), ("x", TypeError), (True, TypeError)])
def test_bad_arguments(alpha, error):
    with pytest.raises(error, match="alpha="):
        judge(ACCURACY, alpha=alpha)


def logits(predicted):
    return torch.nn.functional.one_hot(torch.tensor(predicted), 2).float()


def test_the_lowest_of_few_scores_is_not_worse_than_chance():
    labels, blind = torch.tensor([0] * 24 + [1] * 8), logits([0] * 32)
    one_wrong = logits([1] + [0] * 31)
    metric = next(m for m in measure("single_label", blind, one_wrong, labels, "training rows") if m.name == "accuracy")
    assert metric.p_value == 1.0  # no permutation is below it
    assert -1 < metric.deviations < 0
    crossed = logits((1 - labels).tolist())
    metric = next(m for m in measure("single_label", blind, crossed, labels, "training rows") if m.name == "accuracy")
    assert metric.deviations < -4
    assert judge(metric).status == "fail"
    (same,) = measure("single_label", blind, blind, labels, "training rows", {"mine": lambda z, y: 1.0})
    assert same.deviations is None
    (own,) = measure(
        "single_label",
        blind,
        crossed,
        labels,
        "training rows",
        {"mine": lambda z, y: float((z.argmax(1) == y).float().mean())},
    )
    assert own.deviations == pytest.approx(metric.deviations, abs=0.5)


def test_numbers_on_another_scale_are_better_than_chance():
    """A link function or a ranking loss: the order is learnt, and R squared does not show it."""
    linked = Metric("r_squared", -3.0, -1.2, 64, "held-out rows", 0.0, 0.002)
    trace = replace(GOOD, metrics=(linked,), reading=replace(GOOD.reading, task="regression"))
    verdict = check_metric_improves(trace)
    assert verdict.status == "inconclusive"
    assert "Better than chance, but not better than the mean" in verdict.headline
    assert "link" in verdict.causes[0]
    assert "too few" not in " ".join(verdict.causes)
    verdict = judge(replace(ACCURACY, last=0.5, first=0.4, baseline=0.53, p_value=0.002))
    assert "Better than chance, but not better than the majority class" in verdict.headline


def test_wording():
    assert str(judge(accuracy(last=0.53, p_value=1.0, predicted=(64, 0)))).splitlines() == [
        "metric_improves: INCONCLUSIVE. Not yet better than the majority class: accuracy 0.500 -> 0.530 on 64 held-out rows, "
        "against 0.530 for the majority class (p = 1.00).",
        "  class  rows  predicted",
        "      0    34         64",
        "      1    30          0",
        "  cause: all 64 rows are predicted as class 0",
        "  cause: too few steps, too low a learning rate, or too few rows to decide",
        "  what would settle it: train for more steps (steps=100, or --ftcheck-steps), or evaluate on more rows (eval_batches=)",
        "  limit: above the majority class's score, and matched by at most 1.0 % of label permutations",
        "  measured: the same rows before and after the run, dropout off",
    ]


def exchanged(*taken_for, source="held-out rows", rows=20):
    return judge(accuracy(taken_for=taken_for, actual=(rows,) * len(taken_for), source=source))


@pytest.mark.parametrize(
    ("taken_for", "fault"),
    [
        ([(0, 1.0), (2, 0.9), (1, 0.8), (3, 1.0)], "classes_exchanged"),
        ([(1, 1.0), (2, 0.9), (0, 0.8)], "classes_exchanged"),
        ([(0, 1.0), (2, 0.9), (1, 0.79), (3, 1.0)], ""),  # one of them not clearly
        ([(1, 1.0), (1, 1.0), (1, 1.0)], ""),  # a constant prediction
        ([(0, 0.9), (1, 0.9)], ""),
        ([(1, 0.9), (2, 0.9), (2, 0.9)], ""),
    ],
)
def test_classes_that_are_taken_for_each_other(taken_for, fault):
    assert exchanged(*taken_for).fault == fault
    assert exchanged(*taken_for, rows=7).fault == ""
    assert exchanged(*taken_for, source="training rows").fault == ""


@pytest.mark.parametrize(
    ("shares", "rows", "fault"),
    [
        ((0.76, 0.96), 30, "classes_exchanged"),
        ((0.6, 0.7), 200, "classes_exchanged"),
        ((0.59, 0.9), 200, ""),
        ((0.65, 0.65), 40, ""),  # two classes that are not told apart give that by chance once in a hundred times
    ],
)
def test_a_model_that_is_often_wrong_exchanges_classes_less_clearly(shares, rows, fault):
    taken_for = ((1, shares[0]), (0, shares[1]), (2, 0.8))
    metric = accuracy(taken_for=taken_for, actual=(rows,) * 3, source="held-out rows")
    assert judge(metric).fault == fault
    flat = replace(example_trace().probe_loss, points=example_trace().probe_loss.points[:1])
    assert (
        check_metric_improves(replace(example_trace(), metrics=(metric,), probe_loss=flat)).fault == ""
    )  # it did not train
    assert (
        exchanged((1, shares[0]), (2, shares[1]), (0, 0.7), rows=rows).fault == ""
    )  # more than two: only where it is clear


@pytest.mark.parametrize(
    ("taken_for", "right", "fault"),
    [
        (((2, 1.0), (0, 1.0), (2, 0.69), (0, 1.0)), ((7, 7), (8, 0), (9, 9), (8, 2)), "classes_exchanged"),
        (
            ((2, 1.0), (0, 1.0), (2, 0.69), (0, 1.0)),
            ((7, 5), (8, 0), (9, 9), (8, 2)),
            "",
        ),  # not known in training either
        (((2, 1.0), (0, 1.0), (2, 0.69), (0, 1.0)), ((4, 4), (8, 0), (9, 9), (8, 2)), ""),  # too few rows to say so
        (((2, 1.0), (0, 1.0), (2, 0.69), (0, 1.0)), (), ""),
        (((2, 1.0), (2, 1.0), (2, 0.9), (2, 1.0)), ((7, 7), (8, 8), (9, 9), (8, 8)), ""),  # a constant prediction
        (
            ((0, 1.0), (0, 1.0), (2, 0.9), (0, 1.0)),
            ((7, 7), (8, 8), (9, 9), (8, 8)),
            "",
        ),  # two classes are not known here
        (((2, 0.7), (0, 1.0), (2, 0.69), (0, 1.0)), ((7, 7), (8, 0), (9, 9), (8, 2)), ""),  # not clearly
    ],
)
def test_a_class_that_training_knows_under_its_number_and_held_out_rows_under_another(taken_for, right, fault):
    """Where other classes are not told apart as yet, no two are taken for each other."""
    trace = example_trace()
    metric = accuracy(taken_for=taken_for, actual=(40,) * 4, source="held-out rows")
    verdict = check_metric_improves(
        replace(trace, metrics=(metric,), probe_loss=replace(trace.probe_loss, right=right))
    )
    assert verdict.fault == fault
    if fault:
        assert verdict.headline == (
            "On the held-out rows, classes are predicted as others: 0 as 2, 1 as 0, 3 as 0, each in 80 % of its rows or more; of the "
            "training rows of class 0, 7 of 7 are right."
        )
        flat = replace(trace.probe_loss, right=right, points=trace.probe_loss.points[:1])
        assert not check_metric_improves(replace(trace, metrics=(metric,), probe_loss=flat)).fault  # it did not train


@pytest.mark.trains
def test_training_rows_that_are_right_are_counted():
    trace = finetune(tiny_distilbert, toy_batches(), steps=30, lr=1e-3)
    rows = [n for n, _ in trace.probe_loss.right]
    assert sum(rows) == trace.probe_loss.rows
    assert len(rows) == 2
    assert sum(hits for _, hits in trace.probe_loss.right) >= 0.8 * trace.probe_loss.rows
    assert Trace.from_json(trace.to_json()).probe_loss == trace.probe_loss


def test_the_classes_that_rows_are_taken_for_are_measured():
    logits = torch.eye(3)[torch.tensor([0, 2, 2, 1, 1, 0])]
    found = measure("single_label", logits, logits, torch.tensor([0, 1, 1, 2, 2, 2]), "held-out rows")
    assert found[0].taken_for == ((0, 1.0), (2, 1.0), (1, 0.6667))


@pytest.mark.parametrize(
    ("first", "last", "p_value", "status"),
    [
        (0.5, 0.8, ALPHA / 2, "pass"),
        (0.5, 0.8, ALPHA / 2 + 1e-4, "inconclusive"),
        (0.8, 0.8, 0.001, "inconclusive"),  # it was so before the run
        (0.3, 0.49, 0.001, "inconclusive"),
    ],
)
@pytest.mark.parametrize("rise", [None, ALPHA / 2])
def test_where_every_row_has_one_prediction_the_ranking_decides(first, last, p_value, status, rise):
    """Rare tags: nothing is above its threshold as yet, and accuracy is the majority's."""
    trace = example_trace()
    blind = replace(
        trace.metrics[0],
        first=0.3,
        last=0.9,
        baseline=0.9,
        p_value=1.0,
        deviations=None,
        ranking=Ranking(first, last, p_value, rise),
    )
    verdict = check_metric_improves(replace(trace, metrics=(blind,)))
    assert verdict.status == status
    if status == "pass":
        assert "area under the ROC curve 0.500 -> 0.800" in verdict.headline
    assert check_metric_improves(replace(trace, metrics=(replace(blind, ranking=None),))).status == "inconclusive"


def test_what_random_weights_rank_is_no_learning():
    """The area was as high before the run, within chance."""
    trace = example_trace()
    blind = replace(trace.metrics[0], first=0.3, last=0.25, baseline=0.3, p_value=1.0, deviations=None)
    verdict = check_metric_improves(replace(trace, metrics=(replace(blind, ranking=Ranking(0.62, 0.63, 0.001, 0.3)),)))
    assert verdict.status == "inconclusive"
    assert "Not yet better" in verdict.headline


# ------------------------------------------------------------------ held-out rows unlike the training rows
ORDER = Order(changes=90, expected_changes=100.0, batches=20, single_class=0, expected_single_class=0.0)
TOKENS = Tokens(
    vocabulary=30_000, total=4000, distinct=900, most_common=12, share=0.05, second_share=0.04, median_length=20.0
)
SAME = Data(rows=320, batches=20, counts=(160, 160), labels=320, distinct=320, held_out_counts=(30, 34), order=ORDER)
LABELS_APART = replace(SAME, counts=(280, 40), held_out_counts=(8, 56))
SHIFT = TokenShift(320, 64, distance=0.2, by_chance=0.17, spread=0.01, risen=7, risen_from=0.05, risen_to=0.06)
TOKENS_APART = replace(SAME, tokens=TOKENS, token_shift=replace(SHIFT, distance=0.6))
UNKNOWN = replace(SAME, tokens=TOKENS, token_shift=replace(SHIFT, distance=0.3, risen=100, risen_to=0.25))
WORSE_THAN_BEFORE = accuracy(first=0.95, last=0.6, p_value=0.01)
NOT_YET = accuracy(last=0.52, p_value=0.4)


def judge_split(data, metric):
    return check_metric_improves(replace(GOOD, metrics=(metric,), measurements={"data": data}))


@pytest.mark.parametrize(
    ("data", "fault", "words"),
    [
        (LABELS_APART, "labels_apart", "Class 0 has 88 % of 320 training rows and 12 % of 64 held-out rows"),
        (TOKENS_APART, "tokens_apart", "The tokens of 64 held-out rows are unlike those of 320 training rows"),
        (UNKNOWN, "tokens_apart", "Id 100 is 25 % of the held-out tokens and 5.0 % of the training tokens"),
    ],
)
def test_held_out_rows_unlike_the_training_rows(data, fault, words):
    verdict = judge_split(data, WORSE_THAN_BEFORE)
    assert (verdict.status, verdict.fault) == ("fail", fault)
    assert verdict.causes[0].startswith(words)
    verdict = judge_split(data, NOT_YET)
    assert (verdict.status, verdict.fault) == ("inconclusive", "")
    assert verdict.causes[0].startswith(words)
    assert "steps=" in verdict.remedy
    assert judge_split(data, ACCURACY) == judge(ACCURACY)  # advice of batches_sound, where the metric is fine


def test_held_out_numbers_on_another_scale():
    data = replace(SAME, number_shift=NumberShift(320, 64, (0.3, 0.5, 0.7), (70.0, 128.0, 180.0)))
    for metric in (WORSE_THAN_BEFORE, NOT_YET):
        assert (judge_split(data, metric).status, judge_split(data, metric).fault) == ("fail", "numbers_apart")
    assert "256 times as large" in judge_split(data, NOT_YET).headline
    assert judge_split(data, ACCURACY).status == "pass"  # advice of batches_sound


@pytest.mark.parametrize(("share", "status"), [(0.6, "fail"), (0.59, "inconclusive")])
def test_held_out_words_that_became_the_unknown_token(share, status):
    lost = replace(UNKNOWN, token_shift=replace(SHIFT, distance=0.7, risen=100, risen_to=share))
    verdict = judge_split(lost, NOT_YET)
    assert (verdict.status, verdict.fault) == (status, "tokens_apart" if status == "fail" else "")
    assert verdict.headline.startswith("Id 100 is 60 % of the held-out tokens") == (status == "fail")
    assert judge_split(lost, ACCURACY).status == "pass"
    points = tuple(replace(p, reference=0.69) for p in GOOD.probe_loss.points)
    unlearnt = replace(GOOD, probe_loss=replace(GOOD.probe_loss, points=points), metrics=(NOT_YET,))
    assert check_metric_improves(replace(unlearnt, measurements={"data": lost})).status == "inconclusive"


def test_rows_of_one_kind_change_nothing():
    for metric in (WORSE_THAN_BEFORE, NOT_YET, ACCURACY):
        assert judge_split(SAME, metric) == judge(metric)
    assert judge_split(LABELS_APART, replace(NOT_YET, source="training rows")).causes == judge(NOT_YET).causes


# ------------------------------------------------------------------ metrics= that see nothing
def f1(logits, labels):
    guess = (logits > 0).long()
    hits = (guess & labels.long()).sum()
    return float(2 * hits / (guess.sum() + labels.sum()).clamp(min=1))


def rare(learnt):
    """Logits and tags of 96 rows: one tag in eight is on, and no output is above its threshold."""
    g = torch.Generator().manual_seed(0)
    tags = (torch.rand(96, 3, generator=g) < 0.125).float()
    noise = torch.randn(96, 3, generator=g)
    return -9 + noise, -9 + noise.roll(1, 0) + (3 * tags if learnt else 0), tags


def test_your_metric_that_stays_zero_is_judged_by_ranking():
    (metric,) = measure("multi_label", *rare(learnt=True), "held-out rows", {"f1": f1})
    assert (metric.first, metric.last, metric.p_value) == (0.0, 0.0, 1.0)
    verdict = judge(metric)
    assert verdict.status == "pass"
    assert verdict.headline.startswith("Every row has the same prediction, so f1 cannot show what was learnt")


def test_your_metric_that_stays_zero_over_noise_passes_nothing():
    (metric,) = measure("multi_label", *rare(learnt=False), "held-out rows", {"f1": f1})
    assert metric.ranking is not None
    assert judge(metric).status == "inconclusive"


def test_your_metric_that_sees_something_is_judged_by_itself():
    def best_threshold(logits, labels):
        return f1(logits - logits.quantile(0.9), labels)

    first, last, tags = rare(learnt=True)
    (metric,) = measure("multi_label", first, last, tags, "held-out rows", {"f1 at the best threshold": best_threshold})
    assert metric.ranking is None
    assert judge(metric).status == "pass"
