"""How large a margin can any weights give a right logit? Gradient ascent on one row, with steps as long as the weights themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ....instruments.parameter_roles import in_part
from ....instruments.reader import Reader
from ....instruments.undisturbed import perturbed, quiet
from .targets import Targets

#: A margin at which cross-entropy is almost 0 compared with the logarithm of the classes.
ENOUGH = 8.0
#: An output of this size is not bounded, however far the labels are.
FAR = 50.0
#: Lengths of the ascent's steps, as multiples of the tensor's own length: a linear layer needs only the first, normalised vectors need
#: ever shorter ones to converge.
LENGTHS = (2.0,) * 4 + tuple(0.8**i for i in range(18))
#: Steps that are taken back because the outputs were NaN there; after more of them, too few are left to converge.
MOST_UNDONE = 4


def largest_margin(
    model: nn.Module, reader: Reader, batch: Any, target: Targets, head: tuple[str, ...], *, head_alone: bool = False
) -> float | None:
    """Largest margin of a right logit over the next (one logit: over zero) that weights can give a row; infinity: more than matters.

    First the head's weights alone are tried, then (unless ``head_alone``) all that can be trained. None: not measured.
    """
    if target.kind not in ("single", "binary", "tags") or len(target.shape) > 2:
        return None
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and p.is_floating_point() and p.numel()]
    sets = [[p for n, p in named if in_part(n, head)], *([] if head_alone else [[p for _, p in named]])]
    margins: list[float] = []
    enough = ENOUGH + math.log(max(1, target.outputs - 1))
    for chosen in sets:
        if not chosen or (margins and len(chosen) == len(sets[0])):
            continue
        with perturbed(chosen):
            margin = _ascend(model, reader, batch, lambda z: _margin_of_first_row(z, target), chosen, enough)
        if margin is None or margin >= enough or not math.isfinite(margin):
            return None if margin is None else math.inf
        margins.append(margin)
    return max(margins) if margins else None


def output_bounds(
    model: nn.Module, reader: Reader, batch: Any, labels: tuple[float, float]
) -> tuple[float, float] | None:
    """The least and the largest output that any trainable weights give the first row, ``labels`` at most; None: not measured."""
    trained = [p for p in model.parameters() if p.requires_grad and p.is_floating_point() and p.numel()]
    bounds: list[float] = []
    for sign, enough in ((-1.0, -labels[0]), (1.0, labels[1])):

        def signed(outputs: torch.Tensor, sign: float = sign) -> tuple[float, torch.Tensor]:
            first = sign * outputs.reshape(len(outputs), -1)[0].sum() / outputs[0].numel()
            return float(first), first

        goal = min(enough, FAR)
        with perturbed(trained):
            largest = _ascend(model, reader, batch, signed, trained, goal)
        if largest is None:
            return None
        bounds.append(sign * (largest if largest < goal else enough))
    return bounds[0], bounds[1]


def _ascend(
    model: nn.Module,
    reader: Reader,
    batch: Any,
    objective_of: Callable[[torch.Tensor], tuple[float, torch.Tensor]],
    parameters: list[nn.Parameter],
    enough: float,
) -> float | None:
    best, undone = -math.inf, 0
    step: list[tuple[nn.Parameter, torch.Tensor, float]] = []
    for length in LENGTHS:
        with quiet(model, grad=True):
            logits = reader.logits(batch)
            if logits is None:
                return None
            margin, objective = objective_of(logits)
            # the last step was too long for the layers between, and says nothing of a bound
            if math.isnan(margin) or margin == -math.inf:
                undone += 1
                if not step or undone > MOST_UNDONE:
                    return None
                _take(step, -1.0)
                continue
            best = max(best, margin)
            if best >= enough:
                return best
            if not objective.requires_grad:
                return None
            slopes = torch.autograd.grad(objective, parameters, allow_unused=True)
        if not any(g is not None and bool(g.any()) for g in slopes):
            return best if best > 0 else None
        step = []
        for p, g in zip(parameters, slopes, strict=True):
            # far out some gradients are NaN, or overflow: their tensors stay
            if g is not None and 0 < (norm := float(torch.linalg.vector_norm(g.float()))) < math.inf:
                size = max(float(torch.linalg.vector_norm(p.detach().float())), 0.02 * p.numel() ** 0.5)
                step.append((p, g / norm, length * size))
        if not step:
            return None
        _take(step, 1.0)
    return best


@torch.no_grad()
def _take(step: list[tuple[nn.Parameter, torch.Tensor, float]], sign: float) -> None:
    """Move along a step, or back."""
    for p, direction, length in step:
        p.add_(direction, alpha=sign * length)


def margin_of(logits: torch.Tensor, target: Targets) -> float | None:
    """The largest margin of any row."""
    z = target.flat(logits.detach().float())[target.keep]
    y = target.y[target.keep]
    if target.kind == "single":
        own = z.gather(1, y[:, None]).squeeze(1)
        margins = own - z.scatter(1, y[:, None], -math.inf).amax(1)
    else:
        margins = (z * target.sign(y).to(z.device)).reshape(len(z), -1).amin(1)
    return float(margins.max()) if len(margins) else None


def _margin_of_first_row(logits: torch.Tensor, target: Targets) -> tuple[float, torch.Tensor]:
    """The margin of the first row that counts, and a smooth objective that raises it."""
    row = int(target.keep.nonzero()[0])
    z = target.flat(logits)[row]
    if target.kind == "single":
        y = int(target.y[row])
        others = torch.cat([z[:y], z[y + 1 :]])
        return float(z[y] - others.max()), z[y] - torch.logsumexp(others.float(), 0).to(z.dtype)
    margin = (z * target.sign(target.y)[row].to(z.device)).min()
    return float(margin), margin
