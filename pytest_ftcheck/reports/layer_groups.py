"""Groups of tensors, and the peculiarities of one: for the rows of tables and charts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING

from ..core.formatting import shorten

if TYPE_CHECKING:
    from ..core.observations import Tensor


def block_names(names: Sequence[str]) -> list[str]:
    """The block of each name: its path up to the first number, else one level below what all of them share.

    >>> block_names(["base.emb.word.weight", "base.emb.pos.weight", "base.layer.0.q.weight"])
    ['base.emb', 'base.emb', 'base.layer.0']
    """
    paths = [n.split(".")[:-1] for n in names]
    shared = _shared_levels(paths)
    blocks = []
    for name, path in zip(names, paths, strict=True):
        numeric = next((i for i, part in enumerate(path) if part.isdigit()), None)
        blocks.append(".".join(path[: shared + 1 if numeric is None else numeric + 1]) or name)
    return blocks


def _shared_levels(paths: Sequence[Sequence[str]]) -> int:
    """How many modules, from the outermost in, all paths have in common."""
    return sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False)))


def blocks(tensors: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Tensors by block, in the order of the model.

    >>> from pytest_ftcheck import example_trace
    >>> {name: len(members) for name, members in blocks(example_trace().select("base")).items()}
    {'base_model.layer.0': 2}
    """
    found: dict[str, list[Tensor]] = {}
    for name, t in zip(block_names([t.name for t in tensors]), tensors, strict=True):
        found.setdefault(name, []).append(t)
    return found


def modules(tensors: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Tensors by the module that owns them, in the order of the model.

    >>> from pytest_ftcheck import example_trace
    >>> {name: len(members) for name, members in modules(example_trace().select("head")).items()}
    {'classifier': 2}
    """
    found: dict[str, list[Tensor]] = {}
    for t in tensors:
        found.setdefault(t.name.rpartition(".")[0] or t.name, []).append(t)
    return found


def bunched(groups: Mapping[str, Sequence[Tensor]], most: int) -> dict[str, list[Tensor]]:
    """Neighbours merged until there are ``most`` groups, as even as possible.

    >>> list(bunched({"layer.0": [], "layer.1": [], "layer.2": [], "layer.3": []}, 2))
    ['layer.0 to layer.1', 'layer.2 to layer.3']
    """
    names = list(groups)
    if len(names) <= most:
        return {name: list(members) for name, members in groups.items()}
    cuts = [round(i * len(names) / most) for i in range(most + 1)]
    found = {}
    for start, end in pairwise(cuts):
        part = names[start:end]
        label = part[0] if len(part) == 1 else f"{part[0]} to {part[-1]}"
        found[label] = [t for name in part for t in groups[name]]
    return found


def labelled(groups: Mapping[str, Sequence[Tensor]]) -> dict[str, Sequence[Tensor]]:
    """The same groups under the names that charts show (`labels`)."""
    return dict(zip(labels(list(groups)), groups.values(), strict=True))


def labels(names: Sequence[str], width: int = 40) -> list[str]:
    """Names for charts: distinct, without the modules that all share, at most ``width`` characters.

    >>> labels(["bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1"])
    ['embeddings', 'encoder.layer.0', 'encoder.layer.1']
    >>> labels(["model.classifier.0", "model.classifier.3"])
    ['classifier.0', 'classifier.3']
    """
    paths = [name.split(".") for name in names]
    shared = _shared_levels([path[:-1] for path in paths])
    # a number alone is no name
    while shared and any(path[shared].isdigit() for path in paths):
        shared -= 1
    found: list[str] = []
    for path in paths:
        short = "".join(c if c.isprintable() else "?" for c in ".".join(path[shared if len(paths) > 1 else 0 :]))
        label, number = shorten(short, width), 2
        while label in found:
            mark = f" ({number})"
            label, number = shorten(short, width - len(mark)) + mark, number + 1
        found.append(label)
    return found


def kinds(t: Tensor) -> Iterable[str]:
    """The peculiarities of a tensor, in words that can be counted.

    >>> from pytest_ftcheck import example_trace
    >>> list(kinds(example_trace().tensors[0]))
    []
    """
    gradients, motion = t.gradients, t.motion
    if not t.trainable:
        yield "frozen"
    elif t.group is None:
        yield "in no parameter group"
    if t.replaced:
        yield "replaced during the run"
    if t.trainable and gradients.steps > 0:
        if gradients.none == gradients.steps:
            yield "never got a gradient"
        elif gradients.none + gradients.zero == gradients.steps:
            yield "gradient always zero"
        elif motion.share_changed == 0:
            yield "did not move"
    if gradients.nonfinite:
        yield "NaN or infinite gradient"
    if t.first.nonfinite or t.last.nonfinite:
        yield "NaN or infinite values"
    if motion.between_steps > 0:
        yield "changed outside the optimizer"
