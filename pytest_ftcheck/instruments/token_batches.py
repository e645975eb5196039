"""`TokenBatches`: token batches described in one line, with uneven lengths, padding on either side, imbalanced classes."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, Literal, SupportsIndex, overload

import torch

from ..core import arguments
from ..core.formatting import PrintedAsRepr
from .on_cpu import on_cpu
from .toys import CLS, PAD, SEP, VOCABULARY

#: First keyword of class 0, and keywords of each class; filler words come after those of the last class.
_FIRST_WORD, _WORDS = 10, 8
#: Words of all rows together, at most: they are made one by one.
MOST_TOKENS = 1_000_000
#: Each has keywords of its own.
MOST_CLASSES = 10_000


@dataclasses.dataclass(frozen=True)
class _Spec:
    batches: int = 4
    rows: int = 8
    last: int | None = None
    classes: int = 2
    shortest: int = 6
    longest: int = 6
    majority: float | None = None
    empty_classes: int = 0
    padding: Literal["right", "left"] = "right"
    pad: int = PAD
    layout: Literal["mapping", "tuple"] = "mapping"
    vocabulary: int = VOCABULARY
    keywords: float = 0.5
    seed: int = 0


class TokenBatches(PrintedAsRepr, tuple[Any, ...]):
    """Batches of a small text-like classification task; ``repr`` is the code that creates them again.

    A tuple of batches, which ``finetune(model, TokenBatches(...))`` takes as it is. A row is ``[CLS] word ... [SEP]``. A share
    ``keywords`` of its words, at least one, indicate its class, the others are noise: a healthy model learns it within a few steps.

    :param batches: number of batches.  :param rows: rows in each.  :param last: rows of the last one, if fewer.
    :param classes: labels are 0 to ``classes - 1``.
    :param shortest: words in the shortest row, >= 1.  :param longest: words in the longest; both occur, if there are two rows.
    :param majority: share of all rows that are of class 0; None: classes are as balanced as possible.
    :param empty_classes: how many classes, the last ones, have no row. Every other class has at least one.
    :param padding: side of the padding, up to the longest row of a batch.  :param pad: token id that pads.
    :param layout: ``mapping`` (``input_ids``, ``attention_mask``, ``labels``) or ``tuple`` (``((ids, length, mask), labels)``).
    :param vocabulary: token ids are below this.  :param keywords: share of the words that indicate the class, above 0 and at most 1.
    :param seed: another seed gives other rows of the same task; torch's random state is neither used nor changed.
    :raises ValueError, TypeError: an invalid argument.

    >>> batch = TokenBatches(batches=1, rows=3, shortest=1, longest=4)[0]
    >>> batch["attention_mask"].sum(1).sort().values.tolist()[::2], batch["labels"].sort().values.tolist()
    ([3, 6], [0, 0, 1])
    >>> TokenBatches(rows=3, majority=0.9)
    TokenBatches(rows=3, majority=0.9)
    """

    _spec: _Spec

    def __new__(cls, **spec: Any) -> TokenBatches:
        known = [f.name for f in dataclasses.fields(_Spec)]
        if unknown := sorted(set(spec) - set(known)):
            raise TypeError(f"{unknown[0]}: TokenBatches has no such argument; it has {', '.join(known)}")
        checked = checked_spec(**spec)
        new = super().__new__(cls, _batches(checked))
        new._spec = checked
        return new

    def __repr__(self) -> str:
        fields = dataclasses.fields(self._spec)
        given = [f"{f.name}={v!r}" for f in fields if (v := getattr(self._spec, f.name)) != f.default]
        return f"TokenBatches({', '.join(given)})"

    def __eq__(self, other: object) -> bool:  # tensors have no single truth value: equal arguments make equal batches
        return self._spec == other._spec if isinstance(other, TokenBatches) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._spec)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), dataclasses.asdict(self._spec)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Any, ...]: ...
    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index)


# what help() and editors show
TokenBatches.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(_Spec).parameters.values()]
)


def checked_spec(**fields: Any) -> _Spec:
    """The arguments of `TokenBatches`, checked; nothing is made of them."""
    spec = _Spec(**fields)
    _check(spec)
    return spec


def _check(spec: _Spec) -> None:
    arguments.whole("classes", spec.classes, least=2, most=MOST_CLASSES)
    fillers = _FIRST_WORD + _WORDS * spec.classes
    smallest = {
        "batches": 1,
        "rows": 1,
        "last": 1,
        "shortest": 1,
        "longest": 1,
        "empty_classes": 0,
        "pad": 0,
    }
    for name, least in {**smallest, "vocabulary": fillers + _WORDS}.items():
        most = arguments.MOST_ITEMS
        arguments.whole(name, getattr(spec, name), least=least, most=most, optional=name == "last")
    arguments.seed("seed", spec.seed)
    arguments.together("words", MOST_TOKENS, batches=spec.batches, rows=spec.rows, longest=spec.longest)
    if spec.last is not None and spec.last > spec.rows:
        raise ValueError(f"last={spec.last}: expected at most rows={spec.rows}")
    if spec.longest < spec.shortest:
        raise ValueError(f"longest={spec.longest}: expected at least shortest={spec.shortest}")
    if spec.empty_classes >= spec.classes:
        raise ValueError(f"empty_classes={spec.empty_classes}: expected fewer than classes={spec.classes}")
    there = spec.classes - spec.empty_classes
    if total(spec) < there:
        raise ValueError(
            f"rows={spec.rows}: {total(spec)} rows in all are too few for one row of each of {there} classes"
        )
    arguments.number("majority", spec.majority, least=1 / spec.classes, most=1, optional=True)
    arguments.number("keywords", spec.keywords, above=0, most=1)
    arguments.one_of("padding", spec.padding, ("right", "left"))
    arguments.one_of("layout", spec.layout, ("mapping", "tuple"))
    if spec.pad in (CLS, SEP) or spec.pad >= _FIRST_WORD:
        raise ValueError(f"pad={spec.pad}: expected a token id below {_FIRST_WORD} that is not {CLS} or {SEP}")


def total(spec: _Spec) -> int:
    """Rows in all batches."""
    return spec.rows * spec.batches - (0 if spec.last is None else spec.rows - spec.last)


@on_cpu
def _batches(spec: _Spec) -> list[Any]:
    g = torch.Generator().manual_seed(spec.seed)
    rows = total(spec)
    labels = _labels(spec, rows)[torch.randperm(rows, generator=g)]
    words = torch.randint(spec.shortest, spec.longest + 1, (rows,), generator=g)
    # the shortest and the longest length occur, in any row
    words[torch.randperm(rows, generator=g)[:2]] = torch.tensor([spec.shortest, spec.longest])[-min(rows, 2) :]
    texts = [_text(int(y), int(n), spec, g) for y, n in zip(labels, words, strict=True)]
    return [_batch(texts[i : i + spec.rows], labels[i : i + spec.rows], spec) for i in range(0, len(texts), spec.rows)]


def _labels(spec: _Spec, rows: int) -> torch.Tensor:
    there = spec.classes - spec.empty_classes
    if spec.majority is None or there == 1:
        return torch.arange(rows) % there
    first = min(max(round(spec.majority * rows), 1), rows - (there - 1))  # at least one for each of the others
    return torch.cat([torch.zeros(first, dtype=torch.long), 1 + torch.arange(rows - first) % (there - 1)])


def _text(label: int, count: int, spec: _Spec, g: torch.Generator) -> list[int]:
    words = torch.randint(_FIRST_WORD + _WORDS * spec.classes, spec.vocabulary, (count,), generator=g)
    keywords = max(1, round(count * spec.keywords))
    where = torch.randperm(count, generator=g)[:keywords]
    words[where] = _FIRST_WORD + _WORDS * label + torch.randint(_WORDS, (keywords,), generator=g)
    return [CLS, *words.tolist(), SEP]


def _batch(texts: list[list[int]], labels: torch.Tensor, spec: _Spec) -> Any:
    length = torch.tensor([len(text) for text in texts])
    width = int(length.max())
    ids = torch.full((len(texts), width), spec.pad)
    mask = torch.zeros_like(ids)
    for i, text in enumerate(texts):
        place = slice(0, len(text)) if spec.padding == "right" else slice(width - len(text), width)
        ids[i, place] = torch.tensor(text)
        mask[i, place] = 1
    if spec.layout == "tuple":
        return (ids, length, mask), labels
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
