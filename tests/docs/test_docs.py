"""The documentation keeps its promises: links lead somewhere, public names are in it, and its settings are those of the code.

Its Python blocks are collected and run by sybil (see the root conftest.py).
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import pytest_ftcheck
from pytest_ftcheck.pytest_plugin import options

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("tests/*.md")]
)


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get on the usual sites."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(found), f"{page.name} links to {target}: no such heading"


def test_every_public_name_is_in_the_reference() -> None:
    """The functions of a check are shown on its own page, whose index is made from the registered checks; all others stand in a table."""
    reference = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs/reference").glob("*.md"))
    pages = {p.stem for p in (ROOT / "docs/reference/checks").glob("*.md")}
    of_checks = {f"{kind}_{name}" for kind in ("check", "assert") for name in pages}
    names = [n for n in pytest_ftcheck.__all__ if not n.startswith("__") and n not in of_checks]
    assert not [n for n in names if f"`{n}`" not in reference]
    assert "<!-- index of checks -->" in reference


def test_every_option_is_in_the_reference() -> None:
    page = (ROOT / "docs/reference/options.md").read_text(encoding="utf-8")
    assert not [s.field for s in options.SETTINGS if f"| `{s.field}` |" not in page]
    others = [n.removeprefix("ftcheck_") for n in (options.FAIL_ON, options.NO_GITHUB, options.NO_PROPERTIES)]
    assert not [name for name in (*options.REPORTS, *others) if f"`{name}`" not in page]


def test_no_page_names_a_path_of_somebodys_machine() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(home|root|work|Users|tmp)/", page.read_text(encoding="utf-8")), page


def test_numbers_are_those_of_the_measured_pages() -> None:
    """README and comparison quote the tables; whoever measures anew has to say it there, too."""
    detection = (ROOT / "docs/explanation/detection.md").read_text(encoding="utf-8").split("## By check")[0]
    overhead = (ROOT / "docs/explanation/overhead.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    comparison = (ROOT / "docs/explanation/comparison.md").read_text(encoding="utf-8")
    everything = detection.split("## All cases")[1].split("## The held-out third")[0]
    rows = [
        [c.strip() for c in line.strip("| ").split("|")]
        for line in everything.splitlines()
        if " of " in line and line.startswith("|")
    ]
    assert len(rows) == 5
    for tool, gated, named, failed, *_ in rows:
        shown = [re.match(r"\d+ of \d+", cell) for cell in (gated, named, failed)]
        quoted = " | ".join(m[0] for m in shown if m)
        assert re.search(rf"^\| {tool}[ 0-9.]* \| {quoted} \|", readme, re.MULTILINE), f"README: {tool} | {quoted}"
    seconds = {row[0]: row[-1] for row in rows}
    counts = {row[0]: [int(n) for n in re.findall(r"\d+", row[1])[:2]] for row in rows}
    share = {tool: f"{100 * caught / faults:.0f} %" for tool, (caught, faults) in counts.items()}
    for told in (
        f"gates {share['pytest-torch']} of our faults where we gate {share['pytest-ftcheck']}",
        f"in {float(seconds['pytest-torch']):.1f} s a case where we take {float(seconds['pytest-ftcheck']):.1f} s",
        f"{share['torchtest2']} of the faults",
    ):
        assert told in " ".join(comparison.split()), told
    steps = re.findall(r"^\| under .*?\| \*{0,2}(\+[\d.]+ %)", overhead, re.MULTILINE)
    assert len(steps) == 3
    for step in steps:
        whole = f"+{float(step[1:-2]):.0f} %"
        assert whole in readme, step
        assert whole in comparison, step


def test_the_picture_of_the_rooms_is_that_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "build" / "architecture.py")
    architecture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(architecture)
    stale = [path.name for path, text in architecture.today().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run python docs/build/architecture.py --write"
