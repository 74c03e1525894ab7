import numpy as np
import torch

import velatura
from velatura.sampling.preview import Preview


def test_a_preview_has_the_colours_of_the_picture(tiny):
    """Far nearer to the picture than its mean colour is."""
    picture = velatura.generate(tiny, "a red house on the beach", seed=7, steps=8).image
    pixels = torch.tensor(np.asarray(picture), dtype=torch.float32).permute(2, 0, 1)[None] / 255
    preview = Preview(tiny)(tiny.encode(pixels * 2 - 1)[0])
    picture_pixels = np.asarray(picture.resize(preview.size, 4), dtype=float)
    preview_pixels = np.asarray(preview, dtype=float)
    assert (
        np.square(preview_pixels - picture_pixels).mean()
        < 0.25 * np.square(picture_pixels - picture_pixels.mean((0, 1))).mean()
    )


def test_a_preview_is_one_pixel_for_each_latent(tiny):
    assert Preview(tiny)(torch.zeros(4, 12, 20)).size == (20, 12)
