"""Change the input, and see whether the output cares: padding, the other rows, the tokens, their order."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...core.effect import Effect
from ...instruments.base_model import (
    Call,
    Inner,
    effect,
    entering,
    find_inner,
    handed,
    is_library,
    listening,
    output_types,
    precision_of,
    rounded,
)
from ...instruments.batches import row_count, split, take_rows, to_device
from ...instruments.parameter_roles import in_part
from ...instruments.probe import Probe, ProbeContext
from ...instruments.snapshots import quiet
from ...instruments.tokens import (
    Tokens,
    find_tokens,
    later_words,
    other_padding,
    other_words,
    shuffled_words,
    tensors_of,
    with_padding,
    with_values,
    with_words_at_the_end,
    without_columns,
)
from .record import Inputs, PaddingLook, RowsLook, WordsLook

#: Rows looked at; rows of which padding is taken away; batches searched for padding.
ROWS = 8
SHORT = 4
SEARCHED = 8
#: Columns of padding added, and twice as many; the next where the model cannot take that.
STRETCHES = (16, 8, 4, 2)
#: A change, or a difference between rows, of fewer roundings than this is none: see `Effect.ulps`.
ROUNDINGS = 64
#: A change up to this many times what moving every weight by one rounding does is rounding, however large beside the outputs. Where those
#: are nothing but rounding (equal weights in the head add normalised features up to zero) it came to 1.2 times at most, elsewhere to 914
#: or more: `benchmarks/rounding.py`.
NOISE = 16
TOO_ALIKE = "the outputs differ too little between rows, beside rounding"


class InputsProbe(Probe):
    """Change the input, and see whether the output cares: padding, the other rows, the tokens, their order.

    All in evaluation mode. Padding and company are looked at before the training, when nothing has collapsed or diverged yet; only
    where the outputs differ by no more than rounding between rows then (a zero last layer) once more afterwards.
    """

    name = "inputs"
    order = 50

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self.unmeasured: dict[str, str] = {}
        self.padding: PaddingLook | None = None
        self.company: RowsLook | None = None
        self.words: list[WordsLook] = []
        self.repeat: Effect | None = None
        self.rounding: Effect | None = None
        self.precision = 0.0
        self.pad_id = context.intent.pad_token_id
        self.batch, self.tokens = self._choose()
        self.count = row_count(split(self.batch)[0]) or 0
        self.rows = self._rows()
        self.inner: Inner | None = None
        self.entry = _entry(context.model, context.head)

    def cost(self) -> float:
        """Before: as given, in other company, with other words, with less padding; afterwards the first, the third and shuffled; the
        rest only where padding matters."""
        return 8.0 * len(self.rows) + 4 * SHORT

    def before(self) -> None:
        """Structure, and what the output depends on, with the first weights."""
        if len(self.rows) < 2:
            self.unmeasured = dict.fromkeys(("padding", "company", "words"), "a batch has fewer than two rows")
            return
        with quiet(self.context.model):
            self._look("before")

    def after(self) -> None:
        """What the output depends on, with the last weights."""
        if len(self.rows) < 2:
            return
        with quiet(self.context.model):
            self._look("after")

    def record(self) -> Inputs | None:
        """What was measured."""
        words, unmeasured = tuple(self.words), dict(self.unmeasured)
        return Inputs(len(self.rows), self.padding, self.company, words, self.repeat, self.rounding, unmeasured)

    # ------------------------------------------------------------------ what is looked at
    def _choose(self) -> tuple[Any, Tokens | None]:
        """The batch with the most padding among the first ones, and its tokens."""
        context = self.context
        likely = _config_pad(context.model)
        best: tuple[float, Any, Tokens | None] | None = None
        for batch in [*context.probe, *context.batches.known[len(context.probe) : SEARCHED]]:
            tokens = find_tokens(batch, self.pad_id, likely)
            rows = row_count(split(batch)[0]) or 0
            padded = 0.0 if tokens is None else float((~tokens.real).float().mean())
            rank = padded if rows > 1 else -1.0
            if best is None or rank > best[0]:
                best = rank, batch, tokens
        assert best is not None
        batch = to_device(best[1], context.device)
        return batch, None if best[2] is None else find_tokens(batch, self.pad_id, likely)

    def _rows(self) -> list[int]:
        """The shortest rows and some more: as many as are looked at."""
        if self.tokens is None:
            return list(range(min(self.count, ROWS)))
        order = self.tokens.real.sum(1).argsort(stable=True).tolist()
        short = order[:SHORT]
        return sorted([*short, *[r for r in range(self.count) if r not in short][: ROWS - len(short)]])

    # ------------------------------------------------------------------ looking
    def _look(self, when: str) -> None:
        batch = take_rows(self.batch, self.rows)
        tokens = None if self.tokens is None else self.tokens.of(self.rows)
        seen = self._first_pass(batch, tokens) if when == "before" else self._pass(batch, tokens)
        words = self._words(when, batch, tokens, seen)
        if words is None:
            if when == "before" and self.padding is None:
                self.padding = self._turned_look(batch, tokens, "finite", seen.logits)
            for part in ("padding", "company", "words"):
                self.unmeasured.setdefault(part, "the outputs are not finite")
            return
        self.words.append(words)
        if _same(words.across):
            if when == "before" and self.padding is None:
                self.padding = self._turned_look(batch, tokens, "differ", seen.logits)
            for part in ("padding", "company"):
                if getattr(self, part) is None:
                    self.unmeasured.setdefault(part, TOO_ALIKE)
            return
        fresh = [part for part in ("company", "padding") if getattr(self, part) is None]
        if "company" in fresh:
            self._measure("company", when, lambda: self._company(tokens, seen))
        if "padding" in fresh:
            self._measure("padding", when, lambda: self._padding(batch, tokens, seen))
        self._control(batch, tokens, seen, {part: large for part in fresh if (large := _large(getattr(self, part)))})

    def _control(self, batch: Any, tokens: Tokens | None, seen: Pass, large: Mapping[str, Sequence[Effect]]) -> None:
        """Where something had an effect: what is it without any change, and how much can rounding do?"""
        if not large:
            return
        if self.repeat is None:
            self.repeat = self._effect(seen.logits, self._pass(batch, tokens).logits)
        if self.repeat is None or self.repeat.ulps > ROUNDINGS:  # random
            return
        self.rounding = None
        with contextlib.suppress(Exception), rounded(self.context.model, self.precision):  # not every type can multiply
            self.rounding = self._effect(seen.logits, self._pass(batch, tokens).logits)
        noise = NOISE * self.rounding.change if self.rounding is not None else 0.0
        for part, changes in large.items():
            if all(c.change <= noise for c in changes):
                setattr(self, part, None)
                self.unmeasured[part] = TOO_ALIKE

    def _measure(self, part: str, when: str, call: Callable[[], Any]) -> None:
        self.unmeasured.pop(part, None)
        try:
            found = call()
        except Exception as error:  # noqa: BLE001 - the user's model may refuse an input that it was not made for
            text = str(error).strip().splitlines()
            self.unmeasured[part] = f"{type(error).__name__}: {text[0][:160] if text else ''}"
            return
        if isinstance(found, str):
            self.unmeasured[part] = found
        else:
            setattr(self, part, dataclasses.replace(found, when=when))

    def _first_pass(self, batch: Any, tokens: Tokens | None) -> Pass:
        """The rows as they are; finds the base: the outermost of the modules that could be it, and is called."""
        candidates = find_inner(self.context.model) if tokens is not None else []
        with contextlib.ExitStack() as stack:
            types = stack.enter_context(output_types(self.context.model))
            ids = None if tokens is None else tokens.ids
            heard = [(c, stack.enter_context(listening(c, ids))) for c in candidates]
            seen = self._pass(batch, tokens)
        self.precision = max(precision_of(self.context.model), *(torch.finfo(t).eps for t in types), 0.0)
        for candidate, calls in heard:
            if calls:
                self.inner = candidate
                return dataclasses.replace(seen, call=calls[0])
        return seen

    def _pass(self, batch: Any, tokens: Tokens | None, keep: torch.Tensor | None = None) -> Pass:
        with listening(self.inner, None if tokens is None else tokens.ids) as calls, entering(self.entry) as entered:
            logits = self.context.reader.logits(batch)
        if logits is None:
            raise ValueError("no logits are to be had from this model")
        features = entered[0] if entered and entered[0].dim() == 2 and len(entered[0]) == len(logits) else None
        return Pass(by_row(logits, tokens, keep), features, calls[0] if calls else None)

    def _effect(
        self, first: torch.Tensor | None, second: torch.Tensor | None, reference: torch.Tensor | None = None
    ) -> Effect | None:
        if first is None or second is None:
            return None
        return effect(first, second, reference, self.precision)

    # ------------------------------------------------------------------ words
    def _words(self, when: str, batch: Any, tokens: Tokens | None, seen: Pass) -> WordsLook | None:
        across = self._effect(seen.logits, _mean(seen.logits))
        if across is None:
            return None
        fields: dict[str, Any] = {}
        if seen.features is not None:
            fields["features_across"] = self._effect(seen.features, _mean(seen.features))
        changed = None if tokens is None else other_words(tokens)
        if tokens is not None and changed is not None:
            other = self._pass(with_values(batch, {tokens.path: changed}), tokens)
            fields["words"] = self._effect(seen.logits, other.logits)
            fields["other_across"] = self._effect(other.logits, _mean(other.logits))
            fields["features_words"] = self._effect(seen.features, other.features)
            fields |= self._hidden(tokens, changed, seen.call, other.call)
            late = later_words(tokens) if tokens.certain else None
            if late is not None:
                behind = self._pass(with_values(batch, {tokens.path: late}), tokens)
                fields["late"] = self._effect(seen.logits, behind.logits)
            if seen.call is not None and when == "before":
                fields |= _told_besides(seen.call, self.inner, batch, tokens)
            order = shuffled_words(tokens) if when == "after" and tokens.certain else None
            if order is not None:
                shuffled = self._pass(with_values(batch, {tokens.path: order}), tokens)
                fields["order"] = self._effect(seen.logits, shuffled.logits)
        if self.inner is not None:
            fields |= {"base": self.inner.name, "base_library": self.inner.library}
        return WordsLook(when, len(self.rows), _distinct(batch, len(self.rows)), across, **fields)

    def _hidden(self, tokens: Tokens, changed: torch.Tensor, one: Call | None, two: Call | None) -> dict[str, Any]:
        """The base's last vectors with other words: at the first token of each row whose words changed, and behind it."""
        if one is None or two is None or one.hidden is None or two.hidden is None:
            return {}
        rows = (changed != tokens.ids).any(1)
        start = tokens.real.int().argmax(1)
        at = torch.arange(len(start), device=start.device)
        end = tokens.width - 1 - tokens.real.int().flip(1).argmax(1)
        rest = tokens.real.clone()
        rest[at, start] = False
        rest &= rows[:, None]
        fields = {
            "first": self._effect(one.hidden[at, start][rows], two.hidden[at, start][rows]),
            "rest": self._effect(one.hidden[rest], two.hidden[rest]),
            "last": self._effect(one.hidden[at, end][rows], two.hidden[at, end][rows]),
        }
        if self.inner is not None and fields["last"] is not None and fields["last"].ulps <= ROUNDINGS:
            mask = tokens.real.long()  # is that the base's own doing, or that of the mask it was handed?
            with contextlib.suppress(Exception):
                one_right, two_right = self.inner.direct(tokens.ids, mask), self.inner.direct(changed, mask)
                fields["last"] = self._effect(one_right[at, end][rows], two_right[at, end][rows])
        return fields

    # ------------------------------------------------------------------ the other rows
    def _company(self, tokens: Tokens | None, seen: Pass) -> RowsLook | str:
        """Half of the rows, in the opposite order and behind others than before."""
        half = len(self.rows) // 2
        kept = list(range(half))[::-1]
        strangers = [r for r in range(self.count) if r not in self.rows] or self.rows[half:]
        fill = [strangers[i % len(strangers)] for i in range(len(self.rows) - half)]
        chosen = [*fill, *(self.rows[k] for k in kept)]
        theirs = None if self.tokens is None else self.tokens.of(chosen)
        other = self._pass(take_rows(self.batch, chosen), theirs)
        output = self._effect(seen.logits[kept], other.logits[len(fill) :], seen.logits)
        if output is None:
            return "the outputs are not finite"
        base = None
        if tokens is not None and seen.call and other.call:
            one, two = seen.call.hidden, other.call.hidden
            if one is not None and two is not None:
                one, two = by_row(one, tokens), by_row(two, theirs)
                base = self._effect(one[kept], two[len(fill) :], one)
        name, library = (self.inner.name, self.inner.library) if self.inner else (None, False)
        return RowsLook(half, output, base, name, library, _batch_statistics(self.context.model))

    # ------------------------------------------------------------------ padding
    def _padding(self, batch: Any, tokens: Tokens | None, seen: Pass) -> PaddingLook | str:
        if tokens is None:
            return "no token ids were found in the batches"
        side = tokens.side
        if side is None:
            return "no row is padded" if bool(tokens.real.all()) else "the padding is not at one end of the rows"
        few = max(1, min(SHORT, len(self.rows) // 2))
        short = sorted(tokens.real.sum(1).argsort(stable=True).tolist()[:few])
        small, held = take_rows(batch, short), tokens.of(short)
        keep = held.real.any(0)
        look = PaddingLook(side, tokens.pad_id, few, int((~keep).sum()), given=tokens.mask is not None)
        model = self.context.model
        look = dataclasses.replace(
            look,
            attention=_has(model, nn.MultiheadAttention),
            recurrent=_has(model, nn.RNNBase),
            told=self._told(tokens),
        )
        reference = seen.logits
        if side == "right":
            if bool(keep.all()):
                return "no column is padding in all of the shortest rows"
            cut = without_columns(small, keep, few, tokens.width)
            bare = self._pass(cut, held, keep).logits
            change = self._effect(reference[short], bare, reference)
            finite = bool(torch.isfinite(bare).all())
            look = dataclasses.replace(look, amount=change, bare_finite=finite)
        else:  # with less padding on the left, positions would change
            swapped = other_padding(held) if held.certain else None
            if swapped is None:
                return "the padding is on the left, and no other ids are known to put there"
            other = self._pass(with_values(small, {held.path: swapped}), held)
            change = self._effect(reference[short], other.logits, reference)
            look = dataclasses.replace(look, content=change)
        if change is not None and change.ulps > ROUNDINGS:
            look = dataclasses.replace(look, **self._blame(look, small, held, keep, seen, short))
        base = look.base_amount if side == "right" else look.base_content
        # a library's model that takes no mask at all is not found as a base, and is as its design is all the same
        theirs = self.inner.library if self.inner is not None else any(map(is_library, self.context.model.modules()))
        if not theirs and (base is None or base.ulps > ROUNDINGS):  # no design to respect
            look = dataclasses.replace(look, own=True, **self._own(look, small, held, seen.logits[short], reference))
            if side == "right" and change is not None and change.ulps > ROUNDINGS:
                look = dataclasses.replace(look, **self._stretch(cut, held, keep, bare))
        if look.amount is None and look.content is None and look.bare_finite is not False:
            return "the outputs are not finite"
        return look

    def _turned_look(self, batch: Any, tokens: Tokens | None, what: str, given: torch.Tensor) -> PaddingLook | None:
        """The outputs are not finite, or all the same: are they with the mask turned round? Then it hides the words."""
        if tokens is None or tokens.mask is None or tokens.mask_path is None or tokens.side is None:
            return None
        look = PaddingLook(tokens.side, tokens.pad_id, len(given), 0, given=True, told="mask")
        full = tokens.real.all(1)
        if what == "finite" and bool((~torch.isfinite(given).all(1) == full).all()) and not bool(full.all()):
            return dataclasses.replace(look, turned="full rows")
        with contextlib.suppress(Exception):
            turned = self._pass(with_values(batch, {tokens.mask_path: _turned(tokens.mask)}), tokens).logits
            across = self._effect(turned, _mean(turned))
            if across is not None and (what == "finite" or not _same(across)):
                return dataclasses.replace(look, turned=what)
        return None

    def _told(self, tokens: Tokens) -> str:
        """What says which of the tokens are padding."""
        if tokens.mask is not None:
            return "mask"
        lengths = self.tokens.real.sum(1) if self.tokens is not None else None
        if lengths is not None and any(
            t.dim() == 1 and t.shape == lengths.shape and not t.is_floating_point() and bool((t == lengths).all())
            for t in tensors_of(self.batch)
        ):
            return "lengths"
        return "id" if self.context.intent.pad_token_id is not None else ""

    def _own(
        self, look: PaddingLook, small: Any, held: Tokens, given: torch.Tensor, reference: torch.Tensor
    ) -> dict[str, Any]:
        """A model of the user's own: are the ids under the mask read, and only as long as the mask is not turned round?"""
        swapped = other_padding(held) if held.certain else None
        if held.mask is None or held.mask_path is None or swapped is None:
            return {}
        fields: dict[str, Any] = {}
        with contextlib.suppress(Exception):
            content = look.content
            if content is None:
                other = self._pass(with_values(small, {held.path: swapped}), held).logits
                fields["content"] = content = self._effect(given, other, reference)
            if content is not None and content.ulps > ROUNDINGS:
                turned = {held.mask_path: _turned(held.mask)}
                one = self._pass(with_values(small, turned), held).logits
                two = self._pass(with_values(small, {**turned, held.path: swapped}), held).logits
                fields["content_inverted"] = self._effect(one, two)
        return fields

    def _stretch(self, cut: Any, held: Tokens, keep: torch.Tensor, bare: torch.Tensor) -> dict[str, Any]:
        """The same rows with further padding, with twice as much of it, and with words in its far half."""
        fields: dict[str, Any]
        room = _room(self.context.model, held.width) - int(keep.sum())
        for columns in STRETCHES:
            if 2 * columns > room:
                continue
            with contextlib.suppress(Exception):
                one, two = (self._pass(with_padding(cut, held, keep, n), None).logits for n in (columns, 2 * columns))
                if not one.shape == two.shape == bare.shape:
                    return {}
                left = self._effect(two, _mean(two))
                fields = {
                    "stretched": self._effect(one, two, bare),
                    "stretched_spread": None if left is None else left.spread,
                }
                if held.mask is not None:
                    longer = with_padding(cut, held, keep, 2 * columns)
                    far = with_words_at_the_end(longer, held, columns)
                    fields["far_content"] = self._effect(two, self._pass(far, None).logits, bare)
                return fields
        return {}

    def _blame(
        self, look: PaddingLook, small: Any, held: Tokens, keep: torch.Tensor, seen: Pass, short: list[int]
    ) -> dict[str, Any]:
        """Padding matters: does it matter to the base as well, when that is given the right mask, and what was it given?"""
        fields: dict[str, Any] = {}
        if held.mask is not None and held.mask_path is not None:
            with contextlib.suppress(Exception):
                ones = with_values(small, {held.mask_path: torch.ones_like(held.mask)})
                fields["mask_matters"] = self._effect(seen.logits[short], self._pass(ones, held).logits, seen.logits)
        if self.inner is None:
            return fields
        fields["base"] = self.inner.name
        around = self.context.model.get_submodule(self.inner.name.rpartition(".")[0])
        fields |= {"library": is_library(around), "config_pad": _pad_of(around)}
        if seen.call is not None and self.tokens is not None:
            fields |= handed(seen.call, self.tokens.of(self.rows).real)
        mask = held.real.long()
        with contextlib.suppress(Exception):
            full = by_row(self.inner.direct(held.ids, mask), held)
            if look.side == "right":
                cut = self.inner.direct(held.ids[:, keep], mask[:, keep])
                fields["base_amount"] = self._effect(full, by_row(cut, held, keep))
            elif (swapped := other_padding(held)) is not None:
                fields["base_content"] = self._effect(full, by_row(self.inner.direct(swapped, mask), held))
        return fields


@dataclass(frozen=True)
class Pass:
    """One pass: outputs, one line of numbers a row; what entered the head; the base's call."""

    logits: torch.Tensor
    features: torch.Tensor | None
    call: Call | None


def by_row(values: torch.Tensor, tokens: Tokens | None, keep: torch.Tensor | None = None) -> torch.Tensor:
    """Outputs as ``(rows, numbers)``; of those that stand for tokens, zeros at padding and at columns that were not kept."""
    if tokens is not None and values.dim() >= 3:
        real = tokens.real if keep is None else tokens.real[:, keep]
        if values.shape[:2] == real.shape:
            values = values * real.reshape(*real.shape, *[1] * (values.dim() - 2))
            if keep is not None:
                full = values.new_zeros(len(values), tokens.width, *values.shape[2:])
                full[:, keep] = values
                values = full
    if tokens is not None and len(values) != len(tokens.ids):
        raise ValueError("the model does not give one output a row")
    return values.reshape(len(values), -1)


def _told_besides(call: Call, inner: Inner | None, batch: Any, tokens: Tokens) -> dict[str, bool]:
    """What the base was told besides ids and mask: positions that are none, and types that got lost."""
    found: dict[str, bool] = {}
    positions, shape = call.arguments.get("position_ids"), tokens.ids.shape
    if isinstance(positions, torch.Tensor) and positions.shape[-1:] == shape[-1:] and positions.dim() <= 2:
        wide = positions.expand(shape)
        long = [row[real] for row, real in zip(wide, tokens.real, strict=True) if int(real.sum()) >= 4]
        found["positions_constant"] = bool(long) and all(len(torch.unique(row)) <= 2 for row in long)
    types = batch.get("token_type_ids") if isinstance(batch, Mapping) else None
    if isinstance(types, torch.Tensor) and types.shape == shape and inner is not None:
        got = call.arguments.get("token_type_ids")
        several = len(torch.unique(types[tokens.real])) > 1
        none = got is None or (isinstance(got, torch.Tensor) and len(torch.unique(got)) == 1)
        found["types_lost"] = several and none and "token_type_ids" in inner.parameters
    return found


def _large(look: PaddingLook | RowsLook | None) -> list[Effect]:
    """Effects on the outputs that are more than a few roundings of the largest one."""
    if look is None:
        return []
    found = [look.output] if isinstance(look, RowsLook) else [look.amount, look.content]
    return [e for e in found if e is not None and e.ulps > ROUNDINGS]


def _same(across: Effect) -> bool:
    """Rows differ by no more than rounding."""
    return across.spread <= ROUNDINGS * across.precision * across.scale


def _mean(values: torch.Tensor) -> torch.Tensor:
    return values.mean(0, keepdim=True).expand_as(values)


def _entry(model: nn.Module, head: tuple[str, ...]) -> nn.Module | None:
    """The first module of the head."""
    return next((m for n, m in model.named_modules() if n and in_part(n, head)), None)


def _has(model: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(m, kind) for m in model.modules())


def _room(model: nn.Module, width: int) -> int:
    """Columns that no table in the model is too short for, positions counted from 2 as well: an index out of it ends a GPU's process."""
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings >= width]
    return min(tables, default=width + 2 * STRETCHES[0] + 2) - 2


def _turned(mask: torch.Tensor) -> torch.Tensor:
    return ~mask if mask.dtype == torch.bool else 1 - mask


def _distinct(batch: Any, rows: int) -> int:
    """Different rows among the inputs of a batch."""
    kept: set[bytes] = set()
    columns = [t.detach().reshape(rows, -1).double().cpu() for t in tensors_of(batch) if t.dim() and len(t) == rows]
    for row in range(rows):
        kept.add(b"".join(c[row].numpy().tobytes() for c in columns))
    return len(kept)


def _batch_statistics(model: nn.Module) -> tuple[str, ...]:
    """Layers that normalise over the batch in evaluation mode, too."""
    kinds = (nn.modules.batchnorm._BatchNorm,)
    return tuple(n for n, m in model.named_modules() if isinstance(m, kinds) and m.running_mean is None)


def _config_pad(model: nn.Module) -> int | None:
    """The id of the padding in the model's config, unless it is the end of the text as well."""
    for module in model.modules():
        pad = _pad_of(module)
        if pad is not None:
            return None if pad == getattr(module.config, "eos_token_id", None) else pad
    return None


def _pad_of(module: nn.Module) -> int | None:
    pad = getattr(getattr(module, "config", None), "pad_token_id", None)
    return pad if isinstance(pad, int) and not isinstance(pad, bool) else None
