"""Does autocast give the results of float32, up to the rounding of its dtype?"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, check, not_measured
from . import faults
from .record import Autocast, Errors

NAME = "autocast_matches_float32"
#: So many unit roundoffs are allowed in any case: errors of single operations add up over the layers.
UNITS = 16.0
#: Beyond that, so many times what rounding weights, activations and gradients to autocast's digits does in float32.
ROUNDINGS = 3.0
#: A limit above this would let an error of factor 3 pass (it changes a result by 2, or by 2/3, of its length).
CAP = 0.5


@check(
    stage=Stage.GRADIENTS,
    position=7,
    faults=(
        faults.AUTOCAST_RAISES,
        faults.AUTOCAST_NOT_FINITE,
        faults.AUTOCAST_INACCURATE,
        faults.AUTOCAST_GRADIENT_INACCURATE,
    ),
    measurements=(Autocast,),
)
def check_autocast_matches_float32(trace: Trace) -> Verdict:
    """Outputs, loss and gradient under autocast are those of float32, up to rounding in autocast's dtype.

    Measured only when asked for (``probes=["autocast"]``, beside others): up to 16 rows of the first batch, dropout off, in bfloat16
    or the dtype of ``autocast=``. A failure names the first module that computes something else from the same inputs.

    >>> from pytest_ftcheck import finetune, tiny_distilbert, toy_batches
    >>> trace = finetune(tiny_distilbert, toy_batches(), steps=2, probes=["autocast"])
    >>> check_autocast_matches_float32(trace).status
    'pass'
    """
    found = trace.measured(Autocast)
    if found is None:
        return not_measured(NAME, trace, Autocast)
    return dataclasses.replace(
        _judge(found),
        evidence=_rows(found),
        limit=f"{UNITS:g} unit roundoffs of {found.dtype} ({percent(UNITS * found.unit)}), or {ROUNDINGS:g} times what rounding to its "
        f"digits does in float32, if that is more; above {percent(CAP)} nothing is concluded",
        measured=f"{plural(found.rows, 'row')} of the first batch, dropout off, with the weights at the end of the run, in float32 and "
        f"under autocast to {found.dtype}",
    )


def limit_of(rounding: float | None, unit: float) -> float:
    """The largest error that may be rounding; NaN where that is not known.

    >>> limit_of(0.0, 2**-8), limit_of(0.04, 2**-8)
    (0.0625, 0.12)
    """
    return math.nan if rounding is None else max(UNITS * unit, ROUNDINGS * rounding)


def _judge(found: Autocast) -> Verdict:
    if not math.isfinite(found.loss32) or not math.isfinite(found.gradient32):
        return Verdict(
            NAME,
            "inconclusive",
            f"There is nothing to compare with: in float32 the loss is {number(found.loss32)}, the length of its gradient "
            f"{number(found.gradient32)}.",
            causes=("loss or gradient are not finite in float32 either",),
            remedy="see assert_all_finite and assert_loss_stable",
        )
    errors, rounding = found.errors, found.rounding
    if errors is None:
        where = found.raised_in or "the loss, or the model itself"
        return faults.AUTOCAST_RAISES.with_details(where=where).verdict(
            NAME, f"Under autocast to {found.dtype}, {where} raises: {found.raised.rstrip('.')}."
        )
    values = _pairs(errors, rounding)
    if any(math.isnan(error) for _, error, _ in values):
        return _not_finite(found)
    wrong = [(what, error) for what, error, limit in _limits(found) if limit <= CAP < error or limit < error <= CAP]
    forward = [w for w in wrong if w[0] in ("outputs", "loss")]
    if forward:
        return _inaccurate(found, forward)
    if wrong:
        tensor = found.tensor or "the weights"
        fault = faults.AUTOCAST_GRADIENT_INACCURATE.with_details(tensor=tensor, dtype=found.dtype)
        return fault.verdict(
            NAME,
            f"Under autocast to {found.dtype} the {wrong[0][0]} differs by {percent(wrong[0][1])} of its length, though outputs and loss "
            f"are those of float32; nearest to the loss in {tensor}.",
        )
    undecided = [what for what, _, limit in _limits(found) if not limit <= CAP]
    gradients = {"gradient of the loss", "gradient of the outputs"} & {what for what, _, _ in values}
    if gradients <= set(undecided) or "outputs" in undecided:
        return Verdict(
            NAME,
            "inconclusive",
            f"Rounding to the digits of {found.dtype} changes the {undecided[0]} by "
            f"{percent(next(r for w, _, r in values if w == undecided[0]))}: an error could not be told from it.",
            causes=("the rows cancel in the gradient, or the model is ill-conditioned at these weights",),
            remedy="train for more steps (steps=), or give rows that differ more",
        )
    parts = ", ".join(f"{what} {percent(error)}" for what, error, _ in values if what not in undecided)
    notes = tuple(
        f"the {what} was not compared: at these weights it is rounding ({percent(r)})"
        for what, _, r in values
        if what in undecided
    )
    return Verdict(
        NAME, "pass", f"Autocast to {found.dtype} differs from float32 by rounding: {parts}.", notes=notes,
    )  # fmt: skip


def _not_finite(found: Autocast) -> Verdict:
    where = found.not_finite if found.not_finite is not None else "the loss, or its backward pass"
    kind = f" ({found.not_finite_class})" if found.not_finite else ""
    fault = faults.AUTOCAST_NOT_FINITE.with_details(where=(where or "the model itself") + kind, dtype=found.dtype)
    what = "loss" if found.loss is not None and not math.isfinite(found.loss) else "result"
    return fault.verdict(
        NAME,
        f"Under autocast to {found.dtype} the {what} is not finite ({number(found.loss)}; in float32 {number(found.loss32)}); first in "
        f"{where or 'the model itself'}{kind}.",
    )


def _inaccurate(found: Autocast, wrong: list[tuple[str, float]]) -> Verdict:
    what, error = wrong[0]
    place = found.located
    where = "the loss" if what == "loss" else "an operation outside the modules"
    if place is not None and what == "outputs":
        where = f"{place.name or 'the model itself'} ({place.kind})"
    more = f"; {where} alone by {percent(place.error)}" if place is not None and what == "outputs" else ""
    fault = faults.AUTOCAST_INACCURATE.with_details(where=where, dtype=found.dtype)
    return fault.verdict(
        NAME,
        f"Under autocast to {found.dtype} the {what} differ{'s' * (what == 'loss')} by {percent(error)} from float32{more}.",
    )


def _pairs(errors: Errors, rounding: Errors) -> list[tuple[str, float, float]]:
    """What is compared, its error, and what rounding of the weights does to it."""
    found = [
        ("outputs", errors.outputs, rounding.outputs),
        ("loss", errors.loss, rounding.loss),
        ("gradient of the loss", errors.gradient, rounding.gradient),
        ("gradient of the outputs", errors.outputs_gradient, rounding.outputs_gradient),
    ]
    return [(what, e, r) for what, e, r in found if e is not None and r is not None]


def _limits(found: Autocast) -> list[tuple[str, float, float]]:
    assert found.errors is not None
    return [(what, error, limit_of(r, found.unit)) for what, error, r in _pairs(found.errors, found.rounding)]


def _rows(found: Autocast) -> tuple[dict[str, Any], ...]:
    if found.errors is None:
        return ()
    return tuple(
        {
            "": what,
            "error": percent(error),
            "rounding": percent(r),
            "limit": percent(limit_of(r, found.unit)),
        }
        for what, error, r in _pairs(found.errors, found.rounding)
    )
