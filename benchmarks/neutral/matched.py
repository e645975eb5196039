"""Whether an operator hurts by DEForm's own test: ``python benchmarks/neutral/matched.py [--minutes N] [--only NAME ...]``.

Its authors call a mutant killed where an exact one-sided sign-flip test over five pairs of runs with the same seed gives at most 0.05. That
is one of 32 sign patterns: each of the five runs with the fault ends lower than the clean run, be it by a single row. The runs are bare
loops without any tool, kept in ``results/neutral_matched.json``; an operator that is not lower at one seed is not run at the next.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from neutral import deform
from neutral.task import Fault, accuracy, make_run

SEEDS = 5
RESULTS = Path(__file__).parents[1] / "results" / "neutral_matched.json"
CLEAN = "clean"


def end_of(fault: Fault | None, seed: int) -> float:
    """Held-out accuracy of a bare run."""
    import torch

    run = make_run(seed)
    if fault is not None:
        fault.apply(run)
    optimizer = run.optimizer(run.model)
    torch.manual_seed(seed)
    run.model.train()
    for k in range(run.steps):
        run.step(run.model, run.batches[k % len(run.batches)], optimizer)
    return accuracy(run.model, run.held_out)


def killed(ends: Sequence[float], clean: Sequence[float]) -> bool | None:
    """Whether all five runs ended lower than the clean runs of the same seeds; None: too few were run to say.

    >>> killed([0.7] * 5, [0.8] * 5), killed([0.7, 0.8], [0.8, 0.8]), killed([0.7], [0.8])
    (True, False, None)
    """
    lower = [end < other for end, other in zip(ends, clean, strict=False)]
    return False if not all(lower) else True if len(lower) >= SEEDS else None


def counts() -> tuple[int, int]:
    """Operators that are killed, and those that were judged."""
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    clean = found.pop(CLEAN, [])
    said = [killed(ends, clean) for ends in found.values()]
    return sum(s is True for s in said), sum(s is not None for s in said)


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing, for so long."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", nargs="*", help="only these operators")
    args = parser.parse_args(argv)
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    found: dict[str, list[float]] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    picked = [f for f in deform.faults() if not args.only or f.name in args.only]
    until = time.monotonic() + 60 * args.minutes
    for fault in [None, *picked]:
        ends = found.setdefault(fault.name if fault else CLEAN, [])
        while len(ends) < SEEDS and (fault is None or killed(ends, found[CLEAN]) is not False):
            if time.monotonic() > until:
                return 0
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ends.append(end_of(fault, len(ends)))
            RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(fault.name if fault else CLEAN, ends, flush=True)
    print("{} of {} operators are killed".format(*counts()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
