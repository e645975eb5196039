"""Healthy controls: tasks other than one label for a text."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .cases import PAD, SEP, Run, control
from .tasks import (
    SMALL,
    answers,
    causal_lm,
    choices,
    images,
    masked_lm,
    of_bert,
    preferences,
    relabelled,
    speech,
    token_classes,
    translation,
)

DOCS = "transformers docs"


@control("task", "A causal language model is taught the next word", DOCS + ": GPT2LMHeadModel")
def next_words(seed: int) -> Run:
    return causal_lm(seed)


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = {"bos_token_id": 1, "eos_token_id": SEP, "pad_token_id": PAD}
    return LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2, **ids))


@control("task", "Llama as a language model; only the second half of each text is taught", DOCS + ": labels of -100")
def completions_only(seed: int) -> Run:
    def second_half(batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "labels": torch.where(torch.arange(16) < 6, -100, batch["labels"])}

    return relabelled(causal_lm(seed, llama), second_half)


@control("task", "BERT as a decoder is taught the next word", DOCS + ": BertLMHeadModel (is_decoder)")
def next_words_by_bert(seed: int) -> Run:
    return causal_lm(seed, of_bert("LMHeadModel", is_decoder=True))


@control("task", "A masked language model: one word in six is hidden and taught", DOCS + ": BertForMaskedLM")
def masked_words(seed: int) -> Run:
    return masked_lm(seed)


@control("task", "An encoder and a decoder: phrases for texts", DOCS + ": T5ForConditionalGeneration")
def phrases_for_texts(seed: int) -> Run:
    return translation(seed)


@control("task", "BERT's own class for a label a word", DOCS + ": BertForTokenClassification")
def bert_labels_words(seed: int) -> Run:
    return token_classes(seed)


@control("task", "Where an answer begins and ends", DOCS + ": BertForQuestionAnswering")
def places_of_answers(seed: int) -> Run:
    return answers(seed, steps=60)


@control("task", "Which of three texts is right", DOCS + ": BertForMultipleChoice")
def one_of_three_texts(seed: int) -> Run:
    return choices(seed)


@control("task", "Images in patches", DOCS + ": ViTForImageClassification")
def images_in_patches(seed: int) -> Run:
    return images(seed)


class Convolutions(nn.Module):
    """Three convolutions with batch normalisation, and the mean over the image."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.encoder, self.head = nn.Sequential(*layers), nn.Linear(32 * 4, 3)

    def forward(self, pixel_values):
        return self.head(self.encoder(pixel_values).flatten(1))


def of_images(model: Any, batch: Any) -> Any:
    return F.cross_entropy(model(batch["pixel_values"]), batch["labels"])


def images_right(model: Any, batch: Any) -> float:
    return float((model(batch["pixel_values"]).argmax(-1) == batch["labels"]).float().mean())


@control("task", "Images through convolutions with batch normalisation", "torchvision references: classification")
def images_through_convolutions(seed: int) -> Run:
    return images(seed, Convolutions, loss_fn=of_images, head="head", score=images_right)


@control("task", "CTC: letters of a sound, blank 0, padding of -100 left out", "PyTorch docs: torch.nn.CTCLoss")
def letters_of_a_sound(seed: int) -> Run:
    return speech(seed)


@control("task", "DPO against a frozen copy of the start", "arXiv:2305.18290")
def preferred_answers(seed: int) -> Run:
    return preferences(seed)


# ------------------------------------------------------------------------------------------ tensors without a gradient by design
def _with_own_loss(seed: int, build: Any) -> Run:
    from .cases import adamw, own_loss, textual

    run = textual(
        seed, build, loss_fn=own_loss, optimizer=lambda m: adamw(m, lr=2e-3),
        beliefs={"peak_lr": 2e-3, "trained": (), "dropout": None},
    )  # fmt: skip
    run.head = None
    return run


@control("architecture", "LiLT: the last layer of its layout stream reaches nothing, by design", "arXiv:2202.13669")
def lilt_layout_stream(seed: int) -> Run:
    def build() -> nn.Module:
        from transformers import LiltConfig, LiltForSequenceClassification

        return LiltForSequenceClassification(LiltConfig(**{**SMALL, "hidden_size": 48}, num_labels=3, pad_token_id=PAD))

    return _with_own_loss(seed, build)


class Indexed(nn.Module):
    """A head of one's own on a base whose indexer chooses tokens by the largest scores, which has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.models import glm_moe_dsa

        sizes = {
            **SMALL,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        }
        experts = {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "n_group": 1,
            "topk_group": 1,
        }
        indexer = {
            "index_topk": 4,
            "index_n_heads": 2,
            "index_head_dim": 16,
            "first_k_dense_replace": 1,
            "pad_token_id": PAD,
        }
        config = glm_moe_dsa.GlmMoeDsaConfig(**sizes, **experts, **indexer, num_key_value_heads=4)
        self.encoder, self.head = glm_moe_dsa.GlmMoeDsaModel(config), nn.Linear(32, 3)

    def forward(self, input_ids, attention_mask):
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        real = attention_mask[..., None]
        return self.head((hidden * real).sum(1) / real.sum(1))


@control("architecture", "An indexer chooses the tokens to attend to by the largest scores", DOCS + ": GlmMoeDsa")
def indexer_of_tokens(seed: int) -> Run:
    from .cases import adamw, textual

    return textual(seed, Indexed, optimizer=lambda m: adamw(m, lr=3e-3), beliefs={"peak_lr": 3e-3, "dropout": None})


@control("architecture", "BigBird with sparse attention over blocks", "arXiv:2007.14062")
def big_bird_sparse(seed: int) -> Run:
    def build() -> nn.Module:
        from transformers import BigBirdConfig, BigBirdForSequenceClassification

        config = BigBirdConfig(
            **SMALL, num_labels=3, pad_token_id=PAD, sep_token_id=SEP, block_size=4, num_random_blocks=1
        )
        return BigBirdForSequenceClassification(config)

    return _with_own_loss(seed, build)


# ------------------------------------------------------------------------------------------ peft
def adapted(seed: int, config: Any, **more: Any) -> Run:
    """A BERT under peft; ``config`` makes the adapter's configuration."""
    from .cases import adamw, own_loss, textual

    def build() -> nn.Module:
        import peft
        from transformers import BertConfig, BertForSequenceClassification

        base = BertForSequenceClassification(BertConfig(**SMALL, num_labels=3, pad_token_id=PAD))
        return peft.get_peft_model(base, config())

    how = {"steps": 60, **more}
    run = textual(
        seed, build, loss_fn=own_loss,
        optimizer=lambda m: adamw([p for p in m.parameters() if p.requires_grad], lr=2e-2),
        beliefs={"peak_lr": 2e-2, "trained": None, "dropout": None}, **how,
    )  # fmt: skip
    run.head = None
    return run


def lora_config(**changes: Any) -> Any:
    def make() -> Any:
        import peft

        given = {"task_type": "SEQ_CLS", "r": 4, "target_modules": ["query", "value"], **changes}
        return peft.LoraConfig(**given)

    return make


@control("peft", "LoRA of the library peft on a classifier: the head learns beside it", "peft docs: LoRA", slow=True)
def peft_lora(seed: int) -> Run:
    return adapted(seed, lora_config())


@control("peft", "DoRA, rank-stabilised, of the library peft", "arXiv:2402.09353; arXiv:2312.03732", slow=True)
def peft_dora(seed: int) -> Run:
    return adapted(seed, lora_config(use_dora=True, use_rslora=True))


@control("peft", "LoRA of the library peft on a language model", "peft docs: LoRA, TaskType.CAUSAL_LM")
def peft_lora_of_a_language_model(seed: int) -> Run:
    def build() -> nn.Module:
        import peft

        return peft.get_peft_model(llama(), lora_config(task_type="CAUSAL_LM", target_modules="all-linear")())

    return causal_lm(seed, build, lr=1e-2, steps=60)
