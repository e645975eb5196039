"""How many seeds decide, and how often wrongly: ``python benchmarks/sequential.py [--gates N] [--write]``.

Exact probabilities of Wald's test with our bounds beside a simulation of it, and real fine-tunes over seeds. ``--write`` puts the tables
into docs/explanation/sequential.md. Exit status 1 if a simulation contradicts the exact numbers, or an error rate is above its bound.
"""

from __future__ import annotations

import argparse
import math
import platform
import random
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import nn

from pytest_ftcheck import __version__, finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.checks.catalogue import CHECKS
from pytest_ftcheck.seeds.sprt import SeedTest, seeds_to_claim

PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "sequential.md"
SHARES = (1.0, 0.999, 0.99, 0.98, 0.95, 0.90, 0.80, 0.50, 0.20, 0.10, 0.02, 0.0)
WALKS = 100_000
JUDGED = ("weights_move", "grads_nonzero", "all_finite", "loss_decreases")
TEST = SeedTest()


# ---------------------------------------------------------------------- the test by itself
def simulate(share: float, draw: random.Random) -> tuple[Counter[str], float]:
    """How ``WALKS`` set-ups that pass on ``share`` of seeds end, and their mean number of seeds."""
    ends: Counter[str] = Counter()
    seeds = 0
    for _ in range(WALKS):
        passes = failures = 0
        decision = None
        while decision is None and passes + failures < TEST.most:
            good = draw.random() < share
            passes, failures = passes + good, failures + (not good)
            decision = TEST.after(passes, failures)
        ends[decision or "undecided"] += 1
        seeds += passes + failures
    return ends, seeds / WALKS


def operating(wrong: list[str]) -> list[str]:
    """Exact and simulated, a row a share."""
    lines = [
        "| passes on | let through | failed | undecided | mean seeds | simulated: let through | failed | undecided | mean seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for share in SHARES:
        exact = TEST.rates(share)
        ends, seeds = simulate(share, random.Random(int(1000 * share)))
        for name, chance in (("pass", exact.passed), ("fail", exact.failed), ("undecided", exact.undecided)):
            if abs(ends[name] / WALKS - chance) > 4.5 * math.sqrt(chance * (1 - chance) / WALKS) + 1e-9:
                wrong.append(f"at {share}: {name} simulated {ends[name] / WALKS}, exactly {chance}")
        cells = [f"{100 * v:.2f} %" for v in exact[:3]] + [f"{exact.seeds:.2f}"]
        cells += [f"{100 * ends[n] / WALKS:.2f} %" for n in ("pass", "fail", "undecided")] + [f"{seeds:.2f}"]
        lines.append(f"| {100 * share:g} % of seeds | {' | '.join(cells)} |")
    if TEST.rates(TEST.healthy).failed > TEST.alpha or TEST.rates(TEST.faulty).passed > TEST.beta:
        wrong.append("an error rate is above its bound")
    return lines


def claims() -> list[str]:
    """What so many seeds without a failure say."""
    lines = ["| seeds, all passed | the set-up passes on at least (95 % confidence) |", "| --- | --- |"]
    for n in (3, 5, 10, 14, 29, 59, 299):
        low = TEST.interval([True] * n, sequential=n == TEST.least)[0]
        lines.append(f"| {n} | {100 * low:.1f} % of all seeds |")
    assert seeds_to_claim(0.95) == 59
    return lines


# ---------------------------------------------------------------------- real fine-tunes
def _detached() -> nn.Module:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_distilbert(n_layers=1)

        def forward(self, input_: Any) -> Any:
            ids, _, mask = input_
            return self.inner.classifier(self.inner.base_model(ids, attention_mask=mask)[0][:, 0].detach())

    return Detached()


def _head_left_out(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.base_model.parameters(), lr=1e-3)


def _negated(model: Any, batch: Any) -> Any:
    return -nn.functional.cross_entropy(model(batch[0]), batch[1])


def _tiny() -> nn.Module:
    return tiny_distilbert(n_layers=1)


SETUPS: dict[str, tuple[bool, Callable[[], nn.Module], dict[str, Any]]] = {
    "AdamW, lr 1e-3": (True, _tiny, {"lr": 1e-3}),
    "AdamW, lr 3e-4": (True, _tiny, {"lr": 3e-4}),
    "AdamW, lr 5e-5": (True, _tiny, {"lr": 5e-5}),
    "SGD, lr 0.05": (True, _tiny, {"optimizer": "sgd", "lr": 0.05}),
    "lr 0": (False, _tiny, {"lr": 0.0}),
    "head not in the optimizer": (False, _tiny, {"optimizer": _head_left_out}),
    "detached features": (False, _detached, {"lr": 1e-3, "head": "inner.classifier"}),
    "negated loss": (False, _tiny, {"lr": 1e-3, "loss_fn": _negated}),
}


def gates(count: int, wrong: list[str]) -> list[str]:
    """``count`` gates of each set-up, each over seeds of its own."""
    lines = [
        "| set-up | gates | all pass | some check fails | undecided | mean seeds a gate | runs, longer ones with them | seconds a gate |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    alarms = healthy = 0
    for name, (sound, make, arguments) in SETUPS.items():
        ends: Counter[str] = Counter()
        seeds = made = 0
        began = time.perf_counter()
        for gate in range(count):
            runs = finetune(
                make,
                toy_batches(16, 16),
                steps=20,
                seed=100 * gate,
                probes=["loss", "descent", "noise"],
                seeds="auto",
                **arguments,
            )
            statuses = {CHECKS[check](runs).status for check in JUDGED}
            ends["fail" if "fail" in statuses else "undecided" if "inconclusive" in statuses else "pass"] += 1
            seeds += len(runs.traces)
            made += len(runs.all_traces)
        seconds = (time.perf_counter() - began) / count
        cells = [str(count), *(str(ends[e]) for e in ("pass", "fail", "undecided"))]
        cells += [f"{seeds / count:.1f}", f"{made / count:.1f}", f"{seconds:.1f}"]
        lines.append(f"| {'' if sound else 'fault: '}{name} | {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
        if sound:
            alarms, healthy = alarms + ends["fail"], healthy + count
    low, high = binomtest(alarms, healthy).proportion_ci(0.95, method="exact")
    lines += [
        "",
        f"Healthy gates that failed: {alarms} of {healthy} ({100 * alarms / healthy:.1f} %, exact 95 % interval "
        f"{100 * low:.1f} % to {100 * high:.1f} %).",
    ]
    if alarms:
        wrong.append(f"{alarms} of {healthy} healthy gates failed")
    return lines


def write(tables: dict[str, list[str]]) -> None:
    """Between ``<!-- name -->`` and ``<!-- /name -->`` of the page."""
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in tables.items():
        block = f"<!-- {name} -->\n\n{chr(10).join(lines)}\n\n<!-- /{name} -->"
        text, found = re.subn(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, b=block: b, text, flags=re.DOTALL)
        assert found == 1, name
    PAGE.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gates", type=int, default=25, help="gates of each set-up (default: 25)")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    options = parser.parse_args(arguments)
    if options.gates < 1:
        parser.error(f"--gates={options.gates}: expected a whole number >= 1")
    warnings.simplefilter("ignore")
    wrong: list[str] = []
    made = (
        f"`python benchmarks/sequential.py --gates {options.gates} --write` on {datetime.now(timezone.utc):%Y-%m-%d}: Python "
        f"{platform.python_version()}, pytest-ftcheck {__version__}, torch {torch.__version__}, {torch.get_num_threads()} thread; "
        f"{WALKS:,} simulated set-ups a row."
    )
    tables = {"operating": operating(wrong), "claims": claims(), "gates": gates(options.gates, wrong), "made": [made]}
    for name, lines in tables.items():
        print(f"\n{name}\n", *lines, sep="\n")
    if options.write:
        write(tables)
    for line in wrong:
        print("MISSED:", line)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
