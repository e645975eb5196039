"""fresh_start: what the optimizer had done before the run."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pytest_ftcheck import (
    Intent,
    check_fresh_start,
    diagnose,
    example_trace,
    finetune,
    tiny_distilbert,
    toy_batches,
    watch,
)
from pytest_ftcheck.checks.loss.record import LossShape
from pytest_ftcheck.checks.optimizer.fresh_start import KNOWN
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


@pytest.mark.trains
def test_weights_that_an_earlier_training_made_large_are_no_initialisation():
    model = tiny_distilbert(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs, labels = toy_batches(1)[0]
    torch.nn.functional.cross_entropy(model(inputs), labels).backward()
    optimizer.step()
    with torch.no_grad():
        for p in model.classifier.parameters():
            p.mul_(50)
    causes = diagnose(finetune(model, toy_batches(), optimizer=optimizer, steps=5)).causes
    assert causes[0].fault == "earlier_training"
    assert "head_init" in causes[0].checks


# ------------------------------------------------------------------ averages of an earlier training
def standing_still(first, steps=40, taken=60):
    """A run that does not learn, with an optimizer that had taken steps."""
    trace = started(steps, first, first)
    metrics = tuple(replace(m, p_value=1.0, source="held-out rows") for m in trace.metrics)
    return replace(trace, metrics=metrics, steps=(trace.steps * taken)[:taken])


@pytest.mark.parametrize(
    ("trace", "status", "fault"),
    [
        (standing_still(0.69), "fail", "optimizer_not_reset"),
        (standing_still(0.69, taken=40), "inconclusive", "optimizer_not_reset"),
        (standing_still(0.4), "pass", ""),  # the weights know what the earlier training taught them
        (started(40, 0.69, 0.3), "pass", ""),  # the run learns
        (standing_still(0.69, steps=0), "fail", "optimizer_not_reset"),  # one that keeps averages and counts no steps
    ],
)
def test_weights_that_were_put_back_without_their_optimizer(trace, status, fault):
    verdict = check_fresh_start(trace)
    assert (verdict.status, verdict.fault) == (status, fault)


# ------------------------------------------------------------------ an optimizer that is adopted when it first steps
def stepping(steps, optimizers, given):
    """What a watched loop of five steps says, after so many steps before it."""
    model, batches = tiny_distilbert(seed=0), toy_batches(1)
    made = optimizers(model)

    def train(count):
        for _ in range(count):
            torch.nn.functional.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
            for optimizer in made:
                optimizer.step()
                optimizer.zero_grad()

    train(steps)
    with watch(model, made if given else None) as w:
        train(5)
    return check_fresh_start(w.trace)


def of_base_and_head(model):
    return [torch.optim.AdamW(m.parameters(), lr=1e-4) for m in (model.base_model, model.classifier)]


@pytest.mark.trains
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("optimizers", [lambda m: [torch.optim.AdamW(m.parameters(), lr=1e-4)], of_base_and_head])
@pytest.mark.parametrize(("steps", "taken"), [(0, "taken no step before"), (7, "already taken 7 steps before")])
def test_steps_before_a_watched_loop_are_counted(optimizers, given, steps, taken):
    assert taken in stepping(steps, optimizers, given).headline


@pytest.mark.trains
def test_an_adopted_optimizer_that_counts_no_steps_is_not_said_to_have_taken_none():
    verdict = stepping(7, lambda m: [torch.optim.SGD(m.parameters(), lr=1e-4, momentum=0.9)], given=False)
    assert verdict.status == "skipped"
    assert "no optimizer was known before the loop began" in verdict.headline


# ------------------------------------------------------------------ rows that are known before the first step
FRESH_HEAD = Intent(head_init=0.02)
SHAPE = LossShape(last_layer="classifier", nothing_passes_by=True)


def knowing(first, *, intent=FRESH_HEAD, shape=SHAPE):
    trace = started(0, first, 0.01, kept=0)
    return replace(trace, intent=intent, measurements={**trace.measurements, "loss_shape": shape})


@pytest.mark.parametrize(("first", "fault"), [(KNOWN * 0.69 * 0.99, "known_at_start"), (KNOWN * 0.69 * 1.01, "")])
def test_rows_known_before_the_first_step(first, fault):
    verdict = check_fresh_start(knowing(first))
    assert (verdict.status, verdict.fault) == ("fail" if fault else "pass", fault)


@pytest.mark.parametrize(
    "changes",
    [
        {"intent": None},
        {"intent": Intent(peak_lr=1e-3)},  # a training that goes on
        {"shape": replace(SHAPE, nothing_passes_by=False)},  # a head that corrects other logits
        {"shape": replace(SHAPE, nothing_passes_by=None)},
        {"shape": replace(SHAPE, last_layer="base_model.scores")},
        {"shape": None},
    ],
)
def test_a_model_that_may_know_its_rows(changes):
    assert check_fresh_start(knowing(0.01, **changes)).status == "pass"


def test_a_fresh_head_hardly_ever_knows_its_rows():
    """The worst case: the inputs of two classes are one direction with two signs, as long as normalised inputs are."""
    g = torch.Generator().manual_seed(0)
    margin = 0.02 * 768**0.5 * 2**0.5 * torch.randn(20_000, generator=g)
    loss = torch.nn.functional.softplus(-margin)
    assert float((loss <= KNOWN * math.log(2)).float().mean()) < 0.012


class Corrected(torch.nn.Module):
    """A fresh head that only corrects the logits of a trained one."""

    def __init__(self, trained):
        super().__init__()
        self.trained, self.classifier = trained, torch.nn.Linear(2, 2)
        torch.nn.init.normal_(self.classifier.weight, std=0.02)
        torch.nn.init.zeros_(self.classifier.bias)

    def forward(self, inputs):
        logits = self.trained(inputs)
        return logits + self.classifier(logits)


@pytest.mark.trains
def test_the_model_of_another_fold_on_a_real_model():
    model, batches = tiny_distilbert(seed=0), toy_batches(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for inputs, labels in batches * 4:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    def run(model, intent):
        return finetune(
            model, batches, steps=8, intent=intent, probes=["loss", "loss_shape", "metrics", "optimizer_start"]
        )

    declared = diagnose(run(model, FRESH_HEAD))
    assert declared.causes[0].fault == "known_at_start", declared
    assert check_fresh_start(run(model, None)).status == "pass"
    assert check_fresh_start(run(tiny_distilbert(seed=0), FRESH_HEAD)).status == "pass"
    assert check_fresh_start(run(Corrected(model), FRESH_HEAD)).status == "pass"
