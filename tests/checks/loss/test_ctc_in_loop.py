"""CTC and preference losses through loss_fn=: healthy runs stay silent, and what no CTC loss can be is named."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import Trace, check_loss_matches_task, diagnose, example_trace, finetune, watch
from pytest_ftcheck.checks.loop.record import CtcCall, LoopCalls
from pytest_ftcheck.checks.loss.ctc_in_loop import NORMALISED, judge_ctc
from pytest_ftcheck.instruments.ctc_node import ctc_behind


class Listener(nn.Module):
    """Scores 5 letters and the blank, number 0, for each frame."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.GRU(8, 32, batch_first=True, bidirectional=True), nn.Linear(64, 6)

    def forward(self, x):
        return self.head(self.encoder(x)[0])


def spoken(batches=6, rows=16):
    """Two to four letters a row, four frames each."""
    g = torch.Generator().manual_seed(0)
    book, found = torch.randn(6, 8, generator=g), []
    for _ in range(batches):
        count = torch.randint(2, 5, (rows,), generator=g)
        letters = torch.randint(1, 6, (rows, 4), generator=g)
        x = book[letters.repeat_interleave(4, 1)] + 0.3 * torch.randn(rows, 16, 8, generator=g)
        found.append(
            {"x": x, "labels": letters.masked_fill(torch.arange(4) >= count[:, None], -100), "frames": 4 * count}
        )
    return found


def ctc(model, batch):
    labels = batch["labels"]
    log_probs = model(batch["x"]).log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(log_probs, labels.clamp(min=0), batch["frames"], (labels != -100).sum(1))


def padding_counted(model, batch):
    labels = batch["labels"].clamp(min=0)
    log_probs = model(batch["x"]).log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(log_probs, labels, torch.full((len(labels),), 16), torch.full((len(labels),), 4))


def raw_logits(model, batch):
    labels = batch["labels"]
    return F.ctc_loss(model(batch["x"]).transpose(0, 1), labels.clamp(min=0), batch["frames"], (labels != -100).sum(1))


# ---------------------------------------------------------------------- real runs
def test_a_healthy_ctc_loss_is_silent():
    found = diagnose(finetune(Listener, spoken(), loss_fn=ctc, lr=3e-3, steps=25))
    assert found.status == "healthy", str(found)


@pytest.mark.parametrize(("loss", "fault"), [(padding_counted, "ctc_blank_in_targets"), (raw_logits, "ctc_on_logits")])
def test_what_no_ctc_loss_gets_is_the_first_cause(loss, fault):
    trace = finetune(Listener, spoken(), loss_fn=loss, lr=3e-3, steps=12)
    assert diagnose(trace).causes[0].fault == fault
    assert Trace.from_json(trace.to_json()) == trace


def test_a_loop_of_the_users_own_is_observed_too():
    model, batches = Listener(), spoken(3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with watch(model, optimizer) as w:
        for batch in batches:
            optimizer.zero_grad()
            padding_counted(model, batch).backward()
            optimizer.step()
    assert check_loss_matches_task(w.trace).fault == "ctc_blank_in_targets"


def test_a_blank_among_the_targets_makes_a_value_below_zero():
    certain = torch.tensor([0.0, -40.0]).repeat(4, 1, 1)  # the blank in all four frames, surely: ten ways to align it
    assert float(F.ctc_loss(certain, torch.tensor([[0]]), (4,), (1,))) == pytest.approx(-math.log(10))


def pairs(rows=6):
    g, found = torch.Generator().manual_seed(0), []
    for _ in range(4):
        prompt, good, bad = (torch.randint(low, low + 30, (rows, 6), generator=g) for low in (10, 50, 90))
        found.append({"chosen": torch.cat([prompt, good], 1), "rejected": torch.cat([prompt, bad], 1)})
    return found


class Writer(nn.Module):
    """A small causal language model."""

    def __init__(self):
        super().__init__()
        self.words, self.body, self.head = nn.Embedding(120, 16), nn.GRU(16, 32, batch_first=True), nn.Linear(32, 120)

    def forward(self, ids):
        return self.head(self.body(self.words(ids))[0])


def log_probability(model, ids):
    z = model(ids)[:, 5:-1].log_softmax(-1)
    return z.gather(-1, ids[:, 6:, None]).squeeze(-1).sum(1)


def test_a_healthy_preference_loss_is_silent():
    model = Writer()
    before = copy.deepcopy(model).eval().requires_grad_(False)

    def dpo(model, batch):  # Rafailov et al. 2023, beta = 0.1
        with torch.no_grad():
            reference = log_probability(before, batch["chosen"]) - log_probability(before, batch["rejected"])
        margin = log_probability(model, batch["chosen"]) - log_probability(model, batch["rejected"])
        return -F.logsigmoid(0.1 * (margin - reference)).mean()

    found = diagnose(finetune(model, pairs(), loss_fn=dpo, lr=1e-3, steps=30))
    assert found.status == "healthy", str(found)


# ---------------------------------------------------------------------- reading the node
@pytest.mark.parametrize("flat", [False, True])
def test_labels_within_their_lengths_are_counted(flat):
    z = torch.randn(9, 3, 5, requires_grad=True)
    targets, lengths = torch.tensor([[1, 2, 0], [3, 0, 0], [1, 0, 4]]), torch.tensor([2, 1, 3])
    if flat:
        targets = torch.cat([row[:n] for row, n in zip(targets, lengths, strict=True)])
    loss = F.ctc_loss(z.log_softmax(-1), targets, torch.tensor([9, 9, 9]), lengths)
    given = ctc_behind(2 * loss + 1)
    assert (given.targets, given.blanks) == (6, 1)
    assert given.log_mass == pytest.approx(0, abs=1e-5)


def test_frames_beyond_their_lengths_are_not_judged():
    log_probs = (
        torch.randn(9, 2, 5, requires_grad=True).log_softmax(-1) + torch.tensor([0.0] * 6 + [3.0] * 3)[:, None, None]
    )
    targets = torch.tensor([[1, 2], [3, 4]])
    assert ctc_behind(F.ctc_loss(log_probs, targets, (6, 6), (2, 2))).log_mass < 1e-5
    assert ctc_behind(F.ctc_loss(log_probs, targets, (6, 7), (2, 2))).log_mass == pytest.approx(3, abs=1e-4)


def test_another_loss_has_none():
    z = torch.randn(4, 3, requires_grad=True)
    assert ctc_behind(F.cross_entropy(z, torch.tensor([0, 1, 2, 0]))) is None
    assert ctc_behind(torch.tensor(1.0)) is None


# ---------------------------------------------------------------------- hand-written traces
RIGHT = CtcCall(0, 4.0, targets=60, blanks=0, log_mass=1e-6)


def judged(*calls):
    trace = example_trace()
    return judge_ctc(
        dataclasses.replace(trace, measurements={**trace.measurements, "loop": LoopCalls(ctc=calls)}),
        "loss_matches_task",
    )


def test_right_calls_and_none_have_no_verdict():
    assert judged() is None
    assert judged(RIGHT, RIGHT) is None
    assert judged(RIGHT, dataclasses.replace(RIGHT, log_mass=5.0)) is None  # one call of two
    assert judged(dataclasses.replace(RIGHT, log_mass=NORMALISED)) is None


def test_a_wrong_call_is_named():
    assert judged(dataclasses.replace(RIGHT, log_mass=NORMALISED + 0.01)).fault == "ctc_on_logits"
    found = judged(RIGHT, dataclasses.replace(RIGHT, blanks=1))
    assert (found.status, found.fault) == ("fail", "ctc_blank_in_targets")
    assert "1 of 120 labels" in found.headline
