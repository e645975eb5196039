"""Which files the rooms hold: those that see torch, and all others, told apart by name."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from pathlib import Path

#: What sees torch in a room, by its name: such files are imported when probes are made, never here.
PROBE = "probe"
_HERE = Path(__file__).parent


def room_modules(*, probes: bool) -> Iterator[str]:
    """Full names of the modules in the rooms: those of the probes, or all others."""
    for room in sorted(p for p in _HERE.iterdir() if (p / "__init__.py").is_file()):
        for found in pkgutil.walk_packages([str(room)], f"{__package__}.{room.name}."):
            inside = found.name.removeprefix(f"{__package__}.{room.name}.").split(".")
            if (inside[0] == PROBE) is probes:
                yield found.name
