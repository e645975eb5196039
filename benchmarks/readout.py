"""What a linear layer reads off altered features: ``python benchmarks/readout.py [--operators QSW ETZ ...] [--draws 200] [--seed 0]``.

The numbers behind `checks/head/harm.py` and `checks/head/probe/readout.py`: right answers by the strength of the penalty, what each of
DEForm's operators takes away (``pip install --no-deps defaultplusplus==0.4.1``), and how often two equally good features differ by chance:
random projections of the same ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from neutral import deform
from neutral.task import Run, make_run

from pytest_ftcheck.checks.head.harm import CHANCE, LOST
from pytest_ftcheck.checks.head.probe import readout
from pytest_ftcheck.checks.head.probe.ablation import ridge

#: Operators that alter what the base computes or starts from.
OPERATORS = ["QZQ", "QZK", "QZV", "QSW", "ETZ", "ESW", "ESS", "FSW", "FDN", "NSG", "RIN", "POE", "SDS*", "PSI*"]
#: Numbers a projection keeps, of 384.
KEPT = 96


@torch.no_grad()
def features(run: Run, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the classifier, and the labels; held-out rows first."""
    model, found, labels = run.model.eval(), [], []
    handle = model.classifier.register_forward_pre_hook(lambda _, given: found.append(given[0].clone()))
    for batch in [*run.held_out, *run.batches]:
        if sum(map(len, labels)) >= rows:
            break
        torch.manual_seed(0)
        model(**batch)
        labels.append(batch["labels"])
    handle.remove()
    return torch.cat(found)[:rows], torch.cat(labels)[:rows]


def by_strength(x: torch.Tensor, y: torch.Tensor) -> None:
    """Right answers of the cross-validated fit, by the penalty."""
    fold = torch.arange(len(y)) % readout.FOLDS
    for strength in (0.01, 0.1, 1.0, 10.0):
        right = 0
        for k in range(readout.FOLDS):
            rest = fold != k
            right += int((ridge(x[rest].double(), y[rest], x[~rest].double(), 5, strength) == y[~rest]).sum())
        print(f"penalty {strength:g}: {right / len(y):.2f} of {len(y)} rows right")


def by_chance(x: torch.Tensor, y: torch.Tensor, draws: int) -> None:
    """How often one of two random projections counts as clearly worse than the other."""
    by_p = by_both = 0
    g = torch.Generator().manual_seed(0)
    for _ in range(draws):
        first, second = (x @ torch.randn(x.shape[1], KEPT, generator=g) for _ in range(2))
        found = readout.compared(first, second, y, 0)
        assert found is not None
        by_p += found.p_value < CHANCE
        by_both += found.p_value < CHANCE and found.lost >= LOST
    print(f"equally good: p below {CHANCE:g} in {by_p} of {draws}, and a third lost in {by_both}")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operators", nargs="*", default=OPERATORS)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the rows")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    by_strength(*features(make_run(args.seed), 416))
    x, y = features(make_run(args.seed), readout.MOST)
    by_chance(x, y, args.draws)
    for fault in deform.faults():
        if fault.name in args.operators:
            run = make_run(args.seed)
            fault.apply(run)
            found = readout.compared(x, features(run, readout.MOST)[0], y, 0)
            assert found is not None
            print(
                f"{fault.name}: {found.altered:.2f} for {found.unaltered:.2f}, lost {found.lost:.2f}, p {found.p_value:.1g}"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
