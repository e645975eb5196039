"""How numbers, names and tables are written, so that every message has one style."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

#: Characters of a small curve, from low to high.
BARS = "▁▂▃▄▅▆▇█"
#: ASCII in place of our own characters where these cannot be printed: one for one, so that columns stay aligned.
_ASCII = str.maketrans({**dict(zip(BARS, "_.:-=+*#", strict=True)), "…": "~"})


class PrintedAsRepr:
    """IPython, and hypothesis, print such a value as its ``repr``, and not field by field."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ARG002
        printer.text(repr(self))


def number(value: float | int | None, digits: int = 3) -> str:
    """A number as a person would write it: ``0.0200``, ``1.2e-09``, ``147,456``, ``NaN``.

    >>> [number(v) for v in (0.02, 1.234e-9, 147456, 0.0, float("nan"), None)]
    ['0.0200', '1.23e-09', '147,456', '0', 'NaN', '-']
    """
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e6:
        return f"{value:.{digits - 1}e}"
    if float(f"{size:.{digits}g}") >= 10**digits:  # as rounded: 999.6 would be written 1.00e+03
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".rstrip(".")


def describe_type(value: Any) -> str:
    """The type of a value with its article, for errors.

    >>> describe_type([]), describe_type(3), describe_type(None)
    ('a list', 'an int', 'a NoneType')
    """
    name = type(value).__name__
    return f"{'an' if name[:1] in 'aeiouAEIO' else 'a'} {name}"


def as_given(value: Any, width: int = 80) -> str:
    """An argument's value for an error: its ``repr`` on one line, cut, harmless; where there is none, its type.

    >>> as_given(-1.0), as_given("a\\nb"), as_given([0] * 1000)[:12], len(as_given([0] * 1000)), as_given(10**5000)
    ('-1.0', "'a\\\\nb'", '[0, 0, 0, 0,', 80, 'an int whose repr raises ValueError')
    """
    try:
        return one_line(repr(value), width)
    except Exception as error:  # noqa: BLE001 - the user's object; python's own for a number of very many digits
        return f"{describe_type(value)} whose repr raises {type(error).__name__}"


def text_of(error: BaseException) -> str:
    """The text of an exception; where reading that raises, what it raises. The text is not cleaned.

    >>> class Unreadable(Exception):
    ...     def __str__(self):
    ...         raise RuntimeError("no text")
    >>> text_of(ValueError("3 rows")), text_of(Unreadable())
    ('3 rows', '(its text raises RuntimeError)')
    """
    try:
        return str(error)
    except Exception as own:  # noqa: BLE001 - an exception of the user's
        return f"(its text raises {type(own).__name__})"


def first_line_of(error: BaseException, most: int = 200) -> str:
    """The first line of an exception's text, of so many characters at most; empty where it has none.

    >>> first_line_of(ValueError("\\n 3 rows\\nand more")), first_line_of(ValueError())
    ('3 rows', '')
    """
    return "".join(text_of(error).strip().splitlines()[:1])[:most]


def named_error(error: BaseException, most: int = 200) -> str:
    """An exception's type, and the first line of its text if it has any.

    >>> named_error(ValueError("3 rows")), named_error(ValueError())
    ('ValueError: 3 rows', 'ValueError')
    """
    line = first_line_of(error, most)
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def percent(share: float | None) -> str:
    """A share of one as a percentage with two or three significant digits.

    >>> [percent(v) for v in (1.0, 0.0312, 0.9999, 0.0, 0.00001, None)]
    ['100 %', '3.1 %', '99.9 %', '0 %', '<0.01 %', '-']
    """
    if share is None or not math.isfinite(share):
        return number(share)
    value = 100 * share
    if value == 0:
        return "0 %"
    if 0 < value < 0.01:
        return "<0.01 %"
    if abs(value) >= 1e4:
        return f"{value:.1e} %"
    if 99.9 < value < 100:  # never rounded up to 100 %
        return "99.9 %"
    if abs(value) >= 9.95:
        return f"{value:.0f} %"
    return f"{value:.1f} %" if abs(value) >= 0.995 else f"{value:.2f} %"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """
    >>> plural(1, "tensor"), plural(4, "tensor")
    ('1 tensor', '4 tensors')
    """
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def more_steps(steps: int) -> int:
    """How many optimizer steps to try where so many were too few: three times as many, at least 100.

    >>> more_steps(20), more_steps(60)
    (100, 180)
    """
    return max(100, 3 * steps)


def shorten(name: str, width: int = 44) -> str:
    """A long name with its middle left out; the two ends are the most informative.

    >>> shorten("transformer.layer.0.attention.q_lin.weight", 24)
    'transform…n.q_lin.weight'
    """
    if len(name) <= width:
        return name
    head = (width - 1) * 2 // 5
    return name[:head] + "…" + name[-(width - 1 - head) :]


#: What a CI machine takes for a command of its own, where it stands in a log: GitHub's runner reads ``::name`` after white space and
#: ``##[name]`` anywhere (github.com/actions/runner, ``ActionCommand``), Azure's and TeamCity's ``##vso[`` and ``##teamcity[``. A long
#: text may be wrapped anywhere, so the names of GitHub's commands are looked for within a line, too; and a colon of ours may follow a text.
_COMMAND = re.compile(
    r"(?:^|(?<=\s)):(?=:|$)|:(?=:(?:add-|remove-|set-|save-|stop-|error|warning|notice|debug|group|endgroup|echo|internal-)[^:\n]*::)"
    r"|#(?=#(?:\[|vso\[|teamcity\[))",
    re.MULTILINE,
)


def clean(text: str) -> str:
    """Foreign text as a terminal, a log and an XML file can hold it; every foreign string goes through here.

    Control characters, halves of surrogate pairs, invisible characters and those that change the writing direction are spelled out,
    and so is the first character of a CI machine's command. Line breaks stay; all other blanks become spaces.

    >>> clean("bell \\x07, half \\ud800\\n::error::no command")
    'bell \\\\x07, half \\\\ud800\\n\\\\x3a:error::no command'
    """
    if text.isascii() and text.isprintable() and "::" not in text and "##" not in text and text[-1:] != ":":
        return text
    if not text.isprintable():
        text = "".join(map(_spelled, text.replace("\r\n", "\n")))
    return _COMMAND.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _spelled(character: str) -> str:
    if character.isprintable() or character == "\n":
        return character
    # white space that is no control character, and no line break of Unicode's
    blank = character == "\t" or (character.isspace() and character >= "\xa0" and character not in "\u2028\u2029")
    return " " if blank else character.encode("unicode_escape").decode()


def clean_fields(record: Any, one_line: Sequence[str] = ()) -> None:
    """Clean the texts of a frozen dataclass that is being made, those in its tuples and dicts, too.

    :param one_line: fields whose white space becomes single blanks where one of it is no blank.
    """

    def cleaned(value: Any) -> Any:
        return clean(value) if isinstance(value, str) else value

    for name, value in vars(record).items():
        if isinstance(value, str):
            joined = " ".join(value.split()) if name in one_line and not value.isprintable() else value
            object.__setattr__(record, name, clean(joined))
        elif isinstance(value, tuple):
            object.__setattr__(record, name, tuple(map(cleaned, value)))
        elif isinstance(value, dict):
            object.__setattr__(record, name, {cleaned(k): cleaned(v) for k, v in value.items()})


def one_line(text: str, width: int) -> str:
    """Foreign text as one line: white space becomes one blank, the rest is as in `clean`, the middle of a long text is left out.

    >>> one_line("two\\nlines, a bell \\x07 and text that runs \\u202ebackwards", 80)
    'two lines, a bell \\\\x07 and text that runs \\\\u202ebackwards'
    """
    # cut before and after: escaping is slow, and makes the text longer
    return shorten(clean(shorten(" ".join(shorten(text, 4 * width).split()), width)), width)


def printable(text: str, encoding: str | None) -> str:
    """The text as a stream of that encoding can print it: our own characters in ASCII, others that it lacks escaped.

    :param encoding: None or unknown: taken for UTF-8 or ASCII, respectively.

    >>> printable("loss █▄▁ …", "ascii"), printable("loss █▄▁", "utf-8"), len(printable("ö", "ascii"))
    ('loss #-_ ~', 'loss █▄▁', 4)
    """
    encoding = encoding or "utf-8"
    try:
        text.encode(encoding)
        return text
    except LookupError:
        encoding = "ascii"
    except UnicodeEncodeError:
        pass
    return text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)


def columns(text: str) -> int:
    """How many columns of a terminal a text takes: two for East Asian characters and emoji, none for combining marks.

    >>> columns("abc"), columns("学习"), columns("e\u0301")
    (3, 4, 1)
    """
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(character: str) -> int:
    from unicodedata import category, east_asian_width

    if category(character) in ("Mn", "Me", "Cf", "Cc"):
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def fit(text: str, width: int, *, keep: str = "start") -> str:
    """A text cut to so many columns, with dots for what is left out.

    :param keep: ``start`` or ``end`` of the text.

    >>> fit("test_it.py::test_head", 12), fit("test_it.py::test_head", 12, keep="end"), fit("学习学习", 7)
    ('test_it.p...', '...test_head', '学习...')
    """
    if columns(text) <= width:
        return text
    left, kept = width - 3, []
    for character in text if keep == "start" else reversed(text):
        left -= _width(character)
        if left < 0:
            break
        kept.append(character)
    dots = "..."[: max(0, width)]
    return "".join(kept) + dots if keep == "start" else dots + "".join(reversed(kept))


def padded(text: str, width: int, *, right: bool = False) -> str:
    """A text filled up with blanks to so many columns.

    >>> padded("学", 4) + "|", padded("1", 3, right=True)
    ('学  |', '  1')
    """
    blanks = " " * max(0, width - columns(text))
    return blanks + text if right else text + blanks


def block_of(name: str) -> str:
    """The block a parameter belongs to: its path up to the first number, else its module.

    >>> block_of("distilbert.transformer.layer.3.ffn.lin1.weight"), block_of("bert.pooler.dense.bias")
    ('distilbert.transformer.layer.3', 'bert.pooler.dense')
    """
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return ".".join(parts[:-1])


def cell(value: Any) -> str:
    """A table cell: numbers as :func:`number` writes them, all else as a text of one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, (int, float)):
        return number(value)
    try:
        return one_line(str(value), 72)
    except Exception as error:  # noqa: BLE001 - an object of the user's
        return f"{describe_type(value)} whose text raises {type(error).__name__}"


def table(rows: Sequence[Mapping[str, Any]], *, indent: str = "  ", most: int | None = None) -> list[str]:
    """Rows of equal columns as aligned lines, numbers to the right; at most ``most`` rows, and how many are left out.

    >>> print("\\n".join(table([{"name": "a", "x": 1.5}, {"name": "bb", "x": None}])))
      name     x
      a     1.50
      bb       -
    """
    if not rows:
        return []
    shown = rows if most is None or len(rows) <= most + 1 else rows[:most]
    # columns without any value are left out
    columns = [
        key for key in dict.fromkeys(k for row in shown for k in row) if any(row.get(key) is not None for row in shown)
    ]
    grid = [[cell(row.get(c)) for c in columns] for row in shown]
    right = [
        all(isinstance(r.get(c), (int, float, type(None))) or cell(r.get(c)).endswith("%") for r in shown)
        for c in columns
    ]
    titles = [one_line(c, 72) for c in columns]
    widths = [max(len(c), *(len(line[i]) for line in grid)) for i, c in enumerate(titles)]

    def line(cells: Sequence[str]) -> str:
        parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
        return (indent + "  ".join(parts)).rstrip()

    lines = [line(titles), *(line(cells) for cells in grid)]
    if len(shown) < len(rows):
        lines.append(f"{indent}... and {len(rows) - len(shown):,} more")
    return lines


def at_iterations(found: Sequence[int], known: Sequence[int]) -> str:
    """When something was seen: from its first iteration on, if it was seen at all that are known from there on.

    >>> at_iterations([2, 3], [0, 1, 2, 3]), at_iterations([2], [0, 1, 2, 3]), at_iterations([0, 2], [0, 1, 2, 3])
    ('from iteration 2 on', 'at iteration 2 alone', 'at 2 of 4 iterations, the first is 0')
    """
    first = found[0]
    if list(found) == [i for i in known if i >= first]:
        return f"from iteration {first} on"
    if len(found) == 1:
        return f"at iteration {first} alone"
    return f"at {len(found):,} of {plural(len(known), 'iteration')}, the first is {first}"
