"""The sampled elements of each tensor by rows, by columns, or all in one group."""

from __future__ import annotations

from typing import Literal

import torch

from ..instruments.sampled_elements import SampledElements
from ..instruments.sharded_tensors import local

#: Sampled elements for each row or column that is judged on its own, at least: one element alone always looks scaled.
LEAST_PER_GROUP = 2


class ElementGroups:
    """Which sampled elements belong together.

    :param axis: ``"all"`` of a tensor, its ``"rows"`` or its ``"columns"``.
    """

    def __init__(self, sampled: SampledElements, axis: Literal["all", "rows", "columns"]) -> None:
        ids, tensors, fits = list[torch.Tensor](), list[int](), list[bool]()
        for place, (index, count) in enumerate(zip(sampled.index, sampled.counts, strict=True)):
            flat = torch.arange(count, device=sampled.device) if index is None else index.to(sampled.device).long()
            p = local(sampled.parameters[place])
            length = max(1, p.numel() // max(1, p.shape[0])) if p.dim() else 1
            own = {"all": flat * 0, "rows": flat // length, "columns": flat % length}[axis]
            groups, own = own.unique(return_inverse=True)  # type: ignore[no-untyped-call]
            fits.append(count >= LEAST_PER_GROUP * len(groups))
            ids.append(own + len(tensors))
            tensors += [place] * len(groups)
        #: For each tensor, whether the sample shows enough of each group.
        self.fits = torch.tensor(fits, device=sampled.device)
        #: For each sampled element, its group.
        self.ids = torch.cat(ids)
        #: For each group, its tensor.
        self.tensors = torch.tensor(tensors, device=sampled.device)

    def sum(self, of_groups: torch.Tensor) -> torch.Tensor:
        """For each tensor, the sum over its groups, float64."""
        zeros = torch.zeros(len(self.fits), dtype=torch.float64, device=of_groups.device)
        return zeros.index_add(0, self.tensors, of_groups.double())
