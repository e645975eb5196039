"""The fine-tune that every fault is put into: MiniLM's real weights, headlines of BBC news in five classes, 40 steps of 16 headlines."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

Batch = dict[str, torch.Tensor]
STEPS, ROWS, TOKENS, HELD_OUT, LR = 40, 16, 24, 160, 1e-4


@dataclass
class Run:
    """One fine-tune as its author wrote it; a fault changes it in place."""

    model: nn.Module
    batches: list[Batch]
    held_out: list[Batch]
    seed: int
    steps: int = STEPS
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = field(
        default=lambda model: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
    )
    #: ``(model, batch) -> loss``; None: the model's own.
    loss: Callable[[nn.Module, Batch], torch.Tensor] | None = None
    #: Of the gradients; None: not clipped.
    max_norm: float | None = None
    zero_grad: bool = True
    #: From this step on the optimizer is called, but changes nothing.
    stuck_from: int | None = None

    def loss_of(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """What the loop calls ``backward`` on."""
        return self.loss(model, batch) if self.loss else model(**batch).loss

    def step(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, _: Any = None) -> torch.Tensor:
        """One step of the author's loop."""
        if self.zero_grad:
            optimizer.zero_grad()
        loss = self.loss_of(model, batch)
        loss.backward()
        if self.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_norm)
        self.taken = getattr(self, "taken", 0) + 1
        if self.stuck_from is None or self.taken <= self.stuck_from:
            optimizer.step()
        return loss.detach()


@dataclass(frozen=True)
class Fault:
    """A published fault."""

    source: str
    name: str
    #: What it does, in our words.
    story: str
    #: Where it is published.
    where: str
    apply: Callable[[Run], None]
    #: Names of our faults, or words, of which the first cause must have one.
    cause: tuple[str, ...]

    @property
    def key(self) -> str:
        """``source/name``."""
        return f"{self.source}/{self.name}"


def make_run(seed: int, base: Path | None = None) -> Run:
    """The healthy fine-tune. Data, head and dropout depend on ``seed``."""
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    folder = base or trimmed_base()
    model = BertForSequenceClassification.from_pretrained(folder, num_labels=5, attn_implementation="eager")
    batches, held_out = rows_of(folder, seed)
    return Run(model.train(), batches, held_out, seed)


def rows_of(folder: Path, seed: int) -> tuple[list[Batch], list[Batch]]:
    """Training and held-out batches, drawn anew for each seed."""
    ids, labels = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).tolist()
    held, train = order[:HELD_OUT], order[HELD_OUT:][: STEPS * ROWS]

    def batches(rows: list[int], size: int) -> list[Batch]:
        return [
            make_batch([ids[i] for i in rows[k : k + size]], [labels[i] for i in rows[k : k + size]])
            for k in range(0, len(rows), size)
        ]

    return batches(train, ROWS), batches(held, 32)


def make_batch(rows: list[list[int]], labels: list[int]) -> Batch:
    """Rows of token ids, padded with 0 to the longest."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.tensor(labels)}


@cache
def trimmed_base() -> Path:
    """MiniLM with the rows of the vocabulary that the texts use, in a folder; made once, and kept for the next call.

    It computes what the whole model computes on these texts; a step takes half the time. Row 0 stays the padding.
    """
    import sys

    sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "examples"))
    import founding
    from transformers import BertModel

    folder = Path(tempfile.gettempdir()) / f"ftcheck-neutral-{TOKENS}"
    if (folder / "rows.json").exists():
        return folder
    model = BertModel.from_pretrained(founding.checkpoint())
    ids, labels = _headlines(founding)
    used = sorted({0, *(i for row in ids for i in row)})
    new = {old: k for k, old in enumerate(used)}
    words = model.embeddings.word_embeddings
    kept = nn.Embedding(len(used), words.embedding_dim, padding_idx=0)
    kept.weight.data.copy_(words.weight.data[used])
    model.embeddings.word_embeddings = kept
    model.config.vocab_size = len(used)
    model.save_pretrained(folder)
    (folder / "rows.json").write_text(json.dumps([[[new[i] for i in row] for row in ids], labels]), encoding="utf-8")
    return folder


def _headlines(founding: Any) -> tuple[list[list[int]], list[int]]:
    """Token ids and labels of the first lines, each once; 3 to 24 tokens, so that batches are padded."""
    from transformers import AutoTokenizer

    found = [(text.strip().splitlines()[0], label) for text, label in founding.texts()]
    tokens = AutoTokenizer.from_pretrained(founding.checkpoint())
    rows = tokens([text for text, _ in found], truncation=True, max_length=TOKENS)["input_ids"]
    once: dict[tuple[int, ...], int] = {}
    for row, (_, label) in zip(rows, found, strict=True):
        once.setdefault(tuple(row), label)
    return [list(row) for row in once], list(once.values())


@torch.no_grad()
def accuracy(model: nn.Module, held_out: list[Batch]) -> float:
    """On the held-out rows, in evaluation mode."""
    mode = model.training
    model.eval()
    right = sum(int((model(**_inputs(b)).logits.argmax(1) == b["labels"]).sum()) for b in held_out)
    model.train(mode)
    return right / sum(len(b["labels"]) for b in held_out)


def fingerprint(run: Run) -> tuple[float, ...]:
    """Logits in evaluation mode, loss and gradient norms in training mode, of the first batch; the run is not usable afterwards."""
    batch = run.batches[0]
    torch.manual_seed(run.seed)
    loss = run.loss_of(run.model, batch)
    loss.backward()
    norms = [0.0 if p.grad is None else float(p.grad.norm()) for p in run.model.parameters()]
    run.model.eval()
    with torch.no_grad():
        logits = run.model(**_inputs(batch)).logits
    return (float(loss.detach()), *norms, *logits.flatten().tolist())


def _inputs(batch: Batch) -> Batch:
    return {k: v for k, v in batch.items() if k != "labels"}


def copied(batches: list[Batch]) -> list[Batch]:
    """Batches whose tensors can be changed."""
    return copy.deepcopy(batches)
