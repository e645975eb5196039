"""What was backpropagated between two optimizer steps, beside the losses that it was computed from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...core.measurement import Measurement


@dataclass(frozen=True)
class Term:
    """One call of a loss function of torch, behind a value that was backpropagated."""

    #: ``cross_entropy``, ``mse_loss``, ...
    function: str
    #: ``mean``, ``sum`` or ``none``.
    reduction: str
    #: What it averages or adds up: rows or label positions that count (with class weights, the sum of theirs).
    items: float
    #: The sum of the items' weights in the backpropagated value, read off the graph: 1 for their mean, ``items`` for their sum.
    weight: float


@dataclass(frozen=True)
class Backward:
    """One call of ``backward()``."""

    #: The value that it was called on.
    value: float
    #: The losses behind it; empty: none of torch's.
    terms: tuple[Term, ...]
    #: Rows that the model was called with; None: not known.
    rows: int | None = None
    #: An earlier ``backward()`` of the same step was for the same rows.
    repeated: bool = False
    #: The model was called with ``num_items_in_batch``.
    num_items: bool = False

    @property
    def weight(self) -> float:
        """The sum of the weights of all items."""
        return sum(term.weight for term in self.terms)

    @property
    def items(self) -> float:
        """Items of all its losses together."""
        return sum(term.items for term in self.terms)


@dataclass(frozen=True)
class Window:
    """From one optimizer step to the next."""

    #: Number of the step that ends it.
    step: int
    backwards: tuple[Backward, ...]
    #: Lines of code from which ``backward()`` was called.
    places: int = 1
    #: What a GradScaler multiplied the gradients by to undo its scale; 1: none did.
    unscaled: float = 1.0
    #: What ``clip_grad_norm_`` multiplied the gradients by; None: it was not called.
    clipped: float | None = None
    #: The one factor by which all gradients changed between the last ``backward()`` and the step, unscaling and clipping included; None:
    #: they did not change by one factor, or could not be read.
    change: float | None = None
    #: The gradients of the step before were still there when it began, or they were changed between two calls of ``backward()``.
    disturbed: bool = False
    #: Earlier calls of ``backward()`` since the step before whose gradients were cleared: from the same line as those that remained, each
    #: for rows of its own. 0 where they were for the same rows, came from another line, or their rows are not known.
    cleared: int = 0

    @property
    def size(self) -> int:
        """Calls of ``backward()``."""
        return len(self.backwards)

    @property
    def backpropagated(self) -> float:
        """What was backpropagated, in means over all items that the step has seen: 1 for their mean."""
        return sum(b.weight for b in self.backwards) * self.unscaled

    @property
    def other_change(self) -> float | None:
        """The factor that neither unscaling nor clipping explains."""
        explained = self.unscaled * (1.0 if self.clipped is None else self.clipped)
        return None if self.change is None or not explained else self.change / explained

    @property
    def even(self) -> float:
        """How evenly the items count, whichever micro-batch they are in: the effective sample size (Kish 1965) over their number.

        >>> mean = [Term("cross_entropy", "mean", items, 0.5) for items in (10, 30)]
        >>> round(Window(0, tuple(Backward(1.0, (term,)) for term in mean)).even, 3)
        0.75
        """
        total, items = sum(b.weight for b in self.backwards), sum(b.items for b in self.backwards)
        squares = sum(b.weight**2 / b.items for b in self.backwards if b.items > 0)
        return total**2 / squares / items if squares > 0 and items > 0 and math.isfinite(squares) else math.nan


@dataclass(frozen=True)
class LossScale(Measurement, probe="loss_scale"):
    """What was backpropagated at a few optimizer steps."""

    #: Empty: no step followed a ``backward()``.
    windows: tuple[Window, ...]
    #: Processes that train together.
    ranks: int = 1
