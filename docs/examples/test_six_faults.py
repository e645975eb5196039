"""The same model broken in six ways: each is found, and the message names the cause with its numbers."""

from __future__ import annotations

import broken
import pytest

from pytest_ftcheck import CheckFailed

#: What a reader must find in each message: the check, the numbers, the cause, what to do.
WORDS = {
    broken.head_not_in_the_optimizer: (
        "weights_move: FAIL. 4 of 4 head tensors did not move",
        "in no parameter group of the optimizer (AdamW holds 100 tensors of this model)",
        "build AdamW over model.parameters()",
    ),
    broken.features_detached: (
        "grads_nonzero: FAIL. 100 of 104 tensors: no gradient at any step, while the head gets some",
        "the graph is cut between the base and the head",
        ".detach()",
    ),
    broken.learning_rate_zero: (
        "weights_move: FAIL. 4 of 4 head tensors did not move",
        "the learning rate was 0 at each of the 5 steps",
        "give that group a learning rate",
    ),
    broken.learning_rate_of_the_head_a_billionth: (
        "weights_move: FAIL. 2 of 4 head tensors did not learn",
        "the learning rate of parameter group 1 peaks at 1.00e-09; the other groups have up to 5.00e-05",
        "raise that group's learning rate",
    ),
    broken.loss_scaled_to_nothing: (
        "grads_nonzero: FAIL. 4 of 4 head tensors",
        "small beside the eps of AdamW (1.00e-08)",
        "the loss is scaled down",
    ),
    broken.moved_by_weight_decay_alone: (
        "weights_move: FAIL. 3 of 4 head tensors did not learn: moved by weight decay alone",
        " 100 % ",  # of the elements differ: a test of "before != after" calls this learning
        "is weight decay 0.01",
        "gradients moved them by 0: no gradient reaches them",
        "dead ReLUs",
    ),
}


@pytest.mark.parametrize("fault", broken.FAULTS, ids=lambda fault: fault.__name__)
def test_fault(fault, finetune):
    with pytest.raises(CheckFailed) as failure:
        fault(finetune)
    message = str(failure.value)
    for words in WORDS[fault]:
        assert words in message
