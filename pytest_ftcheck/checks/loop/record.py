"""What the loop itself gave the model, its base and the loss function; not what our own calls give them."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.effect import Effect
from ...core.measurement import Measurement

#: Losses of ``torch.nn.functional`` whose least value is where the input is the label.
REGRESSION = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")


def all_observed(times: int) -> str:
    """How many of the loop's calls were observed, for a message in which all of them are alike.

    >>> all_observed(1), all_observed(6)
    ('its one observed call', 'all 6 observed calls')
    """
    return "its one observed call" if times == 1 else f"all {times} observed calls"


@dataclass(frozen=True)
class BaseCall:
    """One call of the base on rows with padding, as the loop made it."""

    iteration: int
    #: Rows, and those that have padding.
    rows: int
    padded: int
    #: What it got as its attention mask: ``right``, ``none``, ``inverted``, ``all ones`` or ``other``.
    mask: str
    #: Keywords that no parameter of its forward has, swallowed by ``**kwargs``.
    unknown: tuple[str, ...] = ()
    #: Arguments other than ``attention_mask`` that hold the mask.
    misplaced: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bounds:
    """Numbers between which an input of a loss lies, whatever the weights are."""

    #: ``sigmoid``, ``tanh`` or ``cosine``.
    kind: str
    low: float
    high: float


@dataclass(frozen=True)
class LossCall:
    """One call of a loss function of ``torch.nn.functional`` that the loop's loss was computed from."""

    iteration: int
    #: ``cross_entropy``, ``nll_loss``, ``binary_cross_entropy_with_logits``, ...
    function: str
    #: How its input comes from the model's output: ``output`` (as it is), ``softmax``, ``log_softmax`` (these two also
    #: ``_over_batch``), ``sigmoid`` or ``other``.
    input: str
    rows: int
    #: Share of rows whose label is that of the batch; None: the batch's labels are not known, or have another shape.
    own_labels: float | None = None
    #: The labels are the batch's in another order, and no renumbering of classes explains them.
    reordered: bool = False
    #: Share of rows whose label is the class of the largest input; None: there is not one whole-number class a row.
    predicted: float | None = None
    #: ``backward()`` multiplied its gradient by a negative number.
    negated: bool = False
    #: Its classes are the rows of the batch: as many as rows, each the label of one (in-batch negatives).
    of_rows: bool = False
    #: Its labels are what ``argmax`` (or ``max``, ``topk``) of the model's own outputs returned.
    chosen_by_model: bool = False
    #: Of a regression's loss: between what its input must lie, and the smallest and largest label. None: not known.
    bounds: Bounds | None = None
    label_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class LossParts:
    """One loss that ``backward()`` was called on, whose whole gradient goes to losses of ``torch.nn.functional``, and linearly."""

    iteration: int
    #: What these losses are worth in it, each times the gradient that arrives at it; and what else it holds, which has no gradient.
    with_gradient: float
    without: float


@dataclass(frozen=True)
class CtcCall:
    """One loss that ``backward()`` was called on and that was computed from a CTC loss."""

    iteration: int
    #: Its value; a mean of negative logarithms of probabilities.
    value: float
    #: Labels within the target lengths, and how many of them are the blank.
    targets: int
    blanks: int
    #: Largest logarithm, in absolute value, of the sum of the probabilities of a frame: 0 for log-probabilities.
    log_mass: float


@dataclass(frozen=True)
class LoopCalls(Measurement, probe="loop"):
    """What the loop's own calls were, in a few iterations."""

    #: The recipe's loop trained, not one of the user's own (``step=``, `watch`).
    recipe_loop: bool = True
    #: Iterations that were observed.
    iterations: tuple[int, ...] = ()
    #: Modules inside the model that could be its base: they take ``input_ids`` and ``attention_mask``.
    candidates: int = 0
    #: The one that the loop called; None: none of them.
    base: str | None = None
    base_library: bool = False
    #: Its calls on rows with padding.
    calls: tuple[BaseCall, ...] = ()
    #: Losses that ``backward()`` was called on, or on something made from them.
    losses: tuple[LossCall, ...] = ()
    #: Losses that are linear in those, without another term that has a gradient.
    linear: tuple[LossParts, ...] = ()
    #: CTC losses.
    ctc: tuple[CtcCall, ...] = ()
    #: Calls of the model whose output had a graph; calls of ``backward()``, and those whose graph holds such an output.
    outputs: int = 0
    backwards: int = 0
    reached: int = 0
    #: Every gradient that the loop took, in the other iterations of a watched loop, too, was that of a penalty of the weights alone.
    weights_only: bool = False

    @property
    def detached(self) -> bool:
        """Whether no call of ``backward()`` reached an output of the model, though there were some with a graph."""
        return self.backwards > 0 and self.outputs > 0 and not self.reached

    #: What the base gives for the loop's rows (mean over the real tokens of each) with the mask that the loop gave it, beside the
    #: right mask; None: the mask was right, or it could not be measured.
    mask_effect: Effect | None = None
