"""Files are written whole or not at all."""

from __future__ import annotations

import os
import stat

import pytest

from pytest_ftcheck.core.files import NotRegular, append, irregular, not_writable, read_text, write_atomically


def test_writes_and_replaces_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "b" / "c.json"
    write_atomically(path, "one")
    write_atomically(path, "twö\n")
    assert path.read_bytes() == "twö\n".encode()
    assert [p.name for p in path.parent.iterdir()] == ["c.json"]


def test_keeps_the_mode_and_the_link(tmp_path):
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    write_atomically(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_a_new_file_has_the_mode_that_any_new_file_has(tmp_path):
    (tmp_path / "plain").write_text("")
    write_atomically(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_what_fails_half_way_leaves_the_old_file(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.json"
    path.write_text("old")

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def special_files(folder):
    """Files that are no regular ones, and what they are."""
    found = {os.devnull: "a device", folder: "a folder"}
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe")
        (folder / "link").symlink_to(folder / "pipe")
        found |= {folder / "pipe": "a named pipe", folder / "link": "a named pipe", "/dev/zero": "a device"}
    return found


@pytest.mark.timeout(20)  # a pipe that is opened waits for its other end
def test_what_is_no_regular_file_is_neither_read_nor_written(tmp_path):
    for path, kind in special_files(tmp_path).items():
        for use in (read_text, lambda p: write_atomically(p, "x"), lambda p: append(p, "x")):
            with pytest.raises(NotRegular, match=f"expected a regular file, found {kind}"):
                use(path)
        assert not_writable(path) == irregular(path) == f"it is {kind}"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.timeout(20)
def test_a_pipe_that_takes_the_files_place_is_refused_when_it_is_open(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    regular = os.stat(tmp_path / "file")  # noqa: PTH116
    monkeypatch.setattr(os, "stat", lambda *a, **k: regular)
    with pytest.raises(NotRegular, match="named pipe"):
        read_text(tmp_path / "pipe")


def test_a_file_that_is_too_large_is_refused(tmp_path):
    (tmp_path / "a").write_text("12345")
    assert read_text(tmp_path / "a", largest=5) == "12345"
    with pytest.raises(ValueError, match="expected at most 4 bytes, found more"):
        read_text(tmp_path / "a", largest=4)


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_why_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path, reason in {
        tmp_path / ("a" * 300): "File name too long",
        tmp_path / "new" / ("ä" * 200): "a name of 400 bytes is longer than 255",
        tmp_path / ("a" * 300) / "b": "File name too long",
        tmp_path / "/".join(["a" * 200] * 30): "File name too long",
        tmp_path / "file" / "b": "Not a directory",
        "a\0b": "embedded null byte",
    }.items():
        assert reason in not_writable(path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "symbolic links" in not_writable(tmp_path / "loop")
    assert not_writable(tmp_path / "file") == not_writable(tmp_path / "new" / "deep" / ("a" * 255)) == ""
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("file", "loop")] == []


def test_the_longest_name_there_is_is_written(tmp_path):
    path = tmp_path / ("ä" * 127)
    assert not_writable(path) == ""
    write_atomically(path, "x")
    assert path.read_text() == "x"


def test_what_is_added_in_part_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "summary.md"
    append(path, "one\n")
    append(path, "twö\n")
    write, calls = os.write, []

    def full(descriptor, data):
        calls.append(data)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:2])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        append(path, "three\n")
    monkeypatch.undo()
    assert path.read_bytes() == "one\ntwö\n".encode()


def test_a_lone_surrogate_is_no_reason_to_lose_the_report(tmp_path):
    write_atomically(tmp_path / "a", "a\udc80b")
    assert (tmp_path / "a").read_bytes() == b"a\\udc80b"
