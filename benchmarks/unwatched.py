"""A loop under `watch` whose watching is switched off for some steps, for the benchmarks that compare it with itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch.overrides import _push_mode

from pytest_ftcheck import watch
from pytest_ftcheck.instruments import loop_calls
from pytest_ftcheck.training.recorder import Recorder


def recorder_of(w: watch) -> Recorder:
    """What reads gradients and weights at each step."""
    assert w._loop is not None
    assert w._loop._recorder is not None
    return w._loop._recorder


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """Without the mode that sees the loop's calls: a loop that nobody watches."""
    mode = loop_calls._calls
    assert mode is not None
    loop_calls._leave(mode)
    try:
        yield
    finally:
        _push_mode(mode)
