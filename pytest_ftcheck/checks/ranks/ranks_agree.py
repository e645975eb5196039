"""The ranks of a distributed run agree in what must be the same on all of them, and train on different rows."""

from __future__ import annotations

from typing import Any

from ...core.formatting import plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, check, combine
from . import communication, faults, rows, settings, weights
from .record import Rank, Ranks

NAME = "ranks_agree"
MEASURED = "on each rank: sketches of weights and gradients, checksums of the rows, learning rates and settings"
LIMIT = (
    "start weights the same to 1e-6; gradients at each step to 1e-3; end weights to 1 % of how far the run moved them; the gradient is the "
    "mean of the ranks' to 5 %"
)


@check(
    stage=Stage.WEIGHTS,
    position=5,
    faults=(
        faults.NONFINITE_ON_ONE_RANK,
        faults.RANKS_TRAIN_ALONE,
        faults.WRAPPER_BYPASSED,
        faults.NO_SYNC_LEFT_ON,
        faults.RANK_GRADIENTS_DIFFER,
        faults.START_WEIGHTS_DIFFER,
        faults.RANK_SETTINGS_DIFFER,
        faults.SAME_ROWS,
        faults.EPOCHS_IN_SAME_ORDER,
        faults.GRADIENTS_SUMMED,
        faults.GRADIENTS_AVERAGED_TWICE,
        faults.SCHEDULE_ONCE_A_RANK,
        faults.RANK_STEPS_DIFFER,
        faults.RANKS_DRIFT_APART,
    ),
    measurements=(Ranks,),
)
def check_ranks_agree(trace: Trace) -> Verdict:
    """The ranks of a distributed run agree: weights, gradients at the optimizer's step, settings, number of steps. Their rows differ.

    It judges the merged trace of all ranks (`watch.gather`). Shards (FSDP, tensor parallelism) differ by design, and their values are not
    compared.

    >>> from pytest_ftcheck import example_trace
    >>> check_ranks_agree(example_trace()).headline
    'one process trained, so there are no ranks to compare.'
    """
    found = trace.measured(Ranks)
    if found is None:
        if Ranks.probe in trace.skipped and Ranks.probe not in trace.not_applicable:
            return Verdict(NAME, "skipped", trace.why_not_measured(Ranks), unmeasured=Ranks.probe)
        return Verdict(NAME, "skipped", "one process trained, so there are no ranks to compare.")
    if not found.gathered:
        return Verdict(
            NAME,
            "skipped",
            f"Not gathered: the trace is that of rank {found.ranks[0].rank} of {found.size} alone.",
            remedy="after the with block, on every rank: trace = w.gather()",
            unmeasured=Ranks.probe,
        )
    return _judge(found.ranks)


def _judge(ranks: tuple[Rank, ...]) -> Verdict:
    if len(ranks) < 2:
        return Verdict(NAME, "skipped", "One rank was gathered: there are no others to compare.")
    if (parts := weights.other_models(ranks)) is not None:
        return Verdict(
            NAME,
            "inconclusive",
            parts,
            remedy="gather the ranks that hold the same model: w.gather(group=...)",
            measured=MEASURED,
        )
    findings = (
        settings.nonfinite_on_one(ranks),
        communication.gradients_differ_from_the_start(ranks),
        settings.steps_differ(ranks),
        communication.gradients_differ(ranks),
        weights.start_differs(ranks),
        settings.differ(ranks),
        rows.same_on_all(ranks),
        communication.scaled(ranks),
        settings.schedule_once_a_rank(ranks),
        rows.epochs_in_same_order(ranks),
        weights.drift_apart(ranks),
    )
    found = list({verdict.fault or verdict.headline: verdict for verdict in findings if verdict is not None}.values())
    rest: dict[str, Any] = {"measured": MEASURED, "limit": LIMIT}
    for status in ("fail", "inconclusive", "advice"):
        if verdict := combine((v for v in found if v.status == status), **rest):
            return verdict
    return Verdict(NAME, "pass", _passed(ranks), notes=_notes(ranks), **rest)


def _passed(ranks: tuple[Rank, ...]) -> str:
    compared = sum(bool(w.first) for w in ranks[0].weights)
    steps = ranks[0].run.steps if ranks[0].run is not None else len(ranks[0].steps)
    what = f"{plural(compared, 'tensor')} at the start and the end, " if compared else ""
    followed = f"gradients at {plural(len(ranks[0].steps), 'step')}, " if ranks[0].sampled else ""
    return f"{len(ranks)} ranks agree over {plural(steps, 'step')}: {what}{followed}settings and learning rates."


def _notes(ranks: tuple[Rank, ...]) -> tuple[str, ...]:
    notes: list[str] = []
    if shards := sum(w.sharded for w in ranks[0].weights):
        notes.append(
            f"{plural(shards, 'tensor')} of {len(ranks[0].weights)} are sharded: their values were not compared"
        )
    if not all(rank.rows for rank in ranks):
        notes.append("the rows were not compared: the model was not called with tensors in training mode")
    if weights.written_after_last_step(ranks):
        notes.append(
            "weights differ between ranks at the end, and not before the last step: they were written after it"
        )
    if ranks[0].sharded_otherwise:
        notes.append("the rows were not compared: tensor parallelism gives ranks the same rows")
    return tuple(notes)
