"""Suites: every check is a test item of its own, each subject is fine-tuned once; the convention is scikit-learn's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pytest

from ..checks.assertions import enforce
from ..checks.catalogue import CHECKS, SPECS
from ..core import arguments
from ..core.formatting import as_given, one_line, text_of
from ..core.recipe import Recipe
from ..core.verdict import CheckFailed
from .options import FIELDS
from .session_finetune import session_finetune
from .subject import Subject, as_subject, check_names, check_reasons

if TYPE_CHECKING:
    from ..core.trace import Trace
    from ..seeds.runs import Runs

#: Fixture of tests under `parametrize_with_checks`.
SUITE = "_ftcheck_suite"
Test = TypeVar("Test", bound=Callable[..., Any])
#: The test's argument ``check``: ``check(subject)``.
Check = Callable[[Subject], None]


def parametrize_with_checks(
    subjects: Iterable[Any],
    *,
    checks: Iterable[str] | None = None,
    expected_failures: Mapping[str, str] | Callable[[Subject], Mapping[str, str] | None] | None = None,
) -> Callable[[Test], Test]:
    """Decorate a test that takes ``subject`` and ``check``: every check of every subject becomes a test item of its own.

    The items' ids are ``SUBJECT-check_NAME``, the same in every run: ``pytest -k check_weights_move`` selects them. A subject is
    fine-tuned once a session, when the first of its items runs (under pytest-xdist once a worker; with ``--dist loadgroup`` all its
    items go to one worker). An item fails as the assertion does: on ``fail`` and ``inconclusive``, unless ``--ftcheck-fail-on`` says
    otherwise. A check that does not apply is skipped with the reason; advice passes. What the fine-tune left out because of its cost is
    measured when the item of its check runs. Only probes that train again (``overfit``, ``permuted``) need the check to be named in
    ``checks``, or the probe in the subject's ``probes``; else the item is skipped.

    :param subjects: each a :class:`Subject`, a mapping of its arguments, or a function that makes a model, ``(model, batches)`` or a
        `Subject` (its name is then the function's); names are unique.
    :param checks: names of the checks to run (``weights_move`` or ``check_weights_move``); None: all.
    :param expected_failures: check -> reason why it is expected to fail, or a function ``subject -> mapping``; in addition to those of each
        subject. Such an item is a strict ``xfail``: only the check's own failure is expected, and a pass fails the test.
    :raises ValueError, TypeError: no subjects, two of one name, an unknown check.

    >>> from pytest_ftcheck import Subject, tiny_distilbert, toy_batches
    >>> @parametrize_with_checks([Subject("tiny", tiny_distilbert, toy_batches, lr=1e-3, steps=40)])
    ... def test_my_models(subject, check):
    ...     check(subject)
    """
    if isinstance(subjects, (Subject, Mapping, str)) or not isinstance(subjects, Iterable):
        raise TypeError(f"subjects={as_given(subjects)}: expected a list of subjects")
    converted = [
        as_subject(thing, f"subjects[{i}]")
        for i, thing in enumerate(arguments.items("subjects", subjects, "a list of subjects"))
    ]
    names = [subject.name for subject in converted]
    if not names:
        raise ValueError("subjects is empty: expected at least one")
    if duplicate := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise ValueError(f"subjects: two are named {duplicate!r}; expected unique names, because test ids contain them")
    selected = tuple(CHECKS) if checks is None else check_names("checks", checks)
    if not selected:
        raise ValueError("checks is empty: expected at least one, or None for all")
    values = []
    for subject in converted:
        named, reasons = "expected_failures", expected_failures
        if callable(reasons):
            named, reasons = "what expected_failures returned", reasons(subject)
        reasons = check_reasons(named, reasons)
        values += [
            pytest.param(
                subject, _check(name, reasons.get(name), by_name=checks is not None), id=f"{subject.name}-check_{name}"
            )
            for name in selected
        ]

    def decorate(test: Test) -> Test:
        decorated: Test = pytest.mark.usefixtures(SUITE)(pytest.mark.parametrize(("subject", "check"), values)(test))
        return decorated

    return decorate


def _check(name: str, reason: str | None, *, by_name: bool) -> Check:
    def check(subject: Subject) -> None:
        __tracebackhide__ = True
        if not isinstance(subject, Subject):
            raise TypeError(f"subject={as_given(subject)}: expected the test's argument subject")
        runs, item = _current_test or (SubjectRuns(_finetune, 0), None)
        run_check(name, subject, runs, item, reason, by_name=by_name)

    check.__name__ = check.__qualname__ = f"check_{name}"
    check.__doc__ = f"Raise unless ``{name}`` passes for the subject."
    return check


def _finetune(model: Any, batches: Any, **arguments: Any) -> Any:
    """Outside of a session: ``finetune`` without options."""
    from ..training.finetune import finetune

    return finetune(model, batches, **arguments)


# ---------------------------------------------------------------------- one fine-tune for all checks
class _Failed(NamedTuple):
    """An error as text: the exception itself would keep its frames alive, and the model in them."""

    message: str
    is_skip: bool
    #: Of the item that raised it.
    nodeid: str


class SubjectRuns:
    """Fine-tunes each subject once, for all items of a session.

    :param train: ``finetune``, with the session's options.
    :param seed: the seed under which a subject's functions are called, unless the subject sets one.
    """

    def __init__(self, train: Callable[..., Any], seed: int) -> None:
        self._train = train
        self._seed = seed
        self._done: dict[Subject, tuple[Trace | Runs, Subject]] = {}
        self._failed: dict[Subject, _Failed] = {}

    def trained(self, subject: Subject, nodeid: str) -> tuple[Trace | Runs, Subject]:
        """The subject's run, and the subject as built. An error is raised in full for the first item, in one line for the others.

        :param nodeid: of the requesting item; the item that raised an error tries again when it is run again.
        """
        __tracebackhide__ = True
        failed = self._failed.get(subject)
        if failed is not None and failed.nodeid != nodeid:
            if failed.is_skip:
                pytest.skip(failed.message)
            message = f"{subject.name} was not fine-tuned: {failed.message} (full error: {failed.nodeid})"
            pytest.fail(message, pytrace=False)
        if subject not in self._done:
            self._failed.pop(subject, None)
            try:
                self._done[subject] = self._run(subject)
            # pytest's fail and skip, also those of a timeout, do not derive from Exception
            except (Exception, pytest.fail.Exception, pytest.skip.Exception) as error:
                message, is_skip = one_line(text_of(error), 200), isinstance(error, pytest.skip.Exception)
                if not is_skip:
                    message = f"{type(error).__name__}: {message}"
                self._failed[subject] = _Failed(message, is_skip, nodeid)
                raise
        return self._done[subject]

    def _run(self, subject: Subject) -> tuple[Trace | Runs, Subject]:
        from .build_subject import build

        recipe = subject.arguments.get("recipe")
        built = build(subject, subject.arguments.get("seed", self._seed if recipe is None else recipe.seed))
        return self._train(built.model, built.batches, **built.arguments), built


_RUNS: pytest.StashKey[SubjectRuns] = pytest.StashKey()


def subject_runs(config: pytest.Config) -> SubjectRuns:
    """The runs of this session's subjects."""
    if _RUNS not in config.stash:
        seed = Recipe(**config.stash[FIELDS]).seed
        config.stash[_RUNS] = SubjectRuns(session_finetune(config), seed)
    return config.stash[_RUNS]


def run_check(
    name: str,
    subject: Subject,
    runs: SubjectRuns,
    item: pytest.Item | None,
    reason: str | None = None,
    *,
    by_name: bool = False,
) -> None:
    """Raise unless the check passes; skip the test if the check does not apply, or is not measured.

    :param item: the running test item, if there is one.
    :param reason: why the check is expected to fail; None: look in the subject's expected failures.
    :param by_name: this check was asked for by its name, so that it is measured even by a probe that trains again.
    """
    __tracebackhide__ = True
    run, built = runs.trained(subject, "" if item is None else item.nodeid)
    reason = built.expected_failures.get(name) if reason is None else reason
    if reason is not None and item is not None:
        item.add_marker(pytest.mark.xfail(reason=reason, raises=CheckFailed, strict=True))
    trains_again = any(kind.on_request for kind in SPECS[name].measurements)
    check = SPECS[name].judge if trains_again and not by_name else CHECKS[name]
    verdict = enforce(check(run), run)
    if verdict.status == "skipped":
        pytest.skip(verdict.headline)


#: Runs and item of the running test. One value for the process, because the test's own threads and event loops must see it, too.
_current_test: tuple[SubjectRuns, pytest.Item] | None = None


@contextlib.contextmanager
def running(item: pytest.Item) -> Iterator[None]:
    """Checks that are called inside the block belong to this test item."""
    global _current_test
    before, _current_test = _current_test, (subject_runs(item.config), item)
    try:
        yield
    finally:
        _current_test = before
