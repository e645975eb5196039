"""The probe of embeddings: their spread over rows, and their nearest neighbours."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ....instruments.batches import row_count, split
from ....instruments.model_outputs import logits_in
from ....instruments.probe import LeftOut, Probe, ProbeContext
from ....instruments.undisturbed import quiet
from ..embedding_record import Embeddings

#: Rows below which neighbours say nothing, and above which no more are compared.
LEAST_ROWS, MOST_ROWS = 8, 512
#: Random assignments for the p-value.
PERMUTATIONS = 499
#: Keys of one vector a row in outputs that have several tensors.
KEYS = ("sentence_embedding", "embeddings", "embedding", "text_embeds", "image_embeds")


@dataclass(frozen=True)
class _Measured:
    """The embeddings at one moment."""

    rows: int
    spread: float
    neighbours: float | None = None
    chance: float | None = None
    nearer: float | None = None
    p_value: float | None = None


class EmbeddingsProbe(Probe):
    """Compute the embeddings of the fixed rows before and after the run."""

    name = "embeddings"
    order = 25

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        if not context.reader.embeddings:
            raise LeftOut("the outputs are no embeddings")
        self.found: list[_Measured] = []
        self.relation: str | None = None

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
        first, last = self.found
        return Embeddings(
            last.rows,
            first.spread,
            last.spread,
            first.neighbours,
            last.neighbours,
            last.chance,
            self.relation,
            last.p_value,
            first.nearer,
            last.nearer,
        )

    def _measure(self) -> None:
        with quiet(self.context.model):
            texts = [self._texts(b) for b in self.context.fixed_batches]
        widths = {z.shape[1] for of_batch in texts for z in of_batch}
        rows = sum(len(z) for of_batch in texts for z in of_batch)
        if len(widths) > 1:
            raise LeftOut("the embeddings are of several lengths")
        if rows < LEAST_ROWS:
            raise LeftOut(f"there are fewer than {LEAST_ROWS} embeddings of the fixed rows")
        z = torch.cat([z for of_batch in texts for z in of_batch])
        spread = float((z - z.mean(0)).norm() / z.norm().clamp_min(1e-30))
        self.found.append(self._neighbours(texts, rows, spread))

    def _texts(self, batch: Any) -> list[torch.Tensor]:
        """The embeddings that the loss computes of a batch, one tensor ``(rows, dimensions)`` for each call of the model.

        Where a loss module calls a model inside the watched one, they are the outputs of the outermost module that names them so.
        """
        calls: dict[str, list[torch.Tensor | None]] = defaultdict(list)

        def note(name: str, output: Any) -> None:
            if not name or _named_embeddings(output) is not None:
                calls[name].append(_vectors(output))

        hooks = [
            module.register_forward_hook(lambda _module, _args, output, name=name: note(name, output))
            for name, module in self.context.model.named_modules()
            if not isinstance(module, torch.jit.ScriptModule)
        ]
        try:
            self.context.reader.loss(batch)
        finally:
            for hook in hooks:
                hook.remove()
        outputs = calls[min(calls, key=len)] if calls else [self.context.reader.logits(batch)]
        found = [z.detach().double().cpu() for z in outputs if z is not None and z.dim() == 2]
        if not found or len(found) < len(outputs):
            raise LeftOut("the model does not return one vector a row; pool its tokens in the model's forward")
        return found

    def _neighbours(self, texts: list[list[torch.Tensor]], rows: int, spread: float) -> _Measured:
        labels = [split(b)[1] for b in self.context.fixed_batches]
        of_rows = all(isinstance(y, torch.Tensor) and y.dim() > 0 and y.numel() == len(y) for y in labels)
        if all(len(of_batch) == 1 for of_batch in texts) and of_rows:
            z = torch.cat([of_batch[0] for of_batch in texts])
            y = torch.cat([y.reshape(-1).cpu() for y in labels])
            if len(z) == len(y):
                self.relation = "label"
                return _Measured(rows, spread, *_of_labels(z[:MOST_ROWS], y[:MOST_ROWS]))
        if all(len(of_batch) > 1 and len(of_batch[0]) == len(of_batch[1]) for of_batch in texts) and not of_rows:
            one, other = (torch.cat([of_batch[i] for of_batch in texts])[:MOST_ROWS] for i in (0, 1))
            if len(one) >= LEAST_ROWS:
                self.relation = "pair"
                return _Measured(rows, spread, *_of_pairs(one, other))
        return _Measured(rows, spread)


def _named_embeddings(output: Any) -> torch.Tensor | None:
    """What an output with several tensors calls embeddings."""
    if not isinstance(output, Mapping):
        return None
    return next((output[key] for key in KEYS if isinstance(output.get(key), torch.Tensor)), None)


def _vectors(output: Any) -> torch.Tensor | None:
    """One vector a row in a model's output."""
    named = _named_embeddings(output)
    return logits_in(output) if named is None else named


def _of_labels(z: torch.Tensor, y: torch.Tensor) -> tuple[float, float, float | None, float]:
    """Neighbours of the same label: their share, that by chance, the probability that they are nearer, and the p-value."""
    distances = torch.cdist(z, z).fill_diagonal_(torch.inf)
    others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    near = distances.argmin(1)
    shares = torch.unique(y, return_counts=True)[1].double() / len(y)
    chance = float((shares * (shares * len(y) - 1) / (len(y) - 1)).sum())
    hits = (y[near] == y).double().mean()
    permuted = [(p[near] == p).double().mean() for p in _permuted(y)]
    same = (y[:, None] == y) & others
    return float(hits), chance, _nearer(distances, same, others & ~same), _p_value(hits, permuted)


def _of_pairs(one: torch.Tensor, other: torch.Tensor) -> tuple[float, float, float | None, float]:
    """The same of each row's first two texts: neighbours of the first among the second texts of all rows."""
    distances = torch.cdist(one, other)
    near, own = distances.argmin(1), torch.arange(len(one))
    hits = (near == own).double().mean()
    permuted = [(near == p).double().mean() for p in _permuted(own)]
    same = torch.eye(len(one), dtype=torch.bool)
    return float(hits), 1 / len(one), _nearer(distances, same, ~same), _p_value(hits, permuted)


def _permuted(values: torch.Tensor) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [values[torch.randperm(len(values), generator=generator, device="cpu")] for _ in range(PERMUTATIONS)]


def _p_value(hits: torch.Tensor, permuted: list[torch.Tensor]) -> float:
    """Share of the permutations with at least as many hits, the observed one included (Phipson and Smyth 2010)."""
    return (1 + sum(bool(value >= hits) for value in permuted)) / (1 + len(permuted))


def _nearer(distances: torch.Tensor, same: torch.Tensor, other: torch.Tensor) -> float | None:
    """Probability that a row's distance to one of its own is below that to another, equal ones counted half; the mean over rows."""
    found = []
    for d, own, rest in zip(distances, same, other, strict=True):
        if bool(own.any()) and bool(rest.any()):
            apart = d[rest][None] - d[own][:, None]
            found.append(float((apart > 0).double().mean() + (apart == 0).double().mean() / 2))
    return sum(found) / len(found) if found else None
