"""How fast are many heads at once? ``python benchmarks/inits.py [speed effort roofline groups map]``.

256 heads 384 -> 384 -> 2, 30 steps of 32 rows, AdamW, two threads: `train_heads` against a plain loop over ``torch.optim.AdamW``, in the
same process, in blocks that take turns; both must give the same losses. What the machine could do at best is measured beside it: the
matrix products, the optimizer and the memory, each alone. Then a map of 1,024 cells. The exit status is 1 if a goal is missed.
"""

from __future__ import annotations

import copy
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pytest_ftcheck import Features, InitScheme, Recipe, sweep
from pytest_ftcheck.initialization import engine
from pytest_ftcheck.initialization.engine import train_heads
from pytest_ftcheck.initialization.jobs import Job, Plan, order_of
from pytest_ftcheck.initialization.layers import read_layers

THREADS, WIDTH, CLASSES, STEPS, BATCH, HEADS = 2, 384, 2, 30, 32, 256
ROUNDS, BLOCK = 5, 32
GOAL, GOAL_MAP = 15.0, 60.0
RECIPE = Recipe(steps=STEPS, max_grad_norm=None)


def features(width: int = WIDTH) -> Features:
    """Rows whose class is in their first eight numbers."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1024, width, generator=g)
    return Features.of(x, (x[:, :8].sum(1) > 0).long(), held_out=0.25)


def head(width: int = WIDTH) -> nn.Module:
    """384 -> 384 -> 2; no dropout, so that both ways can be compared to the last digits."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES))


def jobs(heads: int = HEADS) -> list[Job]:
    """8 stds x 8 learning rates x 4 seeds."""
    stds = [10 ** (-3 + 2.5 * i / 7) for i in range(8)]
    lrs = [10 ** (-5 + 3 * i / 7) for i in range(8)]
    return [Job(InitScheme.normal(s), lr, seed) for s in stds for lr in lrs for seed in range(4)][:heads]


def plain(todo: Sequence[Job], data: Features, **options: Any) -> list[float]:
    """What anybody would write: one head after the other. Returns the loss of the last step."""
    template, out = head(data.width), []
    for job in todo:
        made = job.scheme.apply(copy.deepcopy(template), seed=job.seed)
        optimizer = torch.optim.AdamW(made.parameters(), lr=job.lr, weight_decay=RECIPE.weight_decay, **options)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, RECIPE.lr_factor)
        for rows in order_of(len(data.x), BATCH, STEPS, job.seed):
            optimizer.zero_grad()
            loss = cross_entropy(made(data.x[rows]), data.y[rows])
            loss.backward()
            optimizer.step()
            scheduler.step()
        out.append(float(loss.detach()))
    return out


def seconds(call: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def processor(call: Callable[[], Any]) -> float:
    """Processor time of one call, of all threads together."""
    began = time.process_time()
    call()
    return time.process_time() - began


def least(call: Callable[[], Any], times: int = 15) -> float:
    """The best of several calls: what the machine can do when nobody interferes."""
    return min(seconds(call) for _ in range(times))


def quantiles(values: Sequence[float]) -> str:
    """Median, and the range."""
    return f"{statistics.median(values):.2f} (from {min(values):.2f} to {max(values):.2f})"


# ---------------------------------------------------------------------- sections
def speed() -> bool:
    """The ratio, and that the results are the same."""
    data, todo = features(), jobs()
    plan = Plan(RECIPE, BATCH)
    runs, how = train_heads(head(), data, todo, plan)
    print(
        f"\n256 heads {WIDTH} -> {WIDTH} -> {CLASSES}, {STEPS} steps of {BATCH}, AdamW, {torch.get_num_threads()} threads; ours: {how}"
    )
    mine = torch.tensor([r.losses[-1] for r in runs])
    torch.set_num_threads(1)
    theirs = torch.tensor(plain(todo, data))
    torch.set_num_threads(THREADS)
    worst = float(((mine - theirs).abs() / theirs.abs().clamp_min(1e-3)).max())
    print(f"  same results: last training loss of {len(todo)} heads differs by {worst:.1e} of itself at most")
    ours: list[float] = []
    loops: dict[str, list[float]] = {"AdamW": [], "AdamW, one thread": [], "AdamW(fused=True)": []}
    for i in range(ROUNDS):
        some = todo[i * BLOCK % HEADS :][:BLOCK]
        ours.append(seconds(lambda: train_heads(head(), data, todo, plan)))
        scale = HEADS / len(some)
        loops["AdamW"].append(scale * seconds(lambda some=some: plain(some, data)))
        loops["AdamW(fused=True)"].append(scale * seconds(lambda some=some: plain(some, data, fused=True)))
        torch.set_num_threads(1)
        loops["AdamW, one thread"].append(scale * seconds(lambda some=some: plain(some, data)))
        torch.set_num_threads(THREADS)
    each = 1e6 / HEADS / STEPS
    print(
        f"  vectorised, all measures included: {quantiles(ours)} s, {statistics.median(ours) * each:.0f} us a step of a head"
    )
    for name, times in loops.items():
        ratios = [t / o for t, o in zip(times, ours, strict=True)]
        print(
            f"  one by one, {name}: {quantiles(times)} s, {statistics.median(times) * each:.0f} us; {quantiles(ratios)} times as long"
        )
    # the loop as anybody would write it, at its better number of threads: on a busy machine two threads wait for each other
    plainly = [min(pair) for pair in zip(loops["AdamW"], loops["AdamW, one thread"], strict=True)]
    ratio = statistics.median(t / o for t, o in zip(plainly, ours, strict=True))
    setup = seconds(lambda: [engine_start(job) for job in todo[:: len(todo) // 32]])
    print(
        f"  initial weights of {HEADS} heads ({HEADS // 8} different ones): {setup:.3f} s, {setup / statistics.median(ours):.0%} of the run"
    )
    met = ratio >= GOAL and worst < 1e-3
    print(f"  goal: {GOAL:g} times, same results: {'met' if met else 'MISSED'} ({ratio:.1f})")
    return met


def effort() -> bool:
    """Processor time on one thread, which a busy machine disturbs least, for heads of several widths."""
    print("\nSeconds of processor time on one thread, best of three, 256 heads of width -> width -> 2")
    torch.set_num_threads(1)
    plan, todo = Plan(RECIPE, BATCH), jobs()
    for width in (32, 64, 128, WIDTH):
        data = features(width)
        ours = min(processor(lambda d=data, w=width: train_heads(head(w), d, todo, plan)) for _ in range(3))
        loop = HEADS / BLOCK * min(processor(lambda d=data: plain(todo[:BLOCK], d)) for _ in range(3))
        print(f"  {width:4d}: {ours:.2f} against {loop:.2f} one by one: {loop / ours:.1f} times")
    torch.set_num_threads(THREADS)
    return True


def engine_start(job: Job) -> nn.Module:
    """Initial weights of one head."""
    return job.scheme.apply(head(), seed=job.seed)


def roofline() -> bool:
    """What the parts cost at best on this machine, each alone."""
    n = HEADS * STEPS
    weights = WIDTH * WIDTH + WIDTH + WIDTH * CLASSES + CLASSES
    print(f"\nRoofline: {n:,} steps of a head, {weights:,} weights each, {torch.get_num_threads()} threads")
    # each on one thread, and then divided by the threads: our groups never wait for each other, and neither should the yardstick
    torch.set_num_threads(1)
    big = [torch.randn(2**25) for _ in range(3)]
    triad = THREADS * 3 * 4 * 2**25 / least(lambda: torch.add(big[0], big[1], alpha=2.0, out=big[2])) / 1e9
    a, b = torch.randn(3072, 3072), torch.randn(3072, 3072)
    peak = THREADS * 2 * 3072**3 / least(lambda: torch.mm(a, b), 5) / 1e9
    heads = 8
    w, x = torch.randn(heads * WIDTH, WIDTH), torch.randn(WIDTH, BATCH)
    g, z, xt = torch.empty_like(w), torch.randn(heads * WIDTH, BATCH), x.t().contiguous()
    per = heads * THREADS
    forward = least(lambda: torch.mm(w, x), 50) / per
    backward = least(lambda: torch.mm(z, xt, out=g), 50) / per
    m, v, count = torch.zeros_like(w), torch.zeros_like(w), torch.tensor(3.0)
    settings = {
        "lr": 1e-9,
        "beta1": 0.9,
        "beta2": 0.999,
        "weight_decay": 0.01,
        "eps": 1e-8,
        "amsgrad": False,
        "maximize": False,
    }
    adam = least(lambda: torch._fused_adamw_([w], [g], [m], [v], [], [count], **settings), 50) / per
    flops = 2 * 2 * WIDTH * WIDTH * BATCH
    moved = (
        9 * 4 * weights
    )  # read by the forward pass; gradient written; weight, gradient, moments read, all but the gradient written
    print(
        f"  memory: triad {triad:.1f} GB/s; {moved * n / 1e9:.1f} GB if every pass went to memory: {moved * n / triad / 1e9:.2f} s"
    )
    print(
        f"  arithmetic: products at {peak:.0f} GFLOP/s; {flops * n / 1e9:.0f} GFLOP: {flops * n / peak / 1e9:.2f} s at best"
    )
    print(
        f"  in the cache, a step of a head: forward {forward * 1e6:.0f} us, gradient {backward * 1e6:.0f} us, AdamW {adam * 1e6:.0f} us"
    )
    floor = (forward + backward + adam) * n
    torch.set_num_threads(THREADS)
    plan, data, todo = Plan(RECIPE, BATCH), features(), jobs()
    ours = min(seconds(lambda: train_heads(head(), data, todo, plan)) for _ in range(3))
    print(
        f"  the three together {floor:.2f} s, products alone at peak {flops * n / peak / 1e9:.2f} s; ours {ours:.2f} s"
    )
    loop = HEADS / BLOCK * min(seconds(lambda: plain(todo[:BLOCK], data)) for _ in range(3))
    print(
        f"  the plain loop, {loop:.2f} s, is {loop / floor:.1f} times the three together: more than that no exact float32 way can gain"
    )
    print(f"  ours over the three together: {ours / floor:.2f}")
    return True


def groups() -> bool:
    """How the size of a group of heads matters."""
    data, todo, plan = features(), jobs(), Plan(RECIPE, BATCH)
    print("\nHeads in a group (times take turns)")
    sizes = (1, 2, 4, 8, 10, 16, 32, 64)
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(3):
        for size in sizes:
            times[size].append(seconds(lambda size=size: train_heads(head(), data, todo, plan, group=size)))
    for size in sizes:
        each = 1e6 * statistics.median(times[size]) / HEADS / STEPS
        print(f"  {size:3d} heads, {size * 16 * (WIDTH + 3) * WIDTH / 2**20:5.1f} MB: {each:.0f} us a step of a head")
    print(f"  chosen: {engine._heads_in_a_group(read_layers(head()))}")
    return True


def big_map() -> bool:
    """1,024 cells: 32 stds x 32 learning rates."""
    stds = [10 ** (-3 + 3 * i / 31) for i in range(32)]
    lrs = [10 ** (-6 + 6 * i / 31) for i in range(32)]
    founding = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.2), nn.Linear(WIDTH, CLASSES))
    began = time.process_time()
    result = sweep(founding, features(), schemes=stds, lrs=lrs, seeds=1, mark=(0.02, 5e-5))
    spent = time.process_time() - began
    drawn = seconds(lambda: result.plot().savefig(os.devnull, format="png"))
    print(f"\n{result!r}\n  processor time {spent:.1f} s; drawing it: {drawn:.1f} s")
    met = result.seconds + drawn < GOAL_MAP
    print(f"  goal: a map of 1,024 cells in less than {GOAL_MAP:g} s: {'met' if met else 'MISSED'}")
    return met


SECTIONS = {"speed": speed, "effort": effort, "roofline": roofline, "groups": groups, "map": big_map}


def main() -> int:
    """Run the sections that are named, or all."""
    torch.set_num_threads(THREADS)
    names = sys.argv[1:] or list(SECTIONS)
    now = datetime.now(timezone.utc).date()
    load = os.getloadavg()[0]
    print(
        f"{now}, Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores, load {load:.1f}, {THREADS} threads"
    )
    met = [SECTIONS[name]() for name in names]
    return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
