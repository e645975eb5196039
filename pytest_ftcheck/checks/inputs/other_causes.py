"""Changes of the output that are no effect of what was changed in the input, and which weights were measured."""

from __future__ import annotations

from ..effects import matters
from .record import BatchMatesMeasurement, Inputs, PaddingMeasurement


def random_output(inputs: Inputs) -> str:
    """Why nothing can be concluded from changes of a random output; empty: it is not random."""
    if inputs.repeat is not None and matters(inputs.repeat):
        return "Not judged: the output is random in evaluation mode (see eval_deterministic)."
    return ""


def mixed_rows(inputs: Inputs) -> str:
    """Why nothing can be concluded about padding where rows depend on each other; empty: they do not."""
    if inputs.batch_mates is not None and matters(inputs.batch_mates.output):
        return "Not judged: a row's output depends on the other rows (see rows_independent)."
    return ""


def which_weights(measurement: PaddingMeasurement | BatchMatesMeasurement) -> str:
    """The weights that it was measured with, for a message."""
    return "initial weights" if measurement.when == "before" else "weights after the training"
