"""What is not caught, not named or wrongly failed as yet: strict expected failures, to be emptied.

A reason says what the tool says instead. Of cases in the held-out third it says only that they are: nobody should tune a limit on them.
"""

from __future__ import annotations

HELD_OUT = "in the held-out third"

#: No check among the expected ones fails.
MISSED: dict[str, str] = {
    "averaged_over_the_classes": HELD_OUT,
    "adapter_without_skip": HELD_OUT,
    "decay_lands_on_eps": HELD_OUT,
}
#: A check fails, but another cause comes first.
MISNAMED: dict[str, str] = {
    "averaged_over_features": HELD_OUT,
    "summed_over_rows_and_tags": HELD_OUT,
}
#: Healthy, and a check fails.
ALARMS: dict[str, str] = {}
