"""DeepCrime's mutation operators, in our own words, each at the strong end of the range that its authors search.

Two of the 24 have nothing to change here: RCP (patience of an early stopping) and VRM (no validation set is used in training). WAB (add a
bias) neither: every layer of a BERT has one.
"""

from __future__ import annotations

import torch
from torch import nn

from .task import LR, ROWS, Batch, Fault, Run, copied, make_batch

WHERE = "https://doi.org/10.1145/3460319.3464825 (table 2), https://github.com/dlfaults/deepcrime"
FAULTS: list[Fault] = []


def _operator(name: str, story: str, *cause: str):
    def kept(apply):
        FAULTS.append(Fault("DeepCrime", name, story, WHERE, apply, cause))
        return apply

    return kept


def _rows(batches: list[Batch]) -> list[tuple[torch.Tensor, int]]:
    """Token ids without padding, and label, of each row."""
    return [
        (ids[mask.bool()], int(label))
        for batch in batches
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    ]


def _batches(rows: list[tuple[torch.Tensor, int]], size: int) -> list[Batch]:
    return [
        make_batch([i.tolist() for i, _ in rows[k : k + size]], [y for _, y in rows[k : k + size]])
        for k in range(0, len(rows), size)
    ]


@_operator("TCL", "all labels of one class are another class's", "class_missing", "label")
def labels_changed(run: Run) -> None:
    run.batches = copied(run.batches)
    for batch in run.batches:
        batch["labels"][batch["labels"] == 0] = 1


@_operator("TRD", "99 % of the training rows are removed", "few_rows", "same_batch", "rows")
def rows_removed(run: Run) -> None:
    run.batches = run.batches[:1]


@_operator("TUD", "all classes but one are rare: 90 % of their rows are removed", "imbalanced", "class")
def unbalanced(run: Run) -> None:
    rows = _rows(run.batches)
    kept = [r for k, r in enumerate(rows) if r[1] == 0 or k % 10 == 0]
    run.batches = _batches(kept, ROWS)


@_operator(
    "TAN", "noise: all words but the first token are replaced by random ones", "labels_unrelated", "inputs", "words"
)
def noise_added(run: Run) -> None:
    run.batches = copied(run.batches)
    words = run.model.config.vocab_size
    draw = torch.Generator().manual_seed(run.seed)
    for batch in run.batches:
        ids = batch["input_ids"]
        random = torch.randint(5, words, ids.shape, generator=draw)
        ids[:, 1:] = torch.where(batch["attention_mask"][:, 1:].bool(), random[:, 1:], ids[:, 1:])


@_operator("TCO", "classes overlap: each row of one class is there again with another label", "contradict", "label")
def classes_overlap(run: Run) -> None:
    rows = _rows(run.batches)
    run.batches = _batches([r for row in rows for r in ([row, (row[0], 1)] if row[1] == 0 else [row])], ROWS)


@_operator("HBS", "the batch size is 4 times as large, in as many epochs", "batch")
def batch_size(run: Run) -> None:
    run.batches, run.steps = _batches(_rows(run.batches), 4 * ROWS), run.steps // 4


@_operator("HLR", "the learning rate is a thousandth", "lr_too_small", "lr_below_spacing", "learning rate")
def learning_rate(run: Run) -> None:
    run.optimizer = lambda model: torch.optim.AdamW(model.parameters(), lr=LR / 1000)


@_operator("HNE", "a tenth of the epochs", "steps", "epochs")
def epochs(run: Run) -> None:
    run.steps = 4


@_operator("HDB", "no batches: all rows are one", "batch")
def no_batches(run: Run) -> None:
    run.batches, run.steps = _batches(_rows(run.batches), len(_rows(run.batches))), 1


@_operator("ACH", "the activation of the first layer is a sigmoid", "base_altered")
def activation_changed(run: Run) -> None:
    run.model.bert.encoder.layer[0].intermediate.intermediate_act_fn = nn.Sigmoid()


@_operator("ARM", "the activation of the first layer is removed", "base_altered")
def activation_removed(run: Run) -> None:
    run.model.bert.encoder.layer[0].intermediate.intermediate_act_fn = nn.Identity()


@_operator("AAL", "an activation after the output layer", "logits_one_signed", "ReLU", "logits")
def activation_added(run: Run) -> None:
    run.model.classifier = nn.Sequential(run.model.classifier, nn.ReLU())


def _penalised(run: Run, penalty) -> None:
    run.loss = lambda model, batch: model(**batch).loss + penalty(model)


@_operator("RAW", "an L1 penalty on a layer: 0.01 times the sum of the head's weights", "other_terms_drown", "regular")
def regularisation_added(run: Run) -> None:
    _penalised(run, lambda model: 0.01 * model.classifier.weight.abs().sum())


@_operator("RCW", "the weight decay is a hundred times as large", "decay")
def regularisation_changed(run: Run) -> None:
    run.optimizer = lambda model: torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=1.0)


@_operator("RRW", "no weight decay", "decay")
def regularisation_removed(run: Run) -> None:
    run.optimizer = lambda model: torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)


@_operator("RCD", "the dropout rate is 0.75", "dropout")
def dropout_rate(run: Run) -> None:
    for module in run.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.75


@_operator("WCI", "the weights of the output layer are ones", "head_init_constant", "head_")
def initial_weights(run: Run) -> None:
    nn.init.ones_(run.model.classifier.weight)


@_operator("WRB", "the output layer has no bias", "bias")
def bias_removed(run: Run) -> None:
    old = run.model.classifier
    new = nn.Linear(old.in_features, old.out_features, bias=False)
    new.weight.data.copy_(old.weight.data)
    run.model.classifier = new


@_operator("LCH", "the loss is the mean absolute error of the probabilities", "loss", "mistakes_pay")
def loss_changed(run: Run) -> None:
    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return (logits.softmax(-1) - nn.functional.one_hot(batch["labels"], logits.shape[-1])).abs().mean()

    run.loss = loss


@_operator(
    "OCH",
    "the optimizer is plain SGD with that library's learning rate, 0.01",
    "lr_too_small",
    "optimizer",
    "learning rate",
)
def optimizer_changed(run: Run) -> None:
    run.optimizer = lambda model: torch.optim.SGD(model.parameters(), lr=0.01)


@_operator("OCG", "gradients are clipped to a norm of 0.1", "clip")
def clipping_changed(run: Run) -> None:
    run.max_norm = 0.1
