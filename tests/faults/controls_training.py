"""Healthy controls: optimizers, schedules, losses, freezing, adapters, precision and loops that look odd and are not."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .adapters import Adapted, attentions, lora
from .cases import (
    SGD_BELIEFS,
    Classifier,
    Run,
    adamw,
    control,
    cross_entropy,
    labels_of,
    light,
    linear_decay,
    logits_of,
    sgd,
    standard_step,
    textual,
)

OPTIM = "PyTorch docs: torch.optim"


def trained_with(seed: int, kind: Any, lr: float, **settings: Any) -> Run:
    return textual(
        seed,
        optimizer=lambda m: kind(m.parameters(), lr=lr, **settings),
        beliefs={"optimizer": kind.__name__, "peak_lr": lr, "weight_decay": settings.get("weight_decay")},
    )


@control("optimizer", "NAdam", OPTIM + ".NAdam")
def nadam(seed: int) -> Run:
    return trained_with(seed, torch.optim.NAdam, 2e-3)


@control("optimizer", "RAdam: the first steps are plain momentum and much shorter", OPTIM + ".RAdam; arXiv:1908.03265")
def radam(seed: int) -> Run:
    return trained_with(seed, torch.optim.RAdam, 1e-2)


@control("optimizer", "RMSprop: the first steps are ten times as long as the rate says", OPTIM + ".RMSprop")
def rmsprop(seed: int) -> Run:
    return trained_with(seed, torch.optim.RMSprop, 1e-3)


@control("optimizer", "Adagrad at 0.02", OPTIM + ".Adagrad")
def adagrad(seed: int) -> Run:
    return trained_with(seed, torch.optim.Adagrad, 2e-2)


@control("optimizer", "Adamax", OPTIM + ".Adamax")
def adamax(seed: int) -> Run:
    return trained_with(seed, torch.optim.Adamax, 4e-3)


class Lion(torch.optim.Optimizer):
    """Sign of an interpolated momentum: every element moves by lr, whatever its gradient."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99), "weight_decay": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            one, two = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(torch.sign(m * one + p.grad * (1 - one)), alpha=-group["lr"])
                m.mul_(two).add_(p.grad, alpha=1 - two)


@control("optimizer", "Lion, written out: an optimizer that torch does not have", "arXiv:2302.06675")
def lion(seed: int) -> Run:
    return textual(
        seed,
        optimizer=lambda m: Lion(m.parameters(), 4e-4),
        beliefs={"optimizer": "Lion", "peak_lr": 4e-4, "weight_decay": 0.1},
    )


@control("optimizer", "SGD with Nesterov momentum and a cosine schedule", OPTIM + ".SGD; arXiv:1608.03983")
def sgd_nesterov_cosine(seed: int) -> Run:
    run = textual(
        seed, light, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.4, momentum=0.9, nesterov=True),
        beliefs={**SGD_BELIEFS, "peak_lr": 0.4, "schedule": None},
    )  # fmt: skip
    run.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(run.optimizer, 40)
    return run


@control(
    "optimizer",
    "Layer-wise decay of the rate: the head's is largest, the embeddings' a fifth of it",
    "arXiv:1801.06146; arXiv:2006.05987",
)
def layer_wise_rates(seed: int) -> Run:
    def groups(m: Any) -> Any:
        parts = [m.head, m.encoder.encoder.layer[1], m.encoder.encoder.layer[0], m.encoder.embeddings]
        return adamw([{"params": p.parameters(), "lr": 4e-3 * 0.6**i} for i, p in enumerate(parts)])

    return textual(seed, optimizer=groups, beliefs={"peak_lr": 4e-3})


@control("optimizer", "The head learns ten times as fast as the base", "arXiv:1801.06146 (discriminative fine-tuning)")
def faster_head(seed: int) -> Run:
    return textual(
        seed, beliefs={"peak_lr": 1e-2},
        optimizer=lambda m: adamw([{"params": m.encoder.parameters(), "lr": 1e-3}, {"params": m.head.parameters(), "lr": 1e-2}]),
    )  # fmt: skip


@control(
    "optimizer", "No decay on norms and biases, grouped correctly", "transformers Trainer.get_decay_parameter_names"
)
def decay_grouped_correctly(seed: int) -> Run:
    def groups(m: Any) -> Any:
        free = {n for n, p in m.named_parameters() if p.dim() < 2}
        return adamw(
            [
                {"params": [p for n, p in m.named_parameters() if n not in free], "weight_decay": 0.1},
                {"params": [p for n, p in m.named_parameters() if n in free], "weight_decay": 0.0},
            ]
        )

    return textual(seed, optimizer=groups, beliefs={"weight_decay": 0.1, "no_decay": True})


@control(
    "optimizer",
    "Two optimizers, one for the base and one for the head, both stepped",
    "PyTorch Lightning docs: multiple optimizers",
)
def one_optimizer_for_each_part(seed: int) -> Run:
    second: list[Any] = []

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        if not second:
            second.append(torch.optim.SGD(model.head.parameters(), lr=0.1))
        optimizer.zero_grad()
        second[0].zero_grad()
        loss = cross_entropy(model, batch)
        loss.backward()
        optimizer.step()
        second[0].step()
        return loss.item()

    return textual(
        seed,
        step=step,
        optimizer=lambda m: adamw(m.encoder),
        beliefs={"optimizer": None, "peak_lr": None, "weight_decay": None, "schedule": None},
    )


@control(
    "optimizer", "Sharpness-aware minimisation: the gradient at the step is taken at other weights", "arXiv:2010.01412"
)
def sharpness_aware(seed: int) -> Run:
    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        params = [p for p in model.parameters() if p.requires_grad]
        optimizer.zero_grad()
        loss = cross_entropy(model, batch)
        loss.backward()
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in params if p.grad is not None]).norm()
            moves = [(p, p.grad * (0.02 / (norm + 1e-12))) for p in params if p.grad is not None]
            for p, move in moves:
                p.add_(move)
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        with torch.no_grad():
            for p, move in moves:
                p.sub_(move)
        optimizer.step()
        return loss.item()

    return textual(seed, step=step)


@control("optimizer", "Lookahead: every five steps the weights go half of the way back", "arXiv:1907.08610")
def lookahead(seed: int) -> Run:
    state: dict[str, Any] = {"count": 0}
    body = standard_step()

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        if state["count"] == 0:
            state["slow"] = [p.detach().clone() for p in model.parameters()]
        value = body(model, batch, optimizer, scheduler)
        state["count"] += 1
        if state["count"] % 5 == 0:
            with torch.no_grad():
                for p, slow in zip(model.parameters(), state["slow"], strict=True):
                    slow.lerp_(p, 0.5)
                    p.copy_(slow)
        return value

    return textual(seed, step=step, optimizer=lambda m: adamw(m, lr=4e-3), beliefs={"peak_lr": 4e-3})


@control(
    "loop",
    "An average of the weights is kept beside the model and evaluated by nobody yet",
    "arXiv:1703.01780; torch.optim.swa_utils",
)
def average_kept_beside(seed: int) -> Run:
    state: dict[str, Any] = {}
    body = standard_step()

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        value = body(model, batch, optimizer, scheduler)
        if not state:
            state["ema"] = copy.deepcopy(model)
        with torch.no_grad():
            for slow, p in zip(state["ema"].parameters(), model.parameters(), strict=True):
                slow.lerp_(p, 0.01)
        return value

    return textual(seed, step=step)


@control("loop", "A max-norm constraint that bites now and then", "Srivastava et al., JMLR 2014")
def mild_max_norm(seed: int) -> Run:
    body = standard_step()

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        value = body(model, batch, optimizer, scheduler)
        with torch.no_grad():
            weight = model.head[0].weight
            weight.mul_((0.62 / weight.norm(dim=1, keepdim=True)).clamp(max=1))
        return value

    return textual(seed, step=step)


@control("loop", "Gradient noise is added before each step", "arXiv:1511.06807")
def gradient_noise(seed: int) -> Run:
    g = torch.Generator().manual_seed(seed)

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        optimizer.zero_grad()
        loss = cross_entropy(model, batch)
        loss.backward()
        for p in model.parameters():
            if p.grad is not None:
                p.grad.add_(torch.randn(p.shape, generator=g) * 1e-3)
        optimizer.step()
        return loss.item()

    return textual(seed, step=step)


@control("loop", "Clipping to 1.0 as the Trainer does it", "transformers docs: TrainingArguments.max_grad_norm")
def clipped_to_one(seed: int) -> Run:
    return textual(seed, clip=1.0)


@control("loop", "The loop is left to the tool: a factory, a recipe, dict batches", "this project's README")
def the_tools_own_loop(seed: int) -> Run:
    run = textual(seed)
    run.step, run.optimizer, run.loss_fn, run.intent = None, None, None, None
    run.recipe = {"lr": 2e-3, "warmup": 0.1, "seed": seed}
    return run


@control("loop", "The tool's own loop with SGD and a constant rate", "this project's README")
def the_tools_own_loop_with_sgd(seed: int) -> Run:
    run = textual(seed, light)
    run.step, run.loss_fn, run.intent = None, None, None
    run.optimizer = sgd
    return run


@control("loop", "Evaluated every ten steps, and back to train mode", "PyTorch docs: torch.nn.Module.train")
def evaluated_now_and_then(seed: int) -> Run:
    count = [0]
    body = standard_step()

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        value = body(model, batch, optimizer, scheduler)
        count[0] += 1
        if count[0] % 10 == 0:
            model.eval()
            with torch.no_grad():
                logits_of(model, batch)
            model.train()
        return value

    return textual(seed, step=step)


@control("loop", "Batches of two, averaged over eight of them", "transformers docs: gradient accumulation")
def tiny_batches_accumulated(seed: int) -> Run:
    count = [0]

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        count[0] += 1
        loss = cross_entropy(model, batch)
        (loss / 8).backward()
        if count[0] % 8 == 0:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    return textual(
        seed, step=step, size=2, count=160, steps=160, optimizer=lambda m: adamw(m, lr=5e-3),
        beliefs={"peak_lr": 5e-3, "accumulation": 8, "total_steps": 20},
    )  # fmt: skip


@control(
    "loop", "Three batches a step; the last one of the run is left over", "transformers docs: gradient accumulation"
)
def accumulation_with_a_rest(seed: int) -> Run:
    count = [0]

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        count[0] += 1
        loss = cross_entropy(model, batch)
        (loss / 3).backward()
        if count[0] % 3 == 0:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    return textual(
        seed,
        step=step,
        optimizer=lambda m: adamw(m, lr=5e-3),
        beliefs={"peak_lr": 5e-3, "accumulation": 3, "total_steps": 13},
    )


# ------------------------------------------------------------------------------------------ schedules and slow runs
@control("schedule", "Linear warm-up from zero and linear decay", "transformers docs: get_linear_schedule_with_warmup")
def warmup_and_decay(seed: int) -> Run:
    run = textual(
        seed, optimizer=lambda m: adamw(m, lr=4e-3), beliefs={"peak_lr": 4e-3, "schedule": "linear", "warmup_steps": 6}
    )
    run.scheduler = linear_decay(run.optimizer, 6, 40)
    return run


@control("schedule", "One cycle, with momentum cycled the other way", "arXiv:1708.07120; PyTorch docs: OneCycleLR")
def one_cycle(seed: int) -> Run:
    run = textual(seed, beliefs={"schedule": None, "peak_lr": 4e-3})
    run.scheduler = torch.optim.lr_scheduler.OneCycleLR(run.optimizer, max_lr=4e-3, total_steps=40)
    return run


@control(
    "slow",
    "The standard recipe, 5e-5 with warm-up: 40 of 3,000 steps, the loss hardly moves",
    "arXiv:1810.04805, appendix A.3",
    slow=True,
)
def first_steps_of_a_long_warmup(seed: int) -> Run:
    run = textual(
        seed, optimizer=lambda m: adamw(m, lr=5e-5), clip=1.0,
        beliefs={"peak_lr": 5e-5, "schedule": "linear", "warmup_steps": 300, "total_steps": 3000},
    )  # fmt: skip
    run.scheduler = linear_decay(run.optimizer, 300, 3000)
    return run


@control(
    "slow",
    "A constant rate of 1e-5 on a random base: it moves as much as it can in 40 steps",
    "arXiv:2006.04884",
    slow=True,
)
def small_constant_rate(seed: int) -> Run:
    return textual(seed, optimizer=lambda m: adamw(m, lr=1e-5), beliefs={"peak_lr": 1e-5})


# ------------------------------------------------------------------------------------------ losses
def with_loss(seed: int, loss_fn: Any, **more: Any) -> Run:
    return textual(seed, loss_fn=loss_fn, **more)


@control("loss", "Label smoothing of 0.1", "arXiv:1512.00567")
def smoothing_of_a_tenth(seed: int) -> Run:
    return with_loss(seed, lambda m, b: F.cross_entropy(logits_of(m, b), b["labels"], label_smoothing=0.1))


@control("loss", "Focal loss as published, gamma 2", "arXiv:1708.02002")
def focal_loss(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        log_p = F.log_softmax(logits_of(model, batch), -1).gather(1, batch["labels"][:, None]).squeeze(1)
        return -((1 - log_p.exp()) ** 2 * log_p).mean()

    return with_loss(seed, loss_fn)


@control("loss", "R-Drop: two passes with different dropout masks and a KL term between them", "arXiv:2106.14448")
def r_drop(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        one, two = logits_of(model, batch), logits_of(model, batch)
        p, q = F.log_softmax(one, -1), F.log_softmax(two, -1)
        apart = (
            F.kl_div(p, q, reduction="batchmean", log_target=True)
            + F.kl_div(q, p, reduction="batchmean", log_target=True)
        ) / 2
        return (F.cross_entropy(one, batch["labels"]) + F.cross_entropy(two, batch["labels"])) / 2 + 0.5 * apart

    return with_loss(seed, loss_fn)


class Mixing(Classifier):
    """Manifold mixup: pooled features of two rows are mixed when asked to."""

    def forward(self, input_ids, attention_mask, order=None, share=1.0):
        x = self.pool(self.encode(input_ids, attention_mask), attention_mask)
        if order is not None:
            x = share * x + (1 - share) * x[order]
        return self.head(x)


@control(
    "loss",
    "Mixup of pooled features: rows are mixed in training, on purpose; evaluation is not touched",
    "arXiv:1806.05236 (manifold mixup)",
)
def mixup_of_features(seed: int) -> Run:
    g = torch.Generator().manual_seed(seed)

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        y = batch["labels"]
        order, share = torch.randperm(len(y), generator=g), 0.5 + 0.5 * float(torch.rand(1, generator=g))
        optimizer.zero_grad()
        logits = model(batch["input_ids"], batch["attention_mask"], order, share)
        loss = share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, y[order])
        loss.backward()
        optimizer.step()
        return loss.item()

    return textual(seed, Mixing, step=step)


@control("loss", "A multi-class hinge loss instead of cross-entropy", "PyTorch docs: torch.nn.MultiMarginLoss")
def hinge(seed: int) -> Run:
    return with_loss(seed, lambda m, b: F.multi_margin_loss(logits_of(m, b), b["labels"]))


@control("loss", "Brier's score: squared error of the probabilities", "Brier 1950; a proper scoring rule")
def brier(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        return ((logits_of(model, batch).softmax(-1) - F.one_hot(batch["labels"], 3)) ** 2).sum(-1).mean()

    return with_loss(seed, loss_fn)


@control("loss", "Distillation: half cross-entropy, half KL to a teacher's soft labels", "arXiv:1503.02531")
def distilled(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        logits = logits_of(model, batch)
        soft = F.one_hot(batch["labels"], 3) * 0.7 + 0.1
        return 0.5 * F.cross_entropy(logits, batch["labels"]) + 0.5 * F.kl_div(
            F.log_softmax(logits, -1), soft, reduction="batchmean"
        )

    return with_loss(seed, loss_fn)


@control("loss", "A mild L2 penalty towards the pretrained weights, in the loss", "arXiv:1802.01483 (L2-SP)")
def penalty_towards_the_start(seed: int) -> Run:
    start: dict[str, Any] = {}

    def loss_fn(model: Any, batch: Any) -> Any:
        if not start:
            start.update({n: p.detach().clone() for n, p in model.encoder.named_parameters()})
        apart = sum(((p - start[n]) ** 2).sum() for n, p in model.encoder.named_parameters())
        return cross_entropy(model, batch) + 0.01 * apart

    return with_loss(seed, loss_fn)


@control("loss", "Entropy is rewarded a little (a confidence penalty)", "arXiv:1701.06548")
def confidence_penalty(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        log_p = F.log_softmax(logits_of(model, batch), -1)
        return F.nll_loss(log_p, labels_of(batch)) + 0.05 * (log_p.exp() * log_p).sum(-1).mean()

    return with_loss(seed, loss_fn)


# ------------------------------------------------------------------------------------------ freezing and adapters
def frozen_base(seed: int, model: Any = Classifier, **more: Any) -> Run:
    def build() -> Any:
        net = model()
        net.encoder.requires_grad_(False)
        return net

    return textual(
        seed, build, optimizer=lambda m: adamw([p for p in m.parameters() if p.requires_grad], lr=1e-2),
        beliefs={"trained": "head", "frozen": "encoder", "peak_lr": 1e-2}, steps=80, **more,
    )  # fmt: skip


@control("freeze", "A frozen base under a head that learns", "PyTorch tutorials: transfer learning", slow=True)
def head_on_a_frozen_base(seed: int) -> Run:
    return frozen_base(seed)


@control(
    "freeze",
    "A frozen base kept in eval mode on purpose, so that its features do not flicker",
    "PyTorch docs: Autograd mechanics, evaluation mode",
    slow=True,
)
def frozen_base_in_eval_mode(seed: int) -> Run:
    run = frozen_base(seed)
    run.model.encoder.eval()

    def evaluate(model: Any) -> float:
        from .cases import accuracy

        value = accuracy(run.eval_batches)(model)
        model.train()
        model.encoder.eval()
        return value

    run.evaluate = evaluate
    return run


@control(
    "freeze",
    "Gradual unfreezing that works: the base is thawed after ten steps and is in the optimizer from the start",
    "arXiv:1801.06146",
)
def thawed_on_time(seed: int) -> Run:
    count = [0]
    body = standard_step()

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        if count[0] == 10:
            model.encoder.requires_grad_(True)
        count[0] += 1
        return body(model, batch, optimizer, scheduler)

    def build() -> Any:
        net = Classifier()
        net.encoder.requires_grad_(False)
        return net

    return textual(seed, build, step=step, steps=60, beliefs={"thaw_step": 10, "total_steps": 60})


@control("freeze", "Only the embeddings are frozen", "arXiv:1911.03090 (what would ELSA do? freezing layers)")
def frozen_embeddings(seed: int) -> Run:
    def build() -> Any:
        net = Classifier()
        net.encoder.embeddings.requires_grad_(False)
        return net

    return textual(
        seed, build, beliefs={"frozen": "encoder.embeddings", "trained": ("encoder.encoder", "head")}, steps=60
    )


@control("peft", "LoRA with B = 0: in the first step every A has a gradient of exactly zero", "arXiv:2106.09685")
def lora_as_published(seed: int) -> Run:
    return lora(seed, steps=60)


@control("peft", "LoRA+ : B learns sixteen times as fast as A", "arXiv:2402.12354")
def lora_plus(seed: int) -> Run:
    def groups(m: Any) -> Any:
        fast = [p for n, p in m.named_parameters() if n.endswith("lora_b")]
        rest = [p for n, p in m.named_parameters() if p.requires_grad and not n.endswith("lora_b")]
        return adamw([{"params": rest, "lr": 2e-3}, {"params": fast, "lr": 3.2e-2}])

    return lora(seed, optimizer=groups, beliefs={"peak_lr": 3.2e-2}, steps=60)


@control("peft", "Adapters with a skip connection, nearly the identity at the start", "arXiv:1902.00751")
def adapters_near_identity(seed: int) -> Run:
    def build() -> Any:
        net = Adapted(skip=True)
        net.encoder.requires_grad_(False)
        return net

    return textual(
        seed, build, optimizer=lambda m: adamw([p for p in m.parameters() if p.requires_grad], lr=1e-2), steps=60,
        beliefs={"trained": ("adapter", "head"), "frozen": "encoder", "peak_lr": 1e-2},
    )  # fmt: skip


@control("peft", "BitFit as published: biases and the whole head", "arXiv:2106.10199")
def bitfit_with_the_head(seed: int) -> Run:
    def build() -> Any:
        net = Classifier()
        for name, p in net.encoder.named_parameters():
            p.requires_grad_(name.endswith("bias"))
        return net

    return textual(
        seed, build, optimizer=lambda m: adamw([p for p in m.parameters() if p.requires_grad], lr=1e-2), steps=60,
        beliefs={"trained": ("*bias", "head"), "frozen": ("encoder.embeddings.word_embeddings",), "peak_lr": 1e-2},
    )  # fmt: skip


class Prompted(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(4, 32) * 0.3)

    def encode(self, input_ids, attention_mask):
        words = self.encoder.embeddings.word_embeddings(input_ids)
        joined = torch.cat([self.prompt.expand(len(words), -1, -1), words], 1)
        mask = F.pad(attention_mask, (4, 0), value=1)
        return self.encoder(inputs_embeds=joined, attention_mask=mask)[0][:, 4:]


@control("peft", "Four soft prompt vectors in front of the text, base frozen", "arXiv:2104.08691", slow=True)
def prompt_in_front(seed: int) -> Run:
    def build() -> Any:
        net = Prompted()
        net.encoder.requires_grad_(False)
        return net

    return textual(
        seed, build, optimizer=lambda m: adamw([p for p in m.parameters() if p.requires_grad], lr=1e-2), steps=60,
        beliefs={"trained": ("prompt", "head"), "frozen": "encoder", "peak_lr": 1e-2},
    )  # fmt: skip


@control("peft", "(IA)3 from ones", "arXiv:2205.05638", slow=True)
def ia3_from_one(seed: int) -> Run:
    class Scaled(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.factor = inner, nn.Parameter(torch.ones(inner.out_features))

        def forward(self, x):
            return self.inner(x) * self.factor

    def build() -> Any:
        net = Classifier()
        net.encoder.requires_grad_(False)
        for attention in attentions(net):
            attention.value = Scaled(attention.value)
        return net

    return textual(
        seed, build, optimizer=lambda m: adamw([p for p in m.parameters() if p.requires_grad], lr=1e-2), steps=60,
        beliefs={"trained": ("*factor", "head"), "frozen": ("*.inner.*",), "peak_lr": 1e-2},
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ precision
@control("numerics", "Forward under bfloat16 autocast, weights in float32", "PyTorch docs: torch.autocast")
def autocast_bf16(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(logits_of(model, batch).float(), batch["labels"])

    return with_loss(seed, loss_fn)


@control(
    "numerics",
    "GradScaler, unscale_, clip, step, update: in the documented order",
    "PyTorch docs: Automatic Mixed Precision examples",
)
def scaler_in_order(seed: int) -> Run:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        optimizer.zero_grad()
        loss = cross_entropy(model, batch)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    return textual(seed, step=step, beliefs={"max_grad_norm": 1.0})


@control("numerics", "Everything in float64", "PyTorch docs: torch.set_default_dtype and Module.double")
def double_precision(seed: int) -> Run:
    return textual(seed, lambda: Classifier().double())


@control("numerics", "Gradient checkpointing in the encoder", "transformers docs: gradient_checkpointing_enable")
def checkpointed(seed: int) -> Run:
    def build() -> Any:
        net = Classifier()
        net.encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return net

    return textual(seed, build)


# ------------------------------------------------------------------------------------------ a head that is frozen on purpose
@control(
    "freeze",
    "The hidden layer of the head is a fixed random projection, declared frozen; the base and the output layer learn",
    "arXiv:1801.04540 (fix your classifier)",
)
def fixed_layer_in_the_head(seed: int) -> Run:
    def build() -> nn.Module:
        net = Classifier()
        net.head[0].requires_grad_(False)
        return net

    return textual(seed, build, beliefs={"trained": None, "frozen": "head.0"}, steps=60)


@control("freeze", "The whole head is fixed, and the base learns to fit it", "arXiv:1801.04540 (fix your classifier)")
def fixed_head(seed: int) -> Run:
    def build() -> nn.Module:
        net = Classifier()
        net.head.requires_grad_(False)
        return net

    return textual(seed, build, beliefs={"trained": None}, steps=60)


@control(
    "freeze",
    "Base frozen, head unfrozen by its whole name, its output layer at zero: one step late, it learns",
    "arXiv:1901.09321 (zero output layers)",
    slow=True,
)
def prefix_unfreezes_the_head(seed: int) -> Run:
    from .wiring import unfrozen

    return textual(
        seed,
        unfrozen("head"),
        optimizer=lambda m: adamw([p for p in m.parameters() if p.requires_grad], lr=1e-2),
        beliefs={"trained": None, "peak_lr": 1e-2},
        steps=80,
    )


@control(
    "head",
    "The head alone is initialised, the declared base is kept; little is measured",
    "PyTorch docs: nn.Module.apply",
)
def head_alone_initialised(seed: int) -> Run:
    from .heads import declared, initialise

    return declared(seed, lambda m: m.head.apply(initialise), head_init=0.02)
