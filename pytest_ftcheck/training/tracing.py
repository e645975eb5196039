"""Put what was measured into a `Trace`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from ..trace import Trace
from .probes import EXPERIMENTS, Battery

#: torch's words for a loss that is cut off from the weights.
_NO_GRAPH = re.compile(r"does not require grad and does not have a grad_fn")


def is_cut(error: BaseException) -> bool:
    """Whether backward failed because the loss has no graph."""
    return isinstance(error, RuntimeError) and bool(_NO_GRAPH.search(str(error)))


def assemble(source: str, fields: dict[str, Any], *, noise: dict[str, float | None], **rest: Any) -> Trace:
    """A trace from a recorder's fields, the noise probe's numbers and all the rest."""
    tensors = tuple(
        dataclasses.replace(t, gradients=dataclasses.replace(t.gradients, noise=noise[t.name]))
        if t.name in noise
        else t
        for t in fields.pop("tensors")
    )
    return Trace(source=source, tensors=tensors, **fields, **rest)


def experiments(
    battery: Battery | None, wanted: Sequence[str], without: str, *, partial: bool = False
) -> dict[str, Any]:
    """The fields of a `Trace` that the experiments fill, and why others are empty.

    :param without: why there are none at all, where there is no battery.
    """
    records = {} if battery is None else battery.records()
    skipped = {} if battery is None else dict(battery.skipped)
    for kind in EXPERIMENTS:
        if kind.name not in records and kind.name not in skipped:
            asked = kind.name in wanted
            made = "the run ended before it was made" if partial else "nothing could be measured"
            skipped[kind.name] = (
                "not among the probes= asked for" if not asked else without if battery is None else made
            )
    return {**records, "skipped": skipped}
