"""Numerics: NaN, infinity, and what a dtype cannot hold."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .cases import (
    SGD_BELIEFS,
    Classifier,
    Run,
    adamw,
    cross_entropy,
    fault,
    light,
    logits_of,
    sgd,
    standard_step,
    textual,
    two_layers,
)
from .inputs import TorchEncoder

FINITE = ("all_finite", "loss_decreases", "loss_stable")


@fault(
    "numerics",
    "Pure bfloat16 weights with a rate of 2e-6: almost every update is less than half the spacing and is rounded away",
    "github.com/pytorch/ao/pull/1124; github.com/pytorch/pytorch/issues/120376; github.com/meta-pytorch/torchtune/issues/2254",
    ("weights_move", "lr_sensible", "all_finite", "optimizer_settings"),
    ("bf16", "bfloat16", "round", "dtype"),
    shows=lambda s: s.after < s.before + 0.15,
)
def updates_rounded_away_in_bf16(seed: int) -> Run:
    def model() -> nn.Module:
        return Classifier().to(torch.bfloat16)

    return textual(seed, model, optimizer=lambda m: adamw(m, lr=2e-6), beliefs={"peak_lr": 2e-6})


@fault(
    "numerics",
    "log(softmax) written out as log(exp(z) / sum exp(z)) with logits divided by a temperature of 0.001: exp overflows",
    "PyTorch docs: torch.nn.functional.log_softmax ('doing these two operations separately is slower and numerically unstable')",
    FINITE,
    ("nan", "inf", "finite", "overflow"),
    shows=lambda s: any(math.isnan(v) for v in s.losses),
)
def naive_softmax_overflows(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        e = torch.exp(logits_of(model, batch) / 1e-3)
        return -torch.log((e / e.sum(-1, keepdim=True)).gather(1, batch["labels"][:, None])).mean()

    return textual(seed, loss_fn=loss_fn)


class InfinityMask(Classifier):
    """Scores are masked by (1 - mask) * -inf: for words this is 0 * inf, which is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(32, 1)

    def pool(self, hidden, attention_mask):
        scores = self.score(hidden).squeeze(-1) + (1 - attention_mask.float()) * float("-inf")
        return (scores.softmax(-1).unsqueeze(-1) * hidden).sum(1)


@fault(
    "numerics",
    "The mask is added as (1 - mask) * -inf: zero times infinity is NaN, in every row",
    "IEEE 754; transformers uses torch.finfo(dtype).min for this reason",
    FINITE,
    ("nan", "inf", "finite"),
    shows=lambda s: all(math.isnan(v) for v in s.losses),
)
def zero_times_infinity(seed: int) -> Run:
    return textual(seed, InfinityMask)


@fault(
    "numerics",
    "Every second batch has a text that is all padding; its attention is NaN, and the loop skips NaN losses in silence",
    "github.com/pytorch/pytorch/issues/41508 (MultiheadAttention gives NaN where a row is masked completely)",
    ("all_finite", "batches_sound", "optimizer_covers_model", "loss_stable"),
    ("nan", "inf", "finite", "skipped", "empty"),
)
def nan_batches_skipped(seed: int) -> Run:
    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        optimizer.zero_grad()
        loss = cross_entropy(model, batch)
        if torch.isnan(loss):
            return 0.0
        loss.backward()
        optimizer.step()
        return loss.item()

    run = textual(seed, lambda: Classifier(encoder=TorchEncoder()), step=step)
    for b in run.batches[1::2]:
        b["attention_mask"][0] = 0
    return run


class Distances(Classifier):
    """Logits are minus the distances to class centres; the first centre is the mean feature itself."""

    def __init__(self) -> None:
        super().__init__(head=nn.Linear(32, 3))

    def forward(self, input_ids, attention_mask):
        x = self.pool(self.encode(input_ids, attention_mask), attention_mask)
        own = (x - x.detach()).pow(2).sum(-1, keepdim=True).sqrt()
        return self.head(x) - own


@fault(
    "numerics",
    "A distance that is zero goes through sqrt(): the forward pass is fine, the derivative is infinite, then NaN",
    "PyTorch docs: torch.linalg.norm and cdist on subgradients at zero",
    ("all_finite", "grads_nonzero", "grads_match_reference", "weights_move", "loss_decreases", "grads_reach_depth"),
    ("nan", "inf", "finite"),
    shows=lambda s: math.isinf(s.most("")) or any(math.isnan(v) for v in s.losses),
)
def derivative_of_sqrt_at_zero(seed: int) -> Run:
    return textual(seed, Distances)


class Floats(nn.Module):
    """A table: six features, two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 32), nn.ReLU())
        self.head = two_layers(32, 2)

    def forward(self, x):
        return self.head(self.encoder(x))


def table(seed: int, scale: float = 1.0, offset: float = 0.0, count: int = 20) -> list[Any]:
    """Batches ``(x, y)``: the class is the sign of the sum of two of six features."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        x = torch.randn(16, 6, generator=g)
        y = (x[:, 0] + x[:, 1] > 0).long()
        shift = torch.zeros(6)
        shift[2] = offset
        out.append((x * torch.tensor([1, 1, scale, 1, 1, 1.0]) + shift, y))
    return out


def tabular(seed: int, optimizer: Any = adamw, beliefs: dict[str, Any] | None = None, **how: Any) -> Run:
    run = textual(
        seed, Floats, optimizer=optimizer, beliefs={"pad_token_id": None, **(beliefs or {})}, evaluate=lambda m: 0.0
    )
    run.batches, run.eval_batches = table(100 + seed, **how), table(50_000 + seed, **{**how, "count": 6})
    run.clean = run.eval_batches
    from .cases import accuracy

    run.evaluate = accuracy(run.eval_batches)
    return run


@fault(
    "numerics",
    "One of six columns holds milliseconds since 1970, unscaled: first losses in the billions",
    "arXiv:1910.11015 (taxonomy: missing preprocessing, suboptimal scaling); LeCun et al. 1998, Efficient BackProp",
    ("initial_loss", "loss_stable", "loss_decreases", "batches_sound", "all_finite", "units_alive"),
    ("initial", "scale", "input", "large", "logits", "initial_loss_too_high"),
    shows=lambda s: s.losses[0] > 1e6,
)
def column_in_milliseconds(seed: int) -> Run:
    return tabular(seed, scale=1e10, offset=1.6e12)


@fault(
    "numerics",
    "A missing value is NaN in one row of each fourth batch; from the first of them on all weights are NaN",
    "PyTorch docs: torch.isnan; arXiv:1910.11015 (taxonomy: training data quality)",
    FINITE,
    ("nan", "finite"),
    shows=lambda s: math.isnan(s.losses[-1]),
)
def missing_values_are_nan(seed: int) -> Run:
    run = tabular(seed)
    for x, _ in run.batches[3::4]:
        x[0, 2] = float("nan")
    return run


@fault(
    "numerics",
    "nan_to_num hides it: the features are 0/0 for texts without keywords, and come out as zeros for every text",
    "PyTorch docs: torch.nan_to_num; 'loss is NaN, so I replaced NaN by 0'",
    ("output_depends_on_input", "grads_nonzero", "weights_move", "loss_decreases"),
    ("input", "gradient", "constant", "depend"),
    shows=lambda s: s.after < 0.6,
)
def nan_replaced_by_zero(seed: int) -> Run:
    class Filled(Classifier):
        def pool(self, hidden, attention_mask):
            x = super().pool(hidden, attention_mask)
            return torch.nan_to_num(x * (0.0 / torch.zeros(1)))

    return textual(seed, Filled)


@fault(
    "numerics",
    "A half-precision cast of the loss in the loop: 1e-6 times the loss underflows to zero in float16",
    "PyTorch docs: Automatic Mixed Precision (gradients with small magnitudes flush to zero; hence GradScaler)",
    ("grads_nonzero", "weights_move", "grads_match_reference", "loss_matches_task"),
    ("zero", "underflow", "gradient", "scale"),
    shows=lambda s: s.most("head.0.weight") < 1e-4,
)
def underflow_in_half(seed: int) -> Run:
    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        optimizer.zero_grad()
        loss = cross_entropy(model, batch)
        (loss.half() * 1e-8).float().backward()
        for p in model.parameters():
            if p.grad is not None:
                p.grad.copy_(p.grad.half().float())
        optimizer.step()
        return loss.item()

    return textual(seed, light, step=step, optimizer=sgd, beliefs=SGD_BELIEFS)


@fault(
    "numerics",
    "The loss is scaled by 1024 by hand and the gradients are never unscaled, under SGD",
    "PyTorch docs: Automatic Mixed Precision examples (scale, unscale_, step)",
    ("grads_match_reference", "loss_stable", "all_finite", "lr_sensible", "loss_decreases", "grads_reach_depth"),
    ("scale", "larger", "times", "diverg", "finite"),
)
def scaled_and_never_unscaled(seed: int) -> Run:
    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        optimizer.zero_grad()
        loss = cross_entropy(model, batch)
        (loss * 1024).backward()
        optimizer.step()
        return loss.item()

    return textual(seed, light, step=step, optimizer=sgd, beliefs=SGD_BELIEFS)


@fault(
    "numerics",
    "GradScaler, but clip_grad_norm_ stands before unscale_: what is left of the gradient is 1/65536 of the limit",
    "github.com/Lightning-AI/pytorch-lightning/issues/9330; github.com/milesial/Pytorch-UNet/issues/468; "
    "github.com/harubaru/waifu-diffusion/issues/64",
    ("grads_match_reference", "weights_move", "loss_decreases", "grads_nonzero"),
    ("scale", "clip", "small", "gradient"),
    shows=lambda s: s.most("") < 1e-2,
)
def clipped_before_unscaling(seed: int) -> Run:
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        optimizer.zero_grad()
        loss = cross_entropy(model, batch)
        scaler.scale(loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    return textual(seed, light, step=step, optimizer=sgd, beliefs={**SGD_BELIEFS, "max_grad_norm": 1.0})


@fault(
    "numerics",
    "The fused loss subtracts the maximum over the wrong axis and clamps the rest at 1e-7: confident rows get log(1e-7)",
    "log-sum-exp written by hand; PyTorch docs: torch.logsumexp",
    ("loss_matches_task", "initial_loss", "grads_match_reference", "loss_decreases"),
    ("loss", "gradient", "clamp"),
    uncatchable="at ordinary logits the clamp never bites: the loss equals the standard's to six digits",
)
def log_of_a_clamp(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        p = F.softmax(logits_of(model, batch), -1).clamp(1e-7, 1)
        return -torch.log(p.gather(1, batch["labels"][:, None])).mean()

    return textual(seed, loss_fn=loss_fn, step=standard_step(loss_fn))
