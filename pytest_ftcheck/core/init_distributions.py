"""How the values of one weight matrix are drawn, and their expected spread. Imports no torch; `apply_scheme` draws them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

FANS = ("fan_in", "fan_out")
#: Gains of ``torch.nn.init.calculate_gain``.
_GAINS: dict[str, Callable[[float], float]] = {
    "linear": lambda _: 1.0,
    "sigmoid": lambda _: 1.0,
    "tanh": lambda _: 5 / 3,
    "relu": lambda _: math.sqrt(2.0),
    "leaky_relu": lambda slope: math.sqrt(2.0 / (1 + slope**2)),
    "selu": lambda _: 0.75,
}
NONLINEARITIES = tuple(_GAINS)


@dataclass(frozen=True)
class Draw:
    """How the values of one weight matrix ``[fan_out, fan_in]`` are drawn. Fields that a kind does not use are None.

    >>> Draw("normal", std=0.02).std_of(384, 2)
    0.02
    >>> round(Draw("kaiming_normal", nonlinearity="relu", fan="fan_in", slope=0.0).std_of(50, 10), 3)
    0.2
    """

    kind: str
    std: float | None = None
    #: Standard deviations at which a truncated normal is cut.
    cut: float | None = None
    #: Uniform between plus and minus this.
    bound: float | None = None
    gain: float | None = None
    nonlinearity: str | None = None
    fan: str | None = None
    #: Negative slope of a leaky ReLU.
    slope: float | None = None
    #: Share of zeros in each column of a sparse matrix.
    sparsity: float | None = None
    value: float | None = None
    #: muP: width at which the standard deviation is ``std``.
    base_width: int | None = None

    def std_of(self, fan_in: int, fan_out: int, *, last: bool = False) -> float:
        """Expected standard deviation about zero (rms) of the values.

        Sources: Glorot and Bengio 2010 (xavier), He et al. 2015 (kaiming), Saxe et al. 2014 (orthogonal), Martens 2010 (sparse),
        Yang and Hu 2021, "Tensor Programs V", table 3 (mup: hidden matrices with 1/fan-in, the output with 1/fan-in squared variance).
        """
        if self.kind == "normal":
            return _known(self.std)
        if self.kind == "truncated_normal":
            return _known(self.std) * truncated_std(_known(self.cut))
        if self.kind == "uniform":
            return _known(self.bound) / math.sqrt(3)
        if self.kind.startswith("xavier"):
            return _known(self.gain) * math.sqrt(2 / (fan_in + fan_out))
        if self.kind.startswith("kaiming"):
            fan = fan_in if self.fan == "fan_in" else fan_out
            return gain_of(self.nonlinearity or "relu", self.slope or 0.0) / math.sqrt(fan)
        if self.kind == "orthogonal":
            return _known(self.gain) / math.sqrt(max(fan_in, fan_out))
        if self.kind == "sparse":
            zeros = math.ceil(_known(self.sparsity) * fan_out)
            return _known(self.std) * math.sqrt(1 - zeros / fan_out)
        if self.kind == "zeros":
            return 0.0
        if self.kind == "constant":
            return abs(_known(self.value))
        if self.kind == "eye":
            return _known(self.gain) * math.sqrt(min(fan_in, fan_out) / (fan_in * fan_out))
        if self.kind == "torch_default":
            return 1 / math.sqrt(3 * fan_in)
        ratio = _known(self.base_width) / fan_in
        return _known(self.std) * (ratio if last else math.sqrt(ratio))

    def bound_of(self, fan_in: int, fan_out: int) -> float | None:
        """Largest magnitude that can be drawn; None: there is none."""
        if self.kind in ("uniform", "xavier_uniform", "kaiming_uniform", "torch_default"):
            return math.sqrt(3) * self.std_of(fan_in, fan_out)
        if self.kind == "truncated_normal":
            return _known(self.cut) * _known(self.std)
        if self.kind in ("zeros", "constant"):
            return self.std_of(fan_in, fan_out)
        if self.kind == "orthogonal":
            return _known(self.gain)
        return _known(self.gain) if self.kind == "eye" else None

    @property
    def family(self) -> str:
        """``normal``, ``truncated_normal``, ``uniform``, ``orthogonal``, ``sparse``, or ``exact`` where nothing is drawn."""
        if self.kind in ("normal", "xavier_normal", "kaiming_normal", "mup"):
            return "normal"
        if self.kind in ("uniform", "xavier_uniform", "kaiming_uniform", "torch_default"):
            return "uniform"
        return "exact" if self.kind in ("zeros", "constant", "eye") else self.kind

    def scaled(self, factor: float) -> Draw:
        """The same with all values multiplied by ``factor``.

        :raises ValueError: the kind takes its scale from the shape alone.
        """
        names = [n for n in ("std", "bound", "gain", "value") if getattr(self, n) is not None]
        if self.kind == "zeros":
            return self
        if not names:
            raise ValueError(
                f"scaled({factor!r}): {self.name} takes its scale from the shape; use normal() or xavier_normal(gain=...)"
            )
        scaled = {n: getattr(self, n) * factor for n in names}
        for name, value in scaled.items():
            if not math.isfinite(value) or (value == 0 and getattr(self, name)):
                raise ValueError(
                    f"factor={factor!r}: {name}={getattr(self, name)!r} times that is {value:g}, which no float holds"
                )
        return replace(self, **scaled)

    @property
    def name(self) -> str:
        """In words: ``N(0, 0.02)``."""
        return _NAMES[self.kind](self)

    @property
    def code(self) -> str:
        """Name and arguments of the constructor in `InitScheme`: ``normal(std=0.02)``."""
        if self.kind == "mup":
            return f"mup(std={self.std!r}, base_width={self.base_width!r})"
        arguments = ", ".join(
            f"{n}={getattr(self, n)!r}"
            for n in ("std", "cut", "bound", "gain", "nonlinearity", "fan", "slope", "sparsity", "value")
            if getattr(self, n) is not None and (n, getattr(self, n)) not in _DEFAULTS
        )
        return f"{self.kind}({arguments})"


#: Default arguments of the constructors, left out of the code.
_DEFAULTS = {("fan", "fan_in"), ("slope", 0.0), ("cut", 2.0), ("nonlinearity", "relu"), ("gain", 1.0)}
_NAMES: dict[str, Callable[[Draw], str]] = {
    "normal": lambda d: f"N(0, {d.std:g})",
    "truncated_normal": lambda d: f"N(0, {d.std:g}) cut at {d.cut:g} std",
    "uniform": lambda d: f"U(-{d.bound:g}, {d.bound:g})",
    "xavier_normal": lambda d: f"Xavier normal{_times(d.gain)}",
    "xavier_uniform": lambda d: f"Xavier uniform{_times(d.gain)}",
    "kaiming_normal": lambda d: f"Kaiming normal ({_kaiming(d)})",
    "kaiming_uniform": lambda d: f"Kaiming uniform ({_kaiming(d)})",
    "orthogonal": lambda d: f"orthogonal{_times(d.gain)}",
    "sparse": lambda d: f"sparse N(0, {d.std:g}), {d.sparsity:.0%} zeros",
    "zeros": lambda _: "zeros",
    "constant": lambda d: f"constant {d.value:g}",
    "eye": lambda d: f"identity{_times(d.gain)}",
    "torch_default": lambda _: "torch's default, U(-1/sqrt(fan-in), 1/sqrt(fan-in))",
    "mup": lambda d: f"muP with std {d.std:g} at width {d.base_width}",
}
#: Kinds of draws: the initialisers of ``torch.nn.init``, and the default of ``nn.Linear``.
KINDS = tuple(_NAMES)


def _times(gain: float | None) -> str:
    return "" if gain == 1.0 else f" times {gain:g}"


def _kaiming(d: Draw) -> str:
    slope = f" {d.slope:g}" if d.nonlinearity == "leaky_relu" else ""
    return f"{d.nonlinearity}{slope}, {'fan-in' if d.fan == 'fan_in' else 'fan-out'}"


def _known(value: float | None) -> float:
    assert value is not None, "checked when the scheme was made"
    return value


def gain_of(nonlinearity: str, slope: float = 0.0) -> float:
    """As ``torch.nn.init.calculate_gain``.

    >>> gain_of("tanh")
    1.6666666666666667
    """
    return _GAINS[nonlinearity](slope)


def truncated_std(cut: float) -> float:
    """Standard deviation of a standard normal cut at plus and minus ``cut``: sqrt(1 - 2 c phi(c) / (2 Phi(c) - 1)).

    >>> round(truncated_std(2.0), 4)
    0.8796
    """
    density = math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(max(0.0, 1 - 2 * cut * density / math.erf(cut / math.sqrt(2))))
