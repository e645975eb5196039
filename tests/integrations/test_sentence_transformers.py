"""SentenceTransformerTrainer: metric learning is healthy without a head, and a loss module's parameters are the head."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_sentence_transformer import make_data, make_model, make_trainer
from torch import nn

from pytest_ftcheck import diagnose, watch
from pytest_ftcheck.checks.loop.record import LoopCalls

try:
    from sentence_transformers.sentence_transformer import losses
except ImportError:  # an older one
    from sentence_transformers import losses

pytestmark = pytest.mark.trains

KINDS = {
    "pairs": losses.MultipleNegativesRankingLoss,
    "topics": losses.BatchAllTripletLoss,
    "same": lambda model: Softmax(model),
}


class Softmax(losses.SoftmaxLoss):
    """``SoftmaxLoss`` of two classes, with another loss of the logits."""

    def __init__(self, model, of_logits=nn.functional.cross_entropy):
        super().__init__(model, 32, num_labels=2)
        self.of_logits = of_logits

    def forward(self, sentence_features, labels):
        _, logits = super().forward(sentence_features, None)
        return self.of_logits(logits, labels.view(-1))


def train(
    folder, kind, loss=None, *, watched=True, optimizer=None, collator=None, data=None, family="DistilBert", seed=0
):
    """The trace (None: unwatched), and the trained weights of the model and its loss."""
    torch.manual_seed(seed)
    model = make_model(folder / "base", family=family, seed=seed)
    objective = (loss or KINDS[kind])(model)
    options = {} if optimizer is None else {"optimizers": (optimizer(model, objective), None)}
    rows = make_data(kind) if data is None else data
    trainer = make_trainer(model, rows, objective, folder / "out", seed=seed, **options)
    if collator is not None:
        trainer.data_collator = collator(trainer.data_collator)
    callbacks = list(trainer.callback_handler.callbacks)
    if watched:
        with watch(trainer) as w:
            trainer.train()
    else:
        trainer.train()
    assert trainer.callback_handler.callbacks == callbacks
    weights = {**model.state_dict(), **{f"loss.{n}": p.detach() for n, p in objective.named_parameters()}}
    return (w.trace if watched else None), weights


def first_cause(trace):
    causes = diagnose(trace).causes
    return causes[0].fault if causes else None


def differing(one, two):
    """Names of weights, and how far they differ."""
    return {n: float((one[n] - two[n]).abs().max()) for n in one if not torch.equal(one[n], two[n])}


@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_training_is_silent_and_the_same_to_the_bit(tmp_path, kind):
    trace, watched = train(tmp_path, kind)
    assert first_cause(trace) is None, diagnose(trace)
    _, alone = train(tmp_path, kind, watched=False)
    if changed := differing(alone, watched):
        _, again = train(tmp_path, kind, watched=False)
        without = differing(alone, again)
        raise AssertionError(f"watching changed {changed}; two trainings without it differ in {without or 'nothing'}")


def test_embeddings_have_no_head_and_no_logits(tmp_path):
    trace, _ = train(tmp_path, "topics")
    assert trace.head == ()
    assert any("no head was found" in note for note in trace.notes)
    assert trace.reading.task is None
    assert trace.probe_loss.points[-1].loss < trace.probe_loss.points[0].loss


def test_parameters_of_the_loss_are_the_head(tmp_path):
    trace, _ = train(tmp_path, "same")
    assert trace.head == ("loss.classifier",)
    assert trace.tensor("loss.classifier.weight").motion.share_changed > 0.99
    assert trace.reading.task == "single_label"


def test_an_unused_pooler_is_no_fault(tmp_path):
    trace, _ = train(tmp_path, "pairs", family="Bert")
    assert any("pooler" in t.name for t in trace.tensors)
    assert first_cause(trace) is None, diagnose(trace)


@pytest.mark.parametrize(
    ("fault", "of_logits"),
    [
        ("double_softmax", lambda z, y: nn.functional.cross_entropy(z.softmax(-1), y)),
        ("loss_negated", lambda z, y: -nn.functional.cross_entropy(z, y)),
        ("own_predictions_as_targets", lambda z, y: nn.functional.cross_entropy(z, z.argmax(-1))),
    ],
)
def test_a_wrong_loss_is_the_first_cause(tmp_path, fault, of_logits):
    trace, _ = train(tmp_path, "same", lambda model: Softmax(model, of_logits))
    assert first_cause(trace) == fault, diagnose(trace)


def of_the_model_alone(model, loss):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def head_at_zero(model, loss):
    groups = [{"params": list(model.parameters())}, {"params": list(loss.classifier.parameters()), "lr": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3)


@pytest.mark.parametrize(("fault", "optimizer"), [("not_in_optimizer", of_the_model_alone), ("lr_zero", head_at_zero)])
def test_a_loss_module_that_is_not_trained_is_the_first_cause(tmp_path, fault, optimizer):
    trace, _ = train(tmp_path, "same", optimizer=optimizer)
    assert first_cause(trace) == fault, diagnose(trace)


def mask_of_ones(collator):
    """A collator that forgets which tokens are padding."""
    kind = type(collator)

    class Forgets(kind):
        def __call__(self, rows):
            batch = super().__call__(rows)
            return {k: torch.ones_like(v) if k.endswith("attention_mask") else v for k, v in batch.items()}

    collator = copy.copy(collator)
    collator.__class__ = Forgets
    return collator


def some_short(kind):
    """Every second text has two words: a mask matters where there is much padding."""

    def shortened(row, i):
        return {k: " ".join(v.split()[:2]) if isinstance(v, str) and i % 2 else v for k, v in row.items()}

    return make_data(kind).map(shortened, with_indices=True)


@pytest.mark.parametrize("kind", ["same", "pairs"])
def test_a_healthy_training_on_texts_of_very_different_lengths_is_silent(tmp_path, kind):
    trace, _ = train(tmp_path, kind, data=some_short(kind))
    assert first_cause(trace) is None, diagnose(trace)
    assert {c.mask for c in trace.measured(LoopCalls).calls} == {"right"}


@pytest.mark.parametrize("kind", ["same", "pairs"])
def test_a_mask_that_the_collator_forgets_is_the_first_cause(tmp_path, kind):
    trace, _ = train(tmp_path, kind, collator=mask_of_ones, data=some_short(kind))
    assert first_cause(trace) == "mask_all_ones", diagnose(trace)
