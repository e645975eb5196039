"""``print(trace)``: readable, within 80 columns, and for every odd trace."""

from __future__ import annotations

import dataclasses
import io
import math
import sys

import pytest

from pytest_ftcheck.core.example_trace import example_trace, tensor
from pytest_ftcheck.core.observations import (
    Buffer,
    Group,
    Iteration,
    Metric,
    Optimizer,
    ProbeLoss,
    ProbeLossPoint,
    Step,
)
from pytest_ftcheck.reports.trace_table import describe, sparkline

NAN = math.nan


def with_(t, **changes):
    """A tensor with other motion, gradients or statistics."""
    parts = {k: dataclasses.replace(getattr(t, k), **v) if isinstance(v, dict) else v for k, v in changes.items()}
    return dataclasses.replace(t, **parts)


def founding():
    names = [f"base.transformer.layer.{i}.{m}.weight" for i in range(6) for m in ("attention.q_lin", "ffn.lin1")]
    base = [
        tensor("base.embeddings.word_embeddings.weight", "base", shape=(99, 8)),
        *(tensor(n, "base") for n in names),
    ]
    head = [
        tensor("classifier.0.weight", "head", shape=(768, 768)),
        tensor("classifier.0.bias", "head", shape=(768,)),
        tensor("classifier.3.weight", "head", shape=(2, 768)),
        tensor("classifier.3.bias", "head", shape=(2,)),
    ]
    return example_trace(tensors=tuple(base + head))


def adam(*groups):
    return Optimizer("AdamW", "adam", groups)


def group(index, **changes):
    return dataclasses.replace(Group(index, 1e-5, 5e-5, 5e-4, 0.01, {}, 1, 0), **changes)


W, B = tensor("classifier.weight", "head", shape=(2, 64)), tensor("base.a.weight", "base")
ODD = {
    "example": example_trace(),
    "founding": founding(),
    "nothing": example_trace(
        tensors=(),
        steps=(),
        iterations=(),
        recorded=(),
        probe_loss=None,
        metrics=(),
        optimizer=adam(),
        environment={},
        recipe=None,
    ),
    "no steps": example_trace(steps=(), recorded=()),
    "no losses": example_trace(iterations=tuple(Iteration(None, i, 1, True) for i in range(20))),
    "NaN losses": example_trace(iterations=tuple(Iteration(NAN, i, 1, True) for i in range(20))),
    "some NaN": example_trace(iterations=tuple(Iteration(NAN if i > 9 else 1.0, i, 1, True) for i in range(20))),
    "huge losses": example_trace(iterations=tuple(Iteration(1.7e308 * (-1) ** i, i, 1, True) for i in range(50))),
    "tiny losses": example_trace(iterations=tuple(Iteration(5e-324 * i, i, 1, True) for i in range(3))),
    "broken": example_trace(iterations=(Iteration(0.7, None, 0, True, backward_error="no graph"),), steps=()),
    "one tensor": example_trace(tensors=(W,)),
    "only base": example_trace(tensors=(B,)),
    "bare name": example_trace(tensors=(tensor("weight", "base"), tensor("bias", "head", shape=(3,)))),
    "10 kB names": example_trace(
        tensors=(tensor("classifier." + "x" * 10_000, "head"), tensor("base." + "y" * 10_000, "base")),
        head=("classifier." + "z" * 10_000,),
        buffers=(Buffer("b" * 10_000, "base", True, False),),
        metrics=(Metric("m" * 10_000, 0.1, 0.2, 3, "s" * 10_000),),
        notes=("n" * 10_000,),
        stopped="s" * 10_000,
    ),
    "line breaks": example_trace(tensors=(tensor("a\nb\tc", "head"),), notes=("one\ntwo",)),
    "no probe": example_trace(probe_loss=None),
    "probe skipped": example_trace(probe_loss=ProbeLoss(0, "", (), skipped="the step function hides the batches")),
    "probe NaN": example_trace(probe_loss=ProbeLoss(4, "rows", (ProbeLossPoint(0, NAN), ProbeLossPoint(1, math.inf)))),
    "no metrics": example_trace(metrics=()),
    "lr_sum 0": example_trace(tensors=tuple(dataclasses.replace(t, lr_sum=0.0) for t in example_trace().tensors)),
    "sgd": example_trace(optimizer=Optimizer("SGD", "sgd", (group(0),))),
    "other": example_trace(optimizer=Optimizer("Lion", "other", (group(0),), other_optimizer_steps=3)),
    "groups": example_trace(
        optimizer=adam(*(group(i, not_in_model=i) for i in range(12))),
        steps=(Step(0, (1e-5,) * 9, NAN, None, True),),
    ),
    "big head": example_trace(tensors=tuple(tensor(f"classifier.{i}.weight", "head") for i in range(17))),
    "many blocks": example_trace(tensors=tuple(tensor(f"base.{i}.weight", "base") for i in range(99))),
    "all NaN": example_trace(
        tensors=tuple(
            with_(
                t,
                motion={"share_changed": NAN, "by_gradient": NAN, "largest": NAN, "relative": NAN},
                gradients={"max_norm": NAN, "nonfinite": 20},
                last={"std": NAN, "nonfinite": 5},
            )
            for t in (W, B)
        )
    ),
    "absurd": example_trace(
        tensors=tuple(with_(t, motion={"by_gradient": 1e30, "largest": 1e300, "relative": 1e10}) for t in (W, B)),
        seconds=1e9,
    ),
    "scalar": example_trace(tensors=(dataclasses.replace(W, shape=()),)),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("unicode", [True, False])
def test_every_trace_fits(name, unicode):
    text = describe(ODD[name], unicode=unicode)
    lines = text.splitlines()
    assert lines[0].startswith("finetune: ")
    assert max(map(len, lines)) <= 80
    assert not any(line != line.rstrip() for line in lines)
    assert "\n\n\n" not in text
    assert len(lines) < 120
    assert unicode or text.isascii()


def test_print_is_describe():
    assert str(example_trace()) == describe(example_trace())


@pytest.mark.parametrize(
    "told",
    [
        "20 optimizer steps in 1.0 s (training: 0.8 s)",
        "cpu, float32, torch 2",
        "keywords input_ids, attention_mask",
        "bare logits (single label, 2 classes)",
        "4 tensors of 4,290 weights, all trainable; head: classifier",
        "training loss  0.700 -> 0.320",
        "probe loss     0.700 -> 0.310",
        "class prior 0.693",
        "12 of 12 steps lowered the loss of their own batch",
        "2.5e-05 -> 2.8e-06",
        "peak 5.0e-05, sum 5.50e-04",
        "0.500 -> 0.900",
        "majority class 0.530",
        "64 held-out rows",
        "classifier.weight   2x64  100 %  0.69 %  25 %  80 %  0.50  0.0200  0.0201",
    ],
)
def test_the_example_tells(told):
    assert told in describe(example_trace())


def test_founding_head_has_a_line_a_tensor():
    (line,) = [x for x in describe(founding()).splitlines() if "classifier.0.weight" in x]
    assert line.split()[:2] == ["classifier.0.weight", "768x768"]
    assert "25 %" in line


def test_base_is_folded_to_blocks():
    text = describe(founding())
    assert "base.transformer.layer.0" in text
    assert "base.embeddings" in text
    assert "q_lin" not in text


def test_long_names_stand_above_their_numbers():
    text = describe(example_trace(tensors=(tensor("pre_classifier.dense.projection.weight", "head"),)))
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if "pre_classifier.dense.projection.weight  64x64" in line)
    assert lines[at + 1].split()[:2] == ["100", "%"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trainable": False}, "^ frozen"),
        ({"group": None}, "^ in no parameter group"),
        ({"replaced": True}, "^ replaced during the run"),
        ({"gradients": {"none": 20}}, "^ never got a gradient"),
        ({"gradients": {"none": 5, "zero": 15}}, "^ gradient always zero"),
        ({"motion": {"share_changed": 0.0}}, "^ did not move"),
        ({"gradients": {"nonfinite": 1}}, "^ NaN or infinite gradient"),
        ({"last": {"nonfinite": 1}}, "^ NaN or infinite values"),
        ({"motion": {"between_steps": 1.0}}, "^ changed outside the optimizer"),
        ({"aliases": ("decoder.weight",)}, "^ tied to decoder.weight"),
    ],
)
def test_what_is_odd_about_a_tensor_is_said(changes, told):
    assert "^" not in describe(example_trace())
    assert told in describe(example_trace(tensors=(with_(W, **changes), B)))


def test_what_is_odd_in_a_block_is_counted():
    tensors = (W, B, with_(tensor("base.a.bias", "base", shape=(4,)), gradients={"none": 20}))
    assert "^ 1 of 2: never got a gradient" in describe(example_trace(tensors=tensors))
    frozen = dataclasses.replace(B, trainable=False, motion=dataclasses.replace(B.motion, share_changed=0.0))
    text = describe(example_trace(tensors=(W, frozen)))
    assert "0 of 1" in text
    assert "^" not in text


def test_remarks():
    text = describe(
        example_trace(
            stopped="max_seconds=1 reached",
            notes=("the warm-up is longer than the run",),
            buffers=(
                Buffer("bn.running_mean", "base", True, False),
                Buffer("position_ids", "base", False, True),
            ),
        )
    )
    assert "stopped early: max_seconds=1 reached" in text
    assert "note: the warm-up is longer than the run" in text
    assert "buffers changed: 1 of 2: bn.running_mean (of a frozen module)" in text


def test_family_decides_the_legend():
    assert "one learning rate a step" in " ".join(describe(example_trace()).split())
    text = " ".join(describe(ODD["sgd"]).split())
    assert "the sum is no limit" in text
    assert "one learning rate a step" not in text
    assert "3 steps by other optimizers" in " ".join(describe(ODD["other"]).split())


def test_regression_and_one_class():
    reading = dataclasses.replace(example_trace().reading, task="regression")
    metric = Metric("r2", -1.0, 0.5, 9, "the user's own", 0.0, None, (9, 0), (4, 5))
    text = describe(example_trace(reading=reading, metrics=(metric,)))
    assert "mean alone 0" in text
    assert "9 rows (the user's own), all predicted as one class" in text


def test_output_that_cannot_print_blocks(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    text = describe(example_trace(notes=("naïve … 學習 ▁",)))
    text.encode("cp1252")
    assert "#**++" in text
    assert "naïve ~" in text


@pytest.mark.parametrize("stdout", [None, io.StringIO()])
def test_output_of_unknown_encoding(monkeypatch, stdout):
    monkeypatch.setattr(sys, "stdout", stdout)
    assert "█" in describe(example_trace())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        ([1.0], "▄"),
        ([1.0, 1.0], "▄▄"),
        ([0.0, 7.0], "▁█"),
        ([NAN, NAN], "xx"),
        ([0.0, math.inf, 1.0], "▁x█"),
        ([-1.7e308, 1.7e308], "▁█"),
        (list(range(28)), "▁▂▂▃▃▄▄▅▅▆▆▇▇█"),
    ],
)
def test_sparkline(values, expected):
    assert sparkline(values) == expected
