"""Makes foreign text safe for a page."""

from __future__ import annotations

from typing import Any

from ...core.formatting import clean as cleaned
from ...core.formatting import shorten

#: Characters of one text: a message has hundreds, a hostile name may have millions.
LONGEST = 1_500


def clean(value: Any) -> Any:
    """Text without control characters, of bounded length; the template escapes it.

    As `core.formatting.clean`, which spells them out; line breaks stay.

    >>> clean("a\\x00b \\u202e c"), clean(3)
    ('a\\\\x00b \\\\u202e c', 3)
    """
    if not isinstance(value, str):
        return value
    return cleaned(shorten(value, LONGEST))


def script_safe(text: str) -> str:
    """JSON that may stand in a script element: nothing in it can end the element or begin a comment.

    >>> script_safe('["</script><!--"]')
    '["\\\\u003c/script\\\\u003e\\\\u003c!--"]'
    """
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
