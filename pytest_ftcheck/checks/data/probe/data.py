"""The probe of the batches themselves: labels, tokens, repetition, overlap, dependence; and the user's metric beside references."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ....core.formatting import one_line
from ....instruments.batches import row_count, split, take_rows, to_device
from ....instruments.configs import config_of
from ....instruments.probe import Probe, ProbeContext
from ....instruments.row_hashes import MOST_ROWS, RowReader, Rows, first_occurrences
from ....instruments.task_readers.interface import TaskReader
from ....instruments.task_readers.language_model import LanguageModel
from ....instruments.task_readers.question_answering import QuestionAnswering
from ....instruments.task_readers.seq2seq import Seq2Seq
from ....instruments.task_readers.token_classification import TokenClassification
from ....instruments.tasks import IGNORED
from ....instruments.undisturbed import quiet
from ....instruments.work import allowance, tokens_of
from ..record import BatchNormInput, Data, Dependence, Overlap
from .batch_statistics import (
    class_counts,
    class_order,
    collisions,
    copies_of_rows,
    find_leaks,
    keys_by_batch,
    shared_inputs,
    token_statistics,
)
from .epochs import (
    data_set_length,
    drawn_rows,
    draws_with_replacement,
    first_epoch,
    labelled_keys,
    loader_epoch,
    relabelled,
    rows_of_data,
)
from .exchange_gain import MOST_PASSES, measure_answer_gain, measure_source_gain
from .label_dependence import measure_dependence
from .metric import HeldOutLogits
from .number_shift import number_shift
from .sequence_dependence import measure_sequence_dependence
from .token_shift import token_shift

#: Batches read, at most.
MOST_BATCHES = 256
#: Share of the budget of all probes that the held-out rows may take, for the user's metric beside references.
HELD_OUT_SHARE = 0.15
#: Classes up to which their names are kept.
MOST_NAMED = 100
#: Rows from which a batch should hold more than one input.
LARGE = 4
#: Rows of a batch up to which the values that a batch normalisation gets are counted.
FEW = 3


class DataProbe(Probe):
    """Reads the batches themselves: labels, tokens, repetition, overlap, dependence."""

    name = "data"
    order = 10

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self.reader = RowReader(context.model, context.intent.pad_token_id)
        self.rows = Rows()
        self.complete = context.batches.list is not None
        self.batch_norms: tuple[BatchNormInput, ...] = ()
        first = split(context.fixed_batches[0])[0] if context.fixed_batches else None
        per_batch = row_count(first) or 1
        self.logits: HeldOutLogits | None = None
        if context.user_metric is not None and context.held_out:
            held = sum(row_count(split(b)[0]) or 1 for b in context.held_out)
            tokens = tokens_of(context.fixed_batches[0])
            most = HELD_OUT_SHARE * allowance(
                context.model, per_batch, tokens, max(1, context.steps), context.reader.outputs
            )
            if 2 * held <= most:
                self.logits = HeldOutLogits(context.model, context.reader, context.held_out, held)
        self._unit = _unit_of_labels(context.reader.task_reader)
        self._exchanged = self._unit in ("answer", "target") and bool(context.held_out)
        self.exchange_gain: float | None = None
        self._norms = [m for m in context.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._few = bool(self._norms) and per_batch <= FEW

    def cost(self) -> float:
        """The held-out rows, before and after, if the user's metric is to be compared; a few rows for a batch normalisation, and to
        exchange labels."""
        compared = 2.0 * self.logits.rows if self.logits is not None else 0.0
        return compared + (FEW if self._few else 0) + (MOST_PASSES if self._exchanged else 0)

    def reduce(self, reason: str) -> bool:  # noqa: ARG002
        """Exchange no labels; they are read all the same."""
        reducible, self._exchanged = self._exchanged, False
        return reducible

    def before(self) -> None:
        """Read a list of batches at once, and compute the logits of the held-out rows."""
        if self.complete:
            for batch in self.context.batches.known[:MOST_BATCHES]:
                self._add(batch)
        if self.logits is not None:
            self.logits.collect()

    def idle(self, moment: str, number: int) -> bool:  # noqa: ARG002
        """When all batches were read."""
        return number > 0 and (self.complete or number >= MOST_BATCHES)

    def iteration(self, number: int, batch: Any) -> None:
        """Read a stream as it comes."""
        if number == 0 and self._few:
            self.batch_norms = self._batch_norm_inputs(batch)
        if not self.complete and number < MOST_BATCHES:
            self._add(batch, self.context.batches.epoch)

    def after(self) -> None:
        """Compute the logits of the held-out rows again."""
        if self.logits is not None and self.context.user_metric_values is not None:
            self.logits.collect()
        if self._exchanged and len(self.rows):
            dependence = self._dependence(self.rows.select(self._of_data()[-1]))[0]
            if dependence is not None and dependence.simulated:  # the rows alone show none
                self.exchange_gain = self._measure_exchange_gain()

    def _measure_exchange_gain(self) -> float | None:
        context, held_out = self.context, self.context.held_out or []
        if self._unit == "answer":
            return measure_answer_gain(context.reader, held_out, context.device, context.intent.pad_token_id)
        return measure_source_gain(context.reader, held_out, context.device)

    def _of_data(self) -> tuple[Any, list[bytes], list[Any], int, np.ndarray]:
        """Labels and keys of all rows, pairs of both, the rows of the first epoch, and which rows stand for the data."""
        rows, batches = self.rows, self.context.batches
        target, keys = rows.target(), rows.keys()
        pairs = labelled_keys(keys, target) if keys else list(range(len(rows)))
        first = first_epoch(rows, pairs, batches.one_shot)
        return target, keys, pairs, first, rows_of_data(rows, pairs, first, data_set_length(batches.source))

    def _dependence(self, data: Rows) -> tuple[Dependence | None, str | None]:
        """Whether labels depend on inputs, by what has a label."""
        target, task = data.target(), self.context.reader.task
        if self._unit == "row" or task != "single_label" or target is None or target.ndim != 2:
            return measure_dependence(data, task)
        found, reason = measure_sequence_dependence(data, target, self._unit)
        return dataclasses.replace(found, exchange_gain=self.exchange_gain) if found is not None else None, reason

    def record(self) -> Data | None:
        """What was measured."""
        rows, task, classes = self.rows, self.context.reader.task, self.context.reader.classes
        source = "all batches" if self.complete else "the batches trained on"
        if not self.complete and not len(rows):  # a watched loop, or one that ended at once
            for batch in self.context.fixed_batches:
                self._add(batch)
            source = "the probe batch"
        elif self.complete and not self.context.steps:
            source = "the probe batch"
        if not len(rows):
            raise ValueError("no batch could be read as rows of inputs with labels")
        batches = self.context.batches
        target, keys, pairs, first, once = self._of_data()
        data, data_keys, data_target = rows.select(once), [keys[i] for i in once] if keys else [], _taken(target, once)
        held = self._held_out()
        held_target = held.target() if held is not None else None
        single, data_single = _single(target, task), _single(data_target, task)
        dependence, untested = self._dependence(data)
        leaks, leak_rows, leaks_unsearched = find_leaks(data, data_single)
        _, contradictory, best_accuracy = collisions(data_keys, data_single)
        different = _taken(target, first_occurrences(pairs))
        flat = different.astype(np.float64).reshape(-1) if different is not None else np.zeros(0)
        ignored = int((flat == IGNORED).sum()) if task == "single_label" else 0
        counted = flat[np.isfinite(flat) & ((flat != IGNORED) | (task != "single_label"))]
        groups = keys_by_batch(keys, rows.batch)
        sizes = [len(b) for b in groups]
        drawn = np.arange(loader_epoch(rows))
        return Data(
            rows=len(rows),
            rows_once=len(once),
            epochs=1 + max(rows.epoch, default=0),
            batches=rows.batches,
            source=source,
            counts=class_counts(data_target, task),
            classes=classes,
            class_names=_class_names(self.context.model, classes),
            nonfinite_labels=int((~np.isfinite(flat)).sum()),
            ignored_labels=ignored,
            labels=len(flat),
            nonfinite_inputs=len({pairs[i] for i in np.flatnonzero(rows.nonfinite)}),
            nonfinite_where=rows.nonfinite_where,
            constant=bool(len(counted)) and bool((counted == counted[0]).all()),
            held_out_counts=class_counts(held_target, task) if held_target is not None else None,
            distinct=len(set(keys)) if keys else None,
            median_values=float(np.median(rows.lengths())),
            contradictory=contradictory,
            best_accuracy=best_accuracy,
            shared_inputs=shared_inputs(data_keys, data_single),
            large_batches=sum(n >= LARGE for n in sizes),
            uniform_batches=sum(n >= LARGE and len(set(b)) == 1 for n, b in zip(sizes, groups, strict=True)),
            distinct_batches=len({tuple(sorted(b)) for b in groups}) if keys else None,
            source_length=_length(batches.source),
            order=class_order(single, np.array(rows.batch)) if single is not None else None,
            tokens=token_statistics(data, self.reader.vocabulary, self.reader.pad),
            dependence=dependence,
            untested=untested,
            leaks=leaks,
            leak_rows=leak_rows,
            leaks_unsearched=leaks_unsearched,
            drawn=drawn_rows(rows.select(drawn), keys[: len(drawn)], batches.source, self.reader),
            relabelled=relabelled(rows.contents, single, first),
            overlap=self._overlap(held, keys, first),
            token_shift=token_shift(data, held),
            number_shift=number_shift(data, held),
            copies=None
            if source == "the probe batch" or draws_with_replacement(batches.source)
            else copies_of_rows(data, data_keys, data_single),
            evaluation=self.logits.evaluation(self.context.user_metric_values) if self.logits is not None else None,
            batch_norms=self.batch_norms,
        )

    def _add(self, batch: Any, epoch: int = 0) -> None:
        if len(self.rows) < MOST_ROWS:
            self.reader.read(batch, self.rows, epoch)

    def _held_out(self) -> Rows | None:
        if not self.context.held_out:
            return None
        rows = Rows()
        for batch in self.context.held_out[:MOST_BATCHES]:
            if len(rows) < MOST_ROWS:
                self.reader.read(batch, rows)
        return rows if len(rows) else None

    def _overlap(self, held: Rows | None, keys: list[bytes], first: int) -> Overlap | None:
        if held is None or not keys or not (held_keys := held.keys()):
            return None
        known, epoch = set(keys), Counter(keys[:first])
        distinct = first_occurrences(held_keys)
        trained = {id(b) for b in self.context.batches.known}
        return Overlap(
            rows=len(distinct),
            shared=sum(held_keys[i] in known for i in distinct),
            training_duplicates=sum(count for count in epoch.values() if count > 1) / first,
            same_objects=all(id(b) in trained for b in self.context.held_out or ()),
            median_length=float(np.median(held.lengths())),
        )

    def _batch_norm_inputs(self, batch: Any) -> tuple[BatchNormInput, ...]:
        """How many values each batch normalisation in training mode has for one channel of this batch."""
        count = row_count(split(batch)[0]) or 1
        names = {id(m): n for n, m in self.context.model.named_modules()}
        training = [m for m in self._norms if m.training]
        if not training or count > FEW:
            return ()
        values: dict[str, int] = {}

        def count_values(module: nn.Module, args: Any) -> None:
            if args and isinstance(args[0], torch.Tensor) and args[0].dim() >= 2:
                values[names[id(module)]] = args[0].numel() // max(1, args[0].shape[1])

        handles = [m.register_forward_pre_hook(count_values) for m in training]
        try:
            with quiet(self.context.model):
                self.context.reader.loss(to_device(take_rows(batch, range(count)), self.context.device))
        finally:
            for handle in handles:
                handle.remove()
        return tuple(BatchNormInput(name, n) for name, n in values.items())


def _unit_of_labels(reader: TaskReader | None) -> str:
    """What has a label, as in `Dependence.unit`."""
    if isinstance(reader, Seq2Seq):
        return "target"
    if isinstance(reader, QuestionAnswering):
        return "answer"
    return "token" if isinstance(reader, (LanguageModel, TokenClassification)) else "row"


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:
        return None


def _class_names(model: nn.Module, classes: int | None) -> tuple[str, ...]:
    """The names of the classes in a config, as ``transformers`` keeps them; empty: there are none but its own ``LABEL_0``."""
    names = getattr(config_of(model), "id2label", None)
    if not isinstance(names, Mapping) or classes is None or not 1 < classes == len(names) <= MOST_NAMED:
        return ()
    found = [names.get(i) for i in range(classes)]
    if not all(isinstance(name, str) for name in found) or found == [f"LABEL_{i}" for i in range(classes)]:
        return ()
    return tuple(one_line(str(name), 40) for name in found)


def _taken(target: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return target[rows] if target is not None else None


def _single(target: np.ndarray | None, task: str | None) -> np.ndarray | None:
    """Labels of rows that have one class each; class probabilities may be others each time a row is mixed."""
    return target if task == "single_label" and target is not None and target.ndim == 1 else None
