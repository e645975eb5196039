"""Trainings that stop in the middle, that had begun before, or whose end is thrown away."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from .cases import Classifier, Run, adamw, control, cross_entropy, fault, packed, reviews, standard_step, textual
from .numerics import tabular

CONTINUES = ("training_continues",)
STOP, LONG = 12, 60


def stopping(seed: int, between: Callable[[Any, Any, int], bool], **more: Any) -> Run:
    """A loop with something between ``backward()`` and the step: ``between(model, optimizer, i)``, which says whether to step."""
    count = [-1]

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        count[0] += 1
        optimizer.zero_grad()
        loss = cross_entropy(model, batch)
        loss.backward()
        if between(model, optimizer, count[0]):
            optimizer.step()
        return loss.item()

    return textual(seed, step=step, **more)


@fault(
    "stopping",
    "A patience counter that is never reset stops the optimizer after twelve batches; the loop runs on",
    "PyTorch forums: 'loss does not change after some iterations'; a guard around optimizer.step()",
    CONTINUES,
    ("steps_stop",),
    shows=lambda s: min(s.losses) > 0,
)
def no_step_after_the_twelfth(seed: int) -> Run:
    return stopping(seed, lambda _m, _o, i: i <= STOP)


def _clear(parameters: Any) -> None:
    for p in parameters:
        p.grad = None


@fault(
    "stopping",
    "A callback clears the head's gradients from the twelfth batch on, in front of the step",
    "PyTorch docs: Optimizer.zero_grad (set_to_none)",
    CONTINUES,
    ("grads_stop",),
)
def gradients_of_the_head_cleared_from_then_on(seed: int) -> Run:
    def between(model: Any, _optimizer: Any, i: int) -> bool:
        if i >= STOP:
            _clear(model.head.parameters())
        return True

    return stopping(seed, between)


@fault(
    "stopping",
    "A callback that rebuilds the groups leaves the optimizer's only group empty",
    "PyTorch docs: Optimizer.param_groups",
    CONTINUES,
    ("updates_stop",),
)
def group_emptied_half_way(seed: int) -> Run:
    def between(_model: Any, optimizer: Any, i: int) -> bool:
        if i == STOP:
            optimizer.param_groups[0]["params"] = []
        return True

    return stopping(seed, between)


@control("loop", "Twelve batches a step: most batches take none", "transformers docs: gradient accumulation")
def twelve_batches_a_step(seed: int) -> Run:
    count = [0]

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        count[0] += 1
        loss = cross_entropy(model, batch)
        (loss / 12).backward()
        if count[0] % 12 == 0:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    return textual(
        seed, step=step, size=4, count=120, steps=120, optimizer=lambda m: adamw(m, lr=1e-2),
        beliefs={"peak_lr": 1e-2, "accumulation": 12, "total_steps": 10},
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ begun before
START = ("fresh_start",)
FRESH_HEAD = 0.02


def fresh() -> Any:
    """A classifier whose head is declared to be new."""
    net = Classifier()
    for layer in (net.head[0], net.head[3]):
        torch.nn.init.normal_(layer.weight, std=FRESH_HEAD)
        torch.nn.init.zeros_(layer.bias)
    return net


def trained_before(run: Run, rates: Callable[[int], float], steps: int) -> Run:
    """The same model and optimizer after ``steps`` steps on the same rows, at these rates."""
    body = standard_step()
    for i in range(steps):
        for group in run.optimizer.param_groups:
            group["lr"] = rates(i)
        if body(run.model, run.batches[i % len(run.batches)], run.optimizer, None) > 4:
            break
    for group in run.optimizer.param_groups:
        group["lr"] = 2e-3
    return run


@fault(
    "stopping",
    "A learning-rate finder raises the rate until the loss explodes; weights and optimizer are never put back",
    "PyTorch Lightning docs: LearningRateFinder (restores the initial state); fast.ai lr_find",
    START,
    ("earlier_training",),
)
def rate_finder_not_undone(seed: int) -> Run:
    return trained_before(textual(seed), lambda i: 1e-4 * 1.3**i, 60)


@control(
    "loop",
    "A learning-rate finder whose weights and optimizer are put back",
    "PyTorch Lightning docs: LearningRateFinder",
)
def rate_finder_undone(seed: int) -> Run:
    run = textual(seed)
    kept = copy.deepcopy(run.model.state_dict()), copy.deepcopy(run.optimizer.state_dict())
    trained_before(run, lambda i: 1e-4 * 1.3**i, 60)
    run.model.load_state_dict(kept[0])
    run.optimizer.load_state_dict(kept[1])
    return run


@fault(
    "stopping",
    "The second fold goes on with the first fold's model: its rows were trained on, though the head is declared new",
    "scikit-learn docs: cross-validation (clone the estimator for each fold)",
    START,
    ("known_at_start",),
)
def model_of_the_fold_before(seed: int) -> Run:
    run = trained_before(textual(seed, fresh, beliefs={"head_init": FRESH_HEAD}), lambda _i: 2e-3, LONG)
    run.optimizer = adamw(run.model)
    return run


@control(
    "loop",
    "A training goes on with its model and its optimizer",
    "PyTorch docs: saving and loading a checkpoint",
    slow=True,
)
def training_goes_on(seed: int) -> Run:
    return trained_before(textual(seed), lambda _i: 2e-3, 20)


# ------------------------------------------------------------------------------------------ the best weights
def restoring(seed: int, keep: Callable[[Any], Any]) -> Run:
    """Keeps the state in the middle of the run, and loads it before the last step."""
    kept: dict[int, Any] = {}
    body = standard_step()

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        value = body(model, batch, optimizer, scheduler)
        kept[len(kept)] = keep(model) if len(kept) == 25 else None
        if len(kept) == 39:
            model.load_state_dict(kept[25])
        return value

    return textual(seed, step=step)


@fault(
    "stopping",
    "best = model.state_dict() is kept without a copy: what is restored are the weights of now",
    "PyTorch docs: saving and loading models (state_dict returns references: deepcopy it)",
    ("weights_kept",),
    ("restore_without_effect",),
)
def best_weights_kept_without_a_copy(seed: int) -> Run:
    return restoring(seed, lambda m: m.state_dict())


@control("loop", "The best weights are copied, and restored near the end", "PyTorch docs: saving and loading models")
def best_weights_copied(seed: int) -> Run:
    return restoring(seed, lambda m: copy.deepcopy(m.state_dict()))


# ------------------------------------------------------------------------------------------ held-out rows of another kind
@fault(
    "evaluation",
    "The label map is built anew from the held-out file: two of the three classes are exchanged there",
    "set() and unique() have no order; transformers docs: label2id",
    ("metric_improves",),
    ("classes_exchanged",),
)
def two_classes_exchanged_in_evaluation(seed: int) -> Run:
    run = textual(seed, steps=LONG, evaluate=lambda m: 0.0)
    other = torch.tensor([1, 0, 2])
    run.eval_batches = [{**b, "labels": other[b["labels"]]} for b in run.eval_batches]
    run.evaluate = None
    return run


@fault(
    "evaluation",
    "The held-out texts are tokenised without lower(): nearly all of their words are unknown",
    "transformers docs: do_lower_case; google-research/bert README (casing)",
    ("metric_improves",),
    ("tokens_apart",),
)
def held_out_words_unknown(seed: int) -> Run:
    run = textual(seed, steps=LONG, evaluate=lambda m: 0.0)
    run.eval_batches = [
        {**b, "input_ids": torch.where(b["input_ids"] >= 20, 3, b["input_ids"])} for b in run.eval_batches
    ]
    run.evaluate = None
    return run


@fault(
    "evaluation",
    "A filter for the training set removed a class that is evaluated",
    "DeepCrime's operator 'remove portion of training data'",
    ("batches_sound",),
    ("class_missing",),
    shows=lambda s: s.after < 0.8,
)
def class_missing_from_training(seed: int) -> Run:
    run = textual(seed, rows=lambda s, n: reviews(s, n, weights=[0.5, 0.5, 0.0]), evaluate=lambda m: 0.0)
    run.eval_batches = packed(reviews(50_000 + seed, 96))
    run.clean, run.evaluate = run.eval_batches, None
    return run


@fault(
    "evaluation",
    "The file is sorted by class and split in its order: the held-out part has mostly the last class",
    "scikit-learn docs: train_test_split (stratify)",
    ("batches_sound",),
    ("labels_apart",),
    advised=True,
)
def split_in_the_order_of_the_file(seed: int) -> Run:
    run = textual(seed, rows=lambda s, n: reviews(s, n, weights=[0.5, 0.4, 0.1]), evaluate=lambda m: 0.0, steps=LONG)
    run.eval_batches = packed(reviews(50_000 + seed, 96, weights=[0.05, 0.05, 0.9]))
    run.clean, run.evaluate = run.eval_batches, None
    return run


@fault(
    "evaluation",
    "The training rows are divided by 255 on their way into the loader, the held-out rows are not",
    "github.com/mindee/doctr/issues/214",
    ("batches_sound", "metric_improves"),
    ("numbers_apart",),
    advised=True,
)
def held_out_rows_not_scaled(seed: int) -> Run:
    run = tabular(seed)
    run.eval_batches = [(255 * x, y) for x, y in run.eval_batches]
    run.evaluate = None
    return run
