"""The verdict on a run without a single optimizer step, and the fault of a run whose backward cannot run."""

from __future__ import annotations

from ..core.formatting import plural
from ..core.trace import Trace
from ..core.verdict import Verdict
from .gradients import faults as gradient_faults
from .optimizer import faults as optimizer_faults
from .spec import Fault


def backward_fault(trace: Trace) -> Fault:
    """The fault behind `Trace.backward_error`."""
    error = trace.backward_error or ""
    fault = gradient_faults.GRADIENTS_SWITCHED_OFF if "switched off" in error else gradient_faults.LOSS_CUT_OFF
    return fault.because(error)


def no_step_verdict(check: str, trace: Trace, measured: str = "") -> Verdict | None:
    """The verdict of a check that needs optimizer steps on a run without any; None: there were some.

    >>> from pytest_ftcheck import example_trace
    >>> no_step_verdict("weights_move", example_trace(steps=())).headline
    'No optimizer step was taken in 20 iterations.'
    """
    if trace.steps:
        return None
    if trace.backward_error:
        headline = f"No optimizer step was taken because backward cannot run: {trace.backward_error}."
        return backward_fault(trace).verdict(check, headline, measured=measured)
    within = f" in {plural(len(trace.iterations), 'iteration')}" if trace.iterations else ""
    fault = optimizer_faults.NO_STEP_TAKEN.with_details(optimizer=trace.optimizer.name)
    return fault.verdict(check, f"No optimizer step was taken{within}.", measured=measured)
