"""Is every number finite?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...core.formatting import number, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..loss import faults as loss_faults
from ..spec import Stage, Symptom, check
from ..tensor_state import epsilon
from . import faults

#: A loss this many times its first value has run away.
RUNAWAY = 5.0


@check(
    stage=Stage.GRADIENTS,
    position=4,
    faults=(
        faults.NONFINITE_START,
        faults.EPS_UNDERFLOW,
        faults.NONFINITE_FORWARD,
        faults.NONFINITE_BACKWARD,
        faults.NONFINITE_UPDATE,
        faults.NONFINITE_BUFFER,
        loss_faults.DIVERGED,
    ),
    shows=(Symptom.BLOWS_UP,),
)
def check_all_finite(
    trace: Trace,
    part: str = "all",
    *,
    include: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] | None = None,
) -> Verdict:
    """Losses, gradients and weights are finite; if not, the first bad step and the tensor nearest to the loss.

    Steps that a GradScaler skipped on purpose never reach the optimizer and are no alarm.

    :param part: ``head``, ``base`` or ``all``.  :param include, ignore: globs or prefixes of names.
    :raises ValueError: a selection that matches nothing.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_all_finite(example_trace()))
    all_finite: pass. 20 losses, the gradients of 20 steps and 4 tensors are finite.
    """
    tensors = trace.select(part, include, ignore)
    measured = "losses of every iteration, gradient norms of every step, every weight at the end"
    if not trace.steps and not trace.losses:
        return Verdict(
            "all_finite",
            "inconclusive",
            "Nothing was recorded: no loss, no step.",
            remedy="see assert_weights_move",
            measured=measured,
        )
    loss = next(
        ((i, v.loss) for i, v in enumerate(trace.iterations) if v.loss is not None and not math.isfinite(v.loss)),
        None,
    )
    gradients = sorted(
        (
            (t.gradients.first_nonfinite, -i, t)
            for i, t in enumerate(tensors)
            if t.gradients.first_nonfinite is not None
        ),
        key=lambda row: row[:2],
    )
    weights = [t for t in tensors if t.last.nonfinite]
    buffers = [b for b in trace.buffers if b.nonfinite and part in ("all", b.part)]
    probed = [p for p in (trace.probe.points if trace.probe is not None else ()) if not math.isfinite(p.loss)]
    if loss is None and not gradients and not weights and not buffers and not probed:
        return Verdict(
            "all_finite",
            "pass",
            f"{plural(len(trace.losses), 'loss', 'losses')}, the gradients of {plural(len(trace.steps), 'step')} "
            f"and {plural(len(tensors), 'tensor')} are finite.",
            measured=measured,
        )
    rows: list[dict[str, Any]] = [
        {"tensor": t.name, "gradient bad at step": step, "bad weights at the end": t.last.nonfinite}
        for step, _, t in gradients
    ]
    named = {row["tensor"] for row in rows}
    rows += [
        {"tensor": t.name, "gradient bad at step": None, "bad weights at the end": t.last.nonfinite}
        for t in weights
        if t.name not in named
    ]
    before = [t for t in tensors if t.first.nonfinite]
    said = []
    if loss is not None:
        said.append(f"the loss is {'NaN' if math.isnan(loss[1] or 0) else 'infinite'} from iteration {loss[0]} on")
    if gradients:
        step, _, tensor = gradients[0]
        said.append(f"the first gradient is bad at step {step}, nearest to the loss in {tensor.name}")
    if weights:
        said.append(f"{plural(len(weights), 'tensor holds', 'tensors hold')} NaN or inf at the end")
    if buffers:
        said.append(f"{plural(len(buffers), 'buffer')} not finite at the end: {buffers[0].name}")
    if probed:
        said.append(f"the probe loss is not finite after {plural(probed[0].step, 'step')}")
    causes, fault = [], ""
    if buffers and not gradients and not weights:
        fault = "nonfinite_buffer"
        causes.append(f"{buffers[0].name} is a running statistic: one bad batch stays in it for good")
    elif before:
        fault = "nonfinite_start"
        causes.append(
            f"{before[0].name} was not finite before the run: never initialised, or loaded from a broken checkpoint"
        )
    elif half := _eps_of_zero(trace):
        name, eps = half
        fault = "eps_underflow"
        causes.append(
            f"{name} is held in float16, where the eps of {trace.optimizer.name} ({eps:g}) is 0: a gradient whose square underflows "
            "divides 0 by 0 at the very first step"
        )
    elif weights and not gradients:
        fault = "nonfinite_update"
        causes.append("gradients were finite, so the optimizer or a write to the weights made it")
    elif loss is not None and gradients and (trace.iterations[loss[0]].step or 0) <= (gradients[0][0] or 0):
        fault = "diverged" if _ran_away(trace, loss[0]) else "nonfinite_forward"
        causes.append(
            f"the run diverged: the loss went from {number(trace.losses[0])} to {number(_largest(trace))} before it was lost; "
            "the steps are too large for this loss"
            if fault == "diverged"
            else "it begins in the forward pass or the loss: log(0), 0/0, overflow, a learning rate that blew the weights up"
        )
    else:
        fault = "nonfinite_backward"
        causes.append(
            "it begins in the backward pass: sqrt or norm at 0, a masked row of only -inf, overflow in low precision"
        )
    return Verdict(
        "all_finite",
        "fail",
        f"{'; '.join(said)[:1].upper()}{'; '.join(said)[1:]}.",
        evidence=tuple(rows),
        limit="no NaN, no infinity",
        causes=tuple(causes),
        remedy=_REMEDY.get(fault, _GENERAL),
        measured=measured,
        fault=fault,
    )


_GENERAL = "lower the learning rate, keep parameters in float32, and run the bad batch under torch.autograd.set_detect_anomaly(True)"
_REMEDY = {
    "eps_underflow": "keep the parameters in float32 and use torch.autocast; never model.half() for training",
    "diverged": "lower the learning rate, warm it up, average the loss over the rows, or clip the gradient norm to 1",
}
#: The smallest number of float16 is 6e-8; half of it and less becomes zero.
HALF_LEAST = 2.98e-8


def _eps_of_zero(trace: Trace) -> tuple[str, float] | None:
    """A tensor in float16 under an Adam whose eps that type cannot hold, broken within the first steps."""
    for t in trace.tensors:
        eps = epsilon(t, trace)
        early = t.gradients.first_nonfinite is None or t.gradients.first_nonfinite > 0
        if t.dtype == "float16" and t.trainable and eps is not None and eps < HALF_LEAST and t.last.nonfinite and early:
            return t.name, eps
    return None


def _largest(trace: Trace) -> float:
    return max(loss for loss in trace.losses if math.isfinite(loss))


def _ran_away(trace: Trace, bad: int) -> bool:
    """The loss grew beyond measure before it was lost."""
    before = [loss for loss in trace.losses[:bad] if math.isfinite(loss)]
    return len(before) > 1 and max(before) > RUNAWAY * max(abs(before[0]), 1e-3)
