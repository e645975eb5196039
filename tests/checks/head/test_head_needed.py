"""head_needed: an advice with the simpler head as code, and never a failure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import check_head_needed, example_trace
from pytest_ftcheck.checks.head.ablation_record import Counterfactuals, Outcome, Rewound, SimplerHead
from pytest_ftcheck.checks.head.head_needed import BEHIND, LEAST_ROWS

FOUND = Counterfactuals(
    rows=64,
    source="held-out rows",
    trained=Outcome(0.4, 0.85),
    baseline=0.5,
    parts=(
        Rewound("head", 4290, Outcome(0.7, 0.6), Outcome(0.9, 0.5)),
        Rewound("base", 83000, Outcome(0.69, 0.51)),
    ),
    simpler=SimplerHead(64, 2, 128, 2, 0.7, 0.75, "classifier", "classifier.0"),
)


def verdict(**changes):
    return check_head_needed(replace(example_trace(), measurements={"counterfactuals": replace(FOUND, **changes)}))


def test_the_training_of_the_head_counts():
    v = verdict()
    assert v.status == "pass"
    assert "The training of the head matters" in v.headline
    assert "60 % instead of 85 %" in v.headline
    assert [row["reset"] for row in v.evidence] == ["nothing (as trained)", "head", "base"]


def test_a_rewound_head_that_does_as_well_is_said():
    """The founding question: put back, the head scores 0.845 instead of 0.848."""
    v = verdict(trained=Outcome(0.407, 0.848), parts=(Rewound("head", 4290, Outcome(0.467, 0.845)),))
    assert v.status == "pass"
    assert "The head hardly needed training" in v.headline


def test_one_linear_layer_would_do():
    v = verdict(simpler=replace(FOUND.simpler, accuracy=0.84))
    assert (v.status, v.fault) == ("advice", "head_redundant")
    assert v.ok
    assert "84 %" in v.headline
    assert "85 %" in v.headline
    assert v.remedy == "try model.classifier = torch.nn.Linear(64, 2), before the optimizer is made"
    assert verdict(simpler=replace(FOUND.simpler, accuracy=0.85 - BEHIND - 0.001)).status == "pass"


@pytest.mark.parametrize(
    ("replaces", "remedy"),
    [
        ("parts.1", "try model.parts[1] = torch.nn.Linear(64, 2), before the optimizer is made"),
        ("1", "try model[1] = torch.nn.Linear(64, 2), before the optimizer is made"),
        (
            "",
            "try one torch.nn.Linear(64, 2) in place of the head's 2 layers: in forward(), apply it to what enters classifier.0 now, and "
            "return its output as the logits",
        ),
    ],
)
def test_the_code_names_the_one_module_that_can_be_replaced(replaces, remedy):
    assert verdict(simpler=replace(FOUND.simpler, accuracy=0.84, replaces=replaces)).remedy == remedy


def test_a_head_that_wastes_its_features():
    v = verdict(trained=Outcome(0.6, 0.65), simpler=replace(FOUND.simpler, accuracy=1.0))
    assert (v.status, v.fault) == ("advice", "head_wastes_features")
    assert "separate the classes better than this head does" in v.headline


@pytest.mark.parametrize(
    "changes",
    [{"rows": LEAST_ROWS - 1}, {"source": "training rows"}, {"trained": Outcome(0.69, 0.55)}, {"baseline": None}],
)
def test_too_little_to_advise_on(changes):
    assert verdict(simpler=replace(FOUND.simpler, accuracy=0.99), **changes).status == "pass"


def test_nothing_learned_is_nothing_to_compare():
    v = verdict(trained=Outcome(0.69, 0.5))
    assert v.status == "pass"
    assert "Nothing to compare" in v.headline
    v = verdict(trained=Outcome(0.69, 0.5), simpler=replace(FOUND.simpler, accuracy=0.95))
    assert "does not use that (yet)" in v.notes[0]


def test_regression_has_a_loss_only():
    v = verdict(
        trained=Outcome(0.1, None), baseline=None, simpler=None, parts=(Rewound("head", 65, Outcome(0.3, None)),)
    )
    assert v.status == "pass"
    assert "the loss is 0.300 instead of 0.100" in v.headline


def test_not_measured_and_nothing_trained():
    assert check_head_needed(example_trace()).status == "inconclusive"
    v = check_head_needed(replace(example_trace(), skipped={"counterfactuals": "left out"}))
    assert v.headline == "Not measured: left out."
    assert verdict(parts=()).status == "skipped"
    assert "not trained" in verdict(parts=FOUND.parts[1:]).headline


def test_wording():
    assert str(verdict(simpler=replace(FOUND.simpler, accuracy=0.84))) == (
        "head_needed: advice. One linear layer on the same features scores 84 %, the trained head of 2 layers 85 %: these rows "
        "need no hidden layer.\n"
        "  reset                  loss  accuracy  shuffled: loss  shuffled: accuracy\n"
        "  nothing (as trained)  0.400      85 %               -                   -\n"
        "  head                  0.700      60 %           0.900                50 %\n"
        "  base                  0.690      51 %               -                   -\n"
        "  cause: the base is expressive enough for a linear head\n"
        "  do: try model.classifier = torch.nn.Linear(64, 2), before the optimizer is made\n"
        "  limit: at most 2.0 % behind, on at least 50 held-out rows\n"
        "  measured: 64 rows (held-out rows), dropout off; one part at a time reset to its initial values; the linear layer by "
        "ridge regression on 128 training rows\n"
        "  note: one linear layer on the same features: 84 % right, and the same prediction as the trained head for 75 % of the "
        "rows"
    )
