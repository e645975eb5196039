"""The head starts as declared, and its units differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...core.formatting import number, percent, plural
from ...core.init_scheme import InitScheme
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Fault, Stage, check, declared_not_measured, not_measured
from . import faults
from .record import Head, HeadWeights, Layer
from .start_values import explain_huge, explain_symmetric, find_uninitialised, gain, is_zero, layer_rows

NAME = "head_init"
#: Standard errors that a sample variance may be off: one healthy layer in two million is further off by chance ...
SIGMAS = 5.0
#: ... and the factor by which the standard deviation must be off as well: less changes no training.
FACTOR = 1.25
#: A mean this many declared standard deviations from zero (and `SIGMAS` standard errors) shifts every unit alike.
OFFSET = 0.25
#: Share of units that have the same weights as another unit, in and out.
TWINS = 0.5
#: rms of the logits about each row's mean, loss over chance, and std * sqrt(fan-in) from which on the initial weights are too large.
SPREAD, LOSS, GAIN = 15.0, 3.0, 4.0
#: Values that the moments were taken of, at most (see the probe), counted low.
_VALUES = 500_000
_MEASURED = "weights of the head's linear layers before the first step"


@check(
    stage=Stage.START,
    position=1,
    faults=(
        faults.HEAD_UNINITIALISED,
        faults.HEAD_ALL_ZERO,
        faults.HEAD_INIT_CONSTANT,
        faults.HEAD_SYMMETRIC,
        faults.HEAD_INIT_HUGE,
        faults.HEAD_BIAS_NOT_ZERO,
        faults.HEAD_INIT_TORCH_DEFAULT,
        faults.HEAD_INIT_INITIALIZER_RANGE,
        faults.HEAD_INIT_NOT_DECLARED,
        faults.HEAD_INCOMPLETE,
    ),
    measurements=(HeadWeights, Head),
)
def check_head_init(trace: Trace) -> Verdict:
    """The linear layers of the head start with finite, distinct weights, and with the declared standard deviation.

    Declared (``Intent(head_init=0.02)``: weights N(0, 0.02), biases zero; or an `InitScheme`, which says so layer by layer): the
    sample variance of each weight matrix lies within 5 standard errors of the declared one (Wilson and Hilferty's approximation of
    chi-square), or within a factor of 1.25 of it; its mean is zero; the biases are zero. Undeclared, only what is never intended is a
    failure: memory never written, units with the same weights in and out, weights so large that the first loss is several times that
    of a class-prior prediction. A last layer of zeros, adapters, norms and embeddings are exempt.

    The weights are read as they are stored, at no cost. Which layers are called, and in which order, only a forward pass shows (the
    probe ``head_state``): without it the order is that in which the model holds them, and the first loss is not known.

    >>> from pytest_ftcheck import example_trace
    >>> check_head_init(example_trace()).status
    'inconclusive'
    """
    weights, passed = trace.measured(HeadWeights), trace.measured(Head)
    if weights is None and passed is None:
        is_declared = trace.intent is not None and trace.intent.head_init is not None
        return (declared_not_measured if is_declared else not_measured)(NAME, trace, HeadWeights)
    head = _Start.of(weights, passed)
    found = _judge_layers(head, trace) if head.layers else None
    if found is not None and found.status != "pass":
        return found
    if weights is not None and weights.outside:
        return _incomplete(weights.outside, trace, () if found is None else found.notes)
    return found or not_measured(NAME, trace, HeadWeights, "the head has no linear layers")


@dataclass(frozen=True)
class _Start:
    """The linear layers that are judged: those that are called, where that is known, else those that are stored."""

    layers: tuple[Layer, ...]
    initializer_range: float | None
    logit_spread: float | None
    loss_over_chance: float | None
    #: The order is known: that of their calls, or each layer has as many inputs as the one before it has units.
    ordered: bool

    @classmethod
    def of(cls, weights: HeadWeights | None, passed: Head | None) -> _Start:
        called = passed.layers if passed is not None else ()
        stored = weights.layers if weights is not None else ()
        return cls(
            called or stored,
            weights.initializer_range if weights is not None else None,
            passed.logit_spread if passed is not None else None,
            passed.loss_over_chance if passed is not None else None,
            bool(called) or sum(la.last for la in stored) == 1,
        )


def _judge_layers(head: _Start, trace: Trace) -> Verdict:
    intended = trace.intent.head_init if trace.intent is not None else None
    declared = None if intended is None else _Declared(intended, head)
    found = find_uninitialised(NAME, head.layers, _MEASURED) or _find_identical_units(head) or _find_huge(head)
    if found is None and declared is not None and declared.is_decidable(head):
        found = _find_other_weights(head, declared) or _find_hidden_bias(head, declared)
    if found is not None:
        return found
    if declared is not None and not declared.is_decidable(head):
        return declared_not_measured(NAME, trace, Head)
    layers = plural(len(head.layers), "linear layer")
    if declared is None and (advice := _constant_last(head)):
        return advice
    stds = ", ".join(f"{number(la.std)} ({la.name})" for la in head.layers[:3])
    if declared is None:
        headline = (
            f"The {layers} of the head start with finite, distinct weights; std {stds}; no initialisation was declared."
        )
    else:
        headline = f"The {layers} of the head start as declared ({declared.name}): std {stds}."
    return Verdict(NAME, "pass", headline, notes=_notes(head, declared), measured=_MEASURED)


def _incomplete(outside: Sequence[str], trace: Trace, notes: tuple[str, ...]) -> Verdict:
    names = ", ".join(outside)
    verb = "is" if len(outside) == 1 else "are"
    fault = faults.HEAD_INCOMPLETE.with_details(prefixes=[*outside, *trace.head])
    return fault.verdict(
        NAME,
        f"{names} {verb} not part of the head as declared or found ({', '.join(trace.head)}), but trained, and outside the pretrained "
        "base.",
        "advice",
        limit="every trainable module with weights outside the pretrained base is in the head",
        measured="names of the model's modules and parameters",
        notes=notes,
    )


class _Declared:
    """What the author declared, layer by layer."""

    def __init__(self, declared: float | InitScheme, head: _Start) -> None:
        self.scheme = declared if isinstance(declared, InitScheme) else None
        self.single = None if isinstance(declared, InitScheme) else float(declared)
        self.name = declared.name if isinstance(declared, InitScheme) else f"N(0, {declared:g})"
        scheme = repr(declared) if isinstance(declared, InitScheme) else f"InitScheme.normal(std={declared:g})"
        self.code = f"{scheme}.apply(model)"
        names = [la.name for la in head.layers]
        self._at = {n: (i, len(names)) for i, n in enumerate(names)}

    def is_decidable(self, head: _Start) -> bool:
        """Whether it is known which layer is declared to start how."""
        return head.ordered or self.scheme is None or (self.scheme.first is None and self.scheme.last is None)

    def std(self, la: Layer) -> float:
        """Declared standard deviation of the weights about zero."""
        if self.scheme is None:
            return self.single or 0.0
        return self.scheme.at(*self._at[la.name]).weight.std_of(la.fan_in, la.units, last=la.last)

    def has_bias(self, la: Layer) -> bool:
        """Whether a bias that is not zero is declared for the layer."""
        return self.scheme is not None and self.scheme.at(*self._at[la.name]).bias != 0.0

    def is_normal(self, la: Layer) -> bool:
        """Whether normally distributed weights are declared."""
        return self.scheme is None or self.scheme.at(*self._at[la.name]).weight.family == "normal"

    def stds(self, layers: Sequence[Layer]) -> dict[str, float]:
        """Declared standard deviation by layer."""
        return {la.name: self.std(la) for la in layers}


def _find_identical_units(head: _Start) -> Verdict | None:
    faulty = [la for la in head.layers if la.twins >= TWINS and la.units > 1]
    if not faulty:
        return None
    layer = max(faulty, key=lambda la: la.twins)
    if is_zero(layer):
        fault, headline = faults.HEAD_ALL_ZERO, f"{layer.name} and the layer behind it start at zero: no signal passes."
    else:
        fault, headline = explain_symmetric(layer)
    limit = f"less than {percent(TWINS)} of the units of a layer identical; random weights give 0 %"
    return fault.verdict(NAME, headline, evidence=layer_rows(faulty), limit=limit, measured=_MEASURED)


def _find_huge(head: _Start) -> Verdict | None:
    faulty = [la for la in head.layers if gain(la) > GAIN]
    spread, loss = head.logit_spread, head.loss_over_chance
    if not faulty or spread is None or loss is None or spread <= SPREAD or loss <= LOSS:
        return None
    layer = max(faulty, key=gain)
    return explain_huge(faulty).verdict(
        NAME,
        f"The head starts with weights of std {number(layer.std)} ({layer.name}): the logits are {number(spread)} before the first step, "
        f"the loss is {number(loss)} times that of a class-prior prediction.",
        evidence=layer_rows(faulty),
        limit=f"logits up to {SPREAD:g}, loss up to {LOSS:g} times chance, std * sqrt(fan-in) up to {GAIN:g} (He: 1.4, LeCun: 1)",
        measured=_MEASURED,
    )


def _constant_last(head: _Start) -> Verdict | None:
    """A last layer of one value that is not zero. It serves as well as zeros, which are common, but nobody chooses it: advice."""
    found = [la for la in head.layers if la.last and la.constant and la.mean and min(la.units, la.fan_in) > 1]
    if not found:
        return None
    layer = found[0]
    return faults.HEAD_INIT_CONSTANT.with_details(
        layers=layer.name, code="InitScheme.normal(std=0.02).apply(model)"
    ).verdict(
        NAME,
        f"All weights of {layer.name} are {number(layer.mean)}: it adds the same to each of its {layer.units} outputs, "
        "and prefers no feature.",
        "advice",
        evidence=layer_rows(found),
        limit="weights that differ, or zeros",
        measured=_MEASURED,
    )


def _find_other_weights(head: _Start, declared: _Declared) -> Verdict | None:
    # a last layer of zeros differs from the declaration, and costs one step: noted
    faulty = [la for la in head.layers if _differs(la, declared.std(la)) and not (la.last and is_zero(la))]
    if not faulty:
        return None
    layer = max(faulty, key=lambda la: abs(math.log(max(_rms(la), 1e-12) / max(declared.std(la), 1e-12))))
    return _explain_other_weights(layer, faulty, head, declared).verdict(
        NAME,
        f"{len(faulty)} of {plural(len(head.layers), 'linear layer')} of the head do not start from {declared.name}: "
        f"{layer.name} has std {number(layer.std)}, mean {number(layer.mean)}.",
        evidence=layer_rows(faulty, declared.stds(faulty)),
        limit=f"std within {SIGMAS:g} standard errors or a factor of {FACTOR:g} of {declared.std(layer):g} (chance fails one layer in 2 "
        "million)",
        measured=_MEASURED,
    )


def _explain_other_weights(layer: Layer, faulty: Sequence[Layer], head: _Start, declared: _Declared) -> Fault:
    std, own_range = declared.std(layer), head.initializer_range
    if all(has_torch_default(la) for la in faulty):
        fault = faults.HEAD_INIT_TORCH_DEFAULT
    elif own_range and own_range != std and all(not _differs(la, own_range) for la in faulty):
        fault = faults.HEAD_INIT_INITIALIZER_RANGE
    elif all(la.constant for la in faulty):
        fault = faults.HEAD_INIT_CONSTANT
    elif abs(layer.mean) > OFFSET * std:
        fault = faults.HEAD_INIT_NOT_CENTRED
    else:
        fault = faults.HEAD_INIT_NOT_DECLARED
    return fault.with_details(
        layer=layer.name,
        layers=", ".join(la.name for la in faulty),
        initializer_range=f"{own_range or 0.0:g}",
        ratio=number(layer.std / std if std else None),
        code=declared.code,
    )


def _find_hidden_bias(head: _Start, declared: _Declared) -> Verdict | None:
    faulty = [la for la in head.layers if _has_hidden_bias(la) and not declared.has_bias(la)]
    if not faulty:
        return None
    layer = max(faulty, key=lambda la: la.bias or 0.0)
    return faults.HEAD_BIAS_NOT_ZERO.with_details(layer=layer.name).verdict(
        NAME,
        f"The bias of {layer.name}, a hidden layer, starts at up to {number(layer.bias)} (mean {number(layer.bias_mean)}), not at zero as "
        "declared.",
        evidence=layer_rows(faulty, declared.stds(faulty)),
        limit="biases of hidden layers start at zero (torch's own default of 1/sqrt(fan-in) passes with a note)",
        measured=_MEASURED,
    )


def _has_hidden_bias(la: Layer) -> bool:
    return not la.last and la.bias is not None and la.bias > 1.001 / math.sqrt(la.fan_in)


def _rms(la: Layer) -> float:
    return math.sqrt(la.std**2 + la.mean**2)


def _differs(la: Layer, declared: float) -> bool:
    """Whether the layer's weights differ from the declared standard deviation by more than chance."""
    n = min(la.units * la.fan_in, _VALUES)
    rms = _rms(la)
    if declared == 0 or rms == 0:
        return rms != declared
    if abs(la.mean) > OFFSET * declared and abs(la.mean) * math.sqrt(n) > SIGMAS * declared:
        return True
    if 1 / FACTOR <= rms / declared <= FACTOR:
        return False
    return abs(_standard_errors((rms / declared) ** 2, n)) > SIGMAS


def _standard_errors(ratio: float, n: int) -> float:
    """Standard errors between a sample variance over the true one, and 1 (Wilson and Hilferty 1931).

    >>> round(_standard_errors(1.0, 4096), 1), _standard_errors(1.1**2, 4096) > 8
    (0.0, True)
    """
    spread = 2 / (9 * n)
    return float((ratio ** (1 / 3) - (1 - spread)) / math.sqrt(spread))


def has_torch_default(la: Layer) -> bool:
    """Whether the weights match ``nn.Linear``'s own: uniform up to 1/sqrt(fan-in).

    >>> has_torch_default(Layer("a", 64, 64, 0.0, 0.072, 0.125, 1.8, 0, False, None, None, False, True))
    True
    """
    bound = 1 / math.sqrt(la.fan_in)
    return la.largest <= bound * 1.001 and abs(la.std * math.sqrt(3) / bound - 1) < 0.15


def _notes(head: _Start, declared: _Declared | None) -> tuple[str, ...]:
    notes = []
    for la in head.layers:
        if declared is not None and la.bias and not declared.has_bias(la):
            where = "last layer: healthy as a class prior" if la.last else "within torch's default: harmless"
            notes.append(f"the bias of {la.name} starts at up to {number(la.bias)}, not zero ({where})")
        flat = la.kurtosis is not None and la.kurtosis < 2.2 and la.units * la.fan_in >= 500
        if declared and declared.is_normal(la) and flat:
            notes.append(f"the weights of {la.name} have the declared std, but are uniform rather than normal")
        if is_zero(la):
            notes.append(f"{la.name} starts at zero" + (" (common for a last layer)" if la.last else ""))
    return tuple(notes)
