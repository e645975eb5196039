"""The faults that DeepFD's authors seed: five places of a program, with the values of their pools, in our own words.

What they leave as it is, we leave: the learning rate where the optimizer is exchanged, the loss where an activation is put behind the last
layer. Their programs end in a softmax and a loss of probabilities; ours ends in logits, which a softmax behind the last layer breaks as
their other activations break theirs. Two of their ten values each stand for the learning rates, and one for the epochs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .task import LR, Batch, Fault, Run

WHERE = "https://arxiv.org/abs/2205.01938, https://github.com/ArabelaTso/DeepFD (CodeBook/SeedFaults)"
FAULTS: list[Fault] = []


def _fault(name: str, story: str, apply: Callable[[Run], None], *cause: str) -> None:
    FAULTS.append(Fault("DeepFD", name, story, WHERE, apply, cause))


def _loss(of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[Run], None]:
    """A loss of regression between the probabilities and the one-hot labels."""

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return of(logits.softmax(-1), nn.functional.one_hot(batch["labels"], logits.shape[-1]).to(logits.dtype))

    return lambda run: setattr(run, "loss", loss)


def _percentage(p: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 100 * ((y - p).abs() / y.abs().clamp_min(1e-7)).mean()


def _rate(lr: float) -> Callable[[Run], None]:
    return lambda run: setattr(run, "optimizer", lambda model: torch.optim.AdamW(model.parameters(), lr=lr))


def _optimizer(of: Callable[..., torch.optim.Optimizer]) -> Callable[[Run], None]:
    return lambda run: setattr(run, "optimizer", lambda model: of(model.parameters(), lr=LR))


def _activation(of: nn.Module) -> Callable[[Run], None]:
    return lambda run: setattr(run.model, "classifier", nn.Sequential(run.model.classifier, of))


def _epochs(run: Run) -> None:
    run.steps //= 20


_REGRESSION = ("loss", "mistakes_pay")
for _name, _story, _of in (
    ("loss-mse", "the loss is the mean squared error of the probabilities", nn.functional.mse_loss),
    ("loss-mae", "the loss is the mean absolute error of the probabilities", nn.functional.l1_loss),
    ("loss-mape", "the loss is the mean absolute percentage error of the probabilities", _percentage),
):
    _fault(_name, _story, _loss(_of), *_REGRESSION)
_fault("lr-1", "the learning rate is 1", _rate(1.0), "lr_too_large", "learning rate", "diverge", "explode")
_fault("lr-1e-10", "the learning rate is 1e-10", _rate(1e-10), "lr_too_small", "lr_below_spacing", "learning rate")
_fault("epoch", "a twentieth of the epochs", _epochs, "steps", "epochs")
for _name, _type in (
    ("SGD", torch.optim.SGD),
    ("RMSprop", torch.optim.RMSprop),
    ("Adadelta", torch.optim.Adadelta),
    ("Adagrad", torch.optim.Adagrad),
):
    _story = f"the optimizer is {_name}, at the same learning rate"
    _fault(f"opt-{_name}", _story, _optimizer(_type), "lr_too_small", "optimizer")
for _name, _module in (
    ("relu", nn.ReLU()),
    ("sigmoid", nn.Sigmoid()),
    ("softmax", nn.Softmax(dim=-1)),
    ("softplus", nn.Softplus()),
    ("softsign", nn.Softsign()),
    ("tanh", nn.Tanh()),
    ("elu", nn.ELU()),
):
    _story = f"{_name} behind the last layer"
    _fault(f"act-{_name}", _story, _activation(_module), _name, "logits", "activation", "softmax")
