"""Traces as short texts: for sending between processes, and for embedding in a page."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import gzip
import hashlib
import math
import weakref
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.trace import Trace

#: Characters of one packed trace that a worker sends, and of all in a page. A page of 50 fine-tunes must stay below
#: 10 MB: one is the drawing library, the rest verdicts and curves.
CARRIED = 8_000_000
EMBEDDED = 3_500_000
#: Recorded steps that stay when series are thinned.
LEAST = 16


@dataclass(frozen=True)
class Packed:
    """A trace as a text."""

    #: Empty: it is too long, however thinned.
    text: str
    #: Its tensors' series hold one in so many recorded steps.
    every: int = 1


def pack(trace: Trace, most: int | None = None) -> Packed:
    """The trace's JSON, compressed (gzip), as base64; the same trace always gives the same text.

    :param most: characters; a longer one has the series of its tensors thinned until it fits.

    >>> from pytest_ftcheck import example_trace
    >>> unpack(pack(example_trace()).text) == example_trace()
    True
    """
    found, every = _packed(trace.to_json()), 1
    while most is not None and len(found) > most:
        # a long trace consists mostly of its series: all halvings at once
        for _ in range(max(1, math.ceil(math.log2(len(found) / max(1, most))))):
            if len(trace.recorded) < 2 * LEAST:
                return Packed("")
            trace, every = thinned(trace), 2 * every
        found = _packed(trace.to_json())
    return Packed(found, every)


def _packed(text: str) -> str:
    # names may hold halves of surrogate pairs; JSON spells them out, so it is ASCII
    return base64.b64encode(gzip.compress(text.encode("ascii"), compresslevel=6, mtime=0)).decode("ascii")


def unpack(text: str) -> Trace:
    """The inverse of `pack`.

    :raises ValueError: it is none.
    """
    if not text:
        raise ValueError("not a packed trace: it is empty")
    try:
        return Trace.from_json(gzip.decompress(base64.b64decode(text, validate=True)).decode("ascii"))
    except (binascii.Error, OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"not a packed trace: {error}") from None


def thinned(trace: Trace) -> Trace:
    """The same trace with the tensors' series at every second of the recorded steps; counts, maxima and sums stay exact."""
    series = ("grad_norms", "updates", "displacements")
    tensors = tuple(dataclasses.replace(t, **{n: getattr(t, n)[::2] for n in series}) for t in trace.tensors)
    return dataclasses.replace(trace, recorded=trace.recorded[::2], tensors=tensors)


def pack_all(texts: Sequence[Callable[[], str]], most: int = EMBEDDED) -> list[Packed]:
    """All packed traces within ``most`` characters: large traces may use what small ones leave. One is in memory at a time.

    :param texts: read a packed trace each, as from `pack`.
    """
    lengths, found = [len(text()) for text in texts], [Packed("")] * len(texts)
    left, waiting = most, sorted(range(len(found)), key=lengths.__getitem__)
    for place, i in enumerate(waiting):
        share, text = left // (len(waiting) - place), texts[i]()
        found[i] = Packed(text) if len(text) <= share else pack(unpack(text), share)
        left -= len(found[i].text)
    return found


@dataclass(frozen=True)
class SentTrace:
    """What one report carries of a trace."""

    #: Of the packed text; the same for equal traces.
    digest: str
    #: The packed trace, in the first report that mentions it; empty in the others.
    packed: str = ""


class TraceSender:
    """Packs each trace of this process once, however many tests judge it.

    The first report that mentions it carries the whole trace, the others its digest.
    """

    def __init__(self) -> None:
        self._sent: dict[int, tuple[weakref.ref[Trace], str]] = {}

    def send(self, trace: Trace) -> SentTrace:
        """The digest, and the trace itself at its first mention."""
        key = id(trace)
        known = self._sent.get(key)
        if known is not None and known[0]() is trace:
            return SentTrace(known[1])
        text = pack(trace, CARRIED).text
        digest = hashlib.sha256(text.encode()).hexdigest()
        self._sent[key] = (weakref.ref(trace, self._forgetting(key)), digest)
        return SentTrace(digest, text)

    def _forgetting(self, key: int) -> Callable[[Any], None]:
        sent = self._sent

        def forget(reference: Any) -> None:
            if (known := sent.get(key)) is not None and known[0] is reference:
                del sent[key]

        return forget
