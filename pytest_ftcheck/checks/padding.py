"""Padding changes nothing: neither what is in it nor how much of it there is."""

from __future__ import annotations

from typing import Any

from ..records.inputs import Effect, Inputs, PaddingLook
from ..text import number, percent, plural
from ..trace import Trace
from ..verdict import Verdict

#: Largest healthy effect, as a share of the spread between rows. Measured in float32: 5e-5 or less on 24 small healthy
#: fine-tunes, 0.24 to 3.2 where the mask is not used (tiny DistilBERT, rows of 7 to 33 tokens, 1 to 7 columns of padding, 5 seeds).
LIMIT = 0.05
#: In roundings (see `Effect.ulps`): a healthy float32 model stays below 1, and the faults come to 10,000 or more.
ROUNDINGS = 64

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
}


def check_padding_ignored(trace: Trace) -> Verdict:
    """Padding changes nothing: the same rows give the same outputs with less of it (on the left: with other ids in it).

    In evaluation mode, with the initial weights: the shortest rows of a batch once as they are, once without the columns that are
    padding in all of them. Largest change of an output over the spread between rows: at most 0.05. Where it is more, the base inside
    (the module that takes ``input_ids`` and ``attention_mask`` itself) is called with the right mask: if padding matters to it all the
    same, that is its design, and no fault of the training script.

    >>> from pytest_ftcheck import example_trace
    >>> check_padding_ignored(example_trace()).status
    'skipped'
    """
    inputs = trace.inputs
    if inputs is None:
        return skipped("padding_ignored", trace)
    look = inputs.padding
    if look is None:
        return Verdict("padding_ignored", "skipped", f"Not measured: {inputs.unmeasured.get('padding', 'no reason')}.")
    effect = look.amount if look.side == "right" else look.content
    if effect is None:
        return Verdict("padding_ignored", "skipped", "Not measured: the outputs are not finite.")
    what = (
        f"Without {plural(look.columns, 'column')} of padding"
        if look.side == "right"
        else "With other ids in the padding"
    )
    headline = f"{what}, the outputs of the same {plural(look.rows, 'row')} change by {share(effect)} of the spread between rows"
    measured = "evaluation mode, initial weights, shortest rows of the batch with the most padding among the first"
    limit = f"at most {percent(LIMIT)} of the spread: a healthy float32 model shows rounding only (below 0.01 %)"
    rows = tuple(
        {"output of": name, "change": e.change, "spread between rows": e.spread, "change/spread": share(e)}
        for name, e in (
            ("the model", effect),
            (
                f"{look.base} called with the right mask",
                look.base_amount if look.side == "right" else look.base_content,
            ),
            ("the model with a mask of ones", look.mask_matters),
        )
        if e is not None
    )

    def verdict(status: Any, text: str, **more: Any) -> Verdict:
        return Verdict("padding_ignored", status, text, evidence=rows, limit=limit, measured=measured, **more)

    if not matters(effect):
        return verdict("pass", f"{headline}.")
    if why := confounded(inputs, check="padding_ignored"):
        return Verdict("padding_ignored", "skipped", why)
    fault = _fault(look)
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
        return verdict("fail", f"{headline}.", causes=(cause,), remedy=remedy, fault=fault)
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


def matters(effect: Effect) -> bool:
    """Whether it is more than rounding, and a good part of the spread between rows."""
    return effect.ulps > ROUNDINGS and effect.relative > LIMIT


def confounded(inputs: Inputs, check: str) -> str:
    """Why a change of the output is no effect of what was changed, if so."""
    if inputs.repeat is not None and matters(inputs.repeat):
        return "Cannot be told: the output is random in evaluation mode (see eval_deterministic)."
    if check == "padding_ignored" and inputs.company is not None and matters(inputs.company.output):
        return "Cannot be told: a row's output depends on the other rows (see rows_independent)."
    return ""


def share(effect: Effect) -> str:
    """The change over the spread, for a message."""
    if effect.spread == 0 and effect.change > 0:
        return f"{number(effect.change)} beside a spread of 0"
    return percent(effect.relative)


def skipped(check: str, trace: Trace, experiment: str = "inputs") -> Verdict:
    """The verdict where the experiment was not made."""
    why = trace.skipped.get(experiment)
    return Verdict(check, "skipped", f"Not measured: {why}." if why else "Not measured.")
