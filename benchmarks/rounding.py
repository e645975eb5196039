"""How far are effects of padding and of other rows from what rounding alone does? ``python benchmarks/rounding.py``.

`padding_ignored` and `rows_independent` judge a change of the output beside the spread between rows. Where a head of equal weights sums
normalised features, the outputs are rounding and nothing else, and so is every change of them. The probe therefore moves every
weight by one rounding and calls a change up to `NOISE` times what that does none. Measured here, with the limit at 0 so that nothing is
left out: the change over that of rounding, on constant heads, and on the cases of `tests/faults` where something truly has an effect.
Then, with the limit as it is, how many constant heads fail. Exit status 1 if the two sides meet, or a constant head fails. What rounding
does depends on the kernels: compare machines, or set ATEN_CPU_CAPABILITY=avx2.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from pytest_ftcheck import Trace, check_padding_ignored, check_rows_independent, finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.checks.effects import matters
from pytest_ftcheck.checks.inputs.probe import inputs as probe
from pytest_ftcheck.checks.inputs.record import Inputs
from pytest_ftcheck.core.effect import Effect

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from faults import CASES, Case

VALUES = (0.01, 0.02, 0.1, 1.0)
CHECKS = (check_padding_ignored, check_rows_independent)


def constant_head(value: float, seed: int) -> Trace:
    """A tiny DistilBERT whose head starts with one value in all of its weights."""
    model = tiny_distilbert(seed=seed)
    for name, parameter in model.classifier.named_parameters():
        if name.endswith("weight"):
            nn.init.constant_(parameter, value)
    return finetune(model, toy_batches(seed=seed), lr=1e-3, steps=2, probes=("inputs",))


def case_trace(case: Case) -> Trace:
    """A case of the fault matrix, two steps of it."""
    arguments = case.build(0).arguments()
    arguments = {k: v for k, v in arguments.items() if k not in ("evaluate", "eval_batches", "intent")}
    return finetune(**{**arguments, "steps": 2}, probes=("inputs",))


def ratios(trace: Trace) -> list[float]:
    """Changes that the checks would take for effects, over what rounding does."""
    found = trace.measured(Inputs)
    if found is None or found.rounding is None:
        return []
    effects: list[Effect | None] = [found.batch_mates.output] if found.batch_mates else []
    effects += [found.padding.less_padding, found.padding.other_ids] if found.padding else []
    large = [e for e in effects if e is not None and matters(e)]
    return [e.change / found.rounding.change if found.rounding.change else float("inf") for e in large]


def failed(traces: list[Trace]) -> int:
    """How many of them one of the two checks fails."""
    return sum(any(check(trace).status == "fail" for check in CHECKS) for trace in traces)


def real() -> Iterator[tuple[float, str]]:
    """The smallest ratio of every case that has one: faults of these checks, and healthy models that let padding through by design."""
    for case in CASES.values():
        if set(case.expected) & {"padding_ignored", "rows_independent"} or case.healthy:
            found = ratios(case_trace(case))
            if found:
                yield min(found), case.name


def main() -> int:
    """Both sides; exit status 1 if they meet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}; the limit is {probe.NOISE}")
    limit, probe.NOISE = probe.NOISE, 0
    kinds = [(value, seed) for value in VALUES for seed in range(options.seeds)]
    heads = [constant_head(*kind) for kind in kinds]
    noise = [r for head in heads for r in ratios(head)]
    print(
        f"{len(heads)} constant heads: {len(noise)} changes that look like effects, at most {max(noise, default=0):.2f} roundings;"
    )
    found = sorted(real())
    least = ", ".join(f"{name} {ratio:,.0f}" for ratio, name in found[:3])
    print(f"{len(found)} cases with a real effect, in roundings; the smallest: {least}")
    probe.NOISE = limit
    after = failed([constant_head(*kind) for kind in kinds])
    print(f"constant heads failed: {failed(heads)} without the limit, {after} with it")
    return 0 if max(noise, default=0.0) < limit < found[0][0] and not after else 1


if __name__ == "__main__":
    sys.exit(main())
