"""The state of a tensor's gradients: absent, zero, late, rounding noise, negligible, not finite, or fine; and which states are faults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ..core.formatting import block_of, plural
from ..core.observations import Tensor
from ..core.trace import Trace
from ..core.verdict import Verdict

#: State of a tensor's gradients over the run:
#:
#: * ``none``: it had no gradient at any step.
#: * ``zero``: its gradient was exactly zero at every step.
#: * ``transient``: its gradient was zero or absent at first, and not later.
#: * ``noise``: its gradient is rounding noise around a true value of zero.
#: * ``negligible``: its gradient is too small beside Adam's eps to move it.
#: * ``nonfinite``: its gradient was NaN or infinite at some step.
#: * ``fine``: none of these.
GradientState = Literal["none", "zero", "transient", "noise", "negligible", "nonfinite", "fine"]

#: Gradients of ``loss`` and of ``3 * loss / 3`` differed by 0.069 or more for rounding noise and by 0.046 or less for real ones
#: over 571 models of six tasks (benchmarks/architectures.py); over 103 sequence classifiers by 0.38 and 2.4e-4.
NOISE = 0.05
#: Without that probe: a vector whose gradient is this small beside the largest one is assumed to have rounding noise for a gradient.
#: Measured noise mostly stays below 2.3e-9 of the largest gradient, and reached 1.1e-7; what is called real there fails nothing by that.
NOISE_ASSUMED = 1e-8
#: Adam divides by sqrt(v) + eps: at an rms of eps / 100 its step is 1 % of the learning rate.
EPS_SHARE = 0.01
#: Steps needed to distinguish a permanent zero from a transient one: a zero last layer, or LoRA's B = 0, lets gradients through to the
#: layer below only after its own first step.
STEPS_FOR_ZERO = 3
#: Share of a matrix that must change in low precision (bf16 cannot add 5e-5 to 43 % of N(0, 0.02), measured).
LEAST_SHARE_CHANGED = 0.5
RUN_LONGER = (
    f"run at least {STEPS_FOR_ZERO} steps: the layers below a zero last layer get no gradient at the first step"
)


def gradient_state(tensor: Tensor, trace: Trace, largest: float) -> GradientState:
    """The state of a tensor's gradients over all steps; ``largest``: the largest gradient norm of any tensor."""
    g = tensor.gradients
    if g.nonfinite:
        return "nonfinite"
    if g.steps == 0 or g.none == g.steps:
        return "none"
    if g.max_norm == 0:
        return "noise" if _cancels(tensor, trace) else "zero"
    if g.noise is not None and g.noise > NOISE:
        return "noise"
    if g.noise is None and len(tensor.shape) < 2 and g.max_norm < NOISE_ASSUMED * largest:
        return "noise"
    eps = epsilon(tensor, trace)
    if eps and g.max_rms < EPS_SHARE * eps:
        return "negligible"
    return "transient" if g.first_nonzero else "fine"


def _cancels(tensor: Tensor, trace: Trace) -> bool:
    """A bias beside a weight that has a gradient: the layer's outputs have one, too, and its sum over the rows is zero.

    So it is where the loss depends on differences of outputs alone, of embeddings or of the scores of a pair: what is added to all of them
    alike cancels, and moving it would change nothing.
    """
    if tensor.role != "bias":
        return False
    module = tensor.name.rpartition(".")[0]
    return any(t.name.rpartition(".")[0] == module and t.gradients.max_norm > 0 for t in trace.tensors)


def of_embeddings(trace: Trace) -> bool:
    """Whether the outputs are embeddings: found, or declared and not contradicted."""
    declared = trace.intent.task if trace.intent is not None else None
    return "embedding" in (trace.reading.task, declared if trace.reading.task is None else None)


def largest_norm(trace: Trace) -> float:
    """The largest finite gradient norm of any tensor at any step."""
    return max((t.gradients.max_norm for t in trace.tensors if math.isfinite(t.gradients.max_norm)), default=0.0)


def epsilon(tensor: Tensor, trace: Trace) -> float | None:
    """``eps`` of an Adam-like optimizer's group; None where it plays no such role."""
    if trace.optimizer.family != "adam" or not trace.optimizer.groups:
        return None
    index = tensor.group if tensor.group is not None and tensor.group < len(trace.optimizer.groups) else 0
    return trace.optimizer.groups[index].settings.get("eps")


@dataclass(frozen=True)
class Split:
    """Tensors with a missing gradient, split into faulty and exempt ones."""

    #: They should have a gradient.
    faulty: tuple[Tensor, ...]
    #: Peculiarities of the architecture: an unused pooler, an expert without tokens.
    exempt: tuple[Tensor, ...]


def split_faulty(missing: Sequence[Tensor], selected: Sequence[Tensor], *, matrices: bool = False) -> Split:
    """Which of the tensors without a gradient are a fault, and which a peculiarity of the architecture.

    Faulty: every tensor of the head; a block whose neighbours in the stack learn; a tensor whose counterpart in another block learns;
    all embeddings; the whole base. Exempt: a tensor inside a block that learns; a single module that is no numbered block (a pooler
    that nothing reads); a whole stack of blocks beside another that learns (an encoder whose output another head would use); an expert.

    :param matrices: a block learns if one of its matrices does; the biases and norms of many healthy models learn next to nothing.
    """
    names = {t.name for t in missing}
    base = [t for t in selected if t.part == "base"]
    decisive = [t for t in base if not matrices or len(t.shape) > 1]
    whole_base = bool(decisive) and all(t.name in names for t in decisive)
    learning = [t for t in decisive if t.name not in names]
    learning_blocks = {block_of(t.name) for t in learning}
    learning_places = {_place(t.name) for t in learning}
    learning_stacks = {stack_of(block) for block in learning_blocks} - {None}
    known_blocks = {block_of(t.name) for t in decisive}
    tables = [t for t in base if t.role == "embedding"]
    all_tables = bool(tables) and all(t.name in names for t in tables)
    faulty, exempt = [], []
    for t in missing:
        block = block_of(t.name)
        stack = stack_of(block)
        dead_block = (
            stack is not None
            and block in known_blocks
            and block not in learning_blocks
            and (stack in learning_stacks or not learning_stacks)
        )
        # its counterpart in another block learns, and it is not even in the graph: cut off here alone. A gradient of exactly zero may be
        # so by design (global attention where no token is global)
        absent = t.gradients.none == t.gradients.steps
        cut_off = (
            absent
            and stack is not None
            and block in learning_blocks
            and not matrices
            and _place(t.name) in learning_places
        )
        expert = any("expert" in s for s in t.name.lower().split("."))  # which tokens an expert gets is chance
        if (
            t.part == "head"
            or whole_base
            or (all_tables and t.role == "embedding")
            or ((dead_block or cut_off) and not expert)
        ):
            faulty.append(t)
        else:
            exempt.append(t)
    return Split(tuple(faulty), tuple(exempt))


def _place(name: str) -> str:
    """The name without its block's number: equal for the same place in all blocks of a stack."""
    block = block_of(name)
    stack = stack_of(block)
    return name if stack is None else f"{stack}.*{name[len(block) :]}"


def stack_of(block: str) -> str | None:
    """The list of blocks that a numbered block is in; None for a module that is no such block.

    >>> stack_of("encoder.layer.11"), stack_of("pooler.dense")
    ('encoder.layer', None)
    """
    path, _, last = block.rpartition(".")
    return path if last.isdigit() else None


def all_frozen(check: str, part: str, chosen: Sequence[Tensor]) -> Verdict:
    """The verdict of a check of learning where every selected tensor is frozen."""
    what = f"the {len(chosen)} {part} tensors" if part != "all" else f"the {len(chosen)} selected tensors"
    return Verdict(
        check,
        "fail",
        f"All of {what} are frozen (requires_grad=False), {chosen[0].name} first: they cannot learn.",
        causes=("they were frozen by mistake, or together with another part",),
        remedy="call requires_grad_(True) on them, or use assert_frozen_stay_frozen if they should stay frozen",
    )


def frozen_note(tensors: Sequence[Tensor], chosen: Sequence[Tensor]) -> tuple[str, ...]:
    """A note where the whole head of a selection is frozen, which is seldom intended."""
    head = [t for t in chosen if t.part == "head"]
    if not head or any(t in tensors for t in head):
        return ()
    return (f"the whole head is frozen ({plural(len(head), 'tensor')}, {head[0].name} first): only the base learns",)


def lr_rises(tensor: Tensor, trace: Trace) -> bool:
    """Whether its learning rate rose until the run ended: the warm-up is still under way."""
    rates = [s.lrs[tensor.group] for s in trace.steps if tensor.group is not None and tensor.group < len(s.lrs)]
    # rates of another optimizer's steps are among them: they neither rise with ours nor end at our peak
    rising = len(rates) > 1 and all(a <= b for a, b in pairwise(rates))
    return rising and rates[-1] == tensor.lr_peak and rates[0] <= 0.5 * rates[-1]
