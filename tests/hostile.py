"""Foreign text that may break a terminal, a CI log or an XML file: a strategy, and what must be true of what we print."""

from __future__ import annotations

import re

from hypothesis import strategies as st

#: Beginnings of commands to GitHub, Azure and TeamCity; control characters; halves of surrogate pairs; other line breaks; directions.
_PIECES = [
    *("::error file=a,line=1::x", "::add-mask::a", "::stop-commands::t", "::", ":", "##[error]", "##vso[task]", "##teamcity[x", "#"),
    *("\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\t", "\xa0", " ", "   "),
    *("\x00", "\x07", "\x1b[31m", "\x1b]8;;http://x\x07", "\x9b2J", "\ud800", "\udc80", "\ufffe", "\u202e", "\u200b"),
    *("layer", ".weight", "ä", "学", "<b>", "]]>", "&amp;", "100 %", "__proto__"),
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(_PIECES), max_size=12).map("".join)
WORST = "x" + "".join(_PIECES) + "\n::error file=a,line=1::x"
_COMMAND = re.compile(r"^\s*::|##(\[|vso\[|teamcity\[)", re.MULTILINE)


def harmless(text: str) -> bool:
    """Whether a terminal, a CI machine and an XML parser see nothing but text in it.

    Our own texts break lines with a line feed only, so every other line break in it is a foreign one.
    """
    return all(line.isprintable() for line in text.split("\n")) and not _COMMAND.search(text)
