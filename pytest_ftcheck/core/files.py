"""Files written whole or not at all."""

from __future__ import annotations

import os
import stat
import uuid
from pathlib import Path


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 so that a reader sees the old file or the new one, and never a part; folders are made.

    What is no ordinary file (a pipe, ``/dev/stdout``) is written to as it is; a link stays a link.

    :raises OSError: as the system gives it; then the old file is as before, and nothing else is left.
    """
    target = Path(path).resolve()
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        target.write_bytes(text.encode("utf-8", "backslashreplace"))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with beside.open("xb") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            beside.chmod(stat.S_IMODE(target.stat().st_mode))
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
