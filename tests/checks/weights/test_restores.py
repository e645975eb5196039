"""A state that is kept without a copy and restored: named; and all that is loaded rightly: silent."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from pytest_ftcheck import check_weights_kept, diagnose, example_trace, finetune, tiny_distilbert, toy_batches, watch
from pytest_ftcheck.checks.weights.record import Restores

pytestmark = pytest.mark.trains


def judged(restores):
    return check_weights_kept(replace(example_trace(), measurements={"restores": restores}))


def test_verdict():
    found = judged(Restores(3, 1, 12, 12))
    assert (found.status, found.fault) == ("fail", "restore_without_effect")
    assert found.headline == (
        "load_state_dict was given the model's own 12 trainable parameters: 12 of them had changed since state_dict() returned them, and "
        "stayed as they were."
    )
    assert "in 2 of 3 calls" in judged(Restores(3, 2, 12, 12)).headline
    assert judged(Restores(3)).status == "pass"


def train(model, optimizer, batch):
    optimizer.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


def watched(keep, load=lambda model, kept: model.load_state_dict(kept), *, at_once=False):
    """Some steps of one's own loop; the state is kept in the middle and loaded at the end, or at once."""
    model, batches = tiny_distilbert(seed=0), toy_batches(6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watch(model, optimizer) as w:
        for i, batch in enumerate(batches):
            train(model, optimizer, batch)
            if i == 2:
                kept = keep(model)
                if at_once:
                    load(model, kept)
        if not at_once:
            load(model, kept)
    assert not model._load_state_dict_pre_hooks
    assert not model._state_dict_hooks
    return w.trace


@pytest.mark.parametrize(
    "keep",
    [
        lambda m: m.state_dict(),
        lambda m: {k: v.cpu() for k, v in m.state_dict().items()},  # the very same tensors on a CPU
        lambda m: copy.copy(m.state_dict()),
        lambda m: m.state_dict(prefix=""),
        lambda m: {k: v.detach() for k, v in m.state_dict().items()},  # other views of the same memory
    ],
)
def test_a_state_kept_without_a_copy_restores_nothing(keep):
    trace = watched(keep)
    assert check_weights_kept(trace).fault == "restore_without_effect"
    assert diagnose(trace).causes[0].fault == "restore_without_effect"


def load_into_copy(model, kept):
    """A copy of the model has copies of our hooks."""
    twin = copy.deepcopy(model)
    twin.load_state_dict(kept)


def through_file(model):
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return torch.load(io.BytesIO(file.getvalue()))


def partly(model):
    """Its own state with some values of another: the usual way to load what fits."""
    state = model.state_dict()
    state["classifier.3.bias"] = torch.zeros(2)
    return state


@pytest.mark.parametrize(
    ("keep", "options"),
    [
        (lambda m: copy.deepcopy(m.state_dict()), {}),
        (lambda m: {k: v.clone() for k, v in m.state_dict().items()}, {}),
        (through_file, {}),
        (lambda m: m.state_dict(), {"load": load_into_copy}),
        (lambda m: m.state_dict(), {"at_once": True}),
        (partly, {"at_once": True}),
        (lambda m: m.state_dict(), {"load": lambda m, kept: m.load_state_dict(m.state_dict())}),
        (
            lambda m: m.state_dict(),
            {"load": lambda m, kept: m.load_state_dict({k: v.detach() for k, v in m.state_dict().items()})},
        ),
        (lambda m: m.classifier.state_dict(), {"load": lambda m, kept: None}),
    ],
    ids=[
        "deepcopy",
        "clones",
        "file",
        "into a copy",
        "at once",
        "partly its own",
        "its present state",
        "views of it",
        "never loaded",
    ],
)
def test_what_is_loaded_rightly_is_no_fault(keep, options):
    trace = watched(keep, **options)
    assert trace.measured(Restores).without_effect == 0
    assert check_weights_kept(trace).status == "pass"


def test_early_stopping_in_a_step_of_ones_own():
    kept = {}

    def step(model, batch, optimizer, scheduler):
        loss = F.cross_entropy(model(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if len(kept) < 1:
            kept["first"] = model.state_dict()
        elif len(kept) == 3:
            model.load_state_dict(kept["first"])
        kept[len(kept)] = loss.detach()
        return loss

    trace = finetune(tiny_distilbert, toy_batches(), step=step, lr=1e-3, steps=6)
    assert check_weights_kept(trace).fault == "restore_without_effect"


def test_the_hooks_are_copied_and_pickled_with_nothing_of_ours():
    model = tiny_distilbert(seed=0)
    from pytest_ftcheck.checks.weights.probe import _Hook

    hook = _Hook(lambda *_: 1 / 0)
    assert hook() is None
    assert copy.deepcopy(hook) is hook
    assert pickle.loads(pickle.dumps(hook))(model) is None
