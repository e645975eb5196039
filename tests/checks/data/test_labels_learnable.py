"""labels_learnable, on hand-written measurements."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import check_labels_learnable, example_trace
from pytest_ftcheck.checks.data.record import Data, Dependence, Tokens
from pytest_ftcheck.checks.inputs.record import HiddenTokens, Inputs
from pytest_ftcheck.core.observations import Metric, ProbeLossPoint

DEPENDENCE = Dependence(
    320, 499, {"tokens": 0.4, "pairs of tokens": 0.2}, simulated=6, detected=6, shifted={"one row on": 1.2}
)
#: A run that learnt nothing.
UNLEARNT = replace(
    example_trace(),
    metrics=(Metric("accuracy", 0.5, 0.48, 64, "held-out rows", 0.53, 0.7),),
    probe_loss=replace(
        example_trace().probe_loss, points=(ProbeLossPoint(0, 0.7, 0.7), ProbeLossPoint(20, 0.69, 0.69))
    ),
)


def judge(dependence, trace=UNLEARNT, **changes):
    return check_labels_learnable(
        replace(trace, measurements={"data": Data(rows=320, batches=20, labels=320, dependence=dependence, **changes)})
    )


@pytest.mark.parametrize(("p", "status"), [(0.005, "pass"), (0.0051, "fail")])
def test_dependence_at_its_limit(p, status):
    verdict = judge(replace(DEPENDENCE, p_values={"tokens": p, "positions": 0.5}))
    assert verdict.status == status
    assert "tokens" in verdict.headline or status == "fail"


def test_a_clear_dependence_in_the_first_test_is_enough():
    assert judge(Dependence(320, 99, {"tokens": 0.01})).status == "pass"


def test_unrelated_labels():
    verdict = judge(DEPENDENCE)
    assert (verdict.status, verdict.fault) == ("fail", "labels_unrelated")
    assert "least p = 0.200" in verdict.headline
    assert "6 of 6 simulated labellings of these 320 distinct rows" in verdict.headline
    assert verdict.evidence[0] == {"rows compared by": "pairs of tokens", "p": 0.2}


@pytest.mark.parametrize(("shortest", "named"), [(16, True), (15, False)])
def test_rows_of_one_length_may_be_cut_off_texts(shortest, named):
    verdict = judge(DEPENDENCE, tokens=Tokens(1000, 5120, 900, 7, 0.05, 0.04, 16, shortest=shortest, longest=16))
    assert verdict.fault == "labels_unrelated"
    assert ("exactly 16 tokens" in verdict.causes[0]) == named
    assert ("raise max_length" in verdict.remedy) == named


@pytest.mark.parametrize(("hidden", "named"), [(638, True), (15, True), (14, False)])
def test_a_mask_may_hide_the_tokens_that_decide(hidden, named):
    inputs = Inputs(hidden_tokens=HiddenTokens(0, "config", 128, 128, 1481, hidden))
    data = Data(rows=320, batches=20, labels=320, dependence=DEPENDENCE)
    verdict = check_labels_learnable(replace(UNLEARNT, measurements={"data": data, "inputs": inputs}))
    assert verdict.fault == "labels_unrelated"
    assert ("the attention mask hides" in verdict.causes[0]) == named
    assert ("pad_token_id" in verdict.remedy) == named


def test_shifted_labels():
    verdict = judge(replace(DEPENDENCE, shifted={"one row on": 40.0, "in reverse": 7.0}))
    assert (verdict.status, verdict.fault) == ("fail", "labels_shifted")
    assert "one row on" in verdict.headline
    assert judge(replace(DEPENDENCE, shifted={"one row on": 6.0})).fault == "labels_shifted"
    assert judge(replace(DEPENDENCE, shifted={"one row on": 5.9})).fault == "labels_unrelated"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rows": 255}, "too few"),
        ({"detected": 4}, "detects 4 of 6 simulated labellings"),
    ],
)
def test_a_weak_test_proves_nothing(changes, reason):
    verdict = judge(replace(DEPENDENCE, **changes))
    assert verdict.status == "skipped"
    assert reason in verdict.headline
    assert verdict.headline.startswith("Not judged")


def test_a_run_that_learns_decides():
    assert "held-out rows" in judge(DEPENDENCE, example_trace()).headline
    assert judge(DEPENDENCE, example_trace()).status == "pass"
    without = replace(example_trace(), metrics=())
    assert judge(DEPENDENCE, without).status == "inconclusive"
    assert "memorising" in judge(DEPENDENCE, without).headline
    assert "eval_batches" in judge(DEPENDENCE, without).remedy
    assert judge(DEPENDENCE, replace(UNLEARNT, metrics=())).status == "fail"


@pytest.mark.parametrize(("deviations", "status"), [(None, "pass"), (3.5, "pass"), (3.4, "inconclusive")])
def test_held_out_rows_overrule_the_tests_only_if_clearly_better_than_chance(deviations, status):
    """99 permutations give a p-value of 0.01 once in a hundred runs that learn nothing."""
    lucky = Metric("accuracy", 0.5, 0.64, 96, "held-out rows", 0.53, 0.01, deviations=deviations)
    verdict = judge(DEPENDENCE, replace(UNLEARNT, metrics=(lucky,)))
    assert verdict.status == status
    assert status == "pass" or "3.5 standard deviations" in verdict.headline


@pytest.mark.parametrize(("p", "status"), [(0.002, "pass"), (0.0021, "fail")])
def test_many_labels_a_row_have_more_comparisons(p, status):
    verdict = judge(replace(DEPENDENCE, p_values={"the token at the place": p, "tokens": 0.5}, unit="token"))
    assert verdict.status == status
    assert "token at the place" in verdict.headline or "p <= 0.002" in verdict.limit


@pytest.mark.parametrize("unit", ["answer", "target"])
@pytest.mark.parametrize(
    ("gain", "status"),
    [
        (None, "inconclusive"),
        (-1.0, "fail"),
        (2.32, "fail"),
        (2.34, "inconclusive"),
        (3.4, "inconclusive"),
        (3.5, "pass"),
    ],
)
def test_answers_and_targets_are_compared_with_those_of_other_rows(unit, gain, status):
    """A metric that is better than permuted labels is no evidence: places and words may be frequent whatever the input is."""
    verdict = judge(replace(DEPENDENCE, unit=unit, exchange_gain=gain), example_trace())
    assert verdict.status == status
    assert gain is not None or "eval_batches" in verdict.remedy
    assert (
        status != "fail"
        or f"held-out rows preferred by {'-1.00' if gain < 0 else '2.32'} standard errors" in verdict.measured
    )


def test_text_that_may_be_cut_off_is_no_cause_for_labels_of_tokens():
    tokens = Tokens(1000, 5120, 900, 7, 0.05, 0.04, 16, shortest=16, longest=16)
    assert "max_length" not in judge(replace(DEPENDENCE, unit="token"), tokens=tokens).remedy


def test_nothing_to_test():
    verdict = judge(None, untested="there is not exactly one label per row")
    assert (verdict.status, verdict.headline) == ("skipped", "Not measured: there is not exactly one label per row.")


def test_not_measured():
    assert check_labels_learnable(example_trace()).status == "inconclusive"
    verdict = check_labels_learnable(replace(example_trace(), skipped={"data": "it raised ValueError: odd"}))
    assert "it raised ValueError: odd" in verdict.headline


def test_wording():
    assert str(judge(DEPENDENCE)).splitlines() == [
        "labels_learnable: FAIL. Labels look unrelated to inputs: none of 2 comparisons shows that similar rows have similar labels "
        "(least p = 0.200). The same tests detect 6 of 6 simulated labellings of these 320 distinct rows, and the run learnt nothing that "
        "holds on other rows.",
        "  rows compared by      p",
        "  pairs of tokens   0.200",
        "  tokens            0.400",
        "  cause: inputs and labels were shuffled, sorted or filtered separately, or the rule takes far more data to show",
        "  do: print ten rows with their labels; join inputs and labels before shuffling",
        "  limit: p <= 0.005 in one comparison, or a metric on held-out rows better than chance (p <= 0.01)",
        "  measured: label permutations over 320 distinct rows, all batches; no model involved",
    ]
