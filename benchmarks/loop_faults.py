"""Faults of the loop itself, in five ways of running: ``python benchmarks/loop_faults.py [--seeds 20] [--workers 2]``.

A mask that is forgotten or inverted, softmax taken twice, labels of other rows, a detached loss: in the model and its loss (batches in
a list, or from a DataLoader over several epochs), in ``step=``, in ``loss_fn=``, and in a loop that is watched. Our own calls of the model
would pass the right mask and compute the right loss; the loop's do not. The exit status is 1 if a fault is not the first cause, or a
healthy run has one.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pad_sequence

from pytest_ftcheck import Trace, diagnose, finetune, tiny_distilbert, toy_batches, watch

WAYS = ("list", "DataLoader", "step", "loss_fn", "watch")
STEPS = 40


class Loop:
    """What happens between a batch and its loss; each fault changes one thing."""

    def __init__(self, fault: str = "healthy") -> None:
        self.fault = fault

    def mask(self, mask: torch.Tensor) -> torch.Tensor:
        """The attention mask that the model is given."""
        return (
            torch.ones_like(mask)
            if self.fault == "mask forgotten"
            else 1 - mask
            if self.fault == "mask inverted"
            else mask
        )

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss that is backpropagated."""
        if self.fault == "softmax twice":
            logits = logits.softmax(-1)
        elif self.fault == "detached loss":
            logits = logits.detach().requires_grad_()
        return F.cross_entropy(logits, labels.roll(1) if self.fault == "labels shifted" else labels)

    def whole(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """From a batch to its loss."""
        (ids, length, mask), labels = batch
        return self.loss(model((ids, length, self.mask(mask))), labels)

    def step(
        self, model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer, _scheduler: Any = None
    ) -> torch.Tensor:
        """One iteration."""
        optimizer.zero_grad()
        loss = self.whole(model, batch)
        loss.backward()
        optimizer.step()
        return loss


class OwnLoss(nn.Module):
    """A model that computes its loss itself, as those of transformers do."""

    def __init__(self, inner: nn.Module, loop: Loop) -> None:
        super().__init__()
        self.inner, self.loop = inner, loop

    def forward(
        self,
        input_ids: torch.Tensor,
        lengths: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """Logits, and the loss where labels are given."""
        logits = self.inner((input_ids, lengths, self.loop.mask(attention_mask)))
        return {"loss": None if labels is None else self.loop.loss(logits, labels), "logits": logits}


#: Fault -> ids of faults that name it.
FAULTS: dict[str, tuple[str, ...]] = {
    "healthy": (),
    "mask forgotten": ("mask_not_passed", "mask_all_ones"),
    "mask inverted": ("mask_inverted",),
    "softmax twice": ("double_softmax",),
    "labels shifted": ("labels_of_other_rows",),
    "detached loss": ("loss_cut_off", "backward_reaches_nothing"),
}


def trace_of(fault: str, way: str, seed: int) -> Trace:
    """One run."""
    loop, batches, model = Loop(fault), toy_batches(seed=seed), tiny_distilbert(seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if way == "step":
        return finetune(model, batches, optimizer=optimizer, step=loop.step, steps=STEPS, seed=seed)
    if way == "loss_fn":
        return finetune(model, batches, loss_fn=loop.whole, lr=1e-3, steps=STEPS, seed=seed)
    if way == "watch":
        torch.manual_seed(seed)
        with watch(model, optimizer, probe_batch=batches[0]) as watched:
            for i in range(STEPS):
                loop.step(model, batches[i % len(batches)], optimizer)
        return watched.trace
    named = [{"input_ids": i, "lengths": n, "attention_mask": m, "labels": y} for (i, n, m), y in batches]
    data: Any = named
    if way == "DataLoader":
        rows = [{k: v[row] for k, v in batch.items()} for batch in named for row in range(len(batch["labels"]))]
        generator = torch.Generator().manual_seed(seed)
        data = torch.utils.data.DataLoader(rows, batch_size=16, shuffle=True, generator=generator, collate_fn=_collated)
    return finetune(OwnLoss(model, loop), data, lr=1e-3, steps=STEPS, seed=seed, head="inner.classifier")


def _collated(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    return {k: pad_sequence(v, batch_first=True) if v[0].dim() else torch.stack(v) for k, v in columns.items()}


def first_cause(fault: str, way: str, seed: int) -> str:
    """The fault of the first cause, or the status of a run without causes."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diagnosis = diagnose(trace_of(fault, way, seed))
    return diagnosis.causes[0].fault if diagnosis.causes else diagnosis.status


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=list(FAULTS), help="some of the faults; default: all")
    options = parser.parse_args()
    wrong = 0
    print(f"| fault | {' | '.join(WAYS)} |\n|---|{'---|' * len(WAYS)}")
    with ProcessPoolExecutor(options.workers) as pool:
        for fault in options.only or FAULTS:
            ids = FAULTS[fault]
            cells = []
            for way in WAYS:
                jobs = [pool.submit(first_cause, fault, way, seed) for seed in range(options.seeds)]
                found = Counter(job.result() for job in jobs)
                right = sum(n for name, n in found.items() if name in (ids or ("healthy",)))
                wrong += options.seeds - right
                others = {name: n for name, n in found.items() if name not in (ids or ("healthy",))}
                cells.append(f"{right} of {options.seeds}" + (f" {others}" if others else ""))
            print(f"| {fault} | {' | '.join(cells)} |", flush=True)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
