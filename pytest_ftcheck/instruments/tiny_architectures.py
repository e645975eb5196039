"""Tiny versions of the architectures of transformers, for the tasks that it has classes for."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from ..core.formatting import named_error
from .tiny_tasks import CLASSES, DEFAULT, TASKS

#: A model with more parameters than this was not made small by `SIZES`.
LARGEST = 30_000_000
_VOCABULARY, _WIDTH, _HEADS, _LAYERS = 128, 64, 4, 2
#: Names of sizes in the configs, and their small values.
SIZES: dict[str, Any] = {
    "vocab_size": _VOCABULARY, "hidden_size": _WIDTH, "d_model": _WIDTH, "n_embd": _WIDTH, "dim": _WIDTH, "emb_dim": _WIDTH,
    "embedding_size": _WIDTH, "num_hidden_layers": _LAYERS, "num_layers": _LAYERS, "n_layer": _LAYERS, "n_layers": _LAYERS,
    "encoder_layers": _LAYERS, "decoder_layers": _LAYERS, "num_decoder_layers": _LAYERS, "num_attention_heads": _HEADS,
    "n_head": _HEADS, "n_heads": _HEADS, "num_heads": _HEADS, "encoder_attention_heads": _HEADS, "decoder_attention_heads": _HEADS,
    "num_key_value_heads": 2, "intermediate_size": 128, "ffn_dim": 128, "d_ff": 128, "d_inner": 128, "n_inner": 128,
    "hidden_dim": 128, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "d_kv": 16, "head_dim": 16, "d_head": 16,
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "type_vocab_size": 2, "num_local_experts": 4, "num_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16, "v_head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2,
    "num_labels": CLASSES, "num_hidden_groups": 1, "attention_window": 8, "block_size": 8, "state_size": 8, "use_cache": False,
    "embedding_dim": _WIDTH, "bottleneck_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32,
    "attention_types": [[["global"], _LAYERS]],
    "rotary_dim": 8, "word_embed_proj_dim": _WIDTH, "axial_pos_shape": (4, 4), "axial_pos_embds_dim": (32, 32),
    "entity_vocab_size": 16, "entity_emb_size": _WIDTH, "attention_head_size": 16, "num_buckets": 4, "attn_layers": ["local", "lsh"],
    "relative_attention_num_buckets": 8, "max_2d_position_embeddings": 64, "projection_dim": _WIDTH,
    "d_latents": _WIDTH, "num_latents": 8, "num_self_attends_per_block": _LAYERS, "num_self_attention_heads": _HEADS,
    "num_cross_attention_heads": _HEADS, "coordinate_size": 8, "shape_size": 16, "num_hash_buckets": 64, "patch_size": 8,
    "shape_vocab_size": 16, "pronunciation_vocab_size": 16, "shape_embed_dim": 16, "pronunciation_embed_dim": 16, "depth": _LAYERS,
    "out_hidden_size": _WIDTH, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": _HEADS,
    "linear_num_value_heads": _HEADS, "mamba_n_heads": 8, "mamba_num_heads": 8, "mamba_d_ssm": 128, "mamba_head_dim": 16,
    "mamba_d_state": 8, "ssm_state_size": 8, "mamba_chunk_size": 8, "vocab_size_per_layer_input": _VOCABULARY,
    "hidden_size_per_layer_input": 16, "linear_head_dim": 16, "linear_num_heads": _HEADS,
}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
#: Other settings of single architectures, whose code has constants that do not fit these sizes.
PECULIAR: dict[str, dict[str, Any]] = {
    "esmc": {"num_key_value_heads": _HEADS},
    "dots1": {"n_shared_experts": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 48},  # a multiple of 6
    "mpnet": {"relative_attention_num_buckets": 32},
    "mamba2": {"num_heads": 8},
    "t5": {"decoder_start_token_id": 0},
    "reformer": {"max_position_embeddings": 16},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 8},
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"],
        "hybrid_layer_ids": [1],
        "mamba_d_state": 8,
        "n_mamba_heads": 8,
        "chunk_size": 8,
    },
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _ROPE)},
}
#: Arguments of `finetune` that single architectures need.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "reformer": {"lr": 3e-3, "steps": 120},  # its hashing is noisy
    "perceiver": {"head": "perceiver.decoder"},  # its last layer is called final_layer, as many others are
}


def architectures(task: str = DEFAULT) -> dict[str, str]:
    """Model types that transformers has a class for this task of, and the class that each names.

    >>> architectures()["distilbert"], architectures("causal-lm")["gpt2"]
    ('DistilBertForSequenceClassification', 'GPT2LMHeadModel')
    """
    from transformers.models.auto import modeling_auto

    names = getattr(modeling_auto, f"MODEL_FOR_{TASKS[task].mapping}_MAPPING_NAMES")
    return {kind: name if isinstance(name, str) else name[0] for kind, name in names.items()}


def tiny(kind: str, task: str = DEFAULT, **settings: Any) -> nn.Module:
    """The architecture with every known size of its config made small; weights from torch's current random state.

    :param kind: a key of :func:`architectures`.  :param task: a key of `TASKS`.  :param settings: further settings of its config.
    :raises ValueError: no such architecture, or these sizes do not make it small.

    >>> sum(p.numel() for p in tiny("distilbert", "token-classification").parameters()) < 100_000
    True
    """
    import transformers

    name = architectures(task).get(kind)
    if name is None:
        raise ValueError(f"{kind!r} is no architecture that transformers has a class for {task} of")
    try:
        model_class = getattr(transformers, name)
        config = _small(model_class.config_class, {**PECULIAR.get(kind, {}), **TASKS[task].config, **settings})
        with torch.device("meta"):
            size = sum(p.numel() for p in model_class(config).parameters())
    except Exception as error:
        raise ValueError(f"{kind} cannot be made tiny: {named_error(error)}") from error
    if size > LARGEST:
        raise ValueError(f"{kind} cannot be made tiny: {size / 1e6:,.0f} M parameters with all its known sizes small")
    model: nn.Module = model_class(config)
    if TASKS[task].reads_text:
        for part, parameter in model.named_parameters():
            if "vision" in part or "visual" in part:  # the batches have no images
                parameter.requires_grad_(False)
    return model


def _small(config_class: Any, peculiar: dict[str, Any]) -> Any:
    settings = {**_settings(config_class), **peculiar}
    if parts := getattr(config_class, "sub_configs", None):
        whole = config_class()  # an instance has the classes of its parts, where the class may only name AutoConfig
        for name in parts:
            if (part := getattr(whole, name, None)) is not None:
                settings[name] = _small(type(part), peculiar)
    return config_class(**settings)


def _settings(config_class: Any) -> dict[str, Any]:
    known = set(inspect.signature(config_class.__init__).parameters) | set(
        getattr(config_class, "__dataclass_fields__", {})
    )
    known |= set(getattr(config_class, "attribute_map", {}))
    known |= {"num_labels", "pad_token_id", "bos_token_id", "eos_token_id"}
    found = {name: value for name, value in SIZES.items() if name in known}
    if "kv_lora_rank" in found:  # latent attention has no groups of heads
        found["num_key_value_heads"] = _HEADS
    return found
