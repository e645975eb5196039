"""The one opener of files that a user names: regular files of bounded size, read and written so that nothing waits for ever.

A named pipe has no end before somebody closes it, and a device may have none at all. So what is no regular file is refused before it is
opened, and opening does not block.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TypeVar

from . import arguments
from .formatting import as_given

T = TypeVar("T")

#: Bytes of a file that is read. The trace of a run of 600 steps has 4 MB, a page of 50 fine-tunes 10 MB.
LARGEST = 256 * 1024**2
#: Bytes of a file's name, where the system does not say.
_NAME = 255
#: Bytes of the names of temporary files.
_TEMPORARY = 22
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class NotRegular(ValueError):
    """The path is that of a folder, a named pipe, a device or a socket."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"expected a regular file, found {kind}")
        self.kind = kind


def read_text(path: str | os.PathLike[str], largest: int = LARGEST) -> str:
    """The text of a regular file in UTF-8.

    :param largest: bytes that it may have.
    :raises ValueError: it is no regular file (`NotRegular`), is larger, or is no text.  :raises OSError: it cannot be read.

    >>> read_text(os.curdir)
    Traceback (most recent call last):
    pytest_ftcheck.core.files.NotRegular: expected a regular file, found a folder
    """
    _require_regular(os.stat(path))  # noqa: PTH116 - a device may act when it is opened
    with _opened(path, os.O_RDONLY) as descriptor:
        chunks, left = [], largest + 1
        while left > 0 and (chunk := os.read(descriptor, min(left, 2**20))):
            chunks.append(chunk)
            left -= len(chunk)
    if left <= 0:
        raise ValueError(f"expected at most {largest:,} bytes, found more")
    return b"".join(chunks).decode("utf-8")


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, so that a reader sees the old file or the new one, never a part. Missing folders are made.

    A link stays a link.

    :raises NotRegular: there is something that is no regular file.
    :raises OSError: the error of the system. The old file is then unchanged, and no temporary file is left.
    """
    target, old = _resolved(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".ftcheck.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        if old is not None:
            temporary.chmod(stat.S_IMODE(old.st_mode))
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_text(path: str | os.PathLike[str], text: str) -> None:
    """`write_atomically`, with errors that name the argument ``path``.

    :raises TypeError, ValueError: no path, or none of a regular file.  :raises OSError: the error of the system.
    """
    named = arguments.path("path", path)
    try:
        write_atomically(named, text)
    except ValueError as error:
        raise ValueError(f"path={as_given(named)}: {error}") from None


def load_text(path: str | os.PathLike[str], parsed: Callable[[str], T]) -> T:
    """What is made of the text of a file, with errors that name the argument ``path``.

    :raises TypeError, ValueError: no path, none of a regular file, or a text that is refused.  :raises OSError: the error of the system.
    """
    named = arguments.path("path", path)
    try:
        return parsed(read_text(named))
    except ValueError as error:
        raise ValueError(f"path={as_given(named)}: {error}") from None


def append(path: str | os.PathLike[str], text: str) -> None:
    """Add ``text`` as UTF-8 to the end of a file, or make it; what is only written in part is taken back.

    :raises NotRegular: it is no regular file.  :raises OSError: the error of the system.
    """
    _resolved(path)
    rest = memoryview(text.encode("utf-8", "backslashreplace"))
    with _opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as descriptor:
        before = os.fstat(descriptor).st_size
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except BaseException:
            os.ftruncate(descriptor, before)
            raise


def not_writable(path: str | os.PathLike[str]) -> str:
    """Why `write_atomically` could not write this file now; empty: nothing is known to prevent it.

    >>> not_writable(os.curdir)
    'it is a folder'
    """
    if reason := irregular(path):
        return reason
    target = Path(path).resolve()
    folder, missing = target.parent, [target.name]
    while not folder.exists():
        missing.append(folder.name)
        folder = folder.parent
    if not folder.is_dir():
        return f"{folder} is no folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"the folder {folder} may not be written to"
    most = os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else _NAME
    if (longest := max(len(os.fsencode(name)) for name in missing)) > most:
        return f"a name of {longest:,} bytes is longer than {most:,}"
    whole, room = len(os.fsencode(target.parent)) + 1 + _TEMPORARY, _path_room(folder)
    return f"a path of {whole:,} bytes is longer than {room:,}" if room and whole > room else ""


def irregular(path: str | os.PathLike[str]) -> str:
    """Why there is no regular file at this path, and can be none; empty: there is one, or nothing."""
    try:
        _resolved(path)
    except OSError as error:
        return error.strerror or str(error)
    except NotRegular as error:
        return f"it is {error.kind}"
    except ValueError as error:  # a NUL in the name
        return str(error)
    return ""


def _path_room(folder: Path) -> int:
    """Bytes that a path may have; 0: not known."""
    return os.pathconf(folder, "PC_PATH_MAX") - 1 if hasattr(os, "pathconf") else 0


def _resolved(path: str | os.PathLike[str]) -> tuple[Path, os.stat_result | None]:
    """The path behind all links, and what is there; None: nothing is.

    :raises NotRegular: it is no regular file.  :raises OSError: the system's, links in a circle among them.
    """
    try:
        found = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return Path(path).resolve(), None
    _require_regular(found)
    return Path(path).resolve(), found


@contextmanager
def _opened(path: str | os.PathLike[str], flags: int) -> Iterator[int]:
    """The descriptor of a regular file; ``O_NONBLOCK``, for it may have been replaced by a pipe since it was looked at."""
    more = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    mode = "a" if flags & os.O_APPEND else "r"
    # an object, which an interrupt frees, and which is closed then
    with FileIO(path, mode, opener=lambda name, _: os.open(name, flags | more, 0o666)) as file:
        _require_regular(os.fstat(file.fileno()))
        yield file.fileno()


def _require_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "something else")
        raise NotRegular(kind)
