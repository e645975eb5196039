"""A library's base beside a fresh twin of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...core.measurement import Measurement
from .readout_record import Readout


@dataclass(frozen=True)
class Difference:
    """The first value, in the order of execution, that is not the twin's."""

    #: Name of the submodule within the base (empty: the base itself), and its class.
    module: str
    class_name: str
    #: ``output`` or ``input`` of that submodule; ``call``: the twin calls it, the base does not.
    kind: Literal["output", "input", "call"]
    #: Largest difference over the twin's largest value; infinite where the shape differs or a number is not finite.
    relative: float
    #: What is found changed there: hooks, a patched function, an exchanged class, attributes.
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RaisedDropout:
    """A place of a base that drops more in training than its class does; in evaluation that does not show."""

    module: str
    rate: float
    #: The twin's.
    of_class: float


@dataclass(frozen=True)
class FilledVector:
    """A gain or a bias that has one value throughout, and another than its class starts it with."""

    name: str
    value: float
    of_class: float


@dataclass(frozen=True)
class VectorStarts:
    """The vectors that a class starts with one value throughout (gains of norms at 1, biases at 0), as they are in its base."""

    #: Elements of those that start at 1, and those of them that are negative.
    gains: int
    negative: int
    filled: tuple[FilledVector, ...] = ()


@dataclass(frozen=True)
class TwinComparison:
    """One base and its twin: the same weights, the same inputs, in evaluation mode."""

    base: str
    class_name: str
    rows: int
    #: Submodules compared, and those whose inputs and outputs are the twin's.
    modules: int
    agreed: int
    #: Largest difference of an output of the base, over the twin's largest value, and the share that rounding explains.
    relative: float
    limit: float
    #: Attention implementation of both; empty: the config names none.
    attention: str = ""
    #: Where it begins; None: the outputs of the base are the twin's.
    first: Difference | None = None
    #: Parameters of the model that the outputs of the twin have no gradient for: its class does not use them, or only for a choice (the
    #: largest k, say). Looked for where some trainable parameter of an unchanged base had no gradient at any step.
    without_gradient: tuple[str, ...] = ()
    raised_dropout: tuple[RaisedDropout, ...] = ()
    #: Its gains and biases before the run; None: not read.
    vectors: VectorStarts | None = None


@dataclass(frozen=True)
class BaseTwin(Measurement, probe="base_twin"):
    """Each base of a library's class, beside a twin built from its class and its config."""

    bases: tuple[TwinComparison, ...]
    #: Why further bases were not compared.
    left_out: tuple[str, ...] = ()
    #: What a linear layer reads off the features with and without all that was altered or edited; None: nothing was, or not measured.
    readout: Readout | None = None
    #: The whole model, where that is of a library's class and some trainable parameter outside its bases had no gradient at any step.
    model: TwinComparison | None = None
