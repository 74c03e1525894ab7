"""Which of its twenty subjects a picture of the tiny base's world shows, told by what its UNet makes of the picture."""

import copy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.tensors import open_state
from velatura.tiny import DATA

FILE = DATA / "tiny_subjects.safetensors"
SUBJECTS = (
    *("house", "tree", "boat", "fish", "cat", "bird", "flower", "mug", "star", "car", "rocket", "mushroom", "balloon"),
    *("lighthouse", "umbrella", "apple", "butterfly", "crown", "bell", "key"),
)
TIMESTEP = 100  # of 0 to 999; of blocks and timesteps tried, these features tell subjects best
UP_BLOCKS = 2  # of three


class Features(nn.Module):
    """What the second up block of the tiny base's UNet holds of pictures, each channel's mean and most: (batch, 256).

    CLIP hardly knows the subjects apart (it finds one in ten), but the UNet must, to paint them.
    """

    def __init__(self, base: Base) -> None:
        super().__init__()
        self._base = copy.copy(base)
        self._base.unet = unet = copy.copy(base.unet)
        unet._modules = dict(unet._modules)  # the copy lacks its last block and its head, the base keeps them
        headless = cast("Any", unet)
        headless.up_blocks = base.unet.up_blocks[:UP_BLOCKS]
        headless.conv_norm_out, headless.conv_out = None, nn.Identity()
        self._nothing = base.text.conditioning([""]).context
        self._noise = torch.randn((1, *_latent_shape(base)), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: (batch, 3, 64, 64), from -1 to 1."""
        timesteps = torch.full((len(pixels),), TIMESTEP)
        noisy = self._base.schedule.add_noise(
            self._base.encode(pixels), self._noise.expand(len(pixels), -1, -1, -1), timesteps
        )
        held = self._base.predict(noisy, timesteps, self._nothing.expand(len(pixels), -1, -1))
        return torch.cat([held.mean(dim=(2, 3)), held.amax(dim=(2, 3))], dim=1)


class SubjectFinder:
    """Names the subject of pictures: the likeliest by a linear map of the features, fitted to drawings in all styles.

    tools/tiny_subjects.py made the map.
    """

    def __init__(self, base: Base, file: Path = FILE) -> None:
        self._features = Features(base)
        kept = open_state(file).tensors
        self._weight, self._bias = kept["weight"].float(), kept["bias"].float()

    def find(self, pixels: Tensor) -> list[str]:
        """The subject of each picture; pixels: (batch, 3, 64, 64), from -1 to 1."""
        likely = self._features(pixels) @ self._weight.T + self._bias  # (batch, 20)
        return [SUBJECTS[place] for place in likely.argmax(dim=1).tolist()]


def _latent_shape(base: Base) -> tuple[int, int, int]:
    side = base.family.default_pixels // base.family.latent_factor
    return 4, side, side
