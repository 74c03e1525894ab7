"""Subject of a picture, one of the tiny base's twenty, from features of its UNet."""

import copy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.tensors import open_state_dict
from velatura.tiny import DATA_FOLDER
from velatura.tiny_world import SUBJECTS

SUBJECT_MAP_FILE = DATA_FOLDER / "tiny_subjects.safetensors"
# Block and timestep (of 0 to 999) whose features distinguish subjects best, of those tried
FEATURE_TIMESTEP = 100
UP_BLOCK_COUNT = 2  # of three


class UNetFeatures(nn.Module):
    """Features of pictures: mean and maximum of every channel after the second up block of the UNet, (batch, 256).

    The tiny CLIP hardly distinguishes the subjects (it finds one in ten). The UNet must, to generate them.
    """

    def __init__(self, base: Base) -> None:
        super().__init__()
        self._base = copy.copy(base)
        self._base.unet = unet = copy.copy(base.unet)
        unet._modules = dict(unet._modules)  # so that the base keeps the last block and the head that the copy loses
        truncated_unet = cast("Any", unet)
        truncated_unet.up_blocks = base.unet.up_blocks[:UP_BLOCK_COUNT]
        truncated_unet.conv_norm_out = None
        truncated_unet.conv_out = nn.Identity()
        self._empty_context = base.text.conditioning([""]).context
        self._noise = torch.randn((1, *_latent_shape(base)), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features of pictures, (batch, 3, 64, 64), from -1 to 1."""
        timesteps = torch.full((len(pixels),), FEATURE_TIMESTEP)
        noisy = self._base.schedule.add_noise(
            self._base.encode(pixels), self._noise.expand(len(pixels), -1, -1, -1), timesteps
        )
        features = self._base.predict(noisy, timesteps, self._empty_context.expand(len(pixels), -1, -1))
        return torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)


class SubjectFinder:
    """Classifier of subjects: a linear map of `UNetFeatures`, fitted by tools/tiny_subjects.py to drawings.

    Args:
        base: Tiny base.
        file: File of the map.
    """

    def __init__(self, base: Base, file: Path = SUBJECT_MAP_FILE) -> None:
        self._features = UNetFeatures(base)
        state = open_state_dict(file).tensors
        self._weight, self._bias = state["weight"].float(), state["bias"].float()

    def find(self, pixels: Tensor) -> list[str]:
        """Return the most probable subject of each picture, (batch, 3, 64, 64), from -1 to 1."""
        logits = self._features(pixels) @ self._weight.T + self._bias  # (batch, 20)
        return [SUBJECTS[index] for index in logits.argmax(dim=1).tolist()]


def _latent_shape(base: Base) -> tuple[int, int, int]:
    side = base.family.default_pixels // base.family.vae_scale_factor
    return 4, side, side
