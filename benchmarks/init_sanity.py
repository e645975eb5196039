"""How often `check_init` is wrong: ``python benchmarks/init_sanity.py [--seeds 200] [--write]``.

False alarms: every scheme that is healthy by theory, on heads of many shapes, activations and depths, on features of three kinds, with
the scheme declared and without. Power: every kind of broken start. Exit status 1 if a healthy start fails or a broken one passes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from scipy.stats import beta
from torch import nn

from pytest_ftcheck import InitScheme, check_init

PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "init-sanity.md"
S = InitScheme
PRIOR = (0.7, 0.2, 0.1)

#: Healthy by theory: signal kept (Glorot, He, Saxe), or small as pretrained models have it; a last layer that starts at zero.
HEALTHY: dict[str, InitScheme] = {
    str(s.name): s
    for s in (
        S.normal(0.02),
        S.normal(0.01),
        S.hugging_face(0.05),
        S.truncated_normal(0.02),
        S.uniform(0.05),
        S.xavier_normal(),
        S.xavier_uniform(),
        S.kaiming_normal(),
        S.kaiming_uniform(),
        S.kaiming_normal("linear"),
        S.orthogonal(),
        S.sparse(0.1, 0.02),
        S.torch_default(),
        S.mup(0.02, 64),
        S.kaiming_normal().with_last(S.normal(0.02)),
        S.kaiming_normal().with_last(S.zeros()),
        S.eye().with_last(S.normal(0.02)),
        S.normal(0.02).with_class_prior(PRIOR),
        S.torch_default().with_last(S.zeros()).with_class_prior(PRIOR),
        S.kaiming_normal().with_bias(0.01),
        S.torch_default().with_last(S.zeros().with_bias("torch")),
    )
}


def stack(
    *sizes: int, activation: Callable[[], nn.Module] = nn.ReLU, norm: bool = False, dropout: float = 0.0
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(a, b))
        if i < len(sizes) - 2:
            layers += [nn.LayerNorm(b)] * norm + [activation()] + [nn.Dropout(dropout)] * (dropout > 0)
    return nn.Sequential(*layers)


HEADS: dict[str, Callable[[], nn.Sequential]] = {
    "64 -> 3": lambda: stack(64, 3),
    "64 -> 64 -> 3, ReLU": lambda: stack(64, 64, 3, dropout=0.2),
    "384 -> 384 -> 3, ReLU": lambda: stack(384, 384, 3),
    "768 -> 256 -> 3, GELU": lambda: stack(768, 256, 3, activation=nn.GELU),
    "128 -> 128 -> 64 -> 3, tanh": lambda: stack(128, 128, 64, 3, activation=nn.Tanh),
    "64 -> 16 -> 3, LayerNorm, ReLU": lambda: stack(64, 16, 3, norm=True),
    "32 -> 512 -> 3, SiLU": lambda: stack(32, 512, 3, activation=nn.SiLU),
}
FEATURES = ("white", "alike", "rectified")


def features(kind: str, width: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """64 rows: white noise; rows that share most of what they are, as a pretrained base's do; what comes out of a ReLU."""
    g = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(64, width, generator=g)
    if kind == "alike":
        x = 0.95 * torch.randn(1, width, generator=g) + 0.3 * x
    elif kind == "rectified":
        x = x.relu()
    y = torch.multinomial(torch.tensor(PRIOR), 64, replacement=True, generator=g)
    y[:3] = torch.arange(3)
    return [(x, y)]


def uninitialised(head: nn.Sequential) -> None:
    with torch.no_grad():
        head[0].weight[0, :3] = 3e31


def repeated_units(head: nn.Sequential) -> None:
    with torch.no_grad():
        head[0].weight[1] = head[0].weight[0]
        head[-1].weight[:, 1] = head[-1].weight[:, 0]


def nan(head: nn.Sequential) -> None:
    with torch.no_grad():
        head[0].bias[0] = float("nan")


#: Broken start -> (what makes it, what was declared or None).
BROKEN: dict[str, tuple[Callable[[nn.Sequential, int], Any], InitScheme | None]] = {
    "std five times the declared": (lambda h, s: S.normal(0.1).apply(h, s), S.normal(0.02)),
    "std 10 % above the declared": (lambda h, s: S.normal(0.022).apply(h, s), S.normal(0.02)),
    "uniform where normal was declared, same std": (lambda h, s: S.uniform(0.02 * 3**0.5).apply(h, s), S.normal(0.02)),
    "torch's default where N(0, 0.02) was declared": (lambda h, s: S.torch_default().apply(h, s), S.normal(0.02)),
    "initializer_range over a declared N(0, 0.05)": (lambda h, s: S.hugging_face(0.02).apply(h, s), S.normal(0.05)),
    "biases of torch where zero was declared": (
        lambda h, s: S.normal(0.02).with_bias("torch").apply(h, s),
        S.normal(0.02),
    ),
    "one bias not zero": (lambda h, s: S.normal(0.02).apply(h, s)[0].bias.data.__setitem__(3, 1e-3), S.normal(0.02)),
    "last layer not zero as declared": (lambda h, s: S.normal(0.02).apply(h, s), S.normal(0.02).with_last(S.zeros())),
    "orthogonal declared, Kaiming found": (lambda h, s: S.kaiming_normal("linear").apply(h, s), S.orthogonal()),
    "never written": (lambda h, s: uninitialised(S.normal(0.02).apply(h, s)), None),
    "NaN in a bias": (lambda h, s: nan(S.normal(0.02).apply(h, s)), None),
    "constant weights": (lambda h, s: S.constant(0.02).apply(h, s), None),
    "two units alike": (lambda h, s: repeated_units(S.normal(0.02).apply(h, s)), None),
    "zero everywhere": (lambda h, s: S.zeros().apply(h, s), None),
    "zero in the hidden layer": (lambda h, s: S.normal(0.02).with_first(S.zeros()).apply(h, s), None),
    "N(0, 1)": (lambda h, s: S.normal(1.0).apply(h, s), None),
    "N(0, 1e-7)": (lambda h, s: S.normal(1e-7).apply(h, s), None),
    "hidden bias of -5": (lambda h, s: S.kaiming_normal().apply(h, s)[0].bias.data.fill_(-5.0), None),
    "class prior in reverse order": (
        lambda h, s: S.zeros().with_class_prior((0.0001, 0.0001, 0.9998)).with_first(S.normal(0.02)).apply(h, s),
        None,
    ),
    "one class's bias at 10": (lambda h, s: S.normal(0.02).apply(h, s)[-1].bias.data.__setitem__(2, 10.0), None),
}


def upper(failed: int, runs: int) -> float:
    """Clopper and Pearson's upper 95 % limit (one-sided)."""
    return float(beta.ppf(0.95, failed + 1, runs - failed)) if failed < runs else 1.0


def healthy_starts(job: tuple[str, str, int]) -> Counter[str]:
    """The healthy starts of one scheme and head that were failed, by what they are."""
    name, shape, seeds = job
    torch.set_num_threads(1)
    alarms = Counter[str]()
    scheme, head = HEALTHY[name], HEADS[shape]()
    for seed in range(seeds):
        kind = FEATURES[seed % 3]
        scheme.apply(head, seed)
        verdict = check_init(head, features(kind, head[0].in_features, seed), scheme if seed % 2 else None)
        if not verdict.ok:
            alarms[f"{name} | {shape} | {kind} | {verdict.fault}"] += 1
            print("ALARM", name, shape, kind, seed, str(verdict)[:300], flush=True)
    return alarms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began, alarms = time.perf_counter(), Counter[str]()
    runs = len(HEALTHY) * len(HEADS) * args.seeds
    jobs = [(name, shape, args.seeds) for name in HEALTHY for shape in HEADS]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for found in pool.imap_unordered(healthy_starts, jobs):
            alarms.update(found)
    caught: dict[str, tuple[int, Counter[str]]] = {}
    for name, (break_, declared) in BROKEN.items():
        faults: Counter[str] = Counter()
        for seed in range(20):
            head = stack(384, 384, 3, dropout=0.2)
            S.torch_default().apply(head, seed)
            break_(head, seed)
            verdict = check_init(head, features(FEATURES[seed % 3], 384, seed), declared)
            faults[verdict.fault if not verdict.ok else "passed"] += 1
        caught[name] = 20 - faults["passed"], faults
    lines = [
        "# How often `check_init` is wrong",
        "",
        f"Measured by `benchmarks/init_sanity.py --seeds {args.seeds} --write`: {len(HEALTHY)} schemes that are healthy by theory x "
        f"{len(HEADS)} heads x {args.seeds} seeds, on 64 rows of features in turn white, alike (highly correlated rows) and "
        "rectified, with three imbalanced classes; every second run with the scheme declared.",
        "",
        f"**False alarms: {sum(alarms.values())} in {runs:,} healthy starts** (95 % upper limit "
        f"{100 * upper(sum(alarms.values()), runs):.3f} %).",
        "",
        *[f"* {what}: {n}" for what, n in alarms.items()],
        *([""] if alarms else []),
        "Schemes: " + "; ".join(HEALTHY) + ".",
        "",
        "Heads: " + "; ".join(HEADS) + ".",
        "",
        "| broken start (384 -> 384 -> 3, 20 seeds) | caught | named |",
        "|---|---|---|",
        *[f"| {name} | {n} of 20 | {', '.join(f'`{k}`' for k in faults)} |" for name, (n, faults) in caught.items()],
        "",
    ]
    print("\n".join(lines), f"\n{time.perf_counter() - began:.0f} s")
    if args.write:
        PAGE.write_text("\n".join(lines), encoding="utf-8")
    return int(bool(alarms) or any(n < 20 for n, _ in caught.values()))


if __name__ == "__main__":
    sys.exit(main())
