"""Read infotext from picture files, and save pictures with infotext inside."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from velatura.errors import BadFile
from velatura.files import atomic_write
from velatura.sampling.recipe.foreign import infotext_from_chunks

EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
UNICODE_PREFIX = b"UNICODE\0"
EXIF_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
PICTURE_FORMATS = {".png": "PNG", **EXIF_FORMATS}
MAX_SIDE_BY_FORMAT = {"JPEG": 65_500, "WEBP": 16_383}  # in pixels
MAX_JPEG_COMMENT_BYTES = 65_008  # a segment has at most 65,533 bytes, of which Exif takes some


def read_image_infotext(path: Path) -> str | None:
    """Read the infotext inside a picture.

    The metadata of NovelAI, and of ComfyUI graphs with one sampler, is translated into infotext.

    Args:
        path: A PNG, JPEG, WebP or GIF file.

    Returns:
        The infotext, or None if there is none.

    Raises:
        BadFile: The file does not exist, is not a picture, or is damaged.
    """
    try:
        with Image.open(path) as image:
            image.load()
            comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT) or image.info.get("comment")
            parameters = image.info.get("parameters")
            foreign = None if parameters else infotext_from_chunks(image.info, image.size)
    except FileNotFoundError:
        raise BadFile(f"{path} does not exist; use a picture that was saved with its recipe") from None
    except UnidentifiedImageError:
        raise BadFile(f"{path} is not a picture; use one that was saved with its recipe") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadFile(f"{path} cannot be read ({error}); it is damaged: use another copy") from None
    return (_decode_comment(comment) if comment else None) or (parameters if foreign is None else foreign)


def save_with_infotext(image: Image.Image, path: Path, text: str) -> None:
    """Save a picture with infotext inside, atomically.

    Args:
        image: The picture.
        path: A file name that ends in .png, .jpg, .jpeg or .webp.
        text: The infotext.

    Raises:
        BadFile: The ending is unknown, or the format has no room for the text or the picture; PNG has.
    """
    suffix = path.suffix.lower()
    if suffix not in PICTURE_FORMATS:
        raise BadFile(f"{path} does not end like a picture file; end it in {', '.join(PICTURE_FORMATS)}")
    text = text.encode("utf-8", "replace").decode("utf-8")  # file names may contain invalid Unicode
    max_side = MAX_SIDE_BY_FORMAT.get(PICTURE_FORMATS[suffix], max(image.size))
    if max(image.size) > max_side:
        raise BadFile(
            f"{path} would be {max(image.size):,} pixels long, and {suffix} allows {max_side:,} at most: end it in .png"
        )
    comment = UNICODE_PREFIX + text.encode("utf-16-be")
    if PICTURE_FORMATS[suffix] == "JPEG" and len(comment) > MAX_JPEG_COMMENT_BYTES:
        raise BadFile(f"{path} has no room for a recipe of {len(text):,} characters: end it in .png")
    with atomic_write(path) as temporary_path:
        if suffix in EXIF_FORMATS:
            exif = Image.Exif()
            exif.get_ifd(EXIF_IFD)[USER_COMMENT] = comment
            image.save(temporary_path, PICTURE_FORMATS[suffix], exif=exif, quality=95)
        else:
            chunks = PngInfo()
            chunks.add_text("parameters", text)
            image.save(temporary_path, PICTURE_FORMATS[suffix], pnginfo=chunks)


def _decode_comment(comment: str | bytes) -> str:
    if isinstance(comment, str):
        return comment
    if comment.startswith(UNICODE_PREFIX):
        return comment.removeprefix(UNICODE_PREFIX).decode("utf-16-be", errors="replace")
    return comment.removeprefix(b"ASCII\0\0\0").decode("utf-8", errors="replace")
