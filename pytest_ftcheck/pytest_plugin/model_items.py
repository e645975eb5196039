"""``--ftcheck-model``: the checks of a model as test items, without a test file."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ..checks.catalogue import CHECKS
from ..core.formatting import one_line
from ..core.verdict import CheckFailed
from . import options
from .model_spec import definition_of, subject_named

if TYPE_CHECKING:
    from .subject import Subject

#: Start of the node ids: ``ftcheck::tiny:distilbert::check_weights_move``.
ROOT = "ftcheck"
#: Start of an argument that is such a node id, and no path.
ADDRESS = f"{ROOT}::"


def models_of(config: pytest.Config) -> Models | None:
    """The collector of the models that the session names; None: none. Our node ids are removed from pytest's arguments.

    :raises pytest.UsageError: an invalid node id.
    """
    addresses = [argument for argument in config.args if argument.startswith(ADDRESS)]
    given = config.args_source is pytest.Config.ArgsSource.ARGS
    models, ini = options.models(config)
    if ini and given:  # models of the configuration file are ignored where paths are given
        models = []
    if not models and not addresses:
        return None
    selected: dict[str, set[str]] = {}
    by_name: set[tuple[str, str]] = set()
    for address in addresses:
        model, check = _parsed(address)
        selected.setdefault(model, set()).update(CHECKS if check is None else [check])
        if check is not None:
            by_name.add((model, check))
    if addresses:
        config.args[:] = [argument for argument in config.args if not argument.startswith(ADDRESS)]
    elif not given and not ini:
        config.args[:] = []  # a model and no path: only the model is tested
    return Models(config, list(dict.fromkeys([*models, *selected])), selected, by_name)


def _parsed(address: str) -> tuple[str, str | None]:
    """Model and check of a node id; that of a check may end in ``@GROUP``, as xdist writes it."""
    model, *rest = address.removeprefix(ADDRESS).split("::")
    if not model or len(rest) > 1:
        raise pytest.UsageError(f"{address}: expected {ADDRESS}MODEL or {ADDRESS}MODEL::check_NAME")
    if not rest:
        return model, None
    check = rest[0].partition("@")[0].removeprefix("check_")
    if check not in CHECKS:
        raise pytest.UsageError(f"{address}: there is no check {rest[0]!r}; `ftcheck list` shows all")
    return model, check


class Models:
    """Adds the models' items to those that a session collects.

    :param names: as on the command line.
    :param selected: model -> the checks to run; a model that is not in it runs all.
    :param by_name: models and checks whose node id was given.
    """

    def __init__(
        self,
        config: pytest.Config,
        names: Sequence[str],
        selected: dict[str, set[str]],
        by_name: set[tuple[str, str]],
    ) -> None:
        self._config = config
        self._names = names
        self._selected = selected
        self._by_name = by_name
        self._subjects: list[Subject] | None = None

    def subjects(self) -> list[Subject]:
        """The models' subjects.  :raises pytest.UsageError: a name that does not resolve."""
        if self._subjects is None:
            self._make_importable(str(self._config.invocation_params.dir))
            settings = self._config.stash[options.FIELDS]
            self._subjects = []
            for name in self._names:
                try:
                    self._subjects.append(subject_named(name, settings))
                except (ValueError, TypeError) as error:
                    raise pytest.UsageError(one_line(f"--ftcheck-model={name}: {error}", 2_000)) from None
        return self._subjects

    def _make_importable(self, folder: str) -> None:
        """Until the session ends, modules in the folder where pytest was started can be imported, as with ``python -m pytest``."""
        if folder in sys.path or "" in sys.path:
            return
        sys.path.insert(0, folder)

        def undo() -> None:
            if folder in sys.path:
                sys.path.remove(folder)

        self._config.add_cleanup(undo)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """A wrong name ends the session before anything is collected, under xdist in the controller."""
        self.subjects()

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """The models are collected beside the session's paths."""
        report = yield
        if isinstance(collector, pytest.Session) and report.passed:
            root = _Root.from_parent(collector, name=ROOT, nodeid=ROOT)
            root.models = self
            report.result.append(root)
        return report

    def nodes(self, root: pytest.Collector) -> Iterable[pytest.Collector]:
        """A collector a model."""
        for subject in self.subjects():
            model = Model.from_parent(root, name=subject.name)
            model.subject, model.checks = subject, self._selected.get(subject.name, set(CHECKS))
            model.by_name = {check for name, check in self._by_name if name == subject.name}
            yield model

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """A skipped check is reported under the model's name."""
        report = yield
        if isinstance(item, Check) and report.skipped and isinstance(report.longrepr, tuple):
            report.longrepr = (item.nodeid.rpartition("::")[0], None, report.longrepr[2])  # type: ignore[assignment]
        return report


class _Root(pytest.Collector):
    """All models."""

    models: Models

    def collect(self) -> Iterable[pytest.Collector]:
        return self.models.nodes(self)


class Model(pytest.Collector):
    """One model; its items are the checks."""

    subject: Subject
    checks: set[str]
    #: Those whose node ids were given.
    by_name: set[str]

    def collect(self) -> Iterable[pytest.Item]:
        """An item a check, in the order of the checks."""
        for name in CHECKS:
            if name in self.checks:
                check = Check.from_parent(self, name=f"check_{name}")
                check.check, check.subject, check.by_name = name, self.subject, name in self.by_name
                check.add_marker(ROOT)
                group(check, self.subject)
                yield check


class Check(pytest.Item):
    """One check of one model."""

    check: str
    subject: Subject
    #: Its node id was given.
    by_name: bool

    def runtest(self) -> None:
        """Run the check; the first one fine-tunes the model."""
        __tracebackhide__ = True
        from .suite import run_check, subject_runs

        run_check(self.check, self.subject, subject_runs(self.config), self, by_name=self.by_name)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Of a verdict the message; of an error the frames of the user's code."""
        is_verdict = isinstance(excinfo.value, CheckFailed)
        if is_verdict:
            style = "value"
        else:
            libraries = (str(Path(__file__).parents[1]), str(Path(pytest.__file__).parent.parent))
            users = excinfo.traceback.filter(lambda entry: not str(entry.path).startswith(libraries))
            if users:
                excinfo.traceback = users
        shown: Any = super().repr_failure(excinfo, style)
        if is_verdict and (crash := getattr(shown, "reprcrash", None)) is not None:
            path, line, _ = self.location  # not where pytest called us
            crash.path, crash.lineno = path, (line or 0) + 1
        return shown

    def reportinfo(self) -> tuple[Path | str, int | None, str]:
        """Place of the function that makes the model, where it is known."""
        name = f"{self.subject.name}::{self.name}"
        if found := definition_of(self.subject, self.config.rootpath):
            return self.config.rootpath / found[0], found[1] - 1, name
        return self.config.rootpath / ROOT, None, name


def group(item: pytest.Item, subject: Subject) -> None:
    """Items of one subject go to one worker (``--dist loadgroup``), unless they have a group already."""
    if item.config.pluginmanager.hasplugin("xdist") and item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(subject.name))
