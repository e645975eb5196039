"""Interrupted training on small real models: what is complete continues bit for bit, and what is lost is found by putting it back."""

from __future__ import annotations

import pytest
import torch
from equivalent_models import Words, run, same_state, state_of, t5, t5_batches, with_layer
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, TensorDataset

from pytest_ftcheck import check_resume_continues_training, finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.checks.equivalence.record import Resume

pytestmark = pytest.mark.trains


def judged(model=lambda: tiny_distilbert(seed=0), batches=None, **options):
    trace = run("resume", model, batches, **{"steps": 6, **options})
    return check_resume_continues_training(trace), trace.measured(Resume)


# ------------------------------------------------------------------------------------------ healthy
@pytest.mark.parametrize(
    ("model", "batches"),
    [
        (lambda: tiny_distilbert(seed=0), None),
        (Words, None),
        (with_layer(lambda: nn.BatchNorm1d(32)), None),
        (t5, t5_batches),
    ],
    ids=["distilbert", "lstm", "batchnorm", "t5"],
)
def test_a_complete_checkpoint_continues_bit_for_bit(model, batches):
    v, found = judged(model, batches() if batches else None)
    assert v.status == "pass", v
    assert found.difference == found.repeat_difference == 0.0
    assert found.resumed_losses == found.losses
    assert (found.steps_before, found.steps_after) == (3, 3)


SCHEDULERS = [
    lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [2]),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=["onecycle", "cosine", "plateau", "sequential"])
def test_schedules_of_torch(scheduler):
    v, found = judged(optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9), scheduler=scheduler)
    assert (v.status, found.difference) == ("pass", 0.0), v


def test_an_optimizer_with_a_closure():
    v, _ = judged(optimizer=lambda m: torch.optim.LBFGS(m.parameters(), lr=0.1, max_iter=2))
    assert v.status == "pass"


def test_the_steps_are_those_of_the_run():
    trace = run("resume", lambda: tiny_distilbert(seed=0), steps=6)
    found = trace.measured(Resume)
    assert found.losses == trace.losses[3:6]


def counter(*, saved):
    class Counter(nn.Module):
        """Scales with the number of batches seen, kept in an attribute; ``saved``: as part of the state_dict."""

        def __init__(self):
            super().__init__()
            self.seen = self.unused = 0

        def forward(self, x):
            self.unused += 1
            self.seen += self.training
            return x * (1 + 0.1 * self.seen)

        if saved:

            def get_extra_state(self):
                return {"seen": self.seen}

            def set_extra_state(self, state):
                self.seen = state["seen"]

    return Counter


class Average(nn.Module):
    """Subtracts a moving average, kept in a buffer; ``persistent`` is part of the state_dict."""

    def __init__(self, *, persistent):
        super().__init__()
        self.register_buffer("mean", torch.zeros(32), persistent=persistent)

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.5).add_(0.5 * x.detach().mean(0))
        return x - self.mean


def test_state_in_an_attribute():
    v, found = judged(with_layer(counter(saved=False)))
    assert (v.status, v.fault) == ("fail", "state_not_in_state_dict")
    assert found.needed == ("classifier.1.seen",)
    assert "classifier.1.unused" in found.changed
    assert judged(with_layer(counter(saved=True)))[0].status == "pass"


def test_state_in_a_buffer_that_is_not_persistent():
    v, found = judged(with_layer(lambda: Average(persistent=False)))
    assert (v.status, v.fault) == ("fail", "state_not_in_state_dict")
    assert found.needed == ("classifier.1.mean",)
    assert judged(with_layer(lambda: Average(persistent=True)))[0].status == "pass"


# ------------------------------------------------------------------------------------------ the user's own functions
def save(path, model, optimizer, scheduler):
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "random": torch.get_rng_state(),
        },
        path,
    )


def load(*parts):
    def loading(path, model, optimizer, scheduler):
        states = torch.load(path, weights_only=True)
        for name, part in (("model", model), ("optimizer", optimizer), ("scheduler", scheduler)):
            if name in parts:
                part.load_state_dict(states[name])
        if "random" in parts:
            torch.set_rng_state(states["random"])

    return loading


ALL = ("model", "optimizer", "scheduler", "random")
LOST = {
    "model": "weights_not_restored",
    "optimizer": "optimizer_not_restored",
    "scheduler": "scheduler_not_restored",
    "random": "random_states_not_restored",
}


def test_functions_that_save_everything():
    v, found = judged(checkpoint=(save, load(*ALL)))
    assert (v.status, found.own_checkpoint, found.difference) == ("pass", True, 0.0)


@pytest.mark.parametrize("lost", LOST)
def test_what_they_do_not_load_is_named(lost):
    v, found = judged(checkpoint=(save, load(*(p for p in ALL if p != lost))))
    assert v.fault == LOST[lost]
    assert v.status == ("advice" if lost == "random" else "fail")
    assert found.needed == ("weights" if lost == "model" else lost,)


def test_random_states_do_not_matter_without_dropout():
    v, _ = judged(
        lambda: tiny_distilbert(seed=0, dropout=0.0, attention_dropout=0.0), checkpoint=(save, load(*ALL[:3]))
    )
    assert v.fault == "random_states_not_restored"  # the head has a dropout of its own

    def without():
        model = tiny_distilbert(seed=0, dropout=0.0, attention_dropout=0.0)
        model.classifier[2] = nn.Identity()
        return model

    v, found = judged(without, checkpoint=(save, load(*ALL[:3])))
    assert (v.status, found.difference) == ("pass", 0.0)


def test_several_things_at_once():
    v, found = judged(checkpoint=(save, load("model")))
    assert v.fault == "optimizer_not_restored"
    assert found.needed == ("optimizer", "scheduler", "random")
    assert "the optimizer, the scheduler and the random states are not restored" in v.headline


def test_functions_that_raise():
    def broken(path, model, optimizer, scheduler):
        raise KeyError("state")

    v, _ = judged(checkpoint=(save, broken))
    assert (v.status, v.fault) == ("fail", "checkpoint_fails")
    assert "Loading raised KeyError" in v.headline
    assert "Saving raised KeyError" in judged(checkpoint=(broken, broken))[0].headline


@pytest.mark.parametrize("wrong", [save, (save,), (save, "load"), "save"])
def test_a_checkpoint_that_is_not_two_functions(wrong):
    with pytest.raises(TypeError, match="checkpoint"):
        finetune(tiny_distilbert, toy_batches(), checkpoint=wrong)


class Counting(torch.optim.SGD):
    """Steps get shorter with a count that its state_dict does not hold."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.05)
        self.count = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.count += 1
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                p -= 0.05 / self.count * p.grad


def test_an_optimizer_with_state_outside_its_state_dict():
    v, found = judged(optimizer=lambda m: Counting(m.parameters()))
    assert (v.status, v.fault, found.needed) == ("fail", "optimizer_not_restored", ("optimizer",))


def test_a_model_whose_state_dict_does_not_load():
    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self._register_state_dict_hook(lambda m, state, prefix, _: state.update({f"{prefix}extra": torch.ones(1)}))

        def forward(self, x):
            return x

    v, _ = judged(with_layer(Renamed))
    assert (v.status, v.fault) == ("fail", "checkpoint_fails")
    assert "Loading the model raised RuntimeError" in v.headline


# ------------------------------------------------------------------------------------------ the data
def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def loader(**options):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(96, 8, generator=g)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 8, **options)


class Remembering:
    """A source of batches in an order drawn when it begins, with a state_dict for its position."""

    def __init__(self):
        self.order, self.at = None, 0
        self.batches = list(loader())

    def __iter__(self):
        if self.order is None:
            self.order, self.at = torch.randperm(12).tolist(), 0
        while self.at < 12:
            self.at += 1
            yield self.batches[self.order[self.at - 1]]
        self.order = None

    def state_dict(self):
        return {"order": self.order, "at": self.at}

    def load_state_dict(self, state):
        self.order, self.at = state["order"], state["at"]


def test_the_position_in_the_data():
    v, found = judged(small, loader(), head="2")
    assert (v.status, found.same_batches) == ("pass", True)
    v, found = judged(small, loader(shuffle=True), head="2")
    assert (v.status, v.fault, found.same_batches) == ("advice", "data_position_lost", False)
    v, found = judged(small, loader(shuffle=True, generator=torch.Generator().manual_seed(1)), head="2")
    assert (v.status, found.same_batches) == ("pass", True)


def test_a_source_that_saves_its_position():
    source = Remembering()
    before = source.state_dict()
    v, found = judged(small, source, head="2")
    assert (v.status, found.same_batches, found.saves_position) == ("pass", True, True)
    assert before == {"order": None, "at": 0}


# ------------------------------------------------------------------------------------------ what is left alone
def test_everything_is_as_before():
    model = with_layer(counter(saved=False))()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 10)
    before = state_of(model)
    steps = []
    handle = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    try:
        run("resume", model, optimizer=optimizer, scheduler=scheduler, steps=6)
    finally:
        handle.remove()
    assert len(steps) == 6  # the repetitions call no hooks
    assert same_state(before, state_of(model))
    assert not optimizer.state
    assert scheduler.last_epoch == 0


def test_the_training_is_the_same_with_and_without_it():
    losses = [run(probe, lambda: tiny_distilbert(seed=0)).losses for probe in ("loss", "resume")]
    assert losses[0] == losses[1]


def test_everything_is_as_before_when_it_is_interrupted():
    def interrupted(path, model, optimizer, scheduler):
        raise KeyboardInterrupt

    model = tiny_distilbert(seed=0)
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt):
        run("resume", model, checkpoint=(save, interrupted), steps=6)
    assert same_state(before, state_of(model))


# ------------------------------------------------------------------------------------------ what does not apply
def test_loops_that_cannot_be_run_again():
    def step(model, batch, optimizer, scheduler):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss

    trace = run("resume", lambda: tiny_distilbert(seed=0), step=step)
    assert "the loop is your own" in trace.skipped["resume"]
    assert check_resume_continues_training(trace).status == "skipped"
    assert "steps= is 1" in run("resume", lambda: tiny_distilbert(seed=0), steps=1).skipped["resume"]


def test_a_training_that_is_not_repeatable():
    draws = iter(range(10**6))

    class Drifting(nn.Module):
        def forward(self, x):
            return x + 0.01 * next(draws)

    v, found = judged(with_layer(Drifting))
    assert v.status == "inconclusive"
    assert found.repeat_difference > 0.01
