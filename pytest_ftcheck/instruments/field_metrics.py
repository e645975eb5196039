"""Metrics of single fields, of the logits and labels of all evaluated rows: entity F1, perplexity, exact match."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from ..core.formatting import text_of
from ..core.observations import Metric
from .tasks import IGNORED

#: Of each class, whether it is in an entity, whether it begins one, whether it ends one, and the number of its type.
EntityScheme = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
#: ``(logits, labels) -> float``.
Score = Callable[[torch.Tensor, torch.Tensor], float]
_NAME = re.compile(r"([BIES])-(.+)")


def measure_field(
    scores: Mapping[str, Score],
    lower_is_better: Collection[str],
    logits: tuple[torch.Tensor, torch.Tensor],
    labels: torch.Tensor,
    source: str,
) -> tuple[Metric, ...]:
    """The metrics of a field before and after the run, reported as they are: without a baseline, and without permutations of the labels.

    Labels of tokens are no sample of independent labels, so that a permutation of them shows no chance.

    :param logits: before and after, ``(rows, ...)``.  :param labels: ``(rows, ...)``, those that do not count are -100.
    :raises ValueError: a score cannot be computed.
    """
    first, last = logits
    rows = int((labels != IGNORED).reshape(len(labels), -1).any(1).sum())
    found = []
    for name, score in scores.items() if rows else ():
        try:
            before, after = float(score(first, labels)), float(score(last, labels))
        except Exception as error:
            shapes = f"logits {tuple(last.shape)} and labels {tuple(labels.shape)}"
            raise ValueError(f"{name} of {shapes} raised {type(error).__name__}: {text_of(error)}") from error
        found.append(Metric(name, before, after, rows, source, lower_is_better=name in lower_is_better))
    return tuple(found)


def perplexity(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Exponential of the mean cross-entropy in nats, of all labels that count.

    >>> round(perplexity(torch.zeros(1, 2, 50), torch.tensor([[7, -100]])), 3)
    50.0
    """
    mean = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long(), ignore_index=IGNORED)
    try:
        return math.exp(float(mean))
    except OverflowError:
        return math.inf


def exact_match(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of rows of which every label that counts is predicted; rows without one are left out.

    >>> exact_match(torch.eye(3)[None].repeat(2, 1, 1), torch.tensor([[0, 1, 2], [0, 2, -100]]))
    0.5
    """
    right, counts = logits.argmax(-1) == labels, labels != IGNORED
    rows = counts.any(1)
    return float((right | ~counts).all(1)[rows].float().mean())


def entity_scheme(names: Mapping[int, str]) -> EntityScheme | None:
    """How classes mark entities, by their names: ``B-PER``, ``I-PER``, ``E-PER``, ``S-PER``, ``O``; None: their names are others.

    >>> entity_scheme({0: "LABEL_0", 1: "LABEL_1"}) is None
    True
    """
    if not names or sorted(names) != list(range(len(names))):
        return None
    found = [_NAME.fullmatch(names[i]) for i in range(len(names))]
    if not all(match or names[i] == "O" for i, match in enumerate(found)):
        return None
    if not any(match and match[1] in "BI" for match in found):
        return None
    types = sorted({match[2] for match in found if match})
    parts = [match[1] if match else "O" for match in found]
    numbers = [types.index(match[2]) if match else -1 for match in found]
    inside, begins, ends = (np.isin(parts, list(which)) for which in ("BIES", "BS", "ES"))
    return inside, begins, ends, np.array(numbers)


def entities(classes: Sequence[int] | np.ndarray, scheme: EntityScheme) -> set[tuple[int, int, int]]:
    """``(type, first, last)`` of each entity in a sequence of classes.

    As in conlleval (Tjong Kim Sang and Buchholz 2000) and in seqeval's default mode, an entity is a run of one type. It ends before a ``B``
    or an ``S`` and behind an ``E`` or an ``S``; it may begin with an ``I`` or an ``E``.

    >>> scheme = entity_scheme({0: "O", 1: "B-PER", 2: "I-PER"})
    >>> sorted(entities([1, 2, 0, 2, 1], scheme))
    [(0, 0, 1), (0, 3, 3), (0, 4, 4)]
    """
    codes = np.asarray(classes)
    inside, begins, ends, types = (table[codes] for table in scheme)
    before = np.concatenate([[-1], types[:-1]])
    starts = inside & (begins | (types != before) | np.concatenate([[True], ends[:-1]]))
    stops = inside & np.concatenate([starts[1:] | ~inside[1:], [True]])
    firsts, lasts = np.flatnonzero(starts), np.flatnonzero(stops)
    return set(zip(types[firsts].tolist(), firsts.tolist(), lasts.tolist(), strict=True))


def entity_f1(logits: torch.Tensor, labels: torch.Tensor, scheme: EntityScheme) -> float:
    """F1 of the entities of all rows together (micro average): type, first and last token have to be right; 0 where there is none.

    Tokens labelled -100 are left out of their rows first, as is the custom of tokenizers that split words.

    :param logits: ``(rows, tokens, classes)``.  :param labels: ``(rows, tokens)``.

    >>> scheme = entity_scheme({0: "O", 1: "B-PER", 2: "I-PER"})
    >>> truth = torch.tensor([[1, 2, -100, 0], [0, 1, 0, 1]])
    >>> guess = torch.tensor([[1, 2, 0, 0], [0, 1, 2, 0]])
    >>> round(entity_f1(torch.eye(3)[guess], truth, scheme), 3)
    0.4
    """
    right = guessed = there = 0
    for guess, truth in zip(logits.argmax(-1).numpy(), labels.numpy(), strict=True):
        counts = truth != IGNORED
        if not counts.any():
            continue
        found, actual = entities(guess[counts], scheme), entities(truth[counts], scheme)
        right, guessed, there = right + len(found & actual), guessed + len(found), there + len(actual)
    return 2 * right / (guessed + there) if guessed + there else 0.0
