"""The output depends on the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.effect import Effect
from ...core.formatting import number, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, Symptom, check, not_measured
from . import faults
from .padding_ignored import confounded
from .record import Inputs, WordsLook

#: Roundings up to which a float32 output counts as the same: blind models show 0 to 1, healthy ones more than 10,000.
ROUNDINGS = 4
#: Types coarser than this round small effects away: there only an effect of exactly zero is one of nothing.
COARSE = 1e-6
#: Roundings from which on an effect counts as seen, where another one is said to be none.
SEEN = 1000
#: The same where rows that differ have one and the same output.
CLEAR = 32


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
    ),
    measurements=(Inputs,),
    shows=(
        Symptom.BLOWS_UP,
        Symptom.INPUT_LOST,
    ),
)
def check_output_depends_on_input(trace: Trace) -> Verdict:
    """The output depends on the input: other words between the first and the last token of a row give another output.

    In evaluation mode, before and after the training. Only a change within rounding counts as none, so that a weak dependence is no alarm;
    and only one seen at both times, or one that got lost on the way, so that a last layer that starts at zero is none.

    It fails as well where all rows have one output, which changes with their words, where only the first two words of longer texts
    matter, and where positions or type ids are lost on the way to the base.

    >>> from pytest_ftcheck import example_trace
    >>> check_output_depends_on_input(example_trace()).status
    'skipped'
    """
    inputs = trace.measured(Inputs)
    if inputs is None:
        return not_measured("output_depends_on_input", trace, Inputs)
    looks = [w for w in inputs.words if w.distinct > 1]
    if not looks:
        why = inputs.unmeasured.get("words", "all rows looked at are the same" if inputs.words else "no reason")
        return Verdict("output_depends_on_input", "skipped", f"Not measured: {why}.")
    first, last = looks[0], looks[-1]
    if why := confounded(inputs, check="output_depends_on_input"):
        return Verdict("output_depends_on_input", "skipped", why)
    decisive = last.words or last.across
    what = "With other words in the same places" if last.words is not None else "Between different rows"
    change = f"changes by {number(decisive.change)}" if decisive.change else "does not change at all"
    headline = (
        f"{what}, the largest output of {plural(last.rows, 'row')} {change} (outputs up to {number(decisive.scale)})"
    )

    def verdict(status: Any, text: str, **more: Any) -> Verdict:
        return Verdict(
            "output_depends_on_input",
            status,
            text,
            evidence=tuple(_row(w) for w in looks),
            limit=f"a change beyond rounding: {ROUNDINGS} roundings of the largest output (float32: {number(ROUNDINGS * 2.0**-23)} of it)",
            measured="evaluation mode; each row's words taken from other rows, its first and last token, padding and mask as they were",
            **more,
        )

    if not _blind(last):
        if last.words is not None and last.words.ulps > CLEAR and _alike(last):
            return verdict(
                "fail",
                f"All of {last.distinct} different rows have the same output, and it changes with their words.",
                causes=(
                    "one row's features stand for all of them: an index that takes a row where a place was meant (out[0] of a tensor "
                    "is its first row, hidden[:, 0] each row's first place), or a mean over dim 0",
                ),
                remedy="look at what is indexed between the base and the head: dimension 0 is the rows'",
                fault="one_row_for_all",
            )
        if found := _partly(looks):
            cause, remedy, fault, text = found
            return verdict("fail", text, causes=(cause,), remedy=remedy, fault=fault)
        notes: tuple[str, ...] = ()
        if last.order is not None and blind(last.order):
            notes = ("the order of the words makes no difference: a bag of words",)
        return verdict("pass", f"{headline.replace('the largest output', 'an output')}.", notes=notes)
    if len(looks) == 1 and last.when == "before":
        return verdict(
            "pass", f"{headline}, at the start.", notes=("what came of it is not known: the run did not end",)
        )
    if len(looks) > 1 and not _blind(first):
        return verdict(
            "fail",
            f"{headline} after the training; before it, the input mattered.",
            causes=("the training made the output the same for every input: dead units, saturation or divergence",),
            remedy="lower the learning rate; look at what units_alive, loss_stable and all_finite say",
            fault="output_collapsed",
        )
    if inputs.padding is not None and inputs.padding.handed == "inverted":
        return verdict(
            "fail",
            f"{headline}.",
            causes=("the mask is the wrong way round: real tokens are hidden from each other",),
            remedy="attention_mask is 1 at real tokens and 0 at padding: pass 1 - mask (or ~mask), as it is made now",
            fault="mask_inverted",
        )
    if last.base_library and _unmixed(last):
        return verdict(
            "advice",
            f"{headline}: {last.base} hands nothing from one token to another.",
            causes=(
                f"the attention of {last.base}, a class of the library, gives nothing here: a kernel of its own that is not installed?",
            ),
            remedy="run it where its kernels are, or take another architecture: as it is, it sees one token of each row",
            fault="tokens_not_mixed",
        )
    cause, remedy, fault = _why(last, trace)
    if not fault:
        return Verdict("output_depends_on_input", "skipped", cause)
    return verdict("fail", f"{headline}.", causes=(cause,), remedy=remedy, fault=fault)


def _alike(look: WordsLook) -> bool:
    """All rows have one output, with their own words and with others."""
    return blind(look.across) and look.other_across is not None and blind(look.other_across)


def _partly(looks: Sequence[WordsLook]) -> tuple[str, str, str, str] | None:
    """The words matter, but not all of them, or not where they stand: cause, remedy, fault, headline."""
    late = [w.late for w in looks if w.late is not None and w.words is not None and w.words.ulps > SEEN]
    if late and all(blind(e) for e in late):
        return (
            "the texts are cut off inside the model, or only the first vectors are read: a slice or a maximum length of a few tokens",
            "follow the ids' width through forward(): ids[:, :n], max_length, a narrow() or a view() that drops the rest",
            "texts_cut_inside",
            "With other words from the third on, no output changes at all; with other first words, outputs do.",
        )
    base = looks[0].base
    if any(w.positions_constant for w in looks):
        return (
            f"{base} is handed position_ids that are the same nearly everywhere (zeros, or the attention mask in their place)",
            "leave position_ids out: the base counts them itself; or torch.arange(columns)",
            "positions_constant",
            f"{base} is told that all tokens of a row stand at one and the same position or two.",
        )
    if any(w.types_lost for w in looks):
        return (
            f"token_type_ids are in the batch and do not reach {base}, which takes them for zeros",
            f"hand them on: {base}(input_ids=..., attention_mask=..., token_type_ids=token_type_ids)",
            "type_ids_lost",
            f"The batch tells two texts of a row apart by token_type_ids; {base} does not get them.",
        )
    return None


def _why(look: WordsLook, trace: Trace) -> tuple[str, str, str]:
    """Cause, remedy and fault where the words never mattered."""
    entering = look.features_words if look.words is not None else look.features_across
    base = look.base or "the base"
    if look.first is not None and look.rest is not None and blind(look.first) and not blind(look.rest):
        return (
            f"the first token's vector is what is classified, and in {base}, a causal model, the first token sees none after it",
            "pool where the whole text was seen: the last real token, hidden[arange(rows), mask.sum(1) - 1], or a masked mean",
            "pools_first_token_of_causal_model",
        )
    if entering is not None and not blind(entering):
        if all(t.motion.share_changed == 0 for t in trace.tensors if t.part == "head"):
            return "Cannot be told: the head's output is constant, but the head has not moved yet.", "", ""
        return (
            "what enters the head differs from row to row, what leaves it does not: dead units, zero weights or saturation in the head",
            "look at the head's activations and initial weights (units_alive, head_init)",
            "head_constant",
        )
    if look.first is not None and not blind(look.first):
        return (
            f"the head is fed with something else than {base}'s last hidden vectors: those depend on the words, what is classified does "
            "not (hidden_states[0] is the output of the embedding layer, the same first vector for every text)",
            "take last_hidden_state, or hidden_states[-1]",
            "pools_blind_layer",
        )
    return (
        "what is classified does not depend on the words: a constant position or tensor is pooled, or something on the way from the "
        "ids is replaced by a constant",
        "follow one row's ids through forward(): where does the vector stop depending on them?",
        "words_ignored",
    )


def _unmixed(look: WordsLook) -> bool:
    """Whether each token's vector depends on that token alone: the last one's not on the words before it, theirs on themselves."""
    return look.last is not None and blind(look.last) and look.rest is not None and not blind(look.rest)


def _blind(look: WordsLook) -> bool:
    return blind(look.words if look.words is not None else look.across)


def blind(effect: Effect) -> bool:
    """Whether it is no effect at all: within rounding; in a coarse type exactly zero."""
    return effect.change == 0 or (effect.precision <= COARSE and effect.ulps <= ROUNDINGS)


def _row(look: WordsLook) -> dict[str, Any]:
    def change(effect: Effect | None) -> float | None:
        return None if effect is None else effect.change

    return {
        "when": look.when,
        "largest output": look.across.scale,
        "other rows": look.across.change,
        "other words": change(look.words),
        "features, other words": change(look.features_words),
        "base, first token": change(look.first),
        "base, other tokens": change(look.rest),
        "base, last token": change(look.last),
    }
