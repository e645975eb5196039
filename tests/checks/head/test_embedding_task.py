"""Intent(task="embedding"): pairs and triplets are judged by their neighbours, and a declaration that the run contradicts is named."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pytest_ftcheck import Intent, diagnose, finetune, tiny_distilbert, toy_batches, watch
from pytest_ftcheck.checks.head.embedding_record import Embeddings

DECLARED = Intent(task="embedding")
LOGIT_CHECKS = ("initial_loss", "loss_matches_task", "logits_unbounded", "metric_improves")


class Embedder(torch.nn.Module):
    """The mean over the tokens of a tiny base, and a projection."""

    def __init__(self, outputs=16):
        super().__init__()
        self.base_model = tiny_distilbert(seed=0).base_model
        self.projection = torch.nn.Linear(64, outputs)

    def forward(self, ids):
        ids = ids[0] if isinstance(ids, tuple) else ids
        return self.projection(self.base_model(ids, attention_mask=torch.ones_like(ids))[0].mean(1))


def of_topics(topics, g):
    ids = torch.randint(100, 190, (len(topics), 10), generator=g)
    ids[:, 2:7] = 10 + 5 * topics[:, None] + torch.randint(0, 5, (len(topics), 5), generator=g)
    return ids


def triplets(topics=8):
    """Batches of 16 rows: a text, one of its topic, and one of another."""
    g = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(8):
        own = torch.randint(0, topics, (16,), generator=g)
        other = (own + torch.randint(1, topics, (16,), generator=g)) % topics
        texts = (of_topics(t, g) for t in (own, own, other))
        batches.append(dict(zip(("anchor", "positive", "negative"), texts, strict=True)))
    return batches


def triplet(model, batch):
    return F.triplet_margin_loss(
        *(F.normalize(model(batch[k])) for k in ("anchor", "positive", "negative")), margin=0.5
    )


def plain_distances(model, batch):
    """Nothing is normalised: the bias of the last layer cancels, and has no gradient."""
    return F.triplet_margin_loss(*(model(batch[k]) for k in ("anchor", "positive", "negative")))


def in_batch_negatives(model, batch):
    one, other = (F.normalize(model(batch[k])) for k in ("anchor", "positive"))
    return F.cross_entropy(20 * one @ other.T, torch.arange(len(one)))


def distances_as_similarities(model, batch):
    one, other = (F.normalize(model(batch[k])) for k in ("anchor", "positive"))
    return F.cross_entropy(10 * torch.cdist(one, other), torch.arange(len(one)))


def without_negatives(model, batch):
    return (model(batch["anchor"]) - model(batch["positive"])).pow(2).mean()


def run(loss, batches=None, make=Embedder, intent=DECLARED, **options):
    given = {"lr": 1e-3, "steps": 30, "seed": 0, "head": "projection", **options}
    return finetune(make, batches or triplets(), loss_fn=loss, intent=intent, **given)


@pytest.mark.trains
@pytest.mark.parametrize("loss", [triplet, plain_distances, in_batch_negatives])
def test_healthy_embeddings(loss):
    trace = run(loss)
    found = trace.measured(Embeddings)
    assert (trace.reading.task, found.relation, found.p_value) == ("embedding", "pair", 0.002)
    assert found.neighbours_last > 5 * found.chance
    diagnosis = diagnose(trace)
    assert diagnosis.status == "healthy", str(diagnosis)
    skipped = {v.check: v.headline for v in diagnosis.having("skipped")}
    assert set(LOGIT_CHECKS) <= set(skipped)
    assert skipped["loss_matches_task"] == "Not measured: the outputs are embeddings, and no logits."


@pytest.mark.trains
@pytest.mark.parametrize(
    ("loss", "options", "fault"),
    [
        (without_negatives, {"lr": 1e-2}, "embeddings_collapsed"),
        (distances_as_similarities, {}, "embeddings_reversed"),
    ],
)
def test_faults_of_embeddings(loss, options, fault):
    assert diagnose(run(loss, **options)).causes[0].fault == fault


def of_logits(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)


def of_pairs(model, batch):
    z, y = F.normalize(model(batch[0])), batch[1]
    alike = (z @ z.T / 0.1).fill_diagonal_(-1e9).log_softmax(1)
    same = (y[:, None] == y[None]).fill_diagonal_(fill_value=False)
    return -((alike * same).sum(1) / same.sum(1).clamp_min(1)).mean()


@pytest.mark.trains
@pytest.mark.parametrize(
    ("loss", "declared", "headline"),
    [
        (
            of_logits,
            "embedding",
            "The loss treats the outputs as the logits of classes, but the declared task is 'embedding'.",
        ),
        (
            of_pairs,
            "single_label",
            "The loss only compares labels with each other, as in metric learning, but the declared task is 'single_label'.",
        ),
        (of_logits, "single_label", ""),
        (of_pairs, "embedding", ""),
    ],
)
def test_a_declaration_that_is_contradicted(loss, declared, headline):
    trace = run(loss, toy_batches(4, 16, classes=4), lambda: Embedder(4), Intent(task=declared), steps=2)
    first = next((v for v in diagnose(trace).having("fail") if v.fault == "wrong_task"), None)
    assert (first.headline if first else "") == headline


@pytest.mark.trains
def test_a_model_without_a_head():
    class Bare(Embedder):
        def __init__(self):
            super().__init__()
            self.projection = torch.nn.Identity()

    trace = run(triplet, make=Bare, head=None, steps=1)
    assert trace.head == ()
    assert any(note.startswith("no head was found") for note in trace.notes)


@pytest.mark.trains
def test_watched_and_not_measured():
    """Declared, and not measured, is not passed; measured in a watched loop it is."""
    model, batches = Embedder(), triplets()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for options, status in (({}, "inconclusive"), ({"probe_batch": batches[0], "loss_fn": triplet}, "pass")):
        with watch(model, optimizer, head="projection", intent=DECLARED, **options) as w:
            for batch in batches:
                optimizer.zero_grad()
                triplet(model, batch).backward()
                optimizer.step()
        verdict = next(v for v in diagnose(w.trace).verdicts if v.check == "embeddings_distinct")
        assert verdict.status == status


def test_embeddings_have_no_standard_loss():
    with pytest.raises(
        ValueError, match=r"intent\.task='embedding': embeddings have no standard loss; expected loss_fn="
    ):
        finetune(Embedder, toy_batches(2, 8), head="projection", intent=DECLARED)
