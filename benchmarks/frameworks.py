"""Are healthy trainings of other people's frameworks silent, and is a fault in them the first cause? 20 seeds each.

``python benchmarks/frameworks.py [FRAMEWORK ...] [--seeds 20] [--faults 3]``; exits with status 1 if a healthy run fails, or a fault is not
the first cause. A framework is a function ``(fault or None, seed) -> Trace`` in `RUNS`, with the faults that it can have.
"""

from __future__ import annotations

import argparse
import collections
import importlib.metadata
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "integrations"), str(ROOT / "docs" / "examples")]

from pytest_ftcheck import FtcheckCallback, diagnose, watch  # noqa: E402


def trainer(fault: str | None, seed: int, way: str = "watch(trainer)") -> Any:
    """A Trainer of tests/trainers.py, 40 steps."""
    import trainers

    given = {expected: given for given, expected in trainers.FAULTS.values()}[fault] if fault else {}
    return trainers.WAYS[way](seed=seed, **given)


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
    loss = (lambda model: trainer.Softmax(model, losses[fault])) if fault in losses else None
    with tempfile.TemporaryDirectory() as folder:
        return trainer.train(Path(folder), kind, loss, optimizer=optimizers.get(fault or ""), seed=seed)[0]


def sentence_transformers_pairs(fault: str | None, seed: int) -> Any:
    """Pairs, and no head."""
    return sentence_transformers(fault, seed, "pairs")


def sentence_transformers_topics(fault: str | None, seed: int) -> Any:
    """Triplets, and no head."""
    return sentence_transformers(fault, seed, "topics")


FAULTS = ("not_in_optimizer", "lr_zero", "double_softmax", "loss_negated", "own_predictions_as_targets")
#: Name -> how it runs, and the faults that it can have.
RUNS: dict[str, tuple[Callable[[str | None, int], Any], tuple[str, ...]]] = {
    "Trainer": (trainer, (*FAULTS, "mask_not_passed", "num_items_ignored")),
    "Trainer, callback": (trainer_by_callback, (*FAULTS, "mask_not_passed", "num_items_ignored")),
    "Trainer, finetune": (trainer_by_factory, (*FAULTS, "mask_not_passed", "num_items_ignored")),
    "lightning": (lightning, (*FAULTS, "mask_all_ones")),
    "lightning, manual": (lightning_manual, ()),
    "accelerate": (accelerate, (*FAULTS, "mask_all_ones")),
    "sentence-transformers": (sentence_transformers, FAULTS),
    "sentence-transformers, pairs": (sentence_transformers_pairs, ()),
    "sentence-transformers, topics": (sentence_transformers_topics, ()),
}


def measure(name: str, seeds: int, of_faults: int) -> bool:
    """Runs one framework and prints its rows; whether the goals are met."""
    run, faults = RUNS[name]
    began, failed, judged = time.perf_counter(), collections.Counter(), []
    for seed in range(seeds):
        diagnosis = diagnose(run(None, seed))
        judged.append(len(diagnosis.judged))
        failed[diagnosis.causes[0].fault or diagnosis.causes[0].title if diagnosis.causes else "silent"] += 1
    met = failed["silent"] == seeds
    print(f"{name}: healthy {failed['silent']} of {seeds} silent, {min(judged)} to {max(judged)} checks judged", end="")
    print("" if met else f"; failed: {dict(failed)}", end="")
    print(f" ({(time.perf_counter() - began) / max(seeds, 1):.1f} s a run)", flush=True)
    for fault in faults if of_faults else ():
        first = collections.Counter()
        for seed in range(of_faults):
            causes = diagnose(run(fault, seed)).causes
            first[causes[0].fault if causes else "nothing"] += 1
        met &= first[fault] == of_faults
        print(
            f"  {fault}: first cause in {first[fault]} of {of_faults}",
            dict(first) if first[fault] < of_faults else "",
            flush=True,
        )
    return met


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("frameworks", nargs="*", default=list(RUNS), help=f"of {', '.join(RUNS)}")
    parser.add_argument("--seeds", type=int, default=20, help="healthy runs of each")
    parser.add_argument("--faults", type=int, default=3, help="runs of each fault")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "pytorch_lightning", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    print(
        ", ".join(
            f"{p} {importlib.metadata.version(p)}"
            for p in ("torch", "transformers", "lightning", "accelerate", "sentence-transformers")
        )
    )
    met = [measure(name, options.seeds, options.faults) for name in options.frameworks]
    sys.exit(0 if all(met) else 1)


if __name__ == "__main__":
    main()
