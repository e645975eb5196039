"""No check passes without what it judges: every registered check, every choice of probes, in hand-written and in real traces."""

from __future__ import annotations

import dataclasses
import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ftcheck import (
    CheckFailed,
    Trace,
    check_initial_loss,
    check_metric_improves,
    diagnose,
    example_trace,
    finetune,
    tiny_distilbert,
    toy_batches,
    watch,
)
from pytest_ftcheck.checks.assertions import ASSERTIONS
from pytest_ftcheck.checks.catalogue import CHECKS, SPECS
from pytest_ftcheck.checks.probes import MEASURED_BY_THE_RUN, PROBE_CLASSES

#: What the run itself measures, and a check judges.
BY_THE_RUN = {"initial_loss": {"loss"}, "metric_improves": {"metrics"}}
#: Check -> the probes that it judges; without all of them nothing of it is known.
JUDGED = {n: {kind.probe for kind in spec.measurements} for n, spec in SPECS.items() if spec.measurements} | BY_THE_RUN
#: Checks of what the recorder notes of every run.
OF_EVERY_RUN = [name for name in CHECKS if name not in JUDGED]
ALL = sorted(set().union(*JUDGED.values()))


def without(trace: Trace, left_out: set[str], reason: str = "left out: it costs 72 rows") -> Trace:
    """The trace of a run whose budget did not suffice for these probes."""
    # what the probe of the optimizer's start reads is counted at the run's end, too
    counted = None if "optimizer_start" in left_out else trace.optimizer.state_steps
    return dataclasses.replace(
        trace,
        optimizer=dataclasses.replace(trace.optimizer, state_steps=counted),
        probe_loss=None if "loss" in left_out else trace.probe_loss,
        metrics=() if "metrics" in left_out else trace.metrics,
        measurements={name: m for name, m in trace.measurements.items() if name not in left_out},
        skipped={**trace.skipped, **dict.fromkeys(left_out, reason)},
        not_applicable=tuple(name for name in trace.not_applicable if name not in left_out),
        remeasure=None,
        lengthen=None,
    )


@functools.cache
def full() -> Trace:
    """A healthy run with every probe that runs by default."""
    return finetune(tiny_distilbert, toy_batches(), lr=1e-3, steps=20)


def test_every_probe_is_left_out_in_some_example():
    assert set(MEASURED_BY_THE_RUN) == set().union(*BY_THE_RUN.values())
    assert {kind.name for kind in PROBE_CLASSES} - set(ALL) <= {"loop", "restores"}  # observations, judged with others


@pytest.mark.trains
@settings(max_examples=40, deadline=None, database=None)
@given(left_out=st.sets(st.sampled_from(ALL)))
def test_what_was_left_out_is_never_a_pass(left_out):
    trace = without(full(), left_out)
    # those that judge the whole run; the others do not apply to it
    lost = [n for n, probes in JUDGED.items() if probes <= left_out and SPECS[n].judge(full()).status == "pass"]
    for name in lost:
        assert SPECS[name].judge(trace).status == "skipped", name
        verdict = CHECKS[name](trace)
        assert verdict.status == "inconclusive", str(verdict)
        assert verdict.remedy, name
        with pytest.raises(CheckFailed):
            ASSERTIONS[name](trace)
    assert set(lost) <= {verdict.check for verdict in diagnose(trace).not_measured}


@pytest.mark.trains
def test_what_is_left_out_changes_no_pass_into_a_failure():
    for probe in ALL:
        assert diagnose(without(full(), {probe})).status == "healthy", probe


@pytest.mark.trains
def test_the_whole_run_is_judged_by_most_of_them():
    """Else the property above would say little."""
    trains_again = {n for n, spec in SPECS.items() if any(kind.on_request for kind in spec.measurements)}
    by_default = set(JUDGED) - trains_again - {"ranks_agree"}  # one process has no other ranks
    judged = [name for name in by_default if SPECS[name].judge(full()).status == "pass"]
    assert len(judged) >= 0.75 * len(by_default)


@pytest.mark.parametrize("name", OF_EVERY_RUN)
def test_a_run_of_which_nothing_was_noted_is_never_a_pass(name):
    example = example_trace()
    nothing = example_trace(
        tensors=(),
        iterations=(),
        steps=(),
        probe_loss=None,
        metrics=(),
        optimizer=dataclasses.replace(example.optimizer, groups=()),
    )
    try:
        verdict = CHECKS[name](nothing)
    except ValueError as error:
        assert "has no" in str(error)  # noqa: PT017 - no tensor to select
    else:
        assert verdict.status in ("fail", "inconclusive", "skipped")


# ---------------------------------------------------------------------- what the run itself measures
@pytest.mark.trains
@pytest.mark.parametrize("check", [check_initial_loss, check_metric_improves])
def test_the_loss_and_the_metrics_are_measured_when_asked_for(check):
    trace = finetune(tiny_distilbert, toy_batches(), lr=1e-3, steps=20, probes=["inputs"])
    name = check.__name__.removeprefix("check_")
    assert name in [v.check for v in diagnose(trace).not_measured]
    assert check(trace).status == "pass"
    verdict = check(Trace.from_json(trace.to_json()))
    assert verdict.status == "inconclusive"
    assert f"probes=[{next(iter(BY_THE_RUN[name]))!r}]" in verdict.remedy


@pytest.mark.trains
def test_they_need_a_probe_batch_in_a_watched_loop():
    import torch

    model = tiny_distilbert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watch(model, optimizer) as w:
        for inputs, labels in toy_batches()[:3]:
            optimizer.zero_grad()
            w.loss(torch.nn.functional.cross_entropy(model(inputs), labels)).backward()
            optimizer.step()
    for check in (check_initial_loss, check_metric_improves):
        verdict = check(w.trace)
        assert verdict.status == "inconclusive"
        assert "probe_batch=" in verdict.remedy


@pytest.mark.trains
@pytest.mark.parametrize("probes", [["inputs"], ["inputs", "loop"], None])
def test_the_loop_is_observed_whatever_is_named(probes):
    """Else the check would judge our own call, which passes the mask."""
    import torch

    model, batches = tiny_distilbert(), toy_batches()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(model, batch, optimizer, scheduler):
        (ids, lengths, mask), labels = batch
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model((ids, lengths, torch.ones_like(mask))), labels)
        loss.backward()
        optimizer.step()
        return loss

    trace = finetune(model, batches, optimizer=optimizer, step=step, steps=10, probes=probes)
    assert CHECKS["padding_ignored"](trace).status == "fail"
