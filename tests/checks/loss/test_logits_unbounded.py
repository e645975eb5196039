"""logits_unbounded: bounds, logits of one sign, labels out of reach; soft caps and temperatures pass."""

from __future__ import annotations

import dataclasses
import math

import pytest

from pytest_ftcheck import check_logits_unbounded, example_trace
from pytest_ftcheck.checks.loss.logits_unbounded import MAX_SHARE
from pytest_ftcheck.checks.loss.record import LossCurve, LossShape

MARGINS = (0.0, 1.0, 4.0, 16.0, 32.0)


def curve(bound=math.inf, classes=3):
    """Cross-entropy where tanh keeps a logit within ``bound``."""

    def loss(m):
        z = m if math.isinf(bound) else bound * math.tanh(m / bound)
        return math.log1p((classes - 1) * math.exp(-2 * z))

    return LossCurve(MARGINS, tuple(map(loss, MARGINS)), tuple(loss(-m) for m in MARGINS))


FREE = LossShape(
    rows=16,
    kind="single",
    outputs=3,
    depends=True,
    differentiable=True,
    site="",
    known="cross_entropy",
    curve=curve(),
    last_layer="classifier",
    high_logits=(1.0, 100.0),
    low_logits=(-1.0, -100.0),
    reach=200.0,
    reach_last=200.0,
    last_layer_curve=curve(),
    largest_label=2,
    labels_seen=320,
)


def judged(*, max_share=MAX_SHARE, **changes):
    trace = dataclasses.replace(example_trace(), measurements={"loss_shape": dataclasses.replace(FREE, **changes)})
    return check_logits_unbounded(trace, max_share=max_share)


def within(bound, **more):
    reach = 2 * bound
    return judged(
        high_logits=(1.0, bound),
        low_logits=(-1.0, -bound),
        reach=reach,
        **{"reach_last": reach, "last_layer_curve": curve(bound), **more},
    )


def test_free_logits_pass():
    assert judged().status == "pass"


def test_tanh_fails_with_the_share_that_it_keeps():
    verdict = within(1.0)
    assert (verdict.status, verdict.fault) == ("fail", "logits_bounded")
    assert "22 % of the loss always remains" in verdict.headline
    assert f"{math.log1p(2 * math.exp(-2)):.3f} for 3 classes" in verdict.headline


def test_wording():
    assert str(within(1.0)) == (
        "logits_unbounded: FAIL. Two logits differ by 2.00 at most, whatever classifier returns: 22 % of the loss always "
        "remains (in theory 0.240 for 3 classes).\n"
        "  classifier returns  logit\n"
        "  -100                -1.00\n"
        "  -1.00               -1.00\n"
        "  1.00                1.00\n"
        "  100                 1.00\n"
        "  cause: an activation (tanh, sigmoid, softmax), a clamp or a normalisation follows the last layer\n"
        "  do: remove what comes after classifier, or multiply the bounded logits by 10 to 30\n"
        "  limit: the bound keeps at most 10 % of the loss; a tanh keeps 18 % for two classes, 22 % for three\n"
        "  measured: chosen outputs of classifier, dropout off, on 16 rows"
    )


def test_a_soft_cap_passes_with_a_note():
    verdict = within(30.0)
    assert verdict.status == "pass"
    assert "60.0 at most" in verdict.notes[0]


def test_both_sides_of_the_limit():
    cost = math.log1p(2 * math.exp(-2 * 1.5)) / math.log(3)
    assert within(1.5, max_share=cost * 1.05).status == "pass"
    assert within(1.5, max_share=cost * 0.95).status == "fail"


def test_a_bound_that_moved_in_training_is_learnt():
    assert within(1.0, reach_last=2.5).status == "pass"


def test_a_squashed_loss_inside_the_model():
    """Nothing to compare with but zero: the site is the last layer itself."""
    inside = {"site": "classifier", "last_layer_curve": None, "known": None}
    assert judged(curve=curve(1.0), reach=2.0, reach_last=2.0, **inside).fault == "logits_bounded"
    assert judged(curve=curve(), **inside).status == "pass"
    sound = LossCurve(MARGINS, (0.7, 0.3, 0.1, 0.0, 0.0), (0.7, 0.9, 1.0, 1.0, 1.0))  # bounded, but it reaches zero
    assert judged(curve=sound, reach=2.0, reach_last=2.0, **inside).status == "pass"


def test_a_relu_on_the_logits():
    verdict = judged(high_logits=(1.0, 100.0), low_logits=(0.0, 0.0), reach=100.0, reach_last=100.0)
    assert (verdict.status, verdict.fault) == ("fail", "logits_one_signed")
    assert (
        judged(high_logits=(1.0, 100.0), low_logits=(0.0, 0.0), reach=100.0, reach_last=100.0, known=None).status
        == "pass"
    )
    assert judged(high_logits=(1.0, 100.0), low_logits=(-0.01, -1.0)).status == "pass"  # a leak of 0.01 is a way back


def test_many_more_outputs_than_classes_is_advice():
    assert judged(outputs=7).status == "advice"
    assert judged(outputs=6).status == "pass"
    assert judged(outputs=7, labels_seen=31).status == "pass"


@pytest.mark.parametrize(
    ("high", "low", "labels", "status"),
    [
        ((0.73, 1.0), (0.27, 0.0), (0.0, 5.0), "fail"),
        ((0.73, 1.0), (0.27, 0.0), (0.0, 1.0), "pass"),
        ((1.0, 100.0), (0.0, 0.0), (0.0, 5.0), "pass"),
        ((1.0, 100.0), (0.0, 0.0), (-5.0, 5.0), "fail"),
        ((1.0, 100.0), (-1.0, -100.0), (-500.0, 500.0), "pass"),
        ((1.0, 100.0), (-1.0, -100.0), (0.0, 0.0), "pass"),
    ],
)
def test_numbers_out_of_reach(high, low, labels, status):
    verdict = judged(
        kind="regression", known="squared_error", high_logits=high, low_logits=low, label_range=labels, curve=None
    )
    assert verdict.status == status
    assert verdict.fault == ("outputs_cannot_reach_labels" if status == "fail" else "")


def test_a_regression_loss_that_is_not_known_is_skipped():
    assert judged(kind="regression", known=None, label_range=(0.0, 5.0)).status == "skipped"


def test_no_last_layer_and_no_measurement():
    assert judged(last_layer="").status == "skipped"
    assert check_logits_unbounded(example_trace()).status == "inconclusive"


def test_a_limit_out_of_range():
    with pytest.raises(ValueError, match="max_share"):
        judged(max_share=0.0)


# ------------------------------------------------------------------ the largest margin for any weights
NO_LAST_LAYER = {"last_layer": "", "high_logits": None, "low_logits": None, "reach": None, "last_layer_curve": None}


@pytest.mark.parametrize(
    ("classes", "margin", "bounded"),
    [(3, 2.0, True), (3, 2.8, True), (3, 3.0, False), (10, 2.0, True), (3, math.inf, False)],
)
def test_a_bound_for_any_weights(classes, margin, bounded):
    verdict = judged(outputs=classes, largest_margin=margin, largest_margin_last=1.0, **NO_LAST_LAYER)
    assert (verdict.status, verdict.fault) == (("fail", "logits_bounded") if bounded else ("pass", ""))


def test_a_margin_reached_in_the_run_disproves_the_bound():
    assert judged(largest_margin=2.0, largest_margin_last=9.0, **NO_LAST_LAYER).status == "pass"
    assert judged(largest_margin=None, largest_margin_last=9.0, **NO_LAST_LAYER).status == "skipped"
