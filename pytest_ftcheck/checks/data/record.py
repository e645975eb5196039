"""The batches themselves: labels, tokens, repetition, overlap, and whether labels depend on inputs at all."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...core.measurement import Measurement


@dataclass(frozen=True)
class Order:
    """In which order the classes come, over the rows that have one label each."""

    #: Rows in a row whose label differs from the one before, and how many that would be in random order.
    changes: int
    expected_changes: float
    #: Batches of two rows or more; those that hold a single class; and how many of those random order would give.
    batches: int
    single_class: int
    expected_single_class: float


@dataclass(frozen=True)
class Tokens:
    """The words of the rows: token ids under the mask, without padding and without what stands at the two ends of every row."""

    #: Rows of the embedding table; None: none was found.
    vocabulary: int | None
    #: Places looked at, and how many different ids stand there.
    places: int
    distinct: int
    #: The commonest id, its share of all places, and the second commonest's.
    commonest: int
    share: float
    second_share: float
    #: Median number of real tokens in a row, special ones counted.
    median_length: float
    #: Rows whose mask is zero everywhere.
    masked_out: int = 0
    #: The commonest id is the padding id.
    is_padding: bool = False
    #: Fewest and most real tokens in a row, special ones counted, and how many of them are special: the same at an end of each row.
    shortest: int = 0
    longest: int = 0
    special: int = 0


@dataclass(frozen=True)
class Dependence:
    """Permutation tests of whether labels depend on inputs."""

    #: Rows compared, and label permutations behind each p-value, at most.
    rows: int
    permutations: int
    #: What rows are compared by -> share of permutations that show at least as much dependence.
    p_values: dict[str, float] = field(default_factory=dict)
    #: The same tests on made-up labels that do depend on these inputs: how many were made, and how many were found.
    planted: int = 0
    found: int = 0
    #: How each label was moved to another row -> by how many standard deviations of permuted ones the dependence then stands out.
    shifted: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Leak:
    """Something in the inputs that equals the label one to one."""

    #: ``input`` (a tensor with one number a row), ``column`` (a column of numbers) or ``token`` (at a place in the row).
    kind: str
    where: str
    rows: int
    classes: int


@dataclass(frozen=True)
class Overlap:
    """Held-out rows that are training rows."""

    rows: int
    shared: int
    #: Share of the training rows that occur among the other training rows: what chance gives.
    by_chance: float
    #: The held-out batches are the very objects that are trained on.
    same_objects: bool
    #: Median number of values (real tokens) in a row.
    median_length: float


@dataclass(frozen=True)
class Evaluation:
    """The user's metric beside reference metrics of the same model on the held-out rows."""

    rows: int
    first: float
    last: float
    #: Reference metric -> its values before and after the run.
    references: dict[str, tuple[float, float]]
    #: The same for well-known mistakes in computing one (``argmax over the rows``).
    mistakes: dict[str, tuple[float, float]]
    #: Share of the held-out rows (tags) whose prediction changed during the run; None: not a classification.
    changed: float | None = None
    #: What knowing nothing scores in accuracy; None: not a classification.
    baseline: float | None = None
    #: Held-out batches.
    batches: int = 0


@dataclass(frozen=True)
class Normalised:
    """A batch normalisation, in training mode when the run began."""

    name: str
    #: Values each channel is normalised over, in one batch of the run.
    values: int


@dataclass(frozen=True)
class Data(Measurement, probe="data"):
    """The batches themselves: labels, tokens, repetition, overlap, and whether labels depend on inputs at all."""

    #: Rows looked at.
    rows: int = 0
    #: Batches they come from.
    batches: int = 0
    #: ``all batches``, ``the batches trained on`` or ``the probe batch``.
    source: str = "all batches"
    #: Rows with each class, or with each tag on; empty where that has no meaning.
    counts: tuple[int, ...] = ()
    #: Classes the model tells apart; None: unknown.
    classes: int | None = None
    #: Labels that are NaN or infinite; labels to be left out (-100); labels in all.
    nonfinite_labels: int = 0
    ignored_labels: int = 0
    labels: int = 0
    #: Rows whose inputs hold NaN or plus infinity (minus infinity is what masks are made of), and the first input that does.
    nonfinite_inputs: int = 0
    nonfinite_where: str = ""
    #: All labels are one and the same (after those left out).
    constant: bool = False
    #: Classes among the held-out labels; None: no held-out rows, or no classes.
    held_out_counts: tuple[int, ...] | None = None
    #: Different rows of inputs; rows whose input also stands with another label; None: not counted.
    distinct: int | None = None
    contradictory: int = 0
    #: Best accuracy that any function of the inputs can have on these rows; None: no classes.
    ceiling: float | None = None
    #: Batches of four rows or more, and those in which all rows have the same input.
    large_batches: int = 0
    uniform_batches: int = 0
    #: Different batches, and how many the source says it has (its length; None: it does not say).
    different_batches: int | None = None
    length: int | None = None
    order: Order | None = None
    tokens: Tokens | None = None
    dependence: Dependence | None = None
    #: Why dependence was not tested, if so.
    untested: str | None = None
    leaks: tuple[Leak, ...] = ()
    overlap: Overlap | None = None
    evaluation: Evaluation | None = None
    normalised: tuple[Normalised, ...] = ()
