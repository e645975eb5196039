"""Every check a test of its own, over two models: one healthy, one with a known fault that is not fixed yet."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.optim import AdamW, Optimizer

from pytest_ftcheck import Subject, parametrize_with_checks, tiny_distilbert, toy_batches


def over_the_base_alone(model: nn.Module) -> Optimizer:
    """The fault: the head is in no parameter group."""
    return AdamW(model.base_model.parameters(), lr=1e-3)


KNOWN = {
    "optimizer_covers_model": "ticket 12: the head is left out",
    "weights_move": "follows from ticket 12",
}
SUBJECTS = [
    # functions instead of models and batches: nothing is made while tests are collected
    Subject("healthy", tiny_distilbert, toy_batches, lr=1e-3, steps=60),
    Subject(
        "head left out",
        tiny_distilbert,
        toy_batches,
        optimizer=over_the_base_alone,
        steps=60,
        expected_failures=KNOWN,
    ),
]


@parametrize_with_checks(SUBJECTS)
def test_models(subject: Subject, check: Callable[[Subject], None]) -> None:
    check(subject)
