"""Griffe extension: our docstrings as the site shows them. Examples become code blocks, ``#:`` comments the fields' descriptions.

Griffe reads sources and imports nothing. Checks and assertions are wrapped at run time; they alone are inspected.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable
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
        """Checks and assertions, which are wrapped at run time."""
        if pkg.name != "pytest_ftcheck":
            return
        for home in ("checks", "asserts"):
            module = importlib.import_module(f"pytest_ftcheck.{home}")
            for name, member in list(pkg[home].members.items()):
                if name.startswith(("check_", "assert_")) and isinstance(member, griffe.Attribute):
                    pkg[home].set_member(name, _function(name, getattr(module, name), member))


def _function(name: str, found: Callable[..., Any], attribute: griffe.Attribute) -> griffe.Function:
    """What griffe would have read, had it been written down."""
    signature = inspect.signature(found)
    kinds = {k: griffe.ParameterKind(k.description) for k in {p.kind for p in signature.parameters.values()}}
    parameters = griffe.Parameters(
        *(
            griffe.Parameter(
                p.name,
                kind=kinds[p.kind],
                annotation=None
                if p.annotation is p.empty
                else "Trace | Runs"
                if p.name == "trace"
                else str(p.annotation),
                default=None if p.default is p.empty else repr(p.default),
            )
            for p in signature.parameters.values()
        )
    )
    function = griffe.Function(
        name,
        lineno=attribute.lineno,
        endlineno=attribute.endlineno,
        parameters=parameters,
        returns=str(signature.return_annotation),
    )
    function.docstring = griffe.Docstring(linked(fenced(inspect.getdoc(found) or "")), parent=function)
    return function
