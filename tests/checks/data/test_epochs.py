"""Rows that come again count once: in every way of running, over one epoch and over several."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import (
    Intent,
    check_batches_sound,
    check_labels_learnable,
    check_no_leak,
    finetune,
    watch,
)
from pytest_ftcheck.checks.data.probe.batch_statistics import shared_inputs
from pytest_ftcheck.checks.data.probe.epochs import first_epoch, labelled_keys, relabelled, rows_of_data
from pytest_ftcheck.checks.data.record import Data, Drawn, SharedInputs
from pytest_ftcheck.instruments.row_hashes import RowReader, Rows, first_occurrences

VOCABULARY, COUNT, SIZE = 120, 288, 16
PROBES = ("data", "metrics", "loss")
SEEDS, FEW_SEEDS = range(8), range(2)


class Bag(nn.Module):
    """Mean of the embeddings of the words, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.classifier = nn.Linear(16, 2)

    def forward(self, input_ids, attention_mask):
        states = self.embedding(input_ids) * attention_mask[..., None]
        return self.classifier(states.sum(1) / attention_mask.sum(1, keepdim=True))


def loss_of(model, batch):
    return F.cross_entropy(model(batch["input_ids"], batch["attention_mask"]), batch["labels"])


def own_step(model, batch, optimizer, _scheduler):
    optimizer.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    optimizer.step()
    return loss.item()


def texts(seed=0, labels="healthy", count=COUNT):
    """Rows of 7 to 12 words, four of which belong to the class: with their labels, with random ones, or with those of three rows on."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (count,), generator=g)
    length = torch.randint(6, 12, (count,), generator=g)
    words = torch.randint(60, VOCABULARY, (count, 13), generator=g)
    words[:, 1:5] = 10 + 8 * y[:, None] + torch.randint(8, (count, 4), generator=g)
    places = torch.arange(13)[None]
    words[:, 0] = 1
    words = torch.where(places == length[:, None], 2, words)
    mask = (places <= length[:, None]).long()
    y = {"healthy": y, "random": torch.randint(2, (count,), generator=g), "shifted": y.roll(3)}[labels]
    return [{"input_ids": (words * mask)[i], "attention_mask": mask[i], "labels": y[i]} for i in range(count)]


def loader(rows, seed=0, **settings):
    how = {"shuffle": True, **settings} if "sampler" not in settings else settings
    return torch.utils.data.DataLoader(
        rows, **{"batch_size": SIZE, "generator": torch.Generator().manual_seed(seed), **how}
    )


def epochs(source, number):
    """A generator over several epochs, as a training script writes it."""
    for _ in range(number):
        yield from source


def run(batches, steps, seed=0, **more):
    torch.manual_seed(seed)
    trace = finetune(Bag(), batches, steps=steps, lr=1e-2, head="classifier", probes=PROBES, **more)
    assert "data" not in trace.skipped
    return trace


def watched(rows, seed):
    """A loop of the user's own, and a probe batch in which each row comes twice."""
    torch.manual_seed(seed)
    model = Bag()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    twice = torch.utils.data.default_collate([*rows, *rows])
    with watch(model, optimizer, head="classifier", probe_batch=twice, loss_fn=loss_of, probes=PROBES) as w:
        for batch in epochs(loader(rows, seed), 2):
            own_step(model, batch, optimizer, None)
    return w.trace


#: In which way the rows come to the checks -> the trace.
WAYS = {
    "a list": lambda rows, seed: run(list(loader(rows, seed)), 18, seed),
    "a list of two epochs": lambda rows, seed: run(list(epochs(loader(rows, seed), 2)), 36, seed),
    "one epoch": lambda rows, seed: run(loader(rows, seed), 18, seed),
    "two epochs": lambda rows, seed: run(loader(rows, seed), 36, seed),
    "five epochs": lambda rows, seed: run(loader(rows, seed), 90, seed),
    "a generator of two epochs": lambda rows, seed: run(epochs(loader(rows, seed), 2), 36, seed),
    "step=": lambda rows, seed: run(loader(rows, seed), 36, seed, step=own_step),
    "loss_fn=": lambda rows, seed: run(loader(rows, seed), 36, seed, loss_fn=loss_of),
    "held-out rows": lambda rows, seed: run(
        loader(rows, seed), 36, seed, eval_batches=list(loader(texts(900 + seed, "random", 96)))
    ),
    "watch": watched,
}


#: The others read their rows in one of these ways, and need not be run as often.
OFTEN = ("a list", "one epoch", "two epochs", "five epochs")


@pytest.mark.parametrize("way", WAYS)
def test_random_labels_never_pass(way):
    seeds = SEEDS if way in OFTEN else FEW_SEEDS
    found = [check_labels_learnable(WAYS[way](texts(seed, "random"), seed)) for seed in seeds]
    assert {v.status for v in found} <= {"fail", "inconclusive"}, [v.headline for v in found]
    assert all(f"{COUNT} distinct rows" in v.headline for v in found)


@pytest.mark.parametrize("way", ["a list", "two epochs", "five epochs", "step="])
def test_shifted_labels_never_pass(way):
    seeds = SEEDS if way == "two epochs" else FEW_SEEDS
    found = [check_labels_learnable(WAYS[way](texts(seed, "shifted"), seed)) for seed in seeds]
    assert {v.status for v in found} <= {"fail", "inconclusive"}, [v.headline for v in found]


@pytest.mark.trains
def test_a_shift_of_three_rows_is_named_where_the_order_is_kept():
    verdict = check_labels_learnable(run(loader(texts(0, "shifted"), shuffle=False), 54))
    assert verdict.fault == "labels_shifted"
    assert "three rows back over all batches" in verdict.headline


@pytest.mark.parametrize("way", WAYS)
def test_healthy_labels_never_fail(way):
    for seed in SEEDS if way in OFTEN else FEW_SEEDS:
        trace = WAYS[way](texts(seed), seed)
        assert check_labels_learnable(trace).status == "pass"
        assert {check(trace).status for check in (check_batches_sound, check_no_leak)} == {"pass"}
        assert trace.measured(Data).distinct == COUNT


@pytest.mark.trains
@pytest.mark.parametrize("count", [64, 96])
def test_too_few_distinct_rows_are_not_judged(count):
    verdict = check_labels_learnable(run(loader(texts(0, "random", count)), 5 * count // SIZE))
    assert verdict.status == "skipped"
    assert f"{count} were read" in verdict.headline
    verdict = check_labels_learnable(run(loader(texts(1, "random", 240)), 30))
    assert verdict.status == "skipped"
    assert "240 distinct rows are too few" in verdict.headline


@pytest.mark.trains
def test_augmented_rows_of_later_epochs_are_no_further_evidence():
    g = torch.Generator().manual_seed(0)

    def dropped(rows):
        batch = torch.utils.data.default_collate(rows)
        keep = torch.rand(batch["input_ids"].shape, generator=g) < 0.9
        return {**batch, "input_ids": torch.where(keep, batch["input_ids"], 3)}

    for seed in FEW_SEEDS:
        trace = run(loader(texts(seed, "random"), seed, collate_fn=dropped), 54, seed)
        assert trace.measured(Data).dependence.rows <= COUNT
        assert check_labels_learnable(trace).status in ("fail", "inconclusive")


# ---------------------------------------------------------------------------------------- leaks and held-out rows
class Sampler(torch.utils.data.Sampler):
    """Draws the given indices."""

    def __init__(self, indices):
        self.indices = indices

    def __iter__(self):
        return iter(self.indices)

    def __len__(self):
        return len(self.indices)


def first_of(few, seed=0):
    """A sampler that draws the first few rows at random, as many as there are rows."""
    return Sampler(torch.randint(few, (COUNT,), generator=torch.Generator().manual_seed(seed)).tolist())


@pytest.mark.trains
def test_four_rows_again_and_again_are_no_leak():
    rows = texts()
    for i in range(4):  # half of them of each class, told apart by any word that differs
        rows[i]["labels"] = torch.tensor(i % 2)
        rows[i]["input_ids"][1] = 100 + i % 2
    for steps in (18, 36, 60):
        trace = run(loader(rows, sampler=first_of(4)), steps)
        assert trace.measured(Data).leaks == ()
        assert check_no_leak(trace).status == "skipped"
        assert "4 distinct labelled rows" in check_no_leak(trace).headline
        assert check_batches_sound(trace).fault == "few_rows_drawn"


@pytest.mark.trains
def test_a_leak_is_found_over_several_epochs_and_counted_once():
    rows = texts()
    for row in rows:
        row["input_ids"][1] = 100 + row["labels"]
    verdict = check_no_leak(run(loader(rows), 54))
    assert verdict.fault == "label_in_inputs"
    assert f"without exception in {COUNT} distinct rows" in verdict.headline


@pytest.mark.trains
@pytest.mark.parametrize("steps", [18, 36, 90])
def test_held_out_rows_that_are_trained_on_in_several_epochs(steps):
    rows = texts()
    trace = run(loader(rows), steps, eval_batches=list(loader(rows[:96], shuffle=False)) * 2)
    overlap = trace.measured(Data).overlap
    assert (overlap.rows, overlap.shared, overlap.training_duplicates) == (96, 96, 0.0)
    assert check_no_leak(trace).fault == "held_out_is_training"


@pytest.mark.trains
def test_a_missing_class_is_no_surer_after_five_epochs():
    rows = texts(count=80)
    for row in rows:
        row["labels"] = torch.tensor(0)
    rows[0]["labels"] = torch.tensor(1)
    held = texts(9, count=64)
    for i, row in enumerate(held):  # 16 of 64 rows: absent from 80 rows once in 1e10, from 32 once in 1e4
        row["labels"] = torch.tensor(2 if i % 4 == 0 else 0)
    held_out = list(loader(held))
    model = {"eval_batches": held_out}

    def judged(count):
        torch.manual_seed(0)
        net = Bag()
        net.classifier = nn.Linear(16, 3)
        return check_batches_sound(
            finetune(net, loader(rows[:count]), steps=40, lr=1e-2, head="classifier", probes=PROBES, **model)
        )

    assert judged(80).fault == "class_missing"
    assert judged(32).fault != "class_missing"


# ---------------------------------------------------------------------------------------- few rows
@pytest.mark.trains
@pytest.mark.parametrize(("few", "fault"), [(4, True), (18, True), (19, False), (64, False)])
def test_rows_that_a_sampler_never_draws(few, fault):
    """288 draws from 288 rows give 182 distinct ones: a tenth is 18."""
    indices = [*range(few), *first_of(few).indices[few:]]
    verdict = check_batches_sound(run(loader(texts(), sampler=Sampler(indices)), 18))
    assert (verdict.fault == "few_rows_drawn") is fault, verdict.headline
    if fault:
        assert f"data set of {COUNT}, but only {few} distinct rows, where draws at random give 182" in verdict.headline
        assert "32 read from the data set itself" not in verdict.headline


@pytest.mark.trains
def test_few_rows_wherever_they_come_from():
    four = (texts()[:4] * 72)[:COUNT]

    class Modulo(torch.utils.data.Dataset):
        def __getitem__(self, i):
            return four[i % 4]

        def __len__(self):
            return COUNT

    batches = list(loader(Modulo()))
    for source in (loader(Modulo()), batches, epochs(batches, 1)):
        verdict = check_batches_sound(run(source, 18))
        assert verdict.fault == "few_rows_drawn"
        assert f"{COUNT} rows hold only 4 distinct rows" in verdict.headline
        assert "__getitem__" in verdict.remedy


@pytest.mark.trains
@pytest.mark.parametrize("count", [32, 64])
@pytest.mark.parametrize("size", [8, 16])
def test_a_small_set_for_many_epochs_is_healthy(count, size):
    rows = texts(count=count)
    shuffled = loader(rows, batch_size=size)
    for source in (shuffled, list(shuffled), epochs(shuffled, 20)):
        assert check_batches_sound(run(source, 20 * count // size)).status == "pass"
    copied = check_batches_sound(run(loader(rows * 20, batch_size=size), 20 * count // size))
    assert (copied.status, copied.fault) == ("advice", "rows_repeated")


@pytest.mark.trains
def test_one_batch_again_and_again_is_healthy():
    batch = next(iter(loader(texts())))
    assert check_batches_sound(run([batch], 20)).status == "pass"
    assert check_batches_sound(run([batch] * 20, 20)).status == "pass"


@pytest.mark.trains
def test_a_fold_and_weighted_draws_are_healthy():
    g = torch.Generator().manual_seed(0)
    rows = texts(count=2000)
    fold = torch.utils.data.SubsetRandomSampler(range(64), generator=g)
    assert check_batches_sound(run(loader(rows, sampler=fold), 40)).status == "pass"
    weights = [25.0 if i < 12 else 0.5 for i in range(COUNT)]  # two thirds of the draws are of 12 rows
    weighted = torch.utils.data.WeightedRandomSampler(weights, COUNT, generator=g)
    assert check_batches_sound(run(loader(texts(), sampler=weighted), 18)).status == "pass"


@pytest.mark.trains
def test_a_small_space_of_inputs_is_healthy():
    """Exclusive or of the ends of five bits: 32 rows are all there are, however many are drawn."""
    bits = torch.tensor([[i >> j & 1 for j in range(5)] for i in range(32)])
    rows = [{"input_ids": 10 + b, "attention_mask": torch.ones(5), "labels": b[0] ^ b[4]} for b in bits.repeat(40, 1)]
    trace = run(loader(rows, batch_size=64), 20, intent=Intent(pad_token_id=0))
    drawn = trace.measured(Data).drawn
    assert (drawn.distinct, drawn.possible) == (32, 32.0)
    assert drawn.repetitive == drawn.batches == 20
    assert check_batches_sound(trace).status == "pass"


@pytest.mark.trains
def test_a_data_set_that_cannot_be_indexed_is_not_judged():
    class Once(torch.utils.data.Dataset):
        """Returns its rows only while it is iterated by the loader."""

        reads = 0

        def __getitem__(self, i):
            self.reads += 1
            if self.reads > COUNT + 2 * SIZE:
                raise RuntimeError("closed")
            return texts_[i]

        def __len__(self):
            return COUNT

    texts_ = texts()
    trace = run(loader(Once(), sampler=Sampler([*range(18)] * 16)), 18)
    assert trace.measured(Data).drawn.probed == 0
    assert check_batches_sound(trace).fault == "rows_repeated"  # and not few_rows_drawn


def test_expected_distinct_rows():
    drawn = Drawn(rows=320, distinct=20, batches=20, repetitive=0, possible=1e12, data_set=320)
    assert (drawn.expected, drawn.few) == (pytest.approx(202, abs=1), True)
    assert not Drawn(rows=320, distinct=21, batches=20, repetitive=0, possible=1e12, data_set=320).few
    assert not Drawn(rows=63, distinct=1, batches=20, repetitive=0, possible=1e12, data_set=320).few
    assert not Drawn(rows=320, distinct=1, batches=20, repetitive=0, possible=1e12).few


# ---------------------------------------------------------------------------------------- labels that change
def relabelling(share, seed=0):
    """A collate function that gives this share of the visits a random label."""
    g = torch.Generator().manual_seed(seed)

    def collate(rows):
        batch = torch.utils.data.default_collate(rows)
        y = batch["labels"]
        noise = torch.rand(len(y), generator=g) < share
        return {**batch, "labels": torch.where(noise, torch.randint(2, y.shape, generator=g), y)}

    return collate


@pytest.mark.trains
@pytest.mark.parametrize(("share", "fault"), [(0.0, False), (0.2, False), (0.3, False), (0.8, True), (1.0, True)])
def test_labels_drawn_at_each_visit(share, fault):
    for seed in SEEDS if share in (0.3, 0.8) else (0,):
        trace = run(loader(texts(seed), seed, collate_fn=relabelling(share, seed)), 54, seed)
        assert trace.measured(Data).relabelled.rows == COUNT
        verdict = check_batches_sound(trace)
        assert (verdict.fault == "labels_change") is fault, verdict.headline
        assert f"of {COUNT} distinct rows have another label when they come again" in verdict.headline or not fault


@pytest.mark.trains
def test_labels_that_change_in_every_way_of_running():
    ways = {
        "step": run(loader(texts(), collate_fn=relabelling(1.0)), 36, step=own_step),
        "loss_fn": run(loader(texts(), collate_fn=relabelling(1.0)), 36, loss_fn=loss_of),
        "generator": run(epochs(loader(texts(), collate_fn=relabelling(1.0)), 2), 36),
    }
    assert {check_batches_sound(trace).fault for trace in ways.values()} == {"labels_change"}
    assert (
        check_batches_sound(run(loader(texts(), collate_fn=relabelling(1.0)), 18)).status == "pass"
    )  # no row comes again


@pytest.mark.trains
def test_contradicting_duplicates_are_another_fault():
    rows = texts(count=160)
    rows += [{**row, "labels": 1 - row["labels"]} for row in rows]
    for source, steps in ((loader(rows), 20), (loader(rows), 60), (list(loader(rows)), 20)):
        assert check_batches_sound(run(source, steps)).fault == "labels_contradict"
    few = texts(count=256)
    few += [{**row, "labels": 1 - row["labels"]} for row in few[:32]]
    assert check_batches_sound(run(loader(few), 54)).status == "pass"


def test_a_class_whose_rows_are_copied_into_another_overlaps_with_it():
    keys = [b"%d" % i for i in range(120)]
    labels = np.arange(120) % 3
    copied = [*keys, *keys[::3]]
    both = np.concatenate([labels, np.ones(40, dtype=labels.dtype)])
    assert shared_inputs(copied, both) == (SharedInputs(0, 1, 40, 40), SharedInputs(1, 0, 80, 40))
    assert shared_inputs(keys * 2, np.concatenate([labels, labels])) == ()  # copies with their own label


def test_annotators_who_differ_do_not_make_classes_overlap():
    g = np.random.default_rng(0)
    truth = g.integers(0, 2, 400)
    for annotators, agreement in ((2, 0.7), (3, 0.6), (5, 0.6)):
        labels = np.concatenate([np.where(g.random(400) < agreement, truth, 1 - truth) for _ in range(annotators)])
        found = shared_inputs([b"%d" % i for i in range(400)] * annotators, labels)
        assert all(s.shared < 0.75 * s.inputs for s in found)


@pytest.mark.trains
def test_soft_labels_and_augmented_rows_are_not_compared():
    g = torch.Generator().manual_seed(0)
    rows = [{**row, "labels": F.one_hot(row["labels"], 2).float()} for row in texts()]

    def softened(rows):
        batch = torch.utils.data.default_collate(rows)
        share = torch.rand(len(rows), 1, generator=g)
        return {**batch, "labels": share * batch["labels"] + (1 - share) * batch["labels"].flip(0)}

    soft = lambda m, b: F.cross_entropy(m(b["input_ids"], b["attention_mask"]), b["labels"])  # noqa: E731
    trace = run(loader(rows, collate_fn=softened), 54, loss_fn=soft)
    assert trace.measured(Data).relabelled is None
    assert check_batches_sound(trace).status == "pass"

    def views(rows):
        batch = relabelling(0.0)(rows)
        return {
            **batch,
            "input_ids": torch.where(torch.rand(batch["input_ids"].shape, generator=g) < 0.8, batch["input_ids"], 3),
        }

    again = run(loader(texts(), collate_fn=views), 54).measured(Data).relabelled
    assert again is None or again.changed == 0


def test_another_input_beside_the_tokens_tells_rows_apart():
    """The same text with another aspect has another label: two rows, whichever comes in which epoch."""
    g = torch.Generator().manual_seed(0)
    rows = Rows()
    reader = RowReader(Bag(), 0)
    ids = torch.randint(5, 100, (64, 8), generator=g)
    for epoch in range(2):
        aspect = torch.randint(2, (64,), generator=g)
        reader.read({"input_ids": ids, "aspect": aspect, "labels": aspect}, rows, epoch)
    again = relabelled(rows.contents, rows.target(), 64)
    assert again.changed == 0
    assert 16 < again.rows < 48


def test_a_label_that_all_its_rows_change_for_the_same_other_one_is_recoded():
    contents = [bytes([i]) for i in range(60)]
    stars = np.arange(60) % 5
    classes = np.array([0, 0, 1, 1, 2])[stars]  # read again, 2 becomes 1
    again = relabelled(contents * 2, np.concatenate([classes, np.where(classes == 2, 1, classes)]), 60)
    assert (again.changed, again.recoded) == (12, ((2, 1, 12),))
    noise = np.where(np.arange(60) % 2, classes, 0)
    assert relabelled(contents * 2, np.concatenate([classes, noise]), 60).recoded == ()


# ---------------------------------------------------------------------------------------- the parts
def rows_in(batches, epoch=()):
    rows = Rows()
    reader = RowReader(nn.Linear(1, 1), None)
    for i, batch in enumerate(batches):
        values = torch.tensor(batch, dtype=torch.float32)[:, None].repeat(1, 3)
        reader.read((values, torch.tensor([v % 2 for v in batch])), rows, epoch[i] if epoch else 0)
    return rows, labelled_keys(rows.keys(), rows.target())


@pytest.mark.parametrize(
    ("batches", "epoch", "first"),
    [
        ([[1, 2], [3, 4]], (), 4),
        ([[1, 2], [3, 4], [2, 3], [4, 1]], (), 4),
        ([[1, 2], [3, 4], [2, 3]], (), 4),
        ([[1, 2], [3, 4], [2, 5]], (), 6),
        ([[1, 2], [1, 2], [1, 2]], (), 2),
        ([[1, 2], [3, 4], [5, 6]], (0, 0, 1), 4),
        ([[1, 2], [3, 4], [1, 3], [2, 2]], (), 8),
    ],
)
def test_the_first_epoch(batches, epoch, first):
    rows, pairs = rows_in(batches, epoch)
    assert first_epoch(rows, pairs, one_shot=False) == first


def test_other_labels_end_an_epoch_only_of_an_iterator():
    rows, _ = rows_in([[1, 2], [3, 4], [2, 1], [4, 3]])
    rows.labels = [np.arange(8)]
    pairs = labelled_keys(rows.keys(), rows.target())
    assert first_epoch(rows, pairs, one_shot=False) == 8
    assert first_epoch(rows, pairs, one_shot=True) == 4


@pytest.mark.parametrize(
    ("first", "data_set", "kept"),
    [
        (64, None, 64),
        (63, None, 200),  # too few rows of unknown data: all that differ
        (90, 100, 90),
        (89, 100, 200),  # the loader draws other rows in each epoch
    ],
)
def test_rows_that_stand_for_the_data(first, data_set, kept):
    rows, pairs = rows_in([list(range(200))])
    assert len(rows_of_data(rows, pairs, first, data_set)) == kept


def test_select_keeps_everything_of_a_row():
    rows, _ = rows_in([[1, 2], [3, 4, 5]])
    some = rows.select(np.array([4, 0]))
    assert some.floats[0][:, 0].tolist() == [5.0, 1.0]
    assert some.target().tolist() == [1, 1]
    assert (some.batch, some.batches, len(some.contents), some.keys()) == (
        [1, 0],
        2,
        2,
        [rows.keys()[4], rows.keys()[0]],
    )
    assert first_occurrences(rows.keys() + rows.keys()).tolist() == [0, 1, 2, 3, 4]


def test_rows_of_many_numbers_differ_where_any_number_does():
    """Of 2,000 numbers every fourth is kept, and a checksum of all."""
    x = torch.randn(1, 2000).repeat(2, 1)
    x[1, 1] += 1
    rows = Rows()
    RowReader(nn.Linear(1, 1), None).read((x, torch.tensor([0, 1])), rows)
    assert rows.floats[0].shape == (2, 500)
    assert len(set(rows.keys())) == 2
