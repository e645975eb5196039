"""Whether training and held-out rows are rows of one kind: their labels, their numbers, and the tokens of their texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ..spec import Fault
from . import faults
from .record import Data, Order

#: Rows below which shares of classes are not compared.
MIN_TRAINED, MIN_HELD_OUT = 64, 32
#: Probability (chi-squared test of homogeneity) below which shares of classes do not differ by chance.
BY_CHANCE = 1e-6
#: Share of the rows that would need another label for the shares to agree (total variation distance). The two parts of TREC's question
#: types, a public benchmark whose test questions come from elsewhere, are 0.136 apart.
LABELS_APART = 0.25
#: Rows are in random order if labels change from row to row this often, as a share of what random order gives.
RANDOM_ORDER = 0.8
#: Classes are balanced if the largest has at most so many times the rows of the smallest, or if a chi-squared test finds no difference.
BALANCED, EVEN = 1.5, 0.01
#: Excess of the distance between two distributions of ids, see `benchmarks/token_distance.py`: pages of one documentation are 0.24 to 0.25
#: apart by their subject and two libraries' source 0.27; documentation and source code 0.26 to 0.51; the same pages in capitals 0.38.
TOKENS_APART = 0.35
#: One id whose share of the tokens is this much higher in the held-out rows: the most common word of English text has 5 to 7 %.
ONE_ID = 0.2
#: Where one id is this share of the held-out tokens, hardly anything is left to predict from.
MOST_ONE_ID = 0.6
#: Standard deviations of random divisions by which a distance must exceed their mean; and embedding tables below this are alphabets.
CLEAR, MIN_VOCABULARY = 6.0, 100
#: Times as large as those of the other part, where the sizes of the rows do not even overlap. Pixels of 0 to 255 that one part divides by
#: 255 are 255 times as large; other sources have other levels, but not all rows of one beyond all of the other.
OTHER_SCALE = 10.0


@dataclass(frozen=True)
class Apart:
    """One way in which training and held-out rows differ."""

    fault: Fault
    headline: str
    limit: str
    evidence: tuple[dict[str, Any], ...] = ()
    #: It explains a run that learns and whose metric on these rows is no better than chance.
    decisive: bool = False


def held_out_apart(trace: Trace) -> tuple[Apart, ...]:
    """The ways in which held-out rows are unlike the training rows; empty: none was found, or there are too few rows to tell."""
    data = trace.measured(Data)
    if data is None or data.source == "the probe batch":
        return ()
    found = _tokens(data), _numbers(data), None if one_part_is_balanced(data) else _labels(data)
    return tuple(apart for apart in found if apart is not None)


def one_part_is_balanced(data: Data) -> bool:
    """Whether the labels are apart because one of the two parts has as many rows of each class: that is done on purpose."""
    if _labels(data) is None or data.held_out_counts is None:
        return False
    here, there = _aligned(data.counts, data.held_out_counts)
    return _balanced(here) or _balanced(there)


def _labels(data: Data) -> Apart | None:
    held_out = data.held_out_counts
    if data.order is None or held_out is None or not _representative(data, data.order):
        return None
    here, there = _aligned(data.counts, held_out)
    rows, total = sum(here), sum(there)
    trained = min(rows, rows if data.distinct is None else data.distinct)  # copies are no further evidence
    if trained < MIN_TRAINED or total < MIN_HELD_OUT:
        return None
    distance = sum(abs(a / rows - b / total) for a, b in zip(here, there, strict=True)) / 2
    if distance < LABELS_APART:
        return None
    if _homogeneous([a * trained / rows for a in here], there) >= BY_CHANCE:
        return None
    most = max(range(len(here)), key=lambda c: abs(here[c] / rows - there[c] / total))
    return Apart(
        faults.LABELS_APART,
        f"Class {most} has {percent(here[most] / rows)} of {plural(rows, 'training row')} and {percent(there[most] / total)} of "
        f"{plural(total, 'held-out row')}.",
        f"shares of the classes that differ by less than {percent(LABELS_APART)} of the rows (total variation distance; here "
        f"{percent(distance)}), or by chance with a probability above {BY_CHANCE:g}",
        tuple(
            {"class": c, "training rows": a, "held-out rows": b}
            for c, (a, b) in enumerate(zip(here, there, strict=True))
        ),
    )


def _representative(data: Data, order: Order) -> bool:
    """All batches were read, or rows in random order: the first part of a file that is not shuffled stands for nothing else."""
    return data.source == "all batches" or order.changes >= RANDOM_ORDER * order.expected_changes


def _aligned(here: Sequence[int], there: Sequence[int]) -> tuple[list[int], list[int]]:
    width = max(len(here), len(there))
    return [*here, *[0] * (width - len(here))], [*there, *[0] * (width - len(there))]


def _homogeneous(here: Sequence[float], there: Sequence[float]) -> float:
    """p-value of Pearson's chi-squared test that two samples have the same shares."""
    used = [(a, b) for a, b in zip(here, there, strict=True) if a + b]
    totals = [sum(column) for column in zip(*used, strict=True)]
    expected = [[total * (a + b) / sum(totals) for total in totals] for a, b in used]
    return _chi_squared([n for row in used for n in row], [n for row in expected for n in row], len(used) - 1)


def _chi_squared(observed: Sequence[float], expected: Sequence[float], freedom: int) -> float:
    """p-value of Pearson's statistic."""
    from scipy.special import chdtrc  # scipy.stats takes half a second to import, and this is needed in most runs

    statistic = sum((n - e) ** 2 / e for n, e in zip(observed, expected, strict=True))
    return float(chdtrc(freedom, statistic)) if freedom else 1.0


def _balanced(counts: Sequence[int]) -> bool:
    """Whether all classes have about as many rows; those that never occur in either part do not count."""
    if min(counts) > 0 and max(counts) <= BALANCED * min(counts):
        return True
    even = [sum(counts) / len(counts)] * len(counts)
    return min(counts) > 0 and _chi_squared(counts, even, len(counts) - 1) >= EVEN


def _numbers(data: Data) -> Apart | None:
    shift = data.number_shift
    if shift is None or shift.rows < MIN_TRAINED or shift.held_out_rows < MIN_HELD_OUT:
        return None
    small, large = sorted((shift.training, shift.held_out), key=lambda sizes: sizes[1])
    if small[2] >= large[0] or large[1] < OTHER_SCALE * small[1]:
        return None
    times = f"{number(large[1] / small[1])} times" if small[1] > 0 else "infinitely many times"
    which = "held-out" if large == shift.held_out else "training"
    return Apart(
        faults.NUMBERS_APART,
        f"The numbers of {plural(shift.held_out_rows, 'held-out row')} are on another scale than those of {shift.rows:,} training rows: "
        f"those of the {which} rows are {times} as large.",
        f"sizes of the rows (root mean squares) that overlap, or medians less than {OTHER_SCALE:g} times as large",
        tuple(
            {"rows": name, "least": sizes[0], "median": sizes[1], "largest": sizes[2]}
            for name, sizes in (("training", shift.training), ("held-out", shift.held_out))
        ),
        decisive=True,
    )


def _tokens(data: Data) -> Apart | None:
    shift, tokens = data.token_shift, data.tokens
    if shift is None or tokens is None or tokens.vocabulary is None or tokens.vocabulary < MIN_VOCABULARY:
        return None
    if shift.distance <= shift.by_chance + CLEAR * shift.spread:
        return None
    limit = (
        f"ids that are at most {percent(TOKENS_APART)} as far apart as texts without a common token, and no id that is more frequent by "
        f"{100 * ONE_ID:.0f} points"
    )
    evidence = (
        {"": "distance of the ids (0 to 1)", "here": shift.distance, "random divisions": shift.by_chance},
        {"": f"share of id {shift.risen}", "training rows": shift.risen_from, "held-out rows": shift.risen_to},
    )
    if shift.risen_to - shift.risen_from >= ONE_ID:
        unknown = faults.TOKENS_APART.because(
            "the held-out words became the unknown token: another letter case, language or tokenizer than in training",
            f"print tokenizer.decode([{shift.risen}]) and one row of either part; tokenise both with one function",
        )
        return Apart(
            unknown,
            f"Id {shift.risen} is {percent(shift.risen_to)} of the held-out tokens and {percent(shift.risen_from)} of the training tokens.",
            limit,
            evidence,
            decisive=shift.risen_to >= MOST_ONE_ID,
        )
    if shift.excess < TOKENS_APART:
        return None
    return Apart(
        faults.TOKENS_APART,
        f"The tokens of {plural(shift.held_out_rows, 'held-out row')} are unlike those of {plural(shift.rows, 'training row')}: their "
        f"distance is {number(shift.distance)}, and {number(shift.by_chance)} between random divisions of the same rows.",
        limit,
        evidence,
    )
