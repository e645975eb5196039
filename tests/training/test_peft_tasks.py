"""Adapters on the classes of other tasks: loaded for inference, a head that was forgotten, and their healthy twins."""

from __future__ import annotations

import pytest
import torch

from pytest_ftcheck import Intent, check_logits_unbounded, check_reload_keeps_head, diagnose, finetune
from pytest_ftcheck.checks.head.base_twin_record import BaseTwin
from pytest_ftcheck.instruments.tiny_architectures import tiny
from pytest_ftcheck.instruments.tiny_tasks import batches_for

peft = pytest.importorskip("peft")
pytestmark = [
    # peft asks transformers in words that transformers 5 calls old
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    # peft 0.13, of a model made from a config
    pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning"),
]
LORA = {"r": 4, "target_modules": ["q_lin", "v_lin"]}


def adapted(task, **config):
    torch.manual_seed(0)
    base = tiny("distilbert", task)
    return peft.get_peft_model(base, peft.LoraConfig(**LORA, **config)), batches_for(base)


@pytest.mark.trains
def test_adapters_loaded_for_inference_are_refused_by_the_argument_that_is_missing(tmp_path):
    model, batches = adapted("token-classification")  # of a task type, peft 0.13 leaves the head trainable
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny("distilbert", "token-classification"), tmp_path)
    with pytest.raises(
        ValueError, match=r"no trainable parameter.*PeftModel\.from_pretrained\(model, path, is_trainable=True\)"
    ):
        finetune(loaded, batches)
    trainable = peft.PeftModel.from_pretrained(tiny("distilbert", "token-classification"), tmp_path, is_trainable=True)
    assert finetune(trainable, batches, steps=1, probes=["loss"]).steps


@pytest.mark.trains
@pytest.mark.parametrize(
    ("config", "intent", "first"),
    [
        ({}, None, "head_left_random"),
        ({"task_type": "SEQ_CLS"}, None, ""),
        ({}, Intent(frozen="head"), "logits_bounded"),
    ],
)
def test_a_head_that_was_forgotten_comes_before_bounded_logits(config, intent, first):
    model, batches = adapted("text-classification", **config)
    trace = finetune(model, batches, lr=1e-3, steps=20, seed=0, intent=intent, probes=["loss", "loss_shape"])
    verdict = check_logits_unbounded(trace)
    assert verdict.fault == first
    if first == "head_left_random":
        assert "modules_to_save=['pre_classifier', 'classifier']" in verdict.remedy
        assert diagnose(trace).causes[0].fault == first


@pytest.mark.trains
@pytest.mark.parametrize("outside", [False, True])
def test_a_second_adapter_is_saved_beside_the_first(outside):
    """Not so a weight of the base that is trained without being an adapter's."""
    model, batches = adapted("token-classification", task_type="TOKEN_CLS")
    model.add_adapter("second", peft.LoraConfig(**LORA, task_type="TOKEN_CLS"))
    model.set_adapter("second")
    norm = model.base_model.model.distilbert.embeddings.LayerNorm.weight.requires_grad_(outside)
    assert norm.requires_grad == outside
    verdict = check_reload_keeps_head(finetune(model, batches, lr=1e-3, steps=2, probes=["loss", "head_state"]))
    assert verdict.fault == ("not_saved" if outside else "")
    assert outside or verdict.status == "pass"


@pytest.mark.trains
def test_a_base_that_gives_its_loss_first_is_compared_by_its_logits():
    """Prompt tuning calls the whole model as its base, with the labels."""
    torch.manual_seed(0)
    base = tiny("gpt2", "causal-lm")
    model = peft.get_peft_model(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    trace = finetune(model, batches_for(base), lr=1e-2, steps=1, probes=["base_twin"])
    (found,) = trace.measured(BaseTwin).bases
    assert (found.rows, found.relative, found.first) == (2, 0.0, None)
