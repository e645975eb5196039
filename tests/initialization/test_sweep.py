"""A sweep: its cells are judged as every run is judged, its data survive a round trip, bad arguments are refused first."""

from __future__ import annotations

import dataclasses
import json
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from pytest_ftcheck import Features, InitScheme, Recipe, SweepResult, finetune, sweep
from pytest_ftcheck.checks.data.metric_improves import check_metric_improves
from pytest_ftcheck.checks.loss.loss_decreases import check_loss_decreases
from pytest_ftcheck.initialization.heads import Head
from pytest_ftcheck.initialization.jobs import Job, Plan
from pytest_ftcheck.initialization.judge_heads import judge, metrics_of, traces
from pytest_ftcheck.initialization.one_by_one import train_one_by_one
from pytest_ftcheck.instruments.metrics import measure

G = torch.Generator().manual_seed(0)
X = torch.randn(240, 12, generator=G)
FEATURES = Features.of(X, (X[:, 0] + 0.3 * X[:, 1] > 0).long(), held_out=0.4)
NUMBERS = Features.of(X, 2 * X[:, 0], held_out=0.4)
TAGS = Features.of(X, (X[:, :3] > 0).float(), held_out=0.4)
THREE = Features.of(X, (X[:, 0] > 0).long() + (X[:, 0] > 1).long(), held_out=0.4)
HEAD = Head(12, 2, widths=[16])


@pytest.fixture(scope="module")
def result():
    return sweep(HEAD, FEATURES, schemes=[0.02, 0.2], lrs=[1e-6, 1e-2, 30.0], seeds=3, mark=(0.02, 5e-5))


def test_what_learns_and_what_does_not(result):
    assert result.engine == "vectorised"
    assert len(result.cells) == 18
    assert result.trainable[0][0] == 0  # next to no learning rate
    assert result.trainable[0][1] == result.trainable[1][1] == 1
    assert result.border()[1] == {"scheme": "N(0, 0.2), zero biases", "std": 0.2, "lowest_lr": 0.01, "highest_lr": 0.01}
    assert all(c.trainable == "no" for c in result.cells if c.lr == 30 and c.loss_last > 2 * c.loss_first)
    drops, motion = result.grid("drop"), result.grid("motion")
    assert drops[0][1] > 0.15 > 0.01 > abs(drops[0][0])
    assert motion[0][0] < 1e-3 < motion[0][1]
    assert all(
        c.loss_first == pytest.approx(math.log(2), rel=0.05) for c in result.cells if c.scheme == result.schemes[0]
    )


def test_a_cell_is_what_its_numbers_say(result):
    for c in result.cells:
        assert c.drop == pytest.approx((c.loss_first - c.loss_last) / c.loss_first)
        assert c.learnt == pytest.approx((result.blind_loss - c.loss_last) / result.blind_loss)
        assert c.motion == pytest.approx(c.moved_first / c.std_first)
        assert c.std_first == pytest.approx(0.02 if "0.02" in c.scheme else 0.2, rel=0.2)
    assert sorted({c.seed for c in result.cells}) == [0, 1, 2]


def test_judged_by_the_checks_themselves():
    plan = Plan(Recipe(steps=30))
    jobs = [Job(InitScheme.normal(std), lr, 0) for std in (0.02, 0.3) for lr in (1e-5, 1e-2, 100.0)]
    runs = list(train_one_by_one(HEAD, FEATURES, jobs, plan))
    for trace, run in zip(traces(runs, jobs, FEATURES, plan), runs, strict=True):
        answer, loss, metric = judge(trace)
        assert loss == check_loss_decreases(trace)
        assert metric == check_metric_improves(trace)
        assert (answer == "yes") == (loss.status == metric.status == "pass")
        assert (answer == "no") == ("fail" in (loss.status, metric.status))
        assert type(trace).from_json(trace.to_json()) == trace
        assert trace.probe_loss.points[-1].loss == run.last


@pytest.mark.parametrize("lr", [1e-6, 1e-2])
def test_agrees_with_finetune_on_the_same_head_and_rows(lr):
    """Another order of the rows, the same answer: both judge on the same 64 rows."""
    x, y = FEATURES.x[:64], FEATURES.y[:64]
    scheme = InitScheme.normal(0.02)
    model = nn.Sequential(nn.Linear(12, 12), scheme.apply(Head(12, 2, widths=[16]), seed=0))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(12))
        model[0].bias.zero_()
    for p in model[0].parameters():
        p.requires_grad_(False)
    trace = finetune(model, [(x[:32], y[:32]), (x[32:], y[32:])], head="1", lr=lr, steps=30, probes=("loss", "metrics"))
    found = sweep(HEAD, Features.of(x, y), schemes=[scheme], lrs=[lr], seeds=1).cells[0]
    assert found.loss_first == pytest.approx(trace.probe_loss.points[0].loss, rel=1e-4)
    assert found.loss_last == pytest.approx(trace.probe_loss.points[-1].loss, rel=0.1)
    statuses = check_loss_decreases(trace).status, check_metric_improves(trace).status
    assert (found.trainable == "yes") == (statuses == ("pass", "pass"))


@pytest.mark.parametrize(
    ("features", "outputs"), [(FEATURES, 2), (FEATURES, 1), (THREE, 3), (NUMBERS, 1), (TAGS, 3)], ids=str
)
def test_metrics_are_those_of_finetune(features, outputs):
    jobs = [Job(InitScheme.normal(0.3), lr, 1) for lr in (1e-4, 1e-2)]
    runs = list(train_one_by_one(Head(12, outputs, widths=[8]), features, jobs, Plan(Recipe(steps=20))))
    for run, mine in zip(runs, metrics_of(runs, features), strict=True):
        theirs = measure(features.task, run.logits_first, run.logits_last, features.held_y, "held-out rows")[0]
        for field in dataclasses.fields(mine):
            a, b = getattr(mine, field.name), getattr(theirs, field.name)
            assert a == pytest.approx(b, abs=1e-9) if isinstance(b, float) else a == b, field.name


def test_one_by_one_agrees_and_says_so(result):
    slow = sweep(HEAD, FEATURES, schemes=[0.02, 0.2], lrs=[1e-6, 1e-2], seeds=3, vectorise=False)
    assert slow.engine == "one by one: vectorise=False"
    assert "one by one: vectorise=False" in str(slow)
    fast = {(c.scheme, c.lr, c.seed): c for c in result.cells}
    for c in slow.cells:
        other = fast[c.scheme, c.lr, c.seed]
        assert c.trainable == other.trainable
        assert c.loss_last == pytest.approx(other.loss_last, rel=1e-4)


class Listed(nn.Module):
    """Lists its last layer first."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(8, 2)
        self.hidden = nn.Linear(12, 8)

    def forward(self, x):
        return self.out(torch.relu(self.hidden(x)))


def test_first_and_last_are_those_that_run_so_either_way():
    fast, slow = (
        sweep(Listed(), FEATURES, schemes=[0.02], lrs=[1e-2], seeds=1, vectorise=way).cells[0] for way in (True, False)
    )
    for name in ("std_first", "std_last", "moved_first", "moved_last"):
        assert getattr(fast, name) == pytest.approx(getattr(slow, name), rel=1e-4), name


def test_rows_and_labels_are_features_too():
    pair = FEATURES.x, FEATURES.y
    found = [sweep(HEAD, f, schemes=[0.1], lrs=[1e-2], seeds=1).cells for f in (pair, Features.of(*pair))]
    assert found[0] == found[1]


def test_more_rows_than_are_judged_and_none_held_out():
    x = torch.randn(900, 12, generator=G)
    found = sweep(HEAD, Features.of(x, (x[:, 0] > 0).long()), schemes=[0.1], lrs=[1e-2], seeds=1)
    assert (found.judged, found.judged_by, found.rows) == (256, "training rows", 900)
    assert found.cells[0].trainable == "yes"


def test_labels_without_meaning_are_not_learnt():
    y = torch.randint(2, (240,), generator=torch.Generator().manual_seed(5))
    found = sweep(HEAD, Features.of(X, y, held_out=0.4), schemes=[0.05, 0.2], lrs=[1e-3, 1e-2], seeds=5)
    assert sum(c.trainable == "yes" for c in found.cells) <= 1


def test_round_trip_and_frame(result, tmp_path):
    text = result.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not standard JSON"))
    assert SweepResult.from_json(text) == result
    result.save(tmp_path / "sweep.json")
    assert SweepResult.load(tmp_path / "sweep.json") == result
    frame = result.frame()
    assert {len(v) for v in frame.values()} == {18}
    assert frame["std"][0] == 0.02
    assert [eval(s) for s in result.schemes] == [InitScheme.normal(0.02), InitScheme.normal(0.2)]
    assert "9 learn" not in repr(result) or sum(c.trainable == "yes" for c in result.cells) == 9
    for bad in ("", "[]", '{"schema": 1}', text.replace('"schema":1', '"schema":9')):
        with pytest.raises(ValueError, match="not a sweep"):
            SweepResult.from_json(bad)
    with pytest.raises(ValueError, match="measure='speed'"):
        result.grid("speed")


def test_diverged_heads_survive_the_round_trip():
    head = nn.Linear(12, 1)
    found = sweep(head, NUMBERS, schemes=[0.1], lrs=[1e-2, 1e12], seeds=1, optimizer="sgd", max_grad_norm=None)
    wild = found.cells[1]
    assert (wild.finite, wild.trainable) == (False, "no")
    assert math.isnan(found.grid("drop")[0][1])
    again = SweepResult.from_json(found.to_json())
    assert str(again) == str(found)
    assert again.to_json() == found.to_json()


def test_a_zero_head_learns_nothing_and_a_zero_last_layer_is_healthy():
    schemes = [InitScheme.zeros(), InitScheme.normal(0.1).with_last(InitScheme.zeros())]
    found = sweep(HEAD, FEATURES, schemes=schemes, lrs=[1e-2], seeds=3)
    assert found.trainable == [[0], [1]]
    assert found.stds == (None, None)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": X}, TypeError, "features is a Tensor"),
        ({"head": 3}, TypeError, "head is a int"),
        ({"head": lambda: 3}, TypeError, "returned a int"),
        ({"head": nn.ReLU()}, ValueError, "no parameter"),
        ({"head": nn.Linear(5, 2)}, ValueError, "takes 5 features"),
        ({"schemes": []}, ValueError, "schemes is empty"),
        ({"schemes": [0.02, 0.02]}, ValueError, "given twice"),
        ({"schemes": [-0.02]}, ValueError, r"schemes\[0\]=-0.02"),
        ({"schemes": ["normal"]}, TypeError, r"schemes\[0\]='normal'"),
        ({"schemes": 0.02}, TypeError, "schemes=0.02"),
        ({"lrs": [1e-3, 0.0]}, ValueError, r"lrs\[1\]=0.0"),
        ({"lrs": [math.inf]}, ValueError, r"lrs\[0\]=inf"),
        ({"lrs": [1e-3, 1e-3]}, ValueError, "given twice"),
        ({"seeds": 0}, ValueError, "seeds=0"),
        ({"seeds": [1, 1]}, ValueError, "given twice"),
        ({"seeds": [-1]}, ValueError, r"seeds\[0\]=-1"),
        ({"seeds": 1.5}, TypeError, "seeds=1.5"),
        ({"seeds": [2**64]}, ValueError, r"seeds\[0\]=.*from 0 to 2"),
        ({"vectorise": "no"}, TypeError, "vectorise='no'"),
        ({"features": (X, X, X)}, TypeError, "features is a tuple"),
        ({"recipe": 3}, TypeError, "expected a Recipe"),
        ({"steps": 0}, ValueError, "steps=0"),
        ({"lr": 1e-3}, TypeError, "no argument 'lr'; give lrs="),
        ({"optimiser": "sgd"}, TypeError, "no argument 'optimiser'"),
        ({"optimizer": "lion"}, ValueError, "optimizer='lion'"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"momentum": 0.9}, ValueError, "expected 'sgd'"),
        ({"momentum": 1.0, "optimizer": "sgd"}, ValueError, "momentum=1.0"),
        ({"mark": 3}, ValueError, "mark=3"),
        ({"mark": (0.02, -1.0)}, ValueError, r"mark\[1\]=-1.0"),
    ],
)
def test_bad_arguments(change, error, message):
    given = {"head": HEAD, "features": FEATURES, "schemes": [0.02], "lrs": [1e-3], "seeds": 1, **change}
    with pytest.raises(error, match=message):
        sweep(given.pop("head"), given.pop("features"), **given)


class Written(nn.Module):
    """Its dropout is a function, and it draws and counts as it likes."""

    def __init__(self, fails=False):
        super().__init__()
        self.hidden, self.out, self.fails = nn.Linear(12, 8), nn.Linear(8, 2), fails

    def forward(self, x):
        random.random()
        np.random.rand()  # noqa: NPY002 - the global state is what is looked at
        torch.rand(1)
        if self.fails:
            raise AssertionError
        return self.out(nn.functional.dropout(torch.relu(self.hidden(x)), 0.5, self.training))


@pytest.mark.parametrize("fails", [False, True])
def test_a_traced_head_leaves_all_random_states(fails):
    head = Written(fails)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    if fails:
        with pytest.raises(ValueError, match=r"gives no logits .*: AssertionError$"):
            sweep(head, FEATURES, schemes=[0.1], lrs=[1e-2], seeds=1)
    else:
        assert sweep(head, FEATURES, schemes=[0.1], lrs=[1e-2], seeds=1).engine == "vectorised"
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_a_pretrained_models_head_comes_in_evaluation_mode_and_is_trained_all_the_same():
    trained, evaluated = (
        sweep(Written().train(way), FEATURES, schemes=[0.1], lrs=[1e-2], seeds=1) for way in (True, False)
    )
    assert trained.cells == evaluated.cells
