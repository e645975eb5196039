"""The learning rate fits the weights' scale and dtype, judged by what a step changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ...core.formatting import number, percent, plural
from ...core.observations import Tensor
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..expected_roles import should_learn
from ..spec import Stage, Symptom, check
from ..tensor_state import LEAST_SHARE_CHANGED
from . import faults

NAME = "lr_sensible"
#: rms of the largest update of a step over the rms of the weights, median over the matrices of the base (of two, the smaller). At 1 a
#: step replaces the weights by values of their own size.
LARGEST_STEP = 1.0
#: Distance between neighbouring numbers from 1 to 2: 2 to the minus digits of the mantissa.
SPACING = {"bfloat16": 2.0**-7, "float16": 2.0**-10}


@check(
    stage=Stage.OPTIMIZER,
    position=4,
    faults=(
        faults.LR_TOO_LARGE,
        faults.LR_BELOW_SPACING,
    ),
    shows=(Symptom.BLOWS_UP,),
)
def check_lr_sensible(trace: Trace) -> Verdict:
    """The learning rate fits the weights' scale and dtype.

    What is judged is the largest step of each matrix of the base, not the rate itself, for 0.05 is usual for Adafactor and SGD but far too
    large for Adam: ``rms(update) / rms(weights before)``, the median over the matrices. Heads, adapters and matrices that start at zero
    are left out: they are small or new, and training replaces their values.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_lr_sensible(example_trace()))
    lr_sensible: pass. The largest step changed a base matrix by 0.20 % of its size (median of 1).
    """
    measured = "rms of the largest update of a single step (by gradients), over the rms of the weights before the run"
    limit = f"at most {LARGEST_STEP:g}: above that one step replaces a pretrained matrix"
    matrices = [
        t
        for t in trace.tensors
        if t.part == "base"
        and t.role == "matrix"
        and len(t.shape) > 1
        and t.first.rms > 0
        and t.motion.max_update > 0
        and t.group is not None
        and should_learn(t, trace)
    ]
    if "LBFGS" in (trace.optimizer.name, *trace.optimizer.classes):
        reason = "a step of LBFGS makes several updates, so its size does not reflect the learning rate."
        return Verdict(NAME, "skipped", reason, measured=measured)
    if not matrices:
        reason = "no base matrix moved, so there is no scale to judge by."
        return Verdict(NAME, "skipped", reason, measured=measured)
    if rounded := _rounded_away(matrices, trace):
        return rounded
    by_step = sorted(matrices, key=_relative_step)
    median, largest = (
        _relative_step(by_step[(len(by_step) - 1) // 2]),
        max(by_step, key=lambda t: (_relative_step(t), t.name)),
    )
    if not median > LARGEST_STEP or not _far_from_start(matrices):
        headline = (
            f"The largest step changed a base matrix by {percent(median)} of its size (median of {len(by_step)})."
        )
        return Verdict(NAME, "pass", headline, limit=limit, measured=measured)
    peak = number(max(t.lr_peak for t in matrices))
    rms = number(_median(t.first.rms for t in matrices))
    fault = faults.LR_TOO_LARGE.with_details(peak=peak, rms=rms, optimizer=trace.optimizer.name)
    if trace.optimizer.family != "adam":
        fault = fault.because(fault.cause, "lower the learning rate, or clip gradients")
    return fault.verdict(
        NAME,
        f"At LR {peak} a single step changes a base matrix by {number(median)} times its own size (median of "
        f"{plural(len(by_step), 'matrix', 'matrices')}; {largest.name}: {number(_relative_step(largest))}).",
        evidence=tuple(
            {
                "tensor": t.name,
                "step/weights": _relative_step(t),
                "largest step (rms)": t.motion.max_update,
                "weights before (rms)": t.first.rms,
                "after": t.last.rms,
            }
            for t in sorted(matrices, key=lambda t: -_relative_step(t))
        ),
        limit=limit,
        measured=measured,
    )


def _relative_step(tensor: Tensor) -> float:
    """Its largest step over its size before the run."""
    return tensor.motion.max_update / tensor.first.rms


def _far_from_start(matrices: Sequence[Tensor]) -> bool:
    """Most of them ended far from where they began; a single large step that was reversed does not count."""
    far = [t for t in matrices if not t.motion.rms <= t.first.rms or t.last.nonfinite]
    return 2 * len(far) > len(matrices)


def _rounded_away(matrices: Sequence[Tensor], trace: Trace) -> Verdict | None:
    """Rates below half the spacing of the weights' own numbers, where most of the elements did not change."""
    rounded = []
    for t in matrices:
        spacing = SPACING.get(t.dtype)
        unchanged = t.motion.share_changed < LEAST_SHARE_CHANGED * t.motion.share_with_gradient
        if spacing is None or trace.optimizer.family != "adam" or not unchanged:
            continue
        distance = spacing * 2.0 ** math.floor(math.log2(t.first.rms))
        if t.lr_peak < distance / 2:
            rounded.append((t, distance))
    if 2 * len(rounded) <= len(matrices):
        return None
    first, distance = rounded[0]
    return faults.LR_BELOW_SPACING.with_details(
        dtype=first.dtype, lr=number(first.lr_peak), rms=number(first.first.rms)
    ).verdict(
        NAME,
        f"{first.dtype} cannot represent steps at LR {number(first.lr_peak)}: numbers near the weights' rms ({number(first.first.rms)}) "
        f"are {number(distance)} apart, and {percent(first.motion.share_changed)} of the elements of {first.name} changed.",
        evidence=tuple(
            {
                "tensor": t.name,
                "moved": percent(t.motion.share_changed),
                "LR": t.lr_peak,
                "spacing": d,
                "dtype": t.dtype,
            }
            for t, d in rounded
        ),
        limit="the learning rate is at least half the spacing of the numbers it is added to",
        measured="elementwise, before against after; spacing at the rms of the weights",
    )


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
