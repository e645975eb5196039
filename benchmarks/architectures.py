"""Every sequence classifier of transformers that can be built tiny and offline: a healthy short fine-tune, all checks.

    python benchmarks/architectures.py [--only NAME ...] [--steps 8]

Prints, for each architecture, which check does not pass and why, and for all of them together how well the rounding-noise probe
separates: the relative difference between the gradients of ``loss`` and of ``3 * loss / 3`` for every tensor whose gradient is below
1e-4 of the largest. Architectures that cannot be built are listed with the reason.
"""

from __future__ import annotations

import argparse
import inspect
import time
import warnings
from datetime import datetime, timezone
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from pytest_ftcheck import finetune
from pytest_ftcheck.checks import CHECKS
from pytest_ftcheck.checks.kinds import NOISE

VOCABULARY, WIDTH, HEADS, LAYERS, CLASSES = 128, 64, 4, 2, 3
#: Names that configs use for the same few sizes.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "d_model": WIDTH, "n_embd": WIDTH, "dim": WIDTH, "emb_dim": WIDTH,
    "embedding_size": WIDTH, "num_hidden_layers": LAYERS, "num_layers": LAYERS, "n_layer": LAYERS, "n_layers": LAYERS,
    "encoder_layers": LAYERS, "decoder_layers": LAYERS, "num_decoder_layers": LAYERS, "num_attention_heads": HEADS,
    "n_head": HEADS, "n_heads": HEADS, "num_heads": HEADS, "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS,
    "num_key_value_heads": 2, "intermediate_size": 128, "ffn_dim": 128, "d_ff": 128, "d_inner": 128, "n_inner": 128,
    "hidden_dim": 128, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "d_kv": 16, "head_dim": 16, "d_head": 16,
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "type_vocab_size": 2, "num_local_experts": 4, "num_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16, "v_head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2,
    "num_labels": CLASSES, "num_hidden_groups": 1, "attention_window": 8, "block_size": 8, "state_size": 8, "use_cache": False,
    "embedding_dim": WIDTH, "bottleneck_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32,
    "attention_types": [[["global"], LAYERS]],
    "rotary_dim": 8, "word_embed_proj_dim": WIDTH, "layer_types": None, "axial_pos_shape": (8, 8), "axial_pos_embds_dim": (32, 32),
    "entity_vocab_size": 16, "entity_emb_size": WIDTH, "attention_head_size": 16, "num_buckets": 4, "attn_layers": ["local", "lsh"],
    "relative_attention_num_buckets": 8, "max_2d_position_embeddings": 64, "projection_dim": WIDTH,
}  # fmt: skip


def tiny(name: str) -> torch.nn.Module:
    """The architecture with every size that its config knows made small."""
    model_class = getattr(transformers, name)
    config_class = model_class.config_class
    known = set(inspect.signature(config_class.__init__).parameters) | set(
        getattr(config_class, "__dataclass_fields__", {})
    )
    known |= set(getattr(config_class, "attribute_map", {}))
    known |= {"num_labels", "pad_token_id", "bos_token_id", "eos_token_id"}
    settings = {k: v for k, v in SIZES.items() if k in known and v is not None}
    config = config_class(**settings)
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class(config).parameters())
    if size > 30e6:
        raise ValueError(f"{size / 1e6:,.0f} M parameters: its config is not made small by these sizes")
    torch.manual_seed(0)
    return model_class(config)


def batches(eos: int | None) -> list[dict[str, torch.Tensor]]:
    """Rows of 9 to 16 tokens, padded on the right; the class has keywords, as in `toy_batches`."""
    g = torch.Generator().manual_seed(0)
    out = []
    for _ in range(6):
        labels = torch.randint(CLASSES, (8,), generator=g)
        ids = torch.randint(40, VOCABULARY, (8, 16), generator=g)
        ids[:, 1:6] = 10 + 8 * labels[:, None] + torch.randint(8, (8, 5), generator=g)
        length = torch.randint(9, 17, (8,), generator=g)
        length[0] = 16
        mask = (torch.arange(16) < length[:, None]).long()
        ids[torch.arange(8), length - 1] = 2 if eos is None else eos
        out.append({"input_ids": ids * mask, "attention_mask": mask, "labels": labels})
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    left_out: dict[str, str] = {}
    alarms: list[str] = []
    noise: list[tuple[float, float, str]] = []
    judged = 0
    for kind, name in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.items():
        name = name if isinstance(name, str) else name[0]
        if args.only and kind not in args.only:
            continue
        began = time.perf_counter()
        try:
            model = tiny(name)
            with torch.no_grad():
                model(**batches(None)[0])
        except Exception as error:
            left_out[kind] = f"{type(error).__name__}: {str(error).splitlines()[0][:110] if str(error) else ''}"
            continue
        try:
            trace = finetune(model, batches(getattr(model.config, "eos_token_id", None)), lr=1e-3, steps=args.steps)
        except Exception as error:
            alarms.append(f"{kind}: finetune raised {type(error).__name__}: {str(error)[:200]}")
            print("ERROR", alarms[-1], flush=True)
            continue
        judged += 1
        verdicts = [check(trace) for check in CHECKS.values()]
        largest = max(t.gradients.max_norm for t in trace.tensors)
        noise += [
            (t.gradients.noise, t.gradients.max_norm / largest, f"{kind} {t.name}")
            for t in trace.tensors
            if t.gradients.noise is not None
        ]
        odd = [v for v in verdicts if v.status == "fail"]
        print(
            f"{'FAIL' if odd else 'ok  '} {kind:28s} {time.perf_counter() - began:5.1f} s  "
            f"{', '.join(v.check for v in verdicts if v.status == 'inconclusive')}",
            flush=True,
        )
        for v in odd:
            alarms.append(f"{kind}: {v.headline}")
            print(f"       {v.headline}")
    stamp = f"{datetime.now(timezone.utc):%Y-%m-%d}, torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"\n{judged} architectures judged, {len(alarms)} with a failed check ({stamp})")
    noise.sort()
    real, rounding = [n for n in noise if n[0] <= NOISE], [n for n in noise if n[0] > NOISE]
    print("rounding-noise probe on tensors whose gradient is below 1e-4 of the largest:")
    for title, found, edge in (("real", real, -1), ("noise", rounding, 0)):
        if found:
            sizes = sorted(n[1] for n in found)
            print(
                f"  {title:5s} {len(found):4d} tensors; nearest to the limit of {NOISE}: {found[edge][0]:.2g} ({found[edge][2]}); "
                f"gradient over the largest: {sizes[0]:.1e} to {sizes[-1]:.1e}"
            )
    print(f"\n{len(left_out)} left out:")
    for kind, why in left_out.items():
        print(f"  {kind}: {why}")


if __name__ == "__main__":
    main()
