"""Do checks decide the same where a model is costly? ``python benchmarks/sparing.py [--healthy 40] [--steps 20]``.

Where a forward pass is costly, `finetune` makes no more of them than decide: fewer descents and points of the loss on the fixed rows. Cases
of ``tests/faults`` that name the check, and healthy ones drawn at random, are fine-tuned twice: as the small models that they are, and as
if they were costly. The verdicts of all checks are compared. The exit status is 1 if a status or a fault differs.
``--steps``: of each run (default: the case's own), for only runs of up to 21 steps wait for their first point.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import torch

from pytest_ftcheck import diagnose, finetune
from pytest_ftcheck.training import run

SEED = 0


def verdicts(case: Any, steps: int | None) -> tuple[dict[str, tuple[str, str]], int]:
    """Check -> status and fault, and how many times the loss was evaluated on rows; or the error in place of them."""
    try:
        made = case.build(SEED)
        arguments = {k: v for k, v in made.arguments().items() if k != "model"}
        trace = finetune(made.model, **{**arguments, "steps": steps or arguments["steps"]})
    except Exception as error:
        return {"error": (type(error).__name__, str(error)[:80])}, 0
    finally:
        torch.set_grad_enabled(True)
    loss = trace.probe_loss
    evaluated = 0 if loss is None else 2 * len(loss.descents) + len(loss.points)
    return {v.check: (v.status, v.fault) for v in diagnose(trace).verdicts}, evaluated


def main() -> int:
    """Print what differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", default="loss_decreases")
    parser.add_argument("--healthy", type=int, default=40)
    parser.add_argument("--seed", type=int, default=5, help="of the draw")
    parser.add_argument("--steps", type=int)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cases: dict[str, Any] = importlib.import_module("faults").CASES
    chosen = [name for name, case in cases.items() if given.check in case.expected and not case.healthy]
    healthy = sorted(name for name, case in cases.items() if case.healthy and not case.slow)
    random.Random(given.seed).shuffle(healthy)
    least, differing = run.LARGE, 0
    passes = [0, 0]
    for name in [*chosen, *healthy[: given.healthy]]:
        small, before = verdicts(cases[name], given.steps)
        run.LARGE = 0
        try:
            costly, after = verdicts(cases[name], given.steps)
        finally:
            run.LARGE = least
        passes = [passes[0] + before, passes[1] + after]
        found = {check: (small.get(check), costly.get(check)) for check in {**small, **costly}}
        found = {check: pair for check, pair in found.items() if pair[0] != pair[1]}
        differing += bool(found)
        if found:
            print(name, *(f"    {check}: {a} | {b}" for check, (a, b) in found.items()), sep="\n", flush=True)
    count = len(chosen) + len(healthy[: given.healthy])
    print(
        f"{count - differing} of {count} cases are judged the same; the loss was evaluated {passes[0]} and {passes[1]} times"
    )
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
