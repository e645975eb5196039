"""Bad input is one clear error, naming the argument, before any training; a loss without a graph is a diagnosis."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, TensorDataset

import pytest_ftcheck
from pytest_ftcheck import (
    Recipe,
    check_all_finite,
    check_frozen_stay_frozen,
    check_grads_nonzero,
    check_loss_decreases,
    check_metric_improves,
    check_weights_move,
    finetune,
    tiny_distilbert,
    toy_batches,
    watch,
)
from pytest_ftcheck.checks.catalogue import CHECKS
from pytest_ftcheck.checks.data.record import Data
from pytest_ftcheck.checks.probes import PROBE_CLASSES
from pytest_ftcheck.core.trace import NOT_NAMED


class Net(nn.Module):
    def __init__(self, out=2):
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.classifier = nn.Linear(8, out)
        self.trained = 0

    def forward(self, x):
        self.trained += self.training
        return self.classifier(torch.relu(self.body(x)))


class Witness:
    """A model and an optimizer that know whether anything was trained."""

    def __init__(self, model=None):
        self.model = model if model is not None else Net()
        self.steps = 0
        self.handle = register_optimizer_step_pre_hook(self._count)
        self.weights = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.flags = [(p.requires_grad, p.grad) for p in self.model.parameters()]
        self.modes = [m.training for m in self.model.modules()]
        self.random = torch.get_rng_state()

    def _count(self, *_):
        self.steps += 1

    def check(self):
        """Nothing was trained, nothing is changed."""
        self.handle.remove()
        assert self.steps == 0
        assert getattr(self.model, "trained", 0) == 0
        assert all(torch.equal(p, self.weights[n]) for n, p in self.model.named_parameters() if p.device.type != "meta")
        assert [(p.requires_grad, p.grad) for p in self.model.parameters()] == self.flags
        assert [m.training for m in self.model.modules()] == self.modes
        assert torch.equal(torch.get_rng_state(), self.random)


def refused(batches, *words, error=ValueError, model=None, **arguments):
    """``finetune`` raises an error that has all the words, on one line, with nothing trained and nothing changed."""
    witness = Witness(model)
    with pytest.raises(error) as info:
        finetune(witness.model, batches, **arguments)
    message = str(info.value)
    for word in words:
        assert word in message, message
    assert type(info.value) is error
    assert not hasattr(info.value, "ftcheck_trace")
    witness.check()


# ------------------------------------------------------------------ batches
@pytest.mark.parametrize("empty", [[], (), iter([]), DataLoader([])], ids=["list", "tuple", "iterator", "loader"])
def test_empty_batches(empty):
    refused(empty, "batches", "empty", "at least one batch")


def test_no_batches_are_those_of_a_trainer():
    refused(None, "batches is missing", "a function without arguments that makes a Trainer", error=TypeError)


@pytest.mark.parametrize("value", [3, "text", {"x": 1}, torch.zeros(3)])
def test_batches_that_are_no_batches(value):
    refused(value, "batches", type(value).__name__, "expected a list", error=TypeError)


def test_empty_held_out_batches(rows):
    refused(rows, "eval_batches", "empty", eval_batches=[])


def test_a_one_shot_generator_too_short_for_the_steps(rows):
    refused((r for r in rows), "batches", "ends after 8 batches", "steps=20", "a list or a DataLoader")


# ------------------------------------------------------------------ labels
def labelled(rows, labels, at=0):
    batches = list(rows)
    batches[at] = (batches[at][0], labels)
    return batches


@pytest.mark.parametrize(("label", "bad"), [(2, "2"), (-1, "-1"), (-7, "-7"), (99, "99")])
@pytest.mark.parametrize("at", [0, 5])
def test_labels_outside_the_heads_classes(rows, label, bad, at):
    labels = torch.arange(16) % 2
    labels[3] = label
    refused(labelled(rows, labels, at), f"batches[{at}]", f"label {bad}", "2 classes", "expected 0 to 1", "-100")


def test_labels_outside_the_classes_in_held_out_batches(rows):
    refused(rows, "eval_batches[1]", "label 4", eval_batches=labelled(rows, torch.full((16,), 4), 1))


def test_labels_outside_the_classes_of_one_logit(rows):
    refused(labelled(rows, torch.full((16,), 2)), "label 2", "2 classes", model=Net(out=1))


def hf(labels, count=2, **config):
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(vocab_size=200, dim=16, n_layers=1, n_heads=2, hidden_dim=16, **config)
    batches = [
        {"input_ids": ids, "attention_mask": mask, "labels": labels} for (ids, _, mask), _ in toy_batches(count, 4)
    ]
    return DistilBertForSequenceClassification(config).train(), batches


def test_labels_outside_the_classes_of_a_model_with_a_loss_of_its_own():
    """transformers' own loss raises "Target 2 is out of bounds"; the message must not be about keywords."""
    model, batches = hf(torch.tensor([0, 1, 2, 1]))
    refused(batches, "batches[0]", "label 2", "2 classes", "expected 0 to 1", model=model)


def test_labels_of_the_wrong_shape_for_a_model_with_a_loss_of_its_own():
    model, batches = hf(torch.tensor([0, 1, 1]))
    refused(batches, "labels int64 of shape (3,)", "logits float32 of shape (4, 2)", model=model)


@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(15, dtype=torch.long),
        torch.zeros(16, 1, dtype=torch.long),
        torch.zeros(16, 3, dtype=torch.long),
        torch.zeros(16, 2, 2),
        torch.rand(16),
        torch.zeros(16, dtype=torch.complex64),
        torch.tensor(1),
    ],
    ids=["too few", "a column", "three columns", "three dimensions", "floats for two classes", "complex", "a number"],
)
def test_labels_of_the_wrong_dtype_or_shape(rows, labels):
    refused(
        labelled(rows, labels),
        "batches: labels",
        str(tuple(labels.shape)),
        str(labels.dtype).removeprefix("torch."),
        "do not fit logits float32 of shape (16, 2)",
        "expected whole-number classes of shape (16,)",
    )


@pytest.mark.parametrize(
    "labels",
    [torch.zeros(15, dtype=torch.long), torch.zeros(16, 2, dtype=torch.long), torch.rand(16)],
    ids=["too few", "two columns", "floats"],
)
def test_later_batches_are_looked_at_before_training_too(rows, labels):
    refused(labelled(rows, labels, 5), "batches[5]", "labels")


def test_labels_that_are_no_tensor(rows):
    refused(labelled(rows, [0, 1] * 8), "labels", "list", "tensor", error=TypeError)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_regression_labels_that_are_not_finite(rows, bad):
    batches = [(x, x[:, 0].clone()) for x, _ in rows]
    batches[3][1][2] = bad
    refused(batches, "batches[3]", "NaN or infinite", model=Net(out=1))


@pytest.mark.parametrize("batch", ["mapping", "tensor"])
def test_a_batch_without_labels_and_no_loss_fn(rows, batch):
    x = rows[0][0]
    refused(
        [{"x": x} if batch == "mapping" else x], "no labels", "no loss_fn", "expected a mapping with a key 'labels'"
    )


def two(logits, labels):
    return F.cross_entropy(logits.float(), labels)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (nn.CrossEntropyLoss(), "return CrossEntropyLoss(model(inputs), labels)"),
        (F.cross_entropy, "return cross_entropy(model(inputs), labels)"),
        (two, "return two(model(inputs), labels)"),
        (lambda logits, labels: logits.log_softmax(-1).mean(), "return it(model(inputs), labels)"),
    ],
)
def test_a_loss_fn_of_logits_and_labels(rows, given, line):
    refused(rows, "loss_fn=", "(model, batch) -> loss", line, loss_fn=given)


def test_a_forward_without_labels_needs_a_loss_fn_too(rows):
    refused([rows[0][0]], "batches", "loss_fn", forward=lambda m, b: m(b))


def test_inputs_that_the_model_cannot_take(rows):
    refused([(torch.zeros(16, 5), rows[0][1])], "model could not be called", "RuntimeError", "one tensor")
    refused([{"y": rows[0][0], "labels": rows[0][1]}], "model could not be called", "it takes x")


# ------------------------------------------------------------------ models
def test_no_trainable_parameter(rows):
    refused(rows, "model", "no trainable parameter", model=Net().requires_grad_(False))
    refused(rows, "model", "no trainable parameter", model=nn.Identity())


def test_parameters_on_the_meta_device(rows):
    with torch.device("meta"):
        model = Net()
    refused(rows, "model", "'body.weight'", "meta device", model=model)


def test_quantized_parameters(rows):
    model = Net()
    model.body.weight = nn.Parameter(torch.zeros(8, 6, dtype=torch.int8), requires_grad=False)
    refused(rows, "model", "'body.weight'", "quantized", "int8", model=model)


def test_complex_parameters(rows):
    model = Net()
    model.body = nn.Linear(6, 8, dtype=torch.complex64)
    refused(rows, "model", "'body.weight'", "complex64", "real floating-point", model=model)


def test_a_lazy_module_that_has_not_run_yet(rows):
    with pytest.raises(ValueError, match=r"model: parameter '0.weight' is not initialised yet"):
        finetune(nn.Sequential(nn.LazyLinear(2)), rows, head="0")


def test_a_model_that_is_none(rows):
    with pytest.raises(TypeError, match=r"model is a str: expected a torch.nn.Module or a function"):
        finetune("distilbert", rows)
    with pytest.raises(TypeError, match="the model factory returned a NoneType"):
        finetune(lambda: None, rows)


def test_an_unknown_device(rows):
    refused(rows, "device='nowhere'", device="nowhere")


def test_a_head_that_matches_nothing(rows):
    refused(rows, "head='clasifier'", "candidates: body, classifier", head="clasifier")
    refused(rows, "head=", "expected a prefix", error=TypeError, head=[])
    refused(rows, "head[0]=1", "expected a prefix", error=TypeError, head=[1])
    refused(rows, "head=", error=TypeError, head=7)


# ------------------------------------------------------------------ recipes
@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("steps", 0, ValueError),
        ("steps", -1, ValueError),
        ("steps", 2.0, TypeError),
        ("lr", -1e-5, ValueError),
        ("lr", math.nan, ValueError),
        ("lr", "5e-5", TypeError),
        ("seed", -1, ValueError),
        ("max_seconds", 0, ValueError),
        ("weight_decay", -0.1, ValueError),
        ("dtype", "float8", ValueError),
        ("autocast", "float32", ValueError),
        ("schedule", "cosine", ValueError),
    ],
)
def test_recipe_fields(rows, field, value, error):
    refused(rows, f"{field}={value!r}", "expected", error=error, **{field: value})


def test_a_warm_up_longer_than_the_run_is_no_error(rows):
    assert any("longer than the run" in n for n in finetune(Net(), rows, steps=2, warmup=10).notes)


def test_a_misspelt_argument(rows):
    refused(rows, "no argument 'learning_rate'", "lr", error=TypeError, learning_rate=1e-3)


def test_a_recipe_that_is_none(rows):
    refused(rows, "recipe=", "expected a Recipe", error=TypeError, recipe={"lr": 1e-3})


@pytest.mark.parametrize("field", ["lr", "weight_decay", "warmup", "schedule"])
def test_a_field_that_ones_own_optimizer_would_make_void(rows, field):
    refused(
        rows,
        f"{field}={getattr(Recipe(), field)!r}",
        "your own optimizer",
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
        **{field: getattr(Recipe(), field)},
    )


def test_a_field_that_ones_own_scheduler_would_make_void(rows):
    refused(
        rows,
        "warmup=0.2",
        "your own scheduler",
        scheduler=lambda o: torch.optim.lr_scheduler.ConstantLR(o),
        warmup=0.2,
    )


# ------------------------------------------------------------------ the other arguments
@pytest.mark.parametrize(
    ("argument", "value", "error", "words"),
    [
        ("optimizer", "adamww", ValueError, ("optimizer='adamww'", "adamw, adam")),
        ("optimizer", 3, TypeError, ("optimizer is an int", "torch.optim.Optimizer")),
        ("optimizer", lambda m: None, TypeError, ("optimizer(model) returned a NoneType",)),
        (
            "optimizer",
            torch.optim.SGD,
            TypeError,
            ("optimizer=SGD is a class", "lambda model: SGD(model.parameters(), lr=...)"),
        ),
        ("scheduler", 3, TypeError, ("scheduler is an int", "expected a learning-rate scheduler")),
        ("scheduler", lambda o: None, TypeError, ("scheduler(optimizer) returned a NoneType",)),
        (
            "scheduler",
            torch.optim.lr_scheduler.StepLR,
            TypeError,
            ("scheduler=StepLR is a class", "'step_size'", "lambda optimizer: StepLR(optimizer, ...)"),
        ),
        ("loss_fn", 3, TypeError, ("loss_fn is an int", "callable")),
        ("forward", 3, TypeError, ("forward is an int", "callable")),
        ("forward", lambda m, b: {"logits": 1}, TypeError, ("forward returned a dict", "expected the logits")),
        ("step", 3, TypeError, ("step is an int", "callable")),
        ("evaluate", 3, TypeError, ("evaluate is an int", "callable")),
        ("evaluate", lambda m: "good", TypeError, ("evaluate", "str", "expected a number")),
        ("evaluate", lambda m: None, TypeError, ("evaluate", "NoneType", "expected a number")),
        ("metrics", [len], TypeError, ("metrics is a list", "expected a mapping")),
        ("metrics", {"f1": 3}, TypeError, ("metrics['f1'] is an int", "callable")),
        ("intent", {"frozen": "*"}, TypeError, ("intent is a dict", "Intent")),
        ("probes", ["loss", "spin"], ValueError, ("probes=", "'spin'", "descent")),
        ("probes", "loss", TypeError, ("probes='loss'", "descent")),
        ("probes", 3, TypeError, ("probes=3", "descent")),
        ("metrics", {3: len}, TypeError, ("metrics has the key 3", "a mapping name -> callable")),
        ("eval_batches", [{}], ValueError, ("eval_batches[0]", "a dict with no keys has no labels")),
        ("eval_batches", [None], ValueError, ("eval_batches[0]", "has no labels")),
        ("eval_batches", 3, TypeError, ("eval_batches is an int",)),
    ],
)
def test_arguments_of_the_wrong_kind(rows, argument, value, error, words):
    refused(rows, *words, error=error, **{argument: value})


def test_an_optimizer_instance_beside_a_factory(rows):
    with pytest.raises(ValueError, match="optimizer is an instance, but model is a factory"):
        finetune(Net, rows, optimizer=torch.optim.SGD(Net().parameters(), lr=0.1))


# ------------------------------------------------------------------ losses
def test_a_loss_that_is_not_a_scalar(rows):
    refused(
        rows,
        "what loss_fn returned has shape (16,)",
        "expected one number",
        "mean",
        loss_fn=lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"),
    )
    refused(rows, "what loss_fn returned is a str", "expected a scalar", error=TypeError, loss_fn=lambda m, b: "low")
    refused(
        rows, "what loss_fn returned is a NoneType", "expected a scalar", error=TypeError, loss_fn=lambda m, b: None
    )


def test_a_models_own_loss_that_is_not_a_scalar(rows):
    class PerRow(Net):
        def forward(self, x, labels=None):
            logits = super().forward(x)
            return {"loss": F.cross_entropy(logits, labels, reduction="none"), "logits": logits}

    refused(
        [{"x": x, "labels": y} for x, y in rows],
        "the model's loss has shape (16,)",
        "expected one number",
        model=PerRow(),
    )


def test_a_loss_of_one_element_is_a_scalar(rows):
    assert len(finetune(Net(), rows, loss_fn=lambda m, b: m(b[0]).mean().reshape(1), steps=2).steps) == 2


class Detached(Net):
    def forward(self, x):
        return super().forward(x).detach()


LOOSE = {
    "detached logits": (Detached, {}, "inside the model"),
    "argmax": (Net, {"loss_fn": lambda m, b: (m(b[0]).argmax(-1) != b[1]).float().mean()}, "between logits and loss"),
    "item": (Net, {"loss_fn": lambda m, b: F.cross_entropy(m(b[0]), b[1]).item()}, "between logits and loss"),
    "a new tensor": (Net, {"loss_fn": lambda m, b: torch.tensor(m(b[0]).sum().item())}, "between logits and loss"),
}


def diagnosed(trace, words):
    """No step, and every check that can fails with a cause."""
    assert len(trace.steps) == 0
    assert len(trace.iterations) == 1
    assert "backward cannot run" in trace.stopped
    assert words in trace.backward_error
    for check in (check_weights_move, check_grads_nonzero, check_loss_decreases):
        verdict = check(trace)
        assert verdict.status == "fail"
        assert any(words in cause for cause in verdict.causes)
        assert "no graph" in verdict.headline
        assert verdict.remedy
    for check in (check_all_finite, check_frozen_stay_frozen, check_metric_improves):
        check(trace)  # no exception


@pytest.mark.parametrize("kind", LOOSE)
def test_a_loss_without_a_graph_is_a_diagnosis(rows, kind):
    make, arguments, words = LOOSE[kind]
    diagnosed(finetune(make(), rows, **arguments), words)


def test_a_loss_without_a_graph_is_a_diagnosis_with_lbfgs_too(rows):
    diagnosed(finetune(Detached(), rows, optimizer=lambda m: torch.optim.LBFGS(m.parameters())), "inside the model")


@pytest.mark.parametrize("kind", ["detached logits", "argmax", "a new tensor"])
def test_a_loss_without_a_graph_in_a_step_of_ones_own(rows, kind):
    make, arguments, _ = LOOSE[kind]
    loss_of = arguments.get("loss_fn", lambda m, b: F.cross_entropy(m(b[0]), b[1]))

    def step(model, batch, optimizer, scheduler):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        return loss

    words = "inside the model" if kind == "detached logits" else "between logits and loss"
    diagnosed(finetune(make(), rows, step=step), words)


def test_no_grad_around_a_step_of_ones_own(rows):
    @torch.no_grad()
    def step(model, batch, optimizer, scheduler):
        F.cross_entropy(model(batch[0]), batch[1]).backward()

    diagnosed(finetune(Net(), rows, step=step), "between logits and loss")


def test_a_loss_without_a_graph_leaves_the_model_alone(rows):
    witness = Witness(Detached())
    finetune(witness.model, rows)
    witness.model.trained = 0  # it was called once; what counts is the rest
    witness.check()


def test_other_errors_of_torch_pass_through(rows):
    def step(model, batch, optimizer, scheduler):
        torch.zeros(2) @ torch.zeros(3)

    with pytest.raises(RuntimeError) as info:
        finetune(Net(), rows, step=step)
    assert info.value.ftcheck_trace.steps == ()


def test_an_optimizer_whose_state_cannot_be_copied_is_refused_by_name(rows):
    """It could not be restored; one that is made for the run, or that is merely no deep copy itself, will do."""

    class Keeping(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for p in self.param_groups[0]["params"]:
                self.state[p]["generator"] = (i for i in ())

        def __deepcopy__(self, memo):
            raise TypeError("it cannot be copied")

    def make(model):
        return Keeping(model.parameters(), lr=0.1)

    model = Net()
    assert len(finetune(model, rows, optimizer=make, steps=2).steps) == 2
    fresh, used = make(model), make(model)
    assert len(finetune(model, rows, optimizer=fresh, steps=2).steps) == 2
    F.cross_entropy(model(rows[0][0]), rows[0][1]).backward()
    used.step()
    message = r"^optimizer: its state 'generator' is a generator that cannot be copied \(TypeError: .* pass a function"
    with pytest.raises(ValueError, match=message):
        finetune(model, rows, optimizer=used, steps=2)


# ------------------------------------------------------------------ selection in checks
@pytest.mark.parametrize("check", [check_weights_move, check_grads_nonzero, check_all_finite, check_frozen_stay_frozen])
def test_an_unknown_part_or_glob(rows, check):
    trace = finetune(Net(), rows, steps=1)
    with pytest.raises(ValueError, match=r"part='tail': expected one of head, base, all"):
        check(trace, "tail")
    with pytest.raises(ValueError, match=r"include='\*.wheight' matches none of the 4 tensors"):
        check(trace, include="*.wheight")
    with pytest.raises(ValueError, match=r"ignore='boddy' matches none"):
        check(trace, ignore=["boddy"])
    with pytest.raises(ValueError, match="leave no tensor to judge"):
        check(trace, "head", ignore="classifier")
    with pytest.raises(TypeError, match=r"include\[0\]=1"):
        check(trace, include=[1])
    with pytest.raises(TypeError, match="include=3"):
        check(trace, include=3)
    with pytest.raises(TypeError, match="ignore=True"):
        check(trace, ignore=True)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("value", [None, "trace", {}])
def test_what_is_no_trace(name, value):
    for judge in (CHECKS[name], getattr(pytest_ftcheck, f"check_{name}"), getattr(pytest_ftcheck, f"assert_{name}")):
        with pytest.raises(TypeError, match=f"trace is a {type(value).__name__}"):
            judge(value)
        with pytest.raises(TypeError, match=f"trace is a {type(value).__name__}"):
            judge(trace=value)


def test_probes_may_come_from_a_generator(rows):
    trace = finetune(Net, rows, steps=2, probes=(name for name in ["data"]))
    assert trace.measured(Data) is not None
    assert trace.probe_loss is None


def test_the_trace_says_why_a_probe_measured_nothing(rows):
    trace = finetune(Net, rows, steps=2, probes=["data"])
    assert trace.skipped["modes"] == NOT_NAMED
    assert "data" not in trace.skipped
    with pytest.raises(ZeroDivisionError) as info:
        finetune(Net, rows, steps=2, step=lambda m, b, o, s: 1 / 0)
    assert info.value.ftcheck_trace.skipped["counterfactuals"] == "the run ended early"
    with watch(model := Net(), torch.optim.SGD(model.parameters(), lr=0.1)) as w:
        pass
    on_request = {kind.name for kind in PROBE_CLASSES if not kind.default}
    by_default = {k: v for k, v in w.trace.skipped.items() if k not in on_request | {"pretrained"}}
    assert by_default.pop("ranks") == "torch.distributed is not initialized: one process trains"
    assert set(by_default.values()) == {"watch has no probe_batch"}
    assert "modes" in w.trace.skipped


# ------------------------------------------------------------------ watch
def test_watch_refuses_what_it_cannot_watch(rows):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    for arguments, given, error, words in (
        (("model", optimizer), {}, TypeError, "the first argument is a str"),
        ((model, scheduler), {}, TypeError, "optimizer is a ConstantLR"),
        ((model, optimizer), {"scheduler": type(scheduler)}, TypeError, "scheduler is the class ConstantLR: expected"),
        ((model, optimizer), {"scheduler": 3}, TypeError, "scheduler is an int"),
        ((model, optimizer), {"loss_fn": 3}, TypeError, "loss_fn is an int"),
        ((model, optimizer), {"loss_fn": lambda m, b: 0}, ValueError, "loss_fn is given without probe_batch"),
        ((model, optimizer), {"probes": ["data"]}, ValueError, "probes is given without probe_batch"),
        ((model, optimizer), {"probes": ["spin"]}, ValueError, "'spin'"),
        ((model, optimizer), {"head": "nose"}, ValueError, "head='nose'"),
        ((model, optimizer), {"probe_batch": rows[0][0]}, ValueError, "no labels"),
        ((model, optimizer), {"probe_batch": (rows[0][0], torch.full((16,), 9))}, ValueError, "label 9"),
        ((Net().requires_grad_(False), optimizer), {}, ValueError, "no trainable parameter"),
    ):
        with pytest.raises(error) as info:
            watch(*arguments, **given)
        assert words in str(info.value)
    assert model.training


def test_watch_is_used_once_and_takes_scalars(rows):
    model = Net()
    w = watch(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match="outside the with block"):
        w.loss(torch.tensor(1.0))
    with pytest.raises(RuntimeError, match="ready after the with block"):
        _ = w.trace
    with w:
        with pytest.raises(ValueError, match=r"loss has shape \(3,\)"):
            w.loss(torch.ones(3))
        with pytest.raises(TypeError, match="loss is a str"):
            w.loss("low")
        assert w.loss(0.5) == 0.5
    assert w.trace.losses == (0.5,)
    with pytest.raises(RuntimeError, match="used already"), w:
        pass


def test_toys_refuse_what_they_cannot_make():
    for arguments in (
        {"classes": 1},
        {"classes": 9},
        {"size": 0},
        {"batches": 0},
        {"keywords": 0.0},
        {"keywords": 1.5},
    ):
        (name,) = arguments
        with pytest.raises(ValueError, match=f"{name}="):
            toy_batches(**arguments)
    with pytest.raises(ValueError, match="classes=1"):
        tiny_distilbert(1)


def test_a_data_loader_with_a_bad_label_late_in_the_data_is_named(rows):
    """Only the first batches of a loader can be read before the run; later ones are named when they come, all restored."""
    y = torch.cat([y for _, y in rows])
    y[100] = 5
    loader = DataLoader(TensorDataset(torch.cat([x for x, _ in rows]), y), 16)
    model = Net()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"batches\[6\]: label 5 of row 4 is outside the head's 2 classes"):
        finetune(model, loader)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("mapped", [False, True])
def test_a_label_that_the_users_own_step_cannot_take_is_named(rows, mapped):
    """A step may map labels to others: then it is a remark, else an error that names batch, row and label."""
    (x, y), *others = rows
    y = y.clone()
    y[3] = 7
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    before = [p.detach().clone() for p in model.parameters()]

    def step(model, batch, optimizer, scheduler):
        x, y = batch
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y.clamp(max=1) if mapped else y)
        loss.backward()
        optimizer.step()
        return loss

    run = functools.partial(finetune, model, [*others[:2], (x, y)], optimizer=optimizer, step=step, steps=4)
    if mapped:
        (note,) = [note for note in run().notes if "outside the head's" in note]
        assert note.startswith("batches[2]: label 7 of row 3 is outside the head's 2 classes; unless step= maps it")
    else:
        with pytest.raises(ValueError, match=r"batches\[2\]: label 7 of row 3 is outside .*step= raised IndexError"):
            run()
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("error", [IndexError("row 12 is out of bounds"), RuntimeError("the file of row 7 is gone")])
def test_another_error_of_the_users_step_passes_through(rows, error):
    (x, y), *others = rows
    y = torch.full_like(y, 7)

    def step(model, batch, optimizer, scheduler):
        raise error

    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(type(error)) as raised:
        finetune(model, [*others[:2], (x, y)], optimizer=optimizer, step=step, steps=4)
    assert raised.value is error


# ------------------------------------------------------------------ streams
class Endless:
    def __iter__(self):
        return itertools.repeat((torch.zeros(2, 6), torch.tensor([0, 1])))


@pytest.mark.parametrize("kind", [Endless, lambda: iter(Endless())], ids=["re-iterable", "iterator"])
def test_held_out_batches_without_an_end(rows, kind):
    refused(rows, "eval_batches", "more than 1,000 batches", eval_batches=kind())


def test_a_thousand_held_out_batches_are_not_too_many(rows):
    many = list(itertools.islice(Endless(), 1000))
    assert finetune(Net(), rows, eval_batches=iter(many), steps=1).metrics[0].rows == 2000
    refused(rows, "eval_batches", "more than 1,000 batches", eval_batches=[*many, many[0]])


class Once:
    """Looks as if it could be read again, and goes on where it was."""

    def __init__(self, rows):
        self.rows = iter(rows)

    def __iter__(self):
        return self.rows


def test_a_re_iterable_that_can_be_read_only_once(rows):
    refused(Once(rows), "batches", "ends after 8 batches", "steps=9", steps=9)
    expected = finetune(lambda: Net(), rows, steps=8).losses
    assert finetune(lambda: Net(), Once(rows), steps=8).losses == expected  # none is lost to the probe


def test_a_model_made_under_inference_mode(rows):
    with torch.inference_mode():
        model = Net()
    refused(rows, "model", "'body.weight'", "inference_mode", model=model)
    with pytest.raises(ValueError, match="inference_mode"):
        watch(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_generator_over_a_stream_that_is_spent(rows):
    """Each reading is a new generator, and there is nothing left: that shows only when it ends."""

    class Spent(Once):
        def __iter__(self):
            yield from self.rows

    with pytest.raises(ValueError, match="can be read only once, and ended before batch 6"):
        finetune(Net(), Spent(rows), steps=9)


def test_more_labels_than_classes_names_num_labels_and_no_traceback_of_torch():
    from pytest_ftcheck.instruments.tiny_architectures import tiny
    from pytest_ftcheck.instruments.tiny_tasks import keyword_batches

    model = tiny("distilbert")
    batches = [{**b, "labels": torch.arange(len(b["labels"])) % 5} for b in keyword_batches(model.config)]
    message = r"batches\[0\]: label 4 of row \d+ is outside the head's 3 classes: .* Make the model with num_labels=5"
    for loss_fn in (None, lambda model, batch: model(**batch).loss):
        with pytest.raises(ValueError, match=message) as caught:
            finetune(model, batches, steps=2, loss_fn=loss_fn)
        assert caught.value.__suppress_context__
        assert caught.value.__cause__ is None


# ------------------------------------------------------------------ functions that take other arguments
def by_sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("argument", "given", "accepted"),
    [
        ("forward", {"forward": lambda model: model}, r"\(model, batch\) -> logits"),
        ("step", {"step": lambda m, b: 1, "optimizer": by_sgd}, r"\(model, batch, optimizer, scheduler\) -> loss"),
        ("optimizer", {"optimizer": lambda: 1}, r"\(model\) -> optimizer"),
        ("scheduler", {"scheduler": lambda: 1, "optimizer": by_sgd}, r"\(optimizer\) -> scheduler"),
        ("evaluate", {"evaluate": lambda: 1}, r"\(model\) -> float"),
        ("model", {"model": lambda config: Net()}, r"\(\) -> torch\.nn\.Module"),
        ("loss_fn", {"loss_fn": lambda batch: 1}, r"\(model, batch\) -> loss"),
    ],
)
def test_a_function_of_other_arguments_is_named_with_what_is_accepted(argument, given, accepted):
    batches = [(torch.randn(4, 6), torch.tensor([0, 1, 0, 1]))]
    model = given.pop("model", None) or Net()
    with pytest.raises(
        (TypeError, ValueError), match=rf"^{argument}=.* raised TypeError: .* It is called with .*{accepted}"
    ):
        finetune(model, batches, steps=1, probes=[], **given)


def test_what_such_a_function_raises_itself_is_not_changed():
    own = TypeError("mine")

    def step(model, batch, optimizer, scheduler):
        raise own

    with pytest.raises(TypeError) as raised:
        finetune(
            Net(), [(torch.randn(4, 6), torch.tensor([0, 1, 0, 1]))], steps=1, probes=[], step=step, optimizer=by_sgd
        )
    assert raised.value is own


class Unreadable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_an_exception_without_a_text_is_the_users(number):
    """Wherever it is raised: in the training it comes out, in a probe it is the probe's reason."""
    calls = itertools.count(1)

    def loss_fn(model, batch):
        if next(calls) == number:
            raise Unreadable
        return F.cross_entropy(model(batch[0]), batch[1])

    batches = [(torch.randn(4, 6), torch.tensor([0, 1, 0, 1]))]
    with contextlib.suppress(Unreadable):
        trace = finetune(Net(), batches, steps=2, loss_fn=loss_fn, probes=["loss"])
        assert trace.probe_loss.skipped in (None, "Unreadable: (its text raises RuntimeError)")
