"""Where a run took place."""

from __future__ import annotations

import platform
import sys

import torch
from torch import nn


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
    if transformers := sys.modules.get("transformers"):
        found["transformers"] = str(getattr(transformers, "__version__", "?"))
    if first.device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(first.device)
    return found
