"""padding_ignored: which effect is a fault, whose it is, and what is exempt."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import check_padding_ignored, example_trace
from pytest_ftcheck.checks.effects import LIMIT, ROUNDINGS
from pytest_ftcheck.checks.inputs.padding_ignored import SHARE, UNMASKED
from pytest_ftcheck.checks.inputs.record import Inputs, PaddingLook, RowsLook
from pytest_ftcheck.core.effect import Effect

NONE = Effect(0.0, 0.01, 0.02)
BIG = Effect(0.03, 0.01, 0.02)
LOOK = PaddingLook("right", 0, 4, 7, NONE, given=True)


def judged(look=LOOK, **fields):
    return check_padding_ignored(replace(example_trace(), measurements={"inputs": Inputs(8, look, **fields)}))


def leaking(**changes):
    """The output changes, the base's does not."""
    return replace(
        LOOK,
        **{"amount": BIG, "base": "base_model", "base_amount": NONE, "handed": "right", "mask_matters": BIG, **changes},
    )


def test_not_measured():
    trace = replace(example_trace(), skipped={"inputs": "it raised KeyError: x"})
    assert check_padding_ignored(trace).headline == "Not measured: it raised KeyError: x."
    verdict = judged(None, unmeasured={"padding": "no row is padded"})
    assert (verdict.status, verdict.headline) == ("skipped", "Not measured: no row is padded.")
    assert judged(replace(LOOK, amount=None)).status == "skipped"


def test_padding_that_changes_nothing():
    verdict = judged()
    assert verdict.status == "pass"
    assert verdict.headline == (
        "Without 7 columns of padding, the outputs of the same 4 rows change by 0 % of the spread between rows."
    )


@pytest.mark.parametrize(
    ("changes", "fault", "cause"),
    [
        ({"handed": "none"}, "mask_not_passed", "does not reach base_model"),
        ({"handed": "none", "given": False}, "mask_not_passed", "does not reach base_model"),
        ({"handed": None}, "mask_not_passed", "does not reach base_model"),
        ({"handed": "none", "unknown": ("mask",)}, "mask_misspelt", "a name that it does not know (mask)"),
        ({"handed": "none", "unknown": ("foo",)}, "mask_not_passed", "does not reach base_model"),
        (
            {"handed": "none", "misplaced": ("position_ids",)},
            "mask_misplaced",
            "as position_ids, not as attention_mask",
        ),
        ({"handed": "inverted"}, "mask_inverted", "the wrong way round"),
        ({"handed": "all ones"}, "mask_all_ones", "1 everywhere"),
        ({"handed": "other"}, "mask_wrong", "not the mask of this batch"),
        ({}, "padding_pooled", "what is done with its output takes in padding"),
        (
            {"library": True, "config_pad": 7},
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
    assert ("put an attention_mask into the batches" in verdict.remedy) == (changes.get("given") is False)
    assert verdict.evidence[0]["output of"] == "the model"
    assert verdict.evidence[1]["output of"] == "base_model called with the right mask"


@pytest.mark.parametrize(
    ("handed", "relative", "left", "status"),
    [
        ("none", 0.03, 0.0, "fail"),
        ("all ones", 0.03, 0.0, "fail"),
        ("inverted", 0.03, 0.0, "fail"),
        ("none", 1.01 * UNMASKED, 0.99 * SHARE * UNMASKED, "fail"),
        ("none", 0.99 * UNMASKED, 0.0, "pass"),
        ("none", 0.03, 1.01 * SHARE * 0.03, "pass"),
        ("right", 0.03, 0.0, "pass"),
        ("other", 0.03, 0.0, "pass"),
        (None, 0.03, 0.0, "pass"),
    ],
)
def test_a_small_effect_counts_where_no_mask_arrives_and_it_is_all_that_is_wrong(handed, relative, left, status):
    def effect(share):
        return Effect(0.01 * share, 0.01, 0.02)

    for other in ("base_amount", "repeat"):
        fields = {"base_amount": NONE, "repeat": NONE, other: effect(left)}
        look = leaking(handed=handed, amount=effect(relative), base_amount=fields["base_amount"])
        assert judged(look, repeat=fields["repeat"]).status == status


def test_a_base_that_leaks_by_itself_is_exempt():
    verdict = judged(leaking(base_amount=BIG))
    assert (verdict.status, verdict.fault) == ("pass", "")
    assert "exempt: base_model itself" in verdict.notes[0]


@pytest.mark.parametrize("config_pad", [None, 0])
def test_a_librarys_own_pooling_is_a_remark(config_pad):
    verdict = judged(leaking(library=True, config_pad=config_pad))
    assert verdict.status == "advice"
    assert "padding_side" in verdict.remedy


def test_without_a_base_it_is_a_remark_unless_attention_ignores_its_mask():
    bare = {"base": None, "base_amount": None, "handed": None}
    assert judged(leaking(**bare)).status == "advice"
    assert judged(leaking(**bare, attention=True)).status == "advice"
    assert judged(leaking(**bare, mask_matters=NONE)).status == "advice"
    verdict = judged(leaking(**bare, attention=True, mask_matters=NONE))
    assert (verdict.status, verdict.fault) == ("fail", "mask_ignored")
    assert judged(leaking(**bare, attention=True, mask_matters=None)).status == "advice"


def test_a_base_that_could_not_be_called_tells_nothing():
    assert judged(leaking(base_amount=None)).status == "advice"


def test_padding_on_the_left_is_judged_by_what_is_in_it():
    look = leaking(side="left", amount=None, content=BIG, base_amount=None, base_content=NONE)
    verdict = judged(look)
    assert (verdict.status, verdict.fault) == ("fail", "padding_pooled")
    assert verdict.headline.startswith("With other ids in the padding, ")
    assert judged(replace(look, base_content=BIG)).status == "pass"
    assert judged(replace(look, content=NONE)).status == "pass"


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
    assert judged(leaking(amount=effect)).status == status


def test_what_has_another_reason_is_left_to_that_check():
    mixed = RowsLook(4, BIG)
    verdict = judged(leaking(), company=mixed)
    assert verdict.status == "skipped"
    assert "rows_independent" in verdict.headline
    verdict = judged(leaking(), repeat=BIG)
    assert verdict.status == "skipped"
    assert "eval_deterministic" in verdict.headline
    assert judged(company=mixed).status == "pass"
    assert judged(leaking(), company=RowsLook(4, NONE), repeat=NONE).status == "fail"


OWN = replace(
    LOOK,
    amount=BIG,
    own=True,
    told="mask",
    mask_matters=NONE,
    bare_finite=True,
    stretched=Effect(0.01, 0.01, 0.02),
    stretched_spread=0.01,
)


@pytest.mark.parametrize(
    ("changes", "fault", "cause"),
    [
        ({}, "padding_read", "read like text"),
        ({"recurrent": True}, "padding_read", "runs on over the padding"),
        ({"attention": True}, "mask_ignored", "does nothing with it"),
        ({"stretched": NONE, "stretched_spread": 0.0}, "padding_read", "read like text"),
        ({"stretched": NONE, "mask_matters": BIG, "far_content": BIG}, "padding_read", "read like text"),
        ({"given": False, "told": "id"}, "padding_read", "read like text"),
        ({"content": BIG, "content_inverted": NONE}, "mask_inverted", "the wrong way round inside"),
        ({"amount": None, "content": BIG, "bare_finite": False}, "mask_inverted", "the wrong way round inside"),
        ({"amount": None, "own": False, "turned": "finite"}, "mask_inverted", "the wrong way round inside"),
        ({"amount": None, "own": False, "turned": "differ"}, "mask_inverted", "the wrong way round inside"),
    ],
)
def test_a_model_of_ones_own(changes, fault, cause):
    verdict = judged(replace(OWN, **changes))
    assert (verdict.status, verdict.fault) == ("fail", fault)
    assert cause in verdict.causes[0]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"stretched": NONE}, "pass"),  # only the edge sees it
        ({"stretched": NONE, "far_content": BIG}, "pass"),  # no mask is used: a convolution reads what is there
        ({"stretched": NONE, "mask_matters": BIG, "far_content": NONE}, "pass"),
        ({"told": "", "given": False}, "advice"),
        ({"told": "id", "given": False, "amount": Effect(0.004, 0.01, 0.02)}, "advice"),
        ({"amount": Effect(0.0009, 0.01, 0.02)}, "advice"),
        ({"stretched": None}, "advice"),
        ({"own": False}, "advice"),
        ({"amount": NONE, "content": BIG, "content_inverted": BIG}, "pass"),  # its own mask, made from the ids
    ],
)
def test_a_model_of_ones_own_that_may(changes, status):
    assert judged(replace(OWN, **changes)).status == status


def test_nothing_left_to_attend_to():
    verdict = judged(replace(OWN, amount=None, content=BIG, bare_finite=False))
    assert verdict.headline == "Without any padding, outputs of 4 rows are not finite: with it, they are."
