"""Gradients neither vanish nor explode along the depth of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from ...core.formatting import block_of, number, plural
from ...core.observations import Tensor
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, Symptom, check
from ..tensor_state import EPS_SHARE, epsilon, gradient_state, largest_norm
from . import faults
from .penalty_alone import penalty_alone_verdict

#: A gradient that is this many times smaller below than above has vanished if it is also too small for the optimizer.
FALL = 1e3
#: Without Adam's eps as a yardstick: the gradient per weight falls this far (over 103 architectures it fell 2.8e4 at most) ...
FALL_SGD = 1e6
#: ... and by this much at each of three layers in a row: a single small layer is no vanishing gradient.
FALL_LAYER = 5.0
#: The whole gradient's norm grew this far above that of the first steps ...
BURST = 1e3
#: ... and the loss ended this far above where it began.
WORSE = 1.5
NAME = "grads_reach_depth"
LIMIT = (
    f"below no layer does the gradient per weight fall {FALL:,.0f} times and under eps / 100 (Adam; else {FALL_SGD:.0e} times, "
    f"by {FALL_LAYER:g} a layer); its norm does not grow {BURST:,.0f} times while the loss rises by half"
)
MEASURED = "largest rms gradient of each layer's matrices over the run, in the model's order, base first"


@dataclass(frozen=True)
class Layer:
    """The matrices of one block."""

    name: str
    part: str
    #: Median over its matrices of the largest rms gradient of each.
    rms: float
    #: The rms below which Adam's step is less than 1 % of the learning rate; None: another optimizer.
    least: float | None


@check(
    stage=Stage.GRADIENTS,
    position=3,
    faults=(faults.LOSS_WITHOUT_OUTPUT, faults.GRADS_VANISH, faults.GRADS_EXPLODE),
    shows=(Symptom.STANDS_STILL, Symptom.BLOWS_UP, Symptom.INPUT_LOST),
)
def check_grads_reach_depth(trace: Trace) -> Verdict:
    """Gradients neither vanish nor explode along the depth of the model.

    Vanishing: from the head down, the gradient per weight falls a thousandfold or more, and every layer from some depth down to the
    input gets too little for the optimizer (under Adam an rms below ``eps / 100``, where its step is 1 % of the learning rate).
    A small gradient alone is no fault, because Adam normalizes it. Exploding: the norm of all gradients grows to a thousand times that
    of the first steps while the loss ends higher than it began.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_grads_reach_depth(example_trace()).headline)
    Over 2 layers the gradient per weight lies between 0.00800 and 0.00800 (rms).
    """
    if burst := _burst(trace):
        early, late, step = burst
        return faults.GRADS_EXPLODE.verdict(
            NAME,
            f"The gradient explodes: its norm grew from {number(early)} to {number(late)} at step {step}, and the loss "
            f"from {number(trace.losses[0])} to {number(_final_loss(trace))}.",
            limit=LIMIT,
            measured=MEASURED,
        )
    if (verdict := penalty_alone_verdict(NAME, trace, MEASURED)) is not None:
        return verdict
    layers = _layers(trace)
    if len(layers) < 2:
        return Verdict(NAME, "skipped", "Fewer than two layers with a gradient to compare.", measured=MEASURED)
    rows = tuple(_row(layer) for layer in layers)
    edge = _vanishing_edge(layers)
    if edge is None:
        sizes = [layer.rms for layer in layers]
        headline = (
            f"Over {plural(len(layers), 'layer')} the gradient per weight lies between "
            f"{number(min(sizes))} and {number(max(sizes))} (rms)."
        )
        return Verdict(NAME, "pass", headline, evidence=rows, limit=LIMIT, measured=MEASURED)
    top = max(range(edge + 1, len(layers)), key=lambda i: layers[i].rms)
    below, above, distance = layers[edge], layers[top], top - edge
    factor = number((above.rms / below.rms) ** (1 / distance))
    eps = f", where {trace.optimizer.name} needs {number(below.least)} to move a weight" if below.least else ""
    return faults.GRADS_VANISH.with_details(above=above.name, below=below.name, factor=factor).verdict(
        NAME,
        f"The gradient vanishes on its way down: rms {number(above.rms)} in {above.name}, {number(below.rms)} in {below.name} "
        f"{plural(distance, 'layer')} below{eps}; {plural(edge + 1, 'layer')} of {len(layers)} learn next to nothing.",
        evidence=tuple(reversed(rows)),
        limit=LIMIT,
        measured=MEASURED,
    )


def _layers(trace: Trace) -> list[Layer]:
    """The layers whose gradient is real, base first."""
    largest = largest_norm(trace)
    units: dict[tuple[str, str], list[Tensor]] = {}
    for t in trace.tensors:
        judged = t.trainable and t.group is not None and len(t.shape) > 1 and t.role == "matrix" and t.numel > 0
        if judged and gradient_state(t, trace, largest) in ("fine", "transient", "negligible"):
            units.setdefault((t.part, block_of(t.name)), []).append(t)
    found = []
    for (part, name), members in units.items():
        eps = epsilon(members[0], trace)
        rms = median(t.gradients.max_rms for t in members)
        if rms > 0 and math.isfinite(rms):
            found.append(Layer(name, part, rms, EPS_SHARE * eps if eps else None))
    return [x for x in found if x.part != "head"] + [x for x in found if x.part == "head"]


def _vanishing_edge(layers: Sequence[Layer]) -> int | None:
    """Index of the uppermost layer that the gradient no longer reaches, nor any below it; None: it reaches the input."""
    edge = -1
    for i, layer in enumerate(layers[:-1]):
        above = [x for x in layers[i + 1 :] if x.rms > FALL * layer.rms]
        if layer.least is not None:
            feeble = layer.rms < layer.least and any(x.rms > 100 * layer.least for x in above)
        else:
            feeble = any(x.rms > FALL_SGD * layer.rms for x in above) and _falls_steadily(layers)
        if not feeble:
            break
        edge = i
    return edge if edge >= 0 else None


def _falls_steadily(layers: Sequence[Layer]) -> bool:
    """Three falls in a row."""
    run = 0
    for below, above in pairwise(layers):
        run = run + 1 if above.rms > FALL_LAYER * below.rms else 0
        if run >= 3:
            return True
    return False


def _burst(trace: Trace) -> tuple[float, float, int] | None:
    """The norm at the first steps, the largest norm, and its step, if the gradient explodes."""
    norms = [s.grad_norm if s.grad_norm_unclipped is None else s.grad_norm_unclipped for s in trace.steps]
    if len(norms) < 5 or not trace.losses or not all(math.isfinite(n) for n in norms[:3]):
        return None
    early = median(norms[:3])
    step, late = max(((i, n) for i, n in enumerate(norms) if math.isfinite(n)), key=lambda row: row[1])
    last = _final_loss(trace)
    if early <= 0 or late < BURST * early or not trace.losses[0] > 0 or not last > WORSE * trace.losses[0]:
        return None
    return early, late, step


def _final_loss(trace: Trace) -> float:
    """The loss at the end: the largest of the last three; NaN counts as infinite."""
    return max(loss if math.isfinite(loss) else math.inf for loss in trace.losses[-3:])


def _row(layer: Layer) -> dict[str, Any]:
    return {"layer": layer.name, "part": layer.part, "rms gradient": layer.rms, "eps / 100": layer.least}
