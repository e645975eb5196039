"""``--ftcheck-calibrate`` in pytest's session: a plugin of pytest, registered where the option is given."""

from __future__ import annotations

from typing import Any

from ..core.formatting import clean
from ..seeds.calibration import CheckCalibration, report
from .phase_report import PhaseReport


class CalibrationReport:
    """Collects calibrations from the tests' reports, of this process or of pytest-xdist's workers, and prints them."""

    def __init__(self) -> None:
        self._calibrations: list[CheckCalibration] = []

    def pytest_report_header(self) -> str:
        """Announced first: a green session has judged nothing."""
        return "ftcheck: calibrating, so assertions on fine-tunes do not raise"

    def pytest_runtest_logreport(self, report: Any) -> None:
        """One phase of one test."""
        if (phase := PhaseReport.of(report)) is not None:
            self._calibrations += phase.calibrations

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The tables, even with ``-q``."""
        terminalreporter.write_sep("=", "ftcheck calibration")
        for line in report(self._calibrations):
            terminalreporter.write_line(clean(line))
