"""A run beside its baseline: what is within chance, what is worse, what is not compared; hand-written numbers only."""

from __future__ import annotations

import dataclasses
import math

import pytest
from scipy import stats

from pytest_ftcheck import example_trace
from pytest_ftcheck.pytest_plugin.baseline.compare import FILE_RATE, SECONDS_FIRST, SECONDS_RATIO, compare, tolerance
from pytest_ftcheck.pytest_plugin.baseline.entry import Entry, RecordedMeasure, entry_of, facts
from pytest_ftcheck.pytest_plugin.baseline.fingerprint import HOST, differing, fingerprint
from pytest_ftcheck.pytest_plugin.baseline.measures import SECONDS, binomial_sd, measures

TRACE = example_trace()
NOW = measures(TRACE)
MADE_OF = {"torch": "2.13.0", HOST: "here"}


def entry(seeds=5, fingerprint=None, changed_facts=None, **recorded):
    """A baseline's entry that has the numbers of the example, and a spread of 2 %; ``a__b`` stands for ``a.b``."""
    found = {n: RecordedMeasure(m.value, 0.02) for n, m in NOW.items() if n != "training_loss.drop"}
    found |= {name.replace("__", "."): value for name, value in recorded.items()}
    found = {name: value for name, value in found.items() if value is not None}
    return Entry(fingerprint or MADE_OF, "another run", seeds, found, facts(TRACE) | (changed_facts or {}))


def judged(entry, trace=TRACE, made_of=MADE_OF, comparisons=10):
    return compare("test_it.py::test_it", entry, trace, made_of, comparisons=comparisons, file="b.json")


def test_the_same_numbers_pass():
    verdict = judged(entry())
    assert verdict.status == "pass"
    assert verdict.headline == f"test_it.py::test_it: {len(NOW) - 1} numbers within the tolerance of 5 seeds in b.json."
    assert 0 < verdict.margin <= 1


def test_an_identical_run_passes_whatever_the_fingerprint():
    """The numbers could not be the same bit for bit if it were another run."""
    same = entry_of([TRACE] * 5, {"torch": "1"})
    verdict = judged(same)
    assert verdict.status == "pass"
    assert "bit-for-bit identical" in verdict.headline
    later = dataclasses.replace(TRACE, seconds=99.0, training_seconds=77.0)
    assert "bit-for-bit identical" in judged(same, later).headline


def test_the_tolerance_is_a_prediction_interval():
    """mean +- t * s * sqrt(1 + 1/n); calculated by hand for 5 seeds, and simulated."""
    recorded = RecordedMeasure(0.0, 1.0)
    expected = stats.t.ppf(1 - FILE_RATE / 20, 4) * math.sqrt(1.2)
    assert tolerance(recorded, 5, 20, 0.0, sides=1) == pytest.approx(expected)
    assert tolerance(recorded, 5, 20, 0.0, sides=2) == pytest.approx(
        stats.t.ppf(1 - FILE_RATE / 40, 4) * math.sqrt(1.2)
    )
    assert tolerance(RecordedMeasure(0.0, 1.0, 9.0), 1, 20, 0.0, sides=1) == pytest.approx(
        stats.t.ppf(1 - FILE_RATE / 20, 9) * math.sqrt(2)
    )
    assert tolerance(RecordedMeasure(0.0, 0.0), 5, 20, 0.5, sides=1) == pytest.approx(0.5 * expected)
    # more seeds know more of their spread
    assert tolerance(recorded, 10, 20, 0.0, sides=1) < 0.6 * expected


def test_of_healthy_draws_the_stated_share_is_beyond():
    draws = stats.norm.rvs(size=(40_000, 6), random_state=0)
    before, now = draws[:, :5], draws[:, 5]
    factor = tolerance(RecordedMeasure(0.0, 1.0), 5, 1, 0.0, sides=1)
    beyond = (before.mean(1) - now > factor * before.std(1, ddof=1)).mean()
    assert stats.binomtest(int(beyond * 40_000), 40_000, FILE_RATE).pvalue > 0.001


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["loss.drop", "metric.accuracy"])
def test_only_the_worse_side_fails_and_the_better_one_is_noted(name, sign):
    if name not in NOW:
        pytest.skip("the example has no such number")
    room = tolerance(RecordedMeasure(0, 0.2), 5, 10, 0.0, sides=1)
    inside, beyond = 0.9 * room, 1.1 * room
    key = name.replace(".", "__")
    assert judged(entry(**{key: RecordedMeasure(NOW[name].value + sign * inside, 0.2)})).status == "pass"
    verdict = judged(entry(**{key: RecordedMeasure(NOW[name].value + sign * beyond, 0.2)}))
    if sign > 0:
        assert verdict.status == "fail"
        assert verdict.fault == "regression"
        assert f"{name} is" in verdict.headline
        assert "below the baseline's" in verdict.headline
        assert verdict.margin == pytest.approx(1 - 1.1, abs=0.01)
    else:
        assert verdict.status == "pass"
        assert any(note.startswith(f"better: {name}") for note in verdict.notes)


@pytest.mark.parametrize("name", ["motion__head", "gradient__head"])
@pytest.mark.parametrize("sign", [1, -1])
def test_motion_and_gradients_fail_on_both_sides(name, sign):
    value = NOW[name.replace("__", ".")].value
    room = tolerance(RecordedMeasure(0, 0.02), 5, 10, 0.0, sides=2)
    assert judged(entry(**{name: RecordedMeasure(value * math.exp(sign * 0.9 * room), 0.02)})).status == "pass"
    assert judged(entry(**{name: RecordedMeasure(value * math.exp(sign * 1.1 * room), 0.02)})).status == "fail"


def test_the_message_has_the_numbers_the_limit_and_what_to_do():
    verdict = judged(entry(motion__head=RecordedMeasure(5.0, 0.02), changed_facts={"lr.sum": 9.0}))
    text = str(verdict)
    assert verdict.headline.startswith("test_it.py::test_it: motion.head is 0.250, 95 % below the baseline's 5.00 (")
    assert verdict.evidence[0]["number"] == "motion.head"
    assert "sum of the learning rates: 9 -> " in verdict.causes[0]
    assert "almost no motion of head" in verdict.causes[1]
    assert "--ftcheck-baseline-update" in verdict.remedy
    assert "prediction interval (Student's t) for the next of 5 seeds" in verdict.limit
    assert "0.10 % fail for any one of the 10 numbers in this file, 1.0 % for all of them together" in verdict.limit
    assert "tolerance used" in text


def test_a_number_that_is_no_number_any_more_fails():
    broken = dataclasses.replace(
        TRACE, iterations=tuple(dataclasses.replace(i, loss=float("nan")) for i in TRACE.iterations), probe_loss=None
    )
    verdict = judged(entry(training_loss__drop=RecordedMeasure(0.4, 0.02), loss__drop=None), broken)
    assert verdict.status == "fail"
    assert "training_loss.drop is NaN, not the baseline's 0.400" in verdict.headline


def test_zero_motion_must_stay_zero():
    assert judged(entry(motion__head=RecordedMeasure(0.0, 0.0))).status == "fail"
    still = tuple(
        dataclasses.replace(t, motion=dataclasses.replace(t.motion, by_gradient=0.0)) if t.part == "head" else t
        for t in TRACE.tensors
    )
    quiet = dataclasses.replace(TRACE, tensors=still)
    assert judged(entry(motion__head=RecordedMeasure(0.0, 0.0)), quiet).status == "pass"
    assert judged(entry(), quiet).status == "fail"


def test_a_saturated_metric_has_the_spread_of_its_rows():
    """Five seeds at 100 % do not make 63 of 64 rows a regression."""
    accuracy = next(m for m in TRACE.metrics)
    rows = 64

    def with_share(share):
        return dataclasses.replace(TRACE, metrics=(dataclasses.replace(accuracy, last=share, rows=rows),))

    metrics = {f"metric__{m.name}": None for m in TRACE.metrics} | {
        f"metric__{accuracy.name}": RecordedMeasure(1.0, 0.0)
    }
    perfect = entry(**metrics)
    assert judged(perfect, with_share(63 / 64)).status == "pass"
    assert judged(perfect, with_share(0.5)).status == "fail"
    assert binomial_sd(1.0, 64, 5) < binomial_sd(0.5, 64, 5) == pytest.approx(math.sqrt(0.25 / 64))


def test_a_metric_of_unknown_resolution_is_not_compared():
    accuracy = next(m for m in TRACE.metrics)
    own = dataclasses.replace(TRACE, metrics=(dataclasses.replace(accuracy, name="evaluate", last=0.9, rows=0),))
    others = {f"metric__{m.name}": None for m in TRACE.metrics}
    assert judged(entry(**others, metric__evaluate=RecordedMeasure(1.0, 0.0)), own).status == "pass"
    assert judged(entry(**others, metric__evaluate=RecordedMeasure(1.0, 0.001)), own).status == "fail"


def test_seeds_that_change_nothing_leave_room_for_rounding():
    value = NOW["motion.head"].value
    assert judged(entry(motion__head=RecordedMeasure(value * (1 + 1e-5), 0.0))).status == "pass"
    assert judged(entry(motion__head=RecordedMeasure(value * 1.1, 0.0))).status == "fail"
    halves = {**MADE_OF, "dtype": "bfloat16, float32"}
    loose = entry(fingerprint=halves, motion__head=RecordedMeasure(value * 1.03, 0.0))
    assert judged(loose, made_of=halves).status == "pass"


def test_another_fingerprint_is_named_and_not_compared():
    verdict = judged(entry(motion__head=RecordedMeasure(5.0, 0.02)), made_of={"torch": "2.14.0", HOST: "here"})
    assert verdict.status == "skipped"
    assert (
        verdict.headline == "test_it.py::test_it: not compared with b.json: the setup differs: torch 2.13.0 -> 2.14.0."
    )
    assert "--ftcheck-baseline-update" in verdict.remedy


def test_a_run_cut_short_is_not_compared_but_one_that_broke_is():
    cut = dataclasses.replace(TRACE, stopped="max_seconds=1 reached after 3 of 20 steps")
    assert judged(entry(motion__head=RecordedMeasure(5.0, 0.02)), cut).status == "skipped"
    broke = dataclasses.replace(TRACE, stopped="the loss was not finite 3 times in a row")
    assert judged(entry(motion__head=RecordedMeasure(5.0, 0.02)), broke).status == "fail"


def test_outside_the_tolerance_of_a_single_run_is_advice_unless_no_seed_causes_it():
    """The spread over seeds is not known from a single run."""
    drop, head = (
        RecordedMeasure(NOW["training_loss.drop"].value + 1, 0.01, 8.0),
        RecordedMeasure(NOW["gradient.head"].value, 0.02, 8.0),
    )
    one = Entry(MADE_OF, "another run", 1, {"training_loss.drop": drop, "gradient.head": head}, facts(TRACE))
    verdict = judged(one)
    assert (verdict.status, verdict.fault) == ("advice", "")
    assert "(tolerance: " in verdict.headline
    assert "two seeds may differ by more" in verdict.limit
    cut = tuple(dataclasses.replace(t, grad_norms=(0.0,) * len(t.grad_norms)) for t in TRACE.tensors)
    verdict = judged(one, dataclasses.replace(TRACE, tensors=cut))
    assert (verdict.status, verdict.fault) == ("fail", "regression")
    assert "gradient.head is 0" in verdict.headline
    assert "no gradient reaches the head: " in verdict.causes[0]
    slow = Entry(MADE_OF, "another run", 1, {SECONDS: RecordedMeasure(1e-6, 0.0), "gradient.head": head}, facts(TRACE))
    assert judged(slow, dataclasses.replace(TRACE, training_seconds=1e3)).status == "fail"


def test_nothing_left_to_compare_is_no_pass():
    only = Entry(MADE_OF, "another run", 5, {"metric.f1": RecordedMeasure(0.9, 0.01)})
    verdict = judged(only)
    assert verdict.status == "inconclusive"
    assert "none of the numbers in b.json was measured (metric.f1)" in verdict.headline
    assert any(
        "no longer measured: metric.f1" in note for note in judged(entry(metric__f1=RecordedMeasure(0.9, 0.01))).notes
    )


# ---------------------------------------------------------------------- seconds
def test_seconds_fail_beyond_a_ratio_and_the_first_second():
    steps = len(TRACE.steps)
    base = entry(**{SECONDS.replace(".", "__"): RecordedMeasure(1.0, 0.0)})
    most = SECONDS_RATIO * steps + SECONDS_FIRST
    slow = [dataclasses.replace(TRACE, training_seconds=s) for s in (0.99 * most, 1.01 * most)]
    assert judged(base, slow[0]).status == "pass"
    verdict = judged(base, slow[1])
    assert verdict.status == "fail"
    assert "seconds.step is" in verdict.headline
    assert any("a step takes longer" in cause for cause in verdict.causes)
    assert judged(base, slow[1], made_of={**MADE_OF, HOST: "there"}).status == "pass"
    assert any("seconds are not compared" in n for n in judged(base, made_of={**MADE_OF, HOST: "there"}).notes)
    fast = dataclasses.replace(TRACE, training_seconds=0.05 * steps)
    assert any("better: seconds.step" in note for note in judged(base, fast).notes)


def test_seconds_are_none_of_the_comparisons():
    assert entry().comparisons == len(NOW) - 2  # nor is the training's loss, where there is a probe's


# ---------------------------------------------------------------------- fingerprints
def test_the_fingerprint_has_the_setup_and_nothing_measured():
    found = fingerprint(TRACE, "abc")
    frozen = dataclasses.replace(TRACE, tensors=tuple(dataclasses.replace(t, trainable=False) for t in TRACE.tensors))
    assert fingerprint(frozen, "abc") == found
    assert fingerprint(dataclasses.replace(TRACE, recipe=dataclasses.replace(TRACE.recipe, seed=9)), "abc") == found
    other = fingerprint(dataclasses.replace(TRACE, recipe=dataclasses.replace(TRACE.recipe, lr=1.0)), "abd")
    assert differing(found, other) == ["data abc -> abd", f"recipe lr={TRACE.recipe.lr} -> lr=1.0"]
    smaller = dataclasses.replace(TRACE, tensors=TRACE.tensors[1:])
    assert [d.partition(" ")[0] for d in differing(found, fingerprint(smaller, "abc"))] == ["model"]
    watched = fingerprint(dataclasses.replace(TRACE, recipe=None, source="watch"), None)
    assert watched["recipe"] == "watch"
    assert "data" not in watched
