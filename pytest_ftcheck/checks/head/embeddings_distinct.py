"""Do the embeddings of different rows stay different?"""

from __future__ import annotations

import math

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Fault, Rank, Stage, Symptom, check, not_measured
from .embedding_record import Embeddings

NAME = "embeddings_distinct"
#: The spread at the end over that at the start, below which the embeddings have become one point. Learning separates rows, so the spread
#: grows; a regulariser or a narrow cone of directions takes a part of it, not nine tenths.
COLLAPSED = 0.1
EMBEDDINGS_COLLAPSED = Fault(
    "embeddings_collapsed",
    Rank.OUTCOME + 25,
    "all embeddings collapse to the same point",
    cause="the learning rate is too high for this loss, or negatives are missing or too hard: the loss is then lowest where all rows "
    "have one embedding, and a margin loss stays at its margin",
    remedy="lower the learning rate tenfold; draw batches with several rows of each of several labels; begin with easier negatives",
    explains=("loss_decreases", "loss_stable", "output_depends_on_input", Symptom.INPUT_LOST),
)


@check(
    stage=Stage.OUTCOME,
    position=8,
    faults=(EMBEDDINGS_COLLAPSED,),
    measurements=(Embeddings,),
    shows=(Symptom.OUTCOME,),
)
def check_embeddings_distinct(trace: Trace) -> Verdict:
    """Where the outputs are embeddings (the loss only compares labels with each other): they do not collapse to one point.

    Compared is their spread over the fixed rows, relative to their size, before and after the run. The share of rows whose nearest neighbour
    has their label is shown beside it.

    >>> from pytest_ftcheck import example_trace
    >>> from pytest_ftcheck.checks.head.embedding_record import Embeddings
    >>> print(check_embeddings_distinct(example_trace(measurements={"embeddings": Embeddings(64, 0.6, 0.9, 0.3, 0.95, 0.24)})))
    embeddings_distinct: pass. The embeddings' spread over rows went 0.600 -> 0.900 of their size; the nearest neighbour has the row's label in 30 % -> 95 % of 64 rows (by chance 24 %).
    """  # noqa: E501 - one line of output
    found = trace.measured(Embeddings)
    if found is None:
        return not_measured(NAME, trace, Embeddings)
    headline = (
        f"embeddings' spread over rows went {number(found.spread_first)} -> {number(found.spread_last)} of their size; the nearest "
        f"neighbour has the row's label in {percent(found.neighbours_first)} -> {percent(found.neighbours_last)} of "
        f"{plural(found.rows, 'row')} (by chance {percent(found.chance)})."
    )
    measured = "root mean square around the mean over root mean square, dropout off, on the fixed rows"
    if not math.isfinite(found.spread_last) or found.spread_last <= COLLAPSED * found.spread_first:
        limit = f"above {percent(COLLAPSED)} of the spread before the run"
        return EMBEDDINGS_COLLAPSED.verdict(
            NAME, f"All embeddings collapse to one point: the {headline}", limit=limit, measured=measured
        )
    return Verdict(NAME, "pass", f"The {headline}", measured=measured)
