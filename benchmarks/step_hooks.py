"""Which part of a watched step costs what: ``python benchmarks/step_hooks.py [--clip]``.

A full-size DistilBERT has the gradients of one batch, and AdamW steps on them again and again, on one thread; between two steps all
weights, gradients and moments go through the processor's caches. Printed is the time that the thread itself worked in each part of the
step's hooks, which neighbours on a busy machine change less than the clock. With ``--clip``, ``clip_grad_norm_`` comes before each step.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from overhead import full_batches, full_model, step

from pytest_ftcheck import watch
from pytest_ftcheck.instruments import loop_calls, sampled_elements
from pytest_ftcheck.training import clipped_norms, gradient_norms, gradient_statistics, recorder, weight_decay

STEPS, LEFT_OUT = 40, 12
#: Owner, function, and what it does.
PARTS: tuple[tuple[Any, str, str], ...] = (
    (recorder.Recorder, "_before_step", "before the step, all"),
    (recorder.Recorder, "_after_step", "after the step, all"),
    (recorder, "read_norms", "  norms of the gradients"),
    (gradient_norms, "gradient_norm", "    of them, read one by one"),
    (clipped_norms.ClippedNorms, "take", "    of them, taken from the loop's clipping"),
    (gradient_statistics.GradientStatistics, "update", "  running numbers of the norms"),
    (sampled_elements.SampledElements, "values", "  sampled weights, before and after"),
    (sampled_elements.SampledElements, "gradients", "  sampled gradients"),
    (weight_decay.WeightDecay, "at_step", "  weight decay"),
    (sampled_elements.SampledElements, "norms", "  norms of the motion"),
    (clipped_norms.ClippedNorms, "gradients_measured", "while the loop clips"),
)


def main(clip: bool) -> None:
    """Measure, print a table."""
    torch.set_num_threads(1)
    model, batch = full_model(), full_batches(1)[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    step(model, optimizer, batch)
    spent: list[dict[str, float]] = [defaultdict(float)]  # the first: before the loop
    for owner, name, label in PARTS:
        setattr(owner, name, timed(getattr(owner, name), label, spent))
    with watch(model):
        for _ in range(STEPS):
            spent.append(defaultdict(float))
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    print(f"torch {torch.__version__}, {'with' if clip else 'without'} clipping, {STEPS - LEFT_OUT} steps")
    print(f"{'':48} median  least, ms of one thread")
    for _, _, label in PARTS:
        times = [1000 * each[label] for each in spent[1 + LEFT_OUT : 1 + STEPS]]
        print(f"{label:48} {statistics.median(times):6.2f} {min(times):6.2f}")
    reading()


def reading() -> None:
    """How fast every third row of many matrices is read for their norms, and what a call costs while `watch` sees the loop's calls."""
    norm, size = torch.linalg.vector_norm, 768
    matrices = [torch.randn(size, size) for _ in range(60)]  # together larger than the caches that a core has to itself
    other = torch.randn(40_000_000)
    ways = {
        "every third row, in one go": (3, lambda m: norm(m[::3])),
        "every third row, each row first": (3, lambda m: norm(norm(m[::3], dim=1))),
        "all rows": (1, norm),
    }
    for what, (stride, read) in ways.items():
        times = []
        for _ in range(7):
            other.mul_(1.0)
            times.append(worked(lambda read=read: [read(m) for m in matrices]))
        megabytes = 4e-6 * size * size * len(matrices) / stride
        print(f"{what:48} {megabytes / min(times) / 1000:6.1f} GB/s")
    parameter, listener = torch.nn.Parameter(torch.zeros(1)), loop_calls.LoopCallListener()

    def call() -> None:
        for _ in range(10_000):
            _ = parameter.grad

    bare = min(worked(call) for _ in range(5))
    loop_calls.subscribe(listener)
    seen = min(worked(call) for _ in range(5))
    loop_calls.unsubscribe(listener)
    print(f"{'a call that watch sees and does not observe':48} {1e6 * (seen - bare) / 10_000:6.2f} microseconds more")


def worked(function: Callable[[], Any]) -> float:
    """Seconds that this thread works in it."""
    began = time.thread_time()
    function()
    return time.thread_time() - began


def timed(function: Any, label: str, spent: list[dict[str, float]]) -> Any:
    """The function, whose time is added up."""

    @functools.wraps(function)
    def measured(*arguments: Any, **options: Any) -> Any:
        began = time.thread_time()
        try:
            return function(*arguments, **options)
        finally:
            spent[-1][label] += time.thread_time() - began

    return measured


if __name__ == "__main__":
    main("--clip" in sys.argv[1:])
