"""Should the head's weights have moved more? The founding question, on real weights and real texts.

``pytest docs/examples/test_founding_question.py -s`` shows the answer.
"""

from __future__ import annotations

import collections

import founding
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    PreTrainedTokenizerFast,
)

from pytest_ftcheck import (
    assert_all_finite,
    assert_grads_nonzero,
    assert_loss_decreases,
    assert_metric_improves,
    assert_weights_move,
    explain_weight_motion,
)


@pytest.fixture(scope="module")
def trace(finetune):
    """One fine-tune as in the question: AdamW, warm-up to 5e-5, batches of 16."""
    batches, held_out = founding.news()
    trace = finetune(
        founding.make_model, batches, head="classifier", lr=5e-5, warmup=0.1, steps=60, eval_batches=held_out
    )
    print(trace)
    return trace


def test_the_head_moves(trace):
    assert_weights_move(trace, part="head")
    print(explain_weight_motion(trace))


def test_gradients_reach_the_head(trace):
    assert_grads_nonzero(trace, part="head")


def test_the_loss_decreases(trace):
    assert_loss_decreases(trace)


def test_accuracy_improves_on_rows_never_trained_on(trace):
    assert_metric_improves(trace, "accuracy")


def test_every_number_is_finite(trace):
    assert_all_finite(trace)


def test_the_histogram_stands_still_while_every_element_moves(trace):
    head = trace.tensor("classifier.0.weight")
    assert head.last.std == pytest.approx(head.first.std, rel=0.01)
    assert head.motion.share_changed > 0.99
    assert head.motion.largest < 1.25 * head.lr_sum  # about one learning rate a step


def test_twenty_steps_are_enough(finetune):
    batches, _ = founding.news()
    trace = finetune(founding.make_model, batches, head="classifier", lr=5e-5, steps=20, probes=["loss", "descent"])
    assert_weights_move(trace, part="head")
    assert_grads_nonzero(trace, part="head")
    assert_loss_decreases(trace)


# ---------------------------------------------------------------------- the helpers themselves
def test_a_bert_folded_into_a_distilbert_is_the_same_function():
    config = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    _same(BertModel(config, add_pooling_layer=False), torch.randint(99, (4, 12)))


def test_the_packaged_bert_too(monkeypatch):
    monkeypatch.delenv("FTCHECK_CHECKPOINT", raising=False)
    bert = BertModel.from_pretrained(founding.checkpoint(), add_pooling_layer=False)
    (ids, _, _), _ = founding.news()[0][0]
    _same(bert, ids)


def _same(bert: BertModel, ids: torch.Tensor) -> None:
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    with torch.no_grad():
        expected = bert.eval()(ids, attention_mask=mask)[0]
        folded = founding.fold(bert)(ids, attention_mask=mask)[0]
    assert torch.allclose(folded, expected, atol=1e-5)


SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
CONFIGS = {
    "distilbert": DistilBertConfig(vocab_size=300, dim=32, n_layers=2, n_heads=4, hidden_dim=64),
    "bert": BertConfig(**SMALL),
    "electra": ElectraConfig(**SMALL, embedding_size=32),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_any_checkpoint_will_do(finetune, kind, tmp_path, monkeypatch):
    AutoModel.from_config(CONFIGS[kind]).save_pretrained(tmp_path)
    _tokenizer().save_pretrained(tmp_path)
    monkeypatch.setenv("FTCHECK_CHECKPOINT", str(tmp_path))
    batches, held_out = founding.news(tokens=16)
    model = founding.make_model()
    assert isinstance(model.base, DistilBertModel) == (kind != "electra")
    trace = finetune(model, batches, head="classifier", lr=1e-3, steps=5, eval_batches=held_out)
    assert_weights_move(trace)
    assert_grads_nonzero(trace)


def _tokenizer() -> PreTrainedTokenizerFast:
    """A vocabulary of the news' 290 commonest words."""
    words = collections.Counter(word for text, _ in founding.texts() for word in text.lower().split() if word.isalpha())
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(word for word, _ in words.most_common(290))]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")


def test_held_out_rows_are_never_trained_on():
    batches, held_out = founding.news()
    rows = [
        {tuple(row[:n].tolist()) for (ids, length, _), _ in part for row, n in zip(ids, length, strict=True)}
        for part in (batches, held_out)
    ]
    assert len(rows[1]) > 150
    assert not rows[0] & rows[1]
