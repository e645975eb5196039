"""Labels depend on inputs."""

from __future__ import annotations

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..inputs.hidden_tokens import MOST_HIDDEN
from ..inputs.record import Inputs
from ..learning import loss_fell
from ..spec import Fault, Stage, Symptom, check, not_measured
from . import faults
from .held_out import HELD_OUT_ALPHA, better_than_chance
from .record import Data, Dependence

NAME = "labels_learnable"
#: p-value at which a permutation test has found that labels depend on inputs.
ALPHA = 0.005
#: The same where a row has many labels, which more comparisons look at: up to 22 in place of 9, so that chance finds something as rarely.
SEQUENCE_ALPHA = 0.002
#: Distinct rows below which labels are not called unrelated to the inputs.
MIN_ROWS = 256
#: Share of the simulated labellings that the tests must detect before they can call the real labels unrelated.
MIN_POWER = 5 / 6
#: Standard deviations of permuted labels at which labels moved to other rows clearly belong there; chance does not reach six.
CLEAR = 6.0
#: Standard deviations of permuted labels from which on a metric on held-out rows overrules the tests on the training rows: the p-value
#: of a run that learnt nothing is 0.01, the least that 99 permutations can give, once in a hundred runs; 3.5 are one in four thousand.
HELD_OUT_DEVIATIONS = 3.5
#: The same of a mean over rows, in standard errors, that one run in a hundred exceeds by chance.
EXCHANGE_DEVIATIONS = 2.33
#: What has labels, and what a dependence would show, by `Dependence.unit`.
UNITS = {"token": "labels of tokens", "answer": "places of answers", "target": "targets"}
#: Those for which the trained model is measured with labels of other rows.
EXCHANGED = ("answer", "target")
NOTHING = {
    "row": "similar rows have similar labels",
    "token": "labels go with the tokens at or beside their places, or with their rows",
    "answer": "answers begin or end at certain tokens",
    "target": "similar sources have similar targets",
}


@check(
    stage=Stage.DATA,
    position=2,
    faults=(faults.LABELS_SHIFTED, faults.LABELS_UNRELATED),
    measurements=(Data,),
    shows=(Symptom.OUTCOME,),
)
def check_labels_learnable(trace: Trace) -> Verdict:
    """The labels depend on the inputs: by what the run learnt, or by a permutation test on the rows themselves.

    Rows may have many labels: a class or a word for each token, the two places of an answer, a target text. Then whole rows of labels are
    exchanged between rows of one length; labels of tokens are compared with the ids at and beside their places. A trained model learns
    places and words that are frequent whatever the input is: for answers and targets it must prefer those of held-out rows to those of
    other rows.

    Rows are compared by their tokens, pairs and triples of tokens, token order, positions, length, single tokens and their counts
    (numbers: linear, by distance, pairs). The test asks whether similar rows have similar labels more often than under permuted labels
    (Gretton et al. 2005). A row that comes in several epochs counts once. It fails only if no comparison is significant at p <= 0.005
    (0.002 where a row has many labels), the same tests detect labels simulated on the same rows, and the run itself learnt nothing that
    holds on other rows. Where the run learnt, but has no held-out rows, it is inconclusive; with fewer than 256 distinct rows it is not
    judged.

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
    model = "no model involved"
    if tested.exchange_gain is not None:
        model = f"{UNITS[tested.unit]} of held-out rows preferred by {number(tested.exchange_gain)} standard errors"
    measured = f"label permutations over {plural(tested.rows, 'distinct row')}, {data.source}; {model}"
    by_p_value = sorted(tested.p_values.items(), key=lambda item: item[1])
    closest, least = by_p_value[0]
    if least <= _significance(tested):
        return Verdict(
            NAME,
            "pass",
            f"Labels depend on inputs: {_dependence_in_words(tested, closest)} "
            f"(p = {number(least)}, {plural(tested.rows, 'distinct row')}).",
            measured=measured,
        )
    way_of = "rows compared by" if tested.unit == "row" else "labels compared with"
    evidence = tuple({way_of: way, "p": p} for way, p in by_p_value)
    nothing = f"none of {len(by_p_value)} comparisons shows that {NOTHING[tested.unit]} (least p = {number(least)})"
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
    if _learnt(trace, tested, HELD_OUT_DEVIATIONS):
        return Verdict(
            NAME,
            "pass",
            f"No evidence that the labels are unrelated to the inputs: {_evidence_of_learning(tested)}.",
            evidence,
            measured=measured,
        )
    if undecided := _undecided(trace, tested):
        reason, remedy = undecided
        return Verdict(
            NAME,
            "inconclusive",
            f"Undecided whether the labels depend on the inputs: {nothing} in {plural(tested.rows, 'distinct row')}; {reason}.",
            evidence,
            limit=_limit(tested),
            remedy=remedy,
            measured=measured,
        )
    return _unrelated(trace, data).verdict(
        NAME,
        f"Labels look unrelated to inputs: {nothing}. The same tests detect {tested.detected} of {tested.simulated} simulated "
        f"labellings of these {plural(tested.rows, 'distinct row')}, and the run learnt nothing that holds on other rows.",
        evidence=evidence,
        limit=_limit(tested),
        measured=measured,
    )


def _unrelated(trace: Trace, data: Data) -> Fault:
    """The fault; where the mask hides tokens, or all rows are of one length, what decides may have been hidden or cut off."""
    fault, tokens = faults.LABELS_UNRELATED, data.tokens
    inputs = trace.measured(Inputs)
    hidden = inputs.hidden_tokens if inputs is not None else None
    if hidden is not None and hidden.hidden > MOST_HIDDEN * hidden.tokens:
        return fault.because(
            f"the attention mask hides {percent(hidden.hidden / hidden.tokens)} of the real tokens, maybe those that decide; {fault.cause}",
            f"make the mask from the lengths of the texts, or as input_ids != pad_token_id; {fault.remedy}",
        )
    unit = data.dependence.unit if data.dependence is not None else "row"
    if unit in ("token", "answer") or tokens is None or tokens.longest < 1 or tokens.shortest != tokens.longest:
        return fault
    cut = f"all rows hold exactly {plural(tokens.longest, 'token')}: texts may be cut off at max_length, before the words that decide"
    return fault.because(
        f"{cut}; {fault.cause}", f"count the tokens of the whole texts, and raise max_length; {fault.remedy}"
    )


def _significance(tested: Dependence) -> float:
    """The p-value that counts: a test that stopped early cannot have a lower one than its permutations allow."""
    return max(_alpha(tested), 1 / (1 + tested.permutations))


def _alpha(tested: Dependence) -> float:
    return ALPHA if tested.unit == "row" else SEQUENCE_ALPHA


def _limit(tested: Dependence) -> str:
    learnt = f"a metric on held-out rows better than chance (p <= {HELD_OUT_ALPHA:g})"
    if tested.unit in EXCHANGED:
        learnt = f"{UNITS[tested.unit]} of held-out rows preferred by {EXCHANGE_DEVIATIONS:g} standard errors"
    return f"p <= {_alpha(tested):g} in one comparison, or {learnt}"


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


def _dependence_in_words(tested: Dependence, closest: str) -> str:
    if tested.unit == "row":
        return f"rows similar by {closest} have similar labels"
    return f"the {UNITS[tested.unit]} go with {closest}"


def _learnt(trace: Trace, tested: Dependence, deviations: float) -> bool:
    """Whether the run learnt something of the inputs that holds on other rows. Which places and words are frequent beats permuted labels,
    too, so that answers and targets are compared with those of other rows."""
    if tested.unit in EXCHANGED:
        return tested.exchange_gain is not None and tested.exchange_gain >= max(deviations, EXCHANGE_DEVIATIONS)
    return better_than_chance(trace, deviations)


def _evidence_of_learning(tested: Dependence) -> str:
    if tested.unit in EXCHANGED:
        return f"the trained model prefers the {UNITS[tested.unit]} of held-out rows to those of other rows"
    return "a metric on held-out rows is better than chance"


def _undecided(trace: Trace, tested: Dependence) -> tuple[str, str] | None:
    """Why the run leaves open whether it learnt, and what would settle it; None: it learnt nothing that holds on other rows."""
    if _learnt(trace, tested, 0.0):
        return (
            f"{_evidence_of_learning(tested)}, but by less than {HELD_OUT_DEVIATIONS:g} standard deviations",
            "run more steps, or pass more held-out rows (eval_batches=)",
        )
    if tested.unit in EXCHANGED and tested.exchange_gain is None:
        return (
            f"whether the trained model prefers the {UNITS[tested.unit]} of held-out rows to those of other rows was not measured",
            "pass more held-out rows (eval_batches=)",
        )
    if loss_fell(trace) and not any(m.source == "held-out rows" for m in trace.metrics):
        return (
            "the loss fell, but without held-out rows learning cannot be distinguished from memorising",
            "pass held-out rows (eval_batches=)",
        )
    return None
