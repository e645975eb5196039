"""What watching costs, in time and in memory: ``python benchmarks/overhead.py [steps any-loop callback compiled memory growth finetune]``.

A full-size DistilBERT (6 layers, width 768, 66 M parameters) with the founding question's head, batch 8 x 32 tokens, AdamW, two
threads. All ratios come from blocks of steps that take turns in one process, so that a busy machine slows both sides; the first
step of a block is left out. Timings are taken under `kept_memory`, peaks of memory are not. The exit status is 1 if a goal of ours is
missed.
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from kept_memory import ALLOCATOR, restart
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from turns import Turns
from unwatched import recorder_of

from pytest_ftcheck import finetune, tiny_distilbert, toy_batches, watch

THREADS = 2
FULL = {
    "vocab_size": 30522,
    "dim": 768,
    "n_layers": 6,
    "n_heads": 12,
    "hidden_dim": 3072,
    "max_position_embeddings": 512,
}
ROWS, TOKENS = 8, 32
#: Rounds of blocks, and steps in a block; no new round begins after so many seconds.
ROUNDS, BLOCK, SECONDS = 20, 3, 180
LONG = 10_000
MAX_BATTERY, MAX_TINY = 1.5, 1.0
MAX_TIME, MAX_COMPILED, MAX_MEMORY, MAX_TRACE_MB, MAX_GROWTH = 0.03, 0.10, 0.02, 50, 1.10
MB = 2**20

Block = Callable[[int], list[float]]


@dataclass
class Row:
    """One line of the result; ``met`` is None where there is no goal."""

    what: str
    value: str
    goal: str = ""
    met: bool | None = None


# ---------------------------------------------------------------------- what is trained
def full_model() -> torch.nn.Module:
    """DistilBERT of the default size with a two-layer head."""
    return tiny_distilbert(2, seed=0, **FULL).train()


def full_batches(count: int = 4) -> list[Any]:
    """Random words; the time of a step does not depend on them."""
    g = torch.Generator().manual_seed(0)
    out = []
    for _ in range(count):
        ids = torch.randint(1000, FULL["vocab_size"], (ROWS, TOKENS), generator=g)
        labels = torch.randint(2, (ROWS,), generator=g)
        out.append(((ids, torch.full((ROWS,), TOKENS), torch.ones_like(ids)), labels))
    return out


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> torch.Tensor:
    """One iteration of the bare loop."""
    optimizer.zero_grad()
    loss = cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    optimizer.step()
    return loss.detach()


def watched_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Any, w: watch) -> torch.Tensor:
    """The same under ``watch``."""
    optimizer.zero_grad()
    loss = w.loss(cross_entropy(model(batch[0]), batch[1]))
    loss.backward()
    optimizer.step()
    return loss.detach()


def timed(one: Callable[[int], Any], count: int) -> list[float]:
    """Seconds of each of ``count`` calls."""
    out = []
    for i in range(count):
        began = time.perf_counter()
        one(i)
        out.append(time.perf_counter() - began)
    return out


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median with its 95 % bootstrap interval."""
    data, rng = np.asarray(values), np.random.default_rng(0)
    medians = np.median(rng.choice(data, (4000, len(data))), axis=1)
    return float(np.median(data)), *(float(q) for q in np.quantile(medians, (0.025, 0.975)))


# ---------------------------------------------------------------------- time of a step
class HookTime:
    """Seconds that other people's step hooks take: ours stand before and behind theirs."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = self._spent = 0.0

    @contextlib.contextmanager
    def around(self, attach: Callable[[], None], detach: Callable[[], None]) -> Iterator[None]:
        """Attach the hooks to be timed between ours."""
        first = [register_optimizer_step_pre_hook(self._begin), register_optimizer_step_post_hook(self._begin)]
        attach()
        last = [register_optimizer_step_pre_hook(self._half), register_optimizer_step_post_hook(self._whole)]
        try:
            yield
        finally:
            detach()
            for handle in first + last:
                handle.remove()

    def _begin(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def _half(self, *_: Any) -> None:
        self._spent = time.perf_counter() - self._began

    def _whole(self, *_: Any) -> None:
        self.seconds.append(self._spent + time.perf_counter() - self._began)


def ways(model: torch.nn.Module, optimizer: torch.optim.Optimizer, hooks: HookTime) -> dict[str, Block]:
    """Name -> a function that runs a block of steps and says how long each took."""
    batches = full_batches()

    def batch(i: int) -> Any:
        return batches[i % len(batches)]

    def bare(count: int) -> list[float]:
        return timed(lambda i: step(model, optimizer, batch(i)), count)

    w = watch(model, optimizer)
    w.__enter__()
    recorder = recorder_of(w)
    recorder.detach()

    def watched(count: int) -> list[float]:
        with hooks.around(recorder.attach, recorder.detach):
            return timed(lambda i: watched_step(model, optimizer, batch(i), w), count)

    out: dict[str, Block] = {"bare": bare, "watch": watched}
    with contextlib.suppress(ImportError):
        from pytest_torch import run_training

        def rival(count: int) -> list[float]:
            marks: list[float] = []

            def data(i: int) -> Any:
                marks.append(time.perf_counter())
                return batch(i)

            def one(setup: Any, b: Any) -> torch.Tensor:
                return step(setup.model, setup.optimizer, b)

            run_training(lambda: (model, optimizer), data, one, steps=count + 1)
            return [b - a for a, b in pairwise(marks)]

        out["pytest-torch run_training"] = rival
    with contextlib.suppress(ImportError):
        import torcheck

        torcheck.register(optimizer)
        torcheck.add_module_changing_check(model, module_name="model")
        torcheck.add_module_nan_check(model, module_name="model")
        torcheck.add_module_inf_check(model, module_name="model")
        torcheck.disable()

        def old(count: int) -> list[float]:
            torcheck.enable()
            try:
                return bare(count)
            finally:
                torcheck.disable()

        out["torcheck"] = old
    return out


def steps() -> list[Row]:
    """Time of a step, bare, under ``watch`` and under the peers that are installed."""
    model = full_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    hooks = HookTime()
    blocks = ways(model, optimizer, hooks)
    for block in blocks.values():
        block(2)  # optimizer state, caches
    hooks.seconds.clear()
    seconds: dict[str, list[float]] = {name: [] for name in blocks}
    ratios: dict[str, list[float]] = {name: [] for name in blocks}
    until = time.perf_counter() + SECONDS
    for turn in range(ROUNDS):
        if turn >= 4 and time.perf_counter() > until:
            break
        names = list(blocks)[:: 1 if turn % 2 else -1]
        names = names[turn % len(names) :] + names[: turn % len(names)]
        took = {name: statistics.median(blocks[name](BLOCK)[1:]) for name in names}
        for name, each in took.items():
            seconds[name].append(each)
            ratios[name].append(each / took["bare"])
    base = statistics.median(seconds["bare"])
    rows = [Row(f"step, bare, median of {len(seconds['bare'])} rounds", f"{1000 * base:.0f} ms")]
    for name in list(blocks)[1:]:
        middle, low, high = interval(ratios[name])
        ours = name == "watch"
        rows.append(
            Row(
                f"step under {name}",
                f"{middle - 1:+.1%} ({low - 1:+.1%} to {high - 1:+.1%}), {1000 * statistics.median(seconds[name]):.0f} ms",
                f"at most {MAX_TIME:+.0%}" if ours else "",
                middle - 1 <= MAX_TIME if ours else None,
            )
        )
    inside = statistics.median(hooks.seconds[i] for i in range(len(hooks.seconds)) if i % BLOCK)
    rows.append(
        Row(
            "of it, time inside the hooks of watch",
            f"{inside / base:.1%} ({1000 * inside:.1f} ms)",
            f"at most {MAX_TIME:.0%}",
            inside / base <= MAX_TIME,
        )
    )
    return rows


# ---------------------------------------------------------------------- any loop, the callback
def any_loop() -> list[Row]:
    """``watch(model)``, without an optimizer: it is adopted, and the losses are seen where ``backward`` is called."""
    return loop_in_turns(lambda model: model, MAX_TIME, "bare")


def compiled_loop() -> list[Row]:
    """The same of a compiled model, after compilation."""
    backend = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"
    return loop_in_turns(lambda m: torch.compile(m, backend=backend), MAX_COMPILED, f"compiled by {backend}")


def loop_in_turns(wrap: Callable[[Any], Any], goal: float, what: str) -> list[Row]:
    """A loop under ``watch(model)``, without an optimizer and without ``w.loss``, whose steps are watched in turns."""
    model, batches = full_model(), full_batches()
    called, optimizer = wrap(model), torch.optim.AdamW(model.parameters(), lr=5e-5)
    with watch(called) as w:
        turns = Turns(lambda: w, rounds=3 * ROUNDS, steps=1 + BLOCK, seconds=2 * SECONDS)
        done = 0
        while True:
            step(called, optimizer, batches[done % len(batches)])
            done += 1
            if turns.step_ended():
                break
    assert len(w.trace.losses) == len(w.trace.steps) == turns.watched_steps
    return _rows_of_turns(turns, f"step, {what}", "step under watch(model)", goal)


def trainer_callback(model: dict[str, int] | None = None, rounds: int = 3 * ROUNDS) -> list[Row]:
    """``FtcheckCallback`` in a ``transformers.Trainer``, whose steps are watched in turns.

    :param model: sizes of the DistilBERT, default: full.
    """
    from trainer_turns import in_turns

    sizes = FULL if model is None else model
    rows = [
        {"input_ids": i, "attention_mask": m, "labels": y}
        for (ids, _, mask), labels in full_batches(16)
        for i, m, y in zip(ids % sizes["vocab_size"], mask, labels, strict=True)
    ]
    turns = in_turns(sizes, rows, batch=ROWS, rounds=rounds, steps=1 + BLOCK, threads=THREADS, seconds=2 * SECONDS)
    return _rows_of_turns(turns, "step of a Trainer", "step with FtcheckCallback", MAX_TIME)


def _rows_of_turns(turns: Turns, what: str, watched: str, goal: float) -> list[Row]:
    """What is added to a step, beside the control; and the time inside our hooks."""
    took = turns.took
    alone = [
        tuple((x + y) / 2 for x, y in zip(a, b, strict=True))
        for a, b in zip(took["bare"], took["bare again"], strict=True)
    ]
    out = [Row(f"{what}, median of {len(alone)} rounds", f"{1000 * statistics.median(a[0] for a in alone):.0f} ms")]
    for name, at_most, those, beside in (
        (watched, goal, took["watched"], alone),
        ("step with nothing more, the control", None, took["bare again"], took["bare"]),
    ):
        clock, work = ([t[i] / b[i] for t, b in zip(those, beside, strict=True)] for i in (0, 1))
        out += _added(name, clock, work, at_most)
    middle, low, high = interval([share for share, _ in turns.inside])
    milliseconds = 1000 * statistics.median(seconds for _, seconds in turns.inside)
    out.append(
        Row(
            "of a watched step, time inside our hooks, by the clock",
            f"{middle:.1%} ({low:.1%} to {high:.1%}), {milliseconds:.1f} ms",
            f"at most {goal:.0%}",
            middle <= goal,
        )
    )
    faults = ", ".join(f"{statistics.median(each[2] for each in took[name]):,.0f}" for name in took)
    return [*out, Row("page faults of a step: bare, watched, control", faults)]


def _added(what: str, clock: Sequence[float], work: Sequence[float], goal: float | None) -> list[Row]:
    """What is added to a step, in processors' time and by the clock, as shares."""
    out = []
    for ratios, how in ((work, f"{what}, processors' time"), (clock, "the same, by the clock")):
        middle, least, most = interval(ratios)
        met = None if goal is None else middle - 1 <= goal
        value = f"{middle - 1:+.1%} ({least - 1:+.1%} to {most - 1:+.1%})"
        out.append(Row(how, value, "" if goal is None else f"at most {goal:+.0%}", met))
    return out


# ---------------------------------------------------------------------- memory
def tensor_bytes(root: Any, without: set[int]) -> int:
    """Bytes of the tensor storages reachable from an object, less those in ``without``."""
    seen, total, queue = set(without), 0, [root]
    visited: set[int] = set()
    while queue:
        thing = queue.pop()
        if id(thing) in visited:
            continue
        visited.add(id(thing))
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
        elif isinstance(thing, (torch.nn.Module, torch.optim.Optimizer, type)):
            continue
        elif isinstance(thing, dict):
            queue += list(thing.values())
        elif isinstance(thing, (list, tuple, set)):
            queue += list(thing)
        elif hasattr(thing, "__dict__"):
            queue += list(vars(thing).values())
    return total


def peak_mb(way: str, count: int) -> float:
    """Peak resident memory of a fresh process that trains so, MB."""
    done = subprocess.run(
        [sys.executable, __file__, "--train", way, str(count)],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name not in ALLOCATOR},
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def train(way: str, count: int) -> None:
    """Train in this process, print peak memory in MB."""
    torch.set_num_threads(THREADS)
    model, batches = full_model(), full_batches()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    if way == "watch":
        with watch(model, optimizer) as w:
            for i in range(count):
                watched_step(model, optimizer, batches[i % len(batches)], w)
    elif way == "pytest-torch":
        from pytest_torch import run_training

        run_training(lambda: (model, optimizer), batches, lambda s, b: step(s.model, s.optimizer, b), steps=count)
    else:
        for i in range(count):
            step(model, optimizer, batches[i % len(batches)])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MB if sys.platform == "darwin" else 1024))


def memory() -> list[Row]:
    """Tensors that a watch keeps alive, and peak resident memory."""
    model, batches = full_model(), full_batches()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    head = sum(p.numel() * p.element_size() for p in model.classifier.parameters())
    with watch(model, optimizer) as w:
        for i in range(4):
            watched_step(model, optimizer, batches[i], w)
        known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        known |= {p.grad.untyped_storage().data_ptr() for p in model.parameters() if p.grad is not None}
        kept = tensor_bytes(w, known)
        live = recorder_of(w)._live
        # a series of three numbers a tensor grows to 1,024 steps, then every second one goes
        series = 1024 * 3 * len(live) * 4
    extra = (kept + series - head) / weights
    ways_ = ("bare", "watch", "pytest-torch")
    peaks: dict[str, list[float]] = {way: [] for way in ways_}
    for _ in range(3):
        for way in ways_:
            peaks[way].append(peak_mb(way, 5))
    base = statistics.median(peaks["bare"])
    rows = [
        Row("weights; the head", f"{weights / MB:.0f} MB; {head / MB:.1f} MB"),
        Row(
            "tensors kept by watch, series full, less one copy of the head",
            f"{extra:.2%} of the weights ({(kept + series) / MB:.1f} MB with the copy)",
            f"at most {MAX_MEMORY:.0%}",
            extra <= MAX_MEMORY,
        ),
        Row(
            "peak memory of a process, bare",
            f"{base:.0f} MB (runs differ by {max(peaks['bare']) - min(peaks['bare']):.0f})",
        ),
    ]
    for way in ways_[1:]:
        more = statistics.median(peaks[way]) - base
        ours = way == "watch"
        limit = (weights * MAX_MEMORY + head) / MB
        rows.append(
            Row(
                f"the same under {way}",
                f"{more:+.1f} MB ({more / (weights / MB):+.1%} of the weights)",
                f"at most {limit:+.1f} MB" if ours else "",
                more <= limit if ours else None,
            )
        )
    return rows


# ---------------------------------------------------------------------- long runs
def _tiny() -> tuple[torch.nn.Module, torch.optim.Optimizer, list[Any]]:
    model = tiny_distilbert(seed=0, n_layers=1, dim=32, hidden_dim=64).train()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4), toy_batches(8, 4)


def growth() -> list[Row]:
    """Time inside the hooks at steps 9,800 to 9,900 against steps 100 to 200: two watches, taking turns; then the long trace."""
    torch.set_num_threads(1)  # nothing to share out in so small a model
    old, young = _tiny(), _tiny()
    with watch(*old[:2]) as a, watch(*young[:2]) as b:
        for w, (model, optimizer, batches), count in ((a, old, LONG - 200), (b, young, 100)):
            for i in range(count):
                watched_step(model, optimizer, batches[i % 8], w)
        ratios, times = [], []
        for i in range(100):
            late, early = (
                timed(lambda i, m=m, o=o, w=w, d=d: watched_step(m, o, d[i % 8], w), 1)[0]
                for w, (m, o, d) in ((a, old), (b, young))
            )
            ratios.append(late / early)
            times.append(early)
        for i in range(100):
            watched_step(*old[:2], old[2][i % 8], a)
    middle, low, high = interval(ratios)
    trace = a.trace
    torch.set_num_threads(THREADS)
    memory_mb, json_mb = deep_size(trace) / MB, len(trace.to_json()) / MB
    return [
        Row(
            f"steps {LONG - 200:,} to {LONG - 100:,} against steps 100 to 200 (tiny model, {1000 * statistics.median(times):.1f} ms)",
            f"x {middle:.3f} ({low:.3f} to {high:.3f})",
            f"at most x {MAX_GROWTH:g}",
            middle <= MAX_GROWTH,
        ),
        Row(
            f"trace of {len(trace.steps):,} steps, {len(trace.tensors)} tensors, in memory",
            f"{memory_mb:.1f} MB",
            f"below {MAX_TRACE_MB} MB",
            memory_mb < MAX_TRACE_MB,
        ),
        Row("the same as JSON", f"{json_mb:.1f} MB", f"below {MAX_TRACE_MB} MB", json_mb < MAX_TRACE_MB),
    ]


def deep_size(root: Any) -> int:
    """Bytes of plain data, every object counted once."""
    seen: set[int] = set()
    queue, total = [root], 0
    while queue:
        thing = queue.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        total += sys.getsizeof(thing)
        if is_dataclass(thing):
            queue += [getattr(thing, f.name) for f in fields(thing)]
            total += 8 * len(fields(thing))
        elif isinstance(thing, dict):
            queue += [*thing, *thing.values()]
        elif isinstance(thing, (list, tuple)):
            queue += list(thing)
    return total


# ---------------------------------------------------------------------- finetune
def whole() -> list[Row]:
    """A ``finetune`` of 20 steps, probes and all, against the same recipe as a bare loop: AdamW, clipping, schedule."""
    batches = full_batches(20)
    model = full_model()

    skipped: dict[str, str] = {}

    def bare() -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, i / 2, (20 - i) / 18))
        model.train()
        for b in batches:
            optimizer.zero_grad()
            cross_entropy(model(b[0]), b[1]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()

    def probed(probes: Sequence[str] | None) -> Callable[[], None]:
        def run() -> None:
            trace = finetune(model, batches, steps=20, probes=probes)
            if probes is None:
                skipped.update({n: why for n, why in trace.skipped.items() if why.startswith("left out")})

        return run

    arms = {
        "bare": bare,
        "finetune, no probes": probed(()),
        "finetune, loss, descent, noise and metrics": probed(("loss", "descent", "noise", "metrics")),
        "finetune, the default battery": probed(None),
    }
    took: dict[str, list[float]] = {name: [] for name in arms}
    worked: dict[str, list[float]] = {name: [] for name in arms}
    bare()
    for turn in range(4):
        for name in list(arms)[:: 1 if turn % 2 else -1]:
            began = time.process_time()
            took[name] += timed(lambda _, name=name: arms[name](), 1)
            worked[name].append(time.process_time() - began)
    rows = [
        Row(
            "20 steps, bare",
            f"{statistics.median(took['bare']):.1f} s, {statistics.median(worked['bare']):.1f} s of processors",
        )
    ]
    for name in list(arms)[1:]:
        # on a busy machine the clock tells what the neighbours did; the processors' time is what was worked
        ratio, clock = (
            statistics.median(a / b for a, b in zip(x[name], x["bare"], strict=True)) for x in (worked, took)
        )
        goal = (f"at most x {MAX_BATTERY:g}", ratio <= MAX_BATTERY) if "battery" in name else ("", None)
        rows.append(Row(name, f"x {ratio:.2f} of processors' time, x {clock:.2f} by the clock", *goal))
    rows.append(Row("left out of the default battery", ", ".join(skipped) or "nothing"))
    toys = toy_batches()
    finetune(tiny_distilbert, toys, steps=2)
    tiny = timed(lambda _: finetune(tiny_distilbert, toys, steps=20), 5)
    rows.append(
        Row(
            "the default battery on the tiny default",
            f"{statistics.median(tiny):.2f} s",
            f"at most {MAX_TINY:g} s",
            statistics.median(tiny) <= MAX_TINY,
        )
    )
    return rows


SECTIONS: dict[str, Callable[[], list[Row]]] = {
    "steps": steps,
    "any-loop": any_loop,
    "callback": trainer_callback,
    "compiled": compiled_loop,
    "memory": memory,
    "growth": growth,
    "finetune": whole,
}


def main(arguments: Sequence[str]) -> int:
    """Measure, print a table, judge."""
    if arguments[:1] == ["--train"]:
        train(arguments[1], int(arguments[2]))
        return 0
    if unknown := [a for a in arguments if a not in SECTIONS]:
        raise SystemExit(f"{unknown[0]!r} is none of {', '.join(SECTIONS)}")
    restart()
    warnings.simplefilter("ignore")
    torch.set_num_threads(THREADS)
    versions = []
    for name in ("torch", "transformers", "pytest-ftcheck", "pytest-torch", "torcheck"):
        with contextlib.suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    print(f"What watching costs, {datetime.now(timezone.utc):%Y-%m-%d}")
    print(
        f"Python {platform.python_version()}, {', '.join(versions)}, {os.cpu_count()} cores, {THREADS} threads",
        flush=True,
    )
    missed = 0
    for name in arguments or SECTIONS:
        print(f"\n{name}", flush=True)
        for row in SECTIONS[name]():
            word = "" if row.met is None else f"  [{row.goal}: {'met' if row.met else 'MISSED'}]"
            print(f"  {row.what:66}  {row.value}{word}", flush=True)
            missed += row.met is False
        gc.collect()
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
