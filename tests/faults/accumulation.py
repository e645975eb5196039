"""Gradient accumulation: what a step is made of."""

from __future__ import annotations

from typing import Any

from torch import nn

from .cases import SGD_BELIEFS, Run, cross_entropy, fault, light, linear_decay, sgd, textual

REFERENCE = ("grads_match_reference",)
FOUR = {**SGD_BELIEFS, "accumulation": 4, "total_steps": 10}
BLOG = "github.com/huggingface/blog/pull/2414 (Fixing gradient accumulation)"


def every_fourth(backward: Any, at_step: Any = None, *, steps_when: int = 4, scheduler_always: bool = False) -> Any:
    """The accumulation loop, with the parts that can go wrong to be filled in."""
    count = [0]

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        count[0] += 1
        loss = cross_entropy(model, batch)
        backward(loss, count[0])
        if count[0] % steps_when == 0:
            if at_step:
                at_step(model)
            optimizer.step()
            optimizer.zero_grad()
            if scheduler is not None and not scheduler_always:
                scheduler.step()
        if scheduler is not None and scheduler_always:
            scheduler.step()
        return loss.item()

    return step


@fault(
    "accumulation",
    "The loss of four micro-batches is summed and not divided by four: SGD takes steps four times as long",
    "github.com/karpathy/nanoGPT/issues/206; github.com/hirofumi0810/neural_sp/issues/168; "
    "github.com/agokrani/distillKitPlus/issues/5",
    REFERENCE,
    ("accumul", "averag", "divided", "sum", "scale"),
)
def accumulated_and_not_averaged(seed: int) -> Run:
    return textual(seed, light, step=every_fourth(lambda loss, i: loss.backward()), optimizer=sgd, beliefs=FOUR)


@fault(
    "accumulation",
    "The loss is divided by four, and the gradients once more before the step",
    "github.com/ApolloResearch/e2e_sae/pull/70; github.com/llm-random/llm-random/pull/529 (already divided)",
    REFERENCE,
    ("accumul", "averag", "divided", "scale", "twice"),
)
def averaged_twice(seed: int) -> Run:
    def quarter(model: Any) -> None:
        for p in model.parameters():
            if p.grad is not None:
                p.grad.div_(4)

    return textual(
        seed, light, step=every_fourth(lambda loss, i: (loss / 4).backward(), quarter), optimizer=sgd, beliefs=FOUR
    )


@fault(
    "accumulation",
    "The loss is divided by four, but the step condition is 'i % 1 == 0': a step for every micro-batch",
    BLOG + "; PyTorch docs: Automatic Mixed Precision examples, gradient accumulation",
    ("optimizer_covers_model", "optimizer_settings", "grads_match_reference", "lr_follows_schedule", "batches_sound"),
    ("accumul", "steps", "every"),
)
def a_step_for_every_micro_batch(seed: int) -> Run:
    return textual(
        seed,
        light,
        step=every_fourth(lambda loss, i: (loss / 4).backward(), steps_when=1),
        optimizer=sgd,
        beliefs={**FOUR, "total_steps": 10},
    )


@fault(
    "accumulation",
    "backward() slipped into the 'if' with the step: three micro-batches of four are computed and thrown away",
    "indentation in a hand-written loop; arXiv:2506.14813 (TrainCheck: order of calls)",
    REFERENCE,
    ("accumul", "micro", "batches", "gradient", "micro_batches_lost"),
)
def backward_only_at_the_step(seed: int) -> Run:
    def backward(loss: Any, i: int) -> None:
        if i % 4 == 0:
            (loss / 4).backward()

    return textual(seed, light, step=every_fourth(backward), optimizer=sgd, beliefs=FOUR)


@fault(
    "accumulation",
    "scheduler.step() is called for every micro-batch: the rate is at zero after a quarter of the training",
    "accelerate docs: gradient accumulation (the scheduler is stepped with the optimizer)",
    ("lr_follows_schedule", "weights_move", "lr_sensible"),
    ("micro", "schedul", "learning rate", "fast"),
    shows=lambda s: s.rates[-1] == 0,
)
def scheduled_by_micro_batches(seed: int) -> Run:
    run = textual(
        seed,
        step=every_fourth(lambda loss, i: (loss / 4).backward(), scheduler_always=True),
        steps=80,
        beliefs={"accumulation": 4, "schedule": "linear", "warmup_steps": 2, "total_steps": 20},
    )
    run.scheduler = linear_decay(run.optimizer, 2, 20)
    return run


@fault(
    "accumulation",
    "The accumulated gradients are not cleared after the step: they pile up over the whole training",
    "PyTorch docs: torch.optim.Optimizer.zero_grad; zero_grad in the wrong branch of the accumulation loop",
    REFERENCE,
    ("accumul", "zero_grad", "clear", "grads_never_zeroed"),
)
def cleared_once_at_the_start(seed: int) -> Run:
    count = [0]

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        if count[0] == 0:
            optimizer.zero_grad()
        count[0] += 1
        loss = cross_entropy(model, batch)
        (loss / 4).backward()
        if count[0] % 4 == 0:
            optimizer.step()
        return loss.item()

    return textual(seed, light, step=step, optimizer=sgd, beliefs=FOUR)


@fault(
    "accumulation",
    "Accumulation over 64 batches in a run of 40: optimizer.step() is never reached",
    BLOG + "; len(loader) smaller than the number of accumulation steps",
    ("optimizer_covers_model", "weights_move", "loss_decreases", "grads_match_reference"),
    ("step", "accumul", "never"),
    shows=lambda s: s.still(""),
)
def never_enough_for_a_step(seed: int) -> Run:
    return textual(
        seed, step=every_fourth(lambda loss, i: (loss / 64).backward(), steps_when=64),
        beliefs={"accumulation": 4, "total_steps": 10},
    )  # fmt: skip


@fault(
    "accumulation",
    "clip_grad_norm_ to 0.05 after every micro-batch: the accumulated gradient is clipped again and again",
    "github.com/huggingface/accelerate/issues/641 (clipping inside accumulation)",
    REFERENCE,
    ("clip", "accumul", "gradient"),
)
def clipped_at_every_micro_batch(seed: int) -> Run:
    count = [0]

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        count[0] += 1
        loss = cross_entropy(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.002)
        if count[0] % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    return textual(seed, light, step=step, optimizer=sgd, beliefs={**FOUR, "max_grad_norm": 1.0})
