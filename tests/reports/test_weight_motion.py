"""Four lines, and each of them true for the run at hand."""

from __future__ import annotations

import dataclasses
import math

import pytest

from pytest_ftcheck.core.example_trace import example_trace, tensor
from pytest_ftcheck.core.intent import Intent
from pytest_ftcheck.core.observations import Iteration, Optimizer, ProbeLoss, ProbeLossPoint
from pytest_ftcheck.reports.weight_motion import explain_weight_motion

HEALTHY = tensor("classifier.0.weight", "head", shape=(768, 768))
NEVER = {"first_nonzero": None, "none": 20}
STILL = {
    "share_changed": 0.0,
    "rms": 0.0,
    "largest": 0.0,
    "by_gradient": 0.0,
    "by_decay": 0.0,
    "wasserstein": 0.0,
    "relative": 0.0,
}


def lines(trace_changes=None, **changes):
    """The four lines for the healthy tensor with these changes."""
    parts = {k: dataclasses.replace(getattr(HEALTHY, k), **v) if isinstance(v, dict) else v for k, v in changes.items()}
    trace = example_trace(**{"tensors": (dataclasses.replace(HEALTHY, **parts),), **(trace_changes or {})})
    result = explain_weight_motion(trace).splitlines()
    assert [x.split()[0] for x in result] == ["Histogram:", "Elements:", "Schedule:", "Meaning:"]
    return result


def optimizer(family, name="SGD"):
    return {"optimizer": Optimizer(name, family, example_trace().optimizer.groups)}


def test_healthy():
    histogram, elements, schedule, meaning = lines()
    assert "classifier.0.weight: std 0.0200 -> 0.0201; Wasserstein distance 0.30 % of the initial std" in histogram
    assert "100 % of 589,824 moved; displacement: relative L2 0.69 %, rms 1.38e-04, largest 4.40e-04" in elements
    assert "20 steps sum to 5.50e-04 = 2.8 % of the initial std" in schedule
    assert "used 25 % (rms, by gradients), 80 % (largest)" in schedule
    assert "Adam moves a weight by about one learning rate a step, seldom more" in schedule
    assert "a histogram cannot show it" in meaning
    assert "Nothing is broken: probe loss 0.700 -> 0.310" in meaning


def test_widening_is_that_of_unrelated_changes():
    meaning = lines(motion={"rms": 0.0012, "wasserstein": 6e-5})[3]
    assert "rms 6.0 % of the std" in meaning
    assert "widen it by 0.18 %" in meaning  # sqrt(1 + 0.06 ** 2) - 1


def test_the_default_is_the_heads_largest_trainable_matrix():
    chosen = explain_weight_motion(
        example_trace(
            tensors=(
                tensor("base.weight", "base", shape=(999, 999)),
                tensor("classifier.bias", "head", shape=(99_999,)),
                tensor("classifier.3.weight", "head", shape=(2, 8)),
                tensor("classifier.0.weight", "head", shape=(8, 8)),
                dataclasses.replace(tensor("classifier.big.weight", "head", shape=(80, 80)), trainable=False),
            )
        )
    )
    assert chosen.startswith("Histogram: classifier.0.weight:")


def test_a_tensor_can_be_named():
    assert "base_model.layer.0.lin.bias" in explain_weight_motion(example_trace(), "base_model.layer.0.lin.bias")
    with pytest.raises(ValueError, match=r"no such tensor; did you mean classifier\.weight"):
        explain_weight_motion(example_trace(), "classifier.wieght")
    with pytest.raises(ValueError, match="no tensors"):
        explain_weight_motion(example_trace(tensors=()))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"motion": STILL, "gradients": NEVER}, "no gradient reached it"),
        (
            {"motion": STILL, "gradients": {"first_nonzero": None, "zero": 20}},
            "its gradient was zero at every step",
        ),
        ({"motion": STILL, "group": None}, "the optimizer does not hold it"),
        ({"motion": STILL, "lr_sum": 0.0}, "its learning rate is zero"),
        ({"motion": STILL, "dtype": "bfloat16"}, "it got gradients, but bfloat16 may be too coarse"),
        ({"motion": STILL}, "although it got gradients"),
    ],
)
def test_did_not_move(changes, why):
    meaning = lines(**changes)[3]
    assert f"did not move ({why}" in meaning
    assert "assert_weights_move" in meaning
    assert "Nothing is broken" not in meaning


def test_not_moving_that_is_no_fault():
    assert "frozen" in lines(motion=STILL, trainable=False)[3]
    meant = {"intent": Intent(trained="classifier")}
    assert lines(meant, motion=STILL, trainable=False)[3].endswith("though it is declared to train.")
    assert "checksum" in lines(motion=STILL, unchanged=False)[3]
    assert "no optimizer step was taken" in lines({"steps": ()}, motion=STILL)[3]


@pytest.mark.parametrize(
    ("motion", "gradients"),
    [({"by_decay": 1e-6, "by_gradient": 0.0}, NEVER), ({"by_decay": 1e-6, "by_gradient": 1e-9}, {})],
)
def test_moved_only_by_weight_decay(motion, gradients):
    meaning = lines(motion=motion, gradients=gradients)[3]
    assert "only weight decay moved it (rms 1.00e-06" in meaning
    assert "Nothing is broken" not in meaning


def test_zero_initialised():
    zero = dataclasses.replace(HEALTHY.first, std=0.0, rms=0.0, mean=0.0)
    histogram, elements, schedule, meaning = lines(first=zero, motion={"relative": None})
    assert "no initial std to compare" in histogram
    assert "relative" not in elements
    assert "initial std" not in schedule
    assert "every element started at zero" in meaning
    one = dataclasses.replace(HEALTHY.first, std=0.0, rms=1.0, mean=1.0)
    assert "every element started at 1.00" in lines(first=one)[3]


def test_moved_a_lot():
    meaning = lines(motion={"rms": 0.1, "wasserstein": 0.05})[3]
    assert "it moved a lot: rms 500 % of the initial std, its initial values are gone" in meaning
    assert "Nothing is broken" not in meaning


def test_a_motion_that_the_histogram_does_show():
    meaning = lines(motion={"rms": 0.004, "wasserstein": 0.002})[3]
    assert "the histogram shows this motion (10 % of the initial std)" in meaning
    assert "cannot" not in meaning


def test_sgd_has_no_bound():
    schedule, meaning = lines(optimizer("sgd"))[2:]
    assert "SGD steps by lr * |gradient|, so the sum is no bound" in schedule
    assert "peak lr 5.00e-05, largest gradient 0.00800 (rms), largest step 4.00e-05 (rms)" in schedule
    assert "Adam" not in schedule + meaning
    assert "allows" not in meaning
    assert "the step size of Lion" in lines(optimizer("other", "Lion"))[2]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"motion": {"by_gradient": 1e-6}}, "healthy dense tensors: 15-45 %"),
        ({"motion": {"by_gradient": 1e-2}}, "more than Adam alone explains"),
        ({"motion": {"share_changed": 0.2}, "dtype": "bfloat16"}, "80 % of the elements did not move"),
    ],
)
def test_unusual_motion_is_never_called_sound(changes, expected):
    meaning = lines(**changes)[3]
    assert expected in meaning
    assert "Nothing is broken" not in meaning
    assert "The loss fell nevertheless: probe loss 0.700 -> 0.310" in meaning


def test_embeddings_move_little():
    meaning = lines(role="embedding", motion={"by_gradient": 5e-6})[3]
    assert "usual where most rows are never looked up" in meaning
    assert "Nothing is broken" in meaning


def test_another_dead_head_tensor_is_not_forgotten():
    dead = dataclasses.replace(
        tensor("classifier.3.weight", "head", shape=(2, 2)),
        motion=dataclasses.replace(HEALTHY.motion, **STILL),
    )
    text = explain_weight_motion(example_trace(tensors=(HEALTHY, dead)))
    assert "Nothing is broken" not in text


@pytest.mark.parametrize(
    ("trace_changes", "expected"),
    [
        (
            {"probe_loss": ProbeLoss(8, "rows", (ProbeLossPoint(0, 0.7), ProbeLossPoint(9, 0.69)))},
            "undecided: probe loss 0.700 -> 0.690",
        ),
        (
            {"probe_loss": ProbeLoss(8, "rows", (ProbeLossPoint(0, 0.7), ProbeLossPoint(9, 0.9)))},
            "did not fall (probe loss 0.700 -> 0.900)",
        ),
        ({"probe_loss": ProbeLoss(8, "rows", (ProbeLossPoint(0, 0.7), ProbeLossPoint(9, math.nan)))}, "did not fall"),
        ({"probe_loss": ProbeLoss(8, "rows", (ProbeLossPoint(0, -1.0), ProbeLossPoint(9, -9.0)))}, "is undecided"),
        ({"probe_loss": None}, "training loss 0.660 -> 0.360"),
        ({"probe_loss": None, "iterations": (Iteration(0.7, 0, 1, True),)}, "is not measured: there is no loss"),
    ],
)
def test_what_the_loss_says(trace_changes, expected):
    assert expected in lines(trace_changes)[3]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"last": {"nonfinite": 3}}, "NaN or infinite values (0 before, 3 after)"),
        ({"motion": {"rms": math.nan}}, "NaN or infinite values"),
        ({"replaced": True}, "the layer was replaced"),
        ({"motion": {"between_steps": 1.0}}, "changed mostly outside the optimizer"),
    ],
)
def test_numbers_that_do_not_mean_learning(changes, expected):
    meaning = lines(**changes)[3]
    assert expected in meaning
    assert "Nothing is broken" not in meaning


def test_schedules_that_allow_nothing():
    assert "nothing could move" in lines(lr_sum=0.0)[2]
    assert "in no parameter group" in lines(group=None)[2]


def test_sampled_elements_are_said_to_be():
    assert "of 900 sampled elements (of 589,824) moved" in lines(motion={"elements": 900})[1]


def test_odd_names_leave_four_lines():
    odd = dataclasses.replace(HEALTHY, name="a\nb" + "x" * 10_000)
    text = explain_weight_motion(example_trace(tensors=(odd,)))
    assert len(text.splitlines()) == 4
    assert len(text) < 1500
