"""Metric learning: outputs are embeddings, judged by their neighbours; and what makes all of them one point, or turns them round."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .cases import Classifier, Run, control, cue, fault, filler, packed, shuffled
from .tasks import fine_tune

#: Topics of the texts: enough that a nearest neighbour of the same topic is no chance.
TOPICS = 5
SPREAD = ("embeddings_distinct",)
SBERT = "sentence-transformers docs: losses"
Text = dict[str, Any]


class Embedder(Classifier):
    """The mean over the words, and a projection."""

    def __init__(self) -> None:
        super().__init__(head=nn.Linear(32, 16))

    def forward(self, texts):
        return super().forward(texts["input_ids"], texts["attention_mask"])


def texts_of(topics: Any, g: torch.Generator) -> Text:
    """Texts of nine words, of which four speak for the topic; all are of one length."""
    rows = [(shuffled(g, [cue(g, t) for _ in range(4)] + filler(g, 5)), t) for t in topics.tolist()]
    made = packed(rows, len(rows))[0]
    return {k: made[k] for k in ("input_ids", "attention_mask")}


def triplets(g: torch.Generator, rows: int) -> dict[str, Any]:
    """A text, one of its topic, and one of another."""
    own = torch.randint(0, TOPICS, (rows,), generator=g)
    other = (own + torch.randint(1, TOPICS, (rows,), generator=g)) % TOPICS
    return {k: texts_of(t, g) for k, t in (("anchor", own), ("positive", own), ("negative", other))}


def labelled(g: torch.Generator, rows: int) -> dict[str, Any]:
    labels = torch.randint(0, TOPICS, (rows,), generator=g)
    return {"texts": texts_of(labels, g), "labels": labels}


def pairs(g: torch.Generator, rows: int) -> dict[str, Any]:
    """Two texts, and whether they are of one topic: 1 is alike, 0 is not."""
    one, other = torch.randint(0, TOPICS, (2, rows), generator=g)
    other = torch.where(torch.rand(rows, generator=g) < 0.5, one, other)
    return {"anchor": texts_of(one, g), "positive": texts_of(other, g), "labels": (one == other).float()}


def unit(model: Any, batch: Any, *keys: str) -> Any:
    return (F.normalize(model(batch[k])) for k in keys)


def nearer(model: Any, batch: Any) -> float:
    """Share of the rows that are nearer to their own topic's text than to the next row's."""
    one, other = unit(model, batch, "anchor", "positive")
    return float(((one * other).sum(1) > (one * other.roll(1, 0)).sum(1)).float().mean())


def neighbours(model: Any, batch: Any) -> float:
    (z,) = unit(model, batch, "texts")
    nearest = (z @ z.T).fill_diagonal_(-2).argmax(1)
    return float((batch["labels"][nearest] == batch["labels"]).float().mean())


def told_apart(model: Any, batch: Any) -> float:
    """Share of the pairs that a cosine of 0.65 sorts rightly into alike or not."""
    one, other = unit(model, batch, "anchor", "positive")
    return float((((one * other).sum(1) > 0.65) == (batch["labels"] > 0.5)).float().mean())


SCORES = {labelled: neighbours, pairs: told_apart, triplets: nearer}


def embedding(seed: int, loss_fn: Any, make: Any = triplets, **more: Any) -> Run:
    how = {"lr": 3e-3, "head": "head", "score": SCORES[make], **more}
    return fine_tune(seed, Embedder, make, loss_fn=loss_fn, task="embedding", **how)


def triplet(model: Any, batch: Any) -> Any:
    return F.triplet_margin_loss(*unit(model, batch, "anchor", "positive", "negative"), margin=0.5)


def in_batch_negatives(model: Any, batch: Any) -> Any:
    one, other = unit(model, batch, "anchor", "positive")
    return F.cross_entropy(20 * one @ other.T, torch.arange(len(one)))


def supervised_contrast(model: Any, batch: Any) -> Any:
    (z,), y = unit(model, batch, "texts"), batch["labels"]
    alike = (z @ z.T / 0.1).fill_diagonal_(-1e9).log_softmax(1)
    same = (y[:, None] == y[None]).fill_diagonal_(fill_value=False)
    return -((alike * same).sum(1) / same.sum(1).clamp_min(1)).mean()


def cosine(model: Any, batch: Any) -> Any:
    """Contrastive loss of pairs with a margin."""
    one, other = unit(model, batch, "anchor", "positive")
    apart = 1 - (one * other).sum(1)
    return (batch["labels"] * apart.pow(2) + (1 - batch["labels"]) * (0.7 - apart).clamp_min(0).pow(2)).mean()


@control("embedding", "Triplets: nearer to the positive than to the negative by a margin", "arXiv:1503.03832")
def triplet_margin(seed: int) -> Run:
    return embedding(seed, triplet)


@control("embedding", "Multiple negatives: the other rows' texts are the wrong answers", SBERT + "; arXiv:1705.00652")
def multiple_negatives(seed: int) -> Run:
    return embedding(seed, in_batch_negatives)


@control("embedding", "Supervised contrastive loss: labels are only compared with each other", "arXiv:2004.11362")
def contrast_by_labels(seed: int) -> Run:
    return embedding(seed, supervised_contrast, labelled)


@control("embedding", "Pairs with a margin: alike or not", SBERT + " (ContrastiveLoss)")
def pairs_with_a_margin(seed: int) -> Run:
    return embedding(seed, cosine, pairs, steps=60)


@control(
    "embedding", "ArcFace: logits are cosines with a margin, times 30; the head is dropped later", "arXiv:1801.07698"
)
def margin_of_angles(seed: int) -> Run:
    from .cases import textual
    from .heads import Cosine

    def loss_fn(model: Any, batch: Any) -> Any:
        z = model(batch["input_ids"], batch["attention_mask"]) / 30
        angle = torch.acos(z.clamp(-0.999, 0.999)) + 0.2 * F.one_hot(batch["labels"], 3)
        return F.cross_entropy(30 * torch.cos(angle), batch["labels"])

    return textual(seed, lambda: Classifier(head=Cosine(32, 3, 30.0)), loss_fn=loss_fn)


@fault(
    "embedding",
    "Rows of one topic are pulled together and nothing pushes others apart: all embeddings become one point",
    "arXiv:2005.10242 (alignment and uniformity); collapse in siamese networks",
    SPREAD,
    ("embeddings_collapsed",),
)
def pulled_together_without_negatives(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        return (model(batch["anchor"]) - model(batch["positive"])).pow(2).mean()

    return embedding(seed, loss_fn, lr=1e-2, steps=30)


@fault(
    "embedding",
    "cdist stands where a similarity is meant: the farthest text is the right answer",
    SBERT + " (similarity_fct); PyTorch docs: torch.cdist",
    SPREAD,
    ("embeddings_reversed",),
    shows=lambda s: s.after < 0.5,
)
def distances_for_similarities(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        one, other = unit(model, batch, "anchor", "positive")
        return F.cross_entropy(10 * torch.cdist(one, other), torch.arange(len(one)))

    return embedding(seed, loss_fn)


@fault(
    "embedding",
    "Pairs are labelled 1 where they differ, as in Hadsell's paper; the loss takes 1 for alike",
    "Hadsell et al. 2006 (Y = 1 for dissimilar pairs) and sentence-transformers' ContrastiveLoss (1 for similar ones)",
    (),
    ("embeddings_reversed",),
    uncatchable="which of 0 and 1 stands for alike is a convention, and the run learns what it is taught",
)
def ones_for_pairs_that_differ(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        return cosine(model, {**batch, "labels": 1 - batch["labels"]})

    return embedding(seed, loss_fn, pairs, steps=60)


@fault(
    "embedding",
    "anchor and negative are exchanged in the call: texts of other topics are drawn together",
    "PyTorch docs: torch.nn.TripletMarginLoss (anchor, positive, negative)",
    SPREAD,
    ("embeddings_reversed",),
    shows=lambda s: s.after < 0.6,
)
def positive_and_negative_exchanged(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        anchor, positive, negative = unit(model, batch, "anchor", "positive", "negative")
        return F.triplet_margin_loss(anchor, negative, positive, margin=0.5)

    return embedding(seed, loss_fn)
