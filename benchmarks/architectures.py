"""Every architecture that transformers has a class for a task of, and that can be built tiny and offline: a healthy short fine-tune.

    python benchmarks/architectures.py [--task token-classification ...] [--only NAME ...] [--minutes 10] [--again] [--ask] [--out FILE]
        [--write]

Each is what ``pytest --ftcheck-model tiny:NAME/TASK`` judges. BigBird runs in both of its attention modes. What the file of results
(``results/architectures.json``) knows is not run again unless ``--again`` is given, so a run that was stopped goes on; with
``--minutes 0`` it is only summed up. ``--ask`` calls each check by itself, so that what runs only on request (training again,
micro-batches, autocast) is measured, too; its results are only printed.

Prints the failed checks, and for each task how many architectures were judged, how many of these have a failed check, and which were
left out and why. For all of them together: how well the rounding-noise probe separates, by the relative difference between the
gradients of ``loss`` and of ``3 * loss / 3`` for every tensor whose gradient is below 1e-4 of the largest. The exit status is 1 if a
check failed.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers

from pytest_ftcheck import diagnose, finetune
from pytest_ftcheck.checks.catalogue import CHECKS
from pytest_ftcheck.checks.tensor_state import NOISE
from pytest_ftcheck.instruments.tiny_architectures import architectures, tiny
from pytest_ftcheck.instruments.tiny_tasks import TASKS
from pytest_ftcheck.pytest_plugin.build_subject import build
from pytest_ftcheck.pytest_plugin.model_spec import subject_named
from pytest_ftcheck.pytest_plugin.subject import Subject

ROOT = Path(__file__).parent.parent
PAGE, BEGIN, END = (
    ROOT / "docs" / "explanation" / "how-we-judge.md",
    "<!-- architectures -->",
    "<!-- /architectures -->",
)
RESULTS = ROOT / "benchmarks" / "results" / "architectures.json"
#: Modes of one architecture. Rows have 16 tokens; BigBird's sparse attention needs more than (5 + 2 random blocks) x block size.
MODES: dict[str, dict[str, dict[str, Any]]] = {
    "big_bird": {
        "original_full": {"attention_type": "original_full"},
        "block_sparse": {"attention_type": "block_sparse", "block_size": 2, "num_random_blocks": 1},
    }
}
#: As a decoder BigBird is to see earlier positions alone. Its sparse attention has no causal mask: `lm_targets_aligned` fails it, rightly.
NOT_CAUSAL = {("big_bird", "block_sparse", "causal-lm")}
Result = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--only", nargs="*", help="some architectures; default: all")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--again", action="store_true", help="run what the file of results knows, too")
    parser.add_argument("--ask", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="put the table into docs/explanation/how-we-judge.md")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    known: dict[str, Result] = json.loads(options.out.read_text()) if options.out.exists() else {}
    end = time.monotonic() + 60 * options.minutes
    stamp = f"{_commit()}, {datetime.now(timezone.utc):%Y-%m-%d}, torch {torch.__version__}, transformers {transformers.__version__}"
    models = [(task, *model) for task in options.task for model in _models(task)]
    random.Random(0).shuffle(models)  # a run that is stopped is a sample
    for task, name, kind, settings in models:
        key = f"{task} | {name}"
        if (options.only and kind not in options.only) or (key in known and not (options.again or options.ask)):
            continue
        if time.monotonic() > end:
            break
        result = {**_judge(kind, task, settings, options.ask), "by": stamp}
        _tell(key, result)
        if not options.ask:
            known[key] = result
            _write(known, options.out)
    if options.write:
        _write_page(known)
    return _report(known)


def _models(task: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, architecture and further settings of its config."""
    for kind in architectures(task):
        for mode, settings in MODES.get(kind, {"": {}}).items():
            if (kind, mode, task) in NOT_CAUSAL:
                continue
            yield f"{kind} ({mode})" if mode else kind, kind, settings


def _write(known: dict[str, Result], out: Path) -> None:
    """A line for each, by way of another file, so that an interrupt loses nothing."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(result)}" for key, result in sorted(known.items()))
    unfinished = out.with_suffix(".new")
    unfinished.write_text(f"{{\n{lines}\n}}\n")
    unfinished.replace(out)


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip()


# ---------------------------------------------------------------------- one model
def _judge(kind: str, task: str, settings: dict[str, Any], ask: bool) -> Result:
    named = subject_named(f"tiny:{kind}/{task}", {})
    try:
        subject = build(Subject(named.name, lambda: tiny(kind, task, **settings), **named.arguments), seed=0)
        with torch.no_grad():
            subject.model()(**subject.batches[0])
    except Exception as error:
        return {"status": "left out", "why": _one_line(error)}
    try:
        trace = finetune(subject.model, subject.batches, **subject.arguments)
        verdicts = [check(trace) for check in CHECKS.values()] if ask else diagnose(trace).verdicts
    except Exception as error:
        return {"status": "error", "why": _one_line(error)}
    failed = {v.check: v.headline for v in verdicts if v.status == "fail"}
    undecided = [v.check for v in verdicts if v.status == "inconclusive"]
    result: Result = {"status": "failed" if failed else "ok", "undecided": undecided, "noise": _noise(trace)}
    return {**result, "failed": failed} if failed else result


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


def _noise(trace: Any) -> dict[str, list[float]]:
    """For tensors of real gradients and of rounding noise: how many, the difference nearest to the limit, the least and the
    largest gradient over the largest of the model."""
    largest = max(t.gradients.max_norm for t in trace.tensors)
    found: dict[str, list[float]] = {}
    for title, nearest in (("real", max), ("noise", min)):
        weak = [t.gradients for t in trace.tensors if t.gradients.noise is not None]
        weak = [g for g in weak if (g.noise > NOISE) == (title == "noise")]
        if weak:
            sizes = [g.max_norm / largest for g in weak]
            numbers = nearest(g.noise for g in weak), min(sizes), max(sizes)
            found[title] = [len(weak), *(float(f"{n:.2g}") for n in numbers)]
    return found


# ---------------------------------------------------------------------- what is printed
def _tell(key: str, result: Result) -> None:
    more = result.get("why") or ", ".join(result.get("undecided", ()))
    print(f"{result['status']:8s} {key:50s} {more}", flush=True)
    for check, headline in result.get("failed", {}).items():
        print(f"         {check}: {headline}", flush=True)


def _table(known: dict[str, Result]) -> str:
    """For each task: models of transformers' mapping, those that were run, and what came of it."""
    lines = [
        "| task | models of the mapping | judged | with a failed check | undecided | cannot be run tiny |",
        "|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        of_task = [r for key, r in known.items() if key.startswith(f"{task} |")]
        if not of_task:
            continue
        counts = Counter(r["status"] for r in of_task)
        bad, undecided = counts["failed"] + counts["error"], sum(bool(r.get("undecided")) for r in of_task)
        judged = counts["ok"] + bad
        lines.append(
            f"| {task} | {sum(1 for _ in _models(task))} | {judged} | {bad} | {undecided} | {counts['left out']} |"
        )
    return "\n".join(lines)


def _write_page(known: dict[str, Result]) -> None:
    stamps = [r["by"].split(", ") for r in known.values()]
    days, versions = sorted({s[1] for s in stamps}), "; ".join(sorted({", ".join(s[2:]) for s in stamps}))
    reasons = [
        f"{key.replace(' | ', ' of ')} ({_reason(r['why'])})" for key, r in known.items() if r["status"] == "left out"
    ]
    text = (
        f"{_table(known)}\n\nMeasured by `benchmarks/architectures.py`, {' to '.join(dict.fromkeys((days[0], days[-1])))}, "
        f"{versions}, one seed. BigBird counts twice, for its two attention modes. Cannot be run tiny with text alone: "
        f"{'; '.join(reasons) or 'none'}."
    )
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")


def _reason(error: str) -> str:
    """What an error says, without its types and the architecture that it names."""
    return error.rpartition("Error: ")[2].partition("cannot be made tiny: ")[2] or error.rpartition("Error: ")[
        2
    ].rstrip(".:")


def _report(known: dict[str, Result]) -> int:
    print(f"\n{_table(known)}")
    for status in ("failed", "error", "left out"):
        found = {key: r for key, r in known.items() if r["status"] == status}
        print(f"\n{len(found)} {status}" + (":" if found else ""))
        for key, result in found.items():
            print(f"  {key}: {result.get('why') or '; '.join(result['failed'].values())}")
    print("\nrounding-noise probe on tensors whose gradient is below 1e-4 of the largest:")
    for title, nearest in (("real", max), ("noise", min)):
        rows = [(*r["noise"][title], key) for key, r in known.items() if title in r.get("noise", {})]
        if rows:
            edge = nearest(rows, key=lambda row: row[1])
            print(
                f"  {title:5s} {sum(row[0] for row in rows):4.0f} tensors; nearest to the limit of {NOISE}: {edge[1]:.2g} ({edge[4]}); "
                f"gradient over the largest: {min(row[2] for row in rows):.1e} to {max(row[3] for row in rows):.1e}"
            )
    print("\nruns: " + "; ".join(sorted({r["by"] for r in known.values()})))
    return int(any(r["status"] in ("failed", "error") for r in known.values()))


if __name__ == "__main__":
    sys.exit(main())
