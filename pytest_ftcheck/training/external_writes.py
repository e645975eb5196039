"""What changes the weights between optimizer steps."""

from __future__ import annotations

import torch

from ..instruments.sampled_elements import SampledElements
from .element_groups import ElementGroups
from .rounded_values import Rounding

#: A write that undoes this share of the displacement since the last one is a reset. Lookahead undoes half at most, a moving average
#: with a decay of 0.9 or more nearly all.
RESET = 0.7
#: Before the first step there is no displacement to undo. A write of at least this share of the values' norm replaces them.
REPLACED = 0.5
#: Share of a write (squared norm) that may differ from a scaling of whole rows, of whole columns or of the tensor: an angle of 3 degrees.
#: Rounding in float32 leaves far less; values that are put back differ by nearly all of it.
NOT_SCALED = 2.5e-3
#: A projection goes no farther than back to the last values that met the constraint; rounding adds this share.
ROUNDING = 1e-3
#: Fewer steps between two writes say nothing: a loop with two optimizers rounds after the steps of both.
APART = 3


class ExternalWrites:
    """Running numbers of the writes between steps, one element a tensor in each vector; costs nothing while there are none."""

    def __init__(self, sampled: SampledElements) -> None:
        n, device = len(sampled.counts), sampled.device
        self.sampled = sampled
        self.squares = torch.zeros(n, dtype=torch.float64, device=device)
        self.largest = torch.zeros(n, dtype=torch.float32, device=device)
        self.count = torch.zeros(n, dtype=torch.float32, device=device)
        self.resets = torch.zeros(n, dtype=torch.float32, device=device)
        #: Writes that project onto a constraint: a clamp, a limit on norms, or rounding.
        self.projections = torch.zeros(n, dtype=torch.float32, device=device)
        #: How many of these round.
        self.roundings = torch.zeros(n, dtype=torch.float32, device=device)
        self._groups: list[ElementGroups] | None = None
        self._rounding: Rounding | None = None
        #: Whether some tensor went to a grid point, and whether some went from one grid point to another.
        self._rounds = self._moves = False
        #: Writes that are no more than rounding; those of them that would be resets.
        self._excused = torch.zeros(2, n, dtype=torch.float32, device=device)
        #: Steps that had been taken when something was last written.
        self._steps = 0
        #: Values of each tensor after it was last written to; before that, its initial values.
        self._last_written: torch.Tensor | None = None

    def update(self, values: torch.Tensor, before: torch.Tensor, start: torch.Tensor, *, steps: int) -> None:
        """The weights were ``before`` when the last step ended, and are ``values`` when the next one begins.

        :param start: the values before the run.  :param steps: how many steps have been taken.
        """
        t = self.sampled
        write = torch.nan_to_num(values - before)
        norms = t.norms(write)
        self.squares += norms.double().square()
        self.largest = torch.maximum(self.largest, norms.to(self.largest.dtype))
        self.count += norms > 0
        if self._last_written is None:
            self._last_written = start.clone()
        if not steps:
            self.resets += norms > REPLACED * t.norms(torch.nan_to_num(start)).clamp_min(1e-30)
        else:
            displacement = torch.nan_to_num(before - self._last_written)
            projected = (norms > 0) & self._is_projection(values, before, write, displacement)
            rounded = self._is_rounding(values, before, norms > 0, apart=steps - self._steps >= APART)
            displacement *= self._not_masked(values)
            undone = -_sums(t, write * displacement)
            reset = undone > RESET * _sums(t, displacement * displacement).clamp_min(1e-30)
            self.roundings += rounded
            self.projections += projected | rounded
            self.resets += reset & ~projected & ~rounded
            self._excused += torch.stack([rounded & ~projected, rounded & ~projected & reset])
        self._steps = steps
        for place, now, written in zip(t.split(self._last_written), t.split(values), (norms > 0).tolist(), strict=True):
            if written:
                place.copy_(now)

    def _is_projection(
        self, values: torch.Tensor, before: torch.Tensor, write: torch.Tensor, displacement: torch.Tensor
    ) -> torch.Tensor:
        """For each tensor, whether the write is that of a constraint, which leaves alone what meets it.

        A clamp sets what lies outside its bounds to the bounds, and these are the extremes of the values then. A limit on norms scales, by
        rows, by columns or as a whole, and no farther than back to where the constraint was met. Values that are put back, initialized
        again or averaged do neither.

        :param displacement: from the values after the last write.
        """
        t = self.sampled
        low, high = (torch.tensor(v, device=t.device).to(values) for v in t.extremes(values))
        counts = torch.tensor(t.counts, device=t.device)
        bounded = torch.clamp(before, low.repeat_interleave(counts), high.repeat_interleave(counts))
        clamped = torch.tensor(t.all_of(bounded == values), device=t.device) & (low < high)
        size = _sums(t, write.double().square())
        near = size <= (1 + ROUNDING) * _sums(t, displacement * displacement)
        near &= t.norms(values) > 0  # set to zero: nothing is left of what was scaled
        scaled = torch.zeros_like(clamped)
        for groups in self._grouped():
            scaled |= groups.fits & (size - _explained_by_scaling(groups, write, before) <= NOT_SCALED * size)
        return clamped | (scaled & near)

    def _is_rounding(
        self, values: torch.Tensor, before: torch.Tensor, written: torch.Tensor, *, apart: bool
    ) -> torch.Tensor:
        """For each tensor, whether the write rounds it. Values that are put back may be numbers of a narrow dtype, too (a checkpoint in
        bfloat16), but then no tensor ever has others than it had after the last write. The first of these writes may have changed them (a
        checkpoint in 8 bits of weights in float32). It is told from rounding where the next one comes some steps later.

        :param apart: several steps were taken since the last write.
        """
        if self._rounding is None:
            self._rounding = Rounding(self.sampled, self._grouped())
        rounded = self._rounding.rounded(values, before, written)
        if not rounded.any():
            return rounded
        assert self._last_written is not None
        same = torch.tensor(self.sampled.all_of(values == self._last_written), device=values.device)
        again = rounded & (self.roundings > 0)
        # small values that are set to zero look like rounding to a number of 8 bits
        self._rounds = self._rounds or bool((rounded & ~same & (self.sampled.norms(values) > 0)).any())
        self._moves = self._moves or bool((again & ~same).any())
        if apart and not self._moves and bool(again.any()):
            self._take_back()
        return rounded & self._rounds

    def _take_back(self) -> None:
        """What was taken for rounding put values back."""
        self.projections -= self._excused[0]
        self.resets += self._excused[1]
        self.roundings.zero_()
        self._excused.zero_()
        self._rounds = False

    def _grouped(self) -> list[ElementGroups]:
        if self._groups is None:
            self._groups = [ElementGroups(self.sampled, axis) for axis in ("all", "rows", "columns")]
        return self._groups

    def _not_masked(self, values: torch.Tensor) -> torch.Tensor:
        """Elements that are not zero: a pruned weight or a padding row is set to zero again after each step. In a tensor of zeros, all."""
        nonzero = values != 0
        for piece in self.sampled.split(nonzero):
            if not piece.any():
                piece.fill_(True)
        return nonzero

    def not_masked(self, values: torch.Tensor) -> torch.Tensor:
        """Elements that are not zero, and that the last write did not set to zero."""
        nonzero = values != 0
        return nonzero if self._last_written is None else nonzero & self._not_masked(self._last_written)

    def after_the_last_step(self, final: torch.Tensor, before: torch.Tensor) -> None:
        """A write after the last step undoes nothing of the training: only its size is recorded."""
        self.squares += self.sampled.norms(torch.nan_to_num(final - before)).double().square()


def _explained_by_scaling(groups: ElementGroups, write: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """For each tensor, the squared norm of what in the write is a multiple of the values of each group."""
    products, squares = (
        torch.zeros(len(groups.tensors), dtype=torch.float64, device=write.device).index_add_(0, groups.ids, v.double())
        for v in (write * before, before * before)
    )
    return groups.sum(products.square() / squares.clamp_min(1e-300))


def share_retained(
    after: torch.Tensor, start: torch.Tensor, updates: torch.Tensor, counted: torch.Tensor
) -> float | None:
    """Share of the summed updates that is still present in the values; None: there were no updates.

    :param counted: which elements count, see `ExternalWrites.not_masked`.
    """
    update = updates[counted].double()
    total = float((update * update).sum())
    if not total > 0:
        return None
    return float(((after - start)[counted].double() * update).sum()) / total


def _sums(t: SampledElements, flat: torch.Tensor) -> torch.Tensor:
    return torch.stack([piece.sum() for piece in t.split(flat)])
