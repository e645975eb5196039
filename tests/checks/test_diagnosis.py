"""Root causes are said once, first, with what they explain; the gate raises for unhealthy and undecided runs."""

from __future__ import annotations

import dataclasses
import pickle
import re
from pathlib import Path

import pytest

from pytest_ftcheck import CheckFailed, Diagnosis, Verdict, assert_healthy, diagnose
from pytest_ftcheck.checks import diagnosis as module
from pytest_ftcheck.checks import spec
from pytest_ftcheck.checks.catalogue import CHECKS, FAULTS, SPECS, explained_by
from pytest_ftcheck.checks.diagnosis import conclude
from pytest_ftcheck.checks.head import faults as head_faults
from pytest_ftcheck.checks.retraining.record import Attempt, Overfit
from pytest_ftcheck.checks.spec import Fault, Symptom
from pytest_ftcheck.core.events import listening
from pytest_ftcheck.core.example_trace import example_trace, tensor
from pytest_ftcheck.core.observations import ProbeLossPoint


def failed(check, fault="", headline=None, **fields):
    return Verdict(check, "fail", headline or f"{check} went wrong", fault=fault, **fields)


def still(name, **changes):
    """A head tensor that the optimizer does not hold."""
    healthy = tensor(name, "head", **changes)
    motion = dataclasses.replace(
        healthy.motion, share_changed=0.0, rms=0.0, largest=0.0, by_gradient=0.0, max_update=0.0
    )
    return dataclasses.replace(healthy, group=None, motion=motion)


@pytest.fixture
def unhealthy():
    """The head is in no parameter group."""
    trace = example_trace()
    tensors = [t for t in trace.tensors if t.part != "head"]
    return dataclasses.replace(
        trace, tensors=(*tensors, still("classifier.weight", shape=(2, 64)), still("classifier.bias", shape=(2,)))
    )


@pytest.fixture
def undecided():
    trace = example_trace()
    points = (ProbeLossPoint(0, 0.70, 0.70), ProbeLossPoint(20, 0.699, 0.699))
    return dataclasses.replace(trace, probe_loss=dataclasses.replace(trace.probe_loss, points=points, descents=()))


# ---------------------------------------------------------------------- the table
def test_faults_are_declared_once_and_explain_checks_that_exist():
    assert {f.name for f in FAULTS.values()} == set(FAULTS)
    assert len({f.rank for f in FAULTS.values()}) == len(FAULTS)
    for fault in FAULTS.values():
        assert {e for e in fault.explains if not isinstance(e, Symptom)} <= set(CHECKS), fault.name
        assert fault.confidence in ("certain", "likely", "possible")
        assert fault.title
        assert not fault.title.endswith(".")


def test_every_fault_that_is_written_anywhere_is_declared_by_a_check():
    """As far as they are written as ``fault="..."``, or are looked for in the checks' own tests."""
    checks, tests = Path(spec.__file__).parent, Path(__file__).parent
    source = "".join(p.read_text(encoding="utf-8") for p in sorted(checks.rglob("*.py")))
    named = set(re.findall(r"fault=\"([a-z_0-9]+)\"", source)) | set(re.findall(r"Fault\(\s*\"([a-z_0-9]+)\"", source))
    for path in sorted(tests.rglob("*.py")):
        named |= set(re.findall(r"\.fault == \"([a-z_0-9]+)\"", path.read_text(encoding="utf-8")))
    of_init_sane = {f.name for f in vars(head_faults).values() if isinstance(f, Fault)}
    assert named - {"mask_not_passed", "lr_zero"} <= set(FAULTS) | of_init_sane


def test_every_fault_explains_what_came_of_the_run():
    outcomes = {name for name, s in SPECS.items() if Symptom.OUTCOME in s.shows}
    assert {"loss_decreases", "metric_improves"} < outcomes
    assert all(outcomes <= explained_by(fault) for fault in FAULTS.values())


# ---------------------------------------------------------------------- grouping
@pytest.fixture
def table(monkeypatch):
    faults = {
        "first": Fault("first", 1, "the first thing is wrong", explains=("weights_move",), confidence="certain"),
        "second": Fault("second", 2, "the second thing is wrong"),
    }
    monkeypatch.setattr("pytest_ftcheck.checks.catalogue.FAULTS", faults)
    monkeypatch.setattr("pytest_ftcheck.checks.diagnosis.FAULTS", faults)
    monkeypatch.setattr("pytest_ftcheck.checks.catalogue._LAST", 3)
    return faults


def test_a_root_takes_what_it_explains(table):
    found = module._causes(
        [failed("weights_move"), failed("loss_decreases"), failed("optimizer_covers_model", "first")]
    )
    assert [c.title for c in found] == ["the first thing is wrong"]
    assert found[0].checks == ("optimizer_covers_model", "weights_move", "loss_decreases")
    assert found[0].evidence[0] == "optimizer_covers_model went wrong"
    assert found[0].confidence == "certain"


def test_the_order_is_that_of_the_table_not_of_the_checks(table):
    found = module._causes([failed("grads_nonzero", "second"), failed("reload_keeps_head", "first")])
    assert [c.fault for c in found] == ["first", "second"]


def test_the_same_fault_in_two_checks_is_one_cause(table):
    found = module._causes([failed("grads_nonzero", "second"), failed("all_finite", "second")])
    assert [c.checks for c in found] == [("grads_nonzero", "all_finite")]


def test_a_fault_that_is_not_in_the_table_comes_last_in_its_own_words(table):
    found = module._causes(
        [failed("all_finite", "odd", causes=("something odd happened.",)), failed("frozen_stay_frozen", "second")]
    )
    assert [c.title for c in found] == ["the second thing is wrong", "something odd happened"]
    assert found[1].confidence == "possible"


def test_a_root_does_not_take_what_it_does_not_explain(table):
    found = module._causes([failed("grads_nonzero", "second"), failed("padding_ignored")])
    assert [c.checks for c in found] == [("grads_nonzero",), ("padding_ignored",)]


# ---------------------------------------------------------------------- diagnose
def test_a_healthy_run_has_no_cause():
    diagnosis = diagnose(example_trace())
    assert diagnosis.status == "healthy"
    assert diagnosis.causes == ()
    assert [v.check for v in diagnosis.verdicts] == list(CHECKS)
    assert diagnosis.having("fail", "inconclusive") == ()


def test_the_cause_comes_first(unhealthy):
    diagnosis = diagnose(unhealthy)
    assert diagnosis.status == "unhealthy"
    text = str(diagnosis)
    assert text.startswith("unhealthy: ")
    assert "1. " in text
    assert diagnosis.causes[0].remedy in " ".join(text.split())
    assert "weights_move" in {c for cause in diagnosis.causes for c in cause.checks}


def test_what_cannot_be_told_is_undecided(undecided):
    diagnosis = diagnose(undecided)
    assert diagnosis.status == "undecided"
    assert "loss_decreases" in diagnosis.headline
    assert "what would settle it" in str(diagnosis)


def test_what_does_not_apply_and_what_was_left_out_are_listed_apart():
    trace = example_trace(skipped={"inputs": "left out: it costs too much"})
    diagnosis = diagnose(trace)
    assert "frozen_stay_frozen" in {v.check for v in diagnosis.not_applicable}
    assert "padding_ignored" in {v.check for v in diagnosis.not_measured}
    text = str(diagnosis)
    applies, _, measured = text.partition("\nnot measured:\n")
    assert "\ndoes not apply:\n   frozen_stay_frozen: nothing is frozen\n" in applies
    assert "left out: it costs too much" in measured
    assert "Not measured:" not in text
    parts = (diagnosis.judged, diagnosis.not_applicable, diagnosis.not_measured)
    assert sorted(v.check for part in parts for v in part) == sorted(CHECKS)


def test_the_last_line_counts_what_was_judged():
    verdicts = [
        Verdict(
            n,
            "skipped" if n in ("frozen_stay_frozen", "head_needed") else "pass",
            "It is so.",
            unmeasured="ablation" if n == "head_needed" else "",
        )
        for n in CHECKS
        if n != "no_leak"
    ]
    total = len(CHECKS)
    expected = (
        f"{total - 3} of {total} checks judged; 1 does not apply; 1 not measured: head_needed; 1 not run: no_leak"
    )
    diagnosis = conclude(verdicts)
    assert diagnosis.coverage == expected
    assert " ".join(str(diagnosis).split()).endswith(f" {expected}.")
    assert diagnosis.not_run == ("no_leak",)


def test_a_verdict_over_seeds_that_passes_was_judged():
    """One of its seeds may have lacked the measurement."""
    assert conclude([Verdict("no_leak", "pass", "2 of 3 seeds pass.", unmeasured="data")]).not_measured == ()


def test_the_whole_of_a_healthy_diagnosis():
    trace = example_trace(skipped=dict.fromkeys(("inputs", "data"), "left out"))
    wanted = ("weights_move", "loss_decreases", "frozen_stay_frozen", "padding_ignored", "overfits_one_batch")
    assert str(diagnose(trace, ignore=[n for n in CHECKS if n not in wanted])) == (
        "healthy: 2 checks passed.\n"
        "\n"
        "does not apply:\n"
        "   frozen_stay_frozen: nothing is frozen\n"
        "\n"
        "not measured:\n"
        "   padding_ignored: left out\n"
        "   overfits_one_batch: it trains the model again, so this probe runs only with probes=['overfit']\n"
        "\n"
        f"2 of {len(CHECKS)} checks judged; 1 does not apply; 2 not measured: padding_ignored, overfits_one_batch; {len(CHECKS) - 5} not\n"
        "   run."
    )


def test_a_diagnosis_fits_its_width(unhealthy):
    assert max(map(len, str(diagnose(unhealthy)).splitlines())) <= module.WIDTH


def test_ignored_checks_are_not_run(unhealthy):
    diagnosis = diagnose(unhealthy, ignore=["weights_move"])
    assert "weights_move" not in {v.check for v in diagnosis.verdicts}


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: diagnose("trace"), TypeError, ["trace is a str"]),
        (lambda: diagnose(example_trace(), ignore=["weights_mov"]), ValueError, ["'weights_mov'", "weights_move"]),
        (lambda: assert_healthy(example_trace(), ignore="nothing_at_all"), ValueError, ["'nothing_at_all'"]),
        (lambda: diagnose(example_trace(), ignore=3), TypeError, ["ignore=3", "names of checks"]),
        (lambda: diagnose(example_trace(), ignore=None), TypeError, ["ignore=None"]),
        (lambda: diagnose(example_trace(), ignore="check_head_neded"), ValueError, ["did you mean head_needed"]),
        (
            lambda: assert_healthy(example_trace(), require=["weights_mov", "loss_decrease"]),
            ValueError,
            ["require='weights_mov' is no check; did you mean weights_move", "require='loss_decrease' is no check"],
        ),
        (lambda: assert_healthy(example_trace(), require=3), TypeError, ["require=3", "names of checks"]),
        (
            lambda: assert_healthy(example_trace(), require="head_needed", ignore=["head_needed"]),
            ValueError,
            ["require= and ignore= both name head_needed"],
        ),
        (lambda: assert_healthy(example_trace(), allow=[3]), TypeError, ["allow[0]=3"]),
        (lambda: assert_healthy(example_trace(), allow=True), TypeError, ["allow=True"]),
        (
            lambda: assert_healthy(example_trace(), allow="loss_decrease"),
            ValueError,
            ["did you mean loss_decreases", "no fault"],
        ),
        (lambda: assert_healthy(example_trace(), allow={"lr_zeros": "why"}), ValueError, ["'lr_zeros'", "lr_zero"]),
        (
            lambda: assert_healthy(example_trace(), allow={"head_needed": 3}),
            TypeError,
            ["allow['head_needed']=3", "reason"],
        ),
    ],
)
def test_bad_arguments(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert not isinstance(caught.value, AssertionError)
    for word in words:
        assert word in str(caught.value)


# ---------------------------------------------------------------------- the gate
def test_the_gate_lets_the_healthy_through():
    assert isinstance(assert_healthy(example_trace()), Diagnosis)


def test_the_gate_stops_an_unhealthy_run_with_the_whole_diagnosis(unhealthy):
    with pytest.raises(CheckFailed) as caught:
        assert_healthy(unhealthy)
    told, _, again = str(caught.value).rpartition("\n\n")
    assert told == str(diagnose(unhealthy))
    assert again.startswith("deterministic: do not re-run; all random states start from seed 0")
    assert caught.value.verdict.check == "healthy"
    assert caught.value.verdict.status == "fail"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_gate_stops_an_inconclusive_run(undecided):
    with pytest.raises(CheckFailed) as caught:
        assert_healthy(undecided)
    assert caught.value.verdict.status == "inconclusive"


def test_an_allowed_failure_is_reported_as_advice(undecided):
    diagnosis = assert_healthy(undecided, allow={"loss_decreases": "20 steps are too few"})
    verdict = next(v for v in diagnosis.verdicts if v.check == "loss_decreases")
    assert verdict.status == "advice"
    assert "allowed: 20 steps are too few" in verdict.notes
    text = str(diagnosis)
    assert "\nallowed:\n   loss_decreases: 20 steps" in text
    assert "reason: 20 steps are too few" in text
    assert "advice:" not in text
    silent = str(assert_healthy(undecided, allow="loss_decreases"))
    assert "\nallowed:\n" in silent
    assert "because" not in silent


def test_what_is_inconclusive_because_of_a_known_cause_takes_one_line(unhealthy, undecided):
    both = dataclasses.replace(unhealthy, probe_loss=undecided.probe_loss)
    diagnosis = diagnose(both)
    assert {"loss_decreases"} == {v.check for v in diagnosis.having("inconclusive")}
    text = str(diagnosis)
    assert text.count("loss_decreases") == 1
    assert "inconclusive because of the above: loss_decreases" in text
    assert "what would settle it" not in text
    assert "what would settle it" in str(diagnose(undecided))


def test_the_one_verdict_of_an_undecided_gate_says_what_would_settle_it(undecided):
    with pytest.raises(CheckFailed) as caught:
        assert_healthy(undecided)
    verdict = caught.value.verdict
    assert verdict.causes[0].startswith("loss_decreases: 20 steps")
    assert verdict.remedy
    assert f"what would settle it: {verdict.remedy}" in str(verdict)


# ---------------------------------------------------------------------- required checks
def test_a_required_check_that_was_judged_changes_nothing():
    trace = example_trace()
    assert assert_healthy(trace, require=["weights_move"]) == diagnose(trace)


def test_a_required_check_is_measured_then_and_there():
    asked = []

    def remeasure(probe):
        asked.append(probe)
        attempt = Attempt(lr=1e-3, steps=30, loss=0.01, reference=0.01, accuracy=1.0, row_difference=1.0, fitted=True)
        fitted = Overfit(8, 8, 0.7, 0.7, 0.69, 0.0, 1.0, (attempt,), trainable=1.0)
        return example_trace(measurements={probe: fitted})

    trace = example_trace(remeasure=remeasure)
    assert diagnose(trace).not_measured
    diagnosis = assert_healthy(trace, require=["overfits_one_batch"])
    assert asked == ["overfit"]
    assert "overfits_one_batch" in {v.check for v in diagnosis.judged}


@pytest.mark.trains
def test_a_required_check_that_cannot_be_measured_is_undecided_and_says_what_would_settle_it():
    with pytest.raises(CheckFailed) as caught:
        assert_healthy(example_trace(), require=["overfits_one_batch"], allow=["overfits_one_batch"])
    verdict, text = caught.value.verdict, str(caught.value)
    assert verdict.status == "inconclusive"
    assert "overfits_one_batch" in verdict.headline
    assert verdict.remedy == "finetune(..., probes=['overfit']) measures it"  # it does not run by default
    assert f"what would settle it: {verdict.remedy}" in " ".join(text.split())
    assert text.count("overfits_one_batch: ") == 1


def test_a_required_check_that_does_not_apply_is_inconclusive():
    with pytest.raises(CheckFailed) as caught:
        assert_healthy(example_trace(), require="frozen_stay_frozen")
    assert caught.value.verdict.status == "inconclusive"
    assert "frozen_stay_frozen: It is required and does not apply: nothing is frozen." in str(caught.value)


def test_a_cause_does_not_excuse_what_was_not_measured(unhealthy):
    """Training checks are explained by most faults, and a required one is still open."""
    with pytest.raises(CheckFailed) as caught:
        assert_healthy(unhealthy, require="overfits_one_batch")
    assert "because of the above" not in str(caught.value)
    assert "what would settle it" in str(caught.value)


def test_a_fault_can_be_allowed_by_its_name(unhealthy):
    faults = {v.fault or v.check for v in diagnose(unhealthy).having("fail")}
    assert assert_healthy(unhealthy, allow=faults).status == "healthy"


def test_the_gate_tells_the_listener_one_verdict(unhealthy):
    class Ears:
        def __init__(self):
            self.heard = []

        def judged(self, verdict, trace):
            self.heard.append(verdict)

    ears = Ears()
    with listening(ears):
        assert_healthy(example_trace())
        with pytest.raises(CheckFailed):
            assert_healthy(unhealthy)
    assert [v.status for v in ears.heard] == ["pass", "fail"]


def test_a_verdict_without_a_fault_has_no_root():
    assert failed("weights_move").fault not in FAULTS
