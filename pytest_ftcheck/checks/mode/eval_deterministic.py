"""In evaluation mode nothing is random, and the user's evaluation changes nothing."""

from __future__ import annotations

import dataclasses

from ...core.formatting import plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..effects import matters, share
from ..gradients.faults import GRADIENTS_SWITCHED_OFF
from ..spec import Fault, Stage, check, not_measured
from . import faults
from .record import Modes

NAME = "eval_deterministic"
#: Observed steps from which running statistics that never change are judged.
MIN_OBSERVED = 3
LIMIT = "the same output, up to rounding"


@check(
    stage=Stage.MODE,
    position=2,
    faults=(
        GRADIENTS_SWITCHED_OFF,
        faults.LAYERS_MADE_IN_FORWARD,
        faults.RANDOM_IN_EVALUATION,
        faults.STATE_CARRIED,
        faults.EVALUATION_CHANGES_MODEL,
        faults.STATISTICS_NEVER_UPDATED,
        faults.EVALUATES_IN_TRAINING_MODE,
    ),
    measurements=(Modes,),
)
def check_eval_deterministic(trace: Trace) -> Verdict:
    """In evaluation mode the same input gives the same output; and the user's own ``evaluate`` evaluates in evaluation mode.

    Two passes over the same rows, random states advanced between them. Where they differ, two more that begin in the same random state: if
    these differ, too, the model carries state from one call to the next. Parameters that each pass makes anew are layers created inside
    ``forward``. A library's model that is random by design (locality-sensitive
    hashing) is exempt.

    >>> from pytest_ftcheck import example_trace
    >>> check_eval_deterministic(example_trace()).status
    'inconclusive'
    """
    modes = trace.measured(Modes)
    if modes is None:
        return not_measured(NAME, trace, Modes)
    if modes.evaluation is None and not modes.passes:
        reason = modes.unmeasured.get("evaluation", "the run ended before this was measured")
        missing = not_measured(NAME, trace, Modes, reason)
        return dataclasses.replace(missing, unmeasured=Modes.probe) if modes.reduced else missing
    for judge in (_judge_lasting_changes, _judge_running_statistics, _judge_randomness, _judge_mode_of_evaluate):
        if verdict := judge(modes):
            return verdict
    headline = f"{_difference(modes)}." if modes.evaluation is not None else "Your evaluate() runs in evaluation mode."
    notes: tuple[str, ...] = ()
    if modes.leaves_evaluation_mode:
        notes = ("evaluate() leaves the model in evaluation mode: call model.train() before training continues",)
    return Verdict(NAME, "pass", headline, limit=LIMIT, notes=notes)


def _judge_lasting_changes(modes: Modes) -> Verdict | None:
    """What the user's evaluation leaves changed."""
    if modes.leaves_gradients_off:
        return _lasting_change(
            GRADIENTS_SWITCHED_OFF.because(
                "torch.set_grad_enabled(False), or a no_grad() or inference_mode() that is entered and never left",
                "with torch.no_grad(): around the evaluation, which switches gradients on again",
            ),
            "Your evaluate() leaves gradients switched off: the next backward() has no graph.",
            "gradients are as before evaluate()",
        )
    limit = "evaluate() leaves the model as it was"
    if modes.changes_values:
        return _lasting_change(
            faults.EVALUATION_CHANGES_MODEL,
            f"Your evaluate() changes the values of {_parameters(modes.changes_values)}.",
            limit,
        )
    if modes.changes_requires_grad:
        return _lasting_change(
            faults.EVALUATION_CHANGES_MODEL.because(
                "evaluate() switches requires_grad instead of gradients, and does not restore it",
                "with torch.no_grad(): around the evaluation; leave requires_grad as it is",
            ),
            f"Your evaluate() changes requires_grad of {_parameters(modes.changes_requires_grad)}.",
            limit,
        )
    return None


def _lasting_change(fault: Fault, headline: str, limit: str) -> Verdict:
    measured = "evaluate() called once more after the run, and the model compared before and after"
    return fault.verdict(NAME, headline, limit=limit, measured=measured)


def _parameters(names: tuple[str, ...]) -> str:
    return f"{plural(len(names), 'parameter')} ({names[0]} first)"


def _judge_running_statistics(modes: Modes) -> Verdict | None:
    norm = next((n for n in modes.batch_norms if not n.changed and n.observed >= MIN_OBSERVED), None)
    if norm is None:
        return None
    fault = faults.STATISTICS_NEVER_UPDATED.with_details(layer=norm.name)
    if norm.momentum == 0:
        fault = fault.because(
            "momentum=0: in torch no batch counts then (elsewhere momentum is the share that is kept)"
        )
    return fault.verdict(
        NAME,
        f"The running statistics of {norm.name} did not change during the run, though it was in training mode: in evaluation it "
        "normalises by their initial values.",
        limit="running statistics of a batch normalisation in training mode change with every batch",
        measured=f"running means before and after the run, at {plural(norm.observed, 'observed step')} in training mode",
    )


def _difference(modes: Modes) -> str:
    assert modes.evaluation is not None
    return (
        f"Two passes over the same {plural(modes.rows, 'row')} in evaluation mode differ by {share(modes.evaluation)} "
        "of the spread between rows"
    )


def _judge_randomness(modes: Modes) -> Verdict | None:
    if modes.evaluation is None or not matters(modes.evaluation):
        return None
    headline = _difference(modes)
    if modes.parameters_made:
        made = plural(modes.parameters_made, "parameter")
        return faults.LAYERS_MADE_IN_FORWARD.verdict(
            NAME,
            f"{headline}: the logits depend on {made} that each pass makes anew, and that the model does not have.",
            limit=LIMIT,
            measured="the graphs of two passes followed to their leaves",
        )
    base_is_random = modes.base_evaluation is not None and modes.base_evaluation.change > 0
    if modes.base_library and base_is_random:
        note = f"exempt: {modes.base}, a class of the library, is itself random in evaluation mode"
        return Verdict(NAME, "pass", f"{headline}, as designed in {modes.base}.", limit=LIMIT, notes=(note,))
    again = modes.evaluation_same_seed
    if again is not None and matters(again):
        return faults.STATE_CARRIED.verdict(
            NAME,
            f"{headline}, also where both begin in the same random state.",
            limit=LIMIT,
            measured="two pairs of passes",
        )
    where = f"inside {modes.base}" if base_is_random else f"outside {modes.base}" if modes.base else "in the model"
    return faults.RANDOM_IN_EVALUATION.with_details(where=where).verdict(
        NAME, f"{headline}.", limit=LIMIT, measured="random states advanced between the passes"
    )


def _judge_mode_of_evaluate(modes: Modes) -> Verdict | None:
    if not modes.passes or modes.passes_random != modes.passes or not modes.training_may_be_random:
        return None
    part = "the model" if modes.passes_training == modes.passes else "a part of the model"
    return faults.EVALUATES_IN_TRAINING_MODE.verdict(
        NAME,
        f"Your evaluate() made {plural(modes.passes, 'forward pass', 'forward passes')}, all with {part} in training mode: "
        "dropout or batch statistics were on.",
        limit="evaluation runs in evaluation mode",
        measured="evaluate() called once more after the run, with the model in training mode",
    )
