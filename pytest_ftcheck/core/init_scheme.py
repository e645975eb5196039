"""`InitScheme`: a named weight initialisation that can be applied to a module, declared, and recognised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from .arguments import as_number, flag, instance, items, number, one_of, positive, whole
from .arguments import seed as seed_of
from .formatting import PrintedAsRepr, as_given
from .init_distributions import FANS, NONLINEARITIES, Draw
from .late_binding import provided

if TYPE_CHECKING:
    from torch import nn

    M = TypeVar("M", bound=nn.Module)

#: An initial bias besides numbers: torch's default, uniform up to 1/sqrt(fan-in).
TORCH_BIAS = "torch"


@dataclass(frozen=True, repr=False)
class InitScheme(PrintedAsRepr):
    """How the linear layers of a head are initialised: weights, biases, and exceptions for the first and the last layer.

    Created by its constructors (``InitScheme.normal(std=0.02)``, ``InitScheme.kaiming_normal()``, ...), refined by ``with_...``; biases
    are zero by default. Immutable, comparable; ``repr`` is code that creates it again, ``name`` is for people.

    These set its fields: ``weight`` and ``bias`` of every layer, ``prior`` (class shares for the last bias; with ``tags`` those of
    tags), ``first`` and ``last`` for layers that differ.

    >>> scheme = InitScheme.normal(std=0.02).with_last(InitScheme.zeros())
    >>> scheme
    InitScheme.normal(std=0.02).with_last(InitScheme.zeros())
    >>> scheme.name
    'N(0, 0.02), zero biases; last layer: zeros, zero biases'
    """

    weight: Draw
    #: Initial value of every bias, or ``"torch"``: uniform up to 1/sqrt(fan-in), the default of ``nn.Linear``.
    bias: float | str = 0.0
    #: Shares of the classes, whose logarithms are the last layer's bias; None: it is like the others.
    prior: tuple[float, ...] | None = None
    #: The shares are of tags that are not mutually exclusive: the bias is their log-odds.
    tags: bool = False
    #: How the first, and the last, linear layer is initialised, where that differs.
    first: InitScheme | None = None
    last: InitScheme | None = None

    def __post_init__(self) -> None:
        instance("weight", self.weight, Draw, "what InitScheme.normal() and the other constructors make")
        if not (isinstance(self.bias, str) and self.bias == TORCH_BIAS):
            number("bias", self.bias, accepted=f"a number, or {TORCH_BIAS!r}")
        for i, share in enumerate(() if self.prior is None else items("prior", self.prior, "one number a class")):
            number(f"prior[{i}]", share, above=0, below=1)
        flag("tags", self.tags)
        for name in ("first", "last"):
            instance(name, getattr(self, name), InitScheme, "an InitScheme or None", optional=True)

    # ------------------------------------------------------------------ constructors
    @classmethod
    def normal(cls, std: float = 0.02) -> InitScheme:
        """N(0, std): with 0.02 that of BERT."""
        positive(std=std)
        return cls(Draw("normal", std=float(std)))

    @classmethod
    def hugging_face(cls, initializer_range: float = 0.02) -> InitScheme:
        """What transformers does in ``post_init()``: N(0, config.initializer_range), zero biases."""
        positive(initializer_range=initializer_range)
        return cls.normal(initializer_range)

    @classmethod
    def truncated_normal(cls, std: float = 0.02, cut: float = 2.0) -> InitScheme:
        """N(0, std) redrawn until it is within ``cut`` standard deviations (the original BERT)."""
        positive(std=std, cut=cut)
        return cls(Draw("truncated_normal", std=float(std), cut=float(cut)))

    @classmethod
    def uniform(cls, bound: float = 0.05) -> InitScheme:
        """Uniform between -bound and bound; the standard deviation is bound / sqrt(3)."""
        positive(bound=bound)
        return cls(Draw("uniform", bound=float(bound)))

    @classmethod
    def xavier_normal(cls, gain: float = 1.0) -> InitScheme:
        """N(0, gain * sqrt(2 / (fan_in + fan_out))) (Glorot and Bengio 2010)."""
        positive(gain=gain)
        return cls(Draw("xavier_normal", gain=float(gain)))

    @classmethod
    def xavier_uniform(cls, gain: float = 1.0) -> InitScheme:
        """Uniform with the standard deviation of `xavier_normal`."""
        positive(gain=gain)
        return cls(Draw("xavier_uniform", gain=float(gain)))

    @classmethod
    def kaiming_normal(cls, nonlinearity: str = "relu", fan: str = "fan_in", slope: float = 0.0) -> InitScheme:
        """N(0, gain / sqrt(fan)) (He et al. 2015), with the gain of ``torch.nn.init.calculate_gain``."""
        return cls(_kaiming("kaiming_normal", nonlinearity, fan, slope))

    @classmethod
    def kaiming_uniform(cls, nonlinearity: str = "relu", fan: str = "fan_in", slope: float = 0.0) -> InitScheme:
        """Uniform with the standard deviation of `kaiming_normal`."""
        return cls(_kaiming("kaiming_uniform", nonlinearity, fan, slope))

    @classmethod
    def orthogonal(cls, gain: float = 1.0) -> InitScheme:
        """A random (semi-)orthogonal matrix times ``gain`` (Saxe et al. 2014)."""
        positive(gain=gain)
        return cls(Draw("orthogonal", gain=float(gain)))

    @classmethod
    def sparse(cls, sparsity: float = 0.1, std: float = 0.01) -> InitScheme:
        """N(0, std) with a share ``sparsity`` of each column at zero (Martens 2010)."""
        positive(std=std)
        number("sparsity", sparsity, least=0, below=1)
        return cls(Draw("sparse", std=float(std), sparsity=float(sparsity)))

    @classmethod
    def zeros(cls) -> InitScheme:
        """All zero: suitable for a last layer only."""
        return cls(Draw("zeros"))

    @classmethod
    def constant(cls, value: float) -> InitScheme:
        """Every weight the same: hidden units stay identical."""
        number("value", value)
        return cls(Draw("constant", value=float(value)))

    @classmethod
    def eye(cls, gain: float = 1.0) -> InitScheme:
        """The identity matrix, or as much of it as fits, times ``gain``."""
        positive(gain=gain)
        return cls(Draw("eye", gain=float(gain)))

    @classmethod
    def torch_default(cls) -> InitScheme:
        """The default of ``nn.Linear``: weights and biases uniform up to 1/sqrt(fan_in)."""
        return cls(Draw("torch_default"), bias=TORCH_BIAS)

    @classmethod
    def mup(cls, std: float = 0.02, base_width: int = 64) -> InitScheme:
        """muP: N(0, std * sqrt(base_width / fan_in)), for the last layer N(0, std * base_width / fan_in) (Yang and Hu 2021)."""
        positive(std=std)
        whole("base_width", base_width, least=1)
        return cls(Draw("mup", std=float(std), base_width=base_width))

    # ------------------------------------------------------------------ refinements
    def with_bias(self, value: float | str) -> InitScheme:
        """Biases that start at ``value``; ``"torch"``: uniform up to 1/sqrt(fan_in)."""
        if not (isinstance(value, str) and value == TORCH_BIAS):
            number("value", value, accepted=f"a number, or {TORCH_BIAS!r}")
            value = float(value)
        return replace(self, bias=value)

    def with_class_prior(self, shares: Iterable[float], *, tags: bool = False) -> InitScheme:
        """The last bias starts at the logarithm of the classes' shares, so that the first loss is the class-prior entropy.

        :param shares: one above 0 a class, together 1; with ``tags`` each between 0 and 1, and the bias is the log-odds.
        """
        # a tensor or array, too: torch.bincount(y) / len(y)
        values = tuple(as_number(v) for v in items("shares", shares, "one number a class"))
        if not values:
            raise ValueError(f"shares={as_given(shares)}: expected one number a class")
        for i, value in enumerate(values):
            number(f"shares[{i}]", value)
        flag("tags", tags)
        if any(not 0 < v < 1 for v in values) or (not tags and (len(values) < 2 or abs(sum(values) - 1) > 1e-3)):
            wanted = "each between 0 and 1" if tags else "two or more above 0 that sum to 1"
            raise ValueError(f"shares={as_given(shares)}: expected {wanted}")
        return replace(self, prior=tuple(float(v) for v in values), tags=bool(tags))

    def with_last(self, scheme: InitScheme) -> InitScheme:
        """Another scheme for the last linear layer: ``InitScheme.normal(0.02).with_last(InitScheme.zeros())``."""
        return replace(self, last=_scheme("scheme", scheme))

    def with_first(self, scheme: InitScheme) -> InitScheme:
        """Another scheme for the first linear layer; of a single layer, ``last`` applies."""
        return replace(self, first=_scheme("scheme", scheme))

    def scaled(self, factor: float) -> InitScheme:
        """All weights times ``factor``, those of special layers too; biases stay the same.

        :raises ValueError: a kind whose scale depends on the shape only (kaiming, torch's default).
        """
        positive(factor=factor)
        return replace(
            self,
            weight=self.weight.scaled(float(factor)),
            first=None if self.first is None else self.first.scaled(factor),
            last=None if self.last is None else self.last.scaled(factor),
        )

    # ------------------------------------------------------------------ use
    def at(self, position: int, layers: int) -> InitScheme:
        """The scheme of one linear layer of ``layers``, 0 being the first."""
        whole("layers", layers, least=1)
        whole("position", position, least=0, most=layers - 1)
        if position == layers - 1:
            scheme = self.last or self
            return replace(scheme, prior=self.prior, tags=self.tags) if self.prior and not scheme.prior else scheme
        return self.first if position == 0 and self.first is not None else replace(self, prior=None)

    def apply(self, module: M, seed: int = 0, only: str | Sequence[str] | None = None) -> M:
        """Initialise the linear layers of a module in place, and return it. Norms, embeddings and adapters stay as they are.

        :param module: a head, or a whole model: of that only the head, found as `finetune` finds it.
        :param seed: the values are the same for the same seed on every device; torch's own random state is not touched.
        :param only: prefix or prefixes of the parameter names to initialise, instead of the head.
        :raises ValueError: no linear layer matches; a class prior that does not fit the outputs.

        >>> from torch import nn
        >>> head = InitScheme.normal(std=0.02).apply(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)))
        >>> round(head[0].weight.std().item(), 3), head[0].bias.any().item()
        (0.02, False)
        """
        seed_of("seed", seed)
        applied: M = provided("apply_scheme")(self, module, seed, only)
        return applied

    # ------------------------------------------------------------------ words
    @property
    def name(self) -> str:
        """For people: ``N(0, 0.02), zero biases``."""
        if self == InitScheme.torch_default():
            return self.weight.name
        parts = [f"{self.weight.name}, {self._biases()}"]
        if self.prior:
            parts.append("last bias: " + ("log-odds of the tags" if self.tags else "class prior"))
        parts += [f"{w} layer: {s.name}" for w, s in (("first", self.first), ("last", self.last)) if s is not None]
        return "; ".join(parts)

    def _biases(self) -> str:
        if self.bias == TORCH_BIAS:
            return "biases U(-1/sqrt(fan-in), 1/sqrt(fan-in))"
        return "zero biases" if self.bias == 0 else f"biases {self.bias:g}"

    def __repr__(self) -> str:
        code = f"InitScheme.{self.weight.code}"
        if self.bias != (TORCH_BIAS if self.weight.kind == "torch_default" else 0.0):
            code += f".with_bias({self.bias!r})"
        if self.prior:
            code += f".with_class_prior({self.prior!r}{', tags=True' if self.tags else ''})"
        if self.first is not None:
            code += f".with_first({self.first!r})"
        return code if self.last is None else code + f".with_last({self.last!r})"


def _kaiming(kind: str, nonlinearity: str, fan: str, slope: float) -> Draw:
    one_of("nonlinearity", nonlinearity, NONLINEARITIES)
    one_of("fan", fan, FANS)
    number("slope", slope)
    return Draw(kind, nonlinearity=nonlinearity, fan=fan, slope=float(slope))


def _scheme(name: str, value: Any) -> InitScheme:
    if not isinstance(value, InitScheme):
        raise TypeError(f"{name}={as_given(value)}: expected an InitScheme")
    return value
