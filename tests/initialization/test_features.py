"""Features of a base: what enters the head, whatever the base; bad input is refused before anything is trained."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from pytest_ftcheck import Features, extract_features, tiny_distilbert, toy_batches

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def bits(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


# ---------------------------------------------------------------------- from a model
def test_the_head_gives_the_models_logits_of_them():
    model, batches = tiny_distilbert(3, seed=0).train(), toy_batches(3, 8, classes=3)
    before, rng = bits(model), torch.get_rng_state()
    found = extract_features(model, batches, held_out=toy_batches(2, 8, classes=3, seed=1))
    assert torch.equal(rng, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert (len(found.x), len(found.held_x), found.classes, found.task) == (24, 16, 3, "single_label")
    model.eval()
    expected = torch.cat([model(inputs) for inputs, _ in batches])
    torch.testing.assert_close(model.classifier(found.x), expected)
    assert not found.x.requires_grad
    assert torch.equal(found.y, torch.cat([y for _, y in batches]))


def test_rows_are_counted_and_a_share_is_held_out():
    found = extract_features(lambda: tiny_distilbert(), toy_batches(8, 8), held_out=0.25, rows=40)
    assert (len(found.x), len(found.held_x)) == (30, 10)


def test_state_is_put_back_after_an_error():
    model = tiny_distilbert(seed=0).train()
    model.classifier[0].weight.data.fill_(float("nan"))
    model.base_model.embeddings.word_embeddings.weight.data.fill_(float("nan"))
    rng = torch.get_rng_state()
    with pytest.raises(ValueError, match="not finite: 16 of 16 rows"):
        extract_features(model, toy_batches(1))
    assert torch.equal(rng, torch.get_rng_state())
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


class Tagger(nn.Module):
    """One label a token."""

    def __init__(self):
        super().__init__()
        self.base = nn.Embedding(20, 6)
        self.classifier = nn.Linear(6, 3)

    def forward(self, ids):
        return self.classifier(self.base(ids))


def test_tokens_are_rows_and_ignored_ones_are_dropped():
    ids = torch.arange(12).reshape(3, 4)
    labels = torch.tensor([[0, 1, 2, -100], [1, 1, -100, -100], [0, 2, 1, 0]])
    model = Tagger()
    found = extract_features(model, [(ids, labels)])
    assert torch.equal(found.y, labels[labels != -100])
    torch.testing.assert_close(found.x, model.base(ids[labels != -100]))


class Decoder(nn.Module):
    """A linear head over all tokens, of which the last that is no padding counts, as in causal decoders."""

    def __init__(self):
        super().__init__()
        self.base = nn.Embedding(20, 6)
        self.score = nn.Linear(6, 2, bias=False)

    def forward(self, input_ids, lengths):
        logits = self.score(self.base(input_ids))
        return logits[torch.arange(len(logits)), lengths - 1]


def test_of_a_decoder_the_token_that_counts_is_taken():
    ids, lengths = torch.arange(12).reshape(3, 4), torch.tensor([2, 4, 1])
    model = Decoder()
    found = extract_features(model, [{"input_ids": ids, "lengths": lengths, "labels": torch.tensor([0, 1, 0])}])
    torch.testing.assert_close(found.x, model.base(torch.tensor([1, 7, 8])))


def test_a_head_that_pools_tokens_itself_and_one_that_normalises_first():
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=20, num_labels=2,
    )  # fmt: skip
    model = RobertaForSequenceClassification(config).eval()
    ids = torch.randint(3, 50, (6, 5), generator=torch.Generator().manual_seed(0))
    found = extract_features(model, [{"input_ids": ids, "labels": torch.tensor([0, 1, 0, 1, 1, 0])}])
    torch.testing.assert_close(model.classifier(found.x[:, None]), model(input_ids=ids).logits)

    normed = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 2)))
    found = extract_features(normed, [(X, Y)], head="1")
    torch.testing.assert_close(normed[1](found.x), normed(X))


def test_tags_and_numbers():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    found = extract_features(model, [(X, (X[:, :3] > 0).float())], head="1")
    assert (found.task, found.classes, tuple(found.y.shape)) == ("multi_label", 3, (40, 3))
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 1))
    found = extract_features(model, [(X, X[:, :1])], head="1")
    assert (found.task, found.classes, tuple(found.y.shape)) == ("regression", None, (40,))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, "model is a int"),
        ({"model": lambda: 3}, TypeError, r"model\(\) returned a int"),
        ({"batches": []}, ValueError, "batches is empty"),
        ({"batches": [(X, None)]}, ValueError, "labels"),
        ({"batches": [(X, torch.zeros(40, dtype=torch.long))]}, ValueError, "all 40 rows have class 0"),
        ({"head": "nonsense"}, ValueError, "head='nonsense'"),
        ({"rows": 1}, ValueError, "rows=1"),
        ({"rows": 2.5}, TypeError, "rows=2.5"),
        ({"held_out": 1.5}, ValueError, "held_out=1.5"),
        ({"held_out": []}, ValueError, "held_out is empty"),
    ],
)
def test_bad_input_to_extract_features(change, error, message):
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    given = {"model": model, "batches": [(X, Y)], "head": "1", **change}
    with pytest.raises(error, match=message):
        extract_features(**given)


def test_a_head_without_linear_layers():
    model = nn.Sequential(nn.Linear(6, 2), nn.PReLU())
    with pytest.raises(ValueError, match="no linear layer"):
        extract_features(model, [(X, Y)], head="1")


# ---------------------------------------------------------------------- by hand
def test_made_by_hand():
    found = Features.of(X.numpy().astype(np.float64), Y.numpy(), held_out=0.25, seed=3)
    assert found.x.dtype == torch.float64
    assert (len(found.x), len(found.held_x), found.width) == (30, 10, 6)
    together = torch.cat([found.x, found.held_x])
    assert sorted(together[:, 0].tolist()) == sorted(X[:, 0].double().tolist())
    other = Features.of(X, Y, held_out=(X[:4], Y[:4]))
    assert other.judged[2] == "held-out rows"
    y = Y.clone()
    y[:5] = -100
    assert len(Features.of(X, y).x) == 35
    x = copy.deepcopy(X)
    found = Features.of(x, Y)
    x.zero_()  # what is the user's may change later
    assert float(found.x.abs().sum()) > 0


@pytest.mark.parametrize(
    ("x", "y", "more", "message"),
    [
        (X.long(), Y, {}, "x is int64 of shape .*extract_features"),
        (X[0], Y, {}, "expected .rows, width."),
        (X[:0], Y[:0], {}, "x has no rows"),
        (X, Y[:3], {}, "one label for each of the 40 rows"),
        (X / 0, Y, {}, "x is not finite: 40 of 40 rows"),
        (X, torch.ones(40, dtype=torch.long), {}, "all 40 rows have class 1"),
        (X, torch.full((40,), -100), {}, "every row is labelled -100"),
        (X, torch.ones(40), {}, "a constant"),
        (X, Y - 1, {}, "label -1 is none of the"),
        (X, Y, {"classes": 1}, "label 1 is none of the 1 classes"),
        (X, Y.float(), {"task": "single_label"}, "y is float32"),
        (X, X[:, :2], {"task": "multi_label"}, "of 0 and 1"),
        (X, X[:, 0] / 0, {}, "y is not finite"),
        (X, Y, {"task": "ranking"}, "task='ranking'"),
        (X, Y, {"held_out": 0.0}, "held_out=0.0"),
        (X, Y, {"held_out": (X[:, :3], Y)}, "held_x has 3 features"),
        (X, Y, {"held_out": (X,)}, "tuple of 1"),
    ],
)
def test_bad_features(x, y, more, message):
    with pytest.raises(ValueError, match=message):
        Features.of(x, y, **more)


def test_no_tensor_at_all():
    with pytest.raises(TypeError, match="x is a str"):
        Features.of("words", Y)
