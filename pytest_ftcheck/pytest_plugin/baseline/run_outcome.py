"""What became of one run beside the baseline: plain data that crosses from the process that trains to the one that reports."""

from __future__ import annotations

from dataclasses import dataclass

from .entry import Entry

#: Outcome of a comparison -> how the summary counts it; from the most harmless to the worst.
COMPARED = {
    "identical": "identical bit for bit",
    "within": "within tolerance",
    "outside": "outside the tolerance of a single run",
    "in part": "compared in part",
    "worse": "worse",
    "inconclusive": "with nothing to compare",
    "not compared": "of another setup",
    "missing": "not in the file",
    "error": "not examined because of an error",
}


#: Those of runs that were not compared.
NOT_COMPARED = ("inconclusive", "not compared", "missing", "error")


@dataclass(frozen=True)
class RunOutcome:
    """One run of this session, compared with the baseline or recorded for it."""

    #: Name of the run.
    key: str
    #: One of `COMPARED`; while the file is written ``recorded`` or ``unrecordable``, too.
    status: str
    #: Why it has this status, where that needs saying.
    reasons: tuple[str, ...] = ()
    #: Numbers that are better than the baseline's.
    improvements: tuple[str, ...] = ()
    #: What to write; None: nothing.
    entry: Entry | None = None
    #: Numbers of the entry that vary so much from seed to seed that even an untrained model would be within tolerance.
    insensitive: tuple[str, ...] = ()
