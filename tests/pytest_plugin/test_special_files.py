"""Files that a session reads and writes: what is no regular file, or cannot be there, ends it before any test, and nothing hangs."""

from __future__ import annotations

import os

import pytest

OPTIONS = ("json", "sarif", "gitlab", "html", "baseline")
pytestmark = [
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes, and other limits"),
    pytest.mark.timeout(60),  # a pipe that is opened waits for its other end
]


@pytest.fixture
def project(pytester):
    pytester.makepyfile(test_it="from judging import judge\ndef test_it():\n    judge('pass')\n")
    os.mkfifo(pytester.path / "pipe")
    (pytester.path / "loop").symlink_to("loop")
    (pytester.path / "file").write_text("")
    return pytester.path


@pytest.mark.parametrize("option", OPTIONS)
def test_is_one_usage_error(project, run, option):
    expected = "a file name" if option == "baseline" else "the name of a file to write"
    for name, reason in {
        "pipe": "it is a named pipe",
        "/dev/zero": "it is a device",
        "loop": "*symbolic links*",
        "file/x": "Not a directory",
        "a" * 300: "File name too long",
        "/".join(["a" * 200] * 30): "File name too long",
        "~nobody-of-that-name/x": "*home directory*",
        "file/\x1b[31m\n::error::x": "Not a directory",
    }.items():
        result = run(f"--ftcheck-{option}={name}")
        assert result.ret == pytest.ExitCode.USAGE_ERROR, name
        (line,) = [line for line in result.stderr.lines if line.strip()]
        assert line.startswith(f"ERROR: --ftcheck-{option}=")
        assert line.isprintable()
        assert f"expected {expected} (" in line
        result.stderr.fnmatch_lines([f"*({reason})"])
        assert "test_it" not in result.stdout.str()
        assert "INTERNALERROR" not in result.stdout.str()


def test_an_ini_key_too(project, run):
    result = run("-oftcheck_json=pipe")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: ftcheck_json = pipe: expected the name of a file to write (it is a named pipe)"]
    )


def test_a_summary_that_is_a_pipe_costs_no_verdict(project, run, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "pipe")
    result = run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["ftcheck: warning: GITHUB_STEP_SUMMARY was not written: *found a named pipe. Test results*"]
    )


def test_ordinary_paths_are_written(project, run):
    """The twin: a new folder, a link to a file, the longest name there is."""
    (project / "link").symlink_to("target")
    for name in ("new/deep/x.json", "link", "a" * 255):
        run(f"--ftcheck-json={name}").assert_outcomes(passed=1)
        assert (project / name).read_text().startswith("{")
    assert (project / "link").is_symlink()
