"""What tests of inpainting and pix2pix models share: an image, a mask, and how pictures are compared."""

import numpy as np
import torch
from PIL import Image

STEPS = 4  # at timesteps 999, 666, 333 and 0: neither velatura nor diffusers has to interpolate
WORDS = {"negative": "blurry", "seed": 3, "steps": STEPS, "sampler": "Euler", "width": 64, "height": 64}


def make_image():
    """Return an image of soft colours."""
    values = torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(7))
    return Image.fromarray((values * 255).byte().numpy()).resize((64, 64), Image.Resampling.BILINEAR)


def make_mask():
    """Return a mask that is white in a square."""
    white = np.zeros((64, 64), np.uint8)
    white[16:48, 8:40] = 255
    return Image.fromarray(white)


def pixels_of(image):
    """Return the pixels of an image as the VAE reads them."""
    return torch.tensor(np.asarray(image, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1


def difference(picture, theirs, part=(slice(None), slice(None))):
    """Return the largest difference of a picture from values of 0 to 255."""
    # we cut the fraction, so are 0.5 too low
    return np.abs(np.asarray(picture.image, dtype=np.float32) + 0.5 - theirs)[part].max()
