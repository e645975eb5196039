"""Is each position of a language model taught the token that it should predict?"""

from __future__ import annotations

from ...core.formatting import percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Fault, Rank, Stage, Symptom, check, not_measured
from .lm_record import LmTargets

NAME = "lm_targets_aligned"
#: Share of positions from which a distance is the one that is taught. The right one has a share of 1.
TAUGHT = 0.9
#: The right distance of a causal model, up to this share, leaves room for another: texts that repeat themselves have high shares at
#: several.
NOT_TAUGHT = 0.5
#: Share of positions of a model that sees the whole text at which it may be taught the very id that it sees: masked language models keep
#: every tenth chosen token as it is (Devlin et al. 2019).
VISIBLE = 0.5
#: Share of rows whose taught position follows later ids, from which a model that is taught the next token sees it. With a prefix that sees
#: all of itself, and an answer that does not, it is 0; with attention to the whole text 1.
SEES_NEXT = 0.5
#: Masked tokens are 80 % the mask's id, by convention, and all of them in simpler scripts: from this share on an id beside the labels is
#: the mask, unless it is that frequent everywhere, or the labels have such an id themselves.
MASKED, NOT_MASKED = 0.7, 0.4
#: Share of targets without a neighbour, of tokens that are masked at random: 0.72 where 15 % are, 0.36 where 40 % are. An answer whose
#: place holds one and the same id, so that it is not seen, is one target in a row, or several side by side.
SCATTERED = 0.3
#: Different lengths of padding that must fit: with one, all rows are moved alike, as by a wrong shift.
LEAST_PADDINGS = 2
#: Rows, and the share of them that ends in one token, from which that token is taken for the end of a text.
END_ROWS, END_SHARE = 32, 0.9
_REMEDY = (
    "give the model labels=input_ids and let it shift them (models of transformers do), or shift once by yourself: logits[:, :-1] against "
    "labels[:, 1:]"
)
SHIFTED_TWICE = Fault(
    "shifted_twice",
    Rank.LOSS + 134,
    "labels are shifted twice: each position is taught a token beyond the next",
    cause="the labels are shifted before the model or the loss shifts them again: position t is taught token t + {distance}",
    remedy=_REMEDY,
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
NOT_SHIFTED = Fault(
    "not_shifted",
    Rank.LOSS + 131,
    "labels are not shifted: each position is taught a token that it sees",
    cause="logits and labels are compared position by position, so the model learns to copy token t{distance} and not to predict "
    "the next one",
    remedy=_REMEDY,
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
LABELS_AT_VISIBLE = Fault(
    "labels_at_visible",
    Rank.LOSS + 132,
    "labels are set at visible positions: the model is taught to copy its input",
    cause="labels are the whole text, in place of the masked tokens alone: at the other positions the answer is the input",
    remedy="set the labels of all positions that are not masked to -100 (DataCollatorForLanguageModeling(mlm=True) does)",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
NEXT_TOKEN_VISIBLE = Fault(
    "next_token_visible",
    Rank.LOSS + 141,
    "each position is taught the next token, and sees it",
    cause="attention is not causal: the class attends to the whole text unless its config says is_decoder=True (BertLMHeadModel and its "
    "relatives), or the causal mask was replaced; so the model learns to copy, and cannot generate",
    remedy="set is_decoder=True in the config, or keep the causal mask; for masked language models use the class for them, and mask tokens",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
LABELS_BESIDE_MASKED = Fault(
    "labels_beside_masked",
    Rank.LOSS + 136,
    "labels stand beside the masked tokens, not at them",
    cause="labels and inputs are shifted against each other by {distance}: the model is taught a word where it sees another one, and "
    "nothing where the mask is",
    remedy="set labels = input_ids before masking, and -100 where no token was masked; do not shift them",
    explains=(Symptom.LOSS_WRONG,),
)
LABELS_MOVED_BY_PADDING = Fault(
    "labels_moved_by_padding",
    Rank.LOSS + 138,
    "tokens and labels are padded on different sides",
    cause="the ids of a row are padded on one side (padding_side) and its labels on the other, so its labels stand as many positions away "
    "as it has padding",
    remedy="pad the labels on the tokenizer's padding_side, or let one collator pad both",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
MASKED_TARGETS_OF_CAUSAL = Fault(
    "masked_targets_of_causal",
    Rank.LOSS + 139,
    "a causal language model is taught masked tokens only",
    cause="the collator masks tokens and sets all other labels to -100, as for BERT: mlm=True is the default of "
    "DataCollatorForLanguageModeling",
    remedy="DataCollatorForLanguageModeling(tokenizer, mlm=False)",
    explains=(Symptom.LOSS_WRONG,),
)
END_NEVER_TAUGHT = Fault(
    "end_never_taught",
    Rank.LOSS + 133,
    "the token that ends each text is never a target",
    cause="the padding token is the end token, and all labels with its id were set to -100, the real ends among them: the model never "
    "learns to stop",
    remedy="set labels to -100 where attention_mask is 0, not where the id is the padding id; or give the padding a token of its own",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)


@check(
    stage=Stage.LOSS_FUNCTION,
    position=4,
    faults=(
        SHIFTED_TWICE,
        NOT_SHIFTED,
        LABELS_AT_VISIBLE,
        NEXT_TOKEN_VISIBLE,
        LABELS_BESIDE_MASKED,
        LABELS_MOVED_BY_PADDING,
        MASKED_TARGETS_OF_CAUSAL,
        END_NEVER_TAUGHT,
    ),
    measurements=(LmTargets,),
)
def check_lm_targets_aligned(trace: Trace) -> Verdict:
    """Where the outputs are the vocabulary: each position is taught the next token (causal), or a token that it does not see (masked).

    Read off one backward pass to the logits: at each position with a gradient, the id whose logit the loss raises most, beside the ids of
    the input at distances -2 to 3. Whether the model is causal is measured, too: later ids are changed, and the logits of earlier
    positions compared.

    >>> from pytest_ftcheck import example_trace
    >>> from pytest_ftcheck.checks.loss.lm_record import LmTargets
    >>> print(check_lm_targets_aligned(example_trace(measurements={"lm_targets": LmTargets(300, True, {0: 0.02, 1: 1.0, 2: 0.03})})))
    lm_targets_aligned: pass. 100 % of 300 positions are taught the next token.
    """
    targets = trace.measured(LmTargets)
    if targets is None:
        return not_measured(NAME, trace, LmTargets)
    measured = "the id whose logit the loss raises most, at each position with a gradient, before the first step"
    positions, own = plural(targets.positions, "position"), targets.shares.get(0, 0.0)
    if moved := _find_moved_by_padding(targets):
        return moved
    if not targets.causal:
        if own >= VISIBLE:
            headline = f"{percent(own)} of {positions} are taught the very token that they see."
            limit = f"below {percent(VISIBLE)}, in a model that sees the whole text"
            return LABELS_AT_VISIBLE.verdict(NAME, headline, limit=limit, measured=measured)
        following = targets.shares.get(1, 0.0)
        if following >= TAUGHT and targets.sees_next is not None and targets.sees_next >= SEES_NEXT:
            return NEXT_TOKEN_VISIBLE.verdict(
                NAME,
                f"{percent(following)} of {positions} are taught the next token, and their logits follow the tokens after them.",
                limit="a position that is taught the next token does not see it",
                measured=f"{measured}; and its logits with other ids after it",
            )
        if beside := _find_labels_beside_masked(targets):
            return beside
        return Verdict(
            NAME, "pass", f"{percent(own)} of {positions} are taught the very token that they see.", measured=measured
        )
    following = targets.shares.get(1, 0.0)
    distance, most = max(targets.shares.items(), key=lambda item: item[1], default=(1, 0.0))
    if distance != 1 and most >= TAUGHT and following <= NOT_TAUGHT:
        fault = SHIFTED_TWICE if distance > 1 else NOT_SHIFTED
        if targets.of_decoder and distance == 0:
            fault = NOT_SHIFTED.because(
                "decoder_input_ids are the labels themselves: the decoder is given at each position the token that it should predict there",
                "leave decoder_input_ids out (models of transformers make them from the labels), or begin them with the start token and "
                "leave out the last one",
            )
        where = str(distance) if distance > 1 else f" - {-distance}" if distance else ""
        return fault.with_details(distance=where).verdict(
            NAME,
            f"{percent(most)} of {positions} are taught {_described(distance)}, {percent(following)} the next token.",
            limit="a causal language model is taught the next token",
            measured=measured,
        )
    if masked := _find_masked_targets(targets):
        return masked
    if targets.rows >= END_ROWS and targets.rows_with_end >= END_SHARE * targets.rows and not targets.end_labels:
        return END_NEVER_TAUGHT.verdict(
            NAME,
            f"{percent(targets.rows_with_end / targets.rows)} of {plural(targets.rows, 'row')} end in the same token, and no label is that "
            "token.",
            limit=f"a token that ends {percent(END_SHARE)} of the rows is a label in some",
            measured="last real token of each row, beside all labels",
        )
    return Verdict(NAME, "pass", f"{percent(following)} of {positions} are taught the next token.", measured=measured)


def _find_moved_by_padding(targets: LmTargets) -> Verdict | None:
    """In nearly all rows with padding, of different lengths, the targets are the row's ids at the right distance and its padding."""
    if targets.paddings < LEAST_PADDINGS or targets.moved_by_padding < TAUGHT * targets.padded_rows:
        return None
    return LABELS_MOVED_BY_PADDING.verdict(
        NAME,
        f"In {targets.moved_by_padding} of {plural(targets.padded_rows, 'row')} with padding the tokens that are taught stand as far from "
        "their place as the row has padding.",
        limit="the distance of targets from their ids does not depend on a row's padding",
        measured="the id whose logit the loss raises most, at each position with a gradient, beside the ids of its row",
    )


def _find_masked_targets(targets: LmTargets) -> Verdict | None:
    """Where a causal model is to predict the next token, one id, the mask, stands in place of it, and hardly anywhere else."""
    mask, overall = targets.commonest.get(1, 0.0), targets.commonest_overall.get(1, 1.0)
    following = targets.shares.get(1, 0.0)
    if mask < MASKED or overall > NOT_MASKED or following > NOT_TAUGHT or targets.scattered < SCATTERED:
        return None
    return MASKED_TARGETS_OF_CAUSAL.verdict(
        NAME,
        f"At {percent(mask)} of {plural(targets.positions, 'position')} one and the same id stands in place of the next token, which is "
        f"taught there; {percent(overall)} of all tokens are that id.",
        limit=f"a causal language model is taught the next token that it is given; no id stands in its place at {percent(MASKED)}",
        measured="ids after the positions with a gradient, before the first step",
    )


def _find_labels_beside_masked(targets: LmTargets) -> Verdict | None:
    """One id, the mask, stands at a fixed distance from nearly all labels, and not at them."""
    k, most = max(targets.commonest.items(), key=lambda item: item[1], default=(0, 0.0))
    own = targets.commonest.get(0, 0.0)
    if k == 0 or most < MASKED or own > NOT_MASKED or targets.commonest_overall.get(k, 1.0) > NOT_MASKED:
        return None
    where = plural(abs(k), "position")
    return LABELS_BESIDE_MASKED.with_details(distance=where).verdict(
        NAME,
        f"{percent(most)} of {plural(targets.positions, 'position')} with a label have one and the same id {where} "
        f"{'before' if k < 0 else 'after'} them, and {percent(own)} have one and the same id themselves.",
        limit=f"the most frequent id at the labels themselves has a share above {percent(NOT_MASKED)}, or no id beside them one of "
        f"{percent(MASKED)}",
        measured="ids at and beside the positions with a gradient, before the first step",
    )


def _described(distance: int) -> str:
    if distance > 1:
        return f"the token {distance} positions later"
    return "the token that they see" if distance == 0 else f"the token {plural(-distance, 'position')} earlier"
