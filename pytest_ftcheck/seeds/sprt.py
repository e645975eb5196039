"""Wald's sequential probability ratio test (SPRT) on passes and failures of seeds, and confidence bounds after it.

Plain arithmetic, no scipy: it runs inside assertions. Abraham Wald, "Sequential tests of statistical hypotheses", Annals of
Mathematical Statistics 16 (1945), 117-186. The intervals after stopping order outcomes by when they were reached (stagewise ordering;
Jennison and Turnbull, Technometrics 25 (1983), 49-58); of a fixed number of seeds they are Clopper and Pearson's
(Biometrika 26 (1934), 404-413).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ..core.arguments import MOST_SEEDS
from ..core.formatting import as_given

Decision = Literal["pass", "fail"]
#: Number of seeds; ``auto``: as many as the test needs.
Seeds = int | Literal["auto"]
#: Confidence of every bound that a message states.
CONFIDENCE = 0.95


class Rates(NamedTuple):
    """How often a setup with a given pass rate passes, fails and stays undecided."""

    passed: float
    failed: float
    undecided: float
    #: Mean number of seeds until the test ends.
    seeds: float


@dataclass(frozen=True)
class SeedTest:
    """Test between two hypotheses: the setup passes on a share ``healthy`` of all seeds, or on a share ``faulty``.

    Each pass adds ``ln(healthy / faulty)`` to the evidence, each failure ``ln((1 - healthy) / (1 - faulty))``; the test ends beyond
    either bound. With the defaults, three passes or two failures in a row end it.

    >>> SeedTest().decide([True, True, True]), SeedTest().decide([False, False]), SeedTest().decide([True, False])
    ('pass', 'fail', None)
    """

    #: Least share of seeds on which a healthy setup passes; no check fails more than 1.2 % of healthy runs (upper 95 % bound over
    #: the 315 of docs/explanation/error-rates.md), which leaves room for harder tasks.
    healthy: float = 0.95
    #: Largest share of seeds on which a faulty one passes.
    faulty: float = 0.20
    #: Largest probability that a healthy setup fails; that a faulty one passes.
    alpha: float = 0.01
    beta: float = 0.01
    #: Seeds after which the test gives up: fewer than 1 in 1,000 of either kind are then undecided.
    most: int = 12

    def __post_init__(self) -> None:
        if not 0 < self.faulty < self.healthy < 1:
            raise ValueError(
                f"healthy={as_given(self.healthy)}, faulty={as_given(self.faulty)}: expected 0 < faulty < healthy < 1"
            )
        for name in ("alpha", "beta"):
            if not 0 < getattr(self, name) < 0.5:
                raise ValueError(
                    f"{name}={as_given(getattr(self, name))}: expected a probability above 0 and below 0.5"
                )
        if self.most < 1:
            raise ValueError(f"most={as_given(self.most)}: expected a whole number >= 1")

    # ------------------------------------------------------------------ deciding
    @property
    def upper(self) -> float:
        """Evidence at which the setup passes, in nats."""
        return math.log((1 - self.alpha) / self.beta)

    @property
    def lower(self) -> float:
        """Evidence at which it fails, in nats."""
        return math.log(self.alpha / (1 - self.beta))

    def evidence(self, passes: int, failures: int) -> float:
        """Log-likelihood ratio in favour of a healthy setup, in nats."""
        return passes * math.log(self.healthy / self.faulty) + failures * math.log(
            (1 - self.healthy) / (1 - self.faulty)
        )

    def after(self, passes: int, failures: int) -> Decision | None:
        """The decision after all seeds of a number that was fixed beforehand; None: undecided."""
        value = self.evidence(passes, failures)
        return "pass" if value >= self.upper else "fail" if value <= self.lower else None

    def decide(self, outcomes: Iterable[bool]) -> Decision | None:
        """The decision at the first bound that is crossed, one seed after the other; None: none yet."""
        passes = failures = 0
        for outcome in outcomes:
            passes, failures = passes + outcome, failures + (not outcome)
            if decision := self.after(passes, failures):
                return decision
        return None

    @property
    def least(self) -> int:
        """Passes in a row that decide."""
        return math.ceil(self.upper / math.log(self.healthy / self.faulty))

    # ------------------------------------------------------------------ error rates
    def rates(self, share: float, most: int | None = None) -> Rates:
        """Exact rates of a setup that passes on ``share`` of seeds, summed over all paths.

        >>> tuple(round(r, 4) for r in SeedTest().rates(0.95))
        (0.9959, 0.0034, 0.0007, 3.4981)
        """
        stages = self._stages(share, self.most if most is None else most)
        passed = math.fsum(s.passed for s in stages)
        failed = math.fsum(s.failed for s in stages)
        return Rates(
            passed,
            failed,
            math.fsum(stages[-1].open.values()),
            1 + math.fsum(sum(s.open.values()) for s in stages[:-1]),
        )

    def fixed(self, share: float, seeds: int) -> Rates:
        """The same for a number of seeds that was fixed beforehand, all evaluated together.

        >>> round(SeedTest().fixed(0.2, 3).passed, 6)
        0.008
        """
        chances = {"pass": 0.0, "fail": 0.0, None: 0.0}
        for failures in range(seeds + 1):
            chance = math.comb(seeds, failures) * share ** (seeds - failures) * (1 - share) ** failures
            chances[self.after(seeds - failures, failures)] += chance
        return Rates(chances["pass"], chances["fail"], chances[None], float(seeds))

    def _stages(self, share: float, most: int) -> list[_Stage]:
        paths, stages = {0: 1.0}, []  # failures so far -> probability of getting there undecided
        for n in range(1, most + 1):
            passed = failed = 0.0
            going: dict[int, float] = {}
            for failures, weight in paths.items():
                for more, chance in ((0, share), (1, 1 - share)):
                    decision = self.after(n - failures - more, failures + more)
                    if decision == "pass":
                        passed += weight * chance
                    elif decision == "fail":
                        failed += weight * chance
                    else:
                        going[failures + more] = going.get(failures + more, 0.0) + weight * chance
            stages.append(_Stage(passed, failed, going))
            paths = going
        return stages

    # ------------------------------------------------------------------ claims
    def interval(
        self, outcomes: Iterable[bool], *, sequential: bool, tail: float = 1 - CONFIDENCE
    ) -> tuple[float, float]:
        """Confidence bounds of the share of seeds on which the setup passes; each is wrong with probability ``tail`` at most.

        :param sequential: this test decided the number of seeds; else it was fixed beforehand.

        >>> [round(b, 3) for b in SeedTest().interval([True] * 3, sequential=True)]
        [0.368, 1.0]
        """
        listed = list(outcomes)
        n, failures = len(listed), listed.count(False)
        if not n:
            return 0.0, 1.0
        if not sequential:
            return (
                _solve(lambda p: _tail(n, n - failures, p), tail) if failures < n else 0.0,
                _solve(lambda p: -_tail(n, failures, 1 - p), -tail) if failures else 1.0,
            )
        decision = self.decide(listed)

        def as_good(share: float) -> float:
            """Probability of an outcome at least as good as this one."""
            stages = self._stages(share, n)
            if decision == "pass":
                return math.fsum(s.passed for s in stages)
            if decision == "fail":
                return 1 - math.fsum(s.failed for s in stages[:-1])
            return math.fsum(s.passed for s in stages) + math.fsum(
                w for f, w in stages[-1].open.items() if f <= failures
            )

        def as_bad(share: float) -> float:
            stages = self._stages(share, n)
            if decision == "fail":
                return math.fsum(s.failed for s in stages)
            if decision == "pass":
                return 1 - math.fsum(s.passed for s in stages[:-1])
            return math.fsum(s.failed for s in stages) + math.fsum(
                w for f, w in stages[-1].open.items() if f >= failures
            )

        return _solve(as_good, tail), _solve(lambda p: -as_bad(p), -tail)


class _Stage(NamedTuple):
    passed: float
    failed: float
    #: Failures so far -> probability of being undecided with them.
    open: dict[int, float]


#: Fewer seeds can never pass at the stated error rates.
LEAST = SeedTest().least


def check_seeds(value: Any) -> Seeds:
    """``value``, if it is ``"auto"`` or a number of seeds that allows a decision.

    >>> check_seeds("auto"), check_seeds(3)
    ('auto', 3)
    """
    accepted = (
        f"'auto' or a whole number >= {LEAST} (and <= {MOST_SEEDS:,}), because fewer passes do not rule out a setup that mostly fails "
        "(for a single run omit seeds=)"
    )
    if isinstance(value, str) and value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int):
        raise (ValueError if isinstance(value, str) else TypeError)(f"seeds={as_given(value)}: expected {accepted}")
    if not LEAST <= value <= MOST_SEEDS:
        raise ValueError(f"seeds={as_given(value)}: expected {accepted}")
    return value


def seeds_to_claim(share: float, confidence: float = CONFIDENCE) -> int:
    """Seeds that must all pass for the claim that ``share`` of all seeds pass.

    >>> seeds_to_claim(0.80), seeds_to_claim(0.95), seeds_to_claim(0.99)
    (14, 59, 299)
    """
    return math.ceil(math.log(1 - confidence) / math.log(share))


def _tail(n: int, least: int, share: float) -> float:
    """Probability of at least ``least`` passes among n."""
    return math.fsum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(least, n + 1))


def _solve(increasing: Callable[[float], float], value: float) -> float:
    """The share in [0, 1] at which an increasing function reaches a value; 0 or 1 where it does not."""
    low, high = 0.0, 1.0
    if increasing(low) >= value:
        return low
    if increasing(high) < value:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if increasing(middle) >= value else (middle, high)
    return (low + high) / 2
