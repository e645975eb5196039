"""In evaluation mode a row's output depends on that row alone."""

from __future__ import annotations

from typing import Any

from ...core.formatting import percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..effects import LIMIT, matters, share
from ..spec import Stage, check, not_measured
from . import faults
from .other_causes import random_output, which_weights
from .record import BatchMatesMeasurement, Inputs


@check(
    stage=Stage.INPUTS,
    position=2,
    faults=(
        faults.ROWS_MIXED,
        faults.ROWS_REORDERED,
        faults.OUTPUTS_NOT_ROWS,
        faults.BATCH_STATISTICS_IN_EVALUATION,
    ),
    measurements=(Inputs,),
)
def check_rows_independent(trace: Trace) -> Verdict:
    """In evaluation mode a row's output depends on that row alone, not on the others of its batch nor on its place among them.

    Half of the rows come again, in the opposite order and behind other rows. Largest change of an output over the spread between rows:
    at most 0.05. Batch normalisation in training mode is not judged. Outputs that are there, but at the places of other rows, are named,
    and so are outputs that are not fewer where the rows are.

    >>> from pytest_ftcheck import example_trace
    >>> check_rows_independent(example_trace()).status
    'inconclusive'
    """
    name, inputs = "rows_independent", trace.measured(Inputs)
    if inputs is None:
        return not_measured(name, trace, Inputs)
    if (count := inputs.output_count) is not None:
        return faults.OUTPUTS_NOT_ROWS.verdict(
            name,
            f"{plural(count.all_rows, 'row')} give {plural(count.all_rows, 'output')}, but {plural(count.rows, 'row')} of them give "
            f"{count.outputs}: the outputs stand for something else than the rows.",
            limit="as many outputs as rows, however many there are",
            measured="evaluation mode, weights before the training: a whole batch, and some of its rows",
        )
    mates = inputs.batch_mates
    if mates is None:
        return not_measured(name, trace, Inputs, inputs.unmeasured.get("batch_mates"))
    headline = (
        f"Batched with different rows in a different order, the outputs of the same {plural(mates.rows, 'row')} change by "
        f"{share(mates.output)} of the spread between rows"
    )
    details: dict[str, Any] = {
        "evidence": _evidence(mates),
        "limit": f"at most {percent(LIMIT)} of the spread: a healthy float32 model shows rounding only (below 0.01 %)",
        "measured": f"evaluation mode, {which_weights(mates)}, batches of the same shape",
    }
    if not matters(mates.output):
        return Verdict(name, "pass", f"{headline}.", **details)
    if reason := random_output(inputs):
        return Verdict(name, "skipped", reason)
    if mates.batch_statistics:
        fault = faults.BATCH_STATISTICS_IN_EVALUATION.with_details(layer=mates.batch_statistics[0])
        return fault.verdict(name, f"{headline}.", **details)
    mixed_in_base = mates.base_output is not None and matters(mates.base_output)
    if mixed_in_base and mates.library_base:
        note = f"exempt: rows already depend on each other in the output of {mates.base}, a library class"
        return Verdict(name, "pass", f"{headline}, by the design of {mates.base}.", notes=(note,), **details)
    if mixed_in_base:
        where = f"inside {mates.base}"
    elif mates.base_output is not None:
        where = f"behind {mates.base}, whose own output is independent of the other rows"
    else:
        where = "in the model"
    if mates.reordered:
        return faults.ROWS_REORDERED.with_details(where=where).verdict(
            name, f"{headline}: their outputs are there, at the places of other rows.", **details
        )
    return faults.ROWS_MIXED.with_details(where=where).verdict(name, f"{headline}.", **details)


def _evidence(mates: BatchMatesMeasurement) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"output of": name, "change": e.change, "spread between rows": e.spread, "change/spread": share(e)}
        for name, e in (("the model", mates.output), (mates.base or "the base", mates.base_output))
        if e is not None
    )
