"""One self-contained page: every fine-tune of a session with its verdicts, its causes and its charts."""

from __future__ import annotations

#: Packages that the page needs: module -> package.
NEEDED = {"jinja2": "jinja2", "vl_convert": "vl-convert-python"}


def missing() -> list[str]:
    """The packages of the extra ``html`` that are not installed.

    >>> missing()
    []
    """
    from importlib.util import find_spec

    return [package for module, package in NEEDED.items() if find_spec(module) is None]
