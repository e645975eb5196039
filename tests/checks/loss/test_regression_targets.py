"""Numbers as labels: too large, out of reach, or class numbers; and their healthy twins."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from pytest_ftcheck import (
    Intent,
    check_logits_unbounded,
    check_loss_matches_task,
    diagnose,
    example_trace,
    finetune,
    toy_batches,
    watch,
)
from pytest_ftcheck.checks.learning import ENOUGH
from pytest_ftcheck.checks.loss.record import LossShape

SHAPE = LossShape(
    rows=16,
    kind="regression",
    outputs=1,
    depends=True,
    differentiable=True,
    known="squared_error",
    last_layer="head",
    high_logits=(1.0, 100.0),
    low_logits=(-1.0, -100.0),
    label_range=(8e4, 4e5),
    labels_seen=256,
    size_first=0.1,
)


def trace_of(shape=SHAPE, last=1.0, learns=False, steps=ENOUGH, **changes):
    """A run whose probe loss ends at ``last`` times the first."""
    trace = example_trace()
    points = trace.probe_loss.points
    ends = (replace(points[0], loss=1e10), replace(points[-1], loss=last * 1e10))
    metrics = () if learns is None else tuple(replace(m, last=m.first, p_value=1.0) for m in trace.metrics)
    return replace(
        trace,
        measurements={"loss_shape": shape},
        probe_loss=replace(trace.probe_loss, points=ends, prior_entropy=None),
        metrics=trace.metrics if learns else metrics,
        steps=(trace.steps * steps)[:steps],
        **changes,
    )


@pytest.mark.parametrize(
    ("last", "status"),
    [(1.0, "fail"), (1.3, "fail"), (0.9999, "fail"), (0.99, "inconclusive"), (0.5, "pass"), (math.inf, "fail")],
)
def test_labels_far_from_the_outputs(last, status):
    verdict = check_logits_unbounded(trace_of(last=last))
    assert (verdict.status, verdict.fault) == (status, "targets_unscaled" if status != "pass" else "")


@pytest.mark.parametrize(
    "trace",
    [
        trace_of(learns=True),
        trace_of(replace(SHAPE, label_range=(-3.0, 50.0))),  # not far
        trace_of(replace(SHAPE, size_first=2e5)),  # the last layer starts at the labels' mean
        trace_of(replace(SHAPE, known=None)),  # the loss may scale them itself
        trace_of(
            tensors=tuple(replace(t, motion=replace(t.motion, share_changed=0.0)) for t in example_trace().tensors)
        ),
    ],
    ids=["learns", "near", "starts there", "another loss", "no step"],
)
def test_labels_that_are_no_reason(trace):
    assert check_logits_unbounded(trace).fault == ""


def test_a_short_run_does_not_decide_unless_all_outputs_became_the_same():
    assert check_logits_unbounded(trace_of(steps=ENOUGH - 1)).status == "inconclusive"
    collapsed = replace(SHAPE, spread_first=0.02, spread_last=3e-4)
    assert check_logits_unbounded(trace_of(collapsed, steps=ENOUGH - 1)).status == "fail"


@pytest.mark.parametrize(
    ("levels", "intent", "status"),
    [(5, None, "advice"), (2, None, "pass"), (None, None, "pass"), (5, Intent(task="regression"), "pass")],
)
def test_class_numbers(levels, intent, status):
    shape = replace(SHAPE, label_levels=levels, label_range=(0.0, 4.0))
    verdict = check_loss_matches_task(trace_of(shape, learns=True, intent=intent))
    assert (verdict.status, verdict.fault) == (status, "classes_as_numbers" if status == "advice" else "")
    if status == "advice":
        assert "All 256 labels are whole numbers from 0 to 4" in verdict.headline
        assert check_loss_matches_task(trace_of(shape)).status == "fail"
        assert check_loss_matches_task(trace_of(replace(shape, labels_seen=63))).status == "pass"


# ---------------------------------------------------------------------------------------- real runs
torch.manual_seed(0)
X = torch.randn(96, 16)
SCORES = X[:, :8].sum(1) / 8**0.5


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU()), nn.Linear(16, 1)

    def forward(self, x):
        return self.head(self.body(x)).squeeze(-1)


class Cosine(Net):
    """The similarity of the two halves of a row."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.body, self.head, self.scale = nn.Linear(8, 16), nn.Linear(16, 8), scale

    def forward(self, x):
        u, v = (self.head(self.body(half).relu()) for half in x.split(8, 1))
        return F.cosine_similarity(u, v) * self.scale


def run(model, labels, steps=ENOUGH, **settings):
    batches = [(X[i : i + 16], labels[i : i + 16]) for i in range(0, 96, 16)]
    probes = ("loss", "metrics", "loss_shape")
    return finetune(
        model, batches[:4], eval_batches=batches[4:], head="head", steps=steps, lr=1e-3, probes=probes, **settings
    )


@pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd"}], ids=["adamw", "sgd"])
def test_prices_are_named_before_the_learning_rate(settings):
    diagnosis = diagnose(run(Net(), SCORES * 5e4 + 2e5, **settings))
    assert diagnosis.causes[0].fault == "targets_unscaled"
    assert diagnose(run(Net(), SCORES, **settings)).causes == ()


def test_cosines_against_grades():
    verdict = check_logits_unbounded(run(Cosine(), SCORES.sigmoid() * 5, steps=2))
    assert (verdict.status, verdict.fault) == ("fail", "outputs_cannot_reach_labels")
    assert "Whatever the weights are, the output is 1.00 at most" in verdict.headline
    for model, labels in ((Cosine(), SCORES.sigmoid()), (Cosine(5.0), SCORES.sigmoid() * 5), (Net(), SCORES * 5)):
        assert check_logits_unbounded(run(model, labels, steps=2)).fault == ""


@pytest.mark.parametrize(("classes", "fault"), [(2, ""), (4, "classes_as_numbers")])
def test_transformers_reads_one_output_as_a_number(classes, fault):
    """``num_labels=1`` is a regression there, float labels of 0 and 1 included."""
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": y.float()}
        for (ids, _, mask), y in toy_batches(4, 16, classes=classes, seed=1)
    ]
    sizes = {"vocab_size": 200, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "max_position_embeddings": 64}
    model = DistilBertForSequenceClassification(DistilBertConfig(num_labels=1, **sizes))
    trace = finetune(model, rows, steps=2, probes=("loss_shape",))
    assert (trace.reading.task, trace.measured(LossShape).known) == ("regression", "squared_error")
    assert trace.measured(LossShape).label_levels == classes
    assert check_loss_matches_task(trace).fault == fault


# ---------------------------------------------------------------------- what the loop's own loss is given
class TwoTexts(nn.Module):
    """Two vectors a row, and what becomes of them."""

    def __init__(self, end):
        super().__init__()
        self.body, self.end = nn.Linear(6, 8), end

    def forward(self, pair):
        return self.end(*(self.body(x) for x in pair))


def units_in_batch(a, b):
    return (F.normalize(a) @ F.normalize(b).T).diagonal()


def watched(end, low, high, loss=F.mse_loss):
    torch.manual_seed(0)
    model = TwoTexts(end)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with watch(model) as w:
        for _ in range(12):
            labels = torch.cat([torch.tensor([low, high]), low + (high - low) * torch.rand(14)])
            loss(model(torch.randn(2, 16, 6)), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    return check_logits_unbounded(w.trace)


@pytest.mark.parametrize(
    ("end", "loss", "words"),
    [
        pytest.param(F.cosine_similarity, F.mse_loss, "a cosine: a product of vectors of length 1", id="cosine"),
        pytest.param(units_in_batch, F.l1_loss, "a cosine", id="cosine in the batch"),
        pytest.param(lambda a, b: (a * b).sum(1).sigmoid(), F.huber_loss, "a sigmoid", id="sigmoid"),
        pytest.param(lambda a, b: (a - b).mean(1).tanh(), F.smooth_l1_loss, "a tanh", id="tanh"),
    ],
)
def test_labels_that_the_loops_output_cannot_reach(end, loss, words):
    found = watched(end, 0.0, 5.0, loss)
    assert (found.status, found.fault) == ("fail", "outputs_cannot_reach_labels")
    assert words in found.headline
    assert "the labels lie between 0 and 5.00" in found.headline


@pytest.mark.parametrize(
    ("end", "low", "high"),
    [
        pytest.param(F.cosine_similarity, 0.0, 1.0, id="labels divided by 5"),
        pytest.param(F.cosine_similarity, -1.0, 1.02, id="a hair outside"),
        pytest.param(lambda a, b: 2.5 * (1 + F.cosine_similarity(a, b)), 0.0, 5.0, id="the output is scaled"),
        pytest.param(lambda a, b: (a * b).sum(1), 0.0, 5.0, id="products of vectors of any length"),
        pytest.param(lambda a, b: (a * b).mean(1).exp(), 0.0, 5.0, id="no bound is known"),
    ],
)
def test_labels_that_the_loops_output_can_reach(end, low, high):
    assert watched(end, low, high).status in ("skipped", "inconclusive")
