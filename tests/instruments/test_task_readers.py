"""Tasks: what is read of each, one of the user's own, and the metrics of their fields."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import TaskReader, Trace, check_metric_improves, diagnose, finetune, register_task
from pytest_ftcheck.instruments import fixed_rows
from pytest_ftcheck.instruments.field_metrics import entities, entity_f1, entity_scheme, exact_match, perplexity
from pytest_ftcheck.instruments.fixed_rows import joined
from pytest_ftcheck.instruments.task_readers.registered import reader_of, registered_tasks, tasks_alone
from pytest_ftcheck.instruments.tiny_architectures import tiny
from pytest_ftcheck.instruments.tiny_tasks import batches_for

NAMES = {0: "O", 1: "B-PER", 2: "I-PER"}


@pytest.fixture(autouse=True)
def _no_others():
    with tasks_alone([]):
        yield


def run(model, batches, **settings):
    return finetune(model, batches, **{"lr": 1e-3, "steps": 3, "probes": ["metrics"], **settings})


# ---------------------------------------------------------------------- what is read
@pytest.mark.parametrize(
    ("architecture", "task", "reader", "field"),
    [
        ("distilbert", "token-classification", "token classification", "entity_f1"),
        ("distilbert", "question-answering", "question answering", "exact_match"),
        ("distilbert", "multiple-choice", "multiple choice", None),
        ("distilbert", "masked-lm", "masked language model", "perplexity"),
        ("gpt2", "causal-lm", "causal language model", "perplexity"),
        ("t5", "seq2seq", "sequence to sequence", "perplexity"),
        ("vit", "image-classification", "single label", None),
    ],
)
def test_the_task_is_said_and_its_metric_reported(architecture, task, reader, field):
    model = tiny(architecture, task)
    batches = batches_for(model)
    if field == "entity_f1":
        model.config.id2label = NAMES
    trace = run(model, batches)
    assert (trace.reading.task, trace.reading.reader) == ("single_label", reader)
    assert trace.reading.labels
    assert [m.name for m in trace.metrics] == ["accuracy", "precision", "recall", *([field] if field else [])]
    if field == "perplexity":
        assert trace.metrics[-1].first == pytest.approx(model.config.vocab_size, rel=2)
        assert trace.metrics[-1].lower_is_better
    assert Trace.from_json(trace.to_json()) == trace


def test_entities_need_names_of_entities():
    model = tiny("distilbert", "token-classification")  # LABEL_0, LABEL_1, ...
    assert [m.name for m in run(model, batches_for(model)).metrics] == ["accuracy", "precision", "recall"]


def test_metrics_of_the_users_own_come_alone():
    model = tiny("gpt2", "causal-lm")
    trace = run(model, batches_for(model), metrics={"mine": lambda logits, labels: 0.5})
    assert [m.name for m in trace.metrics] == ["mine"]


# ---------------------------------------------------------------------- metrics
def test_perplexity_is_judged_by_its_direction():
    model = tiny("gpt2", "causal-lm")
    trace = run(model, batches_for(model), steps=12)
    found = check_metric_improves(trace, "perplexity")
    assert (found.status, found.limit) == ("pass", "lower than before")


def test_perplexity_is_the_exponential_of_the_mean_cross_entropy():
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, -100], [0, -100, -100]])
    kept = labels != -100
    assert perplexity(logits, labels) == pytest.approx(
        float(F.cross_entropy(logits[kept], labels[kept]).exp()), rel=1e-5
    )
    assert perplexity(1e6 * logits, labels) == float("inf")


def test_exact_match_needs_both_places():
    logits = F.one_hot(torch.tensor([[0, 2], [1, 2], [0, 0]]), 3).float()
    assert exact_match(logits, torch.tensor([[0, 2], [1, 1], [-100, 0]])) == pytest.approx(2 / 3)
    assert exact_match(logits, torch.tensor([[0, 2], [-100, -100], [-100, -100]])) == 1


def test_batches_of_different_widths_keep_their_rows():
    wide, narrow = torch.zeros(2, 5, 3), torch.ones(1, 4, 3)
    outputs, labels = joined([wide, narrow], [torch.zeros(2, 5).long(), torch.ones(1, 4).long()])
    assert (outputs.shape, labels.shape) == ((3, 5, 3), (3, 5))
    assert labels[2].tolist() == [1, 1, 1, 1, -100]


def test_very_many_outputs_are_one_line_a_label(monkeypatch):
    monkeypatch.setattr(fixed_rows, "MOST_CELLS", 40)
    wide, narrow = torch.zeros(2, 5, 3), torch.ones(1, 4, 3)
    outputs, labels = joined([wide, narrow], [torch.zeros(2, 5).long(), torch.ones(1, 4).long()])
    assert (outputs.shape, labels.shape) == ((14, 3), (14,))
    assert perplexity(outputs, labels) == pytest.approx(3)


#: Tags, and the entities (type, first, last) that conlleval counts in them.
SEQUENCES = [
    ("O O O", []),
    ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
    ("B-PER B-PER", [("PER", 0, 0), ("PER", 1, 1)]),
    ("I-PER I-PER O I-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
    ("B-PER I-LOC", [("PER", 0, 0), ("LOC", 1, 1)]),
    ("I-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)]),
    ("S-PER S-PER B-LOC E-LOC E-LOC", [("PER", 0, 0), ("PER", 1, 1), ("LOC", 2, 3), ("LOC", 4, 4)]),
    ("B-LOC E-LOC I-LOC", [("LOC", 0, 1), ("LOC", 2, 2)]),
]
TAGS = ["O", *(f"{part}-{kind}" for part in "BIES" for kind in ("PER", "LOC"))]
SCHEME = entity_scheme(dict(enumerate(TAGS)))


@pytest.mark.parametrize(("tags", "expected"), SEQUENCES)
def test_entities_are_those_of_conlleval(tags, expected):
    found = entities([TAGS.index(tag) for tag in tags.split()], SCHEME)
    assert found == {(["LOC", "PER"].index(kind), first, last) for kind, first, last in expected}


def test_names_that_mark_no_entities():
    assert entity_scheme({}) is None
    assert entity_scheme({0: "NOUN", 1: "VERB"}) is None
    assert entity_scheme({0: "O", 1: "B-PER", 2: "X-PER"}) is None
    assert entity_scheme({0: "O", 1: "S-PER"}) is None
    assert entity_scheme({1: "O", 2: "B-PER"}) is None


def test_entity_f1_is_that_of_seqeval():
    metrics = pytest.importorskip("seqeval.metrics")
    draw = random.Random(0)
    for _ in range(200):
        sentences = [draw.choices(range(len(TAGS)), k=draw.randint(1, 12)) for _ in range(4)]
        guesses = [[t if draw.random() < 0.8 else draw.randrange(len(TAGS)) for t in s] for s in sentences]
        width = max(map(len, sentences))
        labels = torch.tensor([s + [-100] * (width - len(s)) for s in sentences])
        guess = torch.tensor([g + [0] * (width - len(g)) for g in guesses])
        named = [[[TAGS[t] for t in row] for row in rows] for rows in (sentences, guesses)]
        logits = F.one_hot(guess, len(TAGS)).float()
        assert entity_f1(logits, labels, SCHEME) == pytest.approx(metrics.f1_score(*named, zero_division=0))


def test_without_entities_the_f1_is_zero():
    assert entity_f1(torch.eye(9)[torch.zeros(2, 3, dtype=torch.long)], torch.zeros(2, 3).long(), SCHEME) == 0


# ---------------------------------------------------------------------- a task of one's own
class Relevance(TaskReader):
    """Which of several documents is the relevant one: scores in ``.scores``, labels in ``relevant``."""

    name = "relevance"
    labels_are = "the relevant document, for each query"
    keys = ("relevant",)

    def logits(self, output):
        return output.get("scores") if isinstance(output, dict) else None

    def metrics(self, example):
        def reciprocal_rank(logits, labels):
            better = (logits > logits.gather(1, labels[:, None])).sum(1)
            return float((1 / (1 + better)).mean())

        return {"mrr": reciprocal_rank}


class Ranker(nn.Module):
    """Scores documents; computes its own loss where it gets ``relevant``."""

    def __init__(self):
        super().__init__()
        self.body, self.classifier = nn.Linear(6, 16), nn.Linear(16, 1)

    def forward(self, documents, relevant=None):
        scores = self.classifier(torch.relu(self.body(documents))).squeeze(-1)
        return {"loss": None if relevant is None else F.cross_entropy(scores, relevant), "scores": scores}


def queries(count=4, shift=0):
    g = torch.Generator().manual_seed(0)
    documents = [torch.randn(16, 5, 6, generator=g) for _ in range(count)]
    return [{"documents": d, "relevant": (d[..., 0].argmax(1) + shift) % 5} for d in documents]


@pytest.fixture
def _relevance():
    register_task(Relevance)


@pytest.mark.usefixtures("_relevance")
def test_a_task_of_the_users_own_is_judged_like_any_other():
    trace = finetune(Ranker, queries(), lr=3e-3, steps=60)
    assert (trace.reading.reader, trace.reading.task, trace.reading.classes) == ("relevance", "single_label", 5)
    assert [m.name for m in trace.metrics] == ["accuracy", "precision", "recall", "mrr"]
    assert trace.metrics[-1].last > trace.metrics[-1].first
    assert diagnose(trace).status != "unhealthy", str(diagnose(trace))


@pytest.mark.usefixtures("_relevance")
def test_its_labels_can_be_changed_and_its_batches_cut():
    from pytest_ftcheck.instruments.batches import rows_of, split, take_rows, with_labels

    batch = take_rows(queries()[0], [3, 1])
    assert rows_of(batch) == 2
    assert split(with_labels(batch, torch.tensor([4, 0])))[1].tolist() == [4, 0]


class Stars(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.classifier = nn.Linear(6, 16), nn.Linear(16, 1)

    def forward(self, x):
        return self.classifier(torch.relu(self.body(x)))


def test_a_task_at_the_usual_place_is_recognised_by_the_first_batch_and_declares_its_form():
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    batches = [{"x": x, "labels": (3 + x[:, 0]).round().long().clamp(1, 5)}]
    with pytest.raises(ValueError, match="outside the head's 2 classes"):
        run(Stars, batches)

    @register_task
    class Rating(TaskReader):
        name = "rating"
        form = "regression"

        def fits(self, example):
            return "x" in example.inputs and example.logits.shape[-1] == 1

    reading = run(Stars, batches).reading
    assert (reading.reader, reading.task, reading.loss) == ("rating", "regression", "mean squared error")


def test_a_metric_that_fails_leaves_the_others_alone():
    @register_task
    class Failing(Relevance):
        name = "failing"

        def metrics(self, example):
            return {**super().metrics(example), "bad": lambda logits, labels: logits["no"]}

    trace = run(Ranker, queries(1), steps=1)
    assert [m.name for m in trace.metrics] == ["accuracy", "precision", "recall", "mrr"]
    assert any(note.startswith("a metric is left out: bad of logits (16, 5)") for note in trace.notes)


def test_what_is_not_registered_is_not_read():
    assert reader_of(queries()[0]) is None
    with pytest.raises(ValueError, match="has no labels"):
        finetune(Ranker, queries(), steps=1)


def test_a_task_that_is_compared_in_no_form_gets_the_checks_without_labels():
    @register_task
    class Loose(Relevance):
        name = "loose"
        form = "none"

    trace = finetune(Ranker, queries(), lr=3e-3, steps=40)
    assert (trace.reading.reader, trace.reading.task) == ("loose", None)
    assert [m.name for m in trace.metrics] == ["mrr"]
    found = diagnose(trace)
    assert found.status != "unhealthy", str(found)
    assert {"grads_nonzero", "weights_move", "loss_decreases"} <= {v.check for v in found.having("pass")}


@pytest.mark.usefixtures("_relevance")
def test_the_last_of_a_name_counts_and_a_block_has_its_own():
    first = registered_tasks()[0]
    register_task(Relevance())
    assert len([t for t in registered_tasks() if t.name == "relevance"]) == 1
    assert registered_tasks()[0] is not first
    with tasks_alone([]):
        assert reader_of(queries()[0]) is None
    assert reader_of(queries()[0]) is not None


@pytest.mark.parametrize(
    ("reader", "error", "message"),
    [
        (3, TypeError, "reader is an int: expected a class derived from pytest_ftcheck.TaskReader"),
        (TaskReader, ValueError, "reader TaskReader: name='': expected what the task is called"),
        (
            type("Odd", (TaskReader,), {"name": "odd", "form": "rank"}),
            ValueError,
            "reader Odd: form='rank': expected one of",
        ),
        (type("Odd", (TaskReader,), {"name": "odd", "keys": "y"}), TypeError, "reader Odd: keys='y': expected a tuple"),
    ],
)
def test_what_is_no_task_reader_is_refused(reader, error, message):
    before = registered_tasks()
    with pytest.raises(error, match=message):
        register_task(reader)
    assert registered_tasks() == before


@pytest.mark.usefixtures("_relevance")
def test_an_executors_workers_get_it_too():
    from pytest_ftcheck import Recipe
    from pytest_ftcheck.training.payload import packed, unpacked
    from pytest_ftcheck.training.seeds_on_executor import _tasks, train_seed

    sent = packed({"model": Ranker, "batches": queries(1), "recipe": Recipe(steps=1), "probes": ["loss"], **_tasks()})
    with tasks_alone([]):
        found = train_seed(unpacked(sent), finetune, {"seed": 0, "steps": 1, "probes": None})
        assert not registered_tasks()
    assert Trace.from_json(found["trace"]).reading.reader == "relevance"
