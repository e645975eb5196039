"""output_depends_on_input: an output that is the same whatever the words are, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import check_output_depends_on_input, example_trace
from pytest_ftcheck.checks.inputs.output_depends_on_input import ROUNDINGS
from pytest_ftcheck.checks.inputs.record import Inputs, PaddingLook, WordsLook
from pytest_ftcheck.core.effect import Effect

NOTHING = Effect(0.0, 0.0, 0.02)
MUCH = Effect(0.01, 0.01, 0.02)
GOOD = WordsLook("before", 8, 8, MUCH, MUCH, MUCH, MUCH, MUCH, MUCH, MUCH, "base_model", order=MUCH)
BLIND = replace(GOOD, across=NOTHING, words=NOTHING, features_across=NOTHING, features_words=NOTHING)


def after(look):
    return replace(look, when="after")


def judged(*looks, trace=None, **fields):
    return check_output_depends_on_input(
        replace(trace or example_trace(), measurements={"inputs": Inputs(8, words=looks, **fields)})
    )


def test_not_measured():
    assert check_output_depends_on_input(example_trace()).status == "skipped"
    verdict = judged(unmeasured={"words": "the outputs are not finite"})
    assert (verdict.status, verdict.headline) == ("skipped", "Not measured: the outputs are not finite.")
    verdict = judged(replace(BLIND, distinct=1), after(replace(BLIND, distinct=1)))
    assert (verdict.status, verdict.headline) == ("skipped", "Not measured: all rows looked at are the same.")


def test_words_that_matter():
    verdict = judged(GOOD, after(GOOD))
    assert verdict.status == "pass"
    assert verdict.headline.startswith("With other words in the same places, an output of 8 rows changes by 0.0100")
    assert verdict.notes == ()


def test_a_bag_of_words_is_a_remark():
    verdict = judged(GOOD, after(replace(GOOD, order=NOTHING)))
    assert verdict.status == "pass"
    assert "bag of words" in verdict.notes[0]


def test_a_last_layer_that_starts_at_zero():
    assert judged(replace(BLIND, features_words=MUCH), after(GOOD)).status == "pass"


def test_only_the_start_was_seen():
    verdict = judged(BLIND)
    assert verdict.status == "pass"
    assert "the run did not end" in verdict.notes[0]


@pytest.mark.parametrize(
    ("changes", "fault", "cause"),
    [
        ({"first": NOTHING}, "pools_first_token_of_causal_model", "in base_model, a causal model"),
        ({}, "pools_blind_layer", "something else than base_model's last hidden vectors"),
        ({"features_words": MUCH}, "head_constant", "what leaves it does not"),
        ({"first": None, "rest": None, "features_words": None}, "words_ignored", "does not depend on the words"),
        ({"first": NOTHING, "rest": NOTHING}, "words_ignored", "does not depend on the words"),
        ({"across": MUCH}, "pools_blind_layer", "last hidden vectors"),
    ],
)
def test_blind_before_and_after(changes, fault, cause):
    look = replace(BLIND, **changes)
    verdict = judged(look, after(look))
    assert (verdict.status, verdict.fault) == ("fail", fault)
    assert "does not change at all (outputs up to 0.0200)" in verdict.headline
    assert cause in verdict.causes[0]
    assert [row["when"] for row in verdict.evidence] == ["before", "after"]


def test_lost_on_the_way():
    verdict = judged(GOOD, after(BLIND))
    assert (verdict.status, verdict.fault) == ("fail", "output_collapsed")
    assert "before it, the input mattered" in verdict.headline


def test_rows_alone_tell_where_there_are_no_words():
    bare = WordsLook("before", 8, 8, MUCH)
    assert judged(bare, after(bare)).status == "pass"
    bare = WordsLook("before", 8, 8, NOTHING)
    verdict = judged(bare, after(bare))
    assert (verdict.status, verdict.fault) == ("fail", "words_ignored")
    assert verdict.headline.startswith("Between different rows")


def test_a_head_that_has_not_moved_yet_cannot_be_told():
    still = example_trace()
    still = replace(still, tensors=tuple(replace(t, motion=replace(t.motion, moved=0.0)) for t in still.tensors))
    look = replace(BLIND, features_words=MUCH)
    assert judged(look, after(look), trace=still).status == "skipped"
    assert judged(BLIND, after(BLIND), trace=still).status == "fail"


def test_a_library_base_whose_attention_moves_nothing_is_a_remark():
    look = replace(BLIND, first=NOTHING, last=NOTHING, base_library=True)
    verdict = judged(look, after(look))
    assert (verdict.status, verdict.fault) == ("advice", "tokens_not_mixed")
    nothing_at_all = replace(look, rest=NOTHING)
    assert judged(nothing_at_all, after(nothing_at_all)).fault == "words_ignored"
    # a causal one hands the words on to the last token
    assert judged(look, after(replace(look, last=MUCH))).fault == "pools_first_token_of_causal_model"


def test_an_inverted_mask_hides_the_words():
    padding = PaddingLook("right", 0, 4, 7, MUCH, base="base_model", base_amount=NOTHING, handed="inverted")
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
    look = replace(BLIND, words=effect)
    assert judged(look, after(look)).status == status


def test_a_random_output_is_another_checks_business():
    assert judged(BLIND, after(BLIND), repeat=MUCH).status == "skipped"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"across": NOTHING, "other_across": NOTHING}, "one_row_for_all"),
        ({"late": NOTHING}, "texts_cut_inside"),
        ({"positions_constant": True}, "positions_constant"),
        ({"types_lost": True}, "type_ids_lost"),
        ({"late": MUCH}, ""),
        ({"across": NOTHING}, ""),
        ({"across": NOTHING, "other_across": MUCH}, ""),
    ],
)
def test_words_that_matter_in_part(changes, fault):
    verdict = judged(replace(GOOD, **changes), after(replace(GOOD, **changes)))
    assert (verdict.status, verdict.fault) == ("fail" if fault else "pass", fault)


def test_a_weak_effect_does_not_show_that_another_is_none():
    weak = replace(GOOD, words=Effect(2e-7, 0.01, 0.02), late=NOTHING)
    assert judged(weak, after(weak)).fault != "texts_cut_inside"
