"""Whether a write rounds the weights: to the numbers of a narrower dtype, or to the multiples of a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..instruments.sampled_elements import SampledElements
from ..instruments.sharded_tensors import local
from .element_groups import ElementGroups

#: Dtypes that weights in float32 are rounded to.
NARROW = tuple(
    getattr(torch, name)
    for name in ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
    if hasattr(torch, name)  # the last two: torch 2.1
)
#: A write may be this much larger than the spacing of the numbers that it rounds to: rounding in float32.
SLACK = 1e-3
#: Different values of a row, column or tensor whose distances show whether all are multiples of one step. Of six random values five
#: distances are multiples of the least, or of its half, third or fourth part, by chance in 4e-6 of all cases: 4 * (2 * OFF) ** 4.
LEAST_VALUES = 6
#: Among so many different values there are neighbours: drawn from 254 steps, their least distance was never more than four steps (20,000
#: draws; of 6 values it was in 41 of 100, of 16 in 5 of 10,000).
MANY_VALUES = 32
#: Share of a tensor's elements that is in groups whose step was found, at least.
MOST = 0.5
#: A distance that differs from a multiple of the step by this share of the step is none.
OFF = 0.016
#: Steps between the least and the largest value: more, and float32 cannot tell. A step of 1 / 127 of the largest has 254.
MOST_STEPS = 2**14
#: The least distance that is seen is one step, or so many, where no two values are neighbours.
MULTIPLES = (1, 2, 3, 4)


class Rounding:
    """Recognises rounding, write by write; a tensor with one write that does not round is not looked at again."""

    def __init__(self, sampled: SampledElements, groups: Sequence[ElementGroups]) -> None:
        self._sampled, self._groups = sampled, groups
        # of a narrow tensor each value is a number of its dtype
        wide = [local(p).dtype in (torch.float32, torch.float64) for p in sampled.parameters]
        #: For each tensor, whether all its writes so far may have rounded it.
        self._possible = torch.tensor(wide, device=sampled.device)

    def rounded(self, values: torch.Tensor, before: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
        """For each tensor, whether this write, and all before it, left every value on a grid, none farther than its spacing from before.

        :param values, before: the sampled elements after the write and before it.  :param written: which tensors were written to.
        """
        found = torch.zeros_like(self._possible)
        candidates = self._possible & written
        if not candidates.any():
            return found
        size = (values - before).abs()
        for one in self._grids(values, before, size):
            found |= one & candidates
            if bool((found == candidates).all()):
                break
        self._possible &= found | ~written
        return found

    def _grids(self, values: torch.Tensor, before: torch.Tensor, size: torch.Tensor) -> Iterator[torch.Tensor]:
        for dtype in NARROW:
            yield self._in_dtype(values, before, size, dtype)
        for groups in self._groups:
            yield self._in_steps(values, size, groups)

    def _in_dtype(
        self, values: torch.Tensor, before: torch.Tensor, size: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """Whether all are numbers of this dtype, at most one from where they were (rounding at random may take the farther one)."""
        info = torch.finfo(dtype)
        exponents = torch.frexp(torch.maximum(values.abs(), before.abs())).exponent
        spacing = torch.ldexp(torch.full_like(values, info.eps), exponents - 1).clamp_min(
            info.smallest_normal * info.eps
        )
        fits = (values.to(dtype).to(values.dtype) == values) & (size <= (1 + SLACK) * spacing)
        return torch.tensor(self._sampled.all_of(fits), device=values.device)

    def _in_steps(self, values: torch.Tensor, size: torch.Tensor, groups: ElementGroups) -> torch.Tensor:
        """Whether the values of each group lie whole steps apart, and none moved by more than one. Of few values no two may be neighbours,
        and then their step is not found, so groups of few need not fit."""
        order = values.argsort()
        order = order[groups.ids[order].argsort(stable=True)]
        sorted_values, ids = values[order].double(), groups.ids[order][1:]
        distances = sorted_values.diff()
        apart = (ids == groups.ids[order][:-1]) & (distances > 0)
        ids, distances = ids[apart], distances[apart]
        count, device = len(groups.tensors), values.device
        zeros = torch.zeros(count, dtype=torch.float64, device=device)
        different = zeros.index_add(0, ids, torch.ones_like(distances)) + 1
        span = zeros.index_add(0, ids, distances)
        least = torch.full_like(zeros, torch.inf).scatter_reduce(0, ids, distances, "amin")
        judged = different >= LEAST_VALUES
        largest = zeros.scatter_reduce(0, groups.ids, size.double(), "amax")
        fits = torch.zeros_like(judged)
        for multiple in MULTIPLES:
            step = least / multiple
            steps = distances / step[ids]
            off = zeros.index_add(0, ids, ((steps - steps.round()).abs() > OFF).double())
            fits |= (off == 0) & (span <= MOST_STEPS * step) & (largest <= (1 + OFF) * step)
        elements = zeros.index_add(0, groups.ids, torch.ones_like(size, dtype=torch.float64))
        most = groups.sum(elements * (judged & fits)) >= MOST * groups.sum(elements)
        return most & (groups.sum(((different >= MANY_VALUES) & ~fits).double()) == 0)
