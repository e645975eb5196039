"""The head's units are alive, not saturated, and keep the differences between rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, Symptom, check, not_measured
from . import faults
from .record import Head, Hidden, UnitState

NAME = "units_alive"
#: Share of a layer's units that are zero for every row. Healthy heads have 30 % and more; a layer without any live unit passes nothing on.
DEAD = 0.99
#: Share of (row, unit) pairs at which tanh or sigmoid is flat, before and after the run. Weights for which that holds at the start have
#: pre-activations of rms 13 and more.
SATURATED = 0.75
#: Standard deviation over rows, over the size of the values, below which a hidden layer makes no difference between rows ...
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
    """Every hidden layer of the head passes something on: its units are not all dead, not flat, and differ between rows.

    Measured on up to 64 rows with dropout off, before and after the run, on what enters the next linear layer. A layer fails when at
    least 99 % of its units are zero for every row after the run (a third is common in healthy heads); when at least
    75 % of its tanh or sigmoid values are flat (derivative below a thousandth of its maximum) both before and after; when its values
    vary over the rows by less than 1e-4 of their size, and by less than a thousandth of what enters the head does, both before and
    after. Two linear layers without an activation in between get advice: together they are one.

    >>> from pytest_ftcheck import example_trace
    >>> check_units_alive(example_trace()).status
    'inconclusive'
    """
    head = trace.measured(Head)
    if head is None:
        return not_measured(NAME, trace, Head)
    if not head.hidden:
        return not_measured(NAME, trace, Head, (head.skipped or {}).get("units", "the head has no hidden layer"))
    found = _find_dead(head) or _find_saturated(head) or _find_lost_signal(head) or _find_missing_activation(head)
    if found is not None:
        return found
    states = [(h, h.last or h.first) for h in head.hidden]
    layer, state = max(states, key=lambda s: s[1].dead)
    return Verdict(
        NAME,
        "pass",
        f"{plural(len(states), 'hidden layer')} of the head alive: at most {percent(state.dead)} of the units of a layer are zero "
        f"for all {head.rows} rows ({layer.name}).",
        measured=_measured(head),
    )


def _measured(head: Head) -> str:
    return f"{plural(head.rows, 'row')}, dropout off, before and after the run"


def _is_dead(layer: Hidden, state: UnitState) -> bool:
    # a layer that starts at zero is not dead under an activation that is not flat at zero
    starts_at_zero = state.largest_before == 0 and state.mean_before == 0 and layer.activation != "relu"
    return state.dead >= DEAD and not starts_at_zero


def _find_dead(head: Head) -> Verdict | None:
    faulty = [(h, h.last) for h in head.hidden if h.last is not None and _is_dead(h, h.last)]
    if not faulty:
        return None
    layer, state = faulty[0]
    bias = next((la.bias_mean for la in head.layers if la.name == layer.name), None)
    if not _is_dead(layer, layer.first):
        fault = faults.UNITS_DIED
    elif bias is not None and bias < 0 and layer.first.largest_before < 0:
        fault = faults.UNITS_DEAD_BIAS
    else:
        fault = faults.UNITS_DEAD_FROM_START
    fault = fault.with_details(layer=layer.name, bias=number(bias), share=percent(layer.first.dead))
    return fault.verdict(
        NAME,
        f"{percent(state.dead)} of the {layer.units} units of {layer.name} are zero for all {head.rows} rows: no signal passes, and no "
        "gradient comes back.",
        evidence=_rows([h for h, _ in faulty]),
        limit=f"less than {percent(DEAD)} of a layer's units dead after the run (a third is common and harmless)",
        measured=_measured(head),
    )


def _find_saturated(head: Head) -> Verdict | None:
    faulty = [
        (h, h.last)
        for h in head.hidden
        if h.last is not None and min(h.first.saturated or 0.0, h.last.saturated or 0.0) >= SATURATED
    ]
    if not faulty:
        return None
    layer, state = faulty[0]
    return faults.UNITS_SATURATED.with_details(layer=layer.name, activation=layer.activation).verdict(
        NAME,
        f"{percent(state.saturated)} of the {layer.activation} values of {layer.name} are saturated ({percent(layer.first.saturated)} at "
        "the start): their derivative is below a thousandth of its maximum.",
        evidence=_rows([h for h, _ in faulty]),
        limit=f"less than {percent(SATURATED)} flat, before or after",
        measured=_measured(head),
    )


def _find_lost_signal(head: Head) -> Verdict | None:
    if head.features is None or head.features[1] is None:
        return None
    before, after = head.features[0], head.features[1]
    faulty = [
        (h, h.last)
        for h in head.hidden
        if h.last is not None
        and h.first.variation < min(VARIES, PASSED_ON * before)
        and h.last.variation < min(VARIES, PASSED_ON * after)
        and h.first.rms > 0 < h.last.rms
    ]
    if not faulty:
        return None
    layer, state = faulty[0]
    kind = f"{layer.activation} " if layer.activation else ""
    return faults.SIGNAL_LOST_IN_HEAD.with_details(layers=plural(len(head.hidden), f"{kind}layer")).verdict(
        NAME,
        f"The values of {layer.name} vary over {head.rows} rows by {number(state.variation)} of their size, the head's input by "
        f"{number(after)}: the head loses the differences between rows.",
        evidence=_rows(head.hidden),
        limit=f"variation of at least {VARIES:g} of the size, or {PASSED_ON:g} of the input's, before or after",
        measured=_measured(head),
    )


def _find_missing_activation(head: Head) -> Verdict | None:
    faulty = [h for h in head.hidden if h.activation == "identity"]
    if not faulty:
        return None
    layer = faulty[0]
    return faults.LINEAR_AFTER_LINEAR.with_details(layer=layer.name).verdict(
        NAME,
        f"No activation is between {layer.name} and {layer.following}: together they are one linear layer.",
        "advice",
        evidence=_rows(faulty),
        measured=_measured(head),
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
