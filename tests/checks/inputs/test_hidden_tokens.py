"""A mask that hides real tokens: what is counted, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pytest_ftcheck import check_padding_ignored, diagnose, example_trace, finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.checks.inputs.probe.hidden_tokens import find_hidden_tokens
from pytest_ftcheck.checks.inputs.record import HiddenTokens, Inputs
from pytest_ftcheck.checks.learning import ENOUGH, learns, weight_of_suspicion

PAD, CLS, SEP = 0, 2, 3
IDS = torch.tensor([[CLS, 11, 12, 13, 14, SEP], [CLS, 15, 16, SEP, PAD, PAD], [CLS, 17, 18, 19, SEP, PAD]])
MASK = (IDS != PAD).long()
CUT = MASK * (torch.arange(6) < 3)


def found(mask=MASK, declared=None, likely=None, name="attention_mask", ids=IDS):
    return find_hidden_tokens([{"input_ids": ids, name: mask, "labels": torch.zeros(3)}], declared, likely)


def left(values):
    return values.flip(1)


@pytest.mark.parametrize("known", [{"declared": PAD}, {"likely": PAD}])
@pytest.mark.parametrize(
    ("mask", "hidden", "rows"),
    [
        (CUT, 6, 3),  # made for another length
        (MASK[[2, 1, 0]], 1, 1),  # of other rows
        (MASK * ((IDS < 11) | (IDS > 13)), 3, 1),  # from other ids
    ],
)
def test_masks_that_hide_real_tokens(known, mask, hidden, rows):
    counted = found(mask, **known)
    assert (counted.pad_id, counted.hidden, counted.rows_with_hidden, counted.rows, counted.tokens) == (
        PAD,
        hidden,
        rows,
        3,
        15,
    )
    assert counted == replace(found(left(mask), ids=left(IDS), **known))


@pytest.mark.parametrize(
    ("mask", "known"),
    [
        (MASK, {"declared": PAD}),
        (MASK, {"likely": PAD}),
        (MASK, {}),
        (MASK, {"likely": 99}),  # the config's id is not that of the batches: what fills the ends of rows is
    ],
)
def test_the_right_mask_hides_nothing(mask, known):
    assert (found(mask, **known).hidden, found(mask, **known).padding_shown) == (0, 0)


def test_what_is_not_counted():
    assert found(CUT) is None  # the padding id is not known: SEP and 0 are at the ends
    assert found(torch.ones_like(MASK), declared=PAD) is None  # nothing is hidden
    assert found(1 - MASK, declared=PAD) is None  # inverted: another check names it
    assert found(CUT, name="special_tokens_mask", likely=PAD) is None  # no mask of attention
    one_other = torch.where(IDS == PAD, 1, IDS)
    assert found((one_other != 1).long(), likely=PAD, ids=one_other).hidden == 0  # padded with 1, config says 0
    assert find_hidden_tokens([torch.randn(3, 4)], PAD, None) is None


def test_the_padding_id_is_what_fills_the_masked_ends():
    padded = torch.cat([IDS, torch.zeros(3, 2, dtype=torch.long)], 1)
    counted = found(torch.cat([CUT, torch.zeros(3, 2, dtype=torch.long)], 1), ids=padded)
    assert (counted.source, counted.pad_id, counted.hidden) == ("at the end of rows", PAD, 6)


def test_a_mask_of_the_padding():
    counted = found((1 - CUT).bool(), name="key_padding_mask", likely=PAD)
    assert (counted.hidden, counted.padding_shown) == (6, 0)


# ---------------------------------------------------------------------------------------- what is said of it
HIDDEN = HiddenTokens(PAD, "config", 64, 60, 1000, 300)


def without_learning(trace, steps=ENOUGH):
    metrics = tuple(replace(m, last=m.first, p_value=1.0) for m in trace.metrics)
    return replace(trace, metrics=metrics, steps=(trace.steps * steps)[:steps])


def judged(hidden=HIDDEN, trace=None):
    return check_padding_ignored(
        replace(trace or example_trace(), measurements={"inputs": Inputs(hidden_tokens=hidden)})
    )


def test_advice_where_the_run_learns_a_fault_where_it_does_not():
    trace = example_trace()
    assert (learns(trace), judged().status, judged().fault) == (True, "advice", "mask_hides_tokens")
    assert "hides 300 of 1,000 real tokens (30 %), in 60 of 64 rows" in judged().headline
    short, long = without_learning(trace, ENOUGH - 1), without_learning(trace)
    assert (learns(long), judged(trace=short).status, judged(trace=long).status) == (False, "inconclusive", "fail")
    still = tuple(replace(t, motion=replace(t.motion, share_changed=0.0)) for t in long.tensors)
    assert judged(trace=replace(long, tensors=still)).status == "advice"  # there is another reason not to learn


@pytest.mark.parametrize("hidden", [None, replace(HIDDEN, hidden=0), replace(HIDDEN, hidden=10)])
def test_few_hidden_tokens_or_none(hidden):
    assert judged(hidden, without_learning(example_trace())).fault == ""


def test_whether_a_run_learns_without_metrics():
    trace = replace(example_trace(), metrics=())
    assert learns(trace) is True
    assert learns(replace(trace, probe_loss=None)) is None
    assert weight_of_suspicion(replace(trace, probe_loss=None)) == "advice"


class Model(torch.nn.Module):
    def __init__(self, mask=lambda ids, mask: mask):
        super().__init__()
        tiny = tiny_distilbert(seed=0, n_layers=1, dim=16, hidden_dim=16)
        self.base_model, self.classifier, self.mask = tiny.base_model, tiny.classifier, mask

    def forward(self, input_ids, attention_mask):
        mask = self.mask(input_ids, attention_mask)
        return self.classifier(self.base_model(input_ids, attention_mask=mask)[0][:, 0])


def rows_of_task():
    toys = toy_batches(8, 16, seed=1)
    return [{"input_ids": ids, "attention_mask": mask, "labels": y} for (ids, _, mask), y in toys]


def run(batches, steps, model=None):
    probes = ("metrics", "inputs")
    return finetune(model or Model(), batches[:4], eval_batches=batches[4:], steps=steps, lr=1e-3, probes=probes)


def without_keywords(ids, mask):
    return mask * ((ids < 10) | (ids >= 80))


def test_a_run_whose_decisive_words_are_hidden():
    """All keywords of the toy task are masked; its healthy twin has the right mask."""
    rows = rows_of_task()
    hidden = [{**b, "attention_mask": without_keywords(b["input_ids"], b["attention_mask"])} for b in rows]
    assert diagnose(run(hidden, ENOUGH)).causes[0].fault == "mask_hides_tokens"
    assert check_padding_ignored(run(rows, 2)).status == "pass"


@pytest.mark.parametrize(
    ("mask", "fault"),
    [
        (without_keywords, "mask_hides_tokens"),
        (lambda ids, mask: (ids != PAD).long(), ""),
        (lambda ids, mask: mask.bool(), ""),
    ],
)
def test_a_mask_that_the_model_makes(mask, fault):
    verdict = check_padding_ignored(run(rows_of_task(), 2, Model(mask)))
    assert verdict.fault == fault
    assert verdict.headline.startswith("The mask that the base receives hides") == bool(fault)
