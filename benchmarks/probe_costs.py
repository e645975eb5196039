"""What each part of a `finetune` costs: ``python benchmarks/probe_costs.py [tiny full founding outputs ...] [--batch 8 16] [--steps 20]``.

For each probe, and for each part of the run that is none: passes of the base, rows times tokens in them (a pass with gradients counts as
three), as rows of the training batch, beside what the probe declares as its cost, and the processor's time. A part that runs inside
another (a forward pass inside a probe) counts for the innermost. Nothing is timed by the clock, so other work on the machine does little.

``tiny`` is the default of the documentation, ``full`` a DistilBERT of the full size, ``founding`` the founding question's recipe on real
weights and news, with 160 rows held out, ``outputs`` the token-level head with 100,000 outputs of ``scale.py``, which has no passes of a
DistilBERT to be counted.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import platform
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import DistilBertModel

sys.path.insert(0, str(Path(__file__).parent.parent / "docs" / "examples"))

import overhead

from pytest_ftcheck import finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.checks.catalogue import CHECKS
from pytest_ftcheck.instruments import fixed_rows
from pytest_ftcheck.instruments.probe import ProbeRunner
from pytest_ftcheck.instruments.snapshots import ModelSnapshot
from pytest_ftcheck.training import run as training_run
from pytest_ftcheck.training.recorder import Recorder
from pytest_ftcheck.training.training_step import TrainingStep


@dataclass
class Cost:
    """Of one part of a run."""

    passes: int = 0
    #: Rows times tokens, a pass with gradients three times.
    tokens: int = 0
    seconds: float = 0.0
    #: Rows that the probe says it costs; None: it is no probe, or was left out.
    declared: float | None = None


class Meter:
    """Whose code runs now: its passes and its processor time."""

    def __init__(self) -> None:
        self.costs: dict[str, Cost] = defaultdict(Cost)
        self._open = ["the rest"]
        self._since = time.process_time()

    def _settle(self) -> None:
        now = time.process_time()
        self.costs[self._open[-1]].seconds += now - self._since
        self._since = now

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs inside is this part's."""
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def passed(self, ids: torch.Tensor) -> None:
        """The base was called."""
        cost = self.costs[self._open[-1]]
        cost.passes += 1
        cost.tokens += ids.numel() * (3 if torch.is_grad_enabled() else 1)


@contextlib.contextmanager
def metered() -> Iterator[Meter]:
    """Every `finetune` inside is measured."""
    meter = Meter()
    with contextlib.ExitStack() as stack:

        def replace(owner: Any, name: str, label: Callable[..., str]) -> None:
            function = getattr(owner, name)

            @functools.wraps(function)
            def inside(*args: Any, **kwargs: Any) -> Any:
                with meter.part(label(*args)):
                    return function(*args, **kwargs)

            setattr(owner, name, inside)
            stack.callback(setattr, owner, name, function)

        replace(ProbeRunner, "_guard", lambda _runner, name, *_: name)
        replace(fixed_rows.LossTracker, "evaluate", lambda *_: "loss on fixed rows")
        replace(fixed_rows.LossTracker, "loss_of", lambda *_: "descents")
        replace(fixed_rows.MetricTracker, "_gather", lambda *_: "metrics")
        replace(training_run, "noise_of_small_gradients", lambda *_: "noise")
        replace(TrainingStep, "run", lambda *_: "the training itself")
        for name in ("__init__", "attach", "finish", "_begin_step", "_record"):
            replace(Recorder, name, lambda *_: "recorder")
        replace(ModelSnapshot, "__init__", lambda *_: "snapshot")
        forward = DistilBertModel.forward

        @functools.wraps(forward)
        def counted(self: Any, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
            meter.passed(input_ids)
            return forward(self, input_ids, *args, **kwargs)

        DistilBertModel.forward = counted
        stack.callback(setattr, DistilBertModel, "forward", forward)
        made = ProbeRunner.__init__

        def noted(self: ProbeRunner, *args: Any, **kwargs: Any) -> None:
            made(self, *args, **kwargs)
            for probe in self.running:
                meter.costs[probe.name].declared = probe.cost()

        ProbeRunner.__init__ = noted  # type: ignore[method-assign]
        stack.callback(setattr, ProbeRunner, "__init__", made)
        yield meter
    meter._settle()


# ---------------------------------------------------------------------- the recipes
@dataclass(frozen=True)
class Case:
    """A model, its batches and what else `finetune` is given."""

    model: Any
    batches: list[Any]
    rest: dict[str, Any]


def case_of(name: str, batch: int, steps: int) -> Case:
    """One of the recipes."""
    if name == "tiny":
        return Case(tiny_distilbert, toy_batches(), {})
    if name == "full":
        overhead.ROWS = batch
        return Case(overhead.full_model(), overhead.full_batches(steps), {"lr": 5e-5})
    if name == "outputs":
        import scale

        largest = scale.cases("vocabulary")[-1]
        return Case(largest.make, largest.batches, {"loss_fn": largest.loss_fn})
    import founding

    batches, held_out = founding.news(size=batch)
    return Case(founding.make_model, batches, {"head": "classifier", "lr": 5e-5, "eval_batches": held_out})


def bare(case: Case, steps: int) -> None:
    """The recipe as a plain loop."""
    model = case.model if isinstance(case.model, torch.nn.Module) else case.model()
    kept = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, i / 2, (steps - i) / 18))
    model.train()
    loss_fn = case.rest.get("loss_fn") or (lambda m, b: cross_entropy(m(b[0]), b[1]))
    began = time.process_time()
    for i in range(steps):
        optimizer.zero_grad()
        loss_fn(model, case.batches[i % len(case.batches)]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    seconds = time.process_time() - began
    with torch.no_grad():
        for p, value in zip(model.parameters(), kept, strict=True):
            p.copy_(value)
    print(f"bare: {seconds:.2f} s of processors")


def measure(name: str, batch: int, steps: int) -> None:
    """Print the table of one recipe."""
    case = case_of(name, batch, steps)
    inputs, labels = case.batches[0]
    rows, tokens = len(labels), (inputs if isinstance(inputs, torch.Tensor) else inputs[0]).shape[1]
    print(f"\n{name}, {steps} steps of {rows} x {tokens}\n")
    if name == "tiny":
        finetune(case.model, case.batches, steps=2)  # imports
    bare(case, steps)
    with metered() as meter:
        trace = finetune(case.model, case.batches, steps=steps, **case.rest)
    total = sum(c.seconds for c in meter.costs.values())
    training = meter.costs["the training itself"]
    print(f"finetune: {total:.2f} s of processors, {training.seconds:.2f} s of them the training\n")
    print("| part | passes of the base | rows | declared | processors' time |\n|---|---|---|---|---|")
    for part, cost in sorted(meter.costs.items(), key=lambda item: -item[1].seconds):
        declared = "" if cost.declared is None else f"{cost.declared:.0f}"
        print(f"| {part} | {cost.passes} | {cost.tokens / tokens:.0f} | {declared} | {1000 * cost.seconds:.0f} ms |")
    extra = sum(c.tokens for c in meter.costs.values()) - training.tokens
    if training.tokens:
        print(f"\nrows beyond the training: {extra / tokens:.0f}, {extra / training.tokens:.2f} of the training's")
    for probe, why in trace.skipped.items():
        if why.startswith("left out"):
            print(f"not measured: {probe}: {why}")
    print(CHECKS["head_needed"](trace) if "counterfactuals" in trace.measurements else "head_needed: not measured")


def main() -> None:
    """All tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", help="of tiny, full, founding, outputs (default: tiny full)")
    parser.add_argument("--batch", type=int, nargs="*", default=[8])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {given.threads} thread(s)")
    for name in given.cases or ("tiny", "full"):
        for batch in given.batch if name in ("full", "founding") else (0,):
            measure(name, batch, given.steps)


if __name__ == "__main__":
    main()
