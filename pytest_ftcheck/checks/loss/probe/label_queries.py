"""Which labels count in the loss, and for which logits: each query changes labels or logits and compares gradients."""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812

from ....instruments.logit_injection import Injector
from .chosen_logits import ChosenLogits
from .targets import Targets, zero_weight_rows

#: Passes over other labels, to try every class.
CLASS_PASSES = 4
#: Labels of -100 from which on it is judged what they are read as, and the cosine of a gradient with that of cross-entropy.
IGNORED_LABELS, SAME_GRADIENT = 8, 0.999
#: So many of them are looked at, at most.
MOST_IGNORED = 64
#: Rounds in which rows without a gradient are made the only wrong ones, or the only right ones, at most.
ROUNDS = 8
#: Tags that are flipped, and tokens whose label is changed, at most.
TAGS = 8
TOKENS = 16


def uses_labels(chosen: ChosenLogits, injector: Injector) -> bool | None:
    """Whether the loss changes when all labels do; None: it cannot be computed."""
    target = chosen.target
    z = chosen.random(1.5)
    try:
        return abs(float(injector.loss(z, target.as_labels(target.wrong()))) - float(injector.loss(z))) > 0
    except Exception:  # noqa: BLE001 - the labels may be bound to something else in the batch
        return None


def ignored_as(target: Targets, draws: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[int, int, int] | None:
    """The class that labels of -100 are read as, how many of them, and of how many; None: they count for nothing.

    Cross-entropy with class c has the gradient softmax(logits) - one_hot(c). Other terms that go through the logits of a position without
    a label (an entropy, a teacher) have another one.

    :param draws: pairs of logits and the gradient that the loss had there, flat.
    """
    ignored = (~target.keep).nonzero().reshape(-1)
    if target.kind != "single" or len(ignored) < IGNORED_LABELS:
        return None
    some = ignored[:: -(-len(ignored) // MOST_IGNORED)]
    read_as = torch.full((len(draws), len(some)), -1, device="cpu")
    for i, (z, g) in enumerate(draws):
        own, expected = g[some].double(), z[some].double().softmax(-1)
        raised = own.argmin(-1)  # all other logits fall
        expected[torch.arange(len(some), device=raised.device), raised] -= 1
        same = F.cosine_similarity(expected, own, dim=-1) >= SAME_GRADIENT
        read_as[i] = torch.where(same, raised, -1).cpu()
    read = read_as[0][(read_as == read_as[0]).all(0) & (read_as[0] >= 0)]
    if not len(read):
        return None
    label = int(read.mode().values)
    return label, int((read == label).sum()), len(some)


# ------------------------------------------------------------------ rows and classes
def own_over_other(chosen: ChosenLogits, injector: Injector) -> float | None:
    """Change one row's label: how much its own gradient changes, over how much the others' do; None: theirs do not change."""
    target = chosen.target
    n = len(target.y)
    if n < 4 or not bool(target.keep.all()):
        return None
    if target.kind == "regression":
        z = chosen.near_labels()
        other = target.y + (float(target.y.std()) or 1.0)
    else:
        z = chosen.random(1.0)
        other = target.wrong()
    _, before = injector.gradient(z)
    ratios = []
    for row in (0, n // 2, n - 1):
        labels = target.y.clone()
        labels[row] = other[row]
        try:
            _, after = injector.gradient(z, target.as_labels(labels))
        except Exception:  # noqa: BLE001 - the labels may be bound to something else in the batch
            return None
        if before is None or after is None:
            return None
        change = (before - after).reshape(n, -1).abs().sum(1)
        others = float(change.sum() - change[row]) / (n - 1)
        if others > 1e-6 * float(before.abs().max()):
            ratios.append(float(change[row]) / others)
    return max(ratios) if len(ratios) == 3 else None


def ignored_rows(chosen: ChosenLogits, injector: Injector, right: torch.Tensor, wrong: torch.Tensor) -> tuple[int, ...]:
    """Rows that get no gradient: at random logits, where they alone are wrong, and where they alone are right.

    :param right, wrong: signs of the logits of a right and of a wrong answer.
    """
    target = chosen.target
    ignored = target.keep.clone()

    def without_gradient(g: torch.Tensor) -> torch.Tensor:
        return target.flat(g).reshape(len(ignored), -1).abs().amax(1) == 0

    for _ in range(2):
        _, g = injector.gradient(chosen.random(1.0))
        if g is not None:
            ignored &= without_gradient(g)
    ignored &= ~zero_weight_rows(chosen.batch, len(ignored)).to(ignored.device)
    if target.kind == "tags":
        # a softmax over tags ignores rows without any, a ranking loss rows with none or all
        ignored &= (target.y.sum(-1) > 0) & (target.y.sum(-1) < target.outputs)
    for _ in range(ROUNDS):  # a loss that picks k hard examples picks k of these in each round, or easy ones
        left = int(ignored.sum())
        these = ignored.reshape(-1, *[1] * (right.dim() - 1))
        for own, others in ((2.0 * wrong, 4.0 * right), (0.5 * right, 2.0 * wrong)):
            if not left:
                continue
            _, g = injector.gradient(torch.where(these, own, others).reshape(chosen.shape))
            if g is not None:
                ignored &= without_gradient(g)
        if int(ignored.sum()) in (0, left):
            break
    return tuple(int(i) for i in ignored.nonzero().reshape(-1))


def ignored_classes(chosen: ChosenLogits, injector: Injector) -> tuple[tuple[int, ...], int]:
    """Classes whose rows get no gradient, whatever the row; and how many classes were tried."""
    target = chosen.target
    n = int(target.keep.sum())
    per_pass = min(target.outputs, n)
    ignored: list[int] = []
    tried = min(target.outputs, per_pass * CLASS_PASSES)
    for start in range(0, tried, per_pass):
        y = target.y.clone()
        y[target.keep] = start + torch.arange(n, device=y.device) % per_pass
        y = y.clamp(max=target.outputs - 1)
        try:
            _, g = injector.gradient(chosen.random(1.0), target.as_labels(y))
        except Exception:  # noqa: BLE001 - the labels may be bound to something else in the batch
            return (), 0
        if g is None:
            return (), 0
        without_gradient = target.flat(g).reshape(len(y), -1).abs().amax(1) == 0
        for c in range(start, min(start + per_pass, target.outputs)):
            rows = target.keep & (y == c)
            if bool(rows.any()) and bool(without_gradient[rows].all()):
                ignored.append(c)
    return tuple(ignored), tried


def class_weights(chosen: ChosenLogits, injector: Injector) -> tuple[float, ...]:
    """How much a row of each class counts in the loss, relative to their mean: length of its gradient at equal logits, where the classes
    differ in nothing but their weight (also in focal and smoothed losses); empty: they differ in more than that (classes with an order),
    more classes than rows, or not measured."""
    target = chosen.target
    classes, n = (2 if target.kind == "binary" else target.outputs), int(target.keep.sum())
    if classes < 2 or classes > n:
        return ()
    y = target.y.clone()
    y[target.keep] = torch.arange(n, device=y.device) % classes
    try:
        _, g = injector.gradient(0.0 * chosen.random(1.0), target.as_labels(y))
    except Exception:  # noqa: BLE001 - the labels may be bound to something else in the batch
        return ()
    if g is None:
        return ()
    rows = target.flat(g).double().reshape(len(y), -1)
    if target.kind == "single":
        # the label's logit is raised, and all others are lowered alike
        expected = 1 / classes - F.one_hot(y.clamp(min=0), classes).double()
        same = F.cosine_similarity(rows, expected, dim=1) >= SAME_GRADIENT
        if not bool((same | (rows == 0).all(1))[target.keep].all()):
            return ()
    lengths = torch.linalg.vector_norm(rows, dim=1)
    sizes = torch.stack([lengths[target.keep & (y == c)].mean() for c in range(classes)])
    return (
        tuple((sizes / sizes.mean()).tolist()) if bool(torch.isfinite(sizes).all()) and bool((sizes > 0).any()) else ()
    )


# ------------------------------------------------------------------ tags, and labels of one logit
def ignored_values(chosen: ChosenLogits, injector: Injector) -> tuple[int, ...]:
    """Label values (0: negative, 1: positive) whose logits get no gradient anywhere, though both occur."""
    target = chosen.target
    if target.kind not in ("tags", "binary"):
        return ()
    counts = torch.zeros(target.y.shape, dtype=torch.bool, device=target.y.device)
    for z in _varied(chosen):
        _, g = injector.gradient(z)
        if g is None:
            return ()
        counts |= target.flat(g).reshape(target.y.shape) != 0
    keep = target.keep.reshape(-1, *[1] * (target.y.dim() - 1)).expand(target.y.shape)
    entries = {value: counts[keep & (target.y == value)] for value in (0, 1)}
    if any(len(e) < 2 for e in entries.values()):
        return ()
    return tuple(value for value, e in entries.items() if not bool(e.any()))


def ignored_tags(chosen: ChosenLogits, injector: Injector) -> tuple[tuple[int, ...], int]:
    """Tags whose logits get no gradient in any row; and how many tags were tried."""
    target = chosen.target
    counts = torch.zeros(target.outputs, dtype=torch.bool, device=target.y.device)
    for z in _varied(chosen):
        _, g = injector.gradient(z)
        if g is None:
            return (), 0
        counts |= (target.flat(g) != 0).any(0)
    return tuple(int(i) for i in (~counts).nonzero().reshape(-1)), target.outputs


def _varied(chosen: ChosenLogits) -> tuple[torch.Tensor, ...]:
    """Random logits, wrong ones and right ones."""
    sign = chosen.target.sign(chosen.target.y)
    return chosen.random(1.0), chosen.random(1.0), chosen.along(-sign, 2.0), chosen.along(sign, 0.5)


def unread_tags(chosen: ChosenLogits, injector: Injector) -> tuple[float | None, float | None]:
    """Share of the tags whose own gradient is not zero, and the same when they are flipped; and of those that change another tag's."""
    target = chosen.target
    z = chosen.random(1.5)
    _, g = injector.gradient(z)
    if g is None or not bool(((target.y == 0) | (target.y == 1)).all()):
        return None, None
    before = target.flat(g)
    tried = unread = crossed = 0
    for tag in range(min(target.outputs, TAGS)):
        labels = target.y.clone()
        labels[:, tag] = 1 - labels[:, tag]
        try:
            _, after = injector.gradient(z, target.as_labels(labels))
        except Exception:  # noqa: BLE001 - the labels may be bound to something else in the batch
            return None, None
        if after is None:
            return None, None
        has_gradient = before[:, tag] != 0
        changed = (target.flat(after) - before).abs() > 1e-6 * float(before.abs().max())
        not_read = has_gradient & ~changed[:, tag]
        tried += int(has_gradient.sum())
        unread += int(not_read.sum())
        crossed += int((not_read & changed.any(1)).sum())
    return (unread / tried, crossed / tried) if tried else (None, None)


# ------------------------------------------------------------------ tokens
def own_tokens(chosen: ChosenLogits, injector: Injector) -> float | None:
    """Share of tokens whose label changes the gradient of its own token's logits, or of the one before, twice as much as any other's.

    The one before: labels of causal language models are shifted by one.
    """
    target = chosen.target
    if target.kind != "single" or len(target.shape) != 3 or target.labels.shape != target.shape[:2]:
        return None
    counted = target.keep.nonzero().reshape(-1).tolist()
    tokens = counted[:: max(1, len(counted) // TOKENS)][:TOKENS]
    z = chosen.random(1.5)
    _, before = injector.gradient(z)
    own = tried = 0
    for token in tokens:
        labels = target.y.clone()
        labels[token] = (labels[token] + 1) % target.outputs
        try:
            _, after = injector.gradient(z, target.as_labels(labels))
        except Exception:  # noqa: BLE001 - the labels may be bound to something else in the batch
            return None
        if before is None or after is None:
            return None
        change = (target.flat(before) - target.flat(after)).abs().sum(1)
        if not bool(change.any()):
            continue
        tried += 1
        expected = [token, token - 1] if token % target.shape[1] else [token]
        largest = float(change[expected].max())
        change[expected] = 0
        own += largest >= 2 * float(change.max())
    return own / tried if tried >= 3 else None
