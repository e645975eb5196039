"""Sketches of tensors: sums of sampled elements under random weights, the same elements and weights in every process."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ....instruments.sampled_elements import SampledElements, SampleSize

#: Numbers in the sketch of one tensor.
NUMBERS = 2


class Sketches:
    """Sketches of some parameters, and of what has their shapes.

    :param parameters: dense floating-point tensors.  :param size: elements sampled of each, at most.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], size: int) -> None:
        self.elements = SampledElements(parameters, [SampleSize(size)] * len(parameters))
        generator = torch.Generator().manual_seed(20063)  # our own: the user's random state is not used
        # uniform, of mean 0 and variance 1; not signs, under which the gradients of two classes' biases cancel
        weights = torch.randint(-1000, 1001, (self.elements.total, NUMBERS), generator=generator, device="cpu") / 577
        self._weights = weights.to(self.elements.device, self.elements.dtype)
        self._lengths = torch.tensor(self.elements.counts, device=self.elements.device)

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """The sketches of sampled elements, `NUMBERS` a tensor, one after another; nothing waits for a GPU."""
        weighted = self._weights * flat[:, None]
        return torch.segment_reduce(weighted, "sum", lengths=self._lengths, axis=0, unsafe=True).reshape(-1)

    def of_weights(self) -> torch.Tensor:
        """The sketches of the values that the parameters have now."""
        return self.of(self.elements.values(self.elements.zeros()))

    def of_gradients(self) -> torch.Tensor:
        """The sketches of the gradients that they have now; zero where there is none."""
        return self.of(self.elements.gradients(self.elements.zeros()))

    def put_sum(self, place: int, tensors: Sequence[torch.Tensor], into: torch.Tensor) -> None:
        """The sampled elements of the sum of some tensors that have the shape of the parameter at this place."""
        index, piece = self.elements.index[place], self.elements.split(into)[place]
        picked = [t.reshape(-1) if index is None else t.reshape(-1).index_select(0, index) for t in tensors]
        piece.copy_(picked[0] if len(picked) == 1 else torch.stack(picked).sum(0))


def plain(sketch: torch.Tensor) -> tuple[float, ...]:
    """Its numbers, with eight significant digits: float32 has seven."""
    return tuple(float(f"{v:.8g}") for v in sketch.tolist())
