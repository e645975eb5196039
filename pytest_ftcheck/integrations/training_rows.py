"""Rows of a training set for the probe batch: taken through the loader's own collator, and no random state is drawn."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.data import IterableDataset, SequentialSampler

from ..instruments.batches import tensors_in
from ..instruments.global_state import preserved_globals
from ..instruments.kept_attributes import ObjectAttributes
from ..instruments.undo import Undo

#: Rows of the probe batch. On 16 rows the loss of a healthy fine-tune rose now and then; on 64 it did not.
ROWS = 64
#: Tokens of the probe batch, padding included: 64 rows of 512, the longest that the usual encoders take. Of longer rows fewer are taken,
#: down to `LEAST_ROWS`: a probe must not need more memory than the training's own batches do.
TOKENS, LEAST_ROWS = 64 * 512, 8


def training_rows(loader: Any, rows: int = ROWS, within: int | None = None) -> Any:
    """A batch of rows from all over the loader's training set, always the same ones; None: they cannot be read without side effects.

    Read are data sets with ``__getitem__`` and ``__len__``, through ``collate_fn``. A stream is not: what is read of it, the training
    would miss. The rows are chosen by a generator of their own, because a training set may be sorted by label.

    :param rows: at most so many; fewer of rows that are long (`TOKENS`).
    :param within: the training reads only so many rows: the first ones, if it does not shuffle.

    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> loader = DataLoader(TensorDataset(torch.arange(100), torch.arange(100) >= 50), batch_size=4, shuffle=True)
    >>> state = torch.get_rng_state()
    >>> labels = training_rows(loader, rows=8)[1]
    >>> len(labels), bool(labels.any()), bool(labels.all()), torch.equal(state, torch.get_rng_state())
    (8, True, False, True)
    """
    dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
    in_batches = getattr(loader, "batch_sampler", None) is not None  # else the data set makes batches itself
    readable = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if isinstance(dataset, IterableDataset) or not callable(collate) or not in_batches or not readable:
        return None
    count = len(dataset)  # type: ignore[arg-type]
    if within is not None and isinstance(getattr(loader, "sampler", None), SequentialSampler):
        count = min(count, within)
    if count < 1:
        return None
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0), device="cpu")[:rows].sort().values
    undo = Undo()
    for owner in _owners(dataset, collate):
        undo.keep(ObjectAttributes(owner))
    with preserved_globals():
        try:
            items = _items(dataset, chosen.tolist())
            batch = collate(items)
            fitting = max(LEAST_ROWS, TOKENS // _tokens_of_a_row(batch))
            return batch if fitting >= len(items) else collate(items[:: -(-len(items) // fitting)])
        finally:
            undo.restore()


def _tokens_of_a_row(batch: Any) -> int:
    """The width of the widest tensor of whole numbers; 1: there is none."""
    whole = [t for t in tensors_in(batch) if t.dim() >= 2 and not t.is_floating_point() and not t.is_complex()]
    return max([1, *(math.prod(t.shape[1:]) for t in whole)])


def _items(dataset: Any, chosen: list[int]) -> Any:
    """As the loader's workers read them."""
    if hasattr(dataset, "__getitems__") and dataset.__getitems__:
        return dataset.__getitems__(chosen)
    return [dataset[i] for i in chosen]


def _owners(dataset: Any, collate: Any) -> list[Any]:
    """The objects whose attributes reading may change: the data set, those that it wraps, the collator."""
    found: dict[int, Any] = {}
    left = [dataset, collate, getattr(collate, "__self__", None)]
    while left:
        owner = left.pop()
        if owner is None or id(owner) in found or not hasattr(owner, "__dict__") or isinstance(owner, type):
            continue
        found[id(owner)] = owner
        left += [getattr(owner, "dataset", None), *(getattr(owner, "datasets", None) or ())]
    return list(found.values())
