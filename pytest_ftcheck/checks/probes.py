"""The probes of all rooms, found by their files: measured here, judged elsewhere."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence

from ..instruments.probe import Probe
from .room_modules import room_modules


def _load() -> tuple[type[Probe], ...]:
    found: set[type[Probe]] = set()
    for name in room_modules(probes=True):
        module = importlib.import_module(name)
        found |= {
            kind
            for kind in vars(module).values()
            if isinstance(kind, type) and issubclass(kind, Probe) and kind.__module__ == name and hasattr(kind, "name")
        }
    return tuple(sorted(found, key=lambda kind: kind.order))


#: The probes, the cheapest and most telling first: those at the end are the first to be left out of a long run.
PROBE_CLASSES: tuple[type[Probe], ...] = _load()
#: Names that ``probes=`` accepts.
PROBES = ("loss", "descent", "noise", "metrics", *(p.name for p in PROBE_CLASSES))


def chosen_probes(probes: Sequence[str] | None) -> tuple[str, ...]:
    """The probes to run; ``ValueError`` for a name that is none."""
    if probes is None:
        return tuple(p for p in PROBES if all(kind.default for kind in PROBE_CLASSES if kind.name == p))
    names = tuple(probes) if isinstance(probes, Iterable) and not isinstance(probes, str) else None
    if names is None or not all(isinstance(p, str) for p in names):
        raise TypeError(f"probes={probes!r}: expected a sequence of names, any of {', '.join(PROBES)}")
    if unknown := [p for p in names if p not in PROBES]:
        raise ValueError(f"probes={probes!r}: {unknown[0]!r} is none of {', '.join(PROBES)}")
    return names
