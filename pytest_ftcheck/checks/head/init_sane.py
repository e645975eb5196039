"""Whether a head starts sanely, judged on what `check_init` measured before any training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.verdict import Verdict
from ..loss.faults import INITIAL_LOSS_NOT_FINITE, INITIAL_LOSS_TOO_HIGH
from ..loss.record import OF_CLASSES
from ..spec import Fault
from . import faults
from .init_record import HeadStart, LayerSignal, TensorFit
from .start_values import explain_huge, explain_symmetric, find_uninitialised, layer_rows

NAME = "init_sane"
#: Probability of a healthy tensor's being called different from what was declared, shared among the tensors of a head.
ALPHA = 1e-6
#: Standard errors by which the share of dead ReLU units may exceed the half that symmetric weights give at most (all rows the same):
#: chance does so once in three million layers.
SIGMAS = 5.0
#: Share of rows certain of a class, before anything was learned; a quarter more than half of tanh or sigmoid values flat.
CERTAIN, FLAT = 0.5, 0.75
#: rms of logits (without the last bias) below which the weights make no row certain: two classes 2 * sqrt(2) apart are at 94 %.
DRAWN = 2.0
#: A signal that grows by more than this from features to logits (He et al. keep it near 1).
GROWTH = 100.0
#: Adam's eps: a gradient below ten times that is damped by it, and gets no step of its learning rate's size.
ADAM_EPS = 1e-8
DAMPED = 10.0
#: Standard deviations of the logits that the first loss may be off a class-prior prediction's: rows may share their logits, so that no
#: averaging helps.
SPREADS = 3.0
#: Rounding of a mean over rows.
ROUNDING = 1e-3
#: Regression: first predictions larger than the labels by this factor.
FAR = 10.0
#: Kurtosis of a normal distribution, and how far the median layer's may be off where the weights were drawn from one.
NORMAL, NEAR = 3.0, 0.1


def judge(start: HeadStart) -> Verdict:
    """One verdict on a head's start; the most fundamental fault first, the others as notes."""
    verdicts = [v for find in _FINDERS if (v := find(start)) is not None]
    if verdicts:
        first, *others = verdicts
        return replace(first, notes=(*first.notes, *(f"also: {v.headline}" for v in others)))
    if start.expected:
        scheme = f"as {start.expected} (declared)"
    elif start.recognised:
        scheme = f"as {start.recognised} (recognised)"
    else:
        scheme = "with weights of no known scheme"
    loss = (
        ""
        if start.loss is None or start.uniform_loss is None
        else f"; the first loss is {number(start.loss, 4)}, {_untrained_loss(start)}"
    )
    return Verdict(
        NAME,
        "pass",
        f"{plural(len(start.layers), 'linear layer')} of the head {'start' if len(start.layers) > 1 else 'starts'} {scheme}{loss}.",
        measured=_measured(start),
        notes=_notes(start),
    )


def _measured(start: HeadStart) -> str:
    return f"weights, one pass and one gradient, dropout off, {plural(start.rows, 'row')}, before any training"


def _untrained_loss(start: HeadStart) -> str:
    low, high = _loss_range(start)
    return f"where an untrained head has {number(low, 4)} to {number(high, 4)}"


def _verdict(
    start: HeadStart, fault: Fault, headline: str, *, limit: str, rows: Sequence[dict[str, Any]] = ()
) -> Verdict:
    evidence = tuple(rows) or layer_rows(start.layers)
    return fault.verdict(NAME, headline, evidence=evidence, limit=limit, measured=_measured(start))


# ---------------------------------------------------------------------- values
def _find_uninitialised(start: HeadStart) -> Verdict | None:
    return find_uninitialised(NAME, start.layers, _measured(start))


def _find_overwritten_base(start: HeadStart) -> Verdict | None:
    if start.base_differing:
        shown = ", ".join(start.base_differing[:3])
        return _verdict(
            start,
            faults.BASE_CLOBBERED,
            f"{len(start.base_differing)} of {plural(start.base_compared, 'tensor')} of the base are not the pretrained ones ({shown}).",
            limit="bit for bit what pretrained= says",
            rows=[{"tensor": n} for n in start.base_differing[:10]],
        )
    base = start.base
    if base is None or base.linear < 2 or base.zero_bias < base.linear or not base.trained_norms:
        return None
    if base.kurtosis is None or abs(base.kurtosis - NORMAL) > NEAR:
        return None
    return _verdict(
        start,
        faults.BASE_CLOBBERED,
        f"All {base.linear} linear layers of the base have zero biases and normally distributed weights, but "
        f"{plural(base.trained_norms, 'norm')} have trained values: the pretrained weights were re-initialised.",
        limit=f"a pretrained base has biases; kurtosis of its weights within {NEAR:g} of {NORMAL:g} is what a normal distribution draws",
        rows=[
            {
                "linear layers": base.linear,
                "with zero bias": base.zero_bias,
                "trained norms": base.trained_norms,
                "kurtosis": base.kurtosis,
            }
        ],
    )


def _find_undeclared(start: HeadStart) -> Verdict | None:
    if start.expected is None or not start.fits:
        return None
    faulty = [f for f in start.fits if f.p < ALPHA / len(start.fits)]
    if not faulty:
        return None
    shown = next((f for f in faulty if _is_weight(f)), faulty[0])
    return _verdict(
        start,
        _explain_undeclared(start, faulty),
        f"{len(faulty)} of {plural(len(start.fits), 'tensor')} do not start as declared ({start.expected}): {shown.tensor} has "
        f"{shown.found}.",
        limit=f"p >= {ALPHA:g} for the whole head (Kolmogorov-Smirnov and chi-square); exact where nothing is drawn",
        rows=[{"tensor": f.tensor, "declared": f.expected, "found": f.found, "p": f.p} for f in start.fits],
    )


def _explain_undeclared(start: HeadStart, faulty: Sequence[TensorFit]) -> Fault:
    own_range, recognised = start.initializer_range, start.recognised
    if not any(_is_weight(f) for f in faulty):
        fault = faults.HEAD_BIAS_NOT_DECLARED
    elif recognised is not None and recognised.startswith("torch's default"):
        fault = faults.HEAD_INIT_TORCH_DEFAULT
    elif own_range and all(abs(la.std / own_range - 1) < 0.25 for la in start.layers):
        fault = faults.HEAD_INIT_INITIALIZER_RANGE
    elif all(la.constant for la in start.layers):
        fault = faults.HEAD_INIT_CONSTANT
    else:
        fault = faults.HEAD_INIT_OTHER_SCHEME
    return fault.with_details(
        tensor=faulty[0].tensor,
        found=faulty[0].found,
        layers=", ".join(la.name for la in start.layers),
        initializer_range=f"{own_range or 0.0:g}",
        recognised=recognised or "no known scheme",
        code="scheme.apply(model)",
    )


def _is_weight(fit: TensorFit) -> bool:
    return fit.tensor.endswith("weight")


# ---------------------------------------------------------------------- structure
def _find_zero_hidden(start: HeadStart) -> Verdict | None:
    layers = start.layers
    zero = [la for la in layers if la.constant and la.mean == 0]
    if len(zero) > 1:
        headline = f"{zero[0].name} starts at zero and so does {zero[1].name}: no signal passes."
    elif zero and not zero[0].last and len(layers) > 1:
        headline = f"{zero[0].name} starts at zero, and it is not the last layer: no signal passes."
    else:
        return None
    return _verdict(start, faults.HEAD_ALL_ZERO, headline, limit="only the last layer may start at zero")


def _find_identical_units(start: HeadStart) -> Verdict | None:
    faulty = [la for la in start.layers if la.twins > 0 and la.units > 1 and not la.last]
    if not faulty or _find_zero_hidden(start):
        return None
    fault, headline = explain_symmetric(max(faulty, key=lambda la: la.twins))
    return _verdict(start, fault, headline, limit="no two hidden units identical; random weights give none")


def _find_dead_units(start: HeadStart) -> Verdict | None:
    units = {la.name: la.units for la in start.layers}
    faulty = [s for s in start.signals if s.dead is not None and s.dead > _dead_limit(units.get(s.name, 1))]
    if not faulty:
        return None
    s = faulty[0]
    limit = percent(_dead_limit(units.get(s.name, 1)))
    return _verdict(
        start,
        faults.UNITS_DEAD_FROM_START.with_details(layer=s.name),
        f"{percent(s.dead)} of the {units.get(s.name, 0)} ReLU units of {s.name} are zero for all {start.rows} rows.",
        limit=f"at most {limit}: half, were all rows the same, and {SIGMAS:g} standard errors",
    )


def _dead_limit(units: int) -> float:
    return min(0.999, 0.5 + SIGMAS * math.sqrt(0.25 / max(1, units)))


def _find_saturated_units(start: HeadStart) -> Verdict | None:
    faulty = [s for s in start.signals if s.flat is not None and s.flat > FLAT]
    if not faulty or _find_dead_units(start):
        return None
    s = faulty[0]
    return _verdict(
        start,
        faults.UNITS_SATURATED.with_details(layer=s.name, activation="activation"),
        f"{percent(s.flat)} of the values behind {s.name} (input rms {number(s.entering)}) are where tanh or sigmoid is flat.",
        limit=f"{percent(FLAT)} (a slope below a thousandth of the largest)",
    )


# ---------------------------------------------------------------------- signal and loss
def _find_explosion(start: HeadStart) -> Verdict | None:
    spread, even, signals = start.logit_spread, start.uniform_loss, start.signals
    # certain by the weights, not by a bias that all rows share: that one is judged by the loss
    drawn = (spread or 0.0) > DRAWN and (start.loss or 0.0) > (even or 0.0)
    growth = signals[-1].leaving / signals[0].entering if signals and signals[0].entering > 0 else 0.0
    if start.certain_rows is not None and start.certain_rows > CERTAIN and drawn:
        headline = (
            f"{percent(start.certain_rows)} of the rows are certain of a class (above 99 %) before the first step, and the loss is "
            f"{number(start.loss, 3)}, {_untrained_loss(start)}."
        )
    elif growth > GROWTH:
        headline = f"The signal grows {number(growth)}-fold from the features to the logits."
    elif start.task == "regression" and spread is not None and even and spread**2 > FAR**2 * even:
        labels = number(math.sqrt(even))
        headline = f"The first predictions (rms {number(spread)}) are far larger than the labels (rms {labels})."
    else:
        return None
    limit = f"at most {percent(CERTAIN)} of the rows certain; growth up to {GROWTH:g}"
    return _verdict(start, explain_huge(start.layers), headline, limit=limit, rows=_signal_rows(start))


def _find_vanishing_gradient(start: HeadStart) -> Verdict | None:
    if start.task is None:
        return None
    for i, s in enumerate(start.signals):
        # what lies before a last layer of zeros gets no gradient in the first step, and gets one in the second
        if s.gradient is None or any(later.weights_zero for later in start.signals[i + 1 :]):
            continue
        if s.gradient < DAMPED * ADAM_EPS:
            fault = faults.INIT_SIGNAL_VANISHES.with_details(layer=s.name)
            return _verdict(
                start,
                fault
                if s.varying > 0 and s.entering > 0
                else fault.because(f"the input of {s.name} is zero or constant"),
                f"The gradient of {s.name} has an rms of {number(s.gradient)}, where Adam's eps is {ADAM_EPS:g}: it will hardly move.",
                limit=f"rms gradient of at least {DAMPED:g} times Adam's eps of {ADAM_EPS:g}",
                rows=_signal_rows(start),
            )
    return None


def _loss_range(start: HeadStart) -> tuple[float, float]:
    """From and to where the first loss of an untrained head may lie.

    For logits that have nothing to do with the labels and are spread with standard deviation s, the expected loss exceeds that of
    uniform ones by at most s^2 / 2 (log-sum-exp of a normal variable); sampling moves it by up to 3 s, however many rows there are, for
    they may all share their logits. Downwards nothing but sampling moves it below the class-prior entropy. A last bias that holds the
    classes' shares q of a whole data set meets other shares f in n rows: the loss is H(f) + KL(f || q), and 2 n KL(f || q) has a chi
    squared distribution with a degree of freedom for each class but one (Wilks 1938); for tags one for each, over n rows of each.
    """
    prior, uniform = start.prior_loss or 0.0, start.uniform_loss or 0.0
    low, s = min(prior, uniform), (start.logit_spread or 0.0) + _drawn_bias(start)
    high = max(uniform, prior + _cost_of_sampled_shares(start))
    slack = SPREADS * s + ROUNDING * high
    if start.task == "regression":
        return max(0.0, low - 2 * math.sqrt(low) * slack), high + s**2 + 2 * math.sqrt(high) * slack
    return max(0.0, low - slack), high + s**2 / 2 + slack


def _drawn_bias(start: HeadStart) -> float:
    """Size of the last bias where it is no larger than torch's default draws it: chance, as the weights are."""
    last = start.layers[-1] if start.layers else None
    if last is None or last.bias is None or last.bias > 1.001 / math.sqrt(last.fan_in):
        return 0.0
    return last.bias


def _cost_of_sampled_shares(start: HeadStart) -> float:
    """What other class shares in these rows than in the last bias may cost, once in 1 / `ALPHA` batches; 0 where no bias was chosen."""
    last = start.layers[-1] if start.layers else None
    if last is None or not last.bias or _drawn_bias(start) or start.task not in OF_CLASSES:
        return 0.0
    from scipy.special import chdtri

    outputs = max(1, start.outputs or 0)
    # the loss of tags is their mean
    free, averaged = (outputs, outputs) if start.task == "multi_label" else (max(1, outputs - 1), 1)
    return float(chdtri(free, ALPHA)) / (2 * start.rows * averaged)


def _find_wrong_loss(start: HeadStart) -> Verdict | None:
    if start.loss is None or start.uniform_loss is None or start.prior_loss is None:
        return None
    if not math.isfinite(start.loss):
        return _verdict(start, INITIAL_LOSS_NOT_FINITE, f"The first loss is {number(start.loss)}.", limit="finite")
    low, high = _loss_range(start)
    if low <= start.loss <= high:
        return None
    fault = faults.INIT_LOSS_TOO_LOW
    if start.loss > high:
        fault = INITIAL_LOSS_TOO_HIGH.because(
            "the last bias favours a rare class (a class prior in the wrong order, or of another data set)",
            "with_class_prior(shares) in the order of the class ids, or a bias of zero",
        )
    return _verdict(
        start,
        fault,
        f"The first loss is {number(start.loss, 4)}, {'below' if start.loss < low else 'above'} that of an untrained head "
        f"({number(low, 4)} to {number(high, 4)} for logits of rms {number(start.logit_spread)}).",
        limit="class-prior entropy to ln(classes), with 3 standard deviations of the logits, and s^2 / 2 above; more where the last bias "
        "holds class shares, which few rows hit by chance only",
        rows=_signal_rows(start),
    )


_FINDERS = (
    _find_uninitialised,
    _find_overwritten_base,
    _find_undeclared,
    _find_zero_hidden,
    _find_identical_units,
    _find_dead_units,
    _find_saturated_units,
    _find_explosion,
    _find_vanishing_gradient,
    _find_wrong_loss,
)


# ---------------------------------------------------------------------- words
def _notes(start: HeadStart) -> tuple[str, ...]:
    notes = []
    if start.layers and start.layers[-1].constant and start.layers[-1].mean == 0:
        notes.append("the last layer starts at zero: the layers before it get their first gradient in the second step")
    if start.task is None:
        notes.append("the task is not known: first loss and gradients were not judged")
    return tuple(notes)


def _signal_rows(start: HeadStart) -> tuple[dict[str, Any], ...]:
    return tuple(_signal_row(s) for s in start.signals)


def _signal_row(s: LayerSignal) -> dict[str, Any]:
    return {
        "layer": s.name,
        "enters": s.entering,
        "varies by": s.varying,
        "leaves": s.leaving,
        "gradient": s.gradient,
        "dead": None if s.dead is None else percent(s.dead),
    }
