"""Batches as rows: token ids without padding, numbers, labels; and a hash of each row. No model is called."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from .batches import placed_tensors, row_count, split
from .configs import config_of
from .tasks import IGNORED

#: Rows that are read, and numbers of each row, at most.
MOST_ROWS = 4096
MOST_NUMBERS = 512
#: Labels of tokens that are put into one table, at most: 32 MB.
MOST_LABELS = 4_000_000
#: Bytes of a row's tensor up to which all of them are hashed.
MOST_HASHED = 16_384


@dataclass
class Rows:
    """Rows of several batches, in their order."""

    #: Real token ids of each row; empty where the inputs have no tokens.
    ids: list[np.ndarray] = field(default_factory=list)
    #: Where they stand in the batch's tensor of ids, and how wide that is.
    columns: list[np.ndarray] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    #: Rows of floats, ``(n, d)`` a batch; rows of one number, by name.
    floats: list[np.ndarray] = field(default_factory=list)
    single: dict[str, list[np.ndarray]] = field(default_factory=dict)
    labels: list[np.ndarray] = field(default_factory=list)
    #: Index of the batch of each row, and the epoch in which it came.
    batch: list[int] = field(default_factory=list)
    epoch: list[int] = field(default_factory=list)
    batches: int = 0
    #: Hash of everything in the row but its label and its padding; and a weighted sum of its numbers where not all of them are kept.
    contents: list[bytes] = field(default_factory=list)
    checksums: list[bytes] = field(default_factory=list)
    #: Whether the row's mask is zero everywhere; whether NaN or plus infinity is among its numbers, and where first.
    masked: list[bool] = field(default_factory=list)
    nonfinite: list[bool] = field(default_factory=list)
    nonfinite_where: str = ""
    #: Batches that could not be read.
    unread: int = 0

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def masked_out(self) -> int:
        """Rows whose mask is zero everywhere."""
        return sum(self.masked)

    def keys(self) -> list[bytes]:
        """A key of each row's inputs: equal for equal inputs."""
        parts: list[list[bytes]] = []
        if self.ids:
            parts.append([row.tobytes() for row in self.ids])
        if self.floats:
            parts.append([row.tobytes() for block in self.floats for row in block])
        if len(self.checksums) == len(self):
            parts.append(self.checksums)
        if not self.ids:
            for _, blocks in sorted(self.single.items()):
                parts.append([v.tobytes() for block in blocks for v in block])
        return [b"|".join(items) for items in zip(*parts, strict=True)] if parts else []

    def lengths(self) -> np.ndarray:
        """Values in each row."""
        if self.ids:
            return np.array([len(r) for r in self.ids])
        return np.array([block.shape[1] for block in self.floats for _ in block] or [0])

    def target(self) -> np.ndarray | None:
        """Labels of all rows, ``(n,)`` or ``(n, k)``; None where they do not fit together.

        Labels of tokens, in batches of different widths, are made as wide as the widest with labels that do not count (-100).

        >>> Rows(labels=[np.array([[1, 2, 0]]), np.array([[2, 1]])]).target().tolist()
        [[1, 2, 0], [2, 1, -100]]
        """
        if not self.labels:
            return None
        if len({block.shape[1:] for block in self.labels}) == 1:
            return np.concatenate(self.labels)
        if not all(block.ndim == 2 and block.dtype.kind in "iu" for block in self.labels):
            return None
        widest = max(block.shape[1] for block in self.labels)
        if widest * sum(map(len, self.labels)) > MOST_LABELS:
            return None
        wide = [((0, 0), (0, widest - block.shape[1])) for block in self.labels]
        signed = [block.astype(np.int64) for block in self.labels]
        return np.concatenate([np.pad(b, w, constant_values=IGNORED) for b, w in zip(signed, wide, strict=True)])

    def select(self, rows: np.ndarray) -> Rows:
        """Some of the rows, in their order; inputs that not all rows have are left out."""
        count = len(self)

        def of_list(values: list[Any]) -> list[Any]:
            return [values[i] for i in rows] if len(values) == count else []

        def of_blocks(blocks: list[np.ndarray]) -> list[np.ndarray]:
            if sum(map(len, blocks)) != count:
                return []
            if len({block.shape[1:] for block in blocks}) == 1:
                return [np.concatenate(blocks)[rows]]
            values = [row for block in blocks for row in block]
            return [values[i][None] for i in rows]

        batch = of_list(self.batch)
        return Rows(
            ids=of_list(self.ids),
            columns=of_list(self.columns),
            widths=of_list(self.widths),
            floats=of_blocks(self.floats),
            single={name: kept for name, blocks in self.single.items() if (kept := of_blocks(blocks))},
            labels=of_blocks(self.labels),
            batch=batch,
            epoch=of_list(self.epoch),
            batches=len(set(batch)),
            contents=of_list(self.contents),
            checksums=of_list(self.checksums),
            masked=of_list(self.masked),
            nonfinite=of_list(self.nonfinite),
            nonfinite_where=self.nonfinite_where,
        )


def first_occurrences(keys: Sequence[Hashable]) -> np.ndarray:
    """Where each key occurs first.

    >>> first_occurrences(["a", "b", "a", "c"]).tolist()
    [0, 1, 3]
    """
    first: dict[Hashable, int] = {}
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    return np.fromiter(first.values(), dtype=np.int64, count=len(first))


def named(value: Any) -> dict[str, torch.Tensor]:
    """All tensors in the inputs of a batch, by key or position."""
    return {".".join(map(str, path)) or "input": tensor for path, tensor in placed_tensors(value)}


class RowReader:
    """Turns batches into `Rows`; the tensor of token ids is found in the first batch."""

    def __init__(self, model: nn.Module, pad: int | None) -> None:
        self.vocabulary = vocabulary_of(model)
        config = config_of(model)
        own = getattr(config, "pad_token_id", None)
        self.pad = pad if pad is not None else own if isinstance(own, int) and not isinstance(own, bool) else None
        self._ids: str | None = None
        self._searched = False

    def read(self, batch: Any, into: Rows, epoch: int = 0) -> None:
        """Add the rows of a batch."""
        inputs, labels = split(batch)
        tensors = {k: v.detach() for k, v in named(inputs).items()}
        count = row_count(inputs) if not isinstance(labels, torch.Tensor) or not labels.dim() else len(labels)
        tensors = {k: v for k, v in tensors.items() if v.dim() and len(v) == count}
        if not count or not tensors or not isinstance(labels, torch.Tensor) or not labels.dim():
            into.unread += 1
            return
        if not self._searched:
            self._ids, self._searched = self._find_ids(tensors), True
        plain = {k: _numpy(v) for k, v in tensors.items()}
        bad_rows = np.zeros(count, dtype=bool)
        for name, value in plain.items():
            if (
                value.dtype.kind == "f"
                and (bad := (np.isnan(value) | np.isposinf(value)).reshape(count, -1).any(1)).any()
            ):
                into.nonfinite_where = into.nonfinite_where or name
                bad_rows |= bad
        into.nonfinite += bad_rows.tolist()
        mask: np.ndarray | None = None
        if self._ids is not None and self._ids in plain and plain[self._ids].ndim == 2:
            ids = plain[self._ids]
            mask, empty = self._mask(self._ids, ids, plain)
            into.masked += empty.tolist()
            into.ids += [row[keep] for row, keep in zip(ids, mask, strict=True)]
            into.columns += [np.flatnonzero(keep) for keep in mask]
            into.widths += [ids.shape[1]] * count
        blocks = [
            v.reshape(count, -1) for k, v in plain.items() if v.ndim >= 2 and v.dtype.kind == "f" and not _is_mask(v)
        ]
        if self._ids is None:  # integers that are no token ids
            blocks += [
                v.reshape(count, -1).astype(np.float32)
                for v in plain.values()
                if v.ndim >= 2 and v.dtype.kind in "iub" and not _is_mask(v)
            ]
        if blocks:
            wide = np.concatenate(blocks, axis=1)
            stride = -(-wide.shape[1] // MOST_NUMBERS)
            if stride > 1:
                into.checksums += _projections(wide)
            into.floats.append(np.ascontiguousarray(wide[:, ::stride], dtype=np.float32))
        for name, value in plain.items():
            if value.size == count:
                into.single.setdefault(name, []).append(np.ascontiguousarray(value.reshape(count)))
        into.labels.append(_numpy(labels.detach()))
        into.contents += _contents(plain, count, mask)
        into.epoch += [epoch] * count
        into.batch += [into.batches] * count
        into.batches += 1

    def _find_ids(self, tensors: Mapping[str, torch.Tensor]) -> str | None:
        for name, value in tensors.items():
            if name.rsplit(".", 1)[-1] == "input_ids" and value.dim() == 2 and not value.is_floating_point():
                return name
        whole = {
            k: v
            for k, v in tensors.items()
            if v.dim() == 2 and v.shape[1] > 1 and not v.is_floating_point() and v.dtype != torch.bool
        }
        if self.vocabulary is None or not whole:
            return None
        spread = {k: len(torch.unique(v)) for k, v in whole.items()}
        best = max(spread, key=lambda k: spread[k])
        low, high = int(whole[best].min()), int(whole[best].max())
        return best if spread[best] > 2 and low >= 0 and high < self.vocabulary else None

    def _mask(self, name: str, ids: np.ndarray, plain: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens are real, and which rows have none by their own mask."""
        keep, empty = np.ones(ids.shape, dtype=bool), np.zeros(len(ids), dtype=bool)
        for other, value in plain.items():
            if other == name or value.shape != ids.shape or not _is_mask(value):
                continue
            on = value != 0
            if other.rsplit(".", 1)[-1] != "attention_mask" and not (_one_id(ids, ~on) or _one_id(ids, on)):
                continue
            if _one_id(ids, on) and not _one_id(ids, ~on) and not on.all() and on.any():
                on = ~on  # one id everywhere that the mask is on: the mask marks the padding
            empty = (~on).all(1)
            if not empty.all():
                keep = on
            break
        if self.pad is not None:
            keep = _strip(ids, keep, self.pad)
        elif keep.all():
            keep = _strip(ids, keep, None)
        return keep, empty


def _contents(plain: Mapping[str, np.ndarray], count: int, mask: np.ndarray | None) -> list[bytes]:
    """A hash of all inputs of each row, without padding where it is known."""
    hashes = [hashlib.blake2b(digest_size=16) for _ in range(count)]
    for _, value in sorted(plain.items()):
        if mask is not None and value.shape == mask.shape:
            parts = [row[real].tobytes() for row, real in zip(value, mask, strict=True)]
        elif value[0].nbytes > MOST_HASHED:
            parts = _projections(value.reshape(count, -1))
        else:
            parts = [row.tobytes() for row in value]
        for h, part in zip(hashes, parts, strict=True):
            h.update(part)
    return [h.digest() for h in hashes]


def _projections(rows: np.ndarray) -> list[bytes]:
    """A weighted sum of each row with fixed random weights: other rows have another one, and it is cheaper than a hash of an image."""
    weights = np.random.default_rng(0).standard_normal(rows.shape[1])
    return [(row * weights).sum().tobytes() for row in rows]


def _one_id(ids: np.ndarray, where: np.ndarray) -> bool:
    """Whether all these places, of which there are some, have the same id."""
    values = ids[where]
    return bool(len(values)) and bool((values == values[0]).all())


def _is_mask(value: np.ndarray) -> bool:
    return value.dtype.kind == "b" or bool(((value == 0) | (value == 1)).all())


def _strip(ids: np.ndarray, keep: np.ndarray, pad: int | None) -> np.ndarray:
    """Without the padding at either end; ``pad=None``: without runs of two or more equal ids."""
    width = ids.shape[1]
    if not width:
        return keep
    keep = keep.copy()
    for edge, direction in ((0, slice(None)), (width - 1, slice(None, None, -1))):
        value = ids[:, edge] if pad is None else np.full(len(ids), pad)
        same = ids[:, direction] == value[:, None]
        run = np.where(same.all(1), width, np.argmin(same, axis=1))
        run = np.where(run >= (2 if pad is None else 1), run, 0)
        gone = np.arange(width)[None, :] < run[:, None]
        keep &= ~gone[:, direction]
    return keep


def _numpy(value: torch.Tensor) -> np.ndarray:
    value = value.cpu()
    # of a copy: numpy() makes the storage one that cannot be resized
    own = value.float() if value.dtype == torch.bfloat16 else value.clone()
    plain: np.ndarray = own.numpy()
    return plain


def vocabulary_of(model: nn.Module) -> int | None:
    """Rows of the token embedding: the model's own answer, else the largest table; None: there is none."""
    get = getattr(model, "get_input_embeddings", None)
    if callable(get):
        try:
            found = get()
        except Exception:  # noqa: BLE001 - not every model knows
            found = None
        if isinstance(found, nn.Embedding):
            return found.num_embeddings
    return max((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), default=None)
