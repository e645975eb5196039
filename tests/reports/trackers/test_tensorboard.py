"""What TensorBoard reads back is what the trace holds."""

from __future__ import annotations

import dataclasses
import math
import sys

import pytest

from pytest_ftcheck.core.example_trace import example_trace, tensor
from pytest_ftcheck.core.observations import Histogram, Iteration, Optimizer
from pytest_ftcheck.reports.chart_data import budgets
from pytest_ftcheck.reports.trace_table import describe
from pytest_ftcheck.reports.trackers.content import scalars, tags
from pytest_ftcheck.reports.trackers.log import to_tensorboard

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(directory):
    events = accumulators.EventAccumulator(
        str(directory), size_guidance=dict.fromkeys(accumulators.DEFAULT_SIZE_GUIDANCE, 0)
    )
    return events.Reload()


@pytest.fixture(scope="module")
def trace():
    histograms = (
        Histogram(-1, -0.08, 0.08, (1, 30, 60, 30, 7)),
        Histogram(9, -0.08, 0.09, (0, 31, 60, 37, 0)),
        Histogram(19, 0.5, 0.5, (128,)),
    )
    made = example_trace()
    return dataclasses.replace(
        made,
        tensors=tuple(dataclasses.replace(t, histograms=histograms if t.part == "head" else ()) for t in made.tensors),
    )


@pytest.fixture(scope="module")
def events(trace, tmp_path_factory):
    directory = tmp_path_factory.mktemp("events")
    trace.to_tensorboard(directory)
    return read(directory)


def series(events, tag):
    return [(e.step, pytest.approx(e.value, rel=1e-6, abs=1e-12)) for e in events.Scalars(tag)]


def test_losses(trace, events):
    assert series(events, "loss/train") == [(i + 1, loss) for i, loss in enumerate(trace.losses)]
    assert series(events, "loss/probe") == [(p.step, p.loss) for p in trace.probe_loss.points]
    assert series(events, "loss/class_prior") == [(p.step, 0.6931) for p in trace.probe_loss.points]


def test_rates_gradients_and_metrics(trace, events):
    assert series(events, "lr/group_0") == [(i + 1, s.lrs[0]) for i, s in enumerate(trace.steps)]
    assert series(events, "gradient/norm") == [(i + 1, 0.9) for i in range(20)]
    assert series(events, "gradient/norm_unclipped") == [(i + 1, 1.4) for i in range(20)]
    assert series(events, "metric/accuracy") == [(0, 0.5), (20, 0.9)]
    assert series(events, "metric/accuracy_baseline") == [(0, 0.53), (20, 0.53)]


def test_tensors(trace, events):
    for t, tag in tags(trace):
        for name, values in (
            ("gradient_norm", t.grad_norms),
            ("update_rms", t.updates),
            ("displacement_rms", t.displacements),
        ):
            assert series(events, f"{tag}/{name}") == [(s + 1, v) for s, v in zip(trace.recorded, values, strict=True)]


def test_displacement_over_budget_so_far(trace, events):
    got = series(events, "head/classifier.weight/displacement_over_lr_sum")
    t = trace.tensor("classifier.weight")
    for k, (x, value) in enumerate(got):
        assert (x, value) == (k + 1, t.displacements[k] / math.fsum(s.lrs[0] for s in trace.steps[: k + 1]))
    assert got[-1][1] == 0.25


def test_the_head_comes_first_where_names_are_sorted(trace, events):
    groups = sorted({tag.split("/")[0] for tag in events.Tags()["scalars"]})
    assert groups.index("head") < groups.index("the_base")
    assert [tag for _, tag in tags(trace)][:2] == ["head/classifier.weight", "head/classifier.bias"]


def test_histograms(events):
    first, second, third = events.Histograms("head/classifier.weight/weights")
    assert (first.step, second.step, third.step) == (0, 10, 20)
    h = first.histogram_value
    assert (h.min, h.max, h.num) == (-0.08, 0.08, 128)
    assert h.bucket == [1, 30, 60, 30, 7]
    assert h.bucket_limit == pytest.approx([-0.048, -0.016, 0.016, 0.048, 0.08])
    assert h.sum == pytest.approx(-0.064 - 0.032 * 30 + 0.032 * 30 + 0.064 * 7)
    assert h.sum_squares == pytest.approx(0.064**2 * 8 + 0.032**2 * 60 + 128 * 0.032**2 / 12)
    h = third.histogram_value
    assert (h.min, h.max, h.sum, h.sum_squares, h.bucket_limit, h.bucket) == (
        0.5,
        0.5,
        64.0,
        32.0,
        [0.5],
        [128],
    )


def test_histogram_edges_as_tensorboard_shows_them(events):
    """TensorBoard drops empty outer bins, and takes min and max for the outer edges of what is left."""
    h = events.Histograms("head/classifier.weight/weights")[1].histogram_value
    assert (h.min, h.max) == pytest.approx((-0.08 + 0.034, 0.09 - 0.034))


def test_moments_of_real_values(tmp_path):
    import torch

    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 0.02 + 0.01
    low, high = float(values.min()), float(values.max())
    counts = tuple(int(c) for c in torch.histc(values, 64, low, high))
    t = dataclasses.replace(tensor("head.w", "head"), histograms=(Histogram(0, low, high, counts),))
    to_tensorboard(example_trace(tensors=(t,)), tmp_path)
    h = read(tmp_path).Histograms("head/head.w/weights")[0].histogram_value
    assert h.sum == pytest.approx(float(values.sum()), rel=1e-2)
    assert h.sum_squares == pytest.approx(float(values.square().sum()), rel=1e-2)


def test_text(trace, events):
    (event,) = events.Tensors("trace/text_summary")
    assert event.tensor_proto.string_val[0].decode() == f"```\n{describe(trace, unicode=True)}\n```"


def test_odd_traces_are_written(tmp_path):
    odd = dataclasses.replace(
        tensor("classifier." + "x" * 10_000 + "/é", "head"),
        histograms=(
            Histogram(0, math.nan, 1.0, (1, 2)),
            Histogram(1, 0.0, 1.0, (0, 0)),
            Histogram(2, 0.0, 1.0, ()),
        ),
        group=None,
        displacements=(math.nan,) * 20,
    )
    late = dataclasses.replace(tensor("base.w", "base"), first_step=5, group=3, grad_norms=(1.0,))
    made = example_trace(
        tensors=(odd, odd, late),
        iterations=(Iteration(None, 0, 1, True), Iteration(math.nan, 1, 1, True)),
        probe_loss=None,
        metrics=(),
        recorded=(*range(19), 77),
    )
    to_tensorboard(made, tmp_path / "deep" / "er")
    events = read(tmp_path / "deep" / "er")
    (event,) = events.Scalars("loss/train")
    assert event.step == 2
    assert math.isnan(event.value)
    assert len({tag for _, tag in tags(made)}) == 3
    assert not events.Tags()["histograms"]
    assert not any("over_lr_sum" in tag for tag in events.Tags()["scalars"])


def test_empty_trace_is_written(tmp_path):
    made = example_trace(
        tensors=(),
        steps=(),
        iterations=(),
        recorded=(),
        probe_loss=None,
        metrics=(),
        optimizer=Optimizer("none", "other", ()),
    )
    assert list(scalars(made)) == []
    to_tensorboard(made, str(tmp_path))
    events = read(tmp_path)
    assert "trace/text_summary" in events.Tags()["tensors"]
    assert all(tag.startswith("result/") for tag in events.Tags()["scalars"])


def test_budget_counts_from_when_the_tensor_was_held():
    made = example_trace(recorded=(0, 4, 5, 19))
    late = dataclasses.replace(made.tensors[0], first_step=5)
    lrs = [s.lrs[0] for s in made.steps]
    assert budgets(made, late) == pytest.approx([0.0, 0.0, lrs[5], math.fsum(lrs[5:])])
    assert budgets(made, dataclasses.replace(late, first_step=None))[-1] == pytest.approx(late.lr_sum)


def test_steps_without_a_gradient_are_gaps():
    t = dataclasses.replace(tensor("base.w", "base"), grad_norms=(-1.0, 0.0, 0.5))
    got = [(v, x) for tag, v, x in scalars(example_trace(tensors=(t,))) if tag.endswith("/gradient_norm")]
    assert got == [(0.0, 2), (0.5, 3)]


def test_missing_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'pytest-ftcheck\[tensorboard\]'"):
        to_tensorboard(example_trace(), tmp_path / "events")
    assert not (tmp_path / "events").exists()


def plugin_data(directory, tag, plugin):
    """What a plugin of TensorBoard keeps with a tag."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for path in sorted(directory.glob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag == tag and value.metadata.plugin_data.plugin_name == plugin:
                    return value.metadata.plugin_data.content, value
    raise AssertionError(f"no {tag}")


def test_status_and_cause_come_first_among_the_hyper_parameters(tmp_path):
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    made = example_trace()
    to_tensorboard(made, tmp_path)
    content, _ = plugin_data(tmp_path, metadata.SESSION_START_INFO_TAG, metadata.PLUGIN_NAME)
    data = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert sorted(data)[:5] == ["1_status", "2_cause", "3_lr", "4_optimizer", "5_steps"]
    assert data["1_status"].string_value == "healthy"
    assert data["3_lr"].number_value == 5e-5
    content, _ = plugin_data(tmp_path, metadata.EXPERIMENT_TAG, metadata.PLUGIN_NAME)
    metrics = plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos
    named = {m.name.tag for m in metrics}
    assert {"result/checks_failed", "result/loss.final", "result/motion.head"} <= named
    assert named <= set(read(tmp_path).Tags()["scalars"])
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]  # no second run in a folder of its own


def test_every_chart_of_the_layout_has_curves(trace, tmp_path):
    import re

    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    to_tensorboard(trace, tmp_path)
    _, value = plugin_data(tmp_path, metadata.CONFIG_SUMMARY_TAG, metadata.PLUGIN_NAME)
    layout = layout_pb2.Layout.FromString(value.tensor.string_val[0])
    (category,) = layout.category
    charts = [(chart.title, chart.multiline.tag) for chart in category.chart]
    assert charts[0][0].startswith("loss")
    assert charts[1][0].startswith("motion")
    tags = read(tmp_path).Tags()["scalars"]
    for title, patterns in charts:
        assert any(re.search(p, tag) for p in patterns for tag in tags), title


def test_a_head_that_stands_still_is_a_line_at_zero(tmp_path):
    tensors = tuple(
        dataclasses.replace(
            t, trainable=False, displacements=(), motion=dataclasses.replace(t.motion, share_changed=0.0)
        )
        if t.part == "head"
        else t
        for t in example_trace().tensors
    )
    to_tensorboard(example_trace(tensors=tensors), tmp_path)
    events = read(tmp_path)
    assert [e.value for e in events.Scalars("motion/head")] == [0.0] * 20
    assert events.Scalars("motion/base_model.layer.0")[-1].value == pytest.approx(0.25)
    assert "gradient_by_block/head" in events.Tags()["scalars"]


def test_a_file_is_no_directory(trace, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"directory=.*file' is a file: expected a directory"):
        trace.to_tensorboard(tmp_path / "file")


def test_half_of_a_surrogate_pair_in_names(trace, tmp_path):
    name = "layer\ud800"
    named = tuple(dataclasses.replace(t, name=f"{name}.{t.name}") for t in trace.tensors)
    dataclasses.replace(trace, tensors=named, head=(name,), notes=(name,)).to_tensorboard(tmp_path)
    assert "text_summary" in str(read(tmp_path).Tags())
