"""The loss that finetune minimises and the task that it reads: the user's own, the model's, the standard one."""

from __future__ import annotations

import math

import pytest
import torch
from finetuned import FAST, Keywords, Net, healthy, named
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import (
    check_grads_nonzero,
    check_metric_improves,
    check_metric_matches_reference,
    finetune,
)


# ------------------------------------------------------------------ losses and tasks
def test_a_loss_fn_that_returns_the_loss(rows):
    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)

    trace = healthy(finetune(Net(), rows, loss_fn=loss_fn, **FAST))
    assert trace.reading.loss == "the user's loss_fn"
    assert [m.name for m in trace.metrics] == ["accuracy", "precision", "recall"]


def test_a_loss_fn_that_returns_loss_and_logits(rows):
    def loss_fn(model, batch):
        logits = model(batch["x"] * 1.0)
        return F.cross_entropy(logits, batch["labels"]), logits

    class Odd(Net):
        def forward(self, z):  # not the name of the batch's key: only loss_fn knows how to call it
            return super().forward(z)

    trace = healthy(finetune(Odd(), named(rows), loss_fn=loss_fn, **FAST))
    assert trace.reading.outputs == "(loss, logits) from the loss_fn"
    assert trace.reading.task == "single_label"
    assert trace.metrics
    assert trace.probe_loss.points[0].reference == pytest.approx(trace.probe_loss.points[0].loss)


def test_a_loss_fn_may_do_without_labels(rows):
    trace = healthy(finetune(Net(), [x for x, _ in rows], loss_fn=lambda m, x: m(x).square().mean(), **FAST))
    assert trace.metrics == ()
    assert trace.reading.task is None


def test_forward_makes_the_logits(rows):
    trace = healthy(
        finetune(Keywords("tuple without loss"), named(rows), forward=lambda m, b: 2 * m(b["x"])[0], **FAST)
    )
    assert trace.reading.inputs == "the user's forward"
    assert trace.reading.loss == "cross-entropy of the logits"


def test_forward_is_needed_where_no_logits_are_in_the_output(rows):
    class Nested(Net):
        def forward(self, x):
            return {"answer": {"scores": super().forward(x)}}

    with pytest.raises(ValueError, match="pass forward="):
        finetune(Nested(), rows, **FAST)
    healthy(finetune(Nested(), rows, forward=lambda m, b: m(b[0])["answer"]["scores"], **FAST))


def hot(rows):
    return [(x, (x[:, :3] > 0)) for x, _ in rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_multi_hot_labels_get_binary_cross_entropy(rows, dtype):
    batches = [(x, y.to(dtype)) for x, y in hot(rows)]
    trace = healthy(finetune(Net(out=3), batches, **FAST))
    assert (trace.reading.task, trace.reading.classes) == ("multi_label", 3)
    assert trace.reading.loss == "binary cross-entropy of the logits, one a tag"
    assert trace.probe_loss.points[0].loss == pytest.approx(0.69, abs=0.2)


@pytest.mark.parametrize("shape", [(16,), (16, 1)])
def test_float_labels_get_the_squared_error(rows, shape):
    trace = healthy(finetune(Net(out=1), [(x, x[:, 0].reshape(shape)) for x, _ in rows], **FAST))
    assert trace.reading.task == "regression"
    assert trace.reading.loss == "mean squared error"
    assert [m.name for m in trace.metrics] == ["r_squared"]
    assert trace.metrics[0].baseline == pytest.approx(0)


def test_the_squared_error_does_not_broadcast(rows):
    """Logits (16, 1) against labels (16,) would make a 16 x 16 table of differences."""
    torch.manual_seed(0)
    model = Net(out=1)
    batches = [(x, x[:, 0]) for x, _ in rows]
    trace = finetune(model, batches, probes=["loss"], **FAST)
    with torch.no_grad():
        by_hand = sum(F.mse_loss(model(x).squeeze(-1), y) for x, y in batches[:2]) / 2
    assert trace.probe_loss.points[0].loss == pytest.approx(float(by_hand))


def test_one_logit_and_whole_labels_get_binary_cross_entropy(rows):
    trace = healthy(finetune(Net(out=1), rows, **FAST))
    assert (trace.reading.task, trace.reading.classes) == ("single_label", 2)
    assert trace.reading.loss == "binary cross-entropy of one logit"
    assert {m.name for m in trace.metrics} == {"accuracy", "precision", "recall"}


@pytest.mark.parametrize(("values", "noted"), [([0.0, 1.0], True), ([0.0, 1.0, 2.0], False), ([0.0, 0.5], False)])
def test_floats_of_one_output_are_a_regression_and_said_to_be_all_0_or_1(rows, values, noted):
    labels = torch.tensor(values).repeat(16)[:16]
    batches = [(x, labels[: len(x)]) for x, _ in rows]
    model = Net()
    model.classifier = torch.nn.Linear(model.classifier.in_features, 1)
    trace = finetune(model, batches, steps=2)
    assert trace.reading.loss == "mean squared error"
    assert any("floats that are all 0 or 1" in note for note in trace.notes) == noted


class Squashed(Net):
    """Ends in a sigmoid, for ``BCELoss``."""

    def forward(self, x):
        return super().forward(x).sigmoid()


@pytest.mark.parametrize("tags", [1, 2])
def test_probabilities_say_yes_above_a_half(rows, tags):
    def targets(y):
        return F.one_hot(y, 2).float() if tags == 2 else y

    def loss_fn(model, batch):
        out = model(batch[0])
        return F.binary_cross_entropy(out if tags == 2 else out.squeeze(-1), batch[1].float())

    def evaluate(model):
        with torch.no_grad():
            hits = [((model(x).reshape(y.shape) > 0.5) == (y > 0.5)).float() for x, y in data]
        return float(torch.cat(hits).mean())

    data = [(x, targets(y)) for x, y in rows]
    trace = finetune(Squashed(tags), data, loss_fn=loss_fn, eval_batches=data, evaluate=evaluate, lr=3e-2, steps=40)
    assert next(m for m in trace.metrics if m.name == "accuracy").last > 0.8
    assert check_metric_improves(trace).status == "pass"
    assert check_metric_matches_reference(trace).status == "pass"


def test_float_zeros_and_ones_with_one_logit_are_a_regression(rows):
    assert finetune(Net(out=1), [(x, y.float()) for x, y in rows], **FAST).reading.task == "regression"


def test_token_classification_leaves_out_minus_100():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 8)
            self.classifier = nn.Linear(8, 3)

        def forward(self, ids):
            return self.classifier(self.embed(ids))

    ids = torch.randint(10, (4, 7), generator=torch.Generator().manual_seed(0))
    labels = torch.where(ids > 2, ids % 3, -100)
    torch.manual_seed(0)
    model = Tokens()
    trace = healthy(finetune(model, [(ids, labels)], **FAST))
    assert (trace.reading.task, trace.reading.classes) == ("single_label", 3)
    with torch.no_grad():
        by_hand = F.cross_entropy(model(ids)[labels >= 0], labels[labels >= 0])
    assert trace.probe_loss.points[0].loss == pytest.approx(float(by_hand))
    assert trace.metrics[0].rows == int((labels >= 0).sum())


def test_tokens_padded_to_different_widths_have_metrics_too():
    from transformers import DistilBertConfig, DistilBertForTokenClassification

    config = DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=16)
    torch.manual_seed(0)
    model = DistilBertForTokenClassification(config)
    batches = []
    for width in (5, 9):
        ids = torch.randint(1, 50, (4, width))
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids % 2})
    trace = healthy(finetune(model, batches, **FAST))
    assert trace.metrics[0].rows == 4 * (5 + 9)


def test_the_reference_loss_stands_beside_the_users(rows):
    trace = finetune(Net(), rows, loss_fn=lambda m, b: 3 * F.cross_entropy(m(b[0]), b[1]), **FAST)
    for point in trace.probe_loss.points:
        assert point.loss == pytest.approx(3 * point.reference, rel=1e-5)


@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, F.smooth_l1_loss])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_whole_numbers_under_a_loss_of_regression_are_numbers(loss, reduction):
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(6, 6, generator=g), torch.tensor([0, 1, 2, 3, 4, 0])) for _ in range(3)]
    trace = finetune(
        Net(out=1),
        batches,
        loss_fn=lambda model, batch: loss(model(batch[0]).squeeze(-1), batch[1].float(), reduction=reduction),
        **FAST,
    )
    assert (trace.reading.task, trace.reading.classes, trace.notes) == ("regression", None, ())
    assert [m.name for m in trace.metrics] == ["r_squared"]


@pytest.mark.parametrize("scale", [1.5, 0.0])
def test_whole_numbers_under_another_loss_stay_unread(scale):
    """Grades with one threshold, a count, a rank: what they are is the loss's affair."""
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(6, 6, generator=g), torch.tensor([0, 1, 2, 3, 4, 0])) for _ in range(3)]

    def loss(model, batch):
        rates = model(batch[0]).squeeze(-1) + scale
        return F.poisson_nll_loss(rates, batch[1].float())

    trace = finetune(Net(out=1), batches, loss_fn=loss, **FAST)
    assert trace.reading.task is None
    assert any("your loss_fn may use another label code" in n for n in trace.notes)


# ------------------------------------------------------------------ causal language models
def causal(shift, tied=True):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2, tie_word_embeddings=tied)
    model = GPT2LMHeadModel(config)
    if not shift:
        model.loss_function = lambda logits, labels, **_: F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    return model


@pytest.mark.parametrize("kind", ["grades", "none is -1", "none is -100", "classes"])
def test_labels_that_are_no_columns_of_the_output_are_the_own_losses_affair(kind):
    g = torch.Generator().manual_seed(0)
    codes = {"grades": [0, 1, 2], "none is -1": [0, 1, -1], "none is -100": [0, 1, -100], "classes": [0, 1, 1]}[kind]
    batches = [(torch.randn(6, 6, generator=g), torch.tensor(codes * 2)) for _ in range(3)]

    def loss(model, batch):
        x, y = batch
        if kind == "grades":
            return F.binary_cross_entropy_with_logits(model(x), (y[:, None] > torch.arange(2)).float())
        return F.cross_entropy(model(x), y, ignore_index=-1 if kind == "none is -1" else -100)

    trace = finetune(Net(), batches, loss_fn=loss, forward=lambda m, b: m(b[0]), **FAST)
    healthy(trace)
    unreadable = kind in ("grades", "none is -1")
    assert trace.reading.task == (None if unreadable else "single_label")
    assert any("none of the 2 classes of the output" in n for n in trace.notes) is unreadable
    assert not [why for why in trace.skipped.values() if "Error" in why]
    assert all(math.isfinite(p.loss) for p in trace.probe_loss.points)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shift", [True, False])
def test_a_causal_models_logits_are_compared_with_the_label_of_the_next_position(shift):
    g = torch.Generator().manual_seed(0)
    ids = [torch.randint(32, (4, 8), generator=g) for _ in range(3)]
    trace = finetune(causal(shift), [{"input_ids": i, "labels": i} for i in ids], steps=3, lr=1e-3)
    assert (trace.reading.loss, trace.reading.task, trace.reading.classes) == ("the model's own", "single_label", 32)
    assert all(p.reference == pytest.approx(p.loss, rel=1e-5) for p in trace.probe_loss.points)
    assert trace.metrics[0].rows == 8 * (7 if shift else 8)
    assert not trace.notes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_is_tied_to_the_embeddings_is_the_head(tied):
    ids = torch.arange(32).reshape(4, 8)
    trace = finetune(causal(True, tied), [{"input_ids": ids, "labels": ids}], steps=2, lr=1e-3)
    assert trace.head == ("lm_head",)
    assert trace.tensor("lm_head.weight").part == "head"
    assert trace.tensor("transformer.wte.weight").part == ("head" if tied else "base")
    assert trace.tensor("transformer.wpe.weight").part == "base"
    assert check_grads_nonzero(trace, "head").status == "pass"
