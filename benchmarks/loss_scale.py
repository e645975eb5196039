"""Trainer with gradient accumulation on models whose loss ignores ``num_items_in_batch``: how long the gradients are, what that changes.

``python benchmarks/loss_scale.py [ratios training]``. The models are tiny and new, without dropout: nothing is downloaded. The numbers
are those of ``docs/explanation/loss-scale.md``.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from pytest_ftcheck import check_loss_scale, watch

#: Micro-batches, and rows of each; the same rows at once for comparison.
K, ROWS = 4, 4
STEPS = 60
SIZES = {"num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 1, "hidden_size": 32}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DISTILBERT = {
    "n_heads": 2,
    "hidden_dim": 32,
    "n_layers": 1,
    "dim": 32,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "seq_classif_dropout": 0.0,
}
#: Name of the model's family -> fields of its configuration.
FAMILIES: dict[str, dict[str, Any]] = {
    "DistilBert": DISTILBERT,
    "Bert": {**SIZES, **NO_DROPOUT},
    "Roberta": {**SIZES, **NO_DROPOUT},
    "Electra": {**SIZES, **NO_DROPOUT, "embedding_size": 32},
    "Albert": {**SIZES, "embedding_size": 32, "classifier_dropout_prob": 0.0},
    "DebertaV2": {**SIZES, **NO_DROPOUT, "pooler_hidden_size": 32, "pooler_dropout": 0.0},
    "ModernBert": {**SIZES, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2},
    "Llama": SIZES,
    "GPT2": {"n_embd": 32, "n_layer": 1, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    | {"bos_token_id": 1, "eos_token_id": 2},
    "XLNet": {"d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 32, "dropout": 0.0, "summary_last_dropout": 0.0},
}


def make(family: str, **more: Any) -> Any:
    """A new tiny model with a head of two classes."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=100, pad_token_id=0, num_labels=2, **{**FAMILIES[family], **more}
    )
    return getattr(transformers, f"{family}ForSequenceClassification")(config)


def make_rows(count: int) -> list[dict[str, Any]]:
    """Rows of random ids; the label is whether the id 7 or the id 8 is among them."""
    drawn = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        ids = torch.randint(9, 100, (12,), generator=drawn)
        ids[int(torch.randint(0, 12, (), generator=drawn))] = 7 + i % 2
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": i % 2})
    return rows


class InOrder(Trainer):
    """The same rows at the same step, however they are split into micro-batches."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)


class Norms(TrainerCallback):
    """The gradients at the steps, before clipping."""

    def __init__(self) -> None:
        self.first: torch.Tensor | None = None

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        """After the last ``backward()``; Trainer has clipped by then, so clipping is off where this is read."""
        if self.first is None:
            self.first = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()


def train(model: Any, *, k: int, rows: int, steps: int, divides: bool, **more: Any) -> tuple[Trainer, torch.Tensor]:
    """The trainer, and the gradient of its first step.

    :param divides: tell Trainer that the model does not, which is the remedy.
    """
    if divides:
        model.accepts_loss_kwargs = False
    norms = Norms()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=k,
            logging_steps=1,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            **more,
        )
        trainer = InOrder(model, arguments, train_dataset=make_rows(K * ROWS * 16), callbacks=[norms])
        trainer.remove_callback(PrinterCallback)
        trainer.create_optimizer()
        with watch(model, trainer.optimizer) as w:
            trainer.train()
    trainer.verdict = check_loss_scale(w.trace)
    assert norms.first is not None
    return trainer, norms.first


def ratios() -> None:
    """The gradient of 4 x 4 rows over that of 16 rows."""
    print("| model | as it is | `accepts_loss_kwargs = False` | cosine of the gradients |\n|---|---|---|---|")
    for family in FAMILIES:
        found = []
        _, whole = train(make(family), k=1, rows=K * ROWS, steps=1, divides=False, max_grad_norm=0.0)
        for divides in (False, True):
            _, split = train(make(family), k=K, rows=ROWS, steps=1, divides=divides, max_grad_norm=0.0)
            found.append((float(split @ whole / (whole @ whole)), float(split @ whole / split.norm() / whole.norm())))
        print(f"| {family} | {found[0][0]:.4f} | {found[1][0]:.4f} | {found[0][1]:.6f} |", flush=True)


def training() -> None:
    """What it changes over a training, with three optimizers."""
    print(
        "| optimizer | largest norm | steps clipped | last loss | weights apart | `loss_scale` |\n|---|---|---|---|---|---|"
    )
    settings: dict[str, dict[str, Any]] = {
        "AdamW, not clipped": {"learning_rate": 1e-3, "max_grad_norm": 0.0},
        "AdamW, clipped at 1 (the default)": {"learning_rate": 1e-3, "max_grad_norm": 1.0},
        "SGD": {"learning_rate": 0.1, "max_grad_norm": 0.0, "optim": "sgd"},
    }
    for name, setting in settings.items():
        ends = []
        for divides in (True, False):
            model = make("DistilBert", dim=64, hidden_dim=128)
            before = _weights(model)
            trainer, _ = train(
                model, k=K, rows=ROWS, steps=STEPS, divides=divides, lr_scheduler_type="constant", **setting
            )
            logs = [line for line in trainer.state.log_history if "grad_norm" in line]
            norms = [line["grad_norm"] for line in logs]
            factor = 1 if divides else K  # what Trainer logs is the sum
            last = sum(line["loss"] for line in logs[-5:]) / 5 / factor
            clipped = sum(n > setting["max_grad_norm"] > 0 for n in norms)
            ends.append((before, _weights(model), max(norms), clipped, last, trainer.verdict.status))
        right = ends[0]
        apart = float((ends[1][1] - right[1]).norm() / (right[1] - right[0]).norm())
        for label, (_, _, most, clipped, last, status) in zip(("divided", "as it is"), ends, strict=True):
            share = f"{clipped} of {STEPS}" if setting["max_grad_norm"] else "-"
            distance = "-" if label == "divided" else f"{apart:.0%}"
            print(f"| {name}, {label} | {most:.2f} | {share} | {last:.4f} | {distance} | {status} |", flush=True)


def _weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


PARTS: dict[str, Callable[[], None]] = {"ratios": ratios, "training": training}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {K} micro-batches of {ROWS} rows\n")
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
        print()
