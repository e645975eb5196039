"""Where in the user's code an assertion was called: the line that a reviewer is shown."""

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
def _foreign() -> tuple[str, ...]:
    """Folders whose code is nobody's test: the standard library and what is installed."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    return (_PACKAGE, *sorted({sysconfig.get_path(kind) + os.sep for kind in kinds}))


def called_from(test: str | None, root: str) -> tuple[str, int] | None:
    """File (relative to ``root``, with ``/``) and line (from 1) from which the assertion was called that is running now.

    The innermost line of the file ``test``; where that file is not among the callers (a fixture, a helper run by another process),
    the innermost line that is neither ours nor a library's. None: there is none.
    """
    fallback: tuple[str, int] | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file == _MODEL_ITEMS:
            break
        hidden = "__tracebackhide__" in frame.f_code.co_varnames  # a helper that pytest's tracebacks leave out, too
        if file == test and not hidden:
            return _relative(file, root), frame.f_lineno
        if fallback is None and not hidden and os.path.isabs(file) and not file.startswith(_foreign()):  # noqa: PTH117
            fallback = file, frame.f_lineno
        frame = frame.f_back
    return (_relative(fallback[0], root), fallback[1]) if fallback else None


def _relative(file: str, root: str) -> str:
    try:
        return os.path.relpath(file, root).replace(os.sep, "/")
    except ValueError:  # another drive
        return file.replace(os.sep, "/")
