"""Labels that are class probabilities: how they are read, and what each measurement makes of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import (
    Trace,
    assert_healthy,
    check_beats_permuted_labels,
    check_init,
    check_initial_loss,
    check_metric_improves,
    check_metric_matches_reference,
    check_overfits_one_batch,
    diagnose,
    extract_features,
    finetune,
    watch,
)
from pytest_ftcheck.checks.loss.record import LossShape
from pytest_ftcheck.instruments.metrics import correlation
from pytest_ftcheck.instruments.task_readers.registered import form_of, prior_entropy, standard_loss

CLASSES = 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.classifier = nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.classifier(self.body(x))


def taught(count=12, seed=0, rows=16, warm=1.0):
    """Batches whose labels are the outputs of a linear teacher."""
    g = torch.Generator().manual_seed(seed)
    teacher = torch.randn(8, CLASSES, generator=torch.Generator().manual_seed(99))
    inputs = [torch.randn(rows, 8, generator=g) for _ in range(count)]
    return [{"x": x, "labels": (x @ teacher / warm).softmax(-1)} for x in inputs]


def divergence(model, batch):
    return F.kl_div(model(batch["x"]).log_softmax(-1), batch["labels"], reduction="batchmean")


def run(batches=None, **settings):
    settings = {"steps": 40, "lr": 3e-3, "eval_batches": taught(4, seed=1), **settings}
    return finetune(Net(), batches or taught(), **settings)


# ---------------------------------------------------------------------- what is read
def test_a_distribution_in_each_row_is_class_probabilities_and_its_loss_cross_entropy():
    trace = run(steps=2)
    reading = trace.reading
    assert (reading.task, reading.classes, reading.reader) == ("class_probabilities", CLASSES, "class probabilities")
    assert reading.loss == "cross-entropy of the logits with class probabilities"
    assert reading.labels == "a probability of each class, for each row"
    assert Trace.from_json(trace.to_json()) == trace


@pytest.mark.parametrize(
    ("labels", "form"),
    [
        (torch.tensor([[0.5, 0.5], [1.0, 0.0]]), "class_probabilities"),
        (torch.tensor([[0.333, 0.333, 0.333]]), "class_probabilities"),  # written with three places
        (torch.tensor([[0.3, 0.7]], dtype=torch.bfloat16), "class_probabilities"),
        (
            torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
            "multi_label",
        ),  # which one_hot labels are read as until the loss is seen
        (torch.tensor([[0.5, 0.6], [1.0, 0.0]]), "regression"),
        (torch.tensor([[1.5, -0.5], [1.0, 0.0]]), "regression"),
        (torch.tensor([[math.nan, 0.5]]), "regression"),
    ],
)
def test_what_counts_as_probabilities(labels, form):
    assert form_of(torch.zeros(labels.shape), labels) == form


def test_numbers_that_are_one_in_all_are_numbers_where_the_loss_is_one_for_numbers():
    def squared(model, batch):
        return F.mse_loss(model(batch["x"]), batch["labels"])

    trace = run(loss_fn=squared, steps=60)
    assert trace.reading.task == "regression"
    assert_healthy(trace)


def test_a_later_batch_that_holds_no_probabilities_is_named():
    batches = taught(3)
    batches[2]["labels"] = 2 * batches[2]["labels"]
    with pytest.raises(ValueError, match=r"batches\[2\]: labels .* are no class probabilities"):
        run(batches)


def test_a_later_batch_of_other_classes_is_named():
    batches = taught(3)
    batches[1]["labels"] = torch.full((16, 4), 0.25)
    with pytest.raises(ValueError, match=r"batches\[1\]: labels .* expected the same form"):
        run(batches)


def test_a_batch_mixed_with_itself_has_certain_labels():
    batches = taught(3)
    batches[1]["labels"] = F.one_hot(batches[1]["labels"].argmax(-1), CLASSES).float()
    assert run(batches, steps=3).reading.task == "class_probabilities"


def test_the_constant_prediction_costs_the_entropy_of_the_mean():
    labels = [b["labels"] for b in taught(2)]
    mean = torch.cat(labels).double().mean(0)
    constant = mean.log().expand(32, CLASSES)
    assert prior_entropy("class_probabilities", labels) == pytest.approx(float(-(mean * mean.log()).sum()))
    expected = float(standard_loss("class_probabilities", constant, torch.cat(labels).double()))
    assert prior_entropy("class_probabilities", labels) == pytest.approx(expected)


# ---------------------------------------------------------------------- what is judged
@pytest.mark.parametrize(
    "loss_of",
    [
        lambda z, y: F.cross_entropy(z, y),
        lambda z, y: F.kl_div(z.log_softmax(-1), y, reduction="batchmean"),
        lambda z, y: 4 * F.kl_div((z / 2).log_softmax(-1), y, reduction="batchmean"),
        lambda z, y: F.kl_div(y.log(), z.softmax(-1), reduction="batchmean"),
        lambda z, y: F.mse_loss(z.softmax(-1), y),
        lambda z, y: F.binary_cross_entropy_with_logits(z, y),
    ],
    ids=["cross-entropy", "divergence", "temperature", "reverse", "Brier", "binary"],
)
def test_healthy_ways_to_teach_them(loss_of):
    trace = run(loss_fn=lambda model, batch: loss_of(model(batch["x"]), batch["labels"]), steps=60)
    assert_healthy(trace)
    assert check_metric_improves(trace).status == "pass"
    assert {m.name: round(m.baseline, 6) for m in trace.metrics}["correlation"] == 0


def jeffreys(z, y):
    return ((z.softmax(-1) - y) * (z.log_softmax(-1) - y.log())).sum(-1).mean()


def of_distribution_functions(z, y):
    return ((z.softmax(-1).cumsum(-1) - y.cumsum(-1)) ** 2).sum(-1).mean()


def of_a_density(z, y):
    """The negative log-likelihood of a Dirichlet distribution, which is negative where the density is above 1."""
    return -torch.distributions.Dirichlet(F.softplus(z) + 1e-3).log_prob(y).mean()


@pytest.mark.parametrize("loss_of", [jeffreys, of_distribution_functions, of_a_density])
def test_other_sound_losses_of_distributions(loss_of):
    trace = run(loss_fn=lambda model, batch: loss_of(model(batch["x"]), batch["labels"]), steps=60)
    assert trace.reading.task == "class_probabilities"
    assert_healthy(trace)


def test_a_loss_that_happens_to_have_the_value_of_a_squared_error_is_none():
    batches = taught()
    with torch.no_grad():
        z = Net()(batches[0]["x"])
        factor = float(F.mse_loss(z, batches[0]["labels"]) / F.cross_entropy(z, batches[0]["labels"]))
    trace = run(loss_fn=lambda m, b: factor * F.cross_entropy(m(b["x"]), b["labels"]), steps=2)
    assert trace.reading.task == "class_probabilities"


@pytest.mark.parametrize(
    ("loss_of", "fault"),
    [
        (lambda z, y: F.kl_div(z, y, reduction="batchmean"), "nll_on_raw_logits"),
        (lambda z, y: F.kl_div(z.softmax(-1), y, reduction="batchmean"), "nll_on_probabilities"),
        (lambda z, y: F.cross_entropy(z.softmax(-1), y), "double_softmax"),
        (lambda z, y: F.kl_div(z.log_softmax(0), y, reduction="batchmean"), "softmax_over_batch"),
        (lambda z, y: -F.cross_entropy(z, y), "loss_negated"),
        (lambda z, y: F.cross_entropy(z.detach(), y) + 0 * z.sum(), "loss_not_differentiable"),
    ],
)
def test_faulty_ways_are_named(loss_of, fault):
    found = diagnose(run(loss_fn=lambda model, batch: loss_of(model(batch["x"]), batch["labels"])))
    assert found.causes[0].fault == fault


def test_probabilities_that_have_nothing_to_do_with_the_inputs_are_named():
    batches = taught(32)
    order = torch.randperm(32 * 16, generator=torch.Generator().manual_seed(0))
    for batch, labels in zip(batches, torch.cat([b["labels"] for b in batches])[order].split(16), strict=True):
        batch["labels"] = labels
    assert diagnose(run(batches, loss_fn=divergence, steps=64)).causes[0].fault == "labels_unrelated"


def test_labels_that_are_nearly_even_are_learnt_all_the_same():
    """Of a warm teacher: the loss falls by a hundredth of its size, for the labels' own entropy stays."""
    trace = run(taught(warm=8.0), eval_batches=taught(4, seed=1, warm=8.0), steps=60)
    assert trace.probe_loss is not None
    assert trace.probe_loss.points[-1].loss > 0.9 * trace.probe_loss.points[0].loss
    assert_healthy(trace)


def test_where_one_class_is_always_the_most_probable_the_correlation_still_tells():
    def leaning(batches):
        share = torch.tensor([0.8, 0.1, 0.1])
        return [{**b, "labels": 0.6 * share + 0.4 * b["labels"]} for b in batches]

    train, held = leaning(taught(warm=4.0)), leaning(taught(4, seed=1, warm=4.0))
    assert all(bool((b["labels"].argmax(-1) == 0).all()) for b in held)
    found = check_metric_improves(run(train, eval_batches=held, steps=60))
    assert found.status == "pass"
    assert found.headline.startswith("correlation")


def test_a_constant_prediction_has_no_correlation():
    labels = taught(1)[0]["labels"].numpy()
    assert correlation(labels * 0 + 1 / CLASSES, labels) == 0
    assert correlation(labels, labels) == pytest.approx(1)
    assert math.isnan(correlation(labels * math.nan, labels))


def test_the_first_loss_is_compared_with_a_uniform_prediction():
    found = check_initial_loss(run(steps=2))
    assert (found.status, "ln 3" in found.headline) == ("pass", True)


def test_the_users_own_metric_gets_the_probabilities_and_their_mean_as_baseline():
    def mine(logits, labels):
        assert labels.shape == logits.shape
        return -float(F.cross_entropy(logits, labels))

    trace = run(metrics={"mine": mine})
    (metric,) = trace.metrics
    labels = [b["labels"] for b in taught(4, seed=1)]
    assert metric.baseline == pytest.approx(-prior_entropy("class_probabilities", labels), rel=1e-5)
    assert check_metric_improves(trace).status == "pass"


def test_the_users_own_evaluation_is_compared_with_the_most_probable_class():
    held = taught(4, seed=1)

    def evaluate(model):
        model.eval()
        with torch.no_grad():
            right = [(model(b["x"]).argmax(-1) == b["labels"].argmax(-1)).float().mean() for b in held]
        model.train()
        return float(sum(right) / len(right))

    found = check_metric_matches_reference(run(evaluate=evaluate))
    assert found.status == "pass"
    assert "accuracy" in found.headline


def test_the_loss_of_probabilities_is_measured_as_of_certain_labels():
    shape = run(loss_fn=divergence, steps=2).measured(LossShape)
    assert shape is not None
    assert (shape.kind, shape.known, shape.uses_labels, shape.agreement) == ("single", "cross_entropy", True, 1.0)
    assert shape.scale == pytest.approx(1, rel=1e-3)


def test_one_batch_is_overfitted_down_to_the_entropy_of_its_labels():
    trace = run(probes=["loss", "overfit"])
    assert check_overfits_one_batch(trace).status == "pass"


def test_probabilities_are_permuted_by_rows():
    assert check_beats_permuted_labels(run(probes=["loss", "permuted"])).status == "pass"


# ---------------------------------------------------------------------- other ways in
def test_a_watched_loop():
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with watch(model, optimizer, probe_batch=taught(1, seed=5)[0], loss_fn=divergence) as seen:
        for batch in taught(40):
            optimizer.zero_grad()
            divergence(model, batch).backward()
            optimizer.step()
    assert seen.trace.reading.task == "class_probabilities"
    assert_healthy(seen.trace)


def test_tokens_have_distributions_of_their_own():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body, self.classifier = nn.Embedding(40, 16), nn.Linear(16, CLASSES)

        def forward(self, input_ids):
            return self.classifier(self.body(input_ids))

    g = torch.Generator().manual_seed(0)
    table = torch.randn(40, CLASSES, generator=g)
    ids = [torch.randint(40, (8, 12), generator=g) for _ in range(12)]
    batches = [{"input_ids": x, "labels": (2 * table[x]).softmax(-1)} for x in ids]
    trace = finetune(Tagger(), batches[:8], eval_batches=batches[8:], steps=60, lr=2e-2)
    assert trace.reading.task == "class_probabilities"
    assert_healthy(trace)


def test_features_and_starts():
    features = extract_features(Net(), taught())
    assert (features.task, features.classes, features.y.dim()) == ("single_label", CLASSES, 1)
    assert check_init(Net(), taught()).status == "pass"
