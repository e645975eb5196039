"""Which labels count in a loss, and what else is in it, measured on small real models."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import (
    Intent,
    check_loss_decreases,
    check_loss_matches_task,
    finetune,
)
from pytest_ftcheck.checks.loss.record import LossShape
from pytest_ftcheck.instruments.reader import Reader

bce = F.binary_cross_entropy_with_logits


def rows(kind, count=6):
    g = torch.Generator().manual_seed(1)
    out = []
    for _ in range(count):
        x = torch.randn(16, 8, generator=g)
        y = {"single": x[:, :3].argmax(-1), "tags": (x[:, :3] > 0).float(), "column": (x[:, :1] > 0).float()}[kind]
        out.append((x, y))
    return out


class Net(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.base, self.head = nn.Linear(8, 16), head

    def forward(self, x):
        return self.head(torch.relu(self.base(x)))


def run(kind, loss, head=None, *, steps=4, lr=1e-3, probes=("loss", "loss_shape"), data=None):
    torch.manual_seed(0)
    outputs = 1 if kind == "column" else 3
    model = Net(head() if head else nn.Linear(16, outputs))
    task = {"tags": "multi_label"}.get(kind, "single_label")
    return finetune(
        model,
        data or rows(kind),
        loss_fn=lambda m, b: loss(m(b[0]), b[1]),
        forward=lambda m, b: m(b[0]),
        head="head",
        steps=steps,
        lr=lr,
        intent=Intent(task=task),
        probes=list(probes),
    )


# ------------------------------------------------------------------ class weights
WEIGHTS = torch.tensor([1.0, 2.0, 3.0])


def focal(z, y):
    p = z.softmax(-1).gather(1, y[:, None])[:, 0]
    return (-((1 - p) ** 2) * p.log()).mean()


@pytest.mark.parametrize(
    ("kind", "loss", "weights"),
    [
        ("single", F.cross_entropy, [1.0, 1.0, 1.0]),
        ("single", focal, [1.0, 1.0, 1.0]),
        ("single", lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1), [1.0, 1.0, 1.0]),
        ("single", lambda z, y: F.cross_entropy(z, y, weight=WEIGHTS), [0.5, 1.0, 1.5]),
        ("single", lambda z, y: (WEIGHTS[y] * F.cross_entropy(z, y, reduction="none")).sum(), [0.5, 1.0, 1.5]),
        ("column", lambda z, y: bce(z, y, pos_weight=torch.tensor([3.0])), [0.5, 1.5]),
    ],
)
def test_how_much_a_row_of_each_class_counts(kind, loss, weights):
    assert run(kind, loss).measured(LossShape).class_weights == pytest.approx(weights, abs=1e-4)


# ------------------------------------------------------------------ tags
@pytest.mark.parametrize(
    ("loss", "fault"),
    [
        (lambda z, y: bce(z, y, pos_weight=torch.zeros(3)), "positives_ignored"),
        (lambda z, y: -(y * F.logsigmoid(z)).mean(), "negatives_ignored"),
        (lambda z, y: bce(z, y, weight=torch.tensor([1.0, 0.0, 1.0])), "class_ignored"),
        (lambda z, y: F.cross_entropy(z, y.argmax(-1)), "tags_not_read"),
        (lambda z, y: F.cross_entropy(z, y[:, 0].long()), "tags_not_read"),
        (lambda z, y: bce(z, y.roll(1, 1)), "labels_permuted"),
        (lambda z, y: bce(z, 1 - y), "labels_permuted"),
    ],
)
def test_tags_that_are_read_wrongly(loss, fault):
    assert check_loss_matches_task(run("tags", loss)).fault == fault


def asymmetric(z, y):
    p = z.sigmoid()
    low = (p - 0.05).clamp(min=0)
    return -(y * F.logsigmoid(z) + (1 - y) * low**4 * (1 - low).log()).sum(1).mean()


def ranking(z, y):
    wins = y.unsqueeze(2) > y.unsqueeze(1)  # tag i is on, tag j is off
    return F.softplus(z.unsqueeze(1) - z.unsqueeze(2))[wins].mean()


@pytest.mark.parametrize(
    "loss",
    [bce, asymmetric, ranking, F.multilabel_soft_margin_loss, lambda z, y: bce(z, 0.9 * y + 0.05)],
    ids=["bce", "asymmetric", "ranking", "soft margin", "smoothed"],
)
def test_sound_losses_of_tags_pass(loss):
    assert check_loss_matches_task(run("tags", loss)).status == "pass"


# ------------------------------------------------------------------ tokens
class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(20, 16), nn.Linear(16, 4)

    def forward(self, ids):
        return self.head(self.words(ids))


def tagged(loss):
    g = torch.Generator().manual_seed(2)
    ids = [torch.randint(0, 20, (8, 9), generator=g) for _ in range(4)]
    data = [(x, torch.where(x < 3, -100, x % 4)) for x in ids]
    torch.manual_seed(0)
    return check_loss_matches_task(
        finetune(
            Tokens(),
            data,
            loss_fn=lambda m, b: loss(m(b[0]), b[1]),
            forward=lambda m, b: m(b[0]),
            head="head",
            steps=2,
            lr=1e-3,
            probes=["loss", "loss_shape"],
        )
    )


def test_token_logits_reshaped_and_transposed():
    assert tagged(lambda z, y: F.cross_entropy(z.reshape(len(z), 4, -1), y)).fault == "labels_of_other_tokens"
    assert tagged(lambda z, y: F.cross_entropy(z.transpose(1, 2), y)).status == "pass"
    assert tagged(lambda z, y: F.cross_entropy(z.reshape(-1, 4), y.reshape(-1))).status == "pass"
    assert tagged(lambda z, y: F.cross_entropy(z[:, :-1].reshape(-1, 4), y[:, 1:].reshape(-1))).status == "pass"


# ------------------------------------------------------------------ other terms
def test_a_penalty_that_outweighs_the_task_and_harmless_ones():
    def penalised(weight, constant=0.0):
        torch.manual_seed(0)
        model = Net(nn.Linear(16, 3))

        def loss(m, b):
            return F.cross_entropy(m(b[0]), b[1]) + weight * sum((p**2).sum() for p in m.parameters()) + constant

        trace = finetune(
            model,
            rows("single", 20),
            loss_fn=loss,
            forward=lambda m, b: m(b[0]),
            head="head",
            steps=40,
            lr=1e-2,
            probes=["loss", "loss_shape"],
        )
        return trace.measured(LossShape).other_terms, check_loss_matches_task(trace)

    ratio, verdict = penalised(100.0)
    assert ratio > 100
    assert (verdict.status, verdict.fault) == ("fail", "other_terms_drown")
    ratio, verdict = penalised(0.0, 1000.0)
    assert ratio < 0.01
    assert verdict.status == "pass"
    assert penalised(1e-4)[1].status == "pass"


# ------------------------------------------------------------------ two classes as floats
def test_float_labels_of_two_classes_are_classes_unless_the_loss_is_a_regression_loss():
    def task(loss, data=None):
        torch.manual_seed(0)
        batch = (data or rows("column"))[0]
        return Reader(Net(nn.Linear(16, 1)), batch, loss_fn=lambda m, b: loss(m(b[0]), b[1])).task

    assert task(bce) == "single_label"
    assert task(lambda z, y: bce(z, y, pos_weight=torch.tensor(3.0))) == "single_label"
    assert task(F.mse_loss) == task(F.l1_loss) == task(lambda z, y: F.mse_loss(z, y, reduction="sum")) == "regression"
    few = [(x[:4], y[:4]) for x, y in rows("column")]
    assert task(bce, few) == "single_label"
    assert task(lambda z, y: (z - y).abs().sqrt().mean(), few) == "regression"  # four numbers may be 0 or 1 by chance
    trace = run("column", bce, steps=20, lr=1e-2)
    assert trace.measured(LossShape).kind == "binary"
    assert check_loss_decreases(trace).status == "pass"
    assert check_loss_matches_task(trace).status == "pass"


# ------------------------------------------------------------------ labels that should be ignored
class Tagger(nn.Module):
    """A class for each of twelve tokens."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(40, 16), nn.Linear(16, 3)

    def forward(self, ids):
        return self.head(self.embedding(ids))


def tags(count=4):
    """Ids, and their class; a third of the tokens has no label."""
    g = torch.Generator().manual_seed(2)
    out = []
    for _ in range(count):
        ids = torch.randint(40, (8, 12), generator=g)
        out.append((ids, torch.where(torch.rand(8, 12, generator=g) < 0.33, -100, ids % 3)))
    return out


def flat(loss):
    return lambda z, y: loss(z.flatten(0, -2), y.flatten())


def own_mean(z, y):
    """Only labels that count, by hand."""
    picked = z.log_softmax(-1).gather(1, y.clamp(min=0)[:, None])[:, 0]
    return -(picked * (y >= 0)).sum() / (y >= 0).sum()


def with_confidence_penalty(z, y):
    """An entropy of all positions beside cross-entropy (Pereyra et al. 2017)."""
    return F.cross_entropy(z, y) + 0.5 * (z.softmax(-1) * z.log_softmax(-1)).sum(-1).mean()


def with_teacher(z, y):
    """Distillation at all positions (Hinton et al. 2015)."""
    teacher = torch.randn(z.shape, generator=torch.Generator().manual_seed(3)).softmax(-1)
    return F.cross_entropy(z, y) + F.kl_div(z.log_softmax(-1), teacher, reduction="batchmean")


@pytest.mark.parametrize(
    ("loss", "read_as"),
    [
        (lambda z, y: F.cross_entropy(z, y.clamp(min=0)), 0),
        (lambda z, y: F.cross_entropy(z, torch.where(y < 0, 2, y)), 2),
        (lambda z, y: F.cross_entropy(z, y % 3), -100 % 3),
        (F.cross_entropy, None),
        (own_mean, None),
        (with_confidence_penalty, None),
        (with_teacher, None),
    ],
)
def test_labels_of_minus_100(loss, read_as):
    torch.manual_seed(0)
    run_loss = flat(loss)
    trace = finetune(
        Tagger(),
        tags(),
        loss_fn=lambda m, b: run_loss(m(b[0]), b[1]),
        forward=lambda m, b: m(b[0]),
        head="head",
        steps=2,
        probes=["loss_shape"],
    )
    found = trace.measured(LossShape).ignored_as
    verdict = check_loss_matches_task(trace)
    if read_as is None:
        assert found is None or found[1] < found[2] / 10
        assert verdict.fault != "ignored_labels_count"
    else:
        assert found[0] == read_as
        assert found[1] == found[2]
        assert (verdict.status, verdict.fault) == ("fail", "ignored_labels_count")
        assert f"count as class {read_as}" in verdict.headline
