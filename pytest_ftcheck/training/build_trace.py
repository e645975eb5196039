"""Put what was measured into a `Trace`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from ..checks.probes import PROBE_CLASSES
from ..core.trace import Trace
from ..instruments.probe import ProbeRunner

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


def measurements_of(
    runner: ProbeRunner | None, wanted: Sequence[str], without: str, *, partial: bool = False
) -> dict[str, Any]:
    """What the probes measured and why others measured nothing, as fields of a `Trace`.

    :param without: why there are none at all, where there is no runner.
    """
    records = {} if runner is None else runner.records()
    skipped = {} if runner is None else dict(runner.skipped)
    for kind in PROBE_CLASSES:
        if kind.name not in records and kind.name not in skipped:
            asked = kind.name in wanted
            made = "the run ended before it was made" if partial else "nothing could be measured"
            skipped[kind.name] = "not among the probes= asked for" if not asked else without if runner is None else made
    return {"measurements": records, "skipped": skipped}
