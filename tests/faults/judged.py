"""What pytest_ftcheck says of a case, and whether that is right."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass

import torch

from .cases import Case


@dataclass(frozen=True)
class Outcome:
    """One case under one seed."""

    case: Case
    seed: int
    #: Check -> headline of what failed.
    failed: dict[str, str]
    #: ``(fault, title)`` of the causes, first first.
    causes: tuple[tuple[str, str], ...]
    undecided: tuple[str, ...]
    seconds: float
    #: Check -> status.
    statuses: dict[str, str]

    @property
    def gated(self) -> bool:
        """Some check failed."""
        return bool(self.failed)

    @property
    def expected(self) -> bool:
        """One of the checks that should have failed did."""
        return any(check in self.failed for check in self.case.expected)

    @property
    def advised(self) -> bool:
        """One of the checks that should have given advice did."""
        return any(self.statuses.get(check) == "advice" for check in self.case.expected)

    @property
    def named(self) -> bool:
        """The first cause is the one that a knowledgeable person would name."""
        if not self.causes:
            return False
        fault, title = self.causes[0]
        return any(word == fault or word.lower() in title.lower() for word in self.case.cause)


def judge(case: Case, seed: int = 0) -> Outcome:
    """Run the case through `finetune` and `diagnose`."""
    from pytest_ftcheck import diagnose, finetune

    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fault may warn; that is not what is judged
        run = case.build(seed)
        try:
            trace = finetune(run.model, **{k: v for k, v in run.arguments().items() if k != "model"})
        finally:
            torch.set_grad_enabled(True)
        diagnosis = diagnose(trace)
    return Outcome(
        case,
        seed,
        {v.check: v.headline for v in diagnosis.verdicts if v.status == "fail"},
        tuple((c.fault, c.title) for c in diagnosis.causes),
        tuple(v.check for v in diagnosis.verdicts if v.status == "inconclusive"),
        time.perf_counter() - began,
        {v.check: v.status for v in diagnosis.verdicts},
    )
