"""Padding changes nothing: neither what is in it nor how much of it there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...core.effect import Effect
from ...core.formatting import percent, plural
from ...core.trace import Trace
from ...core.verdict import Status, Verdict
from ..effects import LIMIT, ROUNDINGS, matters, share
from ..spec import Fault, Stage, check, not_measured
from . import faults
from .hidden_tokens import judge_hidden_tokens
from .mask_in_loop import judge_mask_in_loop, mask_not_seen
from .other_causes import mixed_rows, random_output, which_weights
from .record import Inputs, PaddingMeasurement

NAME = "padding_ignored"
#: Where the base receives no mask, or one that hides nothing or the wrong half, and with the right one padding has no part in its output
#: (at most a twentieth of the effect), only one cause is left, and a smaller effect is enough: without a mask a DistilBERT of width 64
#: with fresh weights, rows of 6 to 24 tokens, shows 0.011 to 0.042 (5 seeds, tests/checks/inputs); with it, less than 1e-6.
WRONG_MASK_LIMIT, SHARE_OF_OTHERS = 0.005, 0.05

#: Limit in a model of the user's own, and where nothing but the declared id says what is padding.
USER_MODEL_LIMIT, DECLARED_ID_LIMIT = 0.1, 0.5
#: Only the edge of its text may read padding, as in a convolution or a recurrent layer that runs backwards: then, on text with 16 columns
#: of padding, 16 more change at most this share of the spread, and at least this share of it is left. Measured on 3 seeds of small healthy
#: convolutional and bidirectional networks: 9e-4 or less, 0.89 or more is left; on 10 kinds of faults 0.055 to 7.8, or (the last state of
#: a recurrent network) at most 1e-5 is left.
FURTHER_CHANGE, SPREAD_LEFT = 0.02, 0.1


@dataclass(frozen=True)
class Exemption:
    """An effect of padding that is no fault of the training script; texts may have fields in braces."""

    status: Status
    #: Continues the headline.
    suffix: str = ""
    note: str = ""
    remedy: str = ""


EDGE_ONLY = Exemption(
    "pass",
    "; further padding changes nothing",
    note="only the edge of the text reads padding, as in a convolution, or in a recurrent layer that runs backwards",
)
BASE_DESIGN = Exemption(
    "pass",
    ", by the design of {base}",
    note="exempt: in {base} itself, called with the right mask, padding influences the output",
)
LIBRARY_POOLING = Exemption(
    "advice",
    ": the library's own pooling includes padding on the {side}",
    remedy="pad on the other side (tokenizer.padding_side=), as that model's own tokenizer does",
)
UNEXPLAINED = Exemption(
    "advice",
    remedy="pad to one fixed length in training and in use, or make the model skip padding: predictions depend on how much of it there is",
)


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
        faults.MASK_HIDES_TOKENS,
    ),
    measurements=(Inputs,),
)
def check_padding_ignored(trace: Trace) -> Verdict:
    """Padding changes nothing: the same rows give the same outputs with less of it (on the left: with other ids in it).

    In evaluation mode, with the initial weights (the last ones where outputs differ by rounding alone at first): the shortest rows of a
    batch once as they are, once without the columns that are padding in all of them. Largest change of an output over the spread between
    rows: at most 0.05. Where it is more, the base inside (the module that takes ``input_ids`` and ``attention_mask`` itself) is called
    with the right mask: if padding still has an effect there, that is its design, and no fault of the training script. A model without a
    library's base is judged by more padding: at its edge a convolution reads some, but 16 further columns of it change nothing then.

    A mask that hides real tokens, too, is advice, and a fault where the run does not learn.

    Before that, the loop's own calls of the base are judged: a mask that our call passes and the loop forgets is the loop's fault.

    >>> from pytest_ftcheck import example_trace
    >>> check_padding_ignored(example_trace()).status
    'inconclusive'
    """
    if wrong := judge_mask_in_loop(trace, NAME):
        return wrong
    inputs = trace.measured(Inputs)
    if inputs is None:
        return not_measured(NAME, trace, Inputs, declares="pad_token_id")
    verdict = _judge_padding(trace, inputs)
    hidden = judge_hidden_tokens(trace, inputs, NAME) if verdict.status in ("pass", "skipped", "advice") else None
    return hidden or verdict


def _judge_padding(trace: Trace, inputs: Inputs) -> Verdict:
    """Whether padding has a part in the outputs."""
    padding = inputs.padding
    if padding is None:
        return not_measured(NAME, trace, Inputs, inputs.unmeasured.get("padding"))
    user_model = _judge_user_model(padding)
    if user_model is faults.MASK_INVERTED_INSIDE and padding.effect is None:
        return _attends_to_nothing(padding)
    # with padding on the right, other ids in it were tried only to tell the faults of a user's own model apart
    effect = padding.effect or (padding.other_ids if user_model else None)
    if effect is None:
        return not_measured(NAME, trace, Inputs, "the outputs are not finite")
    details: dict[str, Any] = {
        "evidence": _evidence(padding, effect),
        "limit": f"at most {percent(LIMIT)} of the spread ({percent(WRONG_MASK_LIMIT)} where the base receives a wrong mask, or none): a "
        "healthy float32 model shows rounding only (below 0.01 %)",
        "measured": f"evaluation mode, {which_weights(padding)}, shortest rows of the batch with the most padding among the first",
    }
    headline = _headline(padding, effect)
    if not matters(effect) and not _is_due_to_wrong_mask(inputs, padding, effect):
        if not_seen := mask_not_seen(trace, NAME):
            return not_seen
        return Verdict(NAME, "pass", f"{headline}.", **details)
    if reason := random_output(inputs) or mixed_rows(inputs):
        return Verdict(NAME, "skipped", reason)
    return _report(user_model or _judge_way_to_base(padding), padding, headline, details)


def _headline(padding: PaddingMeasurement, effect: Effect) -> str:
    columns, rows = plural(padding.columns, "column"), plural(padding.rows, "row")
    changed = f"Without {columns} of padding" if padding.side == "right" else "With other ids in the padding"
    return f"{changed}, the outputs of the same {rows} change by {share(effect)} of the spread between rows"


def _report(finding: Fault | Exemption, padding: PaddingMeasurement, headline: str, details: dict[str, Any]) -> Verdict:
    """The verdict on an effect of padding, the texts of its explanation filled in."""
    fields = {
        "base": padding.base,
        "names": ", ".join((*padding.misplaced_mask, *padding.unknown_keywords)),
        "config_pad_id": padding.config_pad_id,
        "pad_id": padding.pad_id,
        "side": padding.side,
    }
    if isinstance(finding, Fault):
        return finding.with_details(**fields).verdict(NAME, f"{headline}.", **details)
    notes = (finding.note.format(**fields),) if finding.note else ()
    suffix = finding.suffix.format(**fields)
    return Verdict(NAME, finding.status, f"{headline}{suffix}.", remedy=finding.remedy, notes=notes, **details)


def _judge_user_model(padding: PaddingMeasurement) -> Fault | Exemption | None:
    """How padding gets into the output of a model of the user's own; None: it is none, or its measurements do not show it."""
    if padding.inversion or _is_inverted_inside(padding):
        return faults.MASK_INVERTED_INSIDE
    less, more = padding.less_padding, padding.more_padding
    if not padding.user_model or less is None or more is None:
        return None
    if not matters(less) or less.relative <= USER_MODEL_LIMIT:
        return None
    text_lost = padding.more_padding_spread is not None and padding.more_padding_spread < SPREAD_LEFT * more.spread
    mask_used = padding.mask_of_ones is not None and matters(padding.mask_of_ones)
    # a mask that is used somewhere says what is padding: what is under it should not matter, however far away
    words = padding.words_in_padding
    reads_words = mask_used and words is not None and words.relative > FURTHER_CHANGE
    if not text_lost and not reads_words and more.relative <= FURTHER_CHANGE:
        return EDGE_ONLY
    if not padding.padding_source or (padding.padding_source == "id" and less.relative <= DECLARED_ID_LIMIT):
        return None
    if padding.torch_attention and padding.mask_in_batch and not mask_used:
        return faults.MASK_IGNORED
    return faults.PADDING_READ_BY_RNN if padding.recurrent else faults.PADDING_READ


def _is_inverted_inside(padding: PaddingMeasurement) -> bool:
    """Whether the ids under the mask are read, and no longer with the mask inverted; or nothing is left to attend to without padding."""
    read = padding.other_ids is not None and matters(padding.other_ids)
    if not padding.user_model or not padding.mask_in_batch or not read:
        return False
    inverted = padding.other_ids_inverted_mask
    return padding.finite_without_padding is False or (inverted is not None and inverted.ulps <= ROUNDINGS)


def _judge_way_to_base(padding: PaddingMeasurement) -> Fault | Exemption:
    """How padding gets into the output of a model around a base, by the mask that the base received."""
    if padding.base is None:
        unused = padding.mask_of_ones is not None and padding.mask_of_ones.change == 0
        return faults.MASK_IGNORED if padding.torch_attention and unused else UNEXPLAINED
    if padding.base_effect is None:
        return UNEXPLAINED
    if matters(padding.base_effect):
        return BASE_DESIGN
    if padding.mask_received in ("none", None):
        if padding.misplaced_mask:
            return faults.MASK_MISPLACED
        if any("mask" in name for name in padding.unknown_keywords):
            return faults.MASK_MISSPELT
        return faults.MASK_NOT_PASSED if padding.mask_in_batch else faults.MASK_NOT_IN_BATCH
    if padding.mask_received == "inverted":
        return faults.MASK_INVERTED
    if padding.mask_received == "all ones":
        return faults.MASK_ALL_ONES
    if padding.mask_received != "right":
        return faults.MASK_WRONG
    if not padding.library_pooling:
        return faults.PADDING_POOLED
    known = padding.config_pad_id is not None and padding.pad_id is not None
    return faults.PAD_ID_WRONG if known and padding.config_pad_id != padding.pad_id else LIBRARY_POOLING


def _is_due_to_wrong_mask(inputs: Inputs, padding: PaddingMeasurement, effect: Effect) -> bool:
    """Whether a small effect has only one possible cause: the base receives no mask, or a wrong one."""
    if padding.base is None or padding.base_effect is None:
        return False
    if padding.mask_received not in ("none", "all ones", "inverted"):
        return False
    mates = inputs.batch_mates
    others = [padding.base_effect, inputs.repeat, mates.output if mates is not None else None]
    negligible = all(o.relative <= SHARE_OF_OTHERS * effect.relative for o in others if o is not None)
    return negligible and effect.ulps > ROUNDINGS and effect.relative > WRONG_MASK_LIMIT


def _attends_to_nothing(padding: PaddingMeasurement) -> Verdict:
    """The outputs are not finite, or all the same, because an inverted mask hides the words."""
    headline = {
        "finite": "The outputs are not finite; with the mask inverted they are.",
        "full rows": "The outputs are not finite in exactly those rows that have no padding.",
        "differ": "The outputs are the same for every row; with the mask inverted they differ.",
    }.get(
        padding.inversion,
        f"Without any padding, outputs of {plural(padding.rows, 'row')} are not finite; with it they are.",
    )
    return faults.MASK_INVERTED_INSIDE.verdict(
        NAME,
        headline,
        limit="without padding, outputs are finite and differ between rows",
        measured="evaluation mode, initial weights",
    )


def _evidence(padding: PaddingMeasurement, effect: Effect) -> tuple[dict[str, Any], ...]:
    right = padding.side == "right"
    compared = (
        ("the model", effect),
        (f"{padding.base} called with the right mask", padding.base_effect),
        ("the model with a mask of ones", padding.mask_of_ones),
        ("the model, 16 more columns of padding on 16", padding.more_padding if padding.user_model else None),
        ("the model with other ids in the padding", padding.other_ids if right else None),
        ("the same, mask inverted", padding.other_ids_inverted_mask),
    )
    return tuple(
        {"output of": name, "change": e.change, "spread between rows": e.spread, "change/spread": share(e)}
        for name, e in compared
        if e is not None
    )
