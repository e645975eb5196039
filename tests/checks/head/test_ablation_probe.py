"""Parts put back one at a time on small real models: what comes out, and that the trained values come back bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_ftcheck import check_head_needed, diagnose, finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.checks.head.ablation_record import Counterfactuals
from pytest_ftcheck.checks.head.probe.ablation import parts_of, ridge
from pytest_ftcheck.core.trace import Trace


class Net(nn.Module):
    def __init__(self, out=2):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 32), nn.LayerNorm(32))
        self.classifier = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, out))

    def forward(self, x):
        return self.classifier(self.body(x))


def run(model, rows, *, probes=("counterfactuals",), steps=40, held_out=True, **options):
    torch.manual_seed(0)
    held = rows[4:] if held_out else None
    return finetune(
        model, rows[:4], steps=steps, lr=1e-2, head="classifier", probes=list(probes), eval_batches=held, **options
    )


def make(seed=0, **options):
    torch.manual_seed(seed)
    return Net(**options)


def test_parts_are_put_back_one_at_a_time(rows):
    trace = run(make(), rows)
    found = trace.measured(Counterfactuals)
    assert [p.part for p in found.parts] == ["classifier.0", "classifier.2", "head", "body.0", "body.1", "base"]
    assert (found.rows, found.source) == (64, "held-out rows")
    assert found.trained.accuracy > 0.9
    parts = {p.part: p for p in found.parts}
    assert parts["head"].rewound.loss > 2 * found.trained.loss
    assert parts["head"].parameters == 32 * 32 + 32 + 2 * 32 + 2
    assert parts["head"].shuffled.accuracy < found.trained.accuracy
    assert parts["base"].shuffled is None is parts["classifier.0"].shuffled
    assert Trace.from_json(trace.to_json()) == trace


def test_a_linear_layer_does_what_this_head_does(rows):
    simple = run(make(), rows).measured(Counterfactuals).simpler
    assert (simple.features, simple.outputs, simple.layers, simple.rows) == (32, 2, 2, 64)
    assert simple.accuracy > 0.9
    assert simple.agreement > 0.9
    toy = finetune(
        tiny_distilbert(seed=0), toy_batches(8), steps=40, lr=1e-3, probes=["counterfactuals"],
        eval_batches=toy_batches(4, seed=1),
    )  # fmt: skip
    assert check_head_needed(toy).fault == "head_redundant"
    code = check_head_needed(toy).remedy.removeprefix("try ").partition(",")[0] + ", 2)"
    model = tiny_distilbert(seed=0)
    exec(code, {"model": model, "torch": torch})
    again = finetune(model, toy_batches(8), steps=40, lr=1e-3, eval_batches=toy_batches(4, seed=1))
    assert type(model.classifier) is nn.Linear
    assert not diagnose(again).having("fail")


class Parts(Net):
    """A head in two parts, one after the other, with a function between them."""

    def __init__(self):
        super().__init__()
        self.pre, self.classifier = nn.Linear(32, 32), nn.Linear(32, 2)

    def forward(self, x):
        return self.classifier(torch.relu(self.pre(self.body(x))))


class Recurrent(Net):
    """What enters the layer of the head is not what enters the head."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(32, 16, batch_first=True)
        self.classifier = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x):
        return self.classifier(self.lstm(self.body(x)[:, None])[0][:, -1])


class Pooled(nn.Module):
    """A head that takes the states of all places and pools them itself."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 2)

    def forward(self, states):
        return self.second(torch.relu(self.first(states[:, 0])))


class Pooling(Net):
    def __init__(self):
        super().__init__()
        self.classifier = Pooled()

    def forward(self, x):
        return self.classifier(self.body(x)[:, None].expand(-1, 3, -1))


@pytest.mark.parametrize(
    ("kind", "head", "replaces", "first"),
    [
        (Net, ("classifier",), "classifier", "classifier.0"),
        (Parts, ("pre", "classifier"), "", "pre"),
        (Recurrent, ("lstm", "classifier"), "classifier", "classifier.0"),
        (Pooling, ("classifier",), "", "classifier.first"),
    ],
)
def test_only_a_module_that_one_layer_can_stand_for_is_replaced(rows, kind, head, replaces, first):
    torch.manual_seed(0)
    trace = finetune(kind(), rows[:4], steps=5, lr=1e-2, head=head, probes=["counterfactuals"], eval_batches=rows[4:])
    simple = trace.measured(Counterfactuals).simpler
    assert (simple.replaces, simple.first) == (replaces, first)
    if replaces:
        model = kind()
        model.classifier = nn.Linear(simple.features, simple.outputs)
        assert model(rows[0][0]).shape == (len(rows[0][0]), 2)


def test_one_layer_has_nothing_simpler(rows):
    model = make()
    model.classifier = nn.Linear(32, 2)
    assert run(model, rows).measured(Counterfactuals).simpler is None


def test_what_was_not_trained_is_not_put_back(rows):
    model = make()
    model.body.requires_grad_(False)
    assert {p.part for p in run(model, rows).measured(Counterfactuals).parts} == {
        "classifier.0",
        "classifier.2",
        "head",
    }


def test_rewinding_everything_gives_the_first_loss(rows):
    """Head put back on a frozen base: the model is what it was before the run."""
    model = make()
    model.body.requires_grad_(False)
    with torch.no_grad():
        x, y = torch.cat([r[0] for r in rows[4:]]), torch.cat([r[1] for r in rows[4:]])
        first = float(nn.functional.cross_entropy(model(x), y))
    found = run(model, rows).measured(Counterfactuals)
    assert next(p for p in found.parts if p.part == "head").rewound.loss == pytest.approx(first, rel=1e-5)


def test_the_experiment_changes_nothing(rows):
    """The run's weights are the same with and without it, and the model is restored as usual."""
    without, with_it = make(), make()
    a = run(without, rows, probes=("loss",))
    b = run(with_it, rows, probes=("loss", "counterfactuals"))
    assert a.losses == b.losses
    assert a.tensors == b.tensors
    assert a.probe_loss.points == b.probe_loss.points
    assert all(torch.equal(p, q) for p, q in zip(with_it.parameters(), make().parameters(), strict=True))


def test_trained_values_come_back_bit_for_bit(rows):
    """The user's own step leaves the trained model behind until finetune restores it: looked at right after the probe."""
    from pytest_ftcheck import Intent
    from pytest_ftcheck.checks.head.probe.ablation import AblationProbe
    from pytest_ftcheck.core.recipe import Recipe
    from pytest_ftcheck.instruments.batches import Batches
    from pytest_ftcheck.instruments.probe import ProbeContext, ProbeRunner
    from pytest_ftcheck.instruments.reader import Reader

    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    context = ProbeContext(
        model=model, reader=Reader(model, rows[0]), fixed_batches=rows[:2], batches=Batches(rows, 4), held_out=rows[4:],
        head=("classifier",), optimizer=optimizer, scheduler=None, recipe=Recipe(steps=4), intent=Intent(), user_metric=None,
        recipe_loop=False, device=torch.device("cpu"), steps=4,
    )  # fmt: skip
    runner = ProbeRunner(context, [AblationProbe], 1e9)
    runner.before()
    for x, y in rows:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    trained, grads, state = (
        [p.detach().clone() for p in model.parameters()],
        [p.grad.clone() for p in model.parameters()],
        torch.get_rng_state(),
    )
    runner.after()
    assert runner.skipped == {}
    assert runner.measurements()["counterfactuals"].parts
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), trained, strict=True))
    assert all(torch.equal(p.grad, q) for p, q in zip(model.parameters(), grads, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks for m in model.modules())


def test_regression_and_rows_of_the_training(rows):
    scored = [(x, x[:, :1] * 2) for x, _ in rows]
    found = run(make(out=1), scored, held_out=False).measured(Counterfactuals)
    assert found.source == "training rows"
    assert found.trained.accuracy is None
    assert found.baseline is None
    assert found.simpler is None
    assert found.parts


def test_multi_label(rows):
    tags = [(x, (x[:, :2] > 0).float()) for x, _ in rows]
    assert run(make(), tags).measured(Counterfactuals).trained.accuracy > 0.8


def test_a_model_that_raises_is_skipped(rows):
    class Fussy(Net):
        calls = 0

        def forward(self, x):
            Fussy.calls += 1
            if not self.training and Fussy.calls > 1:
                raise RuntimeError("not in eval mode")
            return super().forward(x)

    trace = run(Fussy(), rows)
    assert trace.measured(Counterfactuals) is None
    assert "not in eval mode" in trace.skipped["counterfactuals"]
    assert check_head_needed(trace).status == "inconclusive"


def test_the_cost_is_honest():
    counted = []
    model = tiny_distilbert(seed=0)
    model.register_forward_hook(lambda m, args, out: counted.append(len(out)) if not m.training else None)
    batches = toy_batches(8)
    finetune(model, batches, steps=4, probes=[], eval_batches=toy_batches(4, seed=1))
    bare = sum(counted)
    counted.clear()
    finetune(model, batches, steps=4, probes=["counterfactuals"], eval_batches=toy_batches(4, seed=1))
    # trained; 2 layers of the head and all of it; that shuffled; embeddings, 2 blocks and the base; the features; what they enter
    assert sum(counted) - bare == 64 * (1 + 3 + 1 + 4) + 128 + 64 + 2


def test_a_costly_model_gets_the_head_and_the_base_only():
    parts = parts_of(tiny_distilbert(seed=0), ("classifier",), layers=False, blocks=False)
    assert list(parts) == ["head", "base"]


def test_a_base_too_large_to_copy_is_left_where_it_is(monkeypatch):
    monkeypatch.setattr("pytest_ftcheck.checks.head.probe.ablation.COPIED", 1000)
    assert list(parts_of(tiny_distilbert(seed=0), ("classifier",), layers=False, blocks=False)) == ["head"]


def test_ridge_recovers_a_linear_rule():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 10, generator=g, dtype=torch.float64)
    y = (x[:, 0] + x[:, 1] > 0).long()
    assert float((ridge(x[:120], y[:120], x[120:], 2) == y[120:]).double().mean()) > 0.9
    noise = torch.randint(0, 2, (120,), generator=g)
    assert float((ridge(x[:120], noise, x[120:], 2) == y[120:]).double().mean()) < 0.75


@pytest.mark.parametrize("size", [8, 16])
def test_the_default_of_a_large_model_answers_whether_its_head_is_needed(monkeypatch, size):
    """To a large model no operations are free: all probes share what the training's rows allow."""
    for module in ("instruments.work", "checks.head.probe.ablation"):
        monkeypatch.setattr(f"pytest_ftcheck.{module}.FREE", 0.0)
    for module in ("head.probe.head", "inputs.probe.inputs", "gradients.probe.reference"):
        monkeypatch.setattr(f"pytest_ftcheck.checks.{module}.COSTLY", 0.0)
    batches, held_out = toy_batches(20, size), toy_batches(4, seed=1)
    trace = finetune(tiny_distilbert(seed=0, n_layers=4), batches, steps=20, lr=1e-3, eval_batches=held_out)
    assert [probe for probe, why in trace.skipped.items() if why.startswith("left out")] == []
    found = trace.measured(Counterfactuals)
    assert [p.part for p in found.parts] == ["classifier.0", "classifier.3", "head"]
    assert (found.rows, found.source, found.simpler.rows) == (64, "held-out rows", 64)
