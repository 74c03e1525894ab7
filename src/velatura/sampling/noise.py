"""Noise that depends on a picture's seed and on nothing else."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Noise:
    """A source of normal noise for a batch of pictures, each of which draws from its own generator.

    The generators are torch's on the CPU, whatever the device: a seed means the same noise on every machine, alone and
    in any batch, and the same that A1111 draws with its random source set to CPU.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        """shape: of one picture's latents, (4, height, width)."""
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self._shape = tuple(shape)
        self._device = device

    def draw(self) -> Tensor:
        """The next noise of every picture, (batch, *shape) in float32."""
        drawn = [torch.randn(self._shape, generator=generator) for generator in self._generators]
        return torch.stack(drawn).to(self._device)
