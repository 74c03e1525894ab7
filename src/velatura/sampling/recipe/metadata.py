"""Pictures that carry the text of how they were made."""

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
MAX_SIDE_BY_FORMAT = {"JPEG": 65_500, "WEBP": 16_383}  # of a side
MAX_JPEG_COMMENT_BYTES = 65_008  # bytes of a comment: segments end at 65,533, and have frames


def read_image_infotext(path: Path) -> str | None:
    """The text inside a PNG, JPEG, WebP or GIF, None if it carries none; raises BadFile for what is no picture.

    Pictures of NovelAI, and those of ComfyUI that come from one plain sampler, are put into the webui's words.
    """
    try:
        with Image.open(path) as image:
            image.load()
            comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT) or image.info.get("comment")
            parameters = image.info.get("parameters")
            foreign = None if parameters else infotext_from_chunks(image.info, image.size)
    except FileNotFoundError:
        raise BadFile(f"{path} does not exist; name a picture that was saved with its recipe") from None
    except UnidentifiedImageError:
        raise BadFile(f"{path} is no picture; name one that was saved with its recipe") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadFile(f"{path} cannot be read ({error}); it is damaged: take another copy") from None
    return (_decode_comment(comment) if comment else None) or (parameters if foreign is None else foreign)


def save_with_infotext(image: Image.Image, path: Path, text: str) -> None:
    """Write a picture with the text inside, beside its place first and then into it.

    Raises BadFile where the format has no room for the text or for the picture; a PNG has.
    """
    suffix = path.suffix.lower()
    if suffix not in PICTURE_FORMATS:
        raise BadFile(f"{path} is no name for a picture; end it in {', '.join(PICTURE_FORMATS)}")
    text = text.encode("utf-8", "replace").decode("utf-8")  # names of files need not be text
    max_side = MAX_SIDE_BY_FORMAT.get(PICTURE_FORMATS[suffix], max(image.size))
    if max(image.size) > max_side:
        raise BadFile(
            f"{path} would be {max(image.size):,} pixels long, and {suffix} ends at {max_side:,}: end it in .png"
        )
    comment = UNICODE_PREFIX + text.encode("utf-16-be")
    if PICTURE_FORMATS[suffix] == "JPEG" and len(comment) > MAX_JPEG_COMMENT_BYTES:
        raise BadFile(f"{path} has no room for a recipe of {len(text):,} letters: end it in .png")
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
