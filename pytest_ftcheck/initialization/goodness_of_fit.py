"""Goodness of fit of a tensor to a scheme, and the scheme that fits best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..checks.head.init_record import TensorFit
from ..checks.head.probe.layers import matrix_of, repeated
from ..core.formatting import plural
from ..core.init_distributions import FANS, Draw, truncated_std
from ..core.init_scheme import TORCH_BIAS, InitScheme
from .apply_scheme import bias_values, fill, head_layers

#: Values that a distribution is compared on, at most.
VALUES = 500_000
#: Probability below which a drawn tensor is not what was declared: of a million healthy tensors one.
ALPHA = 1e-6
#: Relative rounding of values that are not drawn, and of low-precision dtypes.
EXACT = 1e-4
#: A probability so small that the second test is not needed.
DECISIVE = 1e-12
#: Probability of equal rows by chance below which chance is excluded.
CHANCE = 1e-9
#: Values of a layer that `identify` compares with each scheme.
COMPARED = 20_000
#: Probability above which `identify` takes a scheme for the one that drew the values.
PLAUSIBLE = 1e-3


def rounding(dtype: torch.dtype) -> float:
    """Half a spacing at 1, relative."""
    return float(torch.finfo(dtype).eps) / 2 if dtype.is_floating_point else 0.0


def fit_weight(draw: Draw, weight: torch.Tensor, *, last: bool, values: int = VALUES) -> tuple[float, str]:
    """Probability that ``draw`` gives a matrix ``[fan_out, fan_in]`` this far off or farther, and what shows it.

    Random values: the smaller of two p-values, doubled (Bonferroni): Kolmogorov and Smirnov's for the distribution, and chi-square's
    for the second moment about zero (by normal theory; conservative for the lighter tails of a uniform or truncated distribution).
    What is not drawn has to be there exactly; orthogonal rows or columns to within rounding.
    """
    fan_out, fan_in = weight.shape
    w = weight.detach().double().cpu()
    slack = max(EXACT, 4 * rounding(weight.dtype))
    expected = draw.std_of(fan_in, fan_out, last=last)
    rms = float((w**2).mean()) ** 0.5
    found = f"std {float(w.std(correction=0)):.4g}, mean {float(w.mean()):.2g}; declared std {expected:.4g}"
    if not bool(torch.isfinite(w).all()):
        return 0.0, "values that are not finite"
    if draw.family == "exact":
        same = torch.empty(fan_out, fan_in, dtype=torch.float32, device="cpu")
        fill(draw, same, torch.Generator("cpu"))
        off = float((w - same.double()).abs().max())
        return (1.0 if off <= slack * max(expected, float(same.abs().max())) else 0.0), f"values off by up to {off:.3g}"
    if draw.family == "orthogonal":
        small = w if fan_out <= fan_in else w.t()
        gain = draw.gain or 1.0
        off = float((small @ small.t() / gain**2 - torch.eye(len(small), dtype=w.dtype, device="cpu")).abs().max())
        # rounding errors of a sum of as many products
        return (
            1.0 if off <= slack * math.sqrt(max(fan_in, fan_out)) else 0.0
        ), f"rows off orthogonality by {off:.2g}; {found}"
    flat = w.reshape(-1)
    if draw.family == "sparse":
        zeros = (w == 0).sum(0)
        declared = math.ceil((draw.sparsity or 0.0) * fan_out)
        if bool((zeros != declared).any()):
            return 0.0, f"{int(zeros.min())} to {int(zeros.max())} zeros a column; declared {declared}"
        flat, expected = flat[flat != 0], draw.std or 0.0
        rms = float((flat**2).mean()) ** 0.5 if len(flat) else 0.0
    if not len(flat):
        return 1.0, found
    size = _size(flat, rms, expected, slack)
    if size < DECISIVE:  # the costlier test would not change the result
        return 2 * size, found
    return min(1.0, 2 * min(_shape(draw, thinned(flat, values), expected, fan_in, fan_out, slack), size)), found


def undrawn_rows(draw: Draw, weight: torch.Tensor) -> str:
    """Rows that a continuous distribution does not draw, in words: with one value, or equal to another row; "": there are none.

    A test of the whole distribution cannot detect one such row among hundreds. Two values of a dtype agree by chance with a probability
    below four times its spacing at 1; rows that are too short to exclude chance are not compared.
    """
    if draw.family not in ("normal", "uniform", "truncated_normal") or not weight.dtype.is_floating_point:
        return ""
    (fan_out, fan_in), info = weight.shape, torch.finfo(weight.dtype)
    w = weight.detach()
    if fan_out**2 * (4 * float(info.eps)) ** (fan_in - 1) > CHANCE or float(w.abs().max()) < 100 * info.tiny:
        return ""
    flat = int((w == w[:, :1]).all(1).sum())
    if flat:
        return f"{plural(flat, 'row')} of {fan_out} with one value"
    alike = repeated(w)
    return f"{round(alike * fan_out)} of {fan_out} rows that are another one's copy" if alike else ""


def thinned(values: torch.Tensor, most: int) -> torch.Tensor:
    """At most so many of them, evenly spaced."""
    return values if len(values) <= most else values[:: -(-len(values) // most)]


def _shape(draw: Draw, values: torch.Tensor, std: float, fan_in: int, fan_out: int, slack: float) -> float:
    from scipy import stats

    if draw.family == "uniform":
        bound = draw.bound_of(fan_in, fan_out) or 0.0
        cdf: Any = stats.uniform(-bound, 2 * bound).cdf
    elif draw.kind == "truncated_normal":
        cdf = stats.truncnorm(-(draw.cut or 0), draw.cut or 0, scale=draw.std or 1.0).cdf
    else:
        cdf = stats.norm(0, std).cdf
    result = stats.kstest(values.numpy(), cdf)
    if slack <= EXACT:
        return float(result.pvalue)
    # in bf16 neighbouring values coincide, which moves the distribution by up to half a spacing
    return float(stats.kstwo.sf(max(0.0, float(result.statistic) - slack), len(values)))


def _size(values: torch.Tensor, rms: float, std: float, slack: float) -> float:
    from scipy import stats

    n, ratio = len(values), (rms / std) ** 2
    ratio += max(-2 * slack, min(2 * slack, 1 - ratio))  # a difference within rounding is none
    return 2 * float(min(stats.chi2.cdf(ratio * n, n), stats.chi2.sf(ratio * n, n)))


def fit_bias(scheme: InitScheme, bias: torch.Tensor, fan_in: int) -> tuple[float, str]:
    """The same for a bias: exact, or for ``"torch"`` uniform up to 1/sqrt(fan_in)."""
    b = bias.detach().double().cpu()
    slack = max(EXACT, 4 * rounding(bias.dtype))
    found = f"up to {float(b.abs().max()):.3g}"
    if scheme.prior is None and scheme.bias == TORCH_BIAS:
        from scipy import stats

        bound = 1 / math.sqrt(fan_in)
        if float(b.abs().max()) > bound * (1 + slack):
            return 0.0, f"{found}; declared up to {bound:.3g}"
        return float(stats.kstest(b.numpy(), stats.uniform(-bound, 2 * bound).cdf).pvalue), found
    wanted = bias_values(scheme, bias.numel(), fan_in, torch.Generator("cpu")).double()
    off = float((b - wanted).abs().max())
    return (
        1.0 if off <= slack * float(wanted.abs().max()) else 0.0
    ), f"{found}; declared up to {float(wanted.abs().max()):.3g}"


def fit(
    scheme: InitScheme, layers: dict[str, nn.Module], values: int = VALUES, *, rows: bool = True
) -> tuple[TensorFit, ...]:
    """Every weight and bias of some linear layers, in their order, against a scheme.

    :param rows: look for rows that were not drawn, too (`undrawn_rows`).
    """
    found = []
    for i, (name, layer) in enumerate(layers.items()):
        last = i == len(layers) - 1
        mine, prefix = scheme.at(i, len(layers)), f"{name}." if name else ""
        matrix = matrix_of(layer)
        p, what = fit_weight(mine.weight, matrix, last=last, values=values)
        if rows and (undrawn := undrawn_rows(mine.weight, matrix)):
            p, what = 0.0, f"{undrawn}; {what}"
        found.append(TensorFit(f"{prefix}weight", mine.weight.name, p, what))
        bias = getattr(layer, "bias", None)
        if isinstance(bias, torch.Tensor) and bias.numel():
            p, what = fit_bias(mine, bias, matrix.shape[1])
            declared = (
                "class prior" if mine.prior else "torch's default" if mine.bias == TORCH_BIAS else f"{mine.bias:g}"
            )
            found.append(TensorFit(f"{prefix}bias", declared, p, what))
    return tuple(found)


# ---------------------------------------------------------------------- recognising
def identify(module: nn.Module, only: str | Sequence[str] | None = None) -> InitScheme | None:
    """The scheme that the weights of a module's linear layers match; None: no known one.

    Schemes without a scale of their own (torch's default, xavier, kaiming) come first, then those whose scale is estimated; a last layer
    that differs is named. Where two schemes are the same for these shapes (square matrices: kaiming with fan-in and fan-out), the first
    is returned.

    :param module: a head, or a whole model: of that only the head.
    :param only: prefix or prefixes of the parameter names, instead.
    :raises ValueError: no linear layer matches.

    >>> from torch import nn
    >>> from pytest_ftcheck import InitScheme, identify
    >>> head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    >>> identify(InitScheme.kaiming_normal().apply(head)), identify(nn.Linear(64, 2)).name[:15]
    (InitScheme.kaiming_normal(), "torch's default")
    """
    layers = head_layers(module, only)
    names = list(layers)
    shares = _class_prior(layers[names[-1]])
    # a bias that is a class prior says nothing about the initialisation of the others
    given = [n for n in names if shares is None or n != names[-1]]
    found = _best(layers, given)
    if found is None and len(names) > 1:
        rest = _best({n: layers[n] for n in names[:-1]}, given)
        last = _best({names[-1]: layers[names[-1]]}, given)
        found = None if rest is None or last is None else rest.with_last(last)
    return found if found is None or shares is None else found.with_class_prior(shares)


def _class_prior(layer: nn.Module) -> tuple[float, ...] | None:
    """The class shares that a bias is the logarithm of."""
    bias = getattr(layer, "bias", None)
    if not isinstance(bias, torch.Tensor) or bias.numel() < 2 or bool((bias == bias[0]).all()):
        return None
    shares = bias.detach().double().cpu().exp()
    if abs(float(shares.sum()) - 1) > 1e-4:
        return None
    return tuple(round(v, 6) for v in shares.tolist())


def _best(layers: dict[str, nn.Module], with_bias: Sequence[str]) -> InitScheme | None:
    bias = _bias([layers[n] for n in with_bias if n in layers])
    if bias is None:
        return None
    for scheme in _candidates([matrix_of(m) for m in layers.values()]):
        if min(f.p for f in fit(scheme, layers, COMPARED, rows=False) if f.tensor.endswith("weight")) >= PLAUSIBLE:
            return scheme.with_bias(bias)
    return None


def _bias(layers: Sequence[nn.Module]) -> float | str | None:
    """What all biases start at; None: no known value."""
    given = [
        (m.bias.detach().double().cpu(), matrix_of(m).shape[1]) for m in layers if isinstance(m.bias, torch.Tensor)
    ]
    if not given:
        return 0.0
    values = torch.cat([b for b, _ in given])
    if float(values.max()) == float(values.min()):
        return _as_written(float(values[0]))
    inside = all(float(b.abs().max()) <= 1.0001 / math.sqrt(fan_in) for b, fan_in in given)
    return TORCH_BIAS if inside else None


def _candidates(matrices: Sequence[torch.Tensor]) -> Iterator[InitScheme]:
    """Schemes that might have drawn these, the most specific first: exact structure, scales that follow from the shape, estimated ones."""
    flat = torch.cat([m.detach().double().cpu().reshape(-1) for m in matrices])
    if not bool(torch.isfinite(flat).all()):
        return
    if float(flat.max()) == float(flat.min()):
        value = _as_written(float(flat[0]))
        yield InitScheme.zeros() if value == 0 else InitScheme.constant(value)
        return
    rms, largest = float((flat**2).mean()) ** 0.5, float(flat.abs().max())
    yield InitScheme.eye()
    for gain in (1.0, math.sqrt(2), _round(rms * math.sqrt(max(matrices[0].shape)), 3)):
        yield InitScheme.orthogonal(gain)
    zeros, nonzero = float((matrices[0] == 0).double().mean()), flat[flat != 0]
    if zeros > 0:
        std = float((nonzero**2).mean()) ** 0.5
        for digits in (1, 2, 3, 4):
            for share in (0.1, 0.2, 0.25, 0.5, 0.75, 0.9, _round(min(zeros, 0.99), 3)):
                yield InitScheme.sparse(share, _round(std, digits))
        return
    yield InitScheme.torch_default()
    for fan in FANS:
        for nonlinearity in ("relu", "linear", "tanh", "selu"):
            yield InitScheme.kaiming_normal(nonlinearity, fan)
            yield InitScheme.kaiming_uniform(nonlinearity, fan)
    yield InitScheme.xavier_normal()
    yield InitScheme.xavier_uniform()
    # of 300 values of a normal distribution all lie within 2 / 0.8796 standard deviations once in a thousand times
    cut = len(flat) >= 300 and largest < 2.0 / truncated_std(2.0) * rms * 1.03
    for digits in (1, 2, 3, 4, 6):  # round numbers, as a person writes them, come first
        if cut:
            yield InitScheme.truncated_normal(_round(rms / truncated_std(2.0), digits))
        yield InitScheme.uniform(_round(largest, digits, up=True))
        yield InitScheme.normal(_round(rms, digits))


def _as_written(value: float) -> float:
    """A float32 number as it was written: 0.1 and not 0.10000000149."""
    return float(f"{value:.7g}")


def _round(value: float, digits: int, *, up: bool = False) -> float:
    """To so many significant digits.

    >>> _round(0.01987, 1), _round(0.0423, 2, up=True)
    (0.02, 0.043)
    """
    if value <= 0:
        return 1e-12
    places = digits - 1 - math.floor(math.log10(value))
    rounded = round(value, places)
    return rounded if not up or rounded >= value else round(rounded + 10.0**-places, places)
