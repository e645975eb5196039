"""Weights & Biases, MLflow and trackio as `TraceWriter`s; each package is imported when its writer is created.

An active run of the user is used, under names that begin with the prefix, and is otherwise unchanged: neither finished nor renamed, with
its step counter as before. Otherwise a new run is created with the settings, and finished at the end.
"""

from __future__ import annotations

import html
import json
import os
import time
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ...core.formatting import as_given
from ...core.trace_writer import PROJECT, Setting
from ..chart_data import density

if TYPE_CHECKING:
    from ...core.observations import Histogram


def package(name: str, extra: str = "") -> ModuleType:
    """The package, or an ``ImportError`` that says what to install."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        line = f"pip install 'pytest-ftcheck[{extra or name}]'"
        raise ImportError(f"logging to {name} needs the package {name}: {line}") from error


def _named(prefix: str) -> str:
    if not isinstance(prefix, str) or not prefix or prefix.strip("/ .") != prefix:
        raise ValueError(
            f"prefix={as_given(prefix)}: expected a name such as {PROJECT!r}, without a slash, dot or blank at its ends"
        )
    return prefix


def _refuse(options: Mapping[str, Any], active: Any) -> None:
    """``ValueError`` for options of a new run where a run is active."""
    if active is not None and options:
        name, value = next(iter(options.items()))
        raise ValueError(f"{name}={as_given(value)}: a run is active, so this option has no effect")


class WandbWriter:
    """Logs to Weights & Biases: the active run, else a new one in the project ``WANDB_PROJECT`` or ``ftcheck``.

    A new run has every curve as a metric over ``ftcheck/step``. In your own run the curves become charts, sent with your next
    ``log``: W&B drops rows behind its step counter, so rows of ours would cost you rows of yours.

    :param prefix: what all names begin with.
    :param run: log to this run, and leave it open.  :param options: of ``wandb.init``, for a new run (``project``, ``name``, ...).
    :raises ImportError: the package ``wandb`` is missing.
    """

    def __init__(self, *, prefix: str = PROJECT, run: Any = None, **options: Any) -> None:
        self._prefix = _named(prefix)
        self._wandb = package("wandb")
        active = self._wandb.run if run is None else run
        _refuse(options, active)
        self._own = active is None
        self._options = {"project": os.environ.get("WANDB_PROJECT") or PROJECT, **options}
        #: None: not begun.
        self._run: Any = active
        #: A run of our own is begun, or nearly so: an interrupt may come before it is kept here.
        self._beginning = False
        #: For a run of the user: tag -> steps and values; and the content of the row of the next ``log``.
        self._curves: dict[str, tuple[list[int], list[float]]] = {}
        self._row: dict[str, Any] = {}

    def settings(self, settings: Mapping[str, Setting], results: Mapping[str, float]) -> None:
        """As the run's configuration; the results into its summary."""
        if self._own:
            self._beginning = True
            self._run = self._wandb.init(**self._options)
            self._run.define_metric(f"{self._prefix}/step")
            self._run.define_metric(f"{self._prefix}/*", step_metric=f"{self._prefix}/step")
        config: dict[str, Any] = dict(settings) if self._own else {self._prefix: dict(settings)}
        self._run.config.update(config, allow_val_change=True)
        self._run.summary.update({f"{self._prefix}/{tag}": value for tag, value in results.items()})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One row; in a run of the user, points of charts."""
        if self._own:
            self._run.log({f"{self._prefix}/step": step, **{f"{self._prefix}/{tag}": v for tag, v in values.items()}})
            return
        for tag, value in values.items():
            xs, ys = self._curves.setdefault(tag, ([], []))
            xs.append(step)
            ys.append(value)

    def histogram(self, tag: str, step: int, histogram: Histogram) -> None:
        """As W&B's own histogram."""
        found = density(histogram)
        if found is None:  # all values are equal
            return
        logged = self._wandb.Histogram(np_histogram=(list(found.counts), list(found.edges)))
        if self._own:
            self._run.log({f"{self._prefix}/step": step, f"{self._prefix}/{tag}": logged})
        else:  # a row holds one histogram a name: the first stays, the last is overwritten
            first = f"{self._prefix}/{tag}/first"
            self._row[f"{self._prefix}/{tag}/last" if first in self._row else first] = logged

    def text(self, name: str, text: str) -> None:
        """As HTML, which keeps the columns."""
        logged = self._wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)
        key = f"{self._prefix}/{name}"
        if self._own:
            self._run.log({key: logged})
        else:
            self._row[key] = logged

    def close(self, failed: bool) -> None:
        """Finish a run of our own."""
        if self._own:
            run = self._wandb.run if self._run is None and self._beginning else self._run
            if run is not None:
                run.finish(exit_code=int(failed))
        elif not failed:
            self._run.log({**self._row, **self._charts()}, commit=False)

    def _charts(self) -> dict[str, Any]:
        """One chart for each kind of curve."""
        groups: dict[str, list[str]] = {}
        for tag in self._curves:
            groups.setdefault(tag.partition("/")[0], []).append(tag)
        return {
            f"{self._prefix}/{group}": self._wandb.plot.line_series(
                xs=[self._curves[tag][0] for tag in members],
                ys=[self._curves[tag][1] for tag in members],
                keys=[tag.partition("/")[2] for tag in members],
                title=f"{self._prefix}: {group}",
                xname="optimizer step",
            )
            for group, members in groups.items()
            if group != "result"
        }


class MlflowWriter:
    """Logs to MLflow: the active run, else a new one in the current experiment, wherever ``mlflow.set_tracking_uri`` or
    ``MLFLOW_TRACKING_URI`` points.

    In your own run names begin with the prefix, and settings are tags, for parameters cannot be written twice. Histograms and texts are
    artifacts in the folder of the prefix.

    :param prefix: what names begin with, and the artifacts' folder.
    :param options: of ``mlflow.start_run``, for a new run (``run_name``, ``experiment_id``, ...).
    :raises ImportError: the package ``mlflow`` is missing.
    """

    #: MLflow refuses larger batches.
    METRICS, TAGS = 1000, 100

    def __init__(self, *, prefix: str = PROJECT, **options: Any) -> None:
        self._prefix = _named(prefix)
        self._mlflow = package("mlflow")
        active = self._mlflow.active_run()
        _refuse(options, active)
        self._own, self._options = active is None, options
        self._run: str = "" if active is None else active.info.run_id
        # a client writes to the given run, whichever is active
        self._client: Any = self._mlflow.MlflowClient()
        self._metrics: list[Any] = []
        self._histograms: dict[str, list[dict[str, Any]]] = {}

    def settings(self, settings: Mapping[str, Setting], results: Mapping[str, float]) -> None:  # noqa: ARG002 - as metrics
        """As parameters; in a run of the user as tags."""
        from mlflow.entities import Param, RunTag

        if self._own:
            self._run = self._mlflow.start_run(**self._options).info.run_id
            found = [Param(key, str(value)) for key, value in settings.items()]
            self._client.log_batch(self._run, params=found[: self.TAGS])
        else:
            marks = [RunTag(f"{self._prefix}.{key}", str(value)) for key, value in settings.items()]
            self._client.log_batch(self._run, tags=marks[: self.TAGS])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As metrics over the steps."""
        from mlflow.entities import Metric

        before = "" if self._own else f"{self._prefix}/"
        now = int(time.time() * 1000)
        self._metrics += [Metric(before + tag, float(value), now, step) for tag, value in values.items()]
        while len(self._metrics) >= self.METRICS:
            self._flush()

    def histogram(self, tag: str, step: int, histogram: Histogram) -> None:
        """MLflow has no histograms: as JSON, one file a tensor."""
        self._histograms.setdefault(tag, []).append(
            {"step": step, "low": histogram.low, "high": histogram.high, "counts": list(histogram.counts)}
        )

    def text(self, name: str, text: str) -> None:
        """As a text file."""
        self._client.log_text(self._run, text + "\n", f"{self._prefix}/{name}.txt")

    def close(self, failed: bool) -> None:
        """Write the rest; end a run of our own."""
        try:
            while self._metrics and not failed:
                self._flush()
            for tag, found in self._histograms.items() if not failed else ():
                self._client.log_text(self._run, json.dumps(found), f"{self._prefix}/histograms/{tag}.json")
        except BaseException:
            failed = True
            raise
        finally:
            if self._own:  # nothing happens where no run is active
                self._mlflow.end_run("FAILED" if failed else "FINISHED")

    def _flush(self) -> None:
        batch, self._metrics = self._metrics[: self.METRICS], self._metrics[self.METRICS :]
        self._client.log_batch(self._run, metrics=batch)


class TrackioWriter:
    """Logs to trackio: the active run, else a new one in the project ``ftcheck``, kept where ``TRACKIO_DIR`` points.

    :param prefix: what names begin with in a run of your own.
    :param options: of ``trackio.init``, for a new run (``project``, ``name``, ...).
    :raises ImportError: the package ``trackio`` is missing.
    """

    def __init__(self, *, prefix: str = PROJECT, **options: Any) -> None:
        self._prefix = _named(prefix)
        self._trackio = package("trackio")
        from trackio import context_vars

        self._run: Any = context_vars.current_run.get()
        _refuse(options, self._run)
        self._own = self._run is None
        self._options = {"project": PROJECT, "embed": False, "auto_log_gpu": False, "auto_log_cpu": False, **options}
        self._last = 0
        #: A run of our own is begun, or nearly so.
        self._beginning = False

    def settings(self, settings: Mapping[str, Setting], results: Mapping[str, float]) -> None:  # noqa: ARG002 - as scalars
        """As the configuration of a new run, which trackio takes at its start; in a run of the user as a text."""
        if self._own:
            config = {**settings, **(self._options.pop("config", None) or {})}
            self._beginning = True
            self._run = self._trackio.init(config=config, **self._options)
        else:
            self.text("settings", "\n".join(f"{key}: {value}" for key, value in settings.items()))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One row at that step."""
        self._last = max(self._last, step)
        self._log(dict(values), step)

    def histogram(self, tag: str, step: int, histogram: Histogram) -> None:
        """As trackio's own histogram."""
        found = density(histogram)
        if found is not None:
            logged = self._trackio.Histogram(np_histogram=(list(found.counts), list(found.edges)))
            self._log({tag: logged}, step)

    def text(self, name: str, text: str) -> None:
        """As Markdown, in a block that keeps the columns."""
        self._log({name: self._trackio.Markdown(f"```\n{text}\n```")}, self._last)

    def close(self, failed: bool) -> None:  # noqa: ARG002 - trackio's runs do not fail
        """Finish a run of our own."""
        from trackio import context_vars

        if self._own and self._beginning and context_vars.current_run.get() is not None:
            self._trackio.finish()
            self._run = None

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        before = "" if self._own else f"{self._prefix}/"
        # our rows may be ahead of the user's counter, and would move it; the attribute is private to trackio
        counter = None if self._own else getattr(self._run, "_next_step", None)
        self._run.log({before + key: value for key, value in values.items()}, step=step)
        if counter is not None:
            self._run._next_step = counter
