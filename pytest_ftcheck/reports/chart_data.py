"""The data of every chart: a trace as curves, bars and histograms, in plain numbers.

One place for all of them (matplotlib, the HTML page, TensorBoard, loggers), so that two charts of a run never disagree.
The horizontal axis counts optimizer steps from 1; 0 is before the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..core.formatting import one_line
from .layer_groups import blocks, bunched, kinds, labelled, modules
from .weight_motion import HEALTHY, explain_weight_motion, shown_by_default

if TYPE_CHECKING:
    from ..core.observations import Histogram, Tensor
    from ..core.trace import Trace

#: Curves of the base in one chart: more cannot be distinguished.
CURVES = 7
#: Beyond this the arithmetic of an axis overflows; no loss in float32 is that large.
FAR = 1e100
#: Rows of bars in one chart.
BARS = 24


# ------------------------------------------------------------------ the pieces
@dataclass(frozen=True)
class Series:
    """One curve.

    >>> Series("probe", "probe", (0.0, 5.0, 10.0), (0.7, float("nan"), None)).nonfinite
    (5.0,)
    """

    #: As a legend shows it; printable, of bounded length.
    name: str
    #: What it is, for its style: ``train``, ``probe``, ``prior``, ``lr``, ``total``, ``unclipped``, ``head``, ``base``,
    #: ``displacement``, ``budget`` or ``std``.
    kind: str
    #: Optimizer steps (between two steps: iterations that led to the second); 0 is before the run.
    x: tuple[float, ...]
    #: None: there is nothing at that step (a tensor without gradient); NaN and infinities are kept.
    y: tuple[float | None, ...]

    @property
    def finite(self) -> tuple[tuple[float, float], ...]:
        """The points that can be drawn."""
        return tuple((x, y) for x, y in zip(self.x, self.y, strict=True) if y is not None and math.isfinite(y))

    @property
    def nonfinite(self) -> tuple[float, ...]:
        """Where the value was NaN or infinite."""
        return tuple(x for x, y in zip(self.x, self.y, strict=True) if y is not None and not math.isfinite(y))

    def thinned(self, most: int) -> Series:
        """About ``most`` of the points: of each stretch the lowest, the highest and one that is not finite, so that no peak is lost.

        >>> wave = Series("a", "train", tuple(range(1000)), (0.0,) * 500 + (9.0,) + (0.0,) * 499)
        >>> thin = wave.thinned(100)
        >>> len(thin.x) <= 100, max(thin.y)
        (True, 9.0)
        """
        count = len(self.x)
        if count <= most:
            return self
        stretches = max(1, (most - 2) // 3)
        keep = {0, count - 1}
        for i in range(stretches):
            part = range(i * count // stretches, (i + 1) * count // stretches)
            known = [(v, k) for k in part if (v := self.y[k]) is not None]
            finite = [(v, k) for v, k in known if math.isfinite(v)]
            keep |= {k for _, k in (min(finite), max(finite))} if finite else {part[0]}
            keep |= set([k for v, k in known if not math.isfinite(v)][:1])
        chosen = sorted(keep)
        return replace(self, x=tuple(self.x[k] for k in chosen), y=tuple(self.y[k] for k in chosen))


@dataclass(frozen=True)
class Lines:
    """Curves over the steps of a run."""

    title: str
    #: What the vertical axis shows, with its unit.
    y: str
    series: tuple[Series, ...]
    #: The vertical axis is logarithmic; what is zero is not drawn on it.
    log: bool = False
    #: A remark for the reader; may be empty.
    note: str = ""
    #: Why there is nothing to draw; empty where there is.
    missing: str = ""


@dataclass(frozen=True)
class Layer:
    """How far one layer moved: the shares of the LR budget that its tensors used."""

    name: str
    part: str
    tensors: int
    trainable: int
    #: rms displacement by gradients over the sum of the learning rates: median over the layer's trainable tensors, smallest and
    #: largest; None: there is no budget, or no element was sampled.
    used: float | None
    low: float | None
    high: float | None
    #: A peculiarity ("frozen", "2 of 4: never got a gradient"); may be empty.
    state: str = ""


@dataclass(frozen=True)
class Bars:
    """Layers from the input to the head."""

    title: str
    x: str
    layers: tuple[Layer, ...]
    note: str = ""
    missing: str = ""
    #: What healthy dense tensors use; None: not known for this optimizer.
    healthy: tuple[float, float] | None = None


@dataclass(frozen=True)
class Density:
    """One histogram of weights as a density: histograms of different ranges can be laid over each other."""

    #: Optimizer steps taken; 0 is before the run.
    step: int
    #: Borders of the bins, one more than there are bins.
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    #: Share of the values per unit of weight: the areas of the bins add up to one.
    density: tuple[float, ...]


@dataclass(frozen=True)
class Weights:
    """One tensor: its histograms, and the displacement of its elements."""

    tensor: str
    histograms: tuple[Density, ...]
    displacement: Lines
    #: The four lines of :func:`pytest_ftcheck.explain_weight_motion`: label and text.
    explanation: tuple[tuple[str, str], ...]
    note: str = ""
    missing: str = ""


# ------------------------------------------------------------------ losses and learning rates
def loss(trace: Trace) -> Lines:
    """Training loss, the loss of the fixed probe rows with dropout off, and the class-prior baseline.

    >>> from pytest_ftcheck import example_trace
    >>> [s.name for s in loss(example_trace()).series]
    ['training', 'probe, dropout off', 'class prior']
    """
    places = positions(trace)
    points = [(x, i.loss) for x, i in zip(places, trace.iterations, strict=True) if i.loss is not None]
    found = [_series("training", "train", points)] if points else []
    probe, note = trace.probe_loss, ""
    if probe is not None and probe.points:
        found.append(_series("probe, dropout off", "probe", [(float(p.step), p.loss) for p in probe.points]))
    elif probe is not None:
        note = f"no probe loss: {one_line(probe.skipped or 'not taken', 200)}"
    if probe is not None and probe.prior_entropy is not None and found:
        ends = [s.x[k] for s in found for k in (0, -1)]
        entropy = probe.prior_entropy
        found.append(Series("class prior", "prior", (min(ends), max(ends)), (entropy, entropy)))
    return Lines("Loss", "loss", tuple(found), note=note, missing="" if found else "no loss was reported")


def positions(trace: Trace) -> tuple[float, ...]:
    """Each iteration's position on the axis of steps: at its optimizer step; several of one step are spread evenly before it.

    >>> from pytest_ftcheck.core.observations import Iteration
    >>> from pytest_ftcheck.core.example_trace import example_trace
    >>> positions(example_trace(iterations=(Iteration(1.0, None, 0, True), Iteration(1.0, 0, 1, True))))
    (0.5, 1.0)
    """
    if not any(i.step is not None for i in trace.iterations):
        return tuple(float(k + 1) for k in range(len(trace.iterations)))
    places: list[float] = []
    waiting, before = 0, 0.0
    for iteration in trace.iterations:
        waiting += 1
        if iteration.step is not None:
            here = float(iteration.step + 1)
            places += (before + (here - before) * k / waiting for k in range(1, waiting + 1))
            waiting, before = 0, here
    # iterations after the last step
    return (*places, *(before + k / waiting for k in range(1, waiting + 1)))


def rates(trace: Trace) -> Lines:
    """Learning rate of each parameter group; groups with one schedule are one curve.

    >>> from pytest_ftcheck import example_trace
    >>> [(s.name, max(s.y)) for s in rates(example_trace()).series]
    [('learning rate', 5e-05)]
    """
    curves: dict[tuple[float | None, ...], list[int]] = {}
    for group in range(max((len(s.lrs) for s in trace.steps), default=0)):
        curve = tuple(s.lrs[group] if group < len(s.lrs) else None for s in trace.steps)
        curves.setdefault(curve, []).append(group)
    x = tuple(float(k + 1) for k in range(len(trace.steps)))
    found = tuple(
        Series("learning rate" if len(curves) == 1 else f"lr of group {_ranges(groups)}", "lr", x, curve)
        for curve, groups in curves.items()
    )
    return Lines("Learning rate", "learning rate", found, missing="" if found else "no optimizer step was taken")


# ------------------------------------------------------------------ gradients and motion
def gradients(trace: Trace, most: int = CURVES) -> Lines:
    """L2 norm of the gradient over the steps: of all tensors, of the head, and of each block of the base.

    :param most: curves of the base; of more blocks, neighbours are merged.

    >>> from pytest_ftcheck import example_trace
    >>> [s.name for s in gradients(example_trace()).series]
    ['all, before clipping', 'all', 'head', 'base_model.layer.0']
    """
    x = tuple(float(k + 1) for k in range(len(trace.steps)))
    found = []
    unclipped = tuple(s.grad_norm_unclipped for s in trace.steps)
    if any(v is not None for v in unclipped):
        found.append(Series("all, before clipping", "unclipped", x, unclipped))
    if x:
        found.append(Series("all", "total", x, tuple(s.grad_norm for s in trace.steps)))
    without_gradient: dict[str, list[str]] = {}
    for name, kind, members in _groups(trace, most):
        curve = _norms(trace, members)
        if any(v is not None and not v <= 0 for v in curve.y):
            found.append(replace(curve, name=name, kind=kind))
        elif trace.steps:
            frozen = not any(t.trainable for t in members)
            reason = (
                "frozen" if frozen else "no gradient" if all(v is None for v in curve.y) else "gradient always zero"
            )
            without_gradient.setdefault(reason, []).append(name)
    note = "; ".join(f"{reason}: {_listed(names)}" for reason, names in without_gradient.items())
    missing = "" if found else "no optimizer step was taken"
    return Lines("Gradient norms", "L2 norm", tuple(found), log=True, note=note, missing=missing)


def _groups(trace: Trace, most: int) -> list[tuple[str, str, list[Tensor]]]:
    """Name, kind and tensors: the head, and blocks of the base."""
    head = [t for t in trace.tensors if t.part == "head"]
    base = bunched(labelled(blocks([t for t in trace.tensors if t.part != "head"])), most)
    return [("head", "head", head)] * bool(head) + [(name, "base", members) for name, members in base.items()]


def _norms(trace: Trace, members: Iterable[Tensor]) -> Series:
    """The norm of several tensors' gradients together, at the recorded steps."""
    kept = [t.grad_norms for t in members if t.grad_norms]
    y: list[float | None] = []
    for k in range(len(trace.recorded)):
        here = [norms[k] for norms in kept if k < len(norms) and not norms[k] < 0]  # -1: no gradient; NaN stays
        y.append(math.hypot(*here) if here else None)
    return Series("", "", tuple(float(s + 1) for s in trace.recorded), tuple(y))


def motion(trace: Trace, most: int = BARS) -> Bars:
    """How much of the LR budget each layer used: blocks of the base from the input on, then the head's modules.

    :param most: rows; of more blocks, neighbours are merged.

    >>> from pytest_ftcheck import example_trace
    >>> [(layer.name, layer.used) for layer in motion(example_trace()).layers]
    [('base_model.layer.0', 0.25), ('classifier', 0.25)]
    """
    base = labelled(blocks([t for t in trace.tensors if t.part != "head"]))
    head = labelled(modules([t for t in trace.tensors if t.part == "head"]))
    last = bunched(head, max(1, most // 2))
    first = bunched(base, max(1, most - len(last)))
    layers = tuple(
        _layer(name, part, members)
        for part, groups in (("base", first), ("head", last))
        for name, members in groups.items()
    )
    family = trace.optimizer.family
    note = {
        "adam": "Adam moves a weight by about one learning rate a step: 100 % is about the maximum.",
        "sgd": "SGD moves a weight by lr * |gradient|: the sum of the learning rates is no limit.",
    }.get(family, "")
    missing = "" if layers else "the trace has no tensors"
    return Bars(
        "Motion against the LR budget",
        "rms displacement by gradients / sum of LRs",
        layers,
        note,
        missing,
        HEALTHY if family == "adam" else None,
    )


def course(trace: Trace, most: int = CURVES) -> Lines:
    """Displacement over the LR budget so far, step by step: of the head, and of each block of the base.

    The median over a group's tensors that the optimizer holds; a group in which none was followed, because it is frozen or in no optimizer,
    is 0 if nothing in it moved. Unlike `motion` it includes weight decay.

    >>> from pytest_ftcheck import example_trace
    >>> [(s.name, round(s.y[-1], 4)) for s in course(example_trace()).series]
    [('head', 0.25), ('base_model.layer.0', 0.25)]
    """
    x = tuple(float(s + 1) for s in trace.recorded)
    found = []
    for name, kind, members in _groups(trace, most):
        shares = []
        for t in members:
            allowed = budgets(trace, t)
            if t.trainable and len(t.displacements) >= len(x) and any(v > 0 for v in allowed):
                shares.append([d / b if b > 0 else None for d, b in zip(t.displacements, allowed, strict=False)])
        if shares:
            found.append(Series(name, kind, x, tuple(_middle([s[k] for s in shares]) for k in range(len(x)))))
        elif x and not any(t.motion.share_changed for t in members):
            found.append(Series(name, kind, x, (0.0,) * len(x)))
    missing = "" if found else "no optimizer step was recorded"
    return Lines("Motion against the LR budget", "rms displacement / sum of LRs so far", tuple(found), missing=missing)


def _middle(values: Iterable[float | None]) -> float | None:
    """The median; NaN where a value is NaN, None where there is none."""
    known = sorted(v for v in values if v is not None)
    if not known or any(map(math.isnan, known)):
        return math.nan if known else None
    half = len(known) // 2
    return known[half] if len(known) % 2 else known[half - 1] / 2 + known[half] / 2  # the sum may overflow


def _layer(name: str, part: str, members: Sequence[Tensor]) -> Layer:
    used = sorted(
        (t.budget_used for t in members if t.trainable and t.budget_used is not None),
        # a NaN counts as the largest, so that it is shown
        key=lambda v: math.inf if math.isnan(v) else v,
    )
    count: dict[str, int] = {}
    for t in members:
        for kind in kinds(t):
            count[kind] = count.get(kind, 0) + 1
    state = ", ".join(k if n == len(members) else f"{n:,} of {len(members):,}: {k}" for k, n in count.items())
    return Layer(
        name=name,
        part=part,
        tensors=len(members),
        trainable=sum(t.trainable for t in members),
        used=_middle(used),
        low=used[0] if used else None,
        high=used[-1] if used else None,
        state=state,
    )


# ------------------------------------------------------------------ one tensor
def weights(trace: Trace, tensor: str | None = None) -> Weights:
    """A tensor's histograms, the displacement of its elements, the LR budget so far, and the initial std.

    :param tensor: its name; None: the head's largest trainable matrix.
    :raises ValueError: there is no such tensor.

    >>> from pytest_ftcheck import example_trace
    >>> found = weights(example_trace())
    >>> found.tensor, [s.name for s in found.displacement.series]
    ('classifier.weight', ['displacement (rms)', 'LR budget so far', 'initial std'])
    """
    if tensor is None and not trace.tensors:
        empty = Lines("Displacement", "unit of the weights", (), log=True, missing="the trace has no tensors")
        return Weights("", (), empty, (), missing="the trace has no tensors")
    t = shown_by_default(trace) if tensor is None else trace.tensor(tensor)
    found = tuple(d for h in t.histograms if (d := density(h)) is not None)
    missing = ""
    if not found:
        missing = "no histogram is kept of a frozen tensor" if not t.trainable else "the trace holds no histogram of it"
    explained = (line.split(None, 1) for line in explain_weight_motion(trace, t.name).splitlines())
    return Weights(
        tensor=one_line(t.name, 80),
        histograms=found,
        displacement=_displacement(trace, t),
        explanation=tuple((label.rstrip(":"), text) for label, text in explained),
        note=", ".join(kinds(t)),
        missing=missing,
    )


def _displacement(trace: Trace, t: Tensor) -> Lines:
    x = tuple(float(s + 1) for s in trace.recorded)
    moved = t.displacements[: len(x)]
    found = []
    if moved:
        found.append(Series("displacement (rms)", "displacement", x[: len(moved)], moved))
    allowed = budgets(trace, t)
    if any(v > 0 for v in allowed):
        found.append(Series("LR budget so far", "budget", x, tuple(allowed)))
    if x and t.first.std > 0:
        found.append(Series("initial std", "std", (x[0], x[-1]), (t.first.std, t.first.std)))
    unmoved = "it did not move" if moved and not any(v != 0 for v in moved) else ""
    missing = "" if moved else "frozen: not followed step by step" if not t.trainable else "no step was recorded"
    # a logarithmic axis cannot show zero
    return Lines("Displacement", "unit of the weights", tuple(found), log=not unmoved, note=unmoved, missing=missing)


def budgets(trace: Trace, t: Tensor) -> list[float]:
    """The LR budget so far, at each recorded step: the sum of its group's learning rates.

    >>> from pytest_ftcheck import example_trace
    >>> trace = example_trace()
    >>> round(budgets(trace, trace.tensors[0])[-1], 5)
    0.00055
    """
    total, sums = 0.0, []
    for s, step in enumerate(trace.steps):
        if t.group is not None and t.group < len(step.lrs) and s >= (t.first_step or 0):
            total += step.lrs[t.group]
        sums.append(total)
    return [sums[s] if s < len(sums) else total for s in trace.recorded]


def density(histogram: Histogram) -> Density | None:
    """The histogram as a density; None where it has no values, no width or no finite range.

    >>> from pytest_ftcheck.core.observations import Histogram
    >>> density(Histogram(-1, 0.0, 0.5, (1, 3)))
    Density(step=0, edges=(0.0, 0.25, 0.5), counts=(1, 3), density=(1.0, 3.0))
    """
    low, high, counts = histogram.low, histogram.high, histogram.counts
    total, bins = sum(counts), len(counts)
    if not total or not (math.isfinite(low) and math.isfinite(high)):
        return None
    width = high / bins - low / bins
    if not 0 < width < math.inf:
        return None
    edges = (*(low + k * width for k in range(bins)), high)
    return Density(histogram.step + 1, edges, counts, tuple(c / total / width for c in counts))


# ------------------------------------------------------------------ helpers
def _series(name: str, kind: str, points: Sequence[tuple[float, float | None]]) -> Series:
    return Series(name, kind, tuple(x for x, _ in points), tuple(y for _, y in points))


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _ranges(numbers: Sequence[int]) -> str:
    """
    >>> _ranges([0, 1, 2, 5])
    '0-2, 5'
    """
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
