"""How one loss responds to chosen logits: where it is lowest, where its gradient points, which known loss it is."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from ....instruments.logit_injection import Injector
from ..record import NOT_A_NUMBER, LossCurve, LossShape
from . import label_queries
from .chosen_logits import ChosenLogits
from .known_losses import STANDARD, TABLES, gradient_of, recognised
from .targets import Targets

#: Margins of the curve: label smoothing of 0.1 has its best near 1.5 for two classes, and 1.7 for ten.
MARGINS = (0.0, 0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 32.0)
#: Logits of tokens that are compared with those of the standard losses, at most: each token has a loss of its own.
CELLS = 2**20


class LossQueries:
    """The queries of one loss; each fills in some fields of a `LossShape`."""

    def __init__(self, batch: Any, target: Targets, logits: torch.Tensor) -> None:
        self.target = target
        self.chosen = ChosenLogits(batch, target, logits)
        #: An injector was called by the loss; the loss had a graph then.
        self.fired = self.has_graph = False

    def responds(self, injector: Injector) -> tuple[bool, bool] | None:
        """Whether the loss depends on the injected logits, and has a gradient there; None: it does not change."""
        has_gradient = False
        values = []
        for z in (self.chosen.random(1.5), self.chosen.random(1.5), self.chosen.random(6.0)):
            try:
                value, g = injector.gradient(z)
            except Exception:  # noqa: BLE001 - numbers that are not valid there (a logit in place of a probability)
                return None
            self.fired = self.fired or injector.fired
            self.has_graph = self.has_graph or g is not None
            if not injector.fired:
                return None
            values.append(value)
            has_gradient = has_gradient or (g is not None and bool(g.any()))
        if has_gradient:
            return True, True
        return (True, False) if len(set(values)) > 1 else None

    # ------------------------------------------------------------------ the loss as a function of its logits
    def describe(self, shape: LossShape, injector: Injector) -> LossShape:
        """The record with everything measured of the loss."""
        z = self.chosen.random(1.5)
        one, two = float(injector.loss(z)), float(injector.loss(z, seed=1))
        random = abs(one - two) > 1e-5 * max(abs(one), 1e-3)
        if self.target.kind == "regression":
            shape = self._describe_regression(shape, injector)
        else:
            shape = self._describe_classes(shape, injector, random)
        return dataclasses.replace(shape, random=random)

    def _describe_regression(self, shape: LossShape, injector: Injector) -> LossShape:
        draws = []
        for _ in range(2):
            z = self.chosen.near_labels()
            _, g = injector.gradient(z)
            if g is not None:
                draws.append((self.target.flat(z).float(), self.target.flat(g)))
        if not draws:
            return shape
        shape = self._compare_with_standard(shape, draws)
        return dataclasses.replace(shape, own_over_other=label_queries.own_over_other(self.chosen, injector))

    def _describe_classes(self, shape: LossShape, injector: Injector, random: bool) -> LossShape:
        """Classes and tags."""
        t = self.target
        right, wrong = t.sign(t.y), t.sign(t.wrong())
        curve = self._curve(injector, right, wrong)
        shape = dataclasses.replace(shape, curve=curve, reason=NOT_A_NUMBER if curve is None else shape.reason)
        if random:
            return shape
        draws = self._gradients(injector)
        shape = self._compare_with_standard(shape, draws)
        shape = dataclasses.replace(shape, ignored_as=label_queries.ignored_as(t, draws) if draws else None)
        _, g = injector.gradient(self.chosen.random(0.05))
        if g is None:
            return shape
        shape = self._direction(shape, t.flat(g)[t.keep], right[t.keep])
        shape = dataclasses.replace(shape, uses_labels=label_queries.uses_labels(self.chosen, injector))
        if not shape.by_row:
            return dataclasses.replace(shape, own_tokens=label_queries.own_tokens(self.chosen, injector))
        shape = dataclasses.replace(
            shape,
            own_over_other=label_queries.own_over_other(self.chosen, injector),
            ignored_rows=label_queries.ignored_rows(self.chosen, injector, right, wrong),
            ignored_values=label_queries.ignored_values(self.chosen, injector),
        )
        if shape.uses_labels and t.kind in ("single", "tags"):
            query = label_queries.ignored_classes if t.kind == "single" else label_queries.ignored_tags
            ignored, tried = query(self.chosen, injector)
            shape = dataclasses.replace(shape, ignored_classes=ignored, tried_classes=tried)
        if shape.uses_labels and t.kind in ("single", "binary"):
            shape = dataclasses.replace(shape, class_weights=label_queries.class_weights(self.chosen, injector))
        if shape.uses_labels and t.kind == "tags":
            unread, crossed = label_queries.unread_tags(self.chosen, injector)
            shape = dataclasses.replace(shape, unread_tags=unread, crossed_tags=crossed)
        return shape

    def _curve(self, injector: Injector, right: torch.Tensor, wrong: torch.Tensor) -> LossCurve | None:
        """The loss of the right and of a wrong answer, by margin; None: it is NaN somewhere."""
        of_right = [float(injector.loss(self.chosen.along(right, m))) for m in MARGINS]
        of_wrong = [float(injector.loss(self.chosen.along(wrong, m))) if m else of_right[0] for m in MARGINS]
        if any(map(math.isnan, (*of_right, *of_wrong))):
            return None
        return LossCurve(MARGINS, tuple(of_right), tuple(of_wrong))

    def _gradients(self, injector: Injector, count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs of random logits and the gradient there, flat."""
        pairs = []
        for _ in range(count):
            z = self.chosen.random(1.5)
            _, g = injector.gradient(z)
            if g is not None:
                pairs.append((self.target.flat(z).float(), self.target.flat(g)))
        return pairs

    def _compare_with_standard(self, shape: LossShape, draws: list[tuple[torch.Tensor, torch.Tensor]]) -> LossShape:
        """The loss's name, and its gradient's length and direction beside the standard loss's."""
        t = self.target
        keep = t.keep if len(t.shape) < 3 else _at_most(t.keep, CELLS // (len(draws) * t.outputs))
        y = t.y[keep]
        known = recognised(t.kind, draws, t.y, keep)
        standard = TABLES[t.kind][known if known in TABLES[t.kind] and known is not None else STANDARD[t.kind]]
        a = torch.cat([g[keep].double().reshape(-1) for _, g in draws])
        b = torch.cat([gradient_of(standard, z[keep].double(), y).reshape(-1) for z, _ in draws])
        dot, squared = float((a * b).sum()), float((b * b).sum())
        lengths = float(torch.linalg.vector_norm(a)) * math.sqrt(squared)
        return dataclasses.replace(
            shape,
            known=known,
            scale=dot / squared if squared > 0 else None,
            cosine=dot / lengths if lengths > 0 else None,
        )

    def _direction(self, shape: LossShape, g: torch.Tensor, right: torch.Tensor) -> LossShape:
        """Which logits the gradient raises, near zero.

        :param g, right: gradient, and the signs of a right answer's logits, of the rows that count.
        """
        rows = g.reshape(len(g), -1)
        size = float(rows.abs().sum(1).mean()) or 1.0
        has_gradient = rows.abs().amax(1) > 0
        agreement, raised = self._raised(g, has_gradient)
        return dataclasses.replace(
            shape,
            slope=-float((g * right.to(g.device)).sum()),
            shift=float(rows.sum(1).abs().mean()) / size if self.target.kind == "single" else None,
            agreement=agreement,
            agreement_rows=int(has_gradient.sum()),
            raised_classes=raised,
        )

    def _raised(self, g: torch.Tensor, has_gradient: torch.Tensor) -> tuple[float | None, tuple[int, ...]]:
        """Share of rows (entries) whose label's logit is raised most, and for each class the class that is raised."""
        t = self.target
        y = t.y[t.keep]
        if not bool(has_gradient.any()):
            return None, ()
        if t.kind != "single":
            agrees = (g < 0) == (y > 0.5)
            return float(agrees[g != 0].float().mean()), ()
        most = g.argmin(-1)
        raised = [-1] * t.outputs
        for c in torch.unique(y[has_gradient]).tolist():
            classes = torch.unique(most[has_gradient & (y == c)])
            raised[c] = int(classes[0]) if len(classes) == 1 else -1
        return float((most == y)[has_gradient].float().mean()), tuple(raised)

    # ------------------------------------------------------------------ what follows the last layer
    def last_layer_levels(self, shape: LossShape, injector: Injector, name: str) -> LossShape:
        """The logits that the last layer's outputs become."""
        try:
            ones = torch.ones(self.chosen.shape, device=self.chosen.device)
            logits = [injector.logits(v * ones) for v in (1.0, 100.0, -1.0, -100.0)]
            if not injector.fired or any(v is None or v.shape != self.chosen.shape for v in logits):
                return shape
            reach = reach_of(injector, ones)
        except Exception:  # noqa: BLE001 - another shape in between: it is not the last layer after all
            return shape
        high1, high2, low1, low2 = (float(v.mean()) for v in logits if v is not None)
        return dataclasses.replace(
            shape,
            last_layer=name,
            high_logits=(high1, high2),
            low_logits=(low1, low2),
            reach=reach,
            nothing_passes_by=_same_in_all_rows(logits[0]),
        )

    def last_layer_curve(self, shape: LossShape, injector: Injector) -> LossShape:
        """The loss along the last layer's outputs, where they are not the logits themselves."""
        t = self.target
        try:
            return dataclasses.replace(shape, last_layer_curve=self._curve(injector, t.sign(t.y), t.sign(t.wrong())))
        except Exception:  # noqa: BLE001 - numbers that the rest of the model cannot take
            return shape


def _same_in_all_rows(logits: torch.Tensor | None) -> bool | None:
    """Whether all rows have the same logits; None: there is one row."""
    if logits is None or not logits.dim() or len(logits) < 2:
        return None
    return float((logits - logits[:1]).abs().max()) <= 1e-5 * max(1.0, float(logits.abs().max()))


def _at_most(keep: torch.Tensor, count: int) -> torch.Tensor:
    """Of these rows so many, from all over, and not fewer than 8."""
    chosen = keep.nonzero().reshape(-1)
    if len(chosen) <= max(8, count):
        return keep
    some = torch.zeros_like(keep)
    some[chosen[:: -(-len(chosen) // max(8, count))]] = True
    return some


def reach_of(injector: Injector, logits: torch.Tensor) -> float | None:
    """Largest difference between two logits that outputs of +100 and -100 make; one logit: between two rows."""
    several = logits.dim() > 1 and logits.shape[-1] > 1
    z = torch.full_like(logits, -100.0)
    z[..., ::2] = 100.0
    try:
        if several:
            wide = injector.logits(z)
            return None if wide is None else float((wide.amax(-1) - wide.amin(-1)).max())
        high, low = injector.logits(z.abs()), injector.logits(-z.abs())
        return None if high is None or low is None else float((high - low).abs().max())
    except Exception:  # noqa: BLE001 - numbers that the rest of the model cannot take
        return None
