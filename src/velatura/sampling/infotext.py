"""The text that travels inside a picture and says how it was made, as the AUTOMATIC1111 webui writes and reads it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from velatura.errors import BadFile
from velatura.files import replacing

NEGATIVE = "Negative prompt:"
FIELD = re.compile(r'\s*(?P<key>\w[\w \-/]+):\s*(?P<value>"(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
FEWEST_FIELDS = 3  # a last line with fewer is part of the prompt

EXIF_FOLDER, USER_COMMENT = 0x8769, 0x9286
UNICODE = b"UNICODE\0"
EXIF_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
SAVED_AS = {".png": "PNG", **EXIF_FORMATS}


class Infotext(NamedTuple):
    """A prompt, a negative prompt and the fields of the last line, all as text."""

    prompt: str
    negative: str
    fields: dict[str, str]


def write_infotext(prompt: str, negative: str, fields: Mapping[str, object]) -> str:
    """Put a recipe into words: prompt, negative prompt, and a line of fields without those that are None."""
    line = ", ".join(f"{key}: {quote(value)}" for key, value in fields.items() if value is not None)
    return "\n".join([prompt, *([f"{NEGATIVE} {negative}"] if negative else []), line]).strip()


def read_infotext(text: str) -> Infotext:
    """Take such a text apart; what does not look like it is all prompt."""
    *lines, last = text.strip().split("\n")
    found = list(FIELD.finditer(last))
    if len(found) < FEWEST_FIELDS:
        lines, found = [*lines, last], []
    fields = {each["key"]: unquote(each["value"]) for each in found if each["value"]}
    prompt, negative = _split_prompts([line.strip() for line in lines])
    return Infotext(prompt + _old_hypernetwork(fields), negative, fields)


def quote(value: object) -> str:
    """A value as it stands in the line of fields: in JSON's quotes if it holds a comma, a colon or a line break."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def unquote(text: str) -> str:
    """The value that was written; what only looks quoted stays as it is."""
    if not (text.startswith('"') and text.endswith('"')):
        return text
    try:
        return str(json.loads(text))
    except json.JSONDecodeError:
        return text


def read_carried(path: Path) -> str | None:
    """The text inside a PNG, JPEG, WebP or GIF, None if it carries none; raises BadFile for what is no picture."""
    try:
        with Image.open(path) as image:
            image.load()
            comment = image.getexif().get_ifd(EXIF_FOLDER).get(USER_COMMENT) or image.info.get("comment")
            chunk = image.info.get("parameters")
    except FileNotFoundError:
        raise BadFile(f"{path} does not exist; name a picture that was saved with its recipe") from None
    except UnidentifiedImageError:
        raise BadFile(f"{path} is no picture; name one that was saved with its recipe") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadFile(f"{path} cannot be read ({error}); it is damaged: take another copy") from None
    return (_decoded(comment) if comment else None) or chunk


def save_with(image: Image.Image, path: Path, text: str) -> None:
    """Write a picture with the text inside, beside its place first and then into it."""
    suffix = path.suffix.lower()
    if suffix not in SAVED_AS:
        raise BadFile(f"{path} is no name for a picture; end it in {', '.join(SAVED_AS)}")
    with replacing(path) as beside:
        if suffix in EXIF_FORMATS:
            exif = Image.Exif()
            exif.get_ifd(EXIF_FOLDER)[USER_COMMENT] = UNICODE + text.encode("utf-16-be")
            image.save(beside, SAVED_AS[suffix], exif=exif, quality=95)
        else:
            chunks = PngInfo()
            chunks.add_text("parameters", text)
            image.save(beside, SAVED_AS[suffix], pnginfo=chunks)


def _split_prompts(lines: list[str]) -> tuple[str, str]:
    """From the first line that is marked as negative on, all is negative; later marks are cut off."""
    first = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = [line.removeprefix(NEGATIVE).strip() for line in lines[first:]]
    return "\n".join(lines[:first]).lstrip("\n"), "\n".join(negative).lstrip("\n")


def _old_hypernetwork(fields: Mapping[str, str]) -> str:
    """The tag that says what pictures of 2022 said in fields."""
    if "Hypernet" not in fields:
        return ""
    return f"<hypernet:{fields['Hypernet']}:{fields.get('Hypernet strength', '1.0')}>"


def _decoded(comment: str | bytes) -> str:
    if isinstance(comment, str):
        return comment
    if comment.startswith(UNICODE):
        return comment.removeprefix(UNICODE).decode("utf-16-be", errors="replace")
    return comment.removeprefix(b"ASCII\0\0\0").decode("utf-8", errors="replace")
