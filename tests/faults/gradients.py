"""Gradient flow: what backward reaches, and whether it is the loss's gradient that arrives."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .cases import (
    SGD_BELIEFS,
    Classifier,
    Run,
    adamw,
    bert,
    cross_entropy,
    fault,
    light,
    sgd,
    standard_step,
    textual,
    two_layers,
)

AUTOGRAD = "PyTorch docs: Autograd mechanics"
NO_GRADIENT = ("grads_nonzero", "weights_move", "grads_match_reference")


class Detached(Classifier):
    def pool(self, hidden, attention_mask):
        return super().pool(hidden, attention_mask).detach()


@fault(
    "gradient flow",
    "The head reads features.detach(), left over from a linear-probing script; the base is meant to learn",
    AUTOGRAD + "; github.com/pytorch/pytorch/issues/43259 (parameters that took no part in the loss)",
    NO_GRADIENT,
    ("detach", "no gradient", "cut"),
    shows=lambda s: s.still("encoder", 1e-3) and s.most("head") > 1e-3,
)
def features_detached(seed: int) -> Run:
    return textual(seed, Detached)


class NoGrad(Classifier):
    def encode(self, input_ids, attention_mask):
        with torch.no_grad():
            return super().encode(input_ids, attention_mask)


@fault(
    "gradient flow",
    "The encoder's forward pass stands under torch.no_grad() 'to save memory'",
    AUTOGRAD + " (locally disabling gradient computation)",
    NO_GRADIENT,
    ("no_grad", "no gradient", "cut"),
    shows=lambda s: s.still("encoder", 1e-3),
)
def encoder_under_no_grad(seed: int) -> Run:
    return textual(seed, NoGrad)


class Codebook(Classifier):
    """Features are replaced by the nearest of 32 codes; without the straight-through estimator nothing flows back."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Embedding(32, 32)

    def pool(self, hidden, attention_mask):
        features = super().pool(hidden, attention_mask)
        return self.codes(torch.cdist(features, self.codes.weight).argmin(-1))


@fault(
    "gradient flow",
    "Vector quantisation by argmin without the straight-through term: the encoder gets no gradient",
    "arXiv:1711.00937 (VQ-VAE: gradients are copied past the argmin)",
    NO_GRADIENT,
    ("no gradient", "cut", "argmin", "argmax"),
    shows=lambda s: s.still("encoder", 1e-3),
)
def quantised_without_straight_through(seed: int) -> Run:
    return textual(seed, Codebook)


class Rounded(Classifier):
    def pool(self, hidden, attention_mask):
        return torch.round(super().pool(hidden, attention_mask) * 8) / 8


@fault(
    "gradient flow",
    "Features are rounded in the forward pass: the derivative of round() is zero everywhere",
    "arXiv:1308.3432 (straight-through estimator); PyTorch docs: torch.round",
    NO_GRADIENT,
    ("zero gradient", "gradient", "cut", "gradient_zero"),
    shows=lambda s: s.still("encoder", 1e-3),
)
def features_rounded(seed: int) -> Run:
    return textual(seed, Rounded)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -grad


class Reversed(Classifier):
    def pool(self, hidden, attention_mask):
        return _Reverse.apply(super().pool(hidden, attention_mask))


@fault(
    "gradient flow",
    "The gradient-reversal layer of domain-adversarial training sits before the task head instead of the domain head",
    "arXiv:1505.07818 (domain-adversarial training of neural networks)",
    ("grads_match_reference",),
    ("revers", "wrong direction", "sign", "opposite"),
)
def reversal_before_the_task_head(seed: int) -> Run:
    return textual(seed, Reversed)


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (torch.sigmoid(x) - 1)  # minus the derivative, about


class OwnActivation(nn.Module):
    def forward(self, x):
        return _Swish.apply(x)


@fault(
    "gradient flow",
    "A memory-saving activation with a hand-written backward that has the sign wrong",
    "PyTorch docs: Extending torch.autograd (check with gradcheck); memory-efficient swish "
    "written as an autograd function",
    ("grads_match_reference",),
    ("backward", "direction", "sign", "custom", "gradient_reversed"),
)
def backward_by_hand_is_wrong(seed: int) -> Run:
    def model() -> nn.Module:
        return Classifier(head=nn.Sequential(nn.Linear(32, 32), OwnActivation(), nn.Linear(32, 3)))

    return textual(seed, model)


@fault(
    "gradient flow",
    "maximize=True is carried over from the script for the adversarial player: the loss is driven up",
    "PyTorch docs: torch.optim.AdamW (maximize)",
    ("optimizer_settings", "loss_decreases", "loss_stable", "grads_match_reference", "weights_move"),
    ("maximize", "ascen", "sign", "up"),
    shows=lambda s: s.losses[-1] > 2 * s.losses[0],
)
def maximize_left_on(seed: int) -> Run:
    return textual(seed, optimizer=lambda m: adamw(m, maximize=True))


@fault(
    "gradient flow",
    "The likelihood is returned where the loss was due: -F.cross_entropy is minimised without end",
    "arXiv:1910.11015 (taxonomy: wrong loss function calculation)",
    ("loss_matches_task", "loss_decreases", "initial_loss", "loss_stable"),
    ("sign", "negat"),
    shows=lambda s: s.losses[-1] < -2,
)
def sign_of_the_loss(seed: int) -> Run:
    return textual(seed, loss_fn=lambda m, b: -cross_entropy(m, b))


@fault(
    "gradient flow",
    "zero_grad() is forgotten: every step adds the gradients of all steps before it",
    "PyTorch docs: torch.optim.Optimizer.zero_grad; arXiv:2506.14813 (TrainCheck: API-order invariants)",
    ("grads_match_reference",),
    ("accumul", "zero_grad", "grads_never_zeroed"),
)
def gradients_never_cleared(seed: int) -> Run:
    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        loss = cross_entropy(model, batch)
        loss.backward()
        optimizer.step()
        return loss.item()

    return textual(seed, light, step=step, optimizer=sgd, beliefs=SGD_BELIEFS)


@fault(
    "gradient flow",
    "A hook meant to protect old classes multiplies the output layer's gradient by a mask of the wrong classes: all zero",
    "PyTorch docs: torch.Tensor.register_hook; gradient masks of continual learning (arXiv:1801.01423)",
    ("grads_nonzero", "weights_move", "grads_match_reference"),
    ("zero", "hook", "gradient"),
    shows=lambda s: s.still("head.3.weight", 2e-3) and s.most("head.0") > 2e-3,
)
def hook_masks_every_class(seed: int) -> Run:
    run = textual(seed)
    run.model.head[3].weight.register_hook(lambda g: g * torch.zeros(3, 1))
    return run


class Saturated(Classifier):
    """Attention pooling whose scores are divided by a temperature of 1e-3: one word takes all, for good."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(32, 1)

    def pool(self, hidden, attention_mask):
        scores = self.score(hidden).squeeze(-1) / 1e-4
        weights = scores.masked_fill(attention_mask == 0, -1e9).softmax(-1)
        return (weights.unsqueeze(-1) * hidden).sum(1)


@fault(
    "gradient flow",
    "The pooling softmax has a temperature of 1e-4 (the eps of the config): it is a hard choice and its scorer learns nothing",
    "arXiv:1706.03762, section 3.2.1 (why scores are scaled: softmax with extremely small gradients)",
    ("grads_nonzero", "weights_move", "grads_reach_depth", "units_alive"),
    ("gradient", "saturat", "vanish"),
)
def pooling_softmax_saturated(seed: int) -> Run:
    return textual(seed, Saturated)


class Amplified(Classifier):
    """Four linear layers between encoder and output, each with weights ten times too large."""

    def __init__(self) -> None:
        layers = [nn.Linear(32, 32) for _ in range(4)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=1.5)
        super().__init__(head=nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())], nn.Linear(32, 3)))


@fault(
    "gradient flow",
    "Hidden layers initialised with std 1.5 at width 32: activations and gradients grow by six at each layer",
    "arXiv:1502.01852 (He initialisation); AUTOTRAINER's 'exploding gradient' (Zhang et al., ICSE 2021)",
    ("grads_reach_depth", "initial_loss", "head_init", "loss_stable", "all_finite"),
    ("init", "large", "explod", "logits"),
    shows=lambda s: s.losses[0] > 20,
)
def amplified_at_every_layer(seed: int) -> Run:
    return textual(seed, Amplified)


class Gated(Classifier):
    """A residual gate that was meant to be learnt from zero (ReZero), registered as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))
        self.register_buffer("gate", torch.zeros(1))

    def pool(self, hidden, attention_mask):
        x = super().pool(hidden, attention_mask)
        return x + self.gate * self.extra(x)


@fault(
    "gradient flow",
    "ReZero's gate starts at 0 and is a buffer instead of a parameter: the branch behind it never learns",
    "arXiv:2003.04887 (ReZero: the gate is a parameter)",
    ("grads_nonzero", "weights_move"),
    ("zero", "gradient", "gate"),
    shows=lambda s: s.still("extra", 1e-3),
)
def gate_stays_shut(seed: int) -> Run:
    return textual(seed, Gated)


class Unused(Classifier):
    """A projection is built, declared to learn, and forgotten in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(32, 32)


@fault(
    "gradient flow",
    "The new projection layer is built and never called: forward was not edited",
    "github.com/pytorch/pytorch/issues/43259 (find_unused_parameters: names of parameters without part in the loss)",
    ("grads_nonzero", "weights_move"),
    ("no gradient", "unused", "no part"),
    shows=lambda s: s.still("projection", 1e-3),
)
def layer_never_called(seed: int) -> Run:
    return textual(seed, Unused, beliefs={"trained": ("encoder", "head", "projection")})


class TwoBranches(nn.Module):
    """Two towers whose features are joined; the second is detached."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = bert(layers=1)
        self.side = bert(layers=1)
        self.head = two_layers(64, 3)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(-1).float()
        parts = [e(input_ids, attention_mask=attention_mask)[0] for e in (self.encoder, self.side)]
        first, second = ((h * mask).sum(1) / mask.sum(1) for h in parts)
        return self.head(torch.cat([first, second.data], -1))


@fault(
    "gradient flow",
    "Of two towers one is joined by '.data': the loss falls all the same, half of the model stands still",
    "PyTorch docs: Tensor.detach and the older .data (not tracked by autograd)",
    ("grads_nonzero", "weights_move"),
    ("no gradient", "cut", "detach"),
    shows=lambda s: s.still("side", 1e-3) and s.most("encoder") > 1e-3,
)
def one_tower_detached(seed: int) -> Run:
    return textual(seed, TwoBranches)


@fault(
    "gradient flow",
    "An integer power of the confidence schedules the loss away: it is multiplied by (step // 1000), which is 0",
    "integer division in an annealing schedule, as in KL annealing (arXiv:1511.06349)",
    ("grads_nonzero", "weights_move", "loss_matches_task", "initial_loss", "loss_decreases", "grads_match_reference"),
    ("zero", "gradient", "loss"),
    shows=lambda s: s.losses[-1] == 0,
)
def annealing_by_integer_division(seed: int) -> Run:
    count = [0]

    def loss_fn(model: Any, batch: Any) -> Any:
        return cross_entropy(model, batch) * (count[0] // 1000)

    body = standard_step(loss_fn)

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        count[0] += 1
        return body(model, batch, optimizer, scheduler)

    return textual(seed, loss_fn=loss_fn, step=step)


class HardMask(Classifier):
    """A learnt mask over features, thresholded by '> 0.5'."""

    def __init__(self) -> None:
        super().__init__()
        self.importance = nn.Parameter(torch.rand(32))

    def pool(self, hidden, attention_mask):
        return super().pool(hidden, attention_mask) * (torch.sigmoid(self.importance * 4 - 2) > 0.5).float()


@fault(
    "gradient flow",
    "The learnt feature mask goes through '> 0.5': a comparison has no gradient, the mask never changes",
    "arXiv:1308.3432 (gradients through stochastic or hard threshold neurons)",
    ("grads_nonzero", "weights_move"),
    ("no gradient", "cut"),
    shows=lambda s: s.still("importance", 1e-3),
)
def mask_by_comparison(seed: int) -> Run:
    return textual(seed, HardMask)
