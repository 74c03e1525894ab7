"""What can be measured of one picture, as numbers: how blurred, how noisy, and what it looks like from afar."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GreyArray = NDArray[np.float64]

MAX_MEASURED_PIXELS = 512  # pixels of the longer side; larger pictures are measured as seen at that size
HASH_SIDE, DCT_SIDE = 8, 32
BLUR_FILTER_LENGTH = 9  # of the low-pass filter of Crete et al.


def grey(image: Image.Image) -> GreyArray:
    """The picture's luminance, 0 to 255, at most MEASURED pixels wide and high."""
    small = image.convert("L")
    small.thumbnail((MAX_MEASURED_PIXELS, MAX_MEASURED_PIXELS), Image.Resampling.LANCZOS)
    return np.asarray(small, dtype=np.float64)


def blur(picture: GreyArray) -> float:
    """How blurred, from 0 (sharp) to 1: how little of its differences blurring takes from it (Crete et al. 2007)."""
    if min(picture.shape) <= BLUR_FILTER_LENGTH:
        return 0.0
    return max(_blur_along(picture), _blur_along(picture.T))


def noise(picture: GreyArray) -> float:
    """The standard deviation of the noise in it, of 255 (Immerkaer 1996); fine textures count as noise."""
    height, width = picture.shape
    if height < 3 or width < 3:
        return 0.0
    row_laplacian = picture[2:] - 2 * picture[1:-1] + picture[:-2]
    laplacian_difference = (
        row_laplacian[:, 2:] - 2 * row_laplacian[:, 1:-1] + row_laplacian[:, :-2]
    )  # the paper's mask: two Laplacians' difference
    return float(np.sqrt(np.pi / 2) / 6 * np.abs(laplacian_difference).mean())


def perceptual_hash(image: Image.Image) -> int:
    """64 bits of what a picture looks like from afar: those of pictures that look alike differ in few places.

    The signs of the lowest 8 x 8 frequencies of a cosine transform against their median.
    """
    small = np.asarray(image.convert("L").resize((DCT_SIDE, DCT_SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    positions = np.arange(DCT_SIDE)
    cosines = np.cos(np.pi / DCT_SIDE * (positions + 0.5) * np.arange(HASH_SIDE)[:, None])  # (frequencies, places)
    low_frequencies = (cosines @ small @ cosines.T).ravel()
    bits = low_frequencies > np.median(low_frequencies[1:])  # the first is the mean brightness
    return int("".join("1" if bit else "0" for bit in bits), 2)


def find_similar(hashes: list[int], max_distance: int) -> list[tuple[int, int]]:
    """The pairs (earlier, later) of looks that differ in no more bits than that."""
    hash_array = np.array(hashes, dtype=np.uint64)
    pairs = list[tuple[int, int]]()
    for later, later_hash in enumerate(hash_array):
        distances = np.bitwise_count(hash_array[:later] ^ later_hash)
        pairs += [(int(earlier), later) for earlier in np.flatnonzero(distances <= max_distance)]
    return pairs


def _blur_along(picture: GreyArray) -> float:
    """The measure along the second axis."""
    running_sums = np.cumsum(
        np.pad(picture, ((0, 0), (BLUR_FILTER_LENGTH // 2 + 1, BLUR_FILTER_LENGTH // 2)), mode="edge"), axis=1
    )
    blurred = (running_sums[:, BLUR_FILTER_LENGTH:] - running_sums[:, :-BLUR_FILTER_LENGTH]) / BLUR_FILTER_LENGTH
    before, after = np.abs(np.diff(picture)), np.abs(np.diff(blurred))
    variation = np.maximum(0, before - after[:, : before.shape[1]]).sum()
    total = before.sum()
    return float((total - variation) / total) if total else 1.0
