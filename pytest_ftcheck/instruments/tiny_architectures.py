"""Tiny versions of all sequence classifiers of transformers, and batches that any model with a vocabulary can learn."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

#: Classes of a tiny model.
CLASSES = 3
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
    "linear_num_value_heads": _HEADS,
}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
#: Other settings of single architectures, whose code has constants that do not fit these sizes.
PECULIAR: dict[str, dict[str, Any]] = {
    "esmc": {"num_key_value_heads": _HEADS},
    "lilt": {"hidden_size": 48},  # a multiple of 6
    "mpnet": {"relative_attention_num_buckets": 32},
    "t5": {"decoder_start_token_id": 0},
    "reformer": {"max_position_embeddings": 16},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 8},
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
#: Batches of `keyword_batches`, rows in each, longest row, keywords in every row.
_BATCHES, _ROWS, _LENGTH, _KEYWORDS = 6, 8, 16, 5
_CHARACTERS = 128
#: Different keywords of a class, if the vocabulary is large enough.
_WORDS = 8
#: Classes in the labels, at most.
_MOST_CLASSES = 8


def architectures() -> dict[str, str]:
    """Model types of transformers' mapping for sequence classification, and the class that each names.

    >>> architectures()["distilbert"]
    'DistilBertForSequenceClassification'
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as NAMES

    return {kind: name if isinstance(name, str) else name[0] for kind, name in NAMES.items()}


def tiny(kind: str) -> nn.Module:
    """The architecture with every known size of its config made small; weights from torch's current random state.

    :param kind: a key of :func:`architectures`.
    :raises ValueError: no such architecture, or these sizes do not make it small.

    >>> sum(p.numel() for p in tiny("distilbert").parameters()) < 100_000
    True
    """
    import transformers

    name = architectures().get(kind)
    if name is None:
        raise ValueError(f"{kind!r} is no architecture of transformers' sequence-classification mapping")
    try:
        model_class = getattr(transformers, name)
        config = _small(model_class.config_class, PECULIAR.get(kind, {}))
        with torch.device("meta"):
            size = sum(p.numel() for p in model_class(config).parameters())
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise ValueError(f"{kind} cannot be made tiny: {type(error).__name__}: {lines[0][:200]}") from error
    if size > LARGEST:
        raise ValueError(f"{kind} cannot be made tiny: {size / 1e6:,.0f} M parameters with all its known sizes small")
    model: nn.Module = model_class(config)
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


def keyword_batches(config: Any) -> list[dict[str, torch.Tensor]]:
    """Six batches of eight rows for a model with this config: 9 to 16 tokens, padded on the right, five of them indicate the class.

    The words are drawn from the config's vocabulary, the labels fit its ``num_labels`` and ``problem_type``. The same config gives
    the same batches.

    :param config: of a transformers model; needs ``vocab_size``, uses ``pad_token_id`` and ``eos_token_id``.
    :raises ValueError: the vocabulary is unknown or too small for the task.

    >>> from transformers import DistilBertConfig
    >>> batch = keyword_batches(DistilBertConfig(vocab_size=100))[0]
    >>> batch["input_ids"].shape, sorted(set(batch["labels"].tolist()))
    (torch.Size([8, 16]), [0, 1])
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    # CANINE reads characters, and has no vocabulary
    size = getattr(text, "vocab_size", None) or (_CHARACTERS if hasattr(text, "num_hash_buckets") else None)
    if not isinstance(size, int):
        raise ValueError("the model's config has no vocab_size: pass batches")
    outputs = int(getattr(config, "num_labels", 2))
    classes = min(max(outputs, 2), _MOST_CLASSES)
    first = 10  # special tokens usually come before
    words = min(_WORDS, (size - first) // (2 * classes))
    if words < 1:
        raise ValueError(f"the model's vocabulary of {size} words is too small for {classes} classes: pass batches")
    filler = first + words * classes
    pad, eos = (_token(text, name, size) for name in ("pad_token_id", "eos_token_id"))
    g = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(_BATCHES):
        # all classes in random order: each batch with enough rows has every class
        labels = (torch.arange(_ROWS) % classes)[torch.randperm(_ROWS, generator=g)]
        ids = torch.randint(filler, size, (_ROWS, _LENGTH), generator=g)
        keywords = torch.randint(words, (_ROWS, _KEYWORDS), generator=g)
        ids[:, 1 : 1 + _KEYWORDS] = first + words * labels[:, None] + keywords
        length = torch.randint(_LENGTH // 2 + 1, _LENGTH + 1, (_ROWS,), generator=g)
        length[0] = _LENGTH
        ids[torch.arange(_ROWS), length - 1] = 2 if eos is None else eos
        mask = (torch.arange(_LENGTH) < length[:, None]).long()
        ids = torch.where(mask.bool(), ids, torch.tensor(0 if pad is None else pad))
        kind = getattr(config, "problem_type", None)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": _labels(labels, outputs, kind)}
        for part in ("shape", "pronunciation"):  # further inputs of RoCBERT
            if isinstance(views := getattr(text, f"{part}_vocab_size", None), int):
                batch[f"input_{part}_ids"] = torch.randint(views, ids.shape, generator=g) * mask
        if isinstance(
            places := getattr(text, "max_2d_position_embeddings", None), int
        ):  # the place of a word on its page
            corners = torch.randint(places // 2, (2, *ids.shape, 2), generator=g)
            batch["bbox"] = torch.cat([corners[0], corners[0] + corners[1]], dim=-1) * mask[..., None]
        batches.append(batch)
    return batches


def _labels(classes: torch.Tensor, outputs: int, kind: str | None) -> torch.Tensor:
    if kind == "multi_label_classification":
        return nn.functional.one_hot(classes, outputs).float()
    if outputs == 1:  # transformers then computes a regression
        return classes.float() * 2 - 1
    return classes


def _token(config: Any, name: str, size: int) -> int | None:
    found = getattr(config, name, None)
    if isinstance(found, (list, tuple)):  # Llama 3 has several
        found = found[0] if found else None
    return found if isinstance(found, int) and 0 <= found < size else None
