"""padding_ignored: which effect is a fault, whose it is, and what is exempt."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import check_padding_ignored, example_trace
from pytest_ftcheck.checks.effects import LIMIT, ROUNDINGS
from pytest_ftcheck.checks.inputs.padding_ignored import SHARE_OF_OTHERS, WRONG_MASK_LIMIT
from pytest_ftcheck.checks.inputs.record import BatchMatesMeasurement, Inputs, PaddingMeasurement
from pytest_ftcheck.core.effect import Effect

NONE = Effect(0.0, 0.01, 0.02)
BIG = Effect(0.03, 0.01, 0.02)
MEASURED = PaddingMeasurement("right", 0, 4, 7, NONE, mask_in_batch=True)


def judged(padding=MEASURED, **fields):
    return check_padding_ignored(replace(example_trace(), measurements={"inputs": Inputs(8, padding, **fields)}))


def leaking(**changes):
    """The output changes, the base's does not."""
    return replace(
        MEASURED,
        **{
            "less_padding": BIG,
            "base": "base_model",
            "base_less_padding": NONE,
            "mask_received": "right",
            "mask_of_ones": BIG,
            **changes,
        },
    )


def test_not_measured():
    trace = replace(example_trace(), skipped={"inputs": "it raised KeyError: x"})
    assert check_padding_ignored(trace).headline == "Not measured: it raised KeyError: x."
    verdict = judged(None, unmeasured={"padding": "no row is padded"})
    assert (verdict.status, verdict.headline) == ("skipped", "Not measured: no row is padded.")
    assert judged(replace(MEASURED, less_padding=None)).status == "skipped"


def test_padding_that_changes_nothing():
    verdict = judged()
    assert verdict.status == "pass"
    assert verdict.headline == (
        "Without 7 columns of padding, the outputs of the same 4 rows change by 0 % of the spread between rows."
    )


@pytest.mark.parametrize(
    ("changes", "fault", "cause"),
    [
        ({"mask_received": "none"}, "mask_not_passed", "does not reach base_model"),
        ({"mask_received": "none", "mask_in_batch": False}, "mask_not_passed", "does not reach base_model"),
        ({"mask_received": None}, "mask_not_passed", "does not reach base_model"),
        (
            {"mask_received": "none", "unknown_keywords": ("mask",)},
            "mask_misspelt",
            "a name that it does not know (mask)",
        ),
        ({"mask_received": "none", "unknown_keywords": ("foo",)}, "mask_not_passed", "does not reach base_model"),
        (
            {"mask_received": "none", "misplaced_mask": ("position_ids",)},
            "mask_misplaced",
            "as position_ids, not as attention_mask",
        ),
        ({"mask_received": "inverted"}, "mask_inverted", "attends only to padding"),
        ({"mask_received": "all ones"}, "mask_all_ones", "1 everywhere"),
        ({"mask_received": "other"}, "mask_wrong", "not the mask of this batch"),
        ({}, "padding_pooled", "the pooling of its output includes padding"),
        (
            {"library_pooling": True, "config_pad_id": 7},
            "pad_id_wrong",
            "config.pad_token_id=7, but the batches are padded with 0",
        ),
    ],
)
def test_faults(changes, fault, cause):
    verdict = judged(leaking(**changes))
    assert (verdict.status, verdict.fault) == ("fail", fault)
    assert "300 % of the spread" in verdict.headline
    assert cause in verdict.causes[0]
    assert "{" not in verdict.causes[0] + verdict.remedy
    assert ("put an attention_mask into the batches" in verdict.remedy) == (changes.get("mask_in_batch") is False)
    assert verdict.evidence[0]["output of"] == "the model"
    assert verdict.evidence[1]["output of"] == "base_model called with the right mask"


@pytest.mark.parametrize(
    ("received", "relative", "left", "status"),
    [
        ("none", 0.03, 0.0, "fail"),
        ("all ones", 0.03, 0.0, "fail"),
        ("inverted", 0.03, 0.0, "fail"),
        ("none", 1.01 * WRONG_MASK_LIMIT, 0.99 * SHARE_OF_OTHERS * WRONG_MASK_LIMIT, "fail"),
        ("none", 0.99 * WRONG_MASK_LIMIT, 0.0, "pass"),
        ("none", 0.03, 1.01 * SHARE_OF_OTHERS * 0.03, "pass"),
        ("right", 0.03, 0.0, "pass"),
        ("other", 0.03, 0.0, "pass"),
        (None, 0.03, 0.0, "pass"),
    ],
)
def test_a_small_effect_counts_where_no_mask_arrives_and_it_is_all_that_is_wrong(received, relative, left, status):
    def effect(share):
        return Effect(0.01 * share, 0.01, 0.02)

    for other in ("base_less_padding", "repeat"):
        fields = {"base_less_padding": NONE, "repeat": NONE, other: effect(left)}
        padding = leaking(
            mask_received=received, less_padding=effect(relative), base_less_padding=fields["base_less_padding"]
        )
        assert judged(padding, repeat=fields["repeat"]).status == status


def test_a_base_that_leaks_by_itself_is_exempt():
    verdict = judged(leaking(base_less_padding=BIG))
    assert (verdict.status, verdict.fault) == ("pass", "")
    assert "exempt: in base_model itself" in verdict.notes[0]


@pytest.mark.parametrize("config_pad", [None, 0])
def test_a_librarys_own_pooling_is_a_remark(config_pad):
    verdict = judged(leaking(library_pooling=True, config_pad_id=config_pad))
    assert verdict.status == "advice"
    assert "padding_side" in verdict.remedy


def test_without_a_base_it_is_a_remark_unless_attention_ignores_its_mask():
    bare = {"base": None, "base_less_padding": None, "mask_received": None}
    assert judged(leaking(**bare)).status == "advice"
    assert judged(leaking(**bare, torch_attention=True)).status == "advice"
    assert judged(leaking(**bare, mask_of_ones=NONE)).status == "advice"
    verdict = judged(leaking(**bare, torch_attention=True, mask_of_ones=NONE))
    assert (verdict.status, verdict.fault) == ("fail", "mask_ignored")
    assert judged(leaking(**bare, torch_attention=True, mask_of_ones=None)).status == "advice"


def test_a_base_that_could_not_be_called_tells_nothing():
    assert judged(leaking(base_less_padding=None)).status == "advice"


def test_padding_on_the_left_is_judged_by_what_is_in_it():
    padding = leaking(side="left", less_padding=None, other_ids=BIG, base_less_padding=None, base_other_ids=NONE)
    verdict = judged(padding)
    assert (verdict.status, verdict.fault) == ("fail", "padding_pooled")
    assert verdict.headline.startswith("With other ids in the padding, ")
    assert judged(replace(padding, base_other_ids=BIG)).status == "pass"
    assert judged(replace(padding, other_ids=NONE)).status == "pass"


@pytest.mark.parametrize(
    ("effect", "status"),
    [
        (Effect(LIMIT * 0.01, 0.01, 0.02), "pass"),
        (Effect(LIMIT * 0.01 * 1.01, 0.01, 0.02), "fail"),
        # a large share of a tiny spread is rounding
        (Effect(ROUNDINGS * 2.0**-23, 1e-6, 1.0), "pass"),
        (Effect(ROUNDINGS * 2.0**-23 * 1.01, 1e-6, 1.0), "fail"),
        # the same in bfloat16: much more is rounding
        (Effect(0.4, 0.01, 1.0, 2.0**-7), "pass"),
        (Effect(0.1, 0.0, 1.0), "fail"),
    ],
)
def test_limits(effect, status):
    assert judged(leaking(less_padding=effect)).status == status


def test_what_has_another_reason_is_left_to_that_check():
    mixed = BatchMatesMeasurement(4, BIG)
    verdict = judged(leaking(), batch_mates=mixed)
    assert verdict.status == "skipped"
    assert "rows_independent" in verdict.headline
    verdict = judged(leaking(), repeat=BIG)
    assert verdict.status == "skipped"
    assert "eval_deterministic" in verdict.headline
    assert judged(batch_mates=mixed).status == "pass"
    assert judged(leaking(), batch_mates=BatchMatesMeasurement(4, NONE), repeat=NONE).status == "fail"


OWN = replace(
    MEASURED,
    less_padding=BIG,
    user_model=True,
    padding_source="mask",
    mask_of_ones=NONE,
    finite_without_padding=True,
    more_padding=Effect(0.01, 0.01, 0.02),
    more_padding_spread=0.01,
)


@pytest.mark.parametrize(
    ("changes", "fault", "cause"),
    [
        ({}, "padding_read", "somewhere in the model"),
        ({"recurrent": True}, "padding_read", "recurrent layer"),
        ({"torch_attention": True}, "mask_ignored", "do not use it"),
        ({"more_padding": NONE, "more_padding_spread": 0.0}, "padding_read", "somewhere in the model"),
        (
            {"more_padding": NONE, "mask_of_ones": BIG, "words_in_padding": BIG},
            "padding_read",
            "somewhere in the model",
        ),
        ({"mask_in_batch": False, "padding_source": "id"}, "padding_read", "somewhere in the model"),
        ({"other_ids": BIG, "other_ids_inverted_mask": NONE}, "mask_inverted", "inverted inside the model"),
        (
            {"less_padding": None, "other_ids": BIG, "finite_without_padding": False},
            "mask_inverted",
            "inverted inside the model",
        ),
        (
            {"less_padding": None, "user_model": False, "inversion": "finite"},
            "mask_inverted",
            "inverted inside the model",
        ),
        (
            {"less_padding": None, "user_model": False, "inversion": "differ"},
            "mask_inverted",
            "inverted inside the model",
        ),
    ],
)
def test_a_model_of_ones_own(changes, fault, cause):
    verdict = judged(replace(OWN, **changes))
    assert (verdict.status, verdict.fault) == ("fail", fault)
    assert cause in verdict.causes[0]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"more_padding": NONE}, "pass"),  # only the edge sees it
        ({"more_padding": NONE, "words_in_padding": BIG}, "pass"),  # no mask is used: a convolution reads what is there
        ({"more_padding": NONE, "mask_of_ones": BIG, "words_in_padding": NONE}, "pass"),
        ({"padding_source": "", "mask_in_batch": False}, "advice"),
        ({"padding_source": "id", "mask_in_batch": False, "less_padding": Effect(0.004, 0.01, 0.02)}, "advice"),
        ({"less_padding": Effect(0.0009, 0.01, 0.02)}, "advice"),
        ({"more_padding": None}, "advice"),
        ({"user_model": False}, "advice"),
        (
            {"less_padding": NONE, "other_ids": BIG, "other_ids_inverted_mask": BIG},
            "pass",
        ),  # its own mask, made from the ids
    ],
)
def test_a_model_of_ones_own_that_may(changes, status):
    assert judged(replace(OWN, **changes)).status == status


def test_nothing_left_to_attend_to():
    verdict = judged(replace(OWN, less_padding=None, other_ids=BIG, finite_without_padding=False))
    assert verdict.headline == "Without any padding, outputs of 4 rows are not finite; with it they are."


def test_wording():
    assert str(judged(leaking(mask_received="none"))) == (
        "padding_ignored: FAIL. Without 7 columns of padding, the outputs of the same 4 rows change by 300 % of the spread between rows.\n"
        "  output of                              change  spread between rows  change/spread\n"
        "  the model                              0.0300               0.0100          300 %\n"
        "  base_model called with the right mask       0               0.0100            0 %\n"
        "  the model with a mask of ones          0.0300               0.0100          300 %\n"
        "  cause: the attention mask does not reach base_model: padding is attended to like text\n"
        "  do: pass it by name: base_model(input_ids=ids, attention_mask=mask)\n"
        "  limit: at most 5.0 % of the spread (0.50 % where the base receives a wrong mask, or none): a healthy float32 model shows "
        "rounding only (below 0.01 %)\n"
        "  measured: evaluation mode, initial weights, shortest rows of the batch with the most padding among the first"
    )
