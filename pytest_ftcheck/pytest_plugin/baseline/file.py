"""The baseline file: read strictly, written one number a line for readable diffs, changed under a lock."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.files import read_text, write_atomically
from ...core.formatting import one_line
from ...core.serialization import decode, encode
from .entry import Entry

#: Version of the layout and of what the numbers mean.
SCHEMA = 1
#: Distinguishes the file from our other ones.
KIND = "ftcheck-baseline"
#: Seconds to wait for another process that is writing the same file.
PATIENCE = 60.0


@dataclass(frozen=True)
class Baseline:
    """All runs of a baseline.

    >>> Baseline.from_json(Baseline().to_json()) == Baseline()
    True
    """

    #: Name of the run (a test, a fixture) -> its entry.
    runs: dict[str, Entry] = field(default_factory=dict)
    kind: str = KIND
    schema: int = SCHEMA

    @property
    def comparisons(self) -> int:
        """How many numbers the whole file compares."""
        return sum(entry.comparisons for entry in self.runs.values())

    def to_json(self) -> str:
        """Sorted, one number a line, so that a change is a line in the diff."""
        lines = ["{", f' "kind": {json.dumps(self.kind)},', f' "schema": {self.schema},', ' "runs": {']
        for i, (key, entry) in enumerate(sorted(self.runs.items())):
            lines += _entry_lines(key, encode(entry), last=i == len(self.runs) - 1)
        return "\n".join([*lines, " }", "}"]) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Baseline:
        """The inverse of `to_json`. ``ValueError`` says what does not fit, and where."""
        try:
            raw = json.loads(text, object_pairs_hook=_without_duplicates)
        except (json.JSONDecodeError, RecursionError, _DuplicateName) as error:
            if "<<<<<<<" in text and ">>>>>>>" in text:
                raise ValueError(
                    "it has unresolved merge conflicts: take either side, then run --ftcheck-baseline-update"
                ) from None
            raise ValueError(f"it is not valid JSON ({error})") from None
        if not isinstance(raw, dict) or raw.get("kind") != KIND or "schema" not in raw:
            raise ValueError(f"it is not a baseline file: it has no field 'kind' with the value {KIND!r}")
        schema = raw["schema"]
        if schema != SCHEMA:
            newer = isinstance(schema, int) and schema > SCHEMA
            raise ValueError(
                f"it has schema {schema!r}, this version of pytest-ftcheck reads {SCHEMA}: "
                + ("upgrade pytest-ftcheck" if newer else "delete the file and write it again")
            )
        found = decode(cls, raw, "baseline")
        assert isinstance(found, cls)
        for key, entry in found.runs.items():
            _check(key, entry)
        return found

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Baseline | None:
        """The file's baseline; None: there is no such file. ``ValueError`` says why it cannot be used."""
        try:
            return cls.from_json(read_text(path))
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise ValueError(f"it is not a text file ({error})") from None
        except OSError as error:
            raise ValueError(f"it cannot be read ({error.strerror or error})") from None


class _DuplicateName(ValueError):
    """A name occurs twice in one JSON object."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise _DuplicateName(f"{one_line(duplicate, 80)!r} occurs twice")
    return found


def _check(key: str, entry: Entry) -> None:
    where = f"runs.{one_line(key, 120)}"
    if entry.seeds < 1:
        raise ValueError(f"{where}.seeds is {entry.seeds}: expected 1 or more")
    for name, measure in entry.measures.items():
        invalid = not _finite(measure.mean, measure.sd) or measure.sd < 0
        if invalid or (measure.df is not None and not (_finite(measure.df) and measure.df > 0)):
            raise ValueError(f"{where}.measures.{one_line(name, 60)}: expected finite numbers, sd >= 0 and df > 0")
    if not _finite(*entry.facts.values()):
        raise ValueError(f"{where}.facts: expected finite numbers")


def _finite(*values: float) -> bool:
    return all(abs(v) < float("inf") for v in values)


def _entry_lines(key: str, entry: Mapping[str, Any], *, last: bool) -> Iterator[str]:
    """One run: a line for each part of the fingerprint, and for each number."""

    def flat(value: Any) -> str:
        return json.dumps({k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value)

    yield f"  {json.dumps(key)}: {{"
    yield f'   "seeds": {entry["seeds"]},'
    yield f'   "digest": {json.dumps(entry["digest"])},'
    yield f'   "facts": {json.dumps(dict(sorted(entry["facts"].items())))},'
    for name in ("fingerprint", "measures"):
        yield f'   "{name}": {{'
        rows = sorted(entry[name].items())
        for i, (label, value) in enumerate(rows):
            yield f"    {json.dumps(label)}: {flat(value)}{',' if i < len(rows) - 1 else ''}"
        yield "   }" + ("," if name == "fingerprint" else "")
    yield "  }" + ("" if last else ",")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """No other process changes the file inside the block. ``OSError``: the lock could not be acquired.

    The lock is in the system's folder for temporary files, so that none is left beside the committed file.
    """
    from filelock import FileLock, Timeout

    who = os.getuid() if hasattr(os, "getuid") else "me"
    name = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir()) / f"pytest-ftcheck-{who}-{name}.lock")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise OSError(f"another process has held its lock for {PATIENCE:g} s (lock {lock.lock_file})") from None
    try:
        yield
    finally:
        lock.release()


def change(
    path: Path, entries: Mapping[str, Entry], *, only_new: bool = False, drop: Iterable[str] = ()
) -> tuple[list[str], list[str], list[str]]:
    """Put entries into the file, under the lock: entries that other processes wrote are kept.

    The entry of an unchanged run stays as it is, so that writing it again makes no diff.

    :returns: keys added, replaced, dropped.
    :raises OSError, ValueError: the file cannot be read or written; it is then unchanged.
    """
    with locked(path):
        old = Baseline.load(path)
        runs = dict(old.runs) if old is not None else {}
        dropped = sorted(runs.keys() & set(drop) - entries.keys())
        for key in dropped:
            del runs[key]
        added = sorted(entries.keys() - runs.keys())
        replaced = sorted(k for k in entries.keys() & runs.keys() if not only_new and not same(runs[k], entries[k]))
        runs |= {key: entries[key] for key in (*added, *replaced)}
        if added or replaced or dropped:
            write_atomically(path, Baseline(runs).to_json())
    return added, replaced, dropped


def same(a: Entry, b: Entry) -> bool:
    """Whether two entries are equal, seconds excluded."""
    return _without_seconds(a) == _without_seconds(b)


def _without_seconds(entry: Entry) -> tuple[Any, ...]:
    from .measures import SECONDS

    numbers = {name: measure for name, measure in entry.measures.items() if name != SECONDS}
    return entry.fingerprint, entry.digest, entry.seeds, numbers, entry.facts
