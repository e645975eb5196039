"""The head starts as declared, and not all the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.init_scheme import InitScheme
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, check, not_measured
from . import faults
from .record import Head, Layer

#: Standard errors that a sample variance may be off: one healthy layer in two million is further off by luck ...
SIGMAS = 5.0
#: ... and the factor by which the standard deviation must be off as well: less changes no training.
FACTOR = 1.25
#: A mean this many declared standard deviations from zero (and `SIGMAS` standard errors) shifts every unit alike.
OFFSET = 0.25
#: Largest weight that any initialisation draws; memory that was never written holds anything.
ABSURD = 1e4
#: Share of units that have the same weights as another unit, in and out.
TWINS = 0.5
#: rms of the logits about each row's mean, loss over chance, and std * sqrt(fan-in) that mark a head that drowns in its start.
SPREAD, LOSS, GAIN = 15.0, 3.0, 4.0
#: Values that the moments were taken of, at most (see the probe), counted low.
_VALUES = 500_000


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
    ),
    measurements=(Head,),
)
def check_head_init(trace: Trace) -> Verdict:
    """The linear layers of the head start with finite, distinct weights, and with the declared standard deviation.

    Declared (``Intent(head_init=0.02)``: weights N(0, 0.02), biases zero; or an `InitScheme`, which says so layer by layer): the
    sample variance of each weight matrix lies within 5 standard errors of the declared one (Wilson and Hilferty's approximation of
    chi-square), or within a factor of 1.25 of it; its mean is zero; the biases are zero. Undeclared, only what no author means is a
    failure: memory never written, units that nothing tells apart (same weights in, same weights out), weights so large that the first
    loss is several times that of knowing nothing. A last layer of zeros, adapters, norms and embeddings are exempt.

    >>> from pytest_ftcheck import example_trace
    >>> check_head_init(example_trace()).status
    'skipped'
    """
    name, head = "head_init", trace.measured(Head)
    if head is None:
        return not_measured(name, trace, Head)
    if not head.layers:
        return Verdict(name, "skipped", f"{(head.skipped or {}).get('layers', 'the head has no linear layers')}.")
    meant = trace.intent.head_init if trace.intent is not None else None
    declared = None if meant is None else _Declared(meant, head)
    for look in (_never_written, _alike, _huge):
        if verdict := look(head):
            return verdict
    if declared is not None and (verdict := _unlike_declared(head, declared)):
        return verdict
    layers = plural(len(head.layers), "linear layer")
    told = ", ".join(f"{number(la.std)} ({la.name})" for la in head.layers[:3])
    if declared is None:
        headline = (
            f"The {layers} of the head start with finite, distinct weights; std {told}; no initialisation was declared."
        )
    else:
        headline = f"The {layers} of the head start as declared ({declared.name}): std {told}."
    return Verdict(name, "pass", headline, notes=_notes(head, declared), measured=_MEASURED)


class _Declared:
    """What the author declared, layer by layer."""

    def __init__(self, meant: float | InitScheme, head: Head) -> None:
        self.scheme = meant if isinstance(meant, InitScheme) else None
        self.single = None if isinstance(meant, InitScheme) else float(meant)
        self.name = meant.name if isinstance(meant, InitScheme) else f"N(0, {meant:g})"
        self.code = (
            f"{meant!r}.apply(model)"
            if isinstance(meant, InitScheme)
            else "loop over head.modules() after the head is made, and for every nn.Linear call "
            f"nn.init.normal_(m.weight, std={meant:g}) and nn.init.zeros_(m.bias)"
        )
        names = [la.name for la in head.layers]
        self._at = {n: (i, len(names)) for i, n in enumerate(names)}

    def std(self, la: Layer) -> float:
        """Standard deviation about zero that the weights are meant to have."""
        if self.scheme is None:
            return self.single or 0.0
        return self.scheme.at(*self._at[la.name]).weight.std_of(la.fan_in, la.units, last=la.last)

    def bias(self, la: Layer) -> bool:
        """Whether the layer is meant to have a bias that is not zero."""
        return self.scheme is not None and self.scheme.at(*self._at[la.name]).bias != 0.0

    def drawn(self, la: Layer) -> bool:
        """Whether the weights are meant to be normally distributed."""
        return self.scheme is None or self.scheme.at(*self._at[la.name]).weight.family == "normal"


_MEASURED = "weights of the head's linear layers before the first step"


def _never_written(head: Head) -> Verdict | None:
    ill = [la for la in head.layers if la.nonfinite or la.largest > ABSURD or (la.bias or 0.0) > ABSURD]
    if not ill:
        return None
    la = ill[0]
    what = (
        f"{plural(la.nonfinite, 'NaN or infinite value')}"
        if la.nonfinite
        else f"values up to {number(max(la.largest, la.bias or 0.0))}"
    )
    return Verdict(
        "head_init",
        "fail",
        f"{la.name} starts with {what}: no initialisation draws such weights.",
        evidence=_rows(ill, None),
        limit=f"finite weights, none above {ABSURD:,.0f}",
        causes=(f"{la.name} was never initialised (torch.empty, to_empty, or a layer left out of the init loop)",),
        remedy=f"initialise it: torch.nn.init.normal_({la.name}.weight, std=0.02); torch.nn.init.zeros_({la.name}.bias)",
        measured=_MEASURED,
        fault="head_uninitialised",
    )


def _alike(head: Head) -> Verdict | None:
    ill = [la for la in head.layers if la.twins >= TWINS and la.units > 1]
    if not ill:
        return None
    la = max(ill, key=lambda x: x.twins)
    value = f"every weight is {number(la.mean)}" if la.constant else "rows repeat"
    zero = la.constant and la.mean == 0
    return Verdict(
        "head_init",
        "fail",
        f"{percent(la.twins)} of the {la.units} units of {la.name} start with the weights of another unit, in and out ({value}): "
        + ("nothing flows, and nothing can be learned." if zero else "they get the same gradient and stay one unit."),
        evidence=_rows(ill, None),
        limit=f"less than {percent(TWINS)} of the units of a layer alike; random weights give 0 %",
        causes=(
            f"the head starts {'at zero in two layers in a row' if zero else 'with constant weights'}: nothing tells the units of "
            f"{la.name} apart",
        ),
        remedy=f"draw the weights at random: torch.nn.init.normal_({la.name}.weight, std=0.02) (only the last layer may start at zero)",
        measured=_MEASURED,
        fault="head_all_zero" if zero else "head_symmetric",
    )


def _huge(head: Head) -> Verdict | None:
    ill = [la for la in head.layers if la.std * math.sqrt(la.fan_in) > GAIN]
    spread, loss = head.logit_spread, head.loss_over_chance
    if not ill or spread is None or loss is None or spread <= SPREAD or loss <= LOSS:
        return None
    la = max(ill, key=lambda x: x.std * math.sqrt(x.fan_in))
    return Verdict(
        "head_init",
        "fail",
        f"The head starts with weights of std {number(la.std)} ({la.name}): logits of {number(spread)} before the first step, and a loss "
        f"{number(loss)} times that of knowing nothing.",
        evidence=_rows(ill, None),
        limit=f"logits up to {SPREAD:g}, loss up to {LOSS:g} times chance, std * sqrt(fan-in) up to {GAIN:g} (He: 1.4, LeCun: 1)",
        causes=(f"the initial weights of the head are too large: std {number(la.std)} for {la.fan_in} inputs",),
        remedy=f"torch.nn.init.normal_({la.name}.weight, std=0.02), or keep torch's default",
        measured=_MEASURED,
        fault="head_init_huge",
    )


def _unlike_declared(head: Head, declared: _Declared) -> Verdict | None:
    # a last layer of zeros differs from the declaration, and costs one step: noted
    ill = [la for la in head.layers if _unlike(la, declared.std(la)) and not (la.last and _zero(la))]
    if ill:
        la = max(ill, key=lambda x: abs(math.log(max(_rms(x), 1e-12) / max(declared.std(x), 1e-12))))
        meant = declared.std(la)
        cause, remedy, fault = _cause(la, ill, head, declared)
        return Verdict(
            "head_init",
            "fail",
            f"{len(ill)} of {plural(len(head.layers), 'linear layer')} of the head do not start from {declared.name}: "
            f"{la.name} has std {number(la.std)}, mean {number(la.mean)}.",
            evidence=_rows(ill, declared),
            limit=f"std within {SIGMAS:g} standard errors or a factor of {FACTOR:g} of {meant:g} (chance fails one layer in 2 million)",
            causes=(cause,),
            remedy=remedy,
            measured=_MEASURED,
            fault=fault,
        )
    shifted = [la for la in head.layers if _shifted(la) and not declared.bias(la)]
    if not shifted:
        return None
    la = max(shifted, key=lambda x: x.bias or 0.0)
    return Verdict(
        "head_init",
        "fail",
        f"The bias of {la.name}, a hidden layer, starts at up to {number(la.bias)} (mean {number(la.bias_mean)}), not at zero as "
        "declared.",
        evidence=_rows(shifted, declared),
        limit="biases of hidden layers start at zero (torch's own default of 1/sqrt(fan-in) is let through with a note)",
        causes=(
            f"a bias that is not zero was put on the hidden layer {la.name} (a class prior belongs on the last layer)",
        ),
        remedy=f"torch.nn.init.zeros_({la.name}.bias)",
        measured=_MEASURED,
        fault="head_bias_not_zero",
    )


def _zero(la: Layer) -> bool:
    return la.constant and la.mean == 0 and not la.nonfinite


def _rms(la: Layer) -> float:
    return math.sqrt(la.std**2 + la.mean**2)


def _unlike(la: Layer, declared: float) -> bool:
    """Whether chance does not explain the layer's weights."""
    n = min(la.units * la.fan_in, _VALUES)
    rms = _rms(la)
    if declared == 0 or rms == 0:
        return rms != declared
    if abs(la.mean) > OFFSET * declared and abs(la.mean) * math.sqrt(n) > SIGMAS * declared:
        return True
    if 1 / FACTOR <= rms / declared <= FACTOR:
        return False
    return abs(_sigmas((rms / declared) ** 2, n)) > SIGMAS


def _sigmas(ratio: float, n: int) -> float:
    """Standard errors between a sample variance over the true one, and 1 (Wilson and Hilferty 1931).

    >>> round(_sigmas(1.0, 4096), 1), _sigmas(1.1**2, 4096) > 8
    (0.0, True)
    """
    spread = 2 / (9 * n)
    return float((ratio ** (1 / 3) - (1 - spread)) / math.sqrt(spread))


def torch_default(la: Layer) -> bool:
    """Whether the weights look like what ``nn.Linear`` draws by itself: uniform up to 1/sqrt(fan-in).

    >>> torch_default(Layer("a", 64, 64, 0.0, 0.072, 0.125, 1.8, 0, False, None, None, False, True))
    True
    """
    bound = 1 / math.sqrt(la.fan_in)
    return la.largest <= bound * 1.001 and abs(la.std * math.sqrt(3) / bound - 1) < 0.15


def _cause(la: Layer, ill: Sequence[Layer], head: Head, declared: _Declared) -> tuple[str, str, str]:
    names, meant, apply = ", ".join(x.name for x in ill), declared.std(la), declared.code
    hf = head.initializer_range
    if all(torch_default(x) for x in ill):
        return (
            f"the init loop matched nothing: {names} {'have' if len(ill) > 1 else 'has'} torch's default, uniform up to "
            f"1/sqrt(fan-in) = {number(1 / math.sqrt(la.fan_in))} (children() where modules() was meant, or a head replaced later)",
            apply,
            "head_init_torch_default",
        )
    if hf and hf != meant and all(not _unlike(x, hf) for x in ill):
        return (
            f"transformers initialised {names} with config.initializer_range = {hf:g}, before or over your own initialisation (post_init)",
            f"set config.initializer_range={meant:g}, or initialise the head after from_pretrained()",
            "head_init_initializer_range",
        )
    if all(x.constant for x in ill):
        return (f"{names} starts with the constant {number(la.mean)}", apply, "head_init_constant")
    if abs(la.mean) > OFFSET * meant:
        return (
            f"the weights of {la.name} are not centred at zero (rand() where randn() was meant, or mean and std swapped)",
            apply,
            "head_init_not_declared",
        )
    return (
        f"the weights of {la.name} are {number(la.std / meant if meant else None)} times as large as declared",
        f"check the std of the initialisation, and that nothing initialises the head after it; {apply}",
        "head_init_not_declared",
    )


def _shifted(la: Layer) -> bool:
    return not la.last and la.bias is not None and la.bias > 1.001 / math.sqrt(la.fan_in)


def _notes(head: Head, declared: _Declared | None) -> tuple[str, ...]:
    notes = []
    for la in head.layers:
        if declared is not None and la.bias and not declared.bias(la):
            where = "last layer: a class prior, if that is meant" if la.last else "within torch's default: harmless"
            notes.append(f"the bias of {la.name} starts at up to {number(la.bias)}, not zero ({where})")
        if (
            declared
            and declared.drawn(la)
            and la.kurtosis is not None
            and la.kurtosis < 2.2
            and la.units * la.fan_in >= 500
        ):
            notes.append(f"the weights of {la.name} have the declared std, but are uniform rather than normal")
        if _zero(la):
            notes.append(f"{la.name} starts at zero" + (" (common for a last layer)" if la.last else ""))
    return tuple(notes)


def _rows(layers: Sequence[Layer], declared: _Declared | None) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "layer": la.name,
            "shape": f"{la.units} x {la.fan_in}",
            "std": la.std,
            "declared": None if declared is None else declared.std(la),
            "torch's default": 1 / math.sqrt(3 * la.fan_in),
            "mean": la.mean,
            "largest": la.largest,
            "bias up to": la.bias,
            "alike": percent(la.twins) if la.twins else None,
        }
        for la in layers
    )
