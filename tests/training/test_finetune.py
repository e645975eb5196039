"""finetune reads any model and any batches, uses the user's own optimizer and loop, and records what happened."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from collections import UserDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pytest_ftcheck import (
    Recipe,
    Trace,
    check_all_finite,
    check_grads_nonzero,
    check_metric_improves,
    check_metric_matches_reference,
    finetune,
    tiny_distilbert,
    toy_batches,
)
from pytest_ftcheck.core import events

FAST = {"steps": 3, "lr": 1e-2}


class Net(nn.Module):
    """One tensor in, bare logits out."""

    def __init__(self, out=2, inside=8):
        super().__init__()
        self.body = nn.Linear(6, inside)
        self.classifier = nn.Linear(inside, out)

    def forward(self, x):
        return self.classifier(torch.relu(self.body(x)))


class Keywords(Net):
    """Takes ``x`` by name and maybe labels; ``kind`` says what it returns."""

    def __init__(self, kind, **size):
        super().__init__(**size)
        self.kind = kind

    def forward(self, x, labels=None, scale=1.0):
        from transformers.modeling_outputs import SequenceClassifierOutput

        logits = super().forward(x) * scale
        loss = F.cross_entropy(logits, labels) if labels is not None else None
        return {
            "output": lambda: SequenceClassifierOutput(loss=loss, logits=logits),
            "output without loss": lambda: SequenceClassifierOutput(logits=logits),
            "dict": lambda: {"loss": loss, "logits": logits},
            "dict without loss": lambda: {"logits": logits},
            "tuple": lambda: (loss, logits) if loss is not None else (logits,),
            "tuple without loss": lambda: (logits, torch.zeros(3)),
            "logits": lambda: logits,
        }[self.kind]()


def named(rows, label="labels"):
    return [{"x": x, label: y} for x, y in rows]


def healthy(trace, steps=3):
    """It trained: as many steps as asked for, a finite loss at each, every element of the head moved."""
    assert len(trace.steps) == len(trace.iterations) == len(trace.losses) == steps
    assert all(math.isfinite(v) for v in trace.losses)
    assert trace.stopped is None
    assert trace.backward_error is None
    assert all(t.motion.share_changed > 0.5 for t in trace.tensors if t.part == "head")
    assert Trace.from_json(trace.to_json()) == trace
    return trace


# ------------------------------------------------------------------ batches
def test_one_tensor_and_bare_logits(rows):
    reading = healthy(finetune(Net(), rows, **FAST)).reading
    assert dataclasses.astuple(reading) == (
        "one tensor",
        "bare logits",
        "cross-entropy of the logits",
        "single_label",
        2,
        "single label",
        "a class for each row",
    )


@pytest.mark.parametrize("label", ["labels", "label"])
def test_keywords_with_labels(rows, label):
    reading = healthy(finetune(Keywords("logits"), named(rows, label), **FAST)).reading
    assert reading.inputs.startswith("keywords x")
    assert reading.loss == "cross-entropy of the logits"


@pytest.mark.parametrize(
    ("kind", "outputs", "own"),
    [
        ("output", "SequenceClassifierOutput with .loss and .logits", True),
        ("output without loss", "SequenceClassifierOutput with .logits", False),
        ("dict", "a dict with .loss and .logits", True),
        ("dict without loss", "a dict with .logits", False),
        ("tuple", "a tuple of 2", True),
        ("tuple without loss", "a tuple of 2", False),
        ("logits", "bare logits", False),
    ],
)
def test_every_kind_of_output(rows, kind, outputs, own):
    reading = healthy(finetune(Keywords(kind), named(rows), **FAST)).reading
    assert reading.outputs == outputs
    assert reading.loss == ("the model's own" if own else "cross-entropy of the logits")
    assert (reading.task, reading.classes) == ("single_label", 2)


def test_a_mapping_beside_labels(rows):
    assert (
        healthy(finetune(Keywords("logits"), [({"x": x}, y) for x, y in rows], **FAST)).reading.task == "single_label"
    )


def test_batch_encoding():
    from transformers import BatchEncoding

    model = tiny_hf("DistilBert")
    batches = [
        BatchEncoding({"input_ids": ids, "attention_mask": mask, "labels": y}) for (ids, _, mask), y in toy_batches(3)
    ]
    trace = healthy(finetune(model, batches, **FAST))
    assert trace.reading.inputs == "keywords input_ids, attention_mask and labels"
    assert trace.reading.loss == "the model's own"


def test_any_mapping_is_a_batch(rows):
    healthy(finetune(Keywords("logits"), [UserDict(x=x, labels=y) for x, y in rows], **FAST))


def test_keys_that_the_model_does_not_take_are_left_out_and_named(rows):
    trace = finetune(Keywords("output"), [{"x": x, "labels": y, "idx": torch.arange(16)} for x, y in rows], **FAST)
    assert any("idx" in note for note in trace.notes)
    assert "idx" not in trace.reading.inputs


def test_one_tuple():
    trace = healthy(finetune(tiny_distilbert, toy_batches(4), **FAST))
    assert trace.reading.inputs == "one tuple of 3"


class Spread(Net):
    def forward(self, x, factor):
        return super().forward(x * factor)


def test_positional_arguments_from_a_tuple(rows):
    batches = [((x, torch.ones(16, 1)), y) for x, y in rows]
    assert healthy(finetune(Spread(), batches, **FAST)).reading.inputs == "2 positional arguments"


def test_three_element_batches_are_two_inputs_and_the_labels(rows):
    batches = [(x, torch.ones(16, 1), y) for x, y in rows]
    assert healthy(finetune(Spread(), batches, **FAST)).reading.inputs == "2 positional arguments"


def test_lists_are_batches_too(rows):
    """What a DataLoader's default collate gives."""
    batches = [[[x, torch.ones(16, 1)], y] for x, y in rows]
    healthy(finetune(Spread(), batches, **FAST))


def test_a_data_loader(rows):
    data = TensorDataset(torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows]))
    loader = DataLoader(data, batch_size=32, shuffle=True)
    trace = healthy(finetune(Net(), loader, steps=10, lr=1e-2), steps=10)  # 4 batches a pass: it is read again
    assert trace.probe_loss.rows == 64


def test_a_one_shot_generator_that_is_long_enough(rows):
    taken = []

    def endless():
        while True:
            for row in rows:
                taken.append(1)
                yield row

    healthy(finetune(Net(), endless(), **FAST))
    assert len(taken) == 3  # not one more than needed


def test_a_re_iterable_is_read_again_when_it_ends(rows):
    class Twice:
        def __iter__(self):
            return iter(rows[:2])

    healthy(finetune(Net(), Twice(), steps=5, lr=1e-2), steps=5)


def test_batches_come_in_order_and_in_turn(rows):
    seen = []

    def step(model, batch, optimizer, scheduler):
        seen.append(next(i for i, row in enumerate(rows[:3]) if row is batch))
        return 0.0

    finetune(Net(), rows[:3], step=step, steps=7)
    assert seen == [0, 1, 2, 0, 1, 2, 0]


# ------------------------------------------------------------------ losses and tasks
def test_a_loss_fn_that_returns_the_loss(rows):
    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)

    trace = healthy(finetune(Net(), rows, loss_fn=loss_fn, **FAST))
    assert trace.reading.loss == "the user's loss_fn"
    assert [m.name for m in trace.metrics] == ["accuracy", "precision", "recall"]


def test_a_loss_fn_that_returns_loss_and_logits(rows):
    def loss_fn(model, batch):
        logits = model(batch["x"] * 1.0)
        return F.cross_entropy(logits, batch["labels"]), logits

    class Odd(Net):
        def forward(self, z):  # not the name of the batch's key: only loss_fn knows how to call it
            return super().forward(z)

    trace = healthy(finetune(Odd(), named(rows), loss_fn=loss_fn, **FAST))
    assert trace.reading.outputs == "(loss, logits) from the loss_fn"
    assert trace.reading.task == "single_label"
    assert trace.metrics
    assert trace.probe_loss.points[0].reference == pytest.approx(trace.probe_loss.points[0].loss)


def test_a_loss_fn_may_do_without_labels(rows):
    trace = healthy(finetune(Net(), [x for x, _ in rows], loss_fn=lambda m, x: m(x).square().mean(), **FAST))
    assert trace.metrics == ()
    assert trace.reading.task is None


def test_forward_makes_the_logits(rows):
    trace = healthy(
        finetune(Keywords("tuple without loss"), named(rows), forward=lambda m, b: 2 * m(b["x"])[0], **FAST)
    )
    assert trace.reading.inputs == "the user's forward"
    assert trace.reading.loss == "cross-entropy of the logits"


def test_forward_is_needed_where_no_logits_are_in_the_output(rows):
    class Nested(Net):
        def forward(self, x):
            return {"answer": {"scores": super().forward(x)}}

    with pytest.raises(ValueError, match="pass forward="):
        finetune(Nested(), rows, **FAST)
    healthy(finetune(Nested(), rows, forward=lambda m, b: m(b[0])["answer"]["scores"], **FAST))


def hot(rows):
    return [(x, (x[:, :3] > 0)) for x, _ in rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_multi_hot_labels_get_binary_cross_entropy(rows, dtype):
    batches = [(x, y.to(dtype)) for x, y in hot(rows)]
    trace = healthy(finetune(Net(out=3), batches, **FAST))
    assert (trace.reading.task, trace.reading.classes) == ("multi_label", 3)
    assert trace.reading.loss == "binary cross-entropy of the logits, one a tag"
    assert trace.probe_loss.points[0].loss == pytest.approx(0.69, abs=0.2)


@pytest.mark.parametrize("shape", [(16,), (16, 1)])
def test_float_labels_get_the_squared_error(rows, shape):
    trace = healthy(finetune(Net(out=1), [(x, x[:, 0].reshape(shape)) for x, _ in rows], **FAST))
    assert trace.reading.task == "regression"
    assert trace.reading.loss == "mean squared error"
    assert [m.name for m in trace.metrics] == ["r_squared"]
    assert trace.metrics[0].baseline == pytest.approx(0)


def test_the_squared_error_does_not_broadcast(rows):
    """Logits (16, 1) against labels (16,) would make a 16 x 16 table of differences."""
    torch.manual_seed(0)
    model = Net(out=1)
    batches = [(x, x[:, 0]) for x, _ in rows]
    trace = finetune(model, batches, probes=["loss"], **FAST)
    with torch.no_grad():
        by_hand = sum(F.mse_loss(model(x).squeeze(-1), y) for x, y in batches[:2]) / 2
    assert trace.probe_loss.points[0].loss == pytest.approx(float(by_hand))


def test_one_logit_and_whole_labels_get_binary_cross_entropy(rows):
    trace = healthy(finetune(Net(out=1), rows, **FAST))
    assert (trace.reading.task, trace.reading.classes) == ("single_label", 2)
    assert trace.reading.loss == "binary cross-entropy of one logit"
    assert {m.name for m in trace.metrics} == {"accuracy", "precision", "recall"}


@pytest.mark.parametrize(("values", "noted"), [([0.0, 1.0], True), ([0.0, 1.0, 2.0], False), ([0.0, 0.5], False)])
def test_floats_of_one_output_are_a_regression_and_said_to_be_all_0_or_1(rows, values, noted):
    labels = torch.tensor(values).repeat(16)[:16]
    batches = [(x, labels[: len(x)]) for x, _ in rows]
    model = Net()
    model.classifier = torch.nn.Linear(model.classifier.in_features, 1)
    trace = finetune(model, batches, steps=2)
    assert trace.reading.loss == "mean squared error"
    assert any("floats that are all 0 or 1" in note for note in trace.notes) == noted


class Squashed(Net):
    """Ends in a sigmoid, for ``BCELoss``."""

    def forward(self, x):
        return super().forward(x).sigmoid()


@pytest.mark.parametrize("tags", [1, 2])
def test_probabilities_say_yes_above_a_half(rows, tags):
    def targets(y):
        return F.one_hot(y, 2).float() if tags == 2 else y

    def loss_fn(model, batch):
        out = model(batch[0])
        return F.binary_cross_entropy(out if tags == 2 else out.squeeze(-1), batch[1].float())

    def evaluate(model):
        with torch.no_grad():
            hits = [((model(x).reshape(y.shape) > 0.5) == (y > 0.5)).float() for x, y in data]
        return float(torch.cat(hits).mean())

    data = [(x, targets(y)) for x, y in rows]
    trace = finetune(Squashed(tags), data, loss_fn=loss_fn, eval_batches=data, evaluate=evaluate, lr=3e-2, steps=40)
    assert next(m for m in trace.metrics if m.name == "accuracy").last > 0.8
    assert check_metric_improves(trace).status == "pass"
    assert check_metric_matches_reference(trace).status == "pass"


def test_float_zeros_and_ones_with_one_logit_are_a_regression(rows):
    assert finetune(Net(out=1), [(x, y.float()) for x, y in rows], **FAST).reading.task == "regression"


def test_token_classification_leaves_out_minus_100():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 8)
            self.classifier = nn.Linear(8, 3)

        def forward(self, ids):
            return self.classifier(self.embed(ids))

    ids = torch.randint(10, (4, 7), generator=torch.Generator().manual_seed(0))
    labels = torch.where(ids > 2, ids % 3, -100)
    torch.manual_seed(0)
    model = Tokens()
    trace = healthy(finetune(model, [(ids, labels)], **FAST))
    assert (trace.reading.task, trace.reading.classes) == ("single_label", 3)
    with torch.no_grad():
        by_hand = F.cross_entropy(model(ids)[labels >= 0], labels[labels >= 0])
    assert trace.probe_loss.points[0].loss == pytest.approx(float(by_hand))
    assert trace.metrics[0].rows == int((labels >= 0).sum())


def test_tokens_padded_to_different_widths_have_metrics_too():
    from transformers import DistilBertConfig, DistilBertForTokenClassification

    config = DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=16)
    torch.manual_seed(0)
    model = DistilBertForTokenClassification(config)
    batches = []
    for width in (5, 9):
        ids = torch.randint(1, 50, (4, width))
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids % 2})
    trace = healthy(finetune(model, batches, **FAST))
    assert trace.metrics[0].rows == 4 * (5 + 9)


def test_the_reference_loss_stands_beside_the_users(rows):
    trace = finetune(Net(), rows, loss_fn=lambda m, b: 3 * F.cross_entropy(m(b[0]), b[1]), **FAST)
    for point in trace.probe_loss.points:
        assert point.loss == pytest.approx(3 * point.reference, rel=1e-5)


# ------------------------------------------------------------------ optimizers and schedulers
def test_the_recipes_optimizer_and_schedule(rows):
    trace = finetune(Net(), rows, steps=10, lr=1e-3, warmup=0.2, weight_decay=0.1)
    assert (trace.optimizer.name, trace.optimizer.family) == ("AdamW", "adam")
    assert trace.optimizer.groups[0].weight_decay == 0.1
    assert [s.lrs[0] for s in trace.steps] == pytest.approx([trace.recipe.lr_at(i) for i in range(10)])
    assert trace.optimizer.groups[0].lr_sum == pytest.approx(trace.recipe.lr_sum())
    assert trace.tensor("classifier.weight").lr_sum == pytest.approx(trace.recipe.lr_sum())


def test_an_optimizer_that_this_torch_does_not_have(monkeypatch):
    monkeypatch.delattr(torch.optim, "Adafactor")  # as in torch 2.4
    with pytest.raises(
        ValueError, match=r"optimizer='adafactor': torch .* has no torch.optim.Adafactor; upgrade torch, name another"
    ):
        finetune(tiny_distilbert, toy_batches(), optimizer="adafactor", steps=1)


@pytest.mark.parametrize(
    "name", ["adamw", "adam", "nadam", "radam", "adamax", "adagrad", "adafactor", "rmsprop", "sgd"]
)
def test_every_named_optimizer(rows, name):
    trace = healthy(finetune(Net(), rows, optimizer=name, **FAST))
    assert trace.optimizer.name.lower() == name
    assert trace.recipe.optimizer == name


def test_an_optimizer_instance_is_the_one_that_steps(rows):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    stepped = []
    optimizer.register_step_post_hook(lambda *a: stepped.append(1))
    trace = healthy(finetune(model, rows, optimizer=optimizer, steps=3))
    assert len(stepped) == 3
    assert (trace.optimizer.name, trace.optimizer.family) == ("SGD", "sgd")
    assert [s.lrs for s in trace.steps] == [(0.1,)] * 3  # no schedule of ours on the user's optimizer
    assert trace.optimizer.groups[0].settings["momentum"] == 0.9


def test_an_optimizer_callable(rows):
    def make(model):
        return torch.optim.Adam(
            [{"params": model.body.parameters(), "lr": 1e-4}, {"params": model.classifier.parameters()}], lr=1e-2
        )

    trace = healthy(finetune(Net, rows, optimizer=make, steps=3))
    assert [g.lr_peak for g in trace.optimizer.groups] == [1e-4, 1e-2]
    assert trace.tensor("body.weight").group == 0
    assert trace.tensor("classifier.weight").lr_sum == pytest.approx(3e-2)


def test_a_scheduler_callable(rows):
    trace = finetune(
        Net(),
        rows,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=1.0),
        scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
        steps=3,
    )
    assert [s.lrs[0] for s in trace.steps] == [1.0, 0.5, 0.25]


def test_a_scheduler_beside_the_recipes_optimizer(rows):
    trace = finetune(Net(), rows, lr=1.0, scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.1), steps=3)
    assert [s.lrs[0] for s in trace.steps] == pytest.approx([1.0, 0.1, 0.01])


def test_a_scheduler_instance_goes_on_from_where_it_is(rows):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    scheduler.step()
    trace = finetune(model, rows, optimizer=optimizer, scheduler=scheduler, steps=2)
    assert [s.lrs[0] for s in trace.steps] == [0.5, 0.25]


def test_reduce_on_plateau_gets_the_loss(rows):
    trace = finetune(
        Net(),
        rows,
        loss_fn=lambda m, b: 0 * m(b[0]).sum() + 1,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=1.0),
        scheduler=lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
        steps=4,
    )
    assert [s.lrs[0] for s in trace.steps] == [1.0, 1.0, 0.5, 0.25]


def test_lbfgs_gets_its_closure(rows):
    torch.manual_seed(0)  # of one seed in ten a hidden unit is dead, and its weights stay
    trace = finetune(Net(), rows[:1], optimizer=lambda m: torch.optim.LBFGS(m.parameters(), max_iter=5), steps=3)
    assert trace.optimizer.name == "LBFGS"
    assert len(trace.steps) == 3
    assert trace.losses[-1] < trace.losses[0]
    assert trace.tensor("classifier.weight").gradients.none == 0
    assert trace.tensor("classifier.weight").motion.share_changed == 1


def test_the_scheduler_is_stepped_beside_lbfgs_too(rows):
    trace = finetune(
        Net(),
        rows[:1],
        optimizer=lambda m: torch.optim.LBFGS(m.parameters(), lr=1.0, max_iter=2),
        scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
        steps=3,
    )
    assert [s.lrs[0] for s in trace.steps] == [1.0, 0.5, 0.25]


def test_gradients_are_clipped_and_both_norms_are_kept(rows):
    trace = finetune(Net(), rows, loss_fn=lambda m, b: 1e3 * F.cross_entropy(m(b[0]), b[1]), max_grad_norm=0.5, **FAST)
    for step in trace.steps:
        assert step.grad_norm == pytest.approx(0.5, rel=1e-3)
        assert step.grad_norm_unclipped > 10
    assert finetune(Net(), rows, max_grad_norm=None, **FAST).steps[0].grad_norm_unclipped is None


def test_an_optimizer_over_another_model_is_a_trace_not_an_error(rows):
    other = Net()
    trace = finetune(Net(), rows, optimizer=lambda m: torch.optim.Adam(other.parameters()), steps=3)
    assert trace.optimizer.groups[0].not_in_model == 4
    assert trace.optimizer.groups[0].tensors == 0
    assert trace.tensor("classifier.weight").group is None
    assert trace.tensor("classifier.weight").motion.share_changed == 0


# ------------------------------------------------------------------ step=
def test_a_loop_body_of_ones_own(rows):
    def step(model, batch, optimizer, scheduler):
        model.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss

    trace = healthy(finetune(Net(), rows, step=step, steps=4, lr=1e-2), steps=4)
    assert [s.lrs[0] for s in trace.steps] == pytest.approx([trace.recipe.lr_at(i) for i in range(4)])
    assert all(i.training for i in trace.iterations)


def test_the_users_step_is_not_touched(rows):
    """No train(), no zero_grad(), no scheduler step, no clipping of ours: gradients pile up and eval mode stays."""
    model = Net().eval()

    def step(model, batch, optimizer, scheduler):
        assert not model.training
        loss = 1e3 * F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss.item()

    trace = finetune(model, rows[:1], step=step, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=1e-9), steps=3)
    norms = trace.tensor("classifier.weight").grad_norms
    assert norms[1] == pytest.approx(2 * norms[0], rel=1e-2)
    assert norms[2] == pytest.approx(3 * norms[0], rel=1e-2)
    assert trace.steps[0].grad_norm > 1
    assert not any(s.training for s in trace.steps)


def test_accumulation_shows_iterations_without_a_step(rows):
    count = iter(range(100))

    def step(model, batch, optimizer, scheduler):
        loss = F.cross_entropy(model(batch[0]), batch[1]) / 4
        loss.backward()
        if next(count) % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
        return loss * 4

    trace = finetune(Net(), rows, step=step, steps=8, lr=1e-2)
    assert [i.step for i in trace.iterations] == [None, None, None, 0, None, None, None, 1]
    assert [s.iteration for s in trace.steps] == [3, 7]
    assert len(trace.probe_loss.descents) == 2
    assert len(trace.losses) == 8


def test_a_gradient_scaler_in_ones_own_step(rows):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)

    def step(model, batch, optimizer, scheduler):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    plain = finetune(lambda: Net(), rows, max_grad_norm=None, schedule="constant", warmup=0, **FAST)
    scaled = finetune(lambda: Net(), rows, step=step, **FAST, schedule="constant", warmup=0)
    assert scaled.tensor("body.weight").grad_norms == pytest.approx(plain.tensor("body.weight").grad_norms, rel=1e-3)


@pytest.mark.parametrize("returned", [None, "a string"])
def test_a_step_may_return_no_loss(rows, returned):
    def step(model, batch, optimizer, scheduler):
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        return returned

    trace = finetune(Net(), rows, step=step, **FAST)
    assert trace.losses == ()
    assert len(trace.steps) == 3


def test_several_optimizer_steps_in_one_iteration(rows):
    def step(model, batch, optimizer, scheduler):
        for _ in range(3):
            loss = F.cross_entropy(model(batch[0]), batch[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss

    trace = finetune(Net(), rows, step=step, steps=2, lr=1e-2)
    assert [(i.step, i.steps) for i in trace.iterations] == [(2, 3), (5, 3)]


def test_batches_that_only_the_step_can_read(rows):
    def step(model, batch, optimizer, scheduler):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch.x), batch.y)
        loss.backward()
        optimizer.step()
        return loss

    @dataclasses.dataclass
    class Batch:
        x: torch.Tensor
        y: torch.Tensor

    trace = healthy(finetune(Net(), [Batch(*r) for r in rows], step=step, **FAST))
    assert trace.probe_loss is None
    assert any("no probes" in note for note in trace.notes)


# ------------------------------------------------------------------ device, dtype, time
def test_dtype_converts_the_parameters(rows):
    trace = healthy(finetune(Net(), [(x.double(), y) for x, y in rows], dtype="float64", **FAST))
    assert {t.dtype for t in trace.tensors} == {"float64"}
    assert trace.environment["dtype"] == "float64"


def test_the_device_is_named(rows):
    assert finetune(Net(), rows, device="cpu", **FAST).environment["device"] == "cpu"


def test_autocast_runs_the_forward_pass_in_bfloat16(rows):
    seen = set()

    class Looks(Net):
        def forward(self, x):
            out = super().forward(x)
            if self.training:
                seen.add(out.dtype)
            return out

    trace = healthy(finetune(Looks(), rows, autocast="bfloat16", **FAST))
    assert seen == {torch.bfloat16}
    assert {t.dtype for t in trace.tensors} == {"float32"}


def test_max_seconds_ends_the_run_and_says_so(rows):
    trace = finetune(Net(), rows, steps=100_000, lr=1e-4, max_seconds=0.2)
    assert 0 < len(trace.steps) < 100_000
    assert "max_seconds=0.2" in trace.stopped
    assert trace.probe_loss.points[-1].step == len(trace.steps)


def test_a_loss_that_stays_nan_ends_the_run(rows):
    trace = finetune(Net(), rows, loss_fn=lambda m, b: m(b[0]).sum() * math.nan, steps=50)
    assert len(trace.iterations) == 3
    assert "not finite" in trace.stopped
    assert trace.tensor("classifier.weight").gradients.first_nonfinite == 0


def test_a_warm_up_longer_than_the_run_is_a_note(rows):
    assert any("warm-up of 50 steps" in n for n in finetune(Net(), rows, steps=3, warmup=50).notes)


# ------------------------------------------------------------------ metrics
def test_own_metrics_replace_ours(rows):
    def share_of_ones(logits, labels):
        assert logits.shape == (32, 2)
        assert labels.shape == (32,)
        return (logits.argmax(-1) == 1).float().mean()

    trace = finetune(
        Net(), rows, metrics={"ones": share_of_ones, "zeros": lambda a, b: 1 - share_of_ones(a, b)}, **FAST
    )
    assert [m.name for m in trace.metrics] == ["ones", "zeros"]
    assert trace.metrics[0].last == pytest.approx(1 - trace.metrics[1].last)


def test_a_metric_that_fails_is_a_note_not_the_end(rows):
    def broken(logits, labels):
        raise ValueError("nope")

    trace = healthy(finetune(Net(), rows, metrics={"broken": broken}, **FAST))
    assert trace.metrics == ()
    assert any("broken" in n and "nope" in n for n in trace.notes)


def test_held_out_batches_are_what_the_metrics_are_taken_on(rows):
    trace = finetune(Net(), rows[:2], eval_batches=rows[2:7], **FAST)
    assert {(m.rows, m.source) for m in trace.metrics} == {(80, "held-out rows")}
    trace = finetune(Net(), rows[:2], **FAST)
    assert {(m.rows, m.source) for m in trace.metrics} == {(32, "training rows")}


def test_held_out_batches_may_come_from_a_generator_or_a_loader(rows):
    assert finetune(Net(), rows, eval_batches=(r for r in rows[:3]), **FAST).metrics[0].rows == 48
    data = TensorDataset(torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows]))
    assert finetune(Net(), rows, eval_batches=DataLoader(data, 32), **FAST).metrics[0].rows == 128


def test_evaluate_is_recorded_beside_ours(rows):
    def evaluate(model):
        return float(model.classifier.weight.detach().norm())

    model = Net()
    trace = finetune(model, rows, evaluate=evaluate, **FAST)
    ours = next(m for m in trace.metrics if m.name == "evaluate")
    assert ours.first == pytest.approx(evaluate(model))
    assert ours.last != ours.first
    assert (ours.rows, ours.source) == (0, "the user's own")
    assert len(trace.metrics) == 4


def test_an_evaluate_that_forgets_train_does_not_stop_the_dropout(rows):
    def evaluate(model):
        model.eval()
        return 0.0

    assert all(s.training for s in finetune(Net(), rows, evaluate=evaluate, **FAST).steps)


def test_accuracy_and_its_baseline_are_right(rows):
    torch.manual_seed(0)
    model = Net()
    trace = finetune(model, rows, **FAST)
    x, y = torch.cat([r[0] for r in rows[:2]]), torch.cat([r[1] for r in rows[:2]])
    accuracy = next(m for m in trace.metrics if m.name == "accuracy")
    with torch.no_grad():
        assert accuracy.first == pytest.approx(float((model(x).argmax(-1) == y).float().mean()))
    assert accuracy.baseline == pytest.approx(max(float(y.float().mean()), 1 - float(y.float().mean())))
    assert accuracy.actual == tuple(torch.bincount(y).tolist())
    assert sum(accuracy.predicted) == 32


def test_learning_shows_in_every_number(rows):
    trace = finetune(lambda: Net(inside=16), rows, steps=60, lr=2e-2, eval_batches=rows)
    accuracy = next(m for m in trace.metrics if m.name == "accuracy")
    assert accuracy.last > 0.9
    assert accuracy.p_value == pytest.approx(1 / 500)
    assert trace.probe_loss.points[-1].loss < 0.5 * trace.probe_loss.points[0].loss
    assert sum(d.after < d.before for d in trace.probe_loss.descents) >= 18


# ------------------------------------------------------------------ probes
def test_the_probe_is_taken_with_dropout_off():
    class Drops(Net):
        def forward(self, x):
            return self.classifier(F.dropout(torch.relu(self.body(x)), 0.5, self.training))

    x, y = torch.randn(16, 6), torch.arange(16) % 2
    torch.manual_seed(0)
    model = Drops()
    trace = finetune(model, [(x, y)], lr=0.0, steps=4, weight_decay=0.0)
    with torch.no_grad():
        quiet = float(F.cross_entropy(model.eval()(x), y))
    assert {round(p.loss, 6) for p in trace.probe_loss.points} == {round(quiet, 6)}
    assert len(set(trace.losses)) == 4
    assert [p.step for p in trace.probe_loss.points] == [0, 1, 2, 3, 4]


def test_descents_look_at_the_steps_own_batch(rows):
    trace = finetune(Net(), rows, steps=6, lr=1e-3)
    assert [d.step for d in trace.probe_loss.descents] == list(range(6))
    # without dropout the training loss of a batch is its loss just before the step
    assert [d.before for d in trace.probe_loss.descents] == pytest.approx(list(trace.losses))


@pytest.mark.parametrize("wanted", [(), ("loss",), ("loss", "descent"), ("metrics",), ("noise",)])
def test_only_the_probes_that_are_asked_for(rows, wanted):
    trace = finetune(Net(), rows, probes=wanted, **FAST)
    assert (trace.probe_loss is not None) == ("loss" in wanted)
    assert bool(trace.probe_loss and trace.probe_loss.descents) == ("descent" in wanted)
    assert bool(trace.metrics) == ("metrics" in wanted)


def test_key_biases_are_distinguished_from_real_gradients():
    """softmax does not see a constant added to all keys' scores: the true gradient of a key bias is zero."""
    trace = finetune(tiny_distilbert, toy_batches(4), steps=5, lr=1e-3)
    keys = [t for t in trace.tensors if t.name.endswith("k_lin.bias")]
    assert len(keys) == 2
    assert all(t.gradients.noise > 0.05 for t in keys)
    others = [t for t in trace.tensors if t not in keys and t.gradients.noise is not None]
    assert all(t.gradients.noise < 0.05 for t in others)


# ------------------------------------------------------------------ heads
CONFIG = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 2,
    "pad_token_id": 0,
}
ARCHITECTURES = {
    "DistilBert": (
        {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "vocab_size": 200},
        ("pre_classifier", "classifier"),
    ),
    "Bert": (CONFIG, ("classifier",)),
    "Roberta": ({**CONFIG, "max_position_embeddings": 64}, ("classifier",)),
    "Electra": ({**CONFIG, "embedding_size": 32}, ("classifier",)),
    "Albert": ({**CONFIG, "embedding_size": 32}, ("classifier",)),
    "GPT2": ({"vocab_size": 200, "n_embd": 32, "n_layer": 1, "n_head": 2, "pad_token_id": 0}, ("score",)),
    "Llama": (CONFIG, ("score",)),
    "XLNet": (
        {"vocab_size": 200, "d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 32, "pad_token_id": 0},
        ("sequence_summary", "logits_proj"),
    ),
    "Funnel": (
        {
            "vocab_size": 200,
            "d_model": 32,
            "block_sizes": [1],
            "n_head": 2,
            "d_head": 16,
            "d_inner": 32,
            "num_decoder_layers": 1,
        },
        ("classifier",),
    ),
    "Bart": (
        {
            "vocab_size": 200,
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "pad_token_id": 0,
            "eos_token_id": 3,
        },
        ("classification_head",),
    ),
}


def tiny_hf(name):
    import transformers

    torch.manual_seed(0)
    settings, _ = ARCHITECTURES[name]
    config = getattr(transformers, f"{name}Config")(**settings)
    return getattr(transformers, f"{name}ForSequenceClassification")(config)


def hf_batches(count=2):
    return [{"input_ids": ids, "attention_mask": mask, "labels": y} for (ids, _, mask), y in toy_batches(count, 8)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_head_of_every_architecture_is_found(name):
    trace = finetune(tiny_hf(name), hf_batches(), steps=2, lr=1e-3)
    assert set(trace.head) == set(ARCHITECTURES[name][1])
    assert {t.part for t in trace.tensors} == {"head", "base"}
    assert trace.reading.loss == "the model's own"
    assert len(trace.steps) == 2


def test_a_question_answering_head_is_found():
    from transformers import DistilBertForQuestionAnswering

    from pytest_ftcheck.instruments.parameter_roles import find_head

    config = tiny_hf("DistilBert").config
    assert find_head(DistilBertForQuestionAnswering(config), None) == ("qa_outputs",)


def test_start_and_end_positions_need_a_loss_fn_and_then_work():
    from transformers import DistilBertForQuestionAnswering

    model = DistilBertForQuestionAnswering(tiny_hf("DistilBert").config)
    batches = [
        {"input_ids": b["input_ids"], "start_positions": b["labels"], "end_positions": b["labels"] + 1}
        for b in hf_batches()
    ]
    trace = finetune(model, batches, loss_fn=lambda m, b: m(**b).loss, steps=2, lr=1e-3)
    assert len(trace.steps) == 2
    assert trace.head == ("qa_outputs",)


def test_peft_like_names_lead_to_the_shallowest_head():
    class Saved(nn.Module):
        def __init__(self):
            super().__init__()
            self.original_module = nn.Linear(8, 2)
            self.modules_to_save = nn.ModuleDict({"default": nn.Linear(8, 2)})

        def forward(self, h):
            return self.modules_to_save["default"](h)

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(6, 8)
            self.classifier = Saved()

        def forward(self, x):
            return self.classifier(self.body(x))

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_model = nn.Module()
            self.base_model.model = Inner()

        def forward(self, x):
            return self.base_model.model(x)

    trace = finetune(Wrapped(), [(torch.randn(8, 6), torch.arange(8) % 2)], **FAST)
    assert trace.head == ("base_model.model.classifier",)
    assert trace.tensor("base_model.model.classifier.modules_to_save.default.weight").part == "head"


def test_a_head_behind_the_base_model_is_found_whatever_its_name():
    from transformers import DistilBertModel

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = DistilBertModel(tiny_hf("DistilBert").config)
            self.verdict = nn.Linear(32, 2)

        def forward(self, input_ids, attention_mask):
            return self.verdict(self.encoder(input_ids, attention_mask=attention_mask)[0][:, 0])

    trace = finetune(Own(), hf_batches(), steps=2)
    assert trace.head == ("verdict",)
    assert trace.reading.inputs == "keywords input_ids, attention_mask"


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.second(self.first(x))


def test_an_unclear_head_is_an_error_that_lists_the_candidates(rows):
    with pytest.raises(ValueError, match=r"head=None: no head found in Plain.*pass head=.*first, second"):
        finetune(Plain(), rows, **FAST)


@pytest.mark.parametrize("head", ["second", "second.", ["second"], ("second.weight", "second.bias")])
def test_a_head_may_be_named(rows, head):
    trace = finetune(Plain(), rows, head=head, **FAST)
    assert {t.name for t in trace.tensors if t.part == "head"} == {"second.weight", "second.bias"}


def test_an_unknown_head_is_an_error_that_lists_the_candidates(rows):
    with pytest.raises(ValueError, match=r"head='third'.*candidates: first, second"):
        finetune(Plain(), rows, head="third", **FAST)


# ------------------------------------------------------------------ seeds
def test_the_same_seed_gives_the_same_numbers_bit_for_bit():
    def run(seed):
        random.random(), torch.rand(7)  # whatever state the caller is in
        return plain(finetune(tiny_distilbert, toy_batches(4), steps=4, lr=1e-3, seed=seed))

    first = run(3)
    assert run(3) == first
    assert run(4) != first


def test_a_shuffling_loader_is_seeded_too(rows):
    data = TensorDataset(torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows]))
    model = Net()

    def run(seed=0):
        return finetune(model, DataLoader(data, 16, shuffle=True), seed=seed, **FAST).losses

    first = run()
    assert run() == first
    assert run(1) != first


def plain(trace):
    return dataclasses.replace(trace, seconds=0.0, training_seconds=0.0)


def test_a_factory_is_called_under_the_seed_and_an_instance_is_used_as_it_is(rows):
    made = [finetune(Net, rows, seed=s, lr=0.0, steps=1).tensor("body.weight").first.std for s in (0, 0, 1)]
    assert made[0] == made[1] != made[2]


def test_watching_does_not_change_the_training(rows):
    """The recipe's own loop, written out by hand, gives the same losses to the last bit."""

    class Drops(Net):
        def forward(self, x):
            return self.classifier(F.dropout(torch.relu(self.body(x)), 0.5, self.training))

    recipe = Recipe(steps=5, lr=1e-2, seed=7)
    trace = finetune(Drops, rows, recipe)
    torch.manual_seed(7)
    model = Drops()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    losses = []
    for i, (x, y) in enumerate(rows[:5]):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(i)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert list(trace.losses) == losses


# ------------------------------------------------------------------ the rest
def test_fields_of_the_recipe_are_keywords(rows):
    trace = finetune(Net(), rows, Recipe(lr=1e-3, steps=9), steps=2)
    assert (trace.recipe.lr, trace.recipe.steps) == (1e-3, 2)
    assert trace.source == "finetune"


def test_shared_parameters_are_one_tensor(rows):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 6, bias=False)
            self.b = nn.Linear(6, 6, bias=False)
            self.b.weight = self.a.weight
            self.classifier = nn.Linear(6, 2)

        def forward(self, x):
            return self.classifier(self.b(torch.tanh(self.a(x))))

    trace = healthy(finetune(Tied(), rows, **FAST))
    assert len(trace.tensors) == 3
    assert trace.tensor("b.weight") is trace.tensor("a.weight")
    assert trace.tensor("a.weight").aliases == ("b.weight",)


def test_a_parameter_of_no_element_or_no_gradient_does_no_harm(rows):
    class Odd(Net):
        def __init__(self):
            super().__init__()
            self.empty = nn.Parameter(torch.zeros(0))
            self.scalar = nn.Parameter(torch.tensor(1.0))
            self.unused = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return super().forward(x) * self.scalar

    trace = healthy(finetune(Odd(), rows, **FAST))
    assert trace.tensor("unused").gradients.none == 3
    assert trace.tensor("scalar").motion.share_changed == 1


def test_the_listener_hears_progress_and_the_trace(rows):
    heard = []

    class Ear:
        def progress(self, done, total, loss):
            heard.append((done, total))

        def traced(self, trace):
            heard.append(trace)

    with events.listening(Ear()):
        trace = finetune(Net(), rows, **FAST)
    assert heard.pop() is trace
    assert [done for done, _ in heard] == sorted({done for done, _ in heard})
    assert heard[-1] == (3, 3)
    assert {total for _, total in heard} == {3}


def test_a_trace_of_many_steps_stays_small(rows):
    trace = finetune(nn.Sequential(nn.Linear(6, 2)), rows, head="0", steps=2500, lr=1e-4, probes=())
    assert len(trace.steps) == 2500
    assert len(trace.recorded) <= 1024
    assert len(trace.tensors[0].grad_norms) == len(trace.recorded)
    assert len(trace.to_json()) < 2e6


def test_twenty_steps_of_the_default_take_about_a_second():
    trace = finetune(tiny_distilbert, toy_batches())
    assert len(trace.steps) == 20
    assert trace.seconds < 10  # on any machine, however busy; about 0.5 s on two idle cores


# ------------------------------------------------------------------ clipping
class Partly(Net):
    """One parameter whose gradient is NaN, though the loss is finite."""

    def __init__(self):
        super().__init__()
        self.extra = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return super().forward(x) + torch.sqrt(self.extra * 0).sum()


def test_clipping_does_not_spread_a_nan(rows):
    trace = finetune(Partly(), rows, steps=1, lr=1e-2, max_grad_norm=1.0)
    assert {t.name: t.gradients.nonfinite for t in trace.tensors if t.gradients.nonfinite} == {"extra": 1}
    verdict = check_all_finite(trace)
    assert verdict.status == "fail"
    assert "nearest to the loss in extra" in verdict.headline


def test_sparse_gradients_are_clipped(rows):
    model = nn.Sequential(nn.Embedding(50, 4, sparse=True), nn.Flatten(), nn.Linear(8, 2))
    batches = [(torch.tensor([[1, 2], [1, 2], [3, 1]]), torch.tensor([0, 1, 0]))]
    trace = finetune(
        model,
        batches,
        head="2",
        loss_fn=lambda m, b: 1e3 * F.cross_entropy(m(b[0]), b[1]),
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=1e-2),
        max_grad_norm=0.5,
        steps=2,
    )
    for step in trace.steps:
        assert step.grad_norm == pytest.approx(0.5, rel=1e-3)
        assert step.grad_norm_unclipped > 10
    assert trace.tensor("0.weight").motion.share_changed == pytest.approx(3 / 50)


def test_clipping_is_torchs(rows):
    torch.manual_seed(0)
    model = Net().double()
    twin = copy.deepcopy(model)
    batches = [(x.double(), y) for x, y in rows]
    kept = {}

    def evaluate(m):
        kept.update({n: p.detach().clone() for n, p in m.named_parameters()})
        return 0.0

    finetune(
        model,
        batches,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.5),
        max_grad_norm=0.1,
        steps=4,
        evaluate=evaluate,
    )
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.5)
    for x, y in batches[:4]:
        optimizer.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        optimizer.step()
    for name, p in twin.named_parameters():
        assert torch.allclose(kept[name], p, rtol=1e-5, atol=1e-8)


# ------------------------------------------------------------------ modes
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("asleep", [True, False])
def test_a_frozen_module_that_came_in_eval_stays_in_it(rows, frozen, asleep):
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.1)), nn.Linear(8, 2))
    model[0].requires_grad_(not frozen)
    if asleep:
        model.eval()
    modes = []
    model.register_forward_hook(lambda m, *_: modes.append([part.training for part in (m, *m[0], m[1])]))
    trace = finetune(model, rows, head="1", steps=2, probes=[])
    awake = not (frozen and asleep)
    assert [True, awake, awake, awake, True] in modes
    assert next(b for b in trace.buffers if b.name.endswith("running_mean")).unchanged is not awake


# ------------------------------------------------------------------ causal language models
def causal(shift, tied=True):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2, tie_word_embeddings=tied)
    model = GPT2LMHeadModel(config)
    if not shift:
        model.loss_function = lambda logits, labels, **_: F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    return model


@pytest.mark.parametrize("kind", ["grades", "none is -1", "none is -100", "classes"])
def test_labels_that_are_no_columns_of_the_output_are_the_own_losses_affair(kind):
    g = torch.Generator().manual_seed(0)
    codes = {"grades": [0, 1, 2], "none is -1": [0, 1, -1], "none is -100": [0, 1, -100], "classes": [0, 1, 1]}[kind]
    batches = [(torch.randn(6, 6, generator=g), torch.tensor(codes * 2)) for _ in range(3)]

    def loss(model, batch):
        x, y = batch
        if kind == "grades":
            return F.binary_cross_entropy_with_logits(model(x), (y[:, None] > torch.arange(2)).float())
        return F.cross_entropy(model(x), y, ignore_index=-1 if kind == "none is -1" else -100)

    trace = finetune(Net(), batches, loss_fn=loss, forward=lambda m, b: m(b[0]), **FAST)
    healthy(trace)
    unreadable = kind in ("grades", "none is -1")
    assert trace.reading.task == (None if unreadable else "single_label")
    assert any("none of the 2 classes of the output" in n for n in trace.notes) is unreadable
    assert not [why for why in trace.skipped.values() if "Error" in why]
    assert all(math.isfinite(p.loss) for p in trace.probe_loss.points)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shift", [True, False])
def test_a_causal_models_logits_are_compared_with_the_label_of_the_next_position(shift):
    g = torch.Generator().manual_seed(0)
    ids = [torch.randint(32, (4, 8), generator=g) for _ in range(3)]
    trace = finetune(causal(shift), [{"input_ids": i, "labels": i} for i in ids], steps=3, lr=1e-3)
    assert (trace.reading.loss, trace.reading.task, trace.reading.classes) == ("the model's own", "single_label", 32)
    assert all(p.reference == pytest.approx(p.loss, rel=1e-5) for p in trace.probe_loss.points)
    assert trace.metrics[0].rows == 8 * (7 if shift else 8)
    assert not trace.notes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_is_tied_to_the_embeddings_is_the_head(tied):
    ids = torch.arange(32).reshape(4, 8)
    trace = finetune(causal(True, tied), [{"input_ids": ids, "labels": ids}], steps=2, lr=1e-3)
    assert trace.head == ("lm_head",)
    assert trace.tensor("lm_head.weight").part == "head"
    assert trace.tensor("transformer.wte.weight").part == ("head" if tied else "base")
    assert trace.tensor("transformer.wpe.weight").part == "base"
    assert check_grads_nonzero(trace, "head").status == "pass"
