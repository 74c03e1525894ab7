"""Weights of the loss by position, from a picture's mask or alpha channel."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from velatura.arguments import check_arguments
from velatura.datasets.boxes import ImageSize
from velatura.datasets.folder import Example
from velatura.datasets.pictures import open_picture, turn_upright, upright_size
from velatura.errors import BadDataset

ASPECT_TOLERANCE = 0.02  # for the rounding of a mask of another size


@check_arguments()
def loss_weights(example: Example, size: ImageSize, latent_size: ImageSize) -> Tensor | None:
    """Return loss weights of mean 1 for the cropped middle of a picture; None if all positions count alike.

    A mask is white where the picture is learned and black where it is not. An alpha channel is used as in the web UI:
    the most transparent position has weight 0.

    Args:
        example: Picture with its mask, if any; the mask takes precedence over the alpha channel.
        size: (width, height) of the crop in pixels.
        latent_size: (width, height) of its latents.

    Returns:
        (latent height, latent width).

    Raises:
        BadDataset: The mask has other proportions than the picture, or is black throughout.
    """
    grey = _read_mask(example) if example.mask else _read_alpha(example)
    if grey is None:
        return None
    cropped = ImageOps.fit(grey, size, Image.Resampling.LANCZOS)
    cropped = ImageOps.mirror(cropped) if example.is_mirrored else cropped
    weights = normalize_weights(cropped, latent_size, is_alpha=example.mask is None)
    return None if bool((weights == 1).all()) else weights


def normalize_weights(grey: Image.Image, size: tuple[int, int], *, is_alpha: bool) -> Tensor:
    """Turn a grey picture into weights of mean 1, (height, width).

    Args:
        grey: Mask or alpha channel, brighter for a larger weight.
        size: (width, height) of the weights.
        is_alpha: Give the darkest position weight 0. A uniform alpha channel, 0/0 in the web UI, has weight 1.
    """
    values = torch.tensor(np.asarray(grey.resize(size), dtype=np.float32))
    if is_alpha:
        values = values - values.min()
    mean = values.mean()
    return torch.ones_like(values) if mean == 0 else values / mean


def _read_mask(example: Example) -> Image.Image:
    assert example.mask is not None
    with open_picture(example.path) as picture:
        width, height = upright_size(picture)
    with open_picture(example.mask) as mask:
        grey = turn_upright(mask).convert("RGB").convert("L")
    if abs(grey.width / grey.height * height / width - 1) > ASPECT_TOLERANCE:
        found = f"{grey.width}x{grey.height}"
        raise BadDataset(
            f"{example.mask} is {found}, its picture {width}x{height}: draw the mask with the same proportions"
        )
    if grey.getextrema() == (0, 0):
        raise BadDataset(f"{example.mask} is black, so nothing would be learned: make white what is to be learned")
    return grey


def _read_alpha(example: Example) -> Image.Image | None:
    with open_picture(example.path) as picture:
        if not picture.has_transparency_data:
            return None
        return turn_upright(picture).convert("RGBA").getchannel("A")
