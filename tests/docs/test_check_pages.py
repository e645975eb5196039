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
def rates():
    """``docs/build/rates.py``, which writes the rates into the pages."""
    spec = importlib.util.spec_from_file_location("rates", DOCS / "build" / "rates.py")
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


@pytest.mark.parametrize("check", CHECKS)
def test_rates_are_those_measured(check, rates):
    path = PAGES / f"{check}.md"
    assert path.read_text(encoding="utf-8") == rates.with_rates(path), "run python docs/build/rates.py --write"


def test_distributions_are_those_measured(rates):
    page = DOCS / "explanation" / "how-we-judge.md"
    assert page.read_text(encoding="utf-8") == rates.with_distributions(page), "run python docs/build/rates.py --write"


def test_a_page_without_rates_is_refused(rates, tmp_path):
    page = tmp_path / "weights_move.md"
    page.write_text("# weights_move\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no section 'Error rates'"):
        rates.with_rates(page)


def test_every_fault_is_on_a_page():
    text = "".join(p.read_text(encoding="utf-8") for p in PAGES.glob("*.md"))
    assert [fault for fault in FAULTS if f"`{fault}`" not in text] == []


@pytest.mark.parametrize("check", CHECKS)
def test_the_index_leads_to_the_page(check):
    index = (DOCS / "reference" / "checks.md").read_text(encoding="utf-8")
    assert f"(checks/{check}.md)" in index
