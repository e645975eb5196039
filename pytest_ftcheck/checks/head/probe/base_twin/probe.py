"""The probe that compares each base of a library's class with its twin."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import replace

from .....instruments.base_model import BaseModel, is_library
from .....instruments.batches import row_count, split, take_rows
from .....instruments.probe import LeftOut, Probe, ProbeContext
from .....instruments.tokens import find_tokens
from .....instruments.undisturbed import quiet
from ...base_twin_record import BaseTwin, TwinComparison
from ...readout_record import Readout
from ..readout import readout
from .bases import find_bases, outermost
from .comparison import Comparison
from .twin import Twin, not_comparable
from .vectors import vector_starts

#: Rows that are compared: a change of the computation changes all of them, but a mask that is lost only those with padding.
ROWS = 2
#: Bases of one model that are compared (two towers, say).
BASES = 2


class BaseTwinProbe(Probe):
    """One forward pass of a few rows in evaluation mode, before the training; the twin is called right after its base.

    Where something is altered, more rows show what that does to the features.
    """

    name = "base_twin"
    order = 22

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self.candidates = find_bases(context.model)
        self.left_out: list[str] = []
        self.found: list[tuple[BaseModel, TwinComparison]] = []
        self.whole: TwinComparison | None = None
        self.readout: Readout | None = None
        self.bases = self._comparable(outermost(self.candidates))
        if not self.bases:
            raise LeftOut([*self.left_out, "there is no base inside that takes input_ids and attention_mask"][0])
        self.rows = self._rows()

    def cost(self) -> float:
        """One pass of the model, and one of each twin."""
        return float(len(self.rows) * (1 + len(self.bases)))

    def before(self) -> None:
        """Compare, with the first weights."""
        uncalled = self._compare(self.bases)
        if not self.found and uncalled:  # a model may call parts of its base, and not the base
            inner = [b for b in self.candidates if any(b.name.startswith(f"{u.name}.") for u in uncalled)]
            self._compare(self._comparable(outermost(inner)))
        if not self.found:
            raise LeftOut(self.left_out[-1])
        with contextlib.suppress(Exception):  # the comparison stands without it
            self.readout = readout(self.context, [base for base, c in self.found if c.first is not None])

    def after(self) -> None:
        """Where tensors of an unchanged base never had a gradient: does its class give them one? Then the twin is called once more.

        Of tensors outside the bases the class of the whole model is asked, where that is a library's.
        """
        missing = {t.name for t in self.context.tensors if t.trainable and t.gradients.none == t.gradients.steps > 0}
        unchanged = [base for base, comparison in self.found if comparison.first is None]
        inside = {b.name: {n for n in missing if n.startswith(b.prefix)} for b in unchanged}
        before, self.found = self.found, []
        if bases := [b for b in unchanged if inside[b.name]]:
            self._compare(bases, missing)
        again = {base.name: comparison.without_gradient for base, comparison in self.found}
        self.found = []
        if (outside := missing.difference(*inside.values())) and is_library(self.context.model):
            self._compare(self._comparable([BaseModel("", self.context.model, ())]), outside)
            self.whole = next((comparison for _, comparison in self.found), None)
        self.found = [(b, replace(c, without_gradient=again.get(b.name, ()))) for b, c in before]

    def record(self) -> BaseTwin | None:
        """What was measured."""
        if not self.found:
            return None
        return BaseTwin(tuple(c for _, c in self.found), tuple(self.left_out), self.readout, self.whole)

    def _rows(self) -> list[int]:
        """The row with the most padding and the one with the least: a mask that is lost changes the first."""
        batch = self.context.fixed_batches[0]
        tokens = find_tokens(batch, self.context.intent.pad_token_id)
        if tokens is None:
            return list(range(min(ROWS, row_count(split(batch)[0]) or 1)))
        order: list[int] = tokens.real.sum(1).argsort(stable=True).tolist()
        return sorted({order[0], order[-1]})

    def _comparable(self, bases: Sequence[BaseModel]) -> list[BaseModel]:
        """Those that a twin can be compared with; why not, of the others, goes to `left_out`."""
        reasons = [(base, not_comparable(base.module)) for base in bases[:BASES]]
        self.left_out.extend(reason for _, reason in reasons if reason)
        return [base for base, reason in reasons if not reason]

    def _compare(self, bases: Sequence[BaseModel], missing: Collection[str] = ()) -> list[BaseModel]:
        """Build the twins, and compare; the bases that the model does not call.

        :param missing: parameters whose gradient is asked for, after the training.
        """
        comparisons = []
        for base in bases:
            try:
                comparisons.append(Comparison(base, Twin(base.module), sorted(missing)))
            except LeftOut as reason:
                self.left_out.append(str(reason))
        if not comparisons:
            return []
        batch = take_rows(self.context.fixed_batches[0], self.rows)
        with quiet(self.context.model), contextlib.ExitStack() as stack:
            for comparison in comparisons:
                stack.enter_context(comparison.watched())
            self.context.reader.logits(batch)
        for comparison in comparisons:
            if comparison.error is not None:
                self.left_out.append(f"the twin raised {type(comparison.error).__name__}: {comparison.error}"[:200])
            elif comparison.found is None:
                self.left_out.append(f"{comparison.base.name} is not called as a module")
            else:
                vectors = None if missing else vector_starts(comparison.base.module, comparison.twin.module)
                self.found.append((comparison.base, replace(comparison.found, vectors=vectors)))
        return [c.base for c in comparisons if c.error is None and c.found is None]
