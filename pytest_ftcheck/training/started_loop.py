"""A loop that a framework runs, as its adapter describes it, becomes a `WatchedLoop`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..integrations.framework_loop import StartedLoop
from .watched_loop import WatchedLoop


def watch_started(
    loop: StartedLoop,
    optimizers: Sequence[torch.optim.Optimizer] = (),
    given: Mapping[str, Any] | None = None,
    **declared: Any,
) -> WatchedLoop:
    """The loop, not begun yet. What the user gave goes before what the framework says.

    A probe batch that the framework's adapter took, and that cannot be read, is left out with a note: nobody passed it, so nobody can mend
    it, and the training itself does not need it.

    :param given: ``scheduler``, ``probe_batch``, ``loss_fn`` of the user's; None counts as not given.
    :param declared: further arguments of `WatchedLoop`: ``head``, ``intent``, ``probes``.
    :raises ValueError, TypeError: bad input of the user's.
    """
    own = {name: value for name, value in (given or {}).items() if value is not None}
    said = {"scheduler": loop.scheduler, "probe_batch": loop.probe_batch, "loss_fn": loop.loss_fn}
    arguments = {**said, **own}
    optimizers = optimizers or loop.optimizers
    try:
        return WatchedLoop(loop.model, optimizers, **arguments, **declared, notes=loop.notes)
    except Exception as error:
        if loop.probe_batch is None or own.keys() & {"probe_batch", "loss_fn"} or declared.get("probes") is not None:
            raise
        raised = error.__cause__ or error
        why = f"nothing was measured on rows: {type(raised).__name__}: {str(raised).strip()[:300]}"
        arguments["probe_batch"] = arguments["loss_fn"] = None
        return WatchedLoop(loop.model, optimizers, **arguments, **declared, notes=(*loop.notes, why))
