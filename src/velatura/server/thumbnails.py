"""Small WebP pictures of pictures, made once and kept in the output folder."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from velatura.errors import ignore_warnings
from velatura.files import atomic_write
from velatura.image_files import open_image, shrink_image
from velatura.server.errors import not_found

THUMBNAIL_PIXELS = 320
THUMBNAIL_FOLDER = ".thumbnails"


def thumbnail_of(path: Path, out: Path) -> Path:
    """Return the thumbnail of a picture; it is made if there is none of this state of the file.

    Args:
        path: The picture.
        out: The server's output folder.

    Raises:
        ApiError: The file is gone, or is not a picture.
    """
    from PIL import ImageOps

    try:
        state = path.stat()
        key = sha256(f"{path}\0{state.st_mtime_ns}\0{state.st_size}".encode("utf-8", "replace")).hexdigest()[:32]
        thumbnail = out / THUMBNAIL_FOLDER / key[:2] / f"{key}.webp"
        if not thumbnail.is_file():
            with ignore_warnings(), open_image(path) as image, atomic_write(thumbnail) as temporary:
                small = ImageOps.exif_transpose(shrink_image(image))
                small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
                mode = "RGBA" if small.has_transparency_data else "RGB"
                small.convert(mode).save(temporary, "WEBP", quality=80)
    except (OSError, ValueError, SyntaxError):
        raise not_found("picture") from None
    return thumbnail
