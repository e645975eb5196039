"""The trainability map shows the result's own numbers, and leaves pyplot alone; the command draws it without code."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from pytest_ftcheck import Features, InitScheme, Recipe, SweepResult, sweep
from pytest_ftcheck.initialization import __main__ as command
from pytest_ftcheck.initialization.heads import Head

matplotlib = pytest.importorskip("matplotlib")

X = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
FEATURES = Features.of(X, (X[:, 0] > 0).long(), held_out=0.4)
HEAD = Head(12, 2, widths=[8])


@pytest.fixture(scope="module")
def result():
    return sweep(HEAD, FEATURES, schemes=[0.2, 0.002, 0.02], lrs=[1e-6, 1e-4, 1e-2, 1.0], seeds=1, mark=(0.02, 5e-5))


def part(ax, gid):
    return next((c for c in ax.get_children() if c.get_gid() == gid), None)


def test_colours_are_the_results_numbers(result, tmp_path):
    figure = result.plot()
    left, right = figure.axes[:2]
    order = [1, 2, 0]  # by std
    for ax, measure in ((left, "learnt"), (right, "motion")):
        shown = ax.collections[0].get_array()
        assert np.allclose(np.asarray(shown), np.asarray(result.grid(measure))[order])
    edges = left.collections[0].get_coordinates()
    assert np.allclose(edges[0, :, 0], [1e-7, 1e-5, 1e-3, 1e-1, 10])
    assert np.allclose(edges[:, 0, 1], [0.002 / 10**0.5, 0.002 * 10**0.5, 0.02 * 10**0.5, 0.2 * 10**0.5])
    assert left.get_xscale() == left.get_yscale() == "log"
    figure.savefig(tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 10_000


def test_the_border_lies_between_what_learns_and_what_does_not(result):
    ax = result.plot().axes[0]
    share = np.asarray(result.trainable)[[1, 2, 0]] > 0.5
    assert 0 < share.sum() < share.size
    expected = int((share[:, 1:] != share[:, :-1]).sum() + (share[1:] != share[:-1]).sum())
    assert len(part(ax, "border").get_segments()) == expected
    assert len(part(ax, "halo").get_segments()) == expected
    for (x0, y0), (x1, y1) in part(ax, "border").get_segments():
        assert x0 == x1 or y0 == y1


def test_no_border_where_all_or_none_learn():
    found = sweep(HEAD, FEATURES, schemes=[0.1, 0.2], lrs=[1e-2, 2e-2], seeds=1)
    assert part(found.plot().axes[0], "border") is None


def test_the_mark_stands_at_the_users_recipe(result):
    for mark, (x, y) in ((None, (5e-5, 0.02)), ((0.1, 1e-3), (1e-3, 0.1)), (Recipe(lr=3e-4), (3e-4, 0.02))):
        star = part(result.plot(mark=mark).axes[0], "mark")
        assert (star.get_xdata()[0], star.get_ydata()[0]) == (x, y)
    outside = result.plot(mark=(30.0, 50.0)).axes[0]
    assert outside.get_xlim()[1] > 50
    assert outside.get_ylim()[1] > 30
    with pytest.raises(ValueError, match="mark="):
        result.plot(mark="mine")


def test_named_schemes_get_rows_and_a_head_without_spread_is_left_out(tmp_path):
    schemes = [InitScheme.xavier_normal(), InitScheme.zeros(), InitScheme.torch_default()]
    found = sweep(HEAD, FEATURES, schemes=schemes, lrs=[1e-3, 1e-2], seeds=1, mark=(0.02, 5e-5))
    figure = found.plot()
    left, right = figure.axes[:2]
    assert [t.get_text()[:6] for t in left.get_yticklabels()] == ["Xavier", "zeros,", "torch'"]
    assert right.collections[0].get_array().mask[1].all()
    assert part(left, "mark").get_xdata()[0] == 5e-5
    figure.savefig(tmp_path / "map.png")


def test_runs_that_diverged_are_shown(tmp_path):
    numbers = Features.of(X, 2 * X[:, 0])
    found = sweep(
        nn.Linear(12, 1), numbers, schemes=[0.1, 0.2], lrs=[1e-2, 1e12], seeds=1, optimizer="sgd", max_grad_norm=None
    )
    figure = found.plot()
    assert figure.axes[0].collections[0].get_array().mask[:, 1].all()
    assert "not finite" in [t.get_text() for t in figure.legends[0].get_texts()]
    figure.savefig(tmp_path / "map.png")


def test_pyplot_is_not_even_imported(tmp_path):
    code = (
        "import sys, torch\nfrom pytest_ftcheck import Features, sweep\nfrom pytest_ftcheck.initialization.heads import Head\n"
        "torch.manual_seed(0)\nx = torch.randn(40, 4)\n"
        "r = sweep(Head(4, 2), Features.of(x, (x[:, 0] > 0).long()), schemes=[0.1], lrs=[1e-2], seeds=1)\n"
        "r.plot().savefig(sys.argv[1])\nassert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "map.png")], capture_output=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr.decode()


# ---------------------------------------------------------------------- the command
SMALL = ["--std", "0.01:1:2", "--lr", "1e-4:1e-2:2", "--seeds", "1", "--steps", "5"]


def test_the_command_draws_the_toy_map(tmp_path, capsys):
    out = tmp_path / "toy.png"
    assert command.main([*SMALL, "--out", str(out), "--json", str(tmp_path / "toy.json")]) == 0
    assert out.read_bytes()[:4] == b"\x89PNG"
    found = SweepResult.load(tmp_path / "toy.json")
    assert found.lrs == pytest.approx((1e-4, 1e-2))
    assert found.stds == pytest.approx((0.01, 1.0))
    assert "Sweep of 4 heads" in capsys.readouterr().out


def test_the_command_takes_a_model_and_batches_of_ones_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine_for_the_map.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.base, self.pre_classifier, self.classifier = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)\n"
        "    def forward(self, x):\n"
        "        return self.classifier(torch.relu(self.pre_classifier(torch.tanh(self.base(x)))))\n"
        "x = torch.randn(64, 4)\n"
        "def batches():\n    return [(x, (x[:, 0] > 0).long())]\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    given = [
        "--model",
        "mine_for_the_map:Net",
        "--batches",
        "mine_for_the_map:batches",
        "--out",
        str(tmp_path / "m.png"),
    ]
    assert command.main([*SMALL, *given, "--mark", "0.02:5e-5"]) == 0
    assert "Linear(6, 5) - ReLU - Linear(5, 2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--std", "0.1"], "--std: '0.1': expected low:high:count"),
        (["--lr", "1e-2:1e-4:3"], "expected 0 < low < high"),
        (["--lr", "1e-4:1e-2:0"], "expected a count of at least 1"),
        (["--batches", "math:pi", "--model", "nowhere_at_all:x"], "nowhere_at_all"),
        (["--batches", "math:pi", "--model", "torch"], "expected import.path:name"),
        (["--batches", "math:pi", "--model", "torch:nothing_here"], "nothing_here"),
        (["--model", "torch:x"], "go together"),
        (["--out", "map.nonsense"], "nonsense"),
        (["--steps", "0"], "steps=0"),
    ],
)
def test_bad_arguments_of_the_command(given, message, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main([*SMALL, *given])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
