"""Probes: measurements taken besides a training, when, and at what cost. None of them can break the run.

A probe is a class with a name, a cost, and up to four moments at which it measures. All it may use is its `ProbeContext`.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from ..core.formatting import named_error
from ..core.intent import Intent
from ..core.observations import Tensor
from ..core.recipe import Recipe
from .batches import Batches, rows_of
from .reader import Reader
from .recall import Recall
from .undisturbed import undisturbed
from .undo import Undo
from .work import call_work, row_work, tokens_of

#: The head costs little: at most this share of a row's work.
LITTLE = 0.1


@dataclass(kw_only=True)
class ModelContext:
    """What is known of every run, also of one whose batches cannot be read."""

    model: nn.Module
    head: tuple[str, ...]
    optimizer: torch.optim.Optimizer
    intent: Intent
    #: What the recorder measured of every tensor; filled in before `ProbeBase.after`.
    tensors: tuple[Tensor, ...] = ()
    #: Notes for the trace.
    notes: list[str] = field(default_factory=list)
    #: Parameters of the base that were edited after the checkpoint was loaded; the probe `pretrained` finds them.
    edited: tuple[str, ...] = ()


@dataclass(kw_only=True)
class ProbeContext(ModelContext):
    """What a probe may use. What it changes in modes, random states and buffers is restored for it; what it changes in parameters it
    restores itself (see `perturbed`)."""

    reader: Reader
    #: The first training batches, on the model's device: the same rows for every probe.
    fixed_batches: list[Any]
    #: All training batches, as the user gave them; ``batches.known`` is a list of those already read.
    batches: Batches
    #: Held-out batches; None: there are none.
    held_out: list[Any] | None
    scheduler: Any
    recipe: Recipe
    #: The user's own metric, ``(model) -> float``; None: none.
    user_metric: Callable[[Any], float] | None
    #: The recipe's loop trains; False: the user's ``step`` does, or a watched loop.
    recipe_loop: bool
    device: torch.device
    #: The user's functions ``(path, model, optimizer, scheduler)`` that save a checkpoint and load it; None: none.
    checkpoint: tuple[Callable[..., Any], Callable[..., Any]] | None = None
    #: Optimizer steps that the run is to take.
    steps: int = 0
    #: What the user's metric was before and after the training; filled in before `Probe.after`.
    user_metric_values: tuple[float, float] | None = None
    #: The run's memory of what stands before the head; None: there is none.
    recall: Recall | None = None

    @functools.cached_property
    def head_share(self) -> float:
        """Share of a row's work that is left where what stands before the head is recalled; 1: nothing is."""
        if self.recall is None or not self.recall.works:
            return 1.0
        tokens = max(map(tokens_of, self.fixed_batches), default=1)
        return max(0.0, 1.0 - 2.0 * self.recall.parameters * tokens / self.row_work)

    @property
    def head_costs_little(self) -> bool:
        """What stands before the head is recalled, and nearly all of a row's work is there."""
        return self.head_share <= LITTLE

    def recalling(
        self, *, but: Sequence[nn.Module] = (), constant: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """Inside, what stands before the head is not computed again for the same rows: for passes that change the head at most.

        :param but: modules that have to be called.  :param constant: with gradients, too: for those of the head alone.
        """
        return contextlib.nullcontext() if self.recall is None else self.recall.recalling(but=but, constant=constant)

    @functools.cached_property
    def row_work(self) -> float:
        """Floating-point operations of one of the fixed rows through the model, and its loss."""
        return row_work(self.model, max(map(tokens_of, self.fixed_batches), default=1), self.reader.outputs)

    @functools.cached_property
    def call_rows(self) -> float:
        """How many rows the calls of one forward pass cost as much as: of a model with thousands of tensors, as many as a batch has."""
        calls, rows = call_work(self.model), rows_of(self.fixed_batches[0]) if self.fixed_batches else 1
        return calls / (self.row_work + calls / max(1, rows))


C = TypeVar("C", bound=ModelContext)


#: How the reason begins where a probe would apply, but was too expensive.
OUT_OF_BUDGET = "left out:"


class LeftOut(Exception):
    """Raised by a probe that does not apply; its text is the reason in ``Trace.skipped``."""


class ProbeBase(Generic[C]):
    """One measurement besides the training; a subclass overrides the moments it needs. See `Probe` and `ModelProbe`.

    After each moment random states, modes, buffers and all else that `undisturbed` names are restored. Gradients are off unless the
    probe enables them (``torch.enable_grad()``). An exception ends this probe alone: its reason goes into ``Trace.skipped``.
    """

    #: Its name in ``probes=``, and the key of its measurement in ``Trace.measurements``.
    name: ClassVar[str]
    #: Its place among all, the cheapest and most informative first. The last ones are left out first where the budget is short.
    order: ClassVar[int]
    #: False: it runs only when ``probes=`` names it.
    default: ClassVar[bool] = True
    #: False: it needs the training loop, so `watch` does not run it.
    watchable: ClassVar[bool] = True

    def __init__(self, context: C) -> None:
        self.context = context

    def cost(self) -> float:
        """About how many rows pass through the model at all its moments together; forward and backward of a row count as three."""
        return 0.0

    def reduce(self, reason: str) -> bool:  # noqa: ARG002
        """Leave out something that costs rows, for ``reason``; False: there is nothing more to leave out, so the probe is.

        `cost` says what the rest costs.
        """
        return False

    def idle(self, moment: str, number: int) -> bool:  # noqa: ARG002
        """Whether it has nothing to measure then: what it may not change is neither kept nor restored, which costs more than a small
        model's step. It may count, and looks at nothing of the user's.

        :param moment: ``iteration``, ``iterated`` or ``stepped``.  :param number: as they get it.
        """
        return False

    def before(self) -> None:
        """Before the first iteration."""

    def iteration(self, number: int, batch: Any) -> None:
        """Right before iteration ``number``, with its batch."""

    def iterated(self, number: int) -> None:
        """Right after iteration ``number``, before anything else is looked at."""

    def loop_begins(self) -> None:
        """A watched loop begins: its iterations are not announced."""

    def loop_ends(self) -> None:
        """The watched loop is over."""

    def stepped(self, number: int) -> None:
        """Right after the iteration in which optimizer step ``number`` was taken."""

    def after(self) -> None:
        """After the last iteration; ``context.tensors`` is known."""

    def record(self) -> Any:
        """What was measured, a `Measurement`; None: there was nothing to measure."""
        raise NotImplementedError

    def close(self) -> None:
        """The run has ended, in whatever way: remove all hooks. May be called twice."""


class Probe(ProbeBase[ProbeContext]):
    """A probe that passes batches through the model, or reads them."""


class ModelProbe(ProbeBase[ModelContext]):
    """A probe that reads structure and stored values alone. It costs nothing, so it runs in every run, whatever ``probes=`` names, and
    where no batches can be read."""


class ProbeRunner:
    """The probes of one run.

    :param allowance: rows that all of them together may pass through the model, as from :func:`allowance`.
    """

    def __init__(self, context: ModelContext, kinds: Sequence[type[ProbeBase[Any]]], allowance: float) -> None:
        self.context = context
        #: Probe -> why it did not run, or did not finish.
        self.skipped: dict[str, str] = {}
        #: Those of them that do not apply.
        self.not_applicable: list[str] = []
        self.running: list[ProbeBase[Any]] = []
        self._weights_checked: set[tuple[str, str]] = set()
        self._without_passes = {kind.name for kind in kinds if issubclass(kind, ModelProbe)}
        left = allowance
        for kind in kinds:
            begun = self._guard(kind.name, lambda kind=kind: self._begin(kind), "init")  # type: ignore[misc]
            if begun is None:
                continue
            probe, cost = begun
            reason = (
                f"left out: it costs {cost:,.0f} rows through the model, and {max(0.0, left):,.0f} of the budget are left; "
                "name it in probes= to run it all the same"
            )
            while cost > left and probe.reduce(reason):
                cost = probe.cost()
            if cost > left:
                self.skipped[kind.name] = reason
                continue
            left -= cost
            self.running.append(probe)
        self._all_probes = tuple(self.running)

    def _begin(self, kind: type[ProbeBase[Any]]) -> tuple[ProbeBase[Any], float]:
        """The probe, and what it costs."""
        probe = kind(self.context)
        return probe, probe.cost()

    def before(self) -> None:
        """Call every probe's `Probe.before`."""
        self._all(lambda e: e.before(), "before")

    def iteration(self, number: int, batch: Any) -> None:
        """Call every probe's `Probe.iteration`."""
        self._all(lambda e: e.iteration(number, batch), "iteration", number)

    def iterated(self, number: int) -> None:
        """Call every probe's `Probe.iterated`."""
        self._all(lambda e: e.iterated(number), "iterated", number)

    def loop_begins(self) -> None:
        """Call every probe's `Probe.loop_begins`."""
        self._all(lambda e: e.loop_begins(), "loop_begins")

    def loop_ends(self) -> None:
        """Call every probe's `Probe.loop_ends`."""
        self._all(lambda e: e.loop_ends(), "loop_ends")

    def stepped(self, number: int) -> None:
        """Call every probe's `Probe.stepped`."""
        self._all(lambda e: e.stepped(number), "stepped", number)

    def after(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Call every probe's `Probe.after`; once ``stop()`` is true, the rest is left out."""
        for probe in list(self.running):
            if stop() and not isinstance(probe, ModelProbe):
                self.running.remove(probe)
                self.skipped[probe.name] = "left out: the time limit (max_seconds) was reached"
            else:
                self._one(probe, lambda e: e.after(), "after")

    def measurements(self) -> dict[str, Any]:
        """Probe -> what it measured."""
        found: dict[str, Any] = {}
        for probe in self.running:
            measurement = self._guard(probe.name, probe.record, "record")
            if measurement is not None:
                found[probe.name] = measurement
        return found

    def _all(self, call: Callable[[ProbeBase[Any]], None], moment: str, number: int | None = None) -> None:
        for probe in list(self.running):
            if getattr(type(probe), moment) is getattr(ProbeBase, moment):
                continue
            if number is None or not probe.idle(moment, number):
                self._one(probe, call, moment)

    def _one(self, probe: ProbeBase[Any], call: Callable[[ProbeBase[Any]], None], moment: str) -> None:
        self._guard(probe.name, lambda: call(probe), moment)
        if probe.name in self.skipped:
            self.running.remove(probe)

    def close(self) -> None:
        """Remove every hook of the probes, however the run ended."""
        for probe in self._all_probes:
            with contextlib.suppress(Exception):
                probe.close()

    def _guard(self, name: str, call: Callable[[], Any], moment: str) -> Any:
        """The call's result; None if it raised, with the reason in `skipped`."""
        return Undo().after(lambda: self._undisturbed(name, call, moment))

    def _undisturbed(self, name: str, call: Callable[[], Any], moment: str) -> Any:
        # a model that writes into its own weights in a forward pass does so the first time
        first = moment in ("before", "iteration", "after") and (name, moment) not in self._weights_checked
        first = first and name not in self._without_passes
        self._weights_checked.add((name, moment))
        with undisturbed(self.context.model, weights=first), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return call()
            except LeftOut as reason:
                self.skipped[name] = str(reason)
                if not str(reason).startswith(OUT_OF_BUDGET):
                    self.not_applicable.append(name)
                return None
            except Exception as error:  # noqa: BLE001 - no probe is worth breaking the run for
                self.skipped[name] = f"it raised {named_error(error)}"
                return None
