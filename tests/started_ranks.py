"""Starts a script on two ranks, and ends both whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
RANKS = 2
#: Seconds; a machine under load takes ten times as long as an idle one.
LIMIT = 400


def results(script, folder, *arguments, environment=None, limit=LIMIT):
    """What each rank wrote into ``folder/RANK.json``; an assertion with the ranks' output if one fails, or takes too long."""
    store = folder / "store"
    logs = [folder / f"{rank}.txt" for rank in range(RANKS)]
    with contextlib.ExitStack() as stack:
        started = []
        stack.callback(_end, started)
        for rank, log in enumerate(logs):
            out = stack.enter_context(log.open("wb"))
            command = [sys.executable, str(HERE / script), str(rank), str(store), str(folder), *arguments]
            started.append(
                subprocess.Popen(
                    command,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1", **(environment(rank) if environment else {})},
                )
            )
        until = time.monotonic() + limit
        while any(p.poll() is None for p in started) and time.monotonic() < until:
            if any(p.poll() for p in started):
                break  # the others would wait for it
            time.sleep(0.05)
        codes = [p.poll() for p in started]
    text = "\n".join(
        f"--- rank {rank}: {codes[rank]}\n{log.read_text(errors='replace')[-3000:]}" for rank, log in enumerate(logs)
    )
    assert codes == [0] * RANKS, f"{script}: a rank failed, or the ranks took more than {limit} s\n{text}"
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(RANKS)]


def _end(started):
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
