"""Files are written whole or not at all."""

from __future__ import annotations

import os
import stat

import pytest

from pytest_ftcheck.core.files import write_atomically


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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")  # noqa: PTH110
def test_what_is_no_ordinary_file_is_written_to_as_it_is():
    write_atomically("/dev/null", "x")
    with pytest.raises(OSError, match="No space left"):
        write_atomically("/dev/full", "x")
    assert os.path.exists("/dev/full")  # noqa: PTH110


def test_a_lone_surrogate_is_no_reason_to_lose_the_report(tmp_path):
    write_atomically(tmp_path / "a", "a\udc80b")
    assert (tmp_path / "a").read_bytes() == b"a\\udc80b"
