"""Look at the batches themselves: labels, tokens, repetition, overlap, dependence; and at the user's metric beside references."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import nn

from ....instruments.batches import row_count, split, take_rows, to_device
from ....instruments.probe import Probe, ProbeContext, allowance, tokens_of
from ....instruments.row_hashes import MOST_ROWS, RowReader, Rows
from ....instruments.snapshots import quiet
from ..record import Data, Leak, Normalised, Order, Overlap, Tokens
from .label_dependence import measure_dependence
from .metric import Scoring

#: Batches looked at, at most.
MOST_BATCHES = 256
#: Share of the budget of all probes that the held-out rows may take, for the user's metric beside references.
SHARE = 0.25
#: A leak is exact in at least this many rows, and in this many of each class.
LEAK_ROWS, LEAK_EACH = 64, 5
#: Rows from which a batch should hold more than one input.
LARGE = 4
#: Rows of a batch at which a batch normalisation is worth a look.
FEW = 3


class DataProbe(Probe):
    """Look at the batches themselves: labels, tokens, repetition, overlap, dependence."""

    name = "data"
    order = 10

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self.reader = RowReader(context.model, context.intent.pad_token_id)
        self.rows = Rows()
        self.complete = context.batches.list is not None
        self.normalised: tuple[Normalised, ...] = ()
        first = split(context.probe[0])[0] if context.probe else None
        per_batch = row_count(first) or 1
        self.scoring: Scoring | None = None
        if context.evaluate is not None and context.held_out:
            held = sum(row_count(split(b)[0]) or 1 for b in context.held_out)
            most = SHARE * allowance(context.model, per_batch, tokens_of(context.probe[0]), max(1, context.steps))
            if 2 * held <= most:
                self.scoring = Scoring(context.model, context.reader, context.held_out, held)
        self._norms = [m for m in context.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._few = bool(self._norms) and per_batch <= FEW

    def cost(self) -> float:
        """The held-out rows, before and after, if the user's metric is to be compared; a few rows for a batch normalisation."""
        return (2.0 * self.scoring.rows if self.scoring is not None else 0.0) + (FEW if self._few else 0)

    def before(self) -> None:
        """A list is read at once; of the model's outputs on held-out rows a first look is taken."""
        if self.complete:
            for batch in self.context.batches.known[:MOST_BATCHES]:
                self._add(batch)
        if self.scoring is not None:
            self.scoring.look()

    def iteration(self, number: int, batch: Any) -> None:
        """A stream is read as it comes."""
        if number == 0 and self._few:
            self.normalised = self._normalised(batch)
        if not self.complete and number < MOST_BATCHES:
            self._add(batch)

    def after(self) -> None:
        """Another look at the held-out rows."""
        if self.scoring is not None and self.context.evaluated is not None:
            self.scoring.look()

    def record(self) -> Data | None:
        """What was measured."""
        rows, task, classes = self.rows, self.context.reader.task, self.context.reader.classes
        source = "all batches" if self.complete else "the batches trained on"
        if not self.complete and not len(rows):  # a watched loop, or one that ended at once
            for batch in self.context.probe:
                self._add(batch)
            source = "the probe batch"
        elif self.complete and not self.context.steps:
            source = "the probe batch"
        if not len(rows):
            raise ValueError("no batch could be read as rows of inputs with labels")
        target = rows.target()
        keys = rows.keys()
        held = self._held_out()
        single = target if task == "single_label" and target is not None and target.ndim == 1 else None
        dependence, untested = measure_dependence(rows, task)
        distinct, contradictory, ceiling = _collisions(keys, single)
        flat = target.astype(np.float64).reshape(-1) if target is not None else np.zeros(0)
        ignored = int((flat == -100).sum()) if task == "single_label" else 0
        counted = flat[np.isfinite(flat) & ((flat != -100) | (task != "single_label"))]
        held_target = held.target() if held is not None else None
        groups = _grouped(keys, rows.batch)
        sizes = [len(b) for b in groups]
        return Data(
            rows=len(rows),
            batches=rows.batches,
            source=source,
            counts=_counts(target, task),
            classes=classes,
            nonfinite_labels=int((~np.isfinite(flat)).sum()),
            ignored_labels=ignored,
            labels=len(flat),
            nonfinite_inputs=rows.nonfinite,
            nonfinite_where=rows.nonfinite_where,
            constant=bool(len(counted)) and bool((counted == counted[0]).all()),
            held_out_counts=_counts(held_target, task) if held_target is not None else None,
            distinct=distinct,
            contradictory=contradictory,
            ceiling=ceiling,
            large_batches=sum(n >= LARGE for n in sizes),
            uniform_batches=sum(n >= LARGE and len(set(b)) == 1 for n, b in zip(sizes, groups, strict=True)),
            different_batches=len({tuple(sorted(b)) for b in groups}) if keys else None,
            length=_length(self.context.batches.source),
            order=_order(single, np.array(rows.batch)) if single is not None else None,
            tokens=_tokens(rows, self.reader.vocabulary, self.reader.pad),
            dependence=dependence,
            untested=untested,
            leaks=_leaks(rows, single),
            overlap=self._overlap(held, keys),
            evaluation=self.scoring.record(self.context.evaluated) if self.scoring is not None else None,
            normalised=self.normalised,
        )

    def _add(self, batch: Any) -> None:
        if len(self.rows) < MOST_ROWS:
            self.reader.read(batch, self.rows)

    def _held_out(self) -> Rows | None:
        if not self.context.held_out:
            return None
        rows = Rows()
        for batch in self.context.held_out[:MOST_BATCHES]:
            if len(rows) < MOST_ROWS:
                self.reader.read(batch, rows)
        return rows if len(rows) else None

    def _overlap(self, held: Rows | None, keys: list[bytes]) -> Overlap | None:
        if held is None or not keys or not (theirs := held.keys()):
            return None
        known = Counter(keys)
        lengths = held.lengths()
        trained = {id(b) for b in self.context.batches.known}
        return Overlap(
            rows=len(theirs),
            shared=sum(k in known for k in theirs),
            by_chance=sum(known[k] > 1 for k in keys) / len(keys),
            same_objects=all(id(b) in trained for b in self.context.held_out or ()),
            median_length=float(np.median(lengths)),
        )

    def _normalised(self, batch: Any) -> tuple[Normalised, ...]:
        """How many values each batch normalisation in training mode has for one channel of this batch."""
        count = row_count(split(batch)[0]) or 1
        names = {id(m): n for n, m in self.context.model.named_modules()}
        training = [m for m in self._norms if m.training]
        if not training or count > FEW:
            return ()
        found: dict[str, int] = {}

        def note(module: nn.Module, args: Any) -> None:
            if args and isinstance(args[0], torch.Tensor) and args[0].dim() >= 2:
                found[names[id(module)]] = args[0].numel() // max(1, args[0].shape[1])

        handles = [m.register_forward_pre_hook(note) for m in training]
        try:
            with quiet(self.context.model):
                self.context.reader.loss(to_device(take_rows(batch, range(count)), self.context.device))
        finally:
            for handle in handles:
                handle.remove()
        return tuple(Normalised(name, values) for name, values in found.items())


def _counts(target: np.ndarray | None, task: str | None) -> tuple[int, ...]:
    if target is None or not target.size:
        return ()
    if task == "multi_label" and target.ndim == 2:
        return tuple(int(v) for v in (target > 0.5).sum(0))
    if task != "single_label":
        return ()
    flat = target.reshape(-1).astype(np.int64)
    flat = flat[flat >= 0]
    return tuple(int(v) for v in np.bincount(flat)) if len(flat) and flat.max() < 10_000 else ()


def _grouped(keys: list[bytes], batch: list[int]) -> list[list[bytes]]:
    groups: dict[int, list[bytes]] = {}
    for key, number in zip(keys, batch, strict=bool(keys)):
        groups.setdefault(number, []).append(key)
    return list(groups.values())


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:
        return None


def _collisions(keys: list[bytes], labels: np.ndarray | None) -> tuple[int | None, int, float | None]:
    """Different inputs; rows whose input also has another label; the best accuracy that the inputs allow."""
    if not keys:
        return None, 0, None
    if labels is None or len(labels) != len(keys):
        return len(set(keys)), 0, None
    seen: dict[bytes, Counter[int]] = {}
    for key, label in zip(keys, labels.tolist(), strict=True):
        if label != -100:
            seen.setdefault(key, Counter())[int(label)] += 1
    total = sum(sum(c.values()) for c in seen.values())
    if not total:
        return len(set(keys)), 0, None
    torn = sum(sum(c.values()) for c in seen.values() if len(c) > 1)
    return len(set(keys)), torn, sum(max(c.values()) for c in seen.values()) / total


def _order(labels: np.ndarray, batch: np.ndarray) -> Order | None:
    keep = labels != -100
    labels, batch = labels[keep], batch[keep]
    if len(labels) < 2:
        return None
    _, counts = np.unique(labels, return_counts=True)
    n = len(labels)
    same = float((counts * (counts - 1)).sum()) / (n * (n - 1))
    several = one = 0
    expected = 0.0
    starts = np.flatnonzero(np.r_[True, batch[1:] != batch[:-1]])
    for group in np.split(labels, starts[1:]):
        if len(group) < 2:
            continue
        several += 1
        one += bool((group == group[0]).all())
        drawn = np.arange(len(group))
        expected += float(sum(np.prod(np.clip(c - drawn, 0, None) / (n - drawn)) for c in counts))
    return Order(int((labels[1:] != labels[:-1]).sum()), (n - 1) * (1 - same), several, one, expected)


def _tokens(rows: Rows, vocabulary: int | None, pad: int | None) -> Tokens | None:
    if not rows.ids:
        return None
    lengths = np.array([len(r) for r in rows.ids])
    median = float(np.median(lengths))
    inner, special = rows.ids, 0
    real = [r for r in inner if len(r)]
    if real:  # what stands at an end of (nearly) every row is a special token
        if _usual([int(r[0]) for r in real]):
            inner, special = [r[1:] for r in inner], 1
        rest = [r for r in inner if len(r)]
        if rest and _usual([int(r[-1]) for r in rest]) and max(map(len, rest)) > 1:
            inner, special = [r[:-1] for r in inner], special + 1
    flat = np.concatenate(inner) if inner else np.zeros(0, dtype=np.int64)
    if not len(flat):
        return Tokens(vocabulary, 0, 0, -1, 0.0, 0.0, median, rows.masked_out)
    values, counts = np.unique(flat, return_counts=True)
    by_count = np.argsort(-counts, kind="stable")
    top = int(values[by_count[0]])
    return Tokens(
        vocabulary=vocabulary,
        places=len(flat),
        distinct=len(values),
        commonest=top,
        share=float(counts[by_count[0]]) / len(flat),
        second_share=float(counts[by_count[1]]) / len(flat) if len(values) > 1 else 0.0,
        median_length=median,
        masked_out=rows.masked_out,
        is_padding=pad is not None and top == pad,
        shortest=int(lengths.min()),
        longest=int(lengths.max()),
        special=special,
    )


def _usual(values: list[int]) -> bool:
    return Counter(values).most_common(1)[0][1] >= 0.99 * len(values)


def _leaks(rows: Rows, labels: np.ndarray | None) -> tuple[Leak, ...]:
    """Inputs that equal the label one to one: one value a class, in every row."""
    if labels is None or len(labels) != len(rows):
        return ()
    keep = np.flatnonzero(labels != -100)
    classes, counts = np.unique(labels[keep], return_counts=True)
    if len(keep) < LEAK_ROWS or len(classes) < 2 or counts.min() < LEAK_EACH:
        return ()
    y = labels[keep]
    found: list[Leak] = []

    def look(kind: str, where: str, values: np.ndarray) -> None:
        if _one_to_one(values, y):
            found.append(Leak(kind, where, len(keep), len(classes)))

    for name, blocks in rows.single.items():
        column = np.concatenate(blocks)
        if len(column) == len(rows):
            look("input", name, column[keep])
    if rows.floats and len({b.shape[1] for b in rows.floats}) == 1:
        wide = np.concatenate(rows.floats)
        for j in range(wide.shape[1] if len(wide) == len(rows) else 0):
            look("column", f"column {j}", wide[keep, j])
    if rows.ids:
        least = min(len(rows.ids[i]) for i in keep)
        for j in range(min(least, 256)):
            look("token", f"place {j} from the start", np.array([rows.ids[i][j] for i in keep]))
        for j in range(1, min(least, 8) + 1):
            look("token", f"place {j} from the end", np.array([rows.ids[i][-j] for i in keep]))
    return tuple(found[:8])


def _one_to_one(values: np.ndarray, labels: np.ndarray) -> bool:
    _, a = np.unique(values, return_inverse=True)
    _, b = np.unique(labels, return_inverse=True)
    if a.max() != b.max():
        return False
    return len(np.unique(a * (int(b.max()) + 1) + b)) == int(b.max()) + 1
