"""The founding question with real weights and real texts: how often does each check pass, and which part had to move?

``python benchmarks/founding_question.py [--seeds 10] [--steps 120] [--threads 1]``. Everything measured is printed.
"""

from __future__ import annotations

import argparse
import collections
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parent.parent / "docs" / "examples"))

import founding

from pytest_ftcheck import (
    check_all_finite,
    check_grads_nonzero,
    check_loss_decreases,
    check_metric_improves,
    check_weights_move,
    explain_weight_motion,
    finetune,
)

CHECKS = {
    "weights move": check_weights_move,
    "weights move, head": lambda trace: check_weights_move(trace, part="head"),
    "gradients": check_grads_nonzero,
    "gradients, head": lambda trace: check_grads_nonzero(trace, part="head"),
    "loss decreases": check_loss_decreases,
    "metric improves": check_metric_improves,
    "all finite": check_all_finite,
}
PARTS = {
    "classifier.0": ("classifier.0.",),
    "classifier.3": ("classifier.3.",),
    "whole head": ("classifier.",),
    "last encoder layer": ("base.transformer.layer.5.",),
    "whole base": ("base.",),
    "everything": ("",),
}


def twenty_steps(seeds: int) -> None:
    """The issue's own version, over seeds of head, dropout and data."""
    print(f"\n20 steps, peak LR 5e-5, batch 16, {seeds} seeds\n")
    print("seed  probe loss        own-batch descents  held-out accuracy  seconds")
    counts: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in CHECKS}
    for seed in range(seeds):
        batches, held_out = founding.news(seed=seed)
        trace = finetune(
            founding.make_model, batches, head="classifier", lr=5e-5, steps=20, seed=seed, eval_batches=held_out
        )
        for name, check in CHECKS.items():
            counts[name][check(trace).status] += 1
        points, descents = trace.probe_loss.points, trace.probe_loss.descents
        down = sum(d.after < d.before for d in descents)
        print(
            f"{seed:4}  {points[0].loss:.3f} -> {points[-1].loss:.3f}    {down:2} of {len(descents)}            "
            f"{trace.metrics[0].first:.3f} -> {trace.metrics[0].last:.3f}     {trace.seconds:.0f}",
            flush=True,
        )
    print("\ncheck               verdicts")
    for name, found in counts.items():
        print(f"{name:<19} " + ", ".join(f"{status} {n}" for status, n in found.most_common()))


class Rewinder:
    """``evaluate=`` of a fine-tune: remembers the weights before it; after it puts one part back at a time and evaluates."""

    def __init__(self, batches: list[founding.Batch]) -> None:
        self.batches = batches
        self.initial: dict[str, torch.Tensor] = {}
        self.rows: list[tuple[str, float, float]] = []

    def __call__(self, model: torch.nn.Module) -> float:
        if not self.initial:
            self.initial = {n: p.detach().clone() for n, p in model.named_parameters()}
            return self.look(model)[1]
        loss, accuracy = self.look(model)
        self.rows.append(("trained", loss, accuracy))
        for part, prefixes in PARTS.items():
            trained = {}
            for name, p in model.named_parameters():
                if name.startswith(prefixes):
                    trained[name] = p.detach().clone()
                    p.data.copy_(self.initial[name])
            self.rows.append((f"{part} put back", *self.look(model)))
            for name, p in model.named_parameters():
                if name in trained:
                    p.data.copy_(trained[name])
        return accuracy

    def look(self, model: torch.nn.Module) -> tuple[float, float]:
        """Loss and accuracy on the held-out rows, dropout off."""
        model.eval()
        with torch.no_grad():
            logits = torch.cat([model(inputs) for inputs, _ in self.batches])
        labels = torch.cat([labels for _, labels in self.batches])
        return float(cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean())


def rewound(steps: int) -> None:
    """A longer run, explained, and then put back part by part."""
    batches, held_out = founding.news(held_out=320)
    rewinder = Rewinder(held_out)
    trace = finetune(
        founding.make_model,
        batches,
        head="classifier",
        lr=5e-5,
        steps=steps,
        evaluate=rewinder,
        eval_batches=held_out,
    )
    print(f"\n{steps} steps, seed 0\n\n{trace}\n")
    for name in ("classifier.0.weight", "classifier.3.weight"):
        print(f"{explain_weight_motion(trace, name)}\n")
    for check in CHECKS.values():
        print(check(trace))
    print(f"\n{len(held_out) * 32} held-out rows       loss  accuracy")
    for name, loss, accuracy in rewinder.rows:
        print(f"{name:<28} {loss:.3f}  {accuracy:.3f}", flush=True)


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    began = time.perf_counter()
    if given.steps:
        rewound(given.steps)
    if given.seeds:
        twenty_steps(given.seeds)
    print(f"\n{time.perf_counter() - began:.0f} s on {given.threads} thread(s)")


if __name__ == "__main__":
    main()
