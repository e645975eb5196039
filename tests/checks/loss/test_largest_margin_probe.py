"""The largest margin that any weights give, measured on small real models; their weights are restored bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import Intent, check_logits_unbounded, check_loss_matches_task, finetune


def batches():
    g = torch.Generator().manual_seed(1)
    inputs = [torch.randn(16, 8, generator=g) for _ in range(6)]
    return [(x, x[:, :3].argmax(-1)) for x in inputs]


class Net(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.base, self.head = nn.Linear(8, 16), head

    def forward(self, x):
        return self.head(torch.relu(self.base(x)))


def run(loss, head, *, prepare=lambda model: None, frozen=()):
    torch.manual_seed(0)
    model = Net(head())
    prepare(model)
    return finetune(
        model,
        batches(),
        loss_fn=lambda m, b: loss(m(b[0]), b[1]),
        forward=lambda m, b: m(b[0]),
        head="head",
        steps=4,
        lr=1e-3,
        intent=Intent(task="single_label", frozen=frozen),
        probes=["loss", "loss_shape"],
    )


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
    verdict = check_logits_unbounded(run(F.cross_entropy, lambda: Head(kind, scale)))
    assert (verdict.status, verdict.fault) == ("fail", "logits_bounded")


class Fragile(nn.Linear):
    """Its outputs are NaN where its weights are far from the initial ones, as those of deep layers are."""

    def forward(self, x):
        y = super().forward(x)
        return torch.where(y.detach().abs().max() < 8, y, torch.nan)


@pytest.mark.parametrize(("kind", "fault"), [("cosine", "logits_bounded"), ("learnt", "")])
def test_outputs_that_are_nan_far_out_are_no_sign_of_missing_bounds(kind, fault):
    def fragile(model):
        model.base = Fragile(8, 16)

    verdict = check_logits_unbounded(run(F.cross_entropy, lambda: Head(kind), prepare=fragile))
    assert verdict.fault == fault


@pytest.mark.parametrize(
    ("kind", "scale"),
    [("plain", 1.0), ("distance", 1.0), ("conv", 1.0), ("cosine", 16.0), ("cosine", 5.0), ("learnt", 1.0)],
)
def test_heads_without_a_linear_layer_and_without_a_bound_pass(kind, scale):
    assert check_logits_unbounded(run(F.cross_entropy, lambda: Head(kind, scale))).status == "pass"


def test_cosines_that_are_scaled_in_the_loss_pass():
    trace = run(lambda z, y: F.cross_entropy(20 * z, y), lambda: Head("cosine"))
    assert check_logits_unbounded(trace).status != "fail"
    assert check_loss_matches_task(trace).status == "pass"


def test_the_weights_are_restored_bit_for_bit():
    ends = []
    for probes in (["loss"], ["loss", "loss_shape"]):
        torch.manual_seed(0)
        model = Net(Head("cosine"))
        finetune(
            model,
            batches(),
            loss_fn=lambda m, b: F.cross_entropy(m(b[0]), b[1]),
            head="head",
            steps=3,
            lr=1e-3,
            probes=probes,
        )
        ends.append({k: v.clone() for k, v in model.state_dict().items()})
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def test_a_frozen_head_comes_before_the_bound_that_it_puts_on_the_logits():
    def only_the_norm(model):
        model.base = nn.Sequential(model.base, nn.LayerNorm(16), nn.Tanh())  # as a pooler
        model.requires_grad_(False)
        model.base[1].requires_grad_(True)
        model.head.weight.data.mul_(0.1)

    def and_the_head(model):
        only_the_norm(model)
        model.head.requires_grad_(True)

    linear = lambda: nn.Linear(16, 3)  # noqa: E731
    frozen = check_logits_unbounded(run(F.cross_entropy, linear, prepare=only_the_norm))
    assert (frozen.status, frozen.fault) == ("fail", "head_left_random")
    assert "freezes head" in frozen.causes[0]
    declared = check_logits_unbounded(run(F.cross_entropy, linear, prepare=only_the_norm, frozen=("head", "base.0")))
    assert declared.fault == "logits_bounded"
    assert check_logits_unbounded(run(F.cross_entropy, linear, prepare=and_the_head)).status == "pass"
    squashed = run(
        F.cross_entropy,
        lambda: nn.Sequential(nn.Linear(16, 3), nn.Tanh()),
        prepare=lambda m: m.head.requires_grad_(False),
    )
    assert check_logits_unbounded(squashed).fault == "logits_bounded"
