"""A loop whose loss never comes from the model certifies no gradient; every other loop is judged as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import check_grads_nonzero, check_grads_reach_depth, diagnose, watch
from pytest_ftcheck.checks.loop.record import LoopCalls

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.classifier = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return {"logits": self.classifier(self.body(x).relu())}


def watched(body, steps=6):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    with watch(model) as w:
        for _ in range(steps):
            optimizer.zero_grad()
            body(model)
            optimizer.step()
    return w.trace


def cross_entropy(model):
    return F.cross_entropy(model(X)["logits"], Y)


def l2(model):
    return 1e-2 * sum((p**2).sum() for p in model.parameters())


def norms(model):
    each = [p.flatten().norm(1) for p in model.parameters()]
    return torch.stack(each).mean() / 2 + torch.linalg.vector_norm(torch.cat([p.view(-1) for p in model.parameters()]))


def dropped(penalty):
    def body(model):
        cross_entropy(model)
        penalty(model).backward()

    return body


@pytest.mark.parametrize(
    "body",
    [dropped(l2), dropped(norms), lambda model: (cross_entropy(model).detach() + l2(model)).backward()],
    ids=["L2", "norms", "detached"],
)
def test_only_a_penalty_is_backpropagated(body):
    trace = watched(body)
    for check in (check_grads_nonzero, check_grads_reach_depth):
        verdict = check(trace)
        assert (verdict.status, verdict.fault) == ("fail", "loss_without_output")
    (cause,) = diagnose(trace).causes
    assert (cause.title, cause.confidence) == ("the loss does not depend on the model's output", "certain")


def test_a_model_that_is_never_called_is_undecided():
    trace = watched(lambda model: l2(model).backward())
    for check in (check_grads_nonzero, check_grads_reach_depth):
        verdict = check(trace)
        assert verdict.status == "inconclusive"
        assert verdict.headline.startswith("The model was not called")
    assert diagnose(trace).status == "undecided"


def through_parts(model):
    F.cross_entropy(model.classifier(model.body(X).relu()), Y).backward()


def beside_a_call(model):
    model(X)  # as for a log
    through_parts(model)


def one_by_one(model):
    """Penalties of all tensors first: the observed calls alone, 0, 1, 2, 4, 8, ..., are penalties but for one."""
    for p in model.parameters():
        (1e-4 * (p**2).sum()).backward()
    cross_entropy(model).backward()


def by_grad(model):
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(cross_entropy(model), parameters)
    (1e-4 * l2(model)).backward()
    for p, g in zip(parameters, gradients, strict=True):
        p.grad += g


def data_without_nodes(model):
    """Products with inputs, which have no autograd node."""
    hidden = (model.body.weight * X[:, None]).sum(-1) + model.body.bias
    out = (model.classifier.weight * hidden.relu()[:, None]).sum(-1) + model.classifier.bias
    ((out[:, 1] - Y) ** 2).mean().backward()


@pytest.mark.parametrize(
    "body",
    [
        lambda model: cross_entropy(model).backward(),
        lambda model: (cross_entropy(model) + l2(model)).backward(),
        through_parts,
        beside_a_call,
        one_by_one,
        by_grad,
        data_without_nodes,
        lambda model: torch.utils.checkpoint.checkpoint(cross_entropy, model, use_reentrant=False).backward(),
        lambda model: (model.body(torch.ones(6)).sum() - 1.0).backward(),
    ],
)
def test_other_losses_are_no_penalty(body):
    trace = watched(body)
    assert not trace.measured(LoopCalls).weights_only
    assert check_grads_nonzero(trace).fault != "loss_without_output"


def test_reentrant_checkpoints_and_compiled_models():
    def checkpointed(model):
        x = X.clone().requires_grad_()
        out = torch.utils.checkpoint.checkpoint(lambda x: model.classifier(model.body(x).relu()), x, use_reentrant=True)
        F.cross_entropy(out, Y).backward()

    def compiled(model):
        F.cross_entropy(torch.compile(model, backend="eager")(X)["logits"], Y).backward()

    for body in (checkpointed, compiled):
        assert diagnose(watched(body, steps=3)).having("fail") == ()
