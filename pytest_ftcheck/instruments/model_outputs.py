"""What a model returned: its logits, its own loss, and a name for its form."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from ..core.formatting import describe_type
from .batches import with_values
from .task_readers.registered import logits_by_readers


def logits_in(output: Any) -> torch.Tensor | None:
    """The logits in a model's output; None: there are none.

    >>> logits_in((torch.tensor(0.7), torch.zeros(4, 2))).shape
    torch.Size([4, 2])

    The scores of an answer's first and last token are logits of shape ``(rows, 2, tokens)``: the classes are the row's positions.

    >>> logits_in({"start_logits": torch.zeros(4, 9), "end_logits": torch.zeros(4, 9)}).shape
    torch.Size([4, 2, 9])
    """
    if (known := logits_by_readers(output, theirs=True)) is not None:
        return known
    if isinstance(output, torch.Tensor):
        return output if output.dim() else None
    if isinstance(output, Mapping):
        candidates = [output.get(key) for key in ("logits", "prediction_logits")]
        found = next((c for c in candidates if isinstance(c, torch.Tensor)), None)
        return logits_by_readers(output, theirs=False) if found is None else found
    if isinstance(output, (tuple, list)) and output:
        first = output[0]
        if isinstance(first, torch.Tensor) and first.dim() == 0 and len(output) > 1:
            first = output[1]
        return first if isinstance(first, torch.Tensor) and first.dim() else None
    logits = getattr(output, "logits", None)
    return logits if isinstance(logits, torch.Tensor) else None


def loss_in(output: Any) -> torch.Tensor | None:
    """The loss in a model's output; None: there is none."""
    if isinstance(output, torch.Tensor):
        return output if output.dim() == 0 else None
    if isinstance(output, Mapping):
        loss = output.get("loss")
    elif isinstance(output, (tuple, list)):
        first = output[0] if len(output) else None
        loss = first if isinstance(first, torch.Tensor) and first.dim() == 0 else None
    else:
        loss = getattr(output, "loss", None)
    return loss if isinstance(loss, torch.Tensor) else None


def as_loss(value: Any) -> torch.Tensor:
    """A loss that is a number, as a tensor; a tensor stays on its device, whatever the default one is.

    >>> as_loss(0.5)
    tensor(0.5000)
    """
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value, device="cpu")


def check_loss(value: Any, source: str) -> None:
    """``TypeError`` or ``ValueError`` for a loss that is not one real number."""
    if isinstance(value, (int, float)):
        return
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{source} is {describe_type(value)}: expected a scalar tensor, or (loss, logits)")
    if value.is_complex():
        raise ValueError(f"{source} is complex: expected a real number")
    if value.numel() != 1:
        raise ValueError(f"{source} has shape {tuple(value.shape)}: expected one number; take its mean over the rows")


def describe_output(output: Any) -> str:
    """The form of a model's output, in a few words."""
    if isinstance(output, torch.Tensor):
        return "bare logits" if output.dim() else "a bare loss"
    if isinstance(output, Mapping):
        name = "a dict" if type(output) is dict else type(output).__name__
        keys = [k for k in ("loss", "logits") if output.get(k) is not None]
        return f"{name} with {' and '.join('.' + k for k in keys) or 'keys ' + ', '.join(list(output)[:4])}"
    if isinstance(output, (tuple, list)):
        return f"a tuple of {len(output)}"
    return type(output).__name__


def put_logits(output: Any, logits: torch.Tensor) -> Any:
    """A module's output with other logits: a tensor, a mapping or an object with ``logits``, or a tuple; None: it has no logits."""
    if isinstance(output, torch.Tensor):
        return _fit(logits, output)
    if isinstance(output, (Mapping, tuple, list)):
        items: Any = output.items() if isinstance(output, Mapping) else enumerate(output)
        tensors = {place: v for place, v in items if isinstance(v, torch.Tensor)}
        if isinstance(output, Mapping):
            place = next((k for k in ("logits", "prediction_logits") if k in tensors), None)
        else:
            place = next((i for i, v in tensors.items() if v.dim()), None)
        fitted = None if place is None else _fit(logits, tensors[place])
        return None if fitted is None else with_values(output, {(place,): fitted})
    own = getattr(output, "logits", None)
    if isinstance(own, torch.Tensor) and (fitted := _fit(logits, own)) is not None:
        other = copy.copy(output)
        other.logits = fitted
        return other
    return None


def _fit(logits: torch.Tensor, like: torch.Tensor) -> torch.Tensor | None:
    """The logits in shape and dtype of what they replace; repeated at every position where positions are pooled later."""
    z = logits.to(like.dtype) if like.is_floating_point() else logits
    if z.shape == like.shape:
        return z
    if like.dim() == z.dim() + 1 and like.shape[0] == z.shape[0] and like.shape[2:] == z.shape[1:]:
        return z.unsqueeze(1).expand(like.shape)
    return z.reshape(like.shape) if z.numel() == like.numel() and like.shape[:1] == z.shape[:1] else None
