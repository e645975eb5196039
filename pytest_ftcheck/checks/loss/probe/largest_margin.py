"""How far apart can the logits get, whatever the weights are? One row is followed uphill with steps as long as the weights themselves."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ....instruments.batches import Reader
from ....instruments.parameter_roles import in_part
from ....instruments.snapshots import perturbed, quiet
from .targets import Targets

#: A margin at which cross-entropy is next to nothing, beside the logarithm of the classes.
ENOUGH = 8.0
#: Steps uphill, as multiples of the tensor's own length: a plain layer gets there with the first, vectors that are normalised need ever
#: shorter ones to arrive.
LENGTHS = (2.0,) * 4 + tuple(0.8**i for i in range(18))


def reachable(model: nn.Module, reader: Reader, batch: Any, target: Targets, head: tuple[str, ...]) -> float | None:
    """Largest lead of a right logit over the next (one logit: over zero) that weights can give a row; infinity: more than matters.

    First the head's weights alone are tried, then all that can be trained. None: not measured.
    """
    if target.kind not in ("single", "binary", "tags") or len(target.shape) > 2:
        return None
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and p.is_floating_point() and p.numel()]
    sets = [[p for n, p in named if in_part(n, head)], [p for _, p in named]]
    found: list[float] = []
    enough = ENOUGH + math.log(max(1, target.outputs - 1))
    for chosen in sets:
        if not chosen or (found and len(chosen) == len(sets[0])):
            continue
        with perturbed(chosen):
            lead = _climb(model, reader, batch, target, chosen, enough)
        if lead is None or lead >= enough or not math.isfinite(lead):
            return None if lead is None else math.inf
        found.append(lead)
    return max(found) if found else None


def _climb(
    model: nn.Module, reader: Reader, batch: Any, target: Targets, parameters: list[nn.Parameter], enough: float
) -> float | None:
    best = -math.inf
    for length in LENGTHS:
        with quiet(model, grad=True):
            logits = reader.logits(batch)
            if logits is None:
                return None
            lead, goal = _leads(logits, target)
            best = max(best, lead)
            if best >= enough or not math.isfinite(lead):
                return best if math.isfinite(lead) else math.inf
            if not goal.requires_grad:
                return None
            slopes = torch.autograd.grad(goal, parameters, allow_unused=True)
        if not any(g is not None and bool(g.any()) for g in slopes):
            return best if best > 0 else None
        with torch.no_grad():
            for p, g in zip(parameters, slopes, strict=True):
                if g is None or not bool(g.any()):
                    continue
                size = max(float(torch.linalg.vector_norm(p.float())), 0.02 * p.numel() ** 0.5)
                p.add_(g / torch.linalg.vector_norm(g.float()).to(g.dtype), alpha=length * size)
    return best


def leads_of(logits: torch.Tensor, target: Targets) -> float | None:
    """The largest lead of any row."""
    z = target.flat(logits.detach().float())[target.keep]
    y = target.y[target.keep]
    if target.kind == "single":
        own = z.gather(1, y[:, None]).squeeze(1)
        found = own - z.scatter(1, y[:, None], -math.inf).amax(1)
    else:
        found = (z * target.sign(y).to(z.device)).reshape(len(z), -1).amin(1)
    return float(found.max()) if len(found) else None


def _leads(logits: torch.Tensor, target: Targets) -> tuple[float, torch.Tensor]:
    """The lead of the first row that counts, and what to climb for it."""
    row = int(target.keep.nonzero()[0])
    z = target.flat(logits)[row]
    if target.kind == "single":
        y = int(target.y[row])
        others = torch.cat([z[:y], z[y + 1 :]])
        return float(z[y] - others.max()), z[y] - torch.logsumexp(others.float(), 0).to(z.dtype)
    lead = (z * target.sign(target.y)[row].to(z.device)).min()
    return float(lead), lead
