"""Metrics and probes of finetune."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch
from finetuned import FAST, Net, healthy
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pytest_ftcheck import (
    check_metric_improves,
    diagnose,
    finetune,
    tiny_distilbert,
    toy_batches,
)


# ------------------------------------------------------------------ metrics
def test_own_metrics_replace_ours(rows):
    def share_of_ones(logits, labels):
        assert logits.shape == (32, 2)
        assert labels.shape == (32,)
        return (logits.argmax(-1) == 1).float().mean()

    trace = finetune(
        Net(), rows, metrics={"ones": share_of_ones, "zeros": lambda a, b: 1 - share_of_ones(a, b)}, **FAST
    )
    assert [m.name for m in trace.metrics] == ["ones", "zeros"]
    assert trace.metrics[0].last == pytest.approx(1 - trace.metrics[1].last)


def test_a_metric_that_fails_is_a_note_not_the_end(rows):
    def broken(logits, labels):
        raise ValueError("nope")

    trace = healthy(finetune(Net(), rows, metrics={"broken": broken}, **FAST))
    assert trace.metrics == ()
    assert any("broken" in n and "nope" in n for n in trace.notes)


def test_held_out_batches_are_what_the_metrics_are_taken_on(rows):
    trace = finetune(Net(), rows[:2], eval_batches=rows[2:7], **FAST)
    assert {(m.rows, m.source) for m in trace.metrics} == {(80, "held-out rows")}
    trace = finetune(Net(), rows[:2], **FAST)
    assert {(m.rows, m.source) for m in trace.metrics} == {(32, "training rows")}


def test_held_out_batches_may_come_from_a_generator_or_a_loader(rows):
    assert finetune(Net(), rows, eval_batches=(r for r in rows[:3]), **FAST).metrics[0].rows == 48
    data = TensorDataset(torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows]))
    assert finetune(Net(), rows, eval_batches=DataLoader(data, 32), **FAST).metrics[0].rows == 128


def test_evaluate_is_recorded_beside_ours(rows):
    def evaluate(model):
        return float(model.classifier.weight.detach().norm())

    model = Net()
    trace = finetune(model, rows, evaluate=evaluate, **FAST)
    ours = next(m for m in trace.metrics if m.name == "evaluate")
    assert ours.first == pytest.approx(evaluate(model))
    assert ours.last != ours.first
    assert (ours.rows, ours.source) == (0, "the user's own")
    assert len(trace.metrics) == 4


def test_an_evaluate_that_forgets_train_does_not_stop_the_dropout(rows):
    def evaluate(model):
        model.eval()
        return 0.0

    assert all(s.training for s in finetune(Net(), rows, evaluate=evaluate, **FAST).steps)


def test_accuracy_and_its_baseline_are_right(rows):
    torch.manual_seed(0)
    model = Net()
    trace = finetune(model, rows, **FAST)
    x, y = torch.cat([r[0] for r in rows[:2]]), torch.cat([r[1] for r in rows[:2]])
    accuracy = next(m for m in trace.metrics if m.name == "accuracy")
    with torch.no_grad():
        assert accuracy.first == pytest.approx(float((model(x).argmax(-1) == y).float().mean()))
    assert accuracy.baseline == pytest.approx(max(float(y.float().mean()), 1 - float(y.float().mean())))
    assert accuracy.actual == tuple(torch.bincount(y).tolist())
    assert sum(accuracy.predicted) == 32


def test_learning_shows_in_every_number(rows):
    trace = finetune(lambda: Net(inside=16), rows, steps=60, lr=2e-2, eval_batches=rows)
    accuracy = next(m for m in trace.metrics if m.name == "accuracy")
    assert accuracy.last > 0.9
    assert accuracy.p_value == pytest.approx(1 / 500)
    assert trace.probe_loss.points[-1].loss < 0.5 * trace.probe_loss.points[0].loss
    assert sum(d.after < d.before for d in trace.probe_loss.descents) >= 18


# ------------------------------------------------------------------ probes
def test_the_probe_is_taken_with_dropout_off():
    class Drops(Net):
        def forward(self, x):
            return self.classifier(F.dropout(torch.relu(self.body(x)), 0.5, self.training))

    x, y = torch.randn(16, 6), torch.arange(16) % 2
    torch.manual_seed(0)
    model = Drops()
    trace = finetune(model, [(x, y)], lr=0.0, steps=4, weight_decay=0.0)
    with torch.no_grad():
        quiet = float(F.cross_entropy(model.eval()(x), y))
    assert {round(p.loss, 6) for p in trace.probe_loss.points} == {round(quiet, 6)}
    assert len(set(trace.losses)) == 4
    assert [p.step for p in trace.probe_loss.points] == [0, 1, 2, 3, 4]


def test_descents_look_at_the_steps_own_batch(rows):
    trace = finetune(Net(), rows, steps=6, lr=1e-3)
    assert [d.step for d in trace.probe_loss.descents] == list(range(6))
    # without dropout the training loss of a batch is its loss just before the step
    assert [d.before for d in trace.probe_loss.descents] == pytest.approx(list(trace.losses))


@pytest.mark.parametrize("wanted", [(), ("loss",), ("loss", "descent"), ("metrics",), ("noise",)])
def test_only_the_probes_that_are_asked_for(rows, wanted):
    trace = finetune(Net(), rows, probes=wanted, **FAST)
    assert (trace.probe_loss is not None) == ("loss" in wanted)
    assert bool(trace.probe_loss and trace.probe_loss.descents) == ("descent" in wanted)
    assert bool(trace.metrics) == ("metrics" in wanted)


def test_key_biases_are_distinguished_from_real_gradients():
    """softmax does not see a constant added to all keys' scores: the true gradient of a key bias is zero."""
    trace = finetune(tiny_distilbert, toy_batches(4), steps=5, lr=1e-3)
    keys = [t for t in trace.tensors if t.name.endswith("k_lin.bias")]
    assert len(keys) == 2
    assert all(t.gradients.noise > 0.05 for t in keys)
    others = [t for t in trace.tensors if t not in keys and t.gradients.noise is not None]
    assert all(t.gradients.noise < 0.05 for t in others)


# ------------------------------------------------------------------ what was passed and cannot be measured
@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda logits: 1.0, "raised TypeError: .*It is called with logits .*, \\(logits, labels\\) -> float"),
        (lambda logits, labels: "good", "returned 'good' for .*: expected a number"),
        (lambda logits, labels: None, "returned None for .*: expected a number"),
        (lambda logits, labels: {}["x"], "raised KeyError: 'x'"),
        (lambda logits, labels: [][0], "raised IndexError"),
        (lambda logits, labels: 1 / 0, "raised ZeroDivisionError"),
    ],
)
def test_a_metric_of_the_users_that_fails_is_no_pass(rows, metric, said):
    trace = finetune(Net(), rows, metrics={"own": metric}, probes=["metrics"], **FAST)
    verdict = check_metric_improves(dataclasses.replace(trace, remeasure=None))
    assert verdict.status == "inconclusive"
    assert re.match(rf"Declared, and not judged: metrics=\. Not measured: metrics\['own'\].*{said}", verdict.headline)
    judged = {v.check: v.status for v in diagnose(trace).verdicts}
    assert judged["metric_improves"] == "inconclusive"


def test_held_out_batches_that_the_model_does_not_take_are_no_pass(rows):
    trace = finetune(Net(), rows, eval_batches=[rows[0], (rows[0][0][:, :3], rows[0][1])], probes=["metrics"], **FAST)
    verdict = check_metric_improves(dataclasses.replace(trace, remeasure=None))
    assert verdict.status == "inconclusive"
    assert "eval_batches[1]: RuntimeError" in verdict.headline


def test_no_metric_was_passed(rows):
    for given in ({}, None):
        trace = finetune(Net(), rows, metrics=given, loss_fn=lambda m, b: m(b[0]).square().mean(), probes=[], **FAST)
        assert {v.check: v.status for v in diagnose(trace).verdicts}["metric_improves"] == "skipped"


def test_a_metric_that_is_nan_is_not_blamed_on_finite_outputs(rows):
    trace = finetune(Net(), rows, metrics={"own": lambda logits, labels: math.nan}, probes=["metrics"], **FAST)
    verdict = check_metric_improves(trace)
    assert verdict.status == "fail"
    assert verdict.causes[0].startswith("metrics['own'] is NaN although the outputs are finite")
    unknown = dataclasses.replace(trace.metrics[0], outputs_finite=False)
    (cause,) = check_metric_improves(dataclasses.replace(trace, metrics=(unknown,))).causes
    assert "the outputs are not finite" in cause
