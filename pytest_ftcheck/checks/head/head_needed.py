"""The trained head does what a simpler one, or the untrained one, could not."""

from __future__ import annotations

from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, check, not_measured
from . import faults
from .ablation_record import Counterfactuals, Outcome

#: Accuracy that a simpler head may be behind, and still be called as good.
BEHIND = 0.02
#: Accuracy above that of saying the same for every row, below which nothing was learned that could be compared.
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
    """Would a simpler head do, or the head as it was before training? Never a failure: a remark for the author.

    One part at a time is put back to its initial values, all else as trained, and the loss and the accuracy are taken again (Zhang,
    Bengio and Singer, JMLR 2022). In place of a head of several layers one linear layer is fitted on the same features. If that is at
    most 2 points of accuracy behind, the simpler head is shown as code. That a rewound head does as well says that the base learned
    to use a random head; the head is then needed as a projection, not for what it learned.

    >>> from pytest_ftcheck import example_trace
    >>> check_head_needed(example_trace()).status
    'skipped'
    """
    name, found = "head_needed", trace.measured(Counterfactuals)
    if found is None:
        return not_measured(name, trace, Counterfactuals)
    if not found.parts:
        return Verdict(name, "skipped", "nothing was trained that could be put back.")
    measured = (
        f"{plural(found.rows, 'row')} ({found.source}), dropout off; one part at a time put back to its initial values"
    )
    notes = _notes(found)
    trained = found.trained.accuracy
    enough = found.rows >= LEAST_ROWS and found.source == "held-out rows"
    learned = trained is not None and found.baseline is not None and trained >= found.baseline + LEARNED
    simple = found.simpler
    if enough and learned and trained is not None and simple is not None and simple.accuracy >= trained - BEHIND:
        wasted = simple.accuracy - trained > WASTED
        return Verdict(
            name,
            "advice",
            f"One linear layer on the same features scores {percent(simple.accuracy)}, the trained head of {simple.layers} layers "
            f"{percent(trained)}: "
            + (
                "the head does not make use of what enters it."
                if wasted
                else "the hidden layer is not needed for these rows."
            ),
            evidence=_rows(found),
            limit=f"at most {percent(BEHIND)} behind, on at least {LEAST_ROWS} held-out rows",
            causes=(
                "the head is trained too little, or something in it is wrong: the features tell the classes apart"
                if wasted
                else "the base is expressive enough for a linear head",
            ),
            remedy=f"try {_code(trace, simple.features, simple.outputs)}",
            measured=f"{measured}; the linear layer by ridge regression on {simple.rows} training rows",
            notes=notes,
            fault="head_wastes_features" if wasted else "head_redundant",
        )
    headline = _headline(found, learned)
    return Verdict(name, "pass", headline, evidence=_rows(found), measured=measured, notes=notes)


def _headline(found: Counterfactuals, learned: bool) -> str:
    trained = found.trained.accuracy
    head = next((p for p in found.parts if p.part == "head"), None)
    if head is None:
        return "The head was not trained; parts of the base were put back."
    if found.baseline is not None and not learned:
        return (
            f"Nothing to compare: the trained model is right for {percent(trained)} of {plural(found.rows, 'row')}, saying the same for "
            f"all of them for {percent(found.baseline)}."
        )
    same = (
        learned
        and head.rewound.accuracy is not None
        and trained is not None
        and head.rewound.accuracy >= trained - BEHIND
    )
    what = "The head hardly needed training" if same else "The training of the head counts"
    return f"{what}: put back to its initial values, {_against(head.rewound, found.trained)}."


def _against(now: Outcome, trained: Outcome) -> str:
    loss = f"the loss is {number(now.loss)} instead of {number(trained.loss)}"
    if now.accuracy is None or trained.accuracy is None:
        return loss
    return f"{loss}, the accuracy {percent(now.accuracy)} instead of {percent(trained.accuracy)}"


def _code(trace: Trace, features: int, outputs: int) -> str:
    return f"model.{trace.head[0] if trace.head else 'classifier'} = torch.nn.Linear({features}, {outputs})"


def _notes(found: Counterfactuals) -> tuple[str, ...]:
    simple = found.simpler
    if simple is None or found.trained.accuracy is None:
        return ()
    told = (
        f"one linear layer on the same features: {percent(simple.accuracy)} right, and the same prediction as the trained head for "
        f"{percent(simple.agreement)} of the rows"
    )
    ahead = simple.accuracy - found.trained.accuracy
    if ahead > WASTED and found.rows >= LEAST_ROWS:
        told += ": what enters the head tells the classes apart, and the head does not make use of it (yet)"
    return (told,)


def _rows(found: Counterfactuals) -> tuple[dict[str, Any], ...]:
    rows: list[dict[str, Any]] = [
        {"put back": "nothing (as trained)", "loss": found.trained.loss, "accuracy": _share(found.trained)}
    ]
    rows += [
        {
            "put back": p.part,
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
