"""The head's units are alive, different from each other, and not saturated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, Symptom, check, not_measured
from . import faults
from .record import Head, Hidden, UnitState

#: Share of a layer's units that are zero for every row. Healthy heads have 30 % and more; a layer without any live unit passes nothing on.
DEAD = 0.99
#: Share of (row, unit) pairs at which tanh or sigmoid is flat, before and after the run. Weights for which that holds at the start have
#: pre-activations of rms 13 and more.
SATURATED = 0.75
#: Standard deviation over rows, over the size of the values, below which a hidden layer tells no rows apart ...
VARIES = 1e-4
#: ... if it is also this share of what enters the head, at most: else it is the base that gives the same for every row. One sigmoid
#: layer at std 0.02 passes on a twelfth; six in a row a millionth.
PASSED_ON = 1e-3


@check(
    stage=Stage.OUTCOME,
    position=5,
    faults=(
        faults.UNITS_DEAD_BIAS,
        faults.UNITS_DEAD_FROM_START,
        faults.UNITS_DIED,
        faults.UNITS_SATURATED,
        faults.SIGNAL_LOST_IN_HEAD,
        faults.LINEAR_AFTER_LINEAR,
    ),
    measurements=(Head,),
    shows=(
        Symptom.BLOWS_UP,
        Symptom.INPUT_LOST,
    ),
)
def check_units_alive(trace: Trace) -> Verdict:
    """Every hidden layer of the head passes something on: its units are not all dead, not flat, and tell rows apart.

    Measured on up to 64 rows with dropout off, before and after the run, on what enters the next linear layer. A layer fails when at
    least 99 % of its units are zero for every row after the run (a third is common in healthy heads and says nothing); when at least
    75 % of its tanh or sigmoid values are flat (derivative below a thousandth of its maximum) both before and after; when its values
    vary over the rows by less than 1e-4 of their size, and by less than a thousandth of what enters the head does, both before and
    after. Two linear layers
    without an activation in between are an advice: together they are one.

    >>> from pytest_ftcheck import example_trace
    >>> check_units_alive(example_trace()).status
    'skipped'
    """
    name, head = "units_alive", trace.measured(Head)
    if head is None:
        return not_measured(name, trace, Head)
    if not head.hidden:
        why = (head.skipped or {}).get("units", "the head has no hidden layer")
        return Verdict(name, "skipped", f"{why}.")
    for look in (_dead, _flat, _lost):
        if verdict := look(head):
            return verdict
    measured = _measured(head)
    states = [(h, h.last or h.first) for h in head.hidden]
    if linear := [h for h in head.hidden if h.activation == "identity"]:
        return _linear(linear, measured)
    worst = max(states, key=lambda s: s[1].dead)
    return Verdict(
        name,
        "pass",
        f"{plural(len(states), 'hidden layer')} of the head alive: at most {percent(worst[1].dead)} of the units of a layer are zero "
        f"for all {head.rows} rows ({worst[0].name}).",
        measured=measured,
    )


def _measured(head: Head) -> str:
    return f"{head.rows} rows of the probe, dropout off, before and after the run"


def _is_dead(h: Hidden, s: UnitState) -> bool:
    # a layer that starts at zero is not dead under an activation that is not flat at zero
    asleep = s.largest_before == 0 and s.mean_before == 0 and h.activation != "relu"
    return s.dead >= DEAD and not asleep


def _dead(head: Head) -> Verdict | None:
    ill = [h for h in head.hidden if h.last is not None and _is_dead(h, h.last)]
    if not ill:
        return None
    h = ill[0]
    assert h.last is not None
    start = _is_dead(h, h.first)
    bias = next((la.bias_mean for la in head.layers if la.name == h.name), None)
    if start and bias is not None and bias < 0 and h.first.largest_before < 0:
        cause = (
            f"the bias of {h.name} starts at {number(bias)} on average, below what its inputs can lift it to: a prior or an offset meant "
            "for another layer (the last one)"
        )
        remedy, fault = (
            f"torch.nn.init.zeros_({h.name}.bias); a class prior belongs on the last layer's bias",
            "units_dead_bias",
        )
    elif start:
        cause = f"the units of {h.name} are dead from the start: before the activation nothing exceeds {number(h.first.largest_before)}"
        remedy, fault = f"initialise {h.name} with weights around zero and zero biases", "units_dead_from_start"
    else:
        cause = (
            f"the units of {h.name} died in training ({percent(h.first.dead)} were dead before): too large a step pushed them below "
            "zero"
        )
        remedy, fault = "lower the learning rate, or clip the gradient; GELU or LeakyReLU cannot die so", "units_died"
    return Verdict(
        "units_alive",
        "fail",
        f"{percent(h.last.dead)} of the {h.units} units of {h.name} are zero for all {head.rows} rows: nothing passes, and no gradient "
        "comes back.",
        evidence=_rows(ill),
        limit=f"less than {percent(DEAD)} of a layer's units dead after the run (a third is common and harmless)",
        causes=(cause,),
        remedy=remedy,
        measured=_measured(head),
        fault=fault,
    )


def _flat(head: Head) -> Verdict | None:
    ill = [
        h
        for h in head.hidden
        if h.last is not None and min(h.first.saturated or 0.0, h.last.saturated or 0.0) >= SATURATED
    ]
    if not ill:
        return None
    h = ill[0]
    assert h.last is not None
    return Verdict(
        "units_alive",
        "fail",
        f"{percent(h.last.saturated)} of the {h.activation} values of {h.name} are saturated ({percent(h.first.saturated)} at the start): "
        "their derivative is below a thousandth of its maximum.",
        evidence=_rows(ill),
        limit=f"less than {percent(SATURATED)} flat, before or after",
        causes=(
            f"what enters the {h.activation} after {h.name} is too large: its weights, or features that are not normalised",
        ),
        remedy=f"start {h.name} with smaller weights (std 0.02), or put a LayerNorm before the {h.activation}",
        measured=_measured(head),
        fault="units_saturated",
    )


def _lost(head: Head) -> Verdict | None:
    if head.features is None or head.features[1] is None:
        return None
    before, after = head.features[0], head.features[1]
    ill = [
        h
        for h in head.hidden
        if h.last is not None
        and h.first.variation < min(VARIES, PASSED_ON * before)
        and h.last.variation < min(VARIES, PASSED_ON * after)
        and h.first.rms > 0 < h.last.rms
    ]
    if not ill:
        return None
    h = ill[0]
    assert h.last is not None
    depth = len(head.hidden)
    kind = f"{h.activation} " if h.activation else ""
    return Verdict(
        "units_alive",
        "fail",
        f"The values of {h.name} vary over {head.rows} rows by {number(h.last.variation)} of their size, what enters the head by "
        f"{number(head.features[1])}: the head loses what tells rows apart.",
        evidence=_rows(head.hidden),
        limit=f"variation of at least {VARIES:g} of the size, or {PASSED_ON:g} of what enters, before or after",
        causes=(
            f"{plural(depth, f'{kind}layer')} in a row with small weights shrink the signal, and the gradient with it",
        ),
        remedy="fewer layers in the head, GELU or ReLU, and weights of std 1/sqrt(fan-in) or more",
        measured=_measured(head),
        fault="signal_lost_in_head",
    )


def _linear(linear: Sequence[Hidden], measured: str) -> Verdict:
    h = linear[0]
    return Verdict(
        "units_alive",
        "advice",
        f"Nothing lies between {h.name} and {h.following}: two linear layers without an activation are one.",
        evidence=_rows(linear),
        causes=("the activation was forgotten, or taken out",),
        remedy=f"put an activation (nn.ReLU()) after {h.name}, or use one linear layer",
        measured=measured,
        fault="linear_after_linear",
    )


def _rows(hidden: Sequence[Hidden]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "layer": h.name,
            "units": h.units,
            "activation": h.activation,
            "dead before": percent(h.first.dead),
            "dead after": percent(h.last.dead if h.last else None),
            "flat after": percent(h.last.saturated) if h.last and h.last.saturated is not None else None,
            "varies by": h.last.variation if h.last else h.first.variation,
            "before activation, mean": (h.last or h.first).mean_before,
            "largest": (h.last or h.first).largest_before,
        }
        for h in hidden
    )
