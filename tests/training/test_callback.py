"""``FtcheckCallback``: a Trainer watched by a callback of its own."""

from __future__ import annotations

import pytest
import torch
from trainers import SoftmaxTwice, make_rows, make_trainer
from transformers import Trainer, TrainerCallback

from pytest_ftcheck import CheckFailed, FtcheckCallback, check_weights_move
from pytest_ftcheck.integrations.trainer_guard import CrashGuard

pytestmark = pytest.mark.trains
SHORT = 6


def short(callback=None, **given):
    arguments = {"max_steps": SHORT, **given.pop("arguments", {})}
    trainer = make_trainer(arguments=arguments, **given)
    if callback is not None:
        trainer.add_callback(callback)
    return trainer


def hooks():
    from torch.optim import optimizer

    return len(optimizer._global_optimizer_pre_hooks) + len(optimizer._global_optimizer_post_hooks)


def test_the_trace_is_there_after_the_training_and_the_trainer_is_as_before():
    callback = FtcheckCallback()
    trainer = short(callback)
    own = {"training_step", "get_batch_samples", "evaluate"} & set(vars(trainer))
    with pytest.raises(RuntimeError, match="ready after the training"):
        callback.trace  # noqa: B018
    trainer.train()
    assert len(callback.trace.steps) == len(callback.trace.losses) == SHORT
    assert trainer.callback_handler.callbacks[-1] is callback
    assert {"training_step", "get_batch_samples", "evaluate"} & set(vars(trainer)) == own == set()
    assert "call_event" not in vars(trainer.callback_handler)
    assert hooks() == 0


def test_passed_to_the_constructor_it_watches_too():
    callback = FtcheckCallback()
    trainer = make_trainer(arguments={"max_steps": SHORT}, callbacks=[callback])
    trainer.train()
    assert len(callback.trace.steps) == SHORT


def test_with_raises_a_fault_of_compute_loss_fails_the_training_script():
    trainer = short(FtcheckCallback(raises=True), kind=SoftmaxTwice)
    with pytest.raises(CheckFailed, match=r"[Ss]oftmax is applied twice"):
        trainer.train()
    assert trainer.state.global_step == SHORT
    assert hooks() == 0


def test_without_raises_nothing_is_judged():
    callback = FtcheckCallback()
    short(callback, kind=SoftmaxTwice).train()
    assert len(callback.trace.steps) == SHORT


def test_a_second_training_is_watched_anew():
    callback = FtcheckCallback()
    trainer = short(callback)
    trainer.train()
    first = callback.trace
    trainer.train()
    assert callback.trace is not first
    assert len(callback.trace.steps) == SHORT


@pytest.mark.parametrize("crash", ["compute_loss", "get_batch_samples", "evaluate", "another callback", "optimizer"])
def test_when_the_training_crashes_the_hooks_are_off_before_anybody_can_catch_the_error(crash):
    def raises(*given, **options):
        if trainer.state.global_step == 2:
            raise KeyboardInterrupt("stop")
        return original(*given, **options)

    class Raises(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 3:
                raise KeyboardInterrupt("stop")

    class Crashes(torch.optim.AdamW):
        def step(self, *given, **options):
            if trainer.state.global_step == 2:
                raise KeyboardInterrupt("stop")
            return super().step(*given, **options)

    callback = FtcheckCallback(raises=True)
    optimizers = (lambda model: (Crashes(model.parameters(), lr=1e-3), None)) if crash == "optimizer" else None
    arguments = {"eval_strategy": "steps", "eval_steps": 1} if crash == "evaluate" else {}
    trainer = short(callback, arguments=arguments, eval_dataset=make_rows()[:8], optimizers=optimizers)
    if crash == "another callback":
        trainer.add_callback(Raises())
    elif crash != "optimizer":
        original = getattr(trainer, crash)
        setattr(trainer, crash, raises)
    callbacks = list(trainer.callback_handler.callbacks)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert hooks() == 0
    assert trainer.callback_handler.callbacks == callbacks
    assert not {"training_step", "_run_epoch"} & set(vars(trainer))
    assert getattr(trainer.optimizer.step, "__code__", None) is not CrashGuard._guarded(None, print).__code__
    assert "KeyboardInterrupt" in callback.trace.stopped


def test_a_probe_that_raises_stops_no_training():
    class Fragile(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            if return_outputs:
                raise ValueError("no outputs here")
            return super().compute_loss(model, inputs)

    callback = FtcheckCallback()
    short(callback, kind=Fragile).train()
    assert len(callback.trace.steps) == SHORT
    assert any("no outputs here" in note for note in callback.trace.notes)


def test_a_head_that_is_not_there_is_an_error_before_the_first_step_and_leaves_nothing_behind():
    callback = FtcheckCallback(head="nope")
    trainer = short(callback)
    callbacks = list(trainer.callback_handler.callbacks)
    with pytest.raises(ValueError, match="nope"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert trainer.callback_handler.callbacks == callbacks
    assert not {"training_step", "get_batch_samples", "evaluate"} & set(vars(trainer))
    assert "call_event" not in vars(trainer.callback_handler)
    assert hooks() == 0


def test_called_by_no_trainer_it_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"trainer.add_callback\(...\), or watch the loop"):
        FtcheckCallback().on_train_begin(None, None, None)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"raises": 1}, TypeError, "raises is an int: expected True or False"),
        ({"intent": {}}, TypeError, "intent is a dict"),
        ({"loss_fn": 3}, TypeError, "loss_fn is an int"),
        ({"probes": ["nope"]}, ValueError, "'nope' is none of"),
    ],
)
def test_bad_input_is_one_clear_error(options, error, message):
    with pytest.raises(error, match=message):
        FtcheckCallback(**options)


def test_a_resumed_training_with_nothing_left_to_train_is_named(tmp_path):
    """`transformers` takes one more step all the same, at a learning rate of zero."""
    saving = {"output_dir": str(tmp_path), "max_steps": 4, "save_steps": 4, "save_strategy": "steps"}
    make_trainer(arguments=saving).train()
    callback = FtcheckCallback(raises=True)
    resumed = make_trainer(arguments=saving, callbacks=[callback])
    with pytest.raises(CheckFailed, match="nothing was left to train") as raised:
        resumed.train(resume_from_checkpoint=True)
    assert "unhealthy: the learning rate is zero" in str(raised.value)
    longer = make_trainer(arguments={**saving, "max_steps": 12}, callbacks=[watched := FtcheckCallback()])
    longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert len(watched.trace.steps) == 8
    assert check_weights_move(watched.trace).fault != "lr_zero"
