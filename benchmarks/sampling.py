"""How exact the sample of a matrix is, by how its elements are drawn: ``python benchmarks/sampling.py [--steps 12] [--draws 20]``.

A pretrained MiniLM with a new head is fine-tuned on BBC news, under AdamW and under SGD. At the first step and at the last one the rms of
the step and of the displacement of every matrix is compared with that of samples of it: so many elements, in runs of so many. A run of 16
float32 numbers is one line of a processor's cache, one of 64 mostly on one page of memory. Printed is, for each way to draw,
the largest factor by which 95 % of the samples are off.
"""

from __future__ import annotations

import argparse
import collections
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from pytest_ftcheck.instruments.sampled_elements import SAMPLE_BASE, SampledElements, SampleSize

sys.path.insert(0, str(Path(__file__).parent.parent / "docs" / "examples"))

import founding

WAYS = tuple(SampleSize(*way) for way in ((256, 1), (512, 16), (512, 64), (1024, 1), (1024, 16), (1024, 64)))
OPTIMIZERS = {
    "AdamW, lr 5e-5": lambda parameters: torch.optim.AdamW(parameters, lr=5e-5),
    "SGD, lr 1e-2, momentum 0.9": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
}


def main(steps: int, draws: int) -> None:
    """Train, compare, print a table."""
    print(f"torch {torch.__version__}; {draws} draws of each matrix\n")
    print(f"{'optimizer':28} {'elements':>8} {'run':>4} {'of the step':>12} {'of the displacement':>20}")
    for name, optimizer in OPTIMIZERS.items():
        factors = measured(optimizer, steps, draws)
        for size in WAYS:
            step, displacement = (quantile(factors[size, what]) for what in ("step", "displacement"))
            print(f"{name:28} {size.elements:8} {size.run:4} {step:11.2f}x {displacement:19.2f}x")


def measured(
    make: Callable[..., torch.optim.Optimizer], steps: int, draws: int
) -> dict[tuple[SampleSize, str], list[float]]:
    """Natural logarithms of the factor by which each sample is off."""
    torch.manual_seed(0)
    model = founding.make_model().train()
    matrices = [
        p for n, p in model.named_parameters() if p.dim() > 1 and p.numel() > SAMPLE_BASE and "embeddings" not in n
    ]
    optimizer = make(model.parameters())
    start = [p.detach().clone() for p in matrices]
    out: dict[tuple[SampleSize, str], list[float]] = collections.defaultdict(list)
    batches = list(founding.news(seed=0)[0])
    for number in range(steps):
        inputs, labels = batches[number % len(batches)]
        before = [p.detach().clone() for p in matrices] if number in (0, steps - 1) else []
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        if before:
            for what, reference in (("step", before), ("displacement", start)):
                for size in WAYS:
                    out[size, what] += errors(
                        [p.detach() - r for p, r in zip(matrices, reference, strict=True)], size, draws
                    )
    return out


def errors(tensors: list[torch.Tensor], size: SampleSize, draws: int) -> list[float]:
    """Of samples of each tensor, the logarithm of their rms over that of the tensor."""
    tensors = [t for t in tensors if t.any()]
    copies = [torch.nn.Parameter(t) for t in tensors for _ in range(draws)]  # every entry is drawn anew
    sampled = SampledElements(copies, [size] * len(copies))
    norms = sampled.norms(sampled.values(sampled.zeros()))
    exact = [float(t.norm()) / math.sqrt(t.numel()) for t in tensors for _ in range(draws)]
    counts = sampled.counts
    return [math.log(max(float(n), 1e-30) / math.sqrt(c) / e) for n, c, e in zip(norms, counts, exact, strict=True)]


def quantile(logarithms: list[float]) -> float:
    """The factor, up or down, that 95 % of them stay within."""
    return math.exp(sorted(map(abs, logarithms))[math.ceil(0.95 * len(logarithms)) - 1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--draws", type=int, default=20)
    options = parser.parse_args()
    main(options.steps, options.draws)
