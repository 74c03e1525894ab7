"""Measures of one picture: blur, noise, and a perceptual hash."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GreyArray = NDArray[np.float64]

MAX_MEASURED_PIXELS = 512  # longer side; larger pictures are reduced first
HASH_SIDE, DCT_SIDE = 8, 32
BLUR_FILTER_LENGTH = 9  # low-pass filter of Crete et al.


def grey(image: Image.Image) -> GreyArray:
    """Return the luminance, 0 to 255, (height, width), of a picture reduced to at most `MAX_MEASURED_PIXELS`."""
    small = image.convert("L")
    small.thumbnail((MAX_MEASURED_PIXELS, MAX_MEASURED_PIXELS), Image.Resampling.LANCZOS)
    return np.asarray(small, dtype=np.float64)


def blur(picture: GreyArray) -> float:
    """Return the blur from 0 (sharp) to 1: how little another blur reduces the variation (Crete et al. 2007)."""
    if min(picture.shape) <= BLUR_FILTER_LENGTH:
        return 0.0
    return max(_blur_along(picture), _blur_along(picture.T))


def noise(picture: GreyArray) -> float:
    """Return the standard deviation of the noise, of 255 (Immerkaer 1996); fine textures count as noise."""
    height, width = picture.shape
    if height < 3 or width < 3:
        return 0.0
    row_laplacian = picture[2:] - 2 * picture[1:-1] + picture[:-2]
    # The paper's mask, the difference of two Laplacians
    laplacian_difference = row_laplacian[:, 2:] - 2 * row_laplacian[:, 1:-1] + row_laplacian[:, :-2]
    return float(np.sqrt(np.pi / 2) / 6 * np.abs(laplacian_difference).mean())


def perceptual_hash(image: Image.Image) -> int:
    """Return a 64-bit hash; the hashes of similar pictures differ in few bits.

    A bit says whether one of the lowest 8 x 8 frequencies of the cosine transform is above their median (pHash).
    """
    small = np.asarray(image.convert("L").resize((DCT_SIDE, DCT_SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    positions = np.arange(DCT_SIDE)
    cosines = np.cos(np.pi / DCT_SIDE * (positions + 0.5) * np.arange(HASH_SIDE)[:, None])  # (frequencies, pixels)
    low_frequencies = (cosines @ small @ cosines.T).ravel()
    bits = low_frequencies > np.median(low_frequencies[1:])  # the first is the brightness
    return int("".join("1" if bit else "0" for bit in bits), 2)


def find_similar(hashes: list[int], max_distance: int) -> list[tuple[int, int]]:
    """Return the pairs (earlier index, later index) of hashes that differ in at most `max_distance` bits."""
    hash_array = np.array(hashes, dtype=np.uint64)
    pairs = list[tuple[int, int]]()
    for later, later_hash in enumerate(hash_array):
        distances = np.bitwise_count(hash_array[:later] ^ later_hash)
        pairs += [(int(earlier), later) for earlier in np.flatnonzero(distances <= max_distance)]
    return pairs


def _blur_along(picture: GreyArray) -> float:
    """Return the blur along the second axis."""
    padding = (BLUR_FILTER_LENGTH // 2 + 1, BLUR_FILTER_LENGTH // 2)
    running_sums = np.cumsum(np.pad(picture, ((0, 0), padding), mode="edge"), axis=1)
    blurred = (running_sums[:, BLUR_FILTER_LENGTH:] - running_sums[:, :-BLUR_FILTER_LENGTH]) / BLUR_FILTER_LENGTH
    before, after = np.abs(np.diff(picture)), np.abs(np.diff(blurred))
    variation = np.maximum(0, before - after[:, : before.shape[1]]).sum()
    total = before.sum()
    return float((total - variation) / total) if total else 1.0
