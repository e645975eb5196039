"""A loss that compares labels with each other is one of embeddings; one that reads them as class numbers is one of logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import Intent, check_loss_matches_task, diagnose, finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.instruments.label_comparison import compares_only, reads_no_labels
from pytest_ftcheck.instruments.reader import Reader

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 3, 3])


def vectors(width=8):
    return torch.randn(len(LABELS), width, generator=torch.Generator().manual_seed(0))


def batch_hard(z, y):
    """The triplet loss of the hardest positive and the hardest negative of each row."""
    far = (z[:, None] - z[None]).pow(2).sum(-1).clamp_min(1e-12).sqrt()
    same = y[:, None] == y[None]
    return (far.masked_fill(~same, 0).amax(1) - far.masked_fill(same, 1e9).amin(1) + 1).clamp_min(0).mean()


def contrastive(z, y):
    """The supervised contrastive loss."""
    z = F.normalize(z, dim=-1)
    own = torch.eye(len(y), dtype=torch.bool)
    log_p = (z @ z.T / 0.1).masked_fill(own, -1e9).log_softmax(1)
    same = (y[:, None] == y[None]) & ~own
    return -(log_p.masked_fill(~same, 0).sum(1) / same.sum(1).clamp_min(1)).mean()


def focal(z, y):
    p = z.log_softmax(-1).gather(1, y[:, None])
    return -((1 - p.exp()) ** 2 * p).mean()


def own_predictions(z, y):
    return F.cross_entropy(z, z.argmax(-1))


def noisy(z, y):
    return F.cross_entropy(z + torch.randn_like(z), y)


@pytest.mark.parametrize("loss", [batch_hard, contrastive])
def test_losses_of_pairs_only_compare(loss):
    assert compares_only(lambda y: loss(vectors(), y), LABELS, 8)


@pytest.mark.parametrize("loss", [F.cross_entropy, F.multi_margin_loss, focal, own_predictions, noisy])
def test_losses_of_logits_do_not(loss):
    assert not compares_only(lambda y: loss(vectors(), y), LABELS, 8)


@pytest.mark.parametrize("loss", [F.cross_entropy, batch_hard, contrastive, noisy])
def test_losses_that_read_labels(loss):
    assert not reads_no_labels(lambda y: loss(vectors(), y), LABELS, 8)


def test_one_class_alone_does_not_show_that_no_labels_are_read():
    assert not reads_no_labels(lambda _: vectors().sum(), torch.zeros(8, dtype=torch.long), 8)
    assert not reads_no_labels(lambda _: vectors().sum() * float("nan"), LABELS, 8)


def test_rows_to_leave_out_stay_left_out():
    labels = torch.where(LABELS == 2, -100, LABELS)

    def loss(y):
        assert torch.equal(y == -100, labels == -100)
        return contrastive(vectors()[y != -100], y[y != -100])

    assert compares_only(loss, labels, 8)


def test_one_class_alone_shows_nothing():
    assert not compares_only(lambda y: contrastive(vectors(), y), torch.zeros(8, dtype=torch.long), 8)


def test_a_loss_that_cannot_be_computed_for_other_labels_shows_nothing():
    def loss(y):
        if not torch.equal(y, LABELS):
            raise KeyError("a label that is not in the table")
        return contrastive(vectors(), y)

    assert not compares_only(loss, LABELS, 8)


class Embedder(nn.Module):
    """The mean of the base's tokens, projected."""

    def __init__(self, width=16):
        super().__init__()
        self.base_model = tiny_distilbert().base_model
        self.projection = nn.Linear(64, width)

    def forward(self, inputs):
        ids, _, mask = inputs
        tokens, weight = self.base_model(ids, attention_mask=mask)[0], mask[..., None].to(self.projection.weight.dtype)
        return self.projection((tokens * weight).sum(1) / weight.sum(1))


@pytest.mark.parametrize("loss", [batch_hard, contrastive])
def test_embeddings_are_not_read_as_logits(loss):
    batch = toy_batches(1, 16, classes=4)[0]
    reader = Reader(Embedder(), batch, loss_fn=lambda model, b: loss(model(b[0]), b[1]))
    assert reader.task is None
    assert "the outputs are embeddings" in reader.notes[0]


@pytest.mark.parametrize("seed", [1, 3, 4, 10])
def test_equal_by_rounding_is_not_compared_only(seed):
    """In bfloat16 the losses of a fresh head are often equal with classes renumbered."""

    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    batches = toy_batches(2, 16, seed=seed)
    trace = finetune(tiny_distilbert(seed=seed).bfloat16(), batches, loss_fn=loss_fn, lr=1e-3, steps=1, probes=[])
    assert trace.reading.task == "single_label"


def test_embeddings_of_low_precision_are_embeddings():
    batch = toy_batches(1, 16, classes=4)[0]
    reader = Reader(Embedder().bfloat16(), batch, loss_fn=lambda model, b: contrastive(model(b[0]).float(), b[1]))
    assert reader.embeddings


@pytest.mark.trains
@pytest.mark.parametrize(
    ("loss", "fault"), [(batch_hard, None), (contrastive, None), (own_predictions, "own_predictions_as_targets")]
)
def test_metric_learning_is_healthy_and_own_predictions_are_not(loss, fault):
    trace = finetune(
        lambda: Embedder(4 if fault else 16),
        toy_batches(classes=4),
        eval_batches=toy_batches(4, classes=4, seed=9),
        loss_fn=lambda model, batch: loss(model(batch[0]), batch[1]),
        head="projection",
        lr=1e-3,
        steps=40,
        seed=0,
    )
    causes = diagnose(trace).causes
    assert [c.fault for c in causes] == ([fault] if fault else [])


# ------------------------------------------------------------------ self-supervised losses, beside labels that they do not read
def two_views(model, x, width=0.05):
    return model(x), model(x + width * torch.randn_like(x))


def simclr(model, batch):
    a, b = (F.normalize(z, dim=1) for z in two_views(model, batch[0]))
    return F.cross_entropy(a @ b.T / 0.2, torch.arange(len(a)))


def simclr_of_one_call(model, batch):
    z = F.normalize(model(torch.cat([batch[0], batch[0] + 0.05])), dim=1)
    n = len(batch[0])
    return F.cross_entropy((z @ z.T / 0.2).fill_diagonal_(-1e9), (torch.arange(2 * n) + n) % (2 * n))


def simsiam(model, batch):
    a, b = two_views(model, batch[0])
    return -F.cosine_similarity(a, b.detach()).mean()


def barlow_twins(model, batch):
    a, b = ((z - z.mean(0)) / z.std(0) for z in two_views(model, batch[0]))
    c = a.T @ b / len(a)
    return (c.diagonal() - 1).pow(2).sum() + 0.05 * (c - torch.diag(c.diagonal())).pow(2).sum()


def triplet(model, batch):
    x = batch[0]
    return F.triplet_margin_loss(model(x), model(x + 0.1), model(x.roll(1, 0)))


def of_argmax(model, batch):
    z = model(batch[0])
    return F.cross_entropy(z, z.argmax(-1))


def numbers(count=4):
    g = torch.Generator().manual_seed(0)
    return [(x := torch.randn(16, 6, generator=g), (x[:, 0] > 0).long()) for _ in range(count)]


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8))


SELF = [simclr, simclr_of_one_call, simsiam, barlow_twins, triplet]


@pytest.mark.parametrize("loss", SELF)
def test_labels_beside_a_self_supervised_loss_are_no_task(loss):
    reader = Reader(encoder(), numbers()[0], loss_fn=loss)
    assert (reader.task, reader.self_supervised) == (None, True)
    assert "self-supervised" in reader.notes[0]


@pytest.mark.parametrize(
    "loss",
    [
        of_argmax,
        lambda m, b: F.cross_entropy(m(b[0]), torch.zeros(16, dtype=torch.long)),  # the labels are forgotten
        lambda m, b: (m(b[0]) * 0).sum() + 1,
        lambda m, b: -(m(b[0]).softmax(-1) * m.forward(b[0]).log_softmax(-1)).sum(-1).mean(),
        lambda m, b: F.cross_entropy(m(b[0]), b[1]),
    ],
)
def test_losses_that_take_each_row_alone_are_still_of_the_labels(loss):
    assert Reader(encoder(), numbers()[0], loss_fn=loss).task == "single_label"


@pytest.mark.parametrize("loss", SELF)
def test_self_supervised_learning_is_no_fault_of_labels(loss):
    trace = finetune(
        encoder, numbers(), head="2", loss_fn=loss, lr=1e-2, steps=12, probes=["loss", "loss_shape", "loop"]
    )
    verdict = check_loss_matches_task(trace)
    assert (verdict.status, verdict.fault) == ("skipped", "")
    assert "reads no labels" in verdict.headline
    declared = check_loss_matches_task(replace(trace, intent=Intent(task="single_label")))
    assert declared.status == "inconclusive"
