"""loss_matches_task on hand-written traces: labels read in part, elsewhere, or for one value only; what hides the task."""

from __future__ import annotations

import dataclasses
import math

import pytest

from pytest_ftcheck import check_logits_unbounded, check_loss_matches_task, example_trace
from pytest_ftcheck.checks.loss.loss_matches_task import DROWNED, HOTTEST, LEAST_MET
from pytest_ftcheck.checks.loss.record import LossCurve, LossShape
from pytest_ftcheck.core.observations import ProbePoint

MARGINS = (0.0, 0.5, 2.0, 8.0, 16.0, 32.0)


def cross_entropy(m, t=1.0, classes=3):
    return math.log1p((classes - 1) * math.exp(min(700.0, -2 * m / t)))


def curve(right, wrong=None):
    return LossCurve(MARGINS, tuple(map(right, MARGINS)), tuple(map(wrong or (lambda m: right(-m)), MARGINS)))


SOUND = LossShape(
    rows=16,
    kind="single",
    outputs=3,
    depends=True,
    differentiable=True,
    curve=curve(cross_entropy),
    slope=4 / 3,
    shift=0.0,
    scale=1.0,
    cosine=1.0,
    agreement=1.0,
    agreeing=16,
    pushed=(0, 1, 2),
    uses_labels=True,
    tried_classes=3,
)
TAGS = dataclasses.replace(SOUND, kind="tags", pushed=(), unread_tags=0.0, strayed_tags=0.0)


def trace_with(shape, *, last=None):
    trace = example_trace()
    if last is not None:
        chance = trace.probe.prior_entropy
        probe = dataclasses.replace(trace.probe, points=(ProbePoint(0, 1.3, 1.3), ProbePoint(20, last, chance * last)))
        trace = dataclasses.replace(trace, probe=probe)
    return dataclasses.replace(trace, measurements={"loss_shape": shape})


def judged(shape=SOUND, *, last=None, **changes):
    return check_loss_matches_task(trace_with(dataclasses.replace(shape, **changes), last=last))


def test_sound_losses_pass():
    assert judged().status == "pass"
    assert judged(TAGS).status == "pass"


# ------------------------------------------------------------------ labels
@pytest.mark.parametrize(("value", "fault"), [(1, "positives_ignored"), (0, "negatives_ignored")])
def test_labels_of_one_value_that_count_nothing(value, fault):
    verdict = judged(TAGS, silent_values=(value,), silent_rows=(6,))
    assert (verdict.status, verdict.fault) == ("fail", fault)
    assert f"are {'on' if value else 'off'} get no gradient" in verdict.headline


def test_both_values_silent_is_another_matter():
    assert judged(TAGS, silent_values=(0, 1)).status == "pass"


def test_a_tag_of_weight_zero():
    verdict = judged(TAGS, silent_classes=(1,))
    assert (verdict.status, verdict.fault) == ("fail", "class_ignored")
    assert verdict.headline.startswith("Tag 1 gets no gradient")


def test_tags_that_are_not_read_and_tags_that_are_crossed():
    assert judged(TAGS, unread_tags=0.4, strayed_tags=0.1).fault == "tags_not_read"
    assert judged(TAGS, unread_tags=1.0, strayed_tags=1.0).fault == "labels_permuted"
    assert judged(TAGS, unread_tags=0.97, strayed_tags=0.5).fault == "tags_not_read"
    assert judged(TAGS, unread_tags=0.05).status == "pass"
    assert judged(TAGS, unread_tags=0.4, random=True).status == "pass"
    assert judged(TAGS, unread_tags=None, strayed_tags=None).status == "pass"


def test_labels_that_meet_other_tokens():
    verdict = judged(by_row=False, own_tokens=LEAST_MET - 0.01)
    assert (verdict.status, verdict.fault) == ("fail", "labels_of_other_tokens")
    assert judged(by_row=False, own_tokens=LEAST_MET).status == "pass"
    assert judged(by_row=False, own_tokens=None).status == "pass"


def test_every_label_pushed_down():
    turned = curve(lambda m: cross_entropy(-m))
    verdict = judged(agreement=0.0, pushed=(-1, -1, -1), curve=turned, cosine=-0.7, slope=-1.0)
    assert (verdict.status, verdict.fault) == ("fail", "loss_negated")
    assert judged(TAGS, agreement=0.0).fault == "labels_permuted"
    assert judged(TAGS, agreement=0.06).status == "pass"


def test_each_row_with_every_label_also_of_classes():
    one = {"kind": "binary", "outputs": 1, "pushed": (), "own_over_other": 1.0}
    assert judged(**one, agreement=0.6).fault == "regression_broadcast"
    assert judged(**one, agreement=1.0).status == "pass"


def test_mistakes_that_pay():
    verdict = judged(curve=curve(lambda m: 0.12 if m == 0 else 0.0), slope=0.1)
    assert (verdict.status, verdict.fault) == ("fail", "mistakes_pay")
    # both ways down from "all alike": the factor is to blame, not a sign
    assert (
        judged(curve=curve(lambda m: 0.12 if m == 0 else 0.0), agreement=0.0, pushed=(-1, -1, -1)).fault
        == "mistakes_pay"
    )
    saturated = curve(lambda m: 1 - 1 / (1 + 2 * math.exp(-2 * m)))  # 1 - p: a surely wrong answer costs the most
    assert judged(curve=saturated, slope=0.4).status == "pass"


# ------------------------------------------------------------------ terms and factors
def test_other_terms_are_a_fault_only_where_nothing_is_learnt():
    verdict = judged(known="cross_entropy", other_terms=DROWNED + 1, last=0.99)
    assert (verdict.status, verdict.fault) == ("fail", "other_terms_drown")
    assert judged(known="cross_entropy", other_terms=DROWNED, last=0.99).status == "pass"
    assert judged(known="cross_entropy", other_terms=1000.0, last=0.5).status == "pass"


def test_a_temperature_is_a_fault_only_if_extreme_and_nothing_is_learnt():
    def hot(t, last):
        return judged(curve=curve(lambda m: cross_entropy(m, t)), slope=4 / 3 / t, last=last)

    assert hot(1000.0, 0.99).fault == "temperature_extreme"
    assert "divided by 1,000" in hot(1000.0, 0.99).headline
    assert hot(1000.0, 0.5).status == "pass"  # not "without end" either
    assert hot(HOTTEST, 0.99).status == "pass"
    assert hot(0.05, 0.99).status == "pass"  # cosines times 20


def test_a_floored_name_needs_a_floor():
    low = curve(lambda m: 8 * (1 - 1 / (1 + 2 * math.exp(-2 * m))))  # the reverse Kullback-Leibler divergence
    assert judged(known="softmax_before_bce", curve=low).status == "pass"
    high = curve(lambda m: 0.5 + 0.3 * (1 - 1 / (1 + 2 * math.exp(-2 * m))))
    assert judged(known="softmax_before_bce", curve=high).fault == "softmax_before_bce"


# ------------------------------------------------------------------ how far the weights can go
@pytest.mark.parametrize(
    ("classes", "lead", "ill"), [(3, 2.0, True), (3, 2.8, True), (3, 3.0, False), (10, 2.0, True), (3, math.inf, False)]
)
def test_a_bound_wherever_it_stands(classes, lead, ill):
    shape = dataclasses.replace(SOUND, outputs=classes, known="cross_entropy", lead=lead, lead_last=1.0)
    verdict = check_logits_unbounded(trace_with(shape))
    assert (verdict.status, verdict.fault) == (("fail", "logits_bounded") if ill else ("pass", ""))


def test_a_run_that_went_further_proves_that_there_is_no_such_bound():
    shape = dataclasses.replace(SOUND, known="cross_entropy", lead=2.0, lead_last=9.0)
    assert check_logits_unbounded(trace_with(shape)).status == "pass"
    assert check_logits_unbounded(trace_with(dataclasses.replace(shape, lead=None))).status == "skipped"
