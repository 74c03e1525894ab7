"""What can be measured of one picture, as numbers: how blurred, how noisy, and what it looks like from afar."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Grey = NDArray[np.float64]

MEASURED = 512  # pixels of the longer side; larger pictures are measured as seen at that size
HASH_SIDE, HASH_FROM = 8, 32
LENGTH = 9  # of the low-pass filter of Crete et al.


def grey(image: Image.Image) -> Grey:
    """The picture's luminance, 0 to 255, at most MEASURED pixels wide and high."""
    small = image.convert("L")
    small.thumbnail((MEASURED, MEASURED), Image.Resampling.LANCZOS)
    return np.asarray(small, dtype=np.float64)


def blur(picture: Grey) -> float:
    """How blurred, from 0 (sharp) to 1: how little of its differences blurring takes from it (Crete et al. 2007)."""
    if min(picture.shape) <= LENGTH:
        return 0.0
    return max(_blur_along(picture), _blur_along(picture.T))


def noise(picture: Grey) -> float:
    """The standard deviation of the noise in it, of 255 (Immerkaer 1996); fine textures count as noise."""
    height, width = picture.shape
    if height < 3 or width < 3:
        return 0.0
    second = picture[2:] - 2 * picture[1:-1] + picture[:-2]
    both = second[:, 2:] - 2 * second[:, 1:-1] + second[:, :-2]  # the paper's mask: two Laplacians' difference
    return float(np.sqrt(np.pi / 2) / 6 * np.abs(both).mean())


def look(image: Image.Image) -> int:
    """64 bits of what a picture looks like from afar: those of pictures that look alike differ in few places.

    The signs of the lowest 8 x 8 frequencies of a cosine transform against their median.
    """
    small = np.asarray(image.convert("L").resize((HASH_FROM, HASH_FROM), Image.Resampling.LANCZOS), dtype=np.float64)
    places = np.arange(HASH_FROM)
    waves = np.cos(np.pi / HASH_FROM * (places + 0.5) * np.arange(HASH_SIDE)[:, None])  # (frequencies, places)
    low = (waves @ small @ waves.T).ravel()
    bits = low > np.median(low[1:])  # the first is the mean brightness
    return int("".join("1" if bit else "0" for bit in bits), 2)


def alike(looks: list[int], most_bits: int) -> list[tuple[int, int]]:
    """The pairs (earlier, later) of looks that differ in no more bits than that."""
    all_looks = np.array(looks, dtype=np.uint64)
    pairs = list[tuple[int, int]]()
    for later, one in enumerate(all_looks):
        distances = np.bitwise_count(all_looks[:later] ^ one)
        pairs += [(int(earlier), later) for earlier in np.flatnonzero(distances <= most_bits)]
    return pairs


def _blur_along(picture: Grey) -> float:
    """The measure along the second axis."""
    summed = np.cumsum(np.pad(picture, ((0, 0), (LENGTH // 2 + 1, LENGTH // 2)), mode="edge"), axis=1)
    blurred = (summed[:, LENGTH:] - summed[:, :-LENGTH]) / LENGTH
    before, after = np.abs(np.diff(picture)), np.abs(np.diff(blurred))
    kept = np.maximum(0, before - after[:, : before.shape[1]]).sum()
    total = before.sum()
    return float((total - kept) / total) if total else 1.0
