"""Griffe extension: our docstrings as the site shows them. Examples become code blocks, ``#:`` comments the fields' descriptions.

Griffe reads sources and imports nothing. Checks and assertions, which are registered at run time, are read from the type stub.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

import pytest_ftcheck

_FIELD = r":(?:param|raises|returns?)\b[^:\n]*:"
#: ``:func:`~pytest_ftcheck.check_x``` -> a link of the site.
_ROLE = re.compile(r":\w+:`~?([\w.]+)`")


def fenced(text: str) -> str:
    """Each doctest, up to the next blank line, as a fenced block.

    >>> fenced("Adds.\\n\\n>>> 1 + 1\\n2").splitlines()[2::3]
    ['```pycon', '```']
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
    """Sphinx's roles as links to public names, as code where there is none.

    >>> linked("as :func:`~pytest_ftcheck.check_x`, :meth:`save`")
    'as [`check_x`][pytest_ftcheck.check_x], `save`'
    """

    def link(found: re.Match[str]) -> str:
        path = found[1] if "." in found[1] else f"pytest_ftcheck.{found[1]}"
        name = path.rpartition(".")[2]
        known = found[1].startswith("pytest_ftcheck.") or name in pytest_ftcheck.__all__
        return f"[`{name}`][{path}]" if known else f"`{name}`"

    return _ROLE.sub(link, text)


def fields_last(text: str) -> str:
    """One field a line, one name a field, and all of them at the end: the parser takes what follows a field for a part of it.

    >>> fields_last("Adds.\\n\\n:param a: one.  :param b, c: two.\\n\\n>>> 1").split("\\n")[2:]
    ['>>> 1', '', ':param a: one.', ':param b: two.', ':param c: two.']
    """
    prose, fields = [], []
    for paragraph in re.split(r"\n\s*\n", text):
        before, *found = re.split(rf"(?:^|\s)(?={_FIELD})", paragraph)
        if before.strip() or not found:
            prose.append(before)
        for field in found:
            kind, names, told = re.fullmatch(r":(\w+)(?: ([^:]*))?:\s*(.*)", field, re.DOTALL).groups()  # type: ignore[union-attr]
            told = " ".join(told.split())
            fields += (
                [f":{kind} {name.strip()}: {told}" for name in names.split(",")] if names else [f":{kind}: {told}"]
            )
    return "\n\n".join([*prose, "\n".join(fields)] if fields else prose)


def ours(text: str) -> str:
    """A docstring of ours as griffe and Markdown take it."""
    return linked(fenced(fields_last(text)))


class Docstrings(griffe.Extension):
    """See the module."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Examples and roles."""
        if obj.docstring:
            obj.docstring.value = ours(obj.docstring.value)

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
            attr.docstring = griffe.Docstring(" ".join(told), parent=attr, parser="sphinx")

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Where a class takes its arguments as keywords only, a list of them."""
        made = cls.members.get("__new__")
        if isinstance(made, griffe.Function) and [p.name for p in made.parameters][1:] == ["spec"] and cls.docstring:
            cls.docstring.value = re.sub(r"^:param (\w+): ", r"* `\1`: ", cls.docstring.value, flags=re.MULTILINE)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """``**arguments: Unpack[...]`` as the keyword arguments that it stands for."""
        if pkg.name == "pytest_ftcheck":
            _unpack(pkg["training.finetune.finetune"], pkg["training.finetune_arguments"], "FinetuneArguments")


def _unpack(function: griffe.Function, home: griffe.Module, dictionary: str) -> None:
    """The fields of a TypedDict, and of the one that it extends, in place of the function's ``**arguments``."""
    found: list[griffe.Class] = []
    name = dictionary
    while isinstance(home.members.get(name), griffe.Class):
        found.insert(0, home[name])
        name = str(home[name].bases[0])
    gathered = next(p for p in function.parameters if p.kind is griffe.ParameterKind.var_keyword)
    del function.parameters[gathered.name]
    if function.docstring:
        about_all = rf"^:param {gathered.name}: .*\n"
        function.docstring.value = re.sub(about_all, "", function.docstring.value, flags=re.MULTILINE)
    for field in (f for kind in found for f in kind.members.values() if isinstance(f, griffe.Attribute)):
        function.parameters.add(
            griffe.Parameter(
                field.name, annotation=field.annotation, kind=griffe.ParameterKind.keyword_only, default="..."
            )
        )
