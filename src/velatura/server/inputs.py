"""Images that requests bring: bounded before they are decoded, checked, and stored under the hash of their bytes."""

from __future__ import annotations

import base64
import binascii
import io
import re
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from velatura.errors import BadFile
from velatura.files import atomic_write
from velatura.image_files import open_image, shrink_image
from velatura.server.errors import ApiError
from velatura.server.folders import Folders

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_INPUT_PIXELS = 64 * 2**20
ENDINGS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
REFERENCE = re.compile(r"input:([0-9a-f]{64}\.(?:png|jpg|webp))")
DATA_URL = re.compile(r"data:[\w./+-]*(?:;[\w=./+-]+)*;base64,", re.IGNORECASE)


class InputStore:
    """Images of requests, in a folder, each stored once."""

    def __init__(self, folders: Folders) -> None:
        self._folder = folders.inputs

    def add(self, data: bytes, field: str | None = None) -> str:
        """Store the bytes of a PNG, JPEG or WebP file, and return the reference that requests have instead.

        Raises:
            ApiError: It is not such a picture, is damaged, or has too many pixels.
        """
        ending = check_picture(data, field)
        name = f"{sha256(data).hexdigest()}{ending}"
        path = self._folder / name
        if not path.exists():
            with atomic_write(path) as temporary:
                temporary.write_bytes(data)
        return f"input:{name}"

    def add_text(self, text: str, field: str) -> str:
        """Store an image that stands in a request as base64 or as a data URL; a reference is returned as it is.

        Raises:
            ApiError: The text is neither, or the image is refused.
        """
        reference = REFERENCE.fullmatch(text)
        if reference:
            if not (self._folder / reference[1]).is_file():
                raise ApiError(422, "unknown_input", "no image with this reference is stored: send it again", field)
            return text
        return self.add(decode_base64(text, field), field)

    def forget(self, before: float, in_use: str) -> None:
        """Delete images that were stored before a time.

        Args:
            before: Seconds since 1970.
            in_use: The requests of jobs that have not ended, as text: what they refer to is kept.
        """
        for path in self._folder.iterdir():
            if path.stat().st_mtime < before and path.name not in in_use:
                path.unlink(missing_ok=True)

    def path(self, reference: str) -> Path:
        """Return the path of a stored image."""
        match = REFERENCE.fullmatch(reference)
        assert match
        return self._folder / match[1]

    def open(self, reference: str) -> Image:
        """Return a stored image, turned as its EXIF orientation says.

        Raises:
            BadFile: It is gone.
        """
        from PIL import ImageOps

        try:
            with open_image(self.path(reference)) as image:
                return ImageOps.exif_transpose(shrink_image(image)).copy()
        except OSError:
            raise BadFile("the image that this job begins from is gone: send it again") from None


def decode_base64(text: str, field: str) -> bytes:
    """Return the bytes of base64, with or without the head of a data URL.

    Raises:
        ApiError: It is not base64.
    """
    head = DATA_URL.match(text)
    try:
        return base64.b64decode(text[head.end() if head else 0 :], validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(
            422, "bad_image", "the image is not base64: send the file's bytes as base64, or as a data URL", field
        ) from None


def check_picture(data: bytes | BinaryIO, field: str | None = None, max_pixels: int = MAX_INPUT_PIXELS) -> str:
    """Return the ending that fits a picture, given as bytes or as a file, or refuse it.

    Raises:
        ApiError: It is not a PNG, JPEG or WebP file, is damaged, or has too many pixels.
    """
    with load_picture(data, field, max_pixels) as image:
        return ENDINGS[str(image.format)]


def load_picture(data: bytes | BinaryIO, field: str | None = None, max_pixels: int = MAX_INPUT_PIXELS) -> Image:
    """Return the decoded image of a file, given as bytes or as a file; its pixels are counted before that.

    Raises:
        ApiError: It is not a PNG, JPEG or WebP file, is damaged, or has too many pixels.
    """
    from PIL import Image as PilImage
    from PIL import UnidentifiedImageError

    bombs = (PilImage.DecompressionBombError, PilImage.DecompressionBombWarning)

    try:
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        image = PilImage.open(source, formats=list(ENDINGS))
        if image.width * image.height > max_pixels:
            size = f"{image.width} x {image.height}"
            raise ApiError(
                413, "too_large", f"the image has {size} pixels, more than {max_pixels >> 20} Mi: shrink it", field
            )
        image.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, *bombs) as error:
        if isinstance(error, bombs):
            raise ApiError(413, "too_large", "the image has too many pixels: shrink it", field) from None
        raise ApiError(
            422, "bad_image", "the image cannot be read: send a whole .png, .jpg or .webp file", field
        ) from None
    return image
