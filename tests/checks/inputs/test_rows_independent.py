"""rows_independent: outputs that depend on the other rows of the batch."""

from __future__ import annotations

from dataclasses import replace

from pytest_ftcheck import check_rows_independent, example_trace
from pytest_ftcheck.checks.inputs.record import BatchMatesMeasurement, Inputs
from pytest_ftcheck.core.effect import Effect

NONE = Effect(1e-9, 0.01, 0.02)
BIG = Effect(0.03, 0.01, 0.02)


def judged(mates, **fields):
    return check_rows_independent(
        replace(example_trace(), measurements={"inputs": Inputs(8, batch_mates=mates, **fields)})
    )


def test_not_measured():
    assert check_rows_independent(example_trace()).headline == "Not measured."
    verdict = judged(None, unmeasured={"batch_mates": "the outputs are not finite"})
    assert (verdict.status, verdict.headline) == ("skipped", "Not measured: the outputs are not finite.")


def test_rounding_is_no_dependence():
    verdict = judged(BatchMatesMeasurement(4, NONE, NONE, "base_model"))
    assert verdict.status == "pass"
    assert "the same 4 rows change by <0.01 %" in verdict.headline


def test_mixed_behind_the_base():
    verdict = judged(BatchMatesMeasurement(4, BIG, NONE, "base_model"))
    assert (verdict.status, verdict.fault) == ("fail", "rows_mixed")
    assert "300 %" in verdict.headline
    assert "behind base_model, whose own output is independent" in verdict.causes[0]
    assert "view()" in verdict.causes[0]


def test_mixed_inside_the_base():
    assert "inside base_model" in judged(BatchMatesMeasurement(4, BIG, BIG, "base_model")).causes[0]
    assert "in the model" in judged(BatchMatesMeasurement(4, BIG)).causes[0]


def test_a_librarys_base_is_exempt_only_where_it_is_the_one_that_mixes():
    assert judged(BatchMatesMeasurement(4, BIG, BIG, "base_model", library_base=True)).status == "pass"
    assert judged(BatchMatesMeasurement(4, BIG, NONE, "base_model", library_base=True)).status == "fail"


def test_batch_statistics_are_named():
    verdict = judged(BatchMatesMeasurement(4, BIG, NONE, "base_model", batch_statistics=("classifier.1",)))
    assert verdict.fault == "batch_statistics_in_evaluation"
    assert "classifier.1 has no running statistics" in verdict.causes[0]


def test_a_random_output_is_another_checks_business():
    verdict = judged(BatchMatesMeasurement(4, BIG), repeat=BIG)
    assert verdict.status == "skipped"
    assert "eval_deterministic" in verdict.headline


def test_wording():
    assert str(judged(BatchMatesMeasurement(4, BIG, NONE, "base_model"))) == (
        "rows_independent: FAIL. Batched with different rows in a different order, the outputs of the same 4 rows change by 300 % of the "
        "spread between rows.\n"
        "  output of     change  spread between rows  change/spread\n"
        "  the model     0.0300               0.0100          300 %\n"
        "  base_model  1.00e-09               0.0100        <0.01 %\n"
        "  cause: rows are mixed behind base_model, whose own output is independent of the other rows: view() or reshape() in place of "
        "transpose(), or a softmax, mean or norm over dim 0, the batch\n"
        "  do: check what reshapes, pools or normalises there: dimension 0 must stay the batch (hidden[:, 0], softmax(dim=-1), "
        "transpose(0, 1) to swap axes)\n"
        "  limit: at most 5.0 % of the spread: a healthy float32 model shows rounding only (below 0.01 %)\n"
        "  measured: evaluation mode, initial weights, batches of the same shape"
    )
