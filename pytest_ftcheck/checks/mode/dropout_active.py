"""Dropout is on in training, at the declared rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Status, Verdict
from ..spec import Fault, Stage, check, declared_not_measured, not_measured
from . import faults
from .record import DropoutSite, Modes

NAME = "dropout_active"
#: A rate from which on it is probably the share to keep; declare it if it is intended.
EXTREME = 0.9
#: A rate from which on a note mentions it.
HIGH = 0.5
#: Observed steps at the end of a run at which a part must be off to count as left so, or with equal random states.
MIN_OBSERVED = 3
ON_WHILE_TRAINED = "dropout with a rate above 0 is on while a parameter around it is trained"


@check(
    stage=Stage.MODE,
    position=1,
    faults=(
        faults.MODEL_IN_EVALUATION_MODE,
        faults.PART_IN_EVALUATION_MODE,
        faults.LEFT_IN_EVALUATION_MODE,
        faults.DROPOUT_RATE_EXTREME,
        faults.DROPOUT_MISSING,
        faults.DROPOUT_NOT_MEANT,
        faults.DROPOUT_RATE_DIFFERS,
        faults.SEEDED_EVERY_STEP,
        faults.DROPOUT_ON_LOGITS,
    ),
    measurements=(Modes,),
)
def check_dropout_active(trace: Trace) -> Verdict:
    """Dropout is on while parameters around it are trained, and at the declared rate (``Intent.dropout``).

    Modes are read right before and right after a step, at the beginning, in the middle and at the end; a module counts as off if it is
    off at both moments. A model without dropout is healthy unless declared otherwise, and so are frozen parts in evaluation mode. Dropout
    after the last layer, on the logits, is advice.

    >>> from pytest_ftcheck import example_trace
    >>> check_dropout_active(example_trace()).status
    'inconclusive'
    """
    modes = trace.measured(Modes)
    if modes is None:
        return not_measured(NAME, trace, Modes, declares="dropout")
    dropout = _Dropout(trace, modes)
    for judge in (
        _judge_seeding,
        _judge_declared_off,
        _judge_extreme_rate,
        _judge_always_off,
        _judge_left_off,
        _judge_missing,
        _judge_declared_rate,
        _judge_on_logits,
    ):
        if verdict := judge(dropout):
            return verdict
    sites, notes = dropout.sites, _notes(dropout)
    if dropout.declared and not sites and modes.reduced:
        # a dropout that is no module shows in passes alone
        missing = declared_not_measured(NAME, trace, Modes, modes.unmeasured["training"])
        return dataclasses.replace(missing, unmeasured=Modes.probe)
    if not sites:
        headline = "No dropout module." if dropout.declared else "The model has no dropout, and none was declared."
    elif not modes.observed and trace.steps:
        on = len(trace.steps) - len(dropout.steps_off)
        when = f"at {on} of {plural(len(trace.steps), 'step')}" if dropout.steps_off else "while it trained"
        headline = (
            f"The model was in training mode {when}; {plural(len(sites), 'dropout')}, rates {dropout.rates_text}."
        )
    else:
        headline = f"Dropout was on at {len(dropout.on)} of {plural(len(sites), 'site')}, rates {dropout.rates_text}."
    return _verdict(dropout, "pass", headline, notes=notes)


@dataclass(frozen=True)
class _Dropout:
    """The dropout of one run: what was declared, and which sites were off when."""

    trace: Trace
    modes: Modes

    @property
    def declared(self) -> bool | float | None:
        return self.trace.intent.dropout if self.trace.intent is not None else None

    @cached_property
    def sites(self) -> tuple[DropoutSite, ...]:
        """Sites with a rate above 0."""
        return tuple(s for s in self.modes.sites if s.rate > 0)

    @property
    def rates_text(self) -> str:
        return ", ".join(number(r) for r in sorted({s.rate for s in self.sites}))

    @cached_property
    def switched_by_step(self) -> frozenset[int]:
        """Iterations at which the whole model was off before and after the step, but on during it: the step itself switches."""
        on_during = {s.iteration for s in self.trace.steps if s.training}
        return frozenset(i for i in self.modes.model_off_at if i in on_during)

    @cached_property
    def steps_off(self) -> tuple[int, ...]:
        """Steps at which the whole model was in evaluation mode: all that is known of a watched loop."""
        return tuple(i for i, s in enumerate(self.trace.steps) if not s.training)

    def off_at(self, site: DropoutSite) -> list[int]:
        """Observed iterations at which a site was off."""
        return [i for i in site.off_at if i not in self.switched_by_step]

    @cached_property
    def always_off(self) -> tuple[DropoutSite, ...]:
        """Sites that were off at all observed steps."""
        return tuple(s for s in self.sites if s.observed and len(self.off_at(s)) == s.observed)

    @property
    def on(self) -> tuple[DropoutSite, ...]:
        """Sites that were on at some observed step."""
        return tuple(s for s in self.sites if s.observed and s not in self.always_off)

    @property
    def left_off(self) -> tuple[DropoutSite, ...]:
        """Sites that were off from some step on, and at several: the last steps may be followed by an evaluation."""
        return tuple(s for s in self.on if self._off_until_the_end(self.off_at(s)))

    def _off_until_the_end(self, off: Sequence[int]) -> bool:
        return len(off) >= MIN_OBSERVED and off == [i for i in self.modes.observed if i >= off[0]]


def _verdict(dropout: _Dropout, status: Status, headline: str, **rest: Any) -> Verdict:
    return Verdict(NAME, status, headline, measured=_measured(dropout), **rest)


def _failure(dropout: _Dropout, fault: Fault, headline: str, limit: str, sites: Sequence[DropoutSite] = ()) -> Verdict:
    evidence = tuple(
        {
            "module": s.name,
            "rate": s.rate,
            "kind": s.kind,
            "off at": f"{len(dropout.off_at(s))} of {plural(s.observed, 'step')}" if s.observed else None,
        }
        for s in sites
    )
    return fault.verdict(NAME, headline, limit=limit, evidence=evidence, measured=_measured(dropout))


def _measured(dropout: _Dropout) -> str:
    if not dropout.modes.observed:
        return "the mode at each step"
    return f"modes right before and after {plural(len(dropout.modes.observed), 'step')}"


def _judge_seeding(dropout: _Dropout) -> Verdict | None:
    modes = dropout.modes
    if modes.same_values_dropped:
        return _failure(
            dropout,
            faults.SEEDED_EVERY_STEP.because(
                "the seed is reset in forward() (torch.manual_seed, or a generator created there with a fixed seed)"
            ),
            "Two passes in training mode dropped the very same values, though random states were not reset between them.",
            "another pattern at each pass",
        )
    before, after = modes.random_states_before, modes.random_states_after
    if len(before) >= MIN_OBSERVED and (len(set(before)) == 1 or len(set(after)) == 1):
        return _failure(
            dropout,
            faults.SEEDED_EVERY_STEP,
            f"The model drew the same random numbers at all {len(before)} observed steps: dropout drops the same values each time.",
            "random states that differ from step to step",
        )
    return None


def _judge_declared_off(dropout: _Dropout) -> Verdict | None:
    if dropout.declared is None or dropout.declared:
        return None
    if not dropout.on or not dropout.modes.training_may_be_random:
        return _verdict(dropout, "pass", "No dropout was on in training, as declared.")
    return _failure(
        dropout,
        faults.DROPOUT_NOT_MEANT,
        f"Declared: no dropout. {plural(len(dropout.on), 'site')} dropped {dropout.rates_text} of the values in training.",
        "intent.dropout=False",
        dropout.on,
    )


def _judge_extreme_rate(dropout: _Dropout) -> Verdict | None:
    if isinstance(dropout.declared, float) and dropout.declared >= EXTREME:
        return None
    extreme = [
        s
        for s in dropout.sites
        if s.rate >= EXTREME and s not in dropout.always_off and (s.observed or not dropout.modes.observed)
    ]
    if not extreme:
        return None
    return _failure(
        dropout,
        faults.DROPOUT_RATE_EXTREME.with_details(rate=round(1 - extreme[0].rate, 6) or 0.1),
        f"{extreme[0].name} drops {percent(extreme[0].rate)} of its values in training.",
        f"below {EXTREME:g}: common rates are 0.1 to 0.5 (Srivastava et al. 2014)",
        extreme,
    )


def _judge_always_off(dropout: _Dropout) -> Verdict | None:
    modes, steps = dropout.modes, dropout.trace.steps
    off = dropout.always_off
    if not modes.observed and steps and not any(s.training for s in steps):
        # of a watched loop only the mode of the whole model at each step is known
        off = tuple(s for s in dropout.sites if s.trained)
    if not off or not modes.training_may_be_random:
        return None
    whole = len(modes.model_off_at) == len(modes.observed) and not dropout.switched_by_step
    part = "The model" if whole else _common_module([s.name for s in off]) or "A part of the model"
    return _failure(
        dropout,
        faults.MODEL_IN_EVALUATION_MODE if whole else faults.PART_IN_EVALUATION_MODE,
        f"{part} was in evaluation mode at all {len(modes.observed) or len(steps)} observed steps: "
        f"{len(off)} of {len(dropout.sites)} dropouts were off while the parameters around them trained.",
        ON_WHILE_TRAINED,
        off,
    )


def _judge_left_off(dropout: _Dropout) -> Verdict | None:
    left_off, off = dropout.left_off, dropout.steps_off
    if not dropout.modes.observed and MIN_OBSERVED <= len(off) == len(dropout.trace.steps) - min(off):
        left_off, since = tuple(s for s in dropout.sites if s.trained), f"step {min(off)}"
    elif left_off:
        since = f"iteration {min(left_off[0].off_at)}"
    if not left_off or not dropout.modes.training_may_be_random:
        return None
    return _failure(
        dropout,
        faults.LEFT_IN_EVALUATION_MODE,
        f"From {since} on, {len(left_off)} of {len(dropout.sites)} dropouts were off: "
        "model.eval() was called, and model.train() was not called again.",
        ON_WHILE_TRAINED,
        left_off,
    )


def _judge_missing(dropout: _Dropout) -> Verdict | None:
    training = dropout.modes.training
    if not dropout.declared or dropout.sites or training is None or training.change != 0:
        return None
    return _failure(
        dropout,
        faults.DROPOUT_MISSING,
        "Declared: dropout. The model has none: two passes over the same rows in training mode are the same.",
        f"intent.dropout={dropout.declared}",
    )


def _judge_declared_rate(dropout: _Dropout) -> Verdict | None:
    declared, sites = dropout.declared, dropout.sites
    if not isinstance(declared, float) or not sites or any(abs(s.rate - declared) <= 1e-6 for s in sites):
        return None
    return _failure(
        dropout,
        faults.DROPOUT_RATE_DIFFERS,
        f"Declared: dropout at {declared:g}. The model's rates are {dropout.rates_text}.",
        f"some dropout at intent.dropout={declared:g}",
        sites,
    )


def _judge_on_logits(dropout: _Dropout) -> Verdict | None:
    """Advice: a run may learn all the same."""
    modes = dropout.modes
    site = next((s for s in dropout.sites if s.name == modes.dropped_logits), None)
    never_on = bool(modes.observed) and modes.observed == modes.model_off_at and not dropout.switched_by_step
    if site is not None:
        module, off = site.name, site in dropout.always_off
        headline = (
            f"The logits are the output of {module}, which sets {percent(site.rate)} of them to zero in training."
        )
    elif (rate := modes.dropped_logits_rate) is not None:
        module, off = "a functional dropout", never_on  # what is no module is on where the whole model is
        headline = f"The logits are the output of {module}, which sets {percent(rate)} of them to zero in training."
    elif (share := modes.zeroed_logits) is not None:
        module, off = "a random mask", never_on
        headline = f"In training mode {percent(share)} of the logits are exactly zero, others at each pass; in evaluation mode none is."
    else:
        return None
    if off:
        return None
    return faults.DROPOUT_ON_LOGITS.with_details(module=module).verdict(
        NAME,
        headline,
        "advice",
        limit="no dropout after the last layer",
        measured="passes in training mode",
        notes=_notes(dropout),
    )


def _common_module(names: Sequence[str]) -> str:
    """The module that contains all of them.

    >>> _common_module(["base.layer.0.dropout", "base.layer.1.dropout"])
    'base.layer'
    """
    first, *others = [n.split(".") for n in names]
    shared: list[str] = []
    for i, part in enumerate(first):
        if any(i >= len(other) or other[i] != part for other in others):
            break
        shared.append(part)
    return ".".join(shared)


def _notes(dropout: _Dropout) -> tuple[str, ...]:
    sites, notes = dropout.sites, []
    untrained = [s for s in sites if not s.observed]
    if untrained and dropout.modes.observed:
        notes.append(f"{plural(len(untrained), 'dropout')} in parts that are not trained: {untrained[0].name}")
    sometimes_off = [s for s in sites if 0 < len(s.off_at) < s.observed]
    if sometimes_off:
        first = sometimes_off[0]
        notes.append(
            f"{plural(len(sometimes_off), 'dropout')} off at some steps: {first.name}, {len(first.off_at)} of {first.observed}"
        )
    high = [s for s in sites if HIGH < s.rate < EXTREME]
    if high:
        notes.append(f"{high[0].name} drops {percent(high[0].rate)} of its values: more than half")
    return tuple(notes)
