"""Is a head's start sane? Judged on what was measured before any training; `check_init` measures and asks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.verdict import Verdict
from .init_record import Fit, Signal, Start

NAME = "init_sane"
#: Probability of a healthy tensor's being called different from what was declared, shared among the tensors of a head.
ALPHA = 1e-6
#: Magnitude that no initialisation draws; memory that was never written holds anything.
ABSURD = 1e4
#: Standard errors by which the share of dead ReLU units may exceed the half that symmetric weights give at worst (rows all alike): chance
#: does so once in three million layers.
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
#: Standard deviations of the logits that the first loss may lie beside that of knowing nothing: rows may share their logits, so that no
#: averaging helps.
SPREADS = 3.0
#: Rounding of a mean over rows.
ROUNDING = 1e-3
#: Regression: first predictions larger than the labels by this factor.
FAR = 10.0
#: Kurtosis of a normal distribution, and how far the median layer's may be off where the weights were drawn from one.
NORMAL, NEAR = 3.0, 0.1


def judge(start: Start) -> Verdict:
    """One verdict on a head's start; the most fundamental fault first, the others as notes."""
    found = [v for look in _LOOKS if (v := look(start)) is not None]
    if found:
        first, *rest = found
        return replace(first, notes=(*first.notes, *(f"also: {v.headline}" for v in rest)))
    told = (
        f"as {start.expected}"
        if start.expected
        else f"as {start.recognised}"
        if start.recognised
        else "in no way known here"
    )
    how = "declared" if start.expected else "recognised"
    loss = (
        ""
        if start.loss is None or start.even_loss is None
        else f"; the first loss is {number(start.loss, 4)}, {_chance(start)}"
    )
    return Verdict(
        NAME,
        "pass",
        f"{plural(len(start.layers), 'linear layer')} of the head {'start' if len(start.layers) > 1 else 'starts'} {told}"
        f"{f' ({how})' if start.expected or start.recognised else ''}{loss}.",
        measured=_measured(start),
        notes=_notes(start),
    )


def _measured(start: Start) -> str:
    return f"weights, one pass and one gradient, dropout off, {plural(start.rows, 'row')}, before any training"


def _chance(start: Start) -> str:
    low, high = _band(start)
    return f"where {number(low, 4)} to {number(high, 4)} is knowing nothing"


def _fail(
    start: Start, headline: str, cause: str, remedy: str, fault: str, *, limit: str, rows: Sequence[dict[str, Any]] = ()
) -> Verdict:
    return Verdict(
        NAME,
        "fail",
        headline,
        evidence=tuple(rows) or _layers(start),
        limit=limit,
        causes=(cause,),
        remedy=remedy,
        measured=_measured(start),
        fault=fault,
    )


# ---------------------------------------------------------------------- values
def _never_written(start: Start) -> Verdict | None:
    ill = [la for la in start.layers if la.nonfinite or la.largest > ABSURD or not (la.bias or 0.0) <= ABSURD]
    if not ill:
        return None
    la = ill[0]
    what = (
        plural(la.nonfinite, "NaN or infinite value")
        if la.nonfinite
        else f"a bias of {number(la.bias)}"
        if not (la.bias or 0.0) <= ABSURD
        else f"values up to {number(la.largest)}"
    )
    return _fail(
        start,
        f"{la.name} starts with {what}: no initialisation draws such weights.",
        f"{la.name} was never initialised (torch.empty, to_empty, or a layer left out of the initialisation)",
        "apply a scheme to it: InitScheme.normal(std=0.02).apply(head)",
        "head_uninitialised",
        limit=f"finite weights, none above {ABSURD:,.0f}",
    )


def _base_clobbered(start: Start) -> Verdict | None:
    if start.base_differing:
        shown = ", ".join(start.base_differing[:3])
        return _fail(
            start,
            f"{len(start.base_differing)} of {plural(start.base_compared, 'tensor')} of the base are not the pretrained ones ({shown}).",
            "the initialisation went over the base, too: model.apply(init) visits every module",
            "initialise the head alone: scheme.apply(model) or model.classifier.apply(init)",
            "base_clobbered",
            limit="bit for bit what pretrained= says",
            rows=[{"tensor": n} for n in start.base_differing[:10]],
        )
    base = start.base
    if (
        base is None
        or base.linear < 2
        or base.zero_bias < base.linear
        or not base.trained_norms
        or base.kurtosis is None
    ):
        return None
    if abs(base.kurtosis - NORMAL) > NEAR:
        return None
    return _fail(
        start,
        f"All {base.linear} linear layers of the base have zero biases and normally distributed weights, but "
        f"{plural(base.trained_norms, 'norm')} have trained values: the pretrained weights were drawn anew.",
        "the initialisation went over the base, too: model.apply(init) visits every nn.Linear",
        "load the base again, and initialise the head alone: scheme.apply(model) or model.classifier.apply(init)",
        "base_clobbered",
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


def _unlike_declared(start: Start) -> Verdict | None:
    if start.expected is None or not start.fits:
        return None
    ill = [f for f in start.fits if f.p < ALPHA / len(start.fits)]
    if not ill:
        return None
    worst = next((f for f in ill if f.tensor.endswith("weight")), ill[0])
    cause, fault = _why(start, ill)
    return _fail(
        start,
        f"{len(ill)} of {plural(len(start.fits), 'tensor')} do not start as declared ({start.expected}): {worst.tensor} has {worst.found}.",
        cause,
        "apply the scheme after the model is made and loaded; nothing may initialise the head afterwards (post_init, from_pretrained)",
        fault,
        limit=f"p >= {ALPHA:g} for the whole head (Kolmogorov-Smirnov and chi-square); exact where nothing is drawn",
        rows=[_fit_row(f) for f in start.fits],
    )


def _fit_row(fit: Fit) -> dict[str, Any]:
    return {"tensor": fit.tensor, "declared": fit.expected, "found": fit.found, "p": fit.p}


def _why(start: Start, ill: Sequence[Fit]) -> tuple[str, str]:
    weights = [f for f in ill if f.tensor.endswith("weight")]
    range_, recognised = start.initializer_range, start.recognised
    if not weights:
        return (f"the bias is not what was declared: {ill[0].tensor} is {ill[0].found}", "head_bias_not_zero")
    if recognised is not None and recognised.startswith("torch's default"):
        return (
            "the initialisation matched nothing: the layers have torch's default (children() where modules() was meant, or a head "
            "replaced later)",
            "head_init_torch_default",
        )
    stds = [la.std for la in start.layers]
    if range_ and all(abs(s / range_ - 1) < 0.25 for s in stds):
        return (
            f"transformers initialised the head with config.initializer_range = {range_:g}, before or over your own (post_init())",
            "head_init_initializer_range",
        )
    if all(la.constant for la in start.layers):
        return ("the weights are constant", "head_init_constant")
    return (f"the weights look like {recognised or 'no scheme known here'}", "head_init_not_declared")


# ---------------------------------------------------------------------- structure
def _alike(start: Start) -> Verdict | None:
    layers = start.layers
    zero = [la for la in layers if la.constant and la.mean == 0]
    if len(zero) > 1 or (zero and not zero[-1].last and len(layers) > 1):
        name = zero[0].name
        return _fail(
            start,
            f"{name} starts at zero{' and so does ' + zero[1].name if len(zero) > 1 else ', and it is not the last layer'}: nothing flows.",
            "zero weights in a hidden layer: no signal passes and no gradient comes back",
            "only the last layer may start at zero: InitScheme.normal(std=0.02).with_last(InitScheme.zeros())",
            "head_all_zero",
            limit="a last layer of zeros alone is sound",
        )
    ill = [la for la in layers if la.twins > 0 and la.units > 1 and not la.last]
    if not ill:
        return None
    la = max(ill, key=lambda x: x.twins)
    return _fail(
        start,
        f"{percent(la.twins)} of the {la.units} units of {la.name} have the weights of another unit, in and out: they get the same "
        "gradient and stay one unit.",
        f"nothing tells the units of {la.name} apart: {'constant' if la.constant else 'repeated'} weights",
        "draw the weights at random: InitScheme.normal(std=0.02).apply(head)",
        "head_symmetric",
        limit="no two hidden units alike; random weights give none",
    )


def _dead(start: Start) -> Verdict | None:
    units = {la.name: la.units for la in start.layers}
    ill = [s for s in start.signals if s.dead is not None and s.dead > _dead_limit(units.get(s.name, 1))]
    if ill:
        s = ill[0]
        return _fail(
            start,
            f"{percent(s.dead)} of the {units.get(s.name, 0)} ReLU units of {s.name} are zero for all {start.rows} rows.",
            f"a bias or a mean below zero silences the units of {s.name}, or nothing that varies enters it",
            f"weights around zero and zero biases in {s.name}",
            "units_dead_from_start",
            limit=f"at most {percent(_dead_limit(units.get(s.name, 1)))}: half, were all rows alike, and {SIGMAS:g} standard errors",
        )
    flat = [s for s in start.signals if s.flat is not None and s.flat > FLAT]
    if not flat:
        return None
    s = flat[0]
    return _fail(
        start,
        f"{percent(s.flat)} of the values behind {s.name} are where tanh or sigmoid is flat.",
        f"the weights of {s.name} are too large for what enters it (rms {number(s.entering)})",
        f"a smaller standard deviation for {s.name}: InitScheme.xavier_normal().apply(head)",
        "units_saturated",
        limit=f"{percent(FLAT)} (a slope below a thousandth of the largest)",
    )


def _dead_limit(units: int) -> float:
    return min(0.999, 0.5 + SIGMAS * math.sqrt(0.25 / max(1, units)))


# ---------------------------------------------------------------------- signal and loss
def _explodes(start: Start) -> Verdict | None:
    # certain by the weights, not by a bias that all rows share: of that `_off_chance` speaks
    drawn = (start.spread or 0.0) > DRAWN and (start.loss or 0.0) > (start.even_loss or 0.0)
    certain = start.certain is not None and start.certain > CERTAIN and drawn
    growing = (
        start.signals
        and start.signals[0].entering > 0
        and start.signals[-1].leaving / start.signals[0].entering > GROWTH
    )
    far = (
        start.task == "regression"
        and start.spread is not None
        and start.even_loss
        and start.spread**2 > FAR**2 * start.even_loss
    )
    if not (certain or growing or far):
        return None
    largest = max(start.layers, key=lambda la: la.std * math.sqrt(la.fan_in))
    if certain:
        said = (
            f"{percent(start.certain)} of the rows are certain of a class (above 99 %) before the first step, and the loss is "
            f"{number(start.loss, 3)}, {_chance(start)}"
        )
    elif growing:
        growth = start.signals[-1].leaving / start.signals[0].entering
        said = f"the signal grows {number(growth)}-fold from the features to the logits"
    else:
        labels = number(math.sqrt(start.even_loss or 0.0))
        said = f"the first predictions (rms {number(start.spread)}) are far larger than the labels (rms {labels})"
    return _fail(
        start,
        f"{said[:1].upper()}{said[1:]}.",
        f"the initial weights are too large: {largest.name} has std {number(largest.std)} for {largest.fan_in} inputs "
        f"(He: {number(math.sqrt(2 / largest.fan_in))})",
        "a smaller standard deviation: InitScheme.normal(std=0.02).apply(head); look at the size of the features, too",
        "head_init_huge",
        limit=f"at most {percent(CERTAIN)} of the rows certain; growth up to {GROWTH:g}",
        rows=_signal_rows(start),
    )


def _vanishes(start: Start) -> Verdict | None:
    signals = start.signals
    if not signals or start.task is None:
        return None
    blocked = [s.weights_zero for s in signals]
    for i, s in enumerate(signals):
        # what lies before a last layer of zeros gets no gradient in the first step, and gets one in the second
        if s.gradient is None or any(blocked[i + 1 :]):
            continue
        if s.gradient < DAMPED * ADAM_EPS:
            return _fail(
                start,
                f"The gradient of {s.name} has an rms of {number(s.gradient)}, where Adam's eps is {ADAM_EPS:g}: it will hardly move.",
                "the weights behind it are too small for the signal to come through"
                if s.varying > 0 and s.entering > 0
                else f"nothing enters {s.name}",
                "a larger standard deviation, 1/sqrt(fan-in) keeps a signal's size: InitScheme.kaiming_normal().apply(head)",
                "init_signal_vanishes",
                limit=f"rms gradient of at least {DAMPED:g} times Adam's eps of {ADAM_EPS:g}",
                rows=_signal_rows(start),
            )
    return None


def _band(start: Start) -> tuple[float, float]:
    """From and to where a first loss may lie for a head that knows nothing.

    For logits that have nothing to do with the labels and are spread with standard deviation s, the expected loss exceeds that of
    even ones by at most s^2 / 2 (log-sum-exp of a normal variable); sampling moves it by up to 3 s, however many rows there are, for
    they may all share their logits. Downwards nothing but sampling moves it below the class-prior entropy. A last bias that holds the
    classes' shares q of a whole data set meets other shares f in n rows: the loss is H(f) + KL(f || q), and 2 n KL(f || q) has a chi
    squared distribution with a degree of freedom for each class but one (Wilks 1938); for tags one for each, over n rows of each.
    """
    ends = start.prior_loss or 0.0, start.even_loss or 0.0
    low, s = min(ends), (start.spread or 0.0) + _drawn_bias(start)
    high = max(ends[1], ends[0] + _sampled_shares(start))
    slack = SPREADS * s + ROUNDING * high
    if start.task == "regression":
        return max(0.0, low - 2 * math.sqrt(low) * slack), high + s**2 + 2 * math.sqrt(high) * slack
    return max(0.0, low - slack), high + s**2 / 2 + slack


def _drawn_bias(start: Start) -> float:
    """Size of the last bias where it is no larger than torch's default draws it: chance, as the weights are."""
    last = start.layers[-1] if start.layers else None
    if last is None or last.bias is None or last.bias > 1.001 / math.sqrt(last.fan_in):
        return 0.0
    return last.bias


def _sampled_shares(start: Start) -> float:
    """What other class shares in these rows than in the last bias may cost, once in 1 / `ALPHA` batches; 0 where no bias was chosen."""
    last = start.layers[-1] if start.layers else None
    if last is None or not last.bias or _drawn_bias(start) or start.task not in ("single_label", "multi_label"):
        return 0.0
    from scipy.stats import chi2

    outputs = max(1, start.outputs or 0)
    # the loss of tags is their mean
    free, averaged = (outputs, outputs) if start.task == "multi_label" else (max(1, outputs - 1), 1)
    return float(chi2.isf(ALPHA, free)) / (2 * start.rows * averaged)


def _off_chance(start: Start) -> Verdict | None:
    if start.loss is None or start.even_loss is None or start.prior_loss is None:
        return None
    if not math.isfinite(start.loss):
        return _fail(
            start,
            f"The first loss is {number(start.loss)}.",
            "features or weights that are not finite",
            "look at the first batch's features",
            "initial_loss_not_finite",
            limit="finite",
        )
    low, high = _band(start)
    if low <= start.loss <= high:
        return None
    below = start.loss < low
    return _fail(
        start,
        f"The first loss is {number(start.loss, 4)}, {'below' if below else 'above'} what a head that knows nothing scores "
        f"({number(low, 4)} to {number(high, 4)} for logits of rms {number(start.spread)}).",
        "the head knows these rows before the first step: it was trained before, or the labels are in the inputs"
        if below
        else "the last bias favours a class that is rare (a class prior in the wrong order, or of another data set)",
        "initialise the head anew: InitScheme.normal(std=0.02).apply(head)"
        if below
        else "with_class_prior(shares) in the order of the class ids, or a bias of zero",
        "init_loss_too_low" if below else "initial_loss_too_high",
        limit="class-prior entropy to ln(classes), with 3 standard deviations of the logits, and s^2 / 2 above; more where the last bias "
        "holds class shares, which few rows hit by chance only",
        rows=_signal_rows(start),
    )


_LOOKS = (_never_written, _base_clobbered, _unlike_declared, _alike, _dead, _explodes, _vanishes, _off_chance)


# ---------------------------------------------------------------------- words
def _notes(start: Start) -> tuple[str, ...]:
    notes = []
    if start.layers and start.layers[-1].constant and start.layers[-1].mean == 0:
        notes.append("the last layer starts at zero: the layers before it get their first gradient in the second step")
    if start.task is None:
        notes.append("the task is not known: first loss and gradients were not judged")
    return tuple(notes)


def _layers(start: Start) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "layer": la.name,
            "shape": f"{la.units} x {la.fan_in}",
            "std": la.std,
            "He": math.sqrt(2 / la.fan_in),
            "mean": la.mean,
            "largest": la.largest,
            "bias up to": la.bias,
            "alike": percent(la.twins) if la.twins else None,
        }
        for la in start.layers
    )


def _signal_rows(start: Start) -> tuple[dict[str, Any], ...]:
    return tuple(_signal_row(s) for s in start.signals)


def _signal_row(s: Signal) -> dict[str, Any]:
    return {
        "layer": s.name,
        "enters": s.entering,
        "varies by": s.varying,
        "leaves": s.leaving,
        "gradient": s.gradient,
        "dead": None if s.dead is None else percent(s.dead),
    }
