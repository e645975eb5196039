"""The runner: which probes are made beside a training, when, and at what cost; none of them can break the run.

A probe is a class with a name, a cost, and up to four moments at which it looks. All it may see is its `ProbeContext`.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from ..core.intent import Intent
from ..core.observations import Tensor
from ..core.recipe import Recipe
from .batches import Batches, Reader
from .snapshots import undisturbed

#: Probes may cost this share of the training itself, in rows through a forward pass (a training row counts as three) ...
SHARE = 0.3
#: ... and this many floating-point operations in any case: somewhat more than a second on one core.
FREE = 4e10


@dataclass
class ProbeContext:
    """What a probe may look at. Nothing on it may be changed beyond the call; whatever a probe does to modes, random
    states and buffers is undone for it, what it does to parameters it undoes itself (see `perturbed`)."""

    model: nn.Module
    reader: Reader
    #: The first training batches, on the model's device: the fixed rows of every probe.
    probe: list[Any]
    #: All training batches, as the user gave them; ``batches.known`` is a list of those that are at hand.
    batches: Batches
    #: Held-out batches; None: none were given.
    held_out: list[Any] | None
    head: tuple[str, ...]
    optimizer: torch.optim.Optimizer
    scheduler: Any
    recipe: Recipe
    intent: Intent
    #: The user's own metric, ``(model) -> float``; None: none.
    evaluate: Callable[[Any], float] | None
    #: Our own loop trains; False: the user's ``step`` does, or a watched loop.
    ours: bool
    device: torch.device
    #: What the recorder knows of every tensor; filled in before `Probe.after`.
    tensors: tuple[Tensor, ...] = ()
    #: Optimizer steps that the run is to take.
    steps: int = 0
    #: Filled in before `Probe.after`: metrics that the user's ``evaluate`` gave before and after, if there is one.
    evaluated: tuple[float, float] | None = None
    #: Remarks for the trace.
    notes: list[str] = field(default_factory=list)


class LeftOut(Exception):
    """Raised by a probe that does not apply: its text is the reason, as it goes into ``Trace.skipped``."""


class Probe:
    """One measurement beside the training; subclasses fill in the moments they need.

    At each moment random states, modes, buffers and whatever else `undisturbed` names are put back afterwards, gradients are enabled
    only if asked for (``torch.enable_grad()``), and an exception ends this probe alone: its reason goes into ``Trace.skipped``.
    """

    #: What ``probes=`` calls it; also the field of `Trace` that takes its record.
    name: ClassVar[str]
    #: Its place among all: the cheapest and most telling first. What comes late is left out first where the budget is short.
    order: ClassVar[int]
    #: False: only made when ``probes=`` asks for it.
    default: ClassVar[bool] = True
    #: False: it needs the training loop, and is not made by ``watch``.
    watchable: ClassVar[bool] = True

    def __init__(self, context: ProbeContext) -> None:
        self.context = context

    def cost(self) -> float:
        """Rows through a forward pass that all its moments together take, about (forward and backward: three a row)."""
        return 0.0

    def before(self) -> None:
        """Before the first iteration."""

    def iteration(self, number: int, batch: Any) -> None:
        """Right before iteration ``number``, with its batch."""

    def stepped(self, number: int) -> None:
        """Right after the iteration in which optimizer step ``number`` was taken."""

    def after(self) -> None:
        """After the last iteration; ``context.tensors`` is known."""

    def record(self) -> Any:
        """What was measured, a dataclass of ``records``; None: nothing could be."""
        raise NotImplementedError

    def close(self) -> None:
        """The run is over, however it ended: take off what is still hooked on. May be called twice."""


class ProbeRunner:
    """The probes of one run."""

    def __init__(self, context: ProbeContext, kinds: Sequence[type[Probe]], allowance: float) -> None:
        self.context = context
        self.skipped: dict[str, str] = {}
        self.running: list[Probe] = []
        self._looked: set[tuple[str, str]] = set()
        left = allowance
        for kind in kinds:
            made = self._guard(kind.name, lambda kind=kind: kind(context), "made")  # type: ignore[misc]
            if made is None:
                continue
            price = self._guard(kind.name, made.cost, "cost")
            if price is None:
                continue
            if price > left:
                self.skipped[kind.name] = (
                    f"left out: it takes {price:,.0f} rows through the model, and of the budget {max(0.0, left):,.0f} are left; "
                    f"name it in probes= to have it all the same"
                )
                continue
            left -= price
            self.running.append(made)
        self._made = tuple(self.running)

    def before(self) -> None:
        """Call every probe's `Probe.before`."""
        self._all(lambda e: e.before(), "before")

    def iteration(self, number: int, batch: Any) -> None:
        """Call every probe's `Probe.iteration`."""
        self._all(lambda e: e.iteration(number, batch), "iteration")

    def stepped(self, number: int) -> None:
        """Call every probe's `Probe.stepped`."""
        self._all(lambda e: e.stepped(number), "stepped")

    def after(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Call every probe's `Probe.after`; those left when ``stop`` says so are left out."""
        for probe in list(self.running):
            if stop():
                self.running.remove(probe)
                self.skipped[probe.name] = "left out: the time limit (max_seconds) was reached"
            else:
                self._one(probe, lambda e: e.after(), "after")

    def records(self) -> dict[str, Any]:
        """Field of the trace -> record."""
        found: dict[str, Any] = {}
        for probe in self.running:
            record = self._guard(probe.name, probe.record, "record")
            if record is not None:
                found[probe.name] = record
        return found

    def _all(self, call: Callable[[Probe], None], moment: str) -> None:
        for probe in list(self.running):
            if getattr(type(probe), moment) is not getattr(Probe, moment):
                self._one(probe, call, moment)

    def _one(self, probe: Probe, call: Callable[[Probe], None], moment: str) -> None:
        self._guard(probe.name, lambda: call(probe), moment)
        if probe.name in self.skipped:
            self.running.remove(probe)

    def close(self) -> None:
        """Whatever came between: no hook of ours is left anywhere."""
        for probe in self._made:
            with contextlib.suppress(Exception):
                probe.close()

    def _guard(self, name: str, call: Callable[[], Any], moment: str) -> Any:
        """The call's result; None, and the reason noted, if it raised."""
        # a model that writes into its own weights in a forward pass shows it the first time
        first = moment in ("before", "iteration", "after") and (name, moment) not in self._looked
        self._looked.add((name, moment))
        with undisturbed(self.context.model, weights=first), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return call()
            except LeftOut as reason:
                self.skipped[name] = str(reason)
                return None
            except Exception as error:  # noqa: BLE001 - no probe is worth breaking the run for
                text = str(error).strip().splitlines()
                self.skipped[name] = f"it raised {type(error).__name__}" + (f": {text[0][:200]}" if text else "")
                return None


def allowance(model: nn.Module, rows: int, tokens: int, steps: int) -> float:
    """Rows through a forward pass that all probes together may take.

    Counted in work, not in seconds, so that the same run makes the same probes on every machine.
    """
    size = sum(p.numel() for p in model.parameters())
    return SHARE * 3 * rows * steps + FREE / (2.0 * max(1, size) * max(1, tokens))


def tokens_of(batch: Any) -> int:
    """Width of the widest two-dimensional whole-number tensor of a batch: tokens a row; 1 where there is none."""
    widest = 1

    def look(value: Any) -> None:
        nonlocal widest
        if isinstance(value, torch.Tensor):
            if value.dim() >= 2 and not value.is_floating_point():
                widest = max(widest, math.prod(value.shape[1:]))
        elif isinstance(value, Mapping):
            for v in value.values():
                look(v)
        elif isinstance(value, (tuple, list)):
            for v in value:
                look(v)

    look(batch)
    return widest
