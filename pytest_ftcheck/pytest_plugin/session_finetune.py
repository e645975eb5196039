"""``finetune`` with the session's options applied: steps, seeds, device, calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ..core.recipe import Recipe
from .options import FIELDS, SEEDS, calibrate

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.trace import Trace
    from ..seeds.runs import Runs


def session_finetune(config: pytest.Config) -> Callable[..., Trace | Runs]:
    """``finetune`` with the session's options."""
    # as a recipe, not as arguments: an lr beside the caller's own optimizer would be refused
    session, seeds = Recipe(**config.stash[FIELDS]), config.stash[SEEDS]
    calibrating = calibrate(config) is not None

    def run(model: Any, batches: Any, recipe: Recipe | None = None, **arguments: Any) -> Trace | Runs:
        from ..training.finetune import finetune

        if calibrating or "seeds" not in arguments:
            arguments["seeds"] = seeds
        measured: Trace | Runs = finetune(model, batches, session if recipe is None else recipe, **arguments)
        if calibrating:
            from ..checks.catalogue import SPECS
            from ..seeds.calibration import begin
            from ..seeds.runs import Runs

            assert isinstance(measured, Runs)
            # of what was measured: nothing is trained once more for it
            begin(measured, [spec.judge for spec in SPECS.values()])
        return measured

    return run
