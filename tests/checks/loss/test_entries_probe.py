"""What is asked of single labels, and how far the weights can go, on real small models; nothing of theirs is changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import (
    Intent,
    check_logits_unbounded,
    check_loss_decreases,
    check_loss_matches_task,
    check_reload_keeps_head,
    finetune,
)
from pytest_ftcheck.checks.head.probe.reload import looks_random
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
def test_sound_losses_of_tags_are_silent(loss):
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


# ------------------------------------------------------------------ how far the weights can go
class Head(nn.Module):
    def __init__(self, kind, scale=1.0):
        super().__init__()
        self.kind, self.scale = kind, scale
        self.weight = nn.Parameter(torch.randn(3, 16) * 0.1)
        if kind == "learnt":
            self.scale = nn.Parameter(torch.tensor(scale))
        if kind == "conv":
            self.conv = nn.Conv1d(16, 3, 1)

    def forward(self, x):
        if self.kind == "plain":
            return x @ self.weight.T
        if self.kind == "distance":
            return -(torch.cdist(x, self.weight) ** 2)
        if self.kind == "conv":
            return self.conv(x.unsqueeze(-1)).squeeze(-1)
        if self.kind == "softsign":
            return F.softsign(x @ self.weight.T)
        return self.scale * F.normalize(x, dim=-1) @ F.normalize(self.weight, dim=-1).T


@pytest.mark.parametrize(("kind", "scale"), [("cosine", 1.0), ("cosine", 0.5), ("softsign", 1.0)])
def test_a_bound_that_no_last_layer_shows(kind, scale):
    verdict = check_logits_unbounded(run("single", F.cross_entropy, lambda: Head(kind, scale)))
    assert (verdict.status, verdict.fault) == ("fail", "logits_bounded")


@pytest.mark.parametrize(
    ("kind", "scale"),
    [("plain", 1.0), ("distance", 1.0), ("conv", 1.0), ("cosine", 16.0), ("cosine", 5.0), ("learnt", 1.0)],
)
def test_heads_without_a_linear_layer_that_can_go_far_are_silent(kind, scale):
    assert check_logits_unbounded(run("single", F.cross_entropy, lambda: Head(kind, scale))).status == "pass"


def test_cosines_that_are_scaled_in_the_loss_are_silent():
    trace = run("single", lambda z, y: F.cross_entropy(20 * z, y), lambda: Head("cosine"))
    assert check_logits_unbounded(trace).status != "fail"
    assert check_loss_matches_task(trace).status == "pass"


def test_the_climb_leaves_every_bit_as_it_was():
    ends = []
    for probes in (["loss"], ["loss", "loss_shape"]):
        torch.manual_seed(0)
        model = Net(Head("cosine"))
        finetune(
            model,
            rows("single"),
            loss_fn=lambda m, b: F.cross_entropy(m(b[0]), b[1]),
            head="head",
            steps=3,
            lr=1e-3,
            probes=probes,
        )
        ends.append({k: v.clone() for k, v in model.state_dict().items()})
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


# ------------------------------------------------------------------ other terms
def test_a_penalty_that_drowns_the_task_and_harmless_ones():
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
def test_float_labels_of_two_classes_are_classes_unless_the_loss_is_of_numbers():
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


# ------------------------------------------------------------------ saving
class Prototypes(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.lin = nn.Linear(16, 16)
        drawn = torch.randn(3, 16)
        if how == "attribute":
            self.prototypes = drawn
        elif how == "smooth":
            self.register_buffer("prototypes", torch.arange(48.0).reshape(3, 16).sin(), persistent=False)
        else:
            self.register_buffer("prototypes", drawn, persistent=how == "saved")

    def forward(self, x):
        return self.lin(x) @ self.prototypes.T


@pytest.mark.parametrize(
    ("how", "fault"),
    [("not saved", "buffer_not_saved"), ("attribute", "buffer_not_saved"), ("saved", ""), ("smooth", "")],
)
def test_random_numbers_that_are_not_saved(how, fault):
    trace = run("single", F.cross_entropy, lambda: Prototypes(how), probes=("loss", "head_state"))
    assert check_reload_keeps_head(trace).fault == fault


def test_tables_do_not_look_random():
    at = torch.arange(32.0)[:, None] / 10000 ** (torch.arange(0, 16, 2) / 16)
    sine = torch.stack([at.sin(), at.cos()], -1).reshape(32, 16)
    for table in (
        sine,
        1 / 10000 ** (torch.arange(0, 64, 2) / 64),
        torch.ones(40),
        torch.full((8, 8), -1e9).triu(1),
        torch.randn(5),
    ):
        assert not looks_random(table)
    found = [looks_random(torch.randn(3, 32, generator=torch.Generator().manual_seed(s))) for s in range(50)]
    assert sum(found) >= 48
