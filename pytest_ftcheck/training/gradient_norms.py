"""The norms of the gradients that an optimizer step finds."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..instruments.sampled_elements import gradient_norm, is_plain
from .clipped_norms import ClippedNorms
from .watched_parameters import WatchedParameter


def read_norms(
    watched: Sequence[WatchedParameter],
    gradients: Sequence[torch.Tensor],
    device: torch.device,
    clipped: ClippedNorms | None,
) -> list[torch.Tensor]:
    """L2 norm of each gradient, float32 on ``device``: small ones are read together; of large ones it is the one that the loop's own
    clipping took, else it is estimated from some of their rows, which is noted.

    :param watched: the parameters whose gradients they are.
    """
    norms: list[torch.Tensor | None] = [None] * len(gradients)
    if clipped is not None:
        large = [i for i, w in enumerate(watched) if w.stride > 1]
        for i, known in zip(large, clipped.take([gradients[i] for i in large]), strict=True):
            norms[i] = known
    small = [
        i for i, (w, g) in enumerate(zip(watched, gradients, strict=True)) if w.stride == 1 and is_plain(g, device)
    ]
    if small:
        for i, norm in zip(small, torch._foreach_norm([gradients[i] for i in small]), strict=True):
            norms[i] = norm
    for i, (w, gradient) in enumerate(zip(watched, gradients, strict=True)):
        if norms[i] is None:
            w.estimated = w.estimated or w.stride > 1
            norms[i] = gradient_norm(gradient, w.stride).to(device, torch.float32)
    return [norm for norm in norms if norm is not None]
