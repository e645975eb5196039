"""The kinds of gradient: none, permanently zero, zero at most steps (`silent`), transient, rounding noise, negligible, non-finite, fine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..core.formatting import block_of, plural
from ..core.observations import Tensor
from ..core.trace import Trace
from ..core.verdict import Verdict

Kind = Literal["none", "zero", "seldom", "transient", "noise", "negligible", "nonfinite", "fine"]

#: Gradients of ``loss`` and of ``3 * loss / 3`` differed by 0.38 or more for rounding noise and by 2.4e-4 or less for real ones
#: over 103 architectures (benchmarks/architectures.py); the limit lies between, nearer to the noise.
NOISE = 0.05
#: Without that probe: a vector whose gradient is this small beside the largest one, and whose own matrix learns, is taken for
#: noise. Measured noise reaches 2.3e-9 of the largest gradient.
NOISE_ASSUMED = 1e-8
#: Adam divides by sqrt(v) + eps: at an rms of eps / 100 its step is 1 % of the learning rate.
EPS_SHARE = 0.01
#: Steps needed to tell a permanent zero from a transient one: a zero last layer, or LoRA's B = 0, frees the layer below
#: it after its own first step.
STEPS_FOR_ZERO = 3
ZERO_AT_FIRST = "a zero last layer gives the layers below it no gradient at the first one"


def kind_of(tensor: Tensor, trace: Trace, largest: float) -> Kind:
    """The kind of a tensor's gradients over all steps; ``largest``: the largest gradient norm of any tensor."""
    g = tensor.gradients
    if g.nonfinite:
        return "nonfinite"
    if g.steps == 0 or g.none == g.steps:
        return "none"
    if g.max_norm == 0:
        return "zero"
    if g.noise is not None and g.noise > NOISE:
        return "noise"
    if g.noise is None and len(tensor.shape) < 2 and g.max_norm < NOISE_ASSUMED * largest:
        return "noise"
    eps = epsilon(tensor, trace)
    if eps and g.max_rms < EPS_SHARE * eps:
        return "negligible"
    return "transient" if g.first_nonzero else "fine"


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
class Judged:
    """Tensors sorted by what is the matter with them."""

    #: Tensors that must be alive and are not.
    ill: tuple[Tensor, ...]
    #: Tensors that are odd, but whose neighbours live: an unused pooler, an expert without tokens.
    odd: tuple[Tensor, ...]


def weigh(bad: Sequence[Tensor], selected: Sequence[Tensor], *, matrices: bool = False) -> Judged:
    """Which of the bad tensors are a fault, and which a peculiarity of the architecture.

    In the head every tensor counts. In the base a tensor that takes no part in a block that does is odd; so is a single module that
    is no numbered block (a pooler that nothing reads), and a whole stack of blocks beside another one that lives (an encoder
    whose output another head would use), and an expert. A block whose neighbours in the stack live, a tensor whose like in another block
    lives, all embeddings, or the whole base, is a fault.

    :param matrices: a block lives if one of its matrices does; the biases and norms of many healthy models learn next to nothing.
    """
    names = {t.name for t in bad}
    base = [t for t in selected if t.part == "base"]
    decisive = [t for t in base if not matrices or len(t.shape) > 1]
    all_bad = bool(decisive) and all(t.name in names for t in decisive)
    living = [t for t in decisive if t.name not in names]
    alive = {block_of(t.name) for t in living}
    twins = {_twin(t.name) for t in living}
    tables = [t for t in base if t.role == "embedding"]
    blind = bool(tables) and all(t.name in names for t in tables)
    known = {block_of(t.name) for t in decisive}
    stacks_alive = {_stack(unit) for unit in alive} - {None}
    ill, odd = [], []
    for t in bad:
        unit = block_of(t.name)
        stack = _stack(unit)
        dead = stack is not None and unit in known and unit not in alive and (stack in stacks_alive or not stacks_alive)
        # the same place in another block lives, and this one is not even part of the graph: cut off here alone. One that is, with
        # a gradient of exactly zero, may be so by design (global attention where no token is global)
        absent = t.gradients.none == t.gradients.steps
        lone = absent and stack is not None and unit in alive and not matrices and _twin(t.name) in twins
        idle = any("expert" in s for s in t.name.lower().split("."))  # which tokens an expert gets is chance
        if t.part == "head" or all_bad or (blind and t.role == "embedding") or ((dead or lone) and not idle):
            ill.append(t)
        else:
            odd.append(t)
    return Judged(tuple(ill), tuple(odd))


def _twin(name: str) -> str:
    """The name with its block's number left out: equal for the same place in all blocks of a stack."""
    unit = block_of(name)
    stack = _stack(unit)
    return name if stack is None else f"{stack}.*{name[len(unit) :]}"


def _stack(unit: str) -> str | None:
    """The list of blocks that a numbered block is in; None for a module that is no such block."""
    path, _, last = unit.rpartition(".")
    return path if last.isdigit() else None


def all_frozen(check: str, part: str, chosen: Sequence[Tensor]) -> Verdict:
    """You asked for tensors to learn that cannot."""
    what = f"the {len(chosen)} {part} tensors" if part != "all" else f"the {len(chosen)} selected tensors"
    return Verdict(
        check,
        "fail",
        f"All of {what} are frozen (requires_grad=False), {chosen[0].name} first: they cannot learn.",
        causes=(
            "they were frozen by mistake, or together with another part",
            "or they are meant to stay, and this check is asked of them",
        ),
        remedy="un-freeze them with requires_grad_(True), or ask assert_frozen_stay_frozen instead",
    )


def frozen_note(tensors: Sequence[Tensor], chosen: Sequence[Tensor]) -> tuple[str, ...]:
    """Of a selection with a head in it that is frozen as a whole: that is seldom meant."""
    head = [t for t in chosen if t.part == "head"]
    if not head or any(t in tensors for t in head):
        return ()
    return (f"the whole head is frozen ({plural(len(head), 'tensor')}, {head[0].name} first): only the base learns",)


def broken_fault(trace: Trace) -> str:
    """What it is that backward cannot run."""
    return "gradients_switched_off" if "switched off" in (trace.backward_error or "") else "loss_cut_off"


def nothing_happened(trace: Trace) -> tuple[str, tuple[str, ...], str] | None:
    """Headline, causes and remedy where not one optimizer step was taken."""
    if trace.steps:
        return None
    if trace.backward_error:
        return (
            f"no step was taken, for backward cannot run: {trace.backward_error}",
            (trace.backward_error,),
            "compute the loss from the model's own output tensor, inside enabled gradients, without .detach(), .data or .item()",
        )
    seen = f" in {plural(len(trace.iterations), 'iteration')}" if trace.iterations else ""
    return (
        f"no optimizer step was taken{seen}",
        (
            "optimizer.step() is never reached: it is missing, accumulation is longer than the run, or a GradScaler skipped every step",
            "the loop steps another optimizer than the one that is watched",
        ),
        f"call {trace.optimizer.name}.step() in the loop, or run longer than one accumulation cycle",
    )
