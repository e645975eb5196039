"""The probe on inputs: which rows it compares, and when; what rounding and chance alone do to their outputs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ....core.effect import Effect
from ....core.formatting import named_error, text_of
from ....instruments.base_model import rounded
from ....instruments.batches import row_count, split, take_rows, to_device
from ....instruments.probe import Probe, ProbeContext
from ....instruments.tokens import Tokens, find_tokens
from ....instruments.undisturbed import quiet
from ....instruments.work import COSTLY
from ..record import (
    BatchMatesMeasurement,
    FirstTokens,
    HiddenTokens,
    Inputs,
    NumberScale,
    OutputCount,
    PaddingMeasurement,
    WordsMeasurement,
)
from .batch_mates import measure_batch_mates
from .first_tokens import are_words, count_first_tokens, reads_first_token_alone
from .forward import Forward, OtherRowCount, Pass, Sample, rows_equal
from .hidden_tokens import find_hidden_tokens, hidden_from_base
from .number_scale import has_numbers, measure_number_scale
from .padding import SHORT, config_pad_id, is_large, measure_inversion, measure_padding
from .words import measure_words

#: Rows compared; where a row is costly: a row is compared with itself, so that an effect shows in few rows as well.
ROWS, FEW_ROWS = 8, 4
#: Batches searched for padding.
SEARCHED = 8
#: Comparisons of outputs, and floating-point operations in a matrix product that take as long as comparing one output of a row (10 ns).
EFFECTS, EFFECT = 9, 400.0
#: A change up to this many times what moving every weight by one rounding does is rounding, however large beside the outputs. Where those
#: are nothing but rounding (equal weights in the head add normalised features up to zero) it came to 1.2 times at most, elsewhere to 914
#: or more: `benchmarks/rounding.py`.
NOISE = 16
TOO_ALIKE = "the outputs differ too little between rows, beside rounding"
NOT_FINITE = "the outputs are not finite"
PARTS = ("padding", "batch_mates", "words")


class InputsProbe(Probe):
    """Change the input and measure what the output does: the padding, the other rows of the batch, the words, their order.

    All in evaluation mode. Padding and batch mates are changed before the training, when nothing has collapsed or diverged yet; only
    where the outputs differ by no more than rounding between rows then (a zero last layer) once more afterwards.
    """

    name = "inputs"
    order = 50

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self.unmeasured: dict[str, str] = {}
        self.padding: PaddingMeasurement | None = None
        self.batch_mates: BatchMatesMeasurement | None = None
        self.words: list[WordsMeasurement] = []
        self.output_count: OutputCount | None = None
        self.repeat: Effect | None = None
        self.rounding: Effect | None = None
        self.declared_id = context.intent.pad_token_id
        self.sample = self._choose_sample()
        self.forward = Forward(context)
        likely = self.likely_id = _likely_pad_id(context.model)
        self.hidden_tokens: HiddenTokens | None = find_hidden_tokens(self._searched(), self.declared_id, likely)
        self.number_scale: NumberScale | None = None
        self.numbers = self.sample.tokens is None and has_numbers(self.sample.batch)
        self.first_tokens: FirstTokens | None = count_first_tokens(self._searched(), self.declared_id, likely)

    def cost(self) -> float:
        """Before: as given, with other batch mates, with other words, with less padding; afterwards the first, the third and shuffled;
        the rest only where padding has an effect, one pass where rows begin with different tokens, and two where they are numbers."""
        compared = EFFECTS * EFFECT * self.context.reader.outputs / self.context.row_work
        rows = len(self.sample.rows)
        return (8.0 + are_words(self.first_tokens) + 2 * self.numbers + compared) * rows + 4 * min(SHORT, rows // 2)

    def before(self) -> None:
        """Structure, and what the output depends on, with the first weights."""
        if len(self.sample.rows) < 2:
            self.unmeasured = dict.fromkeys(PARTS, "a batch has fewer than two rows")
            return
        with quiet(self.context.model):
            try:
                self._compare("before")
            except OtherRowCount as error:
                self._count_outputs(error)
                return
            self._follow_first_tokens()
            if self.numbers:
                with contextlib.suppress(Exception):  # the user's model may refuse other numbers
                    self.number_scale = measure_number_scale(
                        self.forward, take_rows(self.sample.batch, self.sample.rows)
                    )

    def after(self) -> None:
        """What the output depends on, with the last weights."""
        if len(self.sample.rows) < 2 or self.output_count is not None:
            return
        with quiet(self.context.model):
            self._compare("after")

    def record(self) -> Inputs | None:
        """What was measured."""
        return Inputs(
            rows=len(self.sample.rows),
            padding=self.padding,
            batch_mates=self.batch_mates,
            words=tuple(self.words),
            output_count=self.output_count,
            repeat=self.repeat,
            rounding=self.rounding,
            hidden_tokens=self.hidden_tokens,
            first_tokens=self.first_tokens,
            number_scale=self.number_scale,
            unmeasured=dict(self.unmeasured),
        )

    # ------------------------------------------------------------------ the rows
    def _choose_sample(self) -> Sample:
        """Rows of the batch with the most padding among the first ones."""
        context = self.context
        likely = self.likely_id = _likely_pad_id(context.model)
        best: tuple[float, Any, Tokens | None] | None = None
        for batch in self._searched():
            tokens = find_tokens(batch, self.declared_id, likely)
            rows = row_count(split(batch)[0]) or 0
            padded = 0.0 if tokens is None else float((~tokens.real).float().mean())
            rank = padded if rows > 1 else -1.0
            if best is None or rank > best[0]:
                best = rank, batch, tokens
        assert best is not None
        batch = to_device(best[1], context.device)
        tokens = None if best[2] is None else find_tokens(batch, self.declared_id, likely)
        count = row_count(split(batch)[0]) or 0
        most = FEW_ROWS if context.row_work > COSTLY else ROWS
        return Sample(batch, tokens, count, _choose_rows(tokens, count, most))

    def _searched(self) -> list[Any]:
        """The first batches."""
        fixed = self.context.fixed_batches
        return [*fixed, *self.context.batches.known[len(fixed) : SEARCHED]]

    # ------------------------------------------------------------------ comparing
    def _compare(self, when: str) -> None:
        rows = self.sample.rows
        batch = take_rows(self.sample.batch, rows)
        tokens = None if self.sample.tokens is None else self.sample.tokens.of(rows)
        if when == "before":
            whole = self.forward.first_pass(batch, tokens)
        else:
            with self.context.recalling():
                whole = self.forward.run(batch, tokens)
        if when == "before" and not (self.hidden_tokens is not None and self.hidden_tokens.hidden):
            received = hidden_from_base(whole.call, tokens, self.declared_id, self.likely_id)
            self.hidden_tokens = received or self.hidden_tokens
        words = measure_words(self.forward, when, len(rows), batch, tokens, whole)
        if words is not None:
            self.words.append(words)
        if words is None or rows_equal(words.between_rows):
            if when == "before" and self.padding is None:
                self.padding = measure_inversion(self.forward, batch, tokens, whole, finite=words is not None)
            self._give_up(words)
            return
        missing = [part for part in ("batch_mates", "padding") if getattr(self, part) is None]
        if "batch_mates" in missing:
            self._measure("batch_mates", when, lambda: measure_batch_mates(self.forward, self.sample, tokens, whole))
        if "padding" in missing:
            self._measure(
                "padding",
                when,
                lambda: measure_padding(self.forward, self.sample, batch, tokens, whole, self.declared_id),
            )
        large = {part: effects for part in missing if (effects := _large_effects(getattr(self, part)))}
        if large:
            self._drop_rounding(batch, tokens, whole, large)

    def _count_outputs(self, error: OtherRowCount) -> None:
        """Fewer rows do not give as many outputs: does the whole batch, on which the loss pairs outputs and labels?"""
        logits = self.context.reader.logits(self.sample.batch)
        if logits is None or len(logits) != self.sample.count:
            raise error
        self.output_count = OutputCount(self.sample.count, len(self.sample.rows), error.outputs)
        self.unmeasured = dict.fromkeys(PARTS, text_of(error))

    def _follow_first_tokens(self) -> None:
        """Where rows begin with different words: does the head read the vectors there, and no others?"""
        if self.first_tokens is None or not are_words(self.first_tokens) or self.sample.tokens is None:
            return
        rows = self.sample.rows
        batch, tokens = take_rows(self.sample.batch, rows), self.sample.tokens.of(rows)
        alone = reads_first_token_alone(self.forward, batch, tokens)
        self.first_tokens = dataclasses.replace(self.first_tokens, read_alone=alone)

    def _give_up(self, words: WordsMeasurement | None) -> None:
        """Outputs that are not finite, or that differ too little between rows: why parts were not measured."""
        for part in PARTS:
            if words is None:
                self.unmeasured.setdefault(part, NOT_FINITE)
            elif part != "words" and getattr(self, part) is None:
                self.unmeasured.setdefault(part, TOO_ALIKE)

    def _drop_rounding(
        self, batch: Any, tokens: Tokens | None, whole: Pass, large: Mapping[str, Sequence[Effect]]
    ) -> None:
        """Something had an effect: what does the output do without any change, and how much can rounding do?"""
        forward = self.forward
        if self.repeat is None:
            self.repeat = forward.effect(whole.logits, forward.run(batch, tokens).logits)
        if self.repeat is None or is_large(self.repeat):  # random
            return
        self.rounding = None
        with (
            contextlib.suppress(Exception),
            rounded(self.context.model, forward.precision),
        ):  # not every type can multiply
            self.rounding = forward.effect(whole.logits, forward.run(batch, tokens).logits)
        noise = NOISE * self.rounding.change if self.rounding is not None else 0.0
        for part, effects in large.items():
            if all(e.change <= noise for e in effects):
                setattr(self, part, None)
                self.unmeasured[part] = TOO_ALIKE

    def _measure(self, part: str, when: str, measure: Callable[[], Any]) -> None:
        """Take one measurement, or note why it was not taken."""
        self.unmeasured.pop(part, None)
        try:
            found = measure()
        except Exception as error:  # noqa: BLE001 - the user's model may refuse an input that it was not made for
            self.unmeasured[part] = named_error(error, 160)
            return
        if isinstance(found, str):
            self.unmeasured[part] = found
        else:
            setattr(self, part, dataclasses.replace(found, when=when))


def _choose_rows(tokens: Tokens | None, count: int, most: int) -> list[int]:
    """The shortest rows, half of all at most, and some more: as many as are compared."""
    if tokens is None:
        return list(range(min(count, most)))
    order = tokens.real.sum(1).argsort(stable=True).tolist()
    short = order[: min(SHORT, most // 2)]
    return sorted([*short, *[r for r in range(count) if r not in short][: most - len(short)]])


def _large_effects(measurement: PaddingMeasurement | BatchMatesMeasurement | None) -> list[Effect]:
    if measurement is None:
        return []
    if isinstance(measurement, BatchMatesMeasurement):
        effects: list[Effect | None] = [measurement.output]
    else:
        effects = [measurement.less_padding, measurement.other_ids]
    return [e for e in effects if e is not None and is_large(e)]


def _likely_pad_id(model: nn.Module) -> int | None:
    """The id of the padding in the model's config, unless it is the end of the text as well."""
    for module in model.modules():
        pad = config_pad_id(module)
        if pad is not None:
            return None if pad == getattr(module.config, "eos_token_id", None) else pad
    return None
