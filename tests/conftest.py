"""One thread for torch: small tensors are faster so, and results do not depend on the machine. A browser for pages."""

from __future__ import annotations

import os
import sys

import pytest

from pytest_ftcheck.core.seeding import reseed


@pytest.fixture(autouse=True)
def _one_thread():
    """Only where torch is loaded: most tests here need none."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.hookimpl(tryfirst=True)
def pytest_collectstart() -> None:
    """As below: before a module is imported, for what it makes beside its tests."""
    reseed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    """What a test trains is the same in every session, whatever other plugins seed (pytest-randomly: anew each session)."""
    reseed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call() -> None:
    """As above: just before the test itself."""
    reseed(0)


@pytest.fixture
def rows():
    """A learnable task: 8 batches ``(x, y)`` of 16 rows with 6 features; the class is the sign of the first feature."""
    import torch

    g = torch.Generator().manual_seed(0)
    x = [torch.randn(16, 6, generator=g) for _ in range(8)]
    return [(v, (v[:, 0] > 0).long()) for v in x]


# of the module, not of the session: while it is there, playwright keeps an event loop in this thread, and a test of another module
# that runs one (asyncio.run) would be refused
@pytest.fixture(scope="module")
def _browser():
    """Without one: skipped at home, an error on a CI machine (``CI`` is set)."""
    import browsing

    if why := browsing.missing():
        if os.environ.get("CI"):
            pytest.fail(f"a browser is needed on a CI machine, and {why}", pytrace=False)
        pytest.skip(f"no browser: {why}")
    with browsing.running() as found:
        yield found


@pytest.fixture
def browser(_browser):
    """A headless Chromium (`browsing.Browser`); what a test opens is closed after it."""
    yield _browser
    _browser.close()
