"""Cells of the matrix tasks x faults: tiny models of the tasks that transformers has classes for, healthy and with one fault each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import Diagnosis, diagnose, finetune
from pytest_ftcheck.instruments import tiny_tasks
from pytest_ftcheck.instruments.parameter_roles import find_head, in_part
from pytest_ftcheck.instruments.tiny_architectures import tiny

#: Task -> the architecture that stands for it.
ARCHITECTURES = {
    "text-classification": "distilbert",
    "token-classification": "distilbert",
    "question-answering": "distilbert",
    "multiple-choice": "distilbert",
    "masked-lm": "distilbert",
    "causal-lm": "gpt2",
    "seq2seq": "t5",
    "image-classification": "vit",
}
#: Batches of eight rows to train on (labels are called unrelated from 256 rows on), held-out ones, and steps.
BATCHES, HELD_OUT, STEPS = 40, 6, 60
#: What stands first in each row that is classified: the head reads the vector there.
FIRST = 1
SPAN = ("start_positions", "end_positions")
CLASSES_OF_ROWS = ("text-classification", "multiple-choice", "image-classification")

Batch = dict[str, torch.Tensor]
#: ``(task, model, batches, generator) -> arguments of finetune``; batches may be changed in place.
Change = Callable[[str, nn.Module, list[Batch], torch.Generator], dict[str, Any]]


def healthy(_task: str, _model: nn.Module, _batches: list[Batch], _g: torch.Generator) -> dict[str, Any]:
    """Nothing is wrong."""
    return {}


def head_left_out(task: str, model: nn.Module, _batches: list[Batch], _g: torch.Generator) -> dict[str, Any]:
    """The optimizer does not hold the head."""
    head, named = find_head(model, None), list(model.named_parameters(remove_duplicate=False))
    left_out = {id(p) for n, p in named if in_part(n, head)}  # tied to the word embeddings: these, too
    return {"optimizer": torch.optim.AdamW([p for p in model.parameters() if id(p) not in left_out], lr=_lr(task))}


def lr_zero(_task: str, model: nn.Module, _batches: list[Batch], _g: torch.Generator) -> dict[str, Any]:
    """The learning rate is 0."""
    return {"optimizer": torch.optim.AdamW(model.parameters(), lr=0.0)}


def labels_shuffled(task: str, _model: nn.Module, batches: list[Batch], g: torch.Generator) -> dict[str, Any]:
    """The labels have nothing to do with the inputs."""
    if task == "question-answering":
        for batch in batches:
            length = batch["attention_mask"].sum(1)
            start = 5 + (torch.rand(len(length), generator=g) * (length - 8)).long()
            batch |= {"start_positions": start, "end_positions": start + torch.randint(1, 3, start.shape, generator=g)}
        return {}
    labels = torch.cat([b["labels"] for b in batches])
    if task in (*CLASSES_OF_ROWS, "seq2seq"):
        labels = labels[torch.randperm(len(labels), generator=g)]
    else:
        at = labels != -100
        labels[at] = labels[at][torch.randperm(int(at.sum()), generator=g)]
    for batch, own in zip(batches, labels.split([len(b["labels"]) for b in batches]), strict=True):
        batch["labels"] = own
    return {}


def labels_one_off(task: str, _model: nn.Module, batches: list[Batch], _g: torch.Generator) -> dict[str, Any]:
    """Each position has the label of a neighbour."""
    for batch in batches:
        labels = batch["labels"]
        if task == "seq2seq":  # the decoder is given what it should say
            batch["decoder_input_ids"] = labels.clamp(min=0)
        elif task == "masked-lm":  # labels of the neighbours of masked tokens
            batch["labels"] = torch.where(batch["attention_mask"].bool(), labels.roll(1, 1), -100)
        else:
            batch["labels"] = torch.where(batch["attention_mask"].bool(), labels.roll(-1, 1), -100)
    return {}


def padding_taught(task: str, model: nn.Module, batches: list[Batch], _g: torch.Generator) -> dict[str, Any]:
    """Labels at the padding are those of a class, or the padding's id."""
    pad = getattr(model.config, "pad_token_id", None) or 0
    for batch in batches:
        hidden = batch["labels"] == -100 if task == "seq2seq" else batch["attention_mask"] == 0
        batch["labels"] = torch.where(hidden, pad if task != "token-classification" else 0, batch["labels"])
    return {}


def softmax_twice(task: str, _model: nn.Module, _batches: list[Batch], _g: torch.Generator) -> dict[str, Any]:
    """Cross-entropy of probabilities."""

    def loss_fn(model: nn.Module, batch: Batch) -> torch.Tensor:
        out = model(**batch)
        if task == "question-answering":
            scores = (out.start_logits, out.end_logits)
            return sum(F.cross_entropy(s.softmax(-1), batch[k]) for s, k in zip(scores, SPAN, strict=True)) / 2
        logits, labels = out.logits, batch["labels"]
        if task == "causal-lm":
            logits, labels = logits[:, :-1], labels[:, 1:]
        return F.cross_entropy(logits.softmax(-1).reshape(-1, logits.shape[-1]), labels.reshape(-1))

    return {"loss_fn": loss_fn}


TOKENS = ("token-classification", "masked-lm", "causal-lm", "seq2seq")
#: Fault -> how it is made, and the tasks that can have it. Classes of whole rows that are all one off are other classes; the answer's
#: places that are all one off are learnt as they are.
CHANGES: Mapping[str, tuple[Change, tuple[str, ...]]] = {
    "healthy": (healthy, tuple(ARCHITECTURES)),
    "head left out": (head_left_out, tuple(ARCHITECTURES)),
    "lr 0": (lr_zero, tuple(ARCHITECTURES)),
    "labels shuffled": (labels_shuffled, tuple(ARCHITECTURES)),
    "labels one off": (labels_one_off, TOKENS),
    "padding taught": (padding_taught, TOKENS),
    "softmax twice": (softmax_twice, tuple(ARCHITECTURES)),
}
#: Fault -> ids of faults that name it.
NAMES: Mapping[str, tuple[str, ...]] = {
    "healthy": (),
    "head left out": ("not_in_optimizer",),
    "lr 0": ("lr_zero",),
    "labels shuffled": ("labels_unrelated",),
    "labels one off": ("labels_of_neighbours", "shifted_twice", "labels_beside_masked", "not_shifted"),
    "padding taught": ("padding_taught",),
    "softmax twice": ("double_softmax",),
}
#: Cells that do not fail as yet, and why.
MISSED: Mapping[tuple[str, str], str] = {}
#: Task, fault.
CELLS = tuple((task, fault) for fault, (_, tasks) in CHANGES.items() for task in tasks)


def _lr(task: str) -> float:
    return float(tiny_tasks.TASKS[task].arguments.get("lr", 1e-3))


def make_batches(task: str, model: nn.Module, g: torch.Generator) -> list[Batch]:
    """Batches of the task, their rows in another order for each seed."""
    with mock.patch.object(tiny_tasks, "_BATCHES", BATCHES + HELD_OUT):
        made = tiny_tasks.TASKS[task].batches(model.config)
    rows = {key: torch.cat([b[key] for b in made]) for key in made[0]}
    if task == "text-classification":
        rows["input_ids"][:, 0] = FIRST
    order = torch.randperm(len(next(iter(rows.values()))), generator=g).split(len(made[0][next(iter(made[0]))]))
    return [{key: value[at] for key, value in rows.items()} for at in order]


def verdict_of(task: str, fault: str, seed: int) -> str:
    """The fault of the first cause, or the status of a run without causes."""
    diagnosis = judge(task, fault, seed)
    return diagnosis.causes[0].fault if diagnosis.causes else diagnosis.status


def is_right(fault: str, found: str) -> bool:
    """A fault's cause comes first; a healthy run has none."""
    return found in NAMES[fault] if NAMES[fault] else found in ("healthy", "undecided")


def judge(task: str, fault: str, seed: int) -> Diagnosis:
    """The diagnosis of one cell's run."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    model = tiny(ARCHITECTURES[task], task)
    batches = make_batches(task, model, g)
    given = CHANGES[fault][0](task, model, batches, g)
    given |= {"steps": STEPS, "seed": seed, "eval_batches": batches[BATCHES:]}
    given |= {} if "optimizer" in given else {"lr": _lr(task)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return diagnose(finetune(model, batches[:BATCHES], **given))
