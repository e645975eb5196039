"""One rank of ``test_frameworks_on_ranks.py``, started as torchrun starts it: unwatched, watched by all ranks, and by one."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import lightning_modules
import torch
import trainers
from accelerate import Accelerator
from ranks_watched import ALL, ONE, UNWATCHED, bits, described
from torch import distributed

from pytest_ftcheck import FtcheckCallback, toy_batches, watch

STEPS = 8


def by_trainer(rank, who):
    trainer = trainers.make_trainer(arguments={"max_steps": STEPS, "gradient_accumulation_steps": 2})
    trace = None
    if who == ALL:
        with watch(trainer) as w:
            trainer.train()
        trace = w.trace
    elif who == ONE and rank == 0:
        callback = FtcheckCallback()
        trainer.add_callback(callback)
        trainer.train()
        trace = callback.trace
    else:
        trainer.train()
    return trainer.model, trace


def by_lightning(rank, who):
    callback = FtcheckCallback() if who == ONE and rank == 0 else None
    trainer = lightning_modules.trainer(
        devices=2, strategy="ddp", max_epochs=-1, max_steps=STEPS, callbacks=[callback] if callback else None
    )
    module, loader = lightning_modules.Classifier(), lightning_modules.loader()
    if who == ALL:
        with watch(trainer, module=module) as w:
            trainer.fit(module, loader)
        return module, w.trace
    trainer.fit(module, loader)
    return module, callback.trace if callback else None


def by_accelerate(rank, who):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = trainers.make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rows = trainers.make_rows()
    loader = torch.utils.data.DataLoader(rows[: 2 * 2 * STEPS * 4], batch_size=4, collate_fn=trainers.pad)
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    w = watch(wrapped, optimizer, probe_batch=trainers.pad(rows[:16]))
    watched = who == ALL or (who == ONE and rank == 0)
    if watched:
        w.__enter__()
    for batch in loader:
        with accelerator.accumulate(wrapped):
            accelerator.backward(wrapped(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()
    if watched:
        w.__exit__(None, None, None)
    return model, w.trace if watched else None


def main(rank, out):
    torch.set_num_threads(1)
    toy_batches(1)
    found = {}
    for name, train in (("Trainer", by_trainer), ("Lightning", by_lightning), ("Accelerate", by_accelerate)):
        of_framework = found[name] = {"bits": {}}
        for who in (UNWATCHED, ALL, ONE):
            torch.manual_seed(7)
            model, trace = train(rank, who)
            of_framework["bits"][who] = bits(torch.optim.SGD(model.parameters(), lr=1.0), model)
            if trace is not None:
                of_framework[who] = described(trace)
        assert distributed.get_world_size() == 2
        Path(out, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(int(sys.argv[1]), sys.argv[3])
