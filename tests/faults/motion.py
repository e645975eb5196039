"""Motion: weights that are written over, put back, rounded away, or moved by something that is not the loss."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from .cases import Classifier, Run, adamw, cross_entropy, fault, standard_step, textual

KEPT = ("weights_kept", "weights_move")


@fault(
    "motion",
    "After each evaluation the 'best' weights are loaded; the comparison is the wrong way round, so best is the start",
    "github.com/baal-org/baal/pull/110 (load_state_dict of the initial weights leaves no change); "
    "PyTorch docs: Saving and Loading Models (state_dict holds references, keep a deepcopy)",
    KEPT,
    ("overwritten", "restored", "reset", "put back", "initial", "weights_overwritten"),
    shows=lambda s: s.most("") < 0.03,
)
def best_checkpoint_is_the_first(seed: int) -> Run:
    state: dict[str, Any] = {"count": 0}
    body = standard_step()

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        if state["count"] == 0:
            state["best"] = copy.deepcopy(model.state_dict())
        value = body(model, batch, optimizer, scheduler)
        state["count"] += 1
        if state["count"] % 8 == 0:
            model.load_state_dict(state["best"])
        return value

    return textual(seed, step=step)


@fault(
    "motion",
    "The weights are averaged with the pretrained ones after every step instead of once at the end",
    "arXiv:2109.01903 (WiSE-FT: weights are interpolated after fine-tuning)",
    KEPT,
    ("overwritten", "averag", "reset", "written", "weights_overwritten"),
    shows=lambda s: s.most("") < 0.02,
)
def averaged_with_the_start(seed: int) -> Run:
    start: dict[str, Any] = {}
    body = standard_step()

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        if not start:
            start.update({n: p.detach().clone() for n, p in model.named_parameters()})
        value = body(model, batch, optimizer, scheduler)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.lerp_(start[name], 0.5)
        return value

    return textual(seed, step=step)


@fault(
    "motion",
    "Weights are rounded to a grid of 1/16 in place after every step: each update is smaller than half a grid cell",
    "arXiv:1511.00363 (BinaryConnect: updates go to real-valued weights, or they are lost)",
    KEPT,
    ("rounded", "overwritten", "reset", "written", "weights_overwritten"),
)
def quantised_in_place(seed: int) -> Run:
    body = standard_step()

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        value = body(model, batch, optimizer, scheduler)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.round(p * 16) / 16)
        return value

    return textual(seed, step=step)


@fault(
    "motion",
    "The max-norm constraint on the output layer has its limit in the wrong unit: 1e-3 instead of 3",
    "Srivastava et al., JMLR 2014 (dropout with max-norm, typical limits 3 to 4)",
    ("weights_kept", "loss_decreases", "logits_unbounded", "weights_move", "grads_nonzero"),
    ("overwritten", "norm", "constraint", "written", "weights_overwritten"),
)
def max_norm_crushes_the_head(seed: int) -> Run:
    body = standard_step()

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        value = body(model, batch, optimizer, scheduler)
        with torch.no_grad():
            for layer in (model.head[0], model.head[3]):
                layer.weight.mul_((1e-3 / layer.weight.norm()).clamp(max=1))
        return value

    return textual(seed, step=step)


@fault(
    "motion",
    "The weight of the task loss starts at 0 and is never raised; only weight decay moves the parameters",
    "arXiv:1711.05101 (decoupled weight decay acts without any gradient)",
    ("weights_move", "grads_nonzero", "loss_matches_task", "initial_loss", "grads_match_reference"),
    ("zero", "decay", "gradient", "loss_ignores_logits"),
    shows=lambda s: s.after <= s.before + 0.1,
)
def task_weight_zero(seed: int) -> Run:
    return textual(
        seed, loss_fn=lambda m, b: 0.0 * cross_entropy(m, b), optimizer=lambda m: adamw(m, weight_decay=0.1),
        beliefs={"weight_decay": 0.1},
    )  # fmt: skip


def _checkpoint(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """What the checkpoint file holds: a base unlike the one that construction gave."""
    g = torch.Generator().manual_seed(1000 + seed)
    return {
        f"encoder.{n}": (p.detach() if p.dim() < 2 else torch.randn(p.shape, generator=g) * 0.05)
        for n, p in model.encoder.named_parameters()
    }


@fault(
    "motion",
    "model.apply(init) comes after the checkpoint was loaded, and draws the whole base anew",
    "github.com/huggingface/transformers/issues/46620 (loaded weights re-initialised, without a warning)",
    ("pretrained_kept",),
    ("re-initialised", "reinitialised", "initialis", "pretrained", "checkpoint"),
)
def base_drawn_anew_after_loading(seed: int) -> Run:
    run = textual(seed)
    kept = _checkpoint(run.model, seed)
    run.model.load_state_dict(kept, strict=False)

    def init(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.05)

    run.model.apply(init)
    run.intent = _with(run, pretrained=kept)
    return run


@fault(
    "motion",
    "load_state_dict(strict=False) of a checkpoint whose names begin with 'module.': nothing fits, nothing is loaded",
    "PyTorch docs: Module.load_state_dict (strict=False returns missing and unexpected keys); "
    "discuss.pytorch.org 'missing keys & unexpected keys in state_dict' after DataParallel",
    ("pretrained_kept",),
    ("not loaded", "pretrained", "checkpoint", "initialis"),
)
def checkpoint_names_do_not_fit(seed: int) -> Run:
    run = textual(seed)
    kept = _checkpoint(run.model, seed)
    run.model.load_state_dict({f"module.{n}": t for n, t in kept.items()}, strict=False)
    run.intent = _with(run, pretrained=kept)
    return run


@fault(
    "motion",
    "Layers are loaded under numbers that start at 1 instead of 0: layer 1 gets layer 0's weights, layer 0 stays random",
    "conversion scripts between checkpoint formats; github.com/huggingface/transformers/issues/35437 (missing weights)",
    ("pretrained_kept",),
    ("not loaded", "pretrained", "checkpoint", "layer"),
)
def layers_loaded_one_too_high(seed: int) -> Run:
    run = textual(seed)
    kept = _checkpoint(run.model, seed)
    moved = {n.replace("layer.0.", "layer.1."): t for n, t in kept.items() if "layer.1." not in n}
    run.model.load_state_dict(moved, strict=False)
    run.intent = _with(run, pretrained=kept)
    return run


def _with(run: Run, **fields: Any) -> Any:
    import dataclasses

    assert run.intent is not None
    return dataclasses.replace(run.intent, **fields)


@fault(
    "motion",
    "The trainer trains one replica and evaluates another; every 5 steps the replica is copied over the trained one",
    "arXiv:1703.01780 (mean teacher) with teacher and student swapped in the copy",
    KEPT,
    ("overwritten", "reset", "written", "copied", "weights_overwritten"),
    shows=lambda s: s.most("") < 0.02,
)
def teacher_copied_over_student(seed: int) -> Run:
    state: dict[str, Any] = {"count": 0}
    body = standard_step()

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        if state["count"] == 0:
            state["teacher"] = [p.detach().clone() for p in model.parameters()]
        value = body(model, batch, optimizer, scheduler)
        state["count"] += 1
        if state["count"] % 5 == 0:
            with torch.no_grad():
                for p, t in zip(model.parameters(), state["teacher"], strict=True):
                    p.copy_(t)
        return value

    return textual(seed, step=step)


@fault(
    "motion",
    "Spectral clipping divides the first hidden layer by its norm squared after every step: what is learnt is scaled away",
    "arXiv:1802.05957 (spectral normalisation divides by the norm, and outside the parameter)",
    ("weights_kept", "weights_move", "units_alive", "loss_decreases"),
    ("overwritten", "written", "norm", "weights_reset", "weights_overwritten"),
)
def normalised_twice(seed: int) -> Run:
    body = standard_step()

    def step(model: Any, batch: Any, optimizer: Any, scheduler: Any) -> Any:
        value = body(model, batch, optimizer, scheduler)
        with torch.no_grad():
            weight = model.head[0].weight
            weight.div_((weight.norm() * 8) ** 2)
        return value

    return textual(seed, lambda: Classifier(), step=step)
