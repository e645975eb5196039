"""A check that is asked for by name is never passed for want of a measurement; what does not apply is told from what was left out."""

from __future__ import annotations

import dataclasses

import pytest

from pytest_ftcheck import (
    CheckFailed,
    Intent,
    Trace,
    assert_healthy,
    diagnose,
    example_trace,
    finetune,
    tiny_distilbert,
    toy_batches,
    watch,
)
from pytest_ftcheck.checks.assertions import ASSERTIONS
from pytest_ftcheck.checks.catalogue import CHECKS, SPECS
from pytest_ftcheck.checks.probes import PROBE_CLASSES
from pytest_ftcheck.instruments.probe import ModelProbe

MEASURED = {name: spec for name, spec in SPECS.items() if spec.measurements}
LEFT_OUT = {kind.probe: "left out: it costs 72 rows" for spec in MEASURED.values() for kind in spec.measurements}


@pytest.fixture(scope="module")
def trace():
    return finetune(tiny_distilbert, toy_batches(), lr=1e-3, steps=20, probes=["loss", "descent"])


@pytest.mark.parametrize("name", MEASURED)
def test_a_measurement_that_was_left_out_is_no_pass(name):
    trace = example_trace(skipped=LEFT_OUT)
    verdict = CHECKS[name](trace)
    assert verdict.status != "pass"
    if verdict.unmeasured:
        assert verdict.status == "inconclusive"
        assert verdict.unmeasured in verdict.remedy
        assert "left out" in verdict.headline
        with pytest.raises(CheckFailed):
            ASSERTIONS[name](trace)


@pytest.mark.parametrize("name", MEASURED)
def test_what_does_not_apply_is_skipped(name):
    trace = example_trace(skipped=dict.fromkeys(LEFT_OUT, "there is no base"), not_applicable=tuple(LEFT_OUT))
    assert CHECKS[name](trace).status == "skipped"


@pytest.mark.parametrize("name", MEASURED)
def test_a_diagnosis_measures_nothing_more(name):
    """It judges what was measured, and what was left out is neither a pass nor undecided."""
    asked = []
    trace = example_trace(skipped=LEFT_OUT, remeasure=lambda probe: asked.append(probe))
    (verdict,) = [v for v in diagnose(trace).verdicts if v.check == name]
    assert verdict.status == "skipped"
    assert asked == []


#: What it needs is not there, or is measured in every run.
IN_EVERY_RUN = {kind.name for kind in PROBE_CLASSES if issubclass(kind, ModelProbe)}
NOT_LEFT_OUT = [
    "metric_matches_reference",
    *(n for n, spec in MEASURED.items() if any(kind.probe in IN_EVERY_RUN for kind in spec.measurements)),
]


@pytest.mark.trains
@pytest.mark.parametrize("name", [n for n in MEASURED if n not in NOT_LEFT_OUT])
def test_what_was_left_out_is_measured_while_the_model_is_at_hand(trace, name):
    """The probe runs in the same fine-tune again, once for all checks that need it."""
    assert SPECS[name].judge(trace).unmeasured
    verdict = CHECKS[name](trace)
    does_not_apply = verdict.status == "skipped" and not verdict.unmeasured
    assert verdict.status in ("pass", "advice") or does_not_apply, verdict
    assert not verdict.unmeasured


@pytest.mark.trains
def test_it_is_the_same_run(trace):
    again = trace.remeasure("inputs")
    assert again.losses == trace.losses
    assert trace.remeasure("inputs") is again


@pytest.mark.trains
def test_a_trace_from_a_file_or_a_watched_loop_cannot_be_measured(trace):
    verdict = CHECKS["padding_ignored"](Trace.from_json(trace.to_json()))
    assert verdict.status == "inconclusive"
    assert "probes=['inputs']" in verdict.remedy
    import torch

    model = tiny_distilbert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watch(model, optimizer) as w:
        for inputs, labels in toy_batches()[:3]:
            optimizer.zero_grad()
            w.loss(torch.nn.functional.cross_entropy(model(inputs), labels)).backward()
            optimizer.step()
    verdict = CHECKS["padding_ignored"](w.trace)
    assert verdict.status == "inconclusive"
    assert "probe_batch=" in verdict.remedy


def test_what_raises_when_it_runs_again_is_inconclusive():
    def remeasure(probe):
        raise RuntimeError("the data is gone")

    verdict = CHECKS["padding_ignored"](example_trace(remeasure=remeasure))
    assert verdict.status == "inconclusive"
    assert "RuntimeError" in verdict.headline


@pytest.mark.trains
def test_only_a_few_traces_keep_their_model():
    """A module that was passed in would else live to the end of the session."""
    model, batches = tiny_distilbert(), toy_batches()
    traces = [finetune(model, batches, steps=1, probes=[]) for _ in range(6)]
    assert [t.remeasure is not None for t in traces] == [False, False, True, True, True, True]
    assert all(finetune(tiny_distilbert, batches, steps=1, probes=[]).remeasure for _ in range(5))


@pytest.mark.trains
def test_it_travels_neither_as_json_nor_in_comparisons(trace):
    assert "remeasure" not in trace.to_json()
    assert dataclasses.replace(trace, remeasure=None) == trace


@pytest.mark.parametrize(("lacking", "named"), [({"loss_shape": "loss_fn"}, "loss_fn="), ({}, "probes=['loss_shape']")])
def test_the_argument_that_would_have_it_measured_is_data(lacking, named):
    """Whatever the reason says in words."""
    trace = example_trace(source="watch", recipe=None, skipped={"loss_shape": "THE-REASON loss_fn"}, lacking=lacking)
    verdict = CHECKS["loss_matches_task"](Trace.from_json(trace.to_json()))
    assert verdict.status == "inconclusive"
    assert named in verdict.remedy


# ---------------------------------------------------------------------- declared is judged
DECLARED = {
    "dropout_active": ("modes", Intent(dropout=0.1)),
    "padding_ignored": ("inputs", Intent(pad_token_id=0)),
    "loss_matches_task": ("loss_shape", Intent(task="single_label")),
}


@pytest.mark.parametrize("name", DECLARED)
def test_what_is_declared_and_was_left_out_is_inconclusive(name):
    probe, intent = DECLARED[name]
    trace = example_trace(skipped=LEFT_OUT, intent=intent)
    diagnosis = diagnose(trace)
    (verdict,) = [v for v in diagnosis.verdicts if v.check == name]
    assert verdict.status == "inconclusive"
    assert verdict.headline.startswith("Declared, and not judged: intent.")
    assert f"probes=['{probe}']" in verdict.remedy
    assert diagnosis.status == "undecided"
    assert name in [v.check for v in diagnosis.not_measured]
    with pytest.raises(CheckFailed):
        assert_healthy(trace)
    # not declared, or it does not apply
    (verdict,) = [v for v in diagnose(dataclasses.replace(trace, intent=Intent())).verdicts if v.check == name]
    assert verdict.status == "skipped"
    other = dataclasses.replace(trace, not_applicable=(probe,))
    (verdict,) = [v for v in diagnose(other).verdicts if v.check == name]
    assert verdict.status == "skipped"


@pytest.mark.trains
def test_the_one_line_gate_measures_what_is_declared():
    intent = Intent(dropout=True, pad_token_id=0, task="single_label")
    trace = finetune(tiny_distilbert, toy_batches(), lr=1e-3, steps=20, probes=["loss", "descent"], intent=intent)
    assert set(DECLARED) <= {v.check for v in diagnose(trace).having("inconclusive")}
    assert set(DECLARED) <= {v.check for v in assert_healthy(trace).having("pass")}
