"""loss_matches_task: every fault by its name, both sides of every limit, and no alarm on sound losses."""

from __future__ import annotations

import dataclasses
import math

import pytest

from pytest_ftcheck import check_loss_matches_task, example_trace
from pytest_ftcheck.checks.data.record import Data
from pytest_ftcheck.checks.loss.label_use import LEAST_AGREEMENT, LEAST_OWN, LEAST_OWN_TOKENS
from pytest_ftcheck.checks.loss.logit_response import LEAST_GAIN, WRONG_LOSSES, WRONG_WITH_A_FLOOR
from pytest_ftcheck.checks.loss.loss_terms import HIGHEST_TEMPERATURE, LARGEST_OTHER_TERMS, NOTHING
from pytest_ftcheck.checks.loss.record import NOT_A_NUMBER, LossCurve, LossShape
from pytest_ftcheck.core.intent import Intent
from pytest_ftcheck.core.observations import Metric, ProbeLossPoint
from pytest_ftcheck.core.trace import Trace

MARGINS = (0.0, 0.5, 1.0, 2.0, 8.0, 16.0, 32.0)


def curve(right, wrong=None):
    return LossCurve(MARGINS, tuple(map(right, MARGINS)), tuple(map(wrong or (lambda m: right(-m)), MARGINS)))


def cross_entropy(m, temperature=1.0, classes=3):
    """At logits of +m for the label and -m elsewhere."""
    return math.log1p((classes - 1) * math.exp(min(700.0, -2 * m / temperature)))


SOUND = LossShape(
    rows=16,
    kind="single",
    outputs=3,
    depends=True,
    differentiable=True,
    curve=curve(cross_entropy),
    slope=1.33,
    shift=0.0,
    known="cross_entropy",
    scale=1.0,
    cosine=1.0,
    agreement=1.0,
    agreement_rows=16,
    raised_classes=(0, 1, 2),
    uses_labels=True,
    tried_classes=3,
    largest_label=2,
    labels_seen=320,
)
TAGS = dataclasses.replace(SOUND, kind="tags", known=None, raised_classes=(), unread_tags=0.0, crossed_tags=0.0)


def judged(trace=None, shape=SOUND, **changes):
    base = trace or example_trace()
    return check_loss_matches_task(
        dataclasses.replace(base, measurements={"loss_shape": dataclasses.replace(shape, **changes)})
    )


def judged_tags(**changes):
    return judged(shape=TAGS, **changes)


def ending_at(share):
    """A trace whose standard loss ends at this share of the class-prior loss."""
    trace = example_trace()
    points = (ProbeLossPoint(0, 1.3, 1.3), ProbeLossPoint(20, share, trace.probe_loss.prior_entropy * share))
    return dataclasses.replace(trace, probe_loss=dataclasses.replace(trace.probe_loss, points=points))


def broken(**changes):
    """A trace whose standard loss on the probe does not fall."""
    trace = example_trace()
    probe = dataclasses.replace(trace.probe_loss, points=(ProbeLossPoint(0, 0.7, 0.7), ProbeLossPoint(20, 0.9, 0.9)))
    return dataclasses.replace(trace, probe_loss=probe, **changes)


def optimizer(family):
    trace = example_trace()
    return dataclasses.replace(trace.optimizer, name="SGD" if family == "sgd" else "AdamW", family=family)


# ------------------------------------------------------------------ what can be said at all
def test_a_sound_loss_passes_with_its_numbers():
    verdict = judged()
    assert verdict.status == "pass"
    assert "1.10 for a uniform prediction" in verdict.headline
    assert "cross entropy" in verdict.headline


def test_a_sound_loss_of_tags_passes():
    assert judged_tags().status == "pass"


def test_without_the_measurement_it_is_skipped_with_the_reason():
    trace = dataclasses.replace(example_trace(), skipped={"loss_shape": "it raised ValueError: no"})
    assert check_loss_matches_task(trace).status == "inconclusive"
    assert "it raised ValueError: no" in check_loss_matches_task(trace).headline


def test_a_loss_that_takes_no_logits_is_skipped():
    verdict = judged(reason="the loss takes no logits", depends=None)
    assert verdict.status == "skipped"
    assert verdict.headline == "Not measured: the loss takes no logits."


def test_the_record_survives_json():
    trace = dataclasses.replace(example_trace(), measurements={"loss_shape": SOUND})
    assert Trace.from_json(trace.to_json()) == trace


# ------------------------------------------------------------------ every fault by its name
def test_wording():
    assert str(judged(known="double_softmax", curve=curve(lambda m: 1.5 - 1 / (1 + math.exp(-m))))) == (
        "loss_matches_task: FAIL. Softmax is applied twice: the right answer's loss is 0.500 at best (1.00 for a uniform "
        "prediction).\n"
        "  answer             loss\n"
        "  uniform            1.000\n"
        "  right, logits +-2  0.6192\n"
        "  wrong, logits +-2  1.381\n"
        "  right, logits +-8  0.5003\n"
        "  wrong, logits +-8  1.500\n"
        "  cause: the loss is cross-entropy of softmax(logits): cross_entropy applies a softmax of its own\n"
        "  do: give cross_entropy the raw logits (remove the softmax from the model or the loss)\n"
        "  limit: the gradient has the direction of a sound loss of the task; this one has exactly that of the faulty loss\n"
        "  measured: the loss at chosen logits in place of the model's, before the first step, dropout off, on 16 rows"
    )


@pytest.mark.parametrize("name", sorted(WRONG_LOSSES))
def test_a_known_wrong_loss_is_named(name):
    floor = 1.5 if name in WRONG_WITH_A_FLOOR else 0.0  # of a softmax or sigmoid; the others are below zero
    verdict = judged(known=name, curve=curve(lambda m: floor - 1 / (1 + math.exp(-m))))
    assert (verdict.status, verdict.fault) == ("fail", name)
    assert verdict.causes == (WRONG_LOSSES[name].cause,)
    assert verdict.remedy == WRONG_LOSSES[name].remedy


def test_a_wrong_loss_with_a_floor_needs_the_floor():
    low = curve(lambda m: 8 * (1 - 1 / (1 + 2 * math.exp(-2 * m))))  # the reverse Kullback-Leibler divergence
    assert judged(known="softmax_before_bce", curve=low).status == "pass"
    high = curve(lambda m: 0.5 + 0.3 * (1 - 1 / (1 + 2 * math.exp(-2 * m))))
    assert judged(known="softmax_before_bce", curve=high).fault == "softmax_before_bce"


def test_one_minus_p_is_a_loss_of_its_own_and_minus_p_is_not():
    known = "nll_on_probabilities"
    assert judged(known=known, curve=curve(lambda m: 1 - 1 / (1 + math.exp(-m)))).status == "pass"
    assert judged(known=known, curve=curve(lambda m: -1 / (1 + math.exp(-m)))).fault == known


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"depends": False}, "loss_ignores_logits"),
        ({"depends": False, "outputs": 1, "kind": "binary"}, "softmax_over_one_output"),
        ({"depends": False, "form": "ones", "reason": "x"}, "softmax_over_one_output"),
        ({"differentiable": False, "curve": None}, "loss_not_differentiable"),
        ({"known": None, "cosine": -1.0, "scale": -1.0, "agreement": 0.0}, "loss_negated"),
        ({"known": None, "agreement": 0.0, "raised_classes": (1, 2, 0)}, "labels_permuted"),
        (
            {"known": None, "agreement": 0.9, "raised_classes": (-1, -1, -1), "own_over_other": 0.0},
            "labels_of_other_rows",
        ),
        (
            {"known": None, "agreement": 0.4, "raised_classes": (-1, -1, -1), "own_over_other": 0.0},
            "labels_of_other_rows",
        ),
        ({"kind": "regression", "curve": None, "known": None, "own_over_other": 1.0}, "regression_broadcast"),
        ({"known": None, "curve": curve(lambda m: -m), "slope": 1.0}, "loss_unbounded"),
        ({"known": None, "ignored_classes": (1,), "ignored_rows": (0, 3)}, "class_ignored"),
        ({"known": None, "ignored_rows": (8, 9, 10)}, "rows_ignored"),
    ],
)
def test_a_fault_of_behaviour_is_named(changes, fault):
    verdict = judged(**changes)
    assert (verdict.status, verdict.fault) == ("fail", fault)
    assert verdict.causes
    assert verdict.remedy
    assert verdict.limit


def test_own_predictions_score_well_whatever_they_are():
    both = curve(lambda m: cross_entropy(abs(m)))
    assert judged(known=None, uses_labels=False, curve=both).fault == "own_predictions_as_targets"
    # labels that come from elsewhere (a teacher): not the batch's, and yet the wrong answer costs
    verdict = judged(known=None, uses_labels=False)
    assert verdict.status == "pass"
    assert "the loss does not read the labels of the batch" in verdict.notes


@pytest.mark.parametrize(("smoothing", "status"), [(0.1, "pass"), (0.3, "pass"), (0.5, "pass"), (0.9, "fail")])
def test_label_smoothing_is_judged_by_what_the_loss_can_still_fall(smoothing, status):
    right = 1 - smoothing + smoothing / 3
    wrong = smoothing / 3

    def smoothed(m):
        score = [m, -m, -m]
        total = math.log(sum(map(math.exp, score)))
        return right * (total - m) + 2 * wrong * (total + m)

    fine = tuple(i / 16 for i in range(33))
    shape = LossCurve(fine, tuple(map(smoothed, fine)), tuple(smoothed(-m) for m in fine))
    slope = 2 * (right - 1 / 3)  # - d loss / d m at 0
    verdict = judged(known=None, curve=shape, slope=slope)
    assert verdict.status == status
    assert verdict.fault == ("smoothing_too_strong" if status == "fail" else "")


# ------------------------------------------------------------------ both sides of every limit
@pytest.mark.parametrize(("share", "status"), [(LEAST_GAIN * 1.05, "pass"), (LEAST_GAIN * 0.95, "fail")])
def test_least_gain(share, status):
    shape = LossCurve((0.0, 1.0, 2.0), (1.0, 1.0 - share, 1.0), (1.0, 1.5, 2.0))
    assert judged(known=None, curve=shape, slope=1.0).status == status


@pytest.mark.parametrize(("agreement", "status"), [(LEAST_AGREEMENT + 0.01, "pass"), (LEAST_AGREEMENT, "fail")])
def test_least_agreement(agreement, status):
    assert judged(known=None, agreement=agreement, raised_classes=(1, 2, 0)).status == status


def test_low_agreement_without_a_pattern_is_a_note_only():
    verdict = judged(known=None, agreement=0.4, raised_classes=(-1, -1, -1))
    assert verdict.status == "pass"
    assert any("in only 40 % of the rows" in n for n in verdict.notes)


@pytest.mark.parametrize(("own", "status"), [(LEAST_OWN, "fail"), (LEAST_OWN * 1.01, "pass"), (None, "pass")])
def test_least_own(own, status):
    assert judged(kind="regression", curve=None, known=None, own_over_other=own).status == status


@pytest.mark.parametrize("changes", [{"random": True}, {"by_row": False}])
def test_mixup_and_tokens_are_not_judged_by_direction(changes):
    verdict = judged(known=None, agreement=0.0, raised_classes=(1, 2, 0), ignored_rows=(1, 2), **changes)
    assert verdict.status == "pass"
    assert verdict.notes


def test_a_silent_class_that_no_label_reaches_is_no_fault():
    assert judged(ignored_classes=(2,), largest_label=1).status == "pass"
    assert judged(ignored_classes=(2,), largest_label=2).fault == "class_ignored"


# ------------------------------------------------------------------ which labels count
@pytest.mark.parametrize(("value", "fault"), [(1, "positives_ignored"), (0, "negatives_ignored")])
def test_labels_of_one_value_without_weight(value, fault):
    verdict = judged_tags(ignored_values=(value,), ignored_rows=(6,))
    assert (verdict.status, verdict.fault) == ("fail", fault)
    assert verdict.headline.startswith("Positive tags" if value else "Negative tags")


def test_both_values_ignored_is_another_matter():
    assert judged_tags(ignored_values=(0, 1)).status == "pass"


def test_a_tag_of_weight_zero():
    verdict = judged_tags(ignored_classes=(1,))
    assert (verdict.status, verdict.fault) == ("fail", "class_ignored")
    assert verdict.headline.startswith("Tag 1 gets no gradient")


def test_unread_and_crossed_tags():
    assert judged_tags(unread_tags=0.4, crossed_tags=0.1).fault == "tags_not_read"
    assert judged_tags(unread_tags=1.0, crossed_tags=1.0).fault == "labels_permuted"
    assert judged_tags(unread_tags=0.97, crossed_tags=0.5).fault == "tags_not_read"
    assert judged_tags(unread_tags=0.05).status == "pass"
    assert judged_tags(unread_tags=0.4, random=True).status == "pass"
    assert judged_tags(unread_tags=None, crossed_tags=None).status == "pass"


def test_labels_of_other_tokens():
    verdict = judged(known=None, by_row=False, own_tokens=LEAST_OWN_TOKENS - 0.01)
    assert (verdict.status, verdict.fault) == ("fail", "labels_of_other_tokens")
    assert judged(known=None, by_row=False, own_tokens=LEAST_OWN_TOKENS).status == "pass"
    assert judged(known=None, by_row=False, own_tokens=None).status == "pass"


def test_every_label_lowered():
    turned = curve(lambda m: cross_entropy(-m))
    verdict = judged(known=None, agreement=0.0, raised_classes=(-1, -1, -1), curve=turned, cosine=-0.7, slope=-1.0)
    assert (verdict.status, verdict.fault) == ("fail", "loss_negated")
    assert judged_tags(agreement=0.0).fault == "labels_permuted"
    assert judged_tags(agreement=0.06).status == "pass"


def test_broadcasting_of_classes():
    one = {"kind": "binary", "outputs": 1, "raised_classes": (), "own_over_other": 1.0}
    assert judged(**one, known=None, agreement=0.6).fault == "regression_broadcast"
    assert judged(**one, known=None, agreement=1.0).status == "pass"


def test_mistakes_that_pay():
    verdict = judged(known=None, curve=curve(lambda m: 0.12 if m == 0 else 0.0), slope=0.1)
    assert (verdict.status, verdict.fault) == ("fail", "mistakes_pay")
    # both ways down from a uniform prediction: it is the factor, not a sign
    assert (
        judged(
            known=None, curve=curve(lambda m: 0.12 if m == 0 else 0.0), agreement=0.0, raised_classes=(-1, -1, -1)
        ).fault
        == "mistakes_pay"
    )
    saturated = curve(lambda m: 1 - 1 / (1 + 2 * math.exp(-2 * m)))  # 1 - p: a confidently wrong answer costs the most
    assert judged(known=None, curve=saturated, slope=0.4).status == "pass"


# ------------------------------------------------------------------ terms, temperature, scale and task
def test_other_terms_are_a_fault_only_where_nothing_is_learnt():
    verdict = judged(ending_at(0.99), other_terms=LARGEST_OTHER_TERMS + 1)
    assert (verdict.status, verdict.fault) == ("fail", "other_terms_drown")
    assert judged(ending_at(0.99), other_terms=LARGEST_OTHER_TERMS).status == "pass"
    assert judged(ending_at(0.5), other_terms=1000.0).status == "pass"


def test_a_temperature_is_a_fault_only_if_extreme_and_nothing_is_learnt():
    def hot(t, last):
        shape = curve(lambda m: cross_entropy(m, t))
        return judged(ending_at(last), known=None, curve=shape, slope=4 / 3 / t)

    assert hot(1000.0, 0.99).fault == "temperature_extreme"
    assert "divided by 1,000" in hot(1000.0, 0.99).headline
    assert hot(1000.0, 0.5).status == "pass"  # not unbounded below either
    assert hot(HIGHEST_TEMPERATURE, 0.99).status == "pass"
    assert hot(0.05, 0.99).status == "pass"  # cosines times 20


def test_a_sum_is_a_fault_only_where_the_run_breaks():
    assert judged(example_trace(), scale=16.0).status == "pass"  # Adam does not see the scale
    sgd = dataclasses.replace(example_trace(), optimizer=optimizer("sgd"))
    assert judged(sgd, scale=16.0).status == "advice"
    verdict = judged(broken(optimizer=optimizer("sgd")), scale=16.0)
    assert (verdict.status, verdict.fault) == ("fail", "sum_reduction")
    assert "sum over the 16 rows" in verdict.headline
    assert judged(broken(optimizer=optimizer("sgd")), scale=5.0).status == "pass"


def test_a_scale_of_nothing_is_a_fault_only_where_nothing_is_learnt():
    assert judged(scale=NOTHING * 0.9).status == "advice"
    assert judged(scale=NOTHING * (1 + 1e-6)).headline == "The loss is 0.00100 times the standard loss."
    assert judged(broken(), scale=NOTHING * 0.9).fault == "loss_scaled_to_nothing"
    assert judged(broken(), scale=NOTHING * 1.1).status == "pass"


def weighted(shares, weights, p_value=0.5):
    metric = Metric("accuracy", 0.9, 0.9, 100, "held-out rows", 0.9, p_value)
    shape = dataclasses.replace(SOUND, class_weights=weights)
    return check_loss_matches_task(
        dataclasses.replace(
            example_trace(), metrics=(metric,), measurements={"loss_shape": shape, "data": Data(counts=shares)}
        )
    )


@pytest.mark.parametrize(
    ("shares", "weights", "status"),
    [
        ((90, 10), (1.76, 0.24), "fail"),
        ((700, 200, 100), (2.0, 0.7, 0.3), "fail"),
        ((90, 10), (0.24, 1.76), "pass"),
        ((90, 10), (1.0, 1.0), "pass"),
        ((90, 10), (1.19, 0.81), "pass"),
        ((66, 34), (1.5, 0.5), "pass"),
        ((700, 200, 100), (0.3, 0.7, 2.0), "pass"),
        ((700, 200, 100), (1.0, 2.0, 1.0), "pass"),
        ((90, 10, 0), (2.0, 0.5, 0.5), "pass"),
        ((), (2.0, 0.5), "pass"),
    ],
)
def test_class_weights_beside_the_classes_shares(shares, weights, status):
    assert weighted(shares, weights).status == status


def test_reversed_weights_are_advice_where_the_run_learns_or_has_no_metric():
    verdict = weighted((90, 10), (1.76, 0.24))
    assert verdict.fault == "class_weights_reversed"
    assert "Class 0 has 90 % of the rows and weight 1.76, class 1 has 10 % and weight 0.240" in verdict.headline
    assert weighted((90, 10), (1.76, 0.24), p_value=0.002).status == "advice"
    assert weighted((90, 10), (1.76, 0.24), p_value=None).status == "advice"


@pytest.mark.parametrize(
    ("declared", "changes", "status"),
    [
        ("single_label", {"kind": "regression", "known": "squared_error", "label_range": (0.0, 4.0)}, "fail"),
        ("single_label", {"kind": "regression", "known": "squared_error", "label_range": (0.0, 1.0)}, "advice"),
        ("single_label", {"kind": "regression", "known": "bce"}, "pass"),
        ("regression", {"known": "cross_entropy"}, "fail"),
        ("multi_label", {"known": "cross_entropy"}, "fail"),
        ("single_label", {"kind": "tags", "known": "bce"}, "fail"),
        ("single_label", {}, "pass"),
        (None, {"kind": "regression", "known": "squared_error", "label_range": (0.0, 4.0)}, "pass"),
    ],
)
def test_the_declared_task(declared, changes, status):
    trace = dataclasses.replace(example_trace(), intent=Intent(task=declared))
    if changes.get("kind") == "regression":
        changes = {"curve": None, **changes}
    verdict = judged(trace, **changes)
    assert verdict.status == status
    assert (verdict.fault == "wrong_task") == (status == "fail")


def test_nothing_is_said_of_a_loss_that_is_nan_at_chosen_logits():
    verdict = judged(known=None, uses_labels=False, curve=None, reason=NOT_A_NUMBER)
    assert (verdict.status, verdict.fault) == ("inconclusive", "")
    assert "NaN" in verdict.headline
    nan = curve(lambda m: math.nan)
    assert judged(known=None, uses_labels=False, curve=nan).fault != "own_predictions_as_targets"


def test_outputs_that_are_no_logits_are_not_judged():
    both = curve(lambda m: m * m, lambda m: m * m)
    verdict = judged(known=None, cosine=0.05, agreement=0.8, curve=both)
    assert (verdict.status, verdict.fault) == ("skipped", "")
    assert "no logits" in verdict.headline
