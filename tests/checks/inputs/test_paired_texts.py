"""Two texts in one batch, padded to one width: columns of padding in one of them are words in the other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_ftcheck import check_padding_ignored, finetune, tiny_distilbert
from pytest_ftcheck.checks.inputs.record import Inputs
from pytest_ftcheck.instruments.paired_texts import tensors_of_other_texts
from pytest_ftcheck.instruments.tokens import find_tokens

WIDTH, ROWS = 14, 12


def text(generator, *, to_width=True):
    """Ids and mask of rows of three to fourteen tokens; words are 10 to 79, the padding is 0."""
    lengths = torch.randint(3, WIDTH + 1, (ROWS,), generator=generator)
    if to_width:
        lengths[0] = WIDTH
    mask = (torch.arange(WIDTH) < lengths[:, None]).long()
    return torch.randint(10, 80, (ROWS, WIDTH), generator=generator) * mask, mask


def pairs(seed=0, batches=4):
    g = torch.Generator().manual_seed(seed)
    return [(*text(g), *text(g), torch.randint(2, (ROWS,), generator=g)) for _ in range(batches)]


LAYOUTS = {
    "prefixes": lambda a, m, b, n, y: {"q_input_ids": a, "q_mask": m, "d_input_ids": b, "d_mask": n, "labels": y},
    "suffixes": lambda a, m, b, n, y: {"ids_2": b, "mask_2": n, "mask_1": m, "ids_1": a, "labels": y},
    "nested": lambda a, m, b, n, y: {
        "q": {"input_ids": a, "attention_mask": m},
        "d": {"input_ids": b, "attention_mask": n},
        "labels": y,
    },
    "pairs": lambda a, m, b, n, y: ((a, m), (b, n), y),
    "a tuple": lambda a, m, b, n, y: (a, b, m, n, y),
}
READ = {
    "prefixes": lambda b: (b["q_input_ids"], b["q_mask"], b["d_input_ids"], b["d_mask"]),
    "suffixes": lambda b: (b["ids_1"], b["mask_1"], b["ids_2"], b["mask_2"]),
    "nested": lambda b: (*b["q"].values(), *b["d"].values()),
    "pairs": lambda b: (*b[0], *b[1]),
    "a tuple": lambda b: (b[0], b[2], b[1], b[3]),
}


class TwoTexts(nn.Module):
    """One base for both texts, as in SoftmaxLoss of sentence-transformers; ``masked``: the mean is over real tokens."""

    def __init__(self, masked=True):
        super().__init__()
        torch.manual_seed(0)
        self.base_model, self.classifier, self.masked = tiny_distilbert().base_model, nn.Linear(192, 2), masked

    def embed(self, ids, mask):
        hidden = self.base_model(input_ids=ids, attention_mask=mask)[0]
        weight = (mask if self.masked else torch.ones_like(mask))[..., None].float()
        return (hidden * weight).sum(1) / weight.sum(1)

    def forward(self, a, m, b, n):
        one, two = self.embed(a, m), self.embed(b, n)
        return self.classifier(torch.cat([one, two, (one - two).abs()], -1))


def judged(layout, *, masked=True):
    batches = [LAYOUTS[layout](*b) for b in pairs()]
    model = TwoTexts(masked)
    trace = finetune(
        model,
        batches,
        steps=2,
        lr=1e-3,
        probes=("inputs",),
        forward=lambda m, b: m(*READ[layout](b)),
    )
    return check_padding_ignored(trace), trace.measured(Inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_words_of_the_other_text_are_not_cut(layout):
    verdict, found = judged(layout)
    assert verdict.status == "pass", verdict
    assert found.padding.columns > 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_that_is_pooled_is_still_found(layout):
    verdict, _ = judged(layout, masked=False)
    assert (verdict.status, verdict.fault) == ("fail", "padding_pooled"), verdict


def others_of(batch):
    return {"/".join(map(str, p)) for p in tensors_of_other_texts(batch, find_tokens(batch))}


def test_what_describes_the_same_text_is_not_another_text():
    ids, mask = text(torch.Generator().manual_seed(1))
    count = mask.cumsum(1)
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": (count > 4).long() * mask,
        "types_of_the_last": (count > 2).long() * 2,
        "position_ids": torch.arange(WIDTH).expand(ROWS, WIDTH),
        "counted_positions": count,
        "positions_from_2": count * mask + 1,
        "special_tokens_mask": ((count == 1) | (mask == 0)).long(),
        "words": (count - 1) * mask - (mask == 0).long(),
        "tags": torch.randint(9, ids.shape).masked_fill(mask == 0, -100),
        "clean_ids": ids.clone(),
        "lengths": mask.sum(1),
        "weights": torch.rand(ids.shape),
        "labels": torch.randint(9, ids.shape).masked_fill(mask == 0, -100),
    }
    assert others_of(batch) == set()


def test_a_target_of_the_same_width_is_another_text():
    g = torch.Generator().manual_seed(1)
    (ids, mask), (target, shown) = text(g), text(g)
    labels = target.masked_fill(shown == 0, -100)
    batch = {"input_ids": ids, "attention_mask": mask, "decoder_attention_mask": shown, "labels": labels}
    assert others_of(batch) == {"decoder_attention_mask", "labels"}


@pytest.mark.parametrize("seed", range(5))
def test_two_rows_are_enough_to_tell(seed):
    g = torch.Generator().manual_seed(seed)
    (a, m), (b, n) = text(g), text(g)
    m[1, -3:] = 0
    batch = {"q_ids": (a * m)[:2], "q_mask": m[:2], "d_ids": b[[1, 0]], "d_mask": n[[1, 0]]}
    assert others_of(batch) == {"d_ids", "d_mask"}


def test_the_mask_of_the_same_text_is_taken_first():
    g = torch.Generator().manual_seed(2)
    (a, m), (b, n) = text(g), text(g)
    found = find_tokens({"q_ids": a, "d_mask": n, "d_ids": b, "q_mask": m})
    assert found.mask_path == ("q_mask",)
    assert found.pad_id == 0
