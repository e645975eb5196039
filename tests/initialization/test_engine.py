"""Heads computed side by side do what they do one by one with torch's own modules and optimizers."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from pytest_ftcheck import Features, InitScheme, Recipe
from pytest_ftcheck.initialization import batched_optimizers, engine
from pytest_ftcheck.initialization.batched_optimizers import Adam, Sgd
from pytest_ftcheck.initialization.engine import VECTORISED, train_heads
from pytest_ftcheck.initialization.jobs import Job, Plan, order_of
from pytest_ftcheck.initialization.layers import Unstackable, read_layers

G = torch.Generator().manual_seed(0)
X = torch.randn(120, 12, generator=G)
CLASSES = Features.of(X, (X[:, 0] + 0.3 * X[:, 1] > 0).long(), held_out=0.25)
NUMBERS = Features.of(X, 2 * X[:, 0], held_out=0.25)
TAGS = Features.of(X, (X[:, :2] > 0).float(), held_out=0.25)
SCHEMES = (InitScheme.normal(0.02), InitScheme.normal(0.3).with_last(InitScheme.zeros()), None)


def two_layers(outputs=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, outputs))


def jobs(seeds=(0, 1), lrs=(1e-3, 3e-2)):
    return [Job(s, lr, seed) for s in SCHEMES for lr in lrs for seed in seeds]


def both(head, features=CLASSES, todo=None, *, momentum=0.0, group=None, **recipe):
    plan = Plan(Recipe(**{"steps": 25, **recipe}), 16, momentum)
    todo = jobs() if todo is None else todo
    fast, how = train_heads(head, features, todo, plan, group=group)
    slow, other = train_heads(head, features, todo, plan, vectorise=False)
    assert how == VECTORISED
    assert other == "one by one: vectorise=False"
    return fast, slow


def same(fast, slow, rtol=1e-4):
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a.logits_first, b.logits_first, rtol=rtol, atol=1e-6)
        torch.testing.assert_close(a.logits_last, b.logits_last, rtol=rtol, atol=2e-5)
        assert a.losses == pytest.approx(b.losses, rel=rtol, abs=1e-6)
        for name in ("first", "last", "grad_norm", "std_first", "std_last", "moved_first", "moved_last"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=rtol, abs=1e-7), name
        assert [s for s, _, _ in a.descents] == [s for s, _, _ in b.descents]
        assert [v for _, *two in a.descents for v in two] == pytest.approx(
            [v for _, *two in b.descents for v in two], rel=rtol, abs=1e-6
        )
        assert a.dead == pytest.approx(b.dead) if b.dead is not None else a.dead is None
        assert a.finite == b.finite


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"weight_decay": 0.3},
        {"warmup": 5, "schedule": "constant"},
        {"warmup": 0, "max_grad_norm": None},
        {"max_grad_norm": 0.01},
        {"optimizer": "adam", "weight_decay": 0.1},
        {"optimizer": "sgd", "weight_decay": 0.1},
        {"optimizer": "sgd", "momentum": 0.9},
        {"steps": 3},
    ],
    ids=str,
)
def test_optimizers_schedules_and_clipping(recipe):
    same(*both(two_layers(), **recipe))


HEADS = {
    "one layer": lambda: nn.Linear(12, 2),
    "one logit": lambda: nn.Linear(12, 1),
    "nested, norms, no bias": lambda: nn.Sequential(
        nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 8, bias=False), nn.Tanh(),
        nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(approximate="tanh")), nn.Dropout(0.0), nn.Linear(8, 3),
    ),
    "in place": lambda: nn.Sequential(nn.Linear(12, 8), nn.LeakyReLU(0.2, inplace=True), nn.Linear(8, 2)),
    "norm without weights": lambda: nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8, elementwise_affine=False), nn.SiLU(), nn.Linear(8, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_heads(name):
    torch.manual_seed(0)
    same(*both(HEADS[name]()))


class Traced(nn.Module):
    """A head as people write them: attributes, functions, a token picked by the head."""

    def __init__(self, tokens=False):
        super().__init__()
        self.dense, self.out_proj, self.dropout = nn.Linear(12, 8), nn.Linear(8, 2), nn.Dropout(0.0)
        self.tokens = tokens

    def forward(self, features, **kwargs):
        x = features[:, 0, :] if self.tokens else features
        x = self.dropout(x)
        x = nn.functional.gelu(self.dense(x), approximate="tanh")
        return self.out_proj(self.dropout(x))


@pytest.mark.parametrize("tokens", [False, True])
def test_heads_whose_order_is_traced(tokens):
    same(*both(Traced(tokens)))


def test_transformers_heads():
    from transformers import GPT2Config, RobertaConfig
    from transformers.models.roberta.modeling_roberta import RobertaClassificationHead
    from transformers.pytorch_utils import Conv1D

    config = RobertaConfig(hidden_size=12, num_labels=2, hidden_dropout_prob=0.0)
    same(*both(RobertaClassificationHead(config)))
    assert GPT2Config().model_type == "gpt2"
    torch.manual_seed(0)
    same(*both(nn.Sequential(Conv1D(8, 12), nn.Tanh(), nn.Linear(8, 2))))


@pytest.mark.parametrize(("features", "outputs"), [(NUMBERS, 1), (TAGS, 2)], ids=["numbers", "tags"])
def test_tasks(features, outputs):
    same(*both(two_layers(outputs), features))


def test_double_precision_and_frozen_layers():
    head = two_layers().double()
    same(*both(head, Features.of(X.double(), (X[:, 0] > 0).long(), held_out=0.25)), rtol=1e-9)
    head = two_layers()
    head[0].weight.requires_grad_(False)
    fast, slow = both(head)
    same(fast, slow)
    assert all(r.moved_first == 0 < r.moved_last for r in fast)


@pytest.mark.parametrize("group", [1, 3, 5])
def test_groups_and_mixed_seeds_change_nothing(group):
    todo = jobs(seeds=(0, 4, 2))
    whole = both(two_layers(), todo=todo)[0]
    same(both(two_layers(), todo=todo, group=group)[0], whole)
    one_each = [Job(InitScheme.normal(0.1), 1e-2, seed) for seed in range(7)]
    same(*both(two_layers(), todo=one_each, group=group))


def test_threads_change_nothing_and_are_put_back():
    alone = both(two_layers(), group=2)[0]
    torch.set_num_threads(2)
    same(both(two_layers(), group=2)[0], alone)
    assert torch.get_num_threads() == 2
    found = {}

    def work(name):
        found[name] = train_heads(two_layers_of[name], CLASSES, jobs(), Plan(Recipe(steps=25), 16), group=2)[0]

    two_layers_of = {n: two_layers() for n in range(3)}
    workers = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert torch.get_num_threads() == 2
    for runs in found.values():
        same(runs, alone)


def test_dropout_masks_are_of_the_seed_and_drop_what_they_should():
    head = nn.Sequential(nn.Dropout(0.1), nn.Linear(12, 10), nn.ReLU(), nn.Dropout(0.5), nn.Linear(10, 2))
    plan = Plan(Recipe(steps=25), 16)
    first, _ = train_heads(head, CLASSES, jobs(), plan)
    again, _ = train_heads(head, CLASSES, jobs(), plan, group=2)
    same(again, first)
    without = nn.Sequential(head[1], head[2], head[4])
    plain, _ = train_heads(without, CLASSES, jobs(), plan)
    assert first[0].losses[0] != plain[0].losses[0]
    # the loss before any training is evaluated without dropout
    assert [r.first for r in first] == pytest.approx([r.first for r in plain], rel=1e-5)
    many = [Job(InitScheme.normal(0.3), 1e-2, seed) for seed in range(40)]
    fast, _ = train_heads(head, CLASSES, many, plan)
    slow, _ = train_heads(head, CLASSES, many, plan, vectorise=False)
    ends = [torch.tensor([r.last for r in runs]) for runs in (fast, slow)]
    spread = float(torch.cat(ends).std()) / 40**0.5
    assert abs(float(ends[0].mean() - ends[1].mean())) < 4 * spread


def test_nothing_of_the_users_changes():
    head = two_layers().eval()
    before = {k: v.clone() for k, v in head.state_dict().items()}
    for vectorise in (True, False):
        rng, grad = torch.get_rng_state(), torch.is_grad_enabled()
        with torch.no_grad():  # gradients are switched on inside
            runs, _ = train_heads(head, CLASSES, jobs(), Plan(Recipe(steps=5), 16), vectorise=vectorise)
        with torch.inference_mode():
            train_heads(head, CLASSES, jobs(), Plan(Recipe(steps=5), 16), vectorise=vectorise)
        assert runs[-1].moved_first > 0
        assert torch.equal(rng, torch.get_rng_state())
        assert torch.is_grad_enabled() == grad
        assert not head.training
        assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())
        assert all(p.grad is None for p in head.parameters())


def test_denormal_numbers_are_flushed_in_our_own_threads_only():
    tiny = torch.tensor([1e-40])
    if float(tiny * 1) == 0:
        pytest.skip("somebody has switched them off already")
    both(two_layers())
    assert float(tiny * 1) > 0


def test_an_error_in_a_group_comes_out_and_the_threads_are_put_back(monkeypatch):
    def broken(self, jobs):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine._GroupTrainer, "train", broken)
    torch.set_num_threads(2)
    with pytest.raises(KeyboardInterrupt):
        train_heads(two_layers(), CLASSES, jobs(), Plan(Recipe(steps=2), 16), group=1)
    assert torch.get_num_threads() == 2


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 2)

    def forward(self, x):
        return self.b(x + self.a(x))


class Branching(Residual):
    def forward(self, x):
        return self.b(self.a(x)) if float(x.sum()) > -1e9 else x


def twice():
    layer = nn.Linear(12, 12)
    return nn.Sequential(layer, layer, nn.Linear(12, 2))


def hooked():
    head = two_layers()
    head[0].register_forward_hook(lambda *_: None)
    return head


FALLBACKS = {
    "a branch": (Residual, "has a branch at"),
    "cannot be traced": (Branching, "cannot be traced"),
    "batch norm": (lambda: nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), "BatchNorm1d is not a Linear"),
    "weights used twice": (twice, "used twice"),
    "hooks": (hooked, "has hooks"),
    "parametrized": (lambda: nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(12, 2))), "parametrized"),
}  # fmt: skip


@pytest.mark.parametrize("name", FALLBACKS)
def test_what_cannot_be_stacked_is_trained_one_by_one_and_says_why(name):
    make, reason = FALLBACKS[name]
    with pytest.raises(Unstackable, match=reason):
        read_layers(make())
    if name == "parametrized":
        return  # the scheme cannot fill such weights either: its affair
    runs, how = train_heads(make(), CLASSES, jobs(seeds=(0,), lrs=(3e-2,)), Plan(Recipe(steps=40), 16))
    assert how.startswith("one by one: ")
    assert reason in how
    assert runs[0].last < runs[0].first


def test_optimizers_that_are_not_stacked():
    _, how = train_heads(two_layers(), CLASSES, jobs()[:1], Plan(Recipe(steps=3, optimizer="rmsprop"), 16))
    assert how == "one by one: 'rmsprop' has no batched version (adamw, adam, sgd have)"


@pytest.mark.parametrize(
    ("head", "features", "message"),
    [
        (nn.Linear(7, 2), CLASSES, "takes 7 features, those given have 12"),
        (nn.Linear(12, 2), Features.of(X, (X[:, 0] > 0).long() + 1), "gives 2 outputs, the labels need 3"),
        (nn.Linear(12, 2), NUMBERS, "gives 2 outputs, the labels need 1"),
        (Residual(), Features.of(X[:, :5], (X[:, 0] > 0).long()), "gives no logits"),
    ],
)
def test_a_head_that_does_not_take_the_features(head, features, message):
    with pytest.raises(ValueError, match=message):
        train_heads(head, features, jobs(), Plan(Recipe(steps=3), 16))


def test_a_diverging_head_is_told_apart_and_leaves_its_neighbours_alone():
    plan = Plan(Recipe(steps=25, optimizer="sgd", max_grad_norm=None), 16)
    wild, tame = Job(InitScheme.normal(0.3), 1e12, 0), Job(InitScheme.normal(0.3), 1e-2, 0)
    together, _ = train_heads(two_layers(1), NUMBERS, [wild, tame, tame], plan)
    alone, _ = train_heads(two_layers(1), NUMBERS, [tame], plan)
    assert [r.finite for r in together] == [False, True, True]
    same(together[1:2], alone)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("decoupled", [True, False])
def test_adam_follows_torch_over_many_steps(fused, decoupled):
    if fused and not batched_optimizers.FUSED:
        pytest.skip("this torch has no fused kernel for the CPU")
    lrs = [1e-4, 1e-4, 3e-2]
    values, grads = torch.randn(3, 5, 4, generator=G), torch.zeros(3, 5, 4)
    theirs = [nn.Parameter(v.clone()) for v in values]
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizers = [kind([p], lr=lr, weight_decay=0.1) for p, lr in zip(theirs, lrs, strict=True)]
    ours = Adam([(values, grads)], lrs, 0.1, decoupled=decoupled, fused=fused)
    for step in range(60):
        factor = 1 - step / 60
        grads.copy_(torch.randn(3, 5, 4, generator=G) * 10 ** (step % 5 - 4))
        for p, g, optimizer, lr in zip(theirs, grads, optimizers, lrs, strict=True):
            p.grad = g.clone()
            optimizer.param_groups[0]["lr"] = lr * factor
            optimizer.step()
        ours.step(factor)
    torch.testing.assert_close(values, torch.stack([p.detach() for p in theirs]), rtol=2e-6, atol=1e-6)


def test_sgd_follows_torch():
    lrs = [1e-2, 0.3]
    values, grads = torch.randn(2, 6, generator=G), torch.zeros(2, 6)
    theirs = [nn.Parameter(v.clone()) for v in values]
    optimizers = [
        torch.optim.SGD([p], lr=lr, momentum=0.9, weight_decay=0.1) for p, lr in zip(theirs, lrs, strict=True)
    ]
    ours = Sgd([(values, grads)], lrs, 0.1, momentum=0.9)
    for _ in range(40):
        grads.copy_(torch.randn(2, 6, generator=G))
        for p, g, optimizer in zip(theirs, grads, optimizers, strict=True):
            p.grad = g.clone()
            optimizer.step()
        ours.step()
    torch.testing.assert_close(values, torch.stack([p.detach() for p in theirs]), rtol=2e-6, atol=1e-6)


def test_every_row_comes_once_an_epoch_in_the_seeds_order():
    rows = torch.stack(list(order_of(10, 4, 5, seed=3)))
    assert sorted(rows.flatten()[:10].tolist()) == list(range(10))
    assert torch.equal(rows, torch.stack(list(order_of(10, 4, 5, seed=3))))
    assert not torch.equal(rows, torch.stack(list(order_of(10, 4, 5, seed=4))))
    assert [len(batch) for batch in order_of(3, 32, 2, seed=0)] == [3, 3]


def test_memory_of_a_group_is_bounded(monkeypatch):
    sizes = []
    original = engine.StackedHeads.__init__

    def spy(self, layers, starts, pool=None):
        sizes.append(len(starts))
        original(self, layers, starts, pool)

    monkeypatch.setattr(engine.StackedHeads, "__init__", spy)
    monkeypatch.setattr(engine, "GROUP_BYTES", 4 * 4 * (12 * 10 + 10 + 10 * 2 + 2) * 3)
    train_heads(two_layers(), CLASSES, jobs(seeds=range(5)), Plan(Recipe(steps=2), 16))
    trained = [n for n in sizes if n > 1]  # a start is looked at alone
    assert max(trained) == 3
    assert sum(trained) == 30
