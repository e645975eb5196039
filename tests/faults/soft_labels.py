"""Labels that are class probabilities: a teacher's, of several annotators, smoothed; faults of their loss, and the healthy twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from .cases import Batch, Row, Run, control, fault, labels_of, logits_of, reviews, textual

MATCHES = ("loss_matches_task",)
KL = "PyTorch docs: torch.nn.KLDivLoss (input in log-space)"
#: The temperature of the teacher whose outputs are the labels.
WARM = 2.0


def taught(seed: int, n: int) -> list[Row]:
    """Each text with the outputs of a teacher that knows its class, at a temperature of `WARM`."""
    g = torch.Generator().manual_seed(seed + 1)

    def outputs(kind: int) -> list[float]:
        logits = 4.0 * F.one_hot(torch.tensor(kind), 3) + torch.randn(3, generator=g)
        return (logits / WARM).softmax(-1).tolist()

    return [(words, outputs(kind)) for words, kind in reviews(seed, n)]


def voted(seed: int, n: int) -> list[Row]:
    """Each text with the shares of five annotators, of whom four in five are right."""
    g = torch.Generator().manual_seed(seed + 1)

    def shares(kind: int) -> list[float]:
        chances = 0.7 * F.one_hot(torch.tensor(kind), 3) + 0.1
        votes = torch.multinomial(chances, 5, replacement=True, generator=g)
        return (torch.bincount(votes, minlength=3) / 5).tolist()

    return [(words, shares(kind)) for words, kind in reviews(seed, n)]


def smoothed(seed: int, n: int) -> list[Row]:
    """Labels that a collator has smoothed by a tenth."""
    return [(words, (0.9 * F.one_hot(torch.tensor(kind), 3) + 0.1 / 3).tolist()) for words, kind in reviews(seed, n)]


def of_other_texts(seed: int, n: int) -> list[Row]:
    """A teacher's outputs that were kept in another order than the texts."""
    rows = taught(seed, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    return [(words, rows[i][1]) for (words, _), i in zip(rows, order, strict=True)]


def learnt(run: Run) -> Run:
    """The run, with the share of rows whose most probable class is predicted as its evaluation."""

    def evaluate(model: Any) -> float:
        training = model.training
        model.eval()
        with torch.no_grad():
            right = [(logits_of(model, b).argmax(-1) == labels_of(b).argmax(-1)).float().mean() for b in run.clean]
        model.train(training)
        return float(sum(right) / len(right))

    run.evaluate = run.score = evaluate
    return run


def soft(
    seed: int,
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    rows: Callable[[int, int], list[Row]] = taught,
    **more: Any,
) -> Run:
    """The standard fine-tune on class probabilities; ``loss_of`` gets logits and labels."""

    def loss_fn(model: Any, batch: Batch) -> torch.Tensor:
        return loss_of(logits_of(model, batch), batch["labels"])

    return learnt(textual(seed, rows=rows, loss_fn=loss_fn, **more))


def divergence(log_p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean over the rows of the divergence of the labels from exp(log_p)."""
    return F.kl_div(log_p, labels, reduction="batchmean")


# ------------------------------------------------------------------------------------------ faults
@fault(
    "loss",
    "Distillation: kl_div gets the student's raw logits in place of log-probabilities; the loss falls without end",
    KL + "; discuss.pytorch.org: 'KL divergence loss is negative'",
    MATCHES,
    ("raw logits",),
    shows=lambda s: s.losses[-1] < 0,
)
def teacher_and_raw_logits(seed: int) -> Run:
    return soft(seed, divergence)


@fault(
    "loss",
    "Distillation: kl_div gets the student's probabilities in place of their logarithm",
    KL + "; it does not check",
    MATCHES,
    ("probabilit", "log"),
    shows=lambda s: s.losses[-1] < 0,
)
def teacher_and_probabilities(seed: int) -> Run:
    return soft(seed, lambda z, y: divergence(z.softmax(-1), y))


@fault(
    "loss",
    "Distillation: log_softmax is taken over the rows of the batch, dim=0",
    "PyTorch docs: torch.nn.functional.log_softmax (dim)",
    MATCHES,
    ("batch", "dim"),
)
def teacher_and_softmax_over_rows(seed: int) -> Run:
    return soft(seed, lambda z, y: divergence(z.log_softmax(0), y))


@fault(
    "loss",
    "The votes of annotators are taught with cross_entropy of the softmax: it applies another",
    "PyTorch docs: torch.nn.CrossEntropyLoss (unnormalised logits; targets that are class probabilities)",
    MATCHES,
    ("softmax",),
)
def votes_and_softmax_twice(seed: int) -> Run:
    return soft(seed, lambda z, y: F.cross_entropy(z.softmax(-1), y), voted)


@fault(
    "data",
    "The teacher's outputs were kept in another order than the texts are read in",
    "arXiv:1503.02531 (outputs computed beforehand); a shuffled loader beside a file of outputs",
    ("labels_learnable", "metric_improves", "loss_decreases"),
    ("labels", "depend", "inputs"),
    shows=lambda s: s.after < 0.6,
)
def teacher_of_other_texts(seed: int) -> Run:
    return soft(seed, lambda z, y: divergence(z.log_softmax(-1), y), of_other_texts)


# ------------------------------------------------------------------------------------------ healthy
@control("loss", "Distillation at temperature 2: T^2 times the divergence of the softened outputs", "arXiv:1503.02531")
def taught_at_a_temperature(seed: int) -> Run:
    return soft(seed, lambda z, y: WARM**2 * divergence((z / WARM).log_softmax(-1), y))


@control(
    "loss", "Distillation by the reverse divergence, of the student from the teacher", "arXiv:2306.08543 (MiniLLM)"
)
def taught_in_reverse(seed: int) -> Run:
    def reverse(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        p = z.softmax(-1)
        return (p * (z.log_softmax(-1) - y.log())).sum(-1).mean()

    return soft(seed, reverse)


@control("loss", "Shares of annotators' votes as labels of cross_entropy", "arXiv:1908.07086 (human uncertainty)")
def votes_as_labels(seed: int) -> Run:
    return soft(seed, F.cross_entropy, voted)


@control("loss", "Smoothed labels from the collator, each class by binary cross-entropy", "arXiv:2110.00476 (timm)")
def smoothed_by_the_collator(seed: int) -> Run:
    return soft(seed, F.binary_cross_entropy_with_logits, smoothed)


@control(
    "loss", "Shares that are predicted as numbers: mean squared error of the outputs", "PyTorch docs: torch.nn.MSELoss"
)
def shares_as_numbers(seed: int) -> Run:
    return soft(seed, F.mse_loss, voted, steps=100, beliefs={"task": "regression", "total_steps": 100})
