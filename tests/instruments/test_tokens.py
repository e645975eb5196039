"""Token ids in a batch, their padding, and batches with other words, other padding or fewer columns."""

from __future__ import annotations

import torch

from pytest_ftcheck.instruments.batches import with_values
from pytest_ftcheck.instruments.tokens import find_tokens, other_padding, other_words, shuffled_words, without_columns

IDS = torch.tensor([[2, 50, 51, 3], [2, 60, 3, 0], [2, 70, 71, 3]])
MASK = (IDS != 0).long()


def test_tokens_are_found_by_name_and_by_shape():
    for batch, path in (
        ({"input_ids": IDS, "attention_mask": MASK, "token_type_ids": IDS * 0, "labels": MASK}, ("input_ids",)),
        (((IDS, torch.tensor([4, 3, 4]), MASK), torch.tensor([0, 1, 0])), (0, 0)),
        ((IDS, MASK, torch.tensor([0, 1, 0])), (0,)),
    ):
        found = find_tokens(batch)
        assert found.path == path
        assert torch.equal(found.real, MASK.bool())
        assert (found.pad_id, found.side, found.certain) == (0, "right", True)


def test_a_mask_that_is_true_at_padding():
    found = find_tokens({"input_ids": IDS, "padding_mask": MASK == 0})
    assert torch.equal(found.real, MASK.bool())


def test_without_a_mask_only_a_known_id_is_padding():
    assert find_tokens({"input_ids": IDS}).side is None
    assert find_tokens({"input_ids": IDS}, pad_id=0).side == "right"
    # what the config says is believed only where a row ends in several of them
    assert find_tokens({"input_ids": IDS}, likely_pad=0).side is None
    assert find_tokens({"input_ids": torch.cat([IDS, IDS * 0], 1)}, likely_pad=0).side == "right"


def test_what_are_no_tokens():
    assert find_tokens((torch.rand(3, 4), torch.tensor([0, 1, 0]))) is None
    assert find_tokens({"attention_mask": MASK}) is None
    assert find_tokens((torch.tensor([1, 2, 3]), torch.tensor([0, 1, 0]))) is None


def test_other_words_keep_the_ends_and_the_columns():
    found = find_tokens({"input_ids": IDS, "attention_mask": MASK})
    changed = other_words(found)
    assert changed[:, 0].tolist() == [2, 2, 2]
    assert changed[1, 2:].tolist() == [3, 0]
    assert sorted(changed[:, 1].tolist()) == [50, 60, 70]
    assert (changed[:, 1] != IDS[:, 1]).all()
    same = IDS[:1].repeat(3, 1)
    assert other_words(find_tokens({"input_ids": same})) is None


def test_shuffled_words_and_other_padding():
    found = find_tokens({"input_ids": IDS, "attention_mask": MASK})
    assert shuffled_words(found)[0].tolist() == [2, 51, 50, 3]
    assert shuffled_words(found.of([1])) is None
    assert other_padding(found)[1, 3] != 0
    assert torch.equal(other_padding(found)[found.real], IDS[found.real])
    assert other_padding(find_tokens({"input_ids": IDS[[0, 2]]})) is None


def test_columns_are_cut_everywhere_and_the_batch_stays():
    batch = {
        "input_ids": IDS,
        "pairs": torch.ones(3, 1, 4, 4),
        "boxes": torch.ones(3, 4, 5),
        "labels": torch.tensor([0, 1, 0]),
    }
    cut = without_columns(batch, torch.tensor([True, True, True, False]), 3, 4)
    assert {k: tuple(v.shape) for k, v in cut.items()} == {
        "input_ids": (3, 3),
        "pairs": (3, 1, 3, 3),
        "boxes": (3, 3, 5),
        "labels": (3,),
    }
    changed = with_values(((IDS, MASK), MASK), {(0, 1): IDS})
    assert changed[0][1] is IDS
    assert batch["input_ids"].shape == (3, 4)


def test_a_mask_made_with_another_padding_id():
    ids = torch.tensor([[1, 7, 8, 3, 0, 0], [1, 6, 5, 9, 8, 3]])
    found = find_tokens({"input_ids": ids, "attention_mask": (ids != 1).long(), "labels": ids[:, 0]}, 0)
    assert found.pad_id == 0
    assert found.side == "right"
    assert torch.equal(found.real, ids != 0)
