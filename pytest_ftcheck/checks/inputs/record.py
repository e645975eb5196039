"""What the output depends on: padding, the other rows, the tokens, their order."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...core.effect import Effect
from ...core.measurement import Measurement


@dataclass(frozen=True)
class PaddingLook:
    """The same rows with less padding (or with other ids in it): the output should be the same."""

    #: ``right`` or ``left``.
    side: str
    #: Id found in the padding; None: more than one.
    pad_id: int | None
    #: Rows compared, and columns of padding taken away.
    rows: int
    columns: int
    #: Outputs with and without those columns; None: not measured (padding on the left).
    amount: Effect | None = None
    #: Outputs with the padding's ids and with others in their place.
    content: Effect | None = None
    #: Name of the module inside that takes ids and mask itself; None: none was found.
    base: str | None = None
    #: The same two for that module called directly with the right mask, at real tokens; None: not measured.
    base_amount: Effect | None = None
    base_content: Effect | None = None
    #: What the module was handed as ``attention_mask``: ``right``, ``none``, ``inverted``, ``all ones`` or ``other``; None: not seen.
    handed: str | None = None
    #: Keywords that it was handed and does not know, and arguments that got the mask in place of ``attention_mask``.
    unknown: tuple[str, ...] = ()
    misplaced: tuple[str, ...] = ()
    #: The module around it, the one that pools, is a library's class too; the id of the padding in that one's config.
    library: bool = False
    config_pad: int | None = None
    #: The batch has a mask.
    given: bool = False
    #: Largest change of the output when the mask is all ones instead; None: not measured.
    mask_matters: Effect | None = None
    #: The model has torch's own attention layers, which see padding unless they are given a mask.
    attention: bool = False
    #: Nothing of a library's is between the ids and the output that could let padding through by its design.
    own: bool = False
    #: What tells the model or its author padding from text: ``mask`` or ``lengths`` in the batch, ``id``: it is declared;
    #: empty: nothing.
    told: str = ""
    #: Outputs with other ids in the padding, and the mask the other way round both times.
    content_inverted: Effect | None = None
    #: Outputs with some further columns of padding and with twice as many, beside the spread of rows without padding; and the spread
    #: that is left then. At the edge of the text a convolution sees padding, but more of it changes nothing further.
    stretched: Effect | None = None
    stretched_spread: float | None = None
    #: Outputs with that padding and with words in the far half of it, under a mask of 0.
    far_content: Effect | None = None
    #: Whether outputs are finite without any padding.
    bare_finite: bool | None = None
    #: ``finite``, ``differ``: with the mask the other way round outputs are finite, or differ between rows, and as given they do not;
    #: ``full rows``: they are not finite in exactly those rows that have no padding; empty: not so.
    turned: str = ""
    #: The model has recurrent layers.
    recurrent: bool = False
    #: ``before`` or ``after`` the training.
    when: str = "before"


@dataclass(frozen=True)
class RowsLook:
    """The same rows in other company, and in another order: their outputs should be the same."""

    rows: int
    output: Effect
    #: The output of the module inside that takes the ids itself; None: none was found.
    base: Effect | None = None
    base_name: str | None = None
    #: Its class is the library's, not the user's.
    base_library: bool = False
    #: Normalisation layers without running statistics: in evaluation they normalise over the batch.
    batch_statistics: tuple[str, ...] = ()
    #: ``before`` or ``after`` the training.
    when: str = "before"


@dataclass(frozen=True)
class WordsLook:
    """Different rows, and the same rows with other words between the first and the last token: the output should differ."""

    #: ``before`` or ``after`` the training.
    when: str
    #: Rows looked at, and how many different ones there are among them.
    rows: int
    distinct: int
    #: Distance of the rows' outputs from their mean (``change`` is the largest).
    across: Effect
    #: Outputs with other words; None: no tokens were found in the input.
    words: Effect | None = None
    #: What enters the head, across rows and with other words; None: not seen.
    features_across: Effect | None = None
    features_words: Effect | None = None
    #: Last hidden vectors of the module inside, with other words: at the first token, at all others, and at the last one, which stays
    #: the same as well (where it did not change, called with the right mask).
    first: Effect | None = None
    rest: Effect | None = None
    last: Effect | None = None
    base: str | None = None
    #: Its class is the library's, not the user's.
    base_library: bool = False
    #: Outputs with the words in another order.
    order: Effect | None = None
    #: Distance of the rows' outputs from their mean with those other words.
    other_across: Effect | None = None
    #: Outputs with other words behind the second one only, in rows of five or more.
    late: Effect | None = None
    #: Positions that the module inside was handed: at most two different ones a row, in rows of four tokens or more.
    positions_constant: bool = False
    #: The batch tells two texts apart by type ids, and the module inside, which takes them, was handed none or one value.
    types_lost: bool = False


@dataclass(frozen=True)
class Inputs(Measurement, probe="inputs"):
    """What the output depends on: padding, the other rows, the tokens, their order."""

    #: Rows looked at.
    rows: int = 0
    padding: PaddingLook | None = None
    company: RowsLook | None = None
    words: tuple[WordsLook, ...] = ()
    #: The same rows once more, nothing changed, where something had an effect: what is left of it is no effect of the change.
    repeat: Effect | None = None
    #: The same rows with every weight moved by one rounding, where something had an effect and the outputs are not random.
    rounding: Effect | None = None
    #: ``padding``, ``company`` or ``words`` -> why it was not measured.
    unmeasured: dict[str, str] = field(default_factory=dict)
