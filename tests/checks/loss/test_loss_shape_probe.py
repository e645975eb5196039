"""loss_shape on real small models: sound losses of all kinds pass, wrong ones are named, nothing of the user's changed."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, FunnelConfig, FunnelForMaskedLM

from pytest_ftcheck import Intent, check_logits_unbounded, check_loss_matches_task, check_loss_stable, finetune, watch
from pytest_ftcheck.checks.loss.objective import MINUS
from pytest_ftcheck.checks.loss.probe.loss_shape import ASCENT_PASSES, PASSES
from pytest_ftcheck.checks.loss.record import LossShape
from pytest_ftcheck.core.trace import Trace

CLASSES = 3
KINDS = {"single": "single_label", "binary": "single_label", "tags": "multi_label", "numbers": "regression"}


def batches(kind="single", count=4, rows=16, classes=CLASSES):
    g = torch.Generator().manual_seed(1)
    out = []
    for _ in range(count):
        x = torch.randn(rows, 8, generator=g)
        y = {
            "single": x[:, :classes].argmax(-1),
            "binary": (x[:, 0] > 0).long(),
            "tags": (x[:, :classes] > 0).float(),
            "numbers": 2 * x[:, 0] + x[:, 1],
        }[kind]
        out.append((x, y))
    return out


class Small(nn.Module):
    def __init__(self, outputs=CLASSES, end=None):
        super().__init__()
        self.base, self.classifier, self.end = nn.Linear(8, 16), nn.Linear(16, outputs), end

    def forward(self, x):
        z = self.classifier(torch.relu(self.base(x)))
        return z if self.end is None else self.end(z)


def run(kind, loss, *, end=None, classes=CLASSES, outputs=None, steps=2, **more):
    torch.manual_seed(0)
    wide = outputs or (1 if kind in ("binary", "numbers") else classes)
    more.setdefault("intent", Intent(task=KINDS[kind]))
    trace = finetune(
        more.pop("model", None) or Small(wide, end),
        more.pop("data", None) or batches(kind, classes=classes),
        loss_fn=loss,
        forward=lambda m, b: m(b[0]),
        head="classifier",
        steps=steps,
        **({} if "optimizer" in more else {"lr": 1e-3}),
        probes=["loss", "loss_shape"],
        **more,
    )
    assert Trace.from_json(trace.to_json()) == trace
    return trace


def hot(y, classes=CLASSES):
    return F.one_hot(y, classes).float()


def simple(fn):
    """A loss of logits and labels as a loss of model and batch."""
    return lambda m, b: fn(m(b[0]), b[1])


def focal(z, y):
    p = z.softmax(-1).gather(1, y[:, None])
    return (-((1 - p) ** 2) * p.log()).mean()


def mixed(z, y):
    share, order = float(torch.rand(())), torch.randperm(len(y))
    return share * F.cross_entropy(z, y) + (1 - share) * F.cross_entropy(z, y[order])


def bonus(z, y):
    return F.cross_entropy(z, y) + 0.1 * (z.softmax(-1) * z.log_softmax(-1)).sum(-1).mean()


def steps_apart(z, y):
    return ((z.softmax(-1).cumsum(-1) - hot(y).cumsum(-1)) ** 2).sum(-1).mean()


bce = F.binary_cross_entropy_with_logits
SOUND = {
    "cross-entropy": ("single", simple(F.cross_entropy), None),
    "label smoothing": ("single", simple(lambda z, y: F.cross_entropy(z, y, label_smoothing=0.2)), None),
    "class weights": ("single", simple(lambda z, y: F.cross_entropy(z, y, weight=torch.tensor([0.05, 1, 5]))), None),
    "focal": ("single", simple(focal), None),
    "margin": ("single", simple(F.multi_margin_loss), None),
    "one-hot BCE": ("single", simple(lambda z, y: bce(z, hot(y))), None),
    "Brier": ("single", simple(lambda z, y: F.mse_loss(z.softmax(-1), hot(y))), None),
    "squared logits": ("single", simple(lambda z, y: F.mse_loss(z, hot(y))), None),
    "MAE of probabilities": ("single", simple(lambda z, y: (1 - z.softmax(-1).gather(1, y[:, None])).mean()), None),
    "hardest four rows": ("single", simple(lambda z, y: F.cross_entropy(z, y, reduction="none").topk(4)[0].mean()), None),
    "easiest half": (
        "single",
        simple(lambda z, y: F.cross_entropy(z, y, reduction="none").topk(8, largest=False)[0].mean()),
        None,
    ),
    "entropy bonus": ("single", simple(bonus), None),
    "a large constant and weight decay": (
        "single",
        lambda m, b: F.cross_entropy(m(b[0]), b[1]) + 5 + 0.1 * sum((p**2).sum() for p in m.parameters()),
        None,
    ),
    "mixup": ("single", simple(mixed), None),
    "ordinal": ("single", simple(steps_apart), None),
    "half the loss": ("single", simple(lambda z, y: F.cross_entropy(z, y) / 2), None),
    "log-softmax model": ("single", simple(F.nll_loss), lambda z: z.log_softmax(-1)),
    "cross-entropy of log-probabilities": ("single", simple(F.cross_entropy), lambda z: z.log_softmax(-1)),
    "softmax model, log in the loss": ("single", simple(lambda p, y: F.nll_loss(p.log(), y)), lambda z: z.softmax(-1)),
    "soft cap": ("single", simple(F.cross_entropy), lambda z: 30 * torch.tanh(z / 30)),
    "tanh with a temperature": ("single", simple(F.cross_entropy), lambda z: 5 * torch.tanh(z)),
    "one logit": ("binary", simple(lambda z, y: bce(z[:, 0], y.float())), None),
    "one probability": ("binary", simple(lambda p, y: F.binary_cross_entropy(p[:, 0], y.float())), torch.sigmoid),
    "one logit, positive weight": (
        "binary",
        simple(lambda z, y: bce(z[:, 0], y.float(), pos_weight=torch.tensor(7.0))),
        None,
    ),
    "tags": ("tags", simple(bce), None),
    "tag probabilities": ("tags", simple(F.binary_cross_entropy), torch.sigmoid),
    "tags as a distribution": ("tags", simple(lambda z, y: F.cross_entropy(z, y / y.sum(-1, keepdim=True).clamp(min=1))), None),
    "squared error": ("numbers", simple(lambda z, y: F.mse_loss(z[:, 0], y)), None),
    "absolute error": ("numbers", simple(lambda z, y: F.l1_loss(z[:, 0], y)), None),
    "standardised labels": ("numbers", simple(lambda z, y: F.mse_loss(z[:, 0], (y - 1) / 5)), None),
    "correlation": ("numbers", simple(lambda z, y: 1 - torch.corrcoef(torch.stack([z[:, 0], y]))[0, 1]), None),
}  # fmt: skip

WRONG = {
    "double_softmax": ("single", simple(lambda z, y: F.cross_entropy(z.softmax(-1), y)), None),
    "double_softmax ": ("single", simple(F.cross_entropy), lambda z: z.softmax(-1)),
    "double_softmax  ": (
        "single",
        simple(lambda z, y: F.cross_entropy(z.softmax(-1), y, weight=torch.tensor([0.2, 1, 3]))),
        None,
    ),
    "sigmoid_before_cross_entropy": ("single", simple(F.cross_entropy), torch.sigmoid),
    "double_softmax_over_batch": ("single", simple(F.cross_entropy), lambda z: z.softmax(0)),
    "softmax_over_batch": ("single", simple(F.nll_loss), lambda z: z.log_softmax(0)),
    "nll_on_raw_logits": ("single", simple(F.nll_loss), None),
    "nll_on_probabilities": ("single", simple(F.nll_loss), lambda z: z.softmax(-1)),
    "loss_negated": ("single", simple(lambda z, y: -F.cross_entropy(z, y)), None),
    "own_predictions_as_targets": ("single", simple(lambda z, y: F.cross_entropy(z, z.argmax(-1))), None),
    "labels_permuted": ("single", simple(lambda z, y: F.cross_entropy(z, (y + 1) % CLASSES)), None),
    "labels_of_other_rows": ("single", simple(lambda z, y: F.cross_entropy(z, y.roll(1))), None),
    "smoothing_too_strong": ("single", simple(lambda z, y: F.cross_entropy(z, y, label_smoothing=0.9)), None),
    "class_ignored": ("single", simple(lambda z, y: F.cross_entropy(z, y, ignore_index=1)), None),
    "class_ignored ": ("single", simple(lambda z, y: F.cross_entropy(z, y, weight=torch.tensor([0.0, 1, 1]))), None),
    "rows_ignored": ("single", simple(lambda z, y: F.cross_entropy(z[:1], y[:1])), None),
    "rows_ignored ": ("single", simple(lambda z, y: F.cross_entropy(z[:8], y[:8])), None),
    "loss_not_differentiable": (
        "single",
        simple(lambda z, y: (z.argmax(-1) - y).float().pow(2).mean().requires_grad_()),
        None,
    ),
    "loss_ignores_logits": ("single", simple(lambda z, y: (z * 0).sum() + 1), None),
    "softmax_over_one_output": (
        "binary",
        simple(lambda p, y: F.binary_cross_entropy(p[:, 0], y.float())),
        lambda z: z.softmax(-1),
    ),
    "sigmoid_before_bce": ("binary", simple(lambda z, y: bce(z[:, 0], y.float())), torch.sigmoid),
    "sigmoid_before_bce ": ("tags", simple(bce), torch.sigmoid),
    "cross_entropy_on_tags": ("tags", simple(F.cross_entropy), None),
    "softmax_on_tags": ("tags", simple(F.binary_cross_entropy), lambda z: z.softmax(-1)),
    "regression_broadcast": ("numbers", simple(F.mse_loss), None),
    "loss_negated ": ("numbers", simple(lambda z, y: -F.mse_loss(z[:, 0], y)), None),
}  # fmt: skip

BOUNDED = {
    "logits_bounded": ("single", simple(F.cross_entropy), torch.tanh),
    "logits_one_signed": ("single", simple(F.cross_entropy), torch.relu),
    "outputs_cannot_reach_labels": ("numbers", simple(lambda z, y: F.mse_loss(z[:, 0], y)), torch.sigmoid),
}

pytestmark = pytest.mark.filterwarnings("ignore:Using a target size")


@pytest.mark.parametrize("name", sorted(SOUND))
def test_a_sound_loss_passes(name):
    kind, loss, end = SOUND[name]
    trace = run(kind, loss, end=end)
    assert trace.measured(LossShape) is not None
    assert trace.measured(LossShape).reason is None
    for check in (check_loss_matches_task, check_logits_unbounded, check_loss_stable):
        assert check(trace).status in ("pass", "skipped"), str(check(trace))


def test_many_grades_whose_neighbours_are_nearly_right():
    """Distances of distribution functions: of ten classes, the one beside the label costs less than a uniform prediction."""

    def steps(model, batch):
        z, y = model(batch[0]), hot(batch[1], 10)
        return (z.softmax(-1).cumsum(-1) - y.cumsum(-1)).abs().sum(-1).mean()

    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    y = (2 * x[:, 0] + 5).long().clamp(0, 9)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10))
    batches = list(zip(x.split(16), y.split(16), strict=True))
    trace = finetune(net, batches, steps=8, lr=1e-3, head="2", loss_fn=steps, probes=["loss", "loss_shape", "data"])
    shape = trace.measured(LossShape)
    assert shape is not None
    assert shape.class_weights == ()  # the middle grades have shorter gradients, which is no weight
    verdict = check_loss_matches_task(trace)
    assert verdict.status == "pass", str(verdict)


@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_wrong_loss_is_named(name):
    kind, loss, end = WRONG[name]
    verdict = check_loss_matches_task(run(kind, loss, end=end))
    assert (verdict.status, verdict.fault) == ("fail", name.strip()), str(verdict)


@pytest.mark.parametrize("name", sorted(BOUNDED))
def test_a_bound_is_named(name):
    kind, loss, end = BOUNDED[name]
    verdict = check_logits_unbounded(run(kind, loss, end=end))
    assert (verdict.status, verdict.fault) == ("fail", name), str(verdict)


def test_the_numbers_are_those_of_theory():
    shape = run("single", simple(F.cross_entropy)).measured(LossShape)
    at = shape.curve.margins.index(2.0)
    assert shape.curve.right[0] == pytest.approx(1.0986, abs=1e-3)
    assert shape.curve.right[at] == pytest.approx(math.log1p(2 * math.exp(-4)), rel=1e-4)
    assert shape.known == "cross_entropy"
    assert shape.scale == pytest.approx(1.0, abs=1e-4)
    assert shape.raised_classes == (0, 1, 2)
    assert (shape.high_logits, shape.low_logits) == ((1.0, 100.0), (-1.0, -100.0))


def test_a_sum_is_measured_as_rows_times_the_mean():
    shape = run("single", simple(lambda z, y: F.cross_entropy(z, y, reduction="sum"))).measured(LossShape)
    assert shape.scale == pytest.approx(16.0, rel=1e-4)


def test_one_hot_labels_of_the_batch_are_one_label_a_row():
    data = [(x, hot(y)) for x, y in batches()]
    trace = run("single", simple(F.cross_entropy), data=data, intent=Intent())
    assert trace.reading.task == "multi_label"  # as the labels look
    assert trace.measured(LossShape).kind == "single"
    assert check_loss_matches_task(trace).status == "pass"


# ------------------------------------------------------------------ models with a loss of their own
def huggingface(name, **more):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 60, "num_labels": 3, "pad_token_id": 0}
    if name == "GPT2":
        sizes |= {
            "n_embd": 16,
            "n_layer": 1,
            "n_head": 2,
            "n_positions": 16,
            "bos_token_id": None,
            "eos_token_id": None,
        }
    else:
        sizes |= {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "max_position_embeddings": 16}
    model = getattr(transformers, f"{name}ForSequenceClassification")
    return model(getattr(transformers, f"{name}Config")(**sizes, **more))


def tokens(labels):
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 60, (8, 10), generator=g)
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}] * 2


@pytest.mark.parametrize(("name", "site"), [("DistilBert", "classifier"), ("GPT2", "score")])
def test_the_loss_inside_a_model_is_reached_through_its_last_layer(name, site):
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    trace = finetune(huggingface(name), tokens(labels), steps=1, probes=["loss", "loss_shape"])
    assert trace.measured(LossShape).site == trace.measured(LossShape).last_layer == site
    assert trace.measured(LossShape).known == "cross_entropy"
    assert check_loss_matches_task(trace).status == "pass"


def test_num_labels_1_with_classes_is_another_task_than_declared():
    torch.manual_seed(0)
    labels = torch.tensor([0.0, 1, 2, 0, 1, 2, 0, 1])
    model = huggingface("DistilBert")
    model.classifier, model.num_labels, model.config.num_labels = nn.Linear(16, 1), 1, 1
    trace = finetune(model, tokens(labels), steps=1, probes=["loss", "loss_shape"], intent=Intent(task="single_label"))
    assert check_loss_matches_task(trace).fault == "wrong_task"


def test_a_sigmoid_and_a_loss_inside_a_model():
    class Squashed(Small):
        def forward(self, x, labels=None):
            z = torch.tanh(super().forward(x))
            return {"loss": F.cross_entropy(z, labels) if labels is not None else None, "logits": z}

    torch.manual_seed(0)
    data = [{"x": x, "labels": y} for x, y in batches()]
    trace = finetune(Squashed(), data, steps=1, head="classifier", probes=["loss", "loss_shape"])
    assert trace.measured(LossShape).site == "classifier"
    assert check_logits_unbounded(trace).fault == "logits_bounded"


# ------------------------------------------------------------------ what cannot be measured
def test_a_loss_that_does_not_go_through_the_model_is_not_judged():
    def around(m, b):
        return F.cross_entropy(F.linear(torch.relu(m.base(b[0])), m.classifier.weight, m.classifier.bias), b[1])

    trace = run("single", around)
    assert "could not be passed to the loss" in trace.measured(LossShape).reason
    verdict = check_loss_matches_task(trace)
    assert verdict.status == "skipped"
    assert "could not be passed to the loss" in verdict.headline


def test_labels_outside_the_classes_are_read_by_the_loss_in_its_own_way():
    data = [(x, y + 1) for x, y in batches()]
    trace = run("single", simple(lambda z, y: F.cross_entropy(z, y - 1)), data=data)
    assert trace.measured(LossShape).reason == "labels and logits could not be matched"
    assert any("label 3 is none of the 3 classes" in n for n in trace.notes)
    assert check_loss_matches_task(trace).status == "skipped"


def test_a_loss_that_wants_whole_batches_gets_them():
    data = batches(rows=20)
    trace = run("single", simple(lambda z, y: F.cross_entropy(z.view(20, 3), y)), data=data)
    assert trace.measured(LossShape).known == "cross_entropy"


def test_a_model_that_raises_is_skipped_with_the_reason():
    class Moody(Small):
        calls = 0

        def forward(self, x):
            Moody.calls += 1
            if self.classifier._forward_hooks:
                raise RuntimeError("no hooks, please")
            return super().forward(x)

    trace = run("single", simple(F.cross_entropy), model=Moody())
    assert trace.measured(LossShape) is None
    assert trace.skipped["loss_shape"] == "it raised RuntimeError: no hooks, please"
    assert check_loss_matches_task(trace).status == "inconclusive"
    assert len(trace.steps) == 2


# ------------------------------------------------------------------ other facts
@pytest.mark.parametrize(("rows", "values"), [(2, 2), (16, 16)])
def test_batchnorm_counts_its_values(rows, values):
    torch.manual_seed(0)
    model = Small()
    model.base = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16))
    trace = run("single", simple(F.cross_entropy), model=model, data=batches(rows=rows))
    assert (trace.measured(LossShape).norm_values, trace.measured(LossShape).norm_name) == (values, "base.1")
    assert (check_loss_stable(trace).fault == "batchnorm_tiny_batch") == (rows == 2)


class Directions(nn.Module):
    """Products with prototypes; ``cosine``: of both only the direction counts, times 30."""

    def __init__(self, cosine):
        super().__init__()
        self.cosine, self.prototypes = cosine, nn.Parameter(torch.randn(CLASSES, 16))

    def forward(self, x):
        if not self.cosine:
            return x @ self.prototypes.T
        return 30 * F.normalize(x, dim=-1) @ F.normalize(self.prototypes, dim=-1).T


@pytest.mark.parametrize("cosine", [True, False])
def test_large_logits_by_design_and_by_large_weights(cosine):
    torch.manual_seed(0)
    model = Small()
    model.base, model.classifier = nn.Linear(8, 16), Directions(cosine)
    with torch.no_grad():
        model.base.weight.mul_(10)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    trace = run("single", lambda m, b: F.cross_entropy(m(b[0]), b[1]), model=model, steps=1, optimizer=still)
    assert trace.measured(LossShape).size_first > 1
    assert trace.measured(LossShape).scale_free is cosine
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("spread", "larger"), [(None, 1.0), (1.0, 1.0), (1.0, 60.0)], ids=["default", "slip", "scaled"]
)
def test_a_new_model_of_a_librarys_class_beside_large_logits(spread, larger):
    """Of a slip in the config, and of weights that were scaled, a new model with its class's own spread knows nothing."""
    config = FunnelConfig(
        vocab_size=60, d_model=32, n_head=2, d_head=16, d_inner=32, block_sizes=[1, 1], num_decoder_layers=1
    )
    assert config.initializer_std is None  # then 1 for an embedding, to which the last layer is tied
    if spread is not None:
        config = BertConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            initializer_range=spread if larger == 1 else 0.02,
        )  # fmt: skip
    torch.manual_seed(0)
    model = (FunnelForMaskedLM if spread is None else BertForMaskedLM)(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(larger)
    before, state = {n: v.clone() for n, v in model.state_dict().items()}, torch.get_rng_state()
    ids = torch.randint(5, 60, (8, 12), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.flip(1)}
    trace = finetune(model, [batch], steps=1, probes=["loss_shape"], optimizer=still)
    shape = trace.measured(LossShape)
    assert shape.size_of_class is not None
    assert (shape.size_first <= 1.5 * shape.size_of_class) is (spread is None), shape
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_small_logits_are_not_tested_for_their_scale():
    trace = run("single", lambda m, b: F.cross_entropy(m(b[0]), b[1]), steps=1)
    assert trace.measured(LossShape).size_first < 1
    assert trace.measured(LossShape).scale_free is None


def still(model):
    return torch.optim.SGD(model.parameters(), lr=0.0)


def test_collapse_is_measured():
    trace = run("single", simple(F.cross_entropy))
    assert 0.5 < trace.measured(LossShape).spread_last / trace.measured(LossShape).spread_first < 2

    def zeroed(model, batch, optimizer, _):
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.classifier.weight.zero_()
        return loss

    torch.manual_seed(0)
    model = Small()
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    trace = run("single", simple(F.cross_entropy), model=model, step=zeroed, optimizer=adam, steps=1)
    assert trace.measured(LossShape).spread_last == pytest.approx(0.0, abs=1e-6)


def test_nothing_of_the_users_is_changed():
    torch.manual_seed(0)
    model = Small()
    model.base = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5))
    model.train()
    model.base[2].eval()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    data, adam = batches(), torch.optim.Adam(model.parameters(), lr=1e-3)
    seen = []

    def step(model, batch, optimizer, _):  # what the user's own code meets: right after `before`, and again at the end
        seen.append(
            (
                {k: v.clone() for k, v in model.state_dict().items()},
                [p.grad.clone() for p in model.parameters()],
                [m.training for m in model.modules()],
                [len(m._forward_hooks) + ("forward" in m.__dict__) for m in model.modules()],
                torch.get_rng_state(),
                random.getstate(),
            )
        )
        return F.cross_entropy(model(batch[0]), batch[1])

    looked = {}
    for probes in (["loss"], ["loss", "loss_shape"]):
        seen.clear()
        finetune(
            model,
            data,
            step=step,
            optimizer=adam,
            loss_fn=simple(F.cross_entropy),
            steps=1,
            probes=probes,
            head="classifier",
        )
        looked[len(probes)] = seen[0]
    bare, asked = looked[1], looked[2]
    assert all(torch.equal(bare[0][k], asked[0][k]) for k in bare[0])
    assert all(torch.equal(a, b) for a, b in zip(bare[1], asked[1], strict=True))
    assert bare[2] == asked[2]
    assert bare[3] == asked[3]
    assert sum(bare[3]) <= 1  # the observer of the loop's own calls
    assert torch.equal(bare[4], asked[4])
    assert bare[5] == asked[5]
    assert torch.equal(data[0][1], batches()[0][1])


def test_what_runs_before_the_last_layer_is_computed_once():
    runs = []

    class Counted(nn.Linear):
        def forward(self, x):
            runs.append(1)
            return super().forward(x)

    passes = []
    for probes in (["loss"], ["loss", "loss_shape"]):
        runs.clear()
        model = Small()
        model.base = Counted(8, 16)
        finetune(model, batches(), loss_fn=simple(F.cross_entropy), head="classifier", steps=2, probes=probes)
        passes.append(len(runs))
    assert passes[1] - passes[0] <= PASSES + ASCENT_PASSES + 1  # what cost() says, for about a hundred questions


# ------------------------------------------------------------------ an optimizer that maximizes
def ascending(loss, kind="single", **settings):
    """The verdict on a loss of logits and labels, of an optimizer with these settings."""
    torch.manual_seed(0)
    model = Small(1 if kind in ("binary", "numbers") else CLASSES)
    return check_loss_matches_task(
        run(kind, simple(loss), model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3, **settings))
    )


@pytest.mark.parametrize(
    ("kind", "loss"),
    [("single", F.cross_entropy), ("tags", bce), ("numbers", lambda z, y: F.mse_loss(z[:, 0], y))],
)
def test_minus_the_loss_is_judged_where_the_optimizer_maximizes(kind, loss):
    verdict = ascending(lambda z, y: -loss(z, y), kind, maximize=True)
    assert (verdict.status, verdict.notes[:1]) == ("pass", (MINUS,))
    assert ascending(lambda z, y: -loss(z, y), kind).fault == "loss_negated"
    assert MINUS not in ascending(loss, kind, maximize=True).notes


def test_a_fault_of_minus_the_loss_is_named():
    assert ascending(lambda z, y: -F.cross_entropy(z.softmax(-1), y), maximize=True).fault == "double_softmax"


# ------------------------------------------------------------------ outputs that cannot be replaced, or are no logits
def test_a_loss_that_is_nan_at_chosen_logits_is_not_measured():
    def only_varied(z, y):
        return (
            F.cross_entropy((z - z.mean(0)) / z.std(0), y) / float(z.std() > 1e-3)
            if float(z.std())
            else z.sum() * float("nan")
        )

    found = check_loss_matches_task(run("single", simple(only_varied)))
    assert (found.status, found.fault) == ("inconclusive", "")


@pytest.mark.parametrize("wrap", [torch.func.vmap, lambda m: lambda x: torch.func.vmap(m)(x[:, None])[:, 0]])
def test_a_model_that_the_loss_maps_over_rows_is_not_measured(wrap):
    model, batch = Small(), batches()[0]
    with watch(
        model, probe_batch=batch, loss_fn=lambda m, b: F.cross_entropy(wrap(m)(b[0]), b[1]), head="classifier"
    ) as w:
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    shape = w.trace.measured(LossShape)
    assert (shape.depends, shape.curve) == (None, None)
    assert "could not be passed" in shape.reason
    assert check_loss_matches_task(w.trace).status == "skipped"
