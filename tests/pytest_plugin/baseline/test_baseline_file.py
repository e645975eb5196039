"""The baseline's file: read strictly, written so that diffs read well, never by two at once."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys

import pytest

from pytest_ftcheck import example_trace
from pytest_ftcheck.pytest_plugin.baseline import file as module
from pytest_ftcheck.pytest_plugin.baseline.entry import Entry, RecordedMeasure, Unrecordable, entry_of
from pytest_ftcheck.pytest_plugin.baseline.file import Baseline, change, locked, same
from pytest_ftcheck.pytest_plugin.baseline.measures import SECONDS, measures
from pytest_ftcheck.pytest_plugin.baseline.run_names import file_of

ENTRY = Entry(
    {"torch": "2.13.0", "recipe": "lr=0.001 steps=20"},
    "3f2a91c07bd2",
    5,
    {"loss.drop": RecordedMeasure(0.41, 0.021), "metric.accuracy": RecordedMeasure(0.9, 0.01, 7.5)},
    {"steps": 20.0},
)


def test_a_round_trip_keeps_everything(tmp_path):
    before = Baseline({"b": ENTRY, 'a::b[ü"]': dataclasses.replace(ENTRY, seeds=1)})
    assert Baseline.from_json(before.to_json()) == before
    assert before.to_json().isascii()
    (tmp_path / "b.json").write_text(before.to_json(), encoding="utf-8")
    assert Baseline.load(tmp_path / "b.json") == before
    assert Baseline.load(tmp_path / "none.json") is None


def test_the_text_is_sorted_and_a_number_is_a_line():
    text = Baseline({"b": ENTRY, "a": ENTRY}).to_json()
    assert text.index('"a": {') < text.index('"b": {')
    assert '    "loss.drop": {"mean": 0.41, "sd": 0.021},\n' in text
    assert '    "metric.accuracy": {"mean": 0.9, "sd": 0.01, "df": 7.5}\n' in text
    changed = dataclasses.replace(ENTRY, measures={**ENTRY.measures, "loss.drop": RecordedMeasure(0.39, 0.021)})
    other = Baseline({"b": changed, "a": ENTRY}).to_json()
    differing = [pair for pair in zip(text.splitlines(), other.splitlines(), strict=True) if pair[0] != pair[1]]
    assert len(differing) == 1


def test_numbers_are_rounded_to_what_is_worth_reading():
    trace = example_trace()
    found = entry_of([trace, dataclasses.replace(trace, training_seconds=0.123456789)] * 3, {})
    assert all(len(f"{kept.mean:.12g}".replace(".", "").lstrip("0")) <= 5 for kept in found.measures.values())
    assert json.loads(Baseline({"x": found}).to_json())["runs"]["x"]["seeds"] == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("\0\1", "not valid JSON"),
        ("[]", "not a baseline file: it has no field 'kind' with the value 'ftcheck-baseline'"),
        ('{"kind": "ftcheck-session", "schema": 1}', "not a baseline file"),
        (example_trace().to_json(), "not a baseline file"),
        ('{"kind": "ftcheck-baseline", "schema": 2, "runs": {}}', "schema 2.*upgrade pytest-ftcheck"),
        ('{"kind": "ftcheck-baseline", "schema": 0, "runs": {}}', "schema 0.*write it again"),
        ('{"kind": "ftcheck-baseline", "schema": "x", "runs": {}}', "schema 'x'.*write it again"),
        ('{"kind": "ftcheck-baseline", "schema": 1, "rums": {}}', "unknown field 'rums'"),
        ('{"kind": "ftcheck-baseline", "schema": 1, "runs": []}', "expected an object"),
        ('{"kind": "ftcheck-baseline", "schema": 1, "runs": {"a": {}}}', "field 'fingerprint' is missing"),
        ("<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> main\n", "unresolved merge conflicts"),
        ('{"kind": "ftcheck-baseline", "schema": 1, "runs": {"a": 1, "a": 2}}', "'a' occurs twice"),
    ],
)
def test_what_is_no_baseline_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        Baseline.from_json(text)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": 0}, r"runs.a.seeds is 0"),
        ({"measures": {"x": RecordedMeasure(float("nan"), 1)}}, r"runs.a.measures.x: expected finite"),
        ({"measures": {"x": RecordedMeasure(1, -1)}}, r"runs.a.measures.x: expected finite"),
        ({"measures": {"x": RecordedMeasure(1, 1, 0)}}, r"runs.a.measures.x: expected finite"),
        ({"facts": {"steps": float("inf")}}, r"runs.a.facts: expected finite"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(changes, said):
    text = Baseline({"a": dataclasses.replace(ENTRY, **changes)}).to_json()
    with pytest.raises(ValueError, match=said):
        Baseline.from_json(text)


def test_bytes_that_are_no_text_and_a_folder_are_refused(tmp_path):
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file"):
        Baseline.load(tmp_path / "b.json")
    with pytest.raises(ValueError, match="expected a regular file, found a folder"):
        Baseline.load(tmp_path)


# ---------------------------------------------------------------------- changing it
def test_a_change_adds_replaces_and_drops(tmp_path):
    path, other = tmp_path / "new" / "b.json", dataclasses.replace(ENTRY, digest="other")
    assert change(path, {"a": ENTRY, "b": ENTRY, "c": ENTRY}) == (["a", "b", "c"], [], [])
    assert change(path, {"a": other, "b": ENTRY, "d": ENTRY}, drop=["b", "c", "x"]) == (["d"], ["a"], ["c"])
    assert Baseline.load(path).runs == {"a": other, "b": ENTRY, "d": ENTRY}
    assert change(path, {"b": other, "e": other}, only_new=True) == (["e"], [], [])
    assert Baseline.load(path).runs["b"] == ENTRY
    assert [p.name for p in path.parent.iterdir()] == ["b.json"]  # no lock, no half of a file


def test_the_same_run_again_makes_no_diff(tmp_path):
    path = tmp_path / "b.json"
    timed = [
        dataclasses.replace(ENTRY, measures={**ENTRY.measures, SECONDS: RecordedMeasure(s, 0.1)}) for s in (0.01, 0.02)
    ]
    change(path, {"a": timed[0]})
    before = path.stat().st_mtime_ns, path.read_bytes()
    assert same(*timed)
    assert change(path, {"a": timed[1]}) == ([], [], [])
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


def test_a_file_that_is_not_ours_is_never_overwritten(tmp_path):
    path = tmp_path / "b.json"
    path.write_text('{"kind": "ftcheck-baseline", "schema": 2}')
    with pytest.raises(ValueError, match="upgrade"):
        change(path, {"a": ENTRY})
    assert path.read_text() == '{"kind": "ftcheck-baseline", "schema": 2}'


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "b.json"
    change(path, {"a": ENTRY})
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        change(path, {"b": ENTRY})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["b.json"]


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OSError, match="denied"):
            change(tmp_path / "b.json", {"a": ENTRY})
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "folder").write_text("")
    with pytest.raises((OSError, ValueError)):
        change(tmp_path / "folder" / "b.json", {"a": ENTRY})


def test_a_lock_that_is_not_released_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    with locked(tmp_path / "b.json"), pytest.raises(OSError, match=r"another process has held its lock for 0.05 s"):
        change(tmp_path / "b.json", {"a": ENTRY})


WRITER = """
import sys, time
from pathlib import Path
from pytest_ftcheck.pytest_plugin.baseline.entry import Entry, RecordedMeasure
from pytest_ftcheck.pytest_plugin.baseline.file import change

path, name = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for i in range(20):
    change(path, {f"{name}{i:02}": Entry({"torch": "2"}, "d", 5, {"loss.drop": RecordedMeasure(1.0, 0.1)})})
"""


def test_two_processes_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / "b.json"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in "ab"
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        _, _ = process.communicate(timeout=300)
        assert process.returncode == 0
    assert sorted(Baseline.load(path).runs) == sorted(f"{name}{i:02}" for name in "ab" for i in range(20))


# ---------------------------------------------------------------------- entries
def test_a_run_that_ended_early_makes_no_entry():
    with pytest.raises(Unrecordable, match=r"ended early \(max_seconds=1"):
        entry_of([example_trace(stopped="max_seconds=1 reached after 3 of 20 steps")], {})


def test_a_number_that_is_not_finite_makes_no_entry():
    trace = example_trace()
    first, *rest = trace.iterations
    broken = dataclasses.replace(
        trace, probe_loss=None, iterations=(dataclasses.replace(first, loss=float("nan")), *rest)
    )
    with pytest.raises(Unrecordable, match=r"training_loss\.drop is nan"):
        entry_of([broken] * 3, {})


def test_several_seeds_keep_the_probe_and_one_run_what_has_noise():
    trace = example_trace()
    many, one = entry_of([trace] * 5, {}), entry_of([trace], {})
    assert "loss.drop" in many.measures
    assert "training_loss.drop" not in many.measures
    assert "loss.drop" not in one.measures
    assert one.measures["training_loss.drop"].df > 1
    assert not any(name.startswith("motion.") for name in one.measures)
    assert one.comparisons == len(one.measures) - 1


def test_a_group_that_stands_still_under_every_seed_is_kept_as_still():
    trace = example_trace()
    still = tuple(
        dataclasses.replace(t, motion=dataclasses.replace(t.motion, by_gradient=0.0)) if t.part != "head" else t
        for t in trace.tensors
    )
    names = [n for n in measures(trace) if n.startswith("motion.base")]
    quiet = dataclasses.replace(trace, tensors=still)
    assert {entry_of([quiet] * 3, {}).measures[n] for n in names} == {RecordedMeasure(0.0, 0.0)}
    assert not set(names) & entry_of([quiet, trace, trace], {}).measures.keys()


def test_keys_know_their_file():
    assert file_of("tests/test_a.py::TestA::test_b[x::y] #2") == "tests/test_a.py"
    assert file_of("::trace") == ""
