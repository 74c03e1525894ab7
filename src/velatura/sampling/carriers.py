"""Pictures that carry the text of how they were made."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from velatura.errors import BadFile
from velatura.files import replacing
from velatura.sampling.foreign import from_chunks

EXIF_FOLDER, USER_COMMENT = 0x8769, 0x9286
UNICODE = b"UNICODE\0"
EXIF_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
SAVED_AS = {".png": "PNG", **EXIF_FORMATS}
MOST_PIXELS = {"JPEG": 65_500, "WEBP": 16_383}  # of a side
MOST_OF_JPEG = 65_008  # bytes of a comment: segments end at 65,533, and have frames


def read_carried(path: Path) -> str | None:
    """The text inside a PNG, JPEG, WebP or GIF, None if it carries none; raises BadFile for what is no picture.

    Pictures of NovelAI, and those of ComfyUI that come from one plain sampler, are put into the webui's words.
    """
    try:
        with Image.open(path) as image:
            image.load()
            comment = image.getexif().get_ifd(EXIF_FOLDER).get(USER_COMMENT) or image.info.get("comment")
            chunk = image.info.get("parameters")
            foreign = None if chunk else from_chunks(image.info, image.size)
    except FileNotFoundError:
        raise BadFile(f"{path} does not exist; name a picture that was saved with its recipe") from None
    except UnidentifiedImageError:
        raise BadFile(f"{path} is no picture; name one that was saved with its recipe") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadFile(f"{path} cannot be read ({error}); it is damaged: take another copy") from None
    return (_decoded(comment) if comment else None) or (chunk if foreign is None else foreign)


def save_with(image: Image.Image, path: Path, text: str) -> None:
    """Write a picture with the text inside, beside its place first and then into it.

    Raises BadFile where the format has no room for the text or for the picture; a PNG has.
    """
    suffix = path.suffix.lower()
    if suffix not in SAVED_AS:
        raise BadFile(f"{path} is no name for a picture; end it in {', '.join(SAVED_AS)}")
    text = text.encode("utf-8", "replace").decode("utf-8")  # names of files need not be text
    most = MOST_PIXELS.get(SAVED_AS[suffix], max(image.size))
    if max(image.size) > most:
        raise BadFile(f"{path} would be {max(image.size):,} pixels long, and {suffix} ends at {most:,}: end it in .png")
    comment = UNICODE + text.encode("utf-16-be")
    if SAVED_AS[suffix] == "JPEG" and len(comment) > MOST_OF_JPEG:
        raise BadFile(f"{path} has no room for a recipe of {len(text):,} letters: end it in .png")
    with replacing(path) as beside:
        if suffix in EXIF_FORMATS:
            exif = Image.Exif()
            exif.get_ifd(EXIF_FOLDER)[USER_COMMENT] = comment
            image.save(beside, SAVED_AS[suffix], exif=exif, quality=95)
        else:
            chunks = PngInfo()
            chunks.add_text("parameters", text)
            image.save(beside, SAVED_AS[suffix], pnginfo=chunks)


def _decoded(comment: str | bytes) -> str:
    if isinstance(comment, str):
        return comment
    if comment.startswith(UNICODE):
        return comment.removeprefix(UNICODE).decode("utf-16-be", errors="replace")
    return comment.removeprefix(b"ASCII\0\0\0").decode("utf-8", errors="replace")
