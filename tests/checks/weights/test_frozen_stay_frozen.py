"""frozen_stay_frozen: not one bit of what is frozen changes, buffers too."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from pytest_ftcheck import CheckFailed, Intent, assert_healthy, check_frozen_stay_frozen, example_trace, finetune, watch
from pytest_ftcheck.core.example_trace import tensor
from pytest_ftcheck.core.observations import Buffer

GOOD = example_trace()
STILL = replace(GOOD.tensors[0].motion, share_changed=0.0, rms=0.0, largest=0.0)


def frozen_base(unchanged=True, buffers=(), moved=None, **changes):
    """The example with its base frozen."""
    motion = STILL if unchanged else GOOD.tensors[0].motion
    tensors = tuple(
        replace(t, trainable=False, trainable_last=False, unchanged=unchanged, motion=motion, **changes)
        if t.part == "base"
        else t
        for t in GOOD.tensors
    )
    return replace(GOOD, tensors=tensors, buffers=tuple(buffers))


def test_nothing_is_frozen():
    verdict = check_frozen_stay_frozen(GOOD)
    assert verdict.status == "skipped"
    assert verdict.headline == "nothing is frozen."


def test_what_is_frozen_stays():
    verdict = check_frozen_stay_frozen(frozen_base())
    assert verdict.status == "pass"
    assert "2 parameters and 0 buffers did not change" in verdict.headline


def test_a_write_into_a_frozen_parameter():
    verdict = check_frozen_stay_frozen(frozen_base(unchanged=False))
    assert verdict.status == "fail"
    assert "2 of 2 parameters" in verdict.headline
    assert "requires_grad=False stops gradients, not writes" in verdict.causes[0]
    assert verdict.evidence[0] == {
        "name": "base_model.layer.0.lin.weight",
        "kind": "parameter",
        "moved": "100 %",
        "requires_grad": False,
    }


def test_a_change_that_only_the_checksum_sees():
    """A sample of the elements stood still, but some byte elsewhere did not."""
    trace = frozen_base()
    trace = replace(trace, tensors=(replace(trace.tensors[0], unchanged=False), *trace.tensors[1:]))
    assert check_frozen_stay_frozen(trace).status == "fail"


def test_without_a_checksum_the_elements_decide():
    assert check_frozen_stay_frozen(GOOD, "base").status == "fail"
    still = replace(GOOD, tensors=tuple(replace(t, motion=STILL) for t in GOOD.tensors))
    assert check_frozen_stay_frozen(still, "base").status == "pass"


def test_what_should_stay_frozen_but_trains_is_named():
    verdict = check_frozen_stay_frozen(GOOD, "base")
    (cause,) = verdict.causes
    assert "base_model.layer.0.lin.weight and 1 more" in cause
    verdict = check_frozen_stay_frozen(GOOD, include="classifier.bias")
    (cause,) = verdict.causes
    assert "requires_grad is True for classifier.bias:" in cause


def test_wording():
    assert str(check_frozen_stay_frozen(GOOD, "base")).splitlines() == [
        "frozen_stay_frozen: FAIL. 2 of 2 parameters and 0 of 0 buffers that should stay frozen changed "
        "(base_model.layer.0.lin.weight by 0.69 % of its norm).",
        "  name                           kind       moved  requires_grad",
        "  base_model.layer.0.lin.weight  parameter  100 %            yes",
        "  base_model.layer.0.lin.bias    parameter  100 %            yes",
        "  cause: requires_grad is True for base_model.layer.0.lin.weight and 1 more: the code that freezes "
        "them was not called, or ran before they existed",
        "  do: call requires_grad_(False) on them before the optimizer is built",
        "  limit: not one bit changes",
        "  measured: a checksum of every byte before and after; parameters that train elementwise",
    ]


def test_both_reasons_are_given():
    trace = frozen_base(unchanged=False)
    trace = replace(trace, tensors=(replace(trace.tensors[0], trainable_last=True), *trace.tensors[1:]))
    causes = check_frozen_stay_frozen(trace, "base").causes
    assert len(causes) == 2
    assert "requires_grad is True" in causes[0]
    assert "stops gradients, not writes" in causes[1]


def test_un_frozen_during_the_run_is_not_frozen():
    tensors = tuple(replace(t, trainable=False) for t in GOOD.tensors)
    assert check_frozen_stay_frozen(replace(GOOD, tensors=tensors)).status == "skipped"


@pytest.mark.parametrize(
    ("buffer", "status"),
    [
        (Buffer("base_model.bn.running_mean", "base", frozen=True, unchanged=True), "pass"),
        (Buffer("base_model.bn.running_mean", "base", frozen=True, unchanged=False), "fail"),
        (Buffer("base_model.bn.running_mean", "base", frozen=False, unchanged=False), "pass"),
    ],
)
def test_buffers_of_frozen_modules(buffer, status):
    verdict = check_frozen_stay_frozen(frozen_base(buffers=[buffer]))
    assert verdict.status == status
    if status == "fail":
        assert "base_model.bn.running_mean is a running statistic" in verdict.causes[0]
        assert ".eval()" in verdict.remedy
        assert verdict.evidence[-1]["kind"] == "buffer"


def test_only_buffers_are_frozen():
    trace = replace(GOOD, buffers=(Buffer("bn.running_mean", "base", frozen=True, unchanged=False),))
    assert check_frozen_stay_frozen(trace).status == "fail"


def test_buffers_are_selected_like_parameters():
    buffers = (
        Buffer("base_model.bn.running_mean", "base", frozen=False, unchanged=False),
        Buffer("classifier.bn.running_mean", "head", frozen=False, unchanged=True),
    )
    trace = frozen_base(buffers=buffers)
    assert check_frozen_stay_frozen(trace, "base").status == "fail"
    assert check_frozen_stay_frozen(trace, "base", ignore="*.bias").status == "fail"
    still = replace(trace, tensors=tuple(replace(t, unchanged=True, motion=STILL) for t in trace.tensors))
    assert check_frozen_stay_frozen(still, "head").status == "pass"
    assert check_frozen_stay_frozen(still, "all").status == "fail"
    assert check_frozen_stay_frozen(still, include="base_model").status == "fail"
    assert check_frozen_stay_frozen(still, include="base_model.layer").status == "pass"


def test_a_glob_that_matches_buffers_only():
    buffers = (Buffer("base_model.bn.running_mean", "base", frozen=True, unchanged=False),)
    trace = frozen_base(buffers=buffers)
    assert check_frozen_stay_frozen(trace, include="*.running_mean").status == "fail"
    assert check_frozen_stay_frozen(trace, ignore="*.running_mean").status == "pass"


def test_frozen_globs():
    trace = frozen_base()
    assert check_frozen_stay_frozen(trace, include="*.lin.weight").status == "pass"
    assert "1 parameter and" in check_frozen_stay_frozen(trace, ignore="*.bias").headline


def test_an_adapter_is_not_the_base():
    trace = replace(
        GOOD, tensors=(*frozen_base().tensors, tensor("base_model.layer.0.lora_A.weight", "base", role="adapter"))
    )
    assert check_frozen_stay_frozen(trace).status == "pass"


def test_what_is_declared_frozen_must_stay_whatever_its_flag():
    declared = replace(GOOD, intent=Intent(frozen="base_model"))
    verdict = check_frozen_stay_frozen(declared)
    assert (verdict.status, verdict.fault) == ("fail", "not_frozen")
    assert "(base_model.layer.0.lin.weight by " in verdict.headline
    still = replace(declared, tensors=tuple(replace(t, motion=STILL) if t.part == "base" else t for t in GOOD.tensors))
    assert check_frozen_stay_frozen(still).status == "pass"


def test_what_is_declared_to_learn_need_not_stay():
    trace = frozen_base(unchanged=False)
    assert check_frozen_stay_frozen(trace).fault == "frozen_written"
    assert check_frozen_stay_frozen(replace(trace, intent=Intent(trained=""))).status == "skipped"


def test_a_tied_tensor_stays_if_one_of_its_names_was_declared():
    tied = replace(GOOD.tensors[0], aliases=("classifier.decoder",))
    trace = replace(GOOD, tensors=(tied, *GOOD.tensors[1:]), intent=Intent(trained="", frozen="classifier.decoder"))
    assert check_frozen_stay_frozen(trace).status == "fail"


def test_buffers_under_a_declared_prefix_stay_too():
    drifted = Buffer("base_model.norm.running_mean", "base", frozen=False, unchanged=False)
    trace = replace(GOOD, buffers=(drifted,), intent=Intent(frozen="base_model.norm"))
    assert check_frozen_stay_frozen(trace).fault == "frozen_statistics_drift"
    assert check_frozen_stay_frozen(replace(trace, intent=None)).status == "skipped"


# ---------------------------------------------------------------------- module.requires_grad = False
class Flagged(nn.Module):
    """It has a flag of its own under this name, and uses it."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.requires_grad = False
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x):
        y = self.linear(x)
        return y if self.requires_grad else y + 0.0


class ReadsAnothers(nn.Linear):
    """A method of it reads the flag of a tensor, as many of transformers' do: it knows no flag of its own."""

    def frozen(self):
        return [p for p in self.parameters() if not p.requires_grad]


class Net(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base
        self.classifier = nn.Linear(8, 2)

    def forward(self, x):
        return self.classifier(torch.tanh(self.base(x)))


def trained(base, mark, intent=None):
    torch.manual_seed(0)
    model = Net(base)
    mark(model)
    x = torch.randn(64, 6)
    batches = [(x[i : i + 16], (x[i : i + 16, 0] > 0).long()) for i in (0, 16, 32, 48)]
    return finetune(model, batches, head="classifier", lr=1e-2, steps=8, probes=[], intent=intent)


def freeze_in_name(of):
    def mark(model):
        model.get_submodule(of).requires_grad = False

    return mark


@pytest.mark.parametrize(("of", "kind"), [("base", nn.Linear), ("", nn.Linear), ("base", ReadsAnothers)])
def test_a_flag_set_on_a_module_freezes_nothing(of, kind):
    trace = trained(kind(6, 8), freeze_in_name(of))
    verdict = check_frozen_stay_frozen(trace)
    assert (verdict.status, verdict.fault) == ("fail", "freeze_without_effect")
    assert f"set on {of or 'the model'}" in verdict.causes[0]
    assert {row["name"] for row in verdict.evidence} == {"base.weight", "base.bias"}, "the head was not meant"
    diagnosis = assert_healthy_fails(trace)
    assert diagnosis.startswith("unhealthy: a freeze has no effect")


def assert_healthy_fails(trace):
    with pytest.raises(CheckFailed) as raised:
        assert_healthy(trace)
    return str(raised.value)


def _really(model):
    model.base.requires_grad_(False)


def _both(model):
    model.base.requires_grad_(False)
    model.base.requires_grad = False


def _true(model):
    model.base.requires_grad = True


def _outer_and_back(model):
    model.requires_grad = False
    model.base.requires_grad = True


@pytest.mark.parametrize("mark", [_really, _both, _true, _outer_and_back])
def test_a_flag_that_says_what_is_so_is_fine(mark):
    assert check_frozen_stay_frozen(trained(nn.Linear(6, 8), mark)).status in ("pass", "skipped")


def test_a_flag_of_the_classs_own_is_fine():
    assert check_frozen_stay_frozen(trained(Flagged(6, 8), lambda _: None)).status == "skipped"


def test_what_is_declared_to_learn_is_not_frozen_by_a_flag():
    trace = trained(nn.Linear(6, 8), freeze_in_name("base"), Intent(trained=("base", "classifier")))
    assert check_frozen_stay_frozen(trace).status == "skipped"


# ------------------------------------------------------------------ teachers that follow a student
class Distilled(nn.Module):
    """A student, and a frozen copy of it with a running statistic; the second matrix is larger than its sample."""

    def __init__(self):
        super().__init__()
        self.student = nn.Sequential(nn.Linear(4, 300), nn.ReLU(), nn.Linear(300, 5))
        self.teacher = nn.Sequential(nn.Linear(4, 300), nn.ReLU(), nn.Linear(300, 5)).requires_grad_(False)
        self.teacher.register_buffer("updates", torch.zeros(()))

    def forward(self, x):
        return self.student(x)

    @torch.no_grad()
    def update(self, how):
        self.teacher.updates += 1
        for student, teacher in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
            how(student, teacher)


def followed(how, intent=None):
    torch.manual_seed(0)
    model = Distilled()
    optimizer = torch.optim.AdamW(model.student.parameters(), lr=1e-2)
    with watch(model, optimizer, intent=intent) as w:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
            model.update(how)
    return check_frozen_stay_frozen(w.trace)


@pytest.mark.trains
@pytest.mark.parametrize("share", [0.001, 0.1, 1.0])
def test_a_moving_average_of_the_student_is_advice(share):
    verdict = followed(lambda student, teacher: teacher.lerp_(student, share))
    assert (verdict.status, verdict.fault) == ("advice", "")
    assert verdict.headline == (
        "4 frozen parameters follow a trainable one as a moving average does: teacher.0.weight follows student.0.weight."
    )


@pytest.mark.trains
@pytest.mark.parametrize(
    "how",
    [
        lambda student, teacher: teacher.add_(torch.randn_like(teacher), alpha=0.01),
        lambda student, teacher: teacher.lerp_(student, -0.1),
        lambda student, teacher: teacher.lerp_(student.flip(0), 0.1),
        lambda student, teacher: teacher.mul_(0.9),
    ],
    ids=["noise", "away", "rows exchanged", "shrunk"],
)
def test_frozen_parameters_that_move_otherwise_fail(how):
    verdict = followed(how)
    assert (verdict.status, verdict.fault) == ("fail", "frozen_written")


@pytest.mark.trains
def test_a_teacher_that_was_declared_frozen_must_stay():
    verdict = followed(lambda student, teacher: teacher.lerp_(student, 0.1), Intent(frozen=("teacher",)))
    assert verdict.status == "fail"


def test_an_average_that_also_moved_otherwise_or_elsewhere():
    trace = frozen_base(unchanged=False, average_of="classifier.weight")
    assert check_frozen_stay_frozen(trace).status == "fail"  # something moved it inside a step
    between = tuple(replace(t, motion=replace(t.motion, max_update=0.0)) for t in trace.tensors)
    buffers = (Buffer("base_model.layer.0.lin.count", "base", True, False),)
    assert check_frozen_stay_frozen(replace(trace, tensors=between, buffers=buffers)).status == "advice"
    assert check_frozen_stay_frozen(replace(trace, tensors=between), "base").status == "fail"  # selected is declared
    elsewhere = (Buffer("base_model.norm.running_mean", "base", True, False),)
    verdict = check_frozen_stay_frozen(replace(trace, tensors=between, buffers=elsewhere))
    assert verdict.fault == "frozen_statistics_drift"
