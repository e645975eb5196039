"""The probe of embeddings: their spread over rows, and their nearest neighbours."""

from __future__ import annotations

import torch

from ....instruments.batches import row_count, split
from ....instruments.probe import LeftOut, Probe, ProbeContext
from ....instruments.undisturbed import quiet
from ..embedding_record import Embeddings

#: Rows below which neighbours say nothing.
LEAST_ROWS = 8


class EmbeddingsProbe(Probe):
    """Compute the embeddings of the fixed rows before and after the run."""

    name = "embeddings"
    order = 25

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        if not context.reader.embeddings:
            raise LeftOut("the outputs are no embeddings")
        self.found: list[tuple[float, float]] = []
        labels = [split(b)[1] for b in context.fixed_batches]
        self.labels = torch.cat([y.reshape(-1).cpu() for y in labels])
        if len(self.labels) < LEAST_ROWS:
            raise LeftOut(f"there are fewer than {LEAST_ROWS} fixed rows")

    def cost(self) -> float:
        """The fixed rows, twice."""
        return 2.0 * sum(row_count(split(b)[0]) or 0 for b in self.context.fixed_batches)

    def before(self) -> None:
        """The start."""
        self._measure()

    def after(self) -> None:
        """The end."""
        self._measure()

    def record(self) -> Embeddings | None:
        """What was measured."""
        if len(self.found) != 2:
            return None
        (spread_first, near_first), (spread_last, near_last) = self.found
        shares = torch.unique(self.labels, return_counts=True)[1].double() / len(self.labels)
        n = len(self.labels)
        chance = float((shares * (shares * n - 1) / (n - 1)).sum())
        return Embeddings(n, spread_first, spread_last, near_first, near_last, chance)

    def _measure(self) -> None:
        with quiet(self.context.model):
            outputs = [self.context.reader.logits(b) for b in self.context.fixed_batches]
        rows = [z.detach().double().reshape(len(z), -1).cpu() for z in outputs if z is not None]
        if sum(map(len, rows)) != len(self.labels):
            raise LeftOut("there is not one embedding a row")
        z = torch.cat(rows)
        distances = torch.cdist(z, z).fill_diagonal_(torch.inf)
        same = self.labels[distances.argmin(1)] == self.labels
        spread = float((z - z.mean(0)).norm() / z.norm().clamp_min(1e-30))
        self.found.append((spread, float(same.double().mean())))
