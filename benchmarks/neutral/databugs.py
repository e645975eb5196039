"""Bugs in the training data that Shah, Rahman and Khomh put into fine-tunes of BERT models, in our own words.

Of their kinds: label noise, class imbalance, concept drift, and texts without their usual preprocessing. How strong they are is our
choice: the paper takes data sets as they were found.
"""

from __future__ import annotations

import torch

from .task import ROWS, Fault, Run, copied, make_batch

WHERE = "https://arxiv.org/abs/2411.12137, https://github.com/mehilshah/Impact-of-Data-Bugs-for-SE-Tasks"
FAULTS: list[Fault] = []


def _bug(name: str, story: str, *cause: str):
    def kept(apply):
        FAULTS.append(Fault("Shah et al.", name, story, WHERE, apply, cause))
        return apply

    return kept


@_bug("label-noise", "40 % of the training labels are drawn at random", "label", "noise")
def label_noise(run: Run) -> None:
    run.batches = copied(run.batches)
    draw = torch.Generator().manual_seed(run.seed)
    for batch in run.batches:
        labels = batch["labels"]
        hit = torch.rand(labels.shape, generator=draw) < 0.4
        batch["labels"] = torch.where(
            hit, torch.randint(0, run.model.config.num_labels, labels.shape, generator=draw), labels
        )


@_bug("class-imbalance", "one class has 90 % of the training rows", "imbalanced", "class")
def class_imbalance(run: Run) -> None:
    rows = [
        (ids[mask.bool()].tolist(), int(label))
        for batch in run.batches
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    ]
    most = [r for r in rows if r[1] == 0]
    rest = [r for r in rows if r[1] != 0][: len(most) // 9]
    order = torch.randperm(len(most) + len(rest), generator=torch.Generator().manual_seed(run.seed)).tolist()
    kept = [(most + rest)[i] for i in order]
    run.batches = [
        make_batch([ids for ids, _ in kept[k : k + ROWS]], [label for _, label in kept[k : k + ROWS]])
        for k in range(0, len(kept), ROWS)
    ]


@_bug("concept-drift", "two classes have exchanged their meaning since the training rows were labelled", "exchanged")
def concept_drift(run: Run) -> None:
    run.batches = copied(run.batches)
    for batch in run.batches:
        labels = batch["labels"].clone()
        batch["labels"][labels == 0], batch["labels"][labels == 1] = 1, 0


@_bug(
    "no-preprocessing",
    "the training texts are not cleaned as the held-out ones: 70 % of the vocabulary's words are one unknown token there",
    "unknown",
    "tokens_apart",
    "words",
)
def no_preprocessing(run: Run) -> None:
    run.batches = copied(run.batches)
    hit = torch.rand(run.model.config.vocab_size, generator=torch.Generator().manual_seed(run.seed)) < 0.7
    hit[:5] = False
    unknown = int(hit.nonzero()[0])  # the trimmed vocabulary has no unknown token of its own
    for batch in run.batches:
        ids = batch["input_ids"]
        ids[:, 1:] = torch.where(hit[ids[:, 1:]], unknown, ids[:, 1:])
