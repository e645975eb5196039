"""PEFT: adapters, prompts and bias tuning, wired by hand as the papers describe them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .cases import Classifier, Run, adamw, fault, standard_step, textual, two_layers

LORA = "arXiv:2106.09685 (LoRA)"
ADAPTERS = ("*.lora_a", "*.lora_b", "head")
LEARNS = ("optimizer_covers_model", "weights_move", "grads_nonzero")


class Lora(nn.Module):
    """A frozen linear layer and a low-rank update of it."""

    def __init__(self, inner: nn.Linear, rank: int = 4, alpha: float = 16.0, zero_a: bool = False) -> None:
        super().__init__()
        self.inner = inner
        self.lora_a = nn.Parameter(torch.empty(rank, inner.in_features))
        self.lora_b = nn.Parameter(torch.zeros(inner.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        if zero_a:
            nn.init.zeros_(self.lora_a)
        self.scale = alpha / rank

    def forward(self, x):
        return self.inner(x) + (x @ self.lora_a.T @ self.lora_b.T) * self.scale


def attentions(model: Any) -> Iterator[Any]:
    for layer in model.encoder.encoder.layer:
        yield layer.attention.self


def with_lora(model: Any, **how: Any) -> Any:
    """Adapters on query and value of each layer; everything else but the head is frozen."""
    model.encoder.requires_grad_(False)
    for attention in attentions(model):
        attention.query = Lora(attention.query, **how)
        attention.value = Lora(attention.value, **how)
    return model


def lora(
    seed: int, change: Any = None, *, beliefs: dict[str, Any] | None = None, optimizer: Any = None, **more: Any
) -> Run:
    def model() -> Any:
        made = with_lora(Classifier())
        if change:
            change(made)
        return made

    told = {"trained": ADAPTERS, "frozen": ("encoder.embeddings", "*.inner.*"), "peak_lr": 5e-3, **(beliefs or {})}
    return textual(
        seed,
        model,
        optimizer=optimizer or (lambda m: adamw([p for p in m.parameters() if p.requires_grad], lr=5e-3)),
        beliefs=told,
        **more,
    )


@fault(
    "peft",
    "Only parameters with 'lora' in their name are trained: the new classification head stays random",
    "github.com/4AI/LS-LLaMA/issues/3; github.com/huggingface/peft/issues/577 (modules_to_save)",
    LEARNS,
    ("frozen", "head", "requires_grad", "frozen_by_mistake"),
    shows=lambda s: s.still("head") and s.most("lora_b") > 0,
)
def head_missing_from_modules_to_save(seed: int) -> Run:
    return lora(seed, lambda m: m.head.requires_grad_(False))


@fault(
    "peft",
    "The name filter matches lora_a only: B stays zero, so the adapters add nothing and A gets no gradient",
    LORA + "; arXiv:2308.03303 freezes A, not B",
    LEARNS,
    ("frozen", "lora_b", "requires_grad", "frozen_by_mistake"),
    shows=lambda s: s.still("lora_b"),
)
def only_a_is_trained(seed: int) -> Run:
    def change(model: Any) -> None:
        for name, p in model.named_parameters():
            if name.endswith("lora_b"):
                p.requires_grad_(False)

    return lora(seed, change)


@fault(
    "peft",
    "Both A and B start at zero: each is the other's gradient, and neither ever moves",
    LORA + ", section 4.1 (A is random, B is zero); peft docs: LoraConfig.init_lora_weights",
    ("grads_nonzero", "weights_move"),
    ("zero", "init", "gradient", "adapters_silent"),
    shows=lambda s: s.still("lora_", 1e-6),
)
def a_and_b_both_zero(seed: int) -> Run:
    def change(model: Any) -> None:
        for name, p in model.named_parameters():
            if name.endswith("lora_a"):
                nn.init.zeros_(p)

    return lora(seed, change)


@fault(
    "peft",
    "Every evaluation merges the adapters into the frozen weights and never unmerges: the base drifts",
    "peft docs: merge_adapter and unmerge_adapter; LoRA's merged weights in eval mode (loralib)",
    ("frozen_stay_frozen", "weights_kept"),
    ("frozen", "merge", "written", "overwritten", "frozen_written"),
    shows=lambda s: s.most("inner.weight") > 0,
)
def merged_at_every_evaluation(seed: int) -> Run:
    count = [0]

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        value = standard_step()(model, batch, optimizer, scheduler)
        count[0] += 1
        if count[0] % 10 == 0:
            with torch.no_grad():
                for attention in attentions(model):
                    for layer in (attention.query, attention.value):
                        layer.inner.weight += layer.lora_b @ layer.lora_a * layer.scale
        return value

    return lora(seed, step=step)


class Prompted(Classifier):
    """A soft prompt of four vectors, put in front and cut off before the layers see it."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(4, 32) * 0.05)

    def encode(self, input_ids, attention_mask):
        words = self.encoder.embeddings.word_embeddings(input_ids)
        joined = torch.cat([self.prompt.expand(len(words), -1, -1), words], 1)
        return self.encoder(inputs_embeds=joined[:, 4:], attention_mask=attention_mask)[0]


@fault(
    "peft",
    "The soft prompt is put in front of the embeddings and sliced off again before the encoder: it never learns",
    "arXiv:2104.08691 (prompt tuning)",
    ("grads_nonzero", "weights_move"),
    ("gradient", "prompt", "zero", "no part"),
    shows=lambda s: s.still("prompt", 1e-3),
)
def prompt_sliced_off(seed: int) -> Run:
    def model() -> Any:
        made = Prompted()
        made.encoder.requires_grad_(False)
        return made

    return textual(seed, model, beliefs={"trained": ("prompt", "head"), "frozen": "encoder"})


class Bottleneck(nn.Module):
    """Houlsby's adapter: down, activation, up, near zero at the start; ``skip`` is its residual connection."""

    def __init__(self, width: int, skip: bool) -> None:
        super().__init__()
        self.down, self.up, self.skip = nn.Linear(width, 8), nn.Linear(8, width), skip
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=1e-3)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        y = self.up(torch.nn.functional.gelu(self.down(x)))
        return x + y if self.skip else y


class Adapted(Classifier):
    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.adapter = Bottleneck(32, skip)

    def encode(self, input_ids, attention_mask):
        return self.adapter(super().encode(input_ids, attention_mask))


@fault(
    "peft",
    "The adapter's residual connection is missing: near-zero weights wipe out the features of the frozen base",
    "arXiv:1902.00751 (adapters: near-identity initialisation needs the skip connection)",
    (
        "output_depends_on_input",
        "grads_reach_depth",
        "grads_nonzero",
        "loss_decreases",
        "weights_move",
        "units_alive",
        "head_init",
    ),
    ("input", "gradient", "vanish", "depend", "small"),
    shows=lambda s: s.after < 0.6,
)
def adapter_without_skip(seed: int) -> Run:
    def model() -> Any:
        made = Adapted(skip=False)
        made.encoder.requires_grad_(False)
        return made

    return textual(
        seed, model, optimizer=lambda m: adamw([p for p in m.parameters() if p.requires_grad], lr=5e-3),
        beliefs={"trained": ("adapter", "head"), "frozen": "encoder", "peak_lr": 5e-3},
    )  # fmt: skip


class Wrapped(nn.Module):
    """A head in two copies, as PEFT's ModulesToSaveWrapper keeps them; forward uses the wrong one."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        import copy

        self.original = head
        self.saved = copy.deepcopy(head)
        self.original.requires_grad_(False)

    def forward(self, x):
        return self.original(x)


@fault(
    "peft",
    "The head is kept twice; the trainable copy is in the optimizer, forward uses the frozen original",
    "github.com/unslothai/unsloth/issues/3327 (modules_to_save weights do not change); github.com/huggingface/peft/issues/1070",
    ("grads_nonzero", "weights_move"),
    ("gradient", "no part", "unused", "copy"),
    shows=lambda s: s.still("head.saved", 5e-3) and s.still("head.original"),
)
def trained_copy_is_not_used(seed: int) -> Run:
    return lora(
        seed,
        lambda m: setattr(m, "head", Wrapped(m.head)),
        beliefs={"trained": ("*.lora_a", "*.lora_b", "head.saved")},
    )


@fault(
    "peft",
    "BitFit: requires_grad = 'bias' in name, for the whole model: the new head's weights stay random",
    "arXiv:2106.10199 (BitFit trains the biases and the classification layer)",
    LEARNS,
    ("frozen", "head", "requires_grad", "frozen_by_mistake"),
    shows=lambda s: s.still("head.3.weight"),
)
def bitfit_freezes_the_head(seed: int) -> Run:
    def model() -> Any:
        made = Classifier()
        for name, p in made.named_parameters():
            p.requires_grad_("bias" in name)
        return made

    return textual(
        seed, model, optimizer=lambda m: adamw([p for p in m.parameters() if p.requires_grad], lr=5e-3),
        beliefs={"trained": ("*bias", "head"), "frozen": ("encoder.embeddings.word_embeddings",), "peak_lr": 5e-3},
    )  # fmt: skip


@fault(
    "peft",
    "(IA)3 vectors start at 0 instead of 1: keys and values are wiped out and their own gradients with them",
    "arXiv:2205.05638 ((IA)3: vectors are initialised with ones)",
    ("grads_nonzero", "weights_move", "output_depends_on_input", "pretrained_kept", "head_init", "loss_decreases"),
    ("zero", "init", "gradient", "input"),
    shows=lambda s: s.still("scale", 1e-4) or s.after < 0.6,
)
def ia3_from_zero(seed: int) -> Run:
    class Scaled(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner
            self.scale_in = nn.Parameter(torch.zeros(inner.out_features))
            self.scale_out = nn.Parameter(torch.zeros(inner.out_features))

        def forward(self, x):
            return self.inner(x) * self.scale_in * self.scale_out

    def model() -> Any:
        made = Classifier(head=two_layers(32, 3))
        made.encoder.requires_grad_(False)
        for attention in attentions(made):
            attention.value = Scaled(attention.value)
        return made

    return textual(
        seed, model, optimizer=lambda m: adamw([p for p in m.parameters() if p.requires_grad], lr=5e-3),
        beliefs={"trained": ("*scale_in", "*scale_out", "head"), "peak_lr": 5e-3},
    )  # fmt: skip


@fault(
    "peft",
    "The adapters are put on after the optimizer was built: they are trainable and in no group",
    "PyTorch docs: torch.optim (parameters are given when it is constructed)",
    ("optimizer_covers_model", "weights_move"),
    ("in no parameter group", "not_in_optimizer"),
    shows=lambda s: s.still("lora_"),
)
def adapters_after_the_optimizer(seed: int) -> Run:
    run = textual(seed, optimizer=lambda m: adamw(m, lr=5e-3))
    with_lora(run.model)
    import dataclasses

    assert run.intent is not None
    run.intent = dataclasses.replace(run.intent, trained=ADAPTERS, frozen=("*.inner.*",), peak_lr=5e-3)
    return run
