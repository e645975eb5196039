"""The file and line of the user's code that called an assertion."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from types import FrameType

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep  # noqa: PTH100, PTH120 - compared with co_filename
#: Test items of ``--ftcheck-model`` are in no file: their callers are pytest, and whatever started it.
_MODEL_ITEMS = os.path.join(_PACKAGE, "pytest_plugin", "model_items.py")  # noqa: PTH118


@functools.cache
def library_folders() -> tuple[str, ...]:
    """Folders of code that is no test: this package, the standard library and installed packages."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    return (_PACKAGE, *sorted({sysconfig.get_path(kind) + os.sep for kind in kinds}))


def called_from(test: str | None, root: str) -> tuple[str, int] | None:
    """File (relative to ``root``, with ``/``) and line (from 1) that called the running assertion.

    It is the innermost line of the file ``test``. Where that file is not among the callers (a fixture, a helper in another process), it is
    the innermost line outside this package and libraries. None: there is none.
    """
    fallback: tuple[str, int] | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file == _MODEL_ITEMS:
            break
        hidden = "__tracebackhide__" in frame.f_code.co_varnames  # a helper that pytest's tracebacks hide, too
        if file == test and not hidden:
            return _relative(file, root), frame.f_lineno
        if fallback is None and not hidden and os.path.isabs(file) and not file.startswith(library_folders()):  # noqa: PTH117
            fallback = file, frame.f_lineno
        frame = frame.f_back
    return (_relative(fallback[0], root), fallback[1]) if fallback else None


def _relative(file: str, root: str) -> str:
    try:
        return os.path.relpath(file, root).replace(os.sep, "/")
    except ValueError:  # another drive
        return file.replace(os.sep, "/")
