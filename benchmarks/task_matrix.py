"""Tasks x faults, over seeds: ``python benchmarks/task_matrix.py OUT.json [--seeds 20] [--minutes 10] [--only causal-lm "lr 0"]``.

Tiny models of eight tasks that transformers has classes for, each healthy and with one fault (``tests/task_cells.py``). What is known is
read from OUT and not run again, so a run that was stopped goes on. Printed are right answers of the runs of each cell: the cause first,
or no failed check in a healthy run. The exit status is 1 if a healthy run has a failed check, or a fault that should be found is not
the first cause.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from task_cells import ARCHITECTURES, CELLS, CHANGES, MISSED, is_right, verdict_of


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument(
        "--only", nargs="*", choices=[*ARCHITECTURES, *CHANGES], help="some tasks or faults; default: all"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    known: dict[str, str] = json.loads(options.out.read_text()) if options.out.exists() else {}
    end = time.monotonic() + 60 * options.minutes
    cells = [c for c in CELLS if not options.only or set(c) & set(options.only)]
    for seed in range(options.seeds):
        for task, fault in cells:
            key = f"{task} | {fault} | {seed}"
            if key in known or time.monotonic() > end:
                continue
            try:
                known[key] = verdict_of(task, fault, seed)
            except Exception as error:
                known[key] = f"{type(error).__name__}: {error}"[:200]
            options.out.write_text(json.dumps(known, indent=1) + "\n")
    return _report(known)


def _report(known: dict[str, str]) -> int:
    found: dict[tuple[str, str], Counter[str]] = {}
    for key, verdict in known.items():
        task, fault, _ = key.split(" | ")
        found.setdefault((task, fault), Counter())[verdict] += 1
    print(f"| task | {' | '.join(CHANGES)} |\n|---|{'---|' * len(CHANGES)}")
    wrong = 0
    for task in ARCHITECTURES:
        row = []
        for fault in CHANGES:
            verdicts = found.get((task, fault), Counter())
            right = sum(n for verdict, n in verdicts.items() if is_right(fault, verdict))
            row.append(f"{right} of {verdicts.total()}" if verdicts else "")
            if right < verdicts.total() and (task, fault) not in MISSED:
                wrong += verdicts.total() - right
        print(f"| {task} | {' | '.join(row)} |")
    for cell, verdicts in found.items():
        others = {v: n for v, n in verdicts.items() if not is_right(cell[1], v)}
        if others:
            print(f"{': '.join(cell)}: {others}{'; known: ' + MISSED[cell] if cell in MISSED else ''}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
