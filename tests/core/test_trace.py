"""A trace survives JSON, refuses what does not fit, and finds its tensors."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from pytest_ftcheck import diagnose
from pytest_ftcheck.checks.data.record import Data, Dependence
from pytest_ftcheck.checks.mode.record import Modes
from pytest_ftcheck.checks.retraining.record import Overfit
from pytest_ftcheck.core.example_trace import example_trace, tensor
from pytest_ftcheck.core.observations import Buffer, Group, Histogram, Iteration, Metric
from pytest_ftcheck.core.serialization import decode, encode
from pytest_ftcheck.core.trace import NOT_NAMED, SCHEMA, Trace


def raw(**changes):
    """The example as parsed JSON, with changed fields."""
    return {**json.loads(example_trace().to_json()), **changes}


def full():
    """The example with every optional field in use."""
    t = dataclasses.replace(
        tensor("classifier.weight", "head"),
        aliases=("decoder.weight",),
        unchanged=False,
        histograms=(Histogram(-1, -1.0, 1.0, (1, 2, 3)),),
    )
    return example_trace(
        tensors=(t,),
        buffers=(Buffer("bn.running_mean", "base", True, False),),
        notes=("é … 學",),
        stopped="max_seconds",
        iterations=(Iteration(None, None, 0, False, "no graph"),),
    )


def with_group(**changes):
    made = example_trace()
    group = dataclasses.replace(made.optimizer.groups[0], **changes)
    return dataclasses.replace(made, optimizer=dataclasses.replace(made.optimizer, groups=(group,)))


# ------------------------------------------------------------------ JSON
@pytest.mark.parametrize("trace", [example_trace(), full(), example_trace(tensors=(), probe_loss=None, recipe=None)])
def test_round_trip(trace, tmp_path):
    assert Trace.from_json(trace.to_json()) == trace
    trace.save(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json") == trace
    assert Trace.load(str(tmp_path / "trace.json")) == trace


def test_json_is_standard_even_after_divergence():
    made = example_trace(
        iterations=tuple(Iteration(v, i, 1, True) for i, v in enumerate((math.nan, math.inf, -math.inf, 1.0))),
        tensors=(dataclasses.replace(tensor("w", "head"), grad_norms=(1.0, math.nan, math.inf)),),
    )

    def refuse(constant):
        raise AssertionError(constant)

    json.loads(made.to_json(), parse_constant=refuse)
    back = Trace.from_json(made.to_json())
    assert math.isnan(back.losses[0])
    assert back.losses[1:] == (math.inf, -math.inf, 1.0)
    assert math.isnan(back.tensors[0].grad_norms[1])
    assert back.tensors[0].grad_norms[2] == math.inf


def test_a_string_that_reads_nan_stays_a_string():
    made = example_trace(notes=("NaN", "Infinity"), stopped="NaN")
    assert Trace.from_json(made.to_json()) == made


def test_whole_numbers_are_taken_for_floats():
    back = Trace.from_json(json.dumps(raw(seconds=3)))
    assert back.seconds == 3.0
    assert type(back.seconds) is float


@pytest.mark.parametrize("schema", [SCHEMA + 1, 0, "1", None, 1.5])
def test_another_schema(schema):
    with pytest.raises(ValueError, match=rf"schema {schema!r}, this version of pytest-ftcheck reads {SCHEMA}"):
        Trace.from_json(json.dumps(raw(schema=schema)))


@pytest.mark.parametrize("text", ["", "{", "nope", '{"schema": 1', "\0"])
def test_corrupt(text):
    with pytest.raises(ValueError, match="not a trace: no valid JSON"):
        Trace.from_json(text)


@pytest.mark.parametrize("text", ["[]", "null", "3", "{}", '"schema"', '["schema"]'])
def test_other_json(text):
    with pytest.raises(ValueError, match="not a trace: no field 'schema'"):
        Trace.from_json(text)


def test_unknown_field():
    with pytest.raises(ValueError, match=r"^trace: unknown field 'colour'$"):
        Trace.from_json(json.dumps(raw(colour="red")))
    made = raw()
    made["tensors"][2]["motion"]["speed"] = 1
    with pytest.raises(ValueError, match=r"^trace\.tensors\[2\]\.motion: unknown field 'speed'$"):
        Trace.from_json(json.dumps(made))


def test_missing_field():
    made = raw()
    del made["tensors"][1]["motion"]["rms"]
    with pytest.raises(ValueError, match=r"^trace\.tensors\[1\]\.motion: field 'rms' is missing$"):
        Trace.from_json(json.dumps(made))
    made = raw()
    del made["notes"], made["buffers"]  # fields with a default may be missing
    assert Trace.from_json(json.dumps(made)) == example_trace()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seconds": "fast"}, r"trace\.seconds: expected a number, found 'fast'"),
        ({"seconds": True}, r"trace\.seconds: expected a number"),
        ({"seconds": None}, r"trace\.seconds: expected a number"),
        ({"source": 3}, r"trace\.source: expected str, found '3'"),
        ({"recorded": [0, 1.5]}, r"trace\.recorded\[1\]: expected int"),
        ({"recorded": [True]}, r"trace\.recorded\[0\]: expected int"),
        ({"recorded": 3}, r"trace\.recorded: expected a list"),
        ({"tensors": {}}, r"trace\.tensors: expected a list"),
        ({"tensors": [3]}, r"trace\.tensors\[0\]: expected Tensor"),
        ({"reading": []}, r"trace\.reading: expected Reading"),
        ({"environment": []}, r"trace\.environment: expected an object"),
        ({"environment": {"torch": 2}}, r"trace\.environment\.torch: expected str"),
        ({"probe_loss": 1}, r"trace\.probe_loss: expected ProbeLoss"),
        ({"notes": "one"}, r"trace\.notes: expected a list"),
    ],
)
def test_wrong_types(changes, message):
    with pytest.raises(ValueError, match=message):
        Trace.from_json(json.dumps(raw(**changes)))


def test_wrong_recipe_values_are_refused_as_they_are_elsewhere():
    made = raw()
    made["recipe"]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"lr=-1\.0: expected a finite number"):
        Trace.from_json(json.dumps(made))


def test_long_values_in_errors_are_cut():
    with pytest.raises(ValueError, match=r"expected a list") as caught:
        Trace.from_json(json.dumps(raw(tensors="x" * 10_000)))
    assert len(str(caught.value)) < 150


def test_only_plain_data_is_written():
    with pytest.raises(TypeError, match="is not plain data"):
        example_trace(notes=(object(),)).to_json()


def test_tuples_of_fixed_length():
    assert decode(tuple[int, str], [1, "a"]) == (1, "a")
    with pytest.raises(ValueError, match="expected 2 items"):
        decode(tuple[int, str], [1])
    assert encode((1, [2.0, None, True])) == [1, [2.0, None, True]]


# ------------------------------------------------------------------ finding tensors
def names(found):
    return [t.name for t in found]


HEAD = ["classifier.weight", "classifier.bias"]
BASE = ["base_model.layer.0.lin.weight", "base_model.layer.0.lin.bias"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, BASE + HEAD),
        ({"part": "head"}, HEAD),
        ({"part": "base"}, BASE),
        ({"include": "*.weight"}, [BASE[0], HEAD[0]]),
        ({"include": "classifier"}, HEAD),
        ({"include": ["classifier.bias", "base_model.layer.0"]}, [*BASE, HEAD[1]]),
        ({"part": "head", "ignore": "*.bias"}, HEAD[:1]),
        ({"include": "classifier", "ignore": ("classifier.bias",)}, HEAD[:1]),
        ({"include": "decoder.*"}, HEAD[:1]),
        ({"ignore": ()}, BASE + HEAD),
    ],
)
def test_select(arguments, expected):
    tensors = tuple(
        dataclasses.replace(t, aliases=("decoder.weight",)) if t.name == HEAD[0] else t for t in example_trace().tensors
    )
    assert names(example_trace(tensors=tensors).select(**arguments)) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"part": "heads"}, "part='heads': expected one of head, base, all"),
        ({"part": None}, "part=None: expected one of head, base, all"),
        ({"include": "clasifier.*"}, r"include='clasifier.\*' matches none of the 4 tensors \(base_model"),
        ({"include": "class"}, "include='class' matches none"),
        ({"include": ["*.weight", "x"]}, "include='x' matches none"),
        ({"ignore": "x"}, "ignore='x' matches none"),
        ({"part": "head", "include": "base_model"}, "leave no tensor to judge"),
        ({"ignore": "*"}, "leave no tensor to judge"),
        ({"include": ()}, "leave no tensor to judge"),
    ],
)
def test_select_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        example_trace().select(**arguments)


@pytest.mark.parametrize("patterns", [[1], ("a", None)])
def test_select_refuses_other_types(patterns):
    with pytest.raises(TypeError, match="expected a glob or a sequence of globs"):
        example_trace().select(include=patterns)


def test_select_in_a_trace_without_that_part():
    with pytest.raises(ValueError, match=r"the trace has no base tensors \(head: classifier\)"):
        example_trace(tensors=(tensor("classifier.weight", "head"),)).select("base")


def test_tensor_by_name_and_alias():
    made = full()
    assert made.tensor("classifier.weight") is made.tensors[0]
    assert made.tensor("decoder.weight") is made.tensors[0]
    with pytest.raises(
        ValueError,
        match=r"^name='classifier.wieght': no such tensor; did you mean classifier.weight, classifier.bias\?$",
    ):
        example_trace().tensor("classifier.wieght")
    with pytest.raises(ValueError, match=r"^name='nothing': no such tensor$"):
        example_trace().tensor("nothing")


# ------------------------------------------------------------------ what is computed
def test_tensor_properties():
    t = tensor("w", "head", shape=(8, 4, 3))
    assert (t.numel, t.fan_in) == (96, 12)
    assert t.budget_used == pytest.approx(0.25)
    vector = dataclasses.replace(t, shape=(8,), lr_sum=0.0)
    assert (vector.numel, vector.fan_in, vector.budget_used) == (8, 1, None)
    assert dataclasses.replace(t, shape=()).numel == 1


def test_losses_and_backward_error():
    made = example_trace(
        iterations=(
            Iteration(1.0, 0, 1, True),
            Iteration(None, 1, 1, True),
            Iteration(0.5, None, 0, True, "no graph"),
        )
    )
    assert made.losses == (1.0, 0.5)
    assert made.backward_error == "no graph"
    assert example_trace().backward_error is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "<Trace of 20 steps in 1.0 s: 4 tensors, head classifier, loss 0.700 -> 0.320>"),
        ({"iterations": ()}, "<Trace of 20 steps in 1.0 s: 4 tensors, head classifier>"),
        (
            {"tensors": (), "steps": ()},
            "<Trace of 0 steps in 1.0 s: 0 tensors, head classifier, loss 0.700 -> 0.320>",
        ),
        (
            {"iterations": (Iteration(math.nan, 0, 1, True),), "head": ("a", "b")},
            "<Trace of 20 steps in 1.0 s: 4 tensors, head a, b, loss nan -> nan>",
        ),
    ],
)
def test_repr(changes, expected):
    assert repr(example_trace(**changes)) == expected


def test_settings_of_a_group_survive():
    made = with_group(settings={"eps": 1e-8, "momentum": math.nan})
    back = Trace.from_json(made.to_json()).optimizer.groups[0]
    assert isinstance(back, Group)
    assert back.settings["eps"] == 1e-8
    assert math.isnan(back.settings["momentum"])


def test_metrics_survive():
    made = example_trace(metrics=(Metric("f1", math.nan, 0.5, 3, "the user's own"),))
    (back,) = Trace.from_json(made.to_json()).metrics
    assert math.isnan(back.first)
    assert back.baseline is None


@pytest.mark.parametrize(
    ("kind", "skipped", "part", "reason"),
    [
        (Modes, {}, None, "Not measured."),
        (Modes, {"modes": "the run ended early"}, None, "Not measured: the run ended early."),
        (Modes, {"all": "no batches."}, None, "Not measured: no batches."),
        (Modes, {"modes": "the run ended early"}, "there is no dropout", "Not measured: there is no dropout."),
        (Overfit, {"overfit": NOT_NAMED}, None, "runs only with probes=['overfit']"),
        (Overfit, {}, None, "runs only with probes=['overfit']"),
        (Overfit, {"overfit": "the loop is your own"}, None, "Not measured: the loop is your own."),
    ],
)
def test_why_nothing_was_measured(kind, skipped, part, reason):
    text = example_trace(skipped=skipped).why_not_measured(kind, part)
    assert text.endswith(reason) if kind is Modes else reason in text


# ------------------------------------------------------------------ values that do not fit together
def learnable(**changes):
    """The example with a data measurement of which one value is changed, as a file may hold it."""
    tests = {"rows": 300, "permutations": 99, "p_values": {"a": 0.01}, "simulated": 6, "detected": 6, "unit": "row"}
    return json.dumps(raw(measurements={"data": encode(Data(dependence=Dependence(**{**tests, **changes})))}))


@pytest.mark.parametrize("changes", [{"p_values": {}}, {"unit": "x"}])
def test_a_trace_that_no_check_can_judge_is_one_error(changes):
    trace = Trace.from_json(learnable(**changes))
    with pytest.raises(ValueError, match="labels_learnable cannot judge it, for its values do not fit together"):
        diagnose(trace)
    with pytest.raises((IndexError, KeyError)):  # of a run of our own it is an error of ours
        diagnose(dataclasses.replace(trace, read_back=False))
    assert diagnose(Trace.from_json(learnable())).verdicts
