"""In the process that reports: collects the outcomes of all tests, changes the file, and makes the lines at the end of the session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ...core.formatting import one_line, plural
from ..phase_report import PhaseReport
from .entry import Entry
from .file import Baseline, change
from .recorder import Mode
from .run_names import MODELS, file_of
from .run_outcome import COMPARED, NOT_COMPARED, RunOutcome

#: Names in one line.
MOST = 5
_RANK = {status: i for i, status in enumerate(COMPARED)}


class BaselineSummary:
    """Collects the outcomes of runs.

    :param root: pytest's root directory, which keys are relative to.
    :param shown: the file's name, for messages.
    """

    def __init__(self, path: Path, shown: str, baseline: Baseline | None, mode: Mode, root: Path) -> None:
        self._path, self.shown, self._baseline, self._mode, self._root = path, shown, baseline, mode, root
        self._outcomes: dict[str, RunOutcome] = {}
        #: Runs of one name with different fingerprints.
        self._conflicting: set[str] = set()
        #: Runs that a failed test made or used.
        self._failed: set[str] = set()
        #: Test that was set up and whose call was not reported yet -> its runs.
        self._unfinished: dict[str, set[str]] = {}
        #: Files of the tests that were run; those with a test that failed or was skipped.
        self._files: set[str] = set()
        self._incomplete: set[str] = set()
        #: Not all tests of the files were run.
        self.partial = False
        #: Lines at the end of the session.
        self.lines: list[str] = []
        #: Those shown with ``-q``, too: something should have been compared, and was not.
        self.gaps: list[str] = []
        self.warnings: list[str] = []

    def add(self, nodeid: str, when: str, outcome: str, phase: PhaseReport | None) -> None:
        """One phase of one test."""
        outcomes = () if phase is None else phase.baseline
        keys = {run.key for run in outcomes}
        self._files.add(file_of(nodeid))
        if when == "setup" and outcome == "passed":
            self._unfinished[nodeid] = keys
        elif when == "call":
            self._unfinished.pop(nodeid, None)
        if outcome != "passed":
            self._incomplete.add(file_of(nodeid))
        if outcome == "failed":
            self._failed |= keys.union(() if phase is None else phase.baseline_runs_used)
        for run in outcomes:
            self._add(run)

    def _add(self, run: RunOutcome) -> None:
        before = self._outcomes.get(run.key)
        # several workers of pytest-xdist may have made the same run of a fixture: the worst is reported, the first is written
        if before is not None and before.entry is not None and run.entry is not None:
            if before.entry.fingerprint != run.entry.fingerprint:
                self._conflicting.add(run.key)
            return
        if before is None or _RANK.get(before.status, -1) < _RANK.get(run.status, -1):
            self._outcomes[run.key] = run

    # ------------------------------------------------------------------ the end
    def close(self, *, all_tests: bool) -> None:
        """Change the file, where that is wanted, and make the lines.

        :param all_tests: the session ran all tests there are, so a fixture of a conftest that made no run makes none.
        """
        unused = self._unused(all_tests)
        if self._mode != "compare":
            self._write(unused if self._mode == "update" else [])
        if self._mode != "update" and (self._baseline is not None):
            self._summarize_comparison(unused)

    @property
    def not_compared(self) -> int:
        """How many runs were not compared."""
        return sum(run.status in NOT_COMPARED for run in self._outcomes.values())

    def _gap(self, line: str) -> None:
        self.lines.append(line)
        self.gaps.append(line)

    def _unused(self, all_tests: bool) -> list[str]:
        """Keys in the file that no run of this session has, though all tests of their file were run and passed."""
        if self._baseline is None or self.partial:
            return []
        absent = self._baseline.runs.keys() - self._outcomes.keys()
        return sorted(key for key in absent if self._is_unused(key, all_tests))

    def _is_unused(self, key: str, all_tests: bool) -> bool:
        file = file_of(key)
        if key.startswith(MODELS):  # made only where --ftcheck-model names it
            return False
        if file in self._files:
            return file not in self._incomplete
        if file.endswith(".py"):
            return not (self._root / file).exists()
        return all_tests and not self._incomplete  # a fixture of a conftest

    def _write(self, drop: list[str]) -> None:
        entries: dict[str, Entry] = {}
        insensitive: dict[str, tuple[str, ...]] = {}
        for key, run in sorted(self._outcomes.items()):
            name = one_line(key, 200)
            if run.status == "error":
                self.warnings.append(f"{name} could not be examined: {run.reasons[0]}")
            elif run.status in ("recorded", "unrecordable") and (refusal := self._refusal(run)):
                self.warnings.append(f"{name} was not written: {refusal}")
            elif run.entry is not None:
                entries[key] = run.entry
                self.lines += [f"{name}: {why}, so its tolerance is the noise within one run" for why in run.reasons]
                if run.insensitive:
                    insensitive[key] = run.insensitive
        try:
            added, replaced, dropped = change(self._path, entries, only_new=self._mode == "new", drop=drop)
        except (OSError, ValueError) as error:
            self.warnings.append(
                f"{self.shown} was not written: {one_line(str(error), 300)}. Test results and exit status are unaffected."
            )
            return
        unchanged = len(entries) - len(added) - len(replaced)
        changes = [f"{len(added)} added"] * bool(added) + [f"{len(replaced)} replaced"] * bool(replaced)
        changes += [f"{len(dropped)} removed because no test makes them ({_some(dropped)})"] * bool(dropped)
        changes += [f"{unchanged} unchanged"] * bool(unchanged)
        self.lines.append(f"{self.shown}: {', '.join(changes) or 'no run to write'}")
        if insensitive:
            named = "; ".join(
                f"{one_line(k, 200)}: {', '.join(names)}" for k, names in list(insensitive.items())[:MOST]
            )
            more = f"; and {plural(len(insensitive) - MOST, 'run')} more" if len(insensitive) > MOST else ""
            self.lines.append(
                "seed-to-seed variation is so large that an untrained model would be within tolerance; use more steps or more seeds "
                f"(--ftcheck-seeds=10): {named}{more}"
            )

    def _refusal(self, run: RunOutcome) -> str:
        """Why the run is not written; empty: it is."""
        if run.status == "unrecordable":
            return run.reasons[0]
        if any(run.key in keys for keys in self._unfinished.values()):
            return "a test that uses it did not finish"
        if run.key in self._failed:
            return "a test that uses it failed"
        if run.key in self._conflicting:
            return "different runs have this name; give its fixture parameters of its own"
        return ""

    def _summarize_comparison(self, unused: list[str]) -> None:
        compared = {key: run for key, run in sorted(self._outcomes.items()) if run.status in COMPARED}
        counts = Counter(run.status for run in compared.values())
        outcomes = {status: f"{counts[status]} {text}" for status, text in COMPARED.items() if counts[status]}
        rest = ", ".join(text for status, text in outcomes.items() if status not in NOT_COMPARED)
        if self.not_compared:
            reasons = ", ".join(text for status, text in outcomes.items() if status in NOT_COMPARED)
            total = f"{self.not_compared} of {plural(len(compared), 'run')}"
            self._gap(f"{self.shown}: {total} NOT COMPARED ({reasons}){'; ' if rest else ''}{rest}")
        elif compared:
            self.lines.append(f"{self.shown}, {plural(len(compared), 'run')}: {rest}")
        if worse := _having(compared.values(), "worse"):
            self.lines.append(f"worse: {_some(worse)}")
        keys_of: dict[str, list[str]] = {}
        for key, run in compared.items():
            if run.status in ("in part", "not compared", "error"):
                keys_of.setdefault(run.reasons[0], []).append(key)
        for reason, keys in keys_of.items():
            self._gap(f"{one_line(reason, 400)} ({_some(keys)})")
        if missing := _having(compared.values(), "missing"):
            self._gap(f"not in the baseline file: {_some(missing)}; --ftcheck-baseline-new-only adds what is missing")
        self.lines += [one_line(run.reasons[0], 400) for run in compared.values() if run.status == "outside"]
        for key, run in compared.items():
            self.lines += [f"{one_line(key, 200)}: {note}" for note in run.improvements]
        if unused:
            self.lines.append(
                f"in the baseline file, but made by no test: {_some(unused)}; --ftcheck-baseline-update removes them"
            )


def _having(runs: Iterable[RunOutcome], status: str) -> list[str]:
    return [run.key for run in runs if run.status == status]


def _some(keys: list[str]) -> str:
    shown = ", ".join(one_line(key, 200) for key in keys[:MOST])
    return shown + (f" and {len(keys) - MOST} more" if len(keys) > MOST else "")
