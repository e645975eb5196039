"""What is left of an experiment in the base, in the head or in the data; faults that a run may learn in spite of."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from .cases import (
    Classifier,
    Run,
    WordVectors,
    adamw,
    control,
    cross_entropy,
    cue,
    fault,
    filler,
    pack,
    reviews,
    shuffled,
    tag_loss,
    textual,
)
from .controls_tasks import adapted, lora_config

LONG = 60


# ------------------------------------------------------------------------------------------ the base
def hooked(seed: int, hook: Any, **more: Any) -> Run:
    """A hook on the first layer of the base, which somebody forgot to remove."""

    def build() -> nn.Module:
        net = Classifier()
        net.encoder.encoder.layer[0].register_forward_hook(hook)
        return net

    return textual(seed, build, **more)


@fault(
    "gradient flow",
    "A hook of an ablation study sets the first layer's output to zero, and was never removed",
    "PyTorch docs: Module.register_forward_hook (handle.remove())",
    ("base_computes_its_class", "grads_nonzero", "output_depends_on_input"),
    ("base_altered", "input", "words", "graph_cut"),
    shows=lambda s: s.after < 0.6,
)
def ablation_hook_left_behind(seed: int) -> Run:
    def zero(_module: Any, _args: Any, out: Any) -> Any:
        return (out[0] * 0, *out[1:]) if isinstance(out, tuple) else out * 0

    return hooked(seed, zero)


@fault(
    "gradient flow",
    "A hook that looks for outliers scales the first layer's output by a half, and was never removed",
    "PyTorch docs: Module.register_forward_hook (handle.remove())",
    ("base_computes_its_class",),
    ("base_altered",),
    advised=True,
)
def scaling_hook_left_behind(seed: int) -> Run:
    return hooked(seed, lambda _m, _a, out: (out[0] / 2, *out[1:]) if isinstance(out, tuple) else out / 2)


@control("loop", "A hook that only looks at the first layer's output", "PyTorch docs: Module.register_forward_hook")
def hook_that_looks(seed: int) -> Run:
    seen: list[float] = []

    def look(_module: Any, _args: Any, out: Any) -> None:
        seen[:] = [float((out[0] if isinstance(out, tuple) else out).detach().abs().max())]

    return hooked(seed, look)


# ------------------------------------------------------------------------------------------ state, and dropout
class Stateful(nn.Module):
    """A GRU that begins each batch where the last one ended, or with zeros in evaluation."""

    def __init__(self, in_evaluation: bool) -> None:
        super().__init__()
        self.encoder, self.mix, self.head = WordVectors(), nn.GRU(32, 32, batch_first=True), nn.Linear(32, 3)
        self.in_evaluation, self.state = in_evaluation, None

    def forward(self, input_ids, attention_mask):
        words = self.encoder(input_ids, attention_mask)[0]
        keeps = self.training or self.in_evaluation
        start = self.state if keeps and self.state is not None and self.state.shape[1] == len(words) else None
        hidden, state = self.mix(words, start)
        if keeps:
            self.state = state.detach()
        real = attention_mask.unsqueeze(-1)
        return self.head((hidden * real).sum(1) / real.sum(1))


def stateful(seed: int, in_evaluation: bool) -> Run:
    return textual(
        seed,
        lambda: Stateful(in_evaluation),
        optimizer=lambda m: adamw(m, lr=1e-2),
        beliefs={"peak_lr": 1e-2, "dropout": False},
    )


@fault(
    "mode",
    "The recurrent state is kept from one evaluation batch to the next: a row's answer depends on the rows before",
    "PyTorch tutorials: language models detach the hidden state, and reset it for evaluation",
    ("eval_deterministic",),
    ("state_carried",),
)
def state_kept_in_evaluation(seed: int) -> Run:
    return stateful(seed, True)


@control(
    "loop",
    "A recurrent state is carried from batch to batch in training, and starts at zero in evaluation",
    "truncated BPTT",
)
def state_kept_in_training(seed: int) -> Run:
    return stateful(seed, False)


class Dropped(Classifier):
    def forward(self, input_ids, attention_mask):
        return nn.functional.dropout(super().forward(input_ids, attention_mask), 0.3, self.training)


@fault(
    "mode",
    "Dropout follows the last layer: in training a third of the logits are zero",
    "arXiv:1207.0580 (dropout of hidden units)",
    ("dropout_active",),
    ("dropout_on_logits",),
    advised=True,
)
def dropout_behind_the_last_layer(seed: int) -> Run:
    return textual(seed, Dropped, steps=LONG)


# ------------------------------------------------------------------------------------------ rows
@fault(
    "data",
    "The file was read twice and concatenated: every row is there twice",
    "arXiv:2107.06499 (deduplicating training data)",
    ("batches_sound",),
    ("rows_repeated",),
    advised=True,
)
def file_read_twice(seed: int) -> Run:
    def rows(s: int, n: int) -> Any:
        return shuffled(torch.Generator().manual_seed(s), reviews(s, n // 2) * 2)

    return textual(seed, rows=rows)


@fault(
    "data",
    "Classes are numbered from 1, and num_labels counts them with the 0: one output is never a label",
    "transformers docs: id2label; labels from 1 to n",
    ("batches_sound",),
    ("output_never_a_label",),
    advised=True,
)
def classes_numbered_from_one(seed: int) -> Run:
    run = textual(seed, lambda: Classifier(4), evaluate=lambda m: 0.0, count=40)
    for b in [*run.batches, *run.eval_batches]:
        b["labels"] = b["labels"] + 1
    run.evaluate = None
    return run


@fault(
    "data",
    "97 of 100 rows are of one class, in batches of eight, and nothing makes up for it",
    "arXiv:1710.05381 (class imbalance)",
    ("batches_sound",),
    ("classes_imbalanced",),
    advised=True,
)
def rare_class_left_alone(seed: int) -> Run:
    return textual(
        seed, lambda: Classifier(2), rows=lambda s, n: reviews(s, n, 2, [0.96, 0.04]), size=8, count=60, steps=LONG
    )


@control("task", "Rare tags: each is on in one row of twenty", "PyTorch docs: torch.nn.BCEWithLogitsLoss", slow=True)
def rare_tags(seed: int) -> Run:
    def rows(s: int, n: int) -> Any:
        g = torch.Generator().manual_seed(s)
        made: list[Any] = []
        for _ in range(n):
            on = (torch.rand(3, generator=g) < 0.05).float()
            words = [cue(g, t) for t in range(3) if on[t] for _ in range(3)]
            made.append((shuffled(g, words + filler(g, 5)), on))
        return made

    return textual(seed, rows=rows, loss_fn=tag_loss, steps=80, beliefs={"task": "multi_label", "total_steps": 80})


@control(
    "data",
    "Each row is seen five times within an epoch, and the loader shuffles",
    "PyTorch docs: RandomSampler(replacement=True)",
)
def drawn_with_replacement(seed: int) -> Run:
    run = textual(seed)
    made, g = reviews(100 + seed, 128), torch.Generator().manual_seed(seed)
    sampler = torch.utils.data.RandomSampler(made, replacement=True, num_samples=640, generator=g)
    run.batches = DataLoader(made, batch_size=16, sampler=sampler, collate_fn=pack)
    return run


# ------------------------------------------------------------------------------------------ the library peft
@fault(
    "peft",
    "LoraConfig without task_type: the new classification head stays frozen at its random values",
    "peft docs: modules_to_save, TaskType.SEQ_CLS",
    ("logits_unbounded", "optimizer_covers_model", "weights_move"),
    ("head_left_random",),
)
def adapter_without_a_task_type(seed: int) -> Run:
    return adapted(seed, lora_config(task_type=None))


@fault(
    "peft",
    "lora_alpha=0: the adapters are multiplied by nothing",
    "arXiv:2106.09685 (alpha / r)",
    ("grads_nonzero", "weights_move"),
    ("gradient", "adapter", "zero"),
)
def adapters_scaled_to_nothing(seed: int) -> Run:
    return adapted(seed, lora_config(lora_alpha=0))


# ------------------------------------------------------------------------------------------ accumulation
def uneven(seed: int, short: int) -> Run:
    """Two micro-batches a step, one of 16 rows and one of ``short``, whose means are averaged."""
    count = [0]

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        count[0] += 1
        loss = cross_entropy(model, batch)
        (loss / 2).backward()
        if count[0] % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    run = textual(seed, step=step, steps=LONG, beliefs={"accumulation": 2, "total_steps": LONG // 2})
    run.batches = [{k: v[:short] for k, v in b.items()} if i % 2 else b for i, b in enumerate(run.batches)]
    return run


@fault(
    "accumulation",
    "Micro-batches of 16 and of 2 rows are averaged as if they were equal: the rows of the short one count eight times as much",
    "huggingface.co/blog/gradient_accumulation",
    ("loss_scale",),
    ("uneven_micro_batches_averaged",),
)
def uneven_micro_batches(seed: int) -> Run:
    return uneven(seed, 2)


@control("loop", "Micro-batches of 16 and of 12 rows are averaged", "huggingface.co/blog/gradient_accumulation")
def nearly_even_micro_batches(seed: int) -> Run:
    return uneven(seed, 12)


@control(
    "numerics", "All weights in bfloat16, at a rate whose steps are above the spacing", "PyTorch docs: torch.bfloat16"
)
def weights_in_bfloat16(seed: int) -> Run:
    return textual(seed, lambda: Classifier().to(torch.bfloat16))


# ------------------------------------------------------------------------------------------ what is read, and what is saved
@fault(
    "data",
    "The tokenizer has more words than the model's table; ids beyond its end are clamped to the last one",
    "transformers docs: resize_token_embeddings",
    ("batches_sound",),
    ("ids_clamped",),
)
def ids_clamped_to_the_table(seed: int) -> Run:
    run = textual(seed)
    for b in [*run.batches, *run.eval_batches]:
        b["input_ids"] = torch.where(b["input_ids"] >= 40, 159, b["input_ids"])
    return run


@fault(
    "inputs",
    "A head on the first position of a causal model: that token has seen none of the words behind it",
    "transformers docs: GPT2ForSequenceClassification (it reads the last token)",
    ("output_depends_on_input",),
    ("pools_first_token_of_causal_model",),
    shows=lambda s: s.after < 0.6,
)
def first_token_of_a_causal_model(seed: int) -> Run:
    from .tasks import gpt2

    class First(Classifier):
        def pool(self, hidden, attention_mask):
            return hidden[:, 0]

    return textual(seed, lambda: First(encoder=gpt2().transformer), beliefs={"dropout": None})


@fault(
    "head",
    "BatchNorm in the head, and batches of two rows",
    "PyTorch docs: torch.nn.BatchNorm1d (drop_last)",
    ("batches_sound", "loss_stable"),
    ("batchnorm_on_few", "batchnorm_tiny_batch"),
)
def batch_norm_over_two_rows(seed: int) -> Run:
    def head() -> nn.Module:
        return nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))

    return textual(seed, lambda: Classifier(head=head()), size=2, count=40)


class Keyless(Classifier):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {k: v for k, v in super().state_dict(*args, **kwargs).items() if not k.startswith("head.3")}


@fault(
    "head",
    "state_dict() leaves out the output layer: the saved model answers at random",
    "transformers docs: _keys_to_ignore_on_save",
    ("reload_keeps_head",),
    ("not_saved",),
)
def output_layer_not_saved(seed: int) -> Run:
    return textual(seed, Keyless)
