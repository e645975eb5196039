"""The Python that other tests here start is as a new one, but for what is imported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import preloaded_python
import pytest

pytestmark = [
    pytest.mark.trains,
    pytest.mark.skipif(not preloaded_python.available(), reason="a fork that is handed open files needs Linux"),
]


def started(python, code, *arguments, **options):
    return subprocess.run([python, "-c", code, *arguments], capture_output=True, text=True, **options)


LOOK = """
import json, os, random, sys
torch = sys.modules.get("torch")
names = ("torch", "transformers", "pytest", "_pytest", "pytest_ftcheck", "hypothesis")
print(json.dumps({
    "imported": [name for name in names if name in sys.modules],
    "argv": sys.argv,
    "folder": os.getcwd(),
    "read": sys.stdin.read(),
    "drawn": [random.random(), torch.rand(1).item() if torch else 0],
    "main": sorted(n for n in globals() if n[0] != "_"),
    "path": sys.path,
    "executable": sys.executable,
}))
"""


def test_it_has_imported_torch_and_neither_pytest_nor_us(python, tmp_path):
    first, second = (json.loads(started(python, LOOK, "a", "b c", cwd=tmp_path, input="text").stdout) for _ in range(2))
    assert first["imported"] == ["torch", "transformers"]
    assert (first["argv"], first["folder"], first["read"]) == (["-c", "a", "b c"], str(tmp_path), "text")
    assert first["main"] == ["json", "names", "os", "random", "sys", "torch"]
    assert first["executable"] == python  # what it starts is preloaded, too
    assert all(a != b for a, b in zip(first["drawn"], second["drawn"], strict=True))
    assert first["path"] == json.loads(started(sys.executable, LOOK, input="").stdout)["path"]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit(7)", 7),
        ("1/0", 1),
        ("pass", 0),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_its_exit_status_is_that_of_the_fork(python, code, status):
    assert started(python, code).returncode == status


def test_where_an_import_reads_another_environment_it_is_a_new_python(python):
    done = started(python, "import sys; print(sys.executable)", env={**os.environ, "OMP_NUM_THREADS": "3"})
    assert done.stdout.strip() == sys.executable


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_fork(python, number):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as asking:
        fork = int(asking.stdout.readline())
        asking.send_signal(number)
        assert asking.wait() == -number
        assert asking.stdout.read() == ""  # the fork held it open, and has ended
    if number != signal.SIGKILL:
        with pytest.raises(ProcessLookupError):
            os.kill(fork, 0)
