"""Can one batch be learnt by heart? The oldest test of a training, made with an optimizer that is known to be in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ....instruments.batches import split, take_rows
from ....instruments.probe import LeftOut, Probe, ProbeContext
from ....instruments.row_hashes import named
from ....instruments.snapshots import seed_everything
from ...head.probe.ablation import correct
from ...head.probe.head import rows_of
from ..record import Attempt, Overfit
from .rerun import Adam, Deadline, Start, blind_loss, casting, clip, counted, gradients_of, logits_for

#: Rows of the batch, of one with a label a token, and steps at each learning rate.
ROWS, TOKEN_ROWS, STEPS = 16, 4, 100
#: Learning rates of Adam; those of a model most of which is frozen, whose head must come further.
LRS, HEAD_LRS = (1e-3, 1e-4, 1e-2), (1e-2, 1e-1, 1e-3)
#: Share of the parameters that learn below which a model counts as mostly frozen.
FROZEN = 0.5
#: Share of the way from the blind answer to the best one that may be left: of a class, where all must also be right; of numbers.
LEFT, LEFT_NUMBERS = 0.5, 0.1
#: A learning rate is given up when, after this share of the steps, this share of the way is not made.
PATIENCE, AHEAD = 0.4, 0.05
#: Where the loss is the run's own and nothing else is known: the share of it that must be gone.
GONE = 0.9


class OverfitProbe(Probe):
    """One batch, learnt by heart from the run's start."""

    name = "overfit"
    order = 80
    default = False

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self.batch = self._choose()
        self.deadline = Deadline(context.recipe.max_seconds if context.recipe_loop else None)
        self.start: Start | None = None
        self.found: Overfit | None = None

    def cost(self) -> float:
        """All steps of all learning rates."""
        return 3.0 * rows_of(self.batch) * STEPS * (1 + len(LRS))

    def before(self) -> None:
        """Keep the initial values of what may learn."""
        self.start = Start(self.context.model)

    def after(self) -> None:
        """Train on the one batch, until it is learnt or the learning rates are used up."""
        assert self.start is not None
        context, reader = self.context, self.context.reader
        labels = split(self.batch)[1]
        readable = reader.task is not None and isinstance(labels, torch.Tensor)
        floor, possible = attainable(reader.task, self.batch) if readable else (None, None)
        self.goal = Goal(reader.task, blind_loss(reader.task, [labels]) if readable else None, floor, possible)
        sizes = [p.numel() for p in context.model.parameters()]
        trainable = sum(p.numel() for p in self.start.parameters) / max(1, sum(sizes))
        attempts: list[Attempt] = []
        with self.start.again(), torch.enable_grad():
            self.mode = self._mode()
            first, reference = self._first()
            for lr in rates(context, trainable):
                self.deadline.look()
                attempts.append(self._attempt(lr, first))
                if attempts[-1].fitted:
                    break
        self.found = Overfit(
            rows=rows_of(self.batch),
            labels=int(counted(reader.task, labels).sum()) if readable else rows_of(self.batch),
            loss=first,
            reference=reference,
            prior=self.goal.prior,
            floor=floor,
            possible=possible,
            attempts=tuple(attempts),
            trainable=trainable,
            mode="training" if self.mode else "evaluation",
        )
        self.start = None

    def record(self) -> Overfit | None:
        """What was measured."""
        return self.found

    # ------------------------------------------------------------------ the batch
    def _choose(self) -> Any:
        """Some rows of the first batch whose labels are not all the same; classes in turn."""
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
        raise LeftOut("all labels of the batch are the same: there is nothing to learn by heart")

    # ------------------------------------------------------------------ the training
    def _mode(self) -> bool:
        """Whether it has to be trained in training mode: the model gives no gradient in the other."""
        assert self.start is not None
        for mode in (False, True):
            self._reset(mode)
            try:
                loss = self._look()[0]
                if any(g is not None for g in gradients_of(loss, self.start.parameters)):
                    return mode
            except RuntimeError:
                if mode:
                    raise
        return False

    def _reset(self, mode: bool) -> None:
        assert self.start is not None
        self.start.put_back()
        for module in self.context.model.modules():
            module.training = mode
        seed_everything(0)

    def _look(self) -> tuple[torch.Tensor, float | None, float | None, torch.Tensor | None]:
        """Own loss, textbook loss, share of right predictions, outputs."""
        reader, labels = self.context.reader, split(self.batch)[1]
        with casting(self.context):
            loss, logits = reader.loss(self.batch)
        loss = torch.as_tensor(loss)
        with torch.no_grad():
            if logits is None or reader.loss_fn is not None:
                logits = logits_for(reader, self.batch)
            if logits is None or self.goal.prior is None:
                return loss, None, None, logits
            hits = correct(reader.task, logits, labels)
            share = None if hits is None else float(hits.double().mean())
            return loss, float(reader.reference(logits.detach().float(), labels)), share, logits.detach()

    def _first(self) -> tuple[float, float | None]:
        self._reset(self.mode)
        loss, reference, _, _ = self._look()
        return float(loss.detach()), reference

    def _attempt(self, lr: float, first: float) -> Attempt:
        """One learning rate."""
        assert self.start is not None
        self._reset(self.mode)
        parameters = self.start.parameters
        adam = Adam(parameters, lr)
        best: tuple[float, float | None] = (math.inf, None)
        step, fitted, own, logits = 0, False, first, None
        for step in range(STEPS + 1):
            loss, reference, right, logits = self._look()
            own = float(loss.detach())
            if reference is not None and reference < best[0]:
                best = reference, right
            fitted = self.goal.reached(reference, right, first, own)
            if fitted or step == STEPS or not math.isfinite(own):
                break
            if step == round(PATIENCE * STEPS) and not self.goal.under_way(best[0], first, own):
                break
            gradients = gradients_of(loss, parameters)
            if all(g is None for g in gradients):
                break
            clip(gradients, 1.0)
            adam.step(gradients)
            self.deadline.look()
        return Attempt(
            lr=lr,
            steps=step,
            loss=own,
            reference=best[0] if math.isfinite(best[0]) else None,
            right=best[1],
            apart=None if logits is None else apart(logits),
            fitted=fitted,
        )


class Goal:
    """When the batch counts as learnt."""

    def __init__(self, task: str | None, prior: float | None, floor: float | None, possible: float | None) -> None:
        self.prior, self.floor, self.possible = prior, floor or 0.0, possible
        self.left = LEFT_NUMBERS if task == "regression" else LEFT

    def reached(self, reference: float | None, right: float | None, first: float, own: float) -> bool:
        """All that can be right is right, and most of the loss is gone."""
        if self.prior is None:
            return first > 0 and own <= (1 - GONE) * first
        if reference is None or reference > self.floor + self.left * (self.prior - self.floor):
            return False
        return right is None or self.possible is None or right >= self.possible - 1e-9

    def under_way(self, reference: float, first: float, own: float) -> bool:
        """Enough of the way is made to go on at this learning rate."""
        if self.prior is None:
            return own < (1 - AHEAD) * first
        return reference < self.prior - AHEAD * (self.prior - self.floor)


def rates(context: ProbeContext, trainable: float) -> list[float]:
    """The ladder of learning rates: the run's own first, if it is one for Adam."""
    ladder = list(HEAD_LRS if trainable < FROZEN else LRS)
    own = max((float(g.get("lr", 0.0)) for g in context.optimizer.param_groups), default=0.0)
    peak = context.recipe.lr if context.recipe_loop else own
    name = type(context.optimizer).__name__.lower()
    if "adam" in name and 3e-5 <= peak <= 1e-2 and peak not in ladder:
        ladder.insert(1, peak)
    return ladder


def in_turn(labels: Sequence[Any]) -> list[int]:
    """Rows, one of each class, then another of each.

    >>> in_turn([0, 0, 0, 1])
    [0, 3, 1, 2]
    """
    seen: dict[str, int] = {}
    places = []
    for i, label in enumerate(labels):
        seen[str(label)] = seen.get(str(label), -1) + 1
        places.append((seen[str(label)], i))
    return [i for _, i in sorted(places)]


def apart(logits: torch.Tensor) -> float | None:
    """Largest difference between two rows' outputs, over the largest output; None: they are not finite."""
    flat = logits.detach().double().reshape(len(logits), -1)
    size = float(flat.abs().max())
    if not math.isfinite(size):
        return None
    return float((flat.max(0).values - flat.min(0).values).max()) / size if size > 0 else 0.0


def attainable(task: str | None, batch: Any) -> tuple[float | None, float | None]:
    """Textbook loss, and share of right predictions, of the best answers that depend on the inputs alone.

    Rows with equal inputs and different labels keep the loss up. None: unknown (several labels a row, and equal inputs).
    """
    inputs, labels = split(batch)
    count = len(labels)
    groups: dict[bytes, list[int]] = {}
    tensors = [v for v in named(inputs).values() if v.dim() and len(v) == count]
    for i in range(count):
        key = b"|".join(_bytes(v[i]) for v in tensors) if tensors else str(i).encode()
        groups.setdefault(key, []).append(i)
    several = labels.numel() > count
    possible = 1.0 if task in ("single_label", "multi_label") else None
    if len(groups) == count:
        return 0.0, possible
    if task == "single_label" and several:
        return None, None
    floor = right = 0.0
    for members in groups.values():
        own = labels[torch.as_tensor(members, device=labels.device)]
        floor += len(members) * (blind_loss(task, [own]) or 0.0)
        if task == "single_label":
            right += int(torch.unique(own, return_counts=True)[1].max())
        elif task == "multi_label":
            on = own.double().mean(0)
            right += len(members) * float(torch.maximum(on, 1 - on).mean())
    return floor / count, right / count if possible is not None else None


def _bytes(value: torch.Tensor) -> bytes:
    value = value.detach().cpu().contiguous()
    return bytes(value.reshape(-1).view(torch.uint8).numpy().tobytes()) if value.numel() else b""
