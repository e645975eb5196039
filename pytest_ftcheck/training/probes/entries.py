"""Questions about single labels: is each of them read, at its own place, whatever its value?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .injection import Injector

if TYPE_CHECKING:
    from .questions import Questions

#: Tags that are turned over, and tokens whose label is changed, at most.
TAGS = 8
TOKENS = 16


def silent_values(ask: Questions, injector: Injector) -> tuple[int, ...]:
    """Label values (0: off, 1: on) whose logits get no gradient anywhere, though both occur."""
    t = ask.target
    if t.kind not in ("tags", "binary"):
        return ()
    loud = torch.zeros(t.y.shape, dtype=torch.bool, device=t.y.device)
    sign = t.sign(t.y)
    for z in (ask.draw(1.0), ask.draw(1.0), ask.along(-sign, 2.0), ask.along(sign, 0.5)):
        _, g = injector.gradient(z)
        if g is None:
            return ()
        loud |= t.flat(g).reshape(t.y.shape) != 0
    keep = t.keep.reshape(-1, *[1] * (t.y.dim() - 1)).expand(t.y.shape)
    entries = {v: loud[keep & (t.y == v)] for v in (0, 1)}
    if any(len(e) < 2 for e in entries.values()):
        return ()
    return tuple(v for v, e in entries.items() if not bool(e.any()))


def silent_tags(ask: Questions, injector: Injector) -> tuple[tuple[int, ...], int]:
    """Tags whose logits get no gradient in any row, and how many were looked at."""
    t = ask.target
    loud = torch.zeros(t.outputs, dtype=torch.bool, device=t.y.device)
    for z in (ask.draw(1.0), ask.draw(1.0), ask.along(-t.sign(t.y), 2.0), ask.along(t.sign(t.y), 0.5)):
        _, g = injector.gradient(z)
        if g is None:
            return (), 0
        loud |= (t.flat(g) != 0).any(0)
    return tuple(int(i) for i in (~loud).nonzero().reshape(-1)), t.outputs


def unread_tags(ask: Questions, injector: Injector) -> tuple[float | None, float | None]:
    """Share of the tags whose own gradient is the same, and not zero, when they are turned over; and of those that move another's."""
    t = ask.target
    z = ask.draw(1.5)
    _, before = injector.gradient(z)
    if before is None or not bool(((t.y == 0) | (t.y == 1)).all()):
        return None, None
    a = t.flat(before)
    seen = unread = strayed = 0
    for tag in range(min(t.outputs, TAGS)):
        y = t.y.clone()
        y[:, tag] = 1 - y[:, tag]
        try:
            _, after = injector.gradient(z, t.as_labels(y))
        except Exception:  # noqa: BLE001 - the labels may be bound to something else in the batch
            return None, None
        if after is None:
            return None, None
        told = a[:, tag] != 0
        moved = (t.flat(after) - a).abs() > 1e-6 * float(a.abs().max())
        deaf = told & ~moved[:, tag]
        seen, unread, strayed = (
            seen + int(told.sum()),
            unread + int(deaf.sum()),
            strayed + int((deaf & moved.any(1)).sum()),
        )
    return (unread / seen, strayed / seen) if seen else (None, None)


def own_tokens(ask: Questions, injector: Injector) -> float | None:
    """Share of tokens whose label moves the gradient of its own token's logits, or of the one before, twice as much as any other.

    The one before: labels of causal language models are shifted by one.
    """
    t = ask.target
    if t.kind != "single" or len(t.shape) != 3 or t.labels.shape != t.shape[:2]:
        return None
    kept = t.keep.nonzero().reshape(-1).tolist()
    chosen = kept[:: max(1, len(kept) // TOKENS)][:TOKENS]
    z = ask.draw(1.5)
    _, a = injector.gradient(z)
    own = told = 0
    for token in chosen:
        y = t.y.clone()
        y[token] = (y[token] + 1) % t.outputs
        try:
            _, b = injector.gradient(z, t.as_labels(y))
        except Exception:  # noqa: BLE001
            return None
        if a is None or b is None:
            return None
        moved = (t.flat(a) - t.flat(b)).abs().sum(1)
        if not bool(moved.any()):
            continue
        told += 1
        mine = [token, token - 1] if token % t.shape[1] else [token]
        best = float(moved[mine].max())
        moved[mine] = 0
        own += best >= 2 * float(moved.max())
    return own / told if told >= 3 else None
