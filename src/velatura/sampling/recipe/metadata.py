"""Read infotext from picture files, and save pictures with infotext inside."""

import re
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from velatura import text_encodings
from velatura.errors import BadFile, BadRecipe, warn
from velatura.files import atomic_write, suggest_similar
from velatura.image_files import LARGE_IMAGE_PIXELS, is_bomb, load_pixels, open_image
from velatura.sampling.recipe.exif import (
    EXIF_IFD,
    UNICODE_PREFIX,
    decode_user_comment,
    exif_with_comment,
    odd_comment_name,
)
from velatura.sampling.recipe.exif import USER_COMMENT as USER_COMMENT_TAG
from velatura.sampling.recipe.png_texts import check_png_texts
from velatura.sampling.recipe.programs.find_infotext import (
    COMMENT,
    PARAMETERS,
    USER_COMMENT,
    XMP,
    PictureText,
    find_infotext,
)
from velatura.sampling.recipe.stealth import read_hidden_texts

EXIF_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
PICTURE_FORMATS = {".png": "PNG", **EXIF_FORMATS}
MAX_SIDE_BY_FORMAT = {"JPEG": 65_500, "WEBP": 16_383}  # in pixels
MAX_JPEG_COMMENT_BYTES = 65_008  # a segment has at most 65,533 bytes, of which Exif takes some
IMAGE_DESCRIPTION, MAKE, MODEL, SOFTWARE, XP_COMMENT = 0x010E, 0x010F, 0x0110, 0x0131, 0x9C9C
COMFYUI_TAGS = (MAKE, MODEL)  # ComfyUI's WebP has "prompt:{...}" and "workflow:{...}" there
MAX_SHOWN_COMMENT = 60
# Beginnings of pictures that no text has; the ISO formats (AVIF, HEIC) have the size of a box before them
PICTURE_SIGNATURES = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF.{4}WEBP|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"
    rb"|II\*\0|MM\0\*|II\+\0|MM\0\+|\0\0..ftyp|\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    re.DOTALL,
)
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
MAX_TEXT_BYTES = 2**22
MAX_DECODED_PIXELS = 2 * LARGE_IMAGE_PIXELS  # of a larger picture only the header is read, not its pixels


def read_image_infotext(path: Path) -> str | None:
    """Read the infotext inside a picture.

    The metadata of other programs is translated into infotext. A comment that is not infotext is returned as it is.

    Args:
        path: A PNG, JPEG, WebP or GIF file.

    Returns:
        The infotext, or None if there is none.

    Raises:
        BadFile: The file does not exist, is not a picture, or is damaged.
        BadRecipe: The metadata is damaged, or of a program that velatura does not read.
    """
    found = _find_picture_text(path)
    return found.infotext if found else None


def read_image_recipe(path: Path) -> str:
    """Read the infotext inside a picture, as `read_image_infotext`, and refuse a picture without one.

    Args:
        path: A PNG, JPEG, WebP or GIF file.

    Raises:
        BadFile: The file does not exist, is not a picture, or is damaged.
        BadRecipe: The picture has no recipe, or one that velatura does not read.
    """
    found = _find_picture_text(path)
    if found is None or not found.infotext.strip():
        raise BadRecipe(f"{path} contains no recipe; use a picture as it was saved, or give a prompt")
    if found.carrier != "parameters" and not found.has_settings:
        comment = " ".join(found.infotext.split())[:MAX_SHOWN_COMMENT]
        raise BadRecipe(
            f"{path} contains no recipe, only the comment {comment!r}; use a picture as it was saved, or give a prompt"
        )
    return found.infotext


def read_recipe_infotext(path: Path) -> str:
    """Read the infotext in a picture or a text file: see `Recipe.from_file`.

    Raises:
        BadRecipe: The file contains no recipe.
        BadFile: The file is neither a picture nor a text, or is damaged.
    """
    text = read_text_file(path)
    return read_image_recipe(path) if text is None else infotext_from_text(text, str(path))


def read_text_file(path: Path) -> str | None:
    """Read a text file.

    Args:
        path: A text in UTF-8, in UTF-16 with a byte order mark, or in another encoding, which is warned of.

    Returns:
        The text, or None if the file is a picture, or no file.

    Raises:
        BadFile: The file is not a text, or too large for one.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except OSError:
        return None  # reading it as a picture says what is wrong
    if PICTURE_SIGNATURES.match(data):
        return None
    is_plain_text = text_encodings.is_utf8(data) and b"\0" not in data
    return None if not is_plain_text and _is_picture(path) else decode_text(data, str(path))


def _is_picture(path: Path) -> bool:
    """Return True if Pillow knows the format of a file."""
    try:
        with open_image(path):
            return True
    except (OSError, SyntaxError, ValueError, BadFile):
        return False


def decode_text(data: bytes, source: str) -> str:
    """Decode the text of a recipe, with a warning if its encoding is guessed.

    Args:
        data: A text in UTF-8, in UTF-16 with a byte order mark, or in another encoding.
        source: Where it comes from, for messages.

    Raises:
        BadFile: It is not a text, or too large for one.
    """
    if len(data) > MAX_TEXT_BYTES:
        raise BadFile(f"{source} is longer than {MAX_TEXT_BYTES >> 20} MiB: give a picture, or the text of one recipe")
    try:
        text, encoding = text_encodings.decode_text(data)
    except ValueError:
        text, encoding = "\0", ""
    if "\0" in text:
        raise BadFile(f"{source} is not a picture and not a text: give a picture, or the text of its recipe")
    if encoding and not data.startswith(UTF16_MARKS):
        warn(f"{source} is not UTF-8 text, and is read as {encoding}: check its letters, and save it as UTF-8")
    return text


def infotext_from_text(text: str, source: str) -> str:
    """Return the infotext in a text, which may be JSON of another program.

    Args:
        text: The text.
        source: Where it comes from, for messages.

    Raises:
        BadRecipe: The text is JSON that velatura does not read.
    """
    try:
        found = find_infotext({"parameters": text}, (0, 0))
    except BadRecipe as error:
        raise BadRecipe(f"{source}: {error}") from None
    return text if found is None else found.infotext


def _find_picture_text(path: Path) -> PictureText | None:
    try:
        with open_image(path) as image:
            if image.width * image.height > MAX_DECODED_PIXELS or is_bomb(image):
                return find_infotext(_read_texts(image, path), image.size)
            load_pixels(image)
            return _find_in_image(image, path)
    except BadRecipe as error:
        raise BadRecipe(f"{path}: {error}") from None
    except FileNotFoundError:
        raise BadFile(
            f"{path} does not exist{suggest_similar(path)}; use a picture that was saved with its recipe"
        ) from None
    except UnidentifiedImageError:
        raise BadFile(f"{path} is not a picture; use one that was saved with its recipe") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadFile(f"{path} cannot be read ({error}); it is damaged: use another copy") from None


def _find_in_image(image: Image.Image, path: Path) -> PictureText | None:
    """Find the recipe in the texts inside a picture, or else hidden in its pixels."""
    found = find_infotext(_read_texts(image, path), image.size)
    if found is not None and (found.has_settings or found.carrier == PARAMETERS):
        return found
    hidden = read_hidden_texts(image)
    return find_infotext(hidden, image.size) if hidden else found


def _read_texts(image: Image.Image, path: Path) -> dict[str, str]:
    """Return all texts inside a picture by the names of chunks and tags; odd ones are warned of."""
    texts = check_png_texts(path) if image.format == "PNG" else {}
    texts |= {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    if comment := image.info.get("comment"):  # of GIF and JPEG
        texts[COMMENT] = decode_user_comment(comment) if isinstance(comment, bytes) else str(comment)
    xmp = image.info.get("xmp") or texts.pop("XML:com.adobe.xmp", "")
    if xmp:
        texts[XMP] = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else str(xmp)
    exif = Image.Exif() if _needs_pixels_for_exif(image) else image.getexif()
    byte_order = "<" if getattr(exif, "endian", None) == "<" else ">"
    tags = {
        USER_COMMENT: exif.get_ifd(EXIF_IFD).get(USER_COMMENT_TAG),
        "ImageDescription": exif.get(IMAGE_DESCRIPTION),
        "Make": exif.get(MAKE),
        "EXIF Software": exif.get(SOFTWARE),
    }
    for name, value in tags.items():
        if isinstance(value, str | bytes) and (text := decode_user_comment(_to_bytes(value), byte_order)):
            texts[name] = text
            if name == USER_COMMENT and (odd_name := odd_comment_name(_to_bytes(value))):
                warn(
                    f"{path} has a UserComment in the character set {odd_name!r}, which EXIF does not have: its "
                    "encoding is guessed, so its letters may be wrong"
                )
    if isinstance(xp_comment := exif.get(XP_COMMENT), bytes):
        texts["XPComment"] = xp_comment.decode("utf-16-le", "replace").strip("\0")
    for tag in COMFYUI_TAGS:
        name, colon, value = decode_user_comment(_to_bytes(str(exif.get(tag, "")))).partition(":")
        if colon and name in {"prompt", "workflow"}:
            texts.setdefault(name, value)
    return texts


def _needs_pixels_for_exif(image: Image.Image) -> bool:
    """Return True for a very large PNG without EXIF before its pixels: Pillow would decode it to look behind them."""
    return image.format == "PNG" and "exif" not in image.info and image.width * image.height > MAX_DECODED_PIXELS


def _to_bytes(value: str | bytes) -> bytes:
    """Return the bytes of a tag; Pillow decodes tags of type ASCII as Latin-1."""
    return value if isinstance(value, bytes) else value.encode("latin-1", "replace")


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
    comment_bytes = len(UNICODE_PREFIX) + len(text.encode("utf-16-be"))
    if PICTURE_FORMATS[suffix] == "JPEG" and comment_bytes > MAX_JPEG_COMMENT_BYTES:
        raise BadFile(f"{path} has no room for a recipe of {len(text):,} characters: end it in .png")
    with atomic_write(path) as temporary_path:
        if suffix in EXIF_FORMATS:
            image.save(temporary_path, PICTURE_FORMATS[suffix], exif=exif_with_comment(text), quality=95)
        else:
            chunks = PngInfo()
            chunks.add_text("parameters", text)
            image.save(temporary_path, PICTURE_FORMATS[suffix], pnginfo=chunks)
