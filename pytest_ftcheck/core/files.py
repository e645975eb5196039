"""Atomic writing of files."""

from __future__ import annotations

import os
import stat
import uuid
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, so that a reader sees the old file or the new one, never a part. Missing folders are made.

    Special files (a pipe, ``/dev/stdout``) are written to directly; a link stays a link.

    :raises OSError: the error of the system. The old file is then unchanged, and no temporary file is left.
    """
    target = Path(path).resolve()
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        target.write_bytes(text.encode("utf-8", "backslashreplace"))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
