"""Evaluation: the model may be fine, the number is not."""

from __future__ import annotations

import copy
from typing import Any

import torch

from .cases import Classifier, Run, accuracy, fault, logits_of, reviews, textual, topics

METRIC = ("metric_matches_reference",)


def with_metric(seed: int, metric: Any, **more: Any) -> Run:
    """The healthy fine-tune with ``metric(logits, labels)`` summed up by the author."""
    run = textual(seed, **more)

    def evaluate(model: Any) -> float:
        training = model.training
        model.eval()
        with torch.no_grad():
            value = sum(float(metric(logits_of(model, b), b["labels"])) for b in run.eval_batches)
        model.train(training)
        return value / len(run.eval_batches)

    run.evaluate = evaluate
    return run


@fault(
    "evaluation",
    "Predictions come from a shuffled loader, labels from the data set in its order: the accuracy is chance",
    "github.com/poets-ai/elegy/issues/109 (evaluate and a calculation by hand differ)",
    METRIC,
    ("metric", "evaluat"),
    shows=lambda s: s.after > 0.9 and s.told is not None and s.told[1] < 0.6,
)
def labels_in_another_order(seed: int) -> Run:
    g = torch.Generator().manual_seed(seed)
    return with_metric(seed, lambda z, y: (z.argmax(-1) == y[torch.randperm(len(y), generator=g)]).float().mean())


@fault(
    "evaluation",
    "A deep copy of the model, made before training, is evaluated: the metric never changes",
    "PyTorch docs: copy.deepcopy of a module shares nothing",
    METRIC,
    ("metric", "evaluat", "stale", "copy"),
    shows=lambda s: s.told is not None and s.told[0] == s.told[1] and s.after > 0.9,
)
def stale_copy_evaluated(seed: int) -> Run:
    run = textual(seed)
    old = copy.deepcopy(run.model)
    score = accuracy(run.eval_batches)
    run.evaluate = lambda model: score(old)
    return run


@fault(
    "evaluation",
    "Right answers are divided by the number of batches, not of rows: an accuracy of 15.4",
    "github.com/KhrulkovV/tt-pytorch/issues/2 (accuracy computation); PyTorch tutorials: size = len(dataloader.dataset)",
    METRIC,
    ("metric", "above 1", "accuracy", "evaluat"),
    uncatchable="a metric in units of one's own is anybody's right, and this one follows the accuracy",
    shows=lambda s: s.told is not None and s.told[1] > 1,
)
def divided_by_the_batches(seed: int) -> Run:
    return with_metric(seed, lambda z, y: (z.argmax(-1) == y).sum())


@fault(
    "evaluation",
    "argmax(-1) of a single logit is always 0: the accuracy is the share of class 0, before and after",
    "github.com/frgfm/holocron/pull/228 (accuracy of binary classification)",
    METRIC,
    ("metric", "evaluat", "argmax"),
    shows=lambda s: s.told is not None and s.told[0] == s.told[1] and s.after > 0.8,
)
def argmax_of_one_logit(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        return torch.nn.functional.binary_cross_entropy_with_logits(
            logits_of(model, batch).squeeze(-1), batch["labels"].float()
        )

    return with_metric(
        seed,
        lambda z, y: (z.argmax(-1) == y).float().mean(),
        model=lambda: Classifier(1),
        rows=lambda s, n: reviews(s, n, 2),
        loss_fn=loss_fn,
    )


@fault(
    "evaluation",
    "Tags are decided by sigmoid(p) > 0.5 where p is a probability already: every tag is always on",
    "sigmoid applied twice in post-processing; transformers docs: multi-label examples threshold the sigmoid once",
    METRIC,
    ("metric", "evaluat", "threshold"),
    shows=lambda s: s.told is not None and s.told[0] == s.told[1],
)
def threshold_after_two_sigmoids(seed: int) -> Run:
    def metric(z: Any, y: Any) -> Any:
        return ((torch.sigmoid(torch.sigmoid(z)) > 0.5).float() == y).float().mean()

    from .cases import tag_loss

    return with_metric(seed, metric, rows=topics, loss_fn=tag_loss, beliefs={"task": "multi_label"})


@fault(
    "evaluation",
    "argmin for argmax, from a script that worked with losses per class: the better the model, the lower the number",
    "github.com/noahchalifour/rnnt-speech-recognition/issues/3 (the wrong thing is compared in evaluation)",
    METRIC,
    ("metric", "evaluat", "falls"),
    shows=lambda s: s.told is not None and s.told[1] < 0.1,
)
def argmin_for_argmax(seed: int) -> Run:
    return with_metric(seed, lambda z, y: (z.argmin(-1) == y).float().mean())


@fault(
    "evaluation",
    "Only the last batch is scored, the sum is reset inside the loop: the number is right on average, and noisy",
    "github.com/galilai-group/stable-pretraining/pull/35 (metrics of several batches)",
    METRIC,
    ("metric",),
    uncatchable="the accuracy of the last batch is a true accuracy of fewer rows",
)
def last_batch_only(seed: int) -> Run:
    run = textual(seed)
    run.evaluate = accuracy(run.eval_batches[-1:])
    return run


@fault(
    "evaluation",
    "The predictions are compared with themselves: (pred == pred).mean() is 1 from the start",
    "a slip in a variable's name; github.com/keras-team/autokeras/issues/176 (the test accuracy is 1.0)",
    METRIC,
    ("metric", "evaluat", "1.0"),
    shows=lambda s: s.told == (1.0, 1.0),
)
def predictions_against_themselves(seed: int) -> Run:
    return with_metric(seed, lambda z, y: (z.argmax(-1) == z.argmax(-1)).float().mean())
