"""Do the embeddings of different rows stay different, and those that belong together come near?"""

from __future__ import annotations

import math

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Fault, Rank, Stage, Symptom, check, declared_not_measured, not_measured
from .embedding_record import Embeddings

NAME = "embeddings_distinct"
#: Share of random assignments that may have as many such neighbours: as in `metric_improves`.
ALPHA = 0.01
#: A row is nearer to its own than to another with this much less than the probability by chance, and than before the run: they are
#: pushed apart. Three standard deviations of the mean over 32 rows that are placed by chance; learning raises it.
APART, CHANCE = 1 / 6, 0.5
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

EMBEDDINGS_REVERSED = Fault(
    "embeddings_reversed",
    Rank.LOSS + 135,
    "the loss pushes apart the rows that belong together",
    cause="a flipped sign, similarities in place of distances, or positives and negatives exchanged",
    remedy="compare the loss of one batch whose positives are equal with that of one whose negatives are: the first must be lower",
    explains=(Symptom.LOSS_WRONG, "loss_decreases"),
)


@check(
    stage=Stage.OUTCOME,
    position=8,
    faults=(EMBEDDINGS_COLLAPSED, EMBEDDINGS_REVERSED),
    measurements=(Embeddings,),
    shows=(Symptom.OUTCOME,),
)
def check_embeddings_distinct(trace: Trace) -> Verdict:
    """Where the outputs are embeddings: they do not collapse to one point, and rows that belong together come near.

    They are embeddings where ``Intent(task="embedding")`` declares it, or where the loss only compares labels with each other. Compared is
    their spread over the fixed rows, relative to their size, before and after the run; and the share of rows whose nearest neighbour has
    their label, or, where a row has several texts and no label, of first texts whose nearest second text is their own.

    >>> from pytest_ftcheck import example_trace
    >>> from pytest_ftcheck.checks.head.embedding_record import Embeddings
    >>> near = Embeddings(64, 0.6, 0.9, 0.3, 0.95, 0.24, "label", 0.002, 0.52, 0.97)
    >>> print(check_embeddings_distinct(example_trace(measurements={"embeddings": near})))
    embeddings_distinct: pass. The embeddings' spread over rows went 0.600 -> 0.900 of their size; the nearest neighbour has the row's label in 30 % -> 95 % of 64 rows (by chance 24 %).
    """  # noqa: E501 - one line of output
    found = trace.measured(Embeddings)
    if found is None:
        declared = trace.intent is not None and trace.intent.task == "embedding"
        return (declared_not_measured if declared else not_measured)(NAME, trace, Embeddings)
    if reversed_ := _find_reversed(found):
        return reversed_
    spread = (
        f"embeddings' spread over rows went {number(found.spread_first)} -> {number(found.spread_last)} of their size"
    )
    measured = "root mean square around the mean over root mean square, dropout off, on the fixed rows"
    if not math.isfinite(found.spread_last) or found.spread_last <= COLLAPSED * found.spread_first:
        return EMBEDDINGS_COLLAPSED.verdict(
            NAME,
            f"All embeddings collapse to one point: the {spread}{_nearest(found)}.",
            limit=f"above {percent(COLLAPSED)} of the spread before the run",
            measured=measured,
        )
    if found.p_value is not None and found.p_value > ALPHA:
        return Verdict(
            NAME,
            "inconclusive",
            f"The embeddings stay distinct, and their neighbours are not yet better than chance{_nearest(found)} "
            f"(p = {number(found.p_value)}).",
            limit=f"matched by at most {percent(ALPHA)} of random assignments",
            measured="nearest neighbours among the fixed rows, dropout off",
            causes=("too few steps, too low a learning rate, or too few rows to decide",),
            remedy="train for more steps (steps=, or --ftcheck-steps), or use larger batches",
        )
    return Verdict(NAME, "pass", f"The {spread}{_nearest(found)}.", measured=measured)


def _find_reversed(found: Embeddings) -> Verdict | None:
    """Rows that belong together and end farther from each other than from others. They may also end in one point, with the others."""
    first, last = found.nearer_first, found.nearer_last
    if first is None or last is None or not math.isfinite(found.spread_last) or last > min(first, CHANCE) - APART:
        return None
    return EMBEDDINGS_REVERSED.verdict(
        NAME,
        f"Rows that belong together are pushed apart: a row is nearer to one of its own than to another with probability {number(first)} "
        f"-> {number(last)}{_nearest(found)}.",
        limit=f"less than {number(APART)} below the {number(CHANCE)} by chance, or below that before the run",
        measured="distances among the embeddings of the fixed rows, dropout off",
    )


def _nearest(found: Embeddings) -> str:
    """The share of nearest neighbours, as the end of a sentence; empty where it is not known."""
    if found.neighbours_first is None or found.neighbours_last is None or found.chance is None:
        return ""
    its = "second text is its own" if found.relation == "pair" else "neighbour has the row's label"
    return (
        f"; the nearest {its} in {percent(found.neighbours_first)} -> {percent(found.neighbours_last)} of "
        f"{plural(found.rows, 'row')} (by chance {percent(found.chance)})"
    )
