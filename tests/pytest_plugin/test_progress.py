"""The live line: its drawing with a fake clock, and a real pseudo-terminal."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys

import pytest

from pytest_ftcheck.pytest_plugin.progress import ProgressLine

#: A clock that goes on by so much each time it is read: how long a test really takes is the machine's affair.
CLOCK = """
import itertools
from pytest_ftcheck.pytest_plugin.progress import ProgressLine

ProgressLine.__init__.__kwdefaults__.update(clock=itertools.count(0, PAUSE).__next__)
"""
#: The plugin waits two seconds; most tests here tell it not to.
IMPATIENT = """
from pytest_ftcheck.pytest_plugin.progress import ProgressLine

ProgressLine.__init__.__kwdefaults__.update(patience=0.05, interval=0.0)
"""
SLOW = """
import time
import pytest
from pytest_ftcheck.core import events

@pytest.mark.parametrize("ending", ["well", "badly"])
def test_slow(ending):
    for done in range(1, 5):
        events.current().progress(done, 6, 0.5)
        time.sleep(PAUSE)
    print("CAPTURED")
    if ending == "badly":
        raise RuntimeError("boom")
    events.current().progress(6, 6, 0.25)
"""


class Screen(io.StringIO):
    """What a terminal's only line shows."""

    def shown(self, before: str = "") -> str:
        cells, at = list(before), len(before)
        for char in self.getvalue():
            if char == "\b":
                at -= 1
            else:
                cells[at : at + 1] = [char]
                at += 1
        assert at >= len(before), "stepped back over what is not ours"
        return "".join(cells)


@pytest.fixture
def screen():
    return Screen()


def line(screen, room=60, seconds=None):
    """A line whose clock reads ``seconds`` in turn."""
    return ProgressLine(screen, lambda: room, clock=iter(seconds or range(1000)).__next__)


def test_nothing_before_two_seconds(screen):
    progress = line(screen, seconds=[0, 1, 1.9, 1.95])
    for done in range(1, 5):
        progress.update(done, 100, 0.5)
    assert screen.getvalue() == ""


def test_done_total_loss_elapsed(screen):
    progress = line(screen)
    for done in range(1, 4):
        progress.update(done, 2000, 0.6931)
    assert screen.shown("test_a.py .") == "test_a.py . 3/2,000 steps, loss 0.693, 2 s"


def test_a_loss_that_nobody_told(screen):
    progress = line(screen)
    for done in range(1, 4):
        progress.update(done, 9, None)
    assert screen.shown() == " 3/9 steps, 2 s"


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_is_erased_at_the_end(screen, ends):
    progress = line(screen)
    for done in range(1, 6):
        progress.update(done, 9, 0.5)
    progress.update(9, 9, 0.5) if ends == "well" else progress.erase()
    assert screen.shown("test_a.py .").rstrip() == "test_a.py ."


def test_never_wraps(screen):
    progress = line(screen, room=9)
    for done in range(1, 6):
        progress.update(done, 9, 0.5)
    assert screen.shown() == " 5/9 ste"


def test_is_redrawn_ten_times_a_second_at_most(screen):
    progress = line(screen, seconds=[0, 3, *(3 + 0.01 * i for i in range(1, 50))])
    for done in range(1, 51):
        progress.update(done, 99, 0.5)
    assert screen.getvalue().count("steps") <= 6


def test_the_next_run_starts_its_own_clock(screen):
    progress = line(screen)
    for done in (1, 2, 3, 4):
        progress.update(done, 4, 0.5)
    for done in (1, 2):
        progress.update(done, 4, 0.5)
    assert screen.shown().strip() == ""


def test_a_run_that_ended_without_a_word_does_not_lend_its_clock(screen):
    progress = line(screen, seconds=[0, 1, 1.5, 3])
    for done in (0, 5, 0, 1):
        progress.update(done, 9, 0.5)
    assert screen.getvalue() == ""


def test_a_terminal_that_went_away_stops_nobody():
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError

    progress = line(Gone())
    for done in range(1, 6):
        progress.update(done, 9, 0.5)


@pytest.fixture
def slow(pytester):
    """A project whose fine-tunes take long, for an impatient plugin."""
    pytester.makeconftest(CLOCK.replace("PAUSE", "0.06") + IMPATIENT)
    pytester.makepyfile(test_slow=SLOW.replace("PAUSE", "0"))
    return pytester.path


def in_terminal(path, *arguments) -> str:
    """Run pytest in a pseudo-terminal; everything it wrote."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pytest", "-pno:cacheprovider", "-pno:randomly", *arguments]
    with subprocess.Popen(command, cwd=path, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        written = b""
        try:
            while piece := os.read(ours, 4096):
                written += piece
        except OSError:  # Linux: the other end was closed
            pass
    os.close(ours)
    assert process.returncode == 1  # one of the two tests fails
    return written.decode()


def test_after_two_seconds_on_a_terminal(pytester):
    pytester.makeconftest(CLOCK.replace("PAUSE", "0.75"))
    pytester.makepyfile(test_slow=SLOW.replace("PAUSE", "0"))
    text = in_terminal(pytester.path, "-k", "badly")
    assert text.count("/6 steps, loss 0.500, 2 s\b") == 1


def test_by_the_real_clock(pytester):
    pytester.makepyfile(test_slow=SLOW.replace("PAUSE", "0.75"))
    text = in_terminal(pytester.path, "-k", "badly")
    shown = [int(seconds) for seconds in re.findall(r"/6 steps, loss 0\.500, (\d+) s\x08", text)]
    assert shown
    assert min(shown) >= 2


@pytest.mark.parametrize("capture", ["fd", "sys", "no"])
def test_through_every_way_to_capture(slow, capture):
    text = in_terminal(slow, f"--capture={capture}")
    assert text.count(" 4/6 steps, loss 0.500, 0 s\b") == 2
    # taken back each time, also after an exception: as many blanks as there were columns
    assert text.count(" " * len(" 4/6 steps, loss 0.500, 0 s") + "\b") == 2


@pytest.mark.parametrize("arguments", [("-q",), ("--ftcheck-no-progress",), ("-oftcheck_no_progress=true",), ("-n1",)])
def test_not_on_a_terminal_where_nobody_wants_it(slow, arguments):
    if "-n1" in arguments:
        pytest.importorskip("xdist")
    assert "/6 steps" not in in_terminal(slow, *arguments)


def test_not_in_a_pipe(slow, run):
    assert "/6 steps" not in run(subprocess=True).stdout.str()
