"""What a loop really gives the model, its base and the loss: seen in the loop's own calls."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from pytest_ftcheck import (
    check_loss_matches_task,
    check_padding_ignored,
    finetune,
    tiny_distilbert,
    toy_batches,
    watch,
)
from pytest_ftcheck.checks.loop.record import LoopCalls
from pytest_ftcheck.instruments.tiny_architectures import tiny
from pytest_ftcheck.instruments.tiny_tasks import batches_for

BATCHES = toy_batches()


def loop(*, mask=lambda m: m, form=lambda z: z, labels=lambda y: y, loss=F.cross_entropy, used=lambda z: z):
    def step(model, batch, optimizer, scheduler):
        (ids, length, real), y = batch
        optimizer.zero_grad()
        value = loss(form(used(model((ids, length, mask(real))))), labels(y))
        if value.requires_grad:
            value.backward()
        optimizer.step()
        return value

    return step


def in_finetune(step, steps=6, **more):
    model = tiny_distilbert(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    trace = finetune(model, BATCHES, optimizer=optimizer, step=step, steps=steps, probes=["loop"], **more)
    return trace.measured(LoopCalls)


def in_watch(step, steps=6):
    model = tiny_distilbert(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watch(model, optimizer, probe_batch=BATCHES[0], probes=["loop"]) as w:
        for i in range(steps):
            step(model, BATCHES[i % len(BATCHES)], optimizer, None)
    return w.trace.measured(LoopCalls)


RUNS = pytest.mark.parametrize("run", [in_finetune, in_watch])


@RUNS
def test_a_healthy_loop(run):
    found = run(loop())
    assert found.iterations == (0, 1, 2, 4)
    assert found.base == "base_model"
    assert found.base_library
    assert {c.mask for c in found.calls} == {"right"}
    assert {(c.function, c.input, c.reordered) for c in found.losses} == {("cross_entropy", "output", False)}
    assert found.losses[0].own_labels == 1
    assert (found.backwards, found.reached) == (4, 4)
    assert found.mask_effect is None


@RUNS
@pytest.mark.parametrize(
    ("mask", "kind"),
    [(torch.ones_like, "all ones"), (lambda m: 1 - m, "inverted"), (lambda m: m * 0 + torch.rand(m.shape), "other")],
)
def test_masks_are_compared_with_the_padding(run, mask, kind):
    found = run(loop(mask=mask))
    assert {c.mask for c in found.calls} == {kind}
    assert (found.mask_effect is not None) == (kind != "other")


@RUNS
@pytest.mark.parametrize(
    ("form", "loss", "told"),
    [
        (lambda z: z.softmax(-1), F.cross_entropy, ("cross_entropy", "softmax")),
        (lambda z: torch.nn.Softmax(1)(z).float(), torch.nn.CrossEntropyLoss(), ("cross_entropy", "softmax")),
        (lambda z: z.sigmoid(), F.cross_entropy, ("cross_entropy", "sigmoid")),
        (lambda z: z.log_softmax(-1), F.nll_loss, ("nll_loss", "log_softmax")),
        (lambda z: z.softmax(-1).log(), F.nll_loss, ("nll_loss", "other")),
        (lambda z: 2 * z, F.cross_entropy, ("cross_entropy", "other")),
        (lambda z: z.view(-1, 2)[:, None].squeeze(1), F.cross_entropy, ("cross_entropy", "output")),
    ],
)
def test_what_enters_the_loss(run, form, loss, told):
    assert {(c.function, c.input) for c in run(loop(form=form, loss=loss)).losses} == {told}


def test_labels_in_another_order_are_told_from_classes_with_other_numbers():
    shifted = in_finetune(loop(labels=lambda y: y.roll(1)))
    assert all(c.reordered for c in shifted.losses)
    assert max(c.own_labels for c in shifted.losses) < 0.8
    assert not any(c.reordered for c in in_finetune(loop(labels=lambda y: 1 - y)).losses)
    assert in_watch(loop(labels=lambda y: y.roll(1))).losses[0].reordered


def test_rows_and_labels_that_are_shuffled_together_are_as_they_were():
    def step(model, batch, optimizer, scheduler):
        (ids, length, real), y = batch
        order = torch.randperm(len(y))
        optimizer.zero_grad()
        value = F.cross_entropy(model((ids[order], length[order], real[order])), y[order])
        value.backward()
        optimizer.step()
        return value

    assert {c.own_labels for c in in_finetune(step).losses} == {1.0}


def test_a_loss_that_is_not_backpropagated_is_not_the_loops():
    def both(z, y):
        F.mse_loss(z.softmax(-1), z.detach())  # computed, and thrown away
        return F.cross_entropy(z, y)

    assert {c.function for c in in_finetune(loop(loss=both)).losses} == {"cross_entropy"}


@RUNS
@pytest.mark.parametrize(
    ("loss", "negated"),
    [
        (lambda z, y: -F.cross_entropy(z, y), True),
        (lambda z, y: 2 - 0.5 * F.cross_entropy(z, y, reduction="none").sum(), True),
        (lambda z, y: 3 * F.cross_entropy(z, y), False),
        (lambda z, y: F.cross_entropy(z, y) - 0.1 * F.cross_entropy(z, y, label_smoothing=0.5), None),
    ],
)
def test_the_sign_of_a_loss(run, loss, negated):
    found = {c.negated for c in run(loop(loss=loss)).losses}
    assert found == ({True, False} if negated is None else {negated})


@RUNS
def test_labels_that_are_predictions(run):
    assert {c.predicted for c in run(loop(loss=lambda z, _: F.cross_entropy(z, z.argmax(-1)))).losses} == {1.0}
    assert min(c.predicted for c in run(loop()).losses) < 1


def test_a_detached_output_is_not_reached():
    found = in_finetune(loop(used=lambda z: z.detach().requires_grad_()))
    assert found.backwards == found.outputs == 4
    assert found.reached == 0
    assert found.detached
    assert not in_finetune(loop()).detached


@RUNS
def test_nothing_of_ours_is_left(run):
    model = tiny_distilbert(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = len(_get_current_function_mode_stack())

    def step(*_):
        raise KeyError("mine")

    with pytest.raises(KeyError):
        finetune(model, BATCHES, optimizer=optimizer, step=step, steps=3)
    with pytest.raises(KeyError), watch(model, optimizer, probe_batch=BATCHES[0]):
        step()
    assert len(_get_current_function_mode_stack()) == before
    assert not any(m._forward_hooks for m in model.modules())


def test_the_training_is_the_same_bit_for_bit():
    def weights(probes):
        model = tiny_distilbert(seed=0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        kept = {}

        def step(model, batch, optimizer, scheduler):
            value = loop()(model, batch, optimizer, scheduler)
            kept.update({n: p.detach().clone() for n, p in model.named_parameters()})
            return value

        finetune(model, BATCHES, optimizer=optimizer, step=step, steps=5, probes=probes)
        return kept

    one, two = weights([]), weights(["loop"])
    assert all(torch.equal(one[n], two[n]) for n in one)


# ------------------------------------------------------------------ nothing is known but the model
def alone(step, model=None, steps=6):
    model = tiny_distilbert(seed=0) if model is None else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watch(model) as w:
        for i in range(steps):
            step(model, BATCHES[i % len(BATCHES)], optimizer, None)
    return w.trace


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"form": lambda z: z.softmax(-1)}, "double_softmax"),
        ({"loss": lambda z, y: -F.cross_entropy(z, y)}, "loss_negated"),
        ({"loss": lambda z, _: F.cross_entropy(z, z.argmax(-1))}, "own_predictions_as_targets"),
        ({"loss": lambda z, _: F.cross_entropy(z, z.detach().softmax(-1).max(-1).indices)}, None),
        ({"loss": lambda z, _: F.cross_entropy(z, z.softmax(-1).max(-1).indices)}, "own_predictions_as_targets"),
        (
            {"loss": lambda z, _: F.cross_entropy(z, torch.topk(z.detach(), 1).indices[:, 0])},
            "own_predictions_as_targets",
        ),
        ({}, None),
    ],
    ids=["softmax", "negated", "argmax", "softmax of a copy", "max of softmax", "topk", "healthy"],
)
def test_the_loss_of_a_loop_without_a_probe_batch(given, fault):
    found = check_loss_matches_task(alone(loop(**given)))
    assert found.fault == (fault or "")
    assert found.status == ("fail" if fault else "inconclusive")


@pytest.mark.parametrize("labels", ["of the batch", "of a teacher", "counted beside it"])
def test_labels_that_the_model_did_not_choose(labels):
    teacher = tiny_distilbert(seed=1)

    def step(model, batch, optimizer, scheduler):
        inputs, y = batch
        optimizer.zero_grad()
        z = model(inputs)
        if labels == "of a teacher":
            y = teacher(inputs).argmax(-1)
        elif labels == "counted beside it":
            float((z.argmax(-1) == y).float().mean())
        F.cross_entropy(z, y).backward()
        optimizer.step()

    trace = alone(step)
    assert not any(c.chosen_by_model for c in trace.measured(LoopCalls).losses)
    assert check_loss_matches_task(trace).status == "inconclusive"


def padded(pad_id, words, mask):
    """A DistilBERT that takes ``pad_id`` for padding, trained on rows of these words, the shorter half of them padded with zeros."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 128}
    model = DistilBertForSequenceClassification(DistilBertConfig(**sizes, pad_token_id=pad_id))

    def step(model, batch, optimizer, scheduler):
        ids = torch.randint(*words, (16, 12))
        ids[:8, 5:] = 0
        real = (ids != 0).long()
        optimizer.zero_grad()
        z = model(ids, attention_mask={"right": real, "none": None, "ones": torch.ones_like(real)}[mask]).logits
        F.cross_entropy(z, torch.randint(2, (16,))).backward()
        optimizer.step()

    return alone(step, model)


@pytest.mark.parametrize(
    ("pad_id", "words", "mask", "fault"),
    [
        (0, (1, 60), "none", "mask_not_passed"),
        (0, (1, 60), "ones", "mask_all_ones"),
        (0, (1, 60), "right", ""),
        (None, (1, 60), "none", ""),  # nothing says what is padding
        (0, (0, 4), "none", ""),  # 0 is a word here
    ],
)
def test_the_mask_of_a_loop_without_a_probe_batch(pad_id, words, mask, fault):
    found = check_padding_ignored(padded(pad_id, words, mask))
    assert found.fault == fault
    assert found.status == ("fail" if fault else "inconclusive")


def test_a_loss_fn_is_observed_whichever_probes_are_named():
    def loss_fn(model, batch):
        (ids, length, real), y = batch
        return F.cross_entropy(model((ids, length, torch.ones_like(real))), y)

    trace = finetune(tiny_distilbert(seed=0), BATCHES, loss_fn=loss_fn, steps=6, probes=["inputs"])
    assert check_padding_ignored(trace).fault == "mask_all_ones"


def test_a_decoders_own_ids_are_no_text_without_a_mask():
    """The start token of T5 is its padding id, and prompt tuning gives the encoder vectors, so that only the decoder is given ids."""

    class OfVectors(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny("t5", "seq2seq")

        def forward(self, input_ids, attention_mask, labels):
            words = self.inner.get_input_embeddings()(input_ids)
            return self.inner(inputs_embeds=words, attention_mask=attention_mask, labels=labels)

    trace = finetune(OfVectors(), batches_for(tiny("t5", "seq2seq")), steps=4, lr=1e-3, probes=["inputs"])
    assert check_padding_ignored(trace).status != "fail"
