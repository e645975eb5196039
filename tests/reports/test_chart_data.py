"""What pictures are drawn from equals what the trace holds."""

from __future__ import annotations

import dataclasses
import math

import pytest

from pytest_ftcheck.checks.head.ablation_record import Counterfactuals, Outcome, Rewound
from pytest_ftcheck.core.example_trace import example_trace, tensor
from pytest_ftcheck.core.observations import Histogram, Iteration, ProbeLoss, Step
from pytest_ftcheck.reports import chart_data
from pytest_ftcheck.reports.chart_data import Series
from pytest_ftcheck.reports.html.charts import charts
from pytest_ftcheck.reports.layer_groups import bunched, labels

NAN = math.nan


def still(t, **changes):
    """A tensor that did not move."""
    motion = dataclasses.replace(t.motion, share_changed=0.0, rms=0.0, largest=0.0, by_gradient=0.0)
    return dataclasses.replace(t, motion=motion, displacements=(0.0,) * len(t.displacements), **changes)


def by_kind(lines):
    found = {}
    for curve in lines.series:
        found.setdefault(curve.kind, []).append(curve)
    return found


def test_losses_are_the_traces():
    made = example_trace()
    found = by_kind(chart_data.loss(made))
    assert found["train"][0].y == made.losses
    assert found["train"][0].x == tuple(range(1, 21))
    assert [(x, y) for x, y in found["probe"][0].finite] == [(p.step, p.loss) for p in made.probe_loss.points]
    assert found["prior"][0].y == (0.6931, 0.6931)
    assert found["prior"][0].x == (0.0, 20.0)


def test_batches_of_one_step_stand_evenly_before_it():
    iterations = [Iteration(1.0, None, 0, True), Iteration(1.0, 0, 1, True), Iteration(1.0, 2, 2, True)]
    iterations += [Iteration(1.0, None, 0, True), Iteration(1.0, None, 0, True)]
    assert chart_data.positions(example_trace(iterations=tuple(iterations))) == (0.5, 1.0, 3.0, 3.5, 4.0)


def test_iterations_that_know_of_no_step_are_counted():
    assert chart_data.positions(example_trace(iterations=(Iteration(1.0, None, 0, True),) * 3)) == (1.0, 2.0, 3.0)


def test_what_was_not_measured_is_said():
    empty = example_trace(steps=(), iterations=(), recorded=(), probe_loss=None, tensors=())
    assert chart_data.loss(empty).missing == "no loss was reported"
    assert chart_data.rates(empty).missing == "no optimizer step was taken"
    assert chart_data.gradients(empty).missing == "no optimizer step was taken"
    assert chart_data.motion(empty).missing == "the trace has no tensors"
    assert chart_data.weights(empty).missing == "the trace has no tensors"
    assert chart_data.course(empty).missing
    assert "No part was reset" in charts(empty)["rewound"].missing
    unprobed = example_trace(probe_loss=ProbeLoss(0, "", (), skipped="the loader is endless"))
    assert chart_data.loss(unprobed).note == "no probe loss: the loader is endless"


def test_groups_with_one_schedule_are_one_curve():
    steps = tuple(Step(i, (1e-3 * i, 1e-3 * i, 1e-5, 1e-3 * i), 1.0, None, True) for i in range(4))
    found = chart_data.rates(example_trace(steps=steps)).series
    assert [(c.name, c.y[-1]) for c in found] == [("lr of group 0-1, 3", 0.003), ("lr of group 2", 1e-5)]


def test_a_group_that_came_late_has_a_gap():
    steps = (Step(0, (1e-3,), 1.0, None, True), Step(1, (1e-3, 1e-4), 1.0, None, True))
    assert chart_data.rates(example_trace(steps=steps)).series[1].y == (None, 1e-4)


def test_gradients_of_a_block_are_one_norm():
    a, b = tensor("base.layer.0.a", "base"), tensor("base.layer.0.b", "base")
    a = dataclasses.replace(a, grad_norms=(3.0, -1.0, NAN))
    b = dataclasses.replace(b, grad_norms=(4.0, -1.0, 1.0))
    curve = by_kind(chart_data.gradients(example_trace(tensors=(a, b), recorded=(0, 2, 4))))["base"][0]
    assert curve.x == (1.0, 3.0, 5.0)
    assert curve.y[:2] == (5.0, None)
    assert curve.nonfinite == (5.0,)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trainable": False, "grad_norms": ()}, "frozen: head"),
        ({"grad_norms": (-1.0,) * 20}, "no gradient: head"),
        ({"grad_norms": (0.0,) * 20}, "gradient always zero: head"),
    ],
)
def test_groups_without_a_curve_are_named(changes, told):
    made = example_trace()
    tensors = tuple(dataclasses.replace(t, **changes) if t.part == "head" else t for t in made.tensors)
    lines = chart_data.gradients(example_trace(tensors=tensors))
    assert lines.note == told
    assert "head" not in by_kind(lines)


def test_many_blocks_are_taken_together_and_none_is_lost():
    tensors = tuple(tensor(f"base.layer.{i}.w", "base") for i in range(50))
    lines = chart_data.gradients(example_trace(tensors=tensors))
    assert len(by_kind(lines)["base"]) == chart_data.CURVES
    bars = chart_data.motion(example_trace(tensors=tensors))
    assert len(bars.layers) == chart_data.BARS
    assert sum(layer.tensors for layer in bars.layers) == 50
    assert bars.layers[0].name == "layer.0 to layer.1"


def test_motion_is_the_median_share_of_the_budget():
    made = example_trace()
    t = made.tensor("classifier.weight")
    budget = t.lr_sum
    members = tuple(
        dataclasses.replace(t, name=f"head.{n}", motion=dataclasses.replace(t.motion, by_gradient=share * budget))
        for n, share in (("a", 0.1), ("b", 0.2), ("c", 0.9))
    )
    (layer,) = chart_data.motion(example_trace(tensors=members)).layers
    assert (layer.used, layer.low, layer.high) == (pytest.approx(0.2), pytest.approx(0.1), pytest.approx(0.9))
    assert (layer.part, layer.tensors, layer.trainable, layer.state) == ("head", 3, 3, "")


def test_layers_say_what_is_the_matter():
    weight, bias = example_trace().select("head")
    made = example_trace(tensors=(still(weight, trainable=False), still(bias, trainable=False)))
    (layer,) = chart_data.motion(made).layers
    assert (layer.used, layer.state) == (None, "frozen")
    made = example_trace(tensors=(still(weight, group=None, lr_sum=0.0), bias))
    (layer,) = chart_data.motion(made).layers
    assert layer.state == "1 of 2: in no parameter group, 1 of 2: did not move"


def test_motion_that_is_not_a_number_is_seen():
    weight, bias = example_trace().select("head")
    broken = dataclasses.replace(weight, motion=dataclasses.replace(weight.motion, by_gradient=NAN))
    (layer,) = chart_data.motion(example_trace(tensors=(broken, bias))).layers
    assert math.isnan(layer.used)
    assert math.isnan(layer.high)


@pytest.mark.parametrize(("family", "healthy"), [("adam", (0.15, 0.45)), ("sgd", None), ("other", None)])
def test_what_is_usual_is_known_of_adam_only(family, healthy):
    made = example_trace()
    optimizer = dataclasses.replace(made.optimizer, family=family)
    assert chart_data.motion(example_trace(optimizer=optimizer)).healthy == healthy


def test_course_is_displacement_over_the_budget_so_far():
    made = example_trace()
    head = chart_data.course(made).series[0]
    total = 0.0
    for k, step in enumerate(made.steps):
        total += step.lrs[0]
        assert head.y[k] == pytest.approx(made.tensors[2].displacements[k] / total)


def test_weights_beside_displacement():
    histograms = (Histogram(-1, 0.0, 0.5, (1, 3)), Histogram(3, NAN, 1.0, (1,)), Histogram(19, -1.0, 1.0, (2, 4, 2)))
    made = example_trace()
    t = dataclasses.replace(made.tensors[2], histograms=histograms)
    found = chart_data.weights(example_trace(tensors=(t,)))
    assert [(d.step, d.counts) for d in found.histograms] == [(0, (1, 3)), (20, (2, 4, 2))]
    for d in found.histograms:
        widths = [b - a for a, b in zip(d.edges, d.edges[1:], strict=False)]
        assert math.fsum(w * v for w, v in zip(widths, d.density, strict=True)) == pytest.approx(1)
    curves = by_kind(found.displacement)
    assert curves["displacement"][0].y == t.displacements
    assert curves["budget"][0].y[-1] == pytest.approx(t.lr_sum)
    assert set(curves["std"][0].y) == {0.02}
    assert [label for label, _ in found.explanation] == ["Histogram", "Elements", "Schedule", "Meaning"]


def test_a_named_tensor_and_one_that_is_not_there():
    assert chart_data.weights(example_trace(), "classifier.bias").tensor == "classifier.bias"
    with pytest.raises(ValueError, match="name='nothing': no such tensor"):
        chart_data.weights(example_trace(), "nothing")


def test_what_stands_still_is_on_a_linear_axis():
    tensors = tuple(still(t) for t in example_trace().tensors)
    lines = chart_data.weights(example_trace(tensors=tensors)).displacement
    assert (lines.log, lines.note) == (False, "it did not move")


def test_parts_put_back():
    made = Counterfactuals(
        32,
        "probe",
        Outcome(0.1, 0.9),
        0.5,
        (Rewound("head", 9, Outcome(0.7, 0.5), None), Rewound("base", 9, Outcome(0.2, None))),
    )
    found = charts(example_trace(measurements={"counterfactuals": made}))["rewound"]
    assert "Loss of 32 rows as trained 0.100, 90 % accuracy" in found.description
    assert "majority baseline 50 %" in found.description
    (block,) = found.data["bars"]
    columns = block["columns"]
    assert (columns["part"], columns["loss"], columns["accuracy"]) == (["head", "base"], [0.7, 0.2], [0.5, None])
    assert set(columns["how"]) == {"initial values"}


@pytest.mark.parametrize("most", [3, 10, 101, 999])
def test_thinning_keeps_ends_peaks_and_what_is_not_finite(most):
    y = [0.0] * 1000
    y[500], y[501], y[700], y[800] = 9.0, -9.0, NAN, None
    thin = Series("a", "train", tuple(range(1000)), tuple(y)).thinned(most)
    assert len(thin.x) <= max(most, 6)
    assert (thin.x[0], thin.x[-1]) == (0, 999)
    assert list(thin.x) == sorted(set(thin.x))
    assert {9.0, -9.0} <= set(thin.y)
    assert len(thin.nonfinite) == 1
    assert all(value is y[k] or value == y[k] for k, value in zip(thin.x, thin.y, strict=True))


def test_labels_are_short_and_no_two_alike():
    assert labels(["a.0", "a.1"]) == ["a.0", "a.1"]
    assert labels(["only.one"]) == ["only.one"]
    odd = labels(["x" * 500 + "a", "x" * 500 + "a", "tab\there"])
    assert len(set(odd)) == 3
    assert all(len(label) <= 40 for label in odd)
    assert odd[2] == "tab?here"
    groups = {f"b{i}": [i] for i in range(10)}
    assert [i for bunch in bunched(groups, 3).values() for i in bunch] == list(range(10))
