"""The questions that are asked of one loss: where is it least, whom does it push, which rows and classes count?"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch

from ....instruments.logit_injection import Injector
from ..record import LossCurve, LossShape
from .known_losses import STANDARD, TABLES, gradient_of, recognised
from .targets import Targets, weightless

if TYPE_CHECKING:
    pass

#: Margins of the curve: label smoothing of 0.1 has its best near 1.5 for two classes, and 1.7 for ten.
MARGINS = (0.0, 0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 32.0)
#: Passes over other labels, to see every class.
CLASS_PASSES = 4
#: Rounds in which rows without a gradient are made to matter, at most.
ROUNDS = 8


class Questions:
    """The questions that are asked of one loss."""

    def __init__(self, batch: Any, target: Targets, logits: torch.Tensor) -> None:
        self.batch, self.target, self.shape = batch, target, logits.shape
        self.device = logits.device
        self.generator = torch.Generator().manual_seed(0)
        self.fired = self.graph = False

    def draw(self, spread: float) -> torch.Tensor:
        """Random logits of this spread."""
        return spread * torch.randn(self.shape, generator=self.generator).to(self.device)

    def along(self, sign: torch.Tensor, margin: float) -> torch.Tensor:
        """Logits of this margin in the direction of the signs."""
        return (margin * sign).reshape(self.shape).to(self.device)

    def takes(self, injector: Injector) -> tuple[bool, bool] | None:
        """Whether the loss depends on what is put at this site, and has a gradient there; None: it does not notice."""
        changed, seen = False, False
        values = []
        for z in (self.draw(1.5), self.draw(1.5), self.draw(6.0)):
            try:
                value, g = injector.gradient(z)
            except Exception:  # noqa: BLE001 - numbers that cannot stand there (a logit where a probability is asked for)
                return None
            self.fired = self.fired or injector.fired
            self.graph = self.graph or g is not None
            if not injector.fired:
                return None
            values.append(value)
            seen = seen or (g is not None and bool(g.any()))
        changed = len(set(values)) > 1
        if seen:
            return True, True
        return (True, False) if changed else None

    # -------------------------------------------------------------- the loss as a function of its logits
    def fill(self, shape: LossShape, injector: Injector) -> LossShape:
        """The record with the answers about the loss."""
        t = self.target
        z = self.draw(1.5)
        one, two = float(injector.loss(z)), float(injector.loss(z, seed=1))
        noisy = abs(one - two) > 1e-5 * max(abs(one), 1e-3)
        shape = self.regression(shape, injector) if t.kind == "regression" else self.classes(shape, injector, noisy)
        return dataclasses.replace(shape, random=noisy)

    def draws(self, injector: Injector, count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs of random logits and the gradient there, flat."""
        found = []
        for _ in range(count):
            z = self.draw(1.5)
            _, g = injector.gradient(z)
            if g is not None:
                found.append((self.target.flat(z).float(), self.target.flat(g)))
        return found

    def beside(self, shape: LossShape, draws: list[tuple[torch.Tensor, torch.Tensor]]) -> LossShape:
        """Beside the textbook loss of the same logits."""
        t = self.target
        y = t.y[t.keep]
        known = recognised(t.kind, draws, t.y, t.keep)
        standard = TABLES[t.kind][known if known in TABLES[t.kind] and known is not None else STANDARD[t.kind]]
        a = torch.cat([g[t.keep].double().reshape(-1) for _, g in draws])
        b = torch.cat([gradient_of(standard, z[t.keep].double(), y).reshape(-1) for z, _ in draws])
        dot, size = float((a * b).sum()), float((b * b).sum())
        length = float(torch.linalg.vector_norm(a)) * math.sqrt(size)
        return dataclasses.replace(
            shape,
            known=known,
            scale=dot / size if size > 0 else None,
            cosine=dot / length if length > 0 else None,
        )

    def classes(self, shape: LossShape, injector: Injector, noisy: bool) -> LossShape:
        """Questions about classes and tags."""
        t = self.target
        sign, other = t.sign(t.y), t.sign(t.wrong())
        shape = dataclasses.replace(shape, curve=self.curve(injector, sign, other))
        if noisy:
            return shape
        shape = self.beside(shape, self.draws(injector))
        near = self.draw(0.05)
        _, g = injector.gradient(near)
        if g is None:
            return shape
        flat = t.flat(g)[t.keep]
        told = flat.reshape(len(flat), -1).abs().amax(1) > 0
        slope = -float((flat * sign[t.keep].to(flat.device)).sum())
        row = flat.reshape(len(flat), -1)
        size = float(row.abs().sum(1).mean()) or 1.0
        agreement, count, pushed = self.pushes(flat, told)
        shape = dataclasses.replace(
            shape,
            slope=slope,
            shift=float(row.sum(1).abs().mean()) / size if t.kind == "single" else None,
            agreement=agreement,
            agreeing=count,
            pushed=pushed,
        )
        shape = dataclasses.replace(shape, uses_labels=self.label_matters(injector))
        if not shape.by_row:
            return dataclasses.replace(shape, own_tokens=own_tokens(self, injector))
        shape = dataclasses.replace(
            shape,
            own_over_other=self.coupling(injector),
            silent_rows=self.silent_rows(injector, sign, other),
            silent_values=silent_values(self, injector),
        )
        if shape.uses_labels and t.kind in ("single", "tags"):
            silent, tried = self.silent_classes(injector) if t.kind == "single" else silent_tags(self, injector)
            shape = dataclasses.replace(shape, silent_classes=silent, tried_classes=tried)
        if shape.uses_labels and t.kind == "tags":
            unread, strayed = unread_tags(self, injector)
            shape = dataclasses.replace(shape, unread_tags=unread, strayed_tags=strayed)
        return shape

    def curve(self, injector: Injector, sign: torch.Tensor, other: torch.Tensor) -> LossCurve:
        """The loss of the right and of a wrong answer, by margin."""
        right = [float(injector.loss(self.along(sign, m))) for m in MARGINS]
        wrong = [float(injector.loss(self.along(other, m))) if m else right[0] for m in MARGINS]
        return LossCurve(MARGINS, tuple(right), tuple(wrong))

    def pushes(self, g: torch.Tensor, told: torch.Tensor) -> tuple[float | None, int, tuple[int, ...]]:
        """Share of rows (entries) whose label is pushed up most, how many rows told, and the class pushed up for each class."""
        t = self.target
        y = t.y[t.keep]
        if not bool(told.any()):
            return None, 0, ()
        if t.kind == "single":
            up = g.argmin(-1)
            share = float((up == y)[told].float().mean())
            pushed = []
            for c in range(t.outputs):
                found = torch.unique(up[told & (y == c)])
                pushed.append(int(found[0]) if len(found) == 1 else -1)
            return share, int(told.sum()), tuple(pushed)
        right = (g < 0) == (y > 0.5)
        return float(right[g != 0].float().mean()), int(told.sum()), ()

    def label_matters(self, injector: Injector) -> bool | None:
        """Whether the loss changes when all labels do; None: it cannot be asked."""
        t = self.target
        z = self.draw(1.5)
        try:
            return abs(float(injector.loss(z, t.as_labels(t.wrong()))) - float(injector.loss(z))) > 0
        except Exception:  # noqa: BLE001 - the labels may be bound to something else in the batch
            return None

    def silent_rows(self, injector: Injector, sign: torch.Tensor, other: torch.Tensor) -> tuple[int, ...]:
        """Rows that get no gradient at random logits, nor where they alone are wrong."""
        t = self.target
        silent = t.keep.clone()
        for _ in range(2):
            _, g = injector.gradient(self.draw(1.0))
            if g is not None:
                silent &= t.flat(g).reshape(len(silent), -1).abs().amax(1) == 0
        silent &= ~weightless(self.batch, len(silent)).to(silent.device)
        if t.kind == "tags":
            # a softmax over tags has nothing to say where there is none, a ranking where there are none or all
            silent &= (t.y.sum(-1) > 0) & (t.y.sum(-1) < t.outputs)
        for _ in range(ROUNDS):  # a loss that picks k hard examples picks k of these in each round, or easy ones
            left = int(silent.sum())
            shaped = silent.reshape(-1, *[1] * (sign.dim() - 1))
            for mine, theirs in ((2.0 * other, 4.0 * sign), (0.5 * sign, 2.0 * other)):
                _, g = injector.gradient(torch.where(shaped, mine, theirs).reshape(self.shape)) if left else (0.0, None)
                if g is not None:
                    silent &= t.flat(g).reshape(len(silent), -1).abs().amax(1) == 0
            if int(silent.sum()) in (0, left):
                break
        return tuple(int(i) for i in silent.nonzero().reshape(-1))

    def silent_classes(self, injector: Injector) -> tuple[tuple[int, ...], int]:
        """Classes whose rows get no gradient, whatever the row."""
        t = self.target
        n = int(t.keep.sum())
        per = min(t.outputs, n)
        silent: list[int] = []
        tried = min(t.outputs, per * CLASS_PASSES)
        for start in range(0, tried, per):
            y = t.y.clone()
            y[t.keep] = start + torch.arange(n, device=y.device) % per
            y = y.clamp(max=t.outputs - 1)
            try:
                _, g = injector.gradient(self.draw(1.0), t.as_labels(y))
            except Exception:  # noqa: BLE001
                return (), 0
            if g is None:
                return (), 0
            quiet_rows = t.flat(g).reshape(len(y), -1).abs().amax(1) == 0
            for c in range(start, min(start + per, t.outputs)):
                rows = t.keep & (y == c)
                if bool(rows.any()) and bool(quiet_rows[rows].all()):
                    silent.append(c)
        return tuple(silent), tried

    # -------------------------------------------------------------- numbers
    def regression(self, shape: LossShape, injector: Injector) -> LossShape:
        """Questions about numbers."""
        t = self.target
        draws = []
        for _ in range(2):
            z = (t.y + self.draw(1.0).reshape(t.y.shape)).reshape(self.shape)
            _, g = injector.gradient(z)
            if g is not None:
                draws.append((t.flat(z).float(), t.flat(g)))
        if not draws:
            return shape
        shape = self.beside(shape, draws)
        return dataclasses.replace(shape, own_over_other=self.coupling(injector))

    def coupling(self, injector: Injector) -> float | None:
        """Change one row's label: which rows' gradients notice?"""
        t = self.target
        n = len(t.y)
        if n < 4 or not bool(t.keep.all()):
            return None
        number = t.kind == "regression"
        z = (t.y + self.draw(1.0).reshape(t.y.shape)).reshape(self.shape) if number else self.draw(1.0)
        spread = float(t.y.std()) or 1.0 if number else 0.0
        other = t.y + spread if number else t.wrong()
        _, a = injector.gradient(z)
        ratios = []
        for row in (0, n // 2, n - 1):
            changed = t.y.clone()
            changed[row] = other[row]
            try:
                _, b = injector.gradient(z, t.as_labels(changed))
            except Exception:  # noqa: BLE001 - the labels may be bound to something else in the batch
                return None
            if a is None or b is None:
                return None
            moved = (a - b).reshape(n, -1).abs().sum(1)
            others = float(moved.sum() - moved[row]) / (n - 1)
            if others > 1e-6 * float(a.abs().max()):
                ratios.append(float(moved[row]) / others)
        return max(ratios) if len(ratios) == 3 else None

    # -------------------------------------------------------------- what stands behind the last layer
    def levels(self, shape: LossShape, injector: Injector, name: str) -> LossShape:
        """The logits that the last layer's outputs become."""
        try:
            ones = torch.ones(self.shape, device=self.device)
            found = [injector.logits(v * ones) for v in (1.0, 100.0, -1.0, -100.0)]
            if not injector.fired or any(v is None or v.shape != self.shape for v in found):
                return shape
            reach = reach_of(injector, ones)
        except Exception:  # noqa: BLE001 - another shape in between: it is not the last layer after all
            return shape
        high1, high2, low1, low2 = (float(v.mean()) for v in found if v is not None)
        return dataclasses.replace(shape, deep_site=name, high=(high1, high2), low=(low1, low2), reach=reach)

    def deep(self, shape: LossShape, injector: Injector) -> LossShape:
        """The loss along the last layer's outputs, where they are not the logits themselves."""
        t = self.target
        try:
            return dataclasses.replace(shape, deep_curve=self.curve(injector, t.sign(t.y), t.sign(t.wrong())))
        except Exception:  # noqa: BLE001
            return shape


def reach_of(injector: Injector, logits: torch.Tensor) -> float | None:
    """Largest difference between two logits that outputs of +100 and -100 make; one logit: between two rows."""
    wide = logits.dim() > 1 and logits.shape[-1] > 1
    z = torch.full_like(logits, -100.0)
    z[..., ::2] = 100.0
    try:
        if wide:
            found = injector.logits(z)
            return None if found is None else float((found.amax(-1) - found.amin(-1)).max())
        high, low = injector.logits(z.abs()), injector.logits(-z.abs())
        return None if high is None or low is None else float((high - low).abs().max())
    except Exception:  # noqa: BLE001
        return None


# ---- folded from training.probes.entries
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
