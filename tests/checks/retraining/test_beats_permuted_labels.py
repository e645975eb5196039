"""beats_permuted_labels: a pass is outside a prediction interval, a failure needs many rows and no hint of an advantage."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_ftcheck import CheckFailed, assert_beats_permuted_labels, check_beats_permuted_labels, example_trace
from pytest_ftcheck.checks.head.ablation_record import Outcome
from pytest_ftcheck.checks.retraining.beats_permuted_labels import ALPHA, LEAST_HELD_OUT, LEAST_ROWS
from pytest_ftcheck.checks.retraining.record import Permuted, Rerun
from pytest_ftcheck.core.trace import Trace

LN2 = math.log(2)


def rerun(loss, held=0.7, right=0.5, *, displacement=0.01, start=LN2):
    return Rerun(start, Outcome(loss, None), None if held is None else Outcome(held, right), displacement)


#: Nothing learnt from any labels, within a few thousandths.
LUCK = tuple(rerun(0.68 + d, 0.70 + d, 0.5 + d) for d in (-0.004, -0.001, 0.002, 0.003))
#: Memorised.
MEMORISED = tuple(rerun(0.10 + d, 1.40 + 10 * d, 0.5 + d) for d in (-0.04, -0.01, 0.02, 0.03))
FOUND = Permuted(
    steps=100, rows=LEAST_ROWS, scored_rows=LEAST_ROWS, held_out_rows=LEAST_HELD_OUT, changed=0.5,
    constant_loss=LN2, held_out_constant_loss=LN2,
    run=rerun(0.68), true=rerun(0.68), permuted=LUCK, baseline=0.5, own_first=0.7, standard_first=0.7,
)  # fmt: skip


def verdict(**changes):
    return check_beats_permuted_labels(replace(example_trace(), measurements={"permuted": replace(FOUND, **changes)}))


def test_true_labels_are_fitted_faster():
    v = verdict(true=rerun(0.4))
    assert v.status == "pass"
    assert "training loss 0.4000, with permuted labels 0.6760 to 0.6830" in v.headline
    assert [row["trained with"] for row in v.evidence][:3] == ["the run", "true labels", "permuted labels 1"]


@pytest.mark.parametrize("true", [rerun(0.68, held=0.4), rerun(0.68, right=1.0)])
def test_held_out_rows_are_enough(true):
    assert verdict(true=true).status == "pass"


def test_the_interval_is_that_of_a_prediction():
    """Four permuted runs with a standard deviation of s: one more run is outside at t s sqrt(1 + 1/4)."""
    from scipy.stats import t

    losses = [r.fit.loss for r in LUCK]
    mean = sum(losses) / 4
    spread = math.sqrt(sum((f - mean) ** 2 for f in losses) / 3)
    limit = float(t.ppf(1 - ALPHA, 3)) * spread * math.sqrt(1.25)
    alone = tuple(replace(r, held_out=None) for r in LUCK)
    for factor, status in ((0.99, "inconclusive"), (1.01, "pass")):
        true = rerun(mean - factor * limit, held=None)
        assert verdict(true=true, permuted=alone).status == status


def test_labels_that_suit_the_initial_weights_are_not_learnt():
    """The smaller advantage counts: at the end, and since the start."""
    assert verdict(true=rerun(0.4, start=LN2 - 0.28)).status == "inconclusive"
    assert verdict(true=rerun(0.68, start=LN2 + 0.3)).status == "inconclusive"
    assert verdict(true=rerun(0.4, start=LN2 - 0.1)).status == "pass"


def test_worse_than_blind_is_no_worse_than_blind():
    """Held out, permuted runs that are surer of nothing do not make this one better."""
    assert verdict(true=rerun(0.1, 0.75), permuted=MEMORISED).fault == "no_better_than_permuted"


def test_shares_are_judged_by_their_rows():
    assert verdict(true=rerun(0.68, right=0.75)).status == "pass"  # 48 of 64: one in 24,000 by luck
    wide = tuple(
        rerun(0.68, 0.7, a) for a in (0.3, 0.7, 0.4, 0.6)
    )  # some have learnt the classes by luck, or their opposite
    assert verdict(true=rerun(0.68, right=0.75), permuted=wide).status == "inconclusive"
    assert verdict(true=rerun(0.68, right=0.55)).status == "inconclusive"
    assert verdict(true=rerun(0.68, right=0.75), baseline=0.7).status == "inconclusive"


def test_equal_runs_are_not_apart():
    assert verdict(permuted=(rerun(0.68),) * 4).status == "inconclusive"


def test_learnt_by_heart():
    v = verdict(true=rerun(0.1, 1.4), permuted=MEMORISED)
    assert (v.status, v.fault) == ("fail", "no_better_than_permuted")
    assert "memorises" in v.headline
    assert "ten rows" in v.remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": LEAST_ROWS - 1},
        {"held_out_rows": LEAST_HELD_OUT - 1},
        {"permuted": (*MEMORISED[:3], rerun(0.5, 1.4))},
        {"constant_loss": None, "held_out_constant_loss": None},
        {"true": rerun(0.1, 0.65)},
    ],
)
def test_too_little_to_be_sure(changes):
    v = verdict(**{"true": rerun(0.1, 1.4), "permuted": MEMORISED, **changes})
    assert v.status == "inconclusive"


def test_the_loss_misses_the_labels():
    standard = rerun(0.2, 0.25, 0.95)
    v = verdict(standard=standard)
    assert (v.status, v.fault) == ("fail", "loss_misses_labels")
    assert (
        verdict(standard=replace(standard, displacement=0.05)).status == "inconclusive"
    )  # the run's own steps were small
    assert verdict(standard=rerun(0.6, 0.6)).status == "inconclusive"  # no plain advantage
    assert verdict(true=rerun(0.6, 0.65), standard=standard).status != "fail"  # a hint of one
    assert (
        verdict(true=rerun(0.67), standard=standard).status == "fail"
    )  # beyond luck, and next to nothing beside what could be learnt
    assert verdict(standard=standard, own_first=-0.7).status == "fail"
    assert verdict(standard=standard, own_first=1.5).status == "inconclusive"  # a loss of another kind


def test_wording():
    v = verdict(true=rerun(0.1, 1.4), permuted=MEMORISED)
    assert v.headline == (
        "The run memorises its labels, and permuted ones as well: training loss 0.1000, with permuted labels 0.06000 to 0.1300; "
        "held-out loss 1.400, with permuted labels 1.000 to 1.700; held-out accuracy 50 %, with permuted labels 46 % to 53 %."
    )
    assert v.causes == (
        "the labels do not belong to the rows: shuffled, shifted, or joined to the wrong inputs",
        "or the rule can at first only be memorised (parity, modular arithmetic): then allow this",
    )
    assert v.remedy == "print ten rows with their labels, as they enter the model"
    assert v.limit == (
        "outside the permuted runs' prediction interval (Student's t; accuracies also a binomial test; error rate 0.05 over all "
        "comparisons); a failure requires 128 rows trained on and 64 held out, and an advantage below 5.0 % of the best constant "
        "prediction's loss"
    )
    assert v.measured == (
        "the run's 100 steps again from its initial weights, once with the true and 4 times with permuted labels; dropout off, on 128 rows "
        "trained on and 64 held out"
    )


def test_what_diverges_is_not_judged():
    v = verdict(permuted=tuple(rerun(math.nan, math.nan, 0.5) for _ in range(4)), true=rerun(math.nan, None))
    assert v.status == "inconclusive"


def test_a_run_that_ended_elsewhere_is_said():
    assert "its repetition at 0.4000" in verdict(true=rerun(0.4), run=rerun(0.68)).notes[0]


def test_not_asked_for_and_bad_limits():
    assert "probes=['permuted']" in check_beats_permuted_labels(example_trace()).headline
    with pytest.raises(ValueError, match="alpha"):
        check_beats_permuted_labels(example_trace(), alpha=1.5)


def test_the_assertion_raises_and_the_record_survives_json():
    trace = replace(
        example_trace(), measurements={"permuted": replace(FOUND, true=rerun(0.1, 1.4), permuted=MEMORISED)}
    )
    with pytest.raises(CheckFailed, match="beats_permuted_labels: FAIL"):
        assert_beats_permuted_labels(trace)
    assert Trace.from_json(trace.to_json()) == trace
