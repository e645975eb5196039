"""Does the base compute what its class computes?"""

from __future__ import annotations

import math

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Fault, Rank, Stage, Symptom, check, not_measured
from .base_twin_record import BaseTwin, Difference, RaisedDropout, TwinComparison
from .harm import harm_of_alteration
from .overwritten_vectors import VECTORS_OVERWRITTEN, judge_vectors

NAME = "base_computes_its_class"
#: Rate from which on dropout that was raised above the class's is judged: the noise that it adds, of variance p / (1 - p) times a value's
#: square, is then as large as the value.
NOISY = 0.5
BASE_ALTERED = Fault(
    "base_altered",
    Rank.START + 1,
    "the base does not compute what its class computes",
    cause="the base was changed after it was made: {changes}",
    remedy="remove what changes it: hooks, replaced functions, exchanged submodules, attributes and config fields set after the model was "
    "made; a change that is wanted belongs in a class of your own",
    explains=(
        Symptom.INPUT_LOST,
        Symptom.STANDS_STILL,
        Symptom.BLOWS_UP,
        "eval_deterministic",
        "padding_ignored",
        "rows_independent",
    ),
)


@check(
    stage=Stage.START,
    position=4,
    faults=(BASE_ALTERED, VECTORS_OVERWRITTEN),
    measurements=(BaseTwin,),
)
def check_base_computes_its_class(trace: Trace) -> Verdict:
    """A library's base gives the outputs of a fresh twin: a module of its class and config with the same weights and inputs.

    Where they differ by more than rounding, the first submodule that differs is named, and what is changed there. It is a fault where the
    run does not learn, or where a linear layer does clearly better on the twin's features than on the base's, and than the whole run. Else,
    or where nothing shows whether the run learns, it is advice. Dropout that was raised to 0.5 or more after the base was made, which shows
    in training alone, is judged alike, and so are gains and biases that no training leaves behind: all of a vector at one value that the
    class does not start it with, or as many gains below 0 as a draw around 0 gives.

    >>> from pytest_ftcheck import example_trace
    >>> from pytest_ftcheck.checks.head.base_twin_record import BaseTwin, TwinComparison
    >>> same = TwinComparison("bert", "BertModel", 2, 40, 40, 0.0, 7.6e-6)
    >>> print(check_base_computes_its_class(example_trace(measurements={"base_twin": BaseTwin((same,))})))
    base_computes_its_class: pass. bert computes what BertModel computes: 40 of 40 submodules agree with a fresh twin.
    """
    twins = trace.measured(BaseTwin)
    if twins is None:
        return not_measured(NAME, trace, BaseTwin)
    altered = [b for b in twins.bases if b.first is not None]
    notes = tuple(f"not compared: {reason}" for reason in twins.left_out)
    if not altered:
        noisy = [(b, d) for b in twins.bases for d in b.raised_dropout if d.rate >= NOISY]
        if noisy:
            return _raised(trace, noisy[0][0], [d for b, d in noisy if b is noisy[0][0]], notes)
        if overwritten := judge_vectors(NAME, trace, twins.bases):
            return overwritten
        return Verdict(NAME, "pass", _agreement(twins.bases), measured=_measured(twins.bases), notes=notes)
    base, first = altered[0], altered[0].first
    assert first is not None
    harm = harm_of_alteration(trace)
    return BASE_ALTERED.with_details(changes=_changes(base, first)).verdict(
        NAME,
        f"{base.base} does not compute what {base.class_name} computes: {_where(first)}. {_whole(base)}{harm.sentence}",
        harm.status,
        limit="; ".join(filter(None, (f"at most {number(base.limit)} of the largest value: rounding", harm.limit))),
        measured=_measured(altered[:1]),
        notes=(*notes, *harm.notes),
    )


def _raised(trace: Trace, base: TwinComparison, sites: list[RaisedDropout], notes: tuple[str, ...]) -> Verdict:
    """More dropout than the class has."""
    harm = harm_of_alteration(trace)
    most = max(sites, key=lambda d: d.rate)
    changes = f"{most.module} has a dropout rate of {number(most.rate)}, in the twin {number(most.of_class)}"
    return BASE_ALTERED.with_details(changes=changes).verdict(
        NAME,
        f"In training {base.base} drops more than {base.class_name} does: at {plural(len(sites), 'place')} the dropout rate is up to "
        f"{number(most.rate)}, of the class {number(most.of_class)}.",
        harm.status,
        remedy="set the rate in the config before the base is made, and lower: from_pretrained(..., hidden_dropout_prob=0.1)",
        limit=f"below {NOISY:g}, or the rate of the class: from there the noise is as large as the values",
        measured=_measured([base]),
        notes=(*notes, *harm.notes_on_learning),
    )


def _agreement(bases: tuple[TwinComparison, ...]) -> str:
    parts = [
        f"{b.base} computes what {b.class_name} computes: {b.agreed} of {plural(b.modules, 'submodule')} agree with a fresh twin"
        for b in bases
    ]
    return "; ".join(parts) + "."


def _measured(bases: tuple[TwinComparison, ...] | list[TwinComparison]) -> str:
    attention = f", attention implementation {bases[0].attention!r} in both" if bases[0].attention else ""
    return f"evaluation mode, {plural(bases[0].rows, 'row')}, initial weights{attention}"


def _where(first: Difference) -> str:
    at = f"{first.module} ({first.class_name})" if first.module else "the base itself"
    if first.kind == "call":
        return f"its class calls {at}, this one does not"
    size = (
        percent(first.relative) + " of the largest value"
        if math.isfinite(first.relative)
        else "its shape or its non-finite values"
    )
    what = "output" if first.kind == "output" else "input"
    return f"the first difference from a fresh twin is the {what} of {at}, by {size}"


def _whole(base: TwinComparison) -> str:
    at_the_end = f"by {percent(base.relative)}" if math.isfinite(base.relative) else "in shape or in non-finite values"
    return f"The output of the whole base differs {at_the_end}; {base.agreed} of {plural(base.modules, 'submodule')} agree."


def _changes(base: TwinComparison, first: Difference) -> str:
    if first.changes:
        return "; ".join(first.changes)
    inside = first.module if first.kind == "output" else first.module.rpartition(".")[0]
    place = inside or base.class_name
    return f"in {place}, by neither a hook, a replaced function nor an attribute; a buffer, a config field or a global function may be"
