"""The documentation's site: it builds without a warning, no link in it is dead, and it works from disk in a real browser."""

from __future__ import annotations

import doctest
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browsing
import pytest

import pytest_ftcheck
from pytest_ftcheck.checks.catalogue import CHECKS

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "docs" / "build"
#: One of each kind of page.
PAGES = [
    "index.html",
    "tutorial/should-the-weights-move-more.html",
    "how-to/debug-a-failure.html",
    "reference/checks/weights_move.html",
    "reference/python/finetune.html",
    "explanation/comparison.html",
]


def missing() -> str:
    """Why the site cannot be built; empty: it can."""
    return "" if importlib.util.find_spec("mkdocs") else "mkdocs is not installed: pip install -e '.[docs]'"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly; the tutorial with its committed output (`make docs` makes it anew).

    ``FTCHECK_SITE`` names one that was built strictly just now: `.ci/run` builds it before the tests.
    """
    if built := os.environ.get("FTCHECK_SITE"):
        assert (Path(built) / "index.html").exists(), f"FTCHECK_SITE={built}: there is no site"
        return Path(built)
    if why := missing():
        if os.environ.get("CI"):
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "DOCS_COMMITTED": "1"},
    )
    told = [line for line in done.stderr.splitlines() if not line.startswith("INFO")]
    assert done.returncode == 0, "\n".join(told)
    return folder


class Read(HTMLParser):
    """What a page links to, loads, and can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        loaded = given.get("src") or (given.get("href") if tag == "link" and given.get("rel") != "canonical" else None)
        if loaded:
            self.loads.append(loaded)


@pytest.fixture(scope="module")
def pages(site):
    return {p: Read(p.read_text(encoding="utf-8")) for p in sorted(site.rglob("*.html")) if p.name != "404.html"}


def test_every_link_leads_somewhere(site, pages):
    dead, there = [], {p.resolve() for p in site.rglob("*")}
    for page, read in pages.items():
        for link in {*read.links, *read.loads}:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = Path(os.path.normpath(page.parent / unquote(parts.path))) if parts.path else page
            if target not in there:  # each page links to all others: asking the disk for each takes long
                dead.append(f"{page.relative_to(site)}: {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                dead.append(f"{page.relative_to(site)}: {link} (no such anchor)")
    assert sorted(set(dead)) == []


def test_nothing_is_loaded_from_elsewhere(site, pages):
    loaded = {(str(p.relative_to(site)), link) for p, read in pages.items() for link in read.loads}
    assert [(p, link) for p, link in loaded if re.match(r"(https?:)?//", link)] == []
    sheets = "".join(p.read_text(encoding="utf-8") for p in site.rglob("*.css"))
    assert re.findall(r"url\(['\"]?(?:https?:)?//[^)]*\)|@import", sheets) == []


def test_every_public_name_has_its_place(site):
    found = "".join(p.read_text(encoding="utf-8") for p in (site / "reference").rglob("*.html"))
    missing = [n for n in pytest_ftcheck.__all__ if not n.startswith("__") and f'id="pytest_ftcheck.{n}"' not in found]
    assert missing == []


def test_arguments_and_fields_are_described(site):
    finetune = (site / "reference/python/finetune.html").read_text(encoding="utf-8")
    assert "held-out batches for the metrics" in finetune
    verdict = (site / "reference/python/Verdict.html").read_text(encoding="utf-8")
    assert "The likely root causes, most likely first." in verdict  # a comment beside the field
    check = (site / "reference/checks/weights_move.html").read_text(encoding="utf-8")
    assert "unless <code>weights_move</code> passes" in re.sub(
        r'\s*class="[^"]*"', "", check
    )  # the assertion, made at run time


def test_no_page_shows_what_should_have_been_rendered(site, pages):
    raw = []
    for page in pages:
        article = page.read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0]
        text = re.sub(r"<[^>]+>", "", re.sub(r"<(pre|code).*?</\1>", "", article, flags=re.DOTALL))
        found = re.findall(r":param |:raises |:\w+:`|```|^\s*[*-] \w|^\|.*\|$|^&gt;&gt;&gt; ", text, flags=re.MULTILINE)
        raw += [f"{page.relative_to(site)}: {what}" for what in found]
    assert raw == []


@pytest.fixture
def hooks(monkeypatch):
    """The build's hooks, without mkdocs around them."""
    if why := missing():
        pytest.skip(why)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return load("hooks", monkeypatch)


def load(name, monkeypatch):
    """A module of ``docs/build``, known by its name while the test runs."""
    spec = importlib.util.spec_from_file_location(name, BUILD / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_a_name_that_is_not_described_ends_the_build(site, hooks, tmp_path):
    from types import SimpleNamespace

    from mkdocs.exceptions import PluginError

    copy = tmp_path / "site"
    shutil.copytree(site / "reference", copy / "reference")
    hooks.on_post_build(config=SimpleNamespace(site_dir=str(copy)))
    page = copy / "reference/python/finetune.html"
    text = page.read_text(encoding="utf-8")
    at = text.index('id="pytest_ftcheck.finetune"')
    page.write_text(text[:at] + re.sub(r"<p>.*?</p>", "", text[at:], flags=re.DOTALL), encoding="utf-8")
    (copy / "reference/python/watch.html").unlink()
    with pytest.raises(PluginError, match=r"without a description in the site: finetune, watch$"):
        hooks.on_post_build(config=SimpleNamespace(site_dir=str(copy)))


@pytest.mark.parametrize("name", ["outputs", "check_pages", "architecture", "docstrings", "hooks"])
def test_the_examples_of_the_build_run(name, monkeypatch):
    needs = {"docstrings": "griffe", "hooks": "mkdocs"}.get(name)
    if needs:
        pytest.importorskip(needs)
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = load(name, monkeypatch)
    failed, tried = doctest.testmod(module)
    assert failed == 0
    assert tried > 0


# ---------------------------------------------------------------------- in a browser
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_page_opens_from_disk(site, browser, page, dark):
    opened = browser.open(site / page, dark=dark)
    opened.page.wait_for_load_state("networkidle")
    assert opened.page.locator("h1").first.is_visible()
    scheme = opened.page.locator("body").get_attribute("data-md-color-scheme")
    assert scheme == ("slate" if dark else "default")
    broken = opened.page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)")
    assert broken == []
    opened.quiet()  # before axe, which asks for style sheets in its own way
    assert browsing.serious(opened.page) == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_read_on_a_phone(site, browser, page):
    opened = browser.open(site / page, width=360, height=740)
    wider = opened.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wider <= 0
    opened.quiet()


def test_search_works_from_disk(site, browser):
    opened = browser.open(site / "index.html")
    field = opened.page.locator("input[name=query]")
    field.click()
    field.press_sequentially("rounding noise")  # the theme listens to keys
    # what is listed changes with each letter that the theme has heard: wait for what is looked for
    opened.page.locator(".md-search-result__item a[href*='how-we-judge.html']").first.click(timeout=120_000)
    opened.page.wait_for_url(re.compile(r"^file:.*/how-we-judge\.html"))
    opened.quiet()


def test_every_check_is_in_the_navigation(site):
    text = (site / "reference/checks/weights_move.html").read_text(encoding="utf-8")
    assert [c for c in CHECKS if f'href="{c}.html"' not in text and c != "weights_move"] == []
