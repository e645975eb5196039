"""Put what was measured into a `Trace`."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..trace import Trace


def assemble(source: str, fields: dict[str, Any], *, noise: dict[str, float | None], **rest: Any) -> Trace:
    """A trace from a recorder's fields, the noise probe's numbers and all the rest."""
    tensors = tuple(
        dataclasses.replace(t, gradients=dataclasses.replace(t.gradients, noise=noise[t.name]))
        if t.name in noise
        else t
        for t in fields.pop("tensors")
    )
    return Trace(source=source, tensors=tensors, **fields, **rest)
