"""Numbers and masks as they reach the model: raw pixels, targets out of reach, classes as numbers, words that are hidden."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import Intent

from .cases import (
    Classifier,
    Run,
    accuracy,
    adamw,
    bert,
    control,
    fault,
    grades,
    labels_of,
    logits_of,
    reviews,
    squared_error,
    standard_step,
    textual,
)
from .numerics import tabular

LONG = 60
RECIPE = "A Recipe for Training Neural Networks (Karpathy 2019)"


# ------------------------------------------------------------------------------------------ inputs
def scaled(seed: int, factor: float) -> Run:
    """A table whose numbers are so many times a standardised one's."""
    run = tabular(seed, optimizer=lambda m: adamw(m, lr=1e-3), beliefs={"peak_lr": 1e-3})
    run.steps = LONG
    run.batches, run.eval_batches = ([(x * factor, y) for x, y in b] for b in (run.batches, run.eval_batches))
    run.clean = run.eval_batches
    run.evaluate = accuracy(run.eval_batches)  # of the same rows, in the same units
    return run


@fault(
    "inputs",
    "A table is given in its own units, about 500 times a standardised one",
    "DeepCrime / arXiv:1910.11015 (taxonomy: missing normalisation of the data)",
    ("output_depends_on_input", "initial_loss"),
    ("inputs_unscaled",),
)
def table_in_its_own_units(seed: int) -> Run:
    return scaled(seed, 500.0)


@fault(
    "inputs",
    "The inputs are divided by 255 twice, and again by the loader: they hardly differ from each other",
    "torchvision docs: ToTensor scales to 0..1 already",
    ("output_depends_on_input",),
    ("inputs_hardly_vary",),
    shows=lambda s: s.after < 0.75,
)
def scaled_down_three_times(seed: int) -> Run:
    return scaled(seed, 1e-3)


class Normed(nn.Module):
    """Two layers behind a batch normalisation of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 32), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x):
        return self.head(self.encoder(x))


@control("data", "A table in its own units, in front of a batch normalisation", "PyTorch docs: torch.nn.BatchNorm1d")
def units_behind_a_normalisation(seed: int) -> Run:
    run = scaled(seed, 500.0)
    torch.manual_seed(seed)
    run.model = Normed()
    run.optimizer, run.intent = adamw(run.model, lr=1e-3), Intent(peak_lr=1e-3, dropout=False)
    return run


@fault(
    "inputs",
    "The mask is made from the ids of a stop-word list: the words that decide are hidden",
    "transformers docs: attention_mask; arXiv:1910.11015 (taxonomy: wrong preprocessing)",
    ("padding_ignored",),
    ("mask_hides_tokens",),
    shows=lambda s: s.after < 0.6,
)
def deciding_words_hidden(seed: int) -> Run:
    run = textual(seed, steps=LONG)
    for b in [*run.batches, *run.eval_batches]:
        ids = b["input_ids"]
        b["attention_mask"] = b["attention_mask"] * ((ids < 20) | (ids >= 50)).long()
    return run


class First(Classifier):
    """The classifier of BERT's paper: the vector of the first token."""

    def pool(self, hidden, attention_mask):
        return hidden[:, 0]


@fault(
    "inputs",
    "add_special_tokens=False under a head that reads the first position: it reads the first word of a frozen base",
    "transformers docs: tokenizer (add_special_tokens); BERT's pooler",
    ("output_depends_on_input",),
    ("first_token_varies",),
    advised=True,
)
def first_word_for_the_text(seed: int) -> Run:
    def build() -> nn.Module:
        net = First(encoder=bert(layers=1))
        net.encoder.requires_grad_(False)
        return net

    run = textual(
        seed,
        build,
        optimizer=lambda m: adamw(m.head, lr=2e-3),
        steps=LONG,
        beliefs={"trained": "head", "frozen": "encoder"},
    )
    for b in [*run.batches, *run.eval_batches]:
        b["input_ids"], b["attention_mask"] = b["input_ids"][:, 1:], b["attention_mask"][:, 1:]
    return run


@control("head", "The vector of [CLS], which is the same token in all rows", "arXiv:1810.04805")
def vector_of_the_first_token(seed: int) -> Run:
    return textual(seed, First)


# ------------------------------------------------------------------------------------------ targets
class Similar(nn.Module):
    """The cosine of two halves of a table's row."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.encoder, self.head, self.scale = nn.Linear(3, 32), nn.Linear(32, 8), scale

    def forward(self, x):
        one, other = (self.head(self.encoder(half).relu()) for half in x.split(3, 1))
        return F.cosine_similarity(one, other)[:, None] * self.scale


def compared(seed: int, scale: float) -> Run:
    """Similarities from 0 to 5 of two halves of a row, as in STS-B."""
    run = tabular(seed, beliefs={"peak_lr": 5e-3, "task": "regression", "dropout": False})
    run.loss_fn, run.step = squared_error, standard_step(squared_error)
    torch.manual_seed(seed)
    run.model = Similar(scale)
    run.optimizer, run.head, run.evaluate = adamw(run.model, lr=5e-3), "head", None
    run.batches, run.eval_batches = (
        [(x, 5 * torch.sigmoid((x[:, :3] * x[:, 3:]).sum(1))) for x, _ in b] for b in (run.batches, run.eval_batches)
    )
    run.clean = run.eval_batches
    return run


@fault(
    "loss",
    "Similarities are graded from 0 to 5, and the output is a cosine: it never reaches them",
    "sentence-transformers docs: CosineSimilarityLoss (scores from 0 to 1)",
    ("logits_unbounded",),
    ("outputs_cannot_reach_labels",),
)
def cosine_against_grades_to_five(seed: int) -> Run:
    return compared(seed, 1.0)


@control(
    "task",
    "Similarities from 0 to 5, and five times a cosine",
    "sentence-transformers docs: CosineSimilarityLoss",
    slow=True,
)
def five_times_a_cosine(seed: int) -> Run:
    return compared(seed, 5.0)


@fault(
    "loss",
    "num_labels=1 under three classes: their numbers are fitted by a squared error",
    "transformers docs: num_labels=1 is regression",
    ("loss_matches_task",),
    ("classes_as_numbers",),
    advised=True,
)
def class_numbers_fitted(seed: int) -> Run:
    run = textual(
        seed, lambda: Classifier(1), loss_fn=squared_error, beliefs={"task": None}, steps=LONG, evaluate=lambda m: 0.0
    )
    for b in [*run.batches, *run.eval_batches]:
        b["labels"] = b["labels"].float()
    run.evaluate = None
    return run


@control("task", "Grades of six levels, declared as regression", "transformers docs: STS-B (num_labels=1)")
def grades_of_six_levels(seed: int) -> Run:
    return textual(
        seed, lambda: Classifier(1), rows=lambda s, n: grades(s, n, 1.7, 2.5), loss_fn=squared_error, steps=LONG,
        beliefs={"task": "regression"},
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ losses
RARE = [0.7, 0.2, 0.1]


def weighted(seed: int, weight: Any, **more: Any) -> Run:
    return textual(
        seed, rows=lambda s, n: reviews(s, n, weights=RARE), steps=LONG,
        loss_fn=lambda m, b: F.cross_entropy(logits_of(m, b), b["labels"], weight=torch.tensor(weight)), **more,
    )  # fmt: skip


@fault(
    "loss",
    "Class weights are the shares, not their inverse: the frequent class counts most",
    "scikit-learn docs: compute_class_weight('balanced')",
    ("loss_matches_task",),
    ("class_weights_reversed",),
    shows=lambda s: s.after < 0.8,
)
def weights_follow_the_shares(seed: int) -> Run:
    return weighted(seed, [2.1, 0.6, 0.3])


@control("loss", "Class weights are the inverse shares", "scikit-learn docs: compute_class_weight('balanced')")
def weights_against_the_shares(seed: int) -> Run:
    return weighted(seed, [0.48, 1.67, 3.33])


@control("loss", "Focal loss with class weights", "arXiv:1708.02002 (alpha and gamma)")
def focal_with_class_weights(seed: int) -> Run:
    alpha = torch.tensor([0.48, 1.67, 3.33])

    def loss_fn(model: Any, batch: Any) -> Any:
        log_p = F.log_softmax(logits_of(model, batch), -1).gather(1, labels_of(batch)[:, None]).squeeze(1)
        return -(alpha[labels_of(batch)] * (1 - log_p.exp()) ** 2 * log_p).mean()

    return textual(seed, rows=lambda s, n: reviews(s, n, weights=RARE), steps=LONG, loss_fn=loss_fn)


@fault(
    "loss",
    "The regulariser is added as .item(): it is in the printed loss and has no gradient",
    "PyTorch docs: Tensor.item, Tensor.detach",
    ("loss_matches_task",),
    ("term_without_gradient",),
    advised=True,
)
def regulariser_without_a_gradient(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        penalty = 0.01 * sum(p.pow(2).sum() for p in model.parameters())
        return F.cross_entropy(logits_of(model, batch), labels_of(batch)) + penalty.item()

    return textual(seed, loss_fn=loss_fn)


@fault(
    "loss",
    "The mean loss is multiplied by 1e-9 for a log in other units: under Adam the steps stay as they are",
    "arXiv:1412.6980 (Adam is invariant to the scale of the gradient, up to eps)",
    ("loss_matches_task", "grads_nonzero", "weights_move"),
    ("loss_scaled_to_nothing", "scale", "small"),
    shows=lambda s: s.losses[0] < 1e-8,
)
def loss_in_other_units(seed: int) -> Run:
    return textual(seed, loss_fn=lambda m, b: 1e-9 * F.cross_entropy(logits_of(m, b), labels_of(b)))
