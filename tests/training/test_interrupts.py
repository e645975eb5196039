"""Ctrl-C at any line, and at any moment: all that is the user's is as before, bit for bit.

A sample; `make interrupts` tries every line and 300 moments.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time

import pytest
import torch
from everything import Everything, bits, process_state
from interrupted import Lines, alarms

from pytest_ftcheck import Features, Recipe, check_init, finetune, sweep, watch
from pytest_ftcheck.instruments import undisturbed as blocks
from pytest_ftcheck.instruments.global_state import GlobalHooks, GlobalState, preserved_globals, seed_everything
from pytest_ftcheck.instruments.snapshots import ModelSnapshot, OptimizerSnapshot, SchedulerSnapshot
from pytest_ftcheck.instruments.undo import Undo, _blocks

pytestmark = pytest.mark.trains
WHOLE = bool(os.environ.get("FTCHECK_EVERY_LINE"))


def restore_all(things):
    undo = Undo(GlobalState(), GlobalHooks())

    def run():
        undo.keep(ModelSnapshot(things.model, known=undo.parameters))
        undo.keep(OptimizerSnapshot(things.optimizer, undo.parameters), SchedulerSnapshot(things.scheduler))
        things.disturb()

    undo.after(run)


def change_globals(things):
    def run():
        with preserved_globals():
            seed_everything(7)
            torch.set_num_threads(2)
            torch.set_grad_enabled(False)

    Undo().after(run)


def measure(things):
    def run():
        with blocks.quiet(things.model, weights=True), blocks.perturbed(things.model.parameters()):
            for p in things.model.parameters():
                p.data.fill_(3)
            things.model(things.batches[0][0])

    Undo().after(run)


def small_finetune(things):
    finetune(
        things.model,
        things.batches,
        optimizer=things.optimizer,
        scheduler=things.scheduler,
        step=things.step,
        steps=2,
        probes=["loss", "loop", "head_state"],
    )


def check(things):
    check_init(things.model, things.batches)


def enter_watch(things):
    """Only ``__enter__`` is interrupted: in the first instruction of ``__exit__`` no other code of ours is called."""
    with watch(things.model, things.optimizer, probe_batch=things.batches[0]):
        tracing = sys.gettrace()
        sys.settrace(None)
        signal.setitimer(signal.ITIMER_REAL, 0)
    sys.settrace(tracing)


def one_by_one(things):
    sweep(things.head, things.features, schemes=[0.1], lrs=[1e-2], seeds=1, recipe=Recipe(steps=2), vectorise=False)


#: What runs; in which files lines are interrupted; about how many of them in the sample.
RUNS = {
    "restoring": (restore_all, "instruments", 60),
    "preserved_globals": (change_globals, "instruments", 60),
    "quiet and perturbed": (measure, "instruments", 60),
    "finetune": (small_finetune, "", 15),
    "check_init": (check, "", 10),
    "watch": (enter_watch, "", 15),
    "sweep": (one_by_one, "", 15),
}


def as_before(things, before, where):
    after = things.state()
    for name, old, new in zip(
        ("modules", "optimizer", "scheduler", "hooks", "gradients", "config", "process"), before, after, strict=True
    ):
        assert new == old, f"{name}, interrupted at {where}"
    assert not blocks.is_probing(), where
    assert not _blocks.open, where


@pytest.mark.parametrize("name", RUNS)
def test_an_interrupt_at_any_line_leaves_everything_as_before(name):
    run, files, sample = RUNS[name]
    things = Everything()
    before = things.state()
    run(things)  # lines that run only the first time (imports, caches) are not those that run here
    as_before(things, before, "nothing")
    with Lines(files=files) as lines:
        run(things)
    as_before(things, before, "nothing")
    assert lines.count > sample
    # of the long runs each place in the code is tried the first and the last time that it runs, of restoring every line that runs
    chosen = lines.chosen(0) if WHOLE and not files else range(0, lines.count, 1 if WHOLE else lines.count // sample)
    raised = 0
    for at in chosen:
        try:
            with Lines(at, files) as interrupted:
                run(things)
        except KeyboardInterrupt:
            raised += 1
        as_before(things, before, interrupted.where)
    assert raised >= 0.7 * len(chosen)  # a reason in `Trace.skipped` is built inside `suppress` here and there


def _seconds(run, things):
    began = time.perf_counter()
    run(things)
    return time.perf_counter() - began


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers on this system")
@pytest.mark.parametrize("name", ["restoring", "finetune", "watch"])
def test_a_signal_at_any_moment_leaves_everything_as_before(name):
    run = RUNS[name][0]
    things = Everything()
    run(things)
    before = things.state()
    seconds = min(
        _seconds(run, things) for _ in range(3)
    )  # else, where the first was held up, most signals come after the others
    tries = 300 if WHOLE else 12 if name == "restoring" else 6
    raised = 0
    with alarms():
        for i in range(tries):
            try:
                signal.setitimer(signal.ITIMER_REAL, max(1e-6, seconds * i / tries))
                run(things)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                raised += 1
            as_before(things, before, f"moment {i} of {tries}")
    assert raised > tries / 4


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers on this system")
@pytest.mark.parametrize("vectorise", [True, False])
def test_ctrl_c_ends_a_sweep_within_a_step(vectorise):
    features = Features.of(torch.randn(64, 8), torch.arange(64) % 2)
    head, sent = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)), []

    def ctrl_c(*_):
        sent.append(time.process_time())
        raise KeyboardInterrupt

    def run(steps):
        sweep(head, features, schemes=[0.1, 0.2], lrs=[1e-3], seeds=1, recipe=Recipe(steps=steps), vectorise=vectorise)

    run(2)  # what is imported the first time
    before = process_state(), bits(tuple(head.parameters()), {})
    with alarms(ctrl_c, again=0.01):
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        with pytest.raises(KeyboardInterrupt):
            run(900_000)  # many minutes
        seconds = time.process_time() - sent[0]
    assert seconds < 5  # of the processor: a step takes a millisecond, and a busy machine takes longer by the clock
    assert not [t for t in threading.enumerate() if t.name.startswith("ftcheck")]
    assert (process_state(), bits(tuple(head.parameters()), {})) == before


def test_a_generator_that_an_interrupt_left_behind_changes_nothing_later():
    """A block of ours that an interrupt left without an end is freed with the traceback, when everything is restored."""
    things = Everything()
    before, left = things.state(), []

    def run():
        outer = blocks.undisturbed(things.model)
        outer.__enter__()
        for _ in range(2):
            left.append(blocks.quiet(things.model, grad=True))
            left[-1].__enter__()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Undo(GlobalState()).after(run)
    as_before(things, before, "quiet")
    while left:
        left.pop(0).gen.close()
    as_before(things, before, "quiet, when it is freed")


def test_two_interrupts_one_in_the_restoring_of_the_other():
    things = Everything()
    before = things.state()

    class Twice(Lines):
        def line(self, frame, event, arg):
            if event == "line" and frame.f_code.co_name == "restore" and self.count < 40:
                self.count += 1
                if self.count in (5, 17, 31):
                    raise KeyboardInterrupt
            return self.line

    with pytest.raises(KeyboardInterrupt), Twice(files="instruments"):
        restore_all(things)
    as_before(things, before, "three lines")
    assert process_state() == before[-1]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers on this system")
def test_an_interrupt_that_python_drops_is_no_failure():
    """One that comes while a callback of the garbage collector runs never reaches the code."""

    def slow(phase, _):
        if phase == "stop":
            time.sleep(0.05)

    gc.callbacks.append(slow)
    try:
        with alarms():
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            gc.collect()
            gc.callbacks.remove(slow)
        with alarms(), pytest.raises(KeyboardInterrupt):
            time.sleep(signal.setitimer(signal.ITIMER_REAL, 0.02)[0] + 1)
    finally:
        gc.callbacks[:] = [callback for callback in gc.callbacks if callback is not slow]
