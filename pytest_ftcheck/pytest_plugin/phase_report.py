"""What one phase of a test concluded: the one thing of ours that crosses from the process that runs a test to the one that reports.

pytest's test report carries it as an attribute of builtins, the only kind of value that pytest-xdist sends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.serialization import decode, encode
from ..reports.html.compressed_trace import SentTrace, TraceSender
from ..reports.run_metrics import SummaryRow, run_metrics, summary_row
from ..reports.session_diagnosis import verdicts_to_text
from ..reports.session_result import ReportedVerdict, RunMetrics
from ..seeds.calibration import CheckCalibration
from .baseline.run_outcome import RunOutcome
from .verdict_log import ATTRIBUTE, KeptRun, Phase


@dataclass(frozen=True)
class ReportedRun:
    """One fine-tune that the phase measured or judged."""

    metrics: RunMetrics
    #: For the terminal's table; None without ``-v``.
    row: SummaryRow | None = None
    #: For the HTML page; None where none is written.
    trace: SentTrace | None = None
    #: The verdicts reached on it, the worst of each check (`verdicts_to_text`); empty where no page is written.
    verdicts: str = ""

    @classmethod
    def of(cls, run: KeptRun, *, row: bool = False, sender: TraceSender | None = None) -> ReportedRun:
        """What is reported of a run: its metrics, and what else is wanted."""
        trace = run.trace
        return cls(
            metrics=RunMetrics(repr(trace), run_metrics(trace), dict(trace.environment)),
            row=summary_row(trace) if row else None,
            trace=None if sender is None else sender.send(trace),
            verdicts="" if sender is None else verdicts_to_text(run.verdicts.values()),
        )


@dataclass(frozen=True)
class PhaseReport:
    """Verdicts, fine-tunes and by-products of one phase (setup, call or teardown) of a test."""

    #: One a check.
    verdicts: tuple[ReportedVerdict, ...] = ()
    runs: tuple[ReportedRun, ...] = ()
    #: Further runs that were counted, not kept.
    runs_left_out: int = 0
    #: Checks that were not measured in one of the runs, and are not among the verdicts.
    not_measured: tuple[str, ...] = ()
    calibrations: tuple[CheckCalibration, ...] = ()
    #: Runs that ended in this phase, beside the baseline.
    baseline: tuple[RunOutcome, ...] = ()
    #: Names of the baseline runs that the test used, while the baseline is written.
    baseline_runs_used: tuple[str, ...] = ()

    @classmethod
    def made_of(
        cls, phase: Phase, when: str, *, failed: bool = False, rows: bool = False, sender: TraceSender | None = None
    ) -> PhaseReport:
        """The report of a phase that has ended.

        :param when: ``setup``, ``call`` or ``teardown``.  :param failed: whether it failed.
        :param rows: with a row of each run for the terminal's table.
        :param sender: packs the traces for the HTML page; None: no page is written.
        """
        return cls(
            verdicts=tuple(verdict.report(when, failed=failed) for verdict in phase.verdicts.values()),
            runs=tuple(ReportedRun.of(run, row=rows, sender=sender) for run in phase.runs),
            runs_left_out=phase.left_out,
            not_measured=phase.not_measured,
            calibrations=tuple(phase.calibrations),
            baseline=tuple(phase.baseline),
            baseline_runs_used=tuple(phase.baseline_runs_used),
        )

    def attach_to(self, report: Any) -> None:
        """Store it in a pytest report."""
        setattr(report, ATTRIBUTE, encode(self))

    @classmethod
    def of(cls, report: Any) -> PhaseReport | None:
        """What a pytest report carries; None: nothing.

        >>> class Report: ...
        >>> PhaseReport.of(Report()) is None
        True
        >>> PhaseReport(runs_left_out=3).attach_to(Report)
        >>> PhaseReport.of(Report).runs_left_out
        3
        """
        carried = getattr(report, ATTRIBUTE, None)
        if carried is None:
            return None
        found = decode(cls, carried, "phase")
        assert isinstance(found, cls)
        return found
