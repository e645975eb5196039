"""optimizer_covers_model: each tensor that should learn is in one group, once, by identity."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import Intent, check_optimizer_covers_model, example_trace
from pytest_ftcheck.core.observations import Gradients, Iteration, Step

GOOD = example_trace()
EVERYTHING = Intent(trained="")
NO_GRADIENT = Gradients(20, 20, 0, 0, None, None, 0.0, 0.0, 0.0)


def changed(trace=GOOD, part="head", intent=None, **changes):
    """The example with the tensors of one part changed."""
    tensors = tuple(replace(t, **changes) if part in (t.part, "all") else t for t in trace.tensors)
    return replace(trace, tensors=tensors, intent=intent or trace.intent)


def with_group(trace=GOOD, **changes):
    group = replace(trace.optimizer.groups[0], **changes)
    return replace(trace, optimizer=replace(trace.optimizer, groups=(group,)))


def still(trace, part="head"):
    """The same where the tensors of one part did not move."""
    motions = {t.name: replace(t.motion, share_changed=0.0 if t.part == part else 1.0) for t in trace.tensors}
    return replace(trace, tensors=tuple(replace(t, motion=motions[t.name]) for t in trace.tensors))


def test_a_healthy_run_passes_and_says_how_many():
    verdict = check_optimizer_covers_model(GOOD)
    assert verdict.status == "pass"
    assert "each of the 4 tensors" in verdict.headline
    assert check_optimizer_covers_model(replace(GOOD, intent=EVERYTHING)).status == "pass"


def test_a_head_in_no_group():
    verdict = check_optimizer_covers_model(changed(group=None))
    assert (verdict.status, verdict.fault) == ("fail", "not_in_optimizer")
    assert verdict.headline.startswith("The whole head (2 tensors, classifier.weight first)")
    assert verdict.evidence[0] == {
        "tensor": "classifier.weight",
        "shape": "2x64",
        "why": "in no group of the optimizer",
    }


def test_wording():
    assert str(check_optimizer_covers_model(changed(group=None))).splitlines() == [
        "optimizer_covers_model: FAIL. The whole head (2 tensors, classifier.weight first) should learn but "
        "is in no group of AdamW, which holds 4 tensors of this model.",
        "  tensor             shape  why",
        "  classifier.weight  2x64   in no group of the optimizer",
        "  classifier.bias    2      in no group of the optimizer",
        "  cause: AdamW was built from only some of the model's parameters, or before these were added or unfrozen",
        "  do: build AdamW over model.parameters() once the model is complete, or call "
        "optimizer.add_param_group(); if they should not learn, freeze them with requires_grad_(False)",
        "  limit: each tensor that should learn is in one group of one optimizer, once, and steps are taken",
        "  measured: by identity (the same object), at every step",
    ]


def test_an_optimizer_that_was_built_before_the_head_was_replaced():
    verdict = check_optimizer_covers_model(with_group(still(changed(group=None)), not_in_model=2))
    assert verdict.fault == "stale_optimizer"
    assert "which holds 2 tensors that are not in this model" in verdict.headline


def test_tensors_that_move_although_the_optimizer_holds_others():
    """Master weights are written back by the loop; a tensor may be part of the one flat parameter that the optimizer holds."""
    trace = with_group(changed(group=None), not_in_model=2)
    verdict = check_optimizer_covers_model(trace)
    assert (verdict.status, verdict.fault) == ("inconclusive", "")
    assert "holds 2 tensors outside this model (master weights?), and moved all the same" in verdict.headline
    one_still = replace(trace, tensors=(*trace.tensors[:3], still(trace).tensors[3]))
    assert check_optimizer_covers_model(one_still).fault == "stale_optimizer"
    assert check_optimizer_covers_model(changed(trace, part="base", entries=2)).fault == "duplicated_parameters"


def test_tensors_of_another_model_beside_ours_are_only_mentioned():
    verdict = check_optimizer_covers_model(with_group(not_in_model=7))
    assert verdict.status == "pass"
    assert verdict.notes == ("AdamW also holds 7 tensors that are not in this model",)


def test_what_another_optimizer_holds_is_covered():
    verdict = check_optimizer_covers_model(changed(group=None, in_other_optimizer=True))
    assert verdict.status == "pass"
    assert "another optimizer holds 2 more" in verdict.headline


def test_a_base_tensor_outside_that_takes_no_part_is_no_fault_unless_it_was_named():
    trace = changed(part="base", group=None, gradients=NO_GRADIENT)
    assert check_optimizer_covers_model(trace).status == "pass"
    assert check_optimizer_covers_model(replace(trace, intent=EVERYTHING)).status == "pass"
    assert check_optimizer_covers_model(replace(trace, intent=Intent(trained="base_model"))).fault == "not_in_optimizer"
    # beside "everything" a name counts as well
    assert check_optimizer_covers_model(replace(trace, intent=Intent(trained=("", "base_model")))).status == "fail"


@pytest.mark.parametrize("field", ["frozen", "unused"])
def test_what_is_declared_to_stay_or_to_take_no_part_may_be_anywhere(field):
    trace = changed(part="base", group=None, intent=Intent(**{field: "base_model"}))
    verdict = check_optimizer_covers_model(trace)
    assert verdict.status == "pass"
    assert "each of the 2 tensors" in verdict.headline


def test_a_head_frozen_by_mistake():
    frozen = changed(trainable=False, trainable_last=False)
    verdict = check_optimizer_covers_model(replace(frozen, intent=EVERYTHING))
    assert verdict.fault == "frozen_by_mistake"
    assert "The whole head" in verdict.headline
    # nothing declared: it may be intended, and is noted
    verdict = check_optimizer_covers_model(frozen)
    assert verdict.status == "pass"
    assert verdict.notes == ("the whole head is frozen (2 tensors): only the base learns",)


def partly_frozen(intent=None, **changes):
    """The example with the first tensor of the head frozen."""
    first = replace(GOOD.tensors[2], trainable=False, trainable_last=False, group=None, **changes)
    return replace(GOOD, tensors=(*GOOD.tensors[:2], first, *GOOD.tensors[3:]), intent=intent)


def test_a_part_of_the_head_that_is_frozen_is_an_advice():
    verdict = check_optimizer_covers_model(partly_frozen())
    assert (verdict.status, verdict.fault) == ("advice", "head_partly_frozen")
    assert verdict.headline == (
        "1 of 2 tensors of the head is frozen (requires_grad=False) while the rest of it trains: classifier.weight."
    )
    assert "Intent(frozen=['classifier'])" in verdict.remedy
    assert check_optimizer_covers_model(partly_frozen(Intent(frozen="base_model"))).status == "advice"


@pytest.mark.parametrize(
    "trace",
    [
        partly_frozen(Intent(frozen="classifier.weight")),
        partly_frozen(Intent(unused="classifier.weight")),
        partly_frozen(Intent(trained="classifier.bias")),
        partly_frozen(name="classifier.original_module.weight"),
        partly_frozen(aliases=("base_model.embeddings.weight",)),
        partly_frozen(role="embedding"),
        changed(
            partly_frozen(),
            part="base",
            trainable=False,
            trainable_last=False,
            intent=Intent(frozen=["base_model", "classifier.w"]),
        ),
        changed(part="base", trainable=False, trainable_last=False),
        changed(trainable=False, trainable_last=False),
    ],
)
def test_what_is_declared_frozen_or_frozen_as_a_whole_is_silent(trace):
    assert check_optimizer_covers_model(trace).status == "pass"


def test_a_part_that_is_frozen_but_declared_to_learn_is_a_failure():
    assert check_optimizer_covers_model(partly_frozen(EVERYTHING)).fault == "frozen_by_mistake"


def test_a_head_with_adapters_is_frozen_beside_them():
    trace = partly_frozen()
    adapter = replace(trace.tensors[3], name="classifier.lora_A.weight", role="adapter")
    assert check_optimizer_covers_model(replace(trace, tensors=(*trace.tensors[:3], adapter))).status == "pass"


def test_everything_does_not_include_a_frozen_table():
    table = replace(GOOD.tensors[0], role="embedding", trainable=False, trainable_last=False)
    trace = replace(GOOD, tensors=(table, *GOOD.tensors[1:]))
    assert check_optimizer_covers_model(replace(trace, intent=EVERYTHING)).status == "pass"
    assert (
        check_optimizer_covers_model(replace(trace, intent=Intent(trained="base_model"))).fault == "frozen_by_mistake"
    )


def test_unfreezing():
    frozen = changed(part="base", trainable=False, trainable_last=False, group=None)
    assert check_optimizer_covers_model(replace(frozen, intent=Intent(trained="", thaw_step=20))).status == "pass"
    verdict = check_optimizer_covers_model(replace(frozen, intent=Intent(trained="", thaw_step=19)))
    assert verdict.fault == "never_thawed"
    assert "step 19" in verdict.headline
    thawed = replace(changed(part="base", trainable=False, group=None), intent=Intent(trained="", thaw_step=5))
    verdict = check_optimizer_covers_model(thawed)
    assert verdict.fault == "not_in_optimizer"
    assert "unfrozen" in verdict.causes[0]


def test_a_layer_created_again_in_the_loop():
    verdict = check_optimizer_covers_model(changed(replaced=True, orphaned=True))
    assert verdict.fault == "replaced_in_loop"
    # the name leads elsewhere, but to a tensor that is trained, or to none (pruning, weight_norm)
    assert check_optimizer_covers_model(changed(replaced=True)).status == "pass"


def test_tied_weights_that_are_two():
    pair = ("classifier.weight", "base_model.layer.0.lin.weight")
    verdict = check_optimizer_covers_model(replace(GOOD, intent=Intent(tied=(pair,))))
    assert verdict.fault == "untied"
    tied = replace(GOOD.tensors[0], aliases=("classifier.weight",))
    trace = replace(GOOD, tensors=(tied, GOOD.tensors[1], GOOD.tensors[3]), intent=Intent(tied=(pair,)))
    assert check_optimizer_covers_model(trace).status == "pass"
    apart = replace(trace, tensors=(replace(tied, replaced=True), *trace.tensors[1:]))
    assert check_optimizer_covers_model(apart).fault == "untied"


def test_the_same_tensor_twice():
    verdict = check_optimizer_covers_model(changed(entries=2))
    assert verdict.fault == "duplicated_parameters"
    assert "in AdamW 2 times" in verdict.headline
    assert check_optimizer_covers_model(changed(entries=2, gradients=NO_GRADIENT)).status == "pass"


def two(shared):
    """Another optimizer steps in ``shared`` of the iterations as well."""
    steps = [
        s
        for i, s in enumerate(GOOD.steps)
        for s in ([s, replace(s, by_watched_optimizer=False)] if i < shared else [s])
    ]
    return replace(changed(in_other_optimizer=True), steps=tuple(steps))


def test_two_optimizers_on_the_same_tensors():
    assert check_optimizer_covers_model(two(20)).fault == "two_optimizers"
    assert check_optimizer_covers_model(two(2)).status == "pass"  # handed over, or now and then
    alternating = tuple(replace(s, by_watched_optimizer=i % 2 == 0) for i, s in enumerate(GOOD.steps))
    assert check_optimizer_covers_model(replace(changed(in_other_optimizer=True), steps=alternating)).status == "pass"


def test_no_step_at_all():
    still = replace(GOOD, steps=(), iterations=tuple(Iteration(0.7, None, 0, True) for _ in range(5)))
    verdict = check_optimizer_covers_model(still)
    assert verdict.fault == "no_step_taken"
    assert verdict.headline == "No optimizer step was taken in 5 iterations."
    broken = replace(still, iterations=(Iteration(None, None, 0, True, "the loss has no graph"),))
    assert check_optimizer_covers_model(broken).status == "pass"  # not the wiring


@pytest.mark.parametrize(
    ("every", "accumulation", "fault"),
    [
        (1, 1, ""),
        (4, 4, ""),
        (1, 4, "steps_too_often"),
        (4, 1, "steps_too_seldom"),
        (8, 4, "steps_too_seldom"),
        (1, None, ""),
    ],
)
def test_steps_against_the_declared_accumulation(every, accumulation, fault):
    iterations = tuple(
        Iteration(0.5, i // every if (i + 1) % every == 0 else None, int((i + 1) % every == 0), True) for i in range(64)
    )
    steps = tuple(Step(i, (5e-5,), 0.9, None, True) for i in range(every - 1, 64, every))
    verdict = check_optimizer_covers_model(
        replace(GOOD, iterations=iterations, steps=steps, intent=Intent(accumulation=accumulation))
    )
    assert verdict.fault == fault


def test_steps_skipped_by_a_scaler_at_first_are_no_fault():
    iterations = tuple(Iteration(0.5, None if i < 12 else i - 12, int(i >= 12), True) for i in range(20))
    trace = replace(GOOD, iterations=iterations, steps=GOOD.steps[:8], intent=Intent(accumulation=1))
    assert check_optimizer_covers_model(trace).status == "pass"


def test_several_faults_are_all_named():
    trace = with_group(still(changed(group=None)), not_in_model=2)
    trace = changed(trace, part="base", entries=2)
    verdict = check_optimizer_covers_model(trace)
    assert verdict.fault == "stale_optimizer"
    assert "2 times" in verdict.causes[1]


def test_nothing_should_learn():
    trace = changed(part="all", trainable=False, trainable_last=False)
    assert check_optimizer_covers_model(trace).status == "skipped"
