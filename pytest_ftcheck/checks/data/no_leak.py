"""No input equals the label, and held-out rows are not training rows."""

from __future__ import annotations

from ...core.formatting import percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, check, not_measured
from . import faults
from .record import Data, Leak, Overlap

NAME = "no_leak"
#: Held-out rows that are training rows: this share of them, and this much above the share of duplicates among the training rows.
SHARED, BEYOND_CHANCE = 0.5, 0.4
#: Share of held-out rows that are training rows from which on a note says so.
NOTABLE = 0.1
#: Distinct held-out rows, and tokens (numbers) in a row, below which rows may agree by chance.
MIN_ROWS, MIN_LENGTH = 16, 5


@check(
    stage=Stage.DATA,
    position=3,
    faults=(
        faults.LABEL_IN_INPUTS,
        faults.HELD_OUT_IS_TRAINING,
    ),
    measurements=(Data,),
)
def check_no_leak(trace: Trace) -> Verdict:
    """No input equals the label one to one, and held-out rows are not training rows.

    An input leaks if it takes exactly one value for each class, without an exception in 64 distinct rows or more: another tensor of the
    batch, a column of numbers, or the token at one position. A held-out row is a training row if all of its tokens (numbers) are the
    same; the share of duplicates among the training rows of one epoch is the overlap expected by chance.

    >>> from pytest_ftcheck import example_trace
    >>> check_no_leak(example_trace()).status
    'inconclusive'
    """
    data = trace.measured(Data)
    if data is None:
        return not_measured(NAME, trace, Data)
    rows = next(count for count in (data.leak_rows, data.distinct, data.rows) if count is not None)
    distinct = plural(rows, "distinct row")
    measured = f"{distinct}, {data.source}; no model involved"
    if data.leaks:
        return _label_in_inputs(data.leaks, measured)
    overlap = data.overlap
    unsearched = f"inputs were not compared with the label: {data.leaks_unsearched}" if data.leaks_unsearched else ""
    if overlap is None:
        if unsearched:
            return Verdict(
                NAME, "skipped", f"Not judged: {unsearched}; and there are no held-out rows (eval_batches=)."
            )
        note = "there are no held-out rows (eval_batches=) to compare with the training rows"
        return Verdict(NAME, "pass", f"No input leaks the label in {distinct}.", measured=measured, notes=(note,))
    share = overlap.shared / overlap.rows if overlap.rows else 0.0
    if (
        overlap.rows >= MIN_ROWS
        and overlap.median_length >= MIN_LENGTH
        and share >= SHARED
        and share - overlap.training_duplicates >= BEYOND_CHANCE
    ):
        return _held_out_is_training(overlap, share, measured)
    notable = share >= NOTABLE and share > 2 * overlap.training_duplicates
    shared = f"{overlap.shared} of {plural(overlap.rows, 'distinct held-out row')} are training rows"
    headline = f"{shared}." if unsearched else f"No input leaks the label in {distinct}, and {shared}."
    notes = [f"{shared}: the score is slightly optimistic"] if notable else []
    notes += [unsearched] if unsearched else []
    return Verdict(NAME, "pass", headline, measured=measured, notes=tuple(notes))


def _label_in_inputs(leaks: tuple[Leak, ...], measured: str) -> Verdict:
    leak = leaks[0]
    name = {"input": f"the input {leak.where!r}", "column": f"{leak.where} of the numbers"}.get(
        leak.kind, f"the token at {leak.where} of the row"
    )
    return faults.LABEL_IN_INPUTS.with_details(input=name).verdict(
        NAME,
        f"{name[0].upper()}{name[1:]} leaks the label: one value for each of {leak.classes} classes, "
        f"without exception in {plural(leak.rows, 'distinct row')}.",
        evidence=tuple({"what": entry.kind, "where": entry.where, "distinct rows": entry.rows} for entry in leaks),
        limit="no input is the label under another name",
        measured=measured,
    )


def _held_out_is_training(overlap: Overlap, share: float, measured: str) -> Verdict:
    fault = faults.HELD_OUT_IS_TRAINING
    if overlap.same_objects:
        fault = fault.because("the held-out batches are the training batches")
    expected = percent(overlap.training_duplicates)
    return fault.verdict(
        NAME,
        f"{overlap.shared} of {plural(overlap.rows, 'distinct held-out row')} ({percent(share)}) are training rows; "
        f"{expected} are expected by chance.",
        evidence=(
            {"": "held-out rows that are training rows", "share": percent(share)},
            {"": "training rows that occur more than once", "share": expected},
        ),
        limit=f"below {percent(SHARED)}, or within {100 * BEYOND_CHANCE:.0f} points of the share of duplicates among the training rows",
        measured=measured,
    )
