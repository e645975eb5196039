"""What `finetune` costs as things grow: ``python benchmarks/scale.py [AXIS ...] [--largest N] [--seconds S]``.

Each row is one model that grows along one axis: the outputs of a token-level head (``vocabulary``), the ``classes``, the number of
``tensors``, its ``parameters``, the ``steps``. The bare loop is the same recipe in plain torch (AdamW, clipping, schedule). Bare loop and
`finetune` take turns in one process, one thread, seconds of the processor; the best of each counts. The exit status is 1 on a missed goal.

The goal is the battery's own: a multiple of the training, and a flat amount, because probes have a flat budget for small models.
``--loss``, ``--queries`` and ``--calls`` measure the constants by which the budget counts, and nothing else.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from pytest_ftcheck import Recipe, Trace, finetune
from pytest_ftcheck.checks.loss.probe.loss_shape import LossShapeProbe
from pytest_ftcheck.instruments.logit_injection import Injector

#: `finetune` may take this multiple of the bare loop, and so many seconds more.
MULTIPLE, FLAT = 2.0, 4.0
STEPS, LR = 20, 1e-3
#: Repetitions; no further one begins after so many seconds, unless ``--seconds`` says otherwise.
TIMES, SECONDS = 3, 20.0


@dataclass(frozen=True)
class Case:
    """A model, its batches, and for how many steps it is trained."""

    axis: str
    size: int
    make: Callable[[], nn.Module]
    batches: list[Any]
    loss_fn: Callable[[Any, Any], Any] | None = None
    steps: int = STEPS


class Tagger(nn.Module):
    """A token-level head with many outputs: a language model without its middle."""

    def __init__(self, outputs: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, width)
        self.middle = nn.Linear(width, width)
        self.classifier = nn.Linear(width, outputs)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """``[rows, tokens, outputs]``."""
        logits: torch.Tensor = self.classifier(torch.tanh(self.middle(self.embedding(ids))))
        return logits


class Stack(nn.Module):
    """Layers one after another, and a head."""

    def __init__(self, layers: int, width: int, outputs: int = 2) -> None:
        super().__init__()
        self.base = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.classifier = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[rows, outputs]``."""
        for layer in self.base:
            x = x + 0.1 * torch.tanh(layer(x))
        logits: torch.Tensor = self.classifier(x)
        return logits


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The same weights each time."""

    def made() -> nn.Module:
        torch.manual_seed(0)
        return make()

    return made


def token_batches(outputs: int, rows: int = 8, tokens: int = 16, count: int = 4) -> list[Any]:
    """Ids and a label for each token, which follows from its id."""
    g = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 1000, (rows, tokens), generator=g) for _ in range(count)]
    return [(i, (i * 7) % outputs) for i in ids]


def row_batches(width: int, outputs: int, rows: int = 16, count: int = 4) -> list[Any]:
    """Vectors, and a label that follows from their largest entry."""
    g = torch.Generator().manual_seed(0)
    xs = [torch.randn(rows, width, generator=g) for _ in range(count)]
    return [(x, (x.argmax(1) * 31) % outputs) for x in xs]


def token_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """Cross-entropy over all tokens."""
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def cases(axis: str) -> list[Case]:
    """The models of one axis, the smallest first."""
    if axis == "vocabulary":
        return [
            Case(axis, n, seeded(lambda n=n: Tagger(n)), token_batches(n), token_loss)  # type: ignore[misc]
            for n in (100, 1000, 10_000, 30_000, 100_000)
        ]
    if axis == "classes":
        return [
            Case(axis, n, seeded(lambda n=n: Stack(2, 64, n)), row_batches(64, n))  # type: ignore[misc]
            for n in (2, 100, 1000, 10_000)
        ]
    if axis == "tensors":
        return [
            Case(axis, n, seeded(lambda n=n: Stack(n // 2 - 1, 8)), row_batches(8, 2))  # type: ignore[misc]
            for n in (10, 500, 5000)
        ]
    if axis == "parameters":
        return [
            Case(axis, 8 * w * w, seeded(lambda w=w: Stack(8, w)), row_batches(w, 2))  # type: ignore[misc]
            for w in (64, 512, 2048)
        ]
    if axis == "steps":
        return [Case(axis, n, seeded(lambda: Stack(2, 16)), row_batches(16, 2), steps=n) for n in (20, 2000, 20_000)]
    raise ValueError(f"{axis!r}: expected one of {', '.join(AXES)}")


AXES = ("vocabulary", "classes", "tensors", "parameters", "steps")


# ---------------------------------------------------------------------- the two ways
def bare(case: Case) -> None:
    """The recipe as a plain loop."""
    recipe = Recipe(lr=LR, steps=case.steps)
    model = case.make().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.lr_factor)
    loss_fn = case.loss_fn or (lambda m, b: F.cross_entropy(m(b[0]), b[1]))
    for i in range(case.steps):
        optimizer.zero_grad()
        loss_fn(model, case.batches[i % len(case.batches)]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def watched(case: Case, probes: Sequence[str] | None = None) -> Trace:
    """The same with `finetune`."""
    return finetune(case.make, case.batches, loss_fn=case.loss_fn, lr=LR, steps=case.steps, probes=probes)


def seconds_of(run: Callable[[], Any]) -> float:
    """Of the processor, not by the clock: others may use the machine."""
    began = time.process_time()
    run()
    return time.process_time() - began


def measure(case: Case, seconds: float = SECONDS) -> tuple[float, float, float, Trace]:
    """Seconds of the bare loop, of `finetune` without probes, and with the default ones; the best of each."""
    began, best = time.perf_counter(), [float("inf")] * 3
    trace = watched(case)  # imports and caches
    for _ in range(TIMES):
        runs = (lambda: bare(case), lambda: watched(case, ()), lambda: watched(case))
        best = [min(old, seconds_of(run)) for old, run in zip(best, runs, strict=True)]
        if time.perf_counter() - began > seconds:
            break
    return best[0], best[1], best[2], trace


def loss_seconds() -> None:
    """What the loss of an output costs, beside a matrix product: the constants of `instruments.work` and of the probe ``loss_shape``."""

    def best(run: Callable[[], Any]) -> float:
        return min(seconds_of(run) for _ in range(5))

    a = torch.randn(1024, 1024)
    per_second = 2 * 1024**3 / best(lambda: a @ a)
    print(f"matrix product: {per_second / 1e9:.0f} operations a nanosecond")
    for rows, outputs in ((128, 1000), (128, 10_000), (64, 100_000)):
        z, y = torch.randn(rows, outputs), torch.randint(outputs, (rows,))

        def both(z: torch.Tensor = z, y: torch.Tensor = y) -> None:
            leaf = z.clone().requires_grad_(True)
            F.cross_entropy(leaf, y).backward()

        forward = best(lambda z=z, y=y: F.cross_entropy(z, y))  # type: ignore[misc]
        print(
            f"{rows} x {outputs:,} outputs: forward {1e9 * forward / z.numel():.2f} ns an output, "
            f"as {per_second * forward / z.numel():.0f} operations; forward and backward {1e9 * best(both) / z.numel():.2f} ns"
        )


def query_counts() -> None:
    """What the probe ``loss_shape`` asks a loss with many outputs, and as how many forward passes of it: its constant ``QUERIES``."""
    calls: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    rows: list[int] = []

    def counted(name: str) -> Callable[..., Any]:
        function = getattr(Injector, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **options)

        return call

    def timed(name: str) -> Callable[..., Any]:
        function = getattr(LossShapeProbe, name)

        def call(probe: LossShapeProbe) -> None:
            rows[:] = [probe.rows]
            seconds[name] += seconds_of(lambda: function(probe))

        return call

    for owner, names, wrap in (
        (Injector, ("loss", "gradient", "logits"), counted),
        (LossShapeProbe, ("before", "after"), timed),
    ):
        for name in names:
            setattr(owner, name, wrap(name))
    for outputs in (1000, 10_000, 100_000):
        case = next(c for c in cases("vocabulary") if c.size == outputs)
        calls.clear(), seconds.clear()
        watched(case, ["loss_shape"])
        tokens = rows[0] * case.batches[0][0].shape[1]
        z, y = torch.randn(tokens, outputs), torch.randint(outputs, (tokens,))
        forward = min(seconds_of(lambda z=z, y=y: F.cross_entropy(z, y)) for _ in range(5))  # type: ignore[misc]
        asked = f"{calls['loss'] - calls['gradient']} losses, {calls['gradient']} with gradients, {calls['logits']} of logits alone"
        taken = sum(seconds.values())
        print(
            f"{tokens} tokens x {outputs:,} outputs: {asked}; {taken:.2f} s, as {taken / forward:.0f} forward passes of the loss"
        )


def call_seconds() -> None:
    """What a parameter tensor costs in a forward pass however small it is: the constant ``PER_TENSOR`` of `instruments.work`."""
    a = torch.randn(1024, 1024)

    def best(run: Callable[[], Any]) -> float:
        return min(seconds_of(run) for _ in range(5))

    per_second = 2 * 1024**3 / best(lambda: a @ a)
    for case in cases("tensors")[1:]:
        model, x = case.make().eval(), case.batches[0][0]
        with torch.no_grad():
            seconds = best(lambda m=model, x=x: m(x)) / case.size  # type: ignore[misc]
        print(f"{case.size:,} tensors: {1e6 * seconds:.1f} us a tensor, as {per_second * seconds:.2g} operations")


def main() -> int:
    """Print the table; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("axes", nargs="*", help=f"of {', '.join(AXES)} (default: all)")
    parser.add_argument("--largest", type=int, help="leave out what is larger")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="begin no further repetition of a row after so many"
    )
    parser.add_argument("--loss", action="store_true", help="what the loss of one output costs, and nothing else")
    parser.add_argument("--queries", action="store_true", help="what the queries of loss_shape cost, and nothing else")
    parser.add_argument("--calls", action="store_true", help="what a tensor costs in a pass, and nothing else")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if given.loss or given.queries or given.calls:
        (loss_seconds if given.loss else query_counts if given.queries else call_seconds)()
        return 0
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, one thread; goal: {MULTIPLE:g} x bare + {FLAT:g} s\n"
    )
    print(
        "| axis | size | bare | without probes | finetune | ratio | goal | left out |\n|---|---|---|---|---|---|---|---|"
    )
    missed = 0
    for axis in given.axes or AXES:
        for case in cases(axis):
            if given.largest is not None and case.size > given.largest:
                continue
            plain, without, full, trace = measure(case, given.seconds)
            met = full <= MULTIPLE * plain + FLAT
            missed += not met
            left_out = ", ".join(n for n, why in trace.skipped.items() if why.startswith("left out"))
            numbers = f"{plain:.2f} s | {without:.2f} s | {full:.2f} s | x {full / plain:.1f}"
            print(
                f"| {axis} | {case.size:,} | {numbers} | {'met' if met else 'MISSED'} | {left_out or '-'} |", flush=True
            )
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
