"""The trained head is better than a simpler one, and than its own start."""

from __future__ import annotations

from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, check, not_measured
from . import faults
from .ablation_record import Counterfactuals, Outcome, SimplerHead

NAME = "head_needed"
#: Accuracy that a simpler head may be behind, and still be called as good.
BEHIND = 0.02
#: Accuracy above that of a majority baseline, below which nothing was learned that could be compared.
LEARNED = 0.1
#: Accuracy that a linear layer on the same features is ahead, to say that the head wastes them.
WASTED = 0.2
#: Rows below which a difference of `BEHIND` is less than one row.
LEAST_ROWS = 50


@check(
    stage=Stage.OUTCOME,
    position=10,
    faults=(
        faults.HEAD_REDUNDANT,
        faults.HEAD_WASTES_FEATURES,
    ),
    measurements=(Counterfactuals,),
)
def check_head_needed(trace: Trace) -> Verdict:
    """Would a simpler head do, or the head as it was before training? Never a failure, at most advice.

    One part at a time is reset to its initial values, all else as trained, and the loss and the accuracy are taken again (Zhang,
    Bengio and Singer, JMLR 2022). In place of a head of several layers one linear layer is fitted on the same features. If that is at
    most 2 points of accuracy behind, the simpler head is shown as code. If a reset head does as well, the base has learned to use a
    random head: it is needed as a projection, not for what it learned.

    >>> from pytest_ftcheck import example_trace
    >>> check_head_needed(example_trace()).status
    'inconclusive'
    """
    found = trace.measured(Counterfactuals)
    if found is None:
        return not_measured(NAME, trace, Counterfactuals)
    if not found.parts:
        return not_measured(NAME, trace, Counterfactuals, "no part that was trained could be reset")
    measured = (
        f"{plural(found.rows, 'row')} ({found.source}), dropout off; one part at a time reset to its initial values"
    )
    trained = found.trained.accuracy
    enough = found.rows >= LEAST_ROWS and found.source == "held-out rows"
    learned = trained is not None and found.baseline is not None and trained >= found.baseline + LEARNED
    simple = found.simpler
    if enough and learned and trained is not None and simple is not None and simple.accuracy >= trained - BEHIND:
        if simple.accuracy - trained > WASTED:
            fault, conclusion = (
                faults.HEAD_WASTES_FEATURES,
                "the features separate the classes better than this head does",
            )
        else:
            fault, conclusion = faults.HEAD_REDUNDANT, "these rows need no hidden layer"
        return fault.with_details(code=_code(simple)).verdict(
            NAME,
            f"One linear layer on the same features scores {percent(simple.accuracy)}, the trained head of {simple.layers} layers "
            f"{percent(trained)}: {conclusion}.",
            "advice",
            evidence=_rows(found),
            limit=f"at most {percent(BEHIND)} behind, on at least {LEAST_ROWS} held-out rows",
            measured=f"{measured}; the linear layer by ridge regression on {simple.rows} training rows",
            notes=_notes(found),
        )
    headline = _headline(found, learned, has_head=bool(trace.head))
    return Verdict(NAME, "pass", headline, evidence=_rows(found), measured=measured, notes=_notes(found))


def _headline(found: Counterfactuals, learned: bool, *, has_head: bool) -> str:
    trained = found.trained.accuracy
    head = next((p for p in found.parts if p.part == "head"), None)
    if head is None:
        return f"{'The head was not trained' if has_head else 'The model has no head'}; parts of the base were reset."
    if found.baseline is not None and not learned:
        return (
            f"Nothing to compare: the trained model is right for {percent(trained)} of {plural(found.rows, 'row')}, the majority baseline "
            f"for {percent(found.baseline)}."
        )
    same = (
        learned
        and head.rewound.accuracy is not None
        and trained is not None
        and head.rewound.accuracy >= trained - BEHIND
    )
    what = "The head hardly needed training" if same else "The training of the head matters"
    return f"{what}: reset to its initial values, {_against(head.rewound, found.trained)}."


def _against(now: Outcome, trained: Outcome) -> str:
    loss = f"the loss is {number(now.loss)} instead of {number(trained.loss)}"
    if now.accuracy is None or trained.accuracy is None:
        return loss
    return f"{loss}, the accuracy {percent(now.accuracy)} instead of {percent(trained.accuracy)}"


def _code(simple: SimplerHead) -> str:
    """What to write: an assignment only where one module is all that has to be replaced."""
    layer = f"torch.nn.Linear({simple.features}, {simple.outputs})"
    if simple.replaces:
        return f"{_place(simple.replaces)} = {layer}, before the optimizer is made"
    return (
        f"one {layer} in place of the head's {simple.layers} layers: in forward(), apply it to what enters {simple.first or 'the head'} "
        "now, and return its output as the logits"
    )


def _place(name: str) -> str:
    """A module of the model as Python writes it: members of a list by their index."""
    return "model" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in name.split("."))


def _notes(found: Counterfactuals) -> tuple[str, ...]:
    simple = found.simpler
    if simple is None or found.trained.accuracy is None:
        return ()
    note = (
        f"one linear layer on the same features: {percent(simple.accuracy)} right, and the same prediction as the trained head for "
        f"{percent(simple.agreement)} of the rows"
    )
    ahead = simple.accuracy - found.trained.accuracy
    if ahead > WASTED and found.rows >= LEAST_ROWS:
        note += ": the features separate the classes, and the head does not use that (yet)"
    return (note,)


def _rows(found: Counterfactuals) -> tuple[dict[str, Any], ...]:
    rows: list[dict[str, Any]] = [
        {"reset": "nothing (as trained)", "loss": found.trained.loss, "accuracy": _share(found.trained)}
    ]
    rows += [
        {
            "reset": p.part,
            "loss": p.rewound.loss,
            "accuracy": _share(p.rewound),
            "shuffled: loss": None if p.shuffled is None else p.shuffled.loss,
            "shuffled: accuracy": None if p.shuffled is None else _share(p.shuffled),
        }
        for p in found.parts
    ]
    return tuple(rows)


def _share(outcome: Outcome) -> str | None:
    return None if outcome.accuracy is None else percent(outcome.accuracy)
