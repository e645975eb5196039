"""What two gloo processes do in `training/test_gather.py`."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn import functional as F

from pytest_ftcheck import Trace, watch


def rows():
    g = torch.Generator().manual_seed(distributed.get_rank() if distributed.is_initialized() else 0)
    return [(torch.randn(8, 6, generator=g), torch.randint(2, (8,), generator=g)) for _ in range(4)]


def watched(model, begin=lambda: None):
    called = model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with watch(model) as w:
        begin()
        for x, y in rows():
            F.cross_entropy(called(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return w


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


def gathered(rank):
    """The same on every rank, equal to the pure function of the traces."""
    from pytest_ftcheck.training.merge_ranks import merge_ranks

    w = watched(net())
    texts = [None, None]
    distributed.all_gather_object(texts, w.trace.to_json())
    merged = merge_ranks([Trace.from_json(text) for text in texts])
    found = w.gather(timeout=300.0)
    assert merge_ranks([Trace.from_json(text) for text in reversed(texts)]) == merged
    return found == merged, found.to_json()


def one_rank_does_not_come(rank):
    """Rank 1 calls it too late."""
    w = watched(net())
    if rank == 1:
        return "did not come"
    try:
        w.gather(timeout=2.0)
    except RuntimeError as error:
        return str(error)
    return "no error"


def of_a_group(rank):
    """A group of one rank has nobody to agree with."""
    groups = [distributed.new_group([r]) for r in (0, 1)]
    found = watched(net()).gather(group=groups[rank])
    return found.notes[-1]


def sharded(rank):
    """Shards of a model are merged."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = net()
    whole = {name: p.detach().clone() for name, p in model.named_parameters()}
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms = []
    with watch(model) as w:
        for x, y in rows():
            F.cross_entropy(model(x), y).backward()
            norms.append({n: float(p.grad.full_tensor().norm()) for n, p in model.named_parameters()})
            optimizer.step()
            optimizer.zero_grad()
    end = {n: p.full_tensor().detach() for n, p in model.named_parameters()}
    trace = w.gather(timeout=300.0)
    wrong = []
    for t in trace.tensors:
        pairs = {
            "rms before": (t.first.rms, float(whole[t.name].norm()) / whole[t.name].numel() ** 0.5),
            "mean before": (t.first.mean, float(whole[t.name].mean())),
            "low after": (t.last.low, float(end[t.name].min())),
            "largest": (t.motion.largest, float((end[t.name] - whole[t.name]).abs().max())),
            "rms": (t.motion.rms, float((end[t.name] - whole[t.name]).norm()) / whole[t.name].numel() ** 0.5),
            "gradient": (t.grad_norms[1], norms[1][t.name]),
            "largest gradient": (t.gradients.max_norm, max(n[t.name] for n in norms)),
        }
        wrong += [
            f"{t.name} {what}: {a} is not {b}" for what, (a, b) in pairs.items() if abs(a - b) > 2e-3 * abs(b) + 1e-7
        ]
    return wrong


def run(rank, folder):
    """One process: all of them, the one that ends the group last."""
    torch.set_num_threads(1)

    def begin():
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=300)
        )

    found = {"before_the_group": before_the_group(begin)}
    for function in (gathered, of_a_group, sharded, one_rank_does_not_come):
        found[function.__name__] = function(rank)
    (Path(folder) / f"result{rank}").write_text(json.dumps(found), encoding="utf-8")


def before_the_group(begin):
    """The block begins before there is a group."""
    w = watched(net(), begin)
    try:
        w.gather(timeout=300.0)
    except RuntimeError as error:
        return str(error)
    return "no error"
