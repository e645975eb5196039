"""What other tools say of the same runs, each used as its README says; what it reports as an error counts as gated, a warning does not.

torch-audit, torchmortem and gradsnitch watch the 40 steps that pytest-torch's ``run_training`` makes; pytest-torch's own assertions,
torchtest2 and guardtower get a model of their own each.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable
from typing import Any

import torch

from .task import Batch, Run

#: Module -> (name on PyPI, version that was measured).
PACKAGES = {
    "pytest_torch": ("pytest-torch", "1.1.1"),
    "torchtest2": ("torchtest2", "0.1.0"),
    "torch_audit": ("torch-audit", "0.3.0"),
    "torchmortem": ("torchmortem", "0.1.1"),
    "guardtower": ("guardtower", "0.1.0"),
    "gradsnitch": ("gradsnitch", "0.1.0"),
}
#: torch-audit looks at one step of so many, torchmortem at its default.
AUDITED = 5


def installed() -> list[str]:
    """Modules of rivals that can be imported."""
    return [m for m in PACKAGES if importlib.util.find_spec(m)]


def judge(made: Callable[[], Run]) -> dict[str, dict[str, Any]]:
    """Name of the tool -> what it said."""
    found: dict[str, list[str]] = {}
    broke: dict[str, str] = {}
    here = installed()

    def asked(module: str, ask: Callable[[], list[str]]) -> None:
        if module not in here:
            return
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                found.setdefault(module, []).extend(ask())
        except Exception as error:
            found.setdefault(module, [])
            broke[module] = f"{type(error).__name__}: {error}"[:300]
        finally:
            torch.set_grad_enabled(True)

    asked("pytest_torch", lambda: _assertions(made()))
    asked("torchtest2", lambda: _torchtest2(made()))
    asked("guardtower", lambda: _guardtower(made()))
    watchers = [m for m in ("torch_audit", "torchmortem", "gradsnitch") if m in here]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            for module, said in _trained(made(), watchers, "pytest_torch" in here).items():
                found.setdefault(module, []).extend(said)
    except Exception as error:
        for module in [*watchers, "pytest_torch"]:
            broke[module] = f"{type(error).__name__}: {error}"[:300]
    finally:
        torch.set_grad_enabled(True)
    return {
        PACKAGES[m][0]: {
            "gated": bool(said),
            "said": "; ".join(said)[:300],
            **({"broke": broke[m]} if m in broke else {}),
        }
        for m, said in found.items()
    }


def _inputs(batch: Batch) -> Batch:
    return {k: v for k, v in batch.items() if k != "labels"}


class _Answered:
    """The loss calls the model; a tool has called it already and hands over what it returned."""

    def __init__(self, output: Any, labels: torch.Tensor) -> None:
        logits = output.logits if hasattr(output, "logits") else output
        self.output = type(
            "Output", (), {"logits": logits, "loss": torch.nn.functional.cross_entropy(logits, labels)}
        )()

    def __call__(self, **_: Any) -> Any:
        return self.output


def _loss_of(run: Run, batch: Batch, output: Any, labels: torch.Tensor | None = None) -> torch.Tensor:
    labels = batch["labels"] if labels is None else labels
    answered: Any = _Answered(output, labels)
    answered.classifier = run.model.classifier
    return run.loss_of(answered, {**batch, "labels": labels})


def _raised(check: Callable[[], Any]) -> list[str]:
    try:
        check()
    except AssertionError as error:
        return [" ".join(str(error).split())[:300]]
    return []


def _assertions(run: Run) -> list[str]:
    from pytest_torch import assert_all_params_receive_grad, check_inference_contract

    first = run.batches[0]
    found = _raised(
        lambda: assert_all_params_receive_grad(run.model, _inputs(first), lambda out: _loss_of(run, first, out))
    )
    return found + _raised(lambda: check_inference_contract(run.model.eval(), _inputs(first)))


def _torchtest2(run: Run) -> list[str]:
    import torchtest2

    first = run.batches[0]
    report = torchtest2.check_model(
        run.model,
        _inputs(first),
        first["labels"],
        loss_fn=lambda out, labels: _loss_of(run, first, out, labels),
        optimizer=run.optimizer(run.model),
    )
    return [f"{r.name}: {r.message}" for r in report.results if r.status.name == "FAIL"]


def _guardtower(run: Run) -> list[str]:
    import guardtower

    first = run.batches[0]
    report = guardtower.audit(run.model, lambda: run.loss_of(run.model, first), optimizer=run.optimizer(run.model))
    return [f"{f.check}: {f.message}" for f in report.errors]


def _trained(run: Run, watchers: list[str], in_pytest_torch: bool) -> dict[str, list[str]]:
    """The training itself, watched by all of them at once."""
    optimizer = run.optimizer(run.model)
    found: dict[str, list[str]] = {}
    auditor = autopsy = monitor = None
    if "torch_audit" in watchers:
        from torch_audit import autopatch

        auditor = autopatch(run.model, optimizer=optimizer, every_n_steps=AUDITED, fail_level="ERROR")
    if "torchmortem" in watchers:
        from torchmortem import Autopsy

        autopsy = Autopsy(run.model, optimizer=optimizer)
        autopsy.attach()
    if "gradsnitch" in watchers:
        import gradsnitch

        monitor = gradsnitch.watch(run.model, optimizer)
    steps = iter(range(run.steps))

    def step(batch: Batch) -> torch.Tensor:
        loss = run.step(run.model, batch, optimizer)
        if autopsy is not None:
            autopsy.step(loss=float(loss))
        if monitor is not None:
            monitor.log(next(steps), float(loss))
        return loss

    if in_pytest_torch:
        from pytest_torch import TrainingSetup, run_training

        found["pytest_torch"] = _raised(
            lambda: run_training(
                lambda: TrainingSetup(run.model, optimizer, None),
                run.batches,
                lambda _, batch: step(batch),
                steps=run.steps,
                seed=run.seed,
            ).assert_healthy(min_relative_decrease=0.1)
        )
    else:
        for k in range(run.steps):
            step(run.batches[k % len(run.batches)])
    if auditor is not None:
        worst = ("ERROR", "FATAL")
        found["torch_audit"] = [
            f"{f.rule_id}: {f.message}" for f in auditor.finish().findings if f.severity.value in worst
        ]
        auditor.unpatch()
    if autopsy is not None:
        autopsy.detach()
        report = autopsy.get_report()
        found["torchmortem"] = [f.title for f in (report.findings if report else []) if f.severity.name == "CRITICAL"]
    if monitor is not None:
        found["gradsnitch"] = [f"{f.code}: {f.name}" for f in monitor.report() if f.severity == "error"]
    return found
