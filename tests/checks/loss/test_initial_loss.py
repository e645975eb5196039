"""initial_loss: two-sided, by the standard loss of the first logits, whatever the run's own loss is."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict

import pytest
import torch

from pytest_ftcheck import check_initial_loss, diagnose, example_trace, finetune
from pytest_ftcheck.checks.loss.initial_loss import HIGHEST
from pytest_ftcheck.checks.loss.record import LossShape
from pytest_ftcheck.core.observations import Buffer, ProbeLossPoint


def run(reference, *, loss=None, task="single_label", classes=3, entropy=1.09, **changes):
    trace = example_trace()
    points = (ProbeLossPoint(0, reference if loss is None else loss, reference), *trace.probe_loss.points[1:])
    return dataclasses.replace(
        trace,
        probe_loss=dataclasses.replace(trace.probe_loss, points=points, prior_entropy=entropy),
        reading=dataclasses.replace(trace.reading, task=task, classes=classes),
        **changes,
    )


@pytest.mark.parametrize(("times", "status"), [(HIGHEST * 0.99, "pass"), (HIGHEST * 1.01, "fail"), (1.0, "pass")])
def test_far_above_a_uniform_prediction(times, status):
    verdict = check_initial_loss(run(times * math.log(3)))
    assert verdict.status == status
    assert verdict.fault == ("initial_loss_too_high" if status == "fail" else "")


def test_wording():
    shape = LossShape(rows=16, size_first=196.0, last_layer="classifier", high_logits=(1.0, 100.0))
    assert str(check_initial_loss(run(286.0, measurements={"loss_shape": shape}))) == (
        "initial_loss: FAIL. The first loss is 286.0, 260 times ln 3, with logits of rms 196; a uniform prediction has 1.099.\n"
        "  cause: the head starts with large logits: its weights are initialised far too large, the features are not "
        "normalised, or the head was trained for other labels\n"
        "  do: initialise the head's last layer with std 0.02 (or zeros), biases 0; look at the scale of the features\n"
        "  limit: at most 3 times ln 3: a head near zero starts at ln 3, and the healthy runs measured stay below it\n"
        "  measured: cross-entropy of the first logits, dropout off, on 32 rows (the first 2 training batches)"
    )


@pytest.mark.parametrize(("high", "status"), [((2.0, 200.0), "fail"), ((2.1, 210.0), "advice"), (None, "advice")])
def test_a_temperature_by_design_is_advice(high, status):
    shape = LossShape(rows=16, last_layer="classifier" if high else "", high_logits=high)
    verdict = check_initial_loss(run(9.0, measurements={"loss_shape": shape}))
    assert verdict.status == status
    assert bool(verdict.fault) == (status == "fail")


@pytest.mark.parametrize(("scale_free", "status"), [(True, "advice"), (False, "fail"), (None, "fail")])
def test_logits_that_do_not_depend_on_the_size_of_the_weights_are_advice(scale_free, status):
    shape = LossShape(rows=16, last_layer="classifier", high_logits=(1.0, 100.0), scale_free=scale_free)
    assert check_initial_loss(run(9.0, measurements={"loss_shape": shape})).status == status


@pytest.mark.parametrize(("of_class", "status"), [(None, "fail"), (8.2, "advice"), (5.5, "advice"), (5.3, "fail")])
def test_logits_as_large_as_those_of_a_new_model_of_the_class_are_advice(of_class, status):
    shape = LossShape(rows=16, size_first=8.2, size_of_class=of_class, last_layer="lm_head", high_logits=(1.0, 100.0))
    verdict = check_initial_loss(run(9.0, measurements={"loss_shape": shape}))
    assert (verdict.status, bool(verdict.fault)) == (status, status == "fail")
    if status == "advice":
        assert verdict.notes[0].startswith("a newly made model of this library's class has logits of rms")


def test_a_low_first_loss_is_a_note():
    verdict = check_initial_loss(run(0.1))
    assert verdict.status == "pass"
    assert "trained before" in verdict.notes[0]
    assert not check_initial_loss(run(1.0)).notes
    assert not check_initial_loss(run(0.02, entropy=0.05)).notes  # almost one class


def test_the_scale_of_the_users_loss_does_not_matter():
    verdict = check_initial_loss(run(1.1, loss=17.6))
    assert verdict.status == "pass"
    assert "17.60" in verdict.headline


def test_tags_are_compared_with_ln_2():
    assert check_initial_loss(run(0.69, task="multi_label", classes=4)).status == "pass"
    assert check_initial_loss(run(2.2, task="multi_label", classes=4)).status == "fail"


def test_not_finite():
    assert check_initial_loss(run(math.inf)).fault == "initial_loss_not_finite"


@pytest.mark.parametrize(
    "trace",
    [
        run(9.0, task="regression"),
        run(None, loss=9.0),
        run(9.0, measurements={"loss_shape": LossShape(form="probabilities")}),
        dataclasses.replace(example_trace(), probe_loss=None),
    ],
)
def test_what_is_not_judged(trace):
    assert check_initial_loss(trace).status == "skipped"


@pytest.mark.parametrize("highest", [1.0, 0.5, -1])
def test_a_limit_out_of_range(highest):
    with pytest.raises(ValueError, match="highest"):
        check_initial_loss(run(1.0), highest=highest)


def begun(loss, reference, *, training=True, unchanged=False, each=1):
    """A run that recorded ``loss`` first, ``each`` batches a step, while evaluation mode scored ``reference``."""
    trace = run(reference)
    first = dataclasses.replace(trace.iterations[0], loss=loss, training=training)
    waiting = tuple(dataclasses.replace(first, step=None, steps=0) for _ in range(each - 1))
    return dataclasses.replace(
        trace,
        iterations=(*waiting, first, *trace.iterations[1:]),
        buffers=(Buffer("norm.running_mean", "base", False, unchanged),),
    )


def test_running_statistics_that_have_seen_nothing_are_no_large_head():
    verdict = check_initial_loss(begun(1.1, 162.0))
    assert (verdict.status, verdict.fault) == ("pass", "")
    assert "1.100" in verdict.headline
    assert "162" in verdict.notes[0]
    for unhealthy in (
        begun(5.0, 162.0),  # the training begins there, too
        begun(1.1, 162.0, unchanged=True),  # no statistics that could explain it
        begun(1.1, 162.0, training=False),
        begun(1.1, 162.0, each=4),  # recorded divided by four
        begun(math.nan, 162.0),
    ):
        assert check_initial_loss(unhealthy).fault == "initial_loss_too_high"


@pytest.mark.trains
def test_batch_normalisation_of_inputs_in_the_thousands():
    g = torch.Generator().manual_seed(0)
    batches = [(1000 * (x := torch.randn(16, 6, generator=g)) + 500, (x[:, 0] > 0).long()) for _ in range(8)]
    names = ("norm", "classifier")
    model = torch.nn.Sequential(OrderedDict(zip(names, (torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 2)), strict=True)))
    trace = finetune(model, batches, steps=6, lr=1e-2)
    assert trace.probe_loss.points[0].loss > 10
    assert check_initial_loss(trace).status == "pass"
    assert diagnose(trace).status != "unhealthy"


def test_the_reason_of_a_skipped_task_is_that_task():
    def headline(task):
        return check_initial_loss(run(1.0, task=task)).headline

    assert "not for regression" in headline("regression")
    assert "task cannot be inferred" in headline(None)
