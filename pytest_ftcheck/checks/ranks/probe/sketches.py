"""Sketches of tensors: sums of sampled elements under random signs, the same elements and signs in every process."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ....instruments.sampled_elements import SampledElements

#: Numbers in the sketch of one tensor.
NUMBERS = 2


class Sketches:
    """Sketches of some parameters, and of what has their shapes.

    :param parameters: dense floating-point tensors.  :param size: elements sampled of each, at most.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], size: int) -> None:
        self.elements = SampledElements(parameters, [size] * len(parameters))
        generator = torch.Generator().manual_seed(20063)  # our own: the user's random state is not used
        signs = torch.randint(2, (self.elements.total, NUMBERS), generator=generator) * 2 - 1
        self._signs = signs.to(self.elements.device, self.elements.dtype)
        self._lengths = torch.tensor(self.elements.counts, device=self.elements.device)

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """The sketches of sampled elements, `NUMBERS` a tensor, one after another; nothing waits for a GPU."""
        signed = self._signs * flat[:, None]
        return torch.segment_reduce(signed, "sum", lengths=self._lengths, axis=0, unsafe=True).reshape(-1)

    def of_weights(self) -> torch.Tensor:
        """The sketches of the values that the parameters have now."""
        return self.of(self.elements.values(self.elements.zeros()))

    def of_gradients(self) -> torch.Tensor:
        """The sketches of the gradients that they have now; zero where there is none."""
        return self.of(self.elements.gradients(self.elements.zeros()))

    def add(self, place: int, tensor: torch.Tensor, into: torch.Tensor) -> None:
        """Add the sampled elements of a tensor that has the shape of the parameter at this place."""
        index, flat = self.elements.index[place], tensor.reshape(-1)
        piece = self.elements.split(into)[place]
        piece += flat if index is None else flat.index_select(0, index)


def plain(sketch: torch.Tensor) -> tuple[float, ...]:
    """Its numbers, with eight significant digits: float32 has seven."""
    return tuple(float(f"{v:.8g}") for v in sketch.tolist())
