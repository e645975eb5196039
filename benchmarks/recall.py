"""Is a trace the same when nothing is recalled? ``python benchmarks/recall.py [--seed 5] [--minutes 5]``.

Cases of ``tests/faults``, in an order drawn at random, each fine-tuned twice: as always, and with no module before the head recalled. All
fields of the two traces are compared, but for seconds. The exit status is 1 if one differs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import behaviour
import torch

from pytest_ftcheck.instruments import recall


def fields_of(name: str) -> Any:
    """The trace of one case as plain data, or its error."""
    try:
        return json.loads(behaviour._traced("tests/faults", name).to_json())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        torch.set_grad_enabled(True)


def differences(one: Any, two: Any, path: str = "") -> list[str]:
    """Where two structures differ."""
    if isinstance(one, dict) and isinstance(two, dict):
        return [d for key in {**one, **two} for d in differences(one.get(key), two.get(key), f"{path}.{key}")]
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return [d for i, pair in enumerate(zip(one, two, strict=True)) for d in differences(*pair, f"{path}[{i}]")]
    return [] if one == two or "seconds" in path else [f"{path}: {one!r} | {two!r}"[:200]]


def main() -> int:
    """Print what differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=5.0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = sorted(importlib.import_module("faults").CASES)
    random.Random(given.seed).shuffle(names)
    find, until = recall.modules_before, time.monotonic() + 60 * given.minutes
    tried = differing = 0
    for name in names:
        one = fields_of(name)
        recall.modules_before = lambda *_: []
        try:
            found = differences(one, fields_of(name))
        finally:
            recall.modules_before = find
        tried, differing = tried + 1, differing + bool(found)
        if found:
            print(name, *found[:5], sep="\n    ", flush=True)
        if time.monotonic() > until:
            break
    print(f"{tried - differing} of {tried} traces are the same")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
