"""The learning rate fits the weights' scale and dtype, as measured by what a step really did."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ...core.formatting import number, percent, plural
from ...core.observations import Tensor
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..expected_roles import meant_to_learn
from ..spec import Stage, Symptom, check
from . import faults

#: rms of the largest update of a step over the rms of the weights, median over the matrices of the base. At 1 a step replaces the
#: weights by something of their own size.
MOST_PACE = 1.0
#: Numbers between 1 and 2 that are this far apart: 2 to the minus digits of the mantissa.
SPACING = {"bfloat16": 2.0**-7, "float16": 2.0**-10}
#: Share of the elements that must change in low precision, as for `check_weights_move`.
LEAST_MOVED = 0.5


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

    Judged is what the largest step of each matrix of the base did, not the number: ``rms(update) / rms(weights before)``, the median
    over the matrices, for 0.05 is a usual rate for Adafactor and SGD, and absurd for Adam. Heads, adapters and matrices that start
    at zero are left out: they are small, new, and meant to be replaced.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_lr_sensible(example_trace()))
    lr_sensible: pass. The largest step changed a base matrix by 0.20 % of its size (median of 1).
    """
    measured = "rms of the largest update of a single step (by gradients), over the rms of the weights before the run"
    limit = f"at most {MOST_PACE:g}: above that one step replaces a pretrained matrix"
    matrices = [
        t
        for t in trace.tensors
        if t.part == "base"
        and t.role == "matrix"
        and len(t.shape) > 1
        and t.first.rms > 0
        and t.motion.max_update > 0
        and t.group is not None
        and meant_to_learn(t, trace)
    ]
    if "LBFGS" in (trace.optimizer.name, *trace.optimizer.classes):
        why = "a step of LBFGS is many steps: its size says nothing of the rate."
        return Verdict("lr_sensible", "skipped", why, measured=measured)
    if not matrices:
        return Verdict(
            "lr_sensible",
            "skipped",
            "no matrix of the base was moved: there is no scale to judge by.",
            measured=measured,
        )
    if rounded := _rounded(matrices, trace):
        return rounded
    paces = sorted((t.motion.max_update / t.first.rms, t.name) for t in matrices)
    median, worst = paces[len(paces) // 2][0], paces[-1]
    peak = max(t.lr_peak for t in matrices)
    if not median > MOST_PACE or not _far(matrices):
        return Verdict(
            "lr_sensible",
            "pass",
            f"The largest step changed a base matrix by {percent(median)} of its size (median of {len(paces)}).",
            limit=limit,
            measured=measured,
        )
    return Verdict(
        "lr_sensible",
        "fail",
        f"At LR {number(peak)} a single step changes a base matrix by {number(median)} times its own size (median of "
        f"{plural(len(paces), 'matrix', 'matrices')}; {worst[1]}: {number(worst[0])}).",
        evidence=tuple(
            {
                "tensor": t.name,
                "step/weights": t.motion.max_update / t.first.rms,
                "largest step (rms)": t.motion.max_update,
                "weights before (rms)": t.first.rms,
                "after": t.last.rms,
            }
            for t in sorted(matrices, key=lambda t: -t.motion.max_update / t.first.rms)
        ),
        limit=limit,
        causes=(
            f"the learning rate ({number(peak)}) is too large for weights of rms {number(_median(t.first.rms for t in matrices))}"
            f" with {trace.optimizer.name}: what was pretrained is gone after the first steps",
        ),
        remedy="lower it by a factor of 100 or more (1e-5 to 1e-3 is usual for Adam), with a warm-up"
        if trace.optimizer.family == "adam"
        else "lower it, or clip gradients",
        measured=measured,
        fault="lr_too_large",
    )


def _far(matrices: Sequence[Tensor]) -> bool:
    """They ended far from where they began: not one odd step that was taken back."""
    far = [t for t in matrices if not t.motion.rms <= t.first.rms or t.last.nonfinite]
    return 2 * len(far) > len(matrices)


def _rounded(matrices: Sequence[Tensor], trace: Trace) -> Verdict | None:
    """Rates below half the spacing of the weights' own numbers, where most of the elements did not change."""
    ill = []
    for t in matrices:
        spacing = SPACING.get(t.dtype)
        if (
            spacing is None
            or trace.optimizer.family != "adam"
            or t.motion.share_changed >= LEAST_MOVED * t.motion.share_with_gradient
        ):
            continue
        gap = spacing * 2.0 ** math.floor(math.log2(t.first.rms))
        if t.lr_peak < gap / 2:
            ill.append((t, gap))
    if 2 * len(ill) <= len(matrices):
        return None
    worst, gap = ill[0]
    return Verdict(
        "lr_sensible",
        "fail",
        f"At LR {number(worst.lr_peak)} {worst.dtype} cannot hold the steps: weights of rms {number(worst.first.rms)} are "
        f"{number(gap)} apart, and {percent(worst.motion.share_changed)} of the elements of {worst.name} changed.",
        evidence=tuple(
            {
                "tensor": t.name,
                "moved": percent(t.motion.share_changed),
                "LR": t.lr_peak,
                "spacing": g,
                "dtype": t.dtype,
            }
            for t, g in ill
        ),
        limit="the learning rate is at least half the spacing of the numbers it is added to",
        causes=(f"the parameters themselves are {worst.dtype}, and steps of one learning rate are rounded away",),
        remedy="keep the parameters in float32 and use torch.autocast",
        measured="elementwise, before against after; spacing at the rms of the weights",
        fault="lr_below_spacing",
    )


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
