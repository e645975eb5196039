"""grads_nonzero distinguishes missing, zero, negligible, noisy and late gradients, and names the fault behind them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_ftcheck import Intent, check_grads_nonzero, example_trace
from pytest_ftcheck.checks.tensor_state import EPS_SHARE, STEPS_FOR_ZERO
from pytest_ftcheck.core.example_trace import tensor
from pytest_ftcheck.core.formatting import number
from pytest_ftcheck.core.observations import Iteration

GOOD = example_trace()
BASE = ("base_model.layer.0.lin.weight", "base_model.layer.0.lin.bias")
HEAD = ("classifier.weight", "classifier.bias")
NONE = {"none": 20, "max_norm": 0.0, "max_rms": 0.0, "first_nonzero": None}
ZERO = {"zero": 20, "max_norm": 0.0, "max_rms": 0.0, "first_nonzero": None}


def with_gradients(names, trace=GOOD, **changes):
    return replace(
        trace,
        tensors=tuple(
            replace(t, gradients=replace(t.gradients, **changes)) if t.name in names else t for t in trace.tensors
        ),
    )


def shorter(trace, steps):
    """The same run, cut after some steps."""
    tensors = tuple(
        replace(
            t,
            gradients=replace(
                t.gradients, steps=steps, none=min(t.gradients.none, steps), zero=min(t.gradients.zero, steps)
            ),
        )
        for t in trace.tensors
    )
    return replace(trace, steps=trace.steps[:steps], iterations=trace.iterations[:steps], tensors=tensors)


def test_gradients_reach_all():
    verdict = check_grads_nonzero(with_gradients(HEAD, max_norm=2.5))
    assert verdict.status == "pass"
    assert verdict.headline == "Gradients reach 4 of 4 tensors; norms 0.500 to 2.50."
    assert "20 steps" in verdict.measured


def test_no_gradient_reaches_the_base():
    verdict = check_grads_nonzero(with_gradients(BASE, **NONE))
    assert verdict.status == "fail"
    assert verdict.headline.startswith("2 of 4 tensors")
    assert "no gradient at any step, while the head gets some" in verdict.headline
    assert verdict.fault == "cut_below_head"
    assert {r["steps without"] for r in verdict.evidence} == {"100 %"}


def test_no_gradient_reaches_adapters_below_the_head():
    """As under reentrant checkpointing of a base whose inputs need no gradient."""
    trace = with_gradients(BASE, **NONE)
    trace = replace(trace, tensors=tuple(replace(t, role="adapter") if t.part == "base" else t for t in trace.tensors))
    verdict = check_grads_nonzero(trace)
    assert (verdict.status, verdict.fault) == ("fail", "cut_below_head")
    assert "use_reentrant=True" in verdict.causes[0]
    assert verdict.remedy.startswith("call model.enable_input_require_grads()")


def test_no_gradient_reaches_the_head():
    verdict = check_grads_nonzero(with_gradients(HEAD, **NONE), "head")
    assert verdict.status == "fail"
    assert verdict.headline.startswith("2 of 2 head tensors")
    assert "while the head gets some" not in verdict.headline
    assert verdict.fault == "not_in_graph"


def test_one_gradient_in_twenty_steps_is_a_gradient():
    assert check_grads_nonzero(with_gradients(HEAD, none=19)).status == "pass"
    assert check_grads_nonzero(with_gradients(HEAD, none=20)).status == "fail"


def test_gradients_that_are_zero_at_every_step():
    verdict = check_grads_nonzero(with_gradients(HEAD, **ZERO))
    assert verdict.status == "fail"
    assert "gradient exactly zero at every step" in verdict.headline
    assert verdict.fault == "gradient_zero"
    assert {r["steps at zero"] for r in verdict.evidence} == {"100 %"}


def test_a_bias_whose_own_weight_has_a_gradient_cancels():
    """The score of a reward model: its loss depends on differences of two scores alone, whatever is added to both."""
    verdict = check_grads_nonzero(with_gradients(("classifier.bias",), **ZERO))
    assert verdict.status == "pass"
    assert check_grads_nonzero(with_gradients(("classifier.weight",), **ZERO)).status == "fail"


def test_a_layer_that_stays_zero_is_named():
    trace = with_gradients(BASE, **ZERO)
    trace = replace(
        trace,
        tensors=tuple(
            replace(t, last=replace(t.last, rms=0.0)) if t.name == "classifier.weight" else t for t in trace.tensors
        ),
    )
    verdict = check_grads_nonzero(trace)
    assert verdict.fault == "layer_stays_zero"
    assert "classifier.weight" in verdict.causes[0]


def test_the_module_whose_input_is_zero_is_named():
    names = ("classifier.0.weight", "classifier.0.bias", "classifier.3.weight", "classifier.3.bias")
    layers = [tensor(n, "head", shape=(64,) if n.endswith("bias") else (64, 64)) for n in names]
    trace = replace(GOOD, tensors=(*GOOD.tensors[:2], *layers))
    verdict = check_grads_nonzero(with_gradients(names[:3], trace, **ZERO), "head")
    assert verdict.headline.startswith("3 of 4 head tensors")
    assert verdict.fault == "units_dead"
    assert "the input of classifier.3" in verdict.causes[0]
    assert "the input of classifier.3" in verdict.remedy
    # its bias gets none either: nothing is known of its input
    assert "the input of" not in check_grads_nonzero(with_gradients(names, trace, **ZERO), "head").causes[0]


@pytest.mark.parametrize(("steps", "status"), [(STEPS_FOR_ZERO - 1, "inconclusive"), (STEPS_FOR_ZERO, "fail")])
def test_too_few_steps_to_tell_a_permanent_zero(steps, status):
    verdict = check_grads_nonzero(shorter(with_gradients(BASE, **ZERO), steps))
    assert verdict.status == status
    if status == "inconclusive":
        assert f"at least {STEPS_FOR_ZERO} steps" in verdict.remedy


def test_missing_gradients_need_no_more_steps():
    assert check_grads_nonzero(shorter(with_gradients(BASE, **NONE), 1)).status == "fail"


def test_a_gradient_that_comes_late_is_a_note():
    """Below a zero last layer, or LoRA's B = 0, the first step has none."""
    verdict = check_grads_nonzero(with_gradients(BASE, zero=1, first_nonzero=1))
    assert verdict.status == "pass"
    assert "Gradients reach 4 of 4" in verdict.headline
    assert any("2 tensors with zero gradient at first" in n for n in verdict.notes)


def test_rounding_noise_is_exempt():
    verdict = check_grads_nonzero(with_gradients(BASE[1:], noise=0.9, max_norm=1e-10, max_rms=1e-12))
    assert verdict.status == "pass"
    assert "3 of 4" in verdict.headline
    assert any("whose true gradient is zero" in n and BASE[1] in n for n in verdict.notes)


@pytest.mark.parametrize(
    ("gradients", "why"),
    [
        ({"max_rms": 1e-14}, "gradient negligible beside Adam's eps"),
        (NONE, "no gradient at any step"),
        (ZERO, "gradient exactly zero at every step"),
    ],
)
def test_rounding_noise_is_no_sign_of_life(gradients, why):
    """A base whose real tensors are all dead, and whose key bias has noise for a gradient, is a dead base."""
    noisy = with_gradients(BASE[1:], noise=0.9, max_norm=1e-10, max_rms=1e-12)
    verdict = check_grads_nonzero(with_gradients(BASE[:1], noisy, **gradients), "base")
    assert verdict.status == "fail"
    assert verdict.headline.startswith(f"1 of 2 base tensors: {why}")
    assert [r["tensor"] for r in verdict.evidence] == [BASE[0]]
    assert any("whose true gradient is zero" in n and BASE[1] in n for n in verdict.notes)


def test_a_second_stack_of_blocks_beside_a_living_one_is_a_note():
    """Canine: the head reads one encoder; the blocks of the other take no part."""
    spare = [replace(GOOD.tensors[0], name=f"base_model.final_encoder.layer.{i}.lin.weight") for i in (0, 1)]
    trace = replace(GOOD, tensors=(*GOOD.tensors, *spare))
    verdict = check_grads_nonzero(with_gradients([t.name for t in spare], trace, **NONE))
    assert verdict.status == "pass"
    assert "Gradients reach 4 of 6 tensors" in verdict.headline
    assert any("2 base tensors without gradient" in n and spare[0].name in n for n in verdict.notes)
    verdict = check_grads_nonzero(with_gradients([spare[0].name], trace, **NONE))
    assert verdict.status == "fail"
    assert verdict.headline.startswith("1 of 6 tensors: no gradient at any step")


@pytest.mark.parametrize(("share", "status"), [(0.99, "fail"), (1.01, "pass")])
def test_negligible_beside_eps(share, status):
    verdict = check_grads_nonzero(with_gradients(HEAD, max_rms=share * EPS_SHARE * 1e-8))
    assert verdict.status == status
    if status == "fail":
        assert "negligible beside Adam's eps" in verdict.headline
        assert verdict.fault == "gradient_negligible"
        assert "the eps of AdamW (1.00e-08)" in verdict.causes[0]
        assert f"rms is {number(share * EPS_SHARE * 1e-8)} at most" in verdict.causes[0]
        assert "the loss is scaled down" in verdict.causes[0]
        assert "clipped" not in verdict.causes[0]  # the norm before clipping is known
        assert "norms layer by layer" in verdict.remedy


def test_a_loss_that_is_scaled_down_is_the_root():
    point = replace(GOOD.probe_loss.points[0], loss=7e-13, reference=0.70)
    trace = replace(GOOD, probe_loss=replace(GOOD.probe_loss, points=(point, *GOOD.probe_loss.points[1:])))
    verdict = check_grads_nonzero(with_gradients((*BASE, *HEAD), trace, max_rms=1e-14))
    assert verdict.status == "fail"
    assert verdict.fault == "gradient_negligible"
    assert verdict.causes[0].startswith("the loss is scaled down: it starts at 7.00e-13")
    assert "rms 1.00e-14" in verdict.causes[0]
    assert "undo the scaling of the loss" in verdict.remedy


@pytest.mark.parametrize("probe", [None, replace(GOOD.probe_loss, points=())])
def test_without_a_probe_the_scale_of_the_loss_is_a_guess(probe):
    verdict = check_grads_nonzero(with_gradients(HEAD, replace(GOOD, probe_loss=probe), max_rms=1e-14))
    assert not any("it starts at" in c for c in verdict.causes)
    assert any("the loss is scaled down" in c for c in verdict.causes)


def test_clipping_is_a_guess_where_the_norm_before_it_is_unknown():
    steps = tuple(replace(s, grad_norm_unclipped=None) for s in GOOD.steps)
    verdict = check_grads_nonzero(with_gradients(HEAD, replace(GOOD, steps=steps), max_rms=1e-14))
    assert "or they are clipped to nothing" in verdict.causes[0]


def test_clipped_to_nothing():
    steps = tuple(replace(s, grad_norm=1e-12, grad_norm_unclipped=3.0) for s in GOOD.steps)
    verdict = check_grads_nonzero(with_gradients((*BASE, *HEAD), replace(GOOD, steps=steps), max_rms=1e-14))
    assert (verdict.status, verdict.fault) == ("fail", "clipped_to_nothing")
    assert "1.00e-12 of 3.00" in verdict.causes[0]


def test_small_gradients_are_fine_for_sgd():
    sgd = replace(GOOD, optimizer=replace(GOOD.optimizer, name="SGD", family="sgd"))
    assert check_grads_nonzero(with_gradients(HEAD, sgd, max_rms=1e-20)).status == "pass"


def test_gradients_that_are_not_finite():
    verdict = check_grads_nonzero(with_gradients(HEAD, nonfinite=5, first_nonfinite=7, max_norm=1.0))
    assert verdict.status == "fail"
    assert "gradient not finite" in verdict.headline
    assert verdict.fault == "nonfinite"
    assert "from step 7 on" in verdict.causes[0]


def test_the_commonest_fault_is_explained_and_all_are_listed():
    trace = with_gradients(HEAD[:1], with_gradients(BASE, **NONE), **ZERO)
    verdict = check_grads_nonzero(trace)
    assert "3 of 4 tensors: no gradient at any step" in verdict.headline
    assert {r["tensor"] for r in verdict.evidence} == {*BASE, HEAD[0]}
    assert {r["why"] for r in verdict.evidence} == {"no gradient at any step", "gradient exactly zero at every step"}


def test_a_pooler_that_nothing_reads_is_a_note():
    spare = replace(GOOD.tensors[0], name="base_model.pooler.dense.weight")
    trace = with_gradients((spare.name,), replace(GOOD, tensors=(*GOOD.tensors, spare)), **NONE)
    verdict = check_grads_nonzero(trace)
    assert verdict.status == "pass"
    assert "4 of 5" in verdict.headline
    assert any(spare.name in n for n in verdict.notes)


def test_a_bias_that_learns_next_to_nothing_in_a_block_that_learns_is_no_fault():
    assert check_grads_nonzero(with_gradients(BASE[1:], max_rms=1e-14)).status == "pass"
    assert check_grads_nonzero(with_gradients(BASE, max_rms=1e-14)).status == "fail"


def test_frozen_tensors_are_not_judged():
    frozen = replace(GOOD, tensors=tuple(replace(t, trainable=False, trainable_last=False) for t in GOOD.tensors))
    verdict = check_grads_nonzero(with_gradients((*BASE, *HEAD), frozen, **NONE))
    assert verdict.status == "fail"
    assert "All of the 4 selected tensors are frozen (requires_grad=False)" in verdict.headline
    half = replace(GOOD, tensors=(*frozen.tensors[:2], *GOOD.tensors[2:]))
    assert check_grads_nonzero(with_gradients(BASE, half, **NONE)).status == "pass"
    # unfrozen during the run: it is judged
    late = replace(half, tensors=tuple(replace(t, trainable_last=True) for t in half.tensors))
    assert check_grads_nonzero(with_gradients(BASE, late, **NONE)).status == "fail"


def test_a_part_is_judged_alone():
    trace = with_gradients(BASE, **NONE)
    assert check_grads_nonzero(trace, "head").status == "pass"
    assert check_grads_nonzero(trace, "base").status == "fail"
    assert check_grads_nonzero(trace, ignore="base_model").status == "pass"
    assert check_grads_nonzero(trace, include=["base_model.*"]).status == "fail"


def test_no_step():
    verdict = check_grads_nonzero(replace(GOOD, steps=()))
    assert verdict.status == "fail"
    assert verdict.fault == "no_step_taken"
    cut = replace(GOOD, steps=(), iterations=(Iteration(None, None, 0, True, "no graph: detached"),))
    assert check_grads_nonzero(cut).fault == "loss_cut_off"


def test_wording():
    text = str(check_grads_nonzero(with_gradients(BASE, **NONE)))
    assert [line.strip() for line in text.splitlines() if "base_model" not in line and "largest norm" not in line] == [
        "grads_nonzero: FAIL. 2 of 4 tensors: no gradient at any step, while the head gets some.",
        "cause: the features reach the head through .detach(), .data, torch.no_grad() or numpy, or the base is frozen at run time",
        "do: pass the base's output tensor to the head unchanged, or freeze the base with requires_grad_(False)",
        "limit: some step with a gradient that is not zero, not rounding noise and, under Adam, of rms >= eps / 100 (its step is then 1 % "
        "of the learning rate)",
        "measured: gradients as AdamW saw them, over 20 steps",
    ]
    assert all(name in text for name in BASE)


def test_infinite_norms_do_not_break_the_message():
    assert str(check_grads_nonzero(with_gradients(HEAD, nonfinite=1, first_nonfinite=0, max_norm=math.inf)))


def test_a_tensor_without_elements_is_not_judged():
    empty = tensor("classifier.extra", "head", shape=(0,))
    empty = replace(empty, gradients=replace(empty.gradients, none=20, max_norm=0.0, first_nonzero=None))
    verdict = check_grads_nonzero(replace(GOOD, tensors=(*GOOD.tensors, empty)))
    assert verdict.status == "pass"
    assert "4 of 4 tensors" in verdict.headline


@pytest.mark.parametrize(("touched", "noted"), [(0.49, True), (0.5, False)])
def test_a_head_tensor_of_which_half_never_got_a_gradient_gets_a_note(touched, noted):
    t = next(t for t in GOOD.tensors if t.name == "classifier.weight")
    partly = replace(t, motion=replace(t.motion, share_with_gradient=touched))
    verdict = check_grads_nonzero(replace(GOOD, tensors=tuple(partly if u is t else u for u in GOOD.tensors)))
    assert verdict.status == "pass"
    assert any("51 % of classifier.weight never got a gradient" in n for n in verdict.notes) is noted


def test_declared_to_be_unused_or_frozen_is_not_judged():
    dead = with_gradients(BASE, **NONE)
    assert check_grads_nonzero(replace(dead, intent=Intent(unused="base_model"))).status == "pass"
    assert check_grads_nonzero(replace(dead, intent=Intent(frozen="base_model"))).status == "pass"
    assert check_grads_nonzero(replace(dead, intent=Intent(unused="base_model")), "base").status == "skipped"
    assert check_grads_nonzero(replace(dead, intent=Intent(trained="", thaw_step=20))).status == "pass"
    assert check_grads_nonzero(replace(dead, intent=Intent(trained="", thaw_step=19))).status == "fail"


def test_declared_by_name_to_be_trained_has_no_excuse():
    pooler = tensor("base_model.pooler.dense.weight", "base")
    trace = with_gradients((pooler.name,), replace(GOOD, tensors=(*GOOD.tensors, pooler)), **NONE)
    assert check_grads_nonzero(trace).status == "pass"
    assert check_grads_nonzero(replace(trace, intent=Intent(trained=""))).status == "pass"
    assert check_grads_nonzero(replace(trace, intent=Intent(trained="*"))).status == "pass"
    verdict = check_grads_nonzero(replace(trace, intent=Intent(trained="base_model")))
    assert (verdict.status, verdict.fault) == ("fail", "not_in_graph")
    assert verdict.evidence[0]["tensor"] == pooler.name


def layers(count, dead, changes):
    tensors = [tensor(f"base_model.layer.{i}.lin.weight", "base") for i in range(count)]
    trace = replace(GOOD, tensors=(*tensors, *(t for t in GOOD.tensors if t.part == "head")))
    return with_gradients([f"base_model.layer.{i}.lin.weight" for i in dead], trace, **changes)


def test_the_fault_behind_missing_gradients():
    assert check_grads_nonzero(with_gradients(BASE, **NONE)).fault == "cut_below_head"
    assert check_grads_nonzero(with_gradients((*BASE, *HEAD), **NONE)).fault == "no_gradient_at_all"
    verdict = check_grads_nonzero(layers(3, [2], NONE))
    assert verdict.fault == "layers_not_used"
    assert "base_model.layer.2 takes no part" in verdict.causes[0]
    # the features are those of the embedding layer: no block takes part, in front of a head of numbered layers
    table = tensor("base_model.embeddings.word.weight", "base", role="embedding")
    head = tuple(
        replace(t, name=t.name.replace("classifier", "classifier.3")) for t in GOOD.tensors if t.part == "head"
    )
    trace = layers(2, [0, 1], NONE)
    trace = replace(trace, tensors=(table, *(t for t in trace.tensors if t.part == "base"), *head))
    assert check_grads_nonzero(trace).fault == "layers_not_used"


def test_the_fault_behind_gradients_of_zero():
    assert check_grads_nonzero(with_gradients((*BASE, *HEAD), **ZERO)).fault == "loss_is_flat"
    assert check_grads_nonzero(with_gradients(HEAD[:1], **ZERO)).fault == "units_dead"
    adapters = [tensor(f"base_model.layer.{i}.q.lora_{k}", "base", role="adapter") for i in range(2) for k in "AB"]
    trace = replace(GOOD, tensors=(*adapters, *(t for t in GOOD.tensors if t.part == "head")))
    verdict = check_grads_nonzero(with_gradients([t.name for t in adapters], trace, **ZERO))
    assert verdict.fault == "adapters_silent"
    assert "scaling of 0" in verdict.causes[0]


def test_a_norm_that_is_always_the_same_was_clipped():
    feeble = {"max_rms": 1e-11, "max_norm": 1e-9}
    trace = with_gradients((*BASE, *HEAD), **feeble)
    norms = [replace(s, grad_norm=1e-8, grad_norm_unclipped=None) for s in trace.steps]
    assert check_grads_nonzero(replace(trace, steps=tuple(norms))).fault == "clipped_to_nothing"
    varied = replace(trace, steps=tuple(replace(s, grad_norm=1e-8 * (1 + 0.01 * i)) for i, s in enumerate(norms)))
    assert check_grads_nonzero(varied).fault == "gradient_negligible"
