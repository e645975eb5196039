"""What a session of many tests keeps in memory: ``python benchmarks/memory.py [tests] [steps] [--html]``.

Each test judges a trace of its own. Counted at the end of the session, after a garbage collection: traces that are still alive, the bytes
that Python allocated since the first ten tests (tracemalloc), and the growth of the process; its largest size when the page is written,
too. What Python holds is counted after every tenth test, too: where it grows evenly, a few tests say what many leave. The exit status is 1
if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

#: Traces that may be alive at the end, and kilobytes that may stay of one test.
MOST_TRACES, MOST_KB, MOST_KB_HTML = 2, 40, 100
WARM_UP = 10

CONFTEST = """
import gc, json, os, resource, tracemalloc
from pathlib import Path

RUN, HELD = 0, {}


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def pytest_runtest_logfinish(nodeid):
    global RUN
    RUN += 1
    if RUN == WARM_UP:
        gc.collect()
        tracemalloc.start()
        globals()["BEGAN"] = resident()
    elif RUN % WARM_UP == 0:
        gc.collect()
        HELD[RUN] = tracemalloc.get_traced_memory()[0]


def pytest_unconfigure(config):
    measured = json.loads(Path("measured.json").read_text())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path("measured.json").write_text(json.dumps({**measured, "most": most - BEGAN}))


def pytest_sessionfinish(session):
    from pytest_ftcheck.core.trace import Trace

    gc.collect()
    alive = sum(isinstance(o, Trace) for o in gc.get_objects())
    found = {"tests": RUN, "traces": alive, "resident": resident() - BEGAN, "python": tracemalloc.get_traced_memory()[0]}
    found["held"] = HELD
    Path("measured.json").write_text(json.dumps(found))
"""
TESTS = """
import pytest
from pytest_ftcheck import Trace, assert_weights_move, finetune, tiny_distilbert, toy_batches

# one run; each test gets a trace of its own, as if it had trained: this is about what stays, not about the time of a training
SAVED = finetune(tiny_distilbert, toy_batches(), steps=STEPS, lr=1e-3, probes=["loss"]).to_json()


@pytest.mark.parametrize("number", range(TESTS))
def test_it_learns(number):
    assert_weights_move(Trace.from_json(SAVED.replace('"seconds":', f'"seconds":{number + 1}', 1)))
"""


def main() -> int:
    """Print the numbers; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tests", nargs="?", type=int, default=200)
    parser.add_argument("steps", nargs="?", type=int, default=20)
    parser.add_argument("--html", action="store_true", help="with a page, which needs the traces' data")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "conftest.py").write_text(CONFTEST.replace("WARM_UP", str(WARM_UP)))
        (path / "test_many.py").write_text(TESTS.replace("TESTS", str(given.tests)).replace("STEPS", str(given.steps)))
        options = [
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:randomly",
            *(["--ftcheck-html=page.html"] if given.html else []),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options], cwd=path, capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(done.stdout[-2000:], done.stderr[-2000:])
            return 1
        found = json.loads((path / "measured.json").read_text())
    counted = max(1, found["tests"] - WARM_UP)
    python, resident = found["python"] / counted / 1024, found["resident"] / counted / 1024
    most = MOST_KB_HTML if given.html else MOST_KB
    met = found["traces"] <= MOST_TRACES and python <= most
    print(
        f"{found['tests']} tests of {given.steps} steps{', with a page' if given.html else ''}: {found['traces']} traces alive at the end; "
        f"a test leaves {python:.0f} KB of Python's objects and {resident:.0f} KB of the process "
        f"({found['most'] / 1024**2:.0f} MB more than after {WARM_UP} tests at most; goal: at most {MOST_TRACES} traces and {most} KB): "
        f"{'met' if met else 'MISSED'}"
    )
    steps = ", ".join(f"{1 + int(n) - WARM_UP} to {n}: {kb:.0f}" for n, kb in _growth(found["held"]))
    print(f"KB that a test leaves of Python's objects, of the tests {steps}")
    return 0 if met else 1


def _growth(held: dict[str, int]) -> list[tuple[str, float]]:
    """Number of the last of ten tests, and what one of the ten left."""
    values = [0, *held.values()]
    return [(n, (now - before) / WARM_UP / 1024) for n, before, now in zip(held, values, values[1:], strict=False)]


if __name__ == "__main__":
    sys.exit(main())
