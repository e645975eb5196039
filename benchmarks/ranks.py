"""Faults that exist only across ranks, and their healthy twins: ``python benchmarks/ranks.py [--seeds 10] [--ranks 2] [--only NAME]``.

Each run trains a small classifier on gloo processes of this machine, and is watched, gathered and judged on every rank. A healthy one runs
unwatched, too, and ends with the same weights to the bit. The exit status is 1 if a fault is not named, a healthy run has one, or watching
changed a bit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from pytest_ftcheck import Trace, check_ranks_agree, watch

ROWS, BATCH, EPOCHS, FEATURES = 96, 8, 3, 6
#: Fault of the loop -> the fault that is to be named.
FAULTS = {
    "no DDP": "ranks_train_alone",
    "no_sync() left on": "no_sync_left_on",
    "past the wrapper": "wrapper_bypassed",
    "different start weights": "start_weights_differ",
    "one rank's weights written": "ranks_drift_apart",
    "another lr on rank 1": "rank_settings_differ",
    "another weight decay on rank 1": "rank_settings_differ",
    "no DistributedSampler": "same_rows_on_all_ranks",
    "set_epoch() not called": "epochs_in_same_order",
    "gradients summed": "rank_gradients_summed",
    "gradients averaged twice": "rank_gradients_averaged_twice",
    "scheduler stepped once a rank": "schedule_stepped_once_a_rank",
    "accelerate, schedule for one rank's steps": "schedule_stepped_once_a_rank",
    "NaN rows on rank 1": "nonfinite_on_one_rank",
    "a step more on rank 1": "rank_steps_differ",
}
HEALTHY = (
    "DDP",
    "DDP, accumulation with no_sync()",
    "DDP, clipped gradients",
    "averaged by hand",
    "summed by hand, loss over the rows of all ranks",
    "weights averaged every 3 steps",
    "DDP, wrapped inside the block",
    "FSDP2",
    "accelerate",
    "accelerate, split_batches",
    "Trainer",
)


class Classifier(nn.Module):
    """Two layers and a head; the rows' labels are the sign of their first feature."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.classifier = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        """Logits; with labels a dict with the loss, as the Trainer expects it."""
        logits = self.classifier(self.base(x))
        return logits if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def data() -> TensorDataset:
    """The same rows on every rank."""
    x = torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > 0).long())


class Watch:
    """``watch``, or nothing where it is off."""

    def __init__(self, subject: Any, on: bool) -> None:
        self._watch = watch(subject) if on else None

    def __enter__(self) -> None:
        if self._watch is not None:
            self._watch.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._watch is not None:
            self._watch.__exit__(*error)

    def end(self, model: nn.Module) -> tuple[Trace | None, int]:
        """The merged trace, and a checksum of the weights that this rank holds."""
        held = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
        checksum = zlib.crc32(torch.cat([p.detach().reshape(-1) for p in held]).numpy().tobytes())
        return None if self._watch is None else self._watch.gather(timeout=60.0), checksum


def train(case: str, seed: int, *, watched: bool = True) -> tuple[Trace | None, int]:
    """One run of this case, see `Watch.end`."""
    if case not in (*FAULTS, *HEALTHY):
        raise ValueError(f"no such case: {case}")
    torch.manual_seed(seed)
    if case.startswith("FSDP2"):
        return fsdp(case, seed, watched)
    if case.startswith("accelerate"):
        return accelerate(case, watched)
    return trainer(seed, watched) if case == "Trainer" else plain(case, seed, watched)


# ---------------------------------------------------------------------- a loop by hand
def plain(case: str, seed: int, watched: bool) -> tuple[Trace | None, int]:
    """DDP, or averaging by hand; each fault changes one thing."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    one = rank == 1
    if case == "different start weights":
        torch.manual_seed(1000 * seed + rank)
    model = Classifier()
    by_hand = case in (
        "averaged by hand",
        "different start weights",
        "gradients summed",
        "summed by hand, loss over the rows of all ranks",
        "weights averaged every 3 steps",
    )
    alone = case == "no DDP" or by_hand
    inside = case == "DDP, wrapped inside the block"
    called: Any = model if alone or inside else DistributedDataParallel(model)
    sampler: Any = DistributedSampler(data(), world, rank, shuffle=True, seed=seed)
    if case == "no DistributedSampler":
        loader = DataLoader(data(), BATCH, shuffle=True, generator=torch.Generator().manual_seed(seed))
        sampler = None
    else:
        loader = DataLoader(data(), BATCH, sampler=sampler)
    decay = 0.3 if case == "another weight decay on rank 1" and one else 0.01
    lr = 3e-2 if case == "another lr on rank 1" and one else 1e-2
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
    accumulation = 2 if "no_sync" in case else 1
    total = EPOCHS * len(loader) // accumulation
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: max(0.0, 1 - i / total))
    w = Watch(called, watched)
    with w:
        if inside:
            called = DistributedDataParallel(model)
        for number, (x, y) in enumerate(batches(loader, sampler, case)):
            synced = number % accumulation == accumulation - 1
            kept_back = case == "no_sync() left on" or (accumulation > 1 and not synced)
            x = torch.full_like(x, math.nan) if case == "NaN rows on rank 1" and one and number == 5 else x
            with called.no_sync() if kept_back else nullcontext():
                logits = (called.module if case == "past the wrapper" else called)(x)
                loss = F.cross_entropy(logits, y) / accumulation
                (loss / world if case.startswith("summed by hand") else loss).backward()
            if synced:
                communicate(case, model, world)
                for _ in range(2 if case == "a step more on rank 1" and one and number % 3 == 0 else 1):
                    optimizer.step()
                optimizer.zero_grad()
                after_step(case, model, world, number)
                for _ in range(world if case == "scheduler stepped once a rank" else 1):
                    scheduler.step()
    return w.end(model)


def batches(loader: DataLoader[Any], sampler: Any, case: str) -> Iterator[Any]:
    """The batches of all epochs."""
    for epoch in range(EPOCHS):
        if sampler is not None and case != "set_epoch() not called":
            sampler.set_epoch(epoch)
        yield from loader


def communicate(case: str, model: nn.Module, world: int) -> None:
    """What is done to the gradients before the step."""
    by_hand = case in ("averaged by hand", "different start weights", "gradients summed") or case.startswith("summed")
    for p in model.parameters():
        assert p.grad is not None
        if by_hand:
            distributed.all_reduce(p.grad)
        if case in ("averaged by hand", "different start weights", "gradients averaged twice"):
            p.grad /= world
    if case == "DDP, clipped gradients":
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)


def after_step(case: str, model: nn.Module, world: int, number: int) -> None:
    """What is done to the weights after the step."""
    if case == "one rank's weights written" and distributed.get_rank() == 1 and number == 4:
        with torch.no_grad():
            for p in model.classifier.parameters():
                p.mul_(0.9)
    if case == "weights averaged every 3 steps" and number % 3 == 2:
        with torch.no_grad():
            for p in model.parameters():
                distributed.all_reduce(p)
                p /= world


# ---------------------------------------------------------------------- frameworks
def fsdp(case: str, seed: int, watched: bool) -> tuple[Trace | None, int]:
    """`fully_shard` on a mesh of CPUs."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    rank, world = distributed.get_rank(), distributed.get_world_size()
    model = Classifier()
    mesh = init_device_mesh("cpu", (world,))
    fully_shard(model.base, mesh=mesh)
    fully_shard(model, mesh=mesh)
    sampler: Any = DistributedSampler(data(), world, rank, shuffle=True, seed=seed)
    loader = DataLoader(data(), BATCH, sampler=sampler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    w = Watch(model, watched)
    with w:
        for x, y in batches(loader, sampler, case):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return w.end(model)


def accelerate(case: str, watched: bool) -> tuple[Trace | None, int]:
    """Accelerate steps a prepared schedule once for each process, unless batches are split: its steps are to be those of one process."""
    from accelerate import Accelerator, DataLoaderConfiguration
    from accelerate.state import AcceleratorState, GradientState, PartialState

    split = case.endswith("split_batches")
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=split))
    model = Classifier()
    world = accelerator.num_processes
    loader = DataLoader(data(), BATCH * (world if split else 1), shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    total = EPOCHS * len(loader) // (world if case.endswith("one rank's steps") else 1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: max(0.0, 1 - i / total))
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    w = Watch(model, watched)
    with w:
        for _ in range(EPOCHS):
            for x, y in loader:
                accelerator.backward(F.cross_entropy(model(x), y))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    ended = w.end(model)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    return ended


def trainer(seed: int, watched: bool) -> tuple[Trace | None, int]:
    """Its own DDP, samplers and schedule."""
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from transformers import Trainer, TrainingArguments

    x, y = data().tensors
    rows = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-2,
            seed=seed,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            ddp_backend="gloo",
        )
        trained = Trainer(Classifier(), arguments, train_dataset=rows)
        w = Watch(trained, watched)
        with w:
            trained.train()
        ended = w.end(trained.model)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    return ended


# ---------------------------------------------------------------------- processes
def _rank(rank: int, world: int, folder: str, cases: Sequence[str], seeds: Sequence[int]) -> None:
    """One process: all cases, one after another; the first writes what it judged, a line a run."""
    environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "ACCELERATE_USE_CPU": "true"}
    # accelerate asks for an address, though the group exists already
    os.environ.update(environment, MASTER_ADDR="127.0.0.1", MASTER_PORT="29500", LOCAL_WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    try:
        with (Path(folder) / f"found{rank}").open("w", encoding="utf-8") as found:
            for case in cases:
                for seed in seeds:
                    trace, weights = train(case, seed)
                    assert trace is not None
                    verdict = check_ranks_agree(trace)
                    same = case not in HEALTHY or train(case, seed, watched=False)[1] == weights
                    row = [case, seed, verdict.status, verdict.fault, verdict.headline, list(verdict.causes), same]
                    found.write(json.dumps(row) + "\n")
                    found.flush()
    finally:
        distributed.destroy_process_group()


def judged(cases: Sequence[str], seeds: Sequence[int], ranks: int = 2, seconds: float = 600.0) -> list[list[Any]]:
    """Of each run: case, seed, status, fault, headline, causes, whether unwatched it is the same. All processes are ended in every case.

    :raises RuntimeError: a process failed, or the time is over.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.start_processes(
            _rank, (ranks, folder, list(cases), list(seeds)), ranks, join=False, start_method="spawn"
        )
        try:
            end = time.monotonic() + seconds
            while not context.join(timeout=1.0):  # raises what a process raised
                if time.monotonic() > end:
                    raise RuntimeError(f"the ranks have not ended after {seconds:g} s")
        finally:
            for p in context.processes:
                if p.is_alive():
                    p.kill()
                p.join()
        lines = [(Path(folder) / f"found{rank}").read_text(encoding="utf-8").splitlines() for rank in range(ranks)]
    if any(of_rank != lines[0] for of_rank in lines):
        raise RuntimeError("the ranks judged the merged trace differently")
    return [json.loads(line) for line in lines[0]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--only", action="append", default=[], help="a case by its name")
    arguments = parser.parse_args()
    cases = [case for case in (*FAULTS, *HEALTHY) if not arguments.only or case in arguments.only]
    found = judged(cases, range(arguments.seeds), arguments.ranks, seconds=3600.0)
    right = 0
    print(f"| run on {arguments.ranks} ranks | to be named | right | otherwise |\n|---|---|---|---|")
    for case in cases:
        runs = [row for row in found if row[0] == case]
        wanted = FAULTS.get(case, "")
        wrong = [row for row in runs if row[3] != wanted or (not wanted and row[2] != "pass") or not row[6]]
        right += len(runs) - len(wrong)
        other = "; ".join(
            sorted({f"{row[2]} {row[3]}".strip() + ("" if row[6] else ", weights differ") for row in wrong})
        )
        print(f"| {case} | {wanted and f'`{wanted}`'} | {len(runs) - len(wrong)} of {len(runs)} | {other} |")
    print(f"\n{right} of {len(found)} runs are judged rightly.")
    return int(right < len(found))


if __name__ == "__main__":
    sys.exit(main())
