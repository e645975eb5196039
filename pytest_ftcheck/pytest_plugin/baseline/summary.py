"""In the process that reports: what all tests said of their runs, the change of the file, and the lines at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...core.formatting import one_line, plural
from ...core.serialization import decode
from .entry import Entry
from .file import Baseline, change
from .recorder import Mode
from .run_names import MODELS, file_of

#: Names told in one line.
MOST = 5
_TOLD = {
    "same": "the same bit for bit",
    "within": "within chance",
    "apart": "beyond the noise of the one run in it",
    "worse": "worse",
    "inconclusive": "with nothing to compare",
    "not compared": "not compared",
    "missing": "not in it",
    "broken": "that could not be looked at",
}


_RANK = {status: i for i, status in enumerate(_TOLD)}


class Ledger:
    """Gathers what reports carry.

    :param root: pytest's root directory, which keys are relative to.
    :param shown: the file's name, for messages.
    """

    def __init__(self, path: Path, shown: str, baseline: Baseline | None, mode: Mode, root: Path) -> None:
        self._path, self.shown, self._baseline, self._mode, self._root = path, shown, baseline, mode, root
        self._found: dict[str, Mapping[str, Any]] = {}
        self._conflicting: set[str] = set()
        self._failed: set[str] = set()
        #: Test that was set up, and of whose end nothing came in as yet -> its runs.
        self._begun: dict[str, set[str]] = {}
        #: Files of the tests that were run; those with a test that failed or was skipped.
        self._files: set[str] = set()
        self._incomplete: set[str] = set()
        #: Why not all tests of the files were there to run; empty: they were.
        self.partial = ""
        #: Written at the end of the session.
        self.lines: list[str] = []
        #: Those that even a quiet session tells: something was to be compared, and was not.
        self.gaps: list[str] = []
        self.warnings: list[str] = []

    def add(self, nodeid: str, when: str, outcome: str, records: Iterable[Mapping[str, Any]]) -> None:
        """One phase of one test."""
        self._files.add(file_of(nodeid))
        if when == "setup" and outcome == "passed":
            records = list(records)
            self._begun[nodeid] = {record["key"] for record in records if "key" in record}
        elif when == "call":
            self._begun.pop(nodeid, None)
        if outcome != "passed":
            self._incomplete.add(file_of(nodeid))
        for record in records:
            keys = record.get("uses") or [record["key"]]
            if outcome == "failed":
                self._failed.update(keys)
            if "key" in record:
                self._add(record["key"], record)

    def _add(self, key: str, record: Mapping[str, Any]) -> None:
        before = self._found.get(key)
        # the workers of xdist may each have made the same run of a fixture: the worst is told, the first is kept
        if before is not None and "entry" in before and "entry" in record:
            if before["entry"]["fingerprint"] != record["entry"]["fingerprint"]:
                self._conflicting.add(key)
            return
        if before is None or _RANK.get(before["status"], -1) < _RANK.get(record["status"], -1):
            self._found[key] = record

    # ------------------------------------------------------------------ the end
    def close(self, *, everything: bool) -> None:
        """Change the file, if that is wanted, and say what is to be said.

        :param everything: the session ran all tests there are, so that fixtures of a conftest that made no run are known to make none.
        """
        unused = self._unused(everything)
        if self._mode != "compare":
            self._write(unused if self._mode == "update" else [])
        elif self._baseline is None:
            runs = plural(len(self._found), "run")
            self._gap(
                f"{self.shown} is not there yet, so nothing was compared ({runs}); --ftcheck-baseline-update writes it"
            )
        if self._mode != "update" and (self._baseline is not None):
            self._compared(unused)

    def _gap(self, line: str) -> None:
        self.lines.append(line)
        self.gaps.append(line)

    def _unused(self, everything: bool) -> list[str]:
        """Keys in the file that no run of this session has, though all tests of their file were run and passed."""
        if self._baseline is None or self.partial:
            return []
        return sorted(key for key in self._baseline.runs.keys() - self._found.keys() if self._over(key, everything))

    def _over(self, key: str, everything: bool) -> bool:
        file = file_of(key)
        if key.startswith(MODELS):  # made only where --ftcheck-model names it
            return False
        if file in self._files:
            return file not in self._incomplete
        if file.endswith(".py"):
            return not (self._root / file).exists()
        return everything and not self._incomplete  # a fixture of a conftest

    def _write(self, drop: list[str]) -> None:
        entries, blind = {}, {}
        for key, record in sorted(self._found.items()):
            name = one_line(key, 200)
            if record["status"] == "broken":
                self.warnings.append(f"{name} could not be looked at: {record['why'][0]}")
            elif record["status"] in ("recorded", "unrecordable") and (why := self._refused(key, record)):
                self.warnings.append(f"{name} was not written: {why}")
            elif record["status"] == "recorded":
                entry = decode(Entry, dict(record["entry"]), key)
                assert isinstance(entry, Entry)
                entries[key] = entry
                self.lines += [f"{name}: {why}, so its tolerance is the noise within one run" for why in record["why"]]
                if record["blind"]:
                    blind[key] = record["blind"]
        try:
            added, replaced, dropped = change(self._path, entries, only_new=self._mode == "new", drop=drop)
        except (OSError, ValueError) as error:
            self.warnings.append(
                f"{self.shown} was not written: {one_line(str(error), 300)}. The verdicts and the exit status stand."
            )
            return
        left = len(entries) - len(added) - len(replaced)
        told = [f"{len(added)} added"] * bool(added) + [f"{len(replaced)} replaced"] * bool(replaced)
        told += [f"{len(dropped)} removed, for no test makes them any more ({_some(dropped)})"] * bool(dropped)
        told += [f"{left} as before"] * bool(left)
        self.lines.append(f"{self.shown}: {', '.join(told) or 'no run to write'}")
        if blind:
            scattered = "; ".join(
                f"{one_line(key, 200)}: {', '.join(names)}" for key, names in list(blind.items())[:MOST]
            )
            more = f"; and {plural(len(blind) - MOST, 'run')} more" if len(blind) > MOST else ""
            self.lines.append(
                "scatters so much from seed to seed that a run which learns nothing would be within chance, so more steps, or more "
                f"seeds (--ftcheck-seeds=10), are wanted: {scattered}{more}"
            )

    def _refused(self, key: str, record: Mapping[str, Any]) -> str:
        """Why the run is no entry; empty: it is one."""
        if record["status"] == "unrecordable":
            return str(record["why"][0])
        if any(key in keys for keys in self._begun.values()):
            return "a test that uses it did not come to its end"
        if key in self._failed:
            return "a test that uses it failed, so this is no run to hold on to"
        if key in self._conflicting:
            return "its name stands for different runs; give its fixture parameters of its own"
        return ""

    def _compared(self, unused: list[str]) -> None:
        found = {key: r for key, r in self._found.items() if r["status"] in _TOLD}
        counts = Counter(r["status"] for r in found.values())
        told = ", ".join(f"{counts[status]} {text}" for status, text in _TOLD.items() if counts[status])
        if found:
            self.lines.append(f"{self.shown}, {plural(len(found), 'run')}: {told}")
        if worse := sorted(key for key, r in found.items() if r["status"] == "worse"):
            self.lines.append(f"worse: {_some(worse)}")
        reasons: dict[str, list[str]] = {}
        for key, record in sorted(found.items()):
            if record["status"] in ("not compared", "broken"):
                reasons.setdefault(record["why"][0], []).append(key)
        for why, keys in reasons.items():
            self._gap(f"{one_line(why, 400)} ({_some(keys)})")
        if missing := sorted(key for key, r in found.items() if r["status"] == "missing"):
            self._gap(f"not in it: {_some(missing)}; --ftcheck-baseline-new-only adds what is missing")
        self.lines += [one_line(r["why"][0], 400) for _, r in sorted(found.items()) if r["status"] == "apart"]
        for key, record in sorted(found.items()):
            self.lines += [f"{one_line(key, 200)}: {note}" for note in record.get("better", ())]
        if unused:
            self.lines.append(
                f"in it, but made by no test any more: {_some(unused)}; --ftcheck-baseline-update removes them"
            )


def _some(keys: list[str]) -> str:
    shown = ", ".join(one_line(key, 200) for key in keys[:MOST])
    return shown + (f" and {len(keys) - MOST} more" if len(keys) > MOST else "")
