"""What the output depends on: the padding, the other rows of the batch, the words, their order."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from ...core.effect import Effect
from ...core.measurement import Measurement


@dataclass(frozen=True)
class PaddingMeasurement:
    """The same rows with less padding, or with other ids in it: the output should be the same."""

    #: ``right`` or ``left``.
    side: str
    #: Id found in the padding; None: more than one.
    pad_id: int | None
    #: Rows compared, and columns of padding taken away.
    rows: int
    columns: int
    #: Outputs with and without those columns; None: not measured (padding on the left).
    less_padding: Effect | None = None
    #: Outputs with the padding's ids and with others in their place.
    other_ids: Effect | None = None
    #: Whether outputs are finite without any padding.
    finite_without_padding: bool | None = None
    #: The batch has a mask.
    mask_in_batch: bool = False
    #: What says which tokens are padding: ``mask`` or ``lengths`` in the batch, ``id``: it is declared; empty: nothing.
    padding_source: str = ""
    #: Outputs with the mask as it is and with a mask of ones; None: not measured.
    mask_of_ones: Effect | None = None

    #: Name of the base, the module inside that takes ids and mask itself; None: none was found.
    base: str | None = None
    #: `less_padding` and `other_ids` for the base called directly with the right mask, at real tokens; None: not measured.
    base_less_padding: Effect | None = None
    base_other_ids: Effect | None = None
    #: What the base received as ``attention_mask``: ``right``, ``none``, ``inverted``, ``all ones`` or ``other``; None: not observed.
    mask_received: str | None = None
    #: Keywords that the base received and does not know, and its arguments that received the mask in place of ``attention_mask``.
    unknown_keywords: tuple[str, ...] = ()
    misplaced_mask: tuple[str, ...] = ()
    #: The module around the base, the one that pools, is of a library's class, too; the id of the padding in its config.
    library_pooling: bool = False
    config_pad_id: int | None = None

    #: Between the ids and the output is no library module that could let padding through by its design.
    user_model: bool = False
    #: The model has torch's own attention layers, which attend to padding unless they get a mask; recurrent layers.
    torch_attention: bool = False
    recurrent: bool = False
    #: `other_ids`, with the mask inverted both times.
    other_ids_inverted_mask: Effect | None = None
    #: Outputs with some further columns of padding and with twice as many, beside the spread of rows without padding; and the spread
    #: that is left then. At the edge of the text a convolution reads padding, but more of it changes nothing further.
    more_padding: Effect | None = None
    more_padding_spread: float | None = None
    #: Outputs with that padding and with words in the far half of it, under a mask of 0.
    words_in_padding: Effect | None = None
    #: What shows that the mask is inverted: ``finite``, ``differ``: with the inverted mask outputs are finite, or differ between rows, and
    #: with the batch's own they do not; ``full rows``: they are not finite in exactly those rows that have no padding; empty: nothing.
    inversion: str = ""
    #: ``before`` or ``after`` the training.
    when: str = "before"

    @property
    def effect(self) -> Effect | None:
        """The change of the outputs when padding is changed as its side allows."""
        return self.less_padding if self.side == "right" else self.other_ids

    @property
    def base_effect(self) -> Effect | None:
        """The same for the base, called directly with the right mask."""
        return self.base_less_padding if self.side == "right" else self.base_other_ids


@dataclass(frozen=True)
class BatchMatesMeasurement:
    """The same rows in another order, batched with other rows: their outputs should be the same."""

    rows: int
    output: Effect
    #: The output of the base, the module inside that takes the ids itself; None: none was found.
    base_output: Effect | None = None
    base: str | None = None
    #: Its class is the library's, not the user's.
    library_base: bool = False
    #: Normalisation layers without running statistics: in evaluation they normalise over the batch.
    batch_statistics: tuple[str, ...] = ()
    #: The outputs of these rows are among those of both batches, but at the places of other rows.
    reordered: bool = False
    #: ``before`` or ``after`` the training.
    when: str = "before"


@dataclass(frozen=True)
class OutputCount:
    """A batch that gives as many outputs as it has rows, and some of its rows, which do not."""

    all_rows: int
    rows: int
    #: Of these rows.
    outputs: int


@dataclass(frozen=True)
class WordsMeasurement:
    """Different rows, and the same rows with other words between the first and the last token: the output should differ."""

    #: ``before`` or ``after`` the training.
    when: str
    #: Rows measured, and how many different ones there are among them.
    rows: int
    distinct: int
    #: Distance of the rows' outputs from their mean (``change`` is the largest), with their own words and with other ones.
    between_rows: Effect
    between_rows_other_words: Effect | None = None
    #: Outputs with other words; None: no tokens were found in the input.
    other_words: Effect | None = None
    #: Outputs with other words from the third one on only, in rows of five or more.
    later_words: Effect | None = None
    #: Outputs with the words in another order.
    other_order: Effect | None = None
    #: What enters the head, between rows and with other words; None: not observed.
    features_between_rows: Effect | None = None
    features_other_words: Effect | None = None

    #: Name of the base, the module inside that takes the ids itself; None: none was found. Its class is the library's, not the user's.
    base: str | None = None
    library_base: bool = False
    #: Last hidden vectors of the base with other words: at the first token, at all others, and at the last one. The last token itself
    #: stays the same; where its vector did not change, the base was called with the right mask.
    base_first_token: Effect | None = None
    base_other_tokens: Effect | None = None
    base_last_token: Effect | None = None
    #: The base received positions with at most two different values a row, in rows of four tokens or more.
    positions_constant: bool = False
    #: The batch has several type ids; the base, which takes them, received none or one value.
    type_ids_lost: bool = False

    @property
    def effect(self) -> Effect:
        """What the words do to the output; without tokens, what the row does."""
        return self.between_rows if self.other_words is None else self.other_words

    @property
    def features_effect(self) -> Effect | None:
        """The same for what enters the head."""
        return self.features_between_rows if self.other_words is None else self.features_other_words


@dataclass(frozen=True)
class HiddenTokens:
    """Tokens that are no padding, and that the attention mask of their own batch hides."""

    pad_id: int
    #: What says that this is the padding: ``declared``, ``config``, or ``at the end of rows``.
    source: str
    #: Rows of batches with a mask that hides something, and those in which it hides other ids than the padding's.
    rows: int
    rows_with_hidden: int
    #: Tokens that are no padding in those batches, and those of them that are hidden.
    tokens: int
    hidden: int
    #: Padding that the mask does not hide.
    padding_shown: int = 0
    #: The mask is the one that the base received, and not that of the batch.
    of_base: bool = False


@dataclass(frozen=True)
class FirstTokens:
    """The first tokens of rows, after padding on the left."""

    rows: int
    #: Different ids among them, and rows with the most common one.
    distinct: int
    most_common: int
    #: Of the vectors that the base gives, only those at the first tokens reach the output; None: not measured, because most rows begin with
    #: the same few tokens, or there is no base.
    read_alone: bool | None = None


@dataclass(frozen=True)
class NumberScale:
    """The numbers that enter the first layer with weights, and the outputs, as they are and with these numbers standardised."""

    layer: str
    least: float
    largest: float
    mean: float
    std: float
    #: Root mean square of the outputs around each row's mean, and their standard deviation over the rows; None: the numbers are of a usual
    #: scale, and were not standardised.
    size: float | None = None
    spread: float | None = None
    size_standardised: float | None = None
    spread_standardised: float | None = None

    #: Root mean square from which on numbers are large: standardised ones have 1, pixels of 0 to 255 have 150.
    LARGE: ClassVar[float] = 10.0

    @property
    def rms(self) -> float:
        """Their root mean square."""
        return math.hypot(self.mean, self.std)


@dataclass(frozen=True)
class Inputs(Measurement, probe="inputs"):
    """What the output depends on: the padding, the other rows of the batch, the words, their order."""

    #: Rows measured.
    rows: int = 0
    padding: PaddingMeasurement | None = None
    batch_mates: BatchMatesMeasurement | None = None
    words: tuple[WordsMeasurement, ...] = ()
    #: The same rows again, nothing changed, where something had an effect: a random output changes without any cause.
    repeat: Effect | None = None
    #: The same rows with every weight moved by one rounding, where something had an effect and the outputs are not random.
    rounding: Effect | None = None
    #: None: not known, because no mask of a usual name hides something, or the padding id is not known.
    hidden_tokens: HiddenTokens | None = None
    #: None: no token ids were found, or too few rows.
    first_tokens: FirstTokens | None = None
    #: None: the first layer with weights gets no numbers, or normalises them.
    number_scale: NumberScale | None = None
    #: None: there is one output a row.
    output_count: OutputCount | None = None
    #: ``padding``, ``batch_mates`` or ``words`` -> why it was not measured.
    unmeasured: dict[str, str] = field(default_factory=dict)
