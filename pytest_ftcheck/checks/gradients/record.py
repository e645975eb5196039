"""What the gradients should have been: recomputed for the same batches, weights and dropout masks, beside what the optimizer found."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.measurement import Measurement


@dataclass(frozen=True)
class GradientMatch:
    """The gradient of one part (or tensor) at one step, beside the recomputed one. Cosines are None where one side is zero."""

    #: ``head``, ``base``, ``all``, or the name of a tensor.
    name: str
    #: L2 norm of the recomputed gradients' sum over the batches since the step before, and of what the optimizer found.
    reference: float
    actual: float
    #: Cosine of what the optimizer found with that sum,
    cosine: float | None = None
    #: with the gradient of the last of these batches alone (None: there was only one),
    last_batch: float | None = None
    #: with the sum for the step before (None: not recomputed),
    previous_step: float | None = None
    #: with the sum over all batches since the run began (None: not all were recomputed, or there was one step only).
    since_start: float | None = None


@dataclass(frozen=True)
class Exchange:
    """A tensor for which the optimizer found the recomputed gradient of another tensor of the same shape."""

    tensor: str
    #: The other tensor.
    of: str
    #: Cosine of what the optimizer found with the tensor's own recomputed gradient, and with that of the other.
    own_cosine: float
    other_cosine: float


@dataclass(frozen=True)
class ReferenceStep:
    """One optimizer step whose gradient was recomputed."""

    step: int
    #: The iterations since the step before; their losses, recomputed.
    iterations: tuple[int, ...]
    losses: tuple[float, ...]
    #: Tensors that the optimizer holds and that need a gradient; those of them that the recomputed loss depends on.
    tensors: int
    reached: int
    #: Those whose recomputed gradient is NaN or infinite; those for which the optimizer found such a gradient.
    nonfinite: int
    actual_nonfinite: int
    #: Tensors with a recomputed gradient (more than rounding noise) for which the optimizer found none, or one of exactly zero.
    missing: tuple[str, ...]
    #: ``head``, ``base`` and ``all``, over the tensors that the optimizer holds.
    parts: tuple[GradientMatch, ...]
    #: Tensors whose gradient has the right length and another direction (cosine below 0.1).
    wrong_direction: tuple[str, ...] = ()
    #: Tensors whose gradients fit least in direction, the smallest cosine first.
    least_aligned: tuple[GradientMatch, ...] = ()
    #: Whether backward() brought a gradient to any trainable tensor in these iterations; None: not watched.
    backward_reached: bool | None = None
    #: Tensors that have the gradient of another one.
    exchanged: tuple[Exchange, ...] = ()

    def part(self, name: str) -> GradientMatch | None:
        """The match of one part; None: the optimizer holds nothing of it."""
        return next((p for p in self.parts if p.name == name), None)


@dataclass(frozen=True)
class WatchedStep:
    """One step of a watched loop: cosines of what the optimizer found, on some elements of a few tensors."""

    step: int
    #: With what backward() brought since the step before.
    fresh: float
    #: With that and what the optimizer had found at the step before: as if it had never been zeroed.
    accumulated: float


@dataclass(frozen=True)
class Slope:
    """How the loss changes when one part is moved along its own gradient, over the change which that gradient predicts (dropout off)."""

    #: ``head``, ``base`` or ``embeddings``.
    part: str
    #: The ratio for the last stride but one, and for the last, a fifth of it (the same again where the first ratio is near 1).
    longer_stride_ratio: float
    ratio: float
    #: The change of the loss that was predicted for the last stride, over the loss.
    predicted_change: float


@dataclass(frozen=True)
class MissingGradient:
    """Tensors that had no gradient at any step (or at most of them), nor on the probe; and how the logits react to noise in them."""

    tensors: tuple[str, ...]
    #: ``none``: they are not in the graph; ``zero``: they are, and the gradient is exactly zero; ``seldom``: it is zero at most steps.
    kind: str
    #: Largest change of a logit over the rms of the logits, for noise of 2 % and of 100 % of each tensor's rms; and for no noise at all.
    small_noise: float
    full_noise: float
    no_noise: float
    #: A hook is registered on one of them.
    hooked: bool = False
    #: What is exactly zero and multiplies their branch: with 1 in its place they would have a gradient.
    gate: str | None = None


@dataclass(frozen=True)
class ReferenceGradient(Measurement, probe="reference"):
    """What the gradients should have been, at a few optimizer steps, and whether the loss follows its own gradient."""

    steps: tuple[ReferenceStep, ...] = ()
    slopes: tuple[Slope, ...] = ()
    #: Whether the loss, and the logits, were connected to any trainable tensor; None: not known.
    loss_connected: bool | None = None
    logits_connected: bool | None = None
    #: Why no step was recomputed, if so.
    reason: str | None = None
    #: Tensors without gradient on which the output depends all the same, place by place.
    missing: tuple[MissingGradient, ...] = ()
    #: Of a watched loop: whether the gradient of the step before was still there.
    watched_steps: tuple[WatchedStep, ...] = ()
