"""Two real processes that average their gradients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.trains

SCRIPT = """
import json, sys
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from pytest_ftcheck import check_loss_scale, watch

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
found = {}
for name, factor in (("right", 1.0), ("multiplied", 2.0), ("divided", 0.5)):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model, optimizer, head="2") as w:
        for i in range(3):
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(10 * i + rank))
            optimizer.zero_grad()
            (factor * F.cross_entropy(parallel(x), (x[:, 0] > 0).long())).backward()
            optimizer.step()
    verdict = check_loss_scale(w.trace)
    found[name] = [verdict.status, verdict.fault, verdict.headline, w.trace.measurements["loss_scale"].ranks]
torch.distributed.destroy_process_group()
print(json.dumps(found))
"""


def test_a_loss_that_is_scaled_by_the_number_of_processes(tmp_path):
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    root = Path(__file__).parents[3]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]
    for process in processes:
        try:
            out, errors = process.communicate(timeout=400)
        finally:
            process.kill()
        assert process.returncode == 0, errors
        found = json.loads(out.splitlines()[-1])
        assert [ranks for *_, ranks in found.values()] == [2, 2, 2]
        assert found["right"][0] == "pass"
        for name, operation in (("multiplied", "multiplied by"), ("divided", "divided by")):
            status, fault, headline, _ = found[name]
            assert (status, fault) == ("fail", "loss_scaled_by_ranks")
            assert f"{operation} the 2 processes" in headline
