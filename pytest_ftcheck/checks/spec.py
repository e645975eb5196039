"""What a check is: a judgement on a Trace, the faults it can find, its thresholds; registered where it is written.

A room (a folder beside this file) has its measurements in ``record.py``, what takes them in ``probe.py`` or ``probe/`` (the only files
that see torch), its faults in ``faults.py``, and each check in a file of its name. `catalogue` finds the files; nothing else has to be told
of a new one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, Concatenate, Literal, ParamSpec

from ..core.formatting import describe_type, text_of
from ..core.measurement import Measurement, kind_of
from ..core.trace import Trace
from ..core.verdict import Status, Verdict
from ..seeds.judge import judge as judge_seeds
from ..seeds.runs import Runs
from ..seeds.thresholds import Threshold
from .longer_runs import judged_longer
from .shards import careful_with_shards

P = ParamSpec("P")
Confidence = Literal["certain", "likely", "possible"]


class Stage(IntEnum):
    """Where in a run a check looks; verdicts are listed in this order, and by ``position`` within a stage."""

    OPTIMIZER = 1
    START = 2
    LOSS_FUNCTION = 3
    DATA = 4
    INPUTS = 5
    MODE = 6
    GRADIENTS = 7
    WEIGHTS = 8
    OUTCOME = 9

    @property
    def title(self) -> str:
        """As a heading.

        >>> Stage.LOSS_FUNCTION.title
        'Loss function'
        """
        return self.name.replace("_", " ").capitalize()


class Symptom(Enum):
    """What a check shows besides faults of its own; a fault that brings a symptom about explains every check that shows it."""

    #: What came of the run: any fault can spoil it.
    OUTCOME = "the outcome is bad"
    #: Weights do not move, gradients are missing.
    STANDS_STILL = "the model does not learn"
    #: Values explode or stop being finite.
    BLOWS_UP = "the training blows up"
    #: The head does not see the input.
    INPUT_LOST = "the output does not depend on the input"
    #: The loss is not the task's.
    LOSS_WRONG = "the loss is wrong"


class Rank(IntEnum):
    """How fundamental a fault is: the lower, the nearer to the root. A fault comes before those that it can bring about."""

    BROKEN_START = 1000
    LOSS_DISCONNECTED = 2000
    PARAMETERS = 3000
    START = 4000
    DATA = 5000
    LOSS = 6000
    INPUTS = 7000
    GRADIENTS = 8000
    OPTIMIZER = 9000
    WEIGHTS = 10000
    HEAD = 11000
    OUTCOME = 12000
    EVALUATION = 13000
    #: Never the cause of a failure.
    ADVICE = 14000


@dataclass(frozen=True)
class Fault:
    """One thing that can be wrong with a fine-tune, declared once, beside the check that finds it.

    ``cause`` and ``remedy`` may have fields in braces, which `with_details` fills in.

    >>> fault = Fault("mask_not_passed", Rank.INPUTS + 60, "the attention mask does not reach the base", cause="{base} gets no mask")
    >>> fault.with_details(base="DistilBertModel").cause
    'DistilBertModel gets no mask'
    """

    #: Short name, as in `Verdict.fault`.
    name: str
    #: `Rank`, and a number within it.
    rank: int
    #: What is wrong, in one line, without numbers.
    title: str
    #: How it probably came about; empty: no more is known than the title says.
    cause: str = ""
    #: The line to change.
    remedy: str = ""
    #: Symptoms that it brings about, and names of checks that fail merely because of it. Every fault explains `Symptom.OUTCOME`.
    explains: tuple[Symptom | str, ...] = ()
    #: ``certain`` (read off the structure, or off what was declared), ``likely`` or ``possible``.
    confidence: Confidence = "likely"

    def with_details(self, **fields: object) -> Fault:
        """The same fault of one run: braces in its texts filled in."""
        return dataclasses.replace(self, cause=self.cause.format(**fields), remedy=self.remedy.format(**fields))

    def because(self, cause: str, remedy: str | None = None) -> Fault:
        """The same fault with a cause that this run shows, and its remedy."""
        return dataclasses.replace(self, cause=cause, remedy=self.remedy if remedy is None else remedy)

    def verdict(self, check: str, headline: str, status: Status = "fail", **rest: Any) -> Verdict:
        """The verdict that it was found, by a check; ``rest`` are further fields of `Verdict`.

        >>> Fault("lr_zero", 1, "the learning rate is zero", remedy="set lr=").verdict("lr_sensible", "The learning rate is 0.").fault
        'lr_zero'
        """
        causes = (self.cause,) if self.cause else ()
        return Verdict(check, status, headline, **{"causes": causes, "remedy": self.remedy, "fault": self.name, **rest})


@dataclass(frozen=True)
class CheckSpec:
    """One check and all that is declared of it."""

    #: ``weights_move`` for ``check_weights_move`` and ``assert_weights_move``.
    name: str
    #: ``check_x``: judges one trace or several seeds, and measures what the check needs if it was not measured.
    check: Callable[..., Verdict]
    #: The same of what was measured, and of nothing else.
    judge: Callable[..., Verdict]
    stage: Stage
    position: int
    faults: tuple[Fault, ...]
    thresholds: tuple[Threshold, ...]
    #: What it judges, beside what the recorder always notes.
    measurements: tuple[type[Measurement], ...]
    shows: frozenset[Symptom]


#: Name -> spec, of every check whose file was imported; in the order of import. `catalogue.CHECKS` is complete and in order.
REGISTERED: dict[str, CheckSpec] = {}


def check(
    *,
    stage: Stage,
    position: int,
    faults: tuple[Fault, ...] = (),
    thresholds: tuple[Threshold, ...] = (),
    measurements: tuple[type[Measurement], ...] = (),
    shows: tuple[Symptom, ...] = (),
) -> Callable[[Callable[Concatenate[Trace, P], Verdict]], Callable[Concatenate[Trace | Runs, P], Verdict]]:
    """Registers ``check_x(trace, ...) -> Verdict`` as the check ``x``, and lets it judge several seeds, too.

    :param stage: where in a run it looks.
    :param position: its place within the stage, for the order of verdicts.
    :param faults: what it can find; faults that other checks find, too, are named by each of them.
    :param thresholds: its numeric arguments, for calibration and for verdicts over seeds.
    :param measurements: the kinds it judges; without them it is not measured.
    :param shows: symptoms by which a fault found elsewhere explains its failure.
    """

    def register(
        function: Callable[Concatenate[Trace, P], Verdict],
    ) -> Callable[Concatenate[Trace | Runs, P], Verdict]:
        name = function.__name__.removeprefix("check_")
        function = careful_with_shards(function, of_values=stage in (Stage.GRADIENTS, Stage.WEIGHTS))
        measured = measure_if_missing(function)

        def over_seeds(
            one: Callable[Concatenate[Trace, P], Verdict],
        ) -> Callable[Concatenate[Trace | Runs, P], Verdict]:
            @functools.wraps(function)
            def judge(*arguments: Any, **options: Any) -> Verdict:
                if not arguments and "trace" in options:  # by its name, as every other argument
                    arguments = (options.pop("trace"),)
                if arguments and isinstance(arguments[0], Runs):
                    return judge_seeds(one, arguments[0], arguments[1:], options, thresholds)
                if arguments and not isinstance(arguments[0], Trace):
                    what = describe_type(arguments[0])
                    raise TypeError(f"trace is {what}: expected a trace from finetune() or watch()")
                try:
                    return one(*arguments, **options)
                except (LookupError, ArithmeticError, AttributeError, AssertionError) as error:
                    if not (arguments and arguments[0].read_back):
                        raise
                    what = f"{type(error).__name__}: {text_of(error)}".removesuffix(": ")
                    raise ValueError(
                        f"the trace was not saved so by this version, or was changed: {name} cannot judge it, for its values do not fit "
                        f"together ({what}); measure again"
                    ) from error

            return judge

        checked = over_seeds(measured)
        REGISTERED[name] = CheckSpec(
            name, checked, over_seeds(function), stage, position, faults, thresholds, measurements, frozenset(shows)
        )
        return checked

    return register


def measure_if_missing(
    function: Callable[Concatenate[Trace, P], Verdict],
) -> Callable[Concatenate[Trace, P], Verdict]:
    """The check of whoever asks for it by name: what was left out is measured now, and what cannot be measured is no pass.

    While the model and the batches are at hand, the fine-tune runs again with the probe that is missing. Where it cannot (a trace from a
    file, a watched loop), the verdict is ``inconclusive`` and names the argument that would have it measured. What was measured and is
    inconclusive is judged in a longer run, if the trace may have one (`judged_longer`).
    """

    @functools.wraps(function)
    def judge(trace: Trace, /, *arguments: P.args, **options: P.kwargs) -> Verdict:
        verdict = function(trace, *arguments, **options)
        if not verdict.unmeasured:
            return judged_longer(lambda longer: function(longer, *arguments, **options), trace, verdict)
        tried: set[str] = set()
        while verdict.unmeasured and verdict.unmeasured not in tried:
            tried.add(verdict.unmeasured)
            trace = remeasured(trace, verdict.unmeasured)
            verdict = function(trace, *arguments, **options)
        if not verdict.unmeasured:
            return verdict
        return dataclasses.replace(
            verdict, status="inconclusive", remedy=verdict.remedy or _how_to_measure(trace, verdict.unmeasured)
        )

    return judge


def remeasured(trace: Trace, probe: str) -> Trace:
    """The trace with what one more probe measured, if the fine-tune can run again; else the trace as it is.

    >>> from pytest_ftcheck import example_trace
    >>> trace = example_trace(remeasure=lambda probe: example_trace(skipped={probe: "there is no base"}, not_applicable=(probe,)))
    >>> remeasured(trace, "inputs").skipped
    {'inputs': 'there is no base'}
    """
    if trace.remeasure is None:
        return trace
    try:
        again = trace.remeasure(probe)
    except Exception as error:  # noqa: BLE001 - the user's code, run once more, may raise anything
        return dataclasses.replace(
            trace, skipped={**trace.skipped, probe: f"running again raised {type(error).__name__}"}
        )
    skipped = {name: why for name, why in trace.skipped.items() if name != probe}
    if probe in again.skipped:
        skipped[probe] = again.skipped[probe]
    return dataclasses.replace(
        trace,
        probe_loss=again.probe_loss if probe == "loss" else trace.probe_loss,
        metrics=again.metrics if probe == "metrics" else trace.metrics,
        measurements={**trace.measurements, **{n: m for n, m in again.measurements.items() if n == probe}},
        skipped=skipped,
        not_applicable=tuple({*trace.not_applicable, *(n for n in again.not_applicable if n == probe)}),
    )


def _how_to_measure(trace: Trace, probe: str) -> str:
    """The call that would have a probe measured."""
    if trace.lacking.get(probe) == "loss_fn":
        return "watch(model, optimizer, probe_batch=batch, loss_fn=(model, batch) -> loss)"
    if any(t.shard is not None for t in trace.tensors):
        return "watch the same training in one process, where this rank's shards are the whole tensors"
    if trace.source == "watch":
        return f"watch(model, optimizer, probe_batch=batch, probes=[{probe!r}])"
    by_default = "" if _on_request(probe) else ", or without probes=,"
    return f"finetune(..., probes=[{probe!r}]){by_default} measures it"


def _on_request(probe: str) -> bool:
    try:
        return bool(kind_of(probe).on_request)
    except ValueError:  # the run itself measures it
        return False


def run_not_measured(name: str, trace: Trace, probe: str, otherwise: str) -> Verdict:
    """The verdict of a check whose numbers the run itself takes (``loss``, ``metrics``), and has not.

    :param otherwise: the headline where the run did take them: then the check does not apply.
    """
    if probe not in trace.skipped:
        return Verdict(name, "skipped", otherwise)
    return Verdict(name, "skipped", f"Not measured: {trace.skipped[probe].rstrip('.')}.", unmeasured=probe)


def not_measured(
    name: str, trace: Trace, kind: type[Measurement], part: str | None = None, *, declares: str = ""
) -> Verdict:
    """The verdict of a check whose measurement is missing, or does not have what the check needs: skipped, with the reason.

    :param part: why the measurement does not have it: then the check does not apply.
    :param declares: field of `Intent` that the check compares with the run. If it was declared, what is missing is inconclusive.
    """
    unmeasured = "" if part or kind.probe in trace.not_applicable else kind.probe
    headline = trace.why_not_measured(kind, part)
    value = getattr(trace.intent, declares) if declares and trace.intent is not None else None
    if not unmeasured or value is None:
        return Verdict(name, "skipped", headline, unmeasured=unmeasured)
    declared = f"Declared, and not judged: intent.{declares}={value!r}. {headline}"
    return Verdict(name, "inconclusive", declared, remedy=_how_to_measure(trace, unmeasured), unmeasured=unmeasured)


def declared_not_measured(name: str, trace: Trace, kind: type[Measurement], part: str | None = None) -> Verdict:
    """The verdict of a check that should judge what is declared, and has no measurement of it: inconclusive, for it is no pass."""
    return dataclasses.replace(not_measured(name, trace, kind, part), status="inconclusive")


def combine(found: Iterable[Verdict | None], **fields: Any) -> Verdict | None:
    """The verdict on everything that one check found: the first finding, with the headlines of the others as further causes.

    :param fields: fields of `Verdict` that are the same for all findings.

    >>> combine([None, Verdict("x", "fail", "One.", causes=("a typo",)), Verdict("x", "fail", "Two.")]).causes
    ('a typo', 'Two.')
    """
    verdicts = [verdict for verdict in found if verdict is not None]
    if not verdicts:
        return None
    further = tuple(verdict.headline for verdict in verdicts[1:])
    return dataclasses.replace(verdicts[0], causes=(*verdicts[0].causes, *further), **fields)
