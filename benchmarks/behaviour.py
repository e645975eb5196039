"""What every check says of every case: the table that a change of structure must leave as it is.

    python benchmarks/behaviour.py --write benchmarks/results/behaviour.json          # before the change
    python benchmarks/behaviour.py --compare benchmarks/results/behaviour.json        # after it

Each fault and each healthy control of ``tests/faults`` goes through `finetune` and `diagnose` once, with seed 0. The table has the status
and the fault of all checks and the fault of the first cause; wording is left out. ``--cases FOLDER`` adds another collection: a package
whose ``evaluate.py`` declares what each author believes and whose ``CASES`` are built by ``build(seed)``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SEED = 0


def _traced(collection: str, name: str) -> Any:
    """The trace of one case."""
    from pytest_ftcheck import finetune

    if collection == "tests/faults":
        case = importlib.import_module("faults").CASES[name]
        run = case.build(SEED)
        return finetune(run.model, **{k: v for k, v in run.arguments().items() if k != "model"})
    folder = Path(collection)
    case = importlib.import_module(folder.name).CASES[name]
    declared = importlib.import_module(f"{folder.name}.evaluate").declared
    setup = case.build(SEED)
    return finetune(
        setup.model,
        setup.batches,
        optimizer=setup.optimizer,
        scheduler=setup.scheduler,
        step=lambda _, batch, *__: setup.step(batch),
        loss_fn=setup.loss_fn,
        forward=setup.forward,
        evaluate=lambda _: setup.evaluate(setup),
        eval_batches=setup.eval_batches,
        head=setup.head_prefix,
        steps=case.steps,
        intent=declared(setup.intent),
    )


def _said(collection: str, name: str) -> dict[str, Any]:
    """Status and fault of all checks, and the first cause, of one case."""
    import torch

    from pytest_ftcheck import diagnose

    torch.set_num_threads(1)
    _importable(collection)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            diagnosis = diagnose(_traced(collection, name))
        except Exception as error:
            return {"error": type(error).__name__}
        finally:
            torch.set_grad_enabled(True)
    return {
        "checks": {v.check: v.status + (f" {v.fault}" if v.fault else "") for v in diagnosis.verdicts},
        "first_cause": diagnosis.causes[0].fault or diagnosis.causes[0].checks[0] if diagnosis.causes else None,
    }


def _importable(collection: str) -> None:
    folder = ROOT / "tests" if collection == "tests/faults" else Path(collection).resolve().parent
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _cases(collections: list[str]) -> Iterator[tuple[str, str]]:
    for collection in collections:
        _importable(collection)
        package = "faults" if collection == "tests/faults" else Path(collection).name
        yield from ((collection, name) for name in sorted(importlib.import_module(package).CASES))


def table(collections: list[str], workers: int, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Collection and case -> what is said of it."""
    jobs = list(_cases(collections))
    with ProcessPoolExecutor(workers) as pool:
        futures = [pool.submit(_said, *job) for job in jobs]
        rows = {}
        for (collection, name), future in zip(jobs, futures, strict=True):
            rows[f"{Path(collection).name}/{name}"] = future.result()
            if len(rows) % 20 == 0:
                say(f"{len(rows)} of {len(jobs)} cases")
    return rows


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """One line for each thing that is said otherwise; cases that only one table has are told, too."""
    lines = [f"{name}: only before" for name in sorted(before.keys() - after.keys())]
    lines += [f"{name}: only after" for name in sorted(after.keys() - before.keys())]
    for name in sorted(before.keys() & after.keys()):
        old, new = before[name], after[name]
        if old.get("error") != new.get("error"):
            lines.append(f"{name}: error {old.get('error')} -> {new.get('error')}")
        if old.get("first_cause") != new.get("first_cause"):
            lines.append(f"{name}: first cause {old.get('first_cause')} -> {new.get('first_cause')}")
        was, now = old.get("checks", {}), new.get("checks", {})
        lines += [
            f"{name}: {c}: {was.get(c)} -> {now.get(c)}" for c in sorted({*was, *now}) if was.get(c) != now.get(c)
        ]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, help="file to write the table to")
    parser.add_argument("--compare", type=Path, help="file with an earlier table; exit status 1 where anything differs")
    parser.add_argument("--cases", action="append", default=[], help="folder of a further collection")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    rows = table(["tests/faults", *options.cases], options.workers, lambda line: print(line, file=sys.stderr))
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    if options.compare:
        lines = differences(json.loads(options.compare.read_text()), rows)
        print(
            "\n".join(lines)
            or f"{len(rows)} cases, {sum(len(r.get('checks', ())) for r in rows.values())} verdicts: no difference"
        )
        return bool(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
