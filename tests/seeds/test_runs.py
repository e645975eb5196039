"""The same fine-tune under several seeds: when each is trained, what differs, and what is concluded."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pytest_ftcheck import (
    CheckFailed,
    Recipe,
    Runs,
    Verdict,
    assert_healthy,
    assert_weights_move,
    check_loss_decreases,
    check_weights_move,
    diagnose,
    example_trace,
    explain_weight_motion,
    finetune,
    tiny_distilbert,
    toy_batches,
)
from pytest_ftcheck.checks.catalogue import CHECKS, SPECS
from pytest_ftcheck.core.events import listening
from pytest_ftcheck.seeds.judge import judge
from pytest_ftcheck.seeds.runs import digest, repeatable
from pytest_ftcheck.seeds.thresholds import breaking_point, value_of

CPU = {"device": "cpu"}


def runs_of(statuses, seeds="auto", *, longer=None, max_seconds=None, took=1.0, **options):
    """Runs whose i-th seed gets the i-th status, or that of ``longer`` when it is run longer; and who was trained."""
    trained = []

    def train(seed, steps):
        trained.append((seed, steps))
        status = longer[seed] if steps > 20 else statuses[seed]
        return example_trace(
            notes=(status, str(seed)), seconds=took, environment=CPU, recipe=Recipe(seed=seed, steps=steps)
        )

    return Runs(train, Recipe(steps=20, max_seconds=max_seconds), seeds, **options), trained


def read_off(trace, *, fault=""):
    """A check that reads its verdict off the trace."""
    status, seed = trace.notes
    return Verdict(
        "read_off", status, f"seed {seed} says {status}.", remedy="THE-REMEDY", limit="THE-LIMIT", fault=fault
    )


def verdict_of(statuses, seeds="auto", **options):
    runs, trained = runs_of(statuses, seeds, **options)
    return judge(read_off, runs, (), {}), trained


# ---------------------------------------------------------------------- what is concluded
def test_three_passes_end_the_test():
    verdict, trained = verdict_of(["pass"] * 12)
    assert verdict.status == "pass"
    assert verdict.headline == "3 of 3 seeds pass; seed 0: seed 0 says pass."
    assert [seed for seed, _ in trained] == [0, 1, 2]
    assert "this passes on at least 37 % of all seeds; a claim of 95 % needs 59 seeds" in str(verdict)


def test_two_failures_end_the_test():
    verdict, trained = verdict_of(["fail"] * 12)
    assert verdict.status == "fail"
    assert verdict.headline.startswith("2 of 2 seeds fail; seed 0: seed 0 says fail")
    assert len(trained) == 2
    assert "this passes on at most 78 % of all seeds" in str(verdict)
    assert "fails 0.34 % of the time" in verdict.limit
    assert "passes 0.89 % of the time" in verdict.limit


def test_one_failure_needs_more_seeds():
    verdict, trained = verdict_of(["pass", "fail"] + ["pass"] * 10)
    assert verdict.status == "pass"
    assert len(trained) == 6
    assert verdict.headline.startswith("5 of 6 seeds pass, 1 fails; seed 1: seed 1 says fail")


def test_a_result_that_depends_on_the_seed_is_never_a_pass():
    verdict, trained = verdict_of((["pass", "pass", "fail"] * 4)[:12])
    assert verdict.status == "inconclusive"
    assert len(trained) == 12
    assert "8 of 12 seeds pass, 4 fail, which is inconclusive" in verdict.headline
    assert "depends on the seed" in verdict.causes[0]
    assert not verdict.fault
    assert "with 95 % confidence from 12 seeds: this passes on " in str(verdict)


@pytest.mark.parametrize(
    ("statuses", "status"),
    [("ppp", "pass"), ("fff", "fail"), ("ppf", "inconclusive"), ("pff", "inconclusive"), ("ffppppppppp", "pass")],
)
def test_a_fixed_number_is_evaluated_together(statuses, status):
    names = ["pass" if s == "p" else "fail" for s in statuses]
    verdict, trained = verdict_of(names, len(names))
    assert verdict.status == status
    assert len(trained) == len(names)
    assert (f"in place of {len(names)} seeds" in verdict.remedy) == (status == "inconclusive")


def test_what_was_not_measured_is_not_tried_again():
    verdict, trained = verdict_of(["skipped"] * 12, 5)
    assert verdict.status == "skipped"
    assert len(trained) == 1


def test_advice_passes_and_stays_advice():
    assert verdict_of(["advice"] * 3)[0].status == "advice"
    assert verdict_of(["pass", "advice", "pass"])[0].status == "pass"


def test_an_inconclusive_seed_runs_longer_once():
    verdict, trained = verdict_of(["pass", "inconclusive", "pass"], longer=["fail", "pass", "fail"])
    assert verdict.status == "pass"
    assert trained == [(0, 20), (1, 20), (1, 40), (2, 20)]
    assert "seed 1 was inconclusive after 20 steps and ran 40 instead" in str(verdict)


def test_a_seed_that_was_not_measured_is_not_run_longer():
    """More steps measure no more."""
    runs, trained = runs_of(["inconclusive"] * 12)

    def unmeasured(trace):
        return dataclasses.replace(read_off(trace), unmeasured="overfit")

    verdict = judge(unmeasured, runs, (), {})
    assert verdict.status == "inconclusive"
    assert trained == [(0, 20), (1, 20), (2, 20)]
    assert "longer" not in str(verdict)


def test_inconclusive_seeds_count_for_neither_side():
    statuses = ["pass", "inconclusive", "pass", "inconclusive", "pass"]
    verdict, _ = verdict_of(statuses, longer=["inconclusive"] * 5)
    assert verdict.status == "pass"
    assert verdict.headline.startswith("3 of 5 seeds pass, 2 are inconclusive; seed 1: ")


def test_after_three_inconclusive_seeds_no_more_are_trained():
    verdict, trained = verdict_of(["inconclusive"] * 12, longer=["inconclusive"] * 12)
    assert verdict.status == "inconclusive"
    assert len(trained) == 6
    assert "3 seeds are inconclusive, and more will not help" in verdict.headline
    assert verdict.remedy == "THE-REMEDY"


def test_a_scheduler_of_the_users_is_not_run_longer():
    verdict, trained = verdict_of(["inconclusive"] * 12, no_longer="THE-REASON")
    assert len(trained) == 3
    assert "no seed was run longer: THE-REASON" in str(verdict)


def test_a_longer_run_that_raises_is_given_up():
    def train(seed, steps):
        if steps > 20:
            raise RuntimeError("stepped once too often")
        return example_trace(notes=("inconclusive", str(seed)), recipe=Recipe(seed=seed))

    verdict = judge(read_off, Runs(train, Recipe(), "auto"), (), {})
    assert verdict.status == "inconclusive"
    assert "a run of 40 steps raised RuntimeError" in str(verdict)


# ---------------------------------------------------------------------- the budget
def test_time_for_two_seeds_is_no_pass():
    verdict, trained = verdict_of(["pass"] * 12, max_seconds=25.0, took=10.0)
    assert len(trained) == 2
    assert verdict.status == "inconclusive"
    assert "max_seconds=25 left no time for another seed" in verdict.headline
    assert "2 seeds took 20.0 s" in verdict.remedy
    assert "deterministic" not in str(verdict)


def test_the_first_seed_is_always_trained():
    verdict, trained = verdict_of(["pass"] * 12, max_seconds=0.1)
    assert len(trained) == 1
    assert verdict.status == "inconclusive"


def test_time_goes_to_a_longer_run_only_if_it_fits():
    verdict, trained = verdict_of(["inconclusive"] * 12, longer=["pass"] * 12, max_seconds=25.0, took=10.0)
    assert [steps for _, steps in trained] == [20, 20]
    assert verdict.status == "inconclusive"
    assert "max_seconds left no time" in str(verdict)


def test_seeds_that_are_there_cost_nothing():
    runs, trained = runs_of(["pass"] * 3, 3, max_seconds=25.0, took=10.0)
    assert len(list(runs)) == 3
    assert judge(read_off, runs, (), {}).status == "pass"
    assert len(trained) == 3


# ---------------------------------------------------------------------- laziness
def test_checks_share_the_seeds():
    runs, trained = runs_of(["pass"] * 12)
    assert not trained
    for _ in range(3):
        judge(read_off, runs, (), {})
    assert len(trained) == 3
    assert len(runs.traces) == 3


def test_the_verdict_does_not_depend_on_other_checks():
    """A failure further on, trained for another check, is not looked at."""
    runs, _ = runs_of(["pass"] * 3 + ["fail"] * 9)
    assert len([runs[i] for i in range(12)]) == 12
    assert judge(read_off, runs, (), {}).headline.startswith("3 of 3 seeds pass")


def test_runs_are_a_sequence():
    runs, trained = runs_of(["pass"] * 3, 3)
    assert runs[-1].notes == ("pass", "2")
    assert [s for s, _ in trained] == [2]
    assert len(runs) == 3
    assert [t.notes[1] for t in runs[:2]] == ["0", "1"]
    assert [t.notes[1] for t in runs] == ["0", "1", "2"]
    with pytest.raises(IndexError, match="seed number 3 of 3"):
        _ = runs[3]


def test_what_reads_one_trace_reads_the_first_seeds():
    runs, _ = runs_of(["pass"] * 3)
    assert runs.losses == runs[0].losses
    assert runs.tensor("classifier.weight").part == "head"
    assert explain_weight_motion(runs) == explain_weight_motion(runs[0])
    assert "1 of up to 12 seeds trained" in repr(runs)
    assert str(runs).startswith(str(runs[0]))
    with pytest.raises(AttributeError, match="no attribute 'loses'"):
        _ = runs.loses


# ---------------------------------------------------------------------- identical seeds
def test_seeds_that_change_nothing_are_one_run():
    runs = Runs(lambda seed, steps: example_trace(seconds=seed), Recipe(), 5)
    verdict = check_weights_move(runs)
    assert verdict.ok
    assert "4 of 4 tensors moved" in verdict.headline
    assert len(runs.traces) == 2
    assert "the seed has no influence" in str(verdict)
    assert "confidence" not in str(verdict)


# ---------------------------------------------------------------------- every check, diagnose, assertions
@pytest.mark.parametrize("name", CHECKS)
def test_every_check_takes_runs(name):
    runs = Runs(lambda seed, steps: example_trace(notes=(str(seed),)), Recipe(), "auto")
    single = CHECKS[name](example_trace())
    several = CHECKS[name](trace=runs) if name == "weights_move" else CHECKS[name](runs)
    assert several.status == single.status
    assert several.check == name
    assert single.headline in several.headline


def test_arguments_go_to_the_check():
    runs = Runs(lambda seed, steps: example_trace(notes=(str(seed),)), Recipe(), 3)
    assert check_weights_move(runs, "head", min_budget=0.3).status == "fail"
    assert "(min_budget >= 0.300)" in str(check_weights_move(runs, "head", min_budget=0.3))
    with pytest.raises(ValueError, match="min_budget=2"):
        check_weights_move(runs, min_budget=2)


def test_a_failed_assertion_says_that_it_is_deterministic():
    runs = Runs(lambda seed, steps: example_trace(environment=CPU, recipe=Recipe(seed=seed), stopped=None), Recipe(), 3)
    with pytest.raises(CheckFailed) as caught:
        assert_weights_move(runs, min_budget=0.3)
    assert "deterministic: do not re-run; all random states start from the seeds 0 to 1" in str(caught.value)
    with pytest.raises(CheckFailed) as caught:
        assert_weights_move(example_trace(environment=CPU), min_budget=0.3)
    assert str(caught.value).splitlines()[-1].startswith("  note: deterministic: do not re-run; all random states")


@pytest.mark.parametrize(
    "change",
    [
        {"environment": {"device": "cuda:0"}},
        {"source": "watch"},
        {"recipe": None},
        {"recipe": Recipe(max_seconds=1), "stopped": "max_seconds=1 reached after 3 of 20 steps"},
        {"recipe": Recipe(max_seconds=1), "skipped": {"data": "left out: the time limit (max_seconds) was reached"}},
    ],
)
def test_nothing_is_promised_where_a_clock_or_a_gpu_decides(change):
    assert repeatable(example_trace(environment=CPU))
    assert not repeatable(example_trace(**{"environment": CPU, **change}))


def test_diagnose_and_the_gate_go_over_seeds():
    runs, _ = runs_of(["pass"] * 12)
    assert diagnose(runs).status == "healthy"
    assert len(runs.traces) == 3
    assert assert_healthy(runs).status == "healthy"


# ---------------------------------------------------------------------- breaking points
@pytest.mark.parametrize(("name", "threshold"), [(n, t) for n, s in SPECS.items() for t in s.thresholds])
def test_every_threshold_is_an_argument_with_a_default(name, threshold):
    check = CHECKS[name]
    assert 0 < threshold.low < value_of(threshold, check, {}) < threshold.high
    assert value_of(threshold, check, {threshold.argument: 0.5}) == 0.5
    assert threshold.sense in ("at least", "at most")
    for end in (threshold.low, threshold.high):
        assert check(example_trace(), **threshold.held, **{threshold.argument: end}).status


def test_the_breaking_point_is_where_the_verdict_flips():
    threshold = SPECS["loss_decreases"].thresholds[0]
    point = breaking_point(threshold, check_loss_decreases, example_trace(), (), {})
    assert point == pytest.approx(0.39 / 0.70, rel=1e-4)
    assert (
        breaking_point(threshold, check_loss_decreases, example_trace(probe_loss=None, iterations=()), (), {}) is None
    )


# ---------------------------------------------------------------------- real fine-tunes
SHORT = {"steps": 3, "probes": ["loss"], "lr": 1e-3}


class Plain(nn.Module):
    """No dropout: only the data order and the initial weights can differ."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 4)
        self.classifier = nn.Linear(4, 2)

    def forward(self, x):
        return self.classifier(self.base(x).tanh())


def rows(n=4, size=8):
    x = torch.randn(n, size, 4, generator=torch.Generator().manual_seed(0))
    return [(b, (b[:, 0] > 0).long()) for b in x]


@pytest.mark.trains
def test_the_first_seed_is_the_single_run():
    runs = finetune(Plain, rows(), **SHORT, seed=5, seeds=3)
    assert len(runs.traces) == 1  # trained at once: bad input is said where it is given
    assert digest(runs[0]) == digest(finetune(Plain, rows(), **SHORT, seed=5))
    assert [t.recipe.seed for t in runs] == [5, 6, 7]
    assert runs.varies[:2] == ("initial weights", "order of the 4 batches")


@pytest.mark.trains
def test_a_list_is_read_in_another_order():
    seen = []

    def loss_fn(model, batch):
        seen.append(float(batch[0].sum()))
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    batches = rows(8)
    kept = list(batches)
    orders = []
    runs = finetune(Plain(), batches, steps=8, probes=[], loss_fn=loss_fn, seeds=3)
    for i in range(3):
        _ = runs[i]
        orders.append(seen[-8:])
        seen.clear()
    assert orders[0] == [float(b[0].sum()) for b in batches]
    assert batches == kept
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.trains
def test_a_loaders_own_generator_follows_the_seed_and_is_given_back():
    batches = rows(4)
    data = TensorDataset(torch.cat([b for b, _ in batches]), torch.cat([y for _, y in batches]))
    generator = torch.Generator().manual_seed(7)
    loader = DataLoader(data, batch_size=8, shuffle=True, generator=generator)
    before = generator.get_state()
    runs = finetune(Plain(), loader, **SHORT, seeds=3)
    assert len({t.losses for t in runs}) == 3
    assert generator.get_state().equal(before)


@pytest.mark.trains
def test_a_module_starts_from_the_same_weights_and_a_factory_does_not():
    same = finetune(Plain(), rows(), **SHORT, seeds=3)
    anew = finetune(Plain, rows(), **SHORT, seeds=3)
    assert same[0].tensors[0].first == same[1].tensors[0].first
    assert anew[0].tensors[0].first != anew[1].tensors[0].first
    assert same.varies[0].startswith("order of")


@pytest.mark.trains
def test_a_module_changed_in_between_is_an_error():
    model = Plain()
    runs = finetune(model, rows(), **SHORT, seeds=3)
    with torch.no_grad():
        model.classifier.bias += 1
    with pytest.raises(ValueError, match=r"model: its weights have changed .*classifier\.bias"):
        check_weights_move(runs)


@pytest.mark.trains
def test_one_batch_and_no_dropout_leave_the_seed_nothing():
    verdict = check_weights_move(finetune(Plain(), rows(1), **SHORT, seeds=4))
    assert "the seed has no influence" in str(verdict)


@pytest.mark.trains
def test_what_is_the_users_stays_the_users():
    model = tiny_distilbert(n_layers=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    check_weights_move(finetune(model, toy_batches(4, 8), **SHORT, seeds="auto"))
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
    assert torch.get_rng_state().equal(state)


@pytest.mark.trains
@pytest.mark.parametrize("name", ["batches", "eval_batches"])
def test_what_can_be_read_only_once_is_refused(name):
    once = {name: iter(rows())}
    with pytest.raises(ValueError, match=f"^{name} is a list_iterator, which can be read only once, but seeds=3"):
        finetune(Plain, **{"batches": rows(), **once}, **SHORT, seeds=3)


@pytest.mark.trains
def test_bad_input_is_an_error_before_any_training():
    with pytest.raises(ValueError, match="seeds=2: expected"):
        finetune(Plain, rows(), **SHORT, seeds=2)
    with pytest.raises(TypeError, match="batches is an int"):
        finetune(Plain, 3, seeds="auto")
    with pytest.raises(ValueError, match="seeds='all'"):
        finetune(Plain, rows(), seeds="all")


@pytest.mark.trains
def test_the_listener_is_notified_of_every_run_and_of_one_verdict():
    class Recorder:
        def __init__(self):
            self.traces, self.verdicts = [], []

        def progress(self, done, total, loss):
            pass

        def traced(self, trace):
            self.traces.append(trace)

        def judged(self, verdict, trace):
            self.verdicts.append((verdict.check, trace))

    recorder = Recorder()
    with listening(recorder):
        runs = finetune(Plain, rows(), **SHORT, seeds="auto")
        assert_weights_move(runs)
    assert len(recorder.traces) == 3
    assert recorder.verdicts == [("weights_move", runs[0])]


SCRIPT = """
from pytest_ftcheck import finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.seeds.runs import digest
print(digest(finetune(tiny_distilbert, toy_batches(4, 8), steps=4, lr=1e-3, seed=3)))
"""


@pytest.mark.trains
def test_the_same_seed_gives_the_same_trace_bit_for_bit():
    """All probes included; in this process, and in others."""
    here = {
        digest(finetune(tiny_distilbert, toy_batches(4, 8), steps=4, lr=1e-3, seed=3)),
        digest(finetune(tiny_distilbert, toy_batches(4, 8), steps=4, lr=1e-3, seed=3)),
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=400)
    assert here == {done.stdout.split()[-1]}
    assert digest(finetune(tiny_distilbert, toy_batches(4, 8), steps=4, lr=1e-3, seed=4)) not in here
