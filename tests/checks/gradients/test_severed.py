"""Hand-written traces: tensors without gradient that the output depends on."""

import dataclasses

import pytest

from pytest_ftcheck import check_grads_nonzero, check_weights_move, diagnose, example_trace
from pytest_ftcheck.checks.gradients.record import MissingGradient, ReferenceGradient
from pytest_ftcheck.checks.gradients.severed import severed
from pytest_ftcheck.core.example_trace import tensor
from pytest_ftcheck.core.observations import Gradients

STILL = dataclasses.replace(
    tensor("x", "base").motion, share_changed=0.0, share_with_gradient=0.0, rms=0.0, by_gradient=0.0, max_update=0.0
)


def gradients(*, none=0, zero=0, norm=0.0):
    return Gradients(20, none, zero, 0, None if norm == 0 else 3, None, norm, norm, norm, 1e-6)


def without_gradient(record, name="side.proj.weight", **how):
    """The healthy trace with one more base tensor in a module of its own, which gets no gradient; and what was measured of it."""
    trace = example_trace()
    more = tensor(name, "base", gradients=gradients(**how), motion=STILL)
    return dataclasses.replace(
        trace,
        tensors=(*trace.tensors, more),
        measurements={"reference": ReferenceGradient(missing=() if record is None else (record,))},
    )


def measured(kind="none", small_noise=0.01, full_noise=0.4, no_noise=0.0, hooked=False, gate=None):
    return MissingGradient(("side.proj.weight",), kind, small_noise, full_noise, no_noise, hooked, gate)


def test_a_module_that_nothing_depends_on_is_no_fault():
    verdict = check_grads_nonzero(without_gradient(None, none=20))
    assert verdict.status == "pass"
    assert any("nothing else depends on" in n for n in verdict.notes)


@pytest.mark.parametrize(
    ("record", "how", "fault", "says"),
    [
        (measured(), {"none": 20}, "graph_cut", ".detach()"),
        (measured(small_noise=0.0), {"none": 20}, "graph_cut", "argmax"),
        (measured("zero"), {"zero": 20}, "gradient_blocked", "a custom backward"),
        (measured("zero", hooked=True), {"zero": 20}, "gradient_blocked", "a registered hook"),
        (measured("zero", small_noise=0.0), {"zero": 20}, "gradient_blocked", "derivative is zero"),
        (measured("zero", 0.0, 0.0, gate="gate"), {"zero": 20}, "gate_zero", "gate is exactly zero"),
        (measured("seldom", small_noise=0.0), {"zero": 16, "norm": 5.0}, "gradient_saturated", "80 % of the steps"),
    ],
)
def test_a_severed_gradient_is_named(record, how, fault, says):
    trace = without_gradient(record, **how)
    verdict = check_grads_nonzero(trace)
    assert (verdict.status, verdict.fault) == ("fail", fault)
    assert says in verdict.causes[0]
    assert diagnose(trace).causes[0].fault == fault


def test_the_weights_that_do_not_move_have_the_same_cause():
    verdict = check_weights_move(without_gradient(measured(), none=20))
    assert (verdict.status, verdict.fault) == ("fail", "graph_cut")
    assert ".detach()" in verdict.causes[0]


@pytest.mark.parametrize(
    ("record", "depends"),
    [
        (measured(full_noise=0.0009), False),
        (measured(full_noise=0.0011), True),
        (measured(full_noise=0.02, no_noise=0.0021), False),
        (measured(full_noise=0.02, no_noise=0.0019), True),
        (measured("seldom", full_noise=0.049), False),
        (measured("seldom", full_noise=0.051), True),
    ],
)
def test_the_output_must_depend_on_it_by_more_than_chance(record, depends):
    assert bool(severed(without_gradient(record, none=20))) is depends


def test_a_dead_unit_is_not_taken_for_a_blocked_gradient():
    """The input of a layer is zero for every row: its bias learns, its weight follows no small change."""
    trace = example_trace()
    head = [
        dataclasses.replace(t, gradients=gradients(zero=20)) if t.name == "classifier.weight" else t
        for t in trace.tensors
    ]
    record = MissingGradient(("classifier.weight",), "zero", 0.0, 0.3, 0.0)
    trace = dataclasses.replace(
        trace, tensors=tuple(head), measurements={"reference": ReferenceGradient(missing=(record,))}
    )
    assert check_grads_nonzero(trace).fault == "units_dead"


def test_what_is_declared_unused_is_not_judged():
    from pytest_ftcheck import Intent

    trace = dataclasses.replace(without_gradient(measured(), none=20), intent=Intent(unused="side"))
    assert check_grads_nonzero(trace).status == "pass"
