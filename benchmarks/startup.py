"""What the plugin costs every start of pytest: ``python benchmarks/startup.py``.

Collecting an empty file with the plugin and without it, in turns, so that a busy machine slows both.
The exit status is 1 if the median difference is above the limit, or if a heavy module is imported.
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

RUNS = 30
LIMIT_MS = 15.0
HEAVY = ("torch", "transformers", "numpy", "scipy", "hypothesis", "tensorboard", "matplotlib")
ARGUMENTS = ("--collect-only", "-q", "-p", "no:cacheprovider", "test_empty.py")
#: The environment's other plugins stay out: some of them import heavy modules, and all of them add noise.
ALONE = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
WAYS = {"with": ("-p", "pytest_ftcheck.pytest_plugin.plugin"), "without": ()}


def start(directory: str, *arguments: str) -> float:
    """Seconds of one pytest that collects nothing."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "pytest", *ARGUMENTS, *arguments]
    done = subprocess.run(command, cwd=directory, env=ALONE, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode != 5:  # nothing collected
        raise SystemExit(done.stdout + done.stderr)
    return seconds


def imported(directory: str, *arguments: str) -> list[str]:
    """Modules in memory when pytest has collected nothing."""
    code = f"import sys, pytest; pytest.main({[*ARGUMENTS, *arguments]!r}); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=directory, env=ALONE, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1].split()


def main() -> int:
    """Measure, print a table, judge."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "test_empty.py").touch()
        # as for an installed package: compiled once, wherever this machine keeps or forbids bytecode
        ALONE.pop("PYTHONDONTWRITEBYTECODE", None)
        ALONE["PYTHONPYCACHEPREFIX"] = str(Path(directory, "bytecode"))
        for arguments in WAYS.values():  # bytecode and disk cache
            start(directory, *arguments)
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(RUNS):
            for way in sorted(WAYS, reverse=bool(turn % 2)):
                times[way].append(start(directory, *WAYS[way]))
        modules = {way: set(imported(directory, *WAYS[way])) for way in WAYS}
    medians = {way: 1000 * statistics.median(each) for way, each in times.items()}
    pairs = [1000 * (a - b) for a, b in zip(times["with"], times["without"], strict=True)]
    cost, (low, _, high) = statistics.median(pairs), statistics.quantiles(pairs, n=4)
    extra = sorted(modules["with"] - modules["without"])
    heavy = sorted(modules["with"] & set(HEAVY))

    today = datetime.datetime.now(datetime.timezone.utc)
    versions = [f"{name} {version(name)}" for name in ("pytest", "pytest-ftcheck")]
    print(f"Start of pytest, median of {RUNS} interleaved runs, {today:%Y-%m-%d}")
    print(f"Python {platform.python_version()}, {', '.join(versions)}, {os.cpu_count()} cores\n")
    print(f"{'':24}  {'ms':>7}")
    print(f"{'with the plugin':24}  {medians['with']:7.1f}")
    print(f"{'without':24}  {medians['without']:7.1f}")
    print(f"{'median difference':24}  {cost:7.1f}  (quartiles {low:.1f} to {high:.1f}; limit {LIMIT_MS:g})")
    print(f"\nmodules only it imports ({len(extra)}): {', '.join(extra)}")
    print(f"heavy modules imported: {', '.join(heavy) or 'none'}")
    return int(cost > LIMIT_MS or bool(heavy))


if __name__ == "__main__":
    raise SystemExit(main())
