"""What is not caught, not named or wrongly failed as yet: strict expected failures, to be emptied."""

from __future__ import annotations

#: No check among the expected ones fails.
MISSED: dict[str, str] = {}
#: A check fails, but another cause comes first.
MISNAMED: dict[str, str] = {}
#: Healthy, and a check fails.
ALARMS: dict[str, str] = {}
