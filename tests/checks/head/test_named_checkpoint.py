"""The checkpoint that the base's config names: read where it is on this machine, and compared with nothing declared."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.utils.prune

from pytest_ftcheck import Intent
from pytest_ftcheck.checks.head.probe.named_checkpoint import file_of
from pytest_ftcheck.checks.head.probe.weights import PretrainedProbe
from pytest_ftcheck.instruments.probe import LeftOut


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    at = tmp_path_factory.mktemp("checkpoint")
    model = BertModel(config)
    for p in model.parameters():
        p.data += 0.01 * torch.randn_like(p)  # trained weights: no bias is 0, no gain 1
    model.save_pretrained(at)
    return at


@pytest.fixture
def model(folder):
    from transformers import BertForSequenceClassification

    torch.manual_seed(1)
    return BertForSequenceClassification.from_pretrained(folder, num_labels=3)


def found_of(model):
    context = SimpleNamespace(model=model, head=("classifier",), intent=Intent())
    probe = PretrainedProbe(context)
    probe.before()
    return probe.record()


def test_a_loaded_base_starts_from_it(model, folder):
    found = found_of(model)
    assert found.named == str(folder)
    assert found.compared == found.equal == len(list(model.bert.parameters()))


@pytest.mark.parametrize(
    ("edit", "kind"),
    [
        (lambda layer: layer.attention.self.query.weight.data.zero_(), "constant"),
        (lambda layer: layer.intermediate.dense.weight.data.mul_(5), "scaled"),
        (lambda layer: layer.output.LayerNorm.bias.data.add_(2), "shifted"),
        (
            lambda layer: layer.intermediate.dense.weight.data.copy_(layer.intermediate.dense.weight.data.flip(0)),
            "shuffled",
        ),
        (
            lambda layer: layer.attention.self.query.weight.data.copy_(layer.attention.self.key.weight.data),
            "misplaced",
        ),
        (lambda layer: layer.output.dense.weight.data[::2].zero_(), "rows zeroed"),
    ],
)
def test_what_was_edited_after_loading(model, edit, kind):
    edit(model.bert.encoder.layer[1])
    (found,) = found_of(model).differing
    assert (found.kind, found.part) == (kind, "base")


def test_a_base_trained_since_or_made_from_the_config_alone_is_not_compared(model, folder):
    from transformers import AutoConfig, BertForSequenceClassification

    with torch.no_grad():
        for p in model.parameters():
            p.add_(1e-3)
    fresh = BertForSequenceClassification(AutoConfig.from_pretrained(folder))
    assert file_of(fresh.bert) is not None
    for other in (model, fresh):
        with pytest.raises(LeftOut, match="trained since, or made from the config"):
            found_of(other)


def test_new_top_layers_and_a_larger_vocabulary_are_no_edit(model):
    from pytest_ftcheck.checks.head.pretrained_kept import HARMLESS

    for module in model.bert.encoder.layer[2].modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    model.resize_token_embeddings(40)
    found = found_of(model)
    assert not [d for d in found.differing if d.kind not in HARMLESS and d.edited]
    assert {d.kind for d in found.differing} >= {"resized", "unrelated"}


def test_without_a_file_on_this_machine_nothing_is_compared(model):
    for name in ("", "somebody/no-such-model", "no such name at all!", None):
        model.config._name_or_path = name
        with pytest.raises(LeftOut, match="no pretrained values were declared"):
            found_of(model)


def test_a_file_that_cannot_be_read_is_no_fault(model, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"not a file of tensors")
    model.config._name_or_path = str(tmp_path)
    with pytest.raises(LeftOut, match="cannot be read"):
        found_of(model)


def test_half_a_table_of_zeros_is_an_edit_and_what_has_a_reason_is_none(model):
    def edited():
        return [(d.name, d.kind) for d in found_of(model).differing if d.edited]

    layer = model.bert.encoder.layer[0].output.dense
    torch.nn.utils.prune.ln_structured(layer, "weight", 0.5, n=2, dim=0)  # its mask is a buffer of the model
    table = model.bert.embeddings.word_embeddings.weight
    table.data[0].mul_(1 / 32)  # a padding row, say: hardly anything of the table
    assert edited() == []
    table.data[10:25].zero_()
    table.data[0].mul_(32)
    assert edited() == [("bert.embeddings.word_embeddings.weight", "rows zeroed")]


def test_what_differs_beside_an_edit_belongs_to_it(model):
    own = model.bert.encoder.layer[1].attention.self
    for name in ("weight", "bias"):
        first, second = getattr(own.query, name).data, getattr(own.key, name).data
        kept = first.clone()
        first.copy_(second)
        second.copy_(kept)
    model.bert.encoder.layer[2].output.dense.reset_parameters()  # a new layer: not an edit
    context = SimpleNamespace(model=model, head=("classifier",), intent=Intent())
    PretrainedProbe(context).before()
    at = "bert.encoder.layer.1.attention.self"
    assert set(context.edited) == {f"{at}.{m}.{n}" for m in ("query", "key") for n in ("weight", "bias")}
