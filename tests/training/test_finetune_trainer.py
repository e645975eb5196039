"""``finetune(make_trainer)``: a Trainer's own run, stopped early and undone."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from trainers import STEPS, Bookkeeper, make_arguments, make_model, make_rows, make_trainer
from transformers import DistilBertConfig, DistilBertForSequenceClassification, Trainer, TrainerCallback
from transformers.utils import logging

from pytest_ftcheck import Recipe, Runs, assert_healthy, check_overfits_one_batch, finetune

pytestmark = pytest.mark.trains
SHORT = 6


def short(**given):
    return make_trainer(arguments={"max_steps": 60, **given.pop("arguments", {})}, **given)


def test_its_own_optimizer_and_schedule_are_used_and_it_stops_after_the_steps_asked_for():
    def sgd(model):
        return torch.optim.SGD(model.parameters(), lr=0.3), None

    trace = finetune(lambda: short(optimizers=sgd), steps=SHORT)
    assert len(trace.steps) == len(trace.losses) == SHORT
    assert trace.optimizer.name == "SGD"
    assert trace.steps[-1].lrs[0] == pytest.approx(0.3 * (60 - SHORT + 1) / 60)
    assert trace.stopped is None
    assert trace.source == "finetune"
    assert set(trace.recipe_in_force) == {"steps", "seed", "threads", "max_seconds"}


def test_a_healthy_one_is_healthy_and_what_was_left_out_is_measured_when_asked_for():
    trace = finetune(make_trainer, steps=STEPS)
    assert_healthy(trace)
    assert check_overfits_one_batch(trace).status == "pass"


def test_nothing_is_saved_evaluated_reported_or_printed(tmp_path, capsys):
    seen = []

    class Mine(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            seen.append(state.global_step)
            control.should_save = control.should_evaluate = True

    class Evaluates(Trainer):
        def evaluate(self, *_, **__):
            raise AssertionError("evaluated")

    def factory():
        arguments = {
            "output_dir": str(tmp_path / "out"),
            "report_to": ["tensorboard"],
            "disable_tqdm": False,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 1,
        }
        return short(kind=Evaluates, arguments=arguments, callbacks=[Mine()], eval_dataset=make_rows()[:8])

    finetune(factory, steps=3)
    assert seen == [1, 2, 3]
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


def states():
    numpy = __import__("numpy")
    return torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()


@pytest.mark.parametrize("crash", [False, True])
def test_model_trainer_random_states_and_the_process_are_as_before(crash):
    model = make_model()
    arguments = make_arguments(max_steps=60, bf16=True)
    rows = make_rows()

    class Crashes(Trainer):
        def compute_loss(self, *given, **options):
            if crash and self.state.global_step == 2:
                raise KeyboardInterrupt("stop")
            return super().compute_loss(*given, **options)

    kept = make_trainer(Crashes, model, arguments={"bf16": True, "max_steps": 60})
    logging.set_verbosity_error()
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    attributes, callbacks = dict(vars(kept)), list(kept.callback_handler.callbacks)
    modules = [dict(vars(m)) for m in model.modules()]
    Trainer(
        model, arguments
    )  # transformers 4.46 writes half_precision_backend into the arguments of any Trainer that is made
    plain = [dict(vars(a)) for a in (arguments, kept.args)]
    shared = [dict(c._shared_state) for c in (PartialState, AcceleratorState, GradientState)]
    before = states(), dict(os.environ), logging.get_verbosity()

    def factory():
        os.environ["MADE_BY_THE_FACTORY"] = "1"
        return kept

    if crash:
        with pytest.raises(KeyboardInterrupt) as raised:
            finetune(factory, steps=SHORT)
        assert len(raised.value.ftcheck_trace.steps) == 2
    else:
        assert len(finetune(factory, steps=SHORT).steps) == SHORT
        assert (
            len(
                finetune(
                    lambda: Trainer(model, arguments, train_dataset=rows, data_collator=kept.data_collator), steps=2
                ).steps
            )
            == 2
        )
    assert (states(), dict(os.environ), logging.get_verbosity()) == before
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    assert vars(kept).keys() == attributes.keys()
    assert all(vars(kept)[name] is attributes[name] for name in attributes)
    assert kept.callback_handler.callbacks == callbacks
    assert [m.keys() for m in modules] == [vars(m).keys() for m in model.modules()]
    assert [vars(a) for a in (arguments, kept.args)] == plain
    assert [dict(c._shared_state) for c in (PartialState, AcceleratorState, GradientState)] == shared


def test_the_seed_is_set_before_the_factory_is_called_and_each_seed_starts_anew():
    def factory():
        small = {"vocab_size": 200, "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
        return short(model=DistilBertForSequenceClassification(DistilBertConfig(**small)), rows=make_rows())

    def start(trace):
        return [t.motion.rms for t in trace.tensors if t.motion]

    runs = finetune(factory, steps=2, seeds=3)
    assert isinstance(runs, Runs)
    again = finetune(factory, steps=2)
    assert again.losses == runs[0].losses
    assert runs[1].losses != runs[0].losses
    assert runs[1].recipe.seed == 1
    assert start(again) == start(runs[0]) != start(runs[1])


def test_a_model_made_by_model_init_follows_the_seed_too():
    def factory():
        trainer = short(kind=Bookkeeper)
        trainer.model_init = lambda: DistilBertForSequenceClassification(trainer.model.config)
        return trainer

    first, second = (finetune(factory, steps=2, seed=s) for s in (0, 1))
    assert first.losses != second.losses
    assert finetune(factory, steps=2).losses == first.losses


def test_a_time_limit_ends_it_early_and_says_so():
    trace = finetune(short, steps=50, max_seconds=0.001)
    assert 1 <= len(trace.steps) < 50
    assert "max_seconds=0.001 reached after" in trace.stopped


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 1e-3}, "lr=0.001 is given without batches: the Trainer that the factory makes decides it"),
        ({"optimizer": torch.optim.AdamW}, "optimizer=.* is given without batches"),
        ({"optimizer": "sgd"}, "optimizer='sgd' is given without batches"),
        ({"loss_fn": len}, "loss_fn=.* is given without batches"),
        ({"eval_batches": [1]}, "eval_batches=.* is given without batches"),
        ({"recipe": Recipe(warmup=0.5)}, "recipe: warmup=0.5 is given without batches"),
    ],
)
def test_arguments_that_the_trainer_decides_are_refused_before_the_factory_is_called(arguments, message):
    def factory():
        raise AssertionError("called")

    with pytest.raises(ValueError, match=message):
        finetune(factory, steps=3, **arguments)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (make_trainer, None),
        (lambda: make_trainer(), None),
        (make_trainer(), "model is a Trainer: expected a function without arguments that makes one"),
        (make_model(), "batches is missing"),
        (make_model, "the factory returned a DistilBertForSequenceClassification, and batches is missing"),
        (3, "model is an int, and batches is missing"),
    ],
    ids=["function", "lambda", "trainer", "module", "factory of a module", "number"],
)
def test_what_is_no_factory_of_a_trainer_is_refused(model, message):
    if message is None:
        assert len(finetune(model, steps=1).steps) == 1
        return
    with pytest.raises(TypeError, match=message):
        finetune(model, steps=1)


def test_the_fixture_takes_a_factory_of_a_trainer_and_the_sessions_steps(pytester):
    pytester.syspathinsert(Path(__file__).parents[1])
    pytester.makepyfile(
        """
        from trainers import make_trainer

        def test_it(finetune):
            trace = finetune(make_trainer)
            assert len(trace.steps) == 4
        """
    )
    pytester.runpytest("--ftcheck-steps=4", "--ftcheck-lr=0.1").assert_outcomes(passed=1)
