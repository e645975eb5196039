"""Put everything that was measured into a `Trace`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..checks.probes import MEASURED_BY_THE_RUN, PROBE_CLASSES
from ..core.trace import NOT_NAMED, Trace
from ..instruments.probe import ModelProbe, ProbeRunner

#: In `Trace.skipped`: the probe ran and found nothing that it could measure.
NOTHING = "there was nothing to measure"


def build_trace(source: str, fields: dict[str, Any], *, noise: dict[str, float | None], **rest: Any) -> Trace:
    """A trace from the recorder's fields, the rounding noise of single gradients, and all other fields."""
    tensors = tuple(
        dataclasses.replace(t, gradients=dataclasses.replace(t.gradients, noise=noise[t.name]))
        if t.name in noise
        else t
        for t in fields.pop("tensors")
    )
    return Trace(source=source, tensors=tensors, **fields, **rest)


def measured_fields(
    runner: ProbeRunner | None, probes: Sequence[str], without_batches: str | None, *, partial: bool = False
) -> dict[str, Any]:
    """The fields ``measurements``, ``skipped`` and ``not_applicable`` of a `Trace`.

    :param probes: names of those that were to run.  :param without_batches: why only the probes ran that need no batches; None: all did.
    """
    measurements = {} if runner is None else runner.measurements()
    skipped = {} if runner is None else dict(runner.skipped)
    for kind in PROBE_CLASSES:
        if kind.name in measurements or kind.name in skipped:
            continue
        if kind.name not in probes:
            skipped[kind.name] = NOT_NAMED
        elif without_batches is not None and not issubclass(kind, ModelProbe):
            skipped[kind.name] = without_batches
        else:
            skipped[kind.name] = "the run ended early" if partial else NOTHING
    for name in MEASURED_BY_THE_RUN:
        if name not in probes:
            skipped[name] = NOT_NAMED
        elif without_batches is not None:
            skipped[name] = without_batches
    not_applicable = () if runner is None else tuple(runner.not_applicable)
    not_applicable += tuple(name for name, reason in skipped.items() if reason == NOTHING)
    return {"measurements": measurements, "skipped": skipped, "not_applicable": not_applicable}
