"""How many threads one process should compute with, where pytest-xdist runs several side by side."""

from __future__ import annotations

import os

import torch

#: pytest-xdist sets it in its workers.
WORKERS = "PYTEST_XDIST_WORKER_COUNT"


def share() -> int:
    """Threads of this process: as torch is set, and among n workers no more than an n-th of the processors that it may use.

    >>> 1 <= share() <= torch.get_num_threads()
    True
    """
    told = os.environ.get(WORKERS, "")
    threads = torch.get_num_threads()
    if not told.isdecimal() or int(told) < 2:
        return threads
    # sched_getaffinity knows of taskset and containers; macOS and Windows have none
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(threads, cores // int(told)))
