"""Tensors to which a library's class gives no gradient by design are exempt; in a changed base or in the user's modules they are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, LiltConfig, LiltModel

from pytest_ftcheck import check_grads_nonzero, check_weights_move, diagnose, example_trace, finetune, toy_batches
from pytest_ftcheck.checks.gradients.record import MissingGradient, ReferenceGradient
from pytest_ftcheck.checks.gradients.severed import by_design
from pytest_ftcheck.checks.head.base_twin_record import BaseTwin, Difference, TwinComparison
from pytest_ftcheck.core.example_trace import tensor
from pytest_ftcheck.core.observations import Gradients
from pytest_ftcheck.instruments.tiny_architectures import tiny
from pytest_ftcheck.instruments.tiny_tasks import batches_for

NAME = "encoder.layer.1.layout.weight"
UNCHANGED = TwinComparison("encoder", "LiltModel", 2, 40, 40, 0.0, 7.6e-6, without_gradient=(NAME,))
CHANGED = replace(UNCHANGED, first=Difference("layer.1", "LiltLayer", "output", 0.5))
SEVERED = ReferenceGradient(missing=(MissingGradient((NAME,), "none", 0.0, 0.4, 0.0),))
NO_GRADIENT = Gradients(20, 20, 0, 0, None, None, 0.0, 0.0, 0.0)


def trace_with(twin=None, reference=None):
    """The healthy trace with a block of a stack that gets no gradient, beside one that does."""
    trace = example_trace()
    living = tensor("encoder.layer.0.layout.weight", "base")
    still = replace(living.motion, share_changed=0.0, share_with_gradient=0.0, rms=0.0, by_gradient=0.0, max_update=0.0)
    dead = tensor(NAME, "base", gradients=NO_GRADIENT, motion=still)
    measurements = {}
    if twin is not None:
        measurements["base_twin"] = BaseTwin((twin,))
    if reference is not None:
        measurements["reference"] = reference
    return replace(trace, tensors=(*trace.tensors, living, dead), measurements=measurements)


@pytest.mark.parametrize("reference", [None, SEVERED], ids=["not used at all", "used for a choice"])
@pytest.mark.parametrize("check", [check_grads_nonzero, check_weights_move])
def test_exempt_only_in_an_unchanged_base(check, reference):
    exempt = check(trace_with(UNCHANGED, reference))
    assert exempt.status == "pass"
    assert exempt.notes == (
        "1 tensor exempt, to which LiltModel gives no gradient by design (nor does a fresh twin of it): " + NAME,
    )
    for twin in (None, CHANGED, replace(UNCHANGED, without_gradient=())):
        assert check(trace_with(twin, reference)).status == "fail"


SIZES = {"vocab_size": 200, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 64, "max_position_embeddings": 64}


class Classifier(nn.Module):
    """A head of one's own on a library's base."""

    def __init__(self, base, layer=-1, detach=False):
        super().__init__()
        self.base, self.layer, self.detach = base, layer, detach
        self.classifier = nn.Linear(48, 2)

    def forward(self, input_ids, attention_mask):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach):
            out = self.base(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        real = attention_mask[..., None]
        return self.classifier((out.hidden_states[self.layer] * real).sum(1) / real.sum(1))


def batches():
    return [{"input_ids": ids, "attention_mask": mask, "labels": labels} for (ids, _, mask), labels in toy_batches(4)]


def fine_tuned(base, **how):
    return finetune(Classifier(base, **how), batches(), steps=8, lr=1e-3)


@pytest.mark.trains
def test_the_last_layout_stream_of_lilt():
    torch.manual_seed(0)
    trace = fine_tuned(LiltModel(LiltConfig(**SIZES)))
    names = by_design(trace)
    assert set(names.values()) == {"LiltModel"}
    assert all("layer.1." in n and "layout" in n for n in names), names
    assert len(names) == 12
    assert not diagnose(trace).having("fail"), diagnose(trace)
    changed = LiltModel(LiltConfig(**SIZES))
    changed.encoder.layer[0].register_forward_hook(lambda _m, _a, out: (out[0], *out[1:]) if False else None)
    assert by_design(fine_tuned(changed))  # a hook that changes nothing is no change
    changed.encoder.layer[0].output.register_forward_hook(lambda _m, _a, out: 0.5 * out)
    trace = fine_tuned(changed)
    assert not by_design(trace)
    assert check_grads_nonzero(trace).status == "fail"


@pytest.mark.trains
def test_an_indexer_that_chooses_the_largest_scores():
    from_library = pytest.importorskip("transformers.models.glm_moe_dsa")
    torch.manual_seed(0)
    config = from_library.GlmMoeDsaConfig(
        **SIZES, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=8, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_group=1, topk_group=1,
        index_topk=4, index_n_heads=2, index_head_dim=16, pad_token_id=0, first_k_dense_replace=1,
    )  # fmt: skip
    trace = fine_tuned(from_library.GlmMoeDsaModel(config))
    assert by_design(trace)
    assert all("indexer" in n for n in by_design(trace))
    assert not diagnose(trace).having("fail"), diagnose(trace)


@pytest.mark.trains
def test_what_the_users_own_head_leaves_out_is_a_fault():
    torch.manual_seed(0)
    early = fine_tuned(BertModel(BertConfig(**SIZES), add_pooling_layer=False), layer=1)
    assert (check_grads_nonzero(early).fault, by_design(early)) == ("layers_not_used", {})
    cut = fine_tuned(BertModel(BertConfig(**SIZES), add_pooling_layer=False), detach=True)
    assert (check_grads_nonzero(cut).fault, by_design(cut)) == ("cut_below_head", {})


@pytest.mark.trains
def test_an_unused_pooler_is_no_fault():
    torch.manual_seed(0)
    assert not diagnose(fine_tuned(BertModel(BertConfig(**SIZES)))).having("fail")


@pytest.mark.parametrize("check", [check_grads_nonzero, check_weights_move])
def test_of_an_unchanged_model_of_the_library_too(check):
    trace = trace_with()
    whole = replace(UNCHANGED, base="LukeForMaskedLM", class_name="LukeForMaskedLM")
    for model, status in ((whole, "pass"), (replace(whole, first=CHANGED.first), "fail"), (None, "fail")):
        twins = BaseTwin((replace(UNCHANGED, without_gradient=()),), model=model)
        assert check(replace(trace, measurements={"base_twin": twins})).status == status


@pytest.mark.trains
@pytest.mark.parametrize(("kind", "unused"), [("reformer", "lm_head.bias"), ("luke", "entity_predictions")])
def test_what_a_librarys_own_head_leaves_out(kind, unused):
    """Reformer refuses gradients in evaluation mode, so the values are changed; Luke predicts entities, too, where it is given some."""
    torch.manual_seed(0)
    model = tiny(kind, "masked-lm")
    batches = batches_for(model)
    trace = finetune(model, batches, steps=4, probes=["base_twin"])
    names = [n for n, of in by_design(trace).items() if of == type(model).__name__]
    assert names
    assert all(n.startswith(unused) for n in names), names
    assert check_grads_nonzero(trace).status == check_weights_move(trace).status == "pass"
    model.lm_head.decoder.register_forward_hook(lambda _m, _a, out: out.detach() + model.lm_head.bias)
    trace = finetune(model, batches, steps=4, probes=["base_twin"])
    assert check_grads_nonzero(trace).status == "fail", "what the user's hook cuts off is a fault"
    assert "lm_head.decoder.weight" not in by_design(trace)


@pytest.mark.trains
def test_a_tensor_that_is_added_to_a_librarys_head_is_a_fault():
    torch.manual_seed(0)
    model = tiny("bert", "masked-lm")
    model.cls.spare = nn.Linear(64, 64)
    trace = finetune(model, batches_for(model), steps=4, probes=["base_twin"])
    assert not by_design(trace)
    assert check_grads_nonzero(trace).status == "fail"
