"""The probes of all rooms, found by their files."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from ..core import arguments
from ..core.formatting import as_given
from ..instruments.probe import ModelProbe, ProbeBase
from .loop.record import LoopCalls
from .room_modules import room_modules


def _load() -> tuple[type[ProbeBase[Any]], ...]:
    probes: set[type[ProbeBase[Any]]] = set()
    for module in room_modules(probes=True):
        for kind in vars(importlib.import_module(module)).values():
            # a class with a name, where it is defined
            if (
                isinstance(kind, type)
                and issubclass(kind, ProbeBase)
                and kind.__module__ == module
                and hasattr(kind, "name")
            ):
                probes.add(kind)
    return tuple(sorted(probes, key=lambda kind: (kind.order, kind.name)))


#: All probes, the cheapest and most informative first: the last ones are left out first where the budget is short.
PROBE_CLASSES: tuple[type[ProbeBase[Any]], ...] = _load()
#: Measured by the run itself, and judged by a check of their own.
MEASURED_BY_THE_RUN = ("loss", "metrics")
#: Names that ``probes=`` accepts; the first four are measured by the run itself.
PROBES = ("loss", "descent", "noise", "metrics", *(p.name for p in PROBE_CLASSES))


def chosen_probes(probes: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the probes to run, by default all that need not be named; ``ValueError`` for a name that is no probe's."""
    if probes is None:
        on_request = {kind.name for kind in PROBE_CLASSES if not kind.default}
        return tuple(p for p in PROBES if p not in on_request)
    expected = f"a sequence of names, any of {', '.join(PROBES)}"
    if isinstance(probes, str):
        raise TypeError(f"probes={as_given(probes)}: expected {expected}")
    names = arguments.texts("probes", probes, expected)
    if unknown := [p for p in names if p not in PROBES]:
        raise ValueError(f"probes={as_given(probes)}: {unknown[0]!r} is none of {', '.join(PROBES)}")
    return names


def probes_to_run(
    chosen: Sequence[str], *, without_batches: bool, own_calls: bool = False
) -> list[type[ProbeBase[Any]]]:
    """The probes that are chosen, and those that read structure alone; without batches, the latter alone.

    :param own_calls: the loop is the user's (``step=``, ``watch``). Its calls are observed whatever is chosen, and without batches, too,
        for it costs nothing: without it, a check would judge our own call.
    """
    return [
        kind
        for kind in PROBE_CLASSES
        if issubclass(kind, ModelProbe)
        or (own_calls and kind.name == LoopCalls.probe)
        or (not without_batches and kind.name in chosen)
    ]
