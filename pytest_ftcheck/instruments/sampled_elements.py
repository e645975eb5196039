"""A fixed random sample of the elements of every tensor, side by side in flat vectors.

Copying a whole model at every step would cost more than training it. The head is compared exactly at the end of the run. At each
step a sample of every tensor is enough, because an optimizer that moves one element also moves its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .sharded_tensors import local, memory_of

#: Elements of one tensor that are sampled: of the head, and of the base. Smaller ones are read whole.
SAMPLE_HEAD = 4096
SAMPLE_BASE = 1024
#: How many of them stand side by side; of a large head fewer, so that more of its outputs are among them.
RUN_HEAD, RUN_BASE = 8, 64
#: Above this many elements, gradient norms on a CPU are taken on every k-th row: reading all gradients of a 66 M model would cost more
#: than twice as much (benchmarks/step_hooks.py). Heads of the usual size are read in full.
LARGE_HEAD = 2**20
#: A matrix with this many times as many rows as columns is a table, of which a batch may use a few rows.
TABLE = 8
LARGE_BASE = 2**19


class SampleSize(NamedTuple):
    """How many elements of a parameter are sampled, and how many of them stand side by side."""

    elements: int
    run: int = 1


def sample_size(shape: Sequence[int], part: str, role: str) -> SampleSize:
    """How much of a parameter is sampled.

    Reading elements that stand far apart is most of the cost of watching: each is on a page of memory of its own. So a matrix is read in 16
    runs of 64. The rms of a step is then within 7 % of that of the whole matrix under AdamW (95 %); under SGD, where a few rows have most
    of the gradient, within a factor of 1.8. With 256 single elements it is 6 % and 2.7 (``benchmarks/sampling.py``). Of an embedding, and
    of what has the shape of one (`TABLE`), single elements are read, because few of its rows may occur in the batches.
    """
    if part == "head":
        return SampleSize(SAMPLE_HEAD, RUN_HEAD)
    single = role == "embedding" or (len(shape) == 2 and is_table(shape))
    return SampleSize(SAMPLE_BASE, 1 if single else RUN_BASE)


def is_table(shape: Sequence[int]) -> bool:
    """Whether it has so many more rows than columns that a batch may use a few of its rows.

    >>> is_table((30522, 768)), is_table((3072, 768))
    (True, False)
    """
    return shape[0] > TABLE * math.prod(shape[1:])


class SampledElements:
    """A sample of the elements of some parameters; of a sharded one, of the part that this process holds.

    :param parameters: the parameters, all of them floating point.
    :param sizes: how many elements to sample in each, at most.
    :param alike: the same elements of all tensors of one shape, so that they can be compared with each other.
    """

    def __init__(
        self, parameters: Sequence[torch.nn.Parameter], sizes: Sequence[SampleSize], *, alike: bool = False
    ) -> None:
        self.parameters = list(parameters)
        generator = torch.Generator().manual_seed(20062)  # our own: the user's random state is not used
        known: dict[object, torch.Tensor] = {}
        self.index: list[torch.Tensor | None] = []
        self.counts: list[int] = []
        self._numels: list[int] = []
        for p, size in zip(map(local, self.parameters), sizes, strict=True):
            self._numels.append(p.numel())
            if p.numel() <= size.elements:
                self.index.append(None)
                self.counts.append(p.numel())
                continue
            picked = known.get((p.shape, p.device, size)) if alike else None
            if picked is None:
                picked = _spread(p.numel(), size, generator)
                picked = picked.to(p.device, torch.int32 if p.numel() < 2**31 else torch.int64)
                known[p.shape, p.device, size] = picked
            self.index.append(picked)
            self.counts.append(len(picked))
        #: By place: values of a parameter that was given another number of elements since, as they were last. Its sample no longer fits.
        self.resized: dict[int, torch.Tensor] = {}
        self._latest: torch.Tensor | None = None
        self._views: list[torch.Tensor | None] = [None] * len(self.parameters)
        self.device = self.parameters[0].device
        self.dtype = torch.float64 if any(p.dtype == torch.float64 for p in self.parameters) else torch.float32
        self.total = sum(self.counts)
        self._lengths = torch.tensor(self.counts, device=self.device)

    def zeros(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A flat vector with one place for each sampled element."""
        return torch.zeros(self.total, dtype=dtype or self.dtype, device=self.device)

    def split(self, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The piece of each tensor, as a view."""
        return torch.split(flat, self.counts)

    def values(self, out: torch.Tensor) -> torch.Tensor:
        """The current values, into ``out``."""
        with torch.no_grad():
            pieces = [self._piece(place, index) for place, index in enumerate(self.index)]
            if all(piece.device == self.device for piece in pieces):
                torch.cat(pieces, out=out)
            else:
                for piece, place in zip(pieces, self.split(out), strict=True):
                    place.copy_(piece)
        self._latest = out
        return out

    def values_like(self, place: int, other: int) -> torch.Tensor | None:
        """The current values of one parameter where another one of its shape is sampled; None: it was given another number of elements."""
        with torch.no_grad():
            flat, index = self._flat(place), self.index[other]
            return flat if flat is None or index is None else flat.index_select(0, index)

    def _piece(self, place: int, index: torch.Tensor | None) -> torch.Tensor:
        if place not in self.resized:
            flat = self._flat(place)
            if flat is not None:
                return flat if index is None else flat.index_select(0, index)
            assert self._latest is not None
            self.resized[place] = self.split(self._latest)[place].clone()
        return self.resized[place]

    def _flat(self, place: int) -> torch.Tensor | None:
        """The elements of a parameter that this process holds, in one row; None: they are more or fewer than they were.

        Made once, as long as they are where they were: two new tensors a parameter take longer than reading what is sampled.
        """
        p, view, count = self.parameters[place], self._views[place], self._numels[place]
        if view is not None and p.data_ptr() == view.data_ptr() and p.numel() == count and p.is_contiguous():
            return view
        flat = memory_of(p).reshape(-1)
        fits = flat.numel() == count
        self._views[place] = flat if fits and type(p) is torch.nn.Parameter and p.is_contiguous() else None
        return flat if fits else None

    def gradients(self, out: torch.Tensor, places: Sequence[int] | None = None) -> torch.Tensor:
        """The current gradients, into ``out``; 0 where there is none, 1 for a row that a sparse gradient has.

        :param places: of these tensors alone; default: of all.
        """
        pieces = self.split(out)
        with torch.no_grad():
            for i in range(len(pieces)) if places is None else places:
                p, index, place = self.parameters[i], self.index[i], pieces[i]
                grad = p.grad
                if grad is None or i in self.resized:
                    place.zero_()
                elif grad.is_sparse:
                    rows = grad.coalesce().indices()[0]
                    flat = torch.arange(p.numel(), device=p.device) if index is None else index
                    place.copy_(torch.isin(flat // max(1, p.numel() // p.shape[0]), rows))
                else:
                    _pick(local(grad), index, place)
        return out

    def norms(self, flat: torch.Tensor) -> torch.Tensor:
        """L2 norm of each tensor's piece."""
        return torch.segment_reduce(flat * flat, "sum", lengths=self._lengths).sqrt()

    def extremes(self, flat: torch.Tensor) -> tuple[list[float], list[float]]:
        """The least and the largest number of each tensor's piece; a GPU is waited for."""
        low: list[float] = torch.segment_reduce(flat, "min", lengths=self._lengths).tolist()
        high: list[float] = torch.segment_reduce(flat, "max", lengths=self._lengths).tolist()
        return low, high

    def all_of(self, flags: torch.Tensor) -> list[bool]:
        """Of each tensor, whether all of its piece is true; a GPU is waited for."""
        least: list[float] = torch.segment_reduce(flags.float(), "min", lengths=self._lengths).tolist()
        return [number > 0 for number in least]


def _spread(count: int, size: SampleSize, generator: torch.Generator) -> torch.Tensor:
    """Places in ascending order: one run in each of so many equal parts of a tensor, because a few rows may have most of the gradient, and
    only a few rows of an embedding occur in the batches. Each run begins at a multiple of its length."""
    runs, slots = size.elements // size.run, -(-count // size.run)
    borders = torch.arange(runs + 1, device="cpu") * slots // runs
    shift = torch.rand(runs, generator=generator, dtype=torch.float64, device="cpu")
    slot = borders[:-1] + (shift * borders.diff()).long()
    if size.run == 1:
        return slot
    places = (slot[:, None] * size.run + torch.arange(size.run, device="cpu")).reshape(-1)
    return places[places < count]


def _pick(source: torch.Tensor, index: torch.Tensor | None, place: torch.Tensor) -> None:
    flat = source.reshape(-1)
    if index is None:
        place.copy_(flat)
    elif flat.dtype == place.dtype and flat.device == place.device:
        torch.index_select(flat, 0, index, out=place)
    else:
        place.copy_(flat.index_select(0, index))


def row_stride(p: torch.Tensor, large: int = LARGE_BASE) -> int:
    """Every how many rows of a gradient are read for its norm."""
    p = local(p)
    if p.device.type != "cpu" or p.numel() <= large or p.dim() < 2:
        return 1
    return min(math.ceil(p.numel() / (large // 2)), max(1, p.shape[0] // 64))


def gradient_norm(grad: torch.Tensor, stride: int) -> torch.Tensor:
    """L2 norm in at least float32; of a large tensor it is that of the rows with a gradient, if these are few (an embedding's), else it is
    estimated from every ``stride``-th row."""
    grad = local(grad)
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    norm: torch.Tensor
    if grad.is_sparse:
        norm = torch.linalg.vector_norm(grad.coalesce().values(), dtype=dtype)
        return norm
    if stride > 1:
        if is_table(grad.shape):
            used = _used_rows(grad)
            if 0 < len(used) <= grad.shape[0] // stride:
                norm = torch.linalg.vector_norm(grad.index_select(0, used), dtype=dtype)
                return norm
        rows = grad[::stride]
        # first of each row: torch reads rows that do not lie side by side two to three times as fast as in one go
        each = torch.linalg.vector_norm(rows, dim=tuple(range(1, rows.dim())), dtype=dtype)
        norm = torch.linalg.vector_norm(each) * math.sqrt(grad.shape[0] / rows.shape[0])
        if norm != 0:  # all rows read may be zero: then all rows are read
            return norm
    norm = torch.linalg.vector_norm(grad, dtype=dtype)
    return norm


def is_plain(gradient: torch.Tensor, device: torch.device) -> bool:
    """Whether its norm can be taken together with those of others on this device: no subclass, not sparse, float32.

    >>> is_plain(torch.ones(2), torch.device("cpu")), is_plain(torch.ones(2, dtype=torch.bfloat16), torch.device("cpu"))
    (True, False)
    """
    return (
        type(gradient) is torch.Tensor
        and gradient.dtype == torch.float32
        and gradient.layout is torch.strided
        and gradient.device == device
    )


def _used_rows(table: torch.Tensor) -> torch.Tensor:
    """The rows that are not zero in their first two places. Each row is one more page of memory, so nothing else of it is read."""
    rows = table.reshape(table.shape[0], -1)
    used = rows[:, 0] != 0
    if rows.shape[1] > 1:
        used |= rows[:, 1] != 0
    return used.nonzero().squeeze(1)
