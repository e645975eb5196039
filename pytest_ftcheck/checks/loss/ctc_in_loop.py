"""What the loop gives a CTC loss: labels without the blank, and log-probabilities."""

from __future__ import annotations

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..loop.record import CtcCall, LoopCalls, all_observed
from ..spec import Fault, Rank, Symptom

#: Logarithm of the sum of a frame's probabilities from which they are no probabilities. Log-probabilities have 1e-6 in float32; rounding to
#: bfloat16 makes it the entropy times 2 ** -9 at most, 0.02 with 30,000 classes. Logits of a new head have about log(classes).
NORMALISED = 0.05
CTC_ON_LOGITS = Fault(
    "ctc_on_logits",
    Rank.LOSS + 24,
    "a CTC loss is computed from raw logits",
    cause="ctc_loss expects log-probabilities, and does not normalise them: its value can be below 0, and larger logits alone lower it",
    remedy="pass logits.log_softmax(-1)",
    explains=(Symptom.LOSS_WRONG, Symptom.BLOWS_UP),
    confidence="certain",
)
CTC_BLANK_IN_TARGETS = Fault(
    "ctc_blank_in_targets",
    Rank.LOSS + 26,
    "the blank is among the targets of a CTC loss",
    cause="padding is counted as labels (target_lengths), or a label has the number of the blank: alignments count several times, so that "
    "the loss falls below 0, which no negative logarithm of a probability can",
    remedy="let target_lengths count the labels without padding, and give blank= a number that no label has",
    explains=(Symptom.LOSS_WRONG,),
    confidence="certain",
)


def judge_ctc(trace: Trace, name: str) -> Verdict | None:
    """The verdict where the loop gives a CTC loss something else; None: there is none, or it is right."""
    loop = trace.measured(LoopCalls)
    if loop is None or not loop.ctc:
        return None
    if all(call.log_mass > NORMALISED for call in loop.ctc):
        first = loop.ctc[0]
        headline = (
            f"ctc_loss gets outputs that are no log-probabilities in {all_observed(len(loop.ctc))}: the probabilities of a frame do not "
            f"sum up to 1 (the logarithm of their sum is {number(first.log_mass)} away from 0).{_below_zero(trace)}"
        )
        return _verdict(name, CTC_ON_LOGITS, headline, loop.ctc, "log-probabilities, which sum up to 1")
    blanks, targets = (sum(getattr(call, field) for call in loop.ctc) for field in ("blanks", "targets"))
    if not blanks:
        return None
    headline = (
        f"{percent(blanks / targets)} of the labels that ctc_loss counts are the blank ({blanks:,} of {plural(targets, 'label')})."
        f"{_below_zero(trace)}"
    )
    return _verdict(name, CTC_BLANK_IN_TARGETS, headline, loop.ctc, "no blank among the labels")


def _below_zero(trace: Trace) -> str:
    least = min(trace.losses, default=0.0)
    return f" The loss falls to {number(least)}, and no CTC loss is below 0." if least < 0 else ""


def _verdict(name: str, fault: Fault, headline: str, calls: tuple[CtcCall, ...], limit: str) -> Verdict:
    evidence = tuple(
        {"iteration": c.iteration, "loss": c.value, "labels": c.targets, "blanks": c.blanks} for c in calls[:3]
    )
    measured = f"the loop's own CTC loss in {plural(len(calls), 'call')}"
    return fault.verdict(name, headline, evidence=evidence, limit=limit, measured=measured)
