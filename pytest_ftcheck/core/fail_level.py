"""What an assertion raises: what failed and what could not be decided, unless the session says otherwise.

One value for the whole process, not for a context: threads and old event loops must not gate otherwise than the test they belong to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .verdict import CheckFailed, Verdict

#: What ``--ftcheck-fail-on`` takes -> the statuses that raise.
LEVELS: dict[str, tuple[str, ...]] = {
    "fail": ("fail",),
    "inconclusive": ("fail", "inconclusive"),
    "advice": ("fail", "inconclusive", "advice"),
}
DEFAULT = "inconclusive"

_level = DEFAULT


def level() -> str:
    """The level in force.

    >>> level()
    'inconclusive'
    """
    return _level


def fail_on(wanted: str) -> Callable[[], None]:
    """Set the level; gives the function that puts the one before back. ``ValueError``: no such level.

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
    """Whether an assertion that comes to this verdict raises.

    >>> from pytest_ftcheck import Verdict
    >>> [raises(Verdict("loss_decreases", s, "")) for s in ("pass", "skipped", "advice", "inconclusive", "fail")]
    [False, False, False, True, True]
    """
    return verdict.status in LEVELS[_level]


def error(verdict: Verdict, message: str | None = None) -> CheckFailed:
    """The error of a verdict that raises; ``message``: in place of the verdict's own."""
    from .verdict import CheckFailed  # pytest's start pays for every import

    text = str(verdict) if message is None else message
    if verdict.ok:
        text += f"\n  note: {verdict.status} fails because of --ftcheck-fail-on={_level}"
    return CheckFailed(verdict, text)
