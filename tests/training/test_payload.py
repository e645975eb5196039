"""What travels to a worker: everything as it was, or one error that names the argument."""

from __future__ import annotations

import sys
import threading
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_ftcheck import finetune, toy_batches
from pytest_ftcheck.training.payload import packed, unpacked


class Views(nn.Module):
    """Two parameters that are parts of one tensor, and one that has two names."""

    def __init__(self):
        super().__init__()
        flat = torch.zeros(8)
        self.a, self.b = nn.Parameter(flat[:4]), nn.Parameter(flat[4:])
        self.tied = self.a


def test_weights_that_share_memory_still_do_and_the_optimizer_holds_them():
    model = Views()
    there = unpacked(packed({"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}))
    made, optimizer = there["model"], there["optimizer"]
    assert (
        made.a.untyped_storage().data_ptr()
        == made.b.untyped_storage().data_ptr()
        != model.a.untyped_storage().data_ptr()
    )
    assert made.tied is made.a is optimizer.param_groups[0]["params"][0]


def test_a_loader_travels_with_its_generator():
    data = TensorDataset(torch.arange(12.0)[:, None], torch.arange(12) % 2)
    loader = DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3))
    there = unpacked(packed({"batches": loader}))["batches"]
    assert [x.tolist() for x, _ in there] == [x.tolist() for x, _ in loader]


def test_functions_of_a_module_that_is_not_installed_go_by_value(monkeypatch):
    module = ModuleType("somebodys_test_file")
    module.__file__ = "/nowhere/somebodys_test_file.py"
    exec("SCALE = 3\n\ndef scaled(x):\n    return SCALE * x\n", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    payload = packed({"forward": module.scaled, "batches": toy_batches})
    monkeypatch.delitem(sys.modules, module.__name__)
    there = unpacked(payload)
    assert there["forward"](2) == 6
    assert there["batches"] is toy_batches  # installed: by name


def test_a_function_whose_module_holds_a_lock_goes_by_name(monkeypatch):
    module = ModuleType("somebodys_package")
    module.__file__ = "/nowhere/somebodys_package.py"
    exec("import threading\nLOCK = threading.Lock()\n\ndef locked():\n    return LOCK\n", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert unpacked(packed({"forward": module.locked}))["forward"] is module.locked


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batches": [1, (row for row in range(3))]}, "batches .*: it is a list, and cannot pickle 'generator' object"),
        (
            {"model": 1, "loss_fn": threading.Lock().acquire},
            "loss_fn .*: it is a builtin_function_or_method, and cannot pickle '_?thread.lock' object",
        ),
    ],
)
def test_what_cannot_be_pickled_is_named(given, message):
    with pytest.raises(TypeError, match=f"^{message.replace(' .*', ' cannot be sent to the executor.s workers', 1)}"):
        packed(given)


def test_without_cloudpickle_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(ImportError, match=r"pip install 'pytest-ftcheck\[executor\]'"):
        packed({"batches": []})


def test_an_optimizer_whose_hooks_would_stay_behind_is_refused():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: None)
    batches = [(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))]
    with pytest.raises(TypeError, match=r"^optimizer cannot be sent .* hooks of this SGD would stay behind"):
        finetune(model, batches, optimizer=optimizer, seeds=3, executor=Refused())


class Refused:
    def submit(self, *args):
        raise AssertionError("nothing is to be submitted")


def test_an_executor_without_seeds_is_refused():
    with pytest.raises(
        ValueError, match=r"^executor, of type Refused, is given without seeds=: expected seeds='auto' or a number >= 3"
    ):
        finetune(nn.Linear(2, 2), [], executor=Refused())
