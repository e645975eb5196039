"""A term of the loop's loss that has no gradient: found by its value, whatever it was made from; other terms are not mistaken for one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import check_loss_matches_task, diagnose, example_trace, finetune, watch
from pytest_ftcheck.checks.loop.record import LoopCalls, LossParts
from pytest_ftcheck.checks.loss.loss_in_loop import term_without_gradient

STEPS = 6


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.base, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(torch.relu(self.base(x)))


def rows(count=STEPS):
    g = torch.Generator().manual_seed(1)
    batches = [torch.randn(16, 8, generator=g) for _ in range(count)]
    return [(x, x[:, :3].argmax(-1)) for x in batches]


def penalty(model):
    return 0.3 * sum(p.pow(2).sum() for p in model.parameters())


def rows_apart(z, y):
    return F.cross_entropy(z, y, reduction="none")


def flooded(model, z, y):
    """Ishida et al. 2020: the loss falls no lower than a level."""
    return (F.cross_entropy(z, y) - 0.9).abs() + 0.9


def mixed(model, z, y):
    """Mixup (Zhang et al. 2018)."""
    return 0.3 * F.cross_entropy(z, y) + 0.7 * F.cross_entropy(z, y.roll(1))


def straight_through(model, z, y):
    """A term whose value is taken away again."""
    return F.cross_entropy(z, y) + penalty(model) - penalty(model).detach()


def weighted(model, z, y):
    weight = torch.tensor([1.0, 2.0, 4.0])[y]
    return (rows_apart(z, y) * weight).sum() / weight.sum()


def hardest(model, z, y):
    """Only the hard rows."""
    losses = rows_apart(z, y)
    return losses[losses > losses.median()].mean() / 4


WITHOUT = {
    "detached": lambda m, z, y: F.cross_entropy(z, y) + penalty(m).detach(),
    "item": lambda m, z, y: (F.cross_entropy(z, y) + penalty(m).item()) / 2,
    "data": lambda m, z, y: weighted(m, z, y) + 0.3 * sum(p.data.pow(2).sum() for p in m.parameters()),
    "of labels": lambda m, z, y: F.cross_entropy(z, y) + 0.1 * (z.argmax(-1) - y).abs().float().mean(),
    "a number": lambda m, z, y: F.cross_entropy(z, y) + 1,
}
WITH = {
    "alone": lambda m, z, y: F.cross_entropy(z, y),
    "a penalty": lambda m, z, y: F.cross_entropy(z, y) + penalty(m),
    "smoothed": lambda m, z, y: F.cross_entropy(z, y, label_smoothing=0.1),
    "divided": lambda m, z, y: F.cross_entropy(z, y) / 4,
    "scaled": lambda m, z, y: F.cross_entropy(z, y) * torch.tensor(1024.0),
    "divided by itself": lambda m, z, y: F.cross_entropy(z, y) / F.cross_entropy(z, y).detach(),
    "a confidence penalty": lambda m, z, y: (
        F.cross_entropy(z, y) - 0.1 * -(z.softmax(-1) * z.log_softmax(-1)).sum(-1).mean()
    ),
    "weighted": weighted,
    "mixed": mixed,
    "flooded": flooded,
    "hardest rows": hardest,
    "straight through": straight_through,
    "for the log": lambda m, z, y: F.cross_entropy(z, y) + 0.01 * F.cross_entropy(z, y).detach(),
}


def by_finetune(loss):
    return finetune(
        Net(),
        rows(),
        loss_fn=lambda m, b: loss(m, m(b[0]), b[1]),
        head="head",
        steps=STEPS,
        lr=1e-2,
        probes=["loop", "loss_shape"],
    )


def by_watch(loss):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with watch(model, optimizer, probe_batch=rows()[0], head="head") as watched:
        for x, y in rows():
            optimizer.zero_grad()
            value = loss(model, model(x), y)
            value.backward()
            value += 5  # a running sum of the loop's own
            optimizer.step()
    return watched.trace


@pytest.mark.parametrize("run", [by_finetune, by_watch])
@pytest.mark.parametrize("form", WITHOUT)
def test_a_term_without_a_gradient(form, run):
    torch.manual_seed(0)
    trace = run(WITHOUT[form])
    found = trace.measured(LoopCalls).linear
    assert len(found) >= 4
    verdict = check_loss_matches_task(trace)
    assert (verdict.status, verdict.fault) == ("advice", "term_without_gradient"), verdict
    assert ("a constant is added" in verdict.causes[0]) == (form == "a number")
    assert "term_without_gradient" not in [c.fault for c in diagnose(trace).causes]


@pytest.mark.parametrize("run", [by_finetune, by_watch])
@pytest.mark.parametrize("form", WITH)
def test_healthy_losses(form, run):
    torch.manual_seed(0)
    verdict = check_loss_matches_task(run(WITH[form]))
    assert verdict.fault != "term_without_gradient", verdict


def test_its_size_is_measured():
    torch.manual_seed(0)
    parts = by_watch(lambda m, z, y: 2 * F.cross_entropy(z, y) + 0.25).measured(LoopCalls).linear
    assert [round(p.without, 5) for p in parts] == [0.25] * len(parts)
    alone = by_watch(WITH["weighted"]).measured(LoopCalls).linear
    assert max(abs(p.without) / p.with_gradient for p in alone) < 1e-6
    assert (
        by_watch(WITH["a penalty"]).measured(LoopCalls).linear == ()
    )  # something else has a gradient: nothing is said


@pytest.mark.parametrize(
    ("rests", "calls"),
    [
        ((0.5, 0.4, 0.3), "all 3 observed calls"),
        ((0.0001, 0.001, 0.019, 0.02, 0.3, 0.5), "3 of 6 observed calls"),  # it grows from nothing
        ((0.0001, 0.001, 0.001, 0.001, 0.3, 0.5), None),
        ((0.5, -0.4, 0.3, 0.4), None),
    ],
)
def test_from_which_size_it_is_remarked_on(rests, calls):
    parts = tuple(LossParts(i, 1.0, rest) for i, rest in enumerate(rests))
    measurements = {"loop": LoopCalls(linear=parts)}
    found = term_without_gradient(example_trace(measurements=measurements), "loss_matches_task")
    assert (found is None) == (calls is None)
    assert found is None or f"in {calls}: " in found.headline
