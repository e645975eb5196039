"""How a head starts, before any training: what `check_init` measures and `init_sane` judges."""

from __future__ import annotations

from dataclasses import dataclass

from .record import Layer


@dataclass(frozen=True)
class TensorFit:
    """One tensor of a linear layer against what the declared scheme draws."""

    #: Name of the parameter.
    tensor: str
    #: What was declared for it, in words.
    expected: str
    #: Probability that a tensor drawn so differs as much or more; 0: a value that is not drawn, and differs.
    p: float
    #: What shows the difference best.
    found: str


@dataclass(frozen=True)
class LayerSignal:
    """One linear layer on the way from the features to the logits, dropout off; everything rms."""

    name: str
    #: What enters it: its size, and how much it differs from row to row (standard deviation over rows).
    entering: float
    varying: float
    #: What leaves it.
    leaving: float
    #: Gradient of the loss with respect to its weights; None: no gradient is asked for, or none comes.
    gradient: float | None
    weights_zero: bool
    #: Share of its units that are zero for every row after the activation; None: it is the last, or not observed.
    dead: float | None = None
    #: Share of (row, unit) pairs at which a tanh or sigmoid behind it is flat.
    flat: float | None = None


@dataclass(frozen=True)
class BaseStart:
    """What shows that an initialisation of the head also overwrote the base."""

    #: Linear layers with a bias outside the head, those whose bias is exactly zero, and norms whose weights are not all the same.
    linear: int
    zero_bias: int
    trained_norms: int
    #: Median over these layers of the weights' kurtosis: 3 where a normal distribution drew them; pretrained ones have heavier tails.
    kurtosis: float | None = None


@dataclass(frozen=True)
class HeadStart:
    """A head before the first step."""

    rows: int
    layers: tuple[Layer, ...]
    signals: tuple[LayerSignal, ...]
    #: Name of the declared scheme, None: none; and of the one recognised, None: it matches none.
    expected: str | None = None
    recognised: str | None = None
    fits: tuple[TensorFit, ...] = ()
    task: str | None = None
    outputs: int | None = None
    loss: float | None = None
    #: Loss of a class-prior prediction, and of a uniform one (for regression the mean squared label, both).
    prior_loss: float | None = None
    uniform_loss: float | None = None
    #: rms of the logits, less the last bias, about each row's mean (of one logit or tags, and in regression: about zero).
    logit_spread: float | None = None
    #: Share of rows for which one class has a probability above 0.99.
    certain_rows: float | None = None
    base: BaseStart | None = None
    #: Tensors of the base that are not what ``pretrained`` says, of how many; None: not declared.
    base_differing: tuple[str, ...] | None = None
    base_compared: int = 0
    #: transformers' own standard deviation, from the model's config.
    initializer_range: float | None = None
