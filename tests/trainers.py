"""A healthy ``transformers.Trainer`` of a tiny DistilBERT, and the same with one thing broken."""

from __future__ import annotations

import tempfile

import torch
from torch.nn import functional as F
from transformers import DistilBertConfig, DistilBertForSequenceClassification, Trainer, TrainingArguments

from pytest_ftcheck import FtcheckCallback, finetune, toy_batches, watch
from pytest_ftcheck.integrations.trainer_loss import TrainerLoss, makes_own_loss

CONFIG = {"vocab_size": 200, "dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 128, "max_position_embeddings": 64}
STEPS = 40
#: A fault shows early.
FEW = 12


def make_rows(seed=0):
    """Rows of different lengths, unpadded, as a tokenizer leaves them: a list of mappings."""
    rows = []
    for (ids, lengths, _), labels in toy_batches(seed=seed):
        for i, n, label in zip(ids, lengths.tolist(), labels, strict=True):
            rows.append({"input_ids": i[:n], "labels": label})
    return rows


def pad(rows):
    """The collator: padded to the longest row, with the mask."""
    n = max(len(r["input_ids"]) for r in rows)
    ids = torch.stack([F.pad(r["input_ids"], (0, n - len(r["input_ids"]))) for r in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.stack([r["labels"] for r in rows])}


def without_mask(rows):
    batch = pad(rows)
    del batch["attention_mask"]
    return batch


def make_model(seed=0, **config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DistilBertForSequenceClassification(DistilBertConfig(**{**CONFIG, **config}))


def make_arguments(**arguments):
    settings = {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": STEPS,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(**{**settings, **arguments})


def make_trainer(kind=Trainer, model=None, *, seed=0, rows=None, collator=pad, optimizers=None, arguments=None, **more):
    """A healthy one, unless something is given."""
    model = make_model(seed) if model is None else model
    return kind(
        model,
        make_arguments(**{"seed": seed, **(arguments or {})}),
        train_dataset=make_rows() if rows is None else rows,
        data_collator=collator,
        **({} if optimizers is None else {"optimizers": optimizers(model)}),
        **more,
    )


class Bookkeeper(Trainer):
    """A healthy ``compute_loss`` of one's own that writes down what it sees, as TRL's trainers do."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.metrics = {"train": {"loss": []}}
        self.rows = torch.zeros(())
        self.calls = 0

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits, labels)
        self.metrics["train"]["loss"].append(loss.item())
        self.rows += len(labels)
        self.calls += 1
        return (loss, outputs) if return_outputs else loss


class SoftmaxTwice(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits.softmax(-1), labels)
        return (loss, outputs) if return_outputs else loss


class Negated(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        return (-loss, outputs) if return_outputs else -loss


class MaskForgotten(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(input_ids=inputs["input_ids"], labels=inputs["labels"])
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class OwnPredictions(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        inputs.pop("labels")
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits, outputs.logits.argmax(-1))
        return (loss, outputs) if return_outputs else loss


def is_head(name):
    return name.startswith(("classifier", "pre_classifier"))


def without_head(model):
    return torch.optim.AdamW([p for n, p in model.named_parameters() if not is_head(n)], lr=1e-3), None


def head_at_zero(model):
    head = [p for n, p in model.named_parameters() if is_head(n)]
    base = [p for n, p in model.named_parameters() if not is_head(n)]
    return torch.optim.AdamW([{"params": base}, {"params": head, "lr": 0.0}], lr=1e-3), None


#: Name -> what is given to `make_trainer`, and the fault that is to be named first.
FAULTS = {
    "head not in the optimizer": ({"optimizers": without_head}, "not_in_optimizer"),
    "head group at lr 0": ({"optimizers": head_at_zero}, "lr_zero"),
    "softmax twice": ({"kind": SoftmaxTwice}, "double_softmax"),
    "negated loss": ({"kind": Negated}, "loss_negated"),
    "mask forgotten by compute_loss": ({"kind": MaskForgotten}, "mask_not_passed"),
    "mask forgotten by the collator": ({"collator": without_mask}, "mask_not_passed"),
    "own predictions as targets": ({"kind": OwnPredictions}, "own_predictions_as_targets"),
    "loss of micro-batches added up": (
        {"arguments": {"gradient_accumulation_steps": 4, "max_grad_norm": 0.1}},
        "num_items_ignored",
    ),
}
#: The same without a fault.
HEALTHY = {
    "the model's own loss": {},
    "a compute_loss of one's own": {"kind": Bookkeeper},
}


def by_model(**given):
    """A trace by ``watch(model)``: nothing but the model is known."""
    trainer = make_trainer(**given)
    with watch(trainer.model) as w:
        trainer.train()
    return w.trace


def by_model_and_batch(**given):
    """A trace by ``watch(model, probe_batch=...)``: whoever watches the model hands over the batch and the loss."""
    trainer = make_trainer(**given)
    loss_fn = TrainerLoss(trainer) if makes_own_loss(trainer) else None
    with watch(trainer.model, probe_batch=trainer.data_collator(make_rows()[:64]), loss_fn=loss_fn) as w:
        trainer.train()
    return w.trace


def by_trainer(**given):
    trainer = make_trainer(**given)
    with watch(trainer) as w:
        trainer.train()
    return w.trace


def by_callback(**given):
    trainer = make_trainer(**given)
    callback = FtcheckCallback()
    trainer.add_callback(callback)
    trainer.train()
    return callback.trace


def by_factory(steps=STEPS, seed=0, **given):
    return finetune(lambda: make_trainer(seed=seed, **given), steps=steps, seed=seed)


#: The ways in which a Trainer is judged.
WAYS = {
    "watch(model)": by_model,
    "watch(model), probe": by_model_and_batch,
    "watch(trainer)": by_trainer,
    "callback": by_callback,
    "finetune": by_factory,
}
