"""fresh_start: what the optimizer had done before the run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pytest_ftcheck import check_fresh_start, example_trace, finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.checks.optimizer.record import OptimizerStart

GOOD = example_trace()


def started(steps, first, last, kept=4):
    points = (replace(GOOD.probe_loss.points[0], reference=first), replace(GOOD.probe_loss.points[-1], reference=last))
    return replace(
        GOOD,
        probe_loss=replace(GOOD.probe_loss, points=points, prior_entropy=0.69),
        measurements={"optimizer_start": OptimizerStart(steps, kept)},
    )


def test_a_fresh_optimizer_passes_whatever_the_loss_is():
    assert check_fresh_start(started(0, 5.0, 5.0, kept=0)).status == "pass"


@pytest.mark.parametrize("steps", [40, 0])
def test_weights_damaged_by_an_earlier_training_fail(steps):
    verdict = check_fresh_start(started(steps, 5.0, 0.70))
    assert (verdict.status, verdict.fault) == ("fail", "earlier_training")


def test_a_resumed_training_is_a_note():
    verdict = check_fresh_start(started(40, 0.31, 0.30))
    assert verdict.status == "pass"
    assert "goes on from an earlier training" in verdict.notes[0]


def test_a_damaged_start_fails_even_where_the_run_recovers():
    assert check_fresh_start(started(40, 1.1, 0.4)).fault == "earlier_training"


@pytest.mark.parametrize(("first", "status"), [(1.24 * 0.69, "pass"), (1.26 * 0.69, "fail"), (float("nan"), "fail")])
def test_the_limit(first, status):
    assert check_fresh_start(started(40, first, 0.4)).status == status


def test_without_a_cross_entropy_nothing_is_claimed():
    verdict = check_fresh_start(started(40, None, None))
    assert verdict.status == "pass"
    assert "cannot be judged here" in verdict.notes[0]


def test_wording():
    assert str(check_fresh_start(started(40, 5.0, 0.70))).splitlines() == [
        "fresh_start: FAIL. AdamW had already taken 40 steps before the run, and the weights that it left have a loss of 5.000; "
        "the class priors have 0.6900.",
        "  cause: the optimizer had already taken 40 steps before the run: a learning-rate range test, another fold or another trial "
        "trained the same model, and its weights were not put back",
        "  do: restore the model's and the optimizer's state_dict from before that training, or create both anew; "
        "a model that goes on to another task on purpose needs an optimizer of its own",
        "  limit: a resumed training starts below 1.25 times the class priors' loss",
        "  measured: the optimizer's state before the run, and the cross-entropy of the logits on the probe",
    ]


def range_test(model, optimizer):
    """Steps at ever higher rates until the loss explodes, as a learning-rate finder makes them."""
    batches = toy_batches()
    for i in range(60):
        for group in optimizer.param_groups:
            group["lr"] = 1e-4 * 1.3**i
        inputs, labels = batches[i % len(batches)]
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        if loss > 4:
            break
    for group in optimizer.param_groups:
        group["lr"] = 1e-3


@pytest.mark.trains
def test_a_range_test_that_was_not_undone_is_found_and_its_undone_twin_is_silent():
    torch.manual_seed(0)
    model = tiny_distilbert()
    optimizer = torch.optim.AdamW(model.parameters())
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    range_test(model, optimizer)
    broken = finetune(model, toy_batches(), optimizer=optimizer, steps=10, probes=["loss"])
    assert check_fresh_start(broken).fault == "earlier_training"
    model.load_state_dict(kept)
    again = finetune(
        model, toy_batches(), optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3), steps=10, probes=["loss"]
    )
    assert check_fresh_start(again).headline == "AdamW had taken no step before the run."
