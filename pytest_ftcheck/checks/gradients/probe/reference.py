"""Recomputes the gradient of a step for the same batches, weights and dropout masks, and compares it with what the optimizer found."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ....instruments.batches import row_count, split, to_device
from ....instruments.optimizers import needs_closure
from ....instruments.parameter_roles import in_part
from ....instruments.probe import Probe, ProbeContext
from ....instruments.sampled_elements import SampledElements, SampleSize
from ....instruments.work import COSTLY, allowance, tokens_of
from ..record import Exchange, GradientMatch, MissingGradient, ReferenceGradient, ReferenceStep, Slope
from .exchanged import exchanged
from .finite_difference import FEW_ROWS, ROWS, slopes
from .severed import MissingGradients
from .unzeroed import WatchedGradients

#: Elements compared in each tensor.
SAMPLE = 4096
#: Steps recomputed, at most: the first three in a row, so that gradients which add up show; one half-way, one near the end.
FIRST = 3
LATER = (0.5, 0.9)
#: Steps recomputed in our own loop: it is known, so only what the model itself does to gradients can differ.
OURS = 2
#: Share of what all probes may take.
SHARE = 0.2
#: Batches for one optimizer step that are recomputed, at most.
MOST_BATCHES = 16
#: The direction of a gradient of this share of the largest or less is not judged: it may be rounding noise.
NOISE = 1e-5
#: A tensor whose gradient has less than this cosine with what it should be, ...
WRONG_DIRECTION = 0.1
#: ... and is neither this many times longer than those of the others are, nor this many times shorter, has that of something else.
LONGER = 5.0
SHORTER = 100.0
#: Where something is added to a gradient (decay by hand), its projection on what it should be keeps the length; judged is less than this.
CONTAINED = 0.5
#: Elements from which on two gradients do not point in one direction by chance: for 16 numbers a cosine of 0.999 has a p-value below 1e-18.
LEAST_ELEMENTS = 16
#: Wrappers under which gradients cannot be computed a second time.
WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")


class ReferenceGradientProbe(Probe):
    """Recomputes the gradient of a step for the same batches, weights and dropout masks, and compares the two."""

    name = "reference"
    order = 40

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self.rows = row_count(split(context.fixed_batches[0])[0]) or 1
        self.slope_rows = FEW_ROWS if context.row_work > COSTLY else ROWS
        if context.recipe_loop:
            budget = OURS
        else:
            tokens = tokens_of(context.fixed_batches[0])
            work = allowance(context.model, self.rows, tokens, context.steps, context.reader.outputs)
            budget = int(max(2, min(FIRST + len(LATER), SHARE * work / (3 * self.rows))))
        self.first = min(FIRST, budget) if not context.recipe_loop else 1
        self.later = [q * context.steps for q in LATER[: max(0, budget - self.first)]]
        self.budget = budget
        self.slopes: list[Slope] = []
        self.missing: list[MissingGradient] = []
        self._missing_gradients: MissingGradients | None = None
        self._watched: WatchedGradients | None = None
        self.compared: list[ReferenceStep] = []
        self.loss_connected: bool | None = None
        self.logits_connected: bool | None = None
        self.reason: str | None = None
        self._handles: list[Any] = []
        self._steps = 0
        self._window: _Window | None = None
        self._before: torch.Tensor | None = None  # the sum for the step before
        self._total: torch.Tensor | None = None  # over all batches since the run began; None: some were left out
        self._watching = False
        self._fresh = True  # no batch has been through since the last optimizer step

    def cost(self) -> float:
        """Forward and backward for each recomputed step; for the slopes the same once, and a forward pass a part (three where a slope is
        not 1); for tensors without gradient, if there are any, the same once and three forward passes."""
        steps = self.budget + (self.context.intent.accumulation or 1) - 1
        return 3.0 * self.rows * steps + 12.0 * min(self.slope_rows, self.rows)

    # ------------------------------------------------------------------ before
    def before(self) -> None:
        """Measures the slopes, and chooses the elements to compare."""
        model = self.context.model
        if any(type(m).__name__ in WRAPPERS for m in model.modules()):
            raise RuntimeError(f"gradients cannot be recomputed for a model inside {', '.join(WRAPPERS)}")
        with contextlib.suppress(RuntimeError):  # a model that cannot run backward in eval mode has no slopes
            self.slopes = self._slopes()
        self._missing_gradients = MissingGradients(
            model, self.context.reader, self.context.fixed_batches[0], self.slope_rows
        )
        if (
            not self.context.recipe_loop and not self.context.steps
        ):  # watched: the batches are not known, so nothing can be recomputed
            self._watched = WatchedGradients(list(model.parameters()))
        if needs_closure(self.context.optimizer):
            self.reason = "the optimizer computes several gradients a step (it needs a closure)"
            return
        named: dict[int, tuple[str, nn.Parameter]] = {}
        for name, p in model.named_parameters():
            if p.is_floating_point() and p.device.type != "meta" and p.numel():
                named[id(p)] = name, p
        if named:
            self._sample = _Sample([n for n, _ in named.values()], [p for _, p in named.values()], self.context.head)
            self._total = self._sample.zeros()
            self._watching = True

    def _slopes(self, known: Sequence[str] = ()) -> list[Slope]:
        context = self.context
        return slopes(
            context.model, context.reader, context.head, context.fixed_batches[0], known, rows=self.slope_rows
        )

    # ------------------------------------------------------------------ around the steps
    def idle(self, moment: str, number: int) -> bool:
        """Where no step is compared."""
        if moment == "stepped":
            self._steps, self._fresh = self._steps + 1, True
            return self._window is None and not self._handles
        begins = self._watching and self._window is None and self._fresh and self._wanted(number)
        self._fresh = False
        return not (begins or (self._watching and self._window is not None))

    def iteration(self, number: int, batch: Any) -> None:
        """Recomputes the gradient of this batch, for its step is one to compare."""
        if self._window is None:
            self._window = _Window(self._sample.zeros())
        try:
            self._recompute(number, to_device(batch, self.context.device))
        except BaseException:
            self._unhook()
            raise
        if not self._handles:
            self._handles = [
                register_optimizer_step_pre_hook(self._before_step),
                register_optimizer_step_post_hook(self._at_step),
            ]
            if (
                not self.context.recipe_loop and self._window is not None
            ):  # the user's loop may call backward() on another loss, or not at all
                self._window.backward_reached = False
                live = [p for p in self._sample.parameters if p.requires_grad]
                self._handles += [p.register_post_accumulate_grad_hook(self._arrived) for p in live]  # type: ignore[no-untyped-call]

    def _arrived(self, _: torch.Tensor) -> None:
        """A tensor got a gradient."""
        if self._window is not None:
            self._window.backward_reached = True

    def _wanted(self, number: int) -> bool:
        if self._steps < self.first:
            return True
        if self.later and number >= self.later[0]:
            self.later.pop(0)
            return True
        self._total = self._before = None  # some gradients are left out from here on
        return False

    def _recompute(self, number: int, batch: Any) -> None:
        window = self._window
        assert window is not None
        if len(window.iterations) >= MOST_BATCHES:
            self.close()
            self._watching = False
            self.reason = f"more than {MOST_BATCHES} batches for one optimizer step"
            return
        reader, sample = self.context.reader, self._sample
        live = [p for p in sample.parameters if p.requires_grad]
        with torch.enable_grad(), self._autocast():
            loss, logits = reader.loss(batch)
            connected = isinstance(loss, torch.Tensor) and loss.requires_grad
            grads: Sequence[torch.Tensor | None] = [None] * len(live)
            if connected and live:
                grads = torch.autograd.grad(loss, live, allow_unused=True)
        if not any(g is not None for g in grads) and live:
            connected = False
            if self.logits_connected is None:
                self.logits_connected = self._logits_connected(batch, logits, live)
        self.loss_connected = bool(self.loss_connected) or connected
        by_id = {id(p): g for p, g in zip(live, grads, strict=True)}
        flat = sample.gather([by_id.get(id(p)) for p in sample.parameters])
        window.iterations.append(number)
        window.losses.append(float(loss))
        window.reached |= {i for i, p in enumerate(sample.parameters) if by_id.get(id(p)) is not None}
        window.last = flat
        window.sum += flat
        if self._total is not None:
            self._total += flat

    def _logits_connected(self, batch: Any, logits: Any, live: Sequence[nn.Parameter]) -> bool | None:
        with torch.enable_grad():
            if logits is None:
                logits = self.context.reader.logits(batch)
            if not isinstance(logits, torch.Tensor):
                return None
            if not logits.requires_grad:
                return False
            grads = torch.autograd.grad(logits.float().square().sum(), live, allow_unused=True)
        return any(g is not None for g in grads)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        kind = self.context.recipe.autocast if self.context.recipe_loop else None
        return torch.autocast(self.context.device.type, getattr(torch, kind)) if kind else contextlib.nullcontext()

    def _before_step(self, optimizer: Optimizer, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not any(map(callable, (*arguments[1:], *named.values()))):  # a closure has yet to compute the gradients
            self._at_step(optimizer)

    def _at_step(self, optimizer: Optimizer, *_: Any) -> None:
        """Reads what the optimizer finds; called inside the user's own ``optimizer.step()``, so no error may escape."""
        window = self._window
        if window is None:
            return
        try:
            with torch.no_grad():
                self._sample.take(window, optimizer)
        except Exception as error:  # noqa: BLE001
            self._watching, self._window = False, None
            self.reason = f"gradients could not be read ({type(error).__name__})"

    def stepped(self, number: int) -> None:
        """Compares the gradients of the step just taken."""
        self._unhook()
        window, self._window = self._window, None
        if window is None or not self._watching:
            return
        if window.held and window.actual is not None:
            self.compared.append(
                self._sample.compare(number, window, self._before, self._total if self.compared else None)
            )
        self._before = window.sum

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def close(self) -> None:
        """Stops: no further step is compared."""
        self._unhook()
        self._window = None
        if self._watched is not None:
            self._watched.close()

    # ------------------------------------------------------------------ after
    def after(self) -> None:
        """Slopes of parts that had no gradient at first, such as those below a zero last layer; tensors that never had one."""
        self.close()
        known = [s.part for s in self.slopes]
        with contextlib.suppress(RuntimeError):
            self.slopes += self._slopes(known)
        if self._missing_gradients is not None:
            with contextlib.suppress(RuntimeError):
                self.missing = self._missing_gradients.measure(self.context.tensors)

    def record(self) -> ReferenceGradient | None:
        """What was measured."""
        self.close()
        return ReferenceGradient(
            tuple(self.compared),
            tuple(self.slopes),
            self.loss_connected,
            self.logits_connected,
            self.reason,
            tuple(self.missing),
            tuple(self._watched.steps) if self._watched is not None else (),
        )


class _Window:
    """The batches since the last optimizer step."""

    def __init__(self, zeros: torch.Tensor) -> None:
        self.sum = zeros
        self.last: torch.Tensor | None = None
        self.iterations: list[int] = []
        self.losses: list[float] = []
        #: Indices of the tensors that the loss depends on; that the optimizer holds; for which it found a gradient.
        self.reached: set[int] = set()
        self.held: set[int] = set()
        self.found: set[int] = set()
        self.actual: torch.Tensor | None = None
        #: Some tensor got a gradient; None: not watched.
        self.backward_reached: bool | None = None


class _Sample:
    """The same elements of every gradient, side by side; sums over them stand for sums over all elements of their tensor."""

    def __init__(self, names: Sequence[str], parameters: Sequence[nn.Parameter], head: Sequence[str]) -> None:
        self.names, self.parameters = list(names), list(parameters)
        self.place = {id(p): i for i, p in enumerate(self.parameters)}
        self.tracked = SampledElements(self.parameters, [SampleSize(SAMPLE)] * len(self.parameters), alike=True)
        counts = self.tracked.counts
        device = self.tracked.device
        self.owner = torch.repeat_interleave(
            torch.arange(len(counts), device=device), torch.tensor(counts, device=device)
        )
        self.scale = torch.tensor(
            [p.numel() / max(1, c) for p, c in zip(self.parameters, counts, strict=True)],
            dtype=torch.float64,
            device="cpu",
        )
        self.head = [in_part(n, tuple(head)) for n in self.names]

    def zeros(self) -> torch.Tensor:
        return self.tracked.zeros()

    def gather(self, grads: Sequence[torch.Tensor | None]) -> torch.Tensor:
        out = self.zeros()
        for grad, index, place in zip(grads, self.tracked.index, self.tracked.split(out), strict=True):
            self._pick(grad, index, place)
        return out

    @staticmethod
    def _pick(grad: torch.Tensor | None, index: torch.Tensor | None, place: torch.Tensor) -> None:
        if grad is None or grad.is_sparse:  # sparse gradients are left out on both sides
            return
        flat = grad.detach().reshape(-1)
        place.copy_(flat if index is None else flat.index_select(0, index))

    def take(self, window: _Window, optimizer: Optimizer) -> None:
        """Reads the gradients of the tensors that this optimizer holds; of each tensor the first one found."""
        if window.actual is None:
            window.actual = self.zeros()
        pieces = self.tracked.split(window.actual)
        for group in optimizer.param_groups:
            for p in group["params"]:
                i = self.place.get(id(p))
                if i is None:
                    continue
                window.held.add(i)
                if p.grad is not None and i not in window.found:
                    window.found.add(i)
                    self._pick(p.grad, self.tracked.index[i], pieces[i])

    def compare(
        self, step: int, window: _Window, before: torch.Tensor | None, total: torch.Tensor | None
    ) -> ReferenceStep:
        """What the optimizer found beside what was recomputed, tensor by tensor and part by part."""
        actual = window.actual
        assert actual is not None
        held = [i for i in sorted(window.held) if self.parameters[i].requires_grad]
        last = window.last if len(window.iterations) > 1 else None
        ours = {"cosine": window.sum, "last_batch": last, "previous_step": before, "since_start": total}
        dots = {k: self._dots(actual, v) for k, v in ours.items() if v is not None}
        squares = {k: self._dots(v, v) for k, v in ours.items() if v is not None}
        mine = self._dots(actual, actual)

        def match(name: str, places: Sequence[int]) -> GradientMatch:
            at = torch.tensor(list(places), dtype=torch.long, device="cpu")
            size = float(mine[at].sum())
            cosines: dict[str, float | None] = {}
            for key, dot in dots.items():
                length = math.sqrt(abs(size * float(squares[key][at].sum())))
                value = float(dot[at].sum())
                good = length > 0 and math.isfinite(length) and math.isfinite(value)
                cosines[key] = max(-1.0, min(1.0, value / length)) if good else None
            return GradientMatch(name, _root(float(squares["cosine"][at].sum())), _root(size), **cosines)

        bad = [i for i in held if not math.isfinite(float(squares["cosine"][i]))]
        bad_actual = [i for i in held if not math.isfinite(float(mine[i]))]
        largest = max((float(squares["cosine"][i]) for i in held if i not in bad), default=0.0)
        real = [i for i in held if i not in bad and float(squares["cosine"][i]) > NOISE**2 * largest]
        missing = [self.names[i] for i in real if float(mine[i]) == 0 and not self._sparse(i)]
        each = [match(self.names[i], [i]) for i in real if float(mine[i]) > 0 and i not in bad_actual]
        each.sort(key=lambda m: 1.0 if m.cosine is None else m.cosine)
        # noise added to a gradient turns it and makes it longer: one that is turned and not longer is another gradient
        scale = sum(m.actual for m in each) / max(sum(m.reference for m in each), 1e-300)
        wrong_direction = [
            m.name
            for m in each
            if m.cosine is not None
            and m.cosine < WRONG_DIRECTION
            and scale * m.reference / SHORTER < m.actual < LONGER * scale * m.reference
            and m.cosine * m.actual < CONTAINED * m.reference
        ]
        parts = {
            "head": [i for i in held if self.head[i]],
            "base": [i for i in held if not self.head[i]],
            "all": held,
        }
        return ReferenceStep(
            step=step,
            iterations=tuple(window.iterations),
            losses=tuple(window.losses),
            tensors=len(held),
            reached=len(window.reached & set(held)),
            nonfinite=len(bad),
            actual_nonfinite=len(bad_actual),
            missing=tuple(missing),
            parts=tuple(match(name, places) for name, places in parts.items() if places),
            wrong_direction=tuple(wrong_direction),
            least_aligned=tuple(each[:4]),
            backward_reached=window.backward_reached,
            exchanged=self._exchanged(window, [i for i in real if float(mine[i]) > 0 and i not in bad_actual]),
        )

    def _exchanged(self, window: _Window, places: Sequence[int]) -> tuple[Exchange, ...]:
        """Tensors with the gradient of another one, of those that have a gradient and enough elements."""
        assert window.actual is not None
        places = [i for i in places if self.tracked.counts[i] >= LEAST_ELEMENTS]
        actual, reference = self.tracked.split(window.actual), self.tracked.split(window.sum)
        return exchanged(
            [self.names[i] for i in places],
            [self.parameters[i].shape for i in places],
            [actual[i] for i in places],
            [reference[i] for i in places],
        )

    def _sparse(self, i: int) -> bool:
        grad = self.parameters[i].grad
        return grad is not None and grad.is_sparse

    def _dots(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Per tensor, the dot product, as if over all its elements."""
        out = torch.zeros(len(self.parameters), dtype=torch.float64, device=a.device)
        out.index_add_(0, self.owner, a.double() * b.double())
        return out.cpu() * self.scale


def _root(square: float) -> float:
    return math.sqrt(square) if square >= 0 else square  # NaN stays NaN
