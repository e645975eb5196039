"""The allocator that the timings by the clock ask for: memory that was given back stays with the process.

By default glibc returns large tensors to the operating system, a table's gradient at each ``zero_grad``, and each page of the next one
is a page fault. In virtual machines those can take half of a step, and vary by as much. A difference of a few per cent can't be
measured beside them.
"""

from __future__ import annotations

import os
import sys

#: glibc's settings: no piece of memory is mapped by itself, and none is returned.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
    "GLIBC_TUNABLES": f"glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={2**36}",
}


def restart() -> None:
    """Start this script again, with the same arguments, under `ALLOCATOR`; nothing where it has it already, or where no glibc reads it."""
    if sys.platform == "linux" and any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
