"""Dropout is on in training, at the declared rate; in evaluation nothing is random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..effects import matters, share
from ..gradients import faults as gradients_faults
from ..spec import Stage, check, not_measured
from . import faults
from .record import DropoutSite, Modes

#: A rate from which on it is taken for a slip, as where the share to keep was meant; declare it if it is meant.
EXTREME = 0.9
#: Looks at the end of a run at which a part must be off to count as left so.
LASTING = 3


@check(
    stage=Stage.MODE,
    position=1,
    faults=(
        gradients_faults.GRADIENTS_SWITCHED_OFF,
        faults.MODEL_IN_EVALUATION_MODE,
        faults.PART_IN_EVALUATION_MODE,
        faults.LEFT_IN_EVALUATION_MODE,
        faults.DROPOUT_RATE_EXTREME,
        faults.DROPOUT_MISSING,
        faults.DROPOUT_NOT_MEANT,
        faults.DROPOUT_RATE_DIFFERS,
        faults.RANDOM_IN_EVALUATION,
        faults.EVALUATION_CHANGES_MODEL,
        faults.STATISTICS_NEVER_UPDATED,
        faults.SEEDED_EVERY_STEP,
        faults.EVALUATES_IN_TRAINING_MODE,
    ),
    measurements=(Modes,),
)
def check_dropout_active(trace: Trace) -> Verdict:
    """Dropout is on while parameters around it are trained, and at the declared rate (``Intent.dropout``).

    Modes are read right before and right after a step, at the beginning, in the middle and at the end; off is what is off at both
    moments. A model without dropout is healthy unless declared otherwise, and so are frozen parts in evaluation mode.

    >>> from pytest_ftcheck import example_trace
    >>> check_dropout_active(example_trace()).status
    'skipped'
    """
    modes = trace.measured(Modes)
    if modes is None:
        return not_measured("dropout_active", trace, Modes)
    declared = trace.intent.dropout if trace.intent is not None else None
    sites = [s for s in modes.sites if s.rate > 0]
    awake_root = _awake(trace, modes)
    off = [s for s in sites if s.looks and _off(s, awake_root) == s.looks]
    late = [s for s in sites if s.looks and s not in off and _stays_off(s, modes, awake_root)]
    on = [s for s in sites if s.looks and s not in off]
    works = modes.training is None or modes.training.change > 0
    rates = sorted({s.rate for s in sites})
    spoken = ", ".join(number(r) for r in rates)

    def verdict(status: Any, text: str, shown: Sequence[DropoutSite] = (), **more: Any) -> Verdict:
        return Verdict(
            "dropout_active",
            status,
            text,
            evidence=tuple(
                {
                    "module": s.name,
                    "rate": s.rate,
                    "kind": s.kind,
                    "off at": f"{_off(s, awake_root)} of {s.looks} looks" if s.looks else None,
                }
                for s in shown
            ),
            measured=f"modes right before and after {plural(len(modes.looked), 'step')}"
            if modes.looked
            else "the mode at each step",
            **more,
        )

    drawn = len(modes.random_states)
    if modes.same_dropped:
        return verdict(
            "fail",
            "Two passes in training mode, random states not put back between them: dropout took out the very same values.",
            causes=(
                "the seed is set anew in forward() (torch.manual_seed, or a generator made there with a fixed seed)",
            ),
            remedy="set the seed once, before the training",
            limit="another pattern at each pass",
            fault="seeded_every_step",
        )
    if drawn >= LASTING and (len(set(modes.random_states)) == 1 or len(set(modes.random_ends)) == 1):
        return verdict(
            "fail",
            f"The random numbers of the model's pass were the same at all {drawn} steps looked at: "
            "dropout takes out the same values each time.",
            causes=(
                "the seed is set anew in every step (torch.manual_seed in the step, the data set, the collate function or forward)",
            ),
            remedy="set the seed once, before the training",
            limit="random states that differ from step to step",
            fault="seeded_every_step",
        )
    if declared is not None and not declared:
        if not on or not works:
            return verdict("pass", "No dropout was on in training, as declared.")
        return verdict(
            "fail",
            f"You meant no dropout; {plural(len(on), 'place')} dropped {spoken} of the values in training.",
            on,
            causes=("dropout is on, though it was declared to be off",),
            remedy="set the rates in the model's config to 0, or declare Intent(dropout=True)",
            limit="intent.dropout=False",
            fault="dropout_not_meant",
        )
    meant = isinstance(declared, float) and declared >= EXTREME
    extreme = [s for s in sites if s.rate >= EXTREME and s not in off and (s.looks or not modes.looked)]
    if extreme and not meant:
        return verdict(
            "fail",
            f"{extreme[0].name} drops {percent(extreme[0].rate)} of its values in training.",
            extreme,
            causes=("the rate is the share that is dropped, not the share that is kept",),
            remedy=f"nn.Dropout({round(1 - extreme[0].rate, 6) or 0.1:g}), or declare Intent(dropout=...) if it is meant",
            limit=f"below {EXTREME:g}: rates in use are 0.1 to 0.5 (Srivastava et al. 2014)",
            fault="dropout_rate_extreme",
        )
    if not modes.looked and trace.steps and not any(s.training for s in trace.steps):
        off = [
            s for s in sites if s.trained
        ]  # a watched loop: of its modes only that of the whole model at each step is known
    if off and works:
        whole = len(modes.root_off) == len(modes.looked) and not awake_root
        part = _common([s.name for s in off])
        which = "The model was" if whole else f"{part or 'A part of the model'} was"
        return verdict(
            "fail",
            f"{which} in evaluation mode at all {len(modes.looked) or len(trace.steps)} steps looked at: "
            f"{len(off)} of {len(sites)} dropouts were off "
            "while the parameters around them trained.",
            off,
            causes=(
                (
                    "the model is in evaluation mode while it trains"
                    if whole
                    else "a part of the model is in evaluation mode while it trains"
                )
                + ": from_pretrained leaves it so, and model.train() was not called on it",
            ),
            remedy="call model.train() right before the loop (and after every evaluation); or declare Intent(dropout=False) if it is meant",
            limit="dropout with a rate above 0 is on while a parameter around it is trained",
            fault="model_in_evaluation_mode" if whole else "part_in_evaluation_mode",
        )
    if late and works:
        since = min(late[0].off)
        return verdict(
            "fail",
            f"From iteration {since} on, {len(late)} of {len(sites)} dropouts were off: model.eval() was called, and model.train() "
            "never again.",
            late,
            causes=("an evaluation during training leaves the model in evaluation mode",),
            remedy="call model.train() after every evaluation",
            limit="dropout with a rate above 0 is on while a parameter around it is trained",
            fault="left_in_evaluation_mode",
        )
    notes = _notes(sites, modes)
    if declared and not sites and modes.training is not None and modes.training.change == 0:
        return verdict(
            "fail",
            "You meant dropout; the model has none: two passes over the same rows in training mode are the same.",
            causes=("no module drops anything in training mode",),
            remedy="set the rates in the model's config, or add nn.Dropout to the head; or declare Intent(dropout=False)",
            limit=f"intent.dropout={declared}",
            fault="dropout_missing",
        )
    if isinstance(declared, float) and sites and all(abs(r - declared) > 1e-6 for r in rates):
        return verdict(
            "fail",
            f"You meant dropout at {declared:g}; the rates in the model are {spoken}.",
            sites,
            causes=("the model was built with another dropout rate than was declared",),
            remedy="set it in the config that the model is built from: changing config.dropout afterwards changes no module",
            limit=f"some dropout at intent.dropout={declared:g}",
            fault="dropout_rate_differs",
        )
    if not sites:
        return verdict(
            "pass",
            "The model has no dropout, and none was declared." if not declared else "No dropout module.",
            notes=notes,
        )
    if not modes.looked and trace.steps:
        told = f"The model was in training mode while it trained; {plural(len(sites), 'dropout')}, at rates {spoken}."
        return verdict("pass", told, notes=notes)
    return verdict(
        "pass", f"Dropout was on in {len(on)} of {plural(len(sites), 'place')}, at rates {spoken}.", notes=notes
    )


@check(
    stage=Stage.MODE,
    position=2,
    faults=(
        gradients_faults.GRADIENTS_SWITCHED_OFF,
        faults.MODEL_IN_EVALUATION_MODE,
        faults.PART_IN_EVALUATION_MODE,
        faults.LEFT_IN_EVALUATION_MODE,
        faults.DROPOUT_RATE_EXTREME,
        faults.DROPOUT_MISSING,
        faults.DROPOUT_NOT_MEANT,
        faults.DROPOUT_RATE_DIFFERS,
        faults.RANDOM_IN_EVALUATION,
        faults.EVALUATION_CHANGES_MODEL,
        faults.STATISTICS_NEVER_UPDATED,
        faults.SEEDED_EVERY_STEP,
        faults.EVALUATES_IN_TRAINING_MODE,
    ),
    measurements=(Modes,),
)
def check_eval_deterministic(trace: Trace) -> Verdict:
    """In evaluation mode the same input gives the same output; and the user's own ``evaluate`` evaluates in evaluation mode.

    Two passes over the same rows, random states advanced between them. A library's model that is random by design (locality-sensitive
    hashing) is exempt.

    >>> from pytest_ftcheck import example_trace
    >>> check_eval_deterministic(example_trace()).status
    'skipped'
    """
    modes = trace.measured(Modes)
    if modes is None:
        return not_measured("eval_deterministic", trace, Modes)
    if modes.evaluation is None and not modes.passes:
        why = modes.unmeasured.get("evaluation", "the run ended before it was made")
        return Verdict("eval_deterministic", "skipped", f"Not measured: {why}.")
    if found := _left_behind(modes):
        return found
    effect = modes.evaluation
    headline = (
        ""
        if effect is None
        else (
            f"Two passes over the same {plural(modes.rows, 'row')} in evaluation mode differ by {share(effect)} of the spread between rows"
        )
    )
    limit = "the same output, but for rounding"
    if effect is not None and matters(effect):
        if modes.base_library and modes.base_evaluation is not None and modes.base_evaluation.change > 0:
            return Verdict(
                "eval_deterministic",
                "pass",
                f"{headline}, as by the design of {modes.base}.",
                limit=limit,
                notes=(f"exempt: {modes.base}, a class of the library, is random in evaluation mode itself",),
            )
        inside = modes.base_evaluation is not None and modes.base_evaluation.change > 0
        where = f"inside {modes.base}" if inside else f"behind {modes.base}" if modes.base else "in the model"
        return Verdict(
            "eval_deterministic",
            "fail",
            f"{headline}.",
            limit=limit,
            causes=(
                f"something {where} is random in evaluation mode: F.dropout(x, p) is, unless it is told training=self.training",
            ),
            remedy="F.dropout(x, p, training=self.training), or an nn.Dropout module",
            measured="random states advanced between the passes",
            fault="random_in_evaluation",
        )
    if modes.passes and modes.passes_random == modes.passes and (modes.training is None or modes.training.change > 0):
        root = modes.passes_training == modes.passes
        return Verdict(
            "eval_deterministic",
            "fail",
            f"Your evaluate() ran {plural(modes.passes, 'forward pass', 'forward passes')}, all of them with "
            f"{'the model in training mode' if root else 'a part of the model in training mode'}: dropout or batch statistics were on.",
            limit="evaluation runs in evaluation mode",
            causes=("evaluate() does not switch the model to evaluation mode: the metric is taken with dropout on",),
            remedy="call model.eval() at its beginning, and model.train() at its end",
            measured="evaluate() called once more after the run, with the model in training mode",
            fault="evaluates_in_training_mode",
        )
    notes: tuple[str, ...] = ()
    if modes.leaves_evaluation_mode:
        notes = ("evaluate() leaves the model in evaluation mode: call model.train() before training goes on",)
    if effect is None:
        return Verdict(
            "eval_deterministic", "pass", "Your evaluate() runs in evaluation mode.", limit=limit, notes=notes
        )
    return Verdict("eval_deterministic", "pass", f"{headline}.", limit=limit, notes=notes)


def _left_behind(modes: Modes) -> Verdict | None:
    """What an evaluation leaves changed, and statistics that it needs and that are none."""

    def verdict(text: str, cause: str, remedy: str, limit: str, fault: str, measured: str = "") -> Verdict:
        return Verdict(
            "eval_deterministic",
            "fail",
            text,
            limit=limit,
            causes=(cause,),
            remedy=remedy,
            measured=measured or "evaluate() called once more after the run, and the model compared before and after",
            fault=fault,
        )

    if modes.leaves_gradients_off:
        return verdict(
            "Your evaluate() leaves gradients switched off: the next backward() has no graph.",
            "torch.set_grad_enabled(False), or a no_grad() or inference_mode() that is entered and never left",
            "with torch.no_grad(): around the evaluation, which switches them on again",
            "gradients are as before evaluate()",
            "gradients_switched_off",
        )
    for names, what, cause, remedy in (
        (
            modes.changes,
            "the values",
            "it trains, writes averaged or stored weights into the model, or re-initialises it",
            "evaluate under torch.no_grad() without an optimizer; keep averaged weights in a model of their own, or put the others back",
        ),
        (
            modes.freezes,
            "requires_grad",
            "it switches requires_grad instead of gradients, and does not put it back",
            "with torch.no_grad(): around the evaluation; leave requires_grad as it is",
        ),
    ):
        if names:
            return verdict(
                f"Your evaluate() changes {what} of {plural(len(names), 'parameter')} ({names[0]} first).",
                cause,
                remedy,
                "a model is after evaluate() as it was before",
                "evaluation_changes_model",
            )
    if still := [s for s in modes.statistics if not s.changed and s.looks >= LASTING]:
        first = still[0]
        return verdict(
            f"The running statistics of {first.name} did not change in the whole run, though it was in training mode: in evaluation it "
            "normalises by what it began with.",
            "momentum=0 means in torch that no batch counts (elsewhere momentum is the share that is kept)"
            if first.momentum == 0
            else "something puts the running statistics back, or the layer never saw a batch in training mode",
            f"momentum=0.1, which is torch's default, for {first.name}",
            "running statistics of a batch normalisation in training mode change with every batch",
            "statistics_never_updated",
            f"running means before and after the run, at {plural(first.looks, 'look')} in training mode",
        )
    return None


def _awake(trace: Trace, modes: Modes) -> frozenset[int]:
    """Iterations at which the whole model was off before and after the step, but on during it: the step itself switches."""
    during = {s.iteration for s in trace.steps if s.training}
    return frozenset(i for i in modes.root_off if i in during)


def _off(site: DropoutSite, awake_root: frozenset[int]) -> int:
    return sum(i not in awake_root for i in site.off)


def _stays_off(site: DropoutSite, modes: Modes, awake_root: frozenset[int]) -> bool:
    """Off at all looks from some time on, and at several of them: the last steps may be followed by an evaluation."""
    off = [i for i in site.off if i not in awake_root]
    return len(off) >= LASTING and off == [i for i in modes.looked if i >= off[0]]


def _common(names: Sequence[str]) -> str:
    """The module that all of them are in."""
    first, *rest = [n.split(".") for n in names]
    shared: list[str] = []
    for i, part in enumerate(first):
        if any(i >= len(r) or r[i] != part for r in rest):
            break
        shared.append(part)
    return ".".join(shared)


def _notes(sites: Sequence[DropoutSite], modes: Modes) -> tuple[str, ...]:
    notes = []
    idle = [s for s in sites if not s.looks]
    if idle and modes.looked:
        notes.append(f"{plural(len(idle), 'dropout')} in parts that are not trained: {idle[0].name}")
    brief = [s for s in sites if 0 < len(s.off) < s.looks]
    if brief:
        notes.append(
            f"{plural(len(brief), 'dropout')} off at some steps: {brief[0].name}, {len(brief[0].off)} of {brief[0].looks}"
        )
    high = [s for s in sites if 0.5 < s.rate < EXTREME]
    if high:
        notes.append(f"{high[0].name} drops {percent(high[0].rate)} of its values: more than half")
    return tuple(notes)
