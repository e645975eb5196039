"""The founding question's model, broken in six ways. ``python docs/examples/broken.py`` prints what each failure says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import founding
import torch
from torch.nn.functional import cross_entropy

from pytest_ftcheck import Trace, assert_grads_nonzero, assert_weights_move

Run = Callable[..., Trace]
STEPS = 5


def _run(finetune: Run, model: type[founding.Classifier] = founding.Classifier, **arguments: Any) -> Trace:
    batches, _ = founding.news(tokens=16, size=8)
    return finetune(lambda: founding.make_model(model), batches, head="classifier", steps=STEPS, **arguments)


# ---------------------------------------------------------------------- 1
def head_not_in_the_optimizer(finetune: Run) -> None:
    """The optimizer was built before the head was, or over the base alone."""
    trace = _run(finetune, optimizer=lambda model: torch.optim.AdamW(model.base.parameters(), lr=5e-5))
    assert_weights_move(trace, part="head")


# ---------------------------------------------------------------------- 2
class Detached(founding.Classifier):
    """The features are detached before the head."""

    def forward(self, input_, y=None):  # noqa: ARG002
        X, length, attention_mask = input_  # noqa: N806, RUF059
        features = self.base(X, attention_mask=attention_mask)[0][:, 0]
        return self.classifier(features.detach())


def features_detached(finetune: Run) -> None:
    """Only the head can learn."""
    assert_grads_nonzero(_run(finetune, Detached, lr=5e-5))


# ---------------------------------------------------------------------- 3
def learning_rate_zero(finetune: Run) -> None:
    """A schedule that never leaves zero, or an option that was not read."""
    assert_weights_move(_run(finetune, lr=0.0), part="head")


# ---------------------------------------------------------------------- 4
def learning_rate_of_the_head_a_billionth(finetune: Run) -> None:
    """The base learns, the head has a parameter group of its own with a typo in its exponent."""

    def optimizer(model: founding.Classifier) -> torch.optim.Optimizer:
        base, head = model.base.parameters(), model.classifier.parameters()
        return torch.optim.AdamW([{"params": base, "lr": 5e-5}, {"params": head, "lr": 1e-9}])

    assert_weights_move(_run(finetune, optimizer=optimizer), part="head")


# ---------------------------------------------------------------------- 5
def loss_scaled_to_nothing(finetune: Run) -> None:
    """A factor of 1e-12 too many in the loss."""

    def loss(model: founding.Classifier, batch: founding.Batch) -> torch.Tensor:
        inputs, labels = batch
        return 1e-12 * cross_entropy(model(inputs), labels)

    assert_grads_nonzero(_run(finetune, loss_fn=loss, lr=5e-5), part="head")


# ---------------------------------------------------------------------- 6
class Dead(founding.Classifier):
    """A bias far below zero: every ReLU of the head is dead, for every input."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.classifier[0].bias.data.fill_(-10.0)


def moved_by_weight_decay_alone(finetune: Run) -> None:
    """Every weight changes, and none of them learns."""
    assert_weights_move(_run(finetune, Dead, lr=5e-5, weight_decay=0.01), part="head")


#: Each runs a fine-tune and raises `CheckFailed`.
FAULTS = (
    head_not_in_the_optimizer,
    features_detached,
    learning_rate_zero,
    learning_rate_of_the_head_a_billionth,
    loss_scaled_to_nothing,
    moved_by_weight_decay_alone,
)


def main() -> None:
    """Print the six messages."""
    from pytest_ftcheck import CheckFailed, finetune

    for number, fault in enumerate(FAULTS, 1):
        print(f"{number}. {fault.__name__.replace('_', ' ')}\n")
        try:
            fault(finetune)
        except CheckFailed as failure:
            print(failure, end="\n\n")
        else:
            raise SystemExit(f"{fault.__name__} was not found")


if __name__ == "__main__":
    main()
