"""How often each check is wrong: ``python benchmarks/error_rates.py [--healthy N] [--seeds N] [--write]``.

Healthy fine-tunes of a small DistilBERT, drawn at random over optimizers, learning rates, lengths, heads and data, and runs with one
fault each. Prints a page of Markdown; ``--write`` puts it at docs/explanation/error-rates.md too. Every run is determined by its
number, whatever the number of workers; the exit status is 1 if a check that is meant never to fail a healthy run did.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import platform
import random
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import nn
from torch.nn.functional import cross_entropy

from pytest_ftcheck import Trace, finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.checks.catalogue import CHECKS
from pytest_ftcheck.checks.loss.loss_decreases import ALPHA, LEAST_DROP, ROUNDING
from pytest_ftcheck.checks.tensor_state import gradient_state, largest_norm
from pytest_ftcheck.checks.weights.weights_move import LEAST_BUDGET, MOST_STEPS, steps_to_matter

PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "error-rates.md"
HEALTHY, SEEDS, WORKERS = 320, 24, 2

LRS = (5e-5, 1e-4, 3e-4, 1e-3, 2e-3)
#: SGD has no step of its own size: its learning rates are a hundred times those of Adam.
OPTIMIZERS = {"adamw": 1, "adam": 1, "nadam": 1, "radam": 1, "adafactor": 1, "rmsprop": 1, "sgd": 100}
STEPS = (20, 60, 120)
KINDS = ("plain", "frozen base", "zero last layer", "other head init", "accumulation", "small batches", "noisy data")
HEADS: dict[str, Callable[[torch.Tensor], Any]] = {
    "N(0, 0.002)": lambda w: nn.init.normal_(w, 0, 0.002),
    "N(0, 0.2)": lambda w: nn.init.normal_(w, 0, 0.2),
    "xavier": nn.init.xavier_uniform_,
    "kaiming": nn.init.kaiming_normal_,
    "orthogonal": nn.init.orthogonal_,
}
FAULTS = {
    "head not in optimizer": "the optimizer is built over the base only",
    "detached features": "the head reads `features.detach()`",
    "lr 0": "learning rate 0",
    "lr 1e-9": "learning rate 1e-9",
    "head lr 1e-7": "the head's parameter group has learning rate 1e-7",
    "loss x 1e-12": "the loss is multiplied by 1e-12",
    "decay only": "the head's gradients are multiplied by zero; AdamW's decay still moves it",
    "wrong sign": "the loss is negated",
    "shuffled labels": "labels are permuted within each batch",
    "zero_grad before step": "`optimizer.zero_grad()` between `backward()` and `step()`",
    "dead ReLU": "the head's hidden bias is -1000",
    "frozen by mistake": "`requires_grad=False` on the head: undeclared, the checks cannot know that it is a mistake",
}


@dataclass(frozen=True)
class Plan:
    """One run, completely described."""

    number: int
    fault: str | None
    optimizer: str
    lr: float
    steps: int
    classes: int
    kind: str
    head: str
    held_out: bool

    def __str__(self) -> str:
        what = self.kind if self.kind != "other head init" else f"head {self.head}"
        return (
            f"run {self.number}: {self.optimizer}, lr {self.lr:g}, {self.steps} steps, {self.classes} classes, {what}"
        )


@dataclass
class Outcome:
    """What came of it."""

    plan: Plan
    statuses: dict[str, str] = field(default_factory=dict)
    headlines: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def caught(self) -> bool:
        """Whether some check failed."""
        return "fail" in self.statuses.values()


def plans(healthy: int, seeds: int) -> list[Plan]:
    """All runs: the healthy ones go through the kinds in turn and draw the rest."""
    out = []
    for i in range(healthy):
        g = random.Random(f"healthy {i}")
        name = g.choice(list(OPTIMIZERS))
        lr = g.choice(LRS) * OPTIMIZERS[name]
        out.append(
            Plan(
                i,
                None,
                name,
                lr,
                STEPS[i % 3],
                g.randint(2, 5),
                KINDS[i // 3 % len(KINDS)],
                g.choice(list(HEADS)),
                g.random() < 0.5,
            )
        )
    for fault in FAULTS:
        for i in range(seeds):
            g = random.Random(f"{fault} {i}")
            lr = {"lr 0": 0.0, "lr 1e-9": 1e-9}.get(fault, g.choice((3e-4, 1e-3)))
            out.append(Plan(i, fault, "adamw", lr, STEPS[i % 2], g.randint(2, 4), "plain", "", g.random() < 0.5))
    return out


class Detached(nn.Module):
    """The head reads features without a graph."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.base_model, self.classifier = whole.base_model, whole.classifier

    def forward(self, input_: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Logits of a batch."""
        ids, _, mask = input_
        return self.classifier(self.base_model(ids, attention_mask=mask)[0][:, 0].detach())  # type: ignore[no-any-return]


def build(plan: Plan) -> nn.Module:
    """The model of a plan; called under the run's seed."""
    model: nn.Module = tiny_distilbert(plan.classes)
    head = model.classifier
    if plan.kind == "frozen base":
        model.base_model.requires_grad_(False)
    if plan.kind == "zero last layer":
        nn.init.zeros_(head[3].weight)
    if plan.kind == "other head init":
        for layer in (head[0], head[3]):
            HEADS[plan.head](layer.weight)
    if plan.fault == "dead ReLU":
        nn.init.constant_(head[0].bias, -1000.0)
    if plan.fault == "decay only":
        for p in head.parameters():
            p.register_hook(lambda g: g * 0)
    if plan.fault == "frozen by mistake":
        head.requires_grad_(False)
    return Detached(model) if plan.fault == "detached features" else model


def _loss(model: Any, batch: Any) -> torch.Tensor:
    return cross_entropy(model(batch[0]), batch[1])


class Accumulate:
    """A loop body of the user's: one optimizer step every four batches."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: Any, batch: Any, optimizer: Any, _scheduler: Any) -> torch.Tensor:
        model.train()
        loss = _loss(model, batch)
        (loss / 4).backward()
        self.calls += 1
        if self.calls % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
        return loss


def cleared(model: Any, batch: Any, optimizer: Any, _scheduler: Any) -> torch.Tensor:
    """Gradients are thrown away before the step."""
    model.train()
    loss = _loss(model, batch)
    loss.backward()
    optimizer.zero_grad()
    optimizer.step()
    return loss


def train(plan: Plan) -> Trace:
    """The trace of a plan."""
    seed = 10_000 * (1 + [None, *FAULTS].index(plan.fault)) + plan.number
    size = 4 if plan.kind == "small batches" else 16
    share = 0.2 if plan.kind == "noisy data" else 0.5
    count = plan.steps if plan.fault == "shuffled labels" else 16
    batches = toy_batches(count, size, classes=plan.classes, seed=seed, keywords=share)
    held_out = toy_batches(64 // size, size, classes=plan.classes, seed=seed + 5000, keywords=share)
    arguments: dict[str, Any] = {"lr": plan.lr, "optimizer": plan.optimizer, "steps": plan.steps, "seed": seed}
    if plan.fault == "shuffled labels":
        g = torch.Generator().manual_seed(seed)
        batches, held_out = (
            [(x, y[torch.randperm(len(y), generator=g)]) for x, y in part] for part in (batches, held_out)
        )
    elif plan.fault == "head not in optimizer":
        arguments["optimizer"] = lambda m: torch.optim.AdamW(m.base_model.parameters(), lr=plan.lr)
    elif plan.fault == "head lr 1e-7":
        arguments["optimizer"] = lambda m: torch.optim.AdamW(
            [{"params": m.base_model.parameters()}, {"params": m.classifier.parameters(), "lr": 1e-7}], lr=plan.lr
        )
    elif plan.fault == "loss x 1e-12":
        arguments["loss_fn"] = lambda m, b: 1e-12 * _loss(m, b)
    elif plan.fault == "wrong sign":
        arguments["loss_fn"] = lambda m, b: -_loss(m, b)
    elif plan.fault == "zero_grad before step":
        arguments["step"] = cleared
    if plan.kind == "accumulation":
        arguments["step"] = Accumulate()
        arguments["steps"] = 4 * plan.steps
        arguments["max_grad_norm"] = None
        lr = plan.lr
        kind = {"adamw": "AdamW", "nadam": "NAdam", "radam": "RAdam", "rmsprop": "RMSprop", "sgd": "SGD"}
        cls = getattr(torch.optim, kind.get(plan.optimizer, plan.optimizer.capitalize()))
        arguments["optimizer"] = lambda m: cls(m.parameters(), lr=lr)
    if callable(arguments["optimizer"]):
        del arguments["lr"]  # the optimizer decides it
    return finetune(
        lambda: build(plan), batches, head="classifier", eval_batches=held_out if plan.held_out else None, **arguments
    )


def statistic(trace: Trace) -> dict[str, float]:
    """The numbers that the limits are about."""
    out: dict[str, float] = {}
    largest = largest_norm(trace)
    alive = [
        t
        for t in trace.tensors
        if t.trainable and t.group is not None and gradient_state(t, trace, largest) in ("fine", "transient")
    ]
    if trace.optimizer.family == "adam":
        for name, wanted in (("dense", False), ("embedding", True)):
            used = [t.budget_used for t in alive if t.budget_used is not None and (t.role == "embedding") is wanted]
            if used:
                out[f"budget {name}"] = min(used)
    slow = [s for t in alive if (s := steps_to_matter(t)) is not None]
    if slow:
        # without Adam's normalisation only a part that is slow as a whole counts
        out["steps to matter"] = max(slow) if trace.optimizer.family == "adam" else min(slow)
    if trace.probe_loss is not None and len(trace.probe_loss.points) > 1:
        first, last = trace.probe_loss.points[0].loss, trace.probe_loss.points[-1].loss
        out["drop"] = (first - last) / (abs(first) or 1.0)
        descents = trace.probe_loss.descents
        if descents:
            out["descents"] = sum(d.after < d.before - ROUNDING * abs(d.before) for d in descents) / len(descents)
    if trace.metrics and trace.metrics[0].p_value is not None:
        out["permutation p"] = trace.metrics[0].p_value
    return out


def run(plan: Plan) -> Outcome:
    """Train, judge, measure."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    outcome = Outcome(plan)
    try:
        trace = train(plan)
    except Exception as error:
        outcome.error = f"{type(error).__name__}: {error}"
        return outcome
    for name, check in CHECKS.items():
        verdict = check(trace)
        outcome.statuses[name] = verdict.status
        outcome.headlines[name] = verdict.headline
    outcome.numbers = statistic(trace)
    return outcome


# ---------------------------------------------------------------------- the page
def rate(hits: int, total: int) -> str:
    """Share with its exact (Clopper-Pearson) 95 % interval."""
    if not total:
        return "-"
    low, high = binomtest(hits, total).proportion_ci(0.95, method="exact")
    return f"{hits / total:.1%} ({low:.1%} to {high:.1%})"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(str(c) for c in row) + " |" for row in (head, ["---"] * len(head), *rows)] + [""]


def page(outcomes: Sequence[Outcome], seconds: float, command: str) -> str:
    """All results as Markdown."""
    ran = [o for o in outcomes if o.error is None]
    healthy = [o for o in ran if o.plan.fault is None]
    broken: dict[str, list[Outcome]] = defaultdict(list)
    for o in ran:
        if o.plan.fault is not None:
            broken[o.plan.fault].append(o)
    versions = ", ".join(f"{n} {version(n)}" for n in ("pytest-ftcheck", "torch", "transformers"))
    lines = [
        "<!-- Generated by benchmarks/error_rates.py: do not edit. -->",
        "# Error rates",
        "",
        f"Generated by `{command}` on {datetime.now(timezone.utc):%Y-%m-%d}: Python {platform.python_version()}, {versions}; "
        f"{len(outcomes)} runs in {seconds / 60:.0f} minutes. Rates are followed by exact (Clopper-Pearson) 95 % intervals.",
        "",
        "All runs fine-tune `tiny_distilbert` on `toy_batches` from random weights. They say how the checks behave on that "
        "population, not on yours. All checks over many models and faults: [detection.md](detection.md#by-check).",
        "",
        "## Healthy runs",
        "",
        f"{len(healthy)} runs: {', '.join(OPTIMIZERS)}; learning rates {LRS[0]:g} to {LRS[-1]:g} (SGD: times 100), "
        f"{', '.join(map(str, STEPS))} steps, 2 to 5 classes; {', '.join(KINDS[1:])}; "
        "metrics on held-out rows in half of them. Some are slow on purpose (SGD at 0.005, "
        "Adafactor at 5e-5, 20 steps from a zero last layer): there `inconclusive` is right. A `fail` is a false alarm.",
        "",
    ]
    rows = []
    for check in CHECKS:
        c = Counter(o.statuses[check] for o in healthy)
        judged = len(healthy) - c["skipped"]
        rows.append([f"`{check}`", c["pass"], c["inconclusive"], c["skipped"], c["fail"], rate(c["fail"], judged)])
    alarms = [o for o in healthy if o.caught]
    rows.append(["any of them", "", "", "", len(alarms), rate(len(alarms), len(healthy))])
    lines += table(["check", "pass", "inconclusive", "skipped", "fail", "false alarms"], rows)
    if alarms:
        lines += ["Every false alarm:", ""]
        for o in alarms:
            lines += [
                f"* {o.plan}: " + " ".join(f"`{n}`: {o.headlines[n]}" for n, s in o.statuses.items() if s == "fail")
            ]
        lines.append("")
    lines += ["Conclusive verdicts of the two checks that need time, by length and learning rate (all but SGD):", ""]
    rows = []
    for steps in STEPS:
        for lr in LRS:
            group = [o for o in healthy if o.plan.steps == steps and o.plan.lr == lr and o.plan.optimizer != "sgd"]
            if group:
                rows.append(
                    [steps, f"{lr:g}", len(group)]
                    + [
                        rate(sum(o.statuses[c] == "pass" for o in group), len(group))
                        for c in ("loss_decreases", "metric_improves")
                    ]
                )
    lines += table(["steps", "peak LR", "runs", "`loss_decreases` passes", "`metric_improves` passes"], rows)

    lines += [
        "## Faults",
        "",
        f"AdamW at 3e-4 or 1e-3 where the fault does not set it, {STEPS[0]} or {STEPS[1]} steps, 2 to 4 classes. Cells: pass / "
        "inconclusive / fail (skipped left out); all checks called without arguments.",
        "",
    ]
    rows = []
    for fault, runs in broken.items():
        cells = []
        for check in CHECKS:
            c = Counter(o.statuses[check] for o in runs)
            cells.append(f"{c['pass']} / {c['inconclusive']} / {c['fail']}" if c["skipped"] < len(runs) else "-")
        hits = sum(o.caught for o in runs)
        clean = sum(set(o.statuses.values()) <= {"pass", "skipped"} for o in runs)
        rows.append([fault, len(runs), *cells, rate(hits, len(runs)), clean])
    lines += table(["fault", "runs", *(f"`{c}`" for c in CHECKS), "some check fails", "all pass"], rows)
    lines += [f"* {name}: {what}" for name, what in FAULTS.items()] + [""]

    lines += [
        "## Statistics against their limits",
        "",
        "Percentiles over healthy runs, and the median of each fault.",
        "",
    ]
    limits = {
        "budget dense": ("least budget used, dense tensors", f">= {LEAST_BUDGET:g}"),
        "budget embedding": ("least budget used, embeddings", f">= {LEAST_BUDGET:g}"),
        "steps to matter": ("most steps to matter", f"<= {MOST_STEPS:,}"),
        "descents": (
            "share of steps that lower their own batch's loss",
            "> 1/4 to fail not; >= 3/4 and sign test to pass",
        ),
        "drop": ("relative drop of the probe loss", f">= {LEAST_DROP:g} to pass; <= -{LEAST_DROP:g} fails"),
        "permutation p": ("permutation p", f"<= {ALPHA:g} to pass"),
    }
    quantiles = (0, 1, 5, 50, 95, 99, 100)
    rows = []
    for key, (name, limit) in limits.items():
        values = [o.numbers[key] for o in healthy if key in o.numbers and math.isfinite(o.numbers[key])]
        if values:
            rows.append([name, limit, len(values), *(f"{v:.3g}" for v in np.percentile(values, quantiles))])
    lines += table(["statistic", "limit", "runs", *(f"{q} %" for q in quantiles)], rows)
    rows = []
    for fault, runs in broken.items():
        cells = []
        for key in limits:
            values = [o.numbers[key] for o in runs if key in o.numbers]
            cells.append(f"{np.median(values):.3g}" if values else "-")
        rows.append([fault, *cells])
    lines += table(["fault (median)", *(name for name, _ in limits.values())], rows)
    if errors := [o for o in outcomes if o.error is not None]:
        lines += (
            ["## Runs that raised", ""]
            + [f"* {o.plan}{f' ({o.plan.fault})' if o.plan.fault else ''}: {o.error}" for o in errors]
            + [""]
        )
    return "\n".join(lines)


def main() -> int:
    """Run everything, print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--healthy", type=int, default=HEALTHY, help="healthy runs")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs of each fault")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} too")
    options = parser.parse_args()
    began = time.perf_counter()
    todo = plans(options.healthy, options.seeds)
    done: list[Outcome] = []
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        for i, outcome in enumerate(pool.imap_unordered(run, todo, chunksize=2), 1):
            done.append(outcome)
            if i % 20 == 0:
                print(f"{i} of {len(todo)}, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    order = {plan: i for i, plan in enumerate(todo)}
    done.sort(key=lambda o: order[o.plan])
    arguments = "".join(
        f" --{n} {v}"
        for n, v, default in (("healthy", options.healthy, HEALTHY), ("seeds", options.seeds, SEEDS))
        if v != default
    )
    text = page(done, time.perf_counter() - began, f"python benchmarks/error_rates.py{arguments} --write")
    print(text)
    if options.write:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")
    return int(any(o.caught for o in done if o.plan.fault is None) or any(o.error for o in done))


if __name__ == "__main__":
    raise SystemExit(main())
