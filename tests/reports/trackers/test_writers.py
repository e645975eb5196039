"""What trackers read back is what the trace holds; the packages are the real ones, offline."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import sys
import time

import pytest

from pytest_ftcheck.core.example_trace import example_trace
from pytest_ftcheck.core.observations import Histogram, Iteration, Optimizer
from pytest_ftcheck.core.trace_writer import TraceWriter
from pytest_ftcheck.reports.trackers.content import scalars, tags
from pytest_ftcheck.reports.trackers.log import log

HISTOGRAMS = (
    Histogram(-1, -0.08, 0.08, (1, 30, 60, 30, 7)),
    Histogram(9, -0.08, 0.09, (0, 31, 60, 37, 0)),
    Histogram(19, -0.1, 0.1, (5, 30, 58, 30, 5)),
    Histogram(19, 0.5, 0.5, (128,)),
)


@pytest.fixture(scope="module")
def trace():
    made = example_trace()
    return dataclasses.replace(
        made,
        tensors=tuple(dataclasses.replace(t, histograms=HISTOGRAMS if t.part == "head" else ()) for t in made.tensors),
    )


class Notes:
    """A tracker that keeps what it is told."""

    def __init__(self, breaks_at=None):
        self.calls, self.breaks_at = [], breaks_at

    def note(self, *call):
        self.calls.append(call)
        if call[0] == self.breaks_at:
            raise RuntimeError("disk full")

    def settings(self, settings, results):
        self.note("settings", settings, results)

    def scalars(self, step, values):
        self.note("scalars", step, values)

    def histogram(self, tag, step, histogram):
        self.note("histogram", tag, step, histogram)

    def text(self, name, text):
        self.note("text", name, text)

    def close(self, failed):
        self.note("close", failed)

    def of(self, kind):
        return [call[1:] for call in self.calls if call[0] == kind]


# ------------------------------------------------------------------ the protocol
def test_calls_come_in_the_order_that_is_promised(trace):
    notes = Notes()
    trace.log_to(notes)
    kinds = [call[0] for call in notes.calls]
    assert kinds == sorted(kinds, key=["settings", "scalars", "histogram", "text", "close"].index)
    steps = [step for step, _ in notes.of("scalars")]
    assert steps == sorted(set(steps)) == list(range(21))
    assert notes.of("close") == [(False,)]


def test_every_scalar_of_the_trace_is_told(trace):
    notes = Notes()
    trace.log_to(notes, tensors=True)
    told = {(tag, step): value for step, values in notes.of("scalars") for tag, value in values.items()}
    assert told.items() >= {(tag, step): value for tag, value, step in scalars(trace)}.items()
    assert told["loss/train", 20] == trace.losses[-1]
    assert told["motion/head", 20] == pytest.approx(0.25)
    assert told["result/loss.final", 20] == 0.32
    assert told["result/checks_failed", 20] == 0
    assert told["head/classifier.weight/displacement_rms", 20] == trace.tensor("classifier.weight").displacements[-1]


def test_without_tensors_blocks_are_told(trace):
    notes = Notes()
    trace.log_to(notes)
    named = {tag for _, values in notes.of("scalars") for tag in values}
    assert {"gradient_by_block/head", "gradient_by_block/base_model.layer.0", "motion/head"} <= named
    assert not any(tag.startswith(("head/", "the_base/")) for tag in named)
    assert {tag for tag, _, _ in notes.of("histogram")} == {
        "head/classifier.weight/weights",
        "head/classifier.bias/weights",
    }


def test_settings_are_the_status_and_the_values_in_effect(trace):
    notes = Notes()
    trace.log_to(notes)
    ((said, results),) = notes.of("settings")
    assert (said["status"], said["cause"]) == ("healthy", "none")
    assert (said["optimizer"], said["lr"], said["steps"], said["seed"]) == ("AdamW", 5e-5, 20, 0)
    assert (said["device"], said["dtype"], said["autocast"]) == ("cpu", "float32", "none")
    assert all(isinstance(value, (str, int, float, bool)) for value in said.values())
    assert results["result/probe.final"] == 0.31


def test_an_unhealthy_run():
    still = example_trace().tensors
    still = tuple(
        dataclasses.replace(
            t,
            group=None,
            lr_sum=0.0,
            displacements=(0.0,) * 20,
            motion=dataclasses.replace(
                t.motion, share_changed=0.0, rms=0.0, largest=0.0, by_gradient=0.0, by_decay=0.0
            ),
        )
        if t.part == "head"
        else t
        for t in still
    )
    notes = Notes()
    example_trace(tensors=still).log_to(notes)
    ((said, results),) = notes.of("settings")
    assert said["status"] == "unhealthy"
    assert said["cause"] != "none"
    assert results["result/checks_failed"] >= 1
    assert {values["motion/head"] for _, values in notes.of("scalars") if "motion/head" in values} == {0.0}


def test_texts(trace):
    notes = Notes()
    trace.log_to(notes)
    said = dict(notes.of("text"))
    assert said["should_the_weights_move_more"].count("\n") == 3
    assert "healthy" in said["diagnosis"]
    assert "optimizer steps" in said["trace"]


@pytest.mark.parametrize("kind", ["settings", "scalars", "histogram", "text"])
def test_a_tracker_that_breaks_is_closed_as_failed(trace, kind):
    notes = Notes(breaks_at=kind)
    with pytest.raises(RuntimeError, match="disk full"):
        trace.log_to(notes)
    assert notes.calls[-1] == ("close", True)


def test_micro_batches_of_one_step_are_one_point():
    iterations = (
        Iteration(1.0, None, 0, True),
        Iteration(3.0, 0, 1, True),
        Iteration(5.0, None, 0, True),
        Iteration(math.nan, 1, 1, True),
        Iteration(7.0, None, 0, True),
    )
    made = [(step, value) for tag, value, step in scalars(example_trace(iterations=iterations)) if tag == "loss/train"]
    assert made[0] == (1, 2.0)
    assert made[1][0] == 2
    assert math.isnan(made[1][1])
    assert made[2] == (3, 7.0)


def test_an_empty_trace_is_undecided():
    notes = Notes()
    empty = example_trace(
        tensors=(),
        steps=(),
        iterations=(),
        recorded=(),
        probe_loss=None,
        metrics=(),
        optimizer=Optimizer("", "other", ()),
    )
    empty.log_to(notes)
    assert notes.of("settings")[0][0]["status"] == "undecided"
    assert notes.of("close") == [(False,)]


@pytest.mark.parametrize(
    ("to", "error", "told"),
    [
        ("neptune", ValueError, "to='neptune': expected one of tensorboard, wandb, mlflow, trackio, or a TraceWriter"),
        (3, TypeError, "to=an int: expected one of tensorboard"),
        (Notes, TypeError, "to=the class Notes: expected"),
        (None, TypeError, "to=a NoneType"),
    ],
)
def test_no_tracker(trace, to, error, told):
    with pytest.raises(error, match=told):
        trace.log_to(to)


def test_options_are_for_trackers_by_name(trace):
    notes = Notes()
    with pytest.raises(TypeError, match=r"project=\.\.\.: options are for trackers given by name"):
        trace.log_to(notes, project="x")
    assert notes.calls == []


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_package_names_the_extra(trace, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"pip install 'pytest-ftcheck\[{name}\]'"):
        trace.log_to(name)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
@pytest.mark.parametrize("prefix", ["", "/a", "a/", " ", 3])
def test_bad_prefixes(trace, name, prefix):
    with pytest.raises(ValueError, match="prefix="):
        trace.log_to(name, prefix=prefix)


def test_a_notebook_of_ones_own_is_a_writer():
    assert isinstance(Notes(), TraceWriter)
    assert not isinstance(object(), TraceWriter)


def test_log_is_what_log_to_calls(trace):
    one, other = Notes(), Notes()
    trace.log_to(one)
    log(trace, other)
    assert one.calls == other.calls


def test_tags_are_of_one_segment_and_no_two_are_alike():
    odd = [dataclasses.replace(example_trace().tensors[0], name=name) for name in ("a/b", "a b", "..", "", "é" * 999)]
    found = [tag for _, tag in tags(example_trace(tensors=tuple(odd)))]
    assert len(set(found)) == len(odd)
    assert all(tag.count("/") == 1 and len(tag) < 220 and ".." not in tag for tag in found)


# ------------------------------------------------------------------ MLflow
def history(mlflow, run, tag):
    return [(m.step, m.value) for m in mlflow.MlflowClient().get_metric_history(run, tag)]


def test_mlflow_makes_a_run_and_ends_it(trace, mlflow):
    random.seed(3)
    before = random.getstate()
    trace.log_to("mlflow", run_name="mine", tensors=True)
    assert random.getstate() == before
    assert mlflow.active_run() is None
    run = mlflow.last_active_run()
    assert (run.info.status, run.info.run_name) == ("FINISHED", "mine")
    assert run.data.params["status"] == "healthy"
    assert run.data.params["lr"] == "5e-05"
    assert history(mlflow, run.info.run_id, "loss/train") == [(i + 1, loss) for i, loss in enumerate(trace.losses)]
    assert history(mlflow, run.info.run_id, "loss/probe") == [(p.step, p.loss) for p in trace.probe_loss.points]
    told = {tag for tag, _, _ in scalars(trace)}
    assert told <= set(run.data.metrics)
    kept = json.loads(
        mlflow.artifacts.load_text(f"{run.info.artifact_uri}/ftcheck/histograms/head/classifier.weight/weights.json")
    )
    assert [(h["step"], tuple(h["counts"])) for h in kept] == [(h.step + 1, h.counts) for h in HISTOGRAMS]
    assert "Meaning:" in mlflow.artifacts.load_text(f"{run.info.artifact_uri}/ftcheck/should_the_weights_move_more.txt")


def test_mlflow_uses_the_active_run_and_leaves_it_open(trace, mlflow):
    with mlflow.start_run() as mine:
        mlflow.log_param("lr", 3)
        mlflow.log_metric("loss/train", 9.0, step=500)
        trace.log_to("mlflow")
        trace.log_to("mlflow", prefix="again")
        assert mlflow.active_run().info.run_id == mine.info.run_id
    run = mlflow.get_run(mine.info.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "3"}
    assert history(mlflow, mine.info.run_id, "loss/train") == [(500, 9.0)]
    assert len(history(mlflow, mine.info.run_id, "ftcheck/loss/train")) == 20
    assert len(history(mlflow, mine.info.run_id, "again/loss/train")) == 20
    assert run.data.tags["ftcheck.status"] == "healthy"


def test_mlflow_run_fails_where_something_was_raised(trace, mlflow, monkeypatch):
    from pytest_ftcheck.reports.trackers.loggers import MlflowWriter

    def broken(self, name, text):
        raise RuntimeError("disk full")

    monkeypatch.setattr(MlflowWriter, "text", broken)
    with pytest.raises(RuntimeError, match="disk full"):
        trace.log_to("mlflow")
    assert mlflow.active_run() is None
    assert mlflow.last_active_run().info.status == "FAILED"


def test_mlflow_takes_what_is_not_finite_and_odd_names(mlflow):
    made = example_trace()
    odd = dataclasses.replace(made.tensors[2], name="..", displacements=(math.nan, math.inf) * 10)
    iterations = tuple(Iteration(v, i, 1, True) for i, v in enumerate((1.0, math.nan, math.inf)))
    example_trace(tensors=(odd,), iterations=iterations).log_to("mlflow", tensors=True)
    assert mlflow.last_active_run().info.status == "FINISHED"


def test_mlflow_options_where_a_run_is_active(trace, mlflow):
    with mlflow.start_run(), pytest.raises(ValueError, match="run_name='x': a run is active"):
        trace.log_to("mlflow", run_name="x")


# ------------------------------------------------------------------ Weights & Biases
def written(folder):
    """The records of a run that was finished: its writer is a process of its own, which may be a moment behind."""
    for _ in range(3000):
        found = list(records(folder))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError("the run never ended")


def records(folder):
    """What an offline run has written as yet: LevelDB's log format (blocks of 32 kB; checksum, length, kind and data) after seven bytes."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        if place + 7 + int.from_bytes(data[place + 4 : place + 6], "little") > len(data):
            return
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def rows(found):
    for record in found:
        if record.WhichOneof("record_type") == "history":
            yield {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}


def test_wandb_makes_a_run_and_finishes_it(trace, wandb, tmp_path):
    trace.log_to("wandb", name="mine", dir=str(tmp_path))
    assert wandb.run is None
    found = written(tmp_path)
    run = next(r.run for r in found if r.WhichOneof("record_type") == "run")
    assert (run.project, run.display_name) == ("ftcheck", "mine")
    config = {
        u.key: json.loads(u.value_json)
        for r in found
        for u in (
            *(r.run.config.update if r.WhichOneof("record_type") == "run" else ()),
            *(r.config.update if r.WhichOneof("record_type") == "config" else ()),
        )
    }
    assert (config["status"], config["lr"]) == ("healthy", 5e-5)
    logged = list(rows(found))
    losses = [(r["ftcheck/step"], r["ftcheck/loss/train"]) for r in logged if "ftcheck/loss/train" in r]
    assert losses == [(i + 1, loss) for i, loss in enumerate(trace.losses)]
    histograms = [r for r in logged if "ftcheck/head/classifier.weight/weights.values" in r]
    assert [(r["ftcheck/step"], r["ftcheck/head/classifier.weight/weights.values"]) for r in histograms] == [
        (h.step + 1, list(h.counts)) for h in HISTOGRAMS[:3]
    ]
    assert any("ftcheck/diagnosis._type" in r for r in logged)


@pytest.mark.trains
def test_wandb_uses_the_active_run_and_costs_it_no_row(trace, wandb, tmp_path):
    with wandb.init(project="theirs", config={"lr": 3}, dir=str(tmp_path)) as mine:
        mine.log({"loss": 1.0}, step=0)
        trace.log_to("wandb")
        assert wandb.run is mine
        assert mine.config["lr"] == 3
        assert mine.config["ftcheck"]["status"] == "healthy"
        mine.log({"loss": 0.5}, step=1)
    logged = list(rows(written(tmp_path)))
    assert [(r["_step"], r["loss"]) for r in logged if "loss" in r] == [(0, 1.0), (1, 0.5)]
    together = {key for r in logged for key in r}
    weights = "ftcheck/head/classifier.weight/weights"
    assert {f"{weights}/first.values", f"{weights}/last.values"} <= together
    assert any(key.startswith("ftcheck/loss") for key in together)


@pytest.mark.trains
def test_wandb_options_where_a_run_is_active(trace, wandb, tmp_path):
    with (
        wandb.init(project="theirs", dir=str(tmp_path)),
        pytest.raises(ValueError, match="project='x': a run is active"),
    ):
        trace.log_to("wandb", project="x")


# ------------------------------------------------------------------ trackio
def kept(project, name=None):
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = SQLiteStorage.get_runs(project)
    return SQLiteStorage.get_logs(project, run), SQLiteStorage.get_run_config(project, run)


def test_trackio_makes_a_run_and_finishes_it(trace, trackio):
    from trackio import context_vars

    trace.log_to("trackio", name="mine")
    assert context_vars.current_run.get() is None
    logs, config = kept("ftcheck")
    assert (config["status"], config["lr"]) == ("healthy", 5e-5)
    assert [(r["step"], r["loss/train"]) for r in logs if "loss/train" in r] == [
        (i + 1, loss) for i, loss in enumerate(trace.losses)
    ]
    histograms = [
        (r["step"], r["head/classifier.weight/weights"]) for r in logs if "head/classifier.weight/weights" in r
    ]
    assert [(step, tuple(h["values"])) for step, h in histograms] == [(h.step + 1, h.counts) for h in HISTOGRAMS[:3]]
    assert any("diagnosis" in r for r in logs)


def test_trackio_uses_the_active_run_and_leaves_its_counter(trace, trackio):
    mine = trackio.init(project="theirs", embed=False, auto_log_gpu=False, auto_log_cpu=False)
    trackio.log({"loss": 1.0})
    trace.log_to("trackio")
    trackio.log({"loss": 0.5})
    from trackio import context_vars

    assert context_vars.current_run.get() is mine
    trackio.finish()
    logs, _ = kept("theirs")
    assert sorted((r["step"], r["loss"]) for r in logs if "loss" in r) == [(0, 1.0), (1, 0.5)]
    assert len([r for r in logs if "ftcheck/loss/train" in r]) == 20
    assert any("ftcheck/settings" in r for r in logs)


@pytest.mark.trains
@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_run_that_was_begun_and_not_yet_kept_is_finished(trace, name, request, monkeypatch):
    from trackio import context_vars

    package = request.getfixturevalue(name)
    begin = package.init

    def interrupted(**options):
        begin(**options)
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "init", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trace.log_to(name)
    assert (context_vars.current_run.get() if name == "trackio" else package.run) is None
