"""The user's batches: taken one after another, split into inputs and labels, moved, copied, indexed by rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import nn

from ..core.formatting import describe_type
from .task_readers.registered import LABELS, reader_of

#: Where a tensor is in a batch: keys and positions, from the outside in.
Path = tuple[Any, ...]
#: Held-out batches that are read, at most: a stream without an end must not fill the memory.
MOST = 1000


class Batches:
    """The user's batches by number, in order; they start again at the end.

    A list is indexed; a DataLoader or other re-iterable is iterated again and again; of a one-shot iterator the first ``steps``
    are kept, and too few of them are an error (``steps=None``: all are kept).

    :raises TypeError: not an iterable of batches.  :raises ValueError: empty, or a one-shot iterator that is too short.
    """

    def __init__(self, source: Any, steps: int | None, argument: str = "batches") -> None:
        self.argument = argument
        #: It was an iterator, of which the first batches were kept: where its epochs begin is not known.
        self.one_shot = False
        #: How often the source has been read from its start before the batch taken last: the epoch, counted from 0.
        self.epoch = 0
        if isinstance(source, (Mapping, torch.Tensor, str, bytes)) or not isinstance(source, Iterable):
            raise TypeError(
                f"{argument} is {describe_type(source)}: expected a list, a DataLoader or another iterable of batches"
            )
        if isinstance(source, Iterator) or (not isinstance(source, (list, tuple)) and spent(source)):
            kept = []
            for batch in source:
                kept.append(batch)
                if len(kept) == (steps or MOST + 1):  # one more than is accepted: the caller raises
                    break
            if steps is not None and 0 < len(kept) < steps:
                raise ValueError(
                    f"{argument}: a one-shot iterator that ends after {len(kept)} batches, but steps={steps}: "
                    "pass a list or a DataLoader, which can be read again, or fewer steps"
                )
            source = kept
            self.one_shot = True
        self.source = source
        self.list: Sequence[Any] | None = source if isinstance(source, (list, tuple)) else None
        self._iterator: Iterator[Any] | None = None
        if self.list is not None:
            self.known: list[Any] = list(self.list)
        else:
            self.known = []
            for batch in source:
                self.known.append(batch)
                if len(self.known) == 2:  # as many as are evaluated on fixed rows
                    break
        if not self.known:
            raise ValueError(f"{argument} is empty: expected at least one batch")
        check_readable(argument, self.known[:2])

    def take(self, i: int) -> Any:
        """Batch ``i``; to be taken in order."""
        if self.list is not None:
            self.epoch = i // len(self.list)
            return self.list[i % len(self.list)]
        if self._iterator is None:
            self._iterator = iter(self.source)
        try:
            return next(self._iterator)
        except StopIteration:
            self._iterator = iter(self.source)
            self.epoch += 1
            for batch in self._iterator:
                return batch
            raise ValueError(
                f"{self.argument}: can be read only once, and ended before batch {i}: pass a list or a DataLoader, or fewer steps"
            ) from None


def check_readable(argument: str, batches: Sequence[Any]) -> None:
    """``ValueError`` for a batch that cannot be read: nested too deeply, containing itself, or with tensors without values or shape."""
    for i, batch in enumerate(batches):
        try:
            for tensor in tensors_in(batch):
                if tensor.is_meta or tensor.is_nested:
                    kind = "on the meta device, without values" if tensor.is_meta else "a nested one, without a shape"
                    raise ValueError(
                        f"{argument}[{i}]: a tensor in it is {kind}: expected tensors with values and a shape"
                    )
        except RecursionError:
            raise ValueError(
                f"{argument}[{i}] is {describe_type(batch)} that is nested too deeply, or contains itself: expected a batch"
            ) from None


def spent(source: Any) -> bool:
    """Whether a second iteration would continue the first: then it is a one-shot iterator, whatever its type."""
    if hasattr(source, "__len__"):
        return False
    return iter(source) is iter(source)


def split(batch: Any) -> tuple[Any, Any]:
    """``(inputs, labels)`` of a batch; labels are None where it has none.

    Labels under other keys are found by the task reader of the batch (`reader_of`), such as the positions of an answer, ``(rows, 2)``.

    >>> split({"input_ids": 1, "labels": 2})
    ({'input_ids': 1}, 2)
    >>> split(((1, 2, 3), 4))
    ((1, 2, 3), 4)
    >>> split({"input_ids": 1, "start_positions": torch.tensor([3, 5]), "end_positions": torch.tensor([4, 5])})[1].tolist()
    [[3, 4], [5, 5]]
    """
    if isinstance(batch, Mapping):
        if reader := reader_of(batch):
            return {k: v for k, v in batch.items() if k not in reader.keys}, reader.read_labels(batch)
        for key in LABELS:
            if key in batch:
                return {k: v for k, v in batch.items() if k != key}, batch[key]
        return dict(batch.items()), None
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]
    return batch, None


def with_labels(batch: Any, labels: torch.Tensor) -> Any:
    """The same batch with other labels; the batch itself is not changed.

    >>> with_labels({"x": 1, "labels": 2}, torch.tensor([3]))["labels"]
    tensor([3])
    """
    if reader := reader_of(batch):
        written = reader.write_labels(labels)
        return with_values(batch, {(k,): v.reshape(batch[k].shape) for k, v in written.items()})
    place = next(k for k in LABELS if k in batch) if isinstance(batch, Mapping) else len(batch) - 1
    return with_values(batch, {(place,): labels})


def with_values(batch: Any, changes: Mapping[Path, torch.Tensor]) -> Any:
    """The batch with other tensors at these places; containers on the path are copied, the batch itself is not changed."""
    for path, value in changes.items():
        batch = _with(batch, path, value)
    return batch


def _with(value: Any, path: Path, new: torch.Tensor) -> Any:
    if not path:
        return new
    key, rest = path[0], path[1:]
    if isinstance(value, Mapping):
        changed: Any = copy.copy(value) if isinstance(value, MutableMapping) else dict(value)
        changed[key] = _with(value[key], rest, new)
        return changed
    items = [_with(v, rest, new) if i == key else v for i, v in enumerate(value)]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def row_count(inputs: Any) -> int | None:
    """Rows of the first tensor in the inputs; None: there is none."""
    values = (
        inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, (tuple, list)) else [inputs]
    )
    return next((len(v) for v in values if isinstance(v, torch.Tensor) and v.dim()), None)


def rows_of(batch: Any) -> int:
    """Rows of a batch, counted in its labels, else in its inputs; 1 where neither can be counted."""
    inputs, labels = split(batch)
    if isinstance(labels, torch.Tensor) and labels.dim():
        return len(labels)
    return row_count(inputs) or 1


def take_rows(batch: Any, rows: Sequence[int]) -> Any:
    """Some rows of a batch: tensors, and lists of texts or numbers, of its row count are indexed; all else stays the same.

    >>> take_rows({"input_ids": torch.arange(6).reshape(3, 2), "labels": torch.tensor([7, 8, 9])}, [2, 0])["labels"]
    tensor([9, 7])
    """
    inputs, labels = split(batch)
    count = len(labels) if isinstance(labels, torch.Tensor) and labels.dim() else row_count(inputs)

    def pick(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            fits = value.dim() and len(value) == count
            return value[torch.as_tensor(list(rows), device=value.device)] if fits else value
        if type(value) in (tuple, list) and len(value) == count and not any(True for _ in tensors_in(value)):
            return type(value)(value[r] for r in rows)
        return _mapped(value, pick)

    return pick(batch)


def placed_tensors(value: Any, path: Path = ()) -> Iterator[tuple[Path, torch.Tensor]]:
    """All tensors of a batch, or of a part of it, and their places: keys and positions, from the outside in."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, (Mapping, tuple, list)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from placed_tensors(item, (*path, key))


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors of a batch, or of a part of it."""
    return (tensor for _, tensor in placed_tensors(value))


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors moved to ``device``, in the same containers; the value itself where nothing has to move."""
    if isinstance(value, torch.Tensor):
        if value.is_inference() and not torch.is_inference_mode_enabled():
            value = value.clone()  # made under the caller's inference_mode: autograd refuses the original
        return value if value.device == device else value.to(device)
    return _mapped(value, lambda v: to_device(v, device))


def fresh(value: Any) -> Any:
    """The same tensors in containers of their own: a model that pops from its batch takes nothing from the user's.

    >>> batch = {"x": 1, "labels": 2}
    >>> fresh(batch).pop("labels"), batch
    (2, {'x': 1, 'labels': 2})
    """
    return _mapped(value, fresh, copied=isinstance(value, MutableMapping) or type(value) is list)


def own_copy(value: Any) -> Any:
    """A batch that may be changed in place: its containers and tensors are copies."""
    if isinstance(value, torch.Tensor):
        return value if value.requires_grad or value.layout is not torch.strided else value.clone()
    return _mapped(value, own_copy, copied=True)


def _mapped(value: Any, change: Callable[[Any], Any], *, copied: bool = False) -> Any:
    """The container with changed items; the value itself if it is no container, or (unless ``copied``) no item changes."""
    if isinstance(value, Mapping):
        inner = {k: change(v) for k, v in value.items()}
        if not copied and all(inner[k] is value[k] for k in inner):
            return value
        if type(value) is dict:
            return inner
        try:  # a tokenizer's BatchEncoding has attributes, too
            other: Any = copy.copy(value)
            for key, item in inner.items():
                other[key] = item
        except Exception:  # noqa: BLE001 - a mapping that cannot be written to
            return inner
        return other
    if isinstance(value, (tuple, list)):
        items = [change(v) for v in value]
        if not copied and all(a is b for a, b in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def in_words(value: Any) -> str:
    """A batch, or a part of it, in a few words, for messages."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"{describe_type(value)} with " + (
            f"keys {', '.join(map(str, list(value)[:6]))}" if value else "no keys"
        )
    if isinstance(value, (tuple, list)):
        return f"{describe_type(value)} of {len(value)}"
    return describe_type(value)
