"""The statuses at which an assertion raises: ``fail`` and ``inconclusive``, unless the session sets another level.

One value for the whole process, not one a context: threads and old event loops must behave like the test that they belong to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .verdict import Brief, CheckFailed, Verdict

#: What ``--ftcheck-fail-on`` takes -> the statuses that raise.
LEVELS: dict[str, tuple[str, ...]] = {
    "fail": ("fail",),
    "inconclusive": ("fail", "inconclusive"),
    "advice": ("fail", "inconclusive", "advice"),
}
DEFAULT = "inconclusive"

_level = DEFAULT


def level() -> str:
    """The current level.

    >>> level()
    'inconclusive'
    """
    return _level


def fail_on(wanted: str) -> Callable[[], None]:
    """Set the level; returns a function that restores the previous one. ``ValueError``: no such level.

    >>> from pytest_ftcheck import Verdict
    >>> undo = fail_on("fail")
    >>> raises(Verdict("loss_decreases", "inconclusive", "20 steps are too few."))
    False
    >>> undo()
    """
    if wanted not in LEVELS:
        raise ValueError(f"fail_on={wanted!r}: expected one of {', '.join(LEVELS)}")
    global _level
    before, _level = _level, wanted

    def undo() -> None:
        global _level
        _level = before

    return undo


def raises(verdict: Verdict) -> bool:
    """Whether an assertion with this verdict raises.

    >>> from pytest_ftcheck import Verdict
    >>> [raises(Verdict("loss_decreases", s, "")) for s in ("pass", "skipped", "advice", "inconclusive", "fail")]
    [False, False, False, True, True]
    """
    return verdict.status in LEVELS[_level]


def error(verdict: Verdict, message: str | None = None, about: Brief | None = None) -> CheckFailed:
    """The error of a verdict that raises; ``message`` replaces the verdict's own, and ``about`` is what the brief message is of."""
    from .verdict import CheckFailed  # lazily: every start of pytest pays for imports

    text = str(verdict) if message is None else message
    if verdict.ok:
        text += f"\n  note: {verdict.status} fails because of --ftcheck-fail-on={_level}"
    return CheckFailed(verdict, text, about)
