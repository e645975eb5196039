"""The page in a real browser: drawn, quiet, harmless, readable in the dark, on a phone, on paper and by a screen reader."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest

pytest.importorskip("vl_convert", reason="the extra html is not installed")

from browsing import serious
from example_pages import diverged_trace, empty_trace, frozen_head_trace, hostile_page, whole_trace

from pytest_ftcheck import Trace, example_trace
from pytest_ftcheck.reports.html.page import FOLDER, page
from pytest_ftcheck.reports.html.views import FineTune

#: Charts of `whole_trace`.
CHARTS = ("loss", "motion", "histogram", "displacement", "time", "gradients", "rewound", "metric-0")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pages by name."""
    folder = tmp_path_factory.mktemp("pages")
    pages = {
        "healthy": page([FineTune(whole_trace(), name="healthy")]),
        "two": page([FineTune(whole_trace(), name="healthy"), FineTune(frozen_head_trace(), name="head in no group")]),
        "diverged": page([FineTune(diverged_trace(), name="diverged")]),
        "empty": page([FineTune(empty_trace(), name="empty")]),
        "hostile": hostile_page(),
    }
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return lambda name: folder / f"{name}.html"


def until(page, expression):
    """Waits until it is true; playwright's own way would need eval, which the page forbids."""
    end = time.monotonic() + 120
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(30)


def draw_all(page):
    """As a reader does who scrolls through all that is open; gives how many charts there are."""
    # to each until it is drawn: on a busy machine the browser looks which charts are in sight much more seldom than every 30 ms
    page.evaluate("""async () => {
        const end = Date.now() + 30000;
        for (const canvas of document.querySelectorAll('.canvas')) {
            if (!canvas.checkVisibility()) continue;
            canvas.scrollIntoView();
            while (!canvas.classList.contains('drawn') && Date.now() < end) await new Promise((go) => setTimeout(go, 10));
        }
    }""")
    until(
        page,
        "[...document.querySelectorAll('.canvas')].every((c) => !c.checkVisibility() || c.classList.contains('drawn'))",
    )
    return page.locator(".canvas.drawn svg").count()


def unfold_tables(page):
    """All tables of numbers; not with the mouse, which waits for the page to keep still: once for 30 seconds, in vain."""
    page.locator(".numbers > summary").evaluate_all("(all) => all.forEach((summary) => summary.click())")
    until(page, "[...document.querySelectorAll('.numbers')].every((d) => !d.checkVisibility() || d.open)")


def marks(page, chart, kind):
    """How many marks of a kind that can be seen a chart has."""
    return page.locator(f"#run-1-{chart} .canvas svg .mark-{kind}.role-mark > *").count()


def test_every_specification_fits_the_schema(browser, tmp_path):
    altair = pytest.importorskip("altair")
    (tmp_path / "empty.html").write_text("<!doctype html><title>empty</title>", encoding="utf-8")
    script = (FOLDER / "charts.js").read_text(encoding="utf-8")
    found = browser.open(tmp_path / "empty.html").page.evaluate(f"() => {{\n{script}return specifications;\n}}")
    for specification in found.values():
        altair.Chart.from_dict(specification)  # raises where it does not


def test_every_chart_is_drawn_with_its_marks(browser, made):
    opened = browser.open(made("healthy"))
    assert draw_all(opened.page) == len(CHARTS)
    assert marks(opened.page, "loss", "line") == 4  # training, probe, prior, learning rate
    assert marks(opened.page, "gradients", "line") == 4
    assert marks(opened.page, "motion", "rect") == 3  # two layers, and the band of healthy ones
    assert marks(opened.page, "time", "rect") == 4 * 16
    assert marks(opened.page, "rewound", "rect") == 3
    assert marks(opened.page, "metric-0", "rect") == 2
    opened.quiet()


def test_bars_are_as_long_as_the_numbers_say(browser, made):
    opened = browser.open(made("healthy"))
    draw_all(opened.page)
    lengths = opened.page.evaluate(
        "[...document.querySelectorAll('#run-1-metric-0 svg .mark-rect.role-mark path')].map((p) => p.getBBox().width)"
    )
    metric = whole_trace().metrics[0]
    assert lengths[0] / lengths[1] == pytest.approx(metric.first / metric.last, rel=0.01)


def test_nothing_is_drawn_before_it_is_looked_at(browser, made):
    opened = browser.open(made("two"), height=400)
    opened.page.wait_for_timeout(300)
    assert opened.page.locator("#run-2 .canvas.drawn").count() == 0
    assert opened.page.locator(".canvas.drawn").count() < len(CHARTS)


def test_which_run_is_ill_is_said_first(browser, made):
    opened = browser.open(made("two"))
    assert opened.page.locator("h1").inner_text().endswith("1 of 2 fine-tunes is unhealthy")
    first = opened.page.locator(".runs li").first.inner_text()
    assert "unhealthy" in first
    assert "head in no group" in first
    assert opened.page.locator("#run-1").get_attribute("open") is not None
    assert opened.page.locator("#run-2").get_attribute("open") is None
    assert draw_all(opened.page) > 0
    opened.quiet()


def test_what_is_not_finite_is_marked(browser, made):
    opened = browser.open(made("diverged"))
    draw_all(opened.page)
    crosses = opened.page.locator("#run-1-loss svg path[fill='var(--fail)']").count()
    assert crosses == sum(not -1e300 < loss < 1e300 for loss in diverged_trace().losses)
    opened.quiet()


def test_a_run_without_numbers_has_sentences_and_no_empty_charts(browser, made):
    opened = browser.open(made("empty"))
    assert opened.page.locator(".canvas").count() == 0
    assert opened.page.locator(".chart .say").count() >= 5
    opened.quiet()


def test_the_table_beside_a_chart_has_the_traces_numbers(browser, made):
    opened = browser.open(made("healthy"))
    details = opened.page.locator("#run-1-loss .numbers")
    details.locator("summary").click()
    details.locator("table").wait_for()
    rows = details.locator("tbody tr").evaluate_all(
        "(rows) => rows.map((row) => [...row.cells].map((cell) => cell.title || cell.textContent))"
    )
    losses = {float(row[0]): row[1] for row in rows if row[1]}
    assert losses == {i + 1.0: repr(loss) for i, loss in enumerate(whole_trace().losses)}
    head = details.locator("th").all_inner_texts()
    assert head == ["step", "training", "probe, dropout off", "class prior", "learning rate"]


def test_the_bins_of_a_histogram_are_those_of_the_trace(browser, made):
    opened = browser.open(made("healthy"))
    details = opened.page.locator("#run-1-histogram .numbers")
    details.locator("summary").click()
    rows = details.locator("tbody tr").evaluate_all(
        "(rows) => rows.map((row) => [...row.cells].map((cell) => cell.title || cell.textContent))"
    )
    tensor = whole_trace().tensor("classifier.weight")
    for name, histogram in (("before", tensor.histograms[0]), ("after 20 steps", tensor.histograms[-1])):
        found = [tuple(map(float, row[1:])) for row in rows if row[0] == name]
        width = (histogram.high - histogram.low) / len(histogram.counts)
        assert [count for _, _, count in found] == list(histogram.counts)
        assert [low for low, _, _ in found] == pytest.approx(
            [histogram.low + i * width for i in range(len(histogram.counts))]
        )
        assert found[-1][1] == histogram.high


def test_which_tokens_are_trained_shows_without_colour(browser, made):
    """Each of the four states has a border or a pattern of its own, and each token says its state to a screen reader."""
    page = browser.open(made("healthy")).page
    tokens = page.locator("section.tokens .ids li")
    looks = tokens.evaluate_all(
        "(all) => all.map((e) => { const s = getComputedStyle(e);"
        " return [e.className, s.borderStyle, s.borderWidth, s.backgroundImage !== 'none', s.backgroundColor].join(' ') })"
    )
    states = {look.rpartition(" rgb")[0]: look for look in looks[:-1]}
    assert set(states) == {
        "untaught attended solid 1px false",
        "taught attended solid 1px false",
        "taught hidden dashed 2px true",
        "untaught hidden dashed 1px true",
    }
    assert states["untaught attended solid 1px false"].endswith("rgb(255, 255, 255)")
    assert tokens.last.inner_text() == "and 5 more"
    assert "padding, taught, not attended to" in tokens.nth(6).text_content()


def test_a_constant_learning_rate_has_a_tick_with_its_value(browser, tmp_path):
    trace = whole_trace()
    steps = tuple(dataclasses.replace(step, lrs=(1e-3,)) for step in trace.steps)
    path = tmp_path / "constant.html"
    path.write_text(page([FineTune(dataclasses.replace(trace, steps=steps))]), encoding="utf-8")
    opened = browser.open(path)
    draw_all(opened.page)
    labels = opened.page.locator("#run-1-loss svg .role-axis-label text").all_text_contents()
    assert labels.count("0.001") == 1
    opened.quiet()


def test_hover_tells_the_value(browser, made):
    opened = browser.open(made("healthy"))
    draw_all(opened.page)
    bar = opened.page.locator("#run-1-metric-0 svg .mark-rect.role-mark path").nth(1)
    bar.scroll_into_view_if_needed()
    bar.hover()
    opened.page.locator("#tip:not([hidden])").wait_for()
    assert opened.page.locator("#tip").inner_text().split() == ["when", "after", "value", "0.9"]


def test_the_trace_is_saved_as_json(browser, made, tmp_path):
    opened = browser.open(made("healthy"))
    draw_all(opened.page)  # nothing moves under the pointer any more
    with opened.page.expect_download() as download:
        opened.page.locator(".save").click()
    assert download.value.suggested_filename == "trace-healthy.json"
    download.value.save_as(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json") == whole_trace()
    opened.quiet()


def test_hostile_names_do_no_harm(browser, made):
    opened = browser.open(made("hostile"))
    opened.page.locator("#open-all").click()
    assert draw_all(opened.page) > 2 * len(CHARTS) - 2
    unfold_tables(opened.page)
    assert opened.page.evaluate("window.harm") is None
    assert opened.page.locator("img").count() == 0
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert "49" not in opened.page.locator("#others, .runs").first.inner_text()
    opened.quiet()


@pytest.mark.parametrize("name", ["__proto__", "constructor", "toString"])
def test_layers_named_like_what_every_object_has_are_drawn(browser, tmp_path, name):
    trace = example_trace()
    tensors = tuple(dataclasses.replace(t, name=t.name.replace(t.name.split(".")[0], name)) for t in trace.tensors)
    metrics = tuple(dataclasses.replace(m, name=name) for m in trace.metrics)
    odd = dataclasses.replace(trace, head=(name,), tensors=tensors, metrics=metrics, environment={name: name})
    (tmp_path / "odd.html").write_text(page([FineTune(odd)]), encoding="utf-8")
    (tmp_path / "plain.html").write_text(page([FineTune(trace)]), encoding="utf-8")
    drawn = []
    for file in ("plain.html", "odd.html"):
        opened = browser.open(tmp_path / file)
        charts = draw_all(opened.page)
        drawn.append((charts, *(marks(opened.page, "motion", kind) for kind in ("rect", "line"))))
        opened.quiet()
    assert drawn[0] == drawn[1]
    assert drawn[0][0] > 1


def test_hardly_anything_jumps_when_charts_are_drawn(browser, made):
    opened = browser.open(made("healthy"))
    kept = opened.page.evaluate("[...document.querySelectorAll('.canvas')].map((c) => parseFloat(c.style.minHeight))")
    draw_all(opened.page)
    taken = opened.page.evaluate(
        "[...document.querySelectorAll('.canvas')].map((c) => c.getBoundingClientRect().height)"
    )
    assert taken == pytest.approx(kept, abs=45)


def test_the_policy_stops_a_script_that_gets_in_all_the_same(browser, made, tmp_path):
    text = made("healthy").read_text(encoding="utf-8")
    spoiled = tmp_path / "spoiled.html"
    spoiled.write_text(
        text.replace("</main>", "<script>window.harm=1</script><img src='https://example.org/x.png' alt=''></main>", 1),
        encoding="utf-8",
    )
    opened = browser.open(spoiled)
    assert opened.page.evaluate("window.harm") is None
    assert opened.requests == []  # refused before it became one
    assert len(opened.complaints) >= 2


@pytest.mark.parametrize("name", ["two", "diverged", "hostile"])
def test_a_phone_needs_no_scrolling_sideways(browser, made, name):
    opened = browser.open(made(name), width=360, height=780)
    opened.page.locator("#open-all").click()
    draw_all(opened.page)
    unfold_tables(opened.page)
    wide = opened.page.evaluate(
        "[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1"
        " && !e.closest('.scroll, pre, svg')).map((e) => e.outerHTML.slice(0, 120))"
    )
    assert wide == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
    opened.quiet()


@pytest.mark.parametrize(
    ("name", "dark"), [("two", False), ("two", True), ("empty", False), ("hostile", True)], ids=lambda v: str(v)
)
def test_axe_finds_nothing_serious(browser, made, name, dark):
    opened = browser.open(made(name), dark=dark)
    opened.page.locator("#open-all").click()
    draw_all(opened.page)
    unfold_tables(opened.page)
    assert serious(opened.page) == []


def test_dark_follows_the_system(browser, made):
    grounds = set()
    for dark in (False, True):
        opened = browser.open(made("healthy"), dark=dark)
        draw_all(opened.page)
        look = opened.page.evaluate("""() => [
            getComputedStyle(document.body).backgroundColor,
            getComputedStyle(document.querySelector('#run-1-loss svg .role-mark path')).stroke]""")
        grounds.add(json.dumps(look))
    assert len(grounds) == 2


def test_all_is_reached_with_the_keyboard(browser, made):
    opened = browser.open(made("two"))
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    seen = []
    for _ in range(200):
        page.keyboard.press("Tab")
        here = page.evaluate(
            "[document.activeElement.tagName, document.activeElement.id || document.activeElement.className,"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        if here[0] == "BODY":
            break
        seen.append(here)
    tags = [tag for tag, _, _ in seen]
    assert {"BUTTON", "A", "SUMMARY", "PRE"} <= set(tags)
    assert "save" in [name for _, name, _ in seen]
    assert all(outline != "none" for _, _, outline in seen)
    page.locator(".runs a").nth(1).focus()
    page.keyboard.press("Enter")
    until(page, "document.getElementById('run-2').open")
    until(page, "document.activeElement.closest('#run-2') !== null")
    page.keyboard.press("Space")
    until(page, "!document.getElementById('run-2').open")


def test_paper_has_all_of_it(browser, made, tmp_path):
    opened = browser.open(made("two"), dark=True)
    opened.page.emulate_media(media="print")
    opened.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert opened.page.locator("details.run:not([open])").count() == 0
    assert opened.page.locator(".verdicts details:not([open])").count() == 0
    drawn, all_of_them = opened.page.evaluate(
        "['.canvas.drawn svg', '.canvas'].map((what) => document.querySelectorAll(what).length)"
    )
    assert drawn == all_of_them > len(CHARTS)
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    opened.page.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").stat().st_size > 30_000
    opened.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert opened.page.locator("details.run:not([open])").count() == 1
    opened.quiet()


def test_without_scripts_the_words_are_there(browser, made):
    opened = browser.open(made("two"), java_script_enabled=False)
    assert opened.page.locator("noscript .say").is_visible()
    assert opened.page.locator(".causes").is_visible()
    assert opened.page.locator(".save").first.get_attribute("href").startswith("data:application/gzip;base64,")


def test_charts_follow_the_width(browser, made):
    opened = browser.open(made("healthy"))
    draw_all(opened.page)
    before = opened.page.locator("#run-1-loss .canvas svg").bounding_box()["width"]
    opened.page.set_viewport_size({"width": 400, "height": 800})
    until(
        opened.page, f"document.querySelector('#run-1-loss .canvas svg').getBoundingClientRect().width < {before - 50}"
    )
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 400
    opened.quiet()


def test_a_page_of_fifty_stays_quick_and_small(browser, tmp_path):
    runs = [FineTune(dataclasses.replace(whole_trace(), seconds=float(i)), name=f"run {i}") for i in range(50)]
    text = page(runs)
    assert len(text.encode()) < 10_000_000
    (tmp_path / "fifty.html").write_text(text, encoding="utf-8")
    opened = browser.open(tmp_path / "fifty.html")
    assert opened.page.locator(".runs li").count() == 50
    assert opened.page.locator(".canvas.drawn").count() == 0  # all healthy, all folded
    ready = opened.page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    assert ready < 5_000  # milliseconds; half a second where nothing else runs
    opened.quiet()
