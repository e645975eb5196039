"""Do the answers of extractive question answering lie inside their rows?"""

from __future__ import annotations

from ...core.formatting import percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Fault, Rank, Stage, Symptom, check, not_measured
from .answer_record import AnswerSpans

NAME = "answers_inside_text"
#: Share of rows whose answer lies outside, up to which it is taken for truncation: models of transformers ignore such rows on purpose.
MOST_OUTSIDE = 0.2
ANSWERS_OUTSIDE = Fault(
    "answers_outside",
    Rank.LOSS_DISCONNECTED
    + 58,  # before "the loss ignores every label" and "the loss is flat": where all are outside, both are true
    "answer positions lie outside the tokens of their rows",
    cause="positions are offsets in characters or words of the text, not of tokens in the input; the loss silently ignores those "
    "beyond the row",
    remedy="map them with the tokenizer's offset_mapping or char_to_token(), for the tokens of question and context together",
    explains=(Symptom.LOSS_WRONG, Symptom.STANDS_STILL, "batches_sound", "all_finite"),
    confidence="certain",
)
ANSWERS_REVERSED = Fault(
    "answers_reversed",
    Rank.DATA + 173,
    "answers end before they start",
    cause="start and end positions were exchanged, or are counted from different origins",
    remedy="print one row's tokens from start to end beside its answer",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)


@check(stage=Stage.DATA, position=5, faults=(ANSWERS_OUTSIDE, ANSWERS_REVERSED), measurements=(AnswerSpans,))
def check_answers_inside_text(trace: Trace) -> Verdict:
    """Where batches have ``start_positions`` and ``end_positions``: they lie inside the row's real tokens, and in order.

    Some rows may lie outside, because truncation cuts their answer; models of transformers leave these out of the loss.

    >>> from pytest_ftcheck import example_trace
    >>> from pytest_ftcheck.checks.data.answer_record import AnswerSpans
    >>> print(check_answers_inside_text(example_trace(measurements={"answer_spans": AnswerSpans(64, 0, 2, (70, 73, 48))})))
    answers_inside_text: pass. The answers of 62 of 64 rows lie inside their tokens.
    """
    spans = trace.measured(AnswerSpans)
    if spans is None:
        return not_measured(NAME, trace, AnswerSpans)
    measured = "start_positions and end_positions beside the attention mask"
    if spans.outside > MOST_OUTSIDE * spans.rows:
        start, end, tokens = spans.example or (0, 0, 0)
        return ANSWERS_OUTSIDE.verdict(
            NAME,
            f"The answer lies outside the tokens in {percent(spans.outside / spans.rows)} of {plural(spans.rows, 'row')}: one goes from "
            f"{start} to {end} in a row of {plural(tokens, 'token')}.",
            limit=f"at most {percent(MOST_OUTSIDE)}, which truncation may cut off",
            measured=measured,
        )
    if spans.reversed > MOST_OUTSIDE * spans.rows:
        return ANSWERS_REVERSED.verdict(
            NAME,
            f"The answer ends before it starts in {spans.reversed} of {plural(spans.rows, 'row')}.",
            measured=measured,
        )
    inside = spans.rows - spans.outside
    return Verdict(
        NAME,
        "pass",
        f"The answers of {inside} of {plural(spans.rows, 'row')} lie inside their tokens.",
        measured=measured,
    )
