"""What the recorder notes of a run: batches, optimizer steps, parameters, the probe's losses, metrics. Plain numbers only, no tensor.

Units: learning rates, displacements and weights share one unit (the parameter's own); losses are in nats for
cross-entropies; norms are L2; ``rms`` is the root of the mean square over the elements looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Iteration:
    """One batch through the loop."""

    #: Training loss (the number the loop works with, in its own mode); None: never told.
    loss: float | None
    #: Index of the last optimizer step taken during this iteration; None: none was (accumulation, a skipped step).
    step: int | None
    #: Number of optimizer steps taken in this iteration.
    steps: int
    #: ``model.training`` when the iteration ended.
    training: bool
    #: Why no gradient could be computed, if so ("no graph").
    backward_error: str | None = None


@dataclass(frozen=True)
class Step:
    """One call of ``optimizer.step()``."""

    #: Index of the iteration it belongs to; None: iterations were not told.
    iteration: int | None
    #: Learning rate of each parameter group, in force during the step.
    lrs: tuple[float, ...]
    #: L2 norm of all gradients together, as the optimizer saw them (after clipping and unscaling).
    grad_norm: float
    #: The same before clipping, where this side did the clipping.
    grad_norm_unclipped: float | None
    #: ``model.training`` during the step.
    training: bool
    #: The optimizer that is watched took it, not another one on the same model.
    by_watched_optimizer: bool = True


@dataclass(frozen=True)
class Group:
    """One parameter group of the optimizer, at the end of the run."""

    index: int
    lr_first: float
    lr_peak: float
    #: Sum of the learning rates over all steps: about as far as Adam can move a weight.
    lr_sum: float
    weight_decay: float
    #: Other scalar settings (``eps``, ``momentum``, ``betas[0]``, ...).
    settings: dict[str, float]
    #: Tensors of the model in this group.
    tensors: int
    #: Tensors in this group that are not parameters of the model (stale copies, another model's).
    not_in_model: int
    #: Entries of this group that name a tensor which the optimizer holds already: it is stepped once for each.
    duplicates: int = 0
    #: Weight decay shrinks the weight directly instead of joining the gradient.
    decoupled: bool = False


@dataclass(frozen=True)
class Optimizer:
    """The optimizer that was watched."""

    name: str
    #: ``adam`` (a step moves a weight by about one learning rate at most), ``sgd`` (by lr * |gradient|), or ``other``.
    family: str
    groups: tuple[Group, ...]
    #: Steps taken by other optimizers on parameters of the model.
    other_optimizer_steps: int = 0
    #: Names that it goes by: its class, and where that is not torch's own, those it is derived from.
    classes: tuple[str, ...] = ()
    #: How often a new optimizer took over the same tensors for good.
    rebuilt: int = 0
    #: Updates that its state says it has made, and the most steps at which one of its tensors had a gradient; None: it keeps no count.
    state_steps: int | None = None
    gradient_steps: int = 0
    #: Class of the scheduler that was handed over; whether it drives an optimizer that is not this one.
    scheduler: str | None = None
    scheduler_of_other_optimizer: bool = False
    #: Steps before which, in the same iteration, the scheduler had been stepped already.
    scheduler_stepped_first: int = 0


@dataclass(frozen=True)
class Gradients:
    """The gradients of one tensor over all steps, as the optimizer saw them."""

    #: Steps looked at.
    steps: int
    #: Steps at which the tensor had no ``.grad``; at which it was exactly zero everywhere; at which it had a NaN or inf.
    none: int
    zero: int
    nonfinite: int
    #: First step with a gradient that is not exactly zero; first with a NaN or inf.
    first_nonzero: int | None
    first_nonfinite: int | None
    #: Largest L2 norm over the steps, and the norm at the last step that had a gradient.
    max_norm: float
    last_norm: float
    #: Largest rms per element that ever got a gradient.
    max_rms: float
    #: Relative difference between the gradients of ``loss`` and of ``3 * loss / 3`` at the end of the run: rounding noise
    #: differs by 0.38 or more, real gradients by 2.4e-4 or less (benchmarks/architectures.py); None: not probed.
    noise: float | None = None
    #: Norms are taken on every k-th row of a large tensor; 1: on all of it.
    stride: int = 1


@dataclass(frozen=True)
class Motion:
    """How far one tensor came, elementwise, from before the run to after it."""

    #: Elements looked at: all of a head tensor or a small one, else a fixed random sample.
    elements: int
    #: Share of them whose value changed; share that ever got a gradient.
    share_changed: float
    share_with_gradient: float
    #: rms and largest displacement, over all elements looked at.
    rms: float
    largest: float
    #: L2 norm of the displacement over that of the initial values; None where the tensor started at zero.
    relative: float | None
    #: rms over the touched elements of what gradients did: the displacement less what weight decay explains.
    by_gradient: float
    #: rms of what weight decay explains (exact for decoupled decay and for SGD; see docs).
    by_decay: float
    #: rms of what changed outside of steps, when no optimizer was at work (root of the sum of squares over all such writes).
    between_steps: float
    #: Largest rms update of a single step over the touched elements.
    max_update: float
    #: First Wasserstein distance between the histograms before and after.
    wasserstein: float
    #: Writes before the last step, when no optimizer was at work, and the rms of the largest.
    between_steps_writes: int = 0
    between_steps_largest: float = 0.0
    #: How many of them undid most of the way made so far (or, before the first step, replaced the initial values).
    resets: int = 0
    #: Share of the optimizer's work that was still there at the last step: <displacement, updates> / <updates, updates>.
    retained: float | None = None


@dataclass(frozen=True)
class Statistics:
    """Moments of one tensor's values."""

    mean: float
    std: float
    rms: float
    low: float
    high: float
    nonfinite: int


@dataclass(frozen=True)
class Histogram:
    """Histogram of one tensor's values (of its sampled ones, if sampled) after some step (-1: before the run)."""

    step: int
    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """One parameter of the model."""

    name: str
    #: Other names of the same tensor (tied weights).
    aliases: tuple[str, ...]
    part: str
    #: ``matrix``, ``bias``, ``norm``, ``embedding`` or ``adapter``.
    role: str
    shape: tuple[int, ...]
    dtype: str
    #: ``requires_grad`` when the run began, and when it ended.
    trainable: bool
    trainable_last: bool
    #: Index of the parameter group that holds it; None: in none.
    group: int | None
    #: First step at which the optimizer held it; 0 for nearly all.
    first_step: int | None
    #: Sum of its group's learning rates over the steps at which it was held: the LR budget.
    lr_sum: float
    lr_peak: float
    #: The name led to another tensor when the run ended (the layer was replaced).
    replaced: bool
    #: Every bit as before (by checksum); None: not needed, ``motion`` tells.
    unchanged: bool | None
    gradients: Gradients
    motion: Motion
    first: Statistics
    last: Statistics
    #: At the recorded steps (`Trace.recorded`): gradient norm (-1: it had no gradient), rms update, rms displacement.
    grad_norms: tuple[float, ...] = ()
    updates: tuple[float, ...] = ()
    displacements: tuple[float, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    #: How often the optimizer holds it; it is stepped once for each.
    entries: int = 1
    #: Another optimizer that stepped on the model holds it, too.
    in_other_optimizer: bool = False
    #: Its name led to a tensor in no optimizer when the run ended.
    orphaned: bool = False

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def fan_in(self) -> int:
        """Inputs to one output of a matrix (``weight[out, in, ...]``); 1 for vectors."""
        return math.prod(self.shape[1:]) if len(self.shape) > 1 else 1

    @property
    def budget_used(self) -> float | None:
        """rms displacement by gradients over the LR budget; None where the budget is zero, or where none of the elements looked
        at got the gradient that others did (a large embedding table)."""
        if self.lr_sum <= 0 or (self.motion.share_with_gradient == 0 and self.gradients.max_norm > 0):
            return None
        return self.motion.by_gradient / self.lr_sum


@dataclass(frozen=True)
class Buffer:
    """One buffer of the model (running statistics and the like)."""

    name: str
    part: str
    #: It belongs to a module whose parameters are all frozen.
    frozen: bool
    unchanged: bool
    #: NaN and infinite values at the end.
    nonfinite: int = 0


@dataclass(frozen=True)
class ProbePoint:
    """The probe after some number of optimizer steps."""

    step: int
    #: Mean loss over the probe batches, dropout off.
    loss: float
    #: Cross-entropy (or the task's standard loss) recomputed from the logits; None where it cannot be.
    reference: float | None = None


@dataclass(frozen=True)
class Descent:
    """The loss of one step's own batch, dropout off, just before and just after ``optimizer.step()``."""

    step: int
    before: float
    after: float


@dataclass(frozen=True)
class ProbeRows:
    """A fixed set of rows, evaluated forward only with dropout off."""

    rows: int
    #: Where the rows come from.
    source: str
    points: tuple[ProbePoint, ...]
    descents: tuple[Descent, ...] = ()
    #: Entropy of the probe's label frequencies, nats: the loss of a model that knows the class prior and nothing else.
    prior_entropy: float | None = None
    #: Why there are no points, if so.
    skipped: str | None = None


@dataclass(frozen=True)
class Metric:
    """One metric before and after the run, beside what knowing nothing scores."""

    name: str
    first: float
    last: float
    rows: int
    #: ``held-out rows``, ``training rows`` or ``the user's own``.
    source: str
    #: What predicting the majority class (regression: the mean) for every row scores; None: unknown.
    baseline: float | None = None
    #: Share of label permutations that score at least ``last``; None: not computed.
    p_value: float | None = None
    #: Rows predicted as each class at the end, and rows of each class; empty where that has no meaning.
    predicted: tuple[int, ...] = ()
    actual: tuple[int, ...] = ()
    #: How many standard deviations of the permutations' scores ``last`` lies above (below: negative) their mean; None: not computed.
    deviations: float | None = None


@dataclass(frozen=True)
class Reading:
    """How batches, outputs and losses were read."""

    inputs: str
    outputs: str
    loss: str
    #: ``single_label``, ``multi_label``, ``regression`` or None (unknown).
    task: str | None = None
    classes: int | None = None
