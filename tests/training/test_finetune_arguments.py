"""The arguments of ``finetune`` are listed once, with their types."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_ftcheck import Recipe
from pytest_ftcheck.training.finetune_arguments import ARGUMENTS, FinetuneArguments, OwnArguments

ROOT = Path(__file__).parents[2]


def test_the_list_holds_every_field_of_the_recipe():
    assert set(FinetuneArguments.__annotations__) == {*OwnArguments.__annotations__, *Recipe.field_names()}


def test_the_names_are_those_of_the_list():
    assert ARGUMENTS[0] == "recipe"
    assert ARGUMENTS[-2:] == ("seeds", "executor")
    assert set(ARGUMENTS) - set(OwnArguments.__annotations__) == {"recipe", "seeds", "executor"}


def test_the_list_imports_no_torch():
    code = "import sys, pytest_ftcheck.training.finetune_arguments; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_types_are_checked_and_the_result_is_typed(tmp_path):
    pytest.importorskip("mypy")
    source = tmp_path / "calls.py"
    source.write_text(
        "from pytest_ftcheck import Recipe, finetune, tiny_distilbert, toy_batches\n"
        "reveal_type(finetune(tiny_distilbert, toy_batches(), Recipe(), lr=1e-3, steps=5, head='classifier'))\n"
        "reveal_type(finetune(tiny_distilbert, toy_batches(), seeds='auto', optimizer='sgd'))\n"
        "finetune(tiny_distilbert, toy_batches(), stepz=5)\n"
        "finetune(tiny_distilbert, toy_batches(), steps='five')\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(source)],
        cwd=ROOT,  # whose cache it uses
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    found = {n: " ".join(line for line in lines if f"calls.py:{n}:" in line) for n in range(2, 6)}
    assert "core.trace.Trace" in found[2]
    assert "seeds.runs.Runs" in found[3]
    assert "error" in found[4]
    assert "error" in found[5]
