"""The command ``ftcheck``: what it prints, its exit status, and what it says of bad files and names."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_ftcheck
from pytest_ftcheck import example_trace
from pytest_ftcheck.checks.catalogue import CHECKS, FAULTS, SPECS
from pytest_ftcheck.cli.compare import compare_sessions, compare_traces
from pytest_ftcheck.cli.explain import catalogue
from pytest_ftcheck.cli.main import main
from pytest_ftcheck.reports.run_metrics import run_metrics
from pytest_ftcheck.reports.session_result import CaseResult, ReportedVerdict, RunMetrics, SessionResult

ROOT = Path(pytest_ftcheck.__file__).parent.parent


@pytest.fixture
def command(capsys, monkeypatch):
    """Runs it; gives status, output and errors."""
    monkeypatch.setenv("COLUMNS", "80")

    def command(*arguments):
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as ended:
            status = ended.code
        told = capsys.readouterr()
        return status, told.out, told.err

    return command


def still(trace):
    """The same trace, but its head did not move."""
    tensors = []
    for t in trace.tensors:
        nothing = {
            "share_changed": 0.0,
            "rms": 0.0,
            "largest": 0.0,
            "by_gradient": 0.0,
            "by_decay": 0.0,
            "max_update": 0.0,
        }
        motion = dataclasses.replace(t.motion, **nothing, relative=0.0 if t.motion.relative is not None else None)
        tensors.append(dataclasses.replace(t, motion=motion) if t.part == "head" else t)
    return dataclasses.replace(trace, tensors=tuple(tensors))


def judged(status, check="weights_move", *, blocking=None):
    blocking = status in ("fail", "inconclusive") if blocking is None else blocking
    return ReportedVerdict(
        check, status, f"it is {status}", f"it is {status}", "", "", "", (), "", None, {status: 1}, blocking, "call", None, None
    )  # fmt: skip


def session(**tests):
    """Tests by name: an outcome, and verdicts."""
    cases = (CaseResult(name, outcome, None, None, tuple(verdicts)) for name, (outcome, *verdicts) in tests.items())
    return SessionResult(tests=tuple(cases))


@pytest.fixture
def saved(tmp_path):
    """A healthy trace's file, an unhealthy one's, and a session's."""
    example_trace().save(tmp_path / "good.json")
    still(example_trace()).save(tmp_path / "bad.json")
    (tmp_path / "session.json").write_text(session(a=("failed", judged("fail"))).to_json())
    return tmp_path


class TestCompareTraces:
    def test_the_same_is_no_worse(self, command, saved):
        status, out, _ = command("compare", saved / "good.json", saved / "good.json")
        assert status == 0
        assert "1 run with identical metrics" in out
        assert out.endswith(f"{len(CHECKS)} verdicts compared: none worse, none better\n")

    def test_a_verdict_that_got_worse(self, command, saved):
        status, out, _ = command("compare", saved / "good.json", saved / "bad.json")
        assert status == 1
        assert "\nworse:\n" in out
        assert "  weights_move: pass -> fail\n" in out
        assert re.search(r"motion\.head +0\.250 +0 +-100 %", out)
        status, out, _ = command("compare", saved / "bad.json", saved / "good.json")
        assert status == 0
        assert "  weights_move: fail -> pass\n" in out

    def test_says_what_differs_beforehand(self):
        trace = example_trace()
        other = dataclasses.replace(
            trace,
            recipe=dataclasses.replace(trace.recipe, lr=1e-3),
            environment={**trace.environment, "torch": "3"},
        )
        found = compare_traces(trace, other)
        assert found.settings == {"recipe: lr": ("5e-05", "0.001"), "torch": ("2", "3")}
        assert re.search(r"recipe: lr +5e-05 +0\.001", str(found))

    def test_a_clock_is_no_difference(self):
        trace = example_trace()
        assert compare_traces(trace, dataclasses.replace(trace, seconds=9.0, training_seconds=8.0)).same == 1

    def test_not_a_number_equals_itself(self):
        trace = example_trace()
        lost = dataclasses.replace(trace.iterations[-1], loss=float("nan"))
        lost = dataclasses.replace(trace, iterations=(*trace.iterations[:-1], lost))
        assert run_metrics(lost)["loss.final"] != run_metrics(lost)["loss.final"]
        assert compare_traces(lost, lost).same == 1
        assert "NaN" in str(compare_traces(trace, lost))


class TestCompareSessions:
    @pytest.mark.parametrize(
        ("before", "after", "kind"),
        [
            ("pass", "fail", "worse"),
            ("pass", "inconclusive", "worse"),
            ("inconclusive", "fail", "worse"),
            ("advice", "fail", "worse"),
            ("skipped", "inconclusive", "worse"),
            ("fail", "pass", "better"),
            ("inconclusive", "advice", "better"),
            ("fail", "skipped", "no longer run"),
            ("pass", "skipped", "no longer run"),
            ("skipped", "pass", "now run"),
            ("pass", "advice", "other"),
        ],
    )
    def test_kinds_of_change(self, before, after, kind):
        outcome = {"fail": "failed", "inconclusive": "failed"}
        found = compare_sessions(
            session(a=(outcome.get(before, "passed"), judged(before))),
            session(a=(outcome.get(after, "passed"), judged(after))),
        )
        assert [change.kind for change in found.changes] == [kind]
        assert found.worse == (kind == "worse")

    def test_tests_that_one_lacks(self):
        found = compare_sessions(session(a=("passed", judged("pass"))), session(b=("passed", judged("pass"))))
        assert [(c.kind, c.test) for c in found.changes] == [("no longer run", "a"), ("now run", "b")]
        assert not found.worse

    def test_a_test_that_fails_without_a_verdict_is_worse(self):
        found = compare_sessions(session(a=("passed", judged("pass"))), session(a=("error",)))
        assert [(c.kind, c.what) for c in found.changes] == [("no longer run", "weights_move"), ("worse", "test")]

    def test_a_new_check_that_fails_is_worse(self):
        found = compare_sessions(session(a=("passed",)), session(a=("failed", judged("fail"))))
        assert found.worse

    def test_figures_stand_side_by_side(self):
        def one(loss):
            runs = (RunMetrics("<Trace>", {"loss.final": loss, "seconds": loss}, {"torch": "2"}),)
            return SessionResult(tests=(CaseResult("a", "passed", None, None, runs=runs),))

        assert re.search(r"loss\.final +0\.300 +0\.600 +\+100 %", str(compare_sessions(one(0.3), one(0.6))))
        assert compare_sessions(one(0.3), one(0.3)).same == 1

    def test_hostile_names_stay_on_their_line(self):
        name = "two\nlines \u202e" + "x" * 5_000
        text = str(
            compare_sessions(
                session(**{name: ("passed", judged("pass"))}), session(**{name: ("failed", judged("fail"))})
            )
        )
        assert "\u202e" not in text
        assert all(len(line) < 500 for line in text.splitlines())


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "No such file"),
            (b"", "expected JSON, found none"),
            (b"\xff\xfe\x00", "expected JSON, found no text"),
            (b"{", "expected JSON, found none"),
            (b"[1]", "expected a saved trace (Trace.save) or a file written by --ftcheck-json"),
            (b'{"schema": 1}', "expected a saved trace"),
            (b'{"schema": 99, "tensors": []}', "this trace has schema 99"),
            (b'{"kind": "ftcheck-session", "schema": 99}', "these results have schema 99"),
            (b'{"schema": 2, "tensors": []}', "field 'source' is missing"),
        ],
    )
    @pytest.mark.parametrize("name", ["show", "compare"])
    def test_what_cannot_be_read_is_one_line(self, command, saved, content, message, name):
        path = saved / "file.json"
        if content is not None:
            path.write_bytes(content)
        status, out, err = command(name, path, *([saved / "good.json"] if name == "compare" else []))
        assert (status, out) == (2, "")
        assert err.startswith(f"ftcheck {name}: {path}: ")
        assert message in err
        assert err.count("\n") == 1

    def test_a_folder(self, command, saved):
        status, _, err = command("show", saved)
        assert status == 2
        assert "expected a regular file, found a folder" in err

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
    @pytest.mark.timeout(20)  # a pipe that is opened waits for its other end
    def test_a_pipe_and_a_device(self, command, saved):
        os.mkfifo(saved / "pipe")
        for arguments in (
            ("show", saved / "pipe"),
            ("show", "/dev/zero"),
            ("compare", saved / "good.json", saved / "pipe"),
        ):
            status, _, err = command(*arguments)
            assert status == 2
            assert "expected a regular file, found a" in err
        status, _, err = command("html", saved / "good.json", "-o", saved / "pipe")
        assert status == 2
        assert "expected a regular file, found a named pipe" in err

    def test_two_kinds_are_not_compared(self, command, saved):
        status, _, err = command("compare", saved / "good.json", saved / "session.json")
        assert status == 2
        assert "found one of each" in err


class TestShow:
    def test_a_trace_with_its_diagnosis(self, command, saved):
        status, out, _ = command("show", saved / "bad.json")
        assert status == 1
        assert out.startswith("finetune: 20 optimizer steps")
        assert "\nunhealthy: " in out
        assert command("show", saved / "good.json")[0] == 0

    def test_a_session(self, command, saved):
        status, out, _ = command("show", saved / "session.json")
        assert status == 1
        assert out.startswith("1 test; verdicts: 1 fail\n")
        assert "failed a\n  fail weights_move: it is fail\n" in out


class TestList:
    def test_has_every_check_with_all_that_is_known_of_it(self, command):
        status, out, _ = command("list", "-v")
        assert status == 0
        assert [line.strip() for line in out.splitlines() if line.strip() in CHECKS] == list(CHECKS)
        assert max(map(len, out.splitlines())) <= 80
        for row in catalogue():
            assert all(row[name] for name in ("stage", "summary", "criterion", "false alarms", "source")), row["check"]
            assert "`" not in "".join(row.values()), row

    def test_rates_are_those_of_the_measured_table(self):
        page = (ROOT / "docs/explanation/error-rates.md").read_text(encoding="utf-8")
        rows = {row["check"]: row["false alarms"] for row in catalogue()}
        measured = [line for line in page.splitlines() if re.match(r"\| `\w+` \| \d+ \|", line)]
        assert measured
        for line in measured:
            cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
            failed = next(i for i, text in enumerate(cells) if "%" in text) - 1
            assert rows[cells[0]].startswith(f"{cells[failed]} of ")
            assert rows[cells[0]].endswith(re.search(r"\(.*\)", line)[0])

    def test_is_a_line_a_check_unless_all_is_wanted(self, command):
        status, out, _ = command("list")
        lines = [line for line in out.splitlines() if line.startswith("  ")]
        assert status == 0
        assert [line.split()[0] for line in lines] == list(CHECKS)
        assert all(len(line.split()) > 3 for line in lines)
        assert max(map(len, out.splitlines())) <= 80
        assert len(out.splitlines()) <= len(CHECKS) + 14

    def test_for_machines(self, command):
        rows = json.loads(command("list", "--json")[1])
        assert [row["check"] for row in rows] == list(CHECKS)


class TestExplain:
    @pytest.mark.parametrize("name", CHECKS)
    def test_every_check_has_a_page_that_reads_as_text(self, command, name):
        status, out, _ = command("explain", f"assert_{name}")
        assert status == 0
        assert out.startswith(f"{name}\n{'=' * len(name)}\n")
        prose = re.sub(r"(?m)^    .*$", "", out)  # code and rows of tables are as they are
        assert "](" not in prose
        assert "`" not in prose
        assert max(len(line) for line in prose.splitlines() if " " in line.strip()) <= 80

    def test_a_fault(self, command):
        status, out, _ = command("explain", "not_in_optimizer")
        assert status == 0
        text, fault = " ".join(out.split()), FAULTS["not_in_optimizer"]
        assert fault.title[1:] in text
        assert f"Confidence: {fault.confidence}" in text
        assert "Found by: optimizer_covers_model, weights_move" in text
        assert "loss_decreases" in text.partition("Explains:")[2]
        assert text.endswith("More: ftcheck explain optimizer_covers_model")

    @pytest.mark.parametrize("name", FAULTS)
    def test_every_fault_is_explained_from_its_declaration(self, command, name):
        status, out, _ = command("explain", name)
        assert status == 0
        assert out.startswith(f"{name}\n{'=' * len(name)}\n")
        assert max(len(line) for line in out.splitlines() if " " in line.strip()) <= 80
        assert not re.search(r"(?<!\{)\{\w+\}", out), "a field that only a run can fill in"

    def test_a_check_lists_the_faults_that_it_declares(self, command):
        out = command("explain", "padding_ignored")[1]
        listed = re.findall(r"(?m)^\* (\w+): ", out.partition("\nFaults\n")[2].partition("\nError rates\n")[0])
        assert sorted(listed) == sorted(fault.name for fault in SPECS["padding_ignored"].faults)

    def test_an_assertion_without_a_page(self, command):
        assert command("explain", "healthy")[1].startswith("assert_healthy\n\nRaise `CheckFailed` unless")

    def test_an_unknown_name(self, command):
        status, _, err = command("explain", "wieghts_move")
        assert status == 2
        assert err.startswith("ftcheck explain: 'wieghts_move' is no check and no fault; did you mean weights_move, ")
        assert "the checks are: optimizer_covers_model" in command("explain", "\u202eqqq\n")[2]


@pytest.mark.parametrize("arguments", [(), ("sho",), ("compare", "a"), ("list", "--all"), ("show",)])
def test_bad_arguments(command, arguments):
    status, out, err = command(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("usage: ftcheck")


def test_the_version(command):
    assert command("--version") == (0, f"pytest-ftcheck {pytest_ftcheck.__version__}\n", "")


def test_a_map_without_matplotlib_names_the_extra(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, err = command("map", "--std", "0.01:0.1:2", "--lr", "1e-3:1e-2:2")
    assert (status, out) == (2, "")
    assert "pip install 'pytest-ftcheck[plot]'" in err


def test_map_is_handed_on(command):
    status, out, _ = command("map", "--help")
    assert status == 0
    assert "standard deviation" in " ".join(out.split())


def test_runs_as_a_module_and_ends_well_in_a_pipe(saved):
    python = [sys.executable, "-m", "pytest_ftcheck"]
    done = subprocess.run([*python, "show", saved / "bad.json"], capture_output=True, timeout=400, check=False)
    assert done.returncode == 1
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    explained = [*python, "explain", "weights_move"]
    done = subprocess.run(explained, capture_output=True, timeout=400, check=True, env=ascii_only)
    assert rb"\u2265" in done.stdout
    script = f"{sys.executable} -m pytest_ftcheck list | head -1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=400, check=True)
    assert (done.stdout, done.stderr) == ("Optimizer\n", "")


def test_nothing_heavy_is_loaded_to_list_or_explain():
    code = (
        "import sys; from pytest_ftcheck.cli.main import main\n"
        "main(['list']); main(['explain', 'weights_move']); main(['explain', 'init_sane'])\n"
        "print({'torch', 'transformers', 'numpy', 'scipy', 'hypothesis', 'pytest'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.trains
def test_the_wheel_has_the_command_and_its_pages(tmp_path):
    pytest.importorskip("hatchling")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheel = [*pip, "wheel", ROOT, "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path]
    subprocess.run(wheel, check=True, timeout=400, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    where = tmp_path / "installed"
    install = [*pip, "install", "--no-deps", "--no-index", "--target", where, built]
    subprocess.run(install, check=True, timeout=400, capture_output=True)
    (points,) = where.glob("*.dist-info/entry_points.txt")
    assert "ftcheck = pytest_ftcheck.cli.main:main" in points.read_text()
    code = "from pytest_ftcheck.cli.main import main; main(['explain', 'all_finite']); main(['list', '-v'])"
    environment = {**os.environ, "PYTHONPATH": str(where)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=400,
        check=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.stdout.startswith("all_finite\n")
    assert "0 of 315" in done.stdout
