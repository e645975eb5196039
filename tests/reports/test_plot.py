"""``trace.plot()``: what is drawn equals what the trace holds, for every odd trace, and nothing global is touched."""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import pickle
import subprocess
import sys

import pytest

from pytest_ftcheck.core.example_trace import example_trace, tensor
from pytest_ftcheck.core.observations import Histogram, Iteration, Optimizer, ProbeLoss, ProbeLossPoint, Step
from pytest_ftcheck.reports import chart_data

matplotlib = pytest.importorskip("matplotlib")

HISTOGRAMS = (Histogram(-1, -0.08, 0.08, (1, 30, 60, 30, 7)), Histogram(19, -0.1, 0.1, (5, 30, 58, 30, 5)))


def trace(**changes):
    made = example_trace(**changes)
    tensors = tuple(dataclasses.replace(t, histograms=HISTOGRAMS) if t.part == "head" else t for t in made.tensors)
    return dataclasses.replace(made, tensors=tensors)


def drawn(figure):
    """Every figure has to survive being drawn, with warnings as errors."""
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    return figure


def lines(ax):
    return {line.get_gid(): line for line in ax.lines}


def told(figure):
    from matplotlib.text import Text

    return " ".join(text.get_text() for text in figure.findobj(Text))


def test_all_panels():
    figure = drawn(trace().plot())
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == [
        "Loss",
        "Learning rate",
        "Gradient norms",
        "Motion against the LR budget",
        "Histogram: classifier.weight",
        "Displacement of its elements",
    ]


def test_losses_and_rates():
    made = trace()
    top, bottom = drawn(made.plot("loss")).axes
    curves = lines(top)
    assert list(curves["train"].get_ydata()) == list(made.losses)
    assert list(curves["probe"].get_xdata()) == [0, 5, 10, 20]
    assert list(curves["probe"].get_ydata()) == [p.loss for p in made.probe_loss.points]
    assert set(curves["prior"].get_ydata()) == {0.6931}
    assert list(lines(bottom)["lr"].get_ydata()) == [s.lrs[0] for s in made.steps]
    assert top.get_xlim() == bottom.get_xlim()


def test_gradients():
    made = trace()
    (ax,) = drawn(made.plot(which=["gradients"])).axes
    expected = {curve.kind: curve for curve in chart_data.gradients(made).series}
    for kind, line in lines(ax).items():
        assert list(line.get_ydata()) == list(expected[kind].y)
    assert ax.get_yscale() == "log"


def test_motion():
    made = trace()
    (ax,) = drawn(made.plot("motion")).axes
    bars = [bar for bar in ax.patches if (bar.get_gid() or "").endswith("motion")]
    assert [(bar.get_gid(), bar.get_width()) for bar in bars] == [("base-motion", 0.25), ("head-motion", 0.25)]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["base_model.layer.0", "classifier"]
    assert "25 %" in told(ax.figure)
    assert len({bar.get_hatch() for bar in bars}) == 2  # told apart without colour


def test_histograms_beside_displacement():
    made = trace()
    left, right = drawn(made.plot("weights")).axes
    found = {patch.get_gid(): patch.get_data() for patch in left.patches}
    for gid, histogram in zip(("first", "last"), HISTOGRAMS, strict=True):
        density = chart_data.density(histogram)
        assert list(found[gid].values) == list(density.density)
        assert list(found[gid].edges) == list(density.edges)
    assert list(lines(right)["displacement"].get_ydata()) == list(made.tensor("classifier.weight").displacements)
    assert lines(right)["budget"].get_ydata()[-1] == pytest.approx(made.tensors[2].lr_sum)


def test_another_tensor():
    assert "classifier.bias" in told(trace().plot("weights", tensor="classifier.bias"))


def test_a_frozen_head_is_said():
    tensors = tuple(
        dataclasses.replace(
            t,
            trainable=False,
            grad_norms=(),
            histograms=(),
            displacements=(),
            group=None,
            lr_sum=0.0,
            motion=dataclasses.replace(t.motion, share_changed=0.0, by_gradient=0.0),
        )
        if t.part == "head"
        else t
        for t in example_trace().tensors
    )
    figure = drawn(example_trace(tensors=tensors).plot())
    text = told(figure)
    assert "frozen: head" in text
    assert "no histogram is kept of a frozen tensor" in text
    bars = [p for ax in figure.axes for p in ax.patches if p.get_gid() == "head-motion"]
    assert [bar.get_width() for bar in bars] == [0.0]


NAN = math.nan
W = tensor("classifier.weight", "head", shape=(2, 64))
ODD = {
    "nothing": example_trace(
        tensors=(),
        steps=(),
        iterations=(),
        recorded=(),
        probe_loss=None,
        metrics=(),
        optimizer=Optimizer("", "other", ()),
    ),
    "one step": example_trace(
        steps=(Step(0, (1e-3,), 1.0, None, True),),
        iterations=(Iteration(1.0, 0, 1, True),),
        recorded=(0,),
        probe_loss=ProbeLoss(8, "", (ProbeLossPoint(0, 1.0),)),
        tensors=(dataclasses.replace(W, grad_norms=(1.0,), displacements=(1e-4,), updates=(1e-4,)),),
    ),
    "diverged": example_trace(
        iterations=tuple(Iteration(v, i, 1, True) for i, v in enumerate((1.0, 1e30, 1e300, math.inf, NAN))),
        steps=tuple(Step(i, (1e300,), NAN if i else 1.7e308, math.inf, True) for i in range(20)),
        tensors=(
            dataclasses.replace(W, grad_norms=(math.inf, NAN) * 10, displacements=(1e300, NAN) * 10, lr_sum=1e300),
        ),
    ),
    "negative": example_trace(iterations=tuple(Iteration(-v, int(v), 1, True) for v in range(20))),
    "constant": example_trace(iterations=tuple(Iteration(0.0, i, 1, True) for i in range(20)), probe_loss=None),
    "zero gradients": example_trace(
        tensors=(dataclasses.replace(W, grad_norms=(0.0,) * 20, displacements=(0.0,) * 20),),
        steps=tuple(Step(i, (0.0,), 0.0, None, True) for i in range(20)),
    ),
    "flat histogram": example_trace(tensors=(dataclasses.replace(W, histograms=(Histogram(-1, 0.5, 0.5, (9,)),)),)),
    "names": example_trace(
        head=("$x^", "_y", "学习"),
        stopped="because of $\\frac{1}{0}$ 💥",
        tensors=tuple(
            tensor(f"{name}.weight", part)
            for name, part in (
                ("$\\alpha_{", "base"),
                ("_hidden", "base"),
                ("学习💥", "base"),
                ("<b>$", "head"),
                ("x" * 10_000, "head"),
            )
        ),
    ),
    "sgd": example_trace(optimizer=dataclasses.replace(example_trace().optimizer, family="sgd")),
    "many": example_trace(tensors=tuple(tensor(f"base.layer.{i}.w", "base") for i in range(99))),
    "groups": example_trace(
        steps=tuple(Step(i, tuple(1e-3 * g for g in range(30)), 1.0, None, True) for i in range(20))
    ),
    "motion": example_trace(
        tensors=tuple(
            dataclasses.replace(W, name=f"h{i}.w", motion=dataclasses.replace(W.motion, by_gradient=v))
            for i, v in enumerate((NAN, math.inf, 1e200, 0.0))
        )
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_every_trace_can_be_drawn(name):
    figure = drawn(ODD[name].plot())
    assert len(figure.axes) == 6


@pytest.mark.parametrize("name", ["names", "example"])
def test_in_every_style(name):
    with matplotlib.rc_context({"axes.prop_cycle": matplotlib.cycler(color=["k"]), "savefig.dpi": 30}):
        drawn((ODD.get(name) or example_trace()).plot())


def test_what_is_not_finite_is_marked():
    made = example_trace(iterations=tuple(Iteration(v, i, 1, True) for i, v in enumerate((1.0, NAN, 0.5, math.inf))))
    top = drawn(made.plot("loss")).axes[0]
    assert list(lines(top)["nonfinite"].get_xdata()) == [2.0, 4.0]
    assert "not finite: training" in told(top.figure)


def test_a_loss_that_spans_much_is_on_a_logarithmic_axis():
    made = example_trace(iterations=tuple(Iteration(10.0**i, i, 1, True) for i in range(5)))
    assert made.plot("loss").axes[0].get_yscale() == "log"
    assert example_trace().plot("loss").axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("which", [["motion", "loss"], ("weights", "motion"), ["weights"], ["loss", "loss"]])
def test_any_choice_in_any_order(which):
    drawn(trace().plot(which))


@pytest.mark.parametrize(
    ("which", "error", "message"),
    [
        ("histogram", ValueError, "which='histogram': expected one or several of loss, gradients, motion, weights"),
        (["loss", "x"], ValueError, "which='x'"),
        ([], ValueError, "at least one of"),
        (3, TypeError, "which=3"),
        ([3], TypeError, r"which\[0\]=3"),
    ],
)
def test_bad_panels(which, error, message):
    with pytest.raises(error, match=message):
        trace().plot(which)


def test_bad_tensor():
    with pytest.raises(ValueError, match="name='nope': no such tensor"):
        trace().plot("loss", tensor="nope")


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'pytest-ftcheck\[plot\]'"):
        trace().plot()


def test_a_figure_shows_itself_in_a_notebook_and_can_be_copied():
    figure = trace().plot("motion")
    assert figure._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"
    for again in (pickle.loads(pickle.dumps(figure)), copy.deepcopy(figure)):
        assert again._repr_png_()[:4] == b"\x89PNG"


def test_neither_pyplot_nor_a_backend_is_touched():
    code = (  # read past RcParams, which imports pyplot when asked for the backend
        "import sys, io\nfrom pytest_ftcheck import example_trace\nimport matplotlib\n"
        "before = list(dict.items(matplotlib.rcParams))\nfigure = example_trace().plot()\nfigure.savefig(io.BytesIO())\n"
        "assert 'matplotlib.pyplot' not in sys.modules\nassert list(dict.items(matplotlib.rcParams)) == before\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=400)
