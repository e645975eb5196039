"""One rank of ``test_watched_ranks.py``: trains each case unwatched, watched by all ranks and by one, and writes down what came of it.

``python ranks_watched.py RANK STORE OUT``; the ranks meet in the file STORE, and rank r writes ``OUT/r.json`` after each case.
"""

from __future__ import annotations

import contextlib
import json
import sys
import zlib
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from pytest_ftcheck import check_dropout_active, check_head_init, diagnose, watch

RANKS, STEPS, EVERY = 2, 12, 4
UNWATCHED, ALL, ONE = "unwatched", "all", "one"


class Model(nn.Module):
    """A table whose second half no row uses, batch statistics, dropout, and a head with a bias of one element."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Embedding(8, 6)
        self.base, self.norm, self.drop = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.1)
        self.scale = nn.Linear(16, 1)
        self.classifier = nn.Linear(16, 3)

    def forward(self, x):
        hidden = self.drop(self.norm(self.base(x + self.positions.weight[:4].mean(0))).relu())
        return self.classifier(hidden * self.scale(hidden).sigmoid())


def batches(rank):
    generator = torch.Generator().manual_seed(rank)
    return [(torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)) for _ in range(STEPS)]


class AllRows(torch.autograd.Function):
    """The rows of all ranks, as a contrastive loss needs them."""

    @staticmethod
    def forward(ctx, rows):
        parts = [torch.empty_like(rows) for _ in range(RANKS)]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        distributed.all_reduce(grad)
        return grad.chunk(RANKS)[distributed.get_rank()]


def ddp(model):
    return DistributedDataParallel(model)


def parts_in_ddp(model):
    model.base, model.classifier = ddp(model.base), ddp(model.classifier)
    return model


def fsdp(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (RANKS,))
    fully_shard(model.base, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def through_wrapper(model):
    return lambda _, batch: cross_entropy(model(batch[0]), batch[1])


def of_all_rows(_):
    return lambda model, batch: cross_entropy(AllRows.apply(model(batch[0])), AllRows.apply(batch[1]))


def evaluate(model, rank):
    """``fully_shard`` leaves the outermost parameters gathered."""
    model.eval()
    with torch.no_grad():
        model(batches(rank)[0][0])
    model.train()


CASES = {
    "ddp": {"wrap": ddp},
    "ddp, accumulating": {"wrap": ddp, "accumulates": True},
    "ddp, accumulating, loss_fn calls the wrapper": {"wrap": ddp, "accumulates": True, "loss_fn": through_wrapper},
    "ddp, loss_fn gathers": {"wrap": ddp, "loss_fn": of_all_rows},
    "parts in ddp": {"wrap": parts_in_ddp, "loss_fn": through_wrapper},
    "fsdp": {"wrap": fsdp, "clips": True},
    "fsdp, evaluated": {"wrap": fsdp, "evaluates": True},
}


def train(rank, watched, *, wrap, accumulates=False, clips=False, evaluates=False, loss_fn=None):
    torch.manual_seed(0)
    model = wrap(Model())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = batches(rank)
    if evaluates:
        evaluate(model, rank)
    given = {"probe_batch": data[0], **({} if loss_fn is None else {"loss_fn": loss_fn(model)})}
    with watch(model, **given) if watched else contextlib.nullcontext() as w:
        torch.manual_seed(rank)
        for number, (x, y) in enumerate(data, 1):
            whole = not accumulates or number % EVERY == 0
            with contextlib.nullcontext() if whole else model.no_sync():
                cross_entropy(model(x), y).backward()
            if clips:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if whole:
                optimizer.step()
                optimizer.zero_grad()
        if evaluates:
            evaluate(model, rank)
    return model, optimizer, w


def bits(optimizer, model):
    """Checksum of the parameters, as the optimizer holds them, and the buffers."""
    tensors = [p for group in optimizer.param_groups for p in group["params"]] + list(model.buffers())
    whole = 0
    for t in tensors:
        here = t.to_local() if hasattr(t, "to_local") else t
        whole = zlib.crc32(here.detach().contiguous().numpy().tobytes(), whole)
    return whole


def described(trace):
    return {
        "names": [t.name for t in trace.tensors],
        "shards": {t.name: t.shard for t in trace.tensors},
        "replaced": [t.name for t in trace.tensors if t.replaced],
        "steps": len(trace.steps),
        "losses": len(trace.losses),
        "points": 0 if trace.probe_loss is None else len(trace.probe_loss.points),
        "notes": list(trace.notes),
        "skipped": trace.skipped,
        "failed": {v.check: v.headline for v in diagnose(trace).verdicts if v.status == "fail"},
        "asked": {
            v.check: (v.status, v.headline, v.remedy) for v in (check_head_init(trace), check_dropout_active(trace))
        },
        "first": {t.name: (t.first.mean, t.first.rms, t.first.std) for t in trace.tensors},
    }


def whole_statistics(model):
    found = {}
    for name, p in model.named_parameters():
        values = p.full_tensor().detach()
        found[name] = (float(values.mean()), float(values.square().mean().sqrt()), float(values.std(unbiased=False)))
    return found


def refused():
    from torch.distributed.fsdp import FullyShardedDataParallel

    try:
        watch(FullyShardedDataParallel(Model(), device_id=torch.device("cpu")))
    except ValueError as error:
        return str(error)
    return ""


def main(rank, store, out):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    found = {"fsdp1": refused()}
    for name, case in CASES.items():
        of_case = found[name] = {"bits": {}}
        for who in (UNWATCHED, ALL, ONE):
            model, optimizer, w = train(rank, who == ALL or (who == ONE and rank == 0), **case)
            of_case["bits"][who] = bits(optimizer, model)
            if w is not None:
                of_case[who] = described(w.trace)
            if who == ALL and name == "fsdp":
                of_case["gathered"] = described(w.gather())
        Path(out, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    torch.manual_seed(0)
    start = fsdp(Model())
    found["whole"] = whole_statistics(start)
    Path(out, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
