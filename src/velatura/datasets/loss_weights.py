"""How much each place of a picture counts while it is learned: from its mask, or from its alpha channel."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from velatura.datasets.boxes import ImageSize
from velatura.datasets.folder import Example
from velatura.datasets.pictures import open_picture
from velatura.errors import BadDataset

ASPECT_TOLERANCE = 0.02  # a mask drawn at another size may be rounded


def loss_weights(example: Example, size: ImageSize, latent_size: ImageSize) -> Tensor | None:
    """Weights with mean 1 for the middle of a picture in that shape; None where all counts alike.

    Both sizes are (width, height), the weights are (height, width) of the latents.

    A mask is white where the picture is learned and black where not. An alpha channel is read as the webui does: what
    is most transparent counts nothing.
    """
    grey = _read_mask(example) if example.mask else _read_alpha(example)
    if grey is None:
        return None
    cropped = ImageOps.fit(grey, size, Image.Resampling.LANCZOS)
    weights = normalize_weights(cropped, latent_size, is_alpha=example.mask is None)
    return None if bool((weights == 1).all()) else weights


def normalize_weights(grey: Image.Image, size: tuple[int, int], *, is_alpha: bool) -> Tensor:
    """A grey picture as weights (height, width) of mean 1, at a size (width, height).

    from_least: the darkest place counts nothing; where all is alike, which is 0/0 in the webui, all counts.
    """
    values = torch.tensor(np.asarray(grey.resize(size), dtype=np.float32))
    if is_alpha:
        values = values - values.min()
    mean = values.mean()
    return torch.ones_like(values) if mean == 0 else values / mean


def _read_mask(example: Example) -> Image.Image:
    assert example.mask is not None
    with open_picture(example.path) as picture:
        width, height = ImageOps.exif_transpose(picture).size
    with open_picture(example.mask) as mask:
        grey = ImageOps.exif_transpose(mask).convert("RGB").convert("L")
    if abs(grey.width / grey.height * height / width - 1) > ASPECT_TOLERANCE:
        found = f"{grey.width}x{grey.height}"
        raise BadDataset(f"{example.mask} is {found}, its picture {width}x{height}; draw the mask in its proportions")
    if grey.getextrema() == (0, 0):
        raise BadDataset(f"{example.mask} is black, so nothing would be learned; make white what shall be")
    return grey


def _read_alpha(example: Example) -> Image.Image | None:
    with open_picture(example.path) as picture:
        if not picture.has_transparency_data:
            return None
        return ImageOps.exif_transpose(picture).convert("RGBA").getchannel("A")
