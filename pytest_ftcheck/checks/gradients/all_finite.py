"""Is every number finite?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...core.formatting import at_iterations, number, plural
from ...core.observations import Buffer, Tensor
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..loss import faults as loss_faults
from ..spec import Fault, Stage, Symptom, check
from ..tensor_state import epsilon
from . import faults

NAME = "all_finite"
#: A loss this many times its first value has diverged.
RUNAWAY = 5.0
#: The smallest number of float16 is 6e-8; half of it and less becomes zero.
HALF_LEAST = 2.98e-8
MEASURED = "losses of every iteration, gradient norms of every step, every weight at the end"


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

    Steps that a GradScaler skipped on purpose never reach the optimizer and do not count.

    :param part: ``head``, ``base`` or ``all``.  :param include, ignore: globs or prefixes of names.
    :raises ValueError: a selection that matches nothing.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_all_finite(example_trace()))
    all_finite: pass. 20 losses, the gradients of 20 steps and 4 tensors are finite.
    """
    tensors = trace.select(part, include, ignore)
    if not trace.steps and not trace.losses:
        headline = "Nothing was recorded: no loss and no optimizer step."
        return Verdict(NAME, "inconclusive", headline, remedy="see assert_weights_move", measured=MEASURED)
    losses = trace.losses_by_iteration
    bad_losses = {i: v for i, v in losses.items() if not math.isfinite(v)}
    loss = next(iter(bad_losses), None)
    # of the tensors whose gradient is bad at the first bad step, the last in the model's order is nearest to the loss
    bad = [(t.gradients.first_nonfinite, -i, t) for i, t in enumerate(tensors)]
    gradients = [
        (step, t) for step, _, t in sorted((row for row in bad if row[0] is not None), key=lambda row: row[:2])
    ]
    weights = [t for t in tensors if t.last.nonfinite]
    buffers = [b for b in trace.buffers if b.nonfinite and part in ("all", b.part)]
    probe_steps = [
        p.step for p in (trace.probe_loss.points if trace.probe_loss is not None else ()) if not math.isfinite(p.loss)
    ]
    findings = []
    if bad_losses:
        kinds = {"NaN" if math.isnan(v) else "infinite" for v in bad_losses.values()}
        value = kinds.pop() if len(kinds) == 1 else "not finite"
        findings.append(f"the loss is {value} {at_iterations([*bad_losses], [*losses])}")
    if gradients:
        step, tensor = gradients[0]
        findings.append(f"the first gradient is bad at step {step}, nearest to the loss in {tensor.name}")
    if weights:
        findings.append(f"{plural(len(weights), 'tensor holds', 'tensors hold')} NaN or inf at the end")
    if buffers:
        findings.append(f"{plural(len(buffers), 'buffer')} not finite at the end: {buffers[0].name}")
    if probe_steps:
        findings.append(f"the probe loss is not finite after {plural(probe_steps[0], 'step')}")
    if not findings:
        headline = (
            f"{plural(len(trace.losses), 'loss', 'losses')}, the gradients of {plural(len(trace.steps), 'step')} "
            f"and {plural(len(tensors), 'tensor')} are finite."
        )
        return Verdict(NAME, "pass", headline, measured=MEASURED)
    text = "; ".join(findings)
    first_gradient = gradients[0][0] if gradients else None
    return _origin(trace, tensors, loss, first_gradient, weights, buffers).verdict(
        NAME,
        f"{text[:1].upper()}{text[1:]}.",
        evidence=_rows(gradients, weights),
        limit="no NaN, no infinity",
        measured=MEASURED,
    )


def _origin(
    trace: Trace,
    tensors: Sequence[Tensor],
    loss: int | None,
    first_gradient: int | None,
    weights: Sequence[Tensor],
    buffers: Sequence[Buffer],
) -> Fault:
    """Where it begins; ``loss``: iteration of the first bad loss; ``first_gradient``: step of the first bad gradient."""
    if buffers and first_gradient is None and not weights:
        return faults.NONFINITE_BUFFER.with_details(buffer=buffers[0].name)
    if before := [t for t in tensors if t.first.nonfinite]:
        return faults.NONFINITE_START.with_details(tensor=before[0].name)
    if underflow := _eps_underflow(trace):
        name, eps = underflow
        return faults.EPS_UNDERFLOW.with_details(tensor=name, optimizer=trace.optimizer.name, eps=f"{eps:g}")
    if weights and first_gradient is None:
        return faults.NONFINITE_UPDATE
    if loss is not None and first_gradient is not None and (trace.iterations[loss].step or 0) <= first_gradient:
        return _diverged(trace, loss) or faults.NONFINITE_FORWARD
    return faults.NONFINITE_BACKWARD


def _eps_underflow(trace: Trace) -> tuple[str, float] | None:
    """A float16 tensor under an Adam whose eps is zero in that type, broken within the first steps."""
    for t in trace.tensors:
        eps = epsilon(t, trace)
        early = t.gradients.first_nonfinite is None or t.gradients.first_nonfinite > 0
        if t.dtype == "float16" and t.trainable and eps is not None and eps < HALF_LEAST and t.last.nonfinite and early:
            return t.name, eps
    return None


def _diverged(trace: Trace, loss: int) -> Fault | None:
    """The loss grew far above its first value before it stopped being finite."""
    before = [v for v in trace.losses[:loss] if math.isfinite(v)]
    if len(before) < 2 or max(before) <= RUNAWAY * max(abs(before[0]), 1e-3):
        return None
    largest = max(v for v in trace.losses if math.isfinite(v))
    return loss_faults.DIVERGED.because(
        f"the steps are too large for the loss: it rose from {number(trace.losses[0])} to {number(largest)} before it became non-finite",
        "lower the learning rate, add warm-up, average the loss over the rows, or clip the gradient norm to 1",
    )


def _rows(gradients: Sequence[tuple[int | None, Tensor]], weights: Sequence[Tensor]) -> tuple[dict[str, Any], ...]:
    steps = {t.name: step for step, t in gradients}
    tensors = {t.name: t for t in (*(t for _, t in gradients), *weights)}
    return tuple(
        {"tensor": name, "gradient bad at step": steps.get(name), "bad weights at the end": t.last.nonfinite}
        for name, t in tensors.items()
    )
