"""The output depends on the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.effect import Effect
from ...core.formatting import number, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..learning import weight_of_suspicion
from ..spec import Fault, Stage, Symptom, check, not_measured
from . import faults
from .number_scale import judge_number_scale
from .other_causes import random_output
from .record import Inputs, WordsMeasurement

NAME = "output_depends_on_input"
#: Roundings up to which a float32 output counts as the same: blind models show 0 to 1, healthy ones more than 10,000.
ROUNDINGS = 4
#: Types coarser than this round small effects away: there only a change of exactly zero is no effect.
COARSE = 1e-6
#: Roundings from which on the words clearly have an effect, where words further on have none.
CLEAR_EFFECT = 1000
#: The same where rows that differ have one and the same output.
CLEAR_EFFECT_OF_EQUAL_ROWS = 32


@check(
    stage=Stage.INPUTS,
    position=3,
    faults=(
        faults.ONE_ROW_FOR_ALL,
        faults.MASK_INVERTED,
        faults.POOLS_FIRST_TOKEN_OF_CAUSAL_MODEL,
        faults.TEXTS_CUT_INSIDE,
        faults.POSITIONS_CONSTANT,
        faults.TYPE_IDS_LOST,
        faults.POOLS_BLIND_LAYER,
        faults.TOKENS_NOT_MIXED,
        faults.WORDS_IGNORED,
        faults.HEAD_CONSTANT,
        faults.OUTPUT_COLLAPSED,
        faults.FIRST_TOKEN_VARIES,
        faults.INPUTS_UNSCALED,
        faults.INPUTS_HARDLY_VARY,
    ),
    measurements=(Inputs,),
    shows=(
        Symptom.BLOWS_UP,
        Symptom.INPUT_LOST,
    ),
)
def check_output_depends_on_input(trace: Trace) -> Verdict:
    """The output depends on the input: other words between the first and the last token of a row give another output.

    In evaluation mode, before and after the training. Only a change within rounding counts as none, so a weak dependence passes. The
    output must be the same both times, or become the same in training, so a last layer that starts at zero passes, too.

    It fails as well where all rows have one output, which changes with their words, where only the first two words of longer texts
    matter, and where positions or type ids are lost on the way to the base. A head that reads the first token alone, where that is another
    word in each row, is advice, and a fault where the run does not learn. Numbers that are far too large, or that hardly vary, are a fault
    where they are the reason.

    >>> from pytest_ftcheck import example_trace
    >>> check_output_depends_on_input(example_trace()).status
    'inconclusive'
    """
    inputs = trace.measured(Inputs)
    if inputs is None:
        return not_measured(NAME, trace, Inputs)
    words = [w for w in inputs.words if w.distinct > 1]
    if not words:
        reason = "all rows measured are the same" if inputs.words else None
        return not_measured(NAME, trace, Inputs, inputs.unmeasured.get("words", reason))
    if reason := random_output(inputs):
        return Verdict(NAME, "skipped", reason)
    details: dict[str, Any] = {
        "evidence": tuple(_row(w) for w in words),
        "limit": f"a change beyond rounding: {ROUNDINGS} roundings of the largest output (float32: {number(ROUNDINGS * 2.0**-23)} of it)",
        "measured": "evaluation mode; each row's words taken from other rows, its first and last token, padding and mask as they were",
    }
    if no_effect(words[-1].effect):
        return _judge_same_output(inputs, words, trace, details)
    return (
        _judge_changing_output(words, details)
        or judge_number_scale(trace, inputs, NAME)
        or _judge_first_tokens(trace, inputs, words[-1])
        or _passed(words, details)
    )


def _judge_changing_output(words: Sequence[WordsMeasurement], details: dict[str, Any]) -> Verdict | None:
    """The words have an effect: all of them, at their places?"""
    last = words[-1]
    if last.other_words is not None and last.other_words.ulps > CLEAR_EFFECT_OF_EQUAL_ROWS and _equal_rows(last):
        headline = f"All of {last.distinct} different rows have the same output, and it changes with their words."
        return faults.ONE_ROW_FOR_ALL.verdict(NAME, headline, **details)
    if partial := _find_partial_loss(words):
        fault, headline = partial
        return fault.with_details(base=words[0].base).verdict(NAME, headline, **details)
    return None


def _judge_first_tokens(trace: Trace, inputs: Inputs, words: WordsMeasurement) -> Verdict | None:
    """A head on the first token where that is another word in each row: a fault only where the run does not learn."""
    first = inputs.first_tokens
    if first is None or not first.read_alone:
        return None
    return faults.FIRST_TOKEN_VARIES.with_details(base=words.base or "the base").verdict(
        NAME,
        f"The head reads the base's vector at the first token of each row alone, and {plural(first.rows, 'row')} begin with "
        f"{first.distinct} different tokens (the most common one: {plural(first.most_common, 'row')}).",
        weight_of_suspicion(trace),
        limit="different first tokens in less than a quarter of the rows: a special token is the same in each row; a fault only in a run "
        "that does not learn",
        measured="first tokens of the first batches; gradient of the outputs with respect to the base's vectors, initial weights",
    )


def _passed(words: Sequence[WordsMeasurement], details: dict[str, Any]) -> Verdict:
    last = words[-1]
    order_ignored = last.other_order is not None and no_effect(last.other_order)
    notes = ("the order of the words makes no difference: a bag of words",) if order_ignored else ()
    return Verdict(NAME, "pass", f"{_headline(last, 'an output')}.", notes=notes, **details)


def _judge_same_output(
    inputs: Inputs, words: Sequence[WordsMeasurement], trace: Trace, details: dict[str, Any]
) -> Verdict:
    """The words have no effect at the end: did they ever, and where is it lost?"""
    first, last = words[0], words[-1]
    headline = _headline(last, "the largest output")
    if len(words) == 1 and last.when == "before":
        notes = ("not known for the end: the run did not finish",)
        return Verdict(NAME, "pass", f"{headline}, at the start.", notes=notes, **details)
    if len(words) > 1 and not no_effect(first.effect):
        return faults.OUTPUT_COLLAPSED.verdict(NAME, f"{headline} after the training; before it, it did.", **details)
    if inputs.padding is not None and inputs.padding.mask_received == "inverted":
        return faults.MASK_INVERTED.with_details(base=inputs.padding.base).verdict(NAME, f"{headline}.", **details)
    if last.library_base and _tokens_not_mixed(last):
        fault = faults.TOKENS_NOT_MIXED.with_details(base=last.base)
        return fault.verdict(
            NAME, f"{headline}: {last.base} passes nothing from one token to another.", "advice", **details
        )
    fault = _find_loss(last)
    if fault is faults.HEAD_CONSTANT and all(t.motion.share_changed == 0 for t in trace.tensors if t.part == "head"):
        return Verdict(NAME, "skipped", "Not judged: the head's output is constant, but the head has not moved yet.")
    return fault.with_details(base=last.base or "the base").verdict(NAME, f"{headline}.", **details)


def _headline(words: WordsMeasurement, output: str) -> str:
    what = "With other words in the same places" if words.other_words is not None else "Between different rows"
    effect = words.effect
    change = f"changes by {number(effect.change)}" if effect.change else "does not change at all"
    return f"{what}, {output} of {plural(words.rows, 'row')} {change} (outputs up to {number(effect.scale)})"


def _equal_rows(words: WordsMeasurement) -> bool:
    """Whether all rows have one output, with their own words and with others."""
    others = words.between_rows_other_words
    return no_effect(words.between_rows) and others is not None and no_effect(others)


def _find_partial_loss(words: Sequence[WordsMeasurement]) -> tuple[Fault, str] | None:
    """The words have an effect, but not all of them, or not where they stand: the fault, and a headline."""
    later = [
        w.later_words
        for w in words
        if w.later_words is not None and w.other_words is not None and w.other_words.ulps > CLEAR_EFFECT
    ]
    if later and all(no_effect(effect) for effect in later):
        headline = "With other words from the third on, no output changes at all; with other first words, outputs do."
        return faults.TEXTS_CUT_INSIDE, headline
    base = words[0].base
    if any(w.positions_constant for w in words):
        return faults.POSITIONS_CONSTANT, f"{base} receives at most two different positions for all tokens of a row."
    if any(w.type_ids_lost for w in words):
        headline = f"The batch separates two texts of a row by token_type_ids; {base} does not receive them."
        return faults.TYPE_IDS_LOST, headline
    return None


def _find_loss(words: WordsMeasurement) -> Fault:
    """Where the words are lost that never had an effect."""
    first, others, features = words.base_first_token, words.base_other_tokens, words.features_effect
    if first is not None and others is not None and no_effect(first) and not no_effect(others):
        return faults.POOLS_FIRST_TOKEN_OF_CAUSAL_MODEL
    if features is not None and not no_effect(features):
        return faults.HEAD_CONSTANT
    if first is not None and not no_effect(first):
        return faults.POOLS_BLIND_LAYER
    return faults.WORDS_IGNORED


def _tokens_not_mixed(words: WordsMeasurement) -> bool:
    """Whether each token's vector depends on that token alone: the last one's not on the words before it, theirs on themselves."""
    last, others = words.base_last_token, words.base_other_tokens
    return last is not None and no_effect(last) and others is not None and not no_effect(others)


def no_effect(effect: Effect) -> bool:
    """Whether it is no effect at all: within rounding; in a coarse type exactly zero."""
    return effect.change == 0 or (effect.precision <= COARSE and effect.ulps <= ROUNDINGS)


def _row(words: WordsMeasurement) -> dict[str, Any]:
    def change(effect: Effect | None) -> float | None:
        return None if effect is None else effect.change

    return {
        "when": words.when,
        "largest output": words.between_rows.scale,
        "other rows": words.between_rows.change,
        "other words": change(words.other_words),
        "features, other words": change(words.features_other_words),
        "base, first token": change(words.base_first_token),
        "base, other tokens": change(words.base_other_tokens),
        "base, last token": change(words.base_last_token),
    }
