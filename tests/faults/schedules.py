"""Schedules, learning rates and the settings of the optimizer."""

from __future__ import annotations

from typing import Any

import torch

from .cases import SGD_BELIEFS, Run, adamw, cross_entropy, fault, light, linear_decay, sgd, standard_step, textual

FOLLOWS = ("lr_follows_schedule", "weights_move", "lr_sensible")
LINEAR = {"schedule": "linear", "warmup_steps": 6, "total_steps": 40}
OPTIM = "PyTorch docs: torch.optim (how to adjust the learning rate)"


def scheduled(seed: int, make: Any, beliefs: dict[str, Any] | None = None, **more: Any) -> Run:
    run = textual(seed, beliefs=beliefs, **more)
    run.scheduler = make(run.optimizer)
    return run


@fault(
    "schedule",
    "num_warmup_steps=2000 is copied from pretraining; the run has 40 steps and never leaves the warm-up",
    "github.com/salesforce/LAVIS/issues/72 (warm-up longer than the epoch)",
    FOLLOWS,
    ("warm-up", "warmup", "learning rate"),
    shows=lambda s: max(s.rates) < 1e-4,
)
def warmup_longer_than_the_run(seed: int) -> Run:
    return scheduled(seed, lambda o: linear_decay(o, 2000, 10_000), LINEAR)


@fault(
    "schedule",
    "The schedule counts steps, but scheduler.step() stands in the epoch loop: after two epochs it is at step 2",
    "github.com/Tony-Y/pytorch_warmup/issues/17; github.com/vturrisi/solo-learn/issues/264 (steps and epochs mixed up)",
    FOLLOWS,
    ("epoch", "schedul", "learning rate"),
    shows=lambda s: max(s.rates) < 1e-3,
)
def stepped_once_an_epoch(seed: int) -> Run:
    count = [0]
    body = standard_step()

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        value = body(model, batch, optimizer, None)
        count[0] += 1
        if count[0] % 20 == 0:
            scheduler.step()
        return value

    return scheduled(seed, lambda o: linear_decay(o, 6, 40), LINEAR, step=step)


@fault(
    "schedule",
    "Both the loop and a callback call scheduler.step(): the rate is at zero after half of the run",
    "github.com/crowsonkb/k-diffusion/issues/50 (the schedule runs faster than meant); " + OPTIM,
    FOLLOWS,
    ("twice", "fast", "schedul", "learning rate"),
    shows=lambda s: s.rates[25] == 0,
)
def stepped_twice(seed: int) -> Run:
    body = standard_step()

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        value = body(model, batch, optimizer, scheduler)
        scheduler.step()
        return value

    return scheduled(seed, lambda o: linear_decay(o, 6, 40), LINEAR, step=step)


@fault(
    "schedule",
    "num_training_steps is the number of epochs (3): the rate reaches zero after three batches",
    "github.com/vturrisi/solo-learn/issues/264 (epochs where steps are due)",
    FOLLOWS,
    ("zero", "decay", "schedul", "learning rate"),
    shows=lambda s: s.rates[5] == 0,
)
def total_steps_in_epochs(seed: int) -> Run:
    return scheduled(seed, lambda o: linear_decay(o, 0, 3), {**LINEAR, "warmup_steps": 0})


@fault(
    "schedule",
    "step // warmup instead of step / warmup: the rate is zero for the whole warm-up of 20 steps, then jumps to the peak",
    "PyTorch docs: torch.optim.lr_scheduler.LambdaLR; integer division in the lambda",
    FOLLOWS,
    ("zero", "warm", "schedul", "learning rate"),
    shows=lambda s: s.rates[19] == 0 and s.rates[20] > 0,
)
def warmup_by_integer_division(seed: int) -> Run:
    return scheduled(
        seed,
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda i: min(1, i // 20)),
        {"schedule": "constant", "warmup_steps": 20},
    )


@fault(
    "schedule",
    "ReduceLROnPlateau(mode='max') is fed with the loss: every improvement counts as a plateau, the rate collapses",
    "PyTorch docs: torch.optim.lr_scheduler.ReduceLROnPlateau (mode)",
    FOLLOWS,
    ("plateau", "collaps", "decay", "learning rate", "schedule_differs"),
    shows=lambda s: s.rates[-1] < 1e-4,
)
def plateau_in_the_wrong_mode(seed: int) -> Run:
    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        value = standard_step()(model, batch, optimizer, None)
        scheduler.step(value)
        return value

    return scheduled(
        seed,
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, mode="max", patience=1, factor=0.3),
        step=step,
    )


@fault(
    "schedule",
    "ExponentialLR(gamma=0.5) was meant for once an epoch and is stepped for every batch",
    "PyTorch docs: torch.optim.lr_scheduler.ExponentialLR ('every epoch'); " + OPTIM,
    FOLLOWS,
    ("decay", "schedul", "learning rate"),
    shows=lambda s: s.rates[-1] < 1e-10,
)
def halved_every_batch(seed: int) -> Run:
    return scheduled(seed, lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5), count=40)


@fault(
    "schedule",
    "The scheduler's state is restored from the end of the pretraining run: the rate is zero from the first step on",
    "PyTorch docs: torch.optim.lr_scheduler.LRScheduler.load_state_dict",
    FOLLOWS,
    ("zero", "schedul", "learning rate"),
    shows=lambda s: max(s.rates) == 0,
)
def schedule_restored_at_its_end(seed: int) -> Run:
    def make(optimizer: Any) -> Any:
        made = linear_decay(optimizer, 6, 40)
        made.last_epoch = 40
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        return made

    return scheduled(seed, make, LINEAR)


@fault(
    "schedule",
    "lr=2e-8: the exponent of the config was mistyped; nothing moves by anything that matters",
    "DeepCrime, operator 'change learning rate'",
    ("lr_follows_schedule", "weights_move", "lr_sensible"),
    ("learning rate", "lr", "peak_lr_differs"),
    shows=lambda s: s.most("") < 1e-5,
)
def exponent_mistyped(seed: int) -> Run:
    return textual(seed, optimizer=lambda m: adamw(m, lr=2e-8))


@fault(
    "schedule",
    "Adam's learning rate of 2e-5 is kept when the optimizer is changed to SGD: no weight moves noticeably",
    "arXiv:1910.05446 (optimizers need learning rates of their own)",
    ("weights_move", "lr_sensible", "lr_follows_schedule", "loss_decreases"),
    ("learning rate", "lr", "SGD"),
    shows=lambda s: s.after < s.before + 0.1,
)
def adams_rate_for_sgd(seed: int) -> Run:
    return textual(
        seed,
        light,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=2e-5),
        beliefs={**SGD_BELIEFS, "peak_lr": 2e-5},
    )


@fault(
    "schedule",
    "SGD with lr=30 (given in per mille): the loss explodes at once",
    "AUTOTRAINER's 'oscillating loss' (Zhang et al., ICSE 2021); arXiv:1506.01186 (LR range test)",
    ("lr_sensible", "loss_stable", "loss_decreases", "all_finite", "lr_follows_schedule", "grads_reach_depth"),
    ("learning rate", "lr", "diverg", "large", "peak_lr_differs"),
    shows=lambda s: max(s.losses) > 10 * s.losses[0] or s.after < 0.6,
)
def rate_of_thirty(seed: int) -> Run:
    return textual(seed, light, optimizer=lambda m: sgd(m, lr=30.0), beliefs={**SGD_BELIEFS, "peak_lr": 0.03})


@fault(
    "schedule",
    "AdamW(params, 2e-3, (0.9, 0.999), 0.01): the fourth positional argument is eps, not weight_decay",
    "PyTorch docs: torch.optim.AdamW(params, lr, betas, eps, weight_decay)",
    ("optimizer_settings",),
    ("eps",),
)
def decay_lands_on_eps(seed: int) -> Run:
    return textual(
        seed, optimizer=lambda m: torch.optim.AdamW(m.parameters(), 2e-3, (0.9, 0.999), 0.01, weight_decay=0.01)
    )


@fault(
    "schedule",
    "eps=1.0, TensorFlow's advice for Inception, on a small fine-tune: the steps are a hundred times too short",
    "TensorFlow docs: tf.keras.optimizers.Adam ('epsilon ... 1.0 or 0.1 when training an Inception network')",
    ("optimizer_settings", "weights_move", "lr_sensible"),
    ("eps",),
    shows=lambda s: s.after < 0.7,
)
def eps_of_one(seed: int) -> Run:
    return textual(seed, optimizer=lambda m: adamw(m, eps=1.0))


@fault(
    "schedule",
    "betas=(0.999, 0.9): the two are swapped, the momentum looks back a thousand steps",
    "PyTorch docs: torch.optim.Adam (betas); arXiv:1412.6980",
    ("optimizer_settings",),
    ("beta", "betas_swapped"),
)
def betas_swapped(seed: int) -> Run:
    return textual(seed, optimizer=lambda m: adamw(m, betas=(0.999, 0.9)))


@fault(
    "schedule",
    "momentum=1.0: the velocity never decays, and every gradient ever seen is applied for good",
    "PyTorch docs: torch.optim.SGD (momentum); Goodfellow et al., Deep Learning, section 8.3.2 (alpha in [0, 1))",
    ("optimizer_settings", "loss_stable", "loss_decreases"),
    ("momentum",),
)
def momentum_of_one(seed: int) -> Run:
    return textual(seed, light, optimizer=lambda m: sgd(m, momentum=1.0), beliefs=SGD_BELIEFS)


@fault(
    "schedule",
    "Adam with L2 weight decay where AdamW was meant and declared: one letter in the class name",
    "arXiv:1711.05101 (decoupled weight decay regularisation)",
    ("optimizer_settings",),
    ("Adam", "optimizer"),
)
def adam_for_adamw(seed: int) -> Run:
    return textual(seed, optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=2e-3, weight_decay=0.01))


@fault(
    "schedule",
    "Weight decay of 0.1 on every parameter; the no-decay group is built and then overwritten by model.parameters()",
    "transformers Trainer.get_decay_parameter_names (no decay on biases and norms); arXiv:1711.05101",
    ("optimizer_settings",),
    ("decay", "decay_on_norms"),
)
def no_decay_group_overwritten(seed: int) -> Run:
    return textual(
        seed, optimizer=lambda m: adamw(m, weight_decay=0.1), beliefs={"weight_decay": 0.1, "no_decay": True}
    )


@fault(
    "schedule",
    "Clipping to 0.1 is called after optimizer.step(): it clips what has been applied already",
    "PyTorch docs: torch.nn.utils.clip_grad_norm_ (between backward and step)",
    ("optimizer_settings", "grads_match_reference"),
    ("clip",),
)
def clipped_after_the_step(seed: int) -> Run:
    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        value = standard_step()(model, batch, optimizer, scheduler)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        return value

    return textual(seed, light, step=step, optimizer=sgd, beliefs={**SGD_BELIEFS, "max_grad_norm": 0.1})


@fault(
    "schedule",
    "clip_grad_norm_(model.head.parameters(), 0.05): the encoder's gradients are not clipped at all",
    "PyTorch docs: torch.nn.utils.clip_grad_norm_ (of all parameters together)",
    ("optimizer_settings", "grads_match_reference"),
    ("clip",),
)
def only_the_head_is_clipped(seed: int) -> Run:
    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        optimizer.zero_grad()
        loss = cross_entropy(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.head.parameters(), 0.05)
        optimizer.step()
        return loss.item()

    return textual(seed, light, step=step, optimizer=sgd, beliefs={**SGD_BELIEFS, "max_grad_norm": 0.05})
