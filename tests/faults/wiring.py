"""Wiring: which tensors learn, and in whose hands they are."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .cases import Classifier, Run, adamw, bert, cross_entropy, fault, standard_step, textual, two_layers

COVERS = ("optimizer_covers_model", "weights_move")
OPTIM = "PyTorch docs: torch.optim (constructing it)"


@fault(
    "wiring",
    "The optimizer is built over the encoder alone; the new head is in no group",
    "github.com/UKPLab/sentence-transformers/issues/2872 (the classifier is not in the optimizer)",
    COVERS,
    ("in no parameter group", "not_in_optimizer"),
    shows=lambda s: s.still("head") and s.most("encoder") > 0,
)
def head_left_out_of_optimizer(seed: int) -> Run:
    return textual(seed, optimizer=lambda m: adamw(m.encoder))


@fault(
    "wiring",
    "The optimizer is built, then the model is deep-copied and the copy is trained",
    OPTIM + "; github.com/namisan/mt-dnn/pull/40 (parameters after a move are other objects)",
    COVERS,
    ("optimizer", "copy", "stale"),
    shows=lambda s: s.still(""),
)
def optimizer_of_the_original(seed: int) -> Run:
    run = textual(seed)
    run.model = copy.deepcopy(run.model)
    return run


@fault(
    "wiring",
    "The head's own group has learning rate 0: the config's head_lr was never filled in",
    OPTIM + " (per-parameter options)",
    ("optimizer_covers_model", "optimizer_settings", "weights_move"),
    ("learning rate", "rate of 0", "lr"),
    shows=lambda s: s.still("head"),
)
def head_group_rate_zero(seed: int) -> Run:
    return textual(
        seed,
        optimizer=lambda m: adamw([{"params": m.encoder.parameters()}, {"params": m.head.parameters(), "lr": 0.0}]),
    )


@fault(
    "wiring",
    "The head's group has learning rate 2e-9 for 2e-3: it moves, by nothing that matters",
    "DeepCrime (Humbatova, Jahangirova, Tonella, ISSTA 2021), operator 'change learning rate'; " + OPTIM,
    ("optimizer_covers_model", "optimizer_settings", "weights_move", "lr_sensible"),
    ("learning rate", "rate", "lr"),
    shows=lambda s: s.still("head", 1e-6),
)
def head_group_rate_negligible(seed: int) -> Run:
    return textual(
        seed,
        optimizer=lambda m: adamw([{"params": m.encoder.parameters()}, {"params": m.head.parameters(), "lr": 2e-9}]),
    )


@fault(
    "wiring",
    "Groups are made in a loop over range(1, layers): the first layer and the embeddings are in none",
    "github.com/webis-de/small-text/issues/36 (is the head left out of the layer-wise groups?)",
    COVERS,
    ("in no parameter group", "not_in_optimizer"),
    shows=lambda s: s.still("layer.0.") and s.still("embeddings") and s.most("layer.1.") > 0,
)
def first_layers_in_no_group(seed: int) -> Run:
    def groups(m: Any) -> Any:
        layers = m.encoder.encoder.layer
        return adamw(
            [{"params": layers[i].parameters()} for i in range(1, len(layers))] + [{"params": m.head.parameters()}]
        )

    return textual(seed, optimizer=groups)


class ListedLayers(Classifier):
    """The head's hidden layers stand in a plain list, so that Module does not know them."""

    def __init__(self) -> None:
        super().__init__(head=nn.Linear(32, 3))
        self.hidden = [nn.Linear(32, 32), nn.Linear(32, 32)]

    def pool(self, hidden, attention_mask):
        x = super().pool(hidden, attention_mask)
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return x


@fault(
    "wiring",
    "Two hidden layers are kept in a Python list: they are no parameters, are not trained and not saved",
    "github.com/pytorch/pytorch/issues/666 and /715 (parameters contained in lists)",
    ("optimizer_covers_model", "reload_keeps_head"),
    ("not registered", "list", "unregistered", "no parameter", "outside_the_model"),
)
def layers_in_a_list(seed: int) -> Run:
    return textual(seed, ListedLayers)


class PlainTensor(Classifier):
    """The output layer's weight is a tensor with requires_grad=True, not an nn.Parameter."""

    def __init__(self) -> None:
        super().__init__(head=nn.Linear(32, 32))
        self.output = (torch.randn(3, 32) * 0.1).requires_grad_(True)

    def forward(self, input_ids, attention_mask):
        hidden = super().forward(input_ids, attention_mask)
        return F.linear(torch.relu(hidden), self.output)


@fault(
    "wiring",
    "The output layer is a plain tensor with requires_grad=True: the optimizer never sees it",
    "PyTorch docs: torch.nn.parameter.Parameter (what makes a tensor a module's parameter)",
    ("optimizer_covers_model", "reload_keeps_head"),
    ("not registered", "unregistered", "no parameter", "outside_the_model"),
)
def plain_tensor_for_a_parameter(seed: int) -> Run:
    return textual(seed, PlainTensor)


class Described(Classifier):
    """Each class is described by the embeddings of its words; these are meant to be the encoder's own, tied."""

    def __init__(self, tie: bool) -> None:
        super().__init__(head=nn.Linear(32, 32))
        self.words = nn.Embedding(160, 32)
        if tie:
            self.words.weight = self.encoder.embeddings.word_embeddings.weight
        else:
            self.words.weight.data = self.encoder.embeddings.word_embeddings.weight.data.clone()

    def forward(self, input_ids, attention_mask):
        hidden = super().forward(input_ids, attention_mask)
        kinds = torch.stack([self.words(torch.arange(20 + 10 * c, 30 + 10 * c)).mean(0) for c in range(3)])
        return hidden @ kinds.T * 3


TIED = {"tied": (("words.weight", "encoder.embeddings.word_embeddings.weight"),)}


@fault(
    "wiring",
    "The class embeddings are meant to be the encoder's own; '.data = ... .clone()' made a copy, the two drift apart",
    "PyTorch docs: torch.nn.Module (parameters are shared by assigning the Parameter); arXiv:1608.05859 (weight tying)",
    ("optimizer_covers_model",),
    ("tied", "one tensor", "untied"),
    shows=lambda s: s.changed["words.weight"] != s.changed["encoder.embeddings.word_embeddings.weight"],
)
def tied_by_copying(seed: int) -> Run:
    return textual(seed, lambda: Described(tie=False), beliefs=TIED)


@fault(
    "wiring",
    "Special tokens are added and the embedding matrix is replaced by a larger one after the optimizer was built",
    "github.com/huggingface/transformers/pull/3532 (resize before the optimizer is made)",
    COVERS,
    ("in no parameter group", "not_in_optimizer", "replaced", "stale_optimizer"),
    shows=lambda s: s.still("word_embeddings"),
)
def embeddings_grown_after_optimizer(seed: int) -> Run:
    run = textual(seed)
    old = run.model.encoder.get_input_embeddings()
    new = nn.Embedding(168, 32, padding_idx=0)
    with torch.no_grad():
        new.weight[:160] = old.weight
    run.model.encoder.set_input_embeddings(new)
    return run


@fault(
    "wiring",
    "The optimizer is made anew inside the loop: Adam forgets its moments at every step",
    "arXiv:1910.11015 (taxonomy of real faults: wrong optimisation function, training process); " + OPTIM,
    ("optimizer_settings", "optimizer_covers_model"),
    ("rebuilt", "anew", "every step", "state"),
)
def optimizer_made_every_step(seed: int) -> Run:
    body = standard_step()

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        return body(model, batch, adamw(model), scheduler)

    return textual(seed, step=step)


@fault(
    "wiring",
    "All parameters are in two optimizers, and both take a step on each batch",
    OPTIM + "; the pattern of one optimizer for each part, with the wrong parameters",
    ("optimizer_covers_model", "optimizer_settings", "weights_kept", "grads_match_reference"),
    ("two optimizers", "twice", "another optimizer", "more than one"),
)
def one_model_two_optimizers(seed: int) -> Run:
    second: list[Any] = []

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        if not second:
            second.append(torch.optim.SGD(model.parameters(), lr=0.05))
        optimizer.zero_grad()
        loss = cross_entropy(model, batch)
        loss.backward()
        optimizer.step()
        second[0].step()
        return loss.item()

    return textual(seed, step=step)


@fault(
    "wiring",
    "Gradual unfreezing asks for names that start with 'bert.encoder'; here they start with 'encoder', so none thaws",
    "arXiv:1801.06146 (gradual unfreezing); names change with the wrapper",
    COVERS,
    ("frozen", "thaw", "requires_grad"),
    shows=lambda s: s.still("encoder"),
)
def base_never_thaws(seed: int) -> Run:
    count = [0]
    body = standard_step()

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        if count[0] == 10:
            for name, p in model.named_parameters():
                if name.startswith("bert.encoder"):
                    p.requires_grad_(True)
        count[0] += 1
        return body(model, batch, optimizer, scheduler)

    run = textual(seed, step=step, beliefs={"thaw_step": 10})
    run.model.encoder.requires_grad_(False)
    return run


@fault(
    "wiring",
    "The base is thawed after ten steps, but the optimizer was given only what required gradients at the start",
    "PyTorch docs: torch.optim.Optimizer.add_param_group ('useful when fine tuning a pre-trained network as frozen "
    "layers can be made trainable')",
    COVERS,
    ("in no parameter group", "not_in_optimizer"),
    shows=lambda s: s.still("encoder"),
)
def thawed_outside_the_optimizer(seed: int) -> Run:
    count = [0]
    body = standard_step()

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        if count[0] == 10:
            model.encoder.requires_grad_(True)
        count[0] += 1
        return body(model, batch, optimizer, scheduler)

    def optimizer(m: Any) -> Any:
        m.encoder.requires_grad_(False)
        return adamw([p for p in m.parameters() if p.requires_grad])

    return textual(seed, step=step, optimizer=optimizer, beliefs={"thaw_step": 10})


@fault(
    "wiring",
    "'model.encoder.requires_grad = False' sets an attribute of the module and freezes nothing",
    "PyTorch docs: torch.nn.Module.requires_grad_ (the method; the attribute means nothing)",
    ("frozen_stay_frozen",),
    ("freeze_without_effect",),
    shows=lambda s: s.most("encoder") > 1e-3,
)
def requires_grad_set_on_the_module(seed: int) -> Run:
    run = textual(seed, beliefs={"trained": None})
    run.model.encoder.requires_grad = False
    return run


@fault(
    "wiring",
    "encoder.eval() is taken for freezing: the encoder trains on",
    "PyTorch docs: Autograd mechanics ('Evaluation Mode (nn.Module.eval())' has nothing to do with gradients)",
    ("frozen_stay_frozen",),
    ("frozen", "freeze", "not_frozen"),
    shows=lambda s: s.most("encoder") > 1e-3,
)
def eval_taken_for_freezing(seed: int) -> Run:
    run = textual(seed, beliefs={"frozen": "encoder"})
    run.model.encoder.eval()
    return run


class Normed(nn.Module):
    """An embedding with batch normalisation, as a pretrained base of the convolutional kind has it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(160, 32)
        self.norm = nn.BatchNorm1d(32)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(-1).float()
        return self.norm((self.words(input_ids) * mask).sum(1) / mask.sum(1) * 3 + 2)


class OnNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Normed()
        self.head = two_layers(32, 3)

    def forward(self, input_ids, attention_mask):
        return self.head(self.encoder(input_ids, attention_mask))


@fault(
    "wiring",
    "The frozen base is left in train mode: its batch-norm statistics drift away from the checkpoint's",
    "PyTorch docs: torch.nn.BatchNorm1d (running statistics are updated in train mode); "
    "keras.io guide 'Transfer learning & fine-tuning' (the same trap)",
    ("frozen_stay_frozen",),
    ("buffer", "running", "statistics"),
)
def frozen_base_keeps_counting(seed: int) -> Run:
    run = textual(seed, OnNormed, beliefs={"frozen": "encoder"})
    run.model.encoder.requires_grad_(False)
    return run


@fault(
    "wiring",
    "The learning rate goes to the encoder in one group, the head is appended to a list that is not passed on",
    "arXiv:2006.05987 (layer-wise rates in BERT fine-tuning); a slip in building the list of groups",
    COVERS,
    ("in no parameter group", "not_in_optimizer"),
    shows=lambda s: s.still("head.3"),
)
def last_group_is_lost(seed: int) -> Run:
    def groups(m: Any) -> Any:
        parts = [m.encoder, m.head[0], m.head[3]]
        return adamw([{"params": p.parameters()} for p in parts[:-1]])

    return textual(seed, lambda: Classifier(encoder=bert(layers=1)), optimizer=groups)


def unfrozen(prefix: str) -> Any:
    """Everything is frozen but the names with this prefix, on a zero output layer."""

    def model() -> nn.Module:
        net = Classifier()
        nn.init.zeros_(net.head[3].weight)
        nn.init.zeros_(net.head[3].bias)
        for name, p in net.named_parameters():
            p.requires_grad_(name.startswith(prefix))
        return net

    return model


@fault(
    "wiring",
    "Base and head are frozen, and only names that start with 'head.0' are unfrozen; the output layer, at zero, is not",
    "PyTorch tutorials: transfer learning (requires_grad by name); arXiv:1901.09321 (a zero output layer is fine if it learns)",
    ("loss_decreases", "weights_move", "grads_nonzero"),
    ("head_partly_frozen",),
    shows=lambda s: s.still("head.3") and s.still("", 1e-3),  # weight decay alone
)
def prefix_unfreezes_half_the_head(seed: int) -> Run:
    return textual(
        seed,
        unfrozen("head.0"),
        optimizer=lambda m: adamw([p for p in m.parameters() if p.requires_grad]),
        beliefs={"trained": None},
    )
