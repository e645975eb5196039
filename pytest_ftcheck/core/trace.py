"""`Trace`: all that was measured of one run, the only thing that checks read. Plain numbers, no tensors; JSON and back."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from . import arguments
from .files import load_text, save_text
from .formatting import as_given, clean, one_line
from .intent import PARTS, Intent
from .late_binding import provided
from .measurement import M, Measurement, kind_of
from .observations import Buffer, Iteration, Metric, Optimizer, ProbeLoss, Reading, Step, Tensor
from .recipe import DECIDED_BY, Recipe
from .serialization import NOT_SAVED, decode, encode

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.figure import Figure

    from .trace_writer import TraceWriter


#: Version of the JSON layout; raised when a field changes its meaning or goes away.
SCHEMA = 2
#: What ``include=`` and ``ignore=`` of the checks accept.
GLOBS = "a glob or a sequence of globs"
#: In `Trace.skipped`: ``probes=`` was given, or its default applied, and this probe was not in it.
NOT_NAMED = "not among the probes= of this run"


class LongerRuns(Protocol):
    """Longer runs of one fine-tune, made when a check needs them, within a budget of seconds."""

    #: Seconds that all of them may take together.
    seconds: float
    #: Why there is no further one; empty: there may be.
    ended: str

    def after(self, trace: Trace, number: int) -> Trace | None:
        """The first (0), second (1), ... longer run of this fine-tune; None: there is none, and `ended` says why."""

    def spent(self, number: int) -> float:
        """Seconds that so many of them took."""


@dataclass(frozen=True)
class Trace:
    """What one short fine-tune, or one watched loop, did.

    Returned by :func:`pytest_ftcheck.finetune` and :func:`pytest_ftcheck.watch`, read by every check. ``print(trace)`` shows it.
    """

    #: ``finetune`` or ``watch``.
    source: str
    #: How it was trained; None for a watched loop.
    recipe: Recipe | None
    #: How batches, outputs and losses were read.
    reading: Reading
    #: Prefixes of the head's parameter names.
    head: tuple[str, ...]
    optimizer: Optimizer
    iterations: tuple[Iteration, ...]
    steps: tuple[Step, ...]
    #: Steps that the series of each tensor hold: all of a short run, every 2nd, 4th, ... of a long one.
    recorded: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    buffers: tuple[Buffer, ...] = ()
    #: The loss on fixed rows with dropout off, before, during and after the run.
    probe_loss: ProbeLoss | None = None
    metrics: tuple[Metric, ...] = ()
    #: What was declared of the run, without its tensors; None: nothing.
    intent: Intent | None = None
    #: Probe -> what it measured; of the others `skipped` has the reason. Read it with `measured`.
    measurements: dict[str, Measurement] = field(default_factory=dict)
    #: Probe -> why it measured nothing.
    skipped: dict[str, str] = field(default_factory=dict)
    #: Those of them that do not apply to this run: running them again would measure nothing, either.
    not_applicable: tuple[str, ...] = ()
    #: Probe -> the argument that would have it measured, such as ``loss_fn``, where it is not its name in ``probes=``.
    lacking: dict[str, str] = field(default_factory=dict)
    #: Arguments of ``finetune`` that were given besides the recipe's fields, such as ``step``; the trace has their names only.
    own_arguments: tuple[str, ...] = ()
    #: Versions, device, dtype, threads.
    environment: dict[str, str] = field(default_factory=dict)
    #: Wall-clock seconds of the whole call, and of the training iterations alone.
    seconds: float = 0.0
    training_seconds: float = 0.0
    #: Why the run ended early; None: it did not.
    stopped: str | None = None
    #: Remarks on the run (a warm-up longer than the run, ignored batch keys, ...).
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA
    #: Runs the same fine-tune again with one probe, by its name, while model and batches are at hand; None: they are not. Not saved.
    remeasure: Callable[[str], Trace] | None = field(default=None, compare=False, repr=False, metadata=NOT_SAVED)
    #: Runs the same fine-tune again with this many steps, for at most so many seconds; None: it cannot. Not saved.
    lengthen: Callable[[int, float], Trace] | None = field(default=None, compare=False, repr=False, metadata=NOT_SAVED)
    #: What an inconclusive check may use of longer runs; None: nothing, the run is judged as it is. Not saved.
    longer_runs: LongerRuns | None = field(default=None, compare=False, repr=False, metadata=NOT_SAVED)
    #: It was read from JSON, so that its numbers may not fit together. Not saved.
    read_back: bool = field(default=False, compare=False, repr=False, metadata=NOT_SAVED)

    # ------------------------------------------------------------------ reading
    @property
    def losses(self) -> tuple[float, ...]:
        """Training losses of the iterations whose loss is known."""
        return tuple(i.loss for i in self.iterations if i.loss is not None)

    @property
    def losses_by_iteration(self) -> dict[int, float]:
        """The same by the iteration's index."""
        return {i: it.loss for i, it in enumerate(self.iterations) if it.loss is not None}

    @property
    def recipe_in_force(self) -> dict[str, Any]:
        """Fields of the recipe by name, without those that a loop, an optimizer or a scheduler of the user's decided.

        >>> from pytest_ftcheck import example_trace
        >>> "lr" in example_trace().recipe_in_force, "lr" in example_trace(own_arguments=("optimizer",)).recipe_in_force
        (True, False)
        """
        if self.recipe is None:
            return {}
        decided = {field for argument in self.own_arguments for field in DECIDED_BY.get(argument, ())}
        return {name: getattr(self.recipe, name) for name in Recipe.field_names() if name not in decided}

    def measured(self, kind: type[M]) -> M | None:
        """What a probe measured, by the class of its measurement; None: nothing, see `why_not_measured`.

        >>> from pytest_ftcheck import example_trace
        >>> from pytest_ftcheck.checks.mode.record import Modes
        >>> example_trace().measured(Modes) is None
        True
        """
        _check_kind(kind)
        measurement = self.measurements.get(kind.probe)
        return measurement if isinstance(measurement, kind) else None

    def why_not_measured(self, kind: type[Measurement], part: str | None = None) -> str:
        """One sentence: why a probe measured nothing.

        :param part: the reason for a part of it, where that is known.

        >>> from pytest_ftcheck import example_trace
        >>> from pytest_ftcheck.checks.mode.record import Modes
        >>> example_trace(skipped={"modes": "the run ended early"}).why_not_measured(Modes)
        'Not measured: the run ended early.'
        """
        _check_kind(kind)
        arguments.text("part", part, optional=True)
        reason = part or self.skipped.get(kind.probe) or self.skipped.get("all") or ""
        if kind.on_request and reason in ("", NOT_NAMED):
            reason = f"{kind.on_request}, so this probe runs only with probes=[{kind.probe!r}]"
        return f"Not measured: {reason.rstrip('.')}." if reason else "Not measured."

    @property
    def backward_error(self) -> str | None:
        """Why backward could not run; None: it could."""
        return next((i.backward_error for i in self.iterations if i.backward_error), None)

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name; ``ValueError`` with similar names if there is none.

        >>> from pytest_ftcheck import example_trace
        >>> example_trace().tensor("classifier.weight").part
        'head'
        """
        arguments.text("name", name)
        for t in self.tensors:
            if t.name == name or name in t.aliases:
                return t
        near = [t.name for t in self.tensors if name.rsplit(".", 1)[0] in t.name][:5]
        raise ValueError(
            f"name={as_given(name)}: no such tensor{'; did you mean ' + ', '.join(near) + '?' if near else ''}"
        )

    def select(
        self,
        part: str = "all",
        include: str | Sequence[str] | None = None,
        ignore: str | Sequence[str] | None = None,
    ) -> tuple[Tensor, ...]:
        """The tensors of a part whose name matches an ``include`` glob and no ``ignore`` glob.

        :param part: ``head``, ``base`` (all but the head) or ``all``.
        :param include: shell-style patterns, or prefixes that end at a dot.
        :raises ValueError: unknown part; a pattern, or the whole selection, that matches nothing.

        >>> from pytest_ftcheck import example_trace
        >>> [t.name for t in example_trace().select("head", ignore="*.bias")]
        ['classifier.weight']
        """
        arguments.one_of("part", part, PARTS)
        include = None if include is None else _patterns("include", include)
        ignore = None if ignore is None else _patterns("ignore", ignore)
        found = [t for t in self.tensors if part in ("all", t.part)]
        if not found:
            raise ValueError(f"part={as_given(part)}: the trace has no {part} tensors (head: {', '.join(self.head)})")
        for argument, patterns in (("include", include), ("ignore", ignore)):
            for pattern in patterns or ():
                if not any(_matches(pattern, t) for t in self.tensors):
                    names = ", ".join(t.name for t in self.tensors[:3])
                    raise ValueError(
                        f"{argument}={as_given(pattern)} matches none of the {len(self.tensors)} tensors ({names}, ...)"
                    )
        wanted, unwanted = include or (), ignore or ()
        chosen = tuple(
            t
            for t in found
            if (include is None or any(_matches(p, t) for p in wanted)) and not any(_matches(p, t) for p in unwanted)
        )
        if not chosen:
            raise ValueError(
                f"part={as_given(part)}, include={as_given(include)}, ignore={as_given(ignore)} leave no tensor to judge"
            )
        return chosen

    # ------------------------------------------------------------------ writing
    def to_json(self) -> str:
        """The whole trace as standard JSON (NaN and infinities as strings)."""
        return json.dumps(encode(self), allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """The inverse of :meth:`to_json`. ``ValueError`` says what does not fit, and where.

        >>> from pytest_ftcheck import example_trace
        >>> trace = example_trace()
        >>> Trace.from_json(trace.to_json()) == trace
        True
        """
        arguments.text("text", text)
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:  # also a number of more digits than python reads
            raise ValueError(f"not a trace: no valid JSON ({error})") from None
        if not isinstance(raw, dict) or "schema" not in raw:
            raise ValueError("not a trace: no field 'schema'")
        if raw["schema"] != SCHEMA:
            raise ValueError(
                f"this trace has schema {raw['schema']!r}, this version of pytest-ftcheck reads {SCHEMA}: "
                "read it with the version that wrote it, or measure again"
            )
        provided("measurements")()
        trace = decode(cls, {name: value for name, value in raw.items() if name != "measurements"})
        assert isinstance(trace, cls)
        measurements = raw.get("measurements", {})
        if not isinstance(measurements, dict):
            raise ValueError(f"trace.measurements: expected an object, found {str(measurements)[:60]!r}")
        decoded = {probe: decode(kind_of(probe), value, f"trace.{probe}") for probe, value in measurements.items()}
        return dataclasses.replace(trace, measurements=decoded, read_back=True)

    def save(self, path: str | PathLike[str]) -> None:
        """Write :meth:`to_json` to a file, whole or not at all.

        :raises ValueError: it is no regular file.  :raises OSError: it cannot be written; an old file is then unchanged.
        """
        save_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Trace:
        """Read what :meth:`save` wrote.

        :raises ValueError: it is no regular file, has more than 256 MiB, or is no trace.  :raises OSError: it cannot be read.
        """
        return load_text(path, cls.from_json)

    def to_tensorboard(self, directory: str | PathLike[str]) -> None:
        """Write event files that TensorBoard shows (needs the extra ``tensorboard``), one directory a run.

        The most useful charts are under *Custom Scalars*, runs side by side with their results under *HParams*.

        :raises TypeError, ValueError: no path.  :raises OSError: it cannot be written.  :raises ImportError: the extra is missing.
        """
        provided("tensorboard")(self, directory)

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write a page with causes, checks and charts that opens in any browser, offline (needs the extra ``html``).

        :raises ImportError: a package of the extra is missing.  :raises OSError: it cannot be written; an old file is left unchanged.
        """
        arguments.path("path", path)  # before the page is made
        save_text(path, provided("page")([self]))

    def log_to(self, to: str | TraceWriter, *, tensors: bool = False, **options: Any) -> None:
        """Log to an experiment tracker: settings, curves, histograms of the head, the diagnosis.

        :param to: ``wandb``, ``mlflow``, ``trackio`` (each an extra of this package), ``tensorboard`` (with ``directory=``), or any
            object with the methods of :class:`pytest_ftcheck.TraceWriter`.
        :param tensors: log curves and histograms of every tensor; else only of the head and of the base's blocks.
        :param options: ``prefix=`` ("ftcheck"), the prefix of all names in an active run of yours; all others are passed to the tracker
            where a run is created (``project=``, ``name=``, ``run_name=``, ...).
        :raises ImportError: the tracker's package is missing.
        :raises OSError: what the tracker writes cannot be written.
        :raises ValueError, TypeError: no such tracker; options for a run that is active already.

        An active run of yours (``wandb.run``, ``mlflow.active_run()``, trackio's) is used and stays open; else a run is created and
        finished.
        """
        provided("log")(self, to, tensors=tensors, **options)

    def plot(self, which: str | Sequence[str] | None = None, *, tensor: str | None = None) -> Figure:
        """Plots of the run, as a matplotlib figure (needs the extra ``plot``); pyplot and its state are not changed.

        :param which: one or several of ``loss`` (training and probe loss, the class-prior baseline, learning rates), ``gradients``
            (norms of the head and of the base's blocks), ``motion`` (displacement over the LR budget, layer by layer) and ``weights`` (a
            tensor's histogram before and after, and the displacement of its elements); None: all.
        :param tensor: name of the tensor under ``weights``; None: the head's largest trainable matrix.
        :raises ValueError, TypeError: no such panel, no such tensor.
        :raises ImportError: the package ``matplotlib`` is missing.

        >>> from pytest_ftcheck import example_trace
        >>> figure = example_trace().plot("motion")
        >>> figure.axes[0].get_title(loc="left")
        'Motion against the LR budget'
        """
        figure: Figure = provided("plot")(self, which, tensor=tensor)
        return figure

    def _repr_html_(self) -> str:
        return str(provided("notebook_trace")(self))

    def __repr__(self) -> str:
        losses = self.losses
        loss = f", loss {losses[0]:.3f} -> {losses[-1]:.3f}" if losses else ""
        return (
            f"<Trace of {len(self.steps):,} steps in {self.seconds:.1f} s: {len(self.tensors)} tensors, "
            f"head {one_line(', '.join(self.head), 200)}{loss}>"
        )

    def __str__(self) -> str:
        return clean(str(provided("table")(self)))


def _patterns(argument: str, patterns: str | Iterable[str] | None) -> tuple[str, ...]:
    if patterns is None:
        return ()
    found = arguments.texts(argument, patterns, GLOBS)
    if not found and argument == "include":
        raise ValueError(f"{argument}={as_given(patterns)}: these leave no tensor to judge; expected {GLOBS}")
    return found


def _check_kind(kind: Any) -> None:
    if not (isinstance(kind, type) and issubclass(kind, Measurement)):
        raise TypeError(f"kind={as_given(kind)}: expected the class of a measurement")


def _matches(pattern: str, tensor: Tensor) -> bool:
    return any(fnmatch.fnmatchcase(n, pattern) or n.startswith(pattern + ".") for n in (tensor.name, *tensor.aliases))
