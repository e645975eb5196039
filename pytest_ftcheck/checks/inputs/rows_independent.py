"""In evaluation a row's output depends on that row alone."""

from __future__ import annotations

from typing import Any

from ...core.formatting import percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..effects import LIMIT, matters, share
from ..spec import Stage, check, not_measured
from . import faults
from .padding_ignored import confounded, weights
from .record import Inputs


@check(
    stage=Stage.INPUTS,
    position=2,
    faults=(
        faults.ROWS_MIXED,
        faults.BATCH_STATISTICS_IN_EVALUATION,
    ),
    measurements=(Inputs,),
)
def check_rows_independent(trace: Trace) -> Verdict:
    """In evaluation mode a row's output depends on that row alone, not on the others of its batch nor on its place among them.

    Half of the rows come again, in the opposite order and with other rows before them. Largest change of an output over the spread between
    rows: at most 0.05. Batch normalisation in training mode is none of this check's business.

    >>> from pytest_ftcheck import example_trace
    >>> check_rows_independent(example_trace()).status
    'skipped'
    """
    inputs = trace.measured(Inputs)
    if inputs is None:
        return not_measured("rows_independent", trace, Inputs)
    look = inputs.company
    if look is None:
        return Verdict("rows_independent", "skipped", f"Not measured: {inputs.unmeasured.get('company', 'no reason')}.")
    headline = (
        f"In other company and another order, the outputs of the same {plural(look.rows, 'row')} change by {share(look.output)} "
        "of the spread between rows"
    )
    rows = tuple(
        {"output of": name, "change": e.change, "spread between rows": e.spread, "change/spread": share(e)}
        for name, e in (("the model", look.output), (look.base_name or "the base", look.base))
        if e is not None
    )

    def verdict(status: Any, text: str, **more: Any) -> Verdict:
        return Verdict(
            "rows_independent",
            status,
            text,
            evidence=rows,
            limit=f"at most {percent(LIMIT)} of the spread: a healthy float32 model shows rounding only (below 0.01 %)",
            measured=f"evaluation mode, {weights(look)}, batches of the same shape",
            **more,
        )

    if not matters(look.output):
        return verdict("pass", f"{headline}.")
    if why := confounded(inputs, check="rows_independent"):
        return Verdict("rows_independent", "skipped", why)
    inside = look.base is not None and matters(look.base)
    if look.batch_statistics:
        return verdict(
            "fail",
            f"{headline}.",
            causes=(
                f"{look.batch_statistics[0]} has no running statistics: it normalises over the batch in evaluation, too",
            ),
            remedy="give it track_running_stats=True, or take LayerNorm, which normalises within a row",
            fault="batch_statistics_in_evaluation",
        )
    if inside and look.base_library:
        return verdict(
            "pass",
            f"{headline}, as by the design of {look.base_name}.",
            notes=(
                f"exempt: rows already depend on each other in the output of {look.base_name}, a class of the library",
            ),
        )
    where = (
        f"inside {look.base_name}"
        if inside
        else f"behind {look.base_name}, whose own output is independent of the other rows"
        if look.base is not None
        else "in the model"
    )
    return verdict(
        "fail",
        f"{headline}.",
        causes=(
            f"rows are mixed {where}: view() or reshape() in place of transpose(), or a softmax, mean or norm over dim 0, the rows",
        ),
        remedy="look at what reshapes, pools or normalises there: dimension 0 must stay the rows' (hidden[:, 0], softmax(dim=-1), "
        "transpose(0, 1) where the axes are to be swapped)",
        fault="rows_mixed",
    )
