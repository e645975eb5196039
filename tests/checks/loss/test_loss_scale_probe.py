"""What is read off the loops of real small models between two optimizer steps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import _global_optimizer_pre_hooks
from torch.overrides import _get_current_function_mode_stack

from pytest_ftcheck import check_loss_scale, finetune, tiny_distilbert, toy_batches, watch
from pytest_ftcheck.checks.loss.loss_scale_record import LossScale

BATCHES = toy_batches()


def accumulate(weigh=lambda loss: loss, k=4, *, loss=lambda z, y: F.cross_entropy(z, y), at_step=None, scaler=None):
    """A loop body that steps at every k-th batch."""
    count = [0]

    def step(model, batch, optimizer, scheduler):
        x, y = batch
        count[0] += 1
        value = weigh(loss(model(x), y))
        (value if scaler is None else scaler.scale(value)).backward()
        if count[0] % k == 0:
            if at_step:
                at_step(model)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad()
        return value

    return step


def in_finetune(step, steps=12, make=torch.optim.SGD, **more):
    model = tiny_distilbert(seed=0)
    return finetune(
        model, BATCHES, optimizer=make(model.parameters(), lr=1e-2), step=step, steps=steps, probes=[], **more
    )


def in_watch(step, steps=12, make=torch.optim.SGD, model=None):
    model = model or tiny_distilbert(seed=0)
    optimizer = make(model.parameters(), lr=1e-2)
    with watch(model, optimizer) as w:
        for i in range(steps):
            step(model, BATCHES[i % len(BATCHES)], optimizer, None)
    return w.trace


RUNS = pytest.mark.parametrize("run", [in_finetune, in_watch])


def windows(trace):
    found = trace.measured(LossScale)
    assert found is not None, trace.why_not_measured(LossScale)
    return found.windows


# ---------------------------------------------------------------------- factors
@RUNS
@pytest.mark.parametrize(
    ("weigh", "factor", "status"),
    [
        (lambda loss: loss / 4, 1.0, "pass"),
        (lambda loss: loss, 4.0, "fail"),
        (lambda loss: loss / 16, 0.25, "fail"),
        (lambda loss: 0.5 * loss / 4, 0.5, "pass"),
    ],
)
def test_the_factor_of_a_loop(run, weigh, factor, status):
    trace = run(accumulate(weigh))
    found = windows(trace)
    assert [w.step for w in found] == [0, 1, 2]
    assert [w.size for w in found] == [4, 4, 4]
    assert [w.backpropagated for w in found] == pytest.approx([factor] * 3)
    assert [w.change for w in found] == [1.0] * 3
    assert {(b.rows, b.repeated, b.num_items) for w in found for b in w.backwards} == {(16, False, False)}
    assert check_loss_scale(trace).status == status


def test_finetunes_own_loop():
    trace = finetune(lambda: tiny_distilbert(seed=0), BATCHES, steps=5, probes=[])
    assert [(w.step, w.size, w.backpropagated) for w in windows(trace)] == [(i, 1, 1.0) for i in (0, 1, 2, 4)]
    assert check_loss_scale(trace).status == "pass"


def test_a_loss_fn():
    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum") / 32

    trace = finetune(lambda: tiny_distilbert(seed=0), BATCHES, steps=5, loss_fn=loss_fn, probes=[])
    assert [w.backpropagated for w in windows(trace)] == [0.5] * 4
    assert check_loss_scale(trace).status == "pass"


def by_hand(model, factor=0.25):
    for p in model.parameters():
        if p.grad is not None:
            p.grad.mul_(factor)


@RUNS
def test_gradients_that_are_divided_afterwards(run):
    right, twice = run(accumulate(at_step=by_hand)), run(accumulate(lambda loss: loss / 4, at_step=by_hand))
    assert [(w.backpropagated, w.other_change) for w in windows(right)] == [(4.0, 0.25)] * 3
    assert [check_loss_scale(t).fault for t in (right, twice)] == ["", "accumulation_divided_twice"]


@RUNS
def test_clipping_is_told_from_a_division(run):
    trace = run(accumulate(at_step=lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.05)), make=torch.optim.AdamW)
    for w in windows(trace):
        assert 0 < w.clipped < 1
        assert w.change == pytest.approx(w.clipped, rel=1e-4)
        assert w.other_change == pytest.approx(1.0, rel=1e-4)
    verdict = check_loss_scale(trace)
    assert (verdict.status, verdict.fault) == ("fail", "accumulation_not_averaged")


def test_one_tensor_after_another_is_clipped_without_foreach():
    def clip(model):
        nn.utils.clip_grad_norm_(model.parameters(), 0.05, foreach=False)

    assert all(0 < w.clipped < 1 for w in windows(in_watch(accumulate(at_step=clip))))


@RUNS
@pytest.mark.parametrize("unscale", [False, True])
def test_a_gradscaler_scales_on_purpose(run, unscale):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizers = []

    def make(parameters, lr):
        optimizers.append(torch.optim.SGD(parameters, lr=lr))
        return optimizers[-1]

    def at_step(model):
        if unscale:
            scaler.unscale_(optimizers[-1])
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)

    trace = run(accumulate(lambda loss: loss / 4, scaler=scaler, at_step=at_step), make=make)
    found = windows(trace)
    assert [w.backwards[0].weight for w in found] == [256.0] * 3
    assert [w.unscaled for w in found] == [1 / 1024] * 3
    assert [w.backpropagated for w in found] == [1.0] * 3
    assert [w.other_change for w in found] == pytest.approx([1.0] * 3, rel=1e-4)
    assert check_loss_scale(trace).status == "pass"


def test_a_loss_scale_that_is_never_undone():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trace = in_watch(accumulate(scaler.scale, k=1))
    assert check_loss_scale(trace).fault == "grads_still_scaled"


# ---------------------------------------------------------------------- what a loss averages over
IDS = torch.arange(24).reshape(4, 6) % 7
LABELS = torch.tensor([[1, 2, 3, -100, -100, -100]] * 3 + [[1, 2, 3, 4, 5, 6]])


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.base, self.head = nn.Embedding(7, 8), nn.Linear(8, 7)

    def forward(self, ids):
        return self.head(self.base(ids))


@pytest.mark.parametrize(
    ("loss", "items", "weight"),
    [
        (lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten()), 15, 1),
        (lambda z, y: F.cross_entropy(z.transpose(1, 2), y, label_smoothing=0.1), 15, 1),
        (lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten(), reduction="sum") / 15, 15, 1),
        (lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten(), reduction="none").sum() / 15, 15, 1),
        (lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten(), reduction="none").mean(), 15, 15 / 24),
        (lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten(), reduction="sum"), 15, 15),
        (lambda z, y: F.nll_loss(z.log_softmax(-1).flatten(0, 1), y.flatten(), ignore_index=-100), 15, 1),
        (lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten(), torch.full((7,), 2.0)), 30, 1),
        (lambda z, y: F.cross_entropy(z[:, 0], F.one_hot(y[:, 0], 7).float()), 4, 1),
        (lambda z, y: F.binary_cross_entropy_with_logits(z, torch.ones_like(z)), 168, 1),
        (
            lambda z, y: F.binary_cross_entropy_with_logits(z, torch.ones_like(z), reduction="none").sum(-1).mean(),
            168,
            7,
        ),
        (lambda z, y: F.mse_loss(z[..., 0], y.float()), 24, 1),
        (lambda z, y: nn.CrossEntropyLoss()(z[:, 0], y[:, 0]) + 0.01 * z.square().mean(), 4, 1),
        (lambda z, y: F.cross_entropy(z[:, 0], y[:, 0]).bfloat16() / 2, 4, 0.5),
    ],
)
def test_items_and_weights(loss, items, weight):
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as w:
        for _ in range(2):
            optimizer.zero_grad()
            loss(model(IDS), LABELS).backward()
            optimizer.step()
    for window in windows(w.trace):
        (term,) = window.backwards[0].terms
        assert term.items == items
        assert term.weight == pytest.approx(weight, rel=1e-6)


def test_means_of_uneven_micro_batches():
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train(divide):
        with watch(model, optimizer) as w:
            for _ in range(3):
                few = torch.where(torch.arange(24).reshape(4, 6) < 1, LABELS, -100)
                for shift, labels in enumerate((LABELS, few)):
                    total = F.cross_entropy(
                        model(IDS + shift - shift * 6 * (IDS == 6)).flatten(0, 1), labels.flatten(), reduction="sum"
                    )
                    (total / divide(labels)).backward()
                optimizer.step()
                optimizer.zero_grad()
        return w.trace

    uneven = check_loss_scale(train(lambda labels: 2 * (labels != -100).sum()))
    assert (uneven.status, uneven.fault) == ("fail", "uneven_micro_batches_averaged")
    assert "1.00 to 15.0 label positions" in uneven.headline
    assert check_loss_scale(train(lambda labels: 16)).status == "pass"


# ---------------------------------------------------------------------- loops that are no accumulation
def test_two_passes_over_the_same_rows_are_not_judged_as_micro_batches():
    def step(model, batch, optimizer, scheduler):
        x, y = batch
        optimizer.zero_grad()
        for _ in range(2):  # two dropout masks
            loss = F.cross_entropy(model(x), y)
            loss.backward()
        optimizer.step()
        return loss

    trace = in_finetune(step)
    assert [b.repeated for b in windows(trace)[0].backwards] == [False, True]
    assert check_loss_scale(trace).status == "skipped"


def test_losses_of_two_kinds_are_not_judged_as_micro_batches():
    """As a GAN's discriminator on real and on made-up rows."""

    def step(model, batch, optimizer, scheduler):
        ids, length, mask = batch[0]
        optimizer.zero_grad()
        real = F.cross_entropy(model((ids[:8], length[:8], mask[:8])), torch.ones(8, dtype=torch.long))
        real.backward()
        fake = F.cross_entropy(model((ids[8:], length[8:], mask[8:])), torch.zeros(8, dtype=torch.long))
        fake.backward()
        optimizer.step()
        return real + fake

    trace = in_finetune(step)
    assert windows(trace)[0].places == 2
    assert check_loss_scale(trace).status == "skipped"


def test_gradients_that_are_cleared_in_between_begin_a_new_window():
    def step(model, batch, optimizer, scheduler):
        x, y = batch
        F.mse_loss(model(x).mean(), torch.zeros(())).backward()  # another optimizer's
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    trace = in_finetune(step, steps=3)
    assert [w.size for w in windows(trace)][1:] == [1, 1]
    assert check_loss_scale(trace).status == "pass"


def test_gradients_that_are_never_cleared_are_not_judged():
    def step(model, batch, optimizer, scheduler):
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss

    found = windows(in_finetune(step, steps=5))
    assert [w.disturbed for w in found] == [False, True, True, True]


def test_clipping_at_every_micro_batch_is_not_judged():
    def weigh(loss):
        return loss

    model = tiny_distilbert(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model, optimizer) as w:
        for i in range(8):
            F.cross_entropy(model(BATCHES[i][0]), BATCHES[i][1]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            if i % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
    assert all(window.disturbed for window in windows(w.trace))


def test_two_optimizers_step_after_one_backward():
    model = tiny_distilbert(seed=0)
    halves = list(model.parameters())
    first, second = torch.optim.SGD(halves[::2], lr=0.01), torch.optim.AdamW(halves[1::2], lr=1e-3)
    with watch(model, first) as w:
        for i in range(6):
            F.cross_entropy(model(BATCHES[i][0]), BATCHES[i][1]).backward()
            for optimizer in (first, second):
                optimizer.step()
                optimizer.zero_grad()
    found = windows(w.trace)
    assert len(found) >= 3
    assert {(window.size, window.backpropagated) for window in found} == {(1, 1.0)}


def test_an_evaluation_between_micro_batches_is_not_the_steps():
    def evaluated(loss):
        model = tiny_distilbert(seed=1)
        with torch.no_grad():
            F.cross_entropy(model(BATCHES[0][0]), BATCHES[0][1])
        return loss / 4

    assert {w.backpropagated for w in windows(in_finetune(accumulate(evaluated)))} == {1.0}


def test_a_closure_computes_the_gradients_inside_the_step():
    def step(model, batch, optimizer, scheduler):
        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch[0]), batch[1])
            loss.backward()
            return loss

        return optimizer.step(closure)

    for make in (torch.optim.LBFGS, torch.optim.SGD):
        trace = in_finetune(step, make=make, steps=3)
        assert [(w.step, w.size, w.backpropagated) for w in windows(trace)] == [(i, 1, 1.0) for i in range(3)]
        assert check_loss_scale(trace).status == "pass"


@pytest.mark.parametrize(("factor", "status"), [(0.25, "pass"), (1.0, "skipped")])
def test_the_last_micro_batch_may_come_in_a_closure(factor, status):
    """As in Lightning; where the calls come from tells then that they may be of different kinds."""
    count = [0]

    def step(model, batch, optimizer, scheduler):
        count[0] += 1

        def closure():
            loss = F.cross_entropy(model(batch[0]), batch[1])
            (factor * loss).backward()
            return loss

        if count[0] % 4:
            return closure()
        loss = optimizer.step(closure)
        optimizer.zero_grad()
        return loss

    trace = in_finetune(step)
    assert [w.size for w in windows(trace)] == [4, 4, 4]
    assert check_loss_scale(trace).status == status


class _Double(torch.autograd.Function):
    calls = 0

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        _Double.calls += 1
        return 2 * gradient


def test_the_users_own_functions_run_as_often_as_ever():
    _Double.calls = 0
    trace = in_finetune(accumulate(_Double.apply, k=1), steps=3)
    assert _Double.calls == 3
    assert "a function of the user's own" in check_loss_scale(trace).headline


def test_hooks_on_the_loss_run_as_often_as_ever():
    calls = []

    def weigh(loss):
        loss.register_hook(calls.append)
        return loss / 1

    in_finetune(accumulate(weigh, k=1), steps=3)
    assert len(calls) == 3


# ---------------------------------------------------------------------- nothing is changed
def test_watching_changes_no_bit_of_the_training():
    def train(watched):
        torch.manual_seed(0)
        model = tiny_distilbert(seed=0)
        model.train()
        step = accumulate(lambda loss: loss / 4, at_step=lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.1))
        if watched:
            in_watch(step, model=model)
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
            for i in range(12):
                step(model, BATCHES[i % len(BATCHES)], optimizer, None)
        return copy.deepcopy(model.state_dict()), torch.rand(1)

    (a, drawn_a), (b, drawn_b) = train(True), train(False)
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert torch.equal(drawn_a, drawn_b)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_an_exception(error):
    model = tiny_distilbert(seed=0)

    def step(model, batch, optimizer, scheduler):
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        raise error

    with pytest.raises(error):
        in_watch(step, model=model)
    assert not _get_current_function_mode_stack()
    assert not model._forward_pre_hooks
    assert not _global_optimizer_pre_hooks


# ---------------------------------------------------------------------- transformers.Trainer
def trained(model, rows, tmp_path, k=4, **more):
    from transformers import PrinterCallback, Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=k,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **{"optim": "sgd", "max_grad_norm": 0.0, **more},
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    trainer.create_optimizer()
    with watch(model, trainer.optimizer) as w:
        trainer.train()
    return trainer, w.trace


def divides():
    """Whether a Trainer divides the losses of micro-batches where it does not leave that to the loss: transformers 4.48 and later."""
    import transformers

    return tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 48)


def classifier():
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    return DistilBertForSequenceClassification(config)


def rows(causal=False):
    drawn = torch.Generator().manual_seed(0)
    for _ in range(64):
        ids = torch.randint(5, 50, (12,), generator=drawn)
        length = int(torch.randint(3, 13, (1,), generator=drawn))
        labels = torch.where(torch.arange(12) < length, ids, -100) if causal else int(ids[0] % 2)
        yield {"input_ids": ids, "attention_mask": torch.ones(12, dtype=torch.long), "labels": labels}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("more", [{}, {"bf16": True}])
def test_a_trainer_that_leaves_the_division_to_a_model_that_does_not_divide(tmp_path, more):
    """transformers 5.23; 4.46 and 4.47 do not hand ``num_items_in_batch`` to this model, and do not divide either."""
    trainer, trace = trained(classifier(), list(rows()), tmp_path, **more)
    verdict = check_loss_scale(trace)
    if trainer.model_accepts_loss_kwargs:
        assert (verdict.status, verdict.fault) == ("fail", "num_items_ignored")
        assert "4.00 times the mean over the step" in verdict.headline
    elif divides():
        assert verdict.status == "pass"
    else:
        assert (verdict.status, verdict.fault) == ("fail", "accumulation_not_averaged")


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_that_divides_by_itself_and_one_without_accumulation(tmp_path):
    traces = [trained(classifier(), list(rows()), tmp_path, k=1)[1]]
    if divides():
        model = classifier()
        model.accepts_loss_kwargs = False  # the remedy
        traces.append(trained(model, list(rows()), tmp_path)[1])
    for trace in traces:
        verdict = check_loss_scale(trace)
        assert verdict.status == "pass"
        assert not verdict.notes


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_honours_num_items_in_batch(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    _, trace = trained(LlamaForCausalLM(config), list(rows(causal=True)), tmp_path)
    sizes = {b.items for w in windows(trace) for b in w.backwards}
    assert len(sizes) > 1
    verdict = check_loss_scale(trace)
    assert verdict.status == "pass"
    assert not verdict.notes


# ---------------------------------------------------------------------- gradients that are cleared between micro-batches
def clearing(every, *, again=False, keep=None):
    """A loop of four micro-batches a step that clears the gradients before those that ``every`` names."""
    count = [0]

    def step(model, batch, optimizer, scheduler):
        place = count[0] % 4
        x, y = BATCHES[0] if again else batch
        if every(count[0]):
            if keep is not None and place:
                keep.append([p.grad.clone() for p in model.parameters()])
            optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y) / 4
        loss.backward()
        count[0] += 1
        if place == 3:
            if keep is not None:
                for p, *others in zip(model.parameters(), *keep, strict=True):
                    p.grad.add_(sum(others))
                keep.clear()
            optimizer.step()
            optimizer.zero_grad()
        return loss

    return step


@RUNS
@pytest.mark.parametrize(
    ("every", "cleared"),
    [
        pytest.param(lambda i: True, 3, id="zero_grad at every batch"),
        pytest.param(lambda i: i % 4 == 3, 3, id="zero_grad before the last, as under accelerator.accumulate"),
        pytest.param(lambda i: i % 4 == 2, 2, id="zero_grad in the middle"),
    ],
)
def test_micro_batches_that_are_lost(run, every, cleared):
    found = check_loss_scale(run(clearing(every)))
    assert (found.status, found.fault) == ("fail", "micro_batches_lost")
    assert f"gradients of {cleared} of 4 micro-batches were cleared" in found.headline


@RUNS
@pytest.mark.parametrize(
    "step",
    [
        pytest.param(lambda: clearing(lambda i: i % 4 == 0), id="before the first"),
        pytest.param(lambda: clearing(lambda i: i == 1), id="once: a batch that is skipped"),
        pytest.param(lambda: clearing(lambda i: True, again=True), id="other gradients of the same rows"),
        pytest.param(
            lambda: clearing(lambda i: True, keep=[]), id="the gradient of each is kept, and all are added up"
        ),
    ],
)
def test_gradients_that_are_cleared_on_purpose(run, step):
    assert check_loss_scale(run(step())).fault != "micro_batches_lost"
