"""Where a run took place: versions, device, threads; and a fingerprint of what it was trained on."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .tensor_bytes import of_bytes

#: The number of workers, which pytest-xdist sets in each of them.
WORKERS = "PYTEST_XDIST_WORKER_COUNT"


def environment(model: nn.Module) -> dict[str, str]:
    """Versions, device, dtype and threads, as plain strings."""
    first = next(iter(model.parameters()))
    found = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": str(first.device),
        "dtype": ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})),
        "threads": str(torch.get_num_threads()),
        "platform": platform.system(),
    }
    # where the model has parts of it: what else the process has loaded does not change the run
    if (transformers := sys.modules.get("transformers")) and any(map(_is_of_transformers, model.modules())):
        found["transformers"] = str(getattr(transformers, "__version__", "?"))
    if first.device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(first.device)
    return found


def _is_of_transformers(module: nn.Module) -> bool:
    return any(c.__module__.partition(".")[0] == "transformers" for c in type(module).__mro__)


def thread_share() -> int:
    """Threads for this process: torch's setting, and in one of n workers of pytest-xdist at most an n-th of the processors.

    >>> 1 <= thread_share() <= torch.get_num_threads()
    True
    """
    workers = os.environ.get(WORKERS, "")
    threads = torch.get_num_threads()
    if not workers.isdecimal() or int(workers) < 2:
        return threads
    # sched_getaffinity respects taskset and containers; macOS and Windows have none
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(threads, cores // int(workers)))


def data_hash(batches: Sequence[Any]) -> str:
    """Fingerprint of batches, in any order: 12 hexadecimal digits over every tensor, array, text and number in them.

    Of other objects only the type counts.

    >>> a, b = torch.tensor([1, 2]), torch.tensor([3, 4])
    >>> data_hash([a, b]) == data_hash([b, a]) != data_hash([a, a])
    True
    """
    single = sorted(_hash_of(batch) for batch in batches)
    return hashlib.sha256("".join(single).encode()).hexdigest()[:12]


def _hash_of(batch: Any) -> str:
    found = hashlib.sha256()
    for part in _parts(batch):
        found.update(part)
        found.update(b"\0")
    return found.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, torch.Tensor):
        dense = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
        yield f"{dense.dtype} {tuple(dense.shape)}".encode()
        yield of_bytes(dense, bytes) or b""
    elif isinstance(value, Mapping):  # BatchEncoding, too
        for key in sorted(value, key=str):
            yield str(key).encode("utf-8", "backslashreplace")
            yield from _parts(value[key])
    elif isinstance(value, (list, tuple)):
        yield f"{len(value)} items".encode()
        for item in value:
            yield from _parts(item)
    elif isinstance(value, (str, bool, int, float, bytes)) or value is None:
        yield repr(value).encode("utf-8", "backslashreplace")
    elif hasattr(value, "__array__") and hasattr(value, "tobytes"):
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes()
    else:
        yield type(value).__qualname__.encode()
