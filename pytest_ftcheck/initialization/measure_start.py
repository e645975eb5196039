"""How a head starts: its weights, one pass and one gradient, dropout off. Judged in `checks.head.init_sane`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..checks.head.init_record import BaseStart, HeadStart, LayerSignal
from ..checks.head.probe.head import first_rows, rows_of
from ..checks.head.probe.layers import describe_layer, linear_layers, matrix_of
from ..checks.head.probe.pretrained import compare
from ..checks.head.probe.unit_flow import activation, flow, unit_state
from ..core.init_scheme import InitScheme
from ..instruments.batches import device_of, split, to_device
from ..instruments.configs import config_of
from ..instruments.global_state import seed_everything
from ..instruments.model_call import unwrapped
from ..instruments.parameter_roles import in_part
from ..instruments.reader import Reader
from ..instruments.task_readers.class_probabilities import ONE_CLASS
from ..instruments.task_readers.registered import prior_entropy
from ..instruments.undisturbed import quiet
from .apply_scheme import head_layers
from .goodness_of_fit import fit, identify
from .jobs import rms

#: Rows measured.
ROWS = 64
#: Probability from which on a row's class counts as certain.
CERTAIN = 0.99


def measure(
    model: nn.Module,
    batches: Sequence[Any],
    expected: InitScheme | None,
    only: str | Sequence[str] | None,
    pretrained: Mapping[str, Any] | None,
) -> HeadStart:
    """Everything that `init_sane` judges; the caller restores random states."""
    layers = head_layers(model, only)
    device = device_of(model)
    reader = Reader(model, batches[0])
    rows = [to_device(b, device) for b in first_rows(batches, ROWS)]
    if not any(rows_of(b) for b in rows):
        raise ValueError("batches: those read have no rows")
    for number, batch in enumerate(rows):
        reader.check_labels(batch, number)
    seen = flow(model, reader, rows, layers)
    order = [n for n in seen.order if n in layers] or list(layers)
    gradients = _gradients(model, reader, rows, {n: layers[n] for n in order})
    pairs = dict(seen.pairs())
    recognised = identify(model, only)
    described = (describe_layer(n, layers[n], layers.get(pairs.get(n, "")), last=n == order[-1]) for n in order)
    signals = []
    for name in order:
        if name not in seen.inputs:
            continue
        entering, leaving = seen.inputs[name].double(), seen.outputs[name].double()
        dead = flat = None
        if name in pairs:
            after = seen.inputs[pairs[name]]
            kind = activation(seen.outputs[name], after)
            state = unit_state(seen.outputs[name], after, kind)
            # exactly zero: merely small values are alive, and judged by the gradient
            dead = float((after == 0).all(0).double().mean()) if kind == "relu" else None
            flat = state.saturated
        signals.append(
            LayerSignal(
                name=_shown(name, model),
                entering=rms(entering),
                varying=rms(entering - entering.mean(0)),
                leaving=rms(leaving),
                gradient=gradients.get(name),
                weights_zero=not bool(matrix_of(layers[name]).any()),
                dead=dead,
                flat=flat,
            )
        )
    head = _prefixes(only, layers)
    configs = (config_of(m) for m in (unwrapped(model), *model.children()))
    initial = getattr(next((c for c in configs if c is not None), None), "initializer_range", None)
    compared = None if pretrained is None else compare(model, pretrained, head)
    return HeadStart(
        rows=sum(rows_of(b) for b in rows),
        layers=tuple(replace(la, name=_shown(la.name, model)) for la in described),
        signals=tuple(signals),
        expected=None if expected is None else expected.name,
        recognised=None if recognised is None else recognised.name,
        fits=() if expected is None else fit(expected, {n: layers[n] for n in order}),
        base=_base(model, head, set(layers)),
        base_differing=None if compared is None else tuple(d.name for d in compared.differing if d.part == "base"),
        base_compared=0 if compared is None else compared.compared,
        initializer_range=float(initial) if isinstance(initial, (int, float)) else None,
        **_first_loss(reader, rows, seen.logits, getattr(layers[order[-1]], "bias", None)),
    )


def _shown(name: str, model: nn.Module) -> str:
    return f"layer {name}" if name.isdigit() else name or type(model).__name__


def _prefixes(only: str | Sequence[str] | None, layers: Mapping[str, nn.Module]) -> tuple[str, ...]:
    if only is not None:
        return (only,) if isinstance(only, str) else tuple(only)
    return tuple(dict.fromkeys(n.split(".")[0] for n in layers))


def _gradients(
    model: nn.Module, reader: Reader, rows: Sequence[Any], layers: Mapping[str, nn.Module]
) -> dict[str, float]:
    """rms of the gradient of the mean loss with respect to each layer's weights, all rows together."""
    wanted = {n: m.weight for n, m in layers.items() if isinstance(m.weight, nn.Parameter)}
    total = {n: torch.zeros_like(w, dtype=torch.float64) for n, w in wanted.items()}
    count = sum(rows_of(b) for b in rows)
    try:
        with quiet(model, grad=True):  # which restores the flags
            for w in wanted.values():
                w.requires_grad_(True)
            for batch in rows:
                seed_everything(0)
                found = torch.autograd.grad(reader.loss(batch)[0], list(wanted.values()), allow_unused=True)
                for name, g in zip(wanted, found, strict=True):
                    if g is not None:
                        total[name] += g.double() * (rows_of(batch) / count)
    except RuntimeError:
        return {}  # no graph: the training will report it
    return {n: rms(g) for n, g in total.items()}


def _first_loss(reader: Reader, rows: Sequence[Any], logits: torch.Tensor | None, bias: Any) -> dict[str, Any]:
    task = reader.task
    labels = [split(b)[1] for b in rows]
    if logits is None or task is None or not all(isinstance(y, torch.Tensor) for y in labels):
        return {"task": task}
    by_output = task in ("multi_label", "class_probabilities")
    y, z = torch.cat([v.reshape(-1, v.shape[-1]) if by_output else v.reshape(-1) for v in labels]), logits.double()
    flat = z.reshape(-1, z.shape[-1]) if z.dim() > 1 and (by_output or z.numel() != y.numel()) else z
    if task == "single_label" and flat.dim() > 1:
        keep = y != -100
        flat, y = flat[keep], y[keep]
    loss = float(reader.reference(flat, y))
    classes = flat.shape[-1] if flat.dim() > 1 else 1
    # a bias adds the same to every row: it is not part of the spread
    drawn = flat - bias.detach().double() if isinstance(bias, torch.Tensor) and bias.numel() == classes else flat
    found = {"task": task, "outputs": classes, "loss": loss}
    if task == "regression":
        size = float((y.double() ** 2).mean())
        return {**found, "prior_loss": size, "uniform_loss": size, "logit_spread": rms(drawn)}
    if task in ONE_CLASS and classes > 1:
        spread, certain = rms(drawn - drawn.mean(1, keepdim=True)), flat.softmax(1).amax(1)
        even = math.log(classes)
    else:
        odds = flat.sigmoid()
        spread, certain = rms(drawn), torch.maximum(odds, 1 - odds).reshape(-1)
        even = math.log(2)
    share = float((certain > CERTAIN).double().mean())
    prior = prior_entropy(task, [y])
    return {**found, "prior_loss": prior, "uniform_loss": even, "logit_spread": spread, "certain_rows": share}


def _base(model: nn.Module, head: Sequence[str], in_head: set[str]) -> BaseStart | None:
    """Linear layers and norms outside the head, if there are any."""
    names = [n for n, m in model.named_modules() if n and not in_part(n, head) and n not in in_head]
    modules = dict(model.named_modules())
    linear = [n for n in linear_layers(model, [n for n in names if isinstance(modules[n], nn.Linear)]) if n in names]
    with_bias = [modules[n] for n in linear if isinstance(modules[n].bias, torch.Tensor)]
    norms = [
        m.weight
        for n, m in modules.items()
        if n in names and "norm" in type(m).__name__.lower() and isinstance(getattr(m, "weight", None), torch.Tensor)
    ]
    if not with_bias:
        return None
    matrices = [m.weight.detach().reshape(-1)[:: max(1, m.weight.numel() // 20_000)].double() for m in with_bias]
    peaks = sorted(
        float(((w - w.mean()) ** 4).mean() / w.var(correction=0) ** 2) for w in matrices if float(w.std()) > 0
    )
    return BaseStart(
        linear=len(with_bias),
        zero_bias=sum(not bool(m.bias.any()) for m in with_bias),
        trained_norms=sum(bool((w != w.reshape(-1)[0]).any()) for w in norms),
        kurtosis=peaks[len(peaks) // 2] if peaks else None,
    )
