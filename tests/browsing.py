"""A real browser for tests: Debian's or your own Chromium, headless, driven by playwright; nothing may leave the machine."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Names under which Chromium, or a browser made of it, is installed.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
#: A page that is opened from disk may use these and nothing else.
LOCAL = ("file:", "data:", "blob:", "about:")


def chromium() -> str | None:
    """Path of the browser: of ``FTCHECK_CHROMIUM``, else what is on the path; None: there is none."""
    given = os.environ.get("FTCHECK_CHROMIUM")
    return given or next((found for name in NAMES if (found := shutil.which(name))), None)


def missing() -> str | None:
    """Why no browser can be started; None: one can be."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed: pip install -e '.[dev]'"
    if chromium() is None:
        return f"none of {', '.join(NAMES)} on the path: make browser"
    return None


@dataclass
class Opened:
    """One page, and what it did that it should not have."""

    page: Any
    #: What went to the console as an error or a warning, and exceptions that nobody caught.
    complaints: list[str] = field(default_factory=list)
    #: Addresses asked for, the page's own files left out.
    requests: list[str] = field(default_factory=list)

    def quiet(self) -> None:
        """Nothing was complained of, and no request left the machine."""
        assert self.complaints == []
        assert self.requests == []


class Browser:
    """Opens pages from disk, each in a context of its own.

    ``opened = browser.open(path, width=360, dark=True)``; then ``opened.page`` is playwright's, and ``opened.quiet()`` asserts that it
    behaved. Requests that would leave the machine are refused, and remembered.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self._contexts: list[Any] = []

    def open(
        self, path: str | os.PathLike[str], *, width: int = 1200, height: int = 900, dark: bool = False, **context: Any
    ) -> Opened:
        """The page at ``path`` (a file, or an address that begins with ``file:``), loaded."""
        made = self.driver.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            accept_downloads=True,
            **context,
        )
        made.set_default_timeout(120_000)  # milliseconds; a busy machine is ten times as slow
        self._contexts.append(made)
        page = made.new_page()
        opened = Opened(page)
        page.on(
            "console",
            lambda m: opened.complaints.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: opened.complaints.append(f"exception: {error}"))

        def decide(route: Any) -> None:
            url = route.request.url
            if url.startswith(LOCAL):
                route.continue_()
            else:
                opened.requests.append(url)
                route.abort()

        made.route("**/*", decide)
        url = path if isinstance(path, str) and path.startswith("file:") else Path(path).resolve().as_uri()
        page.goto(url)
        return opened

    def close(self) -> None:
        """Close every page that was opened."""
        for made in self._contexts:
            with contextlib.suppress(Exception):
                made.close()
        self._contexts.clear()


@contextlib.contextmanager
def running() -> Any:
    """A browser while the block runs."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        driver = playwright.chromium.launch(
            executable_path=chromium(),
            args=["--disable-background-networking", "--disable-component-update", "--no-first-run"],
        )
        try:
            yield Browser(driver)
        finally:
            driver.close()


def serious(page: Any) -> list[str]:
    """What axe-core finds that is serious or critical: rule, and where."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{v['id']} ({v['impact']}): {v['help']}: {[n['html'][:200] for n in v['nodes'][:4]]}"
        for v in found
        if v["impact"] in ("serious", "critical")
    ]
