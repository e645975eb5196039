"""Seeds and sweeps on real executors: the same results as here, bit for bit; what is raised there; workers that are killed.

Ray, which takes a minute to start, is compared by the page docs/how-to/many-machines.md.
"""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_ftcheck import Features, check_loss_decreases, check_overfits_one_batch, diagnose, finetune, sweep
from pytest_ftcheck.core.events import ProgressOnly, listening
from pytest_ftcheck.initialization.heads import Head
from pytest_ftcheck.seeds.executors import ExecutorFailed
from pytest_ftcheck.seeds.runs import digest
from pytest_ftcheck.training.worker import RaisedInWorker

pytestmark = pytest.mark.trains

SHORT = {"steps": 4, "lr": 1e-3}
HERE = str(Path(__file__).parents[2])


class Small(nn.Module):
    """Draws in training: initial weights, dropout and the order of the batches follow the seed."""

    def __init__(self):
        super().__init__()
        self.base, self.drop, self.classifier = nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 2)

    def forward(self, x):
        return self.classifier(self.drop(self.base(x).tanh()))


def rows(n=4):
    x = torch.randn(n, 8, 4, generator=torch.Generator().manual_seed(0))
    return [(b, (b[:, 0] > 0).long()) for b in x]


X = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
FEATURES = Features.of(X, (X[:, 0] > 0).long(), held_out=0.4)
GRID = {"schemes": [0.02, 0.2], "lrs": [1e-3, 1e-2], "seeds": 3, "steps": 10}


def spawned():
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


class Serial:
    """In this very thread: what is computed elsewhere, without elsewhere."""

    def submit(self, function, *args):
        future = Future()
        future.set_result(function(*args))
        return future


@pytest.fixture(scope="module")
def pool():
    with spawned() as made:
        yield made


@pytest.fixture(scope="module")
def local():
    runs = finetune(Small, rows(), **SHORT, seeds=3)
    return [digest(trace) for trace in runs], plain(sweep(Head(6, 2, widths=[8]), FEATURES, **GRID))


def plain(result):
    return dataclasses.replace(result, seconds=0.0).to_json()


def same(executor, local):
    """Several workers at once are those of `pool`; of other libraries one is started, for each imports torch."""
    runs = finetune(Small, rows(), **SHORT, seeds=3, executor=executor)
    assert [digest(trace) for trace in runs] == local[0]
    assert plain(sweep(Head(6, 2, widths=[8]), FEATURES, **GRID, executor=executor)) == local[1]


# ---------------------------------------------------------------------- the same results
def test_a_pool_of_processes_gives_the_same(pool, local):
    same(pool, local)


def test_this_thread_gives_the_same(local):
    state = torch.get_rng_state()
    same(Serial(), local)
    assert torch.get_rng_state().equal(state)


def test_loky_gives_the_same(local):
    loky = pytest.importorskip("loky")
    executor = loky.ProcessPoolExecutor(1)
    try:
        same(executor, local)
    finally:
        executor.shutdown(kill_workers=True)


def test_dask_gives_the_same(local):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        same(client.get_executor(pure=False), local)


def test_submitit_gives_the_same(local, tmp_path):
    submitit = pytest.importorskip("submitit")
    executor = submitit.LocalExecutor(tmp_path)
    executor.update_parameters(timeout_min=5)
    runs = finetune(Small, rows(), **SHORT, seeds=3, executor=executor)
    assert [digest(trace) for trace in runs] == local[0]


# ---------------------------------------------------------------------- what decides the bits
def wide():
    return nn.Sequential(nn.Linear(1024, 1024), nn.Tanh(), nn.Linear(1024, 2))


@pytest.mark.parametrize(("here", "there"), [(1, None), (2, 2)])
def test_a_large_model_gives_the_same_with_as_many_threads(pool, here, there):
    """Above a million parameters a run here takes torch's own setting, and a worker one thread."""
    x = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    given = {"head": "2", "steps": 3, "probes": ["loss"], "seeds": 3}
    batches = [(x, (x[:, 0] > 0).long())] * 2
    mine = finetune(wide, batches, **given, threads=here)
    theirs = finetune(wide, batches, **given, threads=there, executor=pool)
    assert theirs[1].environment["threads"] == str(here)
    assert [t.losses for t in mine] == [t.losses for t in theirs]
    assert [t.tensors for t in mine] == [t.tensors for t in theirs]


def test_a_loaders_order_and_a_module_handed_over_are_those_of_here(pool):
    data = TensorDataset(torch.cat([b for b, _ in rows()]), torch.cat([y for _, y in rows()]))
    model, generator = Small(), torch.Generator().manual_seed(7)
    loader = DataLoader(data, batch_size=8, shuffle=True, generator=generator)
    before, weights = generator.get_state(), {k: v.clone() for k, v in model.state_dict().items()}
    mine, theirs = (finetune(model, loader, **SHORT, seeds=3, **more) for more in ({}, {"executor": pool}))
    assert [digest(t) for t in mine] == [digest(t) for t in theirs]
    assert len({t.losses for t in theirs}) == 3
    assert generator.get_state().equal(before)
    assert all(v.equal(weights[k]) for k, v in model.state_dict().items())


def test_verdicts_are_those_of_here_also_of_what_is_measured_again():
    mine = finetune(Small, rows(), steps=20, lr=1e-2, seeds="auto")
    theirs = finetune(Small, rows(), steps=20, lr=1e-2, seeds="auto", executor=Serial())
    assert str(diagnose(theirs)) == str(diagnose(mine))
    assert check_overfits_one_batch(theirs) == check_overfits_one_batch(mine)
    assert len(theirs.traces) == len(mine.traces)


def test_a_trainer_is_made_there():
    from trainers import make_trainer

    given = {"steps": 3, "probes": ["loss"], "seeds": 3}
    mine, theirs = (finetune(make_trainer, **given, **more) for more in ({}, {"executor": Serial()}))
    assert [digest(t) for t in theirs] == [digest(t) for t in mine]


def test_what_is_measured_later_is_measured_in_the_seeds_own_order():
    data = TensorDataset(torch.cat([b for b, _ in rows()]), torch.cat([y for _, y in rows()]))
    found = []
    for more in ({}, {"executor": Serial()}):
        loader = DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(7))
        runs = finetune(Small, loader, **SHORT, probes=[], seeds=3, **more)
        again = runs[1].remeasure("loss")
        assert again.losses == runs[1].losses
        found.append(digest(again))
    assert found[0] == found[1]


def test_few_heads_a_seed_are_grouped_as_here():
    few = {**GRID, "schemes": [0.1], "lrs": [1e-3, 1e-2]}
    assert plain(sweep(Head(6, 2), FEATURES, **few, executor=Serial())) == plain(sweep(Head(6, 2), FEATURES, **few))
    one_by_one = {**few, "vectorise": False}
    there = sweep(Head(6, 2), FEATURES, **one_by_one, executor=Serial())
    assert there.engine == "one by one: vectorise=False"
    assert plain(there) == plain(sweep(Head(6, 2), FEATURES, **one_by_one))


class Listener:
    """Of a session that has a baseline."""

    def __init__(self):
        self.traces, self.ended, self.again = [], [], []

    def progress(self, done, total, loss):
        pass

    def traced(self, trace):
        self.traces.append(trace)

    def judged(self, verdict, trace):
        pass

    def calibrated(self, calibration):
        pass

    def run_ended(self, trace, rerun):
        self.ended.append((rerun.data(), rerun.evaluation and rerun.evaluation()))
        with listening(None):
            self.again.append([digest(t) for t in rerun.seeds(3)])


def test_a_session_is_told_the_same_and_a_baseline_can_run_it_again():
    told = []
    for more in ({}, {"executor": Serial()}):
        listener = Listener()
        with listening(listener):
            list(finetune(Small, rows(), **SHORT, seeds=3, **more))
        told.append(([digest(t) for t in listener.traces], listener.ended, listener.again))
    assert told[0] == told[1]
    assert len(told[0][0]) == 3
    assert len(told[0][1]) == 1


# ---------------------------------------------------------------------- what is raised there
class TooBig(Exception):
    pass


def refuses():
    raise TooBig("17 layers")


def test_bad_input_is_the_same_error(pool):
    with pytest.raises(ValueError, match=r"^head='nowhere'") as caught:
        finetune(Small, rows(), **SHORT, head="nowhere", seeds=3, executor=pool)
    assert "in process" in str(caught.value.__cause__)
    assert "training" in str(caught.value.__cause__)  # where, as text


def test_an_exception_of_the_users_names_its_class(pool):
    with pytest.raises(RaisedInWorker, match=r"^TooBig: 17 layers$"):
        finetune(refuses, rows(), **SHORT, seeds=3, executor=pool)


def test_an_exception_in_the_middle_has_the_partial_trace():
    calls = []

    def loss_fn(model, batch):
        calls.append(1)
        if len(calls) > 8:
            raise ZeroDivisionError("the ninth")
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    with pytest.raises(ZeroDivisionError, match="the ninth") as caught:
        finetune(Small, rows(), steps=20, probes=[], loss_fn=loss_fn, seeds=3, executor=Serial())
    assert len(caught.value.ftcheck_trace.steps) >= 1
    assert not calls  # it was a copy that was called


def test_a_sweep_checks_its_head_before_anything_is_submitted():
    with pytest.raises(ValueError, match="takes 5 features"):
        sweep(nn.Linear(5, 2), FEATURES, **GRID, executor=Serial())


class Threads:
    """A pool of threads that does not look like one, as dask's with processes=False."""

    def submit(self, function, *args):
        future = Future()
        thread = threading.Thread(target=lambda: future.set_result(function(*args)))
        thread.start()
        thread.join()
        return future


def test_workers_that_are_threads_are_refused():
    with pytest.raises(TypeError, match=r"^executor: its workers are threads of this process"):
        finetune(Small, rows(), **SHORT, seeds=3, executor=Threads())


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_workers_that_are_forks_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # python's own, from 3.12 on
        with (
            ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as forks,
            pytest.raises(TypeError, match=r"^executor: its workers are forks of this process.*get_context\('spawn'\)"),
        ):
            finetune(Small, rows(), **SHORT, seeds=3, executor=forks)


def test_other_versions_are_refused(monkeypatch):
    from pytest_ftcheck.training import seeds_on_executor
    from pytest_ftcheck.training.worker import origin

    monkeypatch.setattr(seeds_on_executor, "origin", lambda: {**origin(), "torch": "1.0"})
    with pytest.raises(RuntimeError, match=r"^executor: its workers have other versions: torch 1\.0 here, \d"):
        finetune(Small, rows(), **SHORT, seeds=3, executor=Serial())


# ---------------------------------------------------------------------- workers that are killed
def killing(folder, seed, times, how):
    """A loss that ends its process where this seed is trained, so many times."""

    def loss_fn(model, batch):
        if torch.initial_seed() == seed and len(list(folder.iterdir())) < times:
            (folder / f"{os.getpid()}-{time.time_ns()}").touch()
            how()
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    return loss_fn


def without_a_word():
    os._exit(0)


def by_the_system():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_once_loses_nothing(tmp_path):
    once = killing(tmp_path, 1, 1, without_a_word)
    runs = finetune(Small, rows(), **SHORT, probes=["loss"], loss_fn=once, seeds=3, executor=spawned)
    mine = finetune(Small, rows(), **SHORT, probes=["loss"], loss_fn=killing(tmp_path, 1, 0, None), seeds=3)
    assert [digest(t) for t in runs] == [digest(t) for t in mine]
    assert len(list(tmp_path.iterdir())) == 1


def test_one_that_is_killed_each_time_is_told_and_the_others_are_kept(tmp_path):
    always = killing(tmp_path, 1, 99, by_the_system)
    runs = finetune(Small, rows(), **SHORT, probes=["loss"], loss_fn=always, seeds=3, executor=spawned)
    with pytest.raises(ExecutorFailed, match=r"^seed 1: its worker died \(BrokenProcessPool: .*, 2 times"):
        check_loss_decreases(runs)
    assert [runs[i].recipe.seed for i in (0, 2)] == [0, 2]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_processes_of_a_pool_made_here_end_with_the_runs():
    before = multiprocessing.active_children()
    collecting = gc.isenabled()
    gc.disable()  # what nobody holds is freed at once: nothing of it refers to itself
    try:
        with listening(ProgressOnly(None)):  # the plugin keeps the runs of a test until its end
            runs = finetune(Small, rows(), **SHORT, probes=["loss"], seeds=3, executor=spawned)
            assert len(list(runs)) == 3
        assert len(multiprocessing.active_children()) > len(before)
        del runs
        until = time.monotonic() + 300
        while (left := set(multiprocessing.active_children()) - set(before)) and time.monotonic() < until:
            time.sleep(0.05)
        assert left == set()
    finally:
        if collecting:
            gc.enable()


INTERRUPTED = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
import torch
from torch import nn
from pytest_ftcheck import finetune

def loss_fn(model, batch):
    os.write(1, b"BEGUN\\n")  # one write: two workers never mix in a line
    time.sleep(300)

def spawned():
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))

if __name__ == "__main__":
    batches = [(torch.randn(8, 4), torch.arange(8) % 2)]
    state = torch.get_rng_state()
    try:
        finetune(lambda: nn.Sequential(nn.Linear(4, 2)), batches, head="0", loss_fn=loss_fn, seeds=4, executor=spawned)
    except KeyboardInterrupt:
        print("INTERRUPTED", torch.get_rng_state().equal(state), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of a group of processes")
@pytest.mark.parametrize(
    "begun", [1, 2]
)  # with two, no worker dies in its imports, and both are to train another seed next
def test_ctrl_c_ends_all_of_it(tmp_path, begun):
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED, encoding="utf-8")
    path = os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])
    running = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell ignores it for what runs in the background
    )
    for _ in range(begun):
        assert running.stdout.readline() == "BEGUN\n"
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    out, _ = running.communicate(timeout=300)
    assert "INTERRUPTED True" in out
    until = time.monotonic() + 300
    while alive(running.pid) and time.monotonic() < until:  # multiprocessing's own helper ends after its parent
        time.sleep(0.05)
    assert not alive(running.pid)


def alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
