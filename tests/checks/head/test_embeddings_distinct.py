"""embeddings_distinct: collapse, and metric learning that works."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import check_embeddings_distinct, diagnose, example_trace, finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.checks.head.embedding_record import Embeddings

GOOD = Embeddings(64, 0.6, 0.9, 0.3, 0.95, 0.24)


def judge(**changes):
    return check_embeddings_distinct(example_trace(measurements={"embeddings": replace(GOOD, **changes)}))


@pytest.mark.parametrize(
    ("last", "fault"), [(0.9, ""), (0.061, ""), (0.06, "embeddings_collapsed"), (float("nan"), "embeddings_collapsed")]
)
def test_the_limit(last, fault):
    assert judge(spread_last=last).fault == fault


def test_wording():
    assert str(judge(spread_last=0.01, neighbours_last=0.3)).splitlines() == [
        "embeddings_distinct: FAIL. All embeddings collapse to one point: the embeddings' spread over rows went 0.600 -> 0.0100 of their "
        "size; the nearest neighbour has the row's label in 30 % -> 30 % of 64 rows (by chance 24 %).",
        "  cause: the learning rate is too high for this loss, or negatives are missing or too hard: the loss is then lowest where all "
        "rows have one embedding, and a margin loss stays at its margin",
        "  do: lower the learning rate tenfold; draw batches with several rows of each of several labels; begin with easier negatives",
        "  limit: above 10 % of the spread before the run",
        "  measured: root mean square around the mean over root mean square, dropout off, on the fixed rows",
    ]


def of_pairs(pull, push):
    """Rows of one label are pulled together, others pushed apart as far as a margin."""

    def loss(model, batch):
        inputs, labels = batch
        z = model(inputs)
        distance = (z[:, None] - z).pow(2).sum(-1)
        same = labels[:, None] == labels
        return (pull * distance * same + push * (4 - distance).clamp_min(0) * ~same).mean()

    return loss


@pytest.mark.trains
@pytest.mark.parametrize(("push", "fault"), [(1.0, ""), (0.0, "embeddings_collapsed")])
def test_a_contrastive_loss_with_and_without_negatives(push, fault):
    trace = finetune(
        tiny_distilbert(num_labels=16),
        toy_batches(),
        loss_fn=of_pairs(1.0, push),
        lr=3e-3,
        steps=30,
        probes=["embeddings", "loss"],
    )
    assert check_embeddings_distinct(trace).fault == fault
    if fault:
        assert diagnose(trace).causes[0].fault == "embeddings_collapsed"


@pytest.mark.trains
def test_logits_are_no_embeddings():
    trace = finetune(tiny_distilbert(), toy_batches(), steps=1, probes=["embeddings"])
    assert check_embeddings_distinct(trace).status == "skipped"
