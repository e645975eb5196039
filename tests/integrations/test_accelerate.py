"""A hand-written loop with Accelerate under ``watch(model)``: no other code of the user's, cause first, nothing changed."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from pytest_ftcheck import diagnose, tiny_distilbert, toy_batches, watch

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def own_state():
    """Accelerate keeps one state a process, with the precision of the first `Accelerator`."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def rows(count=256):
    (ids, length, mask), labels = toy_batches(1, count)[0]
    return TensorDataset(ids, length, mask, labels)


def probe(count=64):
    ids, length, mask, labels = rows()[:count]
    return (ids, length, mask), labels


def all_parameters(model):
    return model.parameters()


def base_alone(model):
    return model.base_model.parameters()


def head_at_zero(model):
    return [{"params": list(model.base_model.parameters())}, {"params": list(model.classifier.parameters()), "lr": 0.0}]


def mask_of_ones(inputs):
    ids, length, mask = inputs
    return ids, length, torch.ones_like(mask)


def train(
    *,
    watched=True,
    trained=all_parameters,
    loss=cross_entropy,
    inputs=lambda inputs: inputs,
    accumulate=1,
    precision="no",
    epochs=3,
    seed=0,
    **options,
):
    """The trace (None: unwatched) and the trained weights."""
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate, mixed_precision=precision)
    model = tiny_distilbert(seed=seed)
    optimizer = torch.optim.AdamW(trained(model), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=48)
    loader = DataLoader(rows(), batch_size=16, shuffle=True)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)

    def loop():
        for _ in range(epochs):
            for *x, labels in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(loss(model(inputs(tuple(x))), labels))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()

    if not watched:
        loop()
        return None, model.state_dict()
    with watch(model, **options) as w:
        loop()
    return w.trace, model.state_dict()


def first_cause(trace):
    causes = diagnose(trace).causes
    return causes[0].fault if causes else None


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate": 2, "epochs": 6}, {"precision": "bf16"}, {"probe_batch": probe()}],
    ids=["plain", "accumulated", "bf16", "with a probe batch"],
)
def test_a_healthy_loop_is_silent_and_the_same_to_the_bit(options):
    trace, watched = train(**options)
    assert first_cause(trace) is None
    _, alone = train(watched=False, **{k: v for k, v in options.items() if k != "probe_batch"})
    assert all(torch.equal(alone[n], watched[n]) for n in alone)


def test_the_prepared_optimizer_and_its_schedule_are_adopted():
    trace, _ = train(accumulate=2, epochs=6)
    assert trace.optimizer.name == "AdamW"
    assert (len(trace.iterations), len(trace.steps)) == (96, 48)
    assert trace.steps[0].lrs == (1e-3,)
    assert trace.steps[-1].lrs[0] < 2e-4


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        ("not_in_optimizer", {"trained": base_alone}),
        ("lr_zero", {"trained": head_at_zero}),
        ("double_softmax", {"loss": lambda z, y: cross_entropy(z.softmax(-1), y)}),
        ("loss_negated", {"loss": lambda z, y: -cross_entropy(z, y)}),
        ("own_predictions_as_targets", {"loss": lambda z, _: cross_entropy(z, z.argmax(-1))}),
        ("mask_all_ones", {"inputs": mask_of_ones}),
    ],
)
def test_faults_that_need_no_probe_batch(fault, options):
    trace, _ = train(**options)
    assert first_cause(trace) == fault


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        ("double_softmax", {"loss": lambda z, y: cross_entropy(z.softmax(-1), y)}),
        ("loss_negated", {"loss": lambda z, y: -cross_entropy(z, y)}),
        ("own_predictions_as_targets", {"loss": lambda z, _: cross_entropy(z, z.argmax(-1))}),
        ("mask_all_ones", {"inputs": mask_of_ones}),
        ("not_in_optimizer", {"trained": base_alone}),
    ],
)
def test_faults_of_the_loop_beside_a_probe_batch(fault, options):
    trace, _ = train(probe_batch=probe(), **options)
    assert first_cause(trace) == fault
