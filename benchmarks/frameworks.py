"""Are healthy trainings of other people's frameworks silent, and is a fault in them the first cause? 20 seeds each.

``python benchmarks/frameworks.py [FRAMEWORK ...] [--seeds 20] [--faults 20] [--minutes M] [--out FILE]``; exits with status 1 if a healthy
run fails, or a fault is not the first cause. A framework is a function ``(fault or None, seed) -> Trace`` in `RUNS`, with the faults that
it can have. Seed after seed runs in all of them, so what is counted when the time is over is even.
"""

from __future__ import annotations

import argparse
import collections
import importlib.metadata
import json
import logging
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "integrations"), str(ROOT / "docs" / "examples")]

from pytest_ftcheck import FtcheckCallback, diagnose, watch  # noqa: E402


def trainer(fault: str | None, seed: int, way: str = "watch(trainer)") -> Any:
    """A Trainer of tests/trainers.py, 40 steps; with a fault 12, for it shows early."""
    import trainers

    if fault is None:
        return trainers.WAYS[way](seed=seed)
    given = {expected: given for given, expected in trainers.FAULTS.values()}[fault]
    arguments = {**given.get("arguments", {}), "max_steps": trainers.FEW}
    options = {"steps": trainers.FEW} if way == "finetune" else {}
    return trainers.WAYS[way](seed=seed, **{**given, "arguments": arguments}, **options)


def trainer_by_model(fault: str | None, seed: int) -> Any:
    """The same by ``watch(trainer.model)``, and nothing else."""
    return trainer(fault, seed, "watch(model)")


def trainer_by_callback(fault: str | None, seed: int) -> Any:
    """The same, watched by ``FtcheckCallback``."""
    return trainer(fault, seed, "callback")


def trainer_by_factory(fault: str | None, seed: int) -> Any:
    """The same by ``finetune(make_trainer)``."""
    return trainer(fault, seed, "finetune")


def lightning(fault: str | None, seed: int, *, healthy: str = "Classifier", by_callback: bool = False) -> Any:
    """A module of tests/lightning_modules.py, two epochs."""
    import lightning_modules as modules

    kinds = {
        "not_in_optimizer": modules.HeadForgotten,
        "lr_zero": modules.HeadAtZero,
        "double_softmax": modules.SoftmaxTwice,
        "loss_negated": modules.Negated,
        "mask_all_ones": modules.MaskForgotten,
        "own_predictions_as_targets": modules.OwnPredictions,
    }
    torch.manual_seed(seed)
    module = kinds[fault](seed=seed) if fault else getattr(modules, healthy)(seed=seed)
    callback = FtcheckCallback() if by_callback else None
    trainer = modules.trainer(max_epochs=2, callbacks=[callback] if callback else None)
    data = modules.loader(seed=seed)
    if callback is not None:
        trainer.fit(module, data)
        return callback.trace
    with watch(trainer, module=module) as w:
        trainer.fit(module, data)
    return w.trace


def lightning_manual(fault: str | None, seed: int) -> Any:
    """Manual optimization of two optimizers, through the callback."""
    assert fault is None
    return lightning(None, seed, healthy="Manual", by_callback=True)


def accelerate(fault: str | None, seed: int) -> Any:
    """The loop of tests/integrations/test_accelerate.py, with a probe batch."""
    import test_accelerate as loop
    from torch.nn.functional import cross_entropy

    options = {
        None: {},
        "not_in_optimizer": {"trained": loop.base_alone},
        "lr_zero": {"trained": loop.head_at_zero},
        "double_softmax": {"loss": lambda z, y: cross_entropy(z.softmax(-1), y)},
        "mask_all_ones": {"inputs": loop.mask_of_ones},
        "loss_negated": {"loss": lambda z, y: -cross_entropy(z, y)},
        "own_predictions_as_targets": {"loss": lambda z, _: cross_entropy(z, z.argmax(-1))},
    }[fault]
    return loop.train(seed=seed, probe_batch=loop.probe(), accumulate=2, epochs=4, **options)[0]


def sentence_transformers(fault: str | None, seed: int, kind: str = "same") -> Any:
    """A SentenceTransformerTrainer of tests/integrations/test_sentence_transformers.py."""
    import test_sentence_transformers as trainer
    from torch.nn.functional import cross_entropy

    losses = {
        "double_softmax": lambda z, y: cross_entropy(z.softmax(-1), y),
        "loss_negated": lambda z, y: -cross_entropy(z, y),
        "own_predictions_as_targets": lambda z, _: cross_entropy(z, z.argmax(-1)),
    }
    optimizers = {"not_in_optimizer": trainer.of_the_model_alone, "lr_zero": trainer.head_at_zero}
    collator = trainer.mask_of_ones if fault == "mask_all_ones" else None
    loss = (lambda model: trainer.Softmax(model, losses[fault])) if fault in losses else None
    with tempfile.TemporaryDirectory() as folder:
        options = {"optimizer": optimizers.get(fault or ""), "collator": collator, "seed": seed}
        options["data"] = trainer.some_short(kind) if fault == "mask_all_ones" else None
        return trainer.train(Path(folder), kind, loss, **options)[0]


def sentence_transformers_pairs(fault: str | None, seed: int) -> Any:
    """Pairs, and no head."""
    return sentence_transformers(fault, seed, "pairs")


def sentence_transformers_topics(fault: str | None, seed: int) -> Any:
    """Triplets, and no head."""
    return sentence_transformers(fault, seed, "topics")


FAULTS = ("not_in_optimizer", "lr_zero", "double_softmax", "loss_negated", "own_predictions_as_targets")
OF_A_TRAINER = (*FAULTS, "mask_not_passed", "num_items_ignored")
#: Name -> how it runs, and the faults that it can have.
RUNS: dict[str, tuple[Callable[[str | None, int], Any], tuple[str, ...]]] = {
    "Trainer": (trainer, OF_A_TRAINER),
    "Trainer, watch(model)": (trainer_by_model, OF_A_TRAINER),
    "Trainer, callback": (trainer_by_callback, OF_A_TRAINER),
    "Trainer, finetune": (trainer_by_factory, OF_A_TRAINER),
    "lightning": (lightning, (*FAULTS, "mask_all_ones")),
    "lightning, manual": (lightning_manual, ()),
    "accelerate": (accelerate, (*FAULTS, "mask_all_ones")),
    "sentence-transformers": (sentence_transformers, (*FAULTS, "mask_all_ones")),
    "sentence-transformers, pairs": (sentence_transformers_pairs, ("mask_all_ones",)),
    "sentence-transformers, topics": (sentence_transformers_topics, ()),
}
HEALTHY = "healthy"

#: Framework -> fault, or `HEALTHY` -> first cause, or ``silent`` -> how often.
Counts = dict[str, dict[str, collections.Counter[str]]]


def measure(names: Sequence[str], seeds: int, of_faults: int, seconds: float, save: Callable[[Counts], None]) -> Counts:
    """What was the first cause in each run. After ``seconds`` no further run begins."""
    until = time.monotonic() + seconds
    counts: Counts = {
        name: {fault: collections.Counter() for fault in (HEALTHY, *(RUNS[name][1] if of_faults else ()))}
        for name in names
    }
    for seed in range(max(seeds, of_faults)):
        for name in names:
            for fault, first in counts[name].items():
                if seed >= (seeds if fault == HEALTHY else of_faults):
                    continue
                if time.monotonic() > until:
                    return counts
                causes = diagnose(RUNS[name][0](None if fault == HEALTHY else fault, seed)).causes
                first[(causes[0].fault or causes[0].title) if causes else "silent"] += 1
                if not is_right(fault, {causes[0].fault if causes else "silent": 1}):
                    print(f"{name}, {fault}, seed {seed}: {causes[0] if causes else 'silent'}", flush=True)
        save(counts)
    return counts


def is_right(fault: str, first: Mapping[str, int]) -> bool:
    """Whether a healthy run was always silent, or the fault always the first cause; not, if there was no run."""
    return first.keys() == {"silent" if fault == HEALTHY else fault}


def table(counts: Counts) -> str:
    """One line a framework and fault."""
    lines = []
    for name, faults in counts.items():
        for fault, first in faults.items():
            right, runs = first["silent" if fault == HEALTHY else fault], sum(first.values())
            what = "silent" if fault == HEALTHY else "first cause"
            lines.append(f"{name}: {fault}: {what} in {right} of {runs}" + ("" if right == runs else f" {dict(first)}"))
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("frameworks", nargs="*", default=list(RUNS), help=f"of {', '.join(RUNS)}")
    parser.add_argument("--seeds", type=int, default=20, help="healthy runs of each")
    parser.add_argument("--faults", type=int, default=20, help="runs of each fault")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no run begins later")
    parser.add_argument("--out", type=Path, help="a JSON file for the counts")
    options = parser.parse_args()
    if unknown := [name for name in options.frameworks if name not in RUNS]:
        parser.error(f"{unknown[0]!r} is none of {', '.join(RUNS)}")
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "pytorch_lightning", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    packages = ("torch", "transformers", "lightning", "accelerate", "sentence-transformers")
    versions = {package: importlib.metadata.version(package) for package in packages}
    print(", ".join(f"{p} {v}" for p, v in versions.items()), flush=True)

    def save(counts: Counts) -> None:
        if options.out is not None:
            options.out.write_text(json.dumps({"versions": versions, "first causes": counts}, indent=1) + "\n")

    counts = measure(options.frameworks, options.seeds, options.faults, 60 * options.minutes, save)
    save(counts)
    print(table(counts))
    sys.exit(0 if all(is_right(fault, first) for faults in counts.values() for fault, first in faults.items()) else 1)


if __name__ == "__main__":
    main()
