"""All checks, found by their files: every file of a room that sees no torch is imported, and registers what it holds.

>>> from pytest_ftcheck import example_trace
>>> CHECKS["weights_move"](example_trace()).status
'pass'
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import MappingProxyType

from ..core.verdict import Verdict
from .room_modules import room_modules
from .spec import REGISTERED, CheckSpec, Fault, Symptom


def _load() -> dict[str, CheckSpec]:
    for name in room_modules(probes=False):
        importlib.import_module(name)
    return dict(sorted(REGISTERED.items(), key=lambda item: (item[1].stage, item[1].position)))


def _faults(specs: dict[str, CheckSpec]) -> dict[str, Fault]:
    found: dict[str, Fault] = {}
    for spec in specs.values():
        for fault in spec.faults:
            known = found.setdefault(fault.name, fault)
            if known is not fault and (known.title, known.rank) != (fault.title, fault.rank):
                raise ValueError(f"two faults are called {fault.name!r}")
    return dict(sorted(found.items(), key=lambda item: item[1].rank))


_SPECS = _load()
#: Name -> what is declared of a check, in the order in which a run goes: optimizer and data first, the outcome last.
SPECS = MappingProxyType(_SPECS)
#: Name -> ``check_x``, in the same order.
CHECKS: MappingProxyType[str, Callable[..., Verdict]] = MappingProxyType({n: s.check for n, s in _SPECS.items()})
#: Name -> fault, the most fundamental first.
FAULTS = MappingProxyType(_faults(_SPECS))
_ORDER = {name: i for i, name in enumerate(_SPECS)}
_LAST = max(fault.rank for fault in FAULTS.values()) + 1


def explained_by(fault: Fault) -> frozenset[str]:
    """Checks that fail merely because of this fault.

    >>> sorted(explained_by(FAULTS["frozen_written"]) - explained_by(FAULTS["units_dead"]))
    ['weights_kept']
    """
    return frozenset(
        name for name, spec in SPECS.items() if name in fault.explains or any(s in spec.shows for s in _symptoms(fault))
    )


def _symptoms(fault: Fault) -> set[object]:
    return {Symptom.OUTCOME, *(e for e in fault.explains if isinstance(e, Symptom))}


def rank_of(verdict: Verdict) -> tuple[int, int]:
    """Sorts verdicts, the most fundamental fault first; a fault that no check declares comes last, in the order of the checks."""
    fault = FAULTS.get(verdict.fault)
    return (fault.rank if fault is not None else _LAST), _ORDER.get(verdict.check, len(_ORDER))


def load_measurements() -> None:
    """Every kind of measurement is known once this module is imported; calling this is a way to import it."""
