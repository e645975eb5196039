"""Models of thousands of small tensors: what is kept and read side by side is what single tensors give, and the budget counts calls."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from pytest_ftcheck import finetune
from pytest_ftcheck.core.observations import Histogram
from pytest_ftcheck.instruments.kept_attributes import PlainAttributes, PlainValues, keep_attributes
from pytest_ftcheck.instruments.kept_tensors import KeptTensors
from pytest_ftcheck.instruments.sampled_elements import SampledElements, SampleSize
from pytest_ftcheck.instruments.tensor_statistics import histogram_of, statistics, statistics_of
from pytest_ftcheck.instruments.undisturbed import modules_of, parameters_of, quiet
from pytest_ftcheck.instruments.work import FREE, FREE_TENSORS, PER_TENSOR, allowance, call_work, row_work
from pytest_ftcheck.training.sampled_histograms import histograms_of


def bits(tensor):
    return tensor.detach().contiguous().view(-1).view(torch.uint8).tolist()


def test_tensors_kept_side_by_side_are_as_before_bit_for_bit():
    named = {
        "zeros": torch.zeros(3),
        "nan": torch.tensor([float("nan"), -0.0]),
        "half": torch.ones(5, dtype=torch.float16),
        "double": nn.Parameter(torch.ones(2, dtype=torch.float64)),
        "untouched": nn.Parameter(torch.ones(2)),
        "whole": torch.tensor(3),
        "empty": torch.zeros(0),
        "strided": torch.arange(6.0).reshape(2, 3).t(),
        "moved": nn.Parameter(torch.ones(2, 2)),
        "resized": torch.ones(4),
    }

    def state():  # torch itself moves the memory of one that is resized
        return {n: (bits(t), n == "resized" or t.data_ptr(), t.shape, t.stride()) for n, t in named.items()}

    before = state()
    kept = KeptTensors(named.items())
    assert kept.restore() == []
    with torch.no_grad():
        named["zeros"].neg_()  # -0.0: only its bits differ
        named["nan"].zero_()
        for name in ("half", "double", "whole", "strided"):
            named[name].add_(1)
        named["moved"].data = torch.ones(2, 2)
        named["resized"].resize_(6)
    differed = set(kept.restore())
    assert differed == set(named) - {"untouched", "empty"}
    assert state() == before
    assert kept.restore() == []


def test_modules_with_plain_values_are_kept_together_and_others_one_by_one():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[2].counts = []
    kept = keep_attributes(model.modules())
    assert isinstance(kept[0], PlainValues)
    assert len(kept[0].attributes) == 2  # the Sequential, whose children are kept, too, and its first layer
    assert [type(k) for k in kept[1:]] == [PlainAttributes] * 2
    linear = model[0]
    linear.in_features, linear.new = -0.0, 1
    linear.forward = lambda x: x  # a function in place of a method is left alone
    linear.training = False
    model[2].counts.append(1)
    norm, model[1] = model[1], nn.Identity()
    for one in kept:
        one.restore()
    assert model[1] is norm
    assert linear.in_features == 2
    assert not hasattr(linear, "new")
    assert "forward" in vars(linear)
    assert not linear.training
    assert model[2].counts == []


def test_a_module_that_a_pass_has_made_gets_the_mode_of_its_parent():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with quiet(model):
        model[1].made = nn.Sequential(nn.Dropout())
        model[1].made.eval()
    assert all(m.training for m in model.modules())


def test_values_and_histograms_of_many_tensors_are_those_of_each():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        parameters = [nn.Parameter(torch.randn(n, 3).to(dtype)) for n in (1, 4, 50)] + [
            nn.Parameter(torch.zeros(4).to(dtype))
        ]
        sampled = SampledElements(parameters, [SampleSize(64)] * 4)
        flat = sampled.values(sampled.zeros())
        for p, index, piece in zip(parameters, sampled.index, sampled.split(flat), strict=True):
            own = p.detach().reshape(-1)
            assert torch.equal(piece, (own if index is None else own[index.long()]).to(flat.dtype))
        whole = {1: parameters[1].detach().reshape(-1).float()}
        for spoilt in (False, True):
            if spoilt:
                flat[0] = float("nan")
            expected = [histogram_of(3, whole.get(i, piece)) for i, piece in enumerate(sampled.split(flat))]
            expected[2] = None
            found = histograms_of(3, flat, sampled, [True, True, False, True], whole)
            assert found == expected
            assert isinstance(found[0], Histogram)


def test_the_moments_of_many_tensors_are_those_of_each(monkeypatch):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(1 + n) * 10.0 ** (n % 7 - 3)) for n in range(40)]
    parameters[3].data[1], parameters[4].data[0] = float("nan"), float("inf")
    others = [
        nn.Parameter(torch.randn(3, 2).to(torch.bfloat16)),
        nn.Parameter(torch.zeros(0)),
        nn.Parameter(torch.zeros(2, 3)),
    ]
    parameters += others
    expected = [statistics(p) for p in parameters]
    assert statistics_of(parameters) == expected
    monkeypatch.setattr("pytest_ftcheck.instruments.tensor_statistics.MANY_TENSORS", 10)
    for place, (found, one) in enumerate(zip(statistics_of(parameters), expected, strict=True)):
        if place in (3, 4, 40, 41):  # measured by itself
            assert found == one
        assert found.nonfinite == one.nonfinite
        for name in ("mean", "std", "rms", "low", "high"):
            assert abs(getattr(found, name) - getattr(one, name)) <= 1e-6 * one.rms, name


def test_modules_and_parameters_come_in_torchs_order():
    model = nn.Sequential(
        nn.Linear(2, 2),
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
        nn.Transformer(4, 2, 1, 1, 4, batch_first=True),
    )
    model.add_module("again", model[0])
    model.register_module("none", None)
    model[1][0].weight = model[0].weight
    assert list(map(id, modules_of(model))) == list(map(id, model.modules()))
    assert list(map(id, parameters_of(model))) == list(map(id, model.parameters()))


def test_a_run_with_many_tensors_records_fewer_histograms_and_nothing_else_differs(monkeypatch):
    batches = [
        (torch.randn(4, 4, generator=torch.Generator().manual_seed(i)), torch.tensor([0, 1, 0, 1])) for i in range(2)
    ]

    def trace():
        torch.manual_seed(0)
        return finetune(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), batches, head="1", steps=20)

    few = trace()
    monkeypatch.setattr("pytest_ftcheck.training.recorder.MANY_TENSORS", 0)
    many = trace()
    assert [h.step for h in few.tensors[0].histograms] == [-1, 0, 1, 2, 3, 5, 8, 12, 18, 19]
    assert [h.step for h in many.tensors[0].histograms] == [-1, 0, 1, 4, 16, 19]
    without = [[dataclasses.replace(t, histograms=()) for t in found.tensors] for found in (few, many)]
    assert without[0] == without[1]
    assert few.measurements == many.measurements


def test_weights_that_a_forward_pass_writes_are_restored_in_a_model_of_many_tensors_too():
    class Renormalised(nn.Linear):
        def forward(self, x):
            self.weight.data.mul_(0.5)
            return super().forward(x)

    model = nn.Sequential(Renormalised(2, 2), nn.ParameterList(nn.Parameter(torch.ones(2)) for _ in range(2500)))
    first = model[0].weight.detach().clone()
    for weights in (True, False):  # once seen to be written, they are restored without being asked for
        with quiet(model, weights=weights):
            model[0](torch.ones(1, 2))
        assert torch.equal(model[0].weight, first)


def test_the_budget_counts_the_calls_of_thousands_of_tensors_and_of_no_usual_model():
    small = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(FREE_TENSORS))
    assert call_work(small) == 0
    assert allowance(small, 16, 1, 0) == FREE / row_work(small, 1)
    many = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(FREE_TENSORS + 1000))
    assert call_work(many) == 1000 * PER_TENSOR
    assert allowance(many, 16, 1, 0) < 0.001 * FREE / row_work(many, 1)
