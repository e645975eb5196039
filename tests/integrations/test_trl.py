"""TRL's ``SFTTrainer``: a loss, a collator and bookkeeping of its own; judged in each way, healthy and with its loss negated."""

from __future__ import annotations

import tempfile

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pytest_ftcheck import FtcheckCallback, diagnose, finetune, watch

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytestmark = [pytest.mark.trains, pytest.mark.filterwarnings("ignore::FutureWarning")]  # of TRL's own settings

WORDS = [f"w{i}" for i in range(40)]
SPECIAL = ["<pad>", "<eos>", "<unk>"]


def tokenizer():
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def texts(count=256):
    """Rows that count up by three, from a word that is drawn: each word but the first can be predicted."""
    drawn = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(count):
        first, length = (int(torch.randint(*of, (), generator=drawn)) for of in ((0, 40), (4, 12)))
        rows.append({"text": " ".join(WORDS[(first + 3 * i) % 40] for i in range(length))})
    return datasets.Dataset.from_list(rows)


class Negated(trl.SFTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        return (-loss, outputs) if return_outputs else -loss


def make_trainer(kind=trl.SFTTrainer, **more):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(SPECIAL) + len(WORDS), **sizes, **special))
    settings = {"output_dir": tempfile.mkdtemp(), "max_steps": 20, "per_device_train_batch_size": 16}
    settings |= {"learning_rate": 3e-3, "report_to": [], "save_strategy": "no", "logging_strategy": "no"}
    settings |= {"use_cpu": True, "bf16": False, "disable_tqdm": True, "max_length": 32, **more}
    return kind(model, args=trl.SFTConfig(**settings), train_dataset=texts(), processing_class=tokenizer())


def by_watch(of, **given):
    trainer = make_trainer(**given)
    with watch(of(trainer)) as w:
        trainer.train()
    return w.trace


def by_callback(**given):
    callback = FtcheckCallback()
    trainer = make_trainer(**given)
    trainer.add_callback(callback)
    trainer.train()
    return callback.trace


WAYS = {
    "watch(model)": lambda **given: by_watch(lambda trainer: trainer.model, **given),
    "watch(trainer)": lambda **given: by_watch(lambda trainer: trainer, **given),
    "callback": by_callback,
    "finetune": lambda **given: finetune(lambda: make_trainer(**given), steps=20),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_healthy_one_is_silent(way):
    found = diagnose(WAYS[way]())
    assert found.status in ("healthy", *["undecided"] * (way == "watch(model)")), found
    assert not found.causes


@pytest.mark.parametrize(
    "more", [{"packing": True}, {"gradient_accumulation_steps": 2}], ids=["packing", "accumulation"]
)
def test_habits_of_trl_are_silent(more):
    found = diagnose(WAYS["watch(trainer)"](**more))
    assert not found.causes, found


@pytest.mark.parametrize("way", ["watch(trainer)", "callback", "finetune"])
def test_a_negated_loss_is_the_first_cause(way):
    found = diagnose(WAYS[way](kind=Negated))
    assert found.causes[0].fault == "loss_negated", found


def test_whoever_knows_the_model_alone_cannot_tell_the_sign_of_trls_loss_and_does_not_pass_it():
    """It is computed without the losses of torch."""
    found = diagnose(WAYS["watch(model)"](kind=Negated))
    assert next(v for v in found.verdicts if v.check == "loss_decreases").status != "pass"
    assert next(v for v in found.verdicts if v.check == "loss_matches_task").status == "skipped"
