"""Put chosen logits in front of the loss, and chosen outputs behind the last layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from ...records import LossShape
from ...records.loss_shape import LossCurve
from ..batches import IGNORED, row_count, split, take_rows, to_device
from ..state import quiet
from .battery import Bench, Experiment
from .injection import Injector, sites
from .textbook import STANDARD, TABLES, gradient_of, recognised

#: Rows looked at.
ROWS = 16
#: Margins of the curve: label smoothing of 0.1 has its best near 1.5 for two classes, and 1.7 for ten.
MARGINS = (0.0, 0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 32.0)
#: Passes over other labels, to see every class.
CLASS_PASSES = 4
#: Rounds in which rows without a gradient are made to matter, at most.
ROUNDS = 8
#: Full passes through the model that all this takes: finding the logits, the site, and the first time each; the rest is remembered.
PASSES = 6


class LossShapeExperiment(Experiment):
    """Put chosen logits in front of the loss, and chosen outputs behind the last layer."""

    name = "loss_shape"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        batch = bench.probe[0]
        inputs, labels = split(batch)
        count = len(labels) if isinstance(labels, torch.Tensor) and labels.dim() else row_count(inputs) or 1
        self.batch = take_rows(batch, range(ROWS)) if count > ROWS else batch
        self.whole = batch
        self.rows = min(count, ROWS)
        self.shape = LossShape(rows=self.rows)
        self.deep: tuple[Injector, torch.Tensor] | None = None

    def cost(self) -> float:
        return float(PASSES * self.rows)

    def before(self) -> None:
        bench, (found, norm) = self.bench, _tightest_norm(self.bench)
        with quiet(bench.model):
            try:
                logits, order, last = self._look()
            except Exception:
                if self.batch is self.whole:
                    raise
                self.batch = self.whole
                logits, order, last = self._look()
            try:
                shape = _measured(bench, self.batch, logits, order, last)
            except Exception as error:  # noqa: BLE001 - what else is known does not depend on it
                shape = LossShape(
                    rows=self.rows, reason=f"asking the loss raised {type(error).__name__}: {str(error)[:160]}"
                )
            self.shape = dataclasses.replace(
                shape,
                norm_values=found,
                norm_name=norm,
                **_spread(logits, "first"),
                **_labels(bench),
            )

    def _look(self) -> tuple[torch.Tensor | None, list[nn.Module], nn.Module | None]:
        bench = self.bench
        logits = bench.reader.logits(self.batch)
        if logits is None:
            return None, [], None
        order, last = sites(bench.model, bench.reader, self.batch, logits)
        return logits, order, last

    def after(self) -> None:
        with quiet(self.bench.model):
            logits = self.bench.reader.logits(self.batch)
            reach = None
            if self.shape.reach is not None and logits is not None:
                site = dict(self.bench.model.named_modules()).get(self.shape.deep_site)
                if site is not None:
                    reach = _reach(Injector(self.bench.model, self.bench.reader, self.batch, site), logits)
            self.shape = dataclasses.replace(self.shape, reach_last=reach, **_spread(logits, "last"))

    def record(self) -> LossShape | None:
        return self.shape


# ------------------------------------------------------------------ reading
@dataclasses.dataclass(frozen=True)
class _Targets:
    """Labels as the curves need them, flat: one row of ``y`` a row of logits that counts."""

    kind: str
    #: Classes (single, binary: long), tags or numbers (float), in the shape of flat logits' rows.
    y: torch.Tensor
    #: Rows that count (label not ignored).
    keep: torch.Tensor
    #: As the batch has them.
    labels: torch.Tensor
    shape: torch.Size
    outputs: int

    def flat(self, z: torch.Tensor) -> torch.Tensor:
        return z.reshape(-1, self.outputs) if self.kind != "binary" and self.outputs > 1 else z.reshape(-1)

    def sign(self, y: torch.Tensor) -> torch.Tensor:
        """+1 where the logit should be high, -1 where low, flat."""
        if self.kind == "single":
            return 2.0 * F.one_hot(y.clamp(min=0), self.outputs).float() - 1
        return 2.0 * y.float() - 1

    def wrong(self) -> torch.Tensor:
        """Another class, the other tags."""
        if self.kind == "single":
            return (self.y + 1) % self.outputs
        return 1 - self.y

    def as_labels(self, y: torch.Tensor) -> torch.Tensor:
        """Flat classes in the form in which the batch has its labels; ignored ones stay."""
        if self.kind == "single" and self.labels.shape == self.shape and self.labels.is_floating_point():
            return F.one_hot(y, self.outputs).to(self.labels.dtype).reshape(self.labels.shape)
        new = y.to(self.labels.dtype).reshape(self.labels.shape)
        if self.kind in ("single", "binary") and not bool(self.keep.all()):
            new = torch.where(self.keep.reshape(self.labels.shape), new, self.labels)
        return new


def _targets(bench: Bench, batch: Any, logits: torch.Tensor) -> _Targets | str:
    """How labels and logits belong together; a reason, if they do not."""
    labels, task = split(batch)[1], bench.reader.task
    if not isinstance(labels, torch.Tensor) or task is None:
        return "labels and logits could not be matched"
    outputs = logits.shape[-1] if logits.dim() > 1 else 1
    if task == "single_label" and (logits.numel() == labels.numel() or outputs == 1):
        kind, y = "binary", labels.reshape(-1).long()
    elif task == "single_label":
        kind, y = "single", labels.reshape(-1).long()
    elif task == "multi_label":
        kind, y = "tags", labels.reshape(-1, outputs).float()
        if bench.intent.task != "multi_label" and _one_hot_everywhere(bench):
            kind, y = "single", labels.reshape(-1, outputs).argmax(-1)
    else:
        kind = "regression"
        y = labels.float().reshape(-1, outputs) if outputs > 1 else labels.float().reshape(-1)
    keep = y != IGNORED if kind in ("single", "binary") else torch.ones(len(y), dtype=torch.bool, device=y.device)
    top = 2 if kind == "binary" else outputs
    if kind in ("single", "binary") and (not bool(keep.any()) or int(y[keep].min()) < 0 or int(y[keep].max()) >= top):
        return f"a label lies outside 0 to {top - 1}: the loss must read them in its own way"
    if math.prod(logits.shape) != len(y) * (1 if y.dim() == 1 and kind != "single" else outputs):
        return f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} could not be matched"
    return _Targets(kind, y, keep, labels, logits.shape, outputs)


def _one_hot_everywhere(bench: Bench) -> bool:
    rows = [split(b)[1] for b in bench.batches.known[:8]]
    return all(isinstance(y, torch.Tensor) and bool((y.float().sum(-1) == 1).all()) for y in rows)


# ------------------------------------------------------------------ measuring
def _measured(
    bench: Bench, batch: Any, logits: torch.Tensor | None, order: Sequence[nn.Module], last: nn.Module | None
) -> LossShape:
    rows = row_count(split(batch)[0]) or 0
    if logits is None:
        return LossShape(rows=rows, reason="the logits are not to be had")
    target = _targets(bench, batch, logits)
    if isinstance(target, str):
        return LossShape(rows=rows, reason=target)
    names = {m: n for n, m in bench.model.named_modules()}
    shape = LossShape(rows=rows, kind=target.kind, outputs=target.outputs, by_row=logits.dim() < 3)
    own = bench.reader._own_loss
    probe = _Probe(bench, batch, target, logits)
    behind = None if last is None or last is bench.model else Injector(bench.model, bench.reader, batch, last)
    if last is not None and behind is not None:
        shape = probe.levels(shape, behind, names[last])
    form = _form(logits) or ("probabilities" if _squashed(shape) else None)
    shape = dataclasses.replace(shape, form=form)
    if form == "ones":
        return dataclasses.replace(shape, depends=False, differentiable=True)
    candidates = [Injector(bench.model, bench.reader, batch, m) for m in order if not (m is bench.model and own)]
    if behind is not None and shape.deep_site and form is not None:
        candidates = [behind]  # any number can stand there; not so where the probabilities come out
    elif form == "over_batch":
        candidates = []
    elif form is not None:
        candidates = [
            c.through(torch.log_softmax if form == "log_probabilities" else torch.softmax) for c in candidates
        ]
    elif behind is not None and all(c.site is not last for c in candidates):
        candidates.append(behind)  # pooled after it, or the loss is computed inside the model
    for injector in candidates:
        took = probe.takes(injector)
        if took is None:
            continue
        shape = dataclasses.replace(shape, site=names[injector.site], depends=took[0], differentiable=took[1])
        shape = probe.fill(shape, injector) if took[1] else shape
        break
    else:
        # the model itself gives bare logits, and the loss called it: what it gives has no part in the loss
        bare = (
            form is None
            and not own
            and bench.model in order
            and bench.reader.loss_fn is not None
            and _bare(bench, batch)
        )
        if bare and probe.fired:
            shape = dataclasses.replace(shape, depends=False, differentiable=probe.graph)
        else:
            shape = dataclasses.replace(
                shape,
                reason="chosen logits could not be put in front of the loss: it does not take them from one module",
            )
    if behind is not None and shape.deep_site and shape.site != shape.deep_site and target.kind != "regression":
        shape = probe.deep(shape, behind)
    return shape


def _form(logits: torch.Tensor) -> str | None:
    """What the model gives in place of logits, where the rows say so: they sum to one, or their exponentials do."""
    z = logits.detach().float()
    if logits.dim() == 2 and logits.shape[-1] == 1 and bool((z == 1).all()):
        return "ones"
    if logits.dim() < 2 or logits.shape[-1] < 2:
        return None
    one = torch.ones(z.shape[:-1], device=z.device)
    if torch.allclose(z.exp().sum(-1), one, atol=1e-4):
        return "log_probabilities"
    if bool((z >= 0).all()) and torch.allclose(z.sum(-1), one, atol=1e-4):
        return "probabilities"
    if logits.dim() == 2 and len(z) > 2:
        column = torch.ones(z.shape[-1], device=z.device)
        if torch.allclose(z.exp().sum(0), column, atol=1e-4) or torch.allclose(z.sum(0), column, atol=1e-4):
            return "over_batch"
    return None


def _squashed(shape: LossShape) -> bool:
    """The last layer goes through a sigmoid."""
    if shape.high is None or shape.low is None or shape.kind == "regression":
        return False
    return abs(shape.high[1] - 1) < 1e-3 and abs(shape.low[1]) < 1e-3 and abs(shape.high[0] - 0.7311) < 1e-3


def _bare(bench: Bench, batch: Any) -> bool:
    seen: list[bool] = []
    handle = bench.model.register_forward_hook(lambda _, __, out: seen.append(isinstance(out, torch.Tensor)))
    try:
        bench.reader.loss(batch)
    finally:
        handle.remove()
    return bool(seen) and all(seen)


class _Probe:
    """The questions that are asked of one loss."""

    def __init__(self, bench: Bench, batch: Any, target: _Targets, logits: torch.Tensor) -> None:
        self.bench, self.batch, self.target, self.shape = bench, batch, target, logits.shape
        self.device = logits.device
        self.generator = torch.Generator().manual_seed(0)
        self.fired = self.graph = False

    def draw(self, spread: float) -> torch.Tensor:
        return spread * torch.randn(self.shape, generator=self.generator).to(self.device)

    def along(self, sign: torch.Tensor, margin: float) -> torch.Tensor:
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
        t = self.target
        z = self.draw(1.5)
        one, two = float(injector.loss(z)), float(injector.loss(z, seed=1))
        noisy = abs(one - two) > 1e-5 * max(abs(one), 1e-3)
        if t.kind == "regression":
            shape = self.regression(shape, injector)
        else:
            shape = self.classes(shape, injector, noisy)
        return dataclasses.replace(shape, random=noisy)

    def draws(self, injector: Injector, count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
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
        if shape.by_row:
            shape = dataclasses.replace(shape, own_over_other=self.coupling(injector))
            shape = dataclasses.replace(shape, silent_rows=self.silent_rows(injector, sign, other))
            if t.kind == "single" and shape.uses_labels:
                silent, tried = self.silent_classes(injector)
                shape = dataclasses.replace(shape, silent_classes=silent, tried_classes=tried)
        return shape

    def curve(self, injector: Injector, sign: torch.Tensor, other: torch.Tensor) -> LossCurve:
        right = [float(injector.loss(self.along(sign, m))) for m in MARGINS]
        wrong = [float(injector.loss(self.along(other, m))) if m else right[0] for m in MARGINS]
        return LossCurve(MARGINS, tuple(right), tuple(wrong))

    def pushes(self, g: torch.Tensor, told: torch.Tensor) -> tuple[float | None, int, tuple[int, ...]]:
        t = self.target
        y = t.y[t.keep]
        if not bool(told.any()):
            return None, 0, ()
        if t.kind == "single":
            up = g.argmin(-1)
            share = float((up == y)[told].float().mean())
            pushed = []
            for c in range(t.outputs):
                found = up[told & (y == c)].unique()
                pushed.append(int(found[0]) if len(found) == 1 else -1)
            return share, int(told.sum()), tuple(pushed)
        right = (g < 0) == (y > 0.5)
        return float(right[g != 0].float().mean()), int(told.sum()), ()

    def label_matters(self, injector: Injector) -> bool | None:
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
        silent &= ~_weightless(self.batch, len(silent)).to(silent.device)
        if t.kind == "tags":
            silent &= t.y.sum(-1) > 0  # a softmax over tags has nothing to say where there is none; its name says it
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
            reach = _reach(injector, ones)
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


def _reach(injector: Injector, logits: torch.Tensor) -> float | None:
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


def _weightless(batch: Any, rows: int) -> torch.Tensor:
    """Rows to which a vector in the batch (sample weights, a mask) gives zero."""
    found = torch.zeros(rows, dtype=torch.bool)
    inputs, _ = split(batch)
    values = (
        inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, (tuple, list)) else [inputs]
    )
    for v in values:
        if isinstance(v, torch.Tensor) and v.numel() == rows:
            v = v.reshape(-1).cpu()
            if v.is_floating_point() or bool(((v == 0) | (v == 1)).all()):
                found |= v == 0
    return found


def _spread(logits: torch.Tensor | None, when: str) -> dict[str, Any]:
    if logits is None or len(logits) < 2:
        return {}
    z = logits.detach().float().reshape(len(logits), -1)
    centred = z - z.mean(1, keepdim=True) if z.shape[1] > 1 else z
    return {
        f"spread_{when}": float(centred.std(0).mean()),
        f"size_{when}": float(centred.pow(2).mean().sqrt()),
    }


def _labels(bench: Bench) -> dict[str, Any]:
    """Range of the labels at hand: of classes, or of numbers."""
    if bench.reader.task == "regression":
        ys = [y for b in bench.batches.known if isinstance(y := split(b)[1], torch.Tensor) and y.numel()]
        if not ys:
            return {}
        low, high = min(float(y.min()) for y in ys), max(float(y.max()) for y in ys)
        return {"label_range": (low, high), "labels_seen": sum(int(y.numel()) for y in ys)}
    if bench.reader.task != "single_label":
        return {}
    found = [y for b in bench.batches.known if isinstance(y := split(b)[1], torch.Tensor) and not y.is_floating_point()]
    counted = [y[y != IGNORED] for y in found]
    counted = [y for y in counted if y.numel()]
    if not counted:
        return {}
    return {
        "largest_label": max(int(y.max()) for y in counted),
        "labels_seen": sum(int(y.numel()) for y in counted),
    }


def _tightest_norm(bench: Bench) -> tuple[int | None, str]:
    """Fewest values a channel that a BatchNorm in training mode sees, in the first batch as it is trained on."""
    norms = {
        m: n for n, m in bench.model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training
    }
    if not norms:
        return None, ""
    seen: list[tuple[int, str]] = []

    def look(module: nn.Module, inputs: Any) -> None:
        x = inputs[0]
        if isinstance(x, torch.Tensor) and x.dim() > 1 and x.shape[1]:
            seen.append((x.numel() // x.shape[1], norms[module]))

    handles = [m.register_forward_pre_hook(look) for m in norms]
    try:
        with quiet(bench.model):
            bench.reader.logits(to_device(bench.probe[0], bench.device))
    finally:
        for handle in handles:
            handle.remove()
    return min(seen) if seen else (None, "")
