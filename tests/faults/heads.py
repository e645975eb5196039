"""The head: how it starts, and what its output can be."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .cases import Classifier, Run, fault, textual, two_layers

BOUNDED = ("logits_unbounded", "loss_matches_task")


def with_head(head: nn.Module) -> Any:
    return lambda: Classifier(head=head)


@fault(
    "head",
    "Both layers of the head start at zero: neither ever gets a gradient, only the last bias learns",
    "arXiv:1502.01852 and every text on symmetry breaking; a zero-initialised last layer alone is fine (arXiv:1901.09321)",
    ("head_init", "grads_nonzero", "units_alive", "weights_move"),
    ("zero", "init"),
    shows=lambda s: s.still("encoder", 2e-3) and s.after < 0.6,
)
def both_layers_zero(seed: int) -> Run:
    def model() -> nn.Module:
        net = Classifier()
        for layer in (net.head[0], net.head[3]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        return net

    return textual(seed, model)


class Rectified(Classifier):
    def forward(self, input_ids, attention_mask):
        return F.relu(super().forward(input_ids, attention_mask))


@fault(
    "head",
    "A ReLU behind the output layer, copied with the hidden layer's line: no logit is negative, half get no gradient",
    "DeepCrime, operator 'add activation function'; arXiv:1910.11015 (wrong activation)",
    BOUNDED,
    ("relu", "one-signed", "negative", "activation", "bounded", "logits_one_signed"),
)
def relu_on_the_logits(seed: int) -> Run:
    return textual(seed, Rectified)


class Cosine(nn.Module):
    def __init__(self, width: int, outputs: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, width) * 0.1)
        self.scale = scale

    def forward(self, x):
        return self.scale * F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))


@fault(
    "head",
    "A cosine classifier without scale: logits lie in [-1, 1] and the loss of 10 classes cannot fall below 0.8",
    "arXiv:1704.06369 (NormFace: the scale is needed); arXiv:1801.09414 (CosFace)",
    BOUNDED,
    ("bounded", "scale", "cosine"),
)
def cosine_without_scale(seed: int) -> Run:
    return textual(seed, with_head(Cosine(32, 3, 1.0)))


@fault(
    "head",
    "LayerNorm over two logits: they are +1 and -1 whatever the input, and its derivative is zero",
    "PyTorch docs: torch.nn.LayerNorm; 'add a norm after every layer' applied to the last",
    ("logits_unbounded", "grads_nonzero", "weights_move", "grads_reach_depth", "loss_matches_task"),
    ("bounded", "norm", "gradient", "logits_bounded"),
)
def layer_norm_on_two_logits(seed: int) -> Run:
    def model() -> nn.Module:
        head = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 2), nn.LayerNorm(2, elementwise_affine=False))
        return Classifier(head=head)

    return textual(seed, model, rows=lambda s, n: _two(s, n))


def _two(seed: int, n: int) -> Any:
    from .cases import reviews

    return reviews(seed, n, 2)


@fault(
    "head",
    "The hidden tanh layer starts at std 8: every unit is saturated, almost nothing passes down",
    "Glorot and Bengio 2010, section 3 (saturation of tanh units)",
    ("units_alive", "head_init", "grads_reach_depth", "initial_loss"),
    ("satur", "init", "tanh"),
)
def tanh_saturated_from_the_start(seed: int) -> Run:
    def model() -> nn.Module:
        net = Classifier(head=nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3)))
        nn.init.normal_(net.head[0].weight, std=8.0)
        return net

    return textual(seed, model)


@fault(
    "head",
    "Clamping the logits to [-0.5, 0.5] 'against overflow in fp16'",
    "the clamp of hidden states in transformers' T5 (github.com/huggingface/transformers/pull/9487) in the wrong place and unit",
    BOUNDED,
    ("bounded", "clamp", "logits_bounded"),
)
def logits_clamped(seed: int) -> Run:
    class Clamped(Classifier):
        def forward(self, input_ids, attention_mask):
            return super().forward(input_ids, attention_mask).clamp(-0.5, 0.5)

    return textual(seed, Clamped)


@fault(
    "head",
    "N(0, 0.02) is declared; the loop calls nn.init on layer.weight.clone(), so PyTorch's default stays",
    "PyTorch docs: torch.nn.init (functions work in place on the tensor they are given)",
    ("head_init",),
    ("init",),
)
def init_of_a_clone(seed: int) -> Run:
    def model() -> nn.Module:
        net = Classifier()
        for layer in net.head:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight.detach().clone(), std=0.02)
                nn.init.zeros_(layer.bias.detach().clone())
        return net

    return textual(seed, model, beliefs={"head_init": 0.02})


@fault(
    "head",
    "N(0, 0.02) is declared, and normal_(0.02) is called: 0.02 is the mean, the standard deviation is 1",
    "PyTorch docs: torch.nn.init.normal_(tensor, mean=0.0, std=1.0)",
    ("head_init", "initial_loss"),
    ("init", "std", "deviation", "head_init_not_declared"),
)
def mean_for_deviation(seed: int) -> Run:
    def model() -> nn.Module:
        net = Classifier()
        for layer in net.head:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0.02)
                nn.init.zeros_(layer.bias)
        return net

    return textual(seed, model, beliefs={"head_init": 0.02})


@fault(
    "head",
    "Every hidden unit starts with the same weights (a row is repeated by expand): the layer is one unit wide for ever",
    "Goodfellow et al., Deep Learning, section 8.4 (breaking symmetry between units)",
    ("head_init", "units_alive"),
    ("symmetr", "same", "identical", "init", "head_symmetric"),
)
def hidden_rows_repeated(seed: int) -> Run:
    def model() -> nn.Module:
        net = Classifier(head=nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 3)))
        with torch.no_grad():
            net.head[0].weight.copy_(net.head[0].weight[:1].expand(32, 32).clone())
            net.head[0].bias.fill_(0.0)
            net.head[2].weight.copy_(net.head[2].weight[:, :1].expand(3, 32).clone())
        return net

    return textual(seed, model)


@fault(
    "head",
    "The hidden bias is loaded from a head of other scale, -50 everywhere: all GELU units are off for every text",
    "arXiv:1903.06733 (dying ReLU and initialisation)",
    ("units_alive", "grads_nonzero", "weights_move", "grads_reach_depth"),
    ("dead", "off", "units", "zero"),
    shows=lambda s: s.still("encoder", 1e-3),
)
def hidden_units_off(seed: int) -> Run:
    def model() -> nn.Module:
        net = Classifier(head=two_layers(32, 3))
        nn.init.constant_(net.head[0].bias, -50.0)
        return net

    return textual(seed, model)


@fault(
    "head",
    "The output bias is initialised to 30 for class 0 (log-odds of a count with a missing smoothing term)",
    "arXiv:1708.02002, section 4.1 (prior bias of the output layer); Karpathy 2019 (init well)",
    ("initial_loss", "head_init"),
    ("initial", "init", "bias", "initial_loss_too_high"),
    shows=lambda s: s.losses[0] > 10,
)
def output_bias_far_off(seed: int) -> Run:
    def model() -> nn.Module:
        net = Classifier()
        with torch.no_grad():
            net.head[3].bias.copy_(torch.tensor([30.0, 0.0, 0.0]))
        return net

    return textual(seed, model)


class HiddenBuffer(Classifier):
    """The output layer works with a copy of its weight that is refreshed each step and not saved."""

    def __init__(self) -> None:
        super().__init__(head=nn.Linear(32, 32))
        self.register_buffer("prototypes", torch.randn(3, 32) * 0.3, persistent=False)

    def forward(self, input_ids, attention_mask):
        return torch.relu(super().forward(input_ids, attention_mask)) @ self.prototypes.T


@fault(
    "head",
    "Random class prototypes are a non-persistent buffer: a reloaded model draws other ones, and its head is worthless",
    "PyTorch docs: Module.register_buffer(persistent=False) (not part of the state_dict)",
    ("reload_keeps_head",),
    ("saved", "state_dict", "reload", "persist"),
)
def prototypes_not_saved(seed: int) -> Run:
    return textual(seed, HiddenBuffer)


# ------------------------------------------------------------------------------------------ declared, whatever is measured besides
#: The author measures little.
LITTLE = {"probes": ["loss", "descent"]}


def declared(seed: int, change: Any, **beliefs: Any) -> Run:
    """The pretrained values are declared as they were before ``change(model)``."""
    torch.manual_seed(seed)
    net = Classifier()
    checkpoint = {n: p.detach().clone() for n, p in net.named_parameters() if n.startswith("encoder.")}
    change(net)
    return textual(seed, lambda: net, beliefs={"pretrained": checkpoint, **beliefs}, recipe=LITTLE)


def initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


@fault(
    "head",
    "model.apply(init) is meant for the head and re-initialises the base; the pretrained values are declared, little is measured",
    "transformers docs: PreTrainedModel.from_pretrained; PyTorch docs: nn.Module.apply (visits every module)",
    ("pretrained_kept",),
    ("pretrained", "pretrained_partly_lost"),
)
def base_initialised_with_the_head(seed: int) -> Run:
    return declared(seed, lambda m: m.apply(initialise), head_init=0.02)


@fault(
    "head",
    "N(0, 0.02) is declared and the head keeps torch's default; little is measured",
    "PyTorch docs: torch.nn.Linear (the default is uniform)",
    ("head_init",),
    ("head_init_torch_default", "default"),
)
def declared_start_little_measured(seed: int) -> Run:
    return declared(seed, lambda m: None, head_init=0.02)
