"""Which of its twenty subjects a picture of the tiny base's world shows, told by what its UNet makes of the picture."""

import copy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.tensors import open_state_dict
from velatura.tiny import DATA_FOLDER

SUBJECT_MAP_FILE = DATA_FOLDER / "tiny_subjects.safetensors"
SUBJECTS = (
    *("house", "tree", "boat", "fish", "cat", "bird", "flower", "mug", "star", "car", "rocket", "mushroom", "balloon"),
    *("lighthouse", "umbrella", "apple", "butterfly", "crown", "bell", "key"),
)
FEATURE_TIMESTEP = 100  # of 0 to 999; of blocks and timesteps tried, these features tell subjects best
UP_BLOCK_COUNT = 2  # of three


class UNetFeatures(nn.Module):
    """What the second up block of the tiny base's UNet holds of pictures, each channel's mean and most: (batch, 256).

    CLIP hardly knows the subjects apart (it finds one in ten), but the UNet must, to paint them.
    """

    def __init__(self, base: Base) -> None:
        super().__init__()
        self._base = copy.copy(base)
        self._base.unet = unet = copy.copy(base.unet)
        unet._modules = dict(unet._modules)  # the copy lacks its last block and its head, the base keeps them
        headless = cast("Any", unet)
        headless.up_blocks = base.unet.up_blocks[:UP_BLOCK_COUNT]
        headless.conv_norm_out, headless.conv_out = None, nn.Identity()
        self._empty_context = base.text.conditioning([""]).context
        self._noise = torch.randn((1, *_latent_shape(base)), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: (batch, 3, 64, 64), from -1 to 1."""
        timesteps = torch.full((len(pixels),), FEATURE_TIMESTEP)
        noisy = self._base.schedule.add_noise(
            self._base.encode(pixels), self._noise.expand(len(pixels), -1, -1, -1), timesteps
        )
        features = self._base.predict(noisy, timesteps, self._empty_context.expand(len(pixels), -1, -1))
        return torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)


class SubjectFinder:
    """Names the subject of pictures: the likeliest by a linear map of the features, fitted to drawings in all styles.

    tools/tiny_subjects.py made the map.
    """

    def __init__(self, base: Base, file: Path = SUBJECT_MAP_FILE) -> None:
        self._features = UNetFeatures(base)
        state = open_state_dict(file).tensors
        self._weight, self._bias = state["weight"].float(), state["bias"].float()

    def find(self, pixels: Tensor) -> list[str]:
        """The subject of each picture; pixels: (batch, 3, 64, 64), from -1 to 1."""
        logits = self._features(pixels) @ self._weight.T + self._bias  # (batch, 20)
        return [SUBJECTS[index] for index in logits.argmax(dim=1).tolist()]


def _latent_shape(base: Base) -> tuple[int, int, int]:
    side = base.family.default_pixels // base.family.vae_scale_factor
    return 4, side, side
