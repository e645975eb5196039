"""The same model broken in six ways: each is found, and the message names the cause with its numbers."""

from __future__ import annotations

import broken
import pytest

from pytest_ftcheck import CheckFailed

#: What a reader must find in each message: the check, the numbers, the cause, what to do.
WORDS = {
    broken.head_not_in_the_optimizer: (
        "weights_move: FAIL. 4 of 4 head tensors did not move",
        "they are in no parameter group of the optimizer (AdamW holds 100 tensors of this model)",
        "build AdamW over model.parameters()",
    ),
    broken.features_detached: (
        "grads_nonzero: FAIL. 100 of 104 tensors: no gradient at any step, while the head gets some",
        "cause: the features reach the head through .detach()",
    ),
    broken.learning_rate_zero: (
        "weights_move: FAIL. 4 of 4 head tensors did not move: their learning rate was 0",
        "the run was requested with lr=0",
        "do: set a learning rate",
    ),
    broken.learning_rate_of_the_head_a_billionth: (
        "weights_move: FAIL. 4 of 4 head tensors did not learn",
        "their steps are negligible beside their size (peak LR 1.00e-09)",
        "parameter group 1 peaks at LR 1.00e-09 (other groups: up to 5.00e-05), too small for weights of rms 0.02",
        "raise the learning rate",
        "limit: at most 10,000 steps for a matrix to change its output by its own size",
    ),
    broken.loss_scaled_to_nothing: (
        "grads_nonzero: FAIL. 4 of 4 head tensors",
        "cause: the loss is scaled down: it starts at 1.60e-12, where the standard loss of the same logits is 1.60",
        "gradients of rms 1.85e-13 at most",
        "undo the scaling of the loss",
    ),
    broken.moved_by_weight_decay_alone: (
        "weights_move: FAIL. 3 of 4 head tensors did not learn: they were moved by weight decay alone",
        " 100 % ",  # of the elements differ: a test of "before != after" calls this learning
        "cause: the input of classifier.3 is zero for every row",
        "ReLUs that never fire",
        "is weight decay 0.01; their gradient is exactly zero",
    ),
}


@pytest.mark.parametrize("fault", broken.FAULTS, ids=lambda fault: fault.__name__)
def test_fault(fault, finetune):
    with pytest.raises(CheckFailed) as failure:
        fault(finetune)
    message = str(failure.value)
    for words in WORDS[fault]:
        assert words in message
