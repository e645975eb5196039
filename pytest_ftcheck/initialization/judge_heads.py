"""Judges each head of a sweep: its numbers become a `Trace`, for the checks that judge every other run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ..checks.data.metric_improves import check_metric_improves
from ..checks.loss.loss_decreases import check_loss_decreases
from ..core.observations import Descent, Iteration, Metric, Optimizer, ProbeLoss, ProbeLossPoint, Reading, Step
from ..core.recipe import OPTIMIZERS
from ..core.trace import Trace
from ..core.verdict import Verdict
from ..instruments.metrics import MOST_TAKEN, PERMUTATIONS, taken_for
from ..instruments.task_readers.registered import prior_entropy
from .features import Features
from .jobs import Job, Plan, Run, judged_rows

_LOSSES = {
    "single_label": "cross-entropy of the logits",
    "multi_label": "binary cross-entropy of the logits, one a tag",
    "regression": "mean squared error",
}


def traces(runs: Sequence[Run], jobs: Sequence[Job], features: Features, plan: Plan) -> list[Trace]:
    """Each run as a trace: probe, own-batch descents, training losses, learning rates, metric; without tensors."""
    _, y, source = features.judged
    entropy = prior_entropy(features.task, [judged_rows(y, y)[1]])
    reading = Reading(
        "features of a frozen base", "bare logits", _LOSSES[features.task], features.task, features.classes
    )
    out = []
    for run, job, metric in zip(runs, jobs, metrics_of(runs, features), strict=True):
        recipe = replace(plan.recipe, lr=job.lr, seed=job.seed)
        steps = recipe.steps
        out.append(
            Trace(
                source="sweep",
                recipe=recipe,
                reading=reading,
                head=("head",),
                optimizer=Optimizer(OPTIMIZERS[recipe.optimizer], "sgd" if recipe.optimizer == "sgd" else "adam", ()),
                iterations=tuple(Iteration(v, i, 1, True) for i, v in enumerate(run.losses)),
                steps=tuple(Step(i, (recipe.lr_at(i),), run.grad_norm, run.grad_norm, True) for i in range(steps)),
                recorded=(),
                tensors=(),
                probe_loss=ProbeLoss(
                    rows=metric.rows,
                    source=source,
                    points=(ProbeLossPoint(0, run.first, run.first), ProbeLossPoint(steps, run.last, run.last)),
                    descents=tuple(Descent(*d) for d in run.descents),
                    prior_entropy=entropy,
                ),
                metrics=(metric,),
                environment={"dtype": "float64" if features.x.dtype == torch.float64 else "float32"},
            )
        )
    return out


def judge(trace: Trace) -> tuple[str, Verdict, Verdict]:
    """``yes``, ``no`` or ``unclear``, and the verdicts of the two checks.

    Yes: `loss_decreases` and `metric_improves` pass. No: one of them fails. Unclear: the rest, as where a small rate lowers the loss
    step by step, but is too small for predictions to improve in these steps.
    """
    loss, metric = check_loss_decreases(trace), check_metric_improves(trace)
    if "fail" in (loss.status, metric.status):
        return "no", loss, metric
    return ("yes" if loss.status == metric.status == "pass" else "unclear"), loss, metric


def metrics_of(runs: Sequence[Run], features: Features) -> list[Metric]:
    """Accuracy (R squared for numbers) of every run before and after, and under label permutations, as in `finetune`.

    All runs share the rows: all permutations of all runs are one matrix product.
    """
    _, y, source = features.judged
    y = judged_rows(y, y)[1].cpu()
    first = torch.stack([r.logits_first for r in runs])
    last = torch.stack([r.logits_last for r in runs])
    truth = _shares(features.task, y)
    rng = np.random.default_rng(0)
    orders = torch.stack([torch.from_numpy(rng.permutation(len(y))) for _ in range(PERMUTATIONS)])
    before, after = _guesses(features.task, first), _guesses(features.task, last)
    name = "r_squared" if features.task == "regression" else "accuracy"
    started = _scores(features.task, before, truth[None])[:, 0].tolist()
    ended = _scores(features.task, after, truth[None])[:, 0]
    permuted = _scores(features.task, after, truth[orders])
    p = ((permuted >= ended[:, None] - 1e-12).sum(1) + 1).double() / (PERMUTATIONS + 1)
    middle, spread = permuted.mean(1), permuted.std(1, correction=0)
    baseline = _majority_score(features.task, y)
    classes = max(features.classes or 2, last.shape[-1]) if features.task == "single_label" else 0
    actual = tuple(torch.bincount(y, minlength=classes).tolist()) if classes else ()
    return [
        Metric(
            name=name,
            first=started[k],
            last=float(ended[k]),
            rows=len(y),
            source=source,
            baseline=baseline,
            p_value=float(p[k]),
            predicted=tuple(after[k].reshape(len(y), -1, 2 if classes == 2 else classes).sum((0, 1)).int().tolist()) if classes else (),
            actual=actual,
            taken_for=taken_for(after[k].reshape(len(y), -1).argmax(1).numpy(), y.numpy()) if 0 < classes <= MOST_TAKEN else (),
            deviations=float((ended[k] - middle[k]) / spread[k]) if float(spread[k]) > 1e-12 else None,
        )
        for k in range(len(runs))
    ]  # fmt: skip


def _shares(task: str, y: torch.Tensor) -> torch.Tensor:
    """Labels as ``[rows, numbers]``, so that a row's score is a product with its guess in this form."""
    if task == "regression":
        return y.reshape(len(y), -1).double()
    if task == "multi_label":
        on = y.double()
        return torch.stack([on, 1 - on], 2).reshape(len(y), -1)
    return torch.nn.functional.one_hot(y).double()


def _guesses(task: str, logits: torch.Tensor) -> torch.Tensor:
    """``[runs, rows, numbers]``."""
    if task == "regression":
        return logits.double()
    if task == "multi_label":
        on = (logits > 0).double()
        return torch.stack([on, 1 - on], 3).flatten(2)
    chosen = (logits[..., 0] > 0).long() if logits.shape[-1] == 1 else logits.argmax(-1)
    return torch.nn.functional.one_hot(chosen, max(2, logits.shape[-1])).double()


def _scores(task: str, guesses: torch.Tensor, truths: torch.Tensor) -> torch.Tensor:
    """``[runs, truths]``: accuracy, or R squared, of every run's guesses against every permutation of the labels."""
    width = max(guesses.shape[-1], truths.shape[-1])
    a = torch.nn.functional.pad(guesses, (0, width - guesses.shape[-1])).flatten(1)
    b = torch.nn.functional.pad(truths, (0, width - truths.shape[-1])).flatten(1)
    products = a @ b.t()
    rows = guesses.shape[1]
    if task == "regression":
        error = a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * products
        about = truths - truths.mean(1, keepdim=True)
        return 1 - error / about.square().flatten(1).sum(1).clamp_min(1e-300)[None]
    return products / (rows if task == "single_label" else rows * width / 2)


def _majority_score(task: str, y: torch.Tensor) -> float:
    """The score of the majority baseline; of the mean for numbers."""
    if task == "regression":
        return 0.0
    if task == "multi_label":
        share = y.double().mean(0)
        return float(torch.maximum(share, 1 - share).mean())
    return int(torch.bincount(y).max()) / len(y)


def deciding_headline(verdicts: tuple[str, Verdict, Verdict]) -> str:
    """The headline of the check that decides."""
    answer, loss, metric = verdicts
    return metric.headline if loss.status == "pass" and answer != "yes" else loss.headline
