"""What is recorded of every run: iterations, optimizer steps, parameters, the loss on fixed rows, metrics. Plain numbers, no tensors.

Units: learning rates, displacements and weights share one unit (the parameter's own); cross-entropies are in nats; norms are L2;
``rms`` is the root mean square over the sampled elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Iteration:
    """One batch through the loop."""

    #: Training loss, as the loop computes it; None: not known.
    loss: float | None
    #: Index of the last optimizer step of this iteration; None: it has none (accumulation, a skipped step).
    step: int | None
    #: Number of optimizer steps in this iteration.
    steps: int
    #: ``model.training`` when the iteration ended.
    training: bool
    #: Why no gradient could be computed ("no graph"); None: one could.
    backward_error: str | None = None


@dataclass(frozen=True)
class Step:
    """One call of ``optimizer.step()``."""

    #: Index of the iteration it belongs to; None: iterations are not known.
    iteration: int | None
    #: Learning rate of each parameter group, in force during the step.
    lrs: tuple[float, ...]
    #: L2 norm of all gradients together, as the optimizer got them (after clipping and unscaling).
    grad_norm: float
    #: The same before clipping, where `finetune` clips.
    grad_norm_unclipped: float | None
    #: ``model.training`` during the step.
    training: bool
    #: The watched optimizer took it, not another one on the same model.
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
    #: Tensors in this group that are not parameters of the model (stale copies, those of another model).
    not_in_model: int
    #: Entries of this group whose tensor the optimizer already holds: it is stepped once for each entry.
    duplicates: int = 0
    #: Weight decay shrinks the weight directly instead of joining the gradient.
    decoupled: bool = False


@dataclass(frozen=True)
class Optimizer:
    """The watched optimizer."""

    name: str
    #: ``adam`` (a step moves a weight by about one learning rate at most), ``sgd`` (by lr * |gradient|), or ``other``.
    family: str
    groups: tuple[Group, ...]
    #: Steps taken by other optimizers on parameters of the model.
    other_optimizer_steps: int = 0
    #: Names of its class and, where that is not torch's own, of those it derives from.
    classes: tuple[str, ...] = ()
    #: How often a new optimizer replaced it on the same tensors.
    rebuilt: int = 0
    #: Updates that its state counts (None: it keeps no count), and the most steps at which one of its tensors had a gradient.
    state_steps: int | None = None
    gradient_steps: int = 0
    #: Class of the scheduler that was passed; whether it drives another optimizer.
    scheduler: str | None = None
    scheduler_of_other_optimizer: bool = False
    #: Optimizer steps before which, in the same iteration, the scheduler had already stepped.
    scheduler_stepped_first: int = 0

    @property
    def maximizes(self) -> bool:
        """Every group has ``maximize=True``, and no other optimizer steps on the model: all steps ascend what ``backward()`` was called
        on."""
        groups = [g for g in self.groups if g.tensors]
        return bool(groups) and not self.other_optimizer_steps and all(g.settings.get("maximize") for g in groups)


@dataclass(frozen=True)
class Gradients:
    """The gradients of one tensor over all steps, as the optimizer got them."""

    #: Steps that concern it.
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
    #: Largest norm as an rms over the elements that ever had a gradient.
    max_rms: float
    #: Relative difference between the gradients of ``loss`` and of ``3 * loss / 3`` at the end of the run: rounding noise
    #: differs by 0.38 or more, real gradients by 2.4e-4 or less (benchmarks/architectures.py); None: not probed.
    noise: float | None = None
    #: Norms are taken on every k-th row of a large tensor; 1: on all of it.
    stride: int = 1


@dataclass(frozen=True)
class Motion:
    """How far the elements of one tensor moved, from before the run to after it."""

    #: Elements compared: all of a head tensor or a small one, else a fixed random sample.
    elements: int
    #: Share of them whose value changed; share that ever had a gradient.
    share_changed: float
    share_with_gradient: float
    #: rms and largest displacement, over all elements compared.
    rms: float
    largest: float
    #: L2 norm of the displacement over that of the initial values; None where the tensor started at zero.
    relative: float | None
    #: rms displacement by gradients, without that by weight decay, over the elements that had a gradient.
    by_gradient: float
    #: rms displacement by weight decay (exact for decoupled decay and for SGD; see docs).
    by_decay: float
    #: rms of what changed between optimizer steps (root of the sum of squares over all such writes).
    between_steps: float
    #: Largest rms update of a single step, over the elements that had a gradient.
    max_update: float
    #: First Wasserstein distance between the histograms before and after.
    wasserstein: float
    #: Number of writes between optimizer steps, before the last step, and the rms of the largest.
    between_steps_writes: int = 0
    between_steps_largest: float = 0.0
    #: How many of them undid most of the displacement so far (or, before the first step, replaced the initial values).
    resets: int = 0
    #: How many of them project onto a constraint: a clamp, a limit on norms, or rounding. These are no resets.
    projections: int = 0
    #: How many of these round: to the numbers of a narrower dtype, or to the multiples of a step.
    roundings: int = 0
    #: Share of the summed updates still present in the final weights: <displacement, updates> / <updates, updates>.
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
    #: First step at which the optimizer held it, mostly 0; None: at none.
    first_step: int | None
    #: Sum of its group's learning rates over the steps at which the optimizer held it: the LR budget.
    lr_sum: float
    lr_peak: float
    #: At the end of the run the name belongs to another tensor (the layer was replaced).
    replaced: bool
    #: Every bit as before, by checksum; None: not computed, ``motion`` has it.
    unchanged: bool | None
    gradients: Gradients
    motion: Motion
    first: Statistics
    last: Statistics
    #: At the recorded steps (`Trace.recorded`): gradient norm (-1: no gradient), rms update, rms displacement.
    grad_norms: tuple[float, ...] = ()
    updates: tuple[float, ...] = ()
    displacements: tuple[float, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    #: How often the optimizer holds it; it is stepped once for each entry.
    entries: int = 1
    #: Another optimizer that stepped on the model holds it.
    in_other_optimizer: bool = False
    #: At the end of the run its name belongs to another tensor, which is in no optimizer.
    orphaned: bool = False
    #: Shape of the part that this rank holds, where the tensor is sharded over ranks (``fully_shard``): all other numbers but ``shape``
    #: are those of this part. None: they are those of the whole tensor.
    shard: tuple[int, ...] | None = None
    #: Name of the module around it that was to freeze it and does not: ``module.requires_grad = False`` sets an attribute that torch never
    #: reads. An empty name is the model itself; None: there is none.
    frozen_in_name_by: str | None = None
    #: Of a frozen one: the trainable parameter of its shape that each write between steps took it a fraction of the way to, as an
    #: exponential moving average does. None: it was not written to, or otherwise.
    average_of: str | None = None

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
        """rms displacement by gradients over the LR budget; None where the budget is zero, or where no sampled element had the
        gradient that others had (a large embedding table)."""
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
    #: NaN and +inf values at the end, without those that were there before the run and have not changed.
    nonfinite: int = 0


@dataclass(frozen=True)
class ProbeLossPoint:
    """The loss on the fixed rows after some number of optimizer steps."""

    step: int
    #: Mean loss over the rows, dropout off.
    loss: float
    #: The task's standard loss (such as cross-entropy), recomputed from the logits; None where it cannot be.
    reference: float | None = None


@dataclass(frozen=True)
class Descent:
    """The loss of one step's own batch, dropout off, just before and just after ``optimizer.step()``."""

    step: int
    before: float
    after: float


@dataclass(frozen=True)
class ProbeLoss:
    """The loss on a fixed set of rows, with dropout off, before, during and after the run."""

    rows: int
    #: Where the rows come from.
    source: str
    points: tuple[ProbeLossPoint, ...]
    descents: tuple[Descent, ...] = ()
    #: Entropy of the label frequencies in nats: the loss of predicting the class prior for every row.
    prior_entropy: float | None = None
    #: Why there are no points; None: there are.
    skipped: str | None = None
    #: Of each class, the rows and those of them that are predicted as it at the last point; empty for other tasks.
    right: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Ranking:
    """The area under the ROC curve, mean over classes or tags, before and after the run."""

    first: float
    last: float
    #: Share of label permutations with an area of at least ``last``.
    p_value: float
    #: The same of the rise from ``first`` to ``last``: what random weights rank by chance is no learning; None: not computed.
    rise_p_value: float | None = None


@dataclass(frozen=True)
class Metric:
    """One metric before and after the run, with its majority-class baseline."""

    name: str
    first: float
    last: float
    rows: int
    #: ``held-out rows``, ``training rows`` or ``the user's own``.
    source: str
    #: Score of predicting the majority class (regression: the mean) for every row; None: unknown.
    baseline: float | None = None
    #: Share of label permutations that score at least ``last``; None: not computed.
    p_value: float | None = None
    #: Rows predicted as each class at the end, and rows of each class; empty for other tasks.
    predicted: tuple[int, ...] = ()
    actual: tuple[int, ...] = ()
    #: For each class, the one that most of its rows are predicted as at the end, and their share; empty for other tasks.
    taken_for: tuple[tuple[int, float], ...] = ()
    #: How many standard deviations ``last`` is above the mean score of the permutations; None: not computed.
    deviations: float | None = None
    #: How the outputs rank the rows, where every row has the same prediction; None: the metric sees what the outputs do.
    ranking: Ranking | None = None
    #: Lower is better, as of a perplexity.
    lower_is_better: bool = False
    #: Whether the outputs that it was computed of at the end are free of NaN and infinity (padded classes aside); None: not known.
    outputs_finite: bool | None = None


@dataclass(frozen=True)
class Reading:
    """How batches, outputs and losses were read."""

    inputs: str
    outputs: str
    loss: str
    #: ``single_label``, ``multi_label``, ``class_probabilities``, ``regression``, ``embedding`` or None (unknown).
    task: str | None = None
    classes: int | None = None
    #: Name of the task reader (``token classification``, ``causal language model``, ...), and what a label is, in words; None: unknown.
    reader: str | None = None
    labels: str | None = None
