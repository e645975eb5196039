"""A probe in one of several processes: no collective is called, DDP is the module inside it, and afterwards all is as before."""

from __future__ import annotations

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from pytest_ftcheck import tiny_distilbert, toy_batches, watch
from pytest_ftcheck.instruments import other_processes
from pytest_ftcheck.instruments.other_processes import CollectiveInProbe
from pytest_ftcheck.instruments.undisturbed import quiet

FORWARD = vars(DistributedDataParallel)["forward"]


@pytest.fixture
def group(tmp_path, monkeypatch):
    """A group of one process, which counts as several."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    monkeypatch.setattr(other_processes, "processes", lambda: 2)
    yield
    distributed.destroy_process_group()
    assert vars(DistributedDataParallel)["forward"] is FORWARD
    assert _get_current_dispatch_mode_stack() == []
    assert not nn.modules.module._global_forward_pre_hooks


def all_reduce(tensor):
    distributed.all_reduce(tensor)


def all_gather_object(_):
    distributed.all_gather_object([None], {"a": 1})


def barrier(_):
    distributed.barrier()


def functional(tensor):
    from torch.distributed._functional_collectives import all_reduce, wait_tensor

    wait_tensor(all_reduce(tensor, "sum", distributed.group.WORLD))


@pytest.mark.parametrize("collective", [all_reduce, all_gather_object, barrier, functional])
def test_a_collective_is_refused_inside_and_called_outside(group, collective):
    with (
        quiet(nn.Linear(2, 2)),
        pytest.raises(CollectiveInProbe, match="a collective that the other ranks do not call"),
    ):
        collective(torch.ones(2))
    collective(torch.ones(2))


def test_ddp_is_the_module_inside_it_and_its_own_state_stays(group):
    wrapped = DistributedDataParallel(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    x = torch.randn(5, 3)
    before = {name: value for name, value in vars(wrapped).items() if isinstance(value, bool)}
    with quiet(wrapped.module, grad=True):
        out = wrapped(x)
        torch.autograd.grad(out.sum(), list(wrapped.module.parameters()))
        assert torch.equal(out, wrapped.module(x))
    assert {name: vars(wrapped)[name] for name in before} == before
    wrapped(x).sum().backward()  # the reducer is not in the middle of anything
    wrapped(x).sum().backward()


def test_blocks_in_blocks_end_in_their_order(group):
    model = nn.Linear(2, 2)
    with quiet(model):
        with quiet(model):
            assert len(_get_current_dispatch_mode_stack()) == 1
        assert len(_get_current_dispatch_mode_stack()) == 1
        with pytest.raises(CollectiveInProbe):
            all_reduce(torch.ones(1))


def test_an_interrupt_leaves_all_as_before(group):
    class Stops(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(Stops(), probe_batch=(torch.randn(4, 3), torch.randint(2, (4,))))


def test_a_module_that_gathers_its_parameters_is_not_even_entered(group):
    entered = []
    FSDPModule = type("FSDPModule", (nn.Linear,), {"__module__": "torch.distributed.fsdp"})
    sharded = FSDPModule(2, 2)
    sharded.register_forward_pre_hook(lambda *_: entered.append(1))
    with quiet(nn.Linear(2, 2)), pytest.raises(CollectiveInProbe, match="a forward pass of FSDPModule gathers"):
        sharded(torch.ones(1, 2))
    assert not entered


def test_the_kernels_are_those_of_one_process(group, monkeypatch):
    model = tiny_distilbert(seed=0)
    inputs, _ = toy_batches(1)[0]

    def outputs():
        with quiet(model, grad=True):
            out = model(inputs)
            return [out.detach(), *torch.autograd.grad(out.square().sum(), list(model.parameters()), allow_unused=True)]

    several = outputs()
    monkeypatch.setattr(other_processes, "processes", lambda: 1)
    for a, b in zip(several, outputs(), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_without_a_group_there_is_one_process():
    assert other_processes.processes() == 1
