"""The data probe on small real models and batches: what it reads, and that it leaves everything as it was."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from pytest_ftcheck import (
    check_batches_sound,
    check_labels_learnable,
    check_metric_improves,
    check_metric_matches_reference,
    check_no_leak,
    diagnose,
    finetune,
)
from pytest_ftcheck.checks.data.probe.label_dependence import measure_dependence
from pytest_ftcheck.checks.data.probe.metric import mistakes
from pytest_ftcheck.checks.data.record import Data
from pytest_ftcheck.instruments.row_hashes import RowReader, Rows

VOCABULARY = 120
PROBES = ("data", "metrics")


class Bag(nn.Module):
    """Mean of the embeddings of the real words, and a linear layer."""

    def __init__(self, classes=2, norm=False):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.norm = nn.BatchNorm1d(16) if norm else nn.Identity()
        self.classifier = nn.Linear(16, classes)

    def forward(self, input_ids, attention_mask=None, extra=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.embedding(input_ids) * mask[..., None]
        return self.classifier(self.norm(states.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)))


def texts(n=320, classes=2, seed=0, size=16, change=None):
    """Rows ``[1] words [2]`` padded with 0; half of the words belong to the class."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    out = []
    for start in range(0, n, size):
        y = labels[start : start + size]
        length = torch.randint(6, 12, (len(y),), generator=g)
        words = torch.randint(60, VOCABULARY, (len(y), 13), generator=g)
        words[:, 1:5] = 10 + 8 * y[:, None] + torch.randint(8, (len(y), 4), generator=g)
        places = torch.arange(13)[None, :]
        words[:, 0] = 1
        words = torch.where(places == length[:, None], 2, words)
        mask = (places <= length[:, None]).long()
        out.append({"input_ids": words * mask, "attention_mask": mask, "labels": y})
    return [change(b) for b in out] if change else out


def run(batches, model=None, steps=4, **more):
    torch.manual_seed(0)
    trace = finetune(model or Bag(), batches, steps=steps, lr=1e-2, head="classifier", probes=PROBES, **more)
    assert "data" not in trace.skipped
    return trace


def shuffled(batches, seed=1):
    y = torch.cat([b["labels"] for b in batches])
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
    return [{**b, "labels": part} for b, part in zip(batches, y.split(16), strict=True)]


def test_a_healthy_set():
    trace = run(texts(), eval_batches=texts(64, seed=5))
    d = trace.measured(Data)
    assert (d.rows, d.batches, d.source, d.distinct, d.contradictory, d.best_accuracy) == (
        320,
        20,
        "all batches",
        320,
        0,
        1.0,
    )
    assert sum(d.counts) == 320
    assert d.tokens.vocabulary == VOCABULARY
    assert d.tokens.share < 0.1
    assert d.tokens.median_length in range(7, 13)
    assert d.dependence.p_values["tokens"] == 0.01
    assert (d.overlap.shared, d.overlap.rows) == (0, 64)
    assert not d.leaks
    for check in (check_batches_sound, check_labels_learnable, check_no_leak):
        assert check(trace).status == "pass"
    assert type(trace).from_json(trace.to_json()).measured(Data) == d


@pytest.mark.parametrize(
    ("fault", "batches"),
    [
        (
            "ids_clamped",
            texts(change=lambda b: {**b, "input_ids": (b["input_ids"] + 100).clamp(max=119) * b["attention_mask"]}),
        ),
        (
            "words_unknown",
            texts(
                change=lambda b: {
                    **b,
                    "input_ids": torch.where(b["input_ids"] > 5, 3, b["input_ids"]),
                    "labels": b["labels"],
                }
            ),
        ),
        ("mask_empty", texts(change=lambda b: {**b, "attention_mask": torch.zeros_like(b["attention_mask"])})),
        ("one_class_only", texts(change=lambda b: {**b, "labels": torch.ones_like(b["labels"])})),
        (
            "inputs_alike",
            texts(
                change=lambda b: {
                    **b,
                    "input_ids": b["input_ids"] * 0 + 7,
                    "attention_mask": b["attention_mask"] * 0 + 1,
                }
            ),
        ),
        ("one_row_repeated", texts(change=lambda b: {k: v[:1].expand(16, *v.shape[1:]) for k, v in b.items()})),
    ],
)
def test_each_fault_is_measured(fault, batches):
    trace = run(batches, eval_batches=texts(64, seed=5, change=lambda b: {**b, "labels": 1 - b["labels"]}))
    verdict = check_batches_sound(trace)
    assert (verdict.status, verdict.fault) == ("fail", fault), str(verdict)


def test_sorted_rows():
    batches = texts()
    y = torch.cat([b["labels"] for b in batches]).sort().values
    verdict = check_batches_sound(run([{**b, "labels": p} for b, p in zip(batches, y.split(16), strict=True)]))
    assert verdict.fault == "sorted_by_class"
    assert "label changes 1 time from row to row" in verdict.headline


def test_a_loader_that_restarts_at_every_step():
    batches = texts()

    class Stuck:
        def __iter__(self):
            return iter([batches[0]] * 20)

        def __len__(self):
            return 20

    trace = run(Stuck(), steps=6)
    assert (trace.measured(Data).source, trace.measured(Data).batches, trace.measured(Data).distinct_batches) == (
        "the batches trained on",
        6,
        1,
    )
    assert check_batches_sound(trace).fault == "same_batch"
    assert check_batches_sound(run([batches[0]] * 20)).status == "pass"


def test_a_stream_is_read_as_it_is_trained_on():
    loader = torch.utils.data.DataLoader(
        [{k: v[i] for k, v in b.items()} for b in texts() for i in range(16)], batch_size=16, shuffle=True
    )
    d = run(loader, steps=12).measured(Data)
    assert (d.rows, d.batches, d.source, d.distinct_batches) == (192, 12, "the batches trained on", 12)


def test_batch_normalisation_over_two_rows():
    few = run(texts(40, size=2), Bag(norm=True))
    assert [(n.name, n.values) for n in few.measured(Data).batch_norms] == [("norm", 2)]
    assert check_batches_sound(few).fault == "batchnorm_on_few"
    assert run(texts(), Bag(norm=True)).measured(Data).batch_norms == ()
    model = Bag(norm=True)
    model.norm.requires_grad_(False).eval()  # frozen: its statistics are fixed, and stay so
    assert run(texts(40, size=2), model).measured(Data).batch_norms == ()


def test_labels_shuffled_and_shifted():
    held = shuffled(texts(64, seed=5))
    trace = run(shuffled(texts()), eval_batches=held)
    d = trace.measured(Data).dependence
    assert min(d.p_values.values()) > 0.005
    assert (d.simulated, d.detected >= 5) == (6, True)
    assert max(d.shifted.values()) < 6
    assert check_labels_learnable(trace).fault == "labels_unrelated"
    moved = texts(change=lambda b: {**b, "labels": b["labels"].roll(1)})
    verdict = check_labels_learnable(run(moved, eval_batches=held))
    assert verdict.fault == "labels_shifted"
    assert "one row back" in verdict.headline


def rows_of(draw, n=320, seed=0):
    rng = np.random.default_rng(seed)
    rows = Rows()
    labels = []
    for i in range(n):
        ids, y = draw(rng)
        rows.ids.append(np.array(ids))
        rows.batch.append(i // 16)
        labels.append(y)
    rows.labels = [np.array(labels)]
    return rows


def exclusive_or(rng):
    a, b = rng.integers(0, 2, 2)
    ids = rng.integers(60, 200, 10)
    ids[rng.permutation(10)[:4]] = [*(10 + 8 * a + rng.integers(0, 8, 2)), *(30 + 8 * b + rng.integers(0, 8, 2))]
    return ids, int(a ^ b)


def parity_of_three(rng):
    bits = rng.integers(0, 2, 3)
    ids = rng.integers(60, 200, 9)
    ids[rng.permutation(9)[:3]] = 10 + 2 * np.arange(3) + bits
    return ids, int(bits.sum() % 2)


def which_comes_first(rng):
    ids, y = rng.integers(60, 200, 9), int(rng.integers(2))
    words = 10 + rng.integers(0, 8), 20 + rng.integers(0, 8)
    ids[np.sort(rng.permutation(9)[:2])] = words if y else words[::-1]
    return ids, y


def second_part_repeats_the_first(rng):
    first, second, y = rng.integers(10, 200, 6), rng.integers(10, 200, 4), int(rng.integers(2))
    second[:2] = first[:2] if y else second[:2]
    return [*first, 3, *second], y


def one_word_an_odd_number_of_times(rng):
    ids = rng.integers(60, 200, 12)
    count = int(rng.integers(0, 5))
    ids[rng.permutation(12)[:count]] = 10
    return ids, count % 2


@pytest.mark.parametrize(
    "draw",
    [
        exclusive_or,
        parity_of_three,
        which_comes_first,
        second_part_repeats_the_first,
        one_word_an_odd_number_of_times,
    ],
)
def test_hard_tasks_are_found_to_depend_on_their_inputs(draw):
    d, _ = measure_dependence(rows_of(draw), "single_label")
    assert min(d.p_values.values()) <= 0.01
    noise = rows_of(draw)
    noise.labels = [np.random.default_rng(9).permutation(noise.labels[0])]
    d, _ = measure_dependence(noise, "single_label")
    assert min(d.p_values.values()) > 0.005


@pytest.mark.parametrize("task", ["regression", "multi_label"])
def test_other_tasks(task):
    rows = rows_of(
        lambda rng: (lambda ids: (ids, [float((ids < 60).mean()), float(ids[0] < 60)]))(rng.integers(10, 110, 8))
    )
    if task == "multi_label":
        rows.labels = [(rows.labels[0] > 0.5).astype(float)]
    d, _ = measure_dependence(rows, task)
    assert min(d.p_values.values()) <= 0.01


def test_numbers_instead_of_tokens(rows):
    d = finetune(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), rows, steps=2, head="2", probes=PROBES
    ).measured(Data)
    assert d.tokens is None
    assert d.dependence.p_values["numbers, linear"] == 0.01
    assert d.distinct == 128


def test_too_few_rows_and_labels_of_tokens():
    assert run(texts(64)).measured(Data).untested == "the test needs 100 distinct labelled rows, and 64 were read"
    ids = torch.randint(10, 100, (16, 6))
    tagger = nn.Sequential(nn.Embedding(120, 8), nn.Linear(8, 3))
    trace = finetune(tagger, [(ids, ids % 3)] * 3, steps=2, head="1", probes=PROBES)
    assert trace.measured(Data).order is None
    assert trace.measured(Data).untested == "the test needs 100 distinct labelled rows, and 16 were read"
    assert check_batches_sound(trace).status == "pass"


def test_leaks():
    batches = texts(change=lambda b: {**b, "extra": 5 - b["labels"]})
    assert [(entry.kind, entry.where) for entry in run(batches).measured(Data).leaks] == [("input", "extra")]
    leaking = texts(change=lambda b: {**b, "input_ids": b["input_ids"].index_fill(1, torch.tensor([1]), 0) + 0})
    for b in leaking:
        b["input_ids"][:, 1] = 7 + b["labels"]
    leaks = run(leaking).measured(Data).leaks
    assert [(entry.kind, entry.where) for entry in leaks] == [("token", "position 1 from the start")]
    leaking[3]["input_ids"][2, 1] = 9  # a single exception
    assert run(leaking).measured(Data).leaks == ()


def test_held_out_rows_that_are_trained_on():
    batches = texts()
    o = run(batches, eval_batches=batches[:4]).measured(Data).overlap
    assert (o.rows, o.shared, o.same_objects) == (64, 64, True)
    wider = [
        {
            "input_ids": nn.functional.pad(b["input_ids"], (0, 3)),
            "attention_mask": nn.functional.pad(b["attention_mask"], (0, 3)),
            "labels": b["labels"],
        }
        for b in batches[:2]
    ]
    o = run(batches, eval_batches=[*wider, *texts(32, seed=5)]).measured(Data).overlap
    assert (o.rows, o.shared, o.same_objects) == (64, 32, False)  # the padding does not matter


@pytest.mark.parametrize(
    ("keys", "side"),
    [(("input_ids", "attention_mask"), "right"), (("ids", "padding"), "left"), (("ids",), "right"), (("ids",), "left")],
)
def test_padding_is_distinguished_from_tokens(keys, side):
    ids = torch.tensor([[1, 8, 9, 2, 0, 0], [1, 7, 2, 0, 0, 0], [1, 5, 6, 7, 8, 2]])
    if side == "left":
        ids = torch.tensor([[0, 0, 1, 8, 9, 2], [0, 0, 0, 1, 7, 2], [1, 5, 6, 7, 8, 2]])
    batch = {keys[0]: ids, "labels": torch.tensor([0, 1, 0])}
    if len(keys) > 1:
        batch[keys[1]] = (ids != 0).long() if keys[1] == "attention_mask" else ids == 0
    rows = Rows()
    RowReader(Bag(), None).read(batch, rows)
    assert [r.tolist() for r in rows.ids] == [[1, 8, 9, 2], [1, 7, 2], [1, 5, 6, 7, 8, 2]]
    declared = Rows()
    RowReader(Bag(), 0).read({keys[0]: ids, "labels": batch["labels"]}, declared)
    assert [r.tolist() for r in declared.ids] == [r.tolist() for r in rows.ids]


def right(batches, axis=1, scale=1.0):
    def evaluate(model):
        model.eval()
        with torch.no_grad():
            hits = [
                (
                    model(b["input_ids"], b["attention_mask"]).argmax(axis)[: len(b["labels"])]
                    == b["labels"][: 2 if axis == 0 else None]
                ).float()
                for b in batches
            ]
        model.train()
        return scale * float(torch.cat(hits).mean())

    return evaluate


def test_the_users_metric():
    held = texts(64, seed=5)
    trace = run(texts(), steps=30, eval_batches=held, evaluate=right(held))
    e = trace.measured(Data).evaluation
    assert (e.rows, e.batches) == (64, 4)
    assert e.references["accuracy"] == pytest.approx((e.first, e.last))
    assert e.references["accuracy"][1] > 0.8
    assert "that is accuracy" in check_metric_matches_reference(trace).headline
    wrong = run(texts(), steps=30, eval_batches=held, evaluate=right(held, axis=0))
    assert check_metric_matches_reference(wrong).fault == "metric_wrong"
    assert "argmax over the rows" in check_metric_matches_reference(wrong).headline


def test_an_argmax_without_a_dimension():
    logits, labels = torch.tensor([[0.0, 9.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 0, 1])
    found = mistakes("single_label", [(logits, labels), (logits.flip(0), labels)])
    (name,) = (n for n in found if n.startswith("argmax without a dimension"))
    # position 1 of the first batch is a class, position 5 of the second is none
    assert found[name] == pytest.approx(2 / 6)


def test_nothing_is_disturbed():
    model, batches = Bag(norm=True), texts(80, size=2)
    plain, watched = [], []
    for probes, into in (((), plain), (("data",), watched)):
        torch.manual_seed(3)
        fresh = Bag(norm=True)
        held = texts(16, seed=5)
        finetune(
            fresh,
            batches,
            steps=5,
            lr=1e-2,
            head="classifier",
            probes=probes,
            eval_batches=held,
            evaluate=lambda m: 0.5,
        )
        into += [*fresh.state_dict().values(), torch.get_rng_state()]
        assert not any(m._forward_pre_hooks for m in fresh.modules())
        assert all(m.training for m in fresh.modules())
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert isinstance(model, nn.Module)


def test_a_model_that_raises_on_held_out_rows_ends_only_this_probe():
    class Picky(Bag):
        def forward(self, input_ids, attention_mask=None):
            if len(input_ids) == 7 and not torch.is_grad_enabled():
                raise RuntimeError("seven rows")
            return super().forward(input_ids, attention_mask)

    held = [{k: v[:7] for k, v in texts(16, seed=5)[0].items()}]
    trace = finetune(
        Picky(), texts(), steps=2, head="classifier", probes=("data",), eval_batches=held, evaluate=lambda m: 0.5
    )
    assert trace.skipped["data"] == "it raised RuntimeError: seven rows"
    assert check_batches_sound(trace).status == "inconclusive"
    assert "seven rows" in check_batches_sound(trace).headline


class Numbers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.classifier = torch.nn.Linear(6, 2)

    def forward(self, x, mask=None):
        return self.classifier(x)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_nan_is_found_and_comes_first(bad):
    g = torch.Generator().manual_seed(0)
    batches = [{"x": (x := torch.randn(16, 6, generator=g)), "labels": (x[:, 0] > 0).long()} for _ in range(6)]
    batches[2]["x"][3, 4] = bad
    trace = finetune(Numbers(), batches, head="classifier", steps=6)
    assert (trace.measured(Data).nonfinite_inputs, trace.measured(Data).nonfinite_where) == (1, "x")
    assert diagnose(trace).causes[0].fault == "inputs_nan"
    assert len(diagnose(trace).causes) == 1


def test_all_nan_is_no_leak_and_no_repetition():
    batches = [{"x": torch.full((16, 6), math.nan), "labels": torch.arange(16) % 2} for _ in range(6)]
    diagnosis = diagnose(finetune(Numbers(), batches, head="classifier", steps=6))
    assert [c.fault for c in diagnosis.causes] == ["inputs_nan"]


def test_the_minus_infinity_of_a_mask_is_no_fault():
    batches = [
        {"x": torch.randn(16, 6), "mask": torch.full((16, 1, 4, 4), -math.inf).triu(1), "labels": torch.arange(16) % 2}
        for _ in range(3)
    ]
    assert finetune(Numbers(), batches, head="classifier", steps=2).measured(Data).nonfinite_inputs == 0


def test_infinite_labels_break_no_run_where_warnings_are_errors():
    batches = [(torch.randn(16, 6), torch.full((16, 1), math.inf)) for _ in range(3)]
    model = torch.nn.Sequential(torch.nn.Linear(6, 1))
    trace = finetune(
        model, batches, steps=3, head="0", loss_fn=lambda m, b: torch.nn.functional.mse_loss(m(b[0]), b[1])
    )
    assert diagnose(trace).causes[0].fault == "labels_nan"


# ------------------------------------------------------------------ held-out rows beside training rows, and copies
def kept(share_of):
    """Only some rows of a class: ``share_of[label]`` of eight."""

    def change(batch):
        place = torch.arange(len(batch["labels"])) % 8
        keep = place < torch.tensor(share_of)[batch["labels"]]
        return {k: v[keep] for k, v in batch.items()}

    return change


def in_capitals(batch):
    """Another tokenizer: words become the unknown token, 100."""
    ids = batch["input_ids"]
    return {**batch, "input_ids": torch.where(ids > 9, 100, ids)}


def of_another_source(batch):
    ids = batch["input_ids"]
    return {**batch, "input_ids": torch.where(ids > 9, 10 + (ids + 30) % 110, ids)}


@pytest.mark.parametrize(
    ("held_out", "fault"),
    [
        ({}, ""),
        ({"change": in_capitals}, "tokens_apart"),
        ({"change": of_another_source}, "tokens_apart"),
        ({"change": kept([2, 8]), "n": 200}, "labels_apart"),
        ({"change": kept([8, 2]), "n": 200}, ""),
    ],
)
def test_held_out_rows_unlike_the_training_rows(held_out, fault):
    trace = run(texts(change=kept([8, 2])), eval_batches=texts(**{"n": 96, "seed": 5, **held_out}))
    verdict = check_batches_sound(trace)
    assert (verdict.status, verdict.fault) == ("advice" if fault else "pass", fault)


@pytest.mark.parametrize(("change", "fault"), [(in_capitals, "tokens_apart"), (None, "")])
def test_an_evaluation_that_is_tokenised_otherwise(change, fault):
    torch.manual_seed(0)
    held_out = texts(96, seed=5, change=change)
    trace = finetune(
        Bag(), texts(), eval_batches=held_out, steps=40, lr=1e-2, head="classifier", probes=(*PROBES, "loss")
    )
    verdict = check_metric_improves(trace)
    assert (verdict.status, verdict.fault) == ("fail" if fault else "pass", fault)


@pytest.mark.parametrize(("factor", "fault"), [(255.0, "numbers_apart"), (3.0, "")])
def test_held_out_numbers_that_are_not_scaled(factor, fault):
    g = torch.Generator().manual_seed(0)
    pixels = [(torch.rand(16, 3, 4, 4, generator=g), torch.arange(16) % 2) for _ in range(8)]
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
    trace = finetune(
        model, pixels[:5], eval_batches=[(factor * x, y) for x, y in pixels[5:]], steps=5, head="1", probes=PROBES
    )
    verdict = check_batches_sound(trace)
    assert (verdict.status, verdict.fault) == ("advice" if fault else "pass", fault)


def shuffled_copies(batches, times):
    rows = [{k: v[i] for k, v in b.items()} for b in batches for i in range(len(b["labels"]))] * times
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    return [rows[i] for i in order]


def loader(rows, sampler=None):
    return torch.utils.data.DataLoader(rows, batch_size=16, sampler=sampler)


def test_copies():
    verdict = check_batches_sound(run(loader(shuffled_copies(texts(160), 3)), steps=30))
    assert (verdict.status, verdict.fault) == ("advice", "rows_repeated")
    assert check_batches_sound(run(loader(shuffled_copies(texts(320), 1)), steps=40)).status == "pass"  # two epochs


def test_a_rare_class_that_is_drawn_more_often_is_no_copy():
    rows = shuffled_copies(texts(change=kept([8, 1])), 1)
    rare = [row for row in rows if row["labels"] == 1]
    repeated = rows + 6 * rare  # oversampling by hand
    order = torch.randperm(len(repeated), generator=torch.Generator().manual_seed(0)).tolist()
    assert run(loader([repeated[i] for i in order]), steps=15).measured(Data).copies.copies == 0
    sampler = torch.utils.data.WeightedRandomSampler([1.0] * len(rows), 480)
    assert run(loader(rows, sampler), steps=30).measured(Data).copies is None


def test_an_output_that_is_never_a_label():
    model = Bag(3)
    model.config = type("Config", (), {"id2label": {0: "negative", 1: "neutral", 2: "positive"}})()
    labels_from_1 = texts(change=lambda b: {**b, "labels": b["labels"] + 1})
    verdict = check_batches_sound(run(labels_from_1, model))
    assert (verdict.status, verdict.fault) == ("advice", "output_never_a_label")
    assert verdict.headline.startswith("Output 0 ('negative') of 3 is the label of none of 320 distinct training rows")
    assert check_batches_sound(run(texts(classes=3), Bag(3))).status == "pass"
