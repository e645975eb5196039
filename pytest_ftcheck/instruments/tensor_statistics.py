"""From tensors to the plain numbers of a trace; of a sharded tensor, those of the part that this process holds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..core.observations import Histogram, Statistics
from .sharded_tensors import local
from .tensor_bytes import parts_of

BINS = 48


class NonfiniteElements:
    """The NaN and +inf elements of a buffer as they are now; attention masks contain -inf, and a running statistic never does."""

    def __init__(self, buffer: torch.Tensor) -> None:
        values = _floats_of(buffer)
        self._places = None if values is None else _nonfinite(values)
        self._values = None if values is None or self._places is None else values[self._places].clone()
        if self._values is not None and not self._values.numel():
            self._places = self._values = None

    def since(self, buffer: torch.Tensor) -> int:
        """How many there are now that were not there before, with the same value.

        >>> best = torch.tensor([math.inf, 1.0])
        >>> before = NonfiniteElements(best)
        >>> before.since(best), before.since(torch.tensor([math.nan, math.nan]))
        (0, 2)
        """
        values = _floats_of(buffer)
        if values is None:
            return 0
        now = _nonfinite(values)
        count = int(now.sum())
        if self._places is None or self._values is None or not count:
            return count
        if now.shape != self._places.shape:  # which of them were there is not known
            return max(0, count - self._values.numel())
        found, before = values[self._places.to(values.device)], self._values.to(values.device)
        return count - int(((found == before) | ((found != found) & (before != before))).sum())


def _nonfinite(values: torch.Tensor) -> torch.Tensor:
    return torch.isnan(values) | (values == math.inf)


def _floats_of(buffer: torch.Tensor) -> torch.Tensor | None:
    """Its values in a dense tensor; None: it has no floating-point values that can be read."""
    if not buffer.is_floating_point() or buffer.device.type == "meta":
        return None
    parts = parts_of(local(buffer))
    if parts is None:
        return None
    floats = [part.detach() for part in parts if part.is_floating_point()]
    return floats[0] if len(floats) == 1 else torch.cat([part.reshape(-1) for part in floats]) if floats else None


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def rms(x: torch.Tensor) -> float:
    """Root of the mean square of the elements."""
    return float(torch.linalg.vector_norm(x)) / math.sqrt(max(1, x.numel()))


def statistics(p: torch.Tensor) -> Statistics:
    """Moments, exact for tensors of up to a million elements, else of every k-th row; non-finite values are counted in all rows."""
    p = local(p)
    if p.device.type == "meta" or p.numel() == 0 or not p.is_floating_point():
        return Statistics(0.0, 0.0, 0.0, 0.0, 0.0, 0)
    with torch.no_grad():
        values = p.detach()
        nonfinite = 0
        if not torch.isfinite(torch.linalg.vector_norm(values, dtype=_wide(values))):
            nonfinite = int((~torch.isfinite(values)).sum())
        if p.numel() > 2**20 and p.dim() > 1:
            values = values[:: max(1, p.numel() // 2**18)] if p.shape[0] > 64 else values.reshape(-1)[::16]
        values = values.reshape(-1).float()
        if nonfinite:
            values = values[torch.isfinite(values)]
            if not values.numel():
                return Statistics(math.nan, math.nan, math.nan, math.nan, math.nan, nonfinite)
        std = float(values.std(unbiased=False))
        low, high = torch.aminmax(values)
        return Statistics(float(values.mean()), std, rms(values), float(low), float(high), nonfinite)


#: Of more small tensors than this the moments are taken side by side: a dozen calls a tensor take longer than the numbers.
MANY_TENSORS, SMALL = 1_000, 2**14


def statistics_of(tensors: Sequence[torch.Tensor]) -> list[Statistics]:
    """`statistics` of each; of many small ones side by side, in float64."""
    places = [i for i, t in enumerate(tensors) if _is_small(t)]
    if len(places) <= MANY_TENSORS:
        return [statistics(t) for t in tensors]
    together = dict(zip(places, _side_by_side([tensors[i].detach().reshape(-1) for i in places]), strict=True))
    return [together.get(i) or statistics(t) for i, t in enumerate(tensors)]


def _is_small(t: torch.Tensor) -> bool:
    plain = type(t) is torch.nn.Parameter and t.is_cpu and t.layout is torch.strided and not t.is_nested
    return plain and t.dtype == torch.float32 and 0 < t.numel() <= SMALL


def _side_by_side(flat: Sequence[torch.Tensor]) -> list[Statistics | None]:
    """Moments of vectors; None where some value is not finite."""
    counts = torch.tensor([len(piece) for piece in flat], device="cpu")
    with torch.no_grad():
        values = torch.cat(list(flat)).double()

        def over(numbers: torch.Tensor, how: str) -> torch.Tensor:
            return torch.segment_reduce(numbers, how, lengths=counts)

        mean, squares = over(values, "mean"), over(values * values, "mean")
        std = over((values - mean.repeat_interleave(counts)) ** 2, "mean").sqrt()
        rows = torch.stack([mean, std, squares.sqrt(), over(values, "min"), over(values, "max")], 1)
    return [
        Statistics(average, spread, root, low, high, 0) if math.isfinite(root + low + high) else None
        for average, spread, root, low, high in rows.tolist()
    ]


def histogram_of(step: int, values: torch.Tensor) -> Histogram | None:
    """Histogram of the finite values; None where there are none."""
    values = values[torch.isfinite(values)] if not torch.isfinite(values.sum()) else values
    if not values.numel():
        return None
    low, high = (float(v) for v in torch.aminmax(values))
    return histogram_between(step, values, low, high)


def histogram_between(step: int, values: torch.Tensor, low: float, high: float) -> Histogram:
    """Histogram of finite values whose extremes are known."""
    if low == high:
        return Histogram(step, low, high, (values.numel(),))
    counts = torch.histc(values.float().cpu(), BINS, low, high)
    return Histogram(step, low, high, tuple(map(int, counts.tolist())))


def series(values: torch.Tensor) -> tuple[float, ...]:
    """Numbers with four significant digits each."""
    return tuple(short(v) for v in values.tolist())


def short(value: float) -> float:
    """Four significant digits: enough for a chart, and a long trace stays small."""
    return float(f"{value:.4g}")


def plain(value: float | torch.Tensor | None) -> float | None:
    """The number as a float; None stays None."""
    return None if value is None else float(value)


def index_of(value: float) -> int | None:
    """A step number; None for -1."""
    return int(value) if value >= 0 else None
