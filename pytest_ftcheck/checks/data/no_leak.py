"""Neither the inputs give the label away nor are evaluation rows training rows."""

from __future__ import annotations

from ...core.formatting import percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, check, not_measured
from . import faults
from .record import Data

#: Held-out rows that are training rows: this share of them, and this much more than the training rows repeat themselves.
SHARED, BEYOND_CHANCE = 0.5, 0.4
#: Share worth a remark.
REMARK = 0.1
#: Held-out rows, and real tokens (numbers) in a row, below which rows may agree by chance.
LEAST_ROWS, LEAST_LENGTH = 16, 5


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

    An input leaks if it takes exactly one value for each class, without an exception in 64 rows or more: another tensor of the batch,
    a column of numbers, or the token at one place. A held-out row is a training row if all of its tokens (numbers) are the same; as
    many as the training rows repeat among themselves is chance.

    >>> from pytest_ftcheck import example_trace
    >>> check_no_leak(example_trace()).status
    'skipped'
    """
    data = trace.measured(Data)
    if data is None:
        return not_measured("no_leak", trace, Data)
    measured = f"{plural(data.rows, 'row')}, {data.source}; no model involved"
    if data.leaks:
        leak = data.leaks[0]
        what = {"input": f"the input {leak.where!r}", "column": f"{leak.where} of the numbers"}.get(
            leak.kind, f"the token at {leak.where} of the row"
        )
        return Verdict(
            "no_leak",
            "fail",
            f"{what} gives the label away: one value for each of {leak.classes} classes, "
            f"without an exception in {plural(leak.rows, 'row')}.",
            tuple({"what": entry.kind, "where": entry.where, "rows": entry.rows} for entry in data.leaks),
            "no input is the label under another name",
            (f"the label is among the inputs ({what})",),
            "leave it out of the inputs, and train again: the scores so far mean nothing",
            measured,
            fault="label_in_inputs",
        )
    o = data.overlap
    if o is None:
        return Verdict(
            "no_leak",
            "pass",
            f"no input gives the label away in {plural(data.rows, 'row')}.",
            measured=measured,
            notes=("there are no held-out rows (eval_batches=) to compare with those trained on",),
        )
    share = o.shared / o.rows if o.rows else 0.0
    if (
        o.rows >= LEAST_ROWS
        and o.median_length >= LEAST_LENGTH
        and share >= SHARED
        and share - o.by_chance >= BEYOND_CHANCE
    ):
        return Verdict(
            "no_leak",
            "fail",
            f"{o.shared} of {plural(o.rows, 'held-out row')} ({percent(share)}) are training rows, "
            f"where {percent(o.by_chance)} would be by chance.",
            (
                {"": "held-out rows that are training rows", "share": percent(share)},
                {"": "training rows that stand there twice", "share": percent(o.by_chance)},
            ),
            f"below {percent(SHARED)}, or within {percent(BEYOND_CHANCE)} of the share of training rows that repeat",
            (
                "the held-out batches are the training batches"
                if o.same_objects
                else "training and held-out rows were not split, or were split after rows had been copied",
            ),
            "split first, then copy or augment; evaluate on rows that were not trained on",
            measured,
            fault="held_out_is_training",
        )
    notes = []
    if share >= REMARK and share > 2 * o.by_chance:
        notes.append(
            f"{o.shared} of {plural(o.rows, 'held-out row')} are training rows: the score is somewhat too good"
        )
    return Verdict(
        "no_leak",
        "pass",
        f"no input gives the label away in {plural(data.rows, 'row')}, and {o.shared} of {plural(o.rows, 'held-out row')} "
        f"are training rows.",
        measured=measured,
        notes=tuple(notes),
    )
