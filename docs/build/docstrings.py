"""Griffe extension: our docstrings as the site shows them. Examples become code blocks, ``#:`` comments the fields' descriptions.

Griffe reads sources and imports nothing. The assertions are made at run time from their checks; they alone are inspected.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

#: ``:func:`~pytest_ftcheck.check_x``` -> a link of the site.
_ROLE = re.compile(r":\w+:`~?([\w.]+)`")


def fenced(text: str) -> str:
    """Each doctest, up to the next blank line, as a fenced block.

    >>> print(fenced("Adds.\\n\\n>>> 1 + 1\\n2"))
    Adds.
    <BLANKLINE>
    ```pycon
    >>> 1 + 1
    2
    ```
    """
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if not inside and line.startswith(">>>"):
            if lines and lines[-1].strip():
                lines.append("")
            lines.append("```pycon")
            inside = True
        elif inside and not line.strip():
            lines.append("```")
            inside = False
        lines.append(line)
    return "\n".join([*lines, "```"] if inside else lines)


def linked(text: str) -> str:
    """Sphinx's roles as links.

    >>> linked("as :func:`~pytest_ftcheck.check_x`")
    'as [`check_x`][pytest_ftcheck.check_x]'
    """
    return _ROLE.sub(lambda m: f"[`{m[1].rpartition('.')[2]}`][{m[1]}]", text)


class Docstrings(griffe.Extension):
    """See the module."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Examples and roles."""
        if obj.docstring:
            obj.docstring.value = linked(fenced(obj.docstring.value))

    def on_attribute_instance(self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_: Any) -> None:
        """``#:`` comments right above an attribute."""
        if attr.docstring or not isinstance(node, ast.AST) or not attr.lineno:
            return
        lines = attr.lines_collection[attr.filepath]
        told: list[str] = []
        for line in reversed(lines[: attr.lineno - 1]):
            if not line.strip().startswith("#:"):
                break
            told.insert(0, line.strip().removeprefix("#:").strip())
        if told:
            attr.docstring = griffe.Docstring(" ".join(told), parent=attr)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """The assertions, which exist at run time only."""
        if pkg.name != "pytest_ftcheck":
            return
        asserts = pkg["asserts"]
        seen = griffe.inspect("asserts", filepath=asserts.filepath, parent=pkg)
        for name, member in seen.members.items():
            if name.startswith("assert_") and not asserts[name].docstring and member.docstring:
                member.docstring.value = linked(fenced(member.docstring.value))
                asserts.set_member(name, member)
