"""Silent errors that TrainCheck's authors reproduced, in our own words, where one process can show them while it trains.

Not here: losses of data between devices and ranks (pytorch-84803, -96600, -104336, baichuan2-86, deepspeed-1801, -5794,
x-jxmnop-ddp-out-of-sync), which need several; errors of generating text or of preparing images (transformers-23723, -34204); those that
change only speed or precision (transformers-17877, lightning-thunder-725). Layers that should be frozen and are not (mmpretrain-702) are
the clean run, where nothing is declared.
"""

from __future__ import annotations

import torch

from .task import Fault, Run, copied

PAPER = "https://arxiv.org/abs/2506.14813 (section 5.1)"
FAULTS: list[Fault] = []


def _error(name: str, where: str, story: str, *cause: str):
    def kept(apply):
        FAULTS.append(Fault("TrainCheck", name, story, f"{where}, {PAPER}", apply, cause))
        return apply

    return kept


@_error(
    "pytorch-forum-84911",
    "https://discuss.pytorch.org/t/obtaining-abnormal-changes-in-loss-and-accuracy/84911",
    "everything but the norms is frozen, the new head too",
    "frozen",
)
def all_but_norms_frozen(run: Run) -> None:
    for name, p in run.model.named_parameters():
        p.requires_grad_("LayerNorm" in name)


@_error(
    "stackoverflow-60335387",
    "https://stackoverflow.com/questions/60335387/pytorch-mnist-example-not-converge",
    "zero_grad() is missing",
    "grads_never_zeroed",
)
def never_zeroed(run: Run) -> None:
    run.zero_grad = False


@_error(
    "pytorch-115607",
    "https://github.com/pytorch/pytorch/issues/115607",
    "after the third step the compiled optimizer step does nothing any more",
    "steps_stop",
    "updates_stop",
)
def updates_stop(run: Run) -> None:
    run.stuck_from = 3


@_error(
    "pytorch-51800",
    "https://github.com/pytorch/pytorch/issues/51800",
    "the head has a spectral norm and is evaluated before the first forward pass in training mode",
    "evaluation",
    "head",
)
def spectral_norm_evaluated_first(run: Run) -> None:
    torch.nn.utils.spectral_norm(run.model.classifier)


@_error(
    "transformers-33844",
    "https://github.com/huggingface/transformers/pull/33844",
    "the attention's dropout stays on in evaluation mode",
    "random_in_evaluation",
    "base_altered",
)
def dropout_in_evaluation(run: Run) -> None:
    for layer in run.model.bert.encoder.layer:
        attention = layer.attention.self
        attention.register_forward_pre_hook(lambda module, _: setattr(module, "training", True))
        attention.register_forward_hook(lambda module, *_: setattr(module, "training", run.model.training))


@_error(
    "stackoverflow-67180955",
    "https://github.com/pytorch/pytorch/pull/56488",
    "every worker draws the same augmentation: the same tenth of the positions is hidden in every batch",
    "inputs",
    "seed",
)
def same_augmentation(run: Run) -> None:
    run.batches = copied(run.batches)
    for batch in run.batches:
        hidden = torch.rand(64, generator=torch.Generator().manual_seed(run.seed)) < 0.1
        hidden[0] = False
        ids = batch["input_ids"]
        ids[:, hidden[: ids.shape[1]]] = torch.where(
            batch["attention_mask"][:, hidden[: ids.shape[1]]].bool(), 1, ids[:, hidden[: ids.shape[1]]]
        )
