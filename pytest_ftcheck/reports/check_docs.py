"""The checks' reference pages: found beside an installed package as well as in a checkout, and read as text.

They are Markdown files in ``docs/reference/checks``; the wheel has them as ``pytest_ftcheck/pages``. ``ftcheck list``, ``ftcheck explain``
and SARIF's rules read them, so that no text is written twice.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from pathlib import Path

from ..checks.catalogue import CHECKS, SPECS
from ..core.public_names import HOME_OF

_PACKAGE = Path(__file__).parents[1]
#: The sections of every page, in this order; of a check with faults, "Faults" follows the third.
SECTIONS = ("What it measures", "Formula", "Limit, and why", "Error rates", "What it cannot see", "Source")
#: The wheel's folder, and the checkout's.
_FOLDERS = (_PACKAGE / "pages", _PACKAGE.parent / "docs" / "reference" / "checks")
_RATES = [
    (_PACKAGE / "pages" / name, _PACKAGE.parent / "docs" / "explanation" / name)
    for name in ("error-rates.md", "detection.md")
]


@functools.cache
def page(check: str) -> str | None:
    """The page of a check, in Markdown; None: there is none.

    >>> page("weights_move").splitlines()[0]
    '# weights_move'
    """
    if check not in CHECKS:  # a name from a file may be a path
        return None
    for folder in _FOLDERS:
        path = folder / f"{check}.md"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    return None


def section(check: str, title: str) -> str:
    """A section of a check's page, in Markdown, without its title; empty: there is none. Every page has `SECTIONS`.

    >>> section("frozen_stay_frozen", "Limit, and why").split(":")[0]
    'Not one bit'
    """
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page(check) or "", re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def first_paragraph(check: str, title: str) -> str:
    """The first paragraph, or first bullet, of a section as one line; empty where it begins with a table.

    >>> first_paragraph("frozen_stay_frozen", "What it cannot see")
    'A write that was undone before the end.'
    """
    first = re.split(r"\n\s*\n|\n(?=\* )", section(check, title))[0]
    return "" if first.startswith(("|", "```", "#")) else plain(" ".join(first.split()).removeprefix("* "))


def summary(check: str) -> str:
    """What a check judges, in the first line of its docstring.

    >>> summary("all_finite").partition(" are finite")[0]
    'Losses, gradients and weights'
    """
    text = (CHECKS[check].__doc__ or "").strip() if check in CHECKS else docstring(f"assert_{check}")
    return plain(text.splitlines()[0]) if text else check.replace("_", " ")


def introduction(check: str) -> str:
    """The first paragraph of a page about the check itself, as one line.

    >>> introduction("all_finite")[:40]
    'Losses, gradients and weights are finite'
    """
    paragraphs = re.split(r"\n\s*\n", page(check) or "")
    prose = [p for p in paragraphs if not re.match(r"[#|*]|`check_|```", p)]
    return plain(" ".join(prose[0].split())) if prose else ""


def criterion(check: str) -> str:
    """The criterion of a check, from its page: formula and limit, or the faults that it looks for.

    >>> criterion("metric_improves").split(",")[0]
    'Above the baseline'
    """
    parts = [first_paragraph(check, title).rstrip(".") for title in ("Formula", "Limit, and why")]
    if not parts[1] and check in SPECS and (faults := SPECS[check].faults):
        parts.append(f"looks for {', '.join(fault.name for fault in faults)}")
    return "; ".join(part for part in parts if part)


@functools.cache
def false_alarms() -> dict[str, str]:
    """Check -> false alarms on healthy runs with their interval, from ``docs/explanation``: ``error-rates.md`` (many recipes of one model),
    else ``detection.md`` (many models).

    >>> false_alarms()["weights_move"]
    '0 of 315 (0.0% to 1.2%)'
    """
    found: dict[str, str] = {}
    for places in _RATES:
        path = next((p for p in places if p.is_file()), None)
        if path is not None:
            found = _rates(path.read_text(encoding="utf-8")) | found
    return found


def _rates(text: str) -> dict[str, str]:
    """The same from one page."""
    found: dict[str, str] = {}
    header: list[str] = []
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            header = []
        elif "check" in cells and "false alarms" in cells:
            header = cells
        elif header and len(cells) == len(header) and set(cells[0]) != {"-"}:
            row = dict(zip(header, cells, strict=True))
            check = row["check"].strip("`")
            counts = [row.get(c, "0").replace(",", "") for c in ("pass", "inconclusive", "fail", "advice")]
            if check in found or not all(c.isdigit() for c in counts) or not any(map(int, counts)):
                continue
            judged = sum(map(int, counts))
            interval = re.search(r"\(.*\)", row["false alarms"])
            found[check] = f"{counts[2]} of {judged:,}" + (f" {interval[0]}" if interval else "")
    return found


def docstring(name: str) -> str:
    """The docstring of a public function, read from its file, for importing it may import torch. Empty: it has none.

    >>> docstring("assert_init_sane").split(";")[0]
    'Raise `CheckFailed` unless the head starts sanely'
    """
    if name not in HOME_OF:
        return ""
    path = _PACKAGE.joinpath(*HOME_OF[name].split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return inspect.cleandoc(ast.get_docstring(node) or "")
    return ""


def plain(text: str) -> str:
    """Text without Markdown's inline marks; a link to a web page keeps its address.

    >>> plain("`a` is *[here](b.md)*")
    'a is here'
    """
    text = re.sub(r"\[([^\]]+)\]\((https?:[^)\s]+)\)", r"\1 (\2)", text)
    text = re.sub(r"\[([^\]]+)\]\([^)\s]+\)", r"\1", text)
    text = re.sub(r"(?<![\w`*])\*([^*\n`]+)\*(?![\w*])", r"\1", text)
    return text.replace("**", "").replace("`", "")


# ------------------------------------------------------------------ as text
_fill = functools.partial(textwrap.fill, break_on_hyphens=False)


def as_text(markdown: str, width: int = 80) -> str:
    """A page as plain text: paragraphs and bullets wrapped, tables as lists, code indented.

    >>> print(as_text("# a\\n\\n`b` is *here*\\n\\n| x | why |\\n|---|---|\\n| 1 | one |\\n\\n* item"))
    a
    =
    <BLANKLINE>
    b is here
    <BLANKLINE>
    1
        why: one
    <BLANKLINE>
    * item
    """
    blocks: list[str] = []
    lines = markdown.splitlines()
    i = 0
    while i < len(lines):
        line = lines[i]
        if line.startswith("```"):
            end = next((k for k in range(i + 1, len(lines)) if lines[k].startswith("```")), len(lines))
            blocks.append(textwrap.indent("\n".join(lines[i + 1 : end]), "    "))
            i = end + 1
        elif line.startswith("#"):
            level, title = len(line) - len(line.lstrip("#")), plain(line.lstrip("# "))
            blocks.append(f"{title}\n{('=' if level == 1 else '-') * len(title)}")
            i += 1
        elif line.startswith("|"):
            end = next((k for k in range(i, len(lines)) if not lines[k].startswith("|")), len(lines))
            blocks.append(_table(lines[i:end], width))
            i = end
        elif line.strip():
            bullet = line.startswith("* ")
            end = next((k for k in range(i + 1, len(lines)) if _ends(lines[k], bullet)), len(lines))
            text = plain(" ".join(part.strip() for part in lines[i:end]))
            wrapped = _fill(text, width, subsequent_indent="  " if bullet else "")
            if bullet and blocks and blocks[-1].startswith("* "):
                blocks[-1] += "\n" + wrapped
            else:
                blocks.append(wrapped)
            i = end
        else:
            i += 1
    return "\n\n".join(blocks)


def _ends(line: str, bullet: bool) -> bool:
    return not line.strip() or line.startswith(("* ", "```", "#", "|")) or (bullet and not line.startswith("  "))


def _table(lines: list[str], width: int) -> str:
    """Each row as its first cell, and the others below it under their columns' names."""
    rows = [[plain(cell.strip()) for cell in re.split(r"(?<!\\)\|", line.strip()[1:].rstrip("|"))] for line in lines]
    header, body = rows[0], [row for row in rows[1:] if not all(set(cell) <= set("-: ") for cell in row)]
    shown = []
    for row in body:
        parts = [_fill(row[0], width, subsequent_indent="  ")]
        for title, cell in zip(header[1:], row[1:], strict=False):
            if cell:
                text = f"{title}: {cell}" if title else cell
                parts.append(_fill(text, width, initial_indent="    ", subsequent_indent="      "))
        shown.append("\n".join(parts))
    return "\n".join(shown)
