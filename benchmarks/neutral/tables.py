"""From the lines of the results to the tables of the documentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from .matched import counts
from .remarks import HISTORY, REMARKS

OURS = "pytest-ftcheck"
CLEAN = "clean"
ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "docs" / "explanation" / "detection.md", ROOT / "README.md")
BEGIN, END = "<!-- published faults: benchmarks/neutral -->", "<!-- end of published faults -->"
#: A fault hurts where the held-out accuracy is lower than the clean seeds' mean by this many of their standard deviations: of clean runs, 1
#: in 700 is, were they normal.
DEVIATIONS = 3.0
#: Faults that hurt and that other tools had, from which on their table is shown.
LEAST_COMPARED = 10
Line = dict[str, Any]


def harm_limit(lines: Sequence[Line]) -> float | None:
    """The held-out accuracy below which a fault hurts; None: fewer than five clean seeds."""
    clean = [
        s["accuracy"] for s in lines if s["tool"] == OURS and s["source"] == CLEAN and s.get("accuracy") is not None
    ]
    return mean(clean) - DEVIATIONS * stdev(clean) if len(clean) >= 5 else None


def hurting(lines: Sequence[Line]) -> dict[tuple[str, str], bool]:
    """Fault -> whether it hurts: the mean over its seeds. Not in it: faults whose operator changed nothing, and that could not run."""
    limit = harm_limit(lines)
    found: dict[tuple[str, str], list[float]] = {}
    for s in lines:
        if s["tool"] == OURS and s["source"] != CLEAN and s.get("accuracy") is not None:
            found.setdefault((s["source"], s["name"]), []).append(s["accuracy"])
    return {} if limit is None else {name: mean(a) < limit for name, a in found.items()}


def _share(some: int, of: int) -> str:
    return f"{some} of {of}" if of else "-"


def _counted(lines: Sequence[Line], what: Callable[[Line], bool]) -> str:
    return _share(sum(what(s) for s in lines), len(lines))


def summary(lines: Sequence[Line]) -> list[str]:
    """One row a source: the faults that hurt, and what we say of them; then the others, and the clean seeds."""
    hurts = hurting(lines)
    mine = [s for s in lines if s["tool"] == OURS]
    rows = [
        "| source | faults that hurt | failed | cause first | advice | undecided | harmless | of them failed | without effect here |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    sources = list(dict.fromkeys(s["source"] for s in mine if s["source"] != CLEAN))
    for source in [*sources, *(["all"] if len(sources) > 1 else [])]:
        its = [s for s in mine if s["source"] == source or (source == "all" and s["source"] != CLEAN)]
        bad = [s for s in its if hurts.get((s["source"], s["name"])) is True]
        harmless = [s for s in its if hurts.get((s["source"], s["name"])) is False]
        rows.append(
            f"| {source} | {len(bad)} | {sum(s['gated'] for s in bad)} | {sum(s['gated'] and s['named'] for s in bad)} "
            f"| {sum(not s['gated'] and s.get('advised', False) for s in bad)} "
            f"| {sum(not s['gated'] and bool(s['undecided']) for s in bad)} | {len(harmless)} "
            f"| {sum(s['gated'] for s in harmless)} | {sum(bool(s.get('no_effect')) for s in its)} |"
        )
    return rows


def by_tool(lines: Sequence[Line]) -> list[str]:
    """One row a tool, on the faults and clean seeds that others than we were given; empty while those are too few to say anything."""
    hurts = hurting(lines)
    given = {(s["source"], s["name"], s["seed"]) for s in lines if s["tool"] != OURS}
    if sum(hurts.get(key[:2]) is True for key in given) < LEAST_COMPARED:
        return []
    lines = [s for s in lines if (s["source"], s["name"], s["seed"]) in given]
    rows = [
        "| tool | faults that hurt, failed | harmless, failed | clean runs failed | could not run |",
        "|---|---|---|---|---|",
    ]
    for tool in dict.fromkeys(s["tool"] for s in lines):
        its = [s for s in lines if s["tool"] == tool and not s.get("no_effect")]
        parts = [
            [s for s in its if hurts.get((s["source"], s["name"])) is True],
            [s for s in its if hurts.get((s["source"], s["name"])) is False],
            [s for s in its if s["source"] == CLEAN],
        ]
        counts = " | ".join(_counted(p, lambda s: s["gated"]) for p in parts)
        rows.append(f"| {tool} | {counts} | {sum('broke' in s for s in its)} |")
    return rows


def missed(lines: Sequence[Line]) -> list[str]:
    """Faults that hurt and did not fail, or failed for another reason first."""
    hurts = hurting(lines)
    rows = []
    for s in lines:
        if s["tool"] != OURS or not hurts.get((s["source"], s["name"])) or (s["gated"] and s["named"]):
            continue
        said = f"first cause `{s['first']}`" if s["gated"] else "undecided" if s["undecided"] else "passes"
        advice = (
            ""
            if s["gated"] or not s["advice"]
            else "; advice of " + ", ".join(sorted({f"`{a.split(':')[0]}`" for a in s["advice"]}))
        )
        remark = REMARKS.get((s["source"], s["name"]), "") if not s["gated"] else ""
        rows.append(
            f"* {s['source']} {s['name']}: {s['story'].rstrip('.')}. Accuracy {s['accuracy']:.2f}; {said}{advice}."
            + (f" {remark}." if remark else "")
        )
    return rows or ["None."]


def section(lines: Sequence[Line], totals: Mapping[str, int] | None = None) -> list[str]:
    """The part of `docs/explanation/detection.md`; ``totals``: source -> how many faults there are."""
    clean = [s for s in lines if s["tool"] == OURS and s["source"] == CLEAN]
    limit = harm_limit(lines)
    if limit is None:
        return ["Fewer than five clean seeds were run: whether a fault hurts is not known.", ""]
    tools = by_tool(lines)
    if tools:
        tools = [
            *tools,
            "",
            "Only what a tool reports as an error counts, whatever it gives as the cause. All tools had these runs. So few clean seeds say "
            "nothing of false alarms; those on our own healthy runs are [below](#all-cases).",
            "",
        ]
    return [
        "## Faults that others published",
        "",
        _measured(lines, clean, limit, totals or {}),
        "",
        *summary(lines),
        "",
        "*Cause first*: the first cause is what the fault does; which causes count was written down before the first run. "
        "*Undecided*: no check failed, but one was inconclusive. *Advice*: nothing failed, and advice names the cause. "
        "*Without effect here*: outputs, loss and gradients are those of the clean run, bit for bit.",
        "",
        *_named(lines),
        *HISTORY,
        *tools,
        "Missed, or failed for another reason first:",
        "",
        *missed(lines),
        "",
    ]


def _named(lines: Sequence[Line]) -> list[str]:
    """Of the operators that change anything here, hurting or not: how many fail, or get advice that names them; and DEForm's own test."""
    its = [s for s in lines if s["tool"] == OURS and s["source"] == "DEForm" and not s.get("no_effect")]
    if not its:
        return []
    failed, advised = sum(s["gated"] for s in its), sum(not s["gated"] and s.get("advised", False) for s in its)
    killed, judged = counts()
    own = (
        f" By DEForm's own test (each of five runs ends lower than the clean run of its seed, be it by one row) {killed} of {judged} "
        "operators that were tried hurt (`benchmarks/neutral/matched.py`)."
        if judged
        else ""
    )
    text = (
        f"Of {len(its)} operators of DEForm that change anything here, hurting or not, {failed} fail, and {advised} more get advice that "
        "names the alteration."
    )
    return [text + own, ""]


#: Source -> what its faults are.
SOURCES = {
    "DEForm": "DEForm's operators for encoders, run from their authors' package at the severity *high*",
    "TrainCheck": "of the 18 silent errors that TrainCheck's authors reproduced, those that one process shows while it trains, in our "
    "own words",
    "DeepCrime": "DeepCrime's operators, in our own words",
    "DeepFD": "the faults that DeepFD's authors seed, in our own words",
    "Shah et al.": "bugs of training data after Shah, Rahman and Khomh, in our own words",
}


def _measured(lines: Sequence[Line], clean: Sequence[Line], limit: float, totals: Mapping[str, int]) -> str:
    accuracies = [s["accuracy"] for s in clean]
    here = {source: len({s["name"] for s in lines if s["source"] == source}) for source in SOURCES}

    def count(source: str) -> str:
        there = totals.get(source) or here[source]
        return f"{here[source]}" if here[source] >= there else f"{here[source]} of {there} so far"

    there = [text for source, text in SOURCES.items() if not here[source]]
    return (
        "Measured by `benchmarks/neutral`: MiniLM's real weights as a `BertForSequenceClassification`, headlines of BBC news in "
        "five classes, 40 steps of 16 rows, nothing declared, one seed of each fault. The faults are "
        f"{'; '.join(f'{text} ({count(source)})' for source, text in SOURCES.items() if here[source])}. "
        + (f"Not measured yet: {'; '.join(there)}. " if there else "")
        + f"A fault hurts where the held-out accuracy is below {limit:.2f}: {DEVIATIONS:g} standard deviations below the mean of "
        f"{len(clean)} clean seeds ({mean(accuracies):.2f}, from {min(accuracies):.2f} to {max(accuracies):.2f}). "
        f"{_counted(clean, lambda s: s['gated'])} clean seeds failed."
    )


def short(lines: Sequence[Line]) -> list[str]:
    """The part of the README."""
    hurts = hurting(lines)
    mine = [s for s in lines if s["tool"] == OURS]
    rows = ["| published faults that hurt | failed | cause first |", "|---|---|---|"]
    for source in dict.fromkeys(s["source"] for s in mine if s["source"] != CLEAN):
        bad = [s for s in mine if s["source"] == source and hurts.get((source, s["name"]))]
        if bad:
            rows.append(
                f"| {source} | {_counted(bad, lambda s: s['gated'])} | {_counted(bad, lambda s: s['gated'] and s['named'])} |"
            )
    clean = [s for s in mine if s["source"] == CLEAN]
    return [*rows, f"| clean seeds | {_counted(clean, lambda s: s['gated'])} | |", ""]


def write(lines: Sequence[Line], totals: Mapping[str, int] | None = None) -> None:
    """Put the tables between the marks of both pages."""
    for page, text in zip(PAGES, (section(lines, totals), short(lines)), strict=True):
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, mark, after = rest.partition(END)
        if not mark:
            raise ValueError(f"{page} has no {BEGIN} followed by {END}")
        page.write_text("\n".join([before + BEGIN, "", *text, ""]) + END + after, encoding="utf-8")
