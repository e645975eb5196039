"""Each fault of a Trainer is named first, and a healthy one passes, in each way of judging it."""

from __future__ import annotations

import pytest
from trainers import FAULTS, HEALTHY, WAYS

from pytest_ftcheck import diagnose

#: A fault shows early.
FEW = 12


@pytest.mark.trains
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_is_named_first(name, way):
    given, fault = FAULTS[name]
    options = {"steps": FEW} if way == "finetune" else {}
    arguments = {"max_steps": FEW, **given.get("arguments", {})}
    found = diagnose(WAYS[way](**{**given, "arguments": arguments}, **options))
    assert found.status == "unhealthy"
    assert found.causes[0].fault == fault, found


@pytest.mark.trains
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_one_passes(name, way):
    found = diagnose(WAYS[way](**HEALTHY[name]))
    assert found.status == "healthy", found
