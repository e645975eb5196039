"""Whether a loss reads labels as numbers of classes, or only compares them with each other; and whether outputs are its logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .global_state import seed_everything
from .model_outputs import logits_in, put_logits
from .tasks import IGNORED
from .undisturbed import quiet

#: Cosine with the gradient of the standard loss from which outputs are its logits. Class weights and label smoothing leave more; the
#: gradient of a loss of distances has one of about 1 / sqrt(outputs * rows).
LEAST_COSINE = 0.8
#: Relative difference of two losses up to which they are the same: some roundings in float32, which are not always the same even for the
#: same call, as kernels go by where memory begins; and the one from which they are others: a row of 64 that changes its class moves more.
SAME, OTHER = 1e-6, 1e-4


def compares_only(loss: Callable[[torch.Tensor], Any], labels: torch.Tensor, classes: int) -> bool:
    """Whether a loss is the same, but for roundings, when all classes are renumbered, and another one when two classes become one.

    So it is in metric learning: a pair of rows has the same label or not, and no output stands for a class. A loss of logits changes when
    classes are renumbered, and one that reads no labels at all does not change at all.

    :param loss: the loss of one batch with these labels; random states are seeded before each call.
    :param classes: labels are 0 to ``classes - 1``, or -100 for those to leave out.

    >>> z, y = torch.eye(4, 8), torch.tensor([0, 1, 0, 1])
    >>> def of_pairs(y): return ((z[:, None] - z).pow(2).sum(-1) * (y[:, None] == y)).mean()
    >>> def of_logits(y): return torch.nn.functional.cross_entropy(z, y)
    >>> compares_only(of_pairs, y, 8), compares_only(of_logits, y, 8), compares_only(lambda y: z.sum(), y, 8)
    (True, False, False)
    """
    first, again, renumbered = _value(loss, labels), _value(loss, labels), _value(loss, _renumbered(labels, classes))
    if first is None or not (_apart(first, again) <= SAME and _apart(first, renumbered) <= SAME):
        return False
    return any(_apart(first, _value(loss, other)) >= OTHER for other in _merged(labels))


def reads_no_labels(loss: Callable[[torch.Tensor], Any], labels: torch.Tensor, classes: int) -> bool:
    """Whether a loss is the same, but for roundings, whatever the labels are: renumbered, and with two classes made one.

    :param loss, classes: as for `compares_only`.

    >>> z, y = torch.eye(4, 8), torch.tensor([0, 1, 0, 1])
    >>> reads_no_labels(lambda y: z.sum(), y, 8), reads_no_labels(lambda y: nn.functional.cross_entropy(z, y), y, 8)
    (True, False)
    """
    first, others = _value(loss, labels), (_renumbered(labels, classes), *_merged(labels))
    # one class alone says little: all rows of it may have the same loss in another
    return first is not None and len(others) > 1 and all(_apart(first, _value(loss, y)) <= SAME for y in others)


def relates_outputs(model: nn.Module, loss: Callable[[], torch.Tensor]) -> bool:
    """Whether a loss relates outputs of the model to each other: it calls the model several times, or the gradient of a row's output
    depends on another row's.

    So it is in self-supervised learning: two views of a row, and the other rows beside them. A loss of targets takes each row alone.

    :param loss: calls the model.

    >>> model, x = nn.Linear(4, 3), torch.randn(8, 4)
    >>> def own_predictions(): return nn.functional.cross_entropy(model(x), model.forward(x).argmax(-1))
    >>> relates_outputs(model, own_predictions), relates_outputs(model, lambda: (model(x) @ model(x).T).logsumexp(-1).mean())
    (False, True)
    """
    first, again, other = (_gradient_of_outputs(model, loss, shift) for shift in (0.0, 0.0, 1.0))
    if first is None or again is None or other is None:
        return False
    if len(first) > 1:
        return True
    rest, same, moved = (g[0][1:] for g in (first, again, other))
    size = float(rest.abs().max()) if rest.numel() else 0.0
    if not size or float((rest - same).abs().max()) > SAME * size:  # no gradient, or it differs from call to call
        return False
    return float((rest - moved).abs().max()) >= OTHER * size


def _gradient_of_outputs(model: nn.Module, loss: Callable[[], torch.Tensor], shift: float) -> list[torch.Tensor] | None:
    """The gradient at the output of each call of the model, the first row's moved by ``shift`` times their size; None: there is none."""
    outputs: list[torch.Tensor] = []

    def move(_model: nn.Module, _args: Any, output: Any) -> Any:
        z = logits_in(output)
        if z is None:
            return None
        noise = torch.zeros_like(z)
        draws = torch.randn(z[:1].shape, generator=torch.Generator().manual_seed(0), device="cpu")
        noise[:1] = shift * z.detach().float().pow(2).mean().sqrt() * draws.to(z.device)
        outputs.append(z + noise)
        return put_logits(output, outputs[-1])

    hook = model.register_forward_hook(move)
    try:
        with quiet(model, grad=True):
            seed_everything(0)
            value = loss()
            live = [z for z in outputs if z.requires_grad]
            found = torch.autograd.grad(value, live, allow_unused=True)
    except Exception:  # noqa: BLE001 - the user's loss
        return None
    finally:
        hook.remove()
    # a call without gradients is one of them: a target that a second view is compared with
    known = [torch.zeros_like(z) if g is None else g.detach().float() for z, g in zip(live, found, strict=True)]
    return known + [torch.zeros(0, device="cpu")] * (len(outputs) - len(known)) or None


def trains_logits(
    model: nn.Module, loss: Callable[[], torch.Tensor], reference: Callable[[torch.Tensor], torch.Tensor]
) -> bool:
    """Whether the gradient of a loss at the model's outputs is that of the standard loss of logits: the outputs are no embeddings.

    :param loss: calls the model.  :param reference: the standard loss of its outputs and the labels.

    >>> model, x, y = nn.Linear(4, 3), torch.randn(8, 4), torch.arange(8) % 3
    >>> def of_logits(z): return nn.functional.cross_entropy(z, y)
    >>> trains_logits(model, lambda: of_logits(model(x)), of_logits)
    True
    >>> trains_logits(model, lambda: torch.cdist(model(x), model(x)).mean(), of_logits)
    False
    """
    outputs: list[torch.Tensor | None] = []
    hook = model.register_forward_hook(lambda _model, _args, output: outputs.append(logits_in(output)))
    try:
        with quiet(model, grad=True):
            value = loss()
            found = [z for z in outputs if z is not None and z.requires_grad]
            if len(found) != 1:  # two texts of a pair
                return False
            of_loss: torch.Tensor | None = torch.autograd.grad(value, found, allow_unused=True)[0]
            chosen = found[0].detach().requires_grad_()
            of_reference = torch.autograd.grad(reference(chosen), chosen)[0]
    except Exception:  # noqa: BLE001 - the user's loss, or one that labels and outputs do not fit
        return False
    finally:
        hook.remove()
    if of_loss is None:
        return False
    return bool(nn.functional.cosine_similarity(of_loss.flatten(), of_reference.flatten(), dim=0) >= LEAST_COSINE)


def _apart(first: float, other: float | None) -> float:
    """The relative difference; NaN, which is neither small nor large, where one of them is not a finite number."""
    if other is None or not (math.isfinite(first) and math.isfinite(other)):
        return math.nan
    return abs(first - other) / max(abs(first), abs(other), 1e-30)


def _value(loss: Callable[[torch.Tensor], Any], labels: torch.Tensor) -> float | None:
    """The loss; None: it cannot be computed for these labels."""
    seed_everything(0)
    try:
        value = loss(labels)
        return float(
            value.detach() if isinstance(value, torch.Tensor) else value
        )  # else torch warns, which may be an error
    except Exception:  # noqa: BLE001 - the user's loss, given labels that are not the batch's, may raise anything
        return None


def _renumbered(labels: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.where(labels == IGNORED, labels, (labels + 1) % classes)


def _merged(labels: torch.Tensor) -> Iterator[torch.Tensor]:
    """The labels with two classes made one: for one row, and for all rows."""
    present = torch.unique(labels[labels != IGNORED])
    if len(present) < 2:
        return
    kept, other = present[0], present[1]
    of_other = (labels == other).nonzero()[0]
    one = labels.clone()
    one[tuple(of_other)] = kept
    yield one
    yield torch.where(labels == other, kept, labels)
