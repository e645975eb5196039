"""output_depends_on_input: an output that is the same whatever the words are, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import check_output_depends_on_input, example_trace
from pytest_ftcheck.checks.inputs.output_depends_on_input import ROUNDINGS
from pytest_ftcheck.checks.inputs.record import Inputs, PaddingMeasurement, WordsMeasurement
from pytest_ftcheck.core.effect import Effect

NOTHING = Effect(0.0, 0.0, 0.02)
MUCH = Effect(0.01, 0.01, 0.02)
GOOD = WordsMeasurement(
    "before",
    8,
    8,
    between_rows=MUCH,
    other_words=MUCH,
    other_order=MUCH,
    features_between_rows=MUCH,
    features_other_words=MUCH,
    base="base_model",
    base_first_token=MUCH,
    base_other_tokens=MUCH,
    base_last_token=MUCH,
)
BLIND = replace(
    GOOD, between_rows=NOTHING, other_words=NOTHING, features_between_rows=NOTHING, features_other_words=NOTHING
)


def after(words):
    return replace(words, when="after")


def judged(*words, trace=None, **fields):
    return check_output_depends_on_input(
        replace(trace or example_trace(), measurements={"inputs": Inputs(8, words=words, **fields)})
    )


def test_not_measured():
    assert check_output_depends_on_input(example_trace()).status == "inconclusive"
    verdict = judged(unmeasured={"words": "the outputs are not finite"})
    assert (verdict.status, verdict.headline) == ("skipped", "Not measured: the outputs are not finite.")
    verdict = judged(replace(BLIND, distinct=1), after(replace(BLIND, distinct=1)))
    assert (verdict.status, verdict.headline) == ("skipped", "Not measured: all rows measured are the same.")


def test_words_that_matter():
    verdict = judged(GOOD, after(GOOD))
    assert verdict.status == "pass"
    assert verdict.headline.startswith("With other words in the same places, an output of 8 rows changes by 0.0100")
    assert verdict.notes == ()


def test_a_bag_of_words_is_a_remark():
    verdict = judged(GOOD, after(replace(GOOD, other_order=NOTHING)))
    assert verdict.status == "pass"
    assert "bag of words" in verdict.notes[0]


def test_a_last_layer_that_starts_at_zero():
    assert judged(replace(BLIND, features_other_words=MUCH), after(GOOD)).status == "pass"


def test_only_the_start_was_seen():
    verdict = judged(BLIND)
    assert verdict.status == "pass"
    assert "the run did not finish" in verdict.notes[0]


@pytest.mark.parametrize(
    ("changes", "fault", "cause"),
    [
        ({"base_first_token": NOTHING}, "pools_first_token_of_causal_model", "in base_model, a causal model"),
        ({}, "pools_blind_layer", "does not get base_model's last hidden vectors"),
        ({"features_other_words": MUCH}, "head_constant", "the head's input differs from row to row"),
        (
            {"base_first_token": None, "base_other_tokens": None, "features_other_words": None},
            "words_ignored",
            "the words are lost before the head",
        ),
        (
            {"base_first_token": NOTHING, "base_other_tokens": NOTHING},
            "words_ignored",
            "the words are lost before the head",
        ),
        ({"between_rows": MUCH}, "pools_blind_layer", "last hidden vectors"),
    ],
)
def test_blind_before_and_after(changes, fault, cause):
    words = replace(BLIND, **changes)
    verdict = judged(words, after(words))
    assert (verdict.status, verdict.fault) == ("fail", fault)
    assert "does not change at all (outputs up to 0.0200)" in verdict.headline
    assert cause in verdict.causes[0]
    assert [row["when"] for row in verdict.evidence] == ["before", "after"]


def test_lost_on_the_way():
    verdict = judged(GOOD, after(BLIND))
    assert (verdict.status, verdict.fault) == ("fail", "output_collapsed")
    assert "before it, it did" in verdict.headline


def test_rows_alone_tell_where_there_are_no_words():
    bare = WordsMeasurement("before", 8, 8, MUCH)
    assert judged(bare, after(bare)).status == "pass"
    bare = WordsMeasurement("before", 8, 8, NOTHING)
    verdict = judged(bare, after(bare))
    assert (verdict.status, verdict.fault) == ("fail", "words_ignored")
    assert verdict.headline.startswith("Between different rows")


def test_a_head_that_has_not_moved_yet_cannot_be_told():
    still = example_trace()
    still = replace(
        still, tensors=tuple(replace(t, motion=replace(t.motion, share_changed=0.0)) for t in still.tensors)
    )
    words = replace(BLIND, features_other_words=MUCH)
    assert judged(words, after(words), trace=still).status == "skipped"
    assert judged(BLIND, after(BLIND), trace=still).status == "fail"


def test_a_library_base_whose_attention_moves_nothing_is_a_remark():
    words = replace(BLIND, base_first_token=NOTHING, base_last_token=NOTHING, library_base=True)
    verdict = judged(words, after(words))
    assert (verdict.status, verdict.fault) == ("advice", "tokens_not_mixed")
    nothing_at_all = replace(words, base_other_tokens=NOTHING)
    assert judged(nothing_at_all, after(nothing_at_all)).fault == "words_ignored"
    # a causal one hands the words on to the last token
    assert judged(words, after(replace(words, base_last_token=MUCH))).fault == "pools_first_token_of_causal_model"


def test_an_inverted_mask_hides_the_words():
    padding = PaddingMeasurement(
        "right", 0, 4, 7, MUCH, base="base_model", base_less_padding=NOTHING, mask_received="inverted"
    )
    verdict = judged(BLIND, after(BLIND), padding=padding)
    assert (verdict.status, verdict.fault) == ("fail", "mask_inverted")


@pytest.mark.parametrize(
    ("effect", "status"),
    [
        (Effect(ROUNDINGS * 2.0**-23, 1e-9, 1.0), "fail"),
        (Effect(1.01 * ROUNDINGS * 2.0**-23, 1e-9, 1.0), "pass"),
        # in a coarse type a small effect may be rounded away: only exactly nothing is nothing
        (Effect(1e-6, 1e-6, 1.0, 2.0**-7), "pass"),
        (Effect(0.0, 0.0, 1.0, 2.0**-7), "fail"),
    ],
)
def test_limits(effect, status):
    words = replace(BLIND, other_words=effect)
    assert judged(words, after(words)).status == status


def test_a_random_output_is_another_checks_business():
    assert judged(BLIND, after(BLIND), repeat=MUCH).status == "skipped"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"between_rows": NOTHING, "between_rows_other_words": NOTHING}, "one_row_for_all"),
        ({"later_words": NOTHING}, "texts_cut_inside"),
        ({"positions_constant": True}, "positions_constant"),
        ({"type_ids_lost": True}, "type_ids_lost"),
        ({"later_words": MUCH}, ""),
        ({"between_rows": NOTHING}, ""),
        ({"between_rows": NOTHING, "between_rows_other_words": MUCH}, ""),
    ],
)
def test_words_that_matter_in_part(changes, fault):
    verdict = judged(replace(GOOD, **changes), after(replace(GOOD, **changes)))
    assert (verdict.status, verdict.fault) == ("fail" if fault else "pass", fault)


def test_a_weak_effect_does_not_show_that_another_is_none():
    weak = replace(GOOD, other_words=Effect(2e-7, 0.01, 0.02), later_words=NOTHING)
    assert judged(weak, after(weak)).fault != "texts_cut_inside"


def test_wording():
    assert str(judged(BLIND, after(BLIND))) == (
        "output_depends_on_input: FAIL. With other words in the same places, the largest output of 8 rows does not change at all "
        "(outputs up to 0.0200).\n"
        "  when    largest output  other rows  other words  features, other words  base, first token  base, other tokens  "
        "base, last token\n"
        "  before          0.0200           0            0                      0             0.0100              0.0100            "
        "0.0100\n"
        "  after           0.0200           0            0                      0             0.0100              0.0100            "
        "0.0100\n"
        "  cause: the head does not get base_model's last hidden vectors: those depend on the words, its input does not (hidden_states[0] "
        "is the output of the embedding layer, with the same first vector for every text)\n"
        "  do: take last_hidden_state, or hidden_states[-1]\n"
        "  limit: a change beyond rounding: 4 roundings of the largest output (float32: 4.77e-07 of it)\n"
        "  measured: evaluation mode; each row's words taken from other rows, its first and last token, padding and mask as they were"
    )
