"""The modules of all rooms: probes, which import torch, and all others; their names tell which."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from pathlib import Path

#: Name of a room's module or package that imports torch.
PROBE = "probe"
_HERE = Path(__file__).parent


def room_modules(*, probes: bool) -> Iterator[str]:
    """Full names of the modules in the rooms: those of the probes, or all others."""
    for room in sorted(p for p in _HERE.iterdir() if (p / "__init__.py").is_file()):
        prefix = f"{__package__}.{room.name}."
        for module in pkgutil.walk_packages([str(room)], prefix):
            in_room = module.name.removeprefix(prefix).split(".")[0]
            if (in_room == PROBE) is probes:
                yield module.name
