"""The loops of Accelerate and of the Trainer under `watch(model, optimizer)`."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from watched import Net, agrees_with, weights

from pytest_ftcheck import check_weights_move, watch


def test_accelerate(rows):
    from accelerate import Accelerator

    torch.manual_seed(0)
    model = Net()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1.0)
    prepared, wrapped, scheduler = accelerator.prepare(model, optimizer, scheduler)
    before = weights(model)
    with watch(prepared, wrapped, scheduler=scheduler) as w:
        for x, y in rows:
            with accelerator.accumulate(prepared):
                loss = F.cross_entropy(prepared(x), y)
                w.loss(loss)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
                wrapped.step()
                scheduler.step()
                wrapped.zero_grad()
    assert len(w.trace.steps) == 4
    assert [i.step for i in w.trace.iterations] == [None, 0, None, 1, None, 2, None, 3]
    assert w.trace.optimizer.name == "AdamW"
    assert w.trace.optimizer.other_optimizer_steps == 0
    assert w.trace.tensor("classifier.weight").lr_sum == pytest.approx(4e-2)
    agrees_with(w.trace, before, model)


class Rows(torch.utils.data.Dataset):
    def __init__(self, batches):
        self.items = [
            {"input_ids": ids[i], "attention_mask": mask[i], "labels": int(y[i])}
            for (ids, _, mask), y in batches
            for i in range(len(y))
        ]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def collate(items):
    return {
        "input_ids": nn.utils.rnn.pad_sequence([i["input_ids"] for i in items], batch_first=True),
        "attention_mask": nn.utils.rnn.pad_sequence([i["attention_mask"] for i in items], batch_first=True),
        "labels": torch.tensor([i["labels"] for i in items]),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["optimizer first", "callback"])
def test_the_trainer_of_transformers(tmp_path, way):
    from transformers import (
        DistilBertConfig,
        DistilBertForSequenceClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from pytest_ftcheck import toy_batches

    torch.manual_seed(0)
    model = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=200, dim=16, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=32)
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )

    class Watching(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, optimizer=None, **rest):
            self.watch = watch(model, optimizer).__enter__()

        def on_train_end(self, *args, **rest):
            self.watch.__exit__(None, None, None)

    callback = Watching()
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Rows(toy_batches(4, 16)),
        data_collator=collate,
        callbacks=[callback] if way == "callback" else [],
    )
    before = weights(model)
    if way == "callback":
        trainer.train()
        trace = callback.watch.trace
    else:
        with watch(model, trainer.create_optimizer()) as w:
            trainer.train()
        trace = w.trace
    assert len(trace.steps) == 6
    assert trace.optimizer.name == "AdamW"
    assert trace.optimizer.other_optimizer_steps == 0
    assert trace.head == ("pre_classifier", "classifier")
    agrees_with(trace, before, model)
    assert trace.tensor("classifier.weight").lr_sum == pytest.approx(6e-3)
    assert trace.tensor("classifier.weight").gradients.none == 0
    assert all(s.training for s in trace.steps)
    assert check_weights_move(trace, "head").status == "pass"
