"""``finetune`` with the session's options applied: steps, seeds, device, calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ..core.recipe import DECIDED_BY, Recipe
from ..core.trace import Trace
from .options import EXTEND_DEFAULT, EXTEND_SECONDS, FIELDS, SEEDS, calibrate
from .session_executor import WORKERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..seeds.runs import Runs


def session_finetune(config: pytest.Config) -> Callable[..., Trace | Runs]:
    """``finetune`` with the session's options."""
    # as a recipe, not as arguments: an lr beside the caller's own optimizer would be refused
    fields, seeds = config.stash[FIELDS], config.stash[SEEDS]
    session = Recipe(**fields)
    of_trainers = Recipe(**{name: value for name, value in fields.items() if name not in DECIDED_BY["trainer"]})
    given = config.stash[EXTEND_SECONDS]
    budget = EXTEND_DEFAULT if given is None else given
    calibrating = calibrate(config) is not None
    workers = config.stash[WORKERS]

    def run(
        model: Any,
        batches: Any = None,
        recipe: Recipe | None = None,
        *,
        extend_seconds: float | None = None,
        **arguments: Any,
    ) -> Trace | Runs:
        from ..checks.longer_runs import BudgetedRuns
        from ..training.finetune import finetune

        longer = BudgetedRuns(budget if extend_seconds is None else extend_seconds)
        if calibrating or "seeds" not in arguments:
            arguments["seeds"] = seeds
        if workers is not None and arguments["seeds"] is not None:
            arguments.setdefault("executor", workers)
        if recipe is None:
            recipe = session if batches is not None else of_trainers
        measured: Trace | Runs = finetune(model, batches, recipe, **arguments)
        if calibrating:
            from ..checks.catalogue import SPECS
            from ..seeds.calibration import begin
            from ..seeds.runs import Runs

            assert isinstance(measured, Runs)
            # of what was measured: nothing is trained once more for it
            begin(measured, [spec.judge for spec in SPECS.values()])
        elif isinstance(measured, Trace) and longer.seconds:
            object.__setattr__(measured, "longer_runs", longer)  # no copy: the listener knows this trace
        return measured

    return run
