"""Padding changes nothing: neither what is in it nor how much of it there is."""

from __future__ import annotations

from typing import Any

from ...core.effect import Effect
from ...core.formatting import percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..effects import LIMIT, ROUNDINGS, matters, share
from ..spec import Stage, check, not_measured
from . import faults
from .record import Inputs, PaddingLook, RowsLook

#: Where the base is seen to be handed a mask that hides nothing, or the wrong half, and with the right one padding has no part in its
#: output (at most a twentieth of the effect), there is one reason left, and a smaller effect is enough: without a mask a DistilBERT
#: of width 64 with fresh weights, rows of 6 to 24 tokens, shows 0.011 to 0.042 (5 seeds, tests/probes); with it, less than 1e-6.
UNMASKED, SHARE = 0.005, 0.05

#: The same where the model is the user's own all the way. Only its edge may see padding, as in a convolution or a recurrent layer that
#: runs backwards: then, on text with 16 columns of padding, 16 more change at most this share of the spread, and at least this share of
#: it is left. Measured on 3 seeds of small healthy convolutional and bidirectional networks: 9e-4 or less, 0.89 or more is left;
#: on 10 kinds of faults 0.055 to 7.8, or (the last state of a recurrent network) at most 1e-5 is left.
#: Of a model that is given neither mask nor lengths, only the declared id, a large effect.
OWN_LIMIT, LARGE = 0.1, 0.5
STRETCH, LEFT = 0.02, 0.1

_FAULTS: dict[str, tuple[str, str]] = {
    "mask_not_passed": (
        "the attention mask does not reach {base}: padding is attended to like text",
        "hand it over by its name: {base}(input_ids=ids, attention_mask=mask)",
    ),
    "mask_misspelt": (
        "the mask goes to {base} under a name that it does not know ({names}), and is swallowed by **kwargs",
        "call it attention_mask=: {base}(input_ids=ids, attention_mask=mask)",
    ),
    "mask_misplaced": (
        "the mask goes to {base} as {names}, not as attention_mask",
        "hand it over by its name, not by position: {base}(input_ids=ids, attention_mask=mask)",
    ),
    "mask_inverted": (
        "the mask is the wrong way round: {base} is told to look at the padding, and at nothing else",
        "attention_mask is 1 at real tokens and 0 at padding: pass 1 - mask (or ~mask), as it is made now",
    ),
    "mask_all_ones": (
        "the mask that reaches {base} is 1 everywhere, padding included",
        "build it from the ids: attention_mask = (input_ids != pad_token_id).long()",
    ),
    "mask_wrong": (
        "what reaches {base} as its mask is not the mask of this batch",
        "hand over the batch's own mask, of shape (rows, columns), 1 at real tokens",
    ),
    "padding_pooled": (
        "{base} gets the right mask, but what is done with its output takes in padding: a mean, a maximum or a last position that counts "
        "padding as text, or a pad_token_id that is not the batch's",
        "pool over real tokens only, e.g. (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), or take the vector at "
        "mask.sum(1) - 1; check model.config.pad_token_id",
    ),
    "pad_id_wrong": (
        "the model looks for the last real token by config.pad_token_id={config_pad}, but the batches are padded with {pad_id}: it "
        "pools padding",
        "model.config.pad_token_id = tokenizer.pad_token_id, which is {pad_id} here",
    ),
    "mask_ignored": (
        "the model takes a mask and does nothing with it, though it has attention layers: padding is attended to like text",
        "pass it on to the attention layers: key_padding_mask=~mask.bool() (src_key_padding_mask= of a TransformerEncoder)",
    ),
    "mask_turned_round": (
        "the mask is the wrong way round inside the model: it hides the words and shows the padding (torch's key_padding_mask is True "
        "where a token is to be ignored, the tokenizer's attention_mask is 1 where it is real)",
        "key_padding_mask=(attention_mask == 0), or scores.masked_fill(attention_mask == 0, -inf)",
    ),
    "padding_read_by_rnn": (
        "the recurrent layer runs on over the padding, and what comes after it is used (its last state, or a mean over all places)",
        "nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False), or take the output at lengths - 1",
    ),
    "padding_read": (
        "somewhere in the model padding is read like text: an attention without a mask, or with one of another sign, dtype or padding "
        "id (0 is added to the scores of padding, not -inf), or a mean or a last position that counts padding",
        "hide it in every attention (key_padding_mask=(ids == pad_token_id)), and pool over real tokens only: "
        "(hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)",
    ),
}
#: Faults that are another one's, in other words.
_IDS = {"mask_turned_round": "mask_inverted", "padding_read_by_rnn": "padding_read"}


@check(
    stage=Stage.INPUTS,
    position=1,
    faults=(
        faults.MASK_INVERTED,
        faults.MASK_NOT_PASSED,
        faults.MASK_MISSPELT,
        faults.MASK_MISPLACED,
        faults.MASK_ALL_ONES,
        faults.MASK_IGNORED,
        faults.MASK_WRONG,
        faults.PAD_ID_WRONG,
        faults.PADDING_READ,
        faults.PADDING_POOLED,
    ),
    measurements=(Inputs,),
)
def check_padding_ignored(trace: Trace) -> Verdict:
    """Padding changes nothing: the same rows give the same outputs with less of it (on the left: with other ids in it).

    In evaluation mode, with the initial weights (the last ones where outputs differ by rounding alone at first): the shortest rows of a
    batch once as they are, once without the columns that are padding in all of them. Largest change of an output over the spread between
    rows: at most 0.05. Where it is more, the base inside (the module that takes ``input_ids`` and ``attention_mask`` itself) is called
    with the right mask: if padding matters to it all the same, that is its design, and no fault of the training script. A model without a
    library's base is judged by more padding: at its edge a convolution sees some, but 16 further columns of it change nothing then.

    >>> from pytest_ftcheck import example_trace
    >>> check_padding_ignored(example_trace()).status
    'skipped'
    """
    inputs = trace.measured(Inputs)
    if inputs is None:
        return not_measured("padding_ignored", trace, Inputs)
    look = inputs.padding
    if look is None:
        return Verdict("padding_ignored", "skipped", f"Not measured: {inputs.unmeasured.get('padding', 'no reason')}.")
    own = _own(look)
    effect = (look.amount or (look.content if own else None)) if look.side == "right" else look.content
    if own == "mask_turned_round" and (effect is None or (look.amount is None and look.side == "right")):
        return _hides_everything(look)
    if effect is None:
        return Verdict("padding_ignored", "skipped", "Not measured: the outputs are not finite.")
    what = (
        f"Without {plural(look.columns, 'column')} of padding"
        if look.side == "right"
        else "With other ids in the padding"
    )
    headline = f"{what}, the outputs of the same {plural(look.rows, 'row')} change by {share(effect)} of the spread between rows"
    measured = f"evaluation mode, {weights(look)}, shortest rows of the batch with the most padding among the first"
    limit = (
        f"at most {percent(LIMIT)} of the spread ({percent(UNMASKED)} where the base is handed a wrong mask, or none): a healthy float32 "
        "model shows rounding only (below 0.01 %)"
    )
    rows = tuple(
        {"output of": name, "change": e.change, "spread between rows": e.spread, "change/spread": share(e)}
        for name, e in (
            ("the model", effect),
            (
                f"{look.base} called with the right mask",
                look.base_amount if look.side == "right" else look.base_content,
            ),
            ("the model with a mask of ones", look.mask_matters),
            ("the model, 16 more columns of padding on 16" if look.own else "", look.stretched),
            ("the model with other ids in the padding" if look.side == "right" else "", look.content),
            ("the same, mask turned round", look.content_inverted),
        )
        if e is not None and name
    )

    def verdict(status: Any, text: str, **more: Any) -> Verdict:
        return Verdict("padding_ignored", status, text, evidence=rows, limit=limit, measured=measured, **more)

    if not matters(effect) and not _unmasked(inputs, look, effect):
        return verdict("pass", f"{headline}.")
    if why := confounded(inputs, check="padding_ignored"):
        return Verdict("padding_ignored", "skipped", why)
    fault = own or _fault(look)
    if fault in _FAULTS:
        cause, remedy = (
            t.format(
                base=look.base,
                names=", ".join((*look.misplaced, *look.unknown)),
                config_pad=look.config_pad,
                pad_id=look.pad_id,
            )
            for t in _FAULTS[fault]
        )
        if fault == "mask_not_passed" and not look.given:
            remedy = "put an attention_mask into the batches (the tokenizer returns it), and " + remedy
        return verdict("fail", f"{headline}.", causes=(cause,), remedy=remedy, fault=_IDS.get(fault, fault))
    if fault == "edge":
        return verdict(
            "pass",
            f"{headline}; further padding changes nothing.",
            notes=(
                "only the edge of the text sees padding, as in a convolution, or in a recurrent layer that runs backwards",
            ),
        )
    if fault == "design":
        note = f"exempt: {look.base} itself, called with the right mask, lets padding through"
        return verdict("pass", f"{headline}, as by the design of {look.base}.", notes=(note,))
    if fault == "side":
        return verdict(
            "advice",
            f"{headline}: the library's own pooling takes in padding on the {look.side}.",
            remedy="pad on the other side (tokenizer.padding_side=), as that model's own tokenizer does",
        )
    advice = "pad to one fixed length in training and in use, or make the model skip padding: predictions depend on how much there is of it"
    return verdict("advice", f"{headline}.", remedy=advice)


def _fault(look: PaddingLook) -> str:
    """Which fault it is; ``design``: none, the base is like that; ``side``: none, the library pools so; empty: it cannot be told."""
    base = look.base_amount if look.side == "right" else look.base_content
    if look.base is None:
        useless = look.mask_matters is not None and look.mask_matters.change == 0
        return "mask_ignored" if look.attention and useless else ""
    if base is None:
        return ""
    if matters(base):
        return "design"
    if look.handed in ("none", None):
        if look.misplaced:
            return "mask_misplaced"
        return "mask_misspelt" if any("mask" in name for name in look.unknown) else "mask_not_passed"
    if look.handed == "right" and look.library:
        wrong = None not in (look.config_pad, look.pad_id) and look.config_pad != look.pad_id
        return "pad_id_wrong" if wrong else "side"
    return {"right": "padding_pooled", "inverted": "mask_inverted", "all ones": "mask_all_ones"}.get(
        look.handed, "mask_wrong"
    )


def _own(look: PaddingLook) -> str:
    """Which fault it is in a model of the user's own; ``edge``: none, only the edge of the text sees padding; empty: cannot be told."""
    if look.turned:
        return "mask_turned_round"
    if not look.own:
        return ""
    if look.content is not None and matters(look.content) and look.given:
        turned = look.content_inverted
        if look.bare_finite is False or (turned is not None and turned.ulps <= ROUNDINGS):
            return "mask_turned_round"
    if look.amount is None or look.stretched is None or not (matters(look.amount) and look.amount.relative > OWN_LIMIT):
        return ""
    bare = look.stretched.spread
    gone = look.stretched_spread is not None and look.stretched_spread < LEFT * bare
    used = look.mask_matters is not None and matters(look.mask_matters)
    # a mask that is used somewhere says what is padding: what is under it should not matter, however far away
    far = used and look.far_content is not None and look.far_content.relative > STRETCH
    if not gone and not far and look.stretched.relative <= STRETCH:
        return "edge"
    if not look.told or (look.told == "id" and look.amount.relative <= LARGE):
        return ""
    if look.attention and look.given and not used:
        return "mask_ignored"
    return "padding_read_by_rnn" if look.recurrent else "padding_read"


def _hides_everything(look: PaddingLook) -> Verdict:
    """The outputs are not finite where there is no padding: nothing is left to attend to."""
    cause, remedy = _FAULTS["mask_turned_round"]
    headline = {
        "finite": "The outputs are not finite; with the mask the other way round they are.",
        "full rows": "The outputs are not finite in exactly those rows that have no padding.",
        "differ": "The outputs are the same for every row; with the mask the other way round they differ.",
    }.get(look.turned) or (
        f"Without any padding, outputs of {plural(look.rows, 'row')} are not finite: with it, they are."
    )
    return Verdict(
        "padding_ignored",
        "fail",
        headline,
        limit="padding hides nothing, and its absence neither",
        causes=(cause,),
        remedy=remedy,
        measured="evaluation mode, initial weights",
        fault="mask_inverted",
    )


def _unmasked(inputs: Inputs, look: PaddingLook, effect: Effect) -> bool:
    """Whether a small effect has but one reason: the base is handed no mask, or a wrong one."""
    base = look.base_amount if look.side == "right" else look.base_content
    if look.base is None or base is None or look.handed not in ("none", "all ones", "inverted"):
        return False
    others = [base, inputs.repeat, inputs.company.output if inputs.company is not None else None]
    alone = all(o.relative <= SHARE * effect.relative for o in others if o is not None)
    return alone and effect.ulps > ROUNDINGS and effect.relative > UNMASKED


def confounded(inputs: Inputs, check: str) -> str:
    """Why a change of the output is no effect of what was changed, if so."""
    if inputs.repeat is not None and matters(inputs.repeat):
        return "Cannot be told: the output is random in evaluation mode (see eval_deterministic)."
    if check == "padding_ignored" and inputs.company is not None and matters(inputs.company.output):
        return "Cannot be told: a row's output depends on the other rows (see rows_independent)."
    return ""


def weights(look: PaddingLook | RowsLook) -> str:
    """Which ones it was measured with, for a message."""
    return "initial weights" if look.when == "before" else "weights after the training"
