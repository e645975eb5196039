"""Leads hypothesis' search towards the border between what passes and what fails; imports nothing heavy, does nothing elsewhere."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .verdict import Verdict

#: A margin further out than this is as good as infinite: hypothesis takes finite numbers only.
_FURTHEST = 1e6
#: Calls with one label within an example that are followed; hypothesis follows each by itself, so more would only scatter the search.
_FOLLOWED = 3


def toward_border(margin: float | Verdict, *, label: str = "margin") -> None:
    """Tell hypothesis how far this example is from failing, so that it looks on where the distance shrinks.

    Within a test under ``@given`` this calls ``hypothesis.target(-margin)``; anywhere else it does nothing, so a helper may call it
    always. Assertions call it themselves for verdicts with a margin.

    :param margin: above 0 on the good side, below 0 beyond the limit, in any unit; NaN counts as far beyond it, as a diverged loss
        is. Or a `Verdict`: its ``margin``, under the name of its check; one without a margin leads nowhere.
    :param label: keeps margins of different things apart.
    :raises TypeError: neither a number nor a verdict.

    >>> toward_border(0.3)  # no property test runs: nothing happens
    """
    from .verdict import Verdict  # every start of pytest loads this module, few call this

    if isinstance(margin, Verdict):
        label = margin.check
        if margin.margin is None:
            return
        margin = margin.margin
    if isinstance(margin, bool) or not isinstance(margin, (int, float)):
        raise TypeError(f"margin={margin!r}: expected a number or a Verdict")
    if not isinstance(label, str):
        raise TypeError(f"label={label!r}: expected a string")
    if not in_example():
        return
    from hypothesis import target  # loaded already, or no example could run
    from hypothesis.errors import InvalidArgument

    score = -_FURTHEST if math.isnan(margin) else min(max(float(margin), -_FURTHEST), _FURTHEST)
    for nth in range(1, _FOLLOWED + 1):
        try:
            target(-score, label=label if nth == 1 else f"{label} ({nth})")
        except InvalidArgument:  # this label was used in this example already
            continue
        return


def in_example() -> bool:
    """Whether hypothesis runs an example right now; never imports it."""
    asked = getattr(sys.modules.get("hypothesis"), "currently_in_test_context", None)
    return asked is not None and bool(asked())
