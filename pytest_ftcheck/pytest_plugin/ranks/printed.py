"""What a rank prints: the file of one of its streams, read while it grows."""

from __future__ import annotations

from pathlib import Path

#: Bytes of a stream that a report shows, the last ones.
MOST_BYTES = 64 * 1024


class Printed:
    """One stream of one rank. Everything is read once: what was shown at once is not reported again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._begun = False

    def begin(self, offset: int) -> None:
        """What was printed before, while the process started, is not the test's."""
        self._offset, self._begun = offset, True

    def new_lines(self) -> list[str]:
        """Whole lines, once the test has begun."""
        new = self._read() if self._begun else b""
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode(errors="replace").splitlines()

    def new_text(self) -> str:
        """All that is left, of much the end."""
        new = self._read()
        self._offset += len(new)
        left_out = f"... {len(new) - MOST_BYTES:,} bytes before are left out\n" if len(new) > MOST_BYTES else ""
        return left_out + new[-MOST_BYTES:].decode(errors="replace")

    def _read(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                return file.read()
        except FileNotFoundError:  # the session was interrupted
            return b""
