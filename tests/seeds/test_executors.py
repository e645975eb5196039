"""Work on an executor: begun ahead, taken in order, begun again where a worker died, cancelled. Executors written by hand."""

from __future__ import annotations

import gc
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

from pytest_ftcheck import Recipe, Runs, Verdict, example_trace
from pytest_ftcheck.seeds.executors import ExecutorFailed, Task, Workers
from pytest_ftcheck.seeds.judge import judge
from pytest_ftcheck.seeds.spread import Spread


class Pool:
    """Computes when asked for the result; breaks as a whole, as python's pool of processes does, for what ``dies`` says."""

    made: list[Pool] = []  # noqa: RUF012 - cleared by the fixture

    def __init__(self, dies=()):
        self.dies, self.submitted, self.cancelled, self.broken, self.shut = list(dies), [], [], False, 0
        Pool.made.append(self)

    def submit(self, function, *args):
        if self.broken:
            raise BrokenProcessPool("a child process terminated abruptly")
        self.submitted.append(args)
        future = Future()
        future.result = lambda: self.compute(function, args)
        future.add_done_callback(lambda f: self.cancelled.append(args))  # nothing but a cancel ends it
        return future

    def compute(self, function, args):
        if args in self.dies:
            self.broken = True
        if self.broken:
            raise BrokenProcessPool("A process in the process pool was terminated abruptly")
        return function(*args)

    def shutdown(self, wait=True, *, cancel_futures=False):
        assert not wait
        self.shut += 1


@pytest.fixture(autouse=True)
def made():
    Pool.made.clear()
    return Pool.made


def spread_on(workers, count=12, block=3):
    return Spread(
        lambda seed, steps: Task(workers, f"seed {seed}", "{} {}".format, seed, steps),
        first=0,
        steps=20,
        count=count,
        block=block,
    )


# ---------------------------------------------------------------------- begun ahead, taken in order
def test_seeds_are_begun_in_blocks_and_once():
    pool = Pool()
    spread = spread_on(Workers(pool), count=8)
    assert [spread.answer(seed, 20) for seed in (1, 0, 2)] == ["1 20", "0 20", "2 20"]
    assert [seed for seed, _ in pool.submitted] == [1, 2, 0]
    assert spread.answer(7, 20) == "7 20"
    assert [seed for seed, _ in pool.submitted] == [1, 2, 0, 7]  # the last block is shorter


def test_a_longer_run_is_begun_alone():
    pool = Pool()
    spread = spread_on(Workers(pool))
    assert spread.answer(0, 40) == "0 40"
    assert pool.submitted == [(0, 40)]


def test_what_has_not_begun_is_cancelled_and_begun_again_when_it_is_needed():
    pool = Pool()
    spread = spread_on(Workers(pool))
    assert spread.answer(0, 20) == "0 20"
    spread.cancel()
    assert pool.cancelled == [(1, 20), (2, 20)]
    assert spread.answer(1, 20) == "1 20"
    assert [seed for seed, _ in pool.submitted] == [0, 1, 2, 1, 2]


def test_what_runs_already_is_kept():
    pool = Pool()
    spread = spread_on(Workers(pool))
    spread.answer(0, 20)
    for task in spread._tasks.values():
        task._future.set_running_or_notify_cancel()
    spread.cancel()
    assert spread.answer(1, 20) == "1 20"
    assert [seed for seed, _ in pool.submitted] == [0, 1, 2]


def test_an_interrupt_cancels_all_and_leaves_the_users_executor_running():
    pool = Pool()
    spread = spread_on(Workers(pool))
    spread._task(0, 20)._future.result = interrupted
    with pytest.raises(KeyboardInterrupt):
        spread.answer(0, 20)
    assert [seed for seed, _ in pool.cancelled] == [0, 1, 2]
    assert pool.shut == 0
    assert spread.answer(0, 20) == "0 20"  # and it can go on


def interrupted():
    raise KeyboardInterrupt


# ---------------------------------------------------------------------- judged
def judged(statuses, pool, seeds="auto"):
    def train(seed, steps):
        return example_trace(notes=(statuses[seed], spread.answer(seed, steps)), recipe=Recipe(seed=seed))

    spread = spread_on(Workers(pool), block=3)
    runs = Runs(train, Recipe(), seeds, cancel=spread.cancel)
    return judge(lambda trace: Verdict("read_off", trace.notes[0], "..."), runs, (), {}), runs


def test_auto_trains_three_of_twelve_where_all_pass():
    pool = Pool()
    verdict, _ = judged(["pass"] * 12, pool)
    assert verdict.status == "pass"
    assert [seed for seed, _ in pool.submitted] == [0, 1, 2]


def test_auto_cancels_what_a_decision_makes_unnecessary():
    pool = Pool()
    verdict, _ = judged(["fail"] * 12, pool)
    assert verdict.headline.startswith("2 of 2 seeds fail")
    assert pool.cancelled == [(2, 20)]


def test_runs_that_are_dropped_cancel_what_is_left():
    pool = Pool()
    _, runs = judged(["pass", "fail", *["pass"] * 10], pool)
    pool.cancelled.clear()
    spread = spread_on(Workers(pool))
    runs = Runs(lambda seed, steps: spread.answer(seed, steps) and example_trace(), Recipe(), 12, cancel=spread.cancel)
    _ = runs[0]
    del runs
    gc.collect()
    assert [seed for seed, _ in pool.cancelled] == [1, 2]


# ---------------------------------------------------------------------- workers that die
def test_a_worker_that_dies_once_is_told_to_nobody():
    deaths = [(1, 20)]

    def make():
        return Pool(dies=deaths[: 1 - len(Pool.made)])

    spread = spread_on(Workers(make))
    assert [spread.answer(seed, 20) for seed in range(3)] == ["0 20", "1 20", "2 20"]
    assert len(Pool.made) == 2
    assert Pool.made[0].shut == 1


def test_one_that_dies_twice_is_told_by_name_and_nothing_else_is_lost():
    workers = Workers(lambda: Pool(dies=[(1, 20)]))
    spread = spread_on(workers)
    assert spread.answer(0, 20) == "0 20"
    with pytest.raises(
        ExecutorFailed, match=r"^seed 1: its worker died \(BrokenProcessPool: .*\), 2 times: it was out of memory"
    ):
        spread.answer(1, 20)
    assert [spread.answer(seed, 20) for seed in range(2, 6)] == ["2 20", "3 20", "4 20", "5 20"]
    tries = sum(pool.submitted.count((1, 20)) for pool in Pool.made)
    assert tries == 2
    with pytest.raises(ExecutorFailed, match=r"^seed 1: "):  # every check that reads the seed
        spread.answer(1, 20)
    assert sum(pool.submitted.count((1, 20)) for pool in Pool.made) == tries


def test_an_innocent_seed_is_never_blamed():
    """All seeds of a broken pool fail together; each is repeated alone, so that only the culprit dies twice."""
    workers = Workers(lambda: Pool(dies=[(2, 20)]))
    spread = spread_on(workers)
    spread._task(0, 20), spread._task(1, 20), spread._task(2, 20)
    Pool.made[0].broken = True
    assert [spread.answer(seed, 20) for seed in (0, 1)] == ["0 20", "1 20"]
    with pytest.raises(ExecutorFailed, match=r"^seed 2: "):
        spread.answer(2, 20)


def test_the_users_own_pool_cannot_be_replaced_and_the_message_says_how():
    pool = Pool(dies=[(1, 20)])
    spread = spread_on(Workers(pool))
    spread.answer(0, 20)
    with pytest.raises(
        ExecutorFailed, match=r"^seed 1: its worker died .*, and the executor takes no work .*executor=lambda: \.\.\.$"
    ):
        spread.answer(1, 20)
    assert pool.shut == 0


def test_a_pool_that_is_shut_down_says_so():
    pool = ThreadPoolExecutor(1)
    pool.shutdown()

    class Wrapped:
        def submit(self, *args):
            return pool.submit(*args)

    with pytest.raises(
        ExecutorFailed, match=r"takes no work \(RuntimeError: cannot schedule new futures after shutdown\)"
    ):
        Task(Workers(Wrapped()), "seed 0", str)


# ---------------------------------------------------------------------- whose executor it is
def test_an_executor_of_ours_is_shut_down_when_nothing_needs_it_any_more(made):
    workers = Workers(Pool)  # a class makes one, too
    assert not made
    assert Task(workers, "seed 0", str, 7).result() == "7"
    assert made[0].shut == 0
    del workers
    gc.collect()
    assert made[0].shut == 1


def test_what_is_needed_after_closing_makes_another(made):
    workers = Workers(Pool)
    Task(workers, "seed 0", str, 7)
    workers.close()
    workers.close()
    assert Task(workers, "seed 1", str, 8).result() == "8"
    assert [pool.shut for pool in made] == [1, 0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "executor is an int: expected an object with submit"),
        ("pool", "executor is a str: expected an object with submit"),
        (ThreadPoolExecutor(1), "executor is a ThreadPoolExecutor: expected one with processes of its own"),
    ],
)
def test_what_is_no_executor_is_refused(given, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        Workers(given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 3, r"executor\(\) returned an int: expected an object with submit"),
        (lambda: ThreadPoolExecutor(1), "executor is a ThreadPoolExecutor"),
    ],
)
def test_what_a_function_makes_is_looked_at_too(make, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        Task(Workers(make), "seed 0", str)
