"""Does each token have its own label, and padding none?"""

from __future__ import annotations

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Fault, Rank, Stage, Symptom, check, not_measured
from .token_record import TokenLabels

NAME = "token_labels_aligned"
#: Padding among the labels that count: below this share it hardly moves the loss.
LEAST_PADDING = 0.02
#: A neighbour's ids explain this share of the labels at least, and the token's own ids at most this part of it. Where context matters by
#: design (punctuation that depends on the next word), the own id explains a part of the same size.
LEAST_EXPLAINED, OWN_SHARE = 0.25, 0.25
PADDING_TAUGHT = Fault(
    "padding_taught",
    Rank.DATA + 190,
    "padding counts in the loss",
    cause="labels are padded with a class in place of ignore_index (-100): the model is taught to label padding, which is easy and hides "
    "the rest",
    remedy="pad the labels with -100 (DataCollatorForTokenClassification does), or set labels[attention_mask == 0] = -100",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)
LABELS_OF_NEIGHBOURS = Fault(
    "labels_of_neighbours",
    Rank.DATA + 180,
    "the labels are shifted: each token has that of a neighbour",
    cause="labels and tokens are misaligned by {distance}: the labels of words were laid beside the tokens without room for [CLS], or with "
    "room for a token that is not there",
    remedy="align labels by tokenizer(..., is_split_into_words=True).word_ids(), and print one row's tokens beside its labels",
    explains=(Symptom.LOSS_WRONG,),
)


@check(
    stage=Stage.DATA,
    position=4,
    faults=(LABELS_OF_NEIGHBOURS, PADDING_TAUGHT),
    measurements=(TokenLabels,),
)
def check_token_labels_aligned(trace: Trace) -> Verdict:
    """Where there is one label a token: it is that token's own, and labels at padding do not count in the loss.

    Each label is predicted from the id of its own token, and from those of its neighbours, by a table fitted on every second row and scored
    on the others (Goodman and Kruskal's lambda). Labels that follow a neighbour's id, and hardly that of their own token, are shifted.
    Labels at padding are changed: if the loss changes, padding is taught.

    >>> from pytest_ftcheck import example_trace
    >>> from pytest_ftcheck.checks.data.token_record import TokenLabels
    >>> labels = TokenLabels(rows=64, at_tokens=900, at_padding=0, explained={-1: 0.0, 0: 0.6, 1: 0.02})
    >>> print(check_token_labels_aligned(example_trace(measurements={"token_labels": labels})))
    token_labels_aligned: pass. 900 labels at real tokens, none at padding that counts; a token's own id explains 60 % of them.
    """
    labels = trace.measured(TokenLabels)
    if labels is None:
        return not_measured(NAME, trace, TokenLabels)
    measured = f"ids and labels of {plural(labels.rows, 'row')}; the loss with other labels at the padding"
    own = labels.explained.get(0, 0.0)
    nearest, most = max(labels.explained.items(), key=lambda item: item[1], default=(0, 0.0))
    if nearest and most >= LEAST_EXPLAINED and own <= OWN_SHARE * most:
        where = plural(abs(nearest), "position")
        return LABELS_OF_NEIGHBOURS.with_details(distance=where).verdict(
            NAME,
            f"Labels are shifted by {where}: the id of the token {where} {'before' if nearest < 0 else 'after'} explains "
            f"{percent(most)} of the labels, that of the labelled token {percent(max(0.0, own))}.",
            limit=f"the token's own id explains more than {percent(OWN_SHARE)} of what a neighbour's does",
            measured=measured,
        )
    share = labels.at_padding / max(1, labels.at_padding + labels.at_tokens)
    if labels.padding_counts and share >= LEAST_PADDING:
        return PADDING_TAUGHT.verdict(
            NAME,
            f"{percent(share)} of the labels that count in the loss are at padding tokens.",
            limit=f"below {percent(LEAST_PADDING)}: padding has no label",
            measured=measured,
        )
    explains = f"; a token's own id explains {percent(max(0.0, own))} of them" if labels.explained else ""
    return Verdict(
        NAME,
        "pass",
        f"{number(labels.at_tokens)} labels at real tokens, none at padding that counts{explains}.",
        measured=measured,
    )
