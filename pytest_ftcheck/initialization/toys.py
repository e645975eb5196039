"""Synthetic features to try heads on: made in a millisecond, shaped like those of a pretrained base."""

from __future__ import annotations

import math

import torch

from ..core import arguments
from ..instruments.on_cpu import on_cpu
from .features import Features

#: Directions are made orthogonal to one another: a thousand take half a second.
MOST_CLASSES = 1000
#: Beyond it the noise is lost in float32.
MOST_SEPARATION = 1e6


@on_cpu
def toy_features(
    rows: int = 256, width: int = 64, classes: int = 2, *, held_out: int = 128, separation: float = 3.0, seed: int = 0
) -> Features:
    """Features of a small task that a healthy head learns within a few steps.

    As behind the last LayerNorm of a pretrained base, every row has mean 0 and variance 1, and is the sum of a direction common to all
    rows, one of its class, and noise; the directions are random. Classes take turns.

    :param rows: rows to train on.  :param held_out: further rows to judge by; 0: none.  :param width: features a row.
    :param classes: classes, in equal shares.  :param seed: of rows and directions.
    :param separation: distance of a class's mean from the common one, in standard deviations of the noise along that direction.
    :raises ValueError: fewer rows than classes, fewer features than directions.

    >>> toy_features()
    <Features of 256 rows x 64, 128 held out: single_label, 2 classes, toy_features(seed=0)>
    """
    arguments.whole("classes", classes, least=2, most=MOST_CLASSES)
    arguments.whole("rows", rows, least=classes)
    arguments.whole("width", width, least=classes + 2)
    arguments.whole("held_out", held_out, least=0)
    arguments.number("separation", separation, least=0, most=MOST_SEPARATION)
    arguments.seed("seed", seed)
    arguments.together("features", rows=rows, width=width)
    arguments.together("features", held_out=held_out, width=width)
    g = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(width, classes + 1, generator=g))[0].t()
    total = rows + held_out
    y = torch.arange(total) % classes
    x = math.sqrt(width) * directions[0] + separation * directions[1 + y] + torch.randn(total, width, generator=g)
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, correction=0)
    held = (x[rows:], y[rows:]) if held_out else None
    return Features.of(x[:rows], y[:rows], held_out=held, classes=classes, source=f"toy_features(seed={seed})")
