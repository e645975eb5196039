"""What the probes of equivalence measured: accumulated gradients, a resumed training, a pass under autocast."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...core.measurement import Measurement

# ---------------------------------------------------------------------- accumulation
#: Up to this share of its length a difference of two gradients changes no training (float32 rounds at about 1e-6) ...
NEGLIGIBLE = 1e-4
#: ... and up to so many times what another order of the rows changes it may be rounding.
ROUNDINGS = 20.0


def rounding_limit(rounding: float) -> float:
    """Up to here two gradients are the same: their distance over their length.

    >>> rounding_limit(5e-7), rounding_limit(1e-5)
    (0.0001, 0.0002)
    """
    return max(NEGLIGIBLE, ROUNDINGS * rounding)


@dataclass(frozen=True)
class Accumulated:
    """The gradient accumulated over the micro-batches, beside that of the large batch.

    Errors are Euclidean distances from the large batch's gradient, over its length; NaN or infinite: it could not be computed.
    """

    #: How each micro-batch's gradient was weighted -> error: by its ``rows``, by its ``labels`` that count, by those behind the first
    #: column (``shifted labels``), or with 1 (``sum``).
    errors: dict[str, float]
    #: The weights with which the sum of the micro-batches' gradients comes closest to the large batch's, and its error.
    fit: tuple[float, ...]
    fit_error: float

    @property
    def averaged(self) -> tuple[str, float]:
        """The weighting that makes the best mean, and its error."""
        return min(((k, v) for k, v in self.errors.items() if k != "sum"), key=lambda item: _or_infinite(item[1]))


@dataclass(frozen=True)
class Accumulation(
    Measurement, probe="accumulation", on_request="it computes the gradient of a batch again in micro-batches"
):
    """The gradient of one batch, and of the same rows in micro-batches; dropout off."""

    #: In each micro-batch: its rows, and its labels that count (one a row, a token or a tag; empty: labels cannot be read).
    rows: tuple[int, ...]
    labels: tuple[int, ...]
    #: Length of the large batch's gradient, and the largest error of the same gradient with the rows in other orders: rounding.
    gradient: float
    rounding: float
    #: Every micro-batch from the same state of the model.
    accumulated: Accumulated
    #: The same one after another, as in training: what the model keeps from one micro-batch is there in the next.
    in_turn: Accumulated
    #: Why the second micro-batch could not be computed after the first; empty: it could.
    in_turn_raised: str = ""
    #: Modules in training mode that keep running statistics; and the same as `accumulated` with these in evaluation mode (None: there
    #: are none).
    statistics: tuple[str, ...] = ()
    fixed_statistics: Accumulated | None = None
    #: The first module, in order of computation, that returns something else for the same rows in a smaller batch (looked for with
    #: running statistics fixed); its class; None: none was found, or the gradients agree.
    mixes_rows: str | None = None
    mixes_rows_class: str = ""
    #: Buffers and attributes of modules which, put back after each micro-batch, make the difference of `in_turn` go away.
    carried: tuple[str, ...] = ()


# ---------------------------------------------------------------------- autocast
@dataclass(frozen=True)
class Errors:
    """Differences from float32: of outputs and gradients as Euclidean distance over length, of the loss over its size.

    NaN: not finite, or it could not be computed. None: the model has no outputs that could be read.
    """

    outputs: float | None
    loss: float
    #: Of the gradient of the loss.
    gradient: float
    #: Of the gradient of a sum of the outputs with fixed signs: in that of the loss the rows may cancel.
    outputs_gradient: float | None


@dataclass(frozen=True)
class LocalError:
    """A module that computes something else under autocast than in float32 from the same inputs."""

    #: Its name ("" is the model itself) and class.
    name: str
    kind: str
    #: Distance of its outputs over their length; infinite: not finite.
    error: float


@dataclass(frozen=True)
class Autocast(Measurement, probe="autocast", on_request="it computes a batch again under autocast"):
    """One batch in float32 and under autocast, dropout off."""

    #: ``bfloat16`` or ``float16``, and its unit roundoff: the largest relative error of rounding one number.
    dtype: str
    unit: float
    rows: int
    #: The loss in float32 and under autocast, and the length of the gradient in float32.
    loss32: float
    loss: float | None
    gradient32: float
    #: Under autocast; None: it raised.
    errors: Errors | None
    #: In float32, with weights, outputs of the innermost modules and their gradients rounded, or moved at random, by one unit roundoff.
    rounding: Errors
    #: What was raised under autocast, and the innermost module that was being computed; empty: nothing.
    raised: str = ""
    raised_in: str = ""
    #: The first module, in order of computation, whose outputs are not finite under autocast; None: all are.
    not_finite: str | None = None
    not_finite_class: str = ""
    #: The first module that computes something else from the same inputs; None: none does, or the errors are small.
    located: LocalError | None = None
    #: The tensor nearest to the loss whose gradient differs by half its length or more, and by how much; None: there is none.
    tensor: str | None = None
    tensor_error: float = 0.0


# ---------------------------------------------------------------------- resume
@dataclass(frozen=True)
class Resume(Measurement, probe="resume", on_request="it trains the model again", timed=True):
    """Some steps from the run's start without interruption, and the same with a checkpoint in between, loaded into fresh objects.

    Components of the state are ``weights`` (with persistent buffers), ``optimizer``, ``scheduler``, ``random``, and by name the other
    buffers and the plain attributes of modules.
    """

    #: Steps before the checkpoint, and after it.
    steps_before: int
    steps_after: int
    #: Losses after the checkpoint: without interruption, and resumed.
    losses: tuple[float, ...]
    resumed_losses: tuple[float, ...]
    #: Distance between the weights at the end, over that which the uninterrupted run moved them after the checkpoint; and the same
    #: between two uninterrupted runs.
    difference: float
    repeat_difference: float
    #: What was raised, and while doing what (``saving the optimizer``, ...); empty: nothing.
    raised: str = ""
    raised_while: str = ""
    #: Components that were not the same right after loading as when they were saved.
    changed: tuple[str, ...] = ()
    #: Those without which the difference does not go away, though all others are put back by hand; and whether it goes with all of them.
    needed: tuple[str, ...] = ()
    explained: bool = True
    #: Components that ``torch.load(weights_only=True)`` refuses; they were copied in memory.
    refused: tuple[str, ...] = ()
    #: The user's own functions saved and loaded.
    own_checkpoint: bool = False
    #: A ``DataLoader`` or another source that is read again: whether skipping the batches before the checkpoint leads to the same
    #: batches as before; None: the batches are a list, or it could not be tried.
    same_batches: bool | None = None
    #: The source has a ``state_dict``, which was used.
    saves_position: bool = False


def _or_infinite(error: float) -> float:
    return error if math.isfinite(error) else math.inf
