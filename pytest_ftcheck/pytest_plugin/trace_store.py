"""Packed traces of a session in a temporary file, until the page is written: many tests of many steps would fill the memory."""

from __future__ import annotations

import contextlib
import tempfile
from typing import IO, Any

from .verdict_log import ATTRIBUTE


class TraceStore:
    """Takes the packed traces out of pytest's reports, which stay in memory until the session ends.

    The file has no name and goes away with the process, however it ends. What cannot be written to it (a full disk) stays in the report.

    >>> class Report:
    ...     ftcheck = {"runs": [{"trace": {"digest": "d", "packed": "text"}}]}
    >>> store = TraceStore()
    >>> store.take_from(Report)
    >>> Report.ftcheck["runs"], store.get("d"), store.get("other")
    ([{'trace': {'digest': 'd', 'packed': ''}}], 'text', None)
    >>> store.close()
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        #: Digest -> where it begins, and its length.
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0

    def take_from(self, report: Any) -> None:
        """Move the packed traces of a report, as `PhaseReport.attach_to` left them, to the file."""
        for run in (getattr(report, ATTRIBUTE, None) or {}).get("runs", ()):
            sent = run["trace"]
            if sent is not None and sent["packed"]:
                with contextlib.suppress(OSError):
                    self._put(sent["digest"], sent["packed"])
                    sent["packed"] = ""

    def _put(self, digest: str, text: str) -> None:
        if digest in self._places:
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="ftcheck.")  # noqa: SIM115 - closed by `close`
        data = text.encode("ascii")
        self._file.seek(self._end)  # over what a write that failed left behind
        self._file.write(data)
        self._file.flush()
        self._places[digest] = self._end, len(data)
        self._end += len(data)

    def get(self, digest: str) -> str | None:
        """The packed trace; None: it was never sent."""
        if self._file is None or digest not in self._places:
            return None
        begin, length = self._places[digest]
        self._file.seek(begin)
        return self._file.read(length).decode("ascii")

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
