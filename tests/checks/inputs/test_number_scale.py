"""Numbers that are far too large, or that hardly vary, and their healthy twins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from pytest_ftcheck import Trace, check_output_depends_on_input, diagnose, example_trace, finetune
from pytest_ftcheck.checks.inputs.record import Inputs, NumberScale, WordsMeasurement
from pytest_ftcheck.checks.learning import ENOUGH
from pytest_ftcheck.core.effect import Effect

CHANGES = Effect(0.03, 0.01, 0.02)
WORDS = WordsMeasurement("after", 8, 8, CHANGES)
#: Raw pixels in a convolutional network, in one that a LayerNorm follows, and pixels that were scaled twice.
RAW = NumberScale("conv", 0.0, 255.0, 120.0, 60.0, 7.0, 2.7, 0.12, 0.06)
HIDDEN = replace(RAW, size=0.11, spread=0.003, size_standardised=0.12, spread_standardised=0.015)
TWICE = NumberScale("conv", 0.0, 0.004, 0.002, 0.001, 0.03, 5e-5, 0.12, 0.06)


def judged(scale, *, learns=True, first_loss=0.7, **changes):
    trace = example_trace()
    points = (replace(trace.probe_loss.points[0], reference=first_loss), *trace.probe_loss.points[1:])
    if not learns:
        changes["metrics"] = tuple(replace(m, last=m.first, p_value=1.0) for m in trace.metrics)
        changes.setdefault("steps", (trace.steps * ENOUGH)[:ENOUGH])
    losses = tuple(replace(i, loss=first_loss) for i in trace.iterations[:1]) + trace.iterations[1:]
    trace = replace(
        trace,
        measurements={"inputs": Inputs(8, words=(WORDS,), number_scale=scale)},
        probe_loss=replace(trace.probe_loss, points=points),
        iterations=losses,
        **changes,
    )
    return check_output_depends_on_input(trace)


@pytest.mark.parametrize(
    ("scale", "fault"), [(RAW, "inputs_unscaled"), (HIDDEN, "inputs_unscaled"), (TWICE, "inputs_hardly_vary")]
)
def test_in_a_run_that_does_not_learn(scale, fault):
    assert (judged(scale, learns=False).status, judged(scale, learns=False).fault) == ("fail", fault)
    assert judged(scale, learns=False, steps=example_trace().steps[:4]).status == "inconclusive"
    assert judged(scale).status == "pass"


def test_a_first_loss_that_is_too_high_is_due_to_the_inputs():
    verdict = judged(RAW, first_loss=9.0)
    assert (verdict.status, verdict.fault) == ("fail", "inputs_unscaled")
    assert "lie between 0 and 255" in verdict.headline
    assert "The outputs have an rms of 7.00; with standardised numbers, of 0.120." in verdict.headline
    assert judged(HIDDEN, first_loss=9.0).status == "pass"  # it is not: their size does not depend on the scale


@pytest.mark.parametrize(
    "scale",
    [
        None,
        replace(RAW, size=None),  # of a usual scale
        replace(HIDDEN, spread_standardised=0.005),
        replace(TWICE, spread_standardised=4.9e-4),
        replace(RAW, size=0.9, spread=0.06),
    ],
)
def test_what_shows_nothing(scale):
    assert judged(scale, learns=False).fault == ""


# ---------------------------------------------------------------------------------------- real runs
class Net(nn.Module):
    """A network for rows of 12 numbers, what is done to them first, and the layer before it."""

    def __init__(self, first=None, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.scale = first or nn.Identity(), scale
        self.body, self.head = nn.Sequential(nn.Linear(12, 32), nn.ReLU()), nn.Linear(32, 2)

    def forward(self, x):
        return self.head(self.body(self.first(x * self.scale)))


def run(scale, steps=ENOUGH, model=None):
    torch.manual_seed(0)
    x = torch.randn(320, 12)
    y, x = (x[:, 0] > 0).long(), x * scale
    batches = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 320, 16)]
    probes = ("loss", "metrics", "inputs")
    model = model or Net()
    return finetune(model, batches[:8], eval_batches=batches[8:], head="head", steps=steps, lr=1e-3, probes=probes)


@pytest.mark.parametrize(("scale", "fault"), [(500.0, "inputs_unscaled"), (1e-3, "inputs_hardly_vary"), (1.0, "")])
def test_the_first_cause(scale, fault):
    trace = run(scale)
    assert Trace.from_json(trace.to_json()) == trace
    causes = diagnose(trace).causes
    assert (causes[0].fault if causes else "") == fault


@pytest.mark.parametrize(
    ("scale", "model"),
    [
        (500.0, lambda: Net(nn.BatchNorm1d(12))),
        (500.0, lambda: Net(nn.LayerNorm(12))),
        (500.0, lambda: Net(scale=1 / 500)),
    ],
    ids=["batch norm", "layer norm", "scaled inside"],
)
def test_a_model_that_scales_its_inputs_itself(scale, model):
    found = run(scale, 2, model()).measured(Inputs).number_scale
    assert found is None or found.size is None


def test_numbers_that_even_a_norm_cannot_normalise():
    assert run(1e-3, 2, Net(nn.LayerNorm(12))).measured(Inputs).number_scale.size is not None


def test_token_ids_are_no_numbers():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.base, self.head = nn.Embedding(50, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.base(x.long()).mean(1))

    batches = [(torch.randint(50, (8, 4)).float(), torch.tensor([0, 1] * 4)) for _ in range(2)]
    trace = finetune(Words(), batches, head="head", steps=2, probes=("inputs",))
    assert trace.measured(Inputs).number_scale is None
