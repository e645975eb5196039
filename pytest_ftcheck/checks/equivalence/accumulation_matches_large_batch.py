"""Do accumulated micro-batches give the gradient of the large batch?"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..inputs.faults import ROWS_MIXED
from ..loss.faults import SUM_REDUCTION
from ..spec import Stage, check, not_measured
from ..tensor_state import of_embeddings
from . import faults
from .record import NEGLIGIBLE, ROUNDINGS, Accumulated, Accumulation, rounding_limit

NAME = "accumulation_matches_large_batch"
#: Where rounding alone explains so large a share of the gradient, nothing can be concluded.
UNCERTAIN = 0.05


@check(
    stage=Stage.GRADIENTS,
    position=6,
    faults=(
        SUM_REDUCTION,
        ROWS_MIXED,
        faults.STATE_CARRIED_OVER,
        faults.LOSS_NOT_A_MEAN,
        faults.STATISTICS_OF_MICRO_BATCHES,
        faults.WEIGHTS_OF_MICRO_BATCHES_DIFFER,
    ),
    measurements=(Accumulation,),
)
def check_accumulation_matches_large_batch(trace: Trace) -> Verdict:
    """Gradients accumulated over micro-batches are those of the large batch, weighted by rows or by labels.

    Measured only when asked for (``probes=["accumulation"]``, beside others): the gradient of the first batch at once, and of its rows in
    micro-batches, dropout off. Batch normalisation, which differs by design, is named as advice. It judges the model and the loss; what
    a loop of your own makes of them is not seen here.

    >>> from pytest_ftcheck import finetune, tiny_distilbert, toy_batches
    >>> trace = finetune(tiny_distilbert, toy_batches(), steps=2, probes=["accumulation"])
    >>> check_accumulation_matches_large_batch(trace).status
    'pass'
    """
    found = trace.measured(Accumulation)
    if found is None:
        return not_measured(NAME, trace, Accumulation)
    declared = trace.intent.accumulation if trace.intent is not None else None
    verdict = _judge(found, averages_declared=(declared or 1) > 1)
    if verdict.fault == faults.LOSS_NOT_A_MEAN.name and of_embeddings(trace):
        headline = (
            f"{verdict.headline[:-1]}: the loss compares rows with each other, and a micro-batch has fewer of them."
        )
        verdict = dataclasses.replace(verdict, status="advice", headline=headline)
    return dataclasses.replace(
        verdict,
        evidence=_rows(found),
        limit=f"{number(rounding_limit(found.rounding))} of the gradient's length: {number(NEGLIGIBLE)}, or {ROUNDINGS:g} times what "
        "another order of the rows changes, if that is more",
        measured=f"gradient of {plural(sum(found.rows), 'row')} at once, and in {_micro_batches(found)}, dropout off, with the weights at "
        "the end of the run",
    )


def _judge(found: Accumulation, *, averages_declared: bool) -> Verdict:
    limit = rounding_limit(found.rounding)
    if not (math.isfinite(found.gradient) and found.gradient > 0 and limit <= UNCERTAIN):
        return _undecided(found)
    how, error = found.accumulated.averaged
    parts = f"{_micro_batches(found)} of {_sizes(found.rows)} rows"
    if error <= limit:
        if not found.in_turn.averaged[1] <= limit:
            return _carried(found)
        headline = f"The gradient of {parts}, weighted by {how}, is that of the {sum(found.rows)} rows at once up to {_error(error)}."
        by_rows = found.accumulated.errors["rows"]
        if by_rows <= limit:
            return Verdict(NAME, "pass", headline)
        note = f"weigh each micro-batch by its labels ({_sizes(found.labels)}): the mean of their losses has an error of {_error(by_rows)}"
        if averages_declared:
            return _weights_differ(found, headline)
        return Verdict(NAME, "pass", headline, notes=(note,))
    headline = f"The mean gradient of {parts} differs from that of the {sum(found.rows)} rows at once by {_error(error)} of its length."
    fixed = found.fixed_statistics
    if fixed is not None and fixed.averaged[1] <= limit:
        return faults.STATISTICS_OF_MICRO_BATCHES.verdict(
            NAME,
            f"{headline[:-1]}, because of {_names(found.statistics)}: with its running statistics fixed, by "
            f"{_error(fixed.averaged[1])}.",
            status="advice",
        )
    return _of_loss_or_rows(found, fixed or found.accumulated, headline, limit)


def _of_loss_or_rows(found: Accumulation, errors: Accumulated, headline: str, limit: float) -> Verdict:
    """The difference is no rounding, and not that of running statistics."""
    if errors.errors["sum"] <= limit:
        return SUM_REDUCTION.verdict(
            NAME,
            f"{headline[:-1]}; their sum, by {_error(errors.errors['sum'])}: the loss is a sum over the rows.",
            remedy="reduction='mean'; or keep the sum, and do not divide the loss by the number of micro-batches",
        )
    if found.mixes_rows is not None:
        fault = ROWS_MIXED.with_details(where=f"in {found.mixes_rows} ({found.mixes_rows_class})")
        return fault.verdict(NAME, f"{headline[:-1]}: {found.mixes_rows} returns something else for the same rows.")
    if errors.fit_error <= limit and abs(sum(errors.fit) - 1) <= 0.01 and min(errors.fit) > 0:
        return _weights_differ(found, headline, errors)
    return faults.LOSS_NOT_A_MEAN.verdict(NAME, headline)


def _weights_differ(found: Accumulation, headline: str, errors: Accumulated | None = None) -> Verdict:
    errors = errors or found.accumulated
    weights = ", ".join(percent(w) for w in errors.fit)
    by_rows = errors.errors["rows"]
    return faults.WEIGHTS_OF_MICRO_BATCHES_DIFFER.verdict(
        NAME,
        f"{headline} The weights of the micro-batches in it are {weights}; the mean of their losses has an error of {_error(by_rows)}.",
        status="advice",
    )


def _carried(found: Accumulation) -> Verdict:
    what = (
        _names(found.carried) if found.carried else "something outside the buffers and plain attributes of the modules"
    )
    fault = faults.STATE_CARRIED_OVER.with_details(what=what)
    if found.in_turn_raised:
        return fault.verdict(
            NAME, f"The second micro-batch cannot be computed after the first: {found.in_turn_raised.rstrip('.')}."
        )
    return fault.verdict(
        NAME,
        f"Computed one after another, the micro-batches give another gradient than each on its own: the error is "
        f"{_error(found.in_turn.averaged[1])} of its length, not {_error(found.accumulated.averaged[1])}.",
    )


def _undecided(found: Accumulation) -> Verdict:
    if not math.isfinite(found.gradient) or not math.isfinite(found.rounding):
        cause = "the gradient is zero" if found.gradient == 0 else "the gradient is not finite"
        remedy = "see assert_all_finite and assert_grads_nonzero"
    else:
        cause = f"another order of the rows alone changes the gradient by {percent(found.rounding)}"
        remedy = "float32 weights for this comparison; a random model must not be random in evaluation mode"
    return Verdict(NAME, "inconclusive", f"The gradients cannot be compared: {cause}.", causes=(cause,), remedy=remedy)


def _error(value: float) -> str:
    return percent(value) if value >= 1e-4 else number(value)


def _micro_batches(found: Accumulation) -> str:
    return plural(len(found.rows), "micro-batch", "micro-batches")


def _sizes(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))


def _names(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"


def _rows(found: Accumulation) -> tuple[dict[str, Any], ...]:
    weighted = {
        "rows": "by rows",
        "labels": "by labels",
        "shifted labels": "by labels behind the first",
        "sum": "1 each (a sum)",
    }
    columns: list[tuple[str, Accumulated | None]] = [
        ("error", found.accumulated), ("one after another", found.in_turn), ("statistics fixed", found.fixed_statistics)
    ]  # fmt: skip
    return tuple(
        {
            "weighted": weighted[name],
            **{title: None if a is None else number(a.errors.get(name)) for title, a in columns},
        }
        for name in found.accumulated.errors
    )
