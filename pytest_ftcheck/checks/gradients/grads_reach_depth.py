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
from ..tensor_state import EPS_SHARE, epsilon, kind_of, largest_norm
from . import faults

#: A gradient that is this many times smaller below than above has vanished, if it is also too small for the optimizer.
FALL = 1e3
#: Without Adam's eps as a yardstick: the gradient per weight falls this far (over 103 architectures it fell 2.8e4 at most) ...
FALL_SGD = 1e6
#: ... and by this much at each of three layers one after another: a single small layer is no vanishing.
FALL_LAYER = 5.0
#: The whole gradient's norm grew this far above that of the first steps ...
BURST = 1e3
#: ... and the loss ended this far above where it began.
WORSE = 1.5
MEASURED = "largest rms gradient of each layer's matrices over the run, in the model's order, base first"


@dataclass(frozen=True)
class Layer:
    """The matrices of one block."""

    name: str
    part: str
    #: Median over its matrices of the largest rms gradient of each.
    rms: float
    #: That below which Adam's step is 1 % of the learning rate; None: another optimizer.
    least: float | None


@check(
    stage=Stage.GRADIENTS,
    position=3,
    faults=(
        faults.GRADS_VANISH,
        faults.GRADS_EXPLODE,
    ),
    shows=(
        Symptom.STANDS_STILL,
        Symptom.BLOWS_UP,
        Symptom.INPUT_LOST,
    ),
)
def check_grads_reach_depth(trace: Trace) -> Verdict:
    """Gradients neither vanish nor explode along the depth of the model.

    Vanishing: from the head down, the gradient per weight falls a thousandfold or more, and everything from some layer down to the
    input gets too little for the optimizer (under Adam an rms below ``eps / 100``, where its step is 1 % of the learning rate).
    Smallness alone is no fault, for Adam undoes it. Exploding: the norm of all gradients grows a thousandfold over the first steps'
    while the loss ends higher than it began.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_grads_reach_depth(example_trace()).headline)
    Over 2 layers the gradient per weight lies between 0.00800 and 0.00800 (rms).
    """
    name = "grads_reach_depth"
    limit = (
        f"below no layer does the gradient per weight fall {FALL:,.0f} times and under eps / 100 (Adam; else {FALL_SGD:.0e} times, "
        f"by {FALL_LAYER:g} a layer); its norm does not grow {BURST:,.0f} times while the loss rises by half"
    )
    if burst := _burst(trace):
        early, late, at = burst
        first, last = trace.losses[0], _last(trace)
        return Verdict(
            name,
            "fail",
            f"The gradient explodes: its norm grew from {number(early)} to {number(late)} at step {at}, and the loss "
            f"from {number(first)} to {number(last)}.",
            limit=limit,
            causes=("the steps are too large for this loss, and each makes the next gradient larger",),
            remedy="lower the learning rate, warm it up, or clip the gradient norm to 1",
            measured=MEASURED,
            fault="grads_explode",
        )
    layers = _layers(trace)
    if len(layers) < 2:
        return Verdict(name, "skipped", "Fewer than two layers with a gradient to compare.", measured=MEASURED)
    rows = tuple(_row(layer) for layer in layers)
    edge = _vanishes(layers)
    if edge is None:
        sizes = [layer.rms for layer in layers]
        return Verdict(
            name,
            "pass",
            f"Over {plural(len(layers), 'layer')} the gradient per weight lies between "
            f"{number(min(sizes))} and {number(max(sizes))} (rms).",
            evidence=rows,
            limit=limit,
            measured=MEASURED,
        )
    top = max(range(edge + 1, len(layers)), key=lambda i: layers[i].rms)
    below, above = layers[edge], layers[top]
    steps = top - edge
    factor = (above.rms / below.rms) ** (1 / steps)
    eps = f", where {trace.optimizer.name} needs {number(below.least)} to move a weight" if below.least else ""
    return Verdict(
        name,
        "fail",
        f"The gradient vanishes on its way down: rms {number(above.rms)} in {above.name}, {number(below.rms)} in {below.name} "
        f"{steps} {'layer' if steps == 1 else 'layers'} below{eps}; {plural(edge + 1, 'layer')} of {len(layers)} learn next to nothing.",
        evidence=tuple(reversed(rows)),
        limit=limit,
        causes=(
            f"between {above.name} and {below.name} each layer passes on 1/{number(factor)} of its gradient: saturating activations "
            "(sigmoid, tanh) or small weights, one upon the other, without a residual path or a norm",
        ),
        remedy=f"between {below.name} and {above.name}: ReLU or GELU, weights of std 1/sqrt(fan-in), fewer layers, or a residual path",
        measured=MEASURED,
        fault="grads_vanish",
    )


def _layers(trace: Trace) -> list[Layer]:
    """The layers whose gradient is real, base first."""
    largest = largest_norm(trace)
    units: dict[tuple[str, str], list[Tensor]] = {}
    for t in trace.tensors:
        judged = t.trainable and t.group is not None and len(t.shape) > 1 and t.role == "matrix" and t.numel > 0
        if judged and kind_of(t, trace, largest) in ("fine", "transient", "negligible"):
            units.setdefault((t.part, block_of(t.name)), []).append(t)
    found = []
    for (part, name), members in units.items():
        eps = epsilon(members[0], trace)
        rms = median(t.gradients.max_rms for t in members)
        if rms > 0 and math.isfinite(rms):
            found.append(Layer(name, part, rms, EPS_SHARE * eps if eps else None))
    return [x for x in found if x.part != "head"] + [x for x in found if x.part == "head"]


def _vanishes(layers: Sequence[Layer]) -> int | None:
    """Place of the uppermost layer that the gradient no longer reaches, all below it neither; None: it reaches the input."""
    edge = -1
    for i, layer in enumerate(layers[:-1]):
        above = [x for x in layers[i + 1 :] if x.rms > FALL * layer.rms]
        if layer.least is not None:
            faint = layer.rms < layer.least and any(x.rms > 100 * layer.least for x in above)
        else:
            faint = any(x.rms > FALL_SGD * layer.rms for x in above) and _falls(layers)
        if not faint:
            break
        edge = i
    return edge if edge >= 0 else None


def _falls(layers: Sequence[Layer]) -> bool:
    """Three falls one after another."""
    run = 0
    for below, above in pairwise(layers):
        run = run + 1 if above.rms > FALL_LAYER * below.rms else 0
        if run >= 3:
            return True
    return False


def _burst(trace: Trace) -> tuple[float, float, int] | None:
    """Norm at first, norm at its largest, and that step, if the gradient explodes."""
    norms = [s.grad_norm if s.grad_norm_unclipped is None else s.grad_norm_unclipped for s in trace.steps]
    if len(norms) < 5 or not trace.losses or not all(math.isfinite(n) for n in norms[:3]):
        return None
    early = median(norms[:3])
    at, late = max(((i, n) for i, n in enumerate(norms) if math.isfinite(n)), key=lambda row: row[1])
    last = _last(trace)
    if early <= 0 or late < BURST * early or not trace.losses[0] > 0 or not last > WORSE * trace.losses[0]:
        return None
    return early, late, at


def _last(trace: Trace) -> float:
    """The loss at the end: the largest of the last three, a number that is none counts as infinite."""
    return max(loss if math.isfinite(loss) else math.inf for loss in trace.losses[-3:])


def _row(layer: Layer) -> dict[str, Any]:
    return {"layer": layer.name, "part": layer.part, "rms gradient": layer.rms, "eps / 100": layer.least}
