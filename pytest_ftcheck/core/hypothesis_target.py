"""Guides hypothesis' search toward the border between passing and failing examples. Without hypothesis it does nothing."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

from . import arguments
from .formatting import as_given

if TYPE_CHECKING:
    from .verdict import Verdict

#: Margins are clipped to this, because hypothesis takes finite numbers only.
_LARGEST_MARGIN = 1e6
#: Calls with one label that are used in an example; hypothesis optimizes each separately, so more would scatter the search.
_CALLS_USED = 3


def toward_border(margin: float | Verdict, *, label: str = "margin") -> None:
    """Report to hypothesis how far this example is from failing, so that it searches where the distance shrinks.

    In a test under ``@given`` this calls ``hypothesis.target(-margin)``. Elsewhere it does nothing, so helpers may always call it.
    Assertions call it for every verdict with a margin.

    :param margin: above 0 on the good side, below 0 beyond the limit, in any unit; NaN (a diverged loss) counts as far beyond it. Or a
        `Verdict`: its ``margin`` is used under the name of its check; without a margin nothing is reported.
    :param label: distinguishes margins of different quantities.
    :raises TypeError: neither a number nor a verdict.

    >>> toward_border(0.3)  # no property test is running: nothing happens
    """
    from .verdict import Verdict  # lazily: every start of pytest loads this module

    if isinstance(margin, Verdict):
        label = margin.check
        if margin.margin is None:
            return
        margin = margin.margin
    if isinstance(margin, bool) or not isinstance(margin, (int, float)):
        raise TypeError(f"margin={as_given(margin)}: expected a number or a Verdict")
    arguments.text("label", label)
    if not in_example():
        return
    from hypothesis import target  # loaded already, or no example could run
    from hypothesis.errors import InvalidArgument

    score = -_LARGEST_MARGIN if math.isnan(margin) else min(max(float(margin), -_LARGEST_MARGIN), _LARGEST_MARGIN)
    for nth in range(1, _CALLS_USED + 1):
        try:
            target(-score, label=label if nth == 1 else f"{label} ({nth})")
        except InvalidArgument:  # this label was used in this example already
            continue
        return


def in_example() -> bool:
    """Whether hypothesis is running an example; never imports it."""
    in_context = getattr(sys.modules.get("hypothesis"), "currently_in_test_context", None)
    return in_context is not None and bool(in_context())
