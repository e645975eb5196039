"""What the keys of a batch of texts say about its tensors."""

from __future__ import annotations

import re

from .batches import Path

#: What the key of a tensor is called whichever text it belongs to.
_KIND = re.compile(
    r"(?:token_?type|segment|position|input|token|word)_?ids|(?:special_tokens|key_padding|attention|attn|padding|pad|input)_?mask|"
    r"tokens|mask|ids"
)


def text_of(path: Path) -> tuple[Path, str] | None:
    """Which text a tensor belongs to: its containers, and its key without the kind of tensor; None: the key names no kind.

    >>> text_of(("query_input_ids",)), text_of(("query_attention_mask",)), text_of(("input_ids_2",))
    (((), 'query'), ((), 'query'), ((), '2'))
    >>> text_of(("query", "attention_mask")), text_of((0, 1))
    ((('query',), ''), None)
    """
    key = path[-1] if path else None
    if not isinstance(key, str) or not (kind := _KIND.search(key)):
        return None
    return path[:-1], (key[: kind.start()] + key[kind.end() :]).strip("_-. ")
