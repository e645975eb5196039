"""Compares the initial parameters with the declared pretrained values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ....instruments.parameter_roles import in_part
from ..record import Differing, Pretrained

#: Relative difference that casting to bf16 and back explains (half its spacing of 2**-7, and a margin) ...
ROUNDED = 0.004
#: ... and up to which the values are another state of the same checkpoint rather than other values.
CLOSE = 0.05
#: Correlation above which one tensor is the other times a factor, plus a constant; beyond which (in either direction) they are related.
ALONG_A_LINE, RELATED = 0.9999, 0.2
#: Largest distance of such a factor from 1, and largest share of the size (rms) that such a constant has, that count as none: at that
#: correlation what is no line is up to 1.4 % of the spread.
NONE = 0.01


def compare(
    model: nn.Module, declared: Mapping[str, Any], head: Sequence[str], initializer_range: float | None = None
) -> Pretrained:
    """Every declared tensor against the parameter or buffer of that name, as they are now."""
    now = {**dict(model.named_buffers(remove_duplicate=False)), **dict(model.named_parameters(remove_duplicate=False))}
    known = {n: v for n, v in declared.items() if n in now and isinstance(v, torch.Tensor)}
    differing, equal = [], 0
    for name, expected in known.items():
        part = "head" if in_part(name, head) else "base"
        found = _difference(name, part, now[name].detach(), expected.detach())
        if found is None:
            equal += 1
        else:
            if found.kind in ("unrelated", "changed") and _belongs_elsewhere(name, now[name].detach(), known):
                found = replace(found, kind="misplaced")
            differing.append(found)
    base = [n for n, _ in model.named_parameters() if not in_part(n, head)]
    return Pretrained(
        compared=len(known),
        equal=equal,
        differing=tuple(differing),
        unknown=sum(n not in now for n in declared),
        undeclared=sum(n not in declared for n in base),
        initializer_range=initializer_range,
    )


def _belongs_elsewhere(name: str, value: torch.Tensor, declared: Mapping[str, torch.Tensor]) -> bool:
    """Whether these are the declared values of another matrix; vectors are often all zeros or all ones."""
    others = (v for n, v in declared.items() if n != name and v.shape == value.shape)
    return value.dim() > 1 and any(torch.equal(value, v.detach().to(value.device, value.dtype)) for v in others)


def _difference(name: str, part: str, value: torch.Tensor, expected: torch.Tensor) -> Differing | None:
    if not value.is_floating_point() or not expected.is_floating_point():
        return None  # counters, positions, quantised codes: not pretrained weights
    expected = expected.to(value.device)
    if value.shape == expected.shape and bool(torch.equal(value, expected.to(value.dtype))):
        return None
    a, b = value.double(), expected.double()
    stds = float(a.std(correction=0)), float(b.std(correction=0))
    shapes = tuple(value.shape), tuple(expected.shape)
    if value.shape != expected.shape:
        rows = min(len(a), len(b)) if a.dim() and b.dim() else 0
        same = a.shape[1:] == b.shape[1:] and rows > 0 and bool(torch.equal(a[:rows].to(b.dtype), b[:rows]))
        return Differing(name, "resized" if same else "shape", part, None, None, *stds, *shapes)
    size = float(torch.linalg.vector_norm(b))
    relative = float(torch.linalg.vector_norm(a - b)) / size if size > 0 else None
    correlation = None
    if stds[0] > 0 and stds[1] > 0:
        correlation = float(((a - a.mean()) * (b - b.mean())).mean()) / (stds[0] * stds[1])
    means = float(a.mean()), float(b.mean())
    return Differing(name, _kind(a, b, relative, correlation), part, relative, correlation, *stds, *shapes, *means)


def _kind(a: torch.Tensor, b: torch.Tensor, relative: float | None, correlation: float | None) -> str:
    if relative is not None and relative <= CLOSE:
        return "rounded" if relative <= ROUNDED else "close"
    if correlation is None:
        if a.numel() > 1 and float(a.std(correction=0)) == 0:
            return _kind_of_constant(a, b)
        return "changed" if relative is not None and relative < 0.5 else "unrelated"
    if correlation > ALONG_A_LINE:
        return _kind_of_line(a, b, correlation)
    if _rows_zeroed(a, b):
        return "rows zeroed"
    if bool(torch.equal(a.reshape(-1).sort().values, b.reshape(-1).sort().values)):
        return "shuffled"
    return "changed" if abs(correlation) > RELATED else "unrelated"


def _rows_zeroed(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether some rows are zero that were not, and the others are what they were, up to rounding."""
    if a.dim() < 2:
        return False
    zero = (a == 0).flatten(1).all(1)
    kept = b[~zero]
    if not bool(b[zero].any()) or not bool(kept.any()):
        return False
    off = float(torch.linalg.vector_norm(a[~zero] - kept))
    return off <= ROUNDED * float(torch.linalg.vector_norm(kept))


def _kind_of_constant(a: torch.Tensor, b: torch.Tensor) -> str:
    """Of a tensor whose values are all the same: initialisers leave norms at 1 and biases at 0."""
    first, declared = float(a.reshape(-1)[0]), float(b.reshape(-1)[0])
    if first in (0.0, 1.0) or float(b.std(correction=0)) > 0:
        return "constant"
    return "shifted" if declared == 0 else "refilled"


def _kind_of_line(a: torch.Tensor, b: torch.Tensor, correlation: float) -> str:
    """What was done to ``b`` where ``a`` is ``factor * b + constant``, by least squares."""
    factor = correlation * float(a.std(correction=0)) / float(b.std(correction=0))
    constant = float(a.mean()) - factor * float(b.mean())
    if abs(constant) <= NONE * float(a.square().mean().sqrt()):
        return "scaled"
    return "shifted" if abs(factor - 1) <= NONE else "scaled and shifted"
