"""What a check's page does not say in its author's words: its faults, as they are declared, and how often it was wrong, as it was measured.

``python docs/build/check_pages.py --write`` after a fault was reworded, or a benchmark has rewritten ``docs/explanation/detection.md``
or ``error-rates.md``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1]
sys.path.insert(0, str(DOCS.parent))

from pytest_ftcheck.checks.catalogue import SPECS  # noqa: E402  (imports nothing heavy)

PAGES = DOCS / "reference" / "checks"


def rows(page: str, column: str) -> dict[str, dict[str, str]]:
    """The rows of the tables of ``docs/explanation/PAGE.md`` that have this column, by check.

    >>> rows("detection", "false alarms")["weights_move"]["fail"]
    '0'
    """
    found: dict[str, dict[str, str]] = {}
    header: list[str] = []
    for line in (DOCS / "explanation" / f"{page}.md").read_text(encoding="utf-8").splitlines():
        cells = [c.strip() for c in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if "check" in cells and column in cells:
            header = cells
        elif not cells:
            header = []
        elif header and cells[0].startswith("`"):
            row = dict(zip(header, cells, strict=True))
            found[row["check"].strip("`")] = row
    return found


def judged(row: dict[str, str]) -> int:
    """Runs that were judged, and not skipped."""
    return sum(int(row.get(c, "0")) for c in ("pass", "advice", "inconclusive", "fail"))


def sentence(check: str) -> str:
    """What was measured of one check, in the paragraph that its page begins "Error rates" with.

    >>> "healthy controls" in sentence("weights_move")
    True
    """
    row = rows("detection", "false alarms").get(check)
    parts = []
    if row is None:
        parts.append("Not measured as yet: the check is newer than the last run of the benchmark.")
    elif not judged(row):
        parts.append("None of the healthy controls was judged by it: it judges only what is named or declared.")
    else:
        interval = re.sub(r"^\S+ ", "", row["false alarms"])
        unsure = f" and was inconclusive on {row['inconclusive']}" if int(row["inconclusive"]) else ""
        parts.append(f"Of {judged(row):,} healthy controls that it judged it failed {row['fail']} {interval}{unsure}.")
    caught = next((v for k, v in (row or {}).items() if k.startswith("faults")), "-")
    if caught != "-":
        hit, total, interval = re.fullmatch(r"(\d+) of (\d+) (\(.*\))", caught).groups()  # type: ignore[union-attr]
        parts.append(
            f"Of {total} faults whose case names it among the checks that should fail it failed {hit} {interval}; most name several,\n"
            "and one is enough."
        )
    more = rows("error-rates", "false alarms").get(check)
    if more:
        parts.append(
            f"Over many recipes of one small model it failed {more['fail']} of {judged(more):,} healthy runs\n"
            "([error rates](../../explanation/error-rates.md))."
        )
    parts.append("[How this was measured](../../explanation/detection.md#by-check).")
    return "\n".join(parts)


def with_rates(page: Path) -> str:
    """The page with that paragraph as it has to be today."""
    text = page.read_text(encoding="utf-8")
    new, count = re.subn(
        r"(?<=^## Error rates\n\n)(?!## ).+?(?=\n\n)",
        lambda _: sentence(page.stem),
        text,
        count=1,
        flags=re.DOTALL | re.MULTILINE,
    )
    if not count:
        raise ValueError(f"{page.name} has no section 'Error rates'")
    return new


def faults(check: str) -> str:
    """The table of the faults that a check can report, the most fundamental first; what a run fills in stands in italics.

    >>> faults("lr_sensible").splitlines()[0]
    '| fault | what is wrong | likely cause | certainty |'
    """

    def cell(text: str) -> str:
        fields = re.sub(r"\{(\w+)[^}]*\}", r"*\1*", text.replace("}{", "} {"))
        escaped = fields.replace("**", "\\*\\*").replace("|", "\\|").replace("][", "]\\[").replace("<", "&lt;")
        return escaped or "see the message"

    declared = sorted(SPECS[check].faults, key=lambda fault: fault.rank)
    rows = [f"| `{f.name}` | {cell(f.title)} | {cell(f.cause)} | {f.confidence} |" for f in declared]
    return "\n".join(["| fault | what is wrong | likely cause | certainty |", "|---|---|---|---|", *rows])


def with_faults(text: str, check: str) -> str:
    """A page with the table of faults as it has to be today, before its error rates; a check without faults has none."""
    text = re.sub(r"^## Faults\n.*?(?=^## )", "", text, flags=re.DOTALL | re.MULTILINE)
    if not SPECS[check].faults:
        return text
    return text.replace("## Error rates\n", f"## Faults\n\n{faults(check)}\n\n## Error rates\n", 1)


def with_distributions(page: Path) -> str:
    """``how-we-judge.md`` with the tables of statistics beside their limits, as ``error-rates.md`` has them today."""
    found = re.search(
        r"^## Statistics against their limits\n\n(.*)",
        (page.parent / "error-rates.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    if not found:
        raise ValueError("error-rates.md has no section 'Statistics against their limits'")
    text = page.read_text(encoding="utf-8")
    return re.sub(
        r"(?<=<!-- distributions -->\n\n).*?(?=\n\n<!-- /distributions -->)",
        lambda _: found[1].strip(),
        text,
        flags=re.DOTALL,
    )


def today() -> dict[Path, str]:
    """Every page that quotes what was measured, as it has to be."""
    judge = DOCS / "explanation" / "how-we-judge.md"
    return {
        **{page: with_faults(with_rates(page), page.stem) for page in sorted(PAGES.glob("*.md"))},
        judge: with_distributions(judge),
    }


if __name__ == "__main__":
    stale = {page: text for page, text in today().items() if page.read_text(encoding="utf-8") != text}
    for page, text in stale.items():
        if "--write" in sys.argv:
            page.write_text(text, encoding="utf-8")
        print(page.relative_to(DOCS.parent))
    sys.exit(0 if "--write" in sys.argv or not stale else 1)
