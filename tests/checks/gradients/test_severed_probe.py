"""Tensors without gradient, on small real models: does the output depend on them?"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import check_grads_nonzero, finetune
from pytest_ftcheck.checks.gradients.record import ReferenceGradient


class Net(nn.Module):
    """A body, a side branch joined in some way, a head."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh())
        self.side = nn.Sequential(nn.Linear(6, 16), nn.Tanh())
        self.classifier = nn.Linear(16, 2)

    def join(self, body, side):
        return body + side

    def forward(self, x):
        return self.classifier(self.join(self.body(x), self.side(x)))


def rows():
    torch.manual_seed(0)
    x = torch.randn(16, 6)
    return [(x, (x[:, 0] > 0).long())]


def run(model, steps=12, probes=("reference",), **more):
    torch.manual_seed(1)
    return finetune(
        model,
        rows(),
        optimizer=lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.0),
        steps=steps,
        probes=list(probes),
        **more,
    )


class Detached(Net):
    def join(self, body, side):
        return body + side.detach()


class Unused(Net):
    def join(self, body, side):
        return body


class Compared(Net):
    def join(self, body, side):
        return body * (side > 0)


class Rounded(Net):
    def join(self, body, side):
        return body + side.sign()


class Buffered(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("gate", torch.zeros(1))

    def join(self, body, side):
        return body + self.gate * side


class Numbered(Net):
    scaling = 0.0

    def __init__(self):
        super().__init__()
        self.scaling = 0.0

    def join(self, body, side):
        return body + self.scaling * side


class FrozenGate(Net):
    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1), requires_grad=False)

    def join(self, body, side):
        return body + self.gate * side


class LearntGate(Net):
    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))

    def join(self, body, side):
        return body + self.gate * side


class Averaged(Net):
    """A code that is kept up by hand, as of a vector quantiser: no gradient, and none is missing."""

    def __init__(self):
        super().__init__()
        self.side = nn.Parameter(torch.zeros(16))

    def forward(self, x):
        body = self.body(x)
        if self.training:
            with torch.no_grad():
                self.side.mul_(0.9).add_(0.1 * body.mean(0))
        return self.classifier(body - self.side.detach())


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        (Detached, "graph_cut"),
        (Compared, "graph_cut"),
        (Rounded, "gradient_blocked"),
        (Buffered, "gate_zero"),
        (Numbered, "gate_zero"),
        (FrozenGate, "gate_zero"),
    ],
)
def test_a_branch_that_matters_and_gets_no_gradient_is_named(model, fault):
    trace = run(model())
    assert "reference" not in trace.skipped
    verdict = check_grads_nonzero(trace)
    assert (verdict.status, verdict.fault) == ("fail", fault)
    assert {row["tensor"] for row in verdict.evidence} == {n for n in (t.name for t in trace.tensors) if "side" in n}


@pytest.mark.parametrize("model", [Net, Unused, LearntGate, Averaged])
def test_what_learns_or_does_not_matter_is_no_fault(model):
    trace = run(model())
    assert trace.measured(ReferenceGradient) is not None
    assert trace.measured(ReferenceGradient).missing == ()
    assert check_grads_nonzero(trace).status == "pass"


def test_a_hook_that_sets_the_gradient_to_zero_is_named():
    model = Net()
    model.classifier.weight.register_hook(torch.zeros_like)
    verdict = check_grads_nonzero(run(model))
    assert (verdict.status, verdict.fault) == ("fail", "gradient_blocked")
    assert "a registered hook" in verdict.causes[0]


def test_what_the_loop_leaves_out_by_hand_is_not_called_a_cut_graph():
    def step(model, batch, optimizer, scheduler):
        loss = F.cross_entropy(model(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        for p in model.side.parameters():
            p.grad = None
        optimizer.step()
        return loss

    trace = run(Net(), step=step)
    assert trace.measured(ReferenceGradient) is not None
    assert trace.measured(ReferenceGradient).missing == ()


def test_a_saturated_softmax_is_distinguished_from_a_learning_one():
    class Pooled(nn.Module):
        def __init__(self, temperature):
            super().__init__()
            torch.manual_seed(1)
            self.temperature = temperature
            self.body = nn.Linear(6, 16)
            self.score = nn.Linear(16, 1)
            self.classifier = nn.Linear(16, 2)

        def forward(self, x):
            words = torch.tanh(self.body(torch.stack([x, x.flip(1), x.roll(1, 1)], 1)))
            weights = (self.score(words).squeeze(-1) / self.temperature).softmax(-1)
            return self.classifier((weights.unsqueeze(-1) * words).sum(1))

    sharp = check_grads_nonzero(run(Pooled(1e-5), steps=20))
    assert (sharp.status, sharp.fault) == ("fail", "gradient_saturated")
    assert check_grads_nonzero(run(Pooled(1.0), steps=20)).status == "pass"


@pytest.mark.parametrize("model", [Detached, Buffered, Numbered, FrozenGate, Rounded])
def test_everything_is_restored(model):
    from pytest_ftcheck.checks.gradients.probe.severed import MissingGradients
    from pytest_ftcheck.instruments.reader import Reader

    net, batch = model(), rows()[0]
    trace = run(net)
    before = {n: v.clone() for n, v in net.state_dict().items()}
    plain = {n: v for n, v in vars(net).items() if isinstance(v, float)}
    snapshot = torch.get_rng_state()
    found = MissingGradients(net, Reader(net, batch), batch).measure(trace.tensors)
    assert found
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    assert {n: v for n, v in vars(net).items() if isinstance(v, float)} == plain
    assert torch.equal(torch.get_rng_state(), snapshot)
    assert all(p.grad is None for p in net.parameters())
