"""Why a published fault that hurts is not failed; written after its messages were read."""

from __future__ import annotations

_SHORT = "The run learns, in few steps: no more is wrong with it"
_WEAK = "What the alteration takes from the features is less than a third of what they say"
_EQUAL_ROWS = (
    "All classes start from the same row, as with zeros, which are a common start of a last layer and learn as slowly"
)
#: ``(source, name)`` -> a sentence without its full stop.
REMARKS = {
    ("DEForm", "OZR"): "A last layer of zeros is a common start, and learns more slowly",
    ("DEForm", "QZQ"): _WEAK,
    ("DEForm", "QZK"): _WEAK,
    ("DeepCrime", "TRD"): "A list of one batch is overfitted on purpose in many tests",
    ("DeepCrime", "TUD"): "The run learns, and one class may well be the most frequent",
    ("DeepCrime", "HBS"): _SHORT,
    ("DeepCrime", "HNE"): _SHORT,
    ("DeepCrime", "HDB"): "One step decides nothing",
    ("DeepCrime", "ACH"): _WEAK,
    ("DeepCrime", "WCI"): _EQUAL_ROWS,
    ("DeepCrime", "OCH"): "The run learns, slowly",
    ("DeepFD", "epoch"): _SHORT,
}
