"""The assertions: a check that tells the listener and raises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import checks, listener
from .trace import Trace
from .verdict import CheckFailed, Verdict


def _settle(name: str, trace: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Verdict:
    __tracebackhide__ = True
    if not isinstance(trace, Trace):
        raise TypeError(f"trace is a {type(trace).__name__}: expected what finetune() or watch() gave")
    verdict = checks.CHECKS[name](trace, *arguments, **options)
    if told := listener.current():
        told.judged(verdict, trace)
    if not verdict.ok:
        raise CheckFailed(verdict) from None
    return verdict


def assert_weights_move(
    trace: Trace,
    part: str = "all",
    *,
    include: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] | None = None,
    **limits: float,
) -> Verdict:
    """Raise `CheckFailed` unless the weights move; arguments as :func:`~pytest_ftcheck.check_weights_move`.

    >>> from pytest_ftcheck import example_trace
    >>> assert_weights_move(example_trace(), part="head").status
    'pass'
    """
    __tracebackhide__ = True
    return _settle("weights_move", trace, (part,), {"include": include, "ignore": ignore, **limits})


def assert_grads_nonzero(
    trace: Trace,
    part: str = "all",
    *,
    include: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] | None = None,
) -> Verdict:
    """Raise `CheckFailed` unless gradients arrive; arguments as :func:`~pytest_ftcheck.check_grads_nonzero`.

    >>> from pytest_ftcheck import example_trace
    >>> assert_grads_nonzero(example_trace(), ignore="*.bias").status
    'pass'
    """
    __tracebackhide__ = True
    return _settle("grads_nonzero", trace, (part,), {"include": include, "ignore": ignore})


def assert_loss_decreases(trace: Trace, **limits: float) -> Verdict:
    """Raise `CheckFailed` unless the loss falls; arguments as :func:`~pytest_ftcheck.check_loss_decreases`.

    >>> from pytest_ftcheck import example_trace
    >>> assert_loss_decreases(example_trace()).status
    'pass'
    """
    __tracebackhide__ = True
    return _settle("loss_decreases", trace, (), dict(limits))


def assert_metric_improves(trace: Trace, metric: str | None = None, **limits: float) -> Verdict:
    """Raise `CheckFailed` unless a metric beats its baseline; arguments as :func:`~pytest_ftcheck.check_metric_improves`.

    >>> from pytest_ftcheck import example_trace
    >>> assert_metric_improves(example_trace(), "accuracy").status
    'pass'
    """
    __tracebackhide__ = True
    return _settle("metric_improves", trace, (metric,), dict(limits))


def assert_all_finite(
    trace: Trace,
    part: str = "all",
    *,
    include: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] | None = None,
) -> Verdict:
    """Raise `CheckFailed` unless every number is finite; arguments as :func:`~pytest_ftcheck.check_all_finite`.

    >>> from pytest_ftcheck import example_trace
    >>> assert_all_finite(example_trace()).status
    'pass'
    """
    __tracebackhide__ = True
    return _settle("all_finite", trace, (part,), {"include": include, "ignore": ignore})


def assert_frozen_stay_frozen(
    trace: Trace,
    part: str | None = None,
    *,
    include: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] | None = None,
) -> Verdict:
    """Raise `CheckFailed` unless what is frozen stays; arguments as :func:`~pytest_ftcheck.check_frozen_stay_frozen`.

    >>> from pytest_ftcheck import example_trace
    >>> assert_frozen_stay_frozen(example_trace()).status
    'skipped'
    """
    __tracebackhide__ = True
    return _settle("frozen_stay_frozen", trace, (part,), {"include": include, "ignore": ignore})
