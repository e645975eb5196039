"""``watch(trainer)``: what a ``transformers.Trainer`` trains is watched, and nothing of it is changed."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
import transformers
from packaging import version
from torch.nn import functional as F
from trainers import STEPS, Bookkeeper, SoftmaxTwice, make_arguments, make_model, make_rows, make_trainer, pad
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from pytest_ftcheck import diagnose, watch
from pytest_ftcheck.instruments.undisturbed import quiet
from pytest_ftcheck.integrations.trainer_loss import TrainerLoss, is_trainer, makes_own_loss
from pytest_ftcheck.integrations.transformers import TrainerAdapter

pytestmark = pytest.mark.trains
SHORT = 6


def watched(trainer, **options):
    with watch(trainer, **options) as w:
        trainer.train()
    return w.trace


def short(**given):
    arguments = {"max_steps": SHORT, **given.pop("arguments", {})}
    return make_trainer(arguments=arguments, **given)


def weights(trainer):
    return [p.detach().clone() for p in trainer.model.parameters()]


class Listener:
    def __init__(self):
        self.loop, self.heard = None, []

    def training_begins(self, loop):
        self.loop = loop
        self.heard.append("begins")

    def training_ends(self, error=None):
        self.heard.append("ends")


# ------------------------------------------------------------------ nothing is changed
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"kind": Bookkeeper},
        {"arguments": {"group_by_length": True}},
        {"arguments": {"neftune_noise_alpha": 5.0}},
        {"arguments": {"gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1}},
    ],
    ids=["plain", "bookkeeper", "group_by_length", "neftune", "accumulation"],
)
def test_training_is_the_same_bit_for_bit(given):
    arguments = dict(given.get("arguments", {}))
    if "group_by_length" in arguments and "group_by_length" not in {
        f.name for f in dataclasses.fields(TrainingArguments)
    }:
        del arguments["group_by_length"]
        arguments["train_sampling_strategy"] = "group_by_length"
    if arguments.get("train_sampling_strategy") or arguments.get("group_by_length"):
        given = {
            **given,
            "rows": [{**r, "input_ids": r["input_ids"].tolist()} for r in make_rows()],
            "collator": pad_lists,
        }
    given = {**given, "arguments": arguments}
    torch.manual_seed(1)
    alone = short(**given)
    alone.train()
    torch.manual_seed(1)
    seen = short(**given)
    trace = watched(seen)
    assert all(torch.equal(a, b) for a, b in zip(weights(alone), weights(seen), strict=True))
    assert [e.get("loss") for e in alone.state.log_history] == [e.get("loss") for e in seen.state.log_history]
    assert len(trace.steps) == SHORT


def pad_lists(rows):
    return pad([{**r, "input_ids": torch.tensor(r["input_ids"])} for r in rows])


def test_what_compute_loss_writes_into_its_trainer_is_the_trainings_alone():
    trainer = short(kind=Bookkeeper)
    trace = watched(trainer)
    assert trainer.calls == len(trainer.metrics["train"]["loss"]) == len(trace.losses) == SHORT
    assert trainer.rows == 16 * SHORT


def test_the_probe_draws_no_random_state_and_the_data_set_and_collator_are_as_before():
    class Noisy(torch.utils.data.Dataset):
        def __init__(self):
            self.rows, self.own, self.read = make_rows(), random.Random(0), 0

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, i):
            self.read += 1
            self.own.random()
            torch.rand(())
            random.random()
            return self.rows[i]

    trainer = short(rows=Noisy())
    loader = trainer.get_train_dataloader()
    listener = Listener()
    adapter = TrainerAdapter(trainer)
    adapter.attach(listener)
    before = torch.get_rng_state(), random.getstate(), trainer.train_dataset.own.getstate()
    trainer.callback_handler.train_dataloader = loader
    trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
    after = torch.get_rng_state(), random.getstate(), trainer.train_dataset.own.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert trainer.train_dataset.read == 0
    assert len(listener.loop.probe_batch["labels"]) == 64
    adapter.detach()


@pytest.mark.parametrize("crash", ["training_step", "compute_loss", "evaluate", "callback"])
def test_after_a_crash_callbacks_hooks_and_attributes_are_as_before(crash):
    def raises(*_, **__):
        if trainer.state.global_step == 2:
            raise KeyboardInterrupt("stop")
        return original(*_, **__)

    class Raises(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 3:
                raise KeyboardInterrupt("stop")

    arguments = {"eval_strategy": "steps", "eval_steps": 1} if crash == "evaluate" else {}
    trainer = short(arguments=arguments, eval_dataset=make_rows()[:8])
    if crash == "callback":
        trainer.add_callback(Raises())
    else:
        original = getattr(trainer, crash)
        setattr(trainer, crash, raises)
    callbacks, names = list(trainer.callback_handler.callbacks), set(vars(trainer))
    with pytest.raises(KeyboardInterrupt) as raised, watch(trainer):
        trainer.train()
    assert trainer.callback_handler.callbacks == callbacks
    assert set(vars(trainer)) - names <= {"_tr_loss", *vars(make_ended())}
    assert hooks() == 0
    assert "KeyboardInterrupt" in raised.value.ftcheck_trace.stopped


def make_ended():
    trainer = short(arguments={"max_steps": 1})
    trainer.train()
    return trainer


def hooks():
    from torch.optim import optimizer

    return len(optimizer._global_optimizer_pre_hooks) + len(optimizer._global_optimizer_post_hooks)


def test_a_watch_without_a_training_says_so_and_takes_its_callback_out():
    trainer = short()
    callbacks = list(trainer.callback_handler.callbacks)
    with watch(trainer) as w:
        pass
    assert trainer.callback_handler.callbacks == callbacks
    with pytest.raises(RuntimeError, match="no training of the Trainer began inside the with block"):
        w.trace  # noqa: B018


# ------------------------------------------------------------------ what is recorded
def test_every_step_and_loss_is_recorded_and_learning_rates_follow_the_trainers_schedule():
    trainer = make_trainer()
    trace = watched(trainer)
    assert len(trace.steps) == len(trace.losses) == STEPS
    assert trace.steps[0].lrs[0] == pytest.approx(1e-3)
    assert trace.steps[-1].lrs[0] == pytest.approx(1e-3 / STEPS)
    assert trace.optimizer.name == "AdamW"
    assert diagnose(trace).status == "healthy"


def test_losses_of_evaluations_are_no_training_losses():
    trainer = short(arguments={"eval_strategy": "steps", "eval_steps": 2}, eval_dataset=make_rows()[:32])
    trace = watched(trainer)
    assert any("eval_loss" in entry for entry in trainer.state.log_history)
    assert len(trace.losses) == len(trace.steps) == SHORT


def test_with_accumulation_each_micro_batch_is_an_iteration():
    trace = watched(short(arguments={"gradient_accumulation_steps": 3, "max_steps": 4}))
    assert (len(trace.losses), len(trace.steps)) == (12, 4)


def best_model_trainer(tmp_path, **arguments):
    settings = {
        "output_dir": str(tmp_path),
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "first",
        "greater_is_better": False,
    }
    trainer = short(
        arguments={**settings, **arguments},
        eval_dataset=make_rows()[:16],
        compute_metrics=lambda _: {"first": trainer.state.global_step},
    )
    return trainer


def test_the_trace_ends_before_the_best_model_is_loaded(tmp_path):
    trainer = best_model_trainer(tmp_path)
    trace = watched(trainer)
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert len(trace.steps) == SHORT
    assert max(t.motion.between_steps for t in trace.tensors if t.motion) == 0


def test_the_trace_ends_before_the_best_model_is_loaded_after_early_stopping(tmp_path):
    trainer = best_model_trainer(tmp_path, max_steps=20)
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=1))
    trace = watched(trainer)
    assert len(trace.steps) == 4
    assert max(t.motion.between_steps for t in trace.tensors if t.motion) == 0


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of old versions of transformers about torch.load
def test_a_training_that_resumes_is_watched_from_its_checkpoint(tmp_path):
    settings = {"output_dir": str(tmp_path), "save_strategy": "steps", "save_steps": 4}
    short(arguments={**settings, "max_steps": 8}).train()
    trainer = short(arguments={**settings, "max_steps": 8})
    with watch(trainer) as w:
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert len(w.trace.steps) == 4
    assert diagnose(w.trace).status != "unhealthy"


def checkpointing():
    names = {f.name for f in dataclasses.fields(TrainingArguments)}
    return {"activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing": True}


def by_length():
    names = {f.name for f in dataclasses.fields(TrainingArguments)}
    return {"group_by_length": True} if "group_by_length" in names else {"train_sampling_strategy": "group_by_length"}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of old versions of accelerate about autocast
@pytest.mark.parametrize(
    "arguments",
    [
        {"bf16": True},
        checkpointing(),
        {"optim": "adafactor"},
        {"neftune_noise_alpha": 0.5},
        by_length(),
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_a_healthy_training_with_a_switch_of_the_trainer_is_healthy(arguments):
    lists = [{**r, "input_ids": r["input_ids"].tolist()} for r in make_rows()]  # lengths are counted in lists
    trace = watched(make_trainer(arguments=arguments, rows=lists, collator=pad_lists))
    assert len(trace.losses) == STEPS
    found = diagnose(trace)
    assert found.status == "healthy", found


# ------------------------------------------------------------------ the probe's loss
def test_the_models_own_loss_is_read_as_such_and_the_trainers_own_is_called():
    assert not makes_own_loss(short())
    assert makes_own_loss(short(kind=SoftmaxTwice))
    assert makes_own_loss(short(arguments={"label_smoothing_factor": 0.1}))
    assert makes_own_loss(short(compute_loss_func=lambda outputs, labels, **_: F.cross_entropy(outputs.logits, labels)))


def test_the_loss_of_a_batch_is_what_training_would_compute():
    rows = make_rows()[:8]
    batch = pad(rows)

    def summed(outputs, labels, num_items_in_batch):  # fails without the number of items
        return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    counted = version.parse(transformers.__version__) >= version.parse(
        "4.50"
    )  # before, the number was given to models alone
    for given in (
        *([{"compute_loss_func": summed}] if counted else []),
        {"arguments": {"label_smoothing_factor": 0.1}},
        {"kind": SoftmaxTwice},
    ):
        trainer = short(**given)
        with quiet(trainer.model):
            loss, logits = TrainerLoss(trainer)(trainer.model, batch)
            labels = batch["labels"]
            smoothing = trainer.args.label_smoothing_factor
            z = logits.softmax(-1) if given.get("kind") else logits
            assert loss.item() == pytest.approx(F.cross_entropy(z, labels, label_smoothing=smoothing).item(), rel=1e-5)
        assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_a_compute_loss_that_cannot_be_called_beside_the_training_costs_the_probe_batch_and_nothing_else():
    class Needy(Trainer):
        def training_step(self, model, inputs, *rest):
            self.teacher = torch.zeros(())
            try:
                return super().training_step(model, inputs, *rest)
            finally:
                del self.teacher

        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            outputs = model(**inputs)
            loss = outputs.loss + self.teacher
            return (loss, outputs) if return_outputs else loss

    trace = watched(short(kind=Needy))
    assert len(trace.losses) == SHORT
    assert any("nothing was measured on rows: AttributeError" in note for note in trace.notes)


def test_rows_of_a_stream_are_left_to_the_training():
    class Stream(torch.utils.data.IterableDataset):
        def __init__(self):
            self.rows = iter(make_rows())

        def __iter__(self):
            return self.rows

    trace = watched(short(rows=Stream()))
    assert len(trace.steps) == SHORT
    assert any("the train set is a stream" in note for note in trace.notes)


def test_rows_that_do_not_make_a_batch_together_are_left_out():
    def strict(rows):
        if len(rows) != 16:
            raise ValueError("16 rows, please")
        return pad(rows)

    trace = watched(short(collator=strict))
    assert len(trace.steps) == SHORT
    assert any("16 rows, please" in note for note in trace.notes)


def test_a_probe_batch_of_the_users_goes_first():
    trace = watched(short(kind=SoftmaxTwice), probe_batch=pad(make_rows(seed=5)[:32]))
    assert trace.probe_loss.rows == 32


# ------------------------------------------------------------------ bad input
def test_what_is_a_trainer_is_told_by_what_it_is():
    class Mine(Trainer):
        pass

    assert is_trainer(short(kind=Mine))
    assert not is_trainer(make_model())
    assert not is_trainer(make_arguments())


def test_a_head_that_is_not_there_is_an_error_before_the_first_step():
    trainer = short()
    with pytest.raises(ValueError, match="nope"), watch(trainer, head="nope"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert hooks() == 0


def test_the_family_of_the_optimizer_inside_accelerates_wrapper_is_known():
    def sgd(model):
        return torch.optim.SGD(model.parameters(), lr=0.1), None

    assert watched(short(arguments={"max_steps": 1})).optimizer.family == "adam"
    assert watched(short(arguments={"max_steps": 1}, optimizers=sgd)).optimizer.family == "sgd"


def test_a_compiled_training_is_watched():
    model = make_model(n_layers=1)
    trace = watched(
        short(model=model, arguments={"max_steps": 3, "torch_compile": True, "torch_compile_backend": "eager"})
    )
    assert len(trace.steps) == len(trace.losses) == 3
    assert {t.name for t in trace.tensors} == {n for n, _ in model.named_parameters()}
