"""Mode: dropout and normalisation in training and in evaluation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .cases import (
    Classifier,
    Run,
    accuracy,
    bert,
    fault,
    labels_of,
    logits_of,
    right,
    standard_step,
    textual,
    two_layers,
)

ACTIVE = ("dropout_active",)
TRAIN = "PyTorch docs: torch.nn.Module.train and eval"


@fault(
    "mode",
    "Every ten batches the model is evaluated in eval mode, and model.train() is called only before the epoch loop",
    "github.com/MILVLG/mcan-vqa/issues/26; github.com/pytorch/tutorials/issues/1624; github.com/tk-rusch/coRNN/issues/1",
    ACTIVE,
    ("eval mode", "eval", "dropout"),
)
def never_back_to_train_mode(seed: int) -> Run:
    count = [0]

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        value = standard_step()(model, batch, optimizer, scheduler)
        count[0] += 1
        if count[0] % 10 == 0:
            model.eval()
            with torch.no_grad():
                logits_of(model, batch)
        return value

    return textual(seed, step=step)


@fault(
    "mode",
    "model.eval() was called for a smoke test before the loop, and the loop never calls train()",
    "transformers docs: from_pretrained ('the model is set in evaluation mode by default'); " + TRAIN,
    ACTIVE,
    ("eval mode", "eval", "dropout"),
)
def trained_in_eval_mode(seed: int) -> Run:
    run = textual(seed)
    run.model.eval()
    return run


@fault(
    "mode",
    "Dropout(0.9): TensorFlow's keep_prob of 0.9 is taken for PyTorch's drop probability",
    "PyTorch docs: torch.nn.Dropout (probability of an element to be zeroed); TF 1's tf.nn.dropout(keep_prob)",
    ACTIVE,
    ("dropout", "rate"),
)
def keep_probability_for_drop(seed: int) -> Run:
    return textual(
        seed, lambda: Classifier(encoder=bert(dropout=0.9), head=two_layers(32, 3, 0.9)), beliefs={"dropout": 0.1}
    )


@fault(
    "mode",
    "Dropout(p=1) in the head, a percentage read as a share and capped: in training the features are all zero",
    "PyTorch docs: torch.nn.Dropout (p in [0, 1])",
    ("dropout_active", "grads_nonzero", "weights_move"),
    ("dropout", "dropout_rate_extreme"),
    shows=lambda s: s.still("encoder", 1e-3) and s.after < 0.6,
)
def everything_dropped(seed: int) -> Run:
    return textual(seed, lambda: Classifier(head=two_layers(32, 3, 1.0)))


@fault(
    "mode",
    "The config's dropout was overwritten with 0 by the sweep's default; the author believes in 0.1",
    "transformers docs: PretrainedConfig (attributes such as hidden_dropout_prob are read when the model is built)",
    ACTIVE,
    ("dropout", "dropout_missing"),
)
def dropout_lost_in_the_config(seed: int) -> Run:
    return textual(
        seed, lambda: Classifier(encoder=bert(dropout=0.0), head=two_layers(32, 3, 0.0)), beliefs={"dropout": 0.1}
    )


@fault(
    "mode",
    "evaluate() never calls eval(): with dropout of 0.5 the metric is noise upon noise",
    TRAIN + "; github.com/udacity/deep-learning-v2-pytorch/pull/397",
    ("eval_deterministic", "metric_matches_reference", "dropout_active"),
    ("train mode", "evaluat", "dropout"),
)
def evaluated_in_train_mode(seed: int) -> Run:
    run = textual(seed, lambda: Classifier(encoder=bert(dropout=0.3), head=two_layers(32, 3, 0.5)))

    def evaluate(model: Any) -> float:
        with torch.no_grad():
            return sum(right(logits_of(model, b), labels_of(b)) for b in run.eval_batches) / len(run.eval_batches)

    run.evaluate = evaluate
    return run


class WordDropout(Classifier):
    """A tenth of the words becomes [UNK], whatever the mode."""

    def forward(self, input_ids, attention_mask):
        hit = torch.rand(input_ids.shape) < 0.15
        return super().forward(torch.where(hit, torch.full_like(input_ids, 3), input_ids), attention_mask)


@fault(
    "mode",
    "Word dropout in forward has no 'if self.training': evaluation and serving lose 15 % of the words at random",
    "arXiv:1511.06349 (word dropout); github.com/BogiHsu/Tacotron2-PyTorch/issues/8 (dropout that stays on)",
    ("eval_deterministic",),
    ("random", "eval", "determin"),
)
def word_dropout_in_evaluation(seed: int) -> Run:
    return textual(seed, WordDropout)


class Noisy(Classifier):
    def pool(self, hidden, attention_mask):
        x = super().pool(hidden, attention_mask)
        return x + 0.3 * torch.randn_like(x)


@fault(
    "mode",
    "Gaussian noise on the features, a regulariser, is added in evaluation too",
    "Bishop 1995, Training with noise is equivalent to Tikhonov regularization; keras.io: GaussianNoise is active in training only",
    ("eval_deterministic",),
    ("random", "eval", "noise", "determin"),
)
def noise_in_evaluation(seed: int) -> Run:
    return textual(seed, Noisy)


@fault(
    "mode",
    "BatchNorm with momentum=0 in the head: its running statistics stay at 0 and 1, evaluation sees other features",
    "PyTorch docs: torch.nn.BatchNorm1d (momentum is the weight of the new statistics, the reverse of Keras)",
    (
        "loss_decreases",
        "metric_improves",
        "eval_deterministic",
        "dropout_active",
        "rows_independent",
        "units_alive",
        "loss_stable",
    ),
    ("statistic", "batch", "norm", "running"),
)
def running_statistics_never_run(seed: int) -> Run:
    def model() -> nn.Module:
        head = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32, momentum=0.0), nn.ReLU(), nn.Linear(32, 3))
        net = Classifier(head=head)
        nn.init.constant_(net.head[0].bias, 4.0)
        return net

    return textual(seed, model)


@fault(
    "mode",
    "An evaluation disables gradients globally with torch.set_grad_enabled(False); the next backward has no graph",
    "PyTorch docs: torch.set_grad_enabled (as a function it stays in force)",
    ("grads_nonzero", "weights_move", "loss_decreases", "grads_match_reference"),
    ("no graph", "grad", "cut"),
    shows=lambda s: "does not require grad" in s.error,
)
def gradients_left_disabled(seed: int) -> Run:
    count = [0]

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        count[0] += 1
        if count[0] == 10:
            torch.set_grad_enabled(False)
            logits_of(model, batch)
        return standard_step()(model, batch, optimizer, scheduler)

    return textual(seed, step=step)


@fault(
    "mode",
    "Only model.encoder.train() is called after an evaluation: the head's dropout stays off",
    TRAIN + " (the mode is set for a module and its children only)",
    ACTIVE,
    ("eval", "dropout", "head"),
)
def head_left_in_eval_mode(seed: int) -> Run:
    run = textual(seed, lambda: Classifier(head=two_layers(32, 3, 0.3)))
    run.model.eval()
    run.model.encoder.train()
    run.evaluate = accuracy(run.eval_batches)

    def evaluate(model: Any) -> float:
        model.eval()
        with torch.no_grad():
            value = sum(right(logits_of(model, b), labels_of(b)) for b in run.eval_batches) / len(run.eval_batches)
        model.encoder.train()
        return value

    run.evaluate = evaluate
    return run
