"""Can the model overfit a single batch? The oldest test of a training set-up, here with an optimizer that is known to work."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from ....instruments.batches import split, take_rows
from ....instruments.global_state import seed_everything
from ....instruments.model_outputs import as_loss
from ....instruments.probe import LeftOut, Probe, ProbeContext
from ....instruments.row_hashes import named
from ....instruments.task_readers.class_probabilities import ONE_CLASS, most_probable
from ....instruments.tasks import IGNORED
from ....instruments.tensor_bytes import of_bytes
from ....instruments.tokens import find_tokens
from ...head.probe.ablation import correct
from ...head.probe.head import rows_of
from ..record import Attempt, Overfit
from .rerun import (
    Adam,
    Deadline,
    InitialState,
    casting,
    clip,
    constant_prediction_loss,
    counted,
    gradients_of,
    logits_for,
)

#: Rows of the batch, of one with a label a token, and steps at each learning rate.
ROWS, TOKEN_ROWS, STEPS = 16, 4, 100
#: Learning rates of Adam; those of a mostly frozen model, whose head must move further.
LRS, HEAD_LRS = (1e-3, 1e-4, 1e-2), (1e-2, 1e-1, 1e-3)
#: Share of trainable parameters below which a model counts as mostly frozen.
FROZEN = 0.5
#: Share of the loss between the best constant prediction and the best possible one that may be left: for classes, where all predictions
#: must also be right; for regression.
LEFT, LEFT_REGRESSION = 0.5, 0.1
#: A learning rate is given up if, after this share of the steps, this share of that loss is not gone.
PATIENCE, LEAST_PROGRESS = 0.4, 0.05
#: Where there is no standard loss: the share of the run's own loss that must be gone.
GONE = 0.9


class OverfitProbe(Probe):
    """Trains on a single batch from the run's start until the model overfits it."""

    name = "overfit"
    order = 80
    default = False

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self.batch = self._choose()
        self.deadline = Deadline(context.recipe.max_seconds if context.recipe_loop else None)
        self.start: InitialState | None = None
        self.overfit: Overfit | None = None

    def cost(self) -> float:
        """All steps of all learning rates."""
        return 3.0 * rows_of(self.batch) * STEPS * (1 + len(LRS))

    def before(self) -> None:
        """Keep the initial values of the trainable weights."""
        self.start = InitialState(self.context.model)

    def after(self) -> None:
        """Train on the batch until the model overfits it, or no learning rate is left."""
        assert self.start is not None
        context, reader = self.context, self.context.reader
        labels = split(self.batch)[1]
        readable = reader.task is not None and isinstance(labels, torch.Tensor)
        floor, attainable_accuracy = attainable(reader.task, self.batch, reader.shift) if readable else (None, None)
        self.goal = Goal(
            reader.task,
            constant_prediction_loss(reader.task, [reader.targets(labels)]) if readable else None,
            floor,
            attainable_accuracy,
        )
        sizes = [p.numel() for p in context.model.parameters()]
        trainable = sum(p.numel() for p in self.start.parameters) / max(1, sum(sizes))
        attempts: list[Attempt] = []
        with self.start.retraining(), torch.enable_grad():
            self.mode = self._mode()
            first, reference = self._first()
            for lr in learning_rates(context, trainable):
                self.deadline.check()
                attempts.append(self._attempt(lr, first))
                if attempts[-1].fitted:
                    break
        self.overfit = Overfit(
            rows=rows_of(self.batch),
            labels=int(counted(reader.task, labels).sum()) if readable else rows_of(self.batch),
            loss=first,
            reference=reference,
            constant_loss=self.goal.constant_loss,
            floor=floor,
            attainable_accuracy=attainable_accuracy,
            attempts=tuple(attempts),
            trainable=trainable,
            mode="training" if self.mode else "evaluation",
        )
        self.start = None

    def record(self) -> Overfit | None:
        """What was measured."""
        return self.overfit

    # ------------------------------------------------------------------ the batch
    def _choose(self) -> Any:
        """Some rows of the first batch whose labels are not all the same, with the classes in turn."""
        for batch in self.context.fixed_batches:
            labels = split(batch)[1]
            if not isinstance(labels, torch.Tensor) or not labels.dim() or self.context.reader.task is None:
                return take_rows(batch, range(min(ROWS, rows_of(batch))))
            count = len(labels)
            tokens = self.context.reader.task == "single_label" and labels.numel() > count
            most = TOKEN_ROWS if tokens else ROWS
            flat = labels[counted(self.context.reader.task, labels)]
            if len(torch.unique(flat)) < 2:
                continue
            order = (
                in_turn(labels.tolist()) if self.context.reader.task == "single_label" and not tokens else range(count)
            )
            return take_rows(batch, sorted(list(order)[:most]))
        raise LeftOut("all labels of the batch are the same: there is nothing to overfit")

    # ------------------------------------------------------------------ the training
    def _mode(self) -> bool:
        """Whether it has to be trained in training mode, because the model has no gradient in evaluation mode."""
        assert self.start is not None
        for mode in (False, True):
            self._reset(mode)
            try:
                loss = self._evaluate()[0]
                if any(g is not None for g in gradients_of(loss, self.start.parameters)):
                    return mode
            except RuntimeError:
                if mode:
                    raise
        return False

    def _reset(self, mode: bool) -> None:
        assert self.start is not None
        self.start.restore()
        for module in self.context.model.modules():
            module.training = mode
        seed_everything(0)

    def _evaluate(self) -> tuple[torch.Tensor, float | None, float | None, torch.Tensor | None]:
        """Own loss, standard loss, accuracy, logits."""
        reader, labels = self.context.reader, split(self.batch)[1]
        with casting(self.context):
            loss, logits = reader.loss(self.batch)
        loss = as_loss(loss)
        with torch.no_grad():
            if logits is None or reader.loss_fn is not None:
                logits = logits_for(reader, self.batch)
            if logits is None or self.goal.constant_loss is None:
                return loss, None, None, logits
            hits = correct(reader.task, logits, reader.targets(labels))
            accuracy = None if hits is None else float(hits.double().mean())
            return loss, float(reader.reference(logits.detach().float(), labels)), accuracy, logits.detach()

    def _first(self) -> tuple[float, float | None]:
        self._reset(self.mode)
        loss, reference, _, _ = self._evaluate()
        return float(loss.detach()), reference

    def _attempt(self, lr: float, first: float) -> Attempt:
        """Train at one learning rate."""
        assert self.start is not None
        self._reset(self.mode)
        parameters = self.start.parameters
        adam = Adam(parameters, lr)
        best: tuple[float, float | None] = (math.inf, None)
        step, fitted, own, logits = 0, False, first, None
        for step in range(STEPS + 1):
            loss, reference, accuracy, logits = self._evaluate()
            own = float(loss.detach())
            if reference is not None and reference < best[0]:
                best = reference, accuracy
            fitted = self.goal.reached(reference, accuracy, first, own)
            if fitted or step == STEPS or not math.isfinite(own):
                break
            if step == round(PATIENCE * STEPS) and not self.goal.makes_progress(best[0], first, own):
                break
            gradients = gradients_of(loss, parameters)
            if all(g is None for g in gradients):
                break
            clip(gradients, 1.0)
            adam.step(gradients)
            self.deadline.check()
        return Attempt(
            lr=lr,
            steps=step,
            loss=own,
            reference=best[0] if math.isfinite(best[0]) else None,
            accuracy=best[1],
            row_difference=None if logits is None else row_difference(logits),
            fitted=fitted,
        )


class Goal:
    """When the batch counts as overfit."""

    def __init__(
        self, task: str | None, constant_loss: float | None, floor: float | None, attainable_accuracy: float | None
    ) -> None:
        self.constant_loss, self.floor = constant_loss, floor or 0.0
        self.attainable_accuracy = attainable_accuracy
        self.left = LEFT_REGRESSION if task == "regression" else LEFT

    def reached(self, reference: float | None, accuracy: float | None, first: float, own: float) -> bool:
        """All predictions that can be right are right, and most of the loss is gone."""
        if self.constant_loss is None:
            return first > 0 and own <= (1 - GONE) * first
        if reference is None or reference > self.floor + self.left * (self.constant_loss - self.floor):
            return False
        return accuracy is None or self.attainable_accuracy is None or accuracy >= self.attainable_accuracy - 1e-9

    def makes_progress(self, reference: float, first: float, own: float) -> bool:
        """Enough of the loss is gone to go on at this learning rate."""
        if self.constant_loss is None:
            return own < (1 - LEAST_PROGRESS) * first
        return reference < self.constant_loss - LEAST_PROGRESS * (self.constant_loss - self.floor)


def learning_rates(context: ProbeContext, trainable: float) -> list[float]:
    """The learning rates to try, with the run's own second if it is one for Adam."""
    ladder = list(HEAD_LRS if trainable < FROZEN else LRS)
    own = max((float(g.get("lr", 0.0)) for g in context.optimizer.param_groups), default=0.0)
    peak = context.recipe.lr if context.recipe_loop else own
    name = type(context.optimizer).__name__.lower()
    if "adam" in name and 3e-5 <= peak <= 1e-2 and peak not in ladder:
        ladder.insert(1, peak)
    return ladder


def in_turn(labels: Sequence[Any]) -> list[int]:
    """Row numbers, one of each class, then another of each.

    >>> in_turn([0, 0, 0, 1])
    [0, 3, 1, 2]
    """
    earlier: dict[str, int] = {}
    order = []
    for i, label in enumerate(labels):
        earlier[str(label)] = earlier.get(str(label), -1) + 1
        order.append((earlier[str(label)], i))
    return [i for _, i in sorted(order)]


def row_difference(logits: torch.Tensor) -> float | None:
    """Largest difference between two rows' outputs, over the largest output; None: they are not finite."""
    flat = logits.detach().double().reshape(len(logits), -1)
    size = float(flat.abs().max())
    if not math.isfinite(size):
        return None
    return float((flat.max(0).values - flat.min(0).values).max()) / size if size > 0 else 0.0


def attainable(task: str | None, batch: Any, shift: int = 0) -> tuple[float | None, float | None]:
    """Standard loss and accuracy of the best predictions that depend on the inputs alone.

    Rows with equal inputs and different labels keep the loss up. None: unknown (several labels a row, and equal inputs).

    :param shift: the prediction of a position is compared with the label so many positions later, and depends on the ids up to its own.
    """
    inputs, labels = split(batch)
    if shift:
        return _attainable_from_prefixes(batch, labels, shift)
    count = len(labels)
    groups: dict[bytes, list[int]] = {}
    tensors = [v for v in named(inputs).values() if v.dim() and len(v) == count]
    for i in range(count):
        key = b"|".join(_bytes(v[i]) for v in tensors) if tensors else str(i).encode()
        groups.setdefault(key, []).append(i)
    several = most_probable(task, labels)[1].numel() > count
    accuracy = 1.0 if task in (*ONE_CLASS, "multi_label") else None
    if len(groups) == count and task != "class_probabilities":  # whose own entropy is always left
        return 0.0, accuracy
    if task in ONE_CLASS and several:
        return None, None
    floor = right = 0.0
    for members in groups.values():
        own = labels[torch.as_tensor(members, device=labels.device)]
        floor += len(members) * (constant_prediction_loss(task, [own]) or 0.0)
        if task in ONE_CLASS:
            right += int(torch.unique(most_probable(task, own)[1], return_counts=True)[1].max())
        elif task == "multi_label":
            on = own.double().mean(0)
            right += len(members) * float(torch.maximum(on, 1 - on).mean())
    return floor / count, right / count if accuracy is not None else None


def _attainable_from_prefixes(batch: Any, labels: torch.Tensor, shift: int) -> tuple[float | None, float | None]:
    """Of a causal language model: equal beginnings of rows that are continued differently keep the loss up."""
    tokens = find_tokens(batch)
    if tokens is None or tokens.ids.shape != labels.shape:
        return None, None
    continuations: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for ids, row in zip(tokens.ids.tolist(), labels.tolist(), strict=True):
        for t, label in enumerate(row[shift:]):
            if label != IGNORED:
                continuations[tuple(ids[: t + 1])][label] += 1
    count = sum(c.total() for c in continuations.values())
    if not count:
        return None, None
    loss = sum(-n * math.log(n / c.total()) for c in continuations.values() for n in c.values())
    return loss / count, sum(max(c.values()) for c in continuations.values()) / count


def _bytes(value: torch.Tensor) -> bytes:
    found = of_bytes(value, bytes)
    if found is None:
        raise TypeError("an input whose values cannot be read")
    return found
