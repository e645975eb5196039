"""``@pytest.mark.ftcheck(ranks=2)``: real processes, which end whatever happens."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.trains

#: Each rank leaves its process, a process of its own, and the store's port; after each test the session looks what is left of them.
CONFTEST = """
import os, pathlib, subprocess, sys
import psutil, pytest

LEFT = pathlib.Path(__file__).parent / "left"

def pytest_addoption(parser):
    parser.addoption("--mine")

if "RANK" in os.environ:
    @pytest.fixture(autouse=True)
    def _leave_traces():
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        me = LEFT / f"{os.getpid()}"
        me.with_suffix(".new").write_text(f"{os.getpid()} {sleeper.pid} {os.environ['MASTER_PORT']}")
        me.with_suffix(".new").rename(me)
        yield
else:
    LEFT.mkdir(exist_ok=True)

    def pytest_runtest_logfinish(nodeid):
        found = []
        listening = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        for file in LEFT.iterdir():
            *pids, port = map(int, file.read_text().split())
            for pid in pids:
                if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    found.append(f"process {pid}")
            found += [f"port {port}"] * (port in listening)
            found.append("looked")
            file.unlink()
        with LEFT.with_name("looked.txt").open("a") as log:
            log.write(f"{nodeid.partition('::')[2]}: {', '.join(found)}\\n")
"""

TESTS = """
import os, signal, time
import pytest
import torch
import torch.distributed as dist

pytestmark = pytest.mark.ftcheck(ranks=2, timeout=300)

@pytest.fixture(scope="module")
def seven():
    yield 7
    dist.barrier()  # the group is there in a fixture's teardown, too

@pytest.mark.parametrize("n", [pytest.param(3, id="three::[x]")])
def test_passes(seven, n, tmp_path, pytestconfig):
    assert pytestconfig.getoption("mine") == "3"
    total = torch.tensor([1.0])
    dist.all_reduce(total)
    assert (seven, n, total.item(), dist.get_world_size()) == (7, 3, 2.0, 2)
    assert (os.environ["RANK"], os.environ["LOCAL_RANK"]) == (str(dist.get_rank()),) * 2
    assert torch.get_num_threads() == max(1, len(os.sched_getaffinity(0)) // 2)
    places = [None, None]
    dist.all_gather_object(places, str(tmp_path))
    assert len(set(places)) == 2
    dist.destroy_process_group()
    dist.init_process_group("gloo")  # from the environment, on the same port
    dist.barrier()

def test_fails_on_one():
    print("printed by", dist.get_rank())
    if dist.get_rank() == 1:
        raise ValueError("only here")
    dist.barrier()

def test_fails_on_all():
    assert dist.get_rank() == 5

@pytest.fixture
def broken():
    raise OSError("no such thing")

def test_set_up(broken): ...

@pytest.mark.ftcheck(timeout=3)
def test_hangs():
    if dist.get_rank() == 0:
        dist.barrier()

def test_killed():
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()

def test_skips():
    pytest.skip("not today")

@pytest.mark.xfail(raises=ValueError, strict=True, reason="known")
def test_expected():
    if dist.get_rank() == 1:
        raise ValueError("expected")
    dist.barrier()
"""

#: Modules that do not get so far; only the last imports torch.
WITHOUT_A_GROUP = {
    "test_other_id": """
import os, pytest
@pytest.mark.ftcheck(ranks=2)
@pytest.mark.parametrize("n", [os.getpid()])
def test_it(n): ...
""",
    "test_import": """
import os, pytest
if "RANK" in os.environ: raise RuntimeError("not in a second process")
@pytest.mark.ftcheck(ranks=2)
def test_it(): ...
""",
    "test_no_gloo": """
import pytest, torch.distributed
torch.distributed.is_gloo_available = lambda: False
@pytest.mark.ftcheck(ranks=2)
def test_it(): ...
""",
    "test_marked": """
import pytest
@pytest.mark.skip(reason="by its mark")
@pytest.mark.ftcheck(ranks=2)
def test_it(): ...
""",
}


def _pytest(folder, *arguments, **options):
    """Start pytest in the folder, without plugins that have nothing to do with it."""
    others = ("randomly", "pytest_torch", "hypothesispytest", "anyio", "asyncio")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GITHUB_", "COV_", "PYTEST_"))} | {
        "COLUMNS": "120"
    }
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-m", "pytest", *(f"-pno:{name}" for name in others), *arguments]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **streams, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all of these tests were run, with ``--pdb``, which would wait for input."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, text in {"conftest": CONFTEST, "test_ranks": TESTS, **WITHOUT_A_GROUP}.items():
        (folder / f"{name}.py").write_text(text)
    output, _ = _pytest(
        folder, "--pdb", "-rA", "--mine=3", "--junitxml=junit.xml", "--ftcheck-json=out.json"
    ).communicate()
    (folder / "output.txt").write_text(output)
    return folder


@pytest.fixture
def output(folder):
    return (folder / "output.txt").read_text()


def about(output, name):
    """The part of a session's output that is about one test."""
    parts = re.split(r"^_{3,} (?:ERROR at \w+ of )?(\S+) _{3,}$|^=+ .* =+$", output, flags=re.MULTILINE)
    return next(text for title, text in zip(parts[1::2], parts[2::2], strict=True) if (title or "").startswith(name))


def outcome(output, name):
    """The test's line in the short summary."""
    return next(line for line in output.splitlines() if re.match(rf"[A-Z]+ .*::{re.escape(name)}( |$)", line))


# ---------------------------------------------------------------------- outcomes
def test_a_body_runs_once_a_rank_with_its_fixtures_and_parameters(output):
    assert outcome(output, "test_passes[three::[x]]").startswith("PASSED"), output


def test_a_failure_of_one_rank_names_it_and_where_the_others_were(output):
    text = about(output, "test_fails_on_one")
    assert outcome(output, "test_fails_on_one").endswith("- rank 1: ValueError: only here")
    assert text.count("ValueError: only here") == 1
    assert re.search(r"rank 0 stood at test_ranks.py:\d+, in barrier; it was ended", text)
    for rank in (0, 1):
        assert f"Captured stdout call, rank {rank}" in text
        assert f"printed by {rank}" in text
    assert "--pdb" in text
    assert "(Pdb)" not in output


def test_ranks_that_fail_alike_are_told_once(output):
    text = about(output, "test_fails_on_all")
    assert outcome(output, "test_fails_on_all").startswith("FAILED test_ranks.py::test_fails_on_all - ranks 0 and 1: ")
    assert text.count(">       assert dist.get_rank() == 5") == 1
    assert "assert 0 == 5" in text
    assert "rank 1, at the same line: " in text
    assert "assert 1 == 5" in text
    assert about(output, "test_set_up").count("OSError: no such thing") == 1
    assert outcome(output, "test_set_up").startswith("ERROR test_ranks.py::test_set_up - ranks 0 and 1: OSError")


def test_a_time_limit_tells_where_each_rank_stood(output):
    text = about(output, "test_hangs")
    assert "not over after 3 s, the test's time limit; all processes were ended" in text
    assert re.search(r"rank 0 stood at test_ranks.py:\d+, in barrier; it was ended\nrank 1 passed", text)
    assert "Stack of rank 0" in text


def test_a_rank_that_dies_is_named_and_the_others_loss_is_no_failure(output):
    text = about(output, "test_killed")
    assert outcome(output, "test_killed").endswith("- rank 1: the process was ended by SIGKILL in the test's call")
    assert re.search(r"rank 0 (lost its connection to the others at|stood at) test_ranks.py:\d+", text)
    assert "RuntimeError" not in text.partition("Captured")[0]


def test_skips_and_expected_failures_are_those_of_the_ranks(output):
    assert re.search(r"SKIPPED \[1\] test_ranks.py:\d+: not today", output)
    assert re.search(r"SKIPPED \[1\] test_marked.py:\d+: by its mark", output)
    assert outcome(output, "test_expected") == "XFAIL test_ranks.py::test_expected - known"
    assert re.search(r"SKIPPED \[1\] test_no_gloo.py:\d+: this build of torch has no .*gloo backend", output)


def test_what_keeps_a_rank_from_the_test_is_told(output):
    assert "RuntimeError: not in a second process" in output
    assert "ranks 0 and 1: the test is not found when its module is imported again" in output


def test_reports_have_each_test_once(folder):
    found = {
        t["nodeid"].partition("::")[2]: t["outcome"] for t in json.loads((folder / "out.json").read_text())["tests"]
    }
    assert found["test_fails_on_one"] == found["test_killed"] == found["test_hangs"] == "failed"
    assert (found["test_set_up"], found["test_skips"], found["test_expected"]) == ("error", "skipped", "xfailed")
    assert (folder / "junit.xml").read_text().count('name="test_fails_on_one"') == 1
    last_failed = json.loads((folder / ".pytest_cache/v/cache/lastfailed").read_text())
    assert {name.partition("::")[2] for name, outcome in found.items() if outcome in ("failed", "error")} <= {
        *last_failed,
        "",
    }


# ---------------------------------------------------------------------- nothing is left
def test_no_process_and_no_port_outlives_a_test(folder):
    looked = dict(line.split(": ") for line in (folder / "looked.txt").read_text().splitlines())
    assert {name: found for name, found in looked.items() if "process" in found or "port" in found} == {}
    of_two = (
        "test_passes[three",
        "test_fails_on_one",
        "test_fails_on_all",
        "test_hangs",
        "test_killed",
        "test_expected",
    )
    assert all("looked, looked" in next(f for n, f in looked.items() if n.startswith(name)) for name in of_two), looked
    assert not list(folder.parent.glob("ftcheck-ranks-*"))


HANGS = """
import os, pathlib, time, pytest
@pytest.mark.ftcheck(ranks=2)
def test_it():
    pathlib.Path(f"here-{os.environ['RANK']}").write_text(str(os.getpid()))
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ranks_end_with_the_session(tmp_path, number):
    (tmp_path / "test_it.py").write_text(HANGS)
    files = [tmp_path / f"here-{rank}" for rank in (0, 1)]
    unignored = functools.partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # a shell ignores it for what runs in the background
    with _pytest(tmp_path, start_new_session=True, preexec_fn=unignored) as session:
        try:
            _wait_until(lambda: all(file.exists() and file.read_text() for file in files))
            ranks = [psutil.Process(int(file.read_text())) for file in files]
            session.send_signal(number)
            assert session.wait(300) == (2 if number == signal.SIGINT else -number)
            _, alive = psutil.wait_procs(ranks, 300)
            assert not alive
        finally:
            session.kill()


def _wait_until(true, seconds=400.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


# ---------------------------------------------------------------------- the merged trace
WATCHES = """
import pytest, torch
import torch.distributed as dist
from pytest_ftcheck import assert_ranks_agree, watch

@pytest.mark.ftcheck(ranks=2)
def test_agree():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)  # no DistributedDataParallel
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model) as w:
        for _ in range(4):
            rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(dist.get_rank()))
            optimizer.zero_grad()
            model(rows).square().mean().backward()
            optimizer.step()
    if dist.get_rank() == 1:  # one rank may ask alone
        assert "gathered from 2 ranks" in w.trace.notes
        assert w.gather() is w.trace
        assert_ranks_agree(w.trace)
"""


def test_assertions_see_the_merged_trace_and_count_once_from_a_worker_of_xdist_too(tmp_path):
    (tmp_path / "test_it.py").write_text(WATCHES)
    output, _ = _pytest(tmp_path, "-n1", "-v", "--ftcheck-json=out.json", "--ftcheck-html=out.html").communicate()
    (test,) = json.loads((tmp_path / "out.json").read_text())["tests"]
    assert test["outcome"] == "failed"
    assert [(v["check"], v["status"], v["fault"]) for v in test["verdicts"]] == [
        ("ranks_agree", "fail", "ranks_train_alone")
    ]
    assert len(test["runs"]) == 1
    assert re.search(r"FAILED .*test_agree - rank 1: ranks_agree: FAIL", output), output
    assert output.count("pytest_ftcheck.CheckFailed: ranks_agree: FAIL") == 1
    assert "rank 0 passed" in output
    assert "ranks_agree" in (tmp_path / "out.html").read_text(encoding="utf-8")
