"""The mode that sees a loop's calls is gone whatever happens, also where an interrupt comes inside torch's own handling of it."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import finetune, watch

#: contextlib's own function, with an interrupt in place of its end.
INTERRUPTED = """
def __enter__(self):
    value = next(self.gen)
    if self.gen.__name__ == "_pop_mode_temporarily" and armed:
        armed.clear()
        raise KeyboardInterrupt
    return value
"""


@pytest.fixture
def armed(monkeypatch):
    """Once something is in it, the next call that torch takes the mode off for is interrupted behind the first half of its ``with``."""
    names = {"__name__": "contextlib", "armed": []}
    exec(INTERRUPTED, names)
    monkeypatch.setattr(contextlib._GeneratorContextManager, "__enter__", names["__enter__"])
    return names["armed"]


@pytest.mark.trains
@pytest.mark.parametrize("way", ["watch", "finetune"])
def test_an_interrupt_while_torch_takes_the_mode_off(armed, way):
    """torch's generator waits in the traceback, and would put the mode back when that is freed."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = torch.randn(16, 8), torch.randint(2, (16,))
    interrupts = [True]

    def step(model, batch, optimizer, *_):
        optimizer.zero_grad()
        logits = model(batch[0])
        armed.extend(interrupts)
        loss = F.cross_entropy(logits, batch[1])
        loss.backward()
        optimizer.step()
        return loss

    def run():
        if way == "watch":
            with watch(model, head="1"):
                step(model, rows, optimizer)
        else:
            finetune(model, [rows], steps=2, step=step, optimizer=optimizer, head="1", probes=[])

    def modes_left():
        return torch._C._len_torch_function_stack()

    with pytest.raises(KeyboardInterrupt) as caught:
        run()
    assert modes_left() == 0
    del caught
    assert modes_left() == 0
    interrupts.clear()
    run()
    assert modes_left() == 0
