"""Every fault fails a check that should see it, and its cause comes first; every healthy control stays silent.

By default a third of the cases, chosen by name, so that the suite stays short; ``FTCHECK_MATRIX=all`` runs all of them, as
``benchmarks/detection.py`` does over several seeds.
"""

from __future__ import annotations

import pytest
from a_third import chosen
from faults import CASES, CONTROLS, FAMILIES, FAULTS, Case, observe
from faults.judged import judge
from faults.missed import ALARMS, MISNAMED, MISSED


def _chosen(cases: dict[str, Case]) -> list[Case]:
    return [c for n, c in sorted(cases.items()) if chosen(n)]


def _params(cases: list[Case], known: dict[str, str]) -> list[object]:
    return [
        pytest.param(
            c, id=c.name, marks=pytest.mark.xfail(reason=known[c.name], strict=True) if c.name in known else ()
        )
        for c in cases
    ]


CATCHABLE = {n: c for n, c in FAULTS.items() if c.catchable}


@pytest.mark.parametrize("case", _params(_chosen(CATCHABLE), {**MISSED, **MISNAMED}))
def test_a_fault_fails_a_check_and_its_cause_comes_first(case):
    outcome = judge(case)
    assert outcome.expected, f"{case.story}\nexpected one of {case.expected}, failed: {outcome.failed}"
    assert outcome.named, f"{case.story}\nfirst cause: {outcome.causes[:1]}, acceptable: {case.cause}"


@pytest.mark.parametrize("case", _params(_chosen({n: c for n, c in FAULTS.items() if c.advised}), {}))
def test_a_fault_that_the_run_learns_in_spite_of_is_advice(case):
    outcome = judge(case)
    assert not outcome.failed, f"{case.story}\n{outcome.failed}"
    assert outcome.advised, f"{case.story}\nexpected advice of {case.expected}, got {outcome.statuses}"


@pytest.mark.parametrize("case", _params(_chosen(CONTROLS), ALARMS))
def test_a_healthy_control_is_silent(case):
    outcome = judge(case)
    assert not outcome.failed, f"{case.story}\n{outcome.failed}"


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in _chosen(CASES)[::6]])
@pytest.mark.filterwarnings("ignore")
def test_a_case_is_what_it_says(case):
    """Without any testing tool; a sixth of the chosen here, `benchmarks/detection.py --self-check` does all."""
    seen = observe(case.build(0))
    assert case.holds(seen), f"{case.story}\n{seen}"


def test_the_collection_is_large_and_covers_every_family():
    assert len(CATCHABLE) >= 80
    assert len(CONTROLS) >= 40
    assert {c.family for c in FAULTS.values()} == set(FAMILIES)


def test_a_third_is_held_out_whatever_its_family():
    for cases in (FAULTS, CONTROLS):
        share = sum(c.held_out for c in cases.values()) / len(cases)
        assert 0.2 < share < 0.5


def test_every_case_says_what_it_is_and_where_it_comes_from():
    for case in CASES.values():
        assert case.story, case.name
        assert case.source, case.name
        assert case.healthy or case.uncatchable or (case.expected and case.cause), case.name


def test_every_expected_check_exists():
    from pytest_ftcheck.checks.catalogue import CHECKS

    for case in FAULTS.values():
        assert set(case.expected) <= set(CHECKS), case.name


def test_what_is_known_to_be_missed_names_cases():
    assert set(MISSED) | set(MISNAMED) <= set(CATCHABLE)
    assert set(ALARMS) <= set(CONTROLS)
    assert not set(MISSED) & set(MISNAMED)
