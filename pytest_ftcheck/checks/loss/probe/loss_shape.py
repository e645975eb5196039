"""Puts chosen logits in place of the model's before the loss, and chosen outputs in place of the last layer's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ....core.formatting import text_of
from ....instruments.batches import row_count, split, take_rows, to_device
from ....instruments.logit_injection import Injector, sites
from ....instruments.parameter_roles import in_part
from ....instruments.probe import Probe, ProbeContext
from ....instruments.row_hashes import vocabulary_of
from ....instruments.tasks import IGNORED
from ....instruments.uncompiled import compiled
from ....instruments.undisturbed import perturbed, quiet
from ....instruments.work import PER_OUTPUT
from ..record import SOUND, LossShape
from .class_start import centred, logits_of_class, size_of
from .largest_margin import largest_margin, margin_of, output_bounds
from .loss_queries import LossQueries, reach_of
from .targets import OF_EMBEDDINGS, Targets, targets_of, with_clear_labels

#: Rows used; where a row has many outputs so many that there are at most ``CELLS`` logits, but not fewer than ``FEW_ROWS``.
ROWS, FEW_ROWS = 16, 4
CELLS = 2**19
#: The queries of a loss last as long as so many forward passes of it: 46 passes without gradients, 24 with, the logits that are drawn and
#: copied for each, and the standard losses beside them. Measured by ``benchmarks/scale.py --queries``: 765 with 10,000 outputs, 502 with
#: 100,000; with fewer it does not matter.
QUERIES = 600
#: Passes in all: what stands before the site is cached, but of thousands of small modules each is called all the same.
CALLS = 70
#: Losses that are lower the larger the margin of the right logit is.
UNBOUNDED = ("cross_entropy", "bce")
#: Full passes through the model: finding the logits and the site, and the first pass of each query; the rest is cached. Where what stands
#: before the head is recalled: of rows that are no whole batch the logits, before and after.
PASSES, RECALLED_PASSES = 6, (0, 2)
#: Rows whose margin is raised by gradient ascent, and the forward and backward passes that this takes for a linear last layer, at most.
ASCENT_ROWS, ASCENT_PASSES = 2, 6
#: Different whole numbers up to which labels may be classes.
MOST_LEVELS = 32
#: Logits of this size (rms around a row's mean) are large compared with those of a head near zero.
LARGE = 1.0


class LossShapeProbe(Probe):
    """Measures the loss at chosen logits, and the logits at chosen outputs of the last layer."""

    name = "loss_shape"
    order = 30

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        batch = context.fixed_batches[0]
        inputs, labels = split(batch)
        count = len(labels) if isinstance(labels, torch.Tensor) and labels.dim() else row_count(inputs) or 1
        most = max(FEW_ROWS, min(ROWS, CELLS // max(1, context.reader.outputs)))
        self.batch = take_rows(batch, range(most)) if count > most else batch
        self.whole = batch
        self.rows = min(count, most)
        self.shape = LossShape(rows=self.rows)

    def cost(self) -> float:
        """Passes of rows through the model; the queries of the loss beyond these, by its outputs."""
        queries = QUERIES * PER_OUTPUT * self.context.reader.outputs * self.rows / self.context.row_work
        whole = RECALLED_PASSES[self.batch is not self.whole]
        passes = whole + (PASSES - whole) * self.context.head_share
        ascent = 0 if self.context.head_costs_little else 3 * ASCENT_PASSES * ASCENT_ROWS
        return float(passes * self.rows + ascent) + queries + CALLS * self.context.call_rows

    def before(self) -> None:
        context, (norm_values, norm_name) = self.context, _tightest_norm(self.context)
        with quiet(context.model):
            try:
                logits, order, last = self._find_sites()
            except Exception:
                if self.batch is self.whole:
                    raise
                self.batch = self.whole
                logits, order, last = self._find_sites()
            try:
                with context.recalling(but=[*order, *([] if last is None else [last])]):
                    shape = _measure(context, self.batch, logits, order, last)
            except Exception as error:  # noqa: BLE001 - the other measurements do not depend on it
                shape = LossShape(
                    rows=self.rows,
                    reason=f"calling the loss with chosen logits raised {type(error).__name__}: {text_of(error)[:160]}",
                )
            labels = _labels(context)
            self.shape = dataclasses.replace(
                shape,
                of_minus=None if shape.of_minus is None else dataclasses.replace(shape.of_minus, **labels),
                other_terms=self._other_terms(shape),
                largest_margin=self._largest_margin(shape),
                output_bounds=self._output_bounds(shape),
                scale_free=self._scale_free(logits),
                size_of_class=None if logits is None else logits_of_class(context, self.batch, logits),
                norm_values=norm_values,
                norm_name=norm_name,
                **_spread(logits, "first"),
                **labels,
            )

    def _largest_margin(self, shape: LossShape) -> float | None:
        """The largest margin for any weights, where the loss is one that is lower the larger the margin is."""
        context = self.context
        if shape.known not in UNBOUNDED or shape.form is not None or shape.random or compiled(context.model):
            return None
        try:
            if context.head_costs_little:
                # with respect to the head's weights, what stands before it is a constant
                with context.recalling(constant=True):
                    margin = self._margin(self.whole, head_alone=True)
                if margin == math.inf:
                    return margin
            return self._margin(take_rows(self.batch, range(min(ASCENT_ROWS, self.rows))))
        except Exception:  # noqa: BLE001 - a model without gradients in evaluation mode, or for rows as few as these
            return None

    def _margin(self, batch: Any, *, head_alone: bool = False) -> float | None:
        context = self.context
        logits = context.reader.logits(batch)
        target = None if logits is None else targets_of(context, batch, logits)
        if target is None or isinstance(target, str):
            return None
        return largest_margin(context.model, context.reader, batch, target, context.head, head_alone=head_alone)

    def _output_bounds(self, shape: LossShape) -> tuple[float, float] | None:
        """The bounds of numbers that are predicted, where no last layer shows them."""
        context, labels = self.context, _labels(self.context).get("label_range")
        if shape.kind != "regression" or shape.random or labels is None or compiled(context.model):
            return None
        if shape.last_layer and shape.high_logits is not None:
            return None
        try:
            few = take_rows(self.batch, range(min(ASCENT_ROWS, self.rows)))
            return output_bounds(context.model, context.reader, few, labels)
        except Exception:  # noqa: BLE001 - a model without gradients in evaluation mode, or for rows as few as these
            return None

    def _scale_free(self, logits: torch.Tensor | None) -> bool | None:
        """Whether large logits stay the same when the head's last matrices are halved: the matrices are normalised in the forward pass."""
        context, size = self.context, _spread(logits, "first").get("size_first")
        if logits is None or logits.dim() != 2 or size is None or not size > LARGE or compiled(context.model):
            return None
        outputs = logits.shape[-1]
        last = [
            p
            for n, p in context.model.named_parameters()
            if in_part(n, context.head) and p.dim() == 2 and outputs in p.shape and p.is_floating_point()
        ]
        if not last:
            return None
        few = take_rows(self.batch, range(min(ASCENT_ROWS, self.rows)))
        try:
            before = context.reader.logits(few)
            with perturbed(last), torch.no_grad():
                for p in last:
                    p.mul_(0.5)
                after = context.reader.logits(few)
        except Exception:  # noqa: BLE001 - a model that cannot take so few rows
            return None
        if before is None or after is None or before.shape != after.shape:
            return None
        return bool((before - after).abs().max() <= 1e-3 * before.abs().max())

    def _other_terms(self, shape: LossShape) -> float | None:
        """Length of the gradient of other terms over that of the standard loss, for a loss that is mostly other terms."""
        context = self.context
        labels = split(self.batch)[1]
        if shape.random or not shape.scale or shape.scale <= 0 or shape.cosine is None or shape.cosine < 0.9:
            return None
        if shape.kind == "regression" or not isinstance(labels, torch.Tensor) or compiled(context.model):
            return None
        weights = [p for p in context.model.parameters() if p.requires_grad]

        def losses() -> tuple[torch.Tensor, torch.Tensor] | None:
            whole, logits = context.reader.loss(self.batch)
            logits = context.reader.logits(self.batch) if logits is None else logits
            if logits is None:
                return None
            assert shape.scale is not None
            task = shape.scale * context.reader.reference(logits.float(), labels)
            return (whole, task) if abs(float(whole) - float(task)) > abs(float(task)) else None

        with quiet(context.model, grad=True):
            try:
                with torch.no_grad(), context.recalling():
                    if losses() is None:  # most losses are mostly the standard loss
                        return None
                found = losses()
                if found is None:
                    return None
                whole, task = found
                of_task = torch.autograd.grad(task, weights, allow_unused=True)
                of_whole = torch.autograd.grad(whole, weights, allow_unused=True)
            except Exception:  # noqa: BLE001 - no graph: other checks say so
                return None
        squared_task = squared_other = 0.0
        for a, b in zip(of_task, of_whole, strict=True):
            squared_task += 0.0 if a is None else float(a.double().pow(2).sum())
            rest = None if b is None else b.double() if a is None else b.double() - a.double()
            squared_other += 0.0 if rest is None else float(rest.pow(2).sum())
        return (squared_other / squared_task) ** 0.5 if squared_task > 0 else None

    def _find_sites(self) -> tuple[torch.Tensor | None, list[nn.Module], nn.Module | None]:
        context, recall = self.context, self.context.recall
        with context.recalling():
            logits = context.reader.logits(self.batch)
            if logits is None:
                return None, [], None
            order, last = sites(context.model, context.reader, self.batch, logits)
        found = [*order, last]
        if recall is not None and recall.works and (not order or any(m is None or recall.recalls(m) for m in found)):
            # it may be inside what was recalled, and so was not called
            order, last = sites(context.model, context.reader, self.batch, logits)
        return logits, order, last

    def after(self) -> None:
        site = dict(self.context.model.named_modules()).get(self.shape.last_layer)
        with quiet(self.context.model), self.context.recalling(but=[] if site is None else [site]):
            logits = self.context.reader.logits(self.batch)
            reach = None
            if self.shape.reach is not None and logits is not None and site is not None:
                reach = reach_of(Injector(self.context.model, self.context.reader, self.batch, site), logits)
            target = (
                None
                if self.shape.largest_margin is None or logits is None
                else targets_of(self.context, self.batch, logits)
            )
            margin = margin_of(logits, target) if logits is not None and isinstance(target, Targets) else None
            self.shape = dataclasses.replace(
                self.shape, reach_last=reach, largest_margin_last=margin, **_spread(logits, "last")
            )

    def record(self) -> LossShape | None:
        return self.shape


def _measure(
    context: ProbeContext, batch: Any, logits: torch.Tensor | None, order: Sequence[nn.Module], last: nn.Module | None
) -> LossShape:
    rows = row_count(split(batch)[0]) or 0
    if context.reader.embeddings:
        return LossShape(rows=rows, reason=OF_EMBEDDINGS)
    if logits is None:
        return LossShape(rows=rows, reason="the model's logits could not be found")
    target = targets_of(context, batch, logits)
    if isinstance(target, str):
        return LossShape(rows=rows, reason=target)
    batch = with_clear_labels(batch, target)
    names = {m: n for n, m in context.model.named_modules()}
    shape = LossShape(rows=rows, kind=target.kind, outputs=target.outputs, by_row=logits.dim() < 3)
    queries = LossQueries(batch, target, logits)
    at_last = None if last is None or last is context.model else Injector(context.model, context.reader, batch, last)
    if last is not None and at_last is not None:
        shape = queries.last_layer_levels(shape, at_last, names[last])
    form = _form(logits) or ("probabilities" if _squashed(shape) else None)
    shape = dataclasses.replace(shape, form=form)
    if form == "ones":
        return dataclasses.replace(shape, depends=False, differentiable=True)
    for injector in _injectors(context, batch, order, shape, at_last):
        responds = queries.responds(injector)
        if responds is None:
            continue
        shape = dataclasses.replace(shape, site=names[injector.site], depends=responds[0], differentiable=responds[1])
        if responds[1]:
            known = queries.describe(shape, injector)
            if known.cosine is not None and known.cosine <= -SOUND:
                known = dataclasses.replace(known, of_minus=queries.describe(shape, injector.minus()))
            shape = known
        break
    else:
        # the model itself returns plain logits, and the loss called it: its output is not used in the loss
        plain = (
            form is None
            and not context.reader.uses_own_loss
            and context.model in order
            and context.reader.loss_fn is not None
            and _returns_tensors(context, batch)
        )
        if plain and queries.fired:
            shape = dataclasses.replace(shape, depends=False, differentiable=queries.has_graph)
        else:
            shape = dataclasses.replace(
                shape,
                reason="chosen logits could not be passed to the loss: it does not take them from one module",
            )
    if at_last is not None and shape.last_layer and shape.site != shape.last_layer and target.kind != "regression":
        shape = queries.last_layer_curve(shape, at_last)
    return shape


def _injectors(
    context: ProbeContext, batch: Any, order: Sequence[nn.Module], shape: LossShape, at_last: Injector | None
) -> list[Injector]:
    """Where chosen logits may be put before the loss, the most likely place first."""
    if at_last is not None and shape.last_layer and shape.form is not None:
        return [at_last]  # its output may be any number, a probability may not
    if shape.form == "over_batch":
        return []
    modules = [m for m in order if not (m is context.model and context.reader.uses_own_loss)]
    injectors = [Injector(context.model, context.reader, batch, m) for m in modules]
    if shape.form is not None:
        softmax = torch.log_softmax if shape.form == "log_probabilities" else torch.softmax
        return [injector.through(softmax) for injector in injectors]
    if at_last is not None and all(injector.site is not at_last.site for injector in injectors):
        injectors.append(at_last)  # the logits are pooled after it, or the loss is computed inside the model
    return injectors


def _form(logits: torch.Tensor) -> str | None:
    """What the model returns in place of logits: rows sum to one, or their exponentials do."""
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
    """The last layer's output goes through a sigmoid."""
    if shape.high_logits is None or shape.low_logits is None or shape.kind == "regression":
        return False
    return (
        abs(shape.high_logits[1] - 1) < 1e-3
        and abs(shape.low_logits[1]) < 1e-3
        and abs(shape.high_logits[0] - 0.7311) < 1e-3
    )


def _returns_tensors(context: ProbeContext, batch: Any) -> bool:
    """Whether the model returns a plain tensor each time that the loss calls it."""
    plain: list[bool] = []
    handle = context.model.register_forward_hook(lambda _, __, out: plain.append(isinstance(out, torch.Tensor)))
    try:
        context.reader.loss(batch)
    finally:
        handle.remove()
    return bool(plain) and all(plain)


def _spread(logits: torch.Tensor | None, when: str) -> dict[str, Any]:
    if logits is None or len(logits) < 2:
        return {}
    return {f"spread_{when}": float(centred(logits).std(0).mean()), f"size_{when}": size_of(logits)}


def _labels(context: ProbeContext) -> dict[str, Any]:
    """Range of the known labels: of classes, or of numbers."""
    if context.reader.task == "regression":
        ys = [y for b in context.batches.known if isinstance(y := split(b)[1], torch.Tensor) and y.numel()]
        if not ys:
            return {}
        low, high = min(float(y.min()) for y in ys), max(float(y.max()) for y in ys)
        return {"label_range": (low, high), "labels_seen": sum(int(y.numel()) for y in ys), "label_levels": _levels(ys)}
    if context.reader.task != "single_label":
        return {}
    labels = [
        y for b in context.batches.known if isinstance(y := split(b)[1], torch.Tensor) and not y.is_floating_point()
    ]
    counted = [y[y != IGNORED] for y in labels]
    counted = [y for y in counted if y.numel()]
    if not counted:
        return {}
    return {
        "largest_label": max(int(y.max()) for y in counted),
        "labels_seen": sum(int(y.numel()) for y in counted),
        "vocabulary": vocabulary_of(context.model) == context.reader.classes,
    }


def _levels(labels: Sequence[torch.Tensor]) -> int | None:
    """How many different labels there are, where they are the whole numbers from 0 on, and not more than `MOST_LEVELS`."""
    levels: set[float] = set()
    for y in labels:
        levels |= set(torch.unique(y.detach().float()).tolist())
        if len(levels) > MOST_LEVELS:
            return None
    return len(levels) if levels == set(range(len(levels))) else None


def _tightest_norm(context: ProbeContext) -> tuple[int | None, str]:
    """Fewest values a channel that a BatchNorm in training mode normalises over, in the first batch as it is trained on."""
    norms: dict[nn.Module, str] = {
        m: n for n, m in context.model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training
    }
    if not norms:
        return None, ""
    values: list[tuple[int, str]] = []

    def count_values(module: nn.Module, inputs: Any) -> None:
        x = inputs[0]
        if isinstance(x, torch.Tensor) and x.dim() > 1 and x.shape[1]:
            values.append((x.numel() // x.shape[1], norms[module]))

    handles = [m.register_forward_pre_hook(count_values) for m in norms]
    try:
        with quiet(context.model):
            context.reader.logits(to_device(context.fixed_batches[0], context.device))
    finally:
        for handle in handles:
            handle.remove()
    return min(values) if values else (None, "")
