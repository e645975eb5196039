"""What must be equal for two runs to be comparable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from ...core.trace import Trace

#: Hexadecimal digits of a hash: enough that a change is never missed, few enough to be read in a diff.
DIGITS = 12
#: In the fingerprint, though runs of different hosts are compared: only seconds and rounding depend on it.
HOST = "host"
#: Hashes of the batches, and of the rows that the metrics are taken on.
DATA, EVALUATION = "data", "evaluation"
#: Fields of the recipe that are elsewhere in the fingerprint, or that do not change what a run measures.
_EXCLUDED = ("seed", "device", "threads", "dtype", "max_seconds")


def fingerprint(trace: Trace, data: str | None, evaluation: str | None = None) -> dict[str, str]:
    """The setup of a run, as text by name: ``torch``, ``transformers``, ``device``, ``dtype``, ``threads``, ``recipe``, ``data``,
    ``evaluation``, ``model`` and ``host``.

    Nothing that a run *measured* is in it: a schedule that went wrong is a regression, not another setup.

    :param data: hash of the batches; None: not known (a watched loop).
    :param evaluation: hash of the rows that the metrics are taken on; None: not known, or there are none.

    >>> from pytest_ftcheck import example_trace
    >>> sorted(fingerprint(example_trace(environment={"device": "cpu"}), "3f2a91c07bd2"))
    ['data', 'device', 'host', 'model', 'recipe', 'torch', 'transformers']
    """
    environment = trace.environment
    found: dict[str, str] = {
        name: environment[name] for name in ("device", "dtype", "threads", "gpu") if name in environment
    }
    found["torch"] = environment.get("torch") or _version("torch")
    # the installed version: whether transformers is loaded depends on which tests ran before
    found["transformers"] = _version("transformers")
    found["recipe"] = _recipe(trace)
    found["model"] = _model(trace)
    if data is not None:
        found[DATA] = data
    if evaluation is not None:
        found[EVALUATION] = evaluation
    found[HOST] = host()
    return found


def differing(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What differs, as ``torch 2.12.0 -> 2.13.0``; the host is left out, and so are evaluation rows that one of them does not know.

    >>> differing({"torch": "2.12.0", "host": "a"}, {"torch": "2.13.0", "host": "b"})
    ['torch 2.12.0 -> 2.13.0']
    """
    differences = []
    for name in _differing_names(before, after):
        a, b = before.get(name, "unknown"), after.get(name, "unknown")
        if name == "recipe":
            a, b = _only_differing(a, b)
        differences.append(f"{name} {a} -> {b}")
    return differences


def _differing_names(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    names = sorted({*before, *after} - {HOST})
    # a baseline of an earlier version has no hash of the evaluation rows
    left_out = {EVALUATION} - (before.keys() & after.keys())
    return [name for name in names if name not in left_out and before.get(name) != after.get(name)]


def comparable(
    before: Mapping[str, str], after: Mapping[str, str]
) -> Literal["all", "metrics", "all but metrics", "nothing"]:
    """Which numbers of two runs can be compared: only the metrics where the training data differ and the evaluation rows do not.

    >>> comparable({"data": "a", "evaluation": "x"}, {"data": "b", "evaluation": "x"})
    'metrics'
    """
    names = _differing_names(before, after)
    if not names:
        return "all"
    if names == [EVALUATION]:
        return "all but metrics"
    return "metrics" if names == [DATA] and EVALUATION in before and EVALUATION in after else "nothing"


def _only_differing(a: str, b: str) -> tuple[str, str]:
    """The fields in which two recipes differ."""
    x, y = a.split(), b.split()
    return " ".join(w for w in x if w not in y) or "-", " ".join(w for w in y if w not in x) or "-"


def _recipe(trace: Trace) -> str:
    recipe = trace.recipe
    if recipe is None:
        return trace.source
    fields = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe) if f.name not in _EXCLUDED}
    return " ".join(f"{name}={value}" for name, value in sorted(fields.items()))


def _model(trace: Trace) -> str:
    """Hash of names and shapes; not of what is trainable, because freezing by accident is a regression."""
    plain = [[t.name, list(t.shape), t.part] for t in sorted(trace.tensors, key=lambda t: t.name)]
    return short_hash(json.dumps([plain, sorted(b.name for b in trace.buffers)]))


def short_hash(text: str) -> str:
    """
    >>> short_hash("a")
    'ca978112ca1b'
    """
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:DIGITS]


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@cache
def host() -> str:
    """The kind of machine: processor and number of usable ones."""
    name = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        usable = os.cpu_count() or 1
    return f"{platform.system()} {platform.machine()}, {usable} x {name or 'processor'}"
