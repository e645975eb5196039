"""How often the two retraining checks are right: ``python benchmarks/retraining.py [--seeds N] [--only overfit|permuted]``.

Every healthy control and every fault of ``tests/faults``, and set-ups of this file that are made to be hard for these two checks, are
measured with ``probes=["overfit", "permuted"]``. The cases of ``tests/faults`` keep their model, loss, data and optimizer; their own
loop is left out for ``permuted``, which runs only loops of ours. The exit status is 1 if a healthy run failed either check.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from pytest_ftcheck import check_beats_permuted_labels, check_overfits_one_batch, finetune, tiny_distilbert, toy_batches

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from faults import CONTROLS, FAULTS
from faults.cases import Run

CHECKS = {"overfit": check_overfits_one_batch, "permuted": check_beats_permuted_labels}


def relabelled(batches: list[Any], seed: int, how: str = "shuffled") -> list[Any]:
    """Labels dealt out anew among all rows, or moved on by one row."""
    labels = torch.cat([y for _, y in batches])
    g = torch.Generator().manual_seed(seed)
    other = labels[torch.randperm(len(labels), generator=g)] if how == "shuffled" else labels.roll(1)
    return [(x, y) for (x, _), y in zip(batches, other.split([len(y) for _, y in batches]), strict=True)]


def toy(seed: int, *, batches: int = 12, model: Any = None, change: Any = None, **options: Any) -> dict[str, Any]:
    """A fine-tune of the default model; ``change`` gets the training batches."""
    data = toy_batches(batches, seed=2 * seed, classes=options.pop("classes", 2), keywords=options.pop("keywords", 0.5))
    held = toy_batches(6, seed=2 * seed + 1)
    return {
        "model": model or tiny_distilbert(seed=seed),
        "batches": change(data) if change else data,
        "eval_batches": held,
        "steps": 60,
        "lr": 1e-3,
        **options,
    }


def linear_on_frozen(seed: int) -> dict[str, Any]:
    model = tiny_distilbert(seed=seed)
    model.requires_grad_(False)
    torch.manual_seed(seed)
    model.classifier = nn.Linear(64, 2)
    return toy(seed, model=model)


def numbers(
    seed: int, rule: Callable[[torch.Tensor], torch.Tensor], rows: int = 16, steps: int = 100
) -> dict[str, Any]:
    """Rows of eight numbers and a small network."""
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    x = [torch.randn(16, 8, generator=g) for _ in range(rows + 8)]
    made = [(v, rule(v)) for v in x]
    outputs = 2 if not made[0][1].is_floating_point() else 1
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))
    return {
        "model": model,
        "batches": made[:rows],
        "eval_batches": made[rows:],
        "steps": steps,
        "lr": 5e-3,
        "head": "4",
    }


def lstm(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.reader, self.head = (
                nn.Embedding(200, 32),
                nn.LSTM(32, 32, batch_first=True),
                nn.Linear(32, 2),
            )

        def forward(self, inputs: Any) -> Any:
            return self.head(self.reader(self.words(inputs[0]))[0].mean(1))

    return toy(seed, model=Reader(), head="head")


def one_logit(seed: int) -> dict[str, Any]:
    model = tiny_distilbert(seed=seed)
    torch.manual_seed(seed)
    model.classifier[3] = nn.Linear(64, 1)
    return toy(
        seed,
        model=model,
        loss_fn=lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]).squeeze(-1), b[1].float()),
    )


def weighted(seed: int) -> dict[str, Any]:
    weight = torch.tensor([1.0, 4.0])
    return toy(seed, loss_fn=lambda m, b: F.cross_entropy(m(b[0]), b[1], weight=weight, label_smoothing=0.2))


def imbalanced(seed: int) -> dict[str, Any]:
    def keep(data: list[Any]) -> list[Any]:
        out = []
        for (ids, length, mask), y in data:
            order = torch.cat([torch.nonzero(y == 0)[:, 0], torch.nonzero(y == 1)[:1, 0]])
            out.append(((ids[order], length[order], mask[order]), y[order]))
        return out

    return toy(seed, batches=20, change=keep)


def zero_rate_part(seed: int) -> dict[str, Any]:
    model = tiny_distilbert(seed=seed)
    optimizer = torch.optim.AdamW(
        [{"params": model.base_model.parameters(), "lr": 0.0}, {"params": model.classifier.parameters(), "lr": 3e-3}]
    )
    made = toy(seed, model=model, optimizer=optimizer)
    made.pop("lr")
    return made


def repeated_inputs(seed: int) -> dict[str, Any]:
    """Each row four times, one of the four under another label."""

    def four(data: list[Any]) -> list[Any]:
        out = []
        for (ids, length, mask), y in data:
            order = torch.arange(4).repeat_interleave(4)
            flipped = y[order].clone()
            flipped[::4] = 1 - flipped[::4]
            out.append(((ids[order], length[order], mask[order]), flipped))
        return out

    return toy(seed, change=four)


HEALTHY: dict[str, Callable[[int], dict[str, Any]]] = {
    "the default model": toy,
    "no held-out rows": lambda s: {k: v for k, v in toy(s).items() if k != "eval_batches"},
    "the founding question's 5e-5, 20 steps": lambda s: toy(s, lr=5e-5, steps=20),
    "few words tell the class": lambda s: toy(s, keywords=0.1),
    "few words, 32 rows, many rounds": lambda s: toy(s, keywords=0.1, batches=2, steps=100),
    "few words, 128 rows, many rounds": lambda s: toy(s, keywords=0.1, batches=8, steps=150),
    "one layer, four classes": lambda s: {
        **toy(s, classes=4, model=tiny_distilbert(4, seed=s, n_layers=1)),
        "eval_batches": toy_batches(6, seed=2 * s + 1, classes=4),
    },
    "width 256, 6 layers": lambda s: toy(
        s, model=tiny_distilbert(seed=s, dim=256, hidden_dim=512, n_layers=6), steps=30, lr=2e-4, batches=4
    ),
    "linear head on a frozen random base": linear_on_frozen,
    "one logit": one_logit,
    "class weights and strong smoothing": weighted,
    "one row in nine of the rare class": imbalanced,
    "base at rate 0": zero_rate_part,
    "equal rows under different labels": repeated_inputs,
    "LSTM": lstm,
    "plain SGD": lambda s: toy(s, optimizer="sgd", lr=0.1),
    "numbers, linear rule": lambda s: numbers(s, lambda x: (x[:, 0] > 0).long()),
    "numbers, exclusive or": lambda s: numbers(s, lambda x: ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()),
    "numbers, regression": lambda s: numbers(s, lambda x: x[:, :1] * x[:, 1:2]),
    "numbers, labels half noise": lambda s: numbers(
        s, lambda x: torch.where(torch.rand(len(x)) < 0.5, (x[:, 0] > 0).long(), torch.randint(2, (len(x),)))
    ),
}
FAULTY: dict[str, Callable[[int], dict[str, Any]]] = {
    "labels shuffled, short run": lambda s: toy(s, change=lambda d: relabelled(d, s)),
    "labels shuffled, learnt by heart": lambda s: toy(s, change=lambda d: relabelled(d, s), steps=240, lr=2e-3),
    "labels shifted by a row, learnt by heart": lambda s: toy(
        s, change=lambda d: relabelled(d, s, "shifted"), steps=240, lr=2e-3
    ),
    "labels shuffled, numbers, learnt by heart": lambda s: {
        **numbers(s, lambda x: torch.randint(2, (len(x),)), steps=200)
    },
    "loss shuffles the labels": lambda s: toy(
        s, loss_fn=lambda m, b: F.cross_entropy(m(b[0]), b[1][torch.randperm(len(b[1]))])
    ),
    "loss takes the neighbour's label": lambda s: toy(s, loss_fn=lambda m, b: F.cross_entropy(m(b[0]), b[1].roll(1))),
    "loss negated": lambda s: toy(s, loss_fn=lambda m, b: -F.cross_entropy(m(b[0]), b[1])),
    "features times zero": lambda s: toy(s, model=Zeroed(s)),
    "hidden units off": lambda s: toy(s, model=dead(s)),
}


class Zeroed(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.inner = tiny_distilbert(seed=seed)

    def forward(self, inputs: Any) -> Any:
        ids, _length, mask = inputs
        return self.inner.classifier(0 * self.inner.base_model(ids, attention_mask=mask)[0][:, 0])


def dead(seed: int) -> nn.Module:
    model = tiny_distilbert(seed=seed)
    with torch.no_grad():
        model.classifier[0].bias.fill_(-1000)
    return model


def arguments_of(run: Run, probe: str) -> dict[str, Any]:
    """A case of tests/faults for one probe."""
    made = run.arguments()
    made.pop("evaluate", None)
    if probe == "permuted":
        made.pop("step", None)
    else:
        made["steps"] = min(made["steps"], 4)  # it starts from the weights of the start, whatever became of them
    return made


def verdict(made: dict[str, Any], probe: str) -> tuple[str, str, str]:
    """Status, fault and headline."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = CHECKS[probe](finetune(made.pop("model"), probes=[probe], **made))
        except (ValueError, TypeError) as error:
            return "refused", "", str(error)
        finally:
            torch.set_grad_enabled(True)
    return found.status, found.fault, found.headline


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=list(CHECKS), default=None)
    parser.add_argument("--own", action="store_true", help="leave the cases of tests/faults out")
    parser.add_argument("--named", default="", help="only cases with this in their name")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    began, alarms = time.perf_counter(), 0
    print(f"torch {torch.__version__}, {options.seeds} seeds")
    for probe in [options.only] if options.only else list(CHECKS):
        for title, own, cases in (("healthy", HEALTHY, CONTROLS), ("faulty", FAULTY, FAULTS)):
            counts: dict[str, Counter[str]] = {"this file": Counter(), "tests/faults": Counter()}
            for name, build in own.items():
                if options.named not in name:
                    continue
                for seed in range(options.seeds):
                    status, fault, headline = verdict(build(seed), probe)
                    counts["this file"][f"{status} {fault}".strip()] += 1
                    alarms += title == "healthy" and status == "fail"
                    if title == "faulty" or status != "pass":
                        print(f"  {probe} {title} {name!r} seed {seed}: {status} {fault}: {headline}", flush=True)
            for name, case in cases.items() if not options.own else ():
                if options.named not in name:
                    continue
                for seed in range(options.seeds):
                    status, fault, headline = verdict(arguments_of(case.build(seed), probe), probe)
                    counts["tests/faults"][f"{status} {fault}".strip()] += 1
                    alarms += title == "healthy" and status == "fail"
                    if status == "fail" or (title == "healthy" and status != "pass"):
                        print(f"  {probe} {title} {name} seed {seed}: {status} {fault}: {headline}", flush=True)
            for where, found in counts.items():
                print(f"{probe}, {title}, {where}: {sum(found.values())} runs: {dict(found)}", flush=True)
    print(f"{alarms} healthy runs failed; {time.perf_counter() - began:,.0f} s")
    return int(alarms > 0)


if __name__ == "__main__":
    raise SystemExit(main())
