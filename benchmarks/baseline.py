"""How often does a baseline fail a healthy rerun, and what does it catch: ``python benchmarks/baseline.py [rates] [rounding] [clock]``.

``rates``: healthy fine-tunes of six set-ups under 40 seeds each (240 runs). Baselines are made of 5 or 10 of the seeds, drawn at random,
and runs of other seeds are compared with them, as if all six set-ups stood in one file; then eleven faults under new seeds.
``rounding``: how far the numbers of a run move when its first weights are off in the last place. ``clock``: how many times as long a step
takes on a machine that is busy with other things. Exit status 1: a stated limit or rate does not hold.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import platform
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from scipy.stats import binomtest
from torch import nn
from torch.nn.functional import cross_entropy

from pytest_ftcheck import Trace, finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.pytest_plugin.baseline import compare as compare_module
from pytest_ftcheck.pytest_plugin.baseline.compare import FILE_RATE, ROUNDING, SECONDS_FIRST, SECONDS_RATIO, compare
from pytest_ftcheck.pytest_plugin.baseline.entry import entry_of
from pytest_ftcheck.pytest_plugin.baseline.fingerprint import HOST
from pytest_ftcheck.pytest_plugin.baseline.measures import SECONDS, measures

SEEDS, SPLITS, FAULT_SEEDS, BUSY = 40, 500, 5, (0, 2, 4, 8)
#: The clock is looked at elsewhere: another host, so that seconds are not compared.
OLD, NEW = {"dtype": "float32", HOST: "one"}, {"dtype": "float32", HOST: "another"}


class Recurrent(nn.Module):
    """Words, a GRU, a linear head: gradients of another kind than a transformer's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.encoder = nn.Embedding(64, 24), nn.GRU(24, 24, batch_first=True)
        self.dropout, self.classifier = nn.Dropout(0.1), nn.Linear(24, 2)

    def forward(self, ids: torch.Tensor) -> Any:
        return self.classifier(self.dropout(self.encoder(self.embedding(ids))[0].mean(1)))


class Plain(nn.Module):
    """Two layers on 8 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.classifier = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1)), nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.classifier(self.base(x))


def words(seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The class is told by which of two words comes more often."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(16):
        ids, labels = torch.randint(2, 64, (16, 12), generator=g), torch.arange(16) % 2
        ids[:, :4] = labels[:, None]
        found.append((ids[:, torch.randperm(12, generator=g)], labels))
    return found


def points(seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The class is the sign of the first number, one label in ten is wrong."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 16, 8, generator=g)
    wrong = torch.rand(16, 16, generator=g) < 0.1
    return [(b, ((b[:, 0] > 0) ^ w).long()) for b, w in zip(x, wrong, strict=True)]


def fixed_start() -> nn.Module:
    """A module: every seed starts from the same weights."""
    torch.manual_seed(3)
    return tiny_distilbert()


SETUPS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "DistilBERT, lr 1e-3": (tiny_distilbert, toy_batches(), {"lr": 1e-3, "steps": 40}),
    "DistilBERT, lr 1e-3, 100 steps": (tiny_distilbert, toy_batches(), {"lr": 1e-3, "steps": 100}),
    "DistilBERT, lr 5e-5": (tiny_distilbert, toy_batches(), {"lr": 5e-5, "steps": 20}),
    "DistilBERT, one start": (fixed_start(), toy_batches(), {"lr": 1e-3, "steps": 40}),
    "GRU, Adam": (Recurrent, words(), {"lr": 5e-3, "optimizer": "adam", "steps": 40}),
    "two layers, SGD": (Plain, points(), {"lr": 0.3, "optimizer": "sgd", "steps": 60}),
}


def train(name: str, seed: int, fault: str | None = None, steps: int | None = None) -> Trace:
    """One run of a set-up, with a fault or without; order, dropout and (but for one) first weights follow the seed."""
    model, batches, settings = SETUPS[name]
    order = list(batches)
    random.Random(seed).shuffle(order)
    arguments = {**settings, "seed": seed, "probes": ["loss", "metrics"]}
    if steps:
        arguments["steps"] = steps
    if fault is not None:
        model, order, arguments = FAULTS[fault](model, order, arguments)
    return finetune(model, order, **arguments)


# ---------------------------------------------------------------------- faults
def made(model: Any) -> Any:
    return model if isinstance(model, nn.Module) else model()


def freezing(chosen: Callable[[str], bool]) -> Callable[..., Any]:
    def fault(model: Any, batches: Any, arguments: Any) -> Any:
        def frozen() -> nn.Module:
            # a copy, for the one module is every run's
            import copy

            found = copy.deepcopy(made(model))
            for name, parameter in found.named_parameters():
                if chosen(name):
                    parameter.requires_grad_(False)
            return found

        return frozen, batches, arguments

    return fault


def losing(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    def fault(model: Any, batches: Any, arguments: Any) -> Any:
        def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
            output = model(batch[0])
            return loss(getattr(output, "logits", output), batch[1])

        return model, batches, {**arguments, "loss_fn": loss_fn}

    return fault


def scheduling(factor: Callable[[int], float]) -> Callable[..., Any]:
    def fault(model: Any, batches: Any, arguments: Any) -> Any:
        return model, batches, {**arguments, "scheduler": lambda o: torch.optim.lr_scheduler.LambdaLR(o, factor)}

    return fault


def permuted(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits, labels[torch.randperm(len(labels))])


FAULTS: dict[str, Callable[..., Any]] = {
    "head frozen": freezing(lambda name: "classifier" in name),
    "base frozen": freezing(lambda name: "classifier" not in name),
    "matrices of the base frozen": freezing(lambda n: "classifier" not in n and "weight" in n and "embed" not in n),
    "biases frozen": freezing(lambda name: "bias" in name),
    "labels permuted in the loss": losing(permuted),
    "loss divided by the batch size again": losing(lambda z, y: cross_entropy(z, y) / len(y)),
    "loss summed over the batch": losing(lambda z, y: cross_entropy(z, y, reduction="sum")),
    "softmax before the loss": losing(lambda z, y: cross_entropy(z.softmax(-1), y)),
    "learning rate a tenth": scheduling(lambda _: 0.1),
    "warm-up over the whole run": scheduling(lambda step: step / 1000),
    "schedule that ends halfway": scheduling(lambda step: max(0.0, 1 - step / 20)),
}


# ---------------------------------------------------------------------- rates
def rates() -> bool:
    began = time.perf_counter()
    pool = {name: [train(name, seed) for seed in range(SEEDS)] for name in SETUPS}
    total = sum(map(len, pool.values()))
    print(f"{total} healthy runs of {len(pool)} set-ups, {time.perf_counter() - began:.0f} s")
    faulty = {
        (fault, name): [train(name, 1000 + seed, fault) for seed in range(FAULT_SEEDS)]
        for fault in FAULTS
        for name in SETUPS
    }
    print(f"{sum(map(len, faulty.values()))} runs with a fault, {time.perf_counter() - began:.0f} s in all\n")
    held = True
    for seeds in (5, 10):
        held &= false_alarms(pool, seeds)
        power(pool, faulty, seeds)
    watched(pool)
    return held


def split(pool: dict[str, list[Trace]], seeds: int, chance: random.Random) -> Iterator[tuple[str, Any, list[Trace]]]:
    """For each set-up an entry of so many seeds, and the runs that are not in it."""
    for name, traces in pool.items():
        order = chance.sample(traces, len(traces))
        yield name, entry_of(order[:seeds], OLD), order[seeds:]


def failing(name: str, entry: Any, trace: Trace, comparisons: int) -> list[str]:
    verdict = compare(name, entry, trace, NEW, comparisons=comparisons, file="b.json")
    return [str(row["number"]) for row in verdict.evidence if beyond(row)] if verdict.status == "fail" else []


def beyond(row: Any) -> bool:
    used = str(row["tolerance used"])
    return used == "inf" or float(used.removesuffix(" %").lstrip("<")) > 100


def false_alarms(pool: dict[str, list[Trace]], seeds: int) -> bool:
    chance, files, runs, numbers, single, compared = random.Random(0), 0, 0, Counter[str](), 0, 0
    judged = 0
    for _ in range(SPLITS):
        entries = list(split(pool, seeds, chance))
        comparisons = sum(entry.comparisons for _, entry, _ in entries)
        red = 0
        for name, entry, others in entries:
            trace = chance.choice(others)
            bad = failing(name, entry, trace, comparisons)
            red += bool(bad)
            numbers.update(f"{name}: {n}" for n in bad)
            single += len(failing(name, entry, trace, 1))
            compared += entry.comparisons
            judged += 1
        runs += red
        files += bool(red)
    # each healthy run once, against one baseline of other seeds: independent but for the baselines
    once, entries = 0, list(split(pool, seeds, random.Random(1)))
    comparisons = sum(entry.comparisons for _, entry, _ in entries)
    reruns = [(name, entry, trace) for name, entry, others in entries for trace in others]
    once = sum(bool(failing(*rerun, comparisons)) for rerun in reruns)
    low, high = binomtest(once, len(reruns)).proportion_ci(0.95, method="exact")
    print(f"baselines of {seeds} seeds, {comparisons} numbers in the file")
    print(f"  a number beyond its own 1 %: {single / compared:.2%} of {compared:,} (stated: 1 %)")
    print(
        f"  a run fails: {runs / judged:.2%} of {judged:,} draws; once each: {once} of {len(reruns)} ({low:.1%} to {high:.1%})"
    )
    print(f"  a file fails: {files / SPLITS:.1%} of {SPLITS} draws (stated: {FILE_RATE:.0%} at most)")
    for number, count in numbers.most_common(5):
        print(f"    {count}: {number}")
    return files / SPLITS <= 2 * FILE_RATE


def power(pool: dict[str, list[Trace]], faulty: dict[tuple[str, str], list[Trace]], seeds: int) -> None:
    chance = random.Random(2)
    caught: dict[str, list[bool]] = {fault: [] for fault in FAULTS}
    by: dict[str, Counter[str]] = {fault: Counter() for fault in FAULTS}
    missed: Counter[str] = Counter()
    for _ in range(20):
        entries = list(split(pool, seeds, chance))
        comparisons = sum(entry.comparisons for _, entry, _ in entries)
        for name, entry, _ in entries:
            for fault in FAULTS:
                for trace in faulty[fault, name]:
                    bad = failing(name, entry, trace, comparisons)
                    caught[fault].append(bool(bad))
                    missed[name] += not bad
                    by[fault].update(n.partition(".")[0] for n in bad)
    print(f"  caught with {seeds} seeds:")
    for fault, found in caught.items():
        told = ", ".join(name for name, _ in by[fault].most_common(3))
        print(f"    {fault:38} {sum(found) / len(found):5.0%}   {told}")
    each = 20 * FAULT_SEEDS * len(FAULTS)
    print(f"  missed of each set-up's faults: {', '.join(f'{name} {missed[name] / each:.0%}' for name in SETUPS)}\n")


def watched(pool: dict[str, list[Trace]]) -> None:
    """A run that cannot be repeated: the noise within it stands for the spread between runs."""
    chance, red, judged = random.Random(3), 0, 0
    for _ in range(SPLITS):
        for name, traces in pool.items():
            one, other = chance.sample(traces, 2)
            entry = entry_of([one], OLD)
            red += bool(failing(name, entry, other, len(pool) * entry.comparisons))
            judged += 1
    print(f"baselines of a single run, compared with a run under another seed: {red / judged:.1%} of {judged:,} fail\n")


# ---------------------------------------------------------------------- rounding
def off_by_a_bit(model: Any, seed: int | None) -> Callable[[], nn.Module]:
    """The same model, each weight moved to the next number up or down; None: none moved."""

    def make() -> nn.Module:
        import copy

        found = copy.deepcopy(made(model))
        if seed is None:
            return found
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in found.parameters():
                way = torch.where(torch.rand(parameter.shape, generator=g) < 0.5, math.inf, -math.inf)
                parameter.copy_(torch.nextafter(parameter, way))
        return found

    return make


def rounding() -> bool:
    worst: dict[str, float] = {}
    for name, (model, batches, settings) in SETUPS.items():
        arguments = {**settings, "probes": ["loss", "metrics"]}
        base = finetune(off_by_a_bit(model, None), batches, **arguments)
        before = measures(base)
        for seed in range(5):
            now = measures(finetune(off_by_a_bit(model, seed), batches, **arguments))
            for number, measure in before.items():
                if number == SECONDS or number.startswith("metric."):
                    continue
                scale = measure.value if measure.scale == "log" else max(abs(measure.value), base.losses[0])
                worst[name] = max(worst.get(name, 0.0), abs(now[number].value - measure.value) / scale)
    print("numbers of a run whose first weights are off in the last place, largest relative difference:")
    for name, value in worst.items():
        print(f"  {name:34} {value:.1e}")
    print(f"  limit {ROUNDING['float32']:.0e}\n")
    return max(worst.values()) <= ROUNDING["float32"]


# ---------------------------------------------------------------------- clock
ONE = """
import sys
sys.path.insert(0, sys.argv[1])
from baseline import train
from pytest_ftcheck.pytest_plugin.baseline.measures import SECONDS, measures
for _ in range(4):
    print(measures(train("DistilBERT, lr 1e-3", 0))[SECONDS].value)
"""


def spin() -> None:
    while True:
        sum(range(10_000))


def clock() -> bool:
    """Fresh processes: the first training of each loads things, the others do not."""
    folder, found = str(__import__("pathlib").Path(__file__).parent), {}
    for busy in BUSY:
        others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(busy)]
        for process in others:
            process.start()
        try:
            runs = []
            for _ in range(4):
                done = subprocess.run([sys.executable, "-c", ONE, folder], capture_output=True, text=True, check=True)
                runs.append([float(line) for line in done.stdout.split()])
        finally:
            for process in others:
                process.terminate()
        found[busy] = runs
    base = statistics.median(s for run in found[0] for s in run[1:])
    steps, held = SETUPS["DistilBERT, lr 1e-3"][2]["steps"], True
    print(
        f"seconds a step, over {base * 1000:.2f} ms with nothing of ours beside it ({multiprocessing.cpu_count()} processors):"
    )
    for busy, runs in found.items():
        later = [s / base for run in runs for s in run[1:]]
        first = max((run[0] - max(run[1:])) * steps for run in runs)
        print(
            f"  {busy} busy processes: {statistics.median(later):.2f} to {max(later):.2f} times; the first takes {first:.2f} s more"
        )
        held &= max(run[0] for run in runs) <= SECONDS_RATIO * base + SECONDS_FIRST / steps or busy > 4
    print(f"  limit {SECONDS_RATIO:g} times and {SECONDS_FIRST:g} s\n")
    return held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=["rates", "rounding", "clock"])
    sections = {"rates": rates, "rounding": rounding, "clock": clock}
    wanted = parser.parse_args().sections
    if unknown := [name for name in wanted if name not in sections]:
        parser.error(f"no section {unknown[0]!r}: expected some of {', '.join(sections)}")
    torch.set_num_threads(1)
    # no two of these runs are the same, and looking whether they are takes longer than comparing them
    compare_module.short_digest = lambda _: "of no run"
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}\n")
    held = [sections[name]() for name in wanted]
    return 0 if all(held) else 1


if __name__ == "__main__":
    raise SystemExit(main())
