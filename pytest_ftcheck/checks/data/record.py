"""What the data probe measures: labels, tokens, repetition, overlap, and whether labels depend on inputs."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...core.measurement import Measurement

#: Rows drawn from which on it is judged whether they are few; they are few up to this share of the distinct rows that as many draws at
#: random, with replacement, give. Weighted draws for a rare class still give a third of the data set, six times the limit.
MIN_DRAWN, FEW_DRAWN = 64, 0.1


@dataclass(frozen=True)
class Order:
    """In which order the classes come, over the rows that have one label each."""

    #: Label changes from one row to the next, and their expected number in random order.
    changes: int
    expected_changes: float
    #: Batches of two rows or more; those that hold a single class; and the expected number of those in random order.
    batches: int
    single_class: int
    expected_single_class: float


@dataclass(frozen=True)
class Tokens:
    """The tokens of the rows: ids under the attention mask, without padding and without special tokens at the two ends of every row."""

    #: Rows of the embedding table; None: none was found.
    vocabulary: int | None
    #: Tokens in all rows together, and different ids among them.
    total: int
    distinct: int
    #: The most common id, its share of all tokens, and the share of the second most common.
    most_common: int
    share: float
    second_share: float
    #: Median number of tokens in a row, special tokens included.
    median_length: float
    #: Rows whose mask is zero everywhere.
    masked_out: int = 0
    #: The most common id is the padding id.
    most_common_is_padding: bool = False
    #: Fewest and most tokens in a row, special tokens included, and how many of them are special: the same at one end of each row.
    shortest: int = 0
    longest: int = 0
    special: int = 0


@dataclass(frozen=True)
class Dependence:
    """Permutation tests of whether labels depend on inputs."""

    #: Distinct rows compared, and label permutations behind each p-value, at most.
    rows: int
    permutations: int
    #: What rows are compared by -> share of permutations that show at least as much dependence.
    p_values: dict[str, float] = field(default_factory=dict)
    #: Positive controls: simulated labellings that do depend on these inputs, and how many of them the same tests detect.
    simulated: int = 0
    detected: int = 0
    #: How each label was moved to another row -> standard deviations of permuted labels by which the dependence then stands out.
    shifted: dict[str, float] = field(default_factory=dict)
    #: What has a label: ``row``, ``token`` (a class or a word for each), ``answer`` (its two places) or ``target`` (a text for each row).
    unit: str = "row"
    #: Of answers and targets, where the rows alone show no dependence: standard errors by which the trained model prefers the labels of
    #: held-out rows to those of other rows; None: not measured.
    exchange_gain: float | None = None


@dataclass(frozen=True)
class Leak:
    """Something in the inputs that equals the label one to one."""

    #: ``input`` (a tensor with one number a row), ``column`` (a column of numbers) or ``token`` (at a position in the row).
    kind: str
    where: str
    #: Distinct rows.
    rows: int
    classes: int


@dataclass(frozen=True)
class Overlap:
    """Held-out rows that are training rows; distinct ones are counted."""

    rows: int
    shared: int
    #: Share of the training rows of one epoch that occur more than once in it: the overlap expected by chance.
    training_duplicates: float
    #: The held-out batches are the very objects that are trained on.
    same_objects: bool
    #: Median number of values (tokens) in a row.
    median_length: float


@dataclass(frozen=True)
class NumberShift:
    """The size of the numbers in training rows beside that in held-out rows: the root mean square of a row."""

    #: Rows compared.
    rows: int
    held_out_rows: int
    #: Least, median and largest row of each part.
    training: tuple[float, float, float]
    held_out: tuple[float, float, float]


@dataclass(frozen=True)
class TokenShift:
    """The ids of training rows beside those of held-out rows."""

    #: Rows compared.
    rows: int
    held_out_rows: int
    #: Total variation distance between the two distributions of ids (0: equal, 1: no id in common); the mean and the standard deviation
    #: of that of random divisions of the same rows.
    distance: float
    by_chance: float
    spread: float
    #: The id whose share of the tokens is higher in the held-out rows by most, and its share in either.
    risen: int
    risen_from: float
    risen_to: float

    @property
    def excess(self) -> float:
        """The distance beyond that of random divisions, as a share of the largest possible one: 0 for rows of one source, 1 for no id in
        common.

        >>> TokenShift(64, 64, distance=0.75, by_chance=0.5, spread=0.01, risen=5, risen_from=0.0, risen_to=0.1).excess
        0.5
        """
        return (self.distance - self.by_chance) / max(1e-9, 1 - self.by_chance)


@dataclass(frozen=True)
class Copies:
    """Rows that are copies of an earlier row, in the class that has the most distinct rows (without classes: in all rows). There nobody
    repeats rows to make up for an imbalance."""

    rows: int
    copies: int
    #: The class; None: all rows.
    label: int | None = None


@dataclass(frozen=True)
class Drawn:
    """Which rows the source of batches draws in one epoch."""

    #: Rows drawn, and distinct ones among them.
    rows: int
    distinct: int
    #: Batches of eight rows or more; those of them in which at most half of the rows are distinct.
    batches: int
    repetitive: int
    #: Rows that the values seen at each position could form, multiplied over the positions (at most 1e12; 1e12 also where no batch is
    #: repetitive).
    possible: float
    #: Length of the loader's data set; None: it has none.
    data_set: int | None = None
    #: Rows read from the data set itself, because few are drawn, and how many of these were never drawn.
    probed: int = 0
    never_drawn: int = 0

    @property
    def expected(self) -> float:
        """Distinct rows that draws at random from the data set give, with replacement; without it there are more.

        >>> round(Drawn(rows=320, distinct=4, batches=20, repetitive=20, possible=1e12, data_set=320).expected)
        202
        """
        return self.data_set * (1 - (1 - 1 / self.data_set) ** self.rows) if self.data_set else 0.0

    @property
    def few(self) -> bool:
        """Whether the rows are few for the length of the data set."""
        return self.rows >= MIN_DRAWN and self.distinct <= FEW_DRAWN * self.expected


@dataclass(frozen=True)
class Relabelled:
    """Rows that come once in the first epoch and again later, with the same inputs."""

    rows: int
    #: Rows whose label is another one when they come again; and how many would be if the two labels were independent.
    changed: int
    expected: float
    #: Labels that all their rows have changed for the same other one: ``(old, new, rows)``.
    recoded: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class SharedInputs:
    """A class and the one that its inputs have as well, each input as often as its own label: nothing tells the two apart there."""

    label: int
    other: int
    #: Distinct inputs with the label, and those of them that have the other one as often.
    inputs: int
    shared: int


@dataclass(frozen=True)
class Evaluation:
    """The user's metric beside reference metrics of the same model on the held-out rows."""

    rows: int
    first: float
    last: float
    #: Reference metric -> its values before and after the run.
    references: dict[str, tuple[float, float]]
    #: Common mistake in computing a metric (``argmax over the rows``) -> the values that it gives before and after the run.
    mistakes: dict[str, tuple[float, float]]
    #: Share of the held-out rows (tags) whose prediction changed during the run; None: not a classification.
    changed: float | None = None
    #: Accuracy of the majority class; None: not a classification.
    baseline: float | None = None
    #: Held-out batches.
    batches: int = 0


@dataclass(frozen=True)
class BatchNormInput:
    """What one batch normalisation, in training mode when the run began, gets to normalise over."""

    name: str
    #: Values per channel in one batch of the run.
    values: int


@dataclass(frozen=True)
class Data(Measurement, probe="data"):
    """The batches themselves: labels, tokens, repetition, overlap, and whether labels depend on inputs."""

    #: Rows read: one that comes in several epochs is counted each time.
    rows: int = 0
    #: Rows of one epoch, over which classes, tokens and contradictions are counted; None: all rows.
    rows_once: int | None = None
    #: Epochs that the rows come from, where it is known.
    epochs: int = 1
    #: Batches they come from.
    batches: int = 0
    #: ``all batches``, ``the batches trained on`` or ``the probe batch``.
    source: str = "all batches"
    #: Rows of one epoch with each class, or with each tag on; empty where that has no meaning.
    counts: tuple[int, ...] = ()
    #: Classes that the model distinguishes; None: unknown. Their names in the model's config, where it has names of its own.
    classes: int | None = None
    class_names: tuple[str, ...] = ()
    #: Labels that are NaN or infinite; ignored labels (-100); labels in all: of rows that differ in inputs or label.
    nonfinite_labels: int = 0
    ignored_labels: int = 0
    labels: int = 0
    #: Distinct rows whose inputs hold NaN or plus infinity (minus infinity is what masks are made of), and the first input that does.
    nonfinite_inputs: int = 0
    nonfinite_where: str = ""
    #: All labels that are not ignored are the same.
    constant: bool = False
    #: Classes among the held-out labels; None: no held-out rows, or no classes.
    held_out_counts: tuple[int, ...] | None = None
    #: Different rows of inputs (None: not counted); rows whose input also occurs with another label.
    distinct: int | None = None
    #: Median number of values (tokens) in a row.
    median_values: float | None = None
    contradictory: int = 0
    #: Best accuracy that any function of the inputs can have on these rows; None: no classes.
    best_accuracy: float | None = None
    #: Of each class whose inputs come with another label as often, the one with which most do.
    shared_inputs: tuple[SharedInputs, ...] = ()
    #: Batches of four rows or more, and those in which all rows have the same input.
    large_batches: int = 0
    uniform_batches: int = 0
    #: Different batches, and the length of the source of batches (None: it has none).
    distinct_batches: int | None = None
    source_length: int | None = None
    order: Order | None = None
    tokens: Tokens | None = None
    dependence: Dependence | None = None
    #: Why dependence was not tested, if so.
    untested: str | None = None
    leaks: tuple[Leak, ...] = ()
    #: Distinct rows in which leaks were searched for (None: all of them), and why none was searched for, if so.
    leak_rows: int | None = None
    leaks_unsearched: str | None = None
    drawn: Drawn | None = None
    relabelled: Relabelled | None = None
    overlap: Overlap | None = None
    token_shift: TokenShift | None = None
    #: Sizes of the floats in training and in held-out rows; None: there are none, or there are no held-out rows.
    number_shift: NumberShift | None = None
    #: None: not counted (a sampler that draws with replacement, or only the probe batch).
    copies: Copies | None = None
    evaluation: Evaluation | None = None
    batch_norms: tuple[BatchNormInput, ...] = ()

    @property
    def data_rows(self) -> int:
        """Rows of one epoch."""
        return self.rows if self.rows_once is None else self.rows_once
