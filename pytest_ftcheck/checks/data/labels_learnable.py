"""Labels depend on inputs."""

from __future__ import annotations

from ...core.formatting import number, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..learning import loss_fell
from ..spec import Fault, Stage, Symptom, check, not_measured
from . import faults
from .held_out import HELD_OUT_ALPHA, better_than_chance
from .record import Data, Dependence

NAME = "labels_learnable"
#: p-value at which a permutation test has found that labels depend on inputs.
ALPHA = 0.005
#: Distinct rows below which labels are not called unrelated to the inputs.
MIN_ROWS = 256
#: Share of the simulated labellings that the tests must detect before they can call the real labels unrelated.
MIN_POWER = 5 / 6
#: Standard deviations of permuted labels at which labels moved to other rows clearly belong there; chance does not reach six.
CLEAR = 6.0
#: Standard deviations of permuted labels from which on a metric on held-out rows overrules the tests on the training rows: the p-value
#: of a run that learnt nothing is 0.01, the least that 99 permutations can give, once in a hundred runs; 3.5 are one in four thousand.
HELD_OUT_DEVIATIONS = 3.5
LIMIT = f"p <= {ALPHA:g} in one comparison, or a metric on held-out rows better than chance (p <= {HELD_OUT_ALPHA:g})"


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
    (Gretton et al. 2005). A row that comes in several epochs counts once. It fails only if no comparison is significant at p <= 0.005,
    the same tests detect labels simulated on the same rows, and the run itself learnt nothing that holds on other rows. Where the run
    learnt, but has no held-out rows, it is inconclusive; with fewer than 256 distinct rows it is not judged.

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
    measured = f"label permutations over {plural(tested.rows, 'distinct row')}, {data.source}; no model involved"
    by_p_value = sorted(tested.p_values.items(), key=lambda item: item[1])
    closest, least = by_p_value[0]
    if least <= _significance(tested):
        return Verdict(
            NAME,
            "pass",
            f"Labels depend on inputs: rows similar by {closest} have similar labels "
            f"(p = {number(least)}, {plural(tested.rows, 'distinct row')}).",
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
    if reason := _weak_test(tested):
        return Verdict(NAME, "skipped", f"Not judged: {reason}.", evidence, measured=measured)
    if better_than_chance(trace, HELD_OUT_DEVIATIONS):
        return Verdict(
            NAME,
            "pass",
            "No evidence that the labels are unrelated to the inputs: a metric on held-out rows is better than chance.",
            evidence,
            measured=measured,
        )
    if undecided := _undecided(trace):
        reason, remedy = undecided
        return Verdict(
            NAME,
            "inconclusive",
            f"Undecided whether the labels depend on the inputs: {nothing} in {plural(tested.rows, 'distinct row')}; {reason}.",
            evidence,
            limit=LIMIT,
            remedy=remedy,
            measured=measured,
        )
    return _unrelated(data).verdict(
        NAME,
        f"Labels look unrelated to inputs: {nothing}. The same tests detect {tested.detected} of {tested.simulated} simulated "
        f"labellings of these {plural(tested.rows, 'distinct row')}, and the run learnt nothing that holds on other rows.",
        evidence=evidence,
        limit=LIMIT,
        measured=measured,
    )


def _unrelated(data: Data) -> Fault:
    """The fault; where all rows are of one length, texts may have been cut off there."""
    fault, tokens = faults.LABELS_UNRELATED, data.tokens
    if tokens is None or tokens.longest < 1 or tokens.shortest != tokens.longest:
        return fault
    cut = f"all rows hold exactly {plural(tokens.longest, 'token')}: texts may be cut off at max_length, before the words that decide"
    return fault.because(
        f"{cut}; {fault.cause}", f"count the tokens of the whole texts, and raise max_length; {fault.remedy}"
    )


def _significance(tested: Dependence) -> float:
    """The p-value that counts: a test that stopped early cannot have a lower one than its permutations allow."""
    return max(ALPHA, 1 / (1 + tested.permutations))


def _clearest_shift(tested: Dependence) -> tuple[str, float] | None:
    """The move that clearly puts each label beside its own input."""
    clear = [(name, deviations) for name, deviations in tested.shifted.items() if deviations >= CLEAR]
    return max(clear, key=lambda item: item[1]) if clear else None


def _weak_test(tested: Dependence) -> str:
    """Why the tests' silence is no evidence against the labels; empty: it is evidence."""
    if tested.rows < MIN_ROWS:
        return (
            f"no comparison shows that labels depend on inputs, and {plural(tested.rows, 'distinct row')} are too few to "
            f"conclude that they do not, which takes {MIN_ROWS}"
        )
    if tested.simulated and tested.detected < MIN_POWER * tested.simulated:
        return (
            f"the test is too weak on these inputs: it detects {tested.detected} of {tested.simulated} simulated labellings "
            f"of the {plural(tested.rows, 'distinct row')}"
        )
    return ""


def _undecided(trace: Trace) -> tuple[str, str] | None:
    """Why the run leaves open whether it learnt, and what would settle it; None: it learnt nothing that holds on other rows."""
    if better_than_chance(trace):
        return (
            f"a metric on held-out rows is better than chance, but by less than {HELD_OUT_DEVIATIONS:g} standard deviations",
            "run more steps, or pass more held-out rows (eval_batches=)",
        )
    if loss_fell(trace) and not any(m.source == "held-out rows" for m in trace.metrics):
        return (
            "the loss fell, but without held-out rows learning cannot be distinguished from memorising",
            "pass held-out rows (eval_batches=)",
        )
    return None
