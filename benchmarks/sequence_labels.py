"""Many labels a row, without a model: ``python benchmarks/sequence_labels.py [--draws 10]``.

Rows are lines of this project's own pages, one word a token. Masked words, tags (function words), the longest word as an answer, and the
second half of a line as the target of the first; each as it is, and with labels shuffled. Printed for each: draws in which the permutation
tests of `labels_learnable` find that labels depend on inputs, draws in which they do not and would find labels simulated on the same rows
(only then may the check fail), and draws that are too weak to judge.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

import numpy as np

from pytest_ftcheck.checks.data.labels_learnable import MIN_POWER, SEQUENCE_ALPHA
from pytest_ftcheck.checks.data.probe.sequence_dependence import measure_sequence_dependence
from pytest_ftcheck.instruments.row_hashes import Rows

LINES = [
    words[:60]
    for page in sorted(Path(__file__).parent.parent.glob("docs/**/*.md"))
    for line in page.read_text(encoding="utf-8").splitlines()
    if len(words := re.findall(r"[a-z]+|[.,;:]", line.lower())) >= 12 and line[0] not in "|`#<"
]
IDS = {word: i + 10 for i, word in enumerate(sorted({w for line in LINES for w in line}))}
FUNCTION = {IDS[w] for w in ("the", "a", "an", "of", "in", "to", "and", "is", "that", "it", "for", "or")}
MASK, MASKED = 3, 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=10)
    draws = parser.parse_args().draws
    print("| rows | words | labels | depend | unrelated | too weak |\n|---|---|---|---|---|---|")
    for rows, words in ((256, 12), (256, 60), (512, 12), (512, 60)):
        found: dict[str, Counter[str]] = {}
        for seed in range(draws):
            rng = np.random.default_rng(seed)
            texts = [np.array([IDS[w] for w in LINES[i][:words]]) for i in rng.permutation(len(LINES))[:rows]]
            for name, (inputs, labels, unit) in _tasks(texts, rng).items():
                for how, given in (("", labels), (", shuffled", _shuffled(labels, unit, rng))):
                    found.setdefault(name + how, Counter())[_answer(inputs, given, unit)] += 1
        for name, answers in found.items():
            counts = " | ".join(str(answers[answer]) for answer in ("depend", "unrelated", "too weak"))
            print(f"| {rows} | {words} | {name} | {counts} |", flush=True)


def _tasks(
    texts: list[np.ndarray], rng: np.random.Generator
) -> dict[str, tuple[list[np.ndarray], list[np.ndarray], str]]:
    hidden = [rng.random(len(t)) < MASKED for t in texts]
    for row in hidden:
        row[rng.integers(len(row))] = True
    names = {i: word for word, i in IDS.items()}
    longest = [max(range(len(t)), key=lambda place, t=t: len(names[int(t[place])])) for t in texts]
    masked = [np.where(h, MASK, t) for h, t in zip(hidden, texts, strict=True)]
    return {
        "masked words": (masked, [np.where(h, t, -100) for h, t in zip(hidden, texts, strict=True)], "token"),
        "tags": (texts, [np.array([int(i) in FUNCTION for i in t]).astype(int) for t in texts], "token"),
        "answers": (texts, [np.array([place, place]) for place in longest], "answer"),
        "targets": ([t[: len(t) // 2] for t in texts], [t[len(t) // 2 :] for t in texts], "target"),
    }


def _shuffled(labels: list[np.ndarray], unit: str, rng: np.random.Generator) -> list[np.ndarray]:
    """Labels of tokens at other places of any row; answers and targets of other rows."""
    if unit != "token":
        return [labels[i] for i in rng.permutation(len(labels))]
    flat = np.concatenate(labels)
    flat[flat != -100] = rng.permutation(flat[flat != -100])
    return np.split(flat, np.cumsum([len(own) for own in labels])[:-1])


def _answer(inputs: list[np.ndarray], labels: list[np.ndarray], unit: str) -> str:
    width = max(map(len, inputs))
    columns = [np.arange(len(t)) for t in inputs]
    rows = Rows(ids=inputs, columns=columns, widths=[width] * len(inputs), batch=[0] * len(inputs))
    target = np.full((len(inputs), width if unit == "token" else max(map(len, labels))), -100)
    for row, own in zip(target, labels, strict=True):
        row[: len(own)] = own
    tested, reason = measure_sequence_dependence(rows, target, unit)
    if tested is None:
        return str(reason)
    if not tested.simulated or min(tested.p_values.values()) <= SEQUENCE_ALPHA:
        return "depend"
    return "unrelated" if tested.detected >= MIN_POWER * tested.simulated else "too weak"


if __name__ == "__main__":
    main()
