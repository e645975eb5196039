"""What a rank prints: the file of one of its streams, read while it grows."""

from __future__ import annotations

from pathlib import Path

#: Bytes of a stream that a report shows, the last ones.
MOST_BYTES = 64 * 1024


class Printed:
    """One stream of one rank."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shown = self._reported = 0

    def begin(self, offset: int) -> None:
        """What was printed before, while the process started, is not the test's."""
        self._shown = self._reported = offset

    def new_lines(self) -> list[str]:
        """Whole lines since the last call."""
        new = self._from(self._shown)
        whole = new[: new.rfind(b"\n") + 1]
        self._shown += len(whole)
        return whole.decode(errors="replace").splitlines()

    def new_text(self) -> str:
        """All since the last call, of much the end."""
        new = self._from(self._reported)
        self._reported += len(new)
        left_out = f"... {len(new) - MOST_BYTES:,} bytes before are left out\n" if len(new) > MOST_BYTES else ""
        return left_out + new[-MOST_BYTES:].decode(errors="replace")

    def _from(self, offset: int) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(offset)
                return file.read()
        except FileNotFoundError:  # the session was interrupted
            return b""
