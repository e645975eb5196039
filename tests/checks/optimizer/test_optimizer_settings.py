"""optimizer_settings: as declared, and none absurd."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import Intent, check_optimizer_settings, example_trace
from pytest_ftcheck.core.example_trace import tensor

GOOD = example_trace()


def optimizer(trace=GOOD, **changes):
    return replace(trace, optimizer=replace(trace.optimizer, **changes))


def group(trace=GOOD, intent=None, settings=None, **changes):
    """The example with its only group changed."""
    was = trace.optimizer.groups[0]
    now = replace(was, settings={**was.settings, **(settings or {})}, **changes)
    return replace(optimizer(trace, groups=(now,)), intent=intent)


def tensors(trace=GOOD, **changes):
    return replace(trace, tensors=tuple(replace(t, **changes) for t in trace.tensors))


def gradients(trace=GOOD, **changes):
    return replace(trace, tensors=tuple(replace(t, gradients=replace(t.gradients, **changes)) for t in trace.tensors))


def fault(trace):
    verdict = check_optimizer_settings(trace)
    assert verdict.status in ("pass", "fail")
    assert bool(verdict.fault) == (verdict.status == "fail")
    return verdict.fault


def test_the_example_is_healthy():
    assert fault(GOOD) == ""


@pytest.mark.parametrize(
    ("decay", "lr", "decoupled", "expected"),
    [
        (0.01, 5e-5, True, ""),
        (0.3, 3e-3, True, ""),  # a large vision transformer
        (10.0, 1e-4, True, ""),  # Lion
        (10.0, 1e-3, True, "decay_dominates"),
        (4.9, 1e-3, True, ""),
        (5.1, 1e-3, True, "decay_dominates"),
        (0.01, 3.0, True, "lr_too_large"),  # an ordinary decay: the rate is at fault
    ],
)
def test_decay_beside_the_learning_rate(decay, lr, decoupled, expected):
    assert fault(group(weight_decay=decay, lr_peak=lr, lr_sum=20 * lr, decoupled=decoupled)) == expected


def test_the_message_has_the_share_that_decay_removes_and_the_declared_decay():
    trace = group(weight_decay=10.0, lr_peak=1e-3, lr_sum=0.06, decoupled=True, intent=Intent(weight_decay=0.01))
    verdict = check_optimizer_settings(trace)
    for share in ("1 %", "45 %"):
        assert share in verdict.headline
    assert "(declared: 0.0100)" in verdict.causes[0]
    assert "0.0100; it is 10.0" in verdict.causes[1]


def test_wording():
    verdict = check_optimizer_settings(group(weight_decay=10.0, lr_peak=1e-3, lr_sum=0.06, decoupled=True))
    assert str(verdict).splitlines() == [
        "optimizer_settings: FAIL. Weight decay 10.0 at LR 0.00100 removes 1 % of every weight of group 0 at "
        "each step, 45 % over the run's 20 steps.",
        "  tensor                         by decay  by gradient  rms before",
        "  base_model.layer.0.lin.weight  5.50e-08     1.38e-04      0.0200",
        "  base_model.layer.0.lin.bias    5.50e-08     1.38e-04           0",
        "  classifier.weight              5.50e-08     1.38e-04      0.0200",
        "  classifier.bias                5.50e-08     1.38e-04           0",
        "  cause: weight decay is 10.0: it erases what is learned within 100 steps",
        "  do: lower it (torch's default for AdamW is 0.01; 0 to 0.1 is usual)",
        "  limit: LR x weight decay <= 0.5 % a step",
        "  measured: read off AdamW at 20 steps and at the end",
    ]


def test_decay_of_sgd_and_decay_that_joins_the_gradient_of_adam():
    sgd = optimizer(group(weight_decay=0.1, lr_peak=0.1, lr_sum=2.0), name="SGD", family="sgd")
    assert fault(sgd) == "decay_dominates"
    # 0.01 is common with Adam, and outgrows small gradients without much harm
    small = gradients(max_rms=1e-6)
    assert fault(group(small, weight_decay=0.01)) == ""
    assert fault(group(small, weight_decay=1.0)) == "decay_dominates"
    assert fault(group(gradients(max_rms=0.01), weight_decay=1.0)) == ""


def test_decay_of_a_group_that_is_frozen_is_none():
    trace = tensors(group(weight_decay=10.0, lr_peak=1e-2, decoupled=True), trainable=False, trainable_last=False)
    assert fault(trace) == ""


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        (0.9, 0.999, ""),
        (0.0, 0.9, ""),
        (0.95, 0.95, ""),
        (0.5, 0.9, ""),
        (0.999, 0.9, "betas_swapped"),
        (0.9, 0.01, "betas_swapped"),
    ],
)
def test_betas(one, two, expected):
    assert fault(group(settings={"betas[0]": one, "betas[1]": two})) == expected


def test_betas_of_another_kind_of_optimizer_mean_other_things():
    assert fault(optimizer(group(settings={"betas[0]": 0.99, "betas[1]": 0.9}), name="Lion", classes=("Lion",))) == ""


def test_an_eps_that_exceeds_the_gradients():
    assert fault(group(settings={"eps": 1.0})) == "eps_dominates"
    assert fault(group(settings={"eps": 0.1})) == ""  # gradients of 0.008: small steps, but steps
    # the eps is the usual one: it is the gradients that are small
    assert fault(gradients(max_rms=1e-12)) == ""


def test_an_eps_that_vanishes_in_float16():
    half = tensors(dtype="float16")
    assert fault(half) == ""
    broken = tensors(half, last=replace(GOOD.tensors[0].last, nonfinite=3))
    assert fault(broken) == "eps_underflows"
    assert fault(group(broken, settings={"eps": 1e-4})) == ""


def test_an_optimizer_built_in_the_loop():
    verdict = check_optimizer_settings(optimizer(rebuilt=19))
    assert verdict.fault == "optimizer_rebuilt"
    assert "at every step" in verdict.headline
    assert "every 7 steps" in check_optimizer_settings(optimizer(rebuilt=2)).headline
    once = check_optimizer_settings(optimizer(rebuilt=1))
    assert once.status == "pass"
    assert "once" in once.notes[0]


@pytest.mark.parametrize(
    ("counted", "steps", "expected"),
    [
        (20, 20, ""),
        (None, 20, ""),
        (500, 20, ""),
        (11, 20, ""),
        (10, 20, "state_cleared"),
        (1, 3, "state_cleared"),
        (1, 2, ""),
    ],
)
def test_the_state_counts_the_steps(counted, steps, expected):
    assert fault(optimizer(state_steps=counted, gradient_steps=steps)) == expected
    assert fault(optimizer(state_steps=counted, gradient_steps=steps, other_optimizer_steps=5)) == ""


def layered(rates, head):
    """A base of embeddings and blocks with these peak rates, and a head."""
    names = ["emb.weight", *(f"layer.{i}.lin.weight" for i in range(len(rates) - 1))]
    base = [
        replace(tensor(n, "base"), lr_peak=r, role="embedding" if n == "emb.weight" else "matrix")
        for n, r in zip(names, rates, strict=True)
    ]
    return replace(GOOD, tensors=(*base, replace(tensor("classifier.weight", "head"), lr_peak=head)))


@pytest.mark.parametrize(
    ("rates", "head", "expected"),
    [
        ((1e-3, 2e-4, 4e-5), 8e-6, "layerwise_lr_inverted"),
        ((4e-5, 2e-4, 1e-3), 5e-3, ""),  # as it should be
        ((1e-3, 1e-3, 1e-3), 1e-3, ""),
        ((1e-3, 9e-4, 8e-4), 7e-4, ""),  # falls, but hardly
        ((1e-3, 2e-4, 4e-5), 1e-3, ""),  # the head has the full rate
        ((0.02, 0.02, 0.02), 3e-4, ""),  # Muon on the matrices, Adam on the rest
    ],
)
def test_rates_that_fall_towards_the_head(rates, head, expected):
    assert fault(layered(rates, head)) == expected


def test_a_head_far_below_the_base_is_noted():
    verdict = check_optimizer_settings(layered((1e-3, 1e-3), 1e-5))
    assert verdict.status == "pass"
    assert "far below the base's" in verdict.notes[0]


@pytest.mark.parametrize(
    ("name", "classes", "wanted", "expected"),
    [
        ("AdamW", ("AdamW",), "AdamW", ""),
        ("AdamW", ("AdamW",), "adamw", ""),
        ("AdamW", ("AdamW",), "torch.optim.AdamW", ""),
        ("PagedAdamW8bit", ("PagedAdamW8bit", "Optimizer2State"), "AdamW", ""),
        ("MyAdamW", ("MyAdamW", "AdamW"), "AdamW", ""),
        ("SGD", ("SGD",), "AdamW", "other_optimizer"),
        ("Adam", ("Adam",), "AdamW", "other_optimizer"),
        ("Adagrad", ("Adagrad",), "Adam", "other_optimizer"),
    ],
)
def test_the_declared_class(name, classes, wanted, expected):
    trace = optimizer(replace(GOOD, intent=Intent(optimizer=wanted)), name=name, classes=classes)
    assert fault(trace) == expected
    assert fault(replace(trace, intent=None)) == ""


def test_adam_that_decouples_or_has_no_decay_is_adamw():
    trace = optimizer(GOOD, name="Adam", classes=("Adam",))
    assert fault(group(trace, intent=Intent(optimizer="AdamW"), decoupled=True)) == ""
    assert fault(group(trace, intent=Intent(optimizer="AdamW"), weight_decay=0.0)) == ""


def test_the_declared_weight_decay():
    assert fault(replace(GOOD, intent=Intent(weight_decay=0.01))) == ""
    verdict = check_optimizer_settings(
        group(weight_decay=0.0, settings={"momentum": 0.1}, intent=Intent(weight_decay=0.1))
    )
    assert verdict.fault == "weight_decay_differs"
    assert "momentum is 0.1" in verdict.causes[0]
    # one group with it is enough: norms and biases have none
    spared = replace(GOOD.optimizer.groups[0], index=1, weight_decay=0.0)
    two = optimizer(GOOD, groups=(GOOD.optimizer.groups[0], spared))
    assert fault(replace(two, intent=Intent(weight_decay=0.01))) == ""


def test_decay_on_norms_and_biases():
    verdict = check_optimizer_settings(replace(GOOD, intent=Intent(no_decay=True)))
    assert verdict.fault == "decay_on_norms"
    assert "2 biases have 0.0100" in verdict.headline
    assert fault(replace(GOOD, intent=Intent(no_decay=False))) == ""
    assert fault(group(weight_decay=0.0, intent=Intent(no_decay=True))) == ""
    assert fault(tensors(replace(GOOD, intent=Intent(no_decay=True)), group=None)) == ""


def norms(*values, stride=1):
    steps = tuple(replace(s, grad_norm=v) for s, v in zip(GOOD.steps, values, strict=False))
    return gradients(replace(GOOD, steps=steps, intent=Intent(max_grad_norm=1.0)), stride=stride)


@pytest.mark.parametrize(
    ("values", "stride", "expected"),
    [
        ((0.9, 1.0, 1.0), 1, ""),
        ((0.9, 1.0, 1.04), 1, ""),
        ((0.9, 1.0, 1.06), 1, "not_clipped"),
        ((0.9, 1.0, 2.9), 16, ""),  # an estimate
        ((0.9, 1.0, 3.1), 16, "not_clipped"),
        ((0.3, 0.3, 0.3), 1, "clipped_too_far"),
        ((1e-8, 1e-8, 1e-8), 1, "clipped_to_nothing"),
        ((0.3, 0.31, 0.3), 1, ""),
        ((1.0, 1.0, 1.0), 1, ""),
        ((5.0, 5.0), 1, ""),  # too few to speak of
    ],
)
def test_the_declared_clipping(values, stride, expected):
    assert fault(norms(*values, stride=stride)) == expected


def test_gradients_that_the_optimizer_does_not_see_are_not_clipped():
    trace = norms(5.0, 5.0, 6.0)
    outside = replace(trace, tensors=(replace(trace.tensors[0], group=None), *trace.tensors[1:]))
    assert fault(trace) == "not_clipped"
    assert fault(outside) == ""


def test_no_groups_is_nothing_to_judge():
    assert check_optimizer_settings(optimizer(groups=())).status == "skipped"


# ------------------------------------------------------------------ directions and momenta
def losses(first, last):
    probe = replace(
        GOOD.probe_loss,
        points=(replace(GOOD.probe_loss.points[0], loss=first), replace(GOOD.probe_loss.points[-1], loss=last)),
    )
    return replace(GOOD, probe_loss=probe)


def test_an_optimizer_that_maximizes_is_named():
    verdict = check_optimizer_settings(group(losses(0.7, 2.1), settings={"maximize": 1.0}))
    assert (verdict.status, verdict.fault) == ("fail", "maximizes")
    assert "maximize=True" in verdict.headline
    assert "0.700 to 2.10" in verdict.headline


@pytest.mark.parametrize(("first", "last"), [(0.7, 0.3), (-0.7, -0.9), (-0.7, -0.2)])
def test_two_minus_signs_are_no_fault(first, last):
    assert check_optimizer_settings(group(losses(first, last), settings={"maximize": 1.0})).status == "pass"


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"momentum": 1.0}, "momentum_too_large"),
        ({"momentum": 90.0}, "momentum_too_large"),
        ({"momentum": 0.9996}, "momentum_too_large"),
        ({"momentum": 0.999}, ""),
        ({"momentum": 0.9, "dampening": 1.0}, "gradient_damped_away"),
        ({"momentum": 0.9, "dampening": 0.9}, ""),
        ({"momentum": 0.0, "dampening": 1.0}, ""),
    ],
)
def test_a_velocity_that_never_decays_or_gets_no_gradient(settings, fault):
    assert check_optimizer_settings(group(settings=settings)).fault == fault


def test_a_learning_rate_below_zero_is_named():
    steps = tuple(replace(s, lrs=(-1e-6,)) if i >= 18 else s for i, s in enumerate(GOOD.steps))
    verdict = check_optimizer_settings(replace(GOOD, steps=steps))
    assert (verdict.status, verdict.fault) == ("fail", "lr_negative")
    assert "2 of 20 steps" in verdict.headline
    own = tuple(replace(s, by_watched_optimizer=False) for s in steps)
    assert check_optimizer_settings(replace(GOOD, steps=own)).status == "pass"
