"""The assertions: a check that tells the listener and raises."""

from __future__ import annotations

import dataclasses
import functools
import textwrap
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, ParamSpec

from ..core import events, fail_level
from ..core.example_trace import example_trace
from ..core.formatting import describe_type
from ..core.hypothesis_target import toward_border
from ..core.trace import Trace
from ..core.verdict import Verdict
from ..seeds.runs import Runs, repeatable
from .catalogue import CHECKS, SPECS

P = ParamSpec("P")


def _asserting(check: Callable[P, Verdict]) -> Callable[P, Verdict]:
    """The assertion of a check: same arguments, and it raises what does not pass."""
    name = check.__name__.removeprefix("check_")

    @functools.wraps(check)
    def assertion(*arguments: P.args, **options: P.kwargs) -> Verdict:
        __tracebackhide__ = True
        trace: Any = arguments[0] if arguments else options.get("trace")
        if not isinstance(trace, (Trace, Runs)):
            raise TypeError(f"trace is {describe_type(trace)}: expected a trace from finetune() or watch()")
        return enforce(check(*arguments, **options), trace)

    assertion.__name__ = assertion.__qualname__ = f"assert_{name}"
    assertion.__module__ = __name__
    assertion.__doc__ = f"""Raise `CheckFailed` unless ``{name}`` passes; arguments as :func:`~pytest_ftcheck.check_{name}`.

    {(check.__doc__ or "").strip().splitlines()[0]}

{_example(check, name)}
    """
    return assertion


def _example(check: Callable[..., Verdict], name: str) -> str:
    """The example of an assertion's docstring: it passes, or raises for want of a measurement."""
    lines = [">>> from pytest_ftcheck import example_trace"]
    # what needs no measurement passes on the example; nothing is judged for it when this is imported
    if not SPECS[name].measurements or check(example_trace()).ok:
        lines += [f">>> assert_{name}(example_trace()).ok", "True"]
    else:
        lines = [
            "The example has no measurement of it, and no model to measure:",
            "",
            *lines,
            f">>> assert_{name}(example_trace())  # doctest: +IGNORE_EXCEPTION_DETAIL",
            "Traceback (most recent call last):",
            f"pytest_ftcheck.CheckFailed: {name}: INCONCLUSIVE. Not measured.",
        ]
    return textwrap.indent("\n".join(lines), "    ")


def enforce(verdict: Verdict, trace: Trace | Runs | None = None) -> Verdict:
    """Notify the listener, and hypothesis where it searches; raise if the verdict is blocking."""
    __tracebackhide__ = True
    # whether a run is extended depends on the seconds that it takes
    if trace is not None and fail_level.raises(verdict) and not verdict.extended and (again := repeatable(trace)):
        verdict = dataclasses.replace(verdict, notes=(*verdict.notes, again))
    notify(verdict, trace)
    toward_border(verdict)
    if fail_level.raises(verdict):
        raise fail_level.error(verdict) from None
    return verdict


def notify(verdict: Verdict, trace: Trace | Runs | None, parts: Sequence[Verdict] = ()) -> None:
    """Notify the listener of an assertion's verdict.

    :param parts: the verdicts that it was concluded from; empty: it was reached from the trace itself.
    """
    traces = () if trace is None else (trace,) if isinstance(trace, Trace) else trace.traces
    if listener := events.current():
        listener.judged(verdict, traces[0] if traces else None)
    events.verdicts_reached(parts or (verdict,), traces)


#: Name -> ``assert_x``, in the order of the checks.
ASSERTIONS = MappingProxyType({name: _asserting(check) for name, check in CHECKS.items()})
