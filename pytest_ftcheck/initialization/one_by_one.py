"""Heads trained one after the other by torch's own modules and optimizers: the reference, and the way for heads that cannot be batched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..core.formatting import named_error
from ..core.recipe import OPTIMIZERS
from ..instruments.global_state import GlobalState, preserved_globals, seed_everything
from ..instruments.inference import InferenceMode
from ..instruments.undo import Undo
from .batched_heads import DEAD_BELOW, losses_of
from .features import Features
from .jobs import Job, Plan, Run, judged_rows, order_of, rms, std
from .layers import template_of

Call = Callable[[nn.Module, torch.Tensor], Any]


def train_one_by_one(head: nn.Module, features: Features, jobs: Sequence[Job], plan: Plan) -> Iterator[Run]:
    """The runs of the jobs, in their order; global random states and switches as before after each."""
    call = _call_of(head, features)
    for job in jobs:
        yield Undo(GlobalState()).after(partial(_run, head, call, features, job, plan))


def _run(head: nn.Module, call: Call, features: Features, job: Job, plan: Plan) -> Run:
    with InferenceMode(False), torch.enable_grad():
        seed_everything(job.seed)
        made = template_of(head)
        if job.scheme is not None:
            job.scheme.apply(made, seed=job.seed)
        return _train(made, call, features, job, plan)


def _call_of(head: nn.Module, features: Features) -> Call:
    """How the head takes ``[rows, width]``: as it is, or as the one token of a sequence.

    :raises ValueError: neither way.
    """
    x, errors = features.x[:2], []
    with preserved_globals(), torch.no_grad():
        made = template_of(head).eval()
        for call in (_plain, _as_token):
            try:
                out = call(made, x)
            except Exception as error:  # noqa: BLE001 - whatever the user's forward raises, the other way is tried
                errors.append(named_error(error, 160))
                continue
            if isinstance(out, torch.Tensor) and out.dim() in (1, 2) and len(out) == len(x):
                return call
            errors.append(f"it returned {type(out).__name__} {tuple(getattr(out, 'shape', ()))}")
    raise ValueError(
        f"head: a {type(head).__name__} gives no logits [rows, outputs] for features of shape {tuple(x.shape)}: {errors[0]}"
    )


def _plain(head: nn.Module, x: torch.Tensor) -> Any:
    return head(x)


def _as_token(head: nn.Module, x: torch.Tensor) -> Any:
    return head(x[:, None])


def _train(head: nn.Module, call: Call, features: Features, job: Job, plan: Plan) -> Run:
    recipe = plan.recipe
    x, y = features.x, features.y
    judged_x, judged_y = judged_rows(*features.judged[:2])
    parameters = [p for p in head.parameters() if p.requires_grad]
    kind = getattr(torch.optim, OPTIMIZERS[recipe.optimizer])
    extra = {"momentum": plan.momentum} if plan.momentum else {}
    optimizer = kind(parameters, lr=job.lr, weight_decay=recipe.weight_decay, **extra)
    ran = dict.fromkeys(m for m, _ in _linear_inputs(head, call, judged_x[:2]))
    matrices: list[torch.Tensor] = [m.weight for m in ran or _linear(head)]  # type: ignore[misc]
    started = [m.detach().clone() for m in matrices]

    def loss_of(rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return losses_of(features.task, logits_by_output(call(head, rows)), labels_by_output(labels))[0]

    def quiet_loss(rows: torch.Tensor, labels: torch.Tensor) -> float:
        modes = [(m, m.training) for m in head.modules()]
        head.eval()
        with torch.no_grad():
            value = float(loss_of(rows, labels))
        for module, mode in modes:
            module.training = mode
        return value

    def logits() -> torch.Tensor:
        head.eval()
        with torch.no_grad():
            out: torch.Tensor = call(head, judged_x).detach().clone()
        head.train()
        return out.reshape(len(out), -1)

    first_logits = logits()
    first = quiet_loss(judged_x, judged_y)
    losses, descents, norm = [], [], float("nan")
    evaluated = set(plan.evaluated_steps)
    for step, rows in enumerate(order_of(len(x), plan.batch_size, recipe.steps, job.seed)):
        rows = rows.to(x.device)
        bx, by = x[rows], y[rows]
        before = quiet_loss(bx, by) if step in evaluated else 0.0
        for group in optimizer.param_groups:
            group["lr"] = job.lr * recipe.lr_factor(step)
        optimizer.zero_grad()
        loss = loss_of(bx, by)
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.max_grad_norm is not None:
            total = nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
        elif step == 0:
            total = torch.linalg.vector_norm(
                torch.stack([torch.linalg.vector_norm(p.grad) for p in parameters if p.grad is not None])
            )
        if step == 0:
            norm = float(total)
        optimizer.step()
        losses.append(float(loss.detach()))
        if step in evaluated:
            descents.append((step, before, quiet_loss(bx, by)))
    last_logits, last = logits(), quiet_loss(judged_x, judged_y)
    dead = [units for _, units in _linear_inputs(head, call, judged_x)[1:]]
    finite = all(torch.isfinite(torch.tensor(losses))) and all(bool(torch.isfinite(p).all()) for p in head.parameters())
    return Run(
        losses=tuple(losses),
        first=first,
        last=last,
        descents=tuple(descents),
        grad_norm=norm,
        std_first=std(started[0]) if started else 0.0,
        std_last=std(started[-1]) if started else 0.0,
        moved_first=rms(matrices[0].detach() - started[0]) if started else 0.0,
        moved_last=rms(matrices[-1].detach() - started[-1]) if started else 0.0,
        dead=float(torch.cat(dead).double().mean()) if dead else None,
        finite=bool(finite and torch.isfinite(last_logits).all()),
        logits_first=first_logits.cpu(),
        logits_last=last_logits.cpu(),
    )


def logits_by_output(logits: torch.Tensor) -> torch.Tensor:
    """``[rows, outputs]`` as one head's ``[1, outputs, rows]``."""
    return logits.reshape(len(logits), -1).t()[None]


def labels_by_output(labels: torch.Tensor) -> torch.Tensor:
    """Labels in the layout of logits of shape ``[outputs, rows]``."""
    return labels.t() if labels.dim() == 2 else labels


def _linear_inputs(head: nn.Module, call: Call, x: torch.Tensor) -> list[tuple[nn.Module, torch.Tensor]]:
    """The linear layers in the order in which they run (a module may list them in another), and ``[units]``: which inputs are dead."""
    ran: list[tuple[nn.Module, torch.Tensor]] = []

    def note_dead(layer: nn.Module, given: Any) -> None:
        ran.append((layer, given[0].reshape(-1, given[0].shape[-1]).abs().amax(0) <= DEAD_BELOW))

    handles = [m.register_forward_pre_hook(note_dead) for m in _linear(head)]
    try:
        with torch.no_grad():
            call(head.eval(), x)
    finally:
        head.train()
        for handle in handles:
            handle.remove()
    return ran


def _linear(head: nn.Module) -> list[nn.Module]:
    return [m for m in head.modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
