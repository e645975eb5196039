"""The verdict on a run without a single optimizer step, and the fault of a run whose backward cannot run."""

from __future__ import annotations

from ..core.formatting import plural
from ..core.trace import Trace
from ..core.verdict import Verdict
from .gradients import faults as gradient_faults
from .optimizer import faults as optimizer_faults
from .spec import Fault

#: Where not even ``backward()`` was called: cause and remedy.
_NO_BATCH = (
    "no batch was trained on: the loader is empty, an exception ended the loop, or a training was resumed from a checkpoint that had all "
    "its steps or epochs already",
    "look at len() of the loader, and at global_step, max_steps and num_train_epochs of what was resumed",
)


def backward_fault(trace: Trace) -> Fault:
    """The fault behind `Trace.backward_error`."""
    error = trace.backward_error or ""
    fault = gradient_faults.GRADIENTS_SWITCHED_OFF if "switched off" in error else gradient_faults.LOSS_CUT_OFF
    return fault.because(error)


def _step_elsewhere_verdict(check: str, trace: Trace, measured: str) -> Verdict | None:
    """The verdict where the one optimizer that stepped holds no tensor of the model; None: that is not so."""
    if not _steps_elsewhere(trace):
        return None
    name, stale = trace.optimizer.name, sum(g.not_in_model for g in trace.optimizer.groups)
    headline = f"{name} holds {plural(stale, 'tensor')} that are not in this model, and none that is: no step concerned the model."
    return optimizer_faults.STALE_OPTIMIZER.with_details(optimizer=name).verdict(check, headline, measured=measured)


def _steps_elsewhere(trace: Trace) -> bool:
    """Whether the one optimizer that stepped holds no tensor of the model."""
    groups = trace.optimizer.groups
    return bool(groups) and not any(g.tensors for g in groups)


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
    if by_hand := _updated_otherwise_verdict(check, trace, measured):
        return by_hand
    if elsewhere := _step_elsewhere_verdict(check, trace, measured):
        return elsewhere
    if not trace.iterations:
        fault = optimizer_faults.NO_STEP_TAKEN.because(*_NO_BATCH)
        return fault.verdict(
            check, "No optimizer step was taken, and no loss had its gradient computed.", measured=measured
        )
    fault = optimizer_faults.NO_STEP_TAKEN.with_details(optimizer=trace.optimizer.name)
    headline = f"No optimizer step was taken in {plural(len(trace.iterations), 'iteration')}."
    return fault.verdict(check, headline, measured=measured)


def _updated_otherwise_verdict(check: str, trace: Trace, measured: str) -> Verdict | None:
    """The verdict where most trainable tensors changed all the same: the loop, or an optimizer that is not torch's, updates them; or one
    of torch updates copies of them (master weights), which the loop writes back."""
    trainable = [t for t in trace.tensors if t.trainable and t.numel and not t.replaced]
    changed = [t for t in trainable if t.motion.between_steps > 0]
    if 2 * len(changed) <= len(trainable):
        return None
    seen = "No step of a torch optimizer was seen"
    if _steps_elsewhere(trace):
        held = plural(sum(g.not_in_model for g in trace.optimizer.groups), "tensor")
        seen = f"{trace.optimizer.name} holds {held} outside this model (master weights?)"
    return Verdict(
        check,
        "inconclusive",
        f"{seen}, and {len(changed)} of {plural(len(trainable), 'trainable tensor')} changed all the same.",
        measured=measured,
        remedy="update the weights by a torch.optim.Optimizer: gradients and updates are read at its steps",
    )
