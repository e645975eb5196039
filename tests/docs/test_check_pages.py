"""Each check's reference page tells the same six things, and says what was measured, as it was measured."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from pytest_ftcheck.checks.catalogue import CHECKS, FAULTS
from pytest_ftcheck.reports import check_docs

DOCS = Path(__file__).parents[2] / "docs"
PAGES = DOCS / "reference" / "checks"


@pytest.fixture(scope="module")
def pages():
    """``docs/build/check_pages.py``, which writes faults and rates into the pages."""
    spec = importlib.util.spec_from_file_location("check_pages", DOCS / "build" / "check_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_page_for_each_check_and_no_other():
    assert {p.stem for p in PAGES.glob("*.md")} == set(CHECKS)


@pytest.mark.parametrize("check", CHECKS)
def test_a_page_has_all_sections_in_order(check):
    titles = re.findall(r"^## (.+)$", re.sub(r"```.*?```", "", check_docs.page(check), flags=re.DOTALL), re.MULTILINE)
    assert [t for t in titles if t != "Faults"] == list(check_docs.SECTIONS)
    for title in check_docs.SECTIONS:
        assert len(re.findall(r"\w+", check_docs.section(check, title))) >= 4, f"{check}: {title} says nothing"


def test_faults_and_rates_are_those_declared_and_measured(pages):
    stale = [path.name for path, text in pages.today().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run python docs/build/check_pages.py --write"


def test_a_page_without_rates_is_refused(pages, tmp_path):
    page = tmp_path / "weights_move.md"
    page.write_text("# weights_move\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no section 'Error rates'"):
        pages.with_rates(page)


def test_every_fault_is_on_a_page():
    text = "".join(p.read_text(encoding="utf-8") for p in PAGES.glob("*.md"))
    assert [fault for fault in FAULTS if f"`{fault}`" not in text] == []
