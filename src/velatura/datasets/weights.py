"""How much each place of a picture counts while it is learned: from its mask, or from its alpha channel."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from velatura.datasets.boxes import Size
from velatura.datasets.folder import Example
from velatura.datasets.pictures import opened
from velatura.errors import BadDataset

ASPECT_TOLERANCE = 0.02  # a mask drawn at another size may be rounded


def loss_weights(example: Example, size: Size, latent_size: Size) -> Tensor | None:
    """Weights with mean 1 for the middle of a picture in that shape; None where all counts alike.

    Both sizes are (width, height), the weights are (height, width) of the latents.

    A mask is white where the picture is learned and black where not. An alpha channel is read as the webui does: what
    is most transparent counts nothing.
    """
    shape = _masked(example) if example.mask else _alpha(example)
    if shape is None:
        return None
    middle = ImageOps.fit(shape, size, Image.Resampling.LANCZOS)
    weights = weights_of(middle, latent_size, from_least=example.mask is None)
    return None if bool((weights == 1).all()) else weights


def weights_of(shape: Image.Image, size: tuple[int, int], *, from_least: bool) -> Tensor:
    """A grey picture as weights (height, width) of mean 1, at a size (width, height).

    from_least: the darkest place counts nothing; where all is alike, which is 0/0 in the webui, all counts.
    """
    values = torch.tensor(np.asarray(shape.resize(size), dtype=np.float32))
    if from_least:
        values = values - values.min()
    mean = values.mean()
    return torch.ones_like(values) if mean == 0 else values / mean


def _masked(example: Example) -> Image.Image:
    assert example.mask is not None
    with opened(example.path) as picture:
        width, height = ImageOps.exif_transpose(picture).size
    with opened(example.mask) as mask:
        shape = ImageOps.exif_transpose(mask).convert("RGB").convert("L")
    if abs(shape.width / shape.height * height / width - 1) > ASPECT_TOLERANCE:
        found = f"{shape.width}x{shape.height}"
        raise BadDataset(f"{example.mask} is {found}, its picture {width}x{height}; draw the mask in its proportions")
    if shape.getextrema() == (0, 0):
        raise BadDataset(f"{example.mask} is black, so nothing would be learned; make white what shall be")
    return shape


def _alpha(example: Example) -> Image.Image | None:
    with opened(example.path) as picture:
        if not picture.has_transparency_data:
            return None
        return ImageOps.exif_transpose(picture).convert("RGBA").getchannel("A")
