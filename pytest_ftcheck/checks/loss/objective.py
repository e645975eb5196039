"""What the optimizer descends: the loss, or minus the loss where it maximizes and the loss is itself the negative of one."""

from __future__ import annotations

import dataclasses
import math

from ...core.trace import Trace
from .record import LossShape

#: The note of a verdict on minus the loss.
MINUS = "the optimizer maximizes (maximize=True): judged is minus the loss, which it descends"


def descended_shape(trace: Trace) -> LossShape | None:
    """The loss at chosen logits; minus the loss, where that is what is descended."""
    shape = trace.measured(LossShape)
    return shape.of_minus if shape is not None and descends_minus_measured(trace) else shape


def descends_minus_measured(trace: Trace) -> bool:
    """The optimizer maximizes, and the measured loss is seen to be minus that of the task."""
    shape = trace.measured(LossShape)
    return trace.optimizer.maximizes and shape is not None and shape.of_minus is not None


def descended_losses(trace: Trace) -> Trace:
    """The trace, its losses multiplied by -1 where minus the loss is descended.

    A loss that is negative from the start is minus one, unless its gradient was seen to be that of a loss. Those of the probe and of the
    loop may differ: a loop may return the loss and call ``backward()`` on minus the loss.
    """
    shape = trace.measured(LossShape)
    if not trace.optimizer.maximizes or (shape is not None and (shape.cosine or 0.0) > 0):
        return trace
    measured = descends_minus_measured(trace)
    probe, losses = trace.probe_loss, trace.losses
    positive_probe = False
    if probe is not None and probe.points:
        first = probe.points[0].loss
        positive_probe = first >= 0
        if measured or first < 0:
            probe = dataclasses.replace(
                probe,
                points=tuple(dataclasses.replace(p, loss=-p.loss) for p in probe.points),
                descents=tuple(dataclasses.replace(d, before=-d.before, after=-d.after) for d in probe.descents),
            )
    iterations = trace.iterations
    first_loss = next((v for v in losses if math.isfinite(v)), 0.0)
    if first_loss < 0 or (measured and positive_probe):
        iterations = tuple(i if i.loss is None else dataclasses.replace(i, loss=-i.loss) for i in iterations)
    return dataclasses.replace(trace, probe_loss=probe, iterations=iterations)
