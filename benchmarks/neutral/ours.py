"""What pytest-ftcheck says of a run, with nothing declared."""

from __future__ import annotations

from typing import Any

from .task import Fault, Run


def judge(run: Run, fault: Fault | None) -> dict[str, Any]:
    """The verdicts, the first cause and the held-out accuracy, as one line of the results."""
    from pytest_ftcheck import diagnose, finetune

    given: dict[str, Any] = {
        "optimizer": run.optimizer,
        "steps": run.steps,
        "seed": run.seed,
        "eval_batches": run.held_out,
    }
    if not run.zero_grad or run.stuck_from is not None:
        given["step"] = run.step
    elif run.loss is not None:
        given["loss_fn"] = run.loss
    if run.max_norm is not None:
        given["max_grad_norm"] = run.max_norm
    trace = finetune(run.model, run.batches, **given)
    diagnosis = diagnose(trace)
    first = diagnosis.causes[0] if diagnosis.causes else None
    words = " ".join([first.fault, first.title, first.why, *first.evidence]).lower() if first else ""
    return {
        "gated": bool(diagnosis.having("fail")),
        "named": bool(first and fault and any(w.lower() in words for w in fault.cause)),
        "first": first.fault if first else "",
        "said": f"{first.title}: {first.why}"[:300] if first else "",
        "failed": [v.check for v in diagnosis.having("fail")],
        "undecided": [v.check for v in diagnosis.having("inconclusive")],
        "advice": [f"{v.check}: {v.fault}: {v.headline}"[:200] for v in diagnosis.having("advice")],
        "accuracy": next((m.last for m in trace.metrics if m.name == "accuracy"), None),
    }
