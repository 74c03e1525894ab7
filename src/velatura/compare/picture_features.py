"""Features of pictures that metrics compare: of a CLIP, of a DINO, and of the base's own autoencoder and UNet."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.formats.vision.clip_pair import ClipPair, find_clip_pair, open_clip_pair
from velatura.formats.vision.dino import Dino, open_dino
from velatura.tensors import StrPath

MAX_PIXELS = 256  # side of the pictures that the autoencoder and the UNet read, smaller on the tiny base
MAX_FEATURE_SIDE = 32  # of the maps that are compared place by place
MAX_PATCH_SIDE = 16  # of the map of the UNet whose places are its patches
BATCH_SIZE = 8
FEATURE_TIMESTEP = 100  # of 0 to 999: the noise that pictures get before the UNet reads them
STYLE_UP_BLOCKS = 2
EPSILON = 1e-8


@dataclass(frozen=True)
class PictureFeatures:
    """Features of some pictures, on the CPU.

    Attributes:
        grams: Of some blocks of the UNet: Gram matrices of its centred channels, (pictures, channels, channels). They
            hold which textures and colours go together, and not where (Gatys et al. 2016).
        maps: Of each level of the autoencoder's encoder: its features of length 1 at every place, (pictures, channels,
            height, width).
        patches: Maps that tell what is where: features at every place of a square, (pictures, places, channels). First
            those of the UNet's last up block but one, then those of its last one, then those of the CLIP and of the
            DINO whose folders were given.
        clip: CLIP's image embeddings of length 1, (pictures, features), None without a CLIP.
        dino: DINO's vectors of length 1, (pictures, features), None without a DINO.
    """

    grams: tuple[Tensor, ...]
    maps: tuple[Tensor, ...]
    patches: tuple[Tensor, ...]
    clip: Tensor | None = None
    dino: Tensor | None = None

    def __len__(self) -> int:
        return len(self.patches[0])

    def select(self, rows: Sequence[int]) -> PictureFeatures:
        """Return the features of some of the pictures, by their numbers."""
        index = torch.tensor(list(rows), dtype=torch.long)
        return PictureFeatures(
            tuple(gram[index] for gram in self.grams),
            tuple(level[index] for level in self.maps),
            tuple(patches[index] for patches in self.patches),
            None if self.clip is None else self.clip[index],
            None if self.dino is None else self.dino[index],
        )


class PatchEncoder(Protocol):
    """A model that encodes the patches of pictures."""

    def encode_patches(self, pictures: Sequence[Image.Image], /) -> Tensor:
        """Return features of patches, (pictures, patches, features)."""
        ...


@dataclass(frozen=True)
class PictureEncoder:
    """All models that look at pictures.

    Attributes:
        base: Its autoencoder and UNet are used; no overlay may be attached while it looks at pictures.
        clip: A CLIP, if there is one.
        dino: A DINO, if there is one.
        patch_encoders: Models beside the UNet that encode patches: the CLIP and the DINO whose folders were given. A
            CLIP that was found by itself is not among them, so that likeness does not depend on what is in a cache.
    """

    base: Base
    clip: ClipPair | None = None
    dino: Dino | None = None
    patch_encoders: tuple[PatchEncoder, ...] = ()

    @classmethod
    def open(cls, base: Base, *, clip: StrPath | None = None, dino: StrPath | None = None) -> PictureEncoder:
        """Open the models.

        Args:
            base: A base of any family.
            clip: Folder of a CLIP; None: the base's own, where it is on this machine.
            dino: Folder of a DINO; None: none.

        Raises:
            BadFile: A folder holds no such model.
        """
        named_clip = None if clip is None else open_clip_pair(clip)
        named_dino = None if dino is None else open_dino(dino)
        encoders = (None if named_clip is None else named_clip.clip, named_dino)
        return cls(
            base,
            named_clip or find_clip_pair(base),
            named_dino,
            tuple(encoder for encoder in encoders if encoder is not None),
        )

    @property
    def pixels(self) -> int:
        """Side of the squares that the autoencoder and the UNet read."""
        return min(MAX_PIXELS, self.base.family.default_pixels)

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def features(self, pictures: Sequence[Image.Image]) -> PictureFeatures:
        """Return the features of pictures of any size; their middle squares are looked at."""
        unet_blocks = UNetFeatureReader(self.base)
        grams: list[list[Tensor]] = []
        maps: list[list[Tensor]] = []
        patches: list[list[Tensor]] = []
        for start in range(0, len(pictures), BATCH_SIZE):
            pixels = torch.stack([_to_pixels(picture, self.pixels) for picture in pictures[start : start + BATCH_SIZE]])
            blocks = unet_blocks(pixels)
            grams.append([_gram(block) for block in blocks.style])
            maps.append([_unit_map(level) for level in _encoder_levels(self.base, pixels)])
            patches.append([_places(block) for block in blocks.patches])
        return PictureFeatures(
            tuple(torch.cat(level) for level in zip(*grams, strict=True)),
            tuple(torch.cat(level) for level in zip(*maps, strict=True)),
            (
                *(torch.cat(block) for block in zip(*patches, strict=True)),
                *(encoder.encode_patches(pictures) for encoder in self.patch_encoders),
            ),
            None if self.clip is None else self.clip.encode_images(pictures),
            None if self.dino is None else self.dino.encode_images(pictures),
        )


class BlockFeatures(NamedTuple):
    """What some blocks of a UNet return, on the CPU, (batch, channels, height, width) each.

    Attributes:
        style: Of the first down block and of the last two up blocks, where styles differ most.
        patches: Of the last up block but one and of the last one.
    """

    style: tuple[Tensor, ...]
    patches: tuple[Tensor, ...]


class UNetFeatureReader(nn.Module):
    """What the blocks of a base's UNet make of pictures with a little noise, without a prompt.

    On the tiny base, 96 % of 72 drawings in nine styles are nearest to drawings of their own style by the Gram matrices
    of these blocks, and 32 % by those of the autoencoder; the blocks were chosen on the same drawings.
    """

    def __init__(self, base: Base) -> None:
        super().__init__()
        self._base = copy.copy(base)
        self._base.unet = unet = copy.copy(base.unet)
        unet._modules = dict(unet._modules)  # so that the base keeps its own blocks
        self._down, self._up = _record(base.unet.down_blocks), _record(base.unet.up_blocks)
        recording_unet = cast("Any", unet)
        recording_unet.down_blocks, recording_unet.up_blocks = nn.ModuleList(self._down), nn.ModuleList(self._up)
        self._empty_prompt = base.text.conditioning([""])

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> BlockFeatures:
        """Return the features of pictures, (batch, 3, height, width), from -1 to 1."""
        timesteps = torch.full((len(pixels),), FEATURE_TIMESTEP)
        latents = self._base.encode(pixels)
        noise = torch.randn((1, *latents.shape[1:]), generator=torch.Generator().manual_seed(0)).to(latents)
        noisy = self._base.schedule.add_noise(latents, noise.expand_as(latents), timesteps)
        self._base.predict(noisy, timesteps, self._empty_prompt.select_rows(torch.zeros_like(timesteps)))
        blocks = [self._down[0], *self._up[-STYLE_UP_BLOCKS:]]
        outputs = tuple(block.output() for block in blocks)
        return BlockFeatures(outputs, outputs[-STYLE_UP_BLOCKS:])


class _RecordingBlock(nn.Module):
    """A block of a UNet that keeps what it returned."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self._returned: Any = None

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the block, which the UNet asks for what it takes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the block, and keep the result."""
        self._returned = self.block(*args, **kwargs)
        return self._returned

    def output(self) -> Tensor:
        """Return the features that the block returned, without those that it passes to the up blocks."""
        returned = self._returned
        features: Tensor = returned if isinstance(returned, Tensor) else returned[0]
        return features.float().cpu()


def _record(blocks: Any) -> list[_RecordingBlock]:
    return [_RecordingBlock(block) for block in blocks]


def _to_pixels(picture: Image.Image, side: int) -> Tensor:
    """Return the middle square of a picture, (3, side, side), from -1 to 1."""
    square = ImageOps.fit(picture.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    return torch.tensor(np.asarray(square, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


def _encoder_levels(base: Base, pixels: Tensor) -> list[Tensor]:
    """Return the features of the autoencoder's encoder after its first convolution and after each of its levels."""
    encoder: Any = base.vae.encoder
    weight: Tensor = encoder.conv_in.weight
    levels: list[Tensor] = [encoder.conv_in(pixels.to(weight.device, weight.dtype))]
    for block in encoder.down_blocks:
        levels.append(block(levels[-1]))
    return [level.float().cpu() for level in levels]


def _gram(block: Tensor) -> Tensor:
    """Return the Gram matrices of a block's centred channels, divided by the number of places."""
    places = block.flatten(2)  # (batch, channels, places)
    places = places - places.mean(dim=2, keepdim=True)
    return places @ places.transpose(1, 2) / places.shape[-1]


def _places(block: Tensor) -> Tensor:
    """Return the features of a block at its places, (batch, places, channels), at most `MAX_PATCH_SIDE` in a row."""
    side = min(MAX_PATCH_SIDE, *block.shape[-2:])
    shrunk = F.adaptive_avg_pool2d(block, side) if side < block.shape[-1] else block
    return shrunk.flatten(2).transpose(1, 2)


def _unit_map(level: Tensor) -> Tensor:
    """Return a level with features of length 1 at every place, shrunk to at most `MAX_FEATURE_SIDE`."""
    unit = level / (level.square().sum(dim=1, keepdim=True).sqrt() + EPSILON)
    side = min(MAX_FEATURE_SIDE, *unit.shape[-2:])
    return F.adaptive_avg_pool2d(unit, side) if side < unit.shape[-1] else unit
