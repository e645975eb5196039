"""A user's things of every kind, what may happen to them, and how they look, bit for bit."""

from __future__ import annotations

import random

import numpy
import torch
from special_tensors import ROWS, WIDTH, add_tables
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import Features


class Config:
    """As of a pretrained model."""

    def __init__(self):
        self.problem_type, self.labels, self.text_config = None, {"a": 0}, None


class Model(nn.Module):
    """Frozen tables of every kind, running statistics, attributes that its forward pass writes into."""

    def __init__(self):
        super().__init__()
        self.config = Config()
        self.config.text_config = Config()
        self.body, self.norm, self.drop = nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.classifier = nn.Linear(8, 2)
        add_tables(self)
        self.calls, self.seen, self.dice = 0, {"rows": [0]}, torch.Generator().manual_seed(1)

    def forward(self, x):
        self.calls += 1
        self.seen["rows"].append(len(x))
        self.config.problem_type = "single"
        self.config.text_config.labels["b"] = 1
        for table in (*self.tables.parameters(), *self.tables.buffers()):
            x = x + table[: len(x)]
        x = x + 0.01 * torch.rand(WIDTH, generator=self.dice)
        return self.classifier(self.drop(torch.relu(self.norm(self.body(x)))))


class Everything:
    """A model, a used optimizer and a scheduler, with a learnable loss of their own."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = Model()
        self.criterion = nn.Linear(2, 2)
        self.head, x = nn.Linear(WIDTH, 2), torch.randn(ROWS, WIDTH)
        self.features = Features.of(x, (x[:, 0] > 0).long())
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW([*trained, *self.criterion.parameters()], lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        self.batches = [(x := torch.randn(ROWS, WIDTH), (x[:, 0] > 0).long()) for _ in range(2)]
        self.step(self.model, self.batches[0], self.optimizer, self.scheduler)

    def step(self, model, batch, optimizer, scheduler):
        """The user's loop body."""
        model.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(self.criterion(model(batch[0])), batch[1])
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss

    def disturb(self):
        """Whatever a run may do to them."""
        for batch in self.batches:
            self.step(self.model, batch, self.optimizer, self.scheduler)
        self.optimizer.param_groups[0]["lr"] = torch.tensor(3.0)
        self.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
        self.model.new, self.model.classifier = 1, nn.Linear(8, 2)
        self.model.body.weight.register_hook(lambda g: g)
        self.model.body.register_forward_hook(lambda *a: None)
        self.model.body.weight.requires_grad_(False)
        self.model.norm.double()
        torch.set_num_threads(2)
        torch.set_printoptions(precision=9)
        torch.autograd.set_detect_anomaly(True, check_nan=False)
        random.random(), numpy.random.rand(), torch.rand(1)  # noqa: NPY002

    def state(self):
        """All of it, as plain data."""
        seen = {}
        of_modules = [bits(vars(m), seen) for m in (*self.model.modules(), self.head)]
        optimizer, scheduler = bits(vars(self.optimizer), seen), bits(vars(self.scheduler), seen)
        hooks = [list(p._backward_hooks or ()) for p in self.model.parameters()]
        grads = [
            bits(p.grad, {}) for p in (*self.model.parameters(), *self.criterion.parameters(), *self.head.parameters())
        ]
        config = bits(vars(self.model.config), seen), bits(vars(self.model.config.text_config), seen)
        return of_modules, optimizer, scheduler, hooks, grads, config, process_state()


def bits(value, seen):
    """A value as plain data, with the identity of every object."""
    if isinstance(value, torch.Tensor):
        kind = (
            id(value),
            str(value.dtype),
            value.stride(),
            value.data_ptr(),
            value.requires_grad,
            value.is_inference(),
        )
        return kind, value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, torch.Generator):
        return id(value), value.get_state().numpy().tobytes()
    if isinstance(value, (dict, list, tuple, set)):
        if id(value) in seen:
            return id(value)
        seen[id(value)] = value
        items = value.items() if isinstance(value, dict) else value
        return id(value) * (type(value) is not tuple), [bits(item, seen) for item in items]
    return value if isinstance(value, (str, int, float, bool, type(None))) else id(value)


def process_state():
    """Random states, switches and hooks of the whole process."""
    from torch.nn.modules import module
    from torch.optim import optimizer

    return (
        random.getstate(),
        numpy.random.get_state()[1].tobytes(),  # noqa: NPY002
        torch.get_rng_state().numpy().tobytes(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch._C._len_torch_function_stack(),
        (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        torch._tensor_str.PRINT_OPTS.precision,
        {k: len(v) for m in (module, optimizer) for k, v in vars(m).items() if k.startswith("_global_") and v},
    )
