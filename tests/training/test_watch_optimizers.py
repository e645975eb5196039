"""Groups, several optimizers, wrappers, closures and weight decay under `watch`."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from watched import Net, agrees_with, rms, train, weights

from pytest_ftcheck import check_grads_nonzero, check_weights_move, watch


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net()


def test_a_closure_is_where_lbfgs_gets_its_gradients(model, rows):
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    before = weights(model)
    with watch(model, optimizer) as w:
        for x, y in rows[:3]:

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            w.loss(optimizer.step(closure))
    agrees_with(w.trace, before, model)
    assert len(w.trace.steps) == 3
    assert w.trace.optimizer.family == "other"
    assert w.trace.tensor("body.weight").gradients.none == 0
    assert w.trace.tensor("body.weight").gradients.max_norm > 0


def test_a_closure_with_an_optimizer_that_needs_none(model, rows):
    """As Lightning does it: before the step there are no gradients."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with watch(model, optimizer) as w:
        for x, y in rows[:3]:

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = w.loss(F.cross_entropy(model(x), y))
                loss.backward()
                return loss

            optimizer.step(closure)
    t = w.trace.tensor("body.weight")
    assert t.gradients.none == 0
    assert t.gradients.first_nonzero == 0
    assert [i.step for i in w.trace.iterations] == [0, 1, 2]


def test_several_groups_have_their_own_budgets(model, rows):
    optimizer = torch.optim.AdamW(
        [
            {"params": model.body.parameters(), "lr": 1e-4},
            {"params": model.classifier.parameters(), "weight_decay": 0.0},
        ],
        lr=1e-2,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda i: 1.0, lambda i: 0.5**i])
    with watch(model, optimizer, scheduler=scheduler) as w:
        for _ in range(3):
            train(model, optimizer, rows, steps=1)
            scheduler.step()
    trace = w.trace
    assert [s.lrs for s in trace.steps] == [(1e-4, 1e-2), (1e-4, 5e-3), (1e-4, 2.5e-3)]
    assert trace.tensor("body.weight").lr_sum == pytest.approx(3e-4)
    assert trace.tensor("classifier.weight").lr_sum == pytest.approx(1.75e-2)
    assert trace.tensor("classifier.weight").lr_peak == 1e-2
    assert [(g.lr_first, g.lr_peak, g.tensors) for g in trace.optimizer.groups] == [(1e-4, 1e-4, 2), (1e-2, 1e-2, 2)]
    assert [g.weight_decay for g in trace.optimizer.groups] == [0.01, 0.0]
    assert trace.tensor("classifier.weight").motion.by_decay == 0
    assert trace.notes == ("scheduler: LambdaLR",)


def test_a_group_added_midway(model, rows):
    optimizer = torch.optim.SGD(model.classifier.parameters(), lr=0.1)
    model.body.requires_grad_(False)
    with watch(model, optimizer) as w:
        train(model, optimizer, rows, steps=2)
        model.body.requires_grad_(True)
        optimizer.add_param_group({"params": list(model.body.parameters()), "lr": 0.01})
        train(model, optimizer, rows, steps=3)
    t = w.trace.tensor("body.weight")
    assert (t.group, t.first_step) == (1, 2)
    assert t.lr_sum == pytest.approx(0.03)
    assert (t.trainable, t.trainable_last) == (False, True)
    assert t.gradients.none == 2
    assert t.gradients.first_nonzero == 2
    assert t.unchanged is False
    assert w.trace.tensor("classifier.weight").lr_sum == pytest.approx(0.5)
    assert [len(s.lrs) for s in w.trace.steps] == [1, 1, 2, 2, 2]


def test_shared_parameters_are_counted_once(rows):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(6, 6, bias=False)
            self.classifier = nn.Linear(6, 6, bias=False)
            self.classifier.weight = self.embed.weight

        def forward(self, x):
            return self.classifier(torch.tanh(self.embed(x)))

    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = weights(model)
    with watch(model, optimizer, head="embed") as w:
        train(model, optimizer, rows, steps=2)
    assert len(w.trace.tensors) == 1
    assert w.trace.tensors[0].aliases == ("classifier.weight",)
    agrees_with(w.trace, before, model)


def test_another_models_optimizer_is_none_of_our_business(model, rows):
    other = Net()
    mine, theirs = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)
    with watch(model, mine) as w:
        train(other, theirs, rows)
        train(model, mine, rows, steps=2)
    assert len(w.trace.steps) == 2
    assert w.trace.optimizer.other_optimizer_steps == 0


def test_two_loops_at_once(rows):
    one, two = Net(), Net()
    a, b = torch.optim.SGD(one.parameters(), lr=0.1), torch.optim.SGD(two.parameters(), lr=0.2)
    with watch(one, a) as first, watch(two, b) as second:
        train(one, a, rows, first, steps=3)
        train(two, b, rows, second, steps=2)
    assert [s.lrs for s in first.trace.steps] == [(0.1,)] * 3
    assert [s.lrs for s in second.trace.steps] == [(0.2,)] * 2


@pytest.mark.parametrize("watched_first", [False, True])
def test_two_optimizers_are_kept_apart(model, rows, watched_first):
    """Each with its own learning rate and decay, one after the other, each with the other's gradients gone."""
    body = torch.optim.SGD(model.body.parameters(), lr=0.1)
    head = torch.optim.SGD(model.classifier.parameters(), lr=0.5, weight_decay=0.1)
    before = weights(model)
    pair = [(body, model.classifier), (head, model.body)]
    with watch(model, body) as w:
        for x, y in rows[:4]:
            for optimizer, other in pair if watched_first else pair[::-1]:
                model.zero_grad()
                F.cross_entropy(model(x), y).backward()
                other.zero_grad()
                optimizer.step()
    agrees_with(w.trace, before, model)
    mine, theirs = w.trace.tensor("body.weight"), w.trace.tensor("classifier.weight")
    assert (len(w.trace.steps), w.trace.optimizer.other_optimizer_steps) == (8, 4)
    assert mine.lr_sum == pytest.approx(4 * 0.1)
    assert theirs.lr_sum == pytest.approx(4 * 0.5)
    assert (mine.group, theirs.group) == (0, None)
    assert (mine.motion.by_decay, theirs.motion.by_decay > 0) == (0, True)
    assert [g.lr_peak for g in w.trace.optimizer.groups] == [0.1]
    assert w.trace.optimizer.groups[0].lr_sum == pytest.approx(0.4)
    assert (mine.gradients.steps, mine.gradients.none) == (4, 0)
    # that another optimizer has it is known from its first step on
    assert (theirs.gradients.steps, theirs.gradients.none) == ((5, 1) if watched_first else (4, 0))
    # in between, the series keeps the last norm: a tensor that waits is not without gradient
    own = mine.grad_norms[::2] if watched_first else mine.grad_norms[1::2]
    rest = mine.grad_norms[1::2] if watched_first else mine.grad_norms[2::2]
    assert all(v > 0 for v in own)
    assert rest == own[: len(rest)]
    assert check_grads_nonzero(w.trace).status == "pass"
    assert check_weights_move(w.trace).status == "pass"


@pytest.mark.parametrize(
    ("kind", "family"), [("RAdam", "other"), ("NAdam", "adam"), ("AdamW", "adam"), ("SGD", "sgd"), ("Rprop", "other")]
)
def test_the_family_of_an_optimizer(model, kind, family):
    """RAdam's rectification holds its first steps far below the learning rate: it has no budget."""
    with watch(model, getattr(torch.optim, kind)(model.parameters(), lr=1e-3)) as w:
        pass
    assert w.trace.optimizer.family == family


@pytest.mark.parametrize("attribute", ["optimizer", "base_optimizer"])
def test_the_optimizer_inside_a_wrapper_is_not_another(model, rows, attribute):
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            super().__init__(inner.param_groups, {})
            setattr(self, attribute, inner)

        def step(self, closure=None):
            getattr(self, attribute).step(closure)

    optimizer = Wrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with watch(model, optimizer) as w:
        train(model, optimizer, rows, steps=3)
    assert (len(w.trace.steps), w.trace.optimizer.other_optimizer_steps) == (3, 0)
    assert w.trace.optimizer.groups[0].lr_sum == pytest.approx(0.3)


def decay_by_hand(make, rows, pull, steps=5):
    """Sum over the steps of what weight decay did, by ``pull(weight, group, state)`` on copies; beside the trace's."""
    torch.manual_seed(0)
    model = Net()
    optimizer = make(model.parameters())
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    state: dict = dict.fromkeys(total)
    before = weights(model)
    with watch(model, optimizer) as w:
        for x, y in rows[:steps]:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            for n, p in model.named_parameters():
                shift, state[n] = pull(p.detach().clone(), optimizer.param_groups[0], state[n])
                total[n] += shift
            optimizer.step()
    for name, p in model.named_parameters():
        m = w.trace.tensor(name).motion
        assert m.by_decay == pytest.approx(rms(total[name]), rel=1e-4)
        delta = p.detach() - before[name] - total[name]
        touched = w.trace.tensor(name).motion.share_with_gradient
        assert m.by_gradient == pytest.approx(math.sqrt(float(delta.square().sum()) / (touched * p.numel())), rel=1e-3)


def test_decay_of_adamw(rows):
    decay_by_hand(
        lambda ps: torch.optim.AdamW(ps, lr=1e-3, weight_decay=0.5), rows, lambda w, g, s: (-1e-3 * 0.5 * w, s)
    )


def test_decay_of_sgd(rows):
    decay_by_hand(lambda ps: torch.optim.SGD(ps, lr=0.1, weight_decay=0.5), rows, lambda w, g, s: (-0.05 * w, s))


@pytest.mark.parametrize(("dampening", "nesterov"), [(0.0, False), (0.5, False), (0.0, True)])
def test_decay_of_sgd_with_momentum(rows, dampening, nesterov):
    def pull(w, group, buffer):
        d = 0.5 * w
        buffer = d.clone() if buffer is None else 0.9 * buffer + (1 - dampening) * d
        return -0.1 * (d + 0.9 * buffer if nesterov else buffer), buffer

    decay_by_hand(
        lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.5, dampening=dampening, nesterov=nesterov),
        rows,
        pull,
    )


def test_decay_of_adam_joins_the_gradient_and_is_not_separated(rows):
    decay_by_hand(
        lambda ps: torch.optim.Adam(ps, lr=1e-3, weight_decay=0.5), rows, lambda w, g, s: (torch.zeros_like(w), s)
    )


def test_what_moves_without_a_gradient_is_decay():
    """AdamW shrinks the rows of an embedding that no word asked for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    before = weights(model)
    with watch(model, optimizer, head="2") as w:
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.tensor([[1, 2]])), torch.tensor([0])).backward()
            optimizer.step()
    t = w.trace.tensor("0.weight")
    assert t.motion.share_changed == 1
    assert t.motion.share_with_gradient == pytest.approx(2 / 20)
    unseen = (model[0].weight.detach() - before["0.weight"])[3:]
    assert rms(unseen) == pytest.approx((1 - 0.999**3) * rms(before["0.weight"][3:]), rel=1e-3)
    seen = (model[0].weight.detach() - before["0.weight"] * 0.999**3)[1:3]
    assert t.motion.by_gradient == pytest.approx(rms(seen), rel=1e-2)
