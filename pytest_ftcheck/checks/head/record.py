"""The head: its initial weights, its live units, and whether saving keeps it."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.measurement import Measurement

#: Kinds of difference that neither training nor an initialiser leaves behind; a constant is judged by `Differing.edited`.
EDITS = ("scaled", "shifted", "scaled and shifted", "refilled", "shuffled", "misplaced", "rows zeroed")


@dataclass(frozen=True)
class Layer:
    """One linear layer of the head, before the run."""

    name: str
    units: int
    fan_in: int
    #: Moments of the weights; ``kurtosis`` is 3 for a normal, 1.8 for a uniform distribution.
    mean: float
    std: float
    largest: float
    kurtosis: float | None
    nonfinite: int
    #: Every weight has the same value.
    constant: bool
    #: Largest magnitude in the bias; None: there is none.
    bias: float | None
    bias_mean: float | None
    #: It is the last one on the way to the logits.
    last: bool
    trainable: bool
    #: Share of units with the same incoming weights, and the same outgoing ones, as another unit.
    twins: float = 0.0


@dataclass(frozen=True)
class UnitState:
    """The units of one hidden layer over the measured rows, dropout off."""

    #: Share of units that are zero for every row.
    dead: float
    #: Share of units whose values are those of another unit in every row.
    twins: float
    #: Share of (row, unit) pairs where the derivative is below 1e-3 of its maximum; None: no tanh and no sigmoid.
    saturated: float | None
    #: rms over units of the standard deviation over rows, divided by the rms of the values.
    variation: float
    rms: float
    #: Mean and largest value before the activation.
    mean_before: float
    largest_before: float


@dataclass(frozen=True)
class Hidden:
    """One hidden layer of the head: a linear layer followed, after an activation, by another."""

    name: str
    following: str
    units: int
    #: ``relu``, ``tanh``, ...; ``identity``: there is none; None: not one of the usual, or a norm in between.
    activation: str | None
    first: UnitState
    last: UnitState | None = None


@dataclass(frozen=True)
class Outside:
    """A tensor that requires a gradient, that the logits depend on, and that is not a parameter of the model."""

    shape: tuple[int, ...]
    in_optimizer: bool


@dataclass(frozen=True)
class Reload:
    """The model after writing its ``state_dict`` as safetensors and reading it back."""

    #: ``model``, or ``head`` where the whole model is large.
    scope: str
    tensors: int
    #: Largest difference between the logits before and after, and the rms of the logits.
    difference: float
    size: float
    #: Trainable parameters that the ``state_dict`` (or what the library saves) leaves out.
    missing: tuple[str, ...] = ()
    #: The error of loading, if there was one.
    error: str | None = None
    outside: tuple[Outside, ...] = ()
    #: Buffers that changed, that the logits depend on, and that are not in the ``state_dict``.
    buffers: tuple[str, ...] = ()
    #: The same for tensors that did not change and look random: a new model draws others.
    drawn: tuple[str, ...] = ()


@dataclass(frozen=True)
class Differing:
    """One tensor that does not start from the declared values."""

    name: str
    #: ``rounded``, ``close``, ``resized``, ``shape``, ``scaled``, ``shifted``, ``scaled and shifted``, ``refilled``, ``shuffled``,
    #: ``misplaced``, ``constant``, ``rows zeroed``, ``changed`` or ``unrelated``.
    kind: str
    part: str
    relative: float | None
    correlation: float | None
    std: float
    declared_std: float
    shape: tuple[int, ...] = ()
    declared_shape: tuple[int, ...] = ()
    mean: float | None = None
    declared_mean: float | None = None

    @property
    def edited(self) -> bool:
        """Whether neither training nor an initialiser gives such values; norms are initialised to 1 and biases to 0."""
        if self.part == "head":
            return False
        if self.kind != "constant":
            return self.kind in EDITS
        return len(self.shape) > 1 or not (self.mean == 1 or (self.mean == 0 and self.name.endswith("bias")))


@dataclass(frozen=True)
class Pretrained(Measurement, probe="pretrained"):
    """The parameters before the run, compared with the declared pretrained ones."""

    compared: int
    equal: int
    differing: tuple[Differing, ...] = ()
    #: Declared names that the model lacks; base tensors of the model that were not declared.
    unknown: int = 0
    undeclared: int = 0
    #: ``config.initializer_range`` of the model, where it has one.
    initializer_range: float | None = None
    #: Why they could not be compared; None: they could.
    error: str | None = None
    #: Nothing was declared: the values are those of the checkpoint that the base's config names.
    named: str | None = None


@dataclass(frozen=True)
class HeadWeights(Measurement, probe="head_weights"):
    """The head's initial weights as they are stored, and its place in the model."""

    #: Linear layers in the order in which the model holds them, the trainable ones, if any are: `Head.layers` are those that are called.
    layers: tuple[Layer, ...] = ()
    #: ``config.initializer_range`` of the model, where it has one.
    initializer_range: float | None = None
    #: Trainable modules outside the pretrained base that are not in the head as given or found.
    outside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Head(Measurement, probe="head_state"):
    """What passes through the head show: the layers that are called, the live units, and whether saving keeps them."""

    #: Rows measured.
    rows: int = 0
    #: Linear layers before the run, in the order in which they are called.
    layers: tuple[Layer, ...] = ()
    hidden: tuple[Hidden, ...] = ()
    #: Variation over rows of the head's input (as `UnitState.variation`), before and after.
    features: tuple[float, float | None] | None = None
    #: rms of the logits about each row's mean before the run, and the standard loss on these rows over the class-prior entropy.
    logit_spread: float | None = None
    loss_over_chance: float | None = None
    reload: Reload | None = None
    #: Which of ``layers``, ``units``, ``reload`` were not measured, and why.
    skipped: dict[str, str] | None = None
