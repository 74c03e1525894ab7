"""Open picture files of any size: very large photographs are shrunk while they are read, instead of refused."""

from __future__ import annotations

import math
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

from velatura.errors import BadFile, warn_of_picture

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_IMAGE_PIXELS = 500_000_000  # which take 2 GB while a picture is decoded that is not a JPEG
LARGE_IMAGE_PIXELS = 89_478_485  # Pillow's own limit: 256 MiB of RGB
MAX_PIXELS_PER_BYTE = 200  # of a large file; photographs have at most 30, in JPEGs of low quality
# Formats that Pillow decodes itself: for others, such as EPS, it may start another program
FORMATS = (
    *("PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "AVIF", "TIFF", "MPO", "DIB", "ICO", "PSD"),
    *("JPEG2000", "TGA", "QOI", "PCX", "SGI", "DDS"),
)
# Modes that Pillow cannot reduce, and the modes to which they are converted before
REDUCIBLE_MODES = {"1": "L", "P": "RGB", "PA": "RGBA", "I": "I"}
PILLOW_LIMIT_LOCK = Lock()  # Pillow's limit is one for all threads


@contextmanager
def open_image(source: Path | BinaryIO) -> Generator[Image]:
    """Open a picture of at most MAX_IMAGE_PIXELS, for which Pillow's own limit neither warns nor refuses.

    Args:
        source: A file in one of FORMATS.

    Yields:
        The picture, whose pixels are not read yet. For pixels, give it to `shrink_image` first.

    Raises:
        BadFile: It has more pixels. Other errors are Pillow's.
    """
    from PIL import Image

    Image.init()
    with _lifted_pillow_limit():
        image = Image.open(source, formats=[name for name in FORMATS if name in Image.OPEN])
    with image:
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise BadFile(
                f"{_image_name(image)} has {image.width} x {image.height} pixels, and more than "
                f"{MAX_IMAGE_PIXELS // 10**6} million are not read: save it smaller"
            )
        yield image


def shrink_image(image: Image) -> Image:
    """Return a picture as it is, or a very large one at a whole fraction of its size, with a warning.

    A JPEG is decoded at the smaller size. Any other picture is decoded as a whole and then reduced.

    Args:
        image: A picture from `open_image`, whose pixels are not read yet.

    Raises:
        BadFile: It is a decompression bomb.
    """
    if image.width * image.height <= LARGE_IMAGE_PIXELS:
        return image
    refuse_bomb(image)
    from PIL import ExifTags

    name, (width, height) = _image_name(image), image.size
    factor = _reduction(width, height)
    image.draft(image.mode, (width // factor, height // factor))  # does nothing but for a JPEG
    load_pixels(image)
    orientation = image.getexif().get(ExifTags.Base.Orientation)  # not before: Pillow turns a TIFF as it reads it
    factor = _reduction(*image.size)
    if factor > 1:
        mode = REDUCIBLE_MODES.get(image.mode.partition(";")[0], image.mode)
        reducible = image if mode == image.mode else image.convert("RGBA" if image.has_transparency_data else mode)
        image = reducible.reduce(factor)
    if orientation is not None:
        image.getexif()[ExifTags.Base.Orientation] = orientation
    warn_of_picture("shrunk", f"{name} has {width} x {height} pixels and is read at {image.width} x {image.height}")
    return image


def refuse_bomb(image: Image) -> None:
    """Refuse a picture from `open_image` that is a decompression bomb.

    Raises:
        BadFile: It is large, and has so few bytes that it can hold next to nothing.
    """
    if is_bomb(image):
        raise BadFile(
            f"{_image_name(image)} has {image.width} x {image.height} pixels in {_byte_count(image):,} bytes, so it is "
            "empty, or made to fill the memory: save it smaller"
        )


def is_bomb(image: Image) -> bool:
    """Return True for a large picture from `open_image` with more than MAX_PIXELS_PER_BYTE."""
    pixels = image.width * image.height
    return pixels > LARGE_IMAGE_PIXELS and pixels > MAX_PIXELS_PER_BYTE * _byte_count(image)


def _byte_count(image: Image) -> int:
    """Return the size of the file of a picture whose pixels are not read yet."""
    opened: Any = image
    file: BinaryIO = opened.fp
    position = file.tell()
    count = file.seek(0, os.SEEK_END)
    file.seek(position)
    return count


def load_pixels(image: Image) -> None:
    """Read the pixels of a picture from `open_image`, as Pillow does, but whatever its size."""
    with _lifted_pillow_limit():
        image.load()


@contextmanager
def _lifted_pillow_limit() -> Generator[None]:
    """Lift Pillow's limit, which some of its readers apply when a picture is opened and others when it is read."""
    from PIL import Image

    with PILLOW_LIMIT_LOCK:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _image_name(image: Image) -> str:
    return Path(str(getattr(image, "filename", "") or "")).name or "a picture"


def _reduction(width: int, height: int) -> int:
    """Return the factor by which the sides are divided so that no more than LARGE_IMAGE_PIXELS are left."""
    return math.ceil(math.sqrt(width * height / LARGE_IMAGE_PIXELS))
