"""Shared by all tests and doctests of the project; collects the blocks of the documentation as tests, with what they print."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sybil import Document, Example, Region, Sybil

pytest_plugins = ["pytester"]

# One thread for torch, here and in the processes that tests and blocks start: where each worker of xdist has a processor, threads of
# several wait for each other most of the time (a fine-tune of six layers took four times the processor time on two cores under load)
if "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    if (torch := sys.modules.get("torch")) is not None:  # a plugin may have imported it
        torch.set_num_threads(1)

_ROOT = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("docs_outputs", _ROOT / "docs" / "build" / "outputs.py")
assert _spec is not None
assert _spec.loader is not None
outputs = importlib.util.module_from_spec(_spec)
sys.modules["docs_outputs"] = outputs
_spec.loader.exec_module(outputs)


def _parsed(document: Document) -> Iterator[Region]:
    found = outputs.blocks(document.text)
    if found and outputs.IN_ORDER.search(document.text):
        yield Region(found[0].start, found[-1].end, found, _evaluate)
        return
    for block in found:
        yield Region(block.start, block.end, [block], _evaluate)


def _evaluate(example: Example) -> None:
    """Runs the blocks; the page has to show what they print, and to have the pictures that they save."""
    page = Path(example.path)
    if outputs.BUILT in example.document.text:
        printed, pictures = outputs.made(page)
        saved = set(pictures)
        for block, output in zip(example.parsed, printed, strict=True):
            _compare(page, block, output)
    else:
        from pytest_ftcheck.instruments.task_readers.registered import registered_tasks, tasks_alone

        namespace: dict[str, object] = {"__name__": "__main__"}
        with outputs.workshop() as folder, tasks_alone(registered_tasks()):  # a page may register one
            for block in example.parsed:
                _compare(page, block, outputs.execute(block, str(page), namespace))
            saved = {p.name for p in folder.iterdir() if p.suffix in outputs.PICTURES}
    missing = saved - {p.name for p in outputs.pictures_of(page).glob("*")}
    assert not missing, f"{page.name} saves {sorted(missing)}, which docs/images/{page.stem} does not have"


def _compare(page: Path, block: Any, printed: str) -> None:
    if block.output is not None and not outputs.alike(block.output, printed):
        raise AssertionError(
            f"{page.name}, line {block.line + 1}: other output than shown; if it is right, run "
            f"python docs/build/outputs.py {page.relative_to(_ROOT)} --write\n{outputs.difference(block.output, printed)}"
        )


# `**` is one folder here, before Python 3.13
pytest_collect_file = Sybil(
    parsers=[_parsed], patterns=["docs/*.md", "docs/**/*.md", "docs/reference/checks/*.md", "README.md"]
).pytest()
