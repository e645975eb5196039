"""pretrained_kept: which tensors do not start from the declared values, and how they were lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import check_pretrained_kept, example_trace
from pytest_ftcheck.checks.head.record import Differing, Pretrained

LOST = Differing("base.layer.0.lin.weight", "unrelated", "base", 1.4, 0.01, 0.02, 0.05, (64, 64), (64, 64))


def verdict(*differing, compared=10, **changes):
    found = Pretrained(compared, compared - len(differing), differing, initializer_range=0.02, **changes)
    return check_pretrained_kept(replace(example_trace(), measurements={"pretrained": found}))


def test_kept():
    v = verdict()
    assert v.status == "pass"
    assert "10 of 10 declared tensors" in v.headline


def test_not_measured_or_not_declared():
    assert check_pretrained_kept(example_trace()).status == "inconclusive"
    undeclared = {"pretrained": "no pretrained values were declared (Intent(pretrained=...))"}
    v = check_pretrained_kept(replace(example_trace(), skipped=undeclared, not_applicable=("pretrained",)))
    assert v.status == "skipped"
    assert "no pretrained values were declared" in v.headline


def test_declared_values_that_could_not_be_compared_are_no_pass():
    v = verdict(error="it raised KeyError: x")
    assert (v.status, v.headline) == ("inconclusive", "Not measured: it raised KeyError: x.")


@pytest.mark.parametrize(
    ("kind", "fault", "word"),
    [
        ("unrelated", "pretrained_partly_lost", "re-initialised"),
        ("constant", "pretrained_partly_lost", "re-initialised"),
        ("scaled", "pretrained_scaled", "factor"),
        ("shifted", "pretrained_shifted", "added"),
        ("scaled and shifted", "pretrained_changed", "a constant was added"),
        ("refilled", "pretrained_changed", "another constant"),
        ("shuffled", "pretrained_shuffled", "transposed"),
        ("misplaced", "pretrained_shuffled", "for other layers"),
        ("changed", "pretrained_changed", "another version"),
        ("rows zeroed", "pretrained_changed", "whole rows"),
        ("shape", "pretrained_other_shape", "another shape"),
    ],
)
def test_how_they_were_lost(kind, fault, word):
    v = verdict(replace(LOST, kind=kind))
    assert (v.status, v.fault) == ("fail", fault)
    assert "1 of 10 declared tensors" in v.headline
    assert word in v.causes[0]
    assert "base.layer.0" in v.causes[0]


def test_misplaced_matrices_come_before_the_biases_that_merely_look_changed():
    others = [replace(LOST, kind="unrelated") for _ in range(6)]
    assert verdict(*others, *[replace(LOST, kind="misplaced")] * 3).fault == "pretrained_shuffled"
    assert verdict(*others, *[replace(LOST, kind="misplaced")] * 2).fault == "pretrained_partly_lost"


def test_all_of_them_is_a_checkpoint_that_was_never_loaded():
    many = [replace(LOST, name=f"base.layer.{i}.lin.weight") for i in range(10)]
    v = verdict(*many)
    assert v.fault == "pretrained_not_loaded"
    assert "the whole base" in v.causes[0]
    assert "0.0200, as config.initializer_range" in v.causes[0]
    assert verdict(*many[:8]).fault == "pretrained_partly_lost"
    assert "and 5 more" in verdict(*many[:8]).causes[0]


@pytest.mark.parametrize("kind", ["rounded", "close", "resized"])
def test_harmless_differences_are_noted(kind):
    v = verdict(replace(LOST, kind=kind))
    assert v.status == "pass"
    assert "(9 bit for bit)" in v.headline
    assert "base.layer.0.lin.weight" in v.notes[0]


def test_the_head_is_noted_only():
    v = verdict(replace(LOST, name="classifier.weight", part="head"), undeclared=3, unknown=2)
    assert v.status == "pass"
    assert "1 tensor of the head" in v.notes[0]
    assert "3 base tensors" in v.notes[1]
    assert "2 declared names" in v.notes[2]


def test_shapes_are_shown_where_they_differ():
    v = verdict(replace(LOST, kind="shape", declared_shape=(80, 64), correlation=None, relative=None))
    assert "(64, 64), declared (80, 64)" in v.headline


def test_wording():
    assert str(verdict(LOST)) == (
        "pretrained_kept: FAIL. 1 of 10 declared tensors do not start from the declared pretrained values: "
        "base.layer.0.lin.weight is unrelated to the declared values (correlation 0.010, relative difference 1.40).\n"
        "  tensor                   relative difference  correlation     std  declared std  why\n"
        "  base.layer.0.lin.weight                 1.40       0.0100  0.0200        0.0500  unrelated to the declared values\n"
        "  cause: re-initialised after loading, or never loaded: base.layer.0 (std 0.0200, as config.initializer_range); "
        "apply(init) visited the whole model, or names did not match\n"
        "  do: load the checkpoint last, and check that load_state_dict(strict=True) or from_pretrained() reports no missing "
        "keys; initialise only the head: model.classifier.apply(init), not model.apply(init)\n"
        "  limit: |w - declared| / |declared| <= 0.05 for every base tensor; casting to bf16 and back gives 0.002\n"
        "  measured: every declared tensor against the parameter of that name before the first step"
    )


@pytest.mark.parametrize(
    ("differing", "status"),
    [
        (replace(LOST, kind="scaled"), "advice"),
        (replace(LOST, kind="rows zeroed"), "advice"),
        (replace(LOST, kind="constant", mean=0.0), "advice"),
        (replace(LOST, kind="unrelated"), "pass"),
        (replace(LOST, kind="changed"), "pass"),
        (replace(LOST, name="base.norm.weight", kind="constant", shape=(64,), mean=1.0), "pass"),
        (replace(LOST, name="base.lin.bias", kind="constant", shape=(64,), mean=0.0), "pass"),
        (replace(LOST, name="base.norm.weight", kind="constant", shape=(64,), mean=0.0), "advice"),
        (replace(LOST, kind="scaled", part="head"), "pass"),
    ],
)
def test_against_the_checkpoint_that_the_config_names(differing, status):
    """The example's run learns: edits are advice there, and later training or new layers are none."""
    v = verdict(differing, named="bert-base-uncased")
    assert v.status == status
    assert "bert-base-uncased" in v.headline


def test_an_edit_is_a_fault_where_the_run_does_not_learn():
    trace = example_trace()
    points = tuple(replace(p, loss=1.1, reference=1.1) for p in trace.probe_loss.points)
    found = Pretrained(10, 9, (replace(LOST, kind="scaled"),), named="bert-base-uncased")
    lost = replace(
        trace, probe_loss=replace(trace.probe_loss, points=points), metrics=(), measurements={"pretrained": found}
    )
    v = check_pretrained_kept(lost)
    assert (v.status, v.fault) == ("fail", "pretrained_scaled")


def test_matrices_of_zeros_in_a_loaded_checkpoint_were_filled_and_not_initialised_again():
    v = verdict(replace(LOST, kind="constant", mean=0.0, std=0.0, declared_mean=0.0), named="bert-base-uncased")
    assert (v.status, v.fault) == ("advice", "pretrained_changed")
    assert "filled with one value after loading" in v.causes[0]
