"""The loss: a formula that is not the task's."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from .cases import (
    SGD_BELIEFS,
    Classifier,
    Run,
    fault,
    grades,
    light,
    logits_of,
    reviews,
    sgd,
    squared_error,
    textual,
    topics,
)

CROSS_ENTROPY = "PyTorch docs: torch.nn.CrossEntropyLoss"
MATCHES = ("loss_matches_task",)


class Softmaxed(Classifier):
    def forward(self, input_ids, attention_mask):
        return super().forward(input_ids, attention_mask).softmax(-1)


@fault(
    "loss",
    "The model ends in softmax and CrossEntropyLoss applies another: the loss cannot fall below 0.55",
    "github.com/bowang-lab/Transformer-GCN-QA/pull/32; github.com/ariecattan/SciCo/issues/2",
    ("loss_matches_task", "logits_unbounded"),
    ("softmax",),
)
def softmax_twice(seed: int) -> Run:
    return textual(seed, Softmaxed)


class Sigmoided(Classifier):
    def forward(self, input_ids, attention_mask):
        return torch.sigmoid(super().forward(input_ids, attention_mask))


@fault(
    "loss",
    "The model ends in a sigmoid, CrossEntropyLoss takes the values in [0, 1] for logits",
    CROSS_ENTROPY + " (unnormalised logits); github.com/jindongwang/Deep-learning-activity-recognition/issues/10",
    ("loss_matches_task", "logits_unbounded"),
    ("sigmoid", "bounded"),
)
def sigmoid_before_cross_entropy(seed: int) -> Run:
    return textual(seed, Sigmoided)


@fault(
    "loss",
    "log_softmax(dim=0) normalises over the rows of the batch instead of the classes, then NLL",
    "PyTorch's warning 'Implicit dimension choice for log_softmax has been deprecated'; docs: torch.nn.functional.log_softmax",
    ("loss_matches_task", "initial_loss"),
    ("dim", "batch", "softmax"),
    shows=lambda s: s.losses[0] > 2,
)
def log_softmax_over_the_batch(seed: int) -> Run:
    return textual(seed, loss_fn=lambda m, b: F.nll_loss(F.log_softmax(logits_of(m, b), 0), b["labels"]))


@fault(
    "loss",
    "Probabilities go into binary_cross_entropy_with_logits: the sigmoid is applied twice, tags never get below 0.31",
    "PyTorch docs: torch.nn.BCEWithLogitsLoss (combines a Sigmoid layer and the BCELoss)",
    ("loss_matches_task", "logits_unbounded"),
    ("sigmoid",),
)
def sigmoid_twice_on_tags(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        return F.binary_cross_entropy_with_logits(torch.sigmoid(logits_of(model, batch)), batch["labels"])

    return textual(seed, rows=topics, loss_fn=loss_fn, beliefs={"task": "multi_label"})


@fault(
    "loss",
    "Arguments swapped: binary_cross_entropy_with_logits(labels, logits); the loss is linear in the logits, without bound",
    "PyTorch docs: torch.nn.functional.binary_cross_entropy_with_logits (input, target)",
    ("loss_matches_task", "initial_loss", "loss_stable"),
    ("swapped", "unbounded", "negative", "without bound", "loss_unbounded"),
    shows=lambda s: s.losses[-1] < 0,
)
def input_and_target_swapped(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        return F.binary_cross_entropy_with_logits(batch["labels"], logits_of(model, batch))

    return textual(seed, rows=topics, loss_fn=loss_fn, beliefs={"task": "multi_label"})


@fault(
    "loss",
    "kl_div gets probabilities where it expects log-probabilities",
    "PyTorch docs: torch.nn.KLDivLoss (input in log-space); it does not check",
    MATCHES,
    ("probabilit", "log"),
    shows=lambda s: s.losses[-1] < 0,
)
def kl_of_probabilities(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        target = F.one_hot(batch["labels"], 3).float()
        return F.kl_div(logits_of(model, batch).softmax(-1), target, reduction="batchmean")

    return textual(seed, loss_fn=loss_fn)


@fault(
    "loss",
    "The pseudo-label branch is taken for labelled rows as well: the model's own argmax is the target",
    "Lee 2013, Pseudo-Label; arXiv:1908.02983 (confirmation bias)",
    ("loss_matches_task", "grads_match_reference", "metric_improves"),
    ("own prediction", "prediction", "labels"),
    shows=lambda s: s.after < 0.7,
)
def own_predictions_as_targets(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        logits = logits_of(model, batch)
        return F.cross_entropy(logits, logits.argmax(-1))

    return textual(seed, loss_fn=loss_fn)


@fault(
    "loss",
    "label_smoothing=0.95: the confidence was given where the smoothing was asked for",
    CROSS_ENTROPY + " (label_smoothing); arXiv:1512.00567",
    MATCHES,
    ("smoothing",),
    shows=lambda s: s.losses[-1] > 1.0,
)
def smoothing_for_confidence(seed: int) -> Run:
    return textual(seed, loss_fn=lambda m, b: F.cross_entropy(logits_of(m, b), b["labels"], label_smoothing=0.95))


@fault(
    "loss",
    "Class weights from a count table whose last class is missing: its weight is 0, and no row of it counts",
    CROSS_ENTROPY + " (weight); DeepCrime's operators on the training data",
    MATCHES,
    ("class", "weight"),
)
def class_of_weight_zero(seed: int) -> Run:
    weight = torch.tensor([1.0, 1.0, 0.0])
    return textual(seed, loss_fn=lambda m, b: F.cross_entropy(logits_of(m, b), b["labels"], weight=weight))


@fault(
    "loss",
    "ignore_index=0 is copied from a script with padded targets: here 0 is a class",
    CROSS_ENTROPY + " (ignore_index)",
    MATCHES,
    ("ignore", "class"),
)
def ignored_index_is_a_class(seed: int) -> Run:
    return textual(seed, loss_fn=lambda m, b: F.cross_entropy(logits_of(m, b), b["labels"], ignore_index=0))


@fault(
    "loss",
    "outputs[0] of a tuple became outputs[0] of a tensor: only the first row of each batch is in the loss",
    "github.com/huggingface/transformers migration guide (tuple and ModelOutput indexing)",
    ("loss_matches_task", "grads_match_reference"),
    ("row",),
)
def only_the_first_row(seed: int) -> Run:
    return textual(
        seed, loss_fn=lambda m, b: F.cross_entropy(logits_of(m, b)[0].unsqueeze(0), b["labels"][0].unsqueeze(0))
    )


class Tagger(Classifier):
    """Logits for every word: (rows, words, classes)."""

    def pool(self, hidden, attention_mask):
        return hidden


def words_by_kind(seed: int, n: int) -> list[Any]:
    """Texts as such; `tagged` then gives each word its label."""
    return reviews(seed, n)


def tagged(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Token classification: 0 for a word that says nothing, 1 to 3 for a cue; -100 on special tokens and padding."""
    out = []
    for b in batches:
        ids = b["input_ids"]
        labels = torch.where(ids < 70, (ids - 20) // 10 + 1, torch.zeros_like(ids))
        labels = torch.where(ids < 20, torch.full_like(ids, -100), labels)
        out.append({**b, "labels": labels})
    return out


def tagging(seed: int, loss_fn: Any, **more: Any) -> Run:
    run = textual(seed, lambda: Tagger(4), loss_fn=loss_fn, **more)
    run.batches, run.eval_batches = tagged(run.batches), tagged(run.eval_batches)
    run.clean = run.eval_batches
    run.evaluate = _words_right(run.eval_batches)
    return run


def _words_right(batches: list[Any]) -> Any:
    from .cases import accuracy

    return accuracy(batches)


@fault(
    "loss",
    "Token logits (rows, words, classes) are brought to (rows, classes, words) by reshape instead of transpose",
    "A Recipe for Training Neural Networks (Karpathy 2019): view where transpose was meant; " + CROSS_ENTROPY,
    ("loss_matches_task", "loss_decreases", "grads_match_reference"),
    ("reshape", "transpose", "class", "label"),
    shows=lambda s: s.after < 0.9,
)
def token_logits_reshaped(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        logits = logits_of(model, batch)
        return F.cross_entropy(logits.reshape(len(logits), 4, -1), batch["labels"])

    return tagging(seed, loss_fn)


@fault(
    "loss",
    "The mean loss is divided by the number of tokens of the whole corpus: what is left is below Adam's eps",
    "github.com/huggingface/blog/pull/2414 (gradient accumulation: which denominator?)",
    ("loss_matches_task", "grads_nonzero", "weights_move", "initial_loss", "grads_match_reference"),
    ("scale", "small", "eps", "divided"),
    shows=lambda s: s.losses[0] < 1e-8,
)
def divided_by_the_corpus(seed: int) -> Run:
    return textual(seed, loss_fn=lambda m, b: F.cross_entropy(logits_of(m, b), b["labels"]) / 3.2e10)


@fault(
    "loss",
    "Regression targets are raw prices of about 2,000 with one linear output: the loss starts at four million",
    "DeepCrime / arXiv:1910.11015 (taxonomy: missing normalisation of the data)",
    ("initial_loss", "loss_decreases", "metric_improves", "logits_unbounded", "batches_sound", "loss_matches_task"),
    ("scale", "target", "label", "initial"),
    shows=lambda s: s.losses[-1] > 1e5,
)
def raw_regression_targets(seed: int) -> Run:
    return textual(
        seed,
        lambda: Classifier(1),
        rows=lambda s, n: grades(s, n, scale=300.0, offset=2000.0),
        loss_fn=squared_error,
        beliefs={"task": "regression"},
    )


@fault(
    "loss",
    "Focal loss with p^2 instead of (1-p)^2: confident rows count, and being surely wrong costs nothing",
    "arXiv:1708.02002 (focal loss)",
    (*MATCHES, "loss_decreases"),
    ("wrong", "focal", "direction", "not the task's loss"),
)
def focal_factor_inverted(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        log_p = F.log_softmax(logits_of(model, batch), -1).gather(1, batch["labels"][:, None]).squeeze(1)
        return -(log_p.exp() ** 2 * log_p).mean()

    return textual(seed, loss_fn=loss_fn)


@fault(
    "loss",
    "pos_weight is an integer division of counts and comes out as 0: tags that are on cost nothing",
    "PyTorch docs: torch.nn.BCEWithLogitsLoss (pos_weight)",
    MATCHES,
    ("weight", "positive"),
)
def positive_weight_zero(seed: int) -> Run:
    weight = torch.tensor([1, 1, 1]) // torch.tensor([2, 2, 2])

    def loss_fn(model: Any, batch: Any) -> Any:
        return F.binary_cross_entropy_with_logits(logits_of(model, batch), batch["labels"], pos_weight=weight.float())

    return textual(seed, rows=topics, loss_fn=loss_fn, beliefs={"task": "multi_label"})


@fault(
    "loss",
    "The regulariser is not scaled: the sum of squares of all weights times 10 drowns the task",
    "DeepCrime, operator 'change weights regularisation'",
    ("loss_matches_task", "initial_loss", "grads_match_reference", "loss_decreases", "metric_improves"),
    ("regular", "penalty", "scale", "other term", "initial"),
    shows=lambda s: s.after < 0.7 and s.losses[0] > 100,
)
def penalty_drowns_the_task(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        penalty = sum((p**2).sum() for p in model.parameters())
        return F.cross_entropy(logits_of(model, batch), batch["labels"]) + 10 * penalty

    return textual(seed, loss_fn=loss_fn)


@fault(
    "loss",
    "MSE between the one-hot labels and logits averaged over the classes: mean(-1) is taken before the comparison",
    "arXiv:1910.11015 (taxonomy: wrong tensor shape); PyTorch's warning on broadcasting in mse_loss",
    ("loss_matches_task", "loss_decreases", "grads_match_reference", "metric_improves"),
    ("class", "loss", "label"),
    shows=lambda s: s.after < 0.7,
)
def averaged_over_the_classes(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        target = F.one_hot(batch["labels"], 3).float()
        return ((logits_of(model, batch).mean(-1) - target.mean(-1)) ** 2).mean()

    return textual(seed, loss_fn=loss_fn)


@fault(
    "loss",
    "Multi-label targets are reduced by argmax: of several tags only the first is taught, no tag becomes tag 0",
    "transformers docs: problem_type='multi_label_classification'; a single-label loss on multi-hot labels",
    ("loss_matches_task", "initial_loss"),
    ("tag", "label", "multi"),
)
def tags_reduced_by_argmax(seed: int) -> Run:
    return textual(
        seed,
        rows=topics,
        loss_fn=lambda m, b: F.cross_entropy(logits_of(m, b), b["labels"].argmax(-1)),
        beliefs={"task": "multi_label"},
    )


@fault(
    "loss",
    "reduction='sum' over a multi-label batch with the rate tuned for the mean, under SGD",
    "PyTorch docs: torch.nn.BCEWithLogitsLoss (reduction)",
    ("loss_matches_task", "initial_loss", "loss_stable", "grads_match_reference", "loss_decreases"),
    ("sum", "scale", "reduction"),
    shows=lambda s: s.losses[0] > 20,
)
def summed_over_rows_and_tags(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        return F.binary_cross_entropy_with_logits(logits_of(model, batch), batch["labels"], reduction="sum")

    return textual(
        seed, light, rows=topics, loss_fn=loss_fn, optimizer=sgd, beliefs={**SGD_BELIEFS, "task": "multi_label"}
    )
