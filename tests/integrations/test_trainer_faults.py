"""Each fault of a Trainer is named first, and a healthy one passes, in each way of judging it; and the ways agree on every check.

Two ways for each fault, in turn; ``benchmarks/frameworks.py`` tries each fault in all but one of the ways, under 20 seeds.
"""

from __future__ import annotations

import functools

import pytest
from trainers import FAULTS, FEW, HEALTHY, WAYS, make_trainer

from pytest_ftcheck import diagnose

pytestmark = pytest.mark.trains


@functools.cache
def judged(name, way):
    if name in HEALTHY:
        return diagnose(WAYS[way](**HEALTHY[name]))
    given = FAULTS[name][0]
    options = {"steps": FEW} if way == "finetune" else {}
    arguments = {"max_steps": FEW, **given.get("arguments", {})}
    return diagnose(WAYS[way](**{**given, "arguments": arguments}, **options))


def ways_for(name):
    """All ways for a healthy training, two for a fault."""
    ways = list(WAYS)
    if name in HEALTHY:
        return ways
    i = list(FAULTS).index(name)
    return [ways[i % len(ways)], ways[(i + 2) % len(ways)]]


@pytest.mark.parametrize(("name", "way"), [(name, way) for name in FAULTS for way in ways_for(name)])
def test_the_fault_is_named_first(name, way):
    found = judged(name, way)
    assert found.status == "unhealthy"
    expected = FAULTS[name][1]
    if expected == "num_items_ignored" and not make_trainer().model_accepts_loss_kwargs:
        expected = "accumulation_not_averaged"  # by transformers 4.46 itself
    assert found.causes[0].fault == expected, found


@pytest.mark.parametrize("name", [*FAULTS, *HEALTHY])
def test_no_way_passes_what_another_fails(name):
    verdicts = {}
    for way in ways_for(name):
        for v in judged(name, way).verdicts:
            verdicts.setdefault(v.check, {})[way] = v.status
    assert not {check: of for check, of in verdicts.items() if {"pass", "fail"} <= set(of.values())}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_one_passes(name, way):
    found = judged(name, way)
    # watch(model) alone measures nothing on rows, so it may leave open whether all is well
    assert found.status in ("healthy", *["undecided"] * (way == "watch(model)")), found
    assert not found.causes
