"""When a change of the outputs matters: more than rounding, and a good share of the spread between rows."""

from __future__ import annotations

from ..core.effect import Effect
from ..core.formatting import number, percent

#: Largest healthy effect, as a share of the spread between rows. Measured in float32: 5e-5 or less on 24 small healthy
#: fine-tunes, 0.24 to 3.2 where the mask is not used (tiny DistilBERT, rows of 7 to 33 tokens, 1 to 7 columns of padding, 5 seeds).
LIMIT = 0.05
#: In roundings (see `Effect.ulps`): a healthy float32 model stays below 1, and the faults come to 10,000 or more.
ROUNDINGS = 64


def matters(effect: Effect) -> bool:
    """Whether it is more than rounding, and more than `LIMIT` of the spread between rows."""
    return effect.ulps > ROUNDINGS and effect.relative > LIMIT


def share(effect: Effect) -> str:
    """The change as a share of the spread, for a message."""
    if effect.spread == 0 and effect.change > 0:
        return f"{number(effect.change)} beside a spread of 0"
    return percent(effect.relative)
