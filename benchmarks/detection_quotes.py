"""README and comparison quote the tables of ``docs/explanation/detection.md``: ``python benchmarks/detection_quotes.py`` copies them.

``benchmarks/detection.py --write`` calls it; `tests/docs/test_docs.py` fails where a quote is not the page's.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "explanation" / "detection.md"
WORDS = ("no fault", "one fault", "two faults", "three faults", "four faults", "five faults")


def rows() -> dict[str, list[str]]:
    """Tool -> cells of the table of all cases: gated, named, failed, broke, seconds.

    >>> len(rows()["pytest-ftcheck"])
    5
    """
    section = PAGE.read_text(encoding="utf-8").partition("## All cases\n")[2].partition("\n## ")[0]
    lines = [[c.strip() for c in line.strip("| ").split("|")] for line in section.splitlines() if " of " in line]
    return {tool: cells for tool, *cells in lines}


def count(cell: str) -> tuple[int, int]:
    """
    >>> count("1 of 1,168 (0.0% to 0.5%)")
    (1, 1168)
    """
    some, all_ = re.findall(r"[\d,]+", cell)[:2]
    return int(some.replace(",", "")), int(all_.replace(",", ""))


def quoted(cell: str) -> str:
    """The counts of a cell, without their interval."""
    return cell.split(" (")[0]


def readme(text: str) -> str:
    """The README with the table's lines, and the numbers of the sentence before them."""
    table = rows()
    for tool, cells in table.items():
        text = re.sub(
            rf"^(\| {tool}[ 0-9.]* )\| [^|]+\| [^|]+\| [^|]+\|",
            lambda found, cells=cells: found[1] + "".join(f"| {quoted(c)} " for c in cells[:3]) + "|",
            text,
            flags=re.MULTILINE,
        )
    page = PAGE.read_text(encoding="utf-8")
    controls = re.search(r"and (\d+) healthy controls of `tests/faults`", page)
    faults = count(table["pytest-ftcheck"][0])[1]
    return re.sub(
        r"On \d+ faults that a short run can show and \d+ healthy controls",
        f"On {faults} faults that a short run can show and {controls[1] if controls else '?'} healthy controls",
        text,
    )


def comparison(text: str) -> str:
    """The page that compares the tools, with today's shares, seconds and counts."""
    table = rows()
    share = {tool: f"{100 * count(cells[0])[0] / count(cells[0])[1]:.0f} %" for tool, cells in table.items()}
    seconds = {tool: f"{float(cells[-1]):.1f}" for tool, cells in table.items()}
    failed = {tool: quoted(cells[2]) for tool, cells in table.items()}
    caught, faults = count(table["pytest-ftcheck"][0])
    for old, new in (
        (
            r"gates \d+ % of our faults where we gate \d+ %, in [\d.]+ s a case where we take [\d.]+ s "
            r"\(median\), and fails [\d,]+ of [\d,]+",
            f"gates {share['pytest-torch']} of our faults where we gate {share['pytest-ftcheck']}, in {seconds['pytest-torch']} s a case "
            f"where we take {seconds['pytest-ftcheck']} s (median), and fails {failed['pytest-torch']}",
        ),
        (
            r"\d+ % of the faults, [\d,]+ of [\d,]+ healthy",
            f"{share['torchtest2']} of the faults, {failed['torchtest2']} healthy",
        ),
        (r"\[\w+ faults? of \d+ we miss\]", f"[{WORDS[min(faults - caught, 5)]} of {faults} we miss]"),
    ):
        text, found = re.subn(old, new, text)
        if found != 1:
            raise ValueError(f"comparison.md has {found} places like {old}")
    return text


def main() -> None:
    for path, change in ((ROOT / "README.md", readme), (ROOT / "docs" / "explanation" / "comparison.md", comparison)):
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
