"""Labels depend on inputs."""

from __future__ import annotations

from ...core.formatting import number, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, Symptom, check, not_measured
from . import faults
from .held_out import HELD_OUT_ALPHA, better_than_chance
from .record import Data, Dependence

NAME = "labels_learnable"
#: p-value at which a permutation test has found that labels depend on inputs.
ALPHA = 0.005
#: Rows below which labels are not called unrelated to the inputs.
MIN_ROWS = 256
#: Share of the simulated labellings that the tests must detect before they can call the real labels unrelated.
MIN_POWER = 5 / 6
#: Standard deviations of permuted labels at which labels moved to other rows clearly belong there; chance does not reach six.
CLEAR = 6.0
#: Loss at the end over the class prior's (or over the first loss) below which the run learnt.
LEARNT = 0.97


@check(
    stage=Stage.DATA,
    position=2,
    faults=(faults.LABELS_SHIFTED, faults.LABELS_UNRELATED),
    measurements=(Data,),
    shows=(Symptom.OUTCOME,),
)
def check_labels_learnable(trace: Trace) -> Verdict:
    """The labels depend on the inputs: by what the run learnt, or by a permutation test on the rows themselves.

    Rows are compared by their tokens, pairs and triples of tokens, token order, positions, length, single tokens and their counts
    (numbers: linear, by distance, pairs). The test asks whether similar rows have similar labels more often than under permuted labels
    (Gretton et al. 2005). It fails only if no comparison is significant at p <= 0.005, the same tests detect labels simulated on the
    same rows, and the run itself learnt nothing that holds on other rows.

    >>> from pytest_ftcheck import example_trace
    >>> check_labels_learnable(example_trace()).status
    'inconclusive'
    """
    data = trace.measured(Data)
    if data is None:
        return not_measured(NAME, trace, Data)
    tested = data.dependence
    if tested is None:
        return not_measured(NAME, trace, Data, data.untested or "no rows with labels were read")
    measured = f"label permutations over {plural(tested.rows, 'row')}, {data.source}; no model involved"
    by_p_value = sorted(tested.p_values.items(), key=lambda item: item[1])
    closest, least = by_p_value[0]
    if least <= _significance(tested):
        return Verdict(
            NAME,
            "pass",
            f"Labels depend on inputs: rows similar by {closest} have similar labels "
            f"(p = {number(least)}, {plural(tested.rows, 'row')}).",
            measured=measured,
        )
    evidence = tuple({"rows compared by": way, "p": p} for way, p in by_p_value)
    nothing = (
        f"none of {len(by_p_value)} comparisons shows that similar rows have similar labels (least p = {number(least)})"
    )
    if moved := _clearest_shift(tested):
        shift, deviations = moved
        return faults.LABELS_SHIFTED.with_details(shift=shift).verdict(
            NAME,
            f"Labels belong to other rows: {nothing}; with each label moved {shift} the dependence stands out "
            f"by {number(deviations)} standard deviations.",
            evidence=evidence,
            limit="labels depend on the inputs of their own row",
            measured=measured,
        )
    if reason := _no_evidence(trace, tested):
        return Verdict(
            NAME,
            "pass",
            f"No evidence that the labels are unrelated to the inputs: {reason}.",
            evidence,
            measured=measured,
        )
    return faults.LABELS_UNRELATED.verdict(
        NAME,
        f"Labels look unrelated to inputs: {nothing}. The same tests detect {tested.detected} of {tested.simulated} simulated "
        f"labellings of these {plural(tested.rows, 'row')}, and the run learnt nothing that holds on other rows.",
        evidence=evidence,
        limit=f"p <= {ALPHA:g} in one comparison, or a metric on held-out rows better than chance (p <= {HELD_OUT_ALPHA:g})",
        measured=measured,
    )


def _significance(tested: Dependence) -> float:
    """The p-value that counts: a test that stopped early cannot have a lower one than its permutations allow."""
    return max(ALPHA, 1 / (1 + tested.permutations))


def _clearest_shift(tested: Dependence) -> tuple[str, float] | None:
    """The move that clearly puts each label beside its own input."""
    clear = [(name, deviations) for name, deviations in tested.shifted.items() if deviations >= CLEAR]
    return max(clear, key=lambda item: item[1]) if clear else None


def _no_evidence(trace: Trace, tested: Dependence) -> str:
    """Why the tests' silence is no evidence against the labels; empty: it is evidence."""
    if tested.rows < MIN_ROWS:
        return f"{plural(tested.rows, 'row')} are too few for the test, which needs {MIN_ROWS}"
    if tested.simulated and tested.detected < MIN_POWER * tested.simulated:
        return f"the test is too weak on these inputs: it detects {tested.detected} of {tested.simulated} simulated labellings"
    if better_than_chance(trace):
        return "a metric on held-out rows is better than chance"
    if _loss_fell(trace) and not any(m.source == "held-out rows" for m in trace.metrics):
        return (
            "the loss fell, and without held-out rows (eval_batches=) learning cannot be distinguished from memorising"
        )
    return ""


def _loss_fell(trace: Trace) -> bool:
    """The probe's loss ends clearly below the class prior's, or (without a prior) below the first."""
    probe = trace.probe
    if probe is None or not probe.points:
        return False
    first, last = probe.points[0], probe.points[-1]
    if probe.prior_entropy is not None and last.reference is not None:
        return last.reference < LEARNT * probe.prior_entropy
    return last.loss < LEARNT * first.loss
