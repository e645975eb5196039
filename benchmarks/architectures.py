"""Every sequence classifier of transformers, or model for another task, that can be built tiny and offline: a healthy short fine-tune.

    python benchmarks/architectures.py [--task token-classification] [--only NAME ...] [--steps 60] [--ask]

``--ask`` calls each check by itself, so that what runs only on request (training again, micro-batches, autocast) is measured, too.

Each is what ``pytest --ftcheck-model tiny:NAME/TASK`` judges.

Prints, for each architecture, which check does not pass and why, and for all of them together how well the rounding-noise probe
separates: the relative difference between the gradients of ``loss`` and of ``3 * loss / 3`` for every tensor whose gradient is below
1e-4 of the largest. Architectures that cannot be built are listed with the reason.
"""

from __future__ import annotations

import argparse
import time
import warnings
from datetime import datetime, timezone

import torch
import transformers

from pytest_ftcheck import diagnose, finetune
from pytest_ftcheck.checks.catalogue import CHECKS
from pytest_ftcheck.checks.tensor_state import NOISE
from pytest_ftcheck.instruments.tiny_architectures import architectures
from pytest_ftcheck.instruments.tiny_tasks import DEFAULT, TASKS
from pytest_ftcheck.pytest_plugin.build_subject import build
from pytest_ftcheck.pytest_plugin.model_spec import subject_named


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--task", default=DEFAULT, choices=TASKS)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--ask", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    left_out: dict[str, str] = {}
    alarms: list[str] = []
    noise: list[tuple[float, float, str]] = []
    judged = undecided = 0
    for kind in architectures(args.task):
        if args.only and kind not in args.only:
            continue
        began = time.perf_counter()
        try:
            subject = build(
                subject_named(f"tiny:{kind}/{args.task}", {} if args.steps is None else {"steps": args.steps}), seed=0
            )
            with torch.no_grad():
                subject.model()(**subject.batches[0])
        except Exception as error:
            left_out[kind] = f"{type(error).__name__}: {str(error).splitlines()[0][:110] if str(error) else ''}"
            continue
        asked = {"steps": args.steps} if args.steps is not None else {}
        try:
            trace = finetune(subject.model, subject.batches, **{**subject.arguments, **asked})
        except Exception as error:
            alarms.append(f"{kind}: finetune raised {type(error).__name__}: {str(error)[:200]}")
            print("ERROR", alarms[-1], flush=True)
            continue
        judged += 1
        verdicts = [check(trace) for check in CHECKS.values()] if args.ask else diagnose(trace).verdicts
        largest = max(t.gradients.max_norm for t in trace.tensors)
        noise += [
            (t.gradients.noise, t.gradients.max_norm / largest, f"{kind} {t.name}")
            for t in trace.tensors
            if t.gradients.noise is not None
        ]
        odd = [v for v in verdicts if v.status == "fail"]
        undecided += any(v.status == "inconclusive" for v in verdicts)
        print(
            f"{'FAIL' if odd else 'ok  '} {kind:28s} {time.perf_counter() - began:5.1f} s  "
            f"{', '.join(v.check for v in verdicts if v.status == 'inconclusive')}",
            flush=True,
        )
        for v in odd:
            alarms.append(f"{kind}: {v.headline}")
            print(f"       {v.headline}")
    stamp = f"{datetime.now(timezone.utc):%Y-%m-%d}, torch {torch.__version__}, transformers {transformers.__version__}"
    print(
        f"\n{judged} architectures judged; {len(alarms)} failed checks, {undecided} architectures undecided ({stamp})"
    )
    noise.sort()
    real, rounding = [n for n in noise if n[0] <= NOISE], [n for n in noise if n[0] > NOISE]
    print("rounding-noise probe on tensors whose gradient is below 1e-4 of the largest:")
    for title, found, edge in (("real", real, -1), ("noise", rounding, 0)):
        if found:
            sizes = sorted(n[1] for n in found)
            print(
                f"  {title:5s} {len(found):4d} tensors; nearest to the limit of {NOISE}: {found[edge][0]:.2g} ({found[edge][2]}); "
                f"gradient over the largest: {sizes[0]:.1e} to {sizes[-1]:.1e}"
            )
    print(f"\n{len(left_out)} left out:")
    for kind, why in left_out.items():
        print(f"  {kind}: {why}")


if __name__ == "__main__":
    main()
