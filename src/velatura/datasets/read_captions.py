"""Captions of pictures: from a text file, from a .jsonl list of the folder, or from the file name."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import cast

from velatura.errors import BadDataset

CAPTION_SUFFIXES = (".txt", ".caption")
MAX_CAPTION_BYTES = 2**26  # a list for a million pictures

# Field names of a list in Hugging Face datasets, kohya's tools and SimpleTuner
LIST_FILE_FIELDS = ("file_name", "file", "image", "image_path", "path")
LIST_CAPTION_FIELDS = ("text", "caption", "prompt", "tags")

# Names given by cameras and phones: IMG_1234, IMG_E1234, P1010012, PXL_20230101_120000000.PORTRAIT
CAMERA_NAME = re.compile(
    r"_?(fb_)?(img|dsc[fn]?|pxl|mvimg|gopr|g[hpx]|dji|cimg|hpim|imgp|pict|pano|sam_|vid|p(?=\d{7}))[-_ ]?e?\d{3,}",
    re.IGNORECASE,
)
HASH_NAME = re.compile(r"(?=.*\d)[0-9a-f-]{16,}", re.IGNORECASE)

# Letters with digits only at the end: "robot12" is a word, part of a hash is not
WORD = re.compile(r"(?<![^\W_])([^\W\d_]+)\d*(?![^\W_])")
IDEOGRAM = re.compile("[\u3040-\u9fff\uac00-\ud7af]")  # a single one may be a word

# Words that cameras, phones and programs put into names, and that do not describe the picture
MEANINGLESS_WORD = re.compile(
    r"""img | images? | dsc[fn]? | pxl | mvimg | gopr | dji | pano | burst | photos? | pic | pictures? | video | vid
    | scan | scanned | screenshot | screen | shot | snapshot | capture | bildschirmfoto | écran | captura | pantalla
    | schermata | 截屏 | 屏幕截图 | スクリーンショット | copy | copie | kopie | copia | file | untitled | unnamed
    | download | downloaded | new | final | edit | edited | crop | cropped | resized | whatsapp | signal | telegram
    | unknown | snapchat | comfyui | tmp | temp | jpe?g | png | webp | gif | bmp | heic""",
    re.IGNORECASE | re.VERBOSE,
)

# The web UI drops a number before the words, "0001-a cat" (dataset.py, run on eight names)
LEADING_NUMBER = re.compile(r"^[-\d]+\s*")


class CaptionSource(StrEnum):
    """Source of a caption: a text file, a list, or the picture's name."""

    TEXT = "text"
    LIST = "list"
    NAME = "name"


@dataclass(frozen=True)
class Caption:
    """Caption of a picture, with its source and, unless it is the name, the file that it was read from."""

    text: str
    source: CaptionSource
    file: Path | None = None


@dataclass(frozen=True)
class NameRules:
    """Options for captions from file names, as in the web UI.

    Attributes:
        pattern: Regular expression for words (dataset_filename_word_regex); empty for the whole name.
        join_string: Put between the words (dataset_filename_join_string).
    """

    pattern: str = ""
    join_string: str = " "

    def words(self, stem: str) -> str:
        """Return the words of a file name: what the pattern, or a group in it, matches after the leading number.

        Raises:
            BadDataset: The pattern is not a valid regular expression.
        """
        caption = LEADING_NUMBER.sub("", stem)
        if not self.pattern:
            return caption
        try:
            matches = cast("list[str | tuple[str, ...]]", re.findall(self.pattern, caption))
        except re.error as error:
            raise BadDataset(
                f"the pattern {self.pattern!r} for words in file names is not a regular expression: {error}"
            ) from None
        return self.join_string.join(match if isinstance(match, str) else "".join(match) for match in matches)


def read_caption(path: Path, list_captions: Mapping[str, Caption], rules: NameRules) -> Caption:
    """Return the caption of a picture from its .txt or .caption file, else from the folder's list, else from its name.

    Args:
        path: Picture file.
        list_captions: Result of `read_caption_lists` for the picture's folder.
        rules: Make a caption from the name.

    Raises:
        BadDataset: The picture has no caption, or its file is empty or not UTF-8 text.
    """
    for suffix in CAPTION_SUFFIXES:
        caption_file = path.with_suffix(suffix)
        if caption_file.is_file():
            return Caption(_read_nonempty_text(caption_file), CaptionSource.TEXT, caption_file)
    return list_captions.get(path.name) or Caption(caption_from_name(path, rules), CaptionSource.NAME)


def read_caption_text(path: Path) -> str:
    """Return the text of a picture's .txt or .caption file, or an empty string if there is none.

    Raises:
        BadDataset: The file is not UTF-8 text.
    """
    for suffix in CAPTION_SUFFIXES:
        caption_file = path.with_suffix(suffix)
        if caption_file.is_file():
            return _read_text(caption_file).strip()
    return ""


def read_caption_lists(folder: Path) -> dict[str, Caption]:
    """Return the captions in the .jsonl files of a folder, such as metadata.jsonl, by the name of the picture.

    Raises:
        BadDataset: A line is not JSON, or lacks a file name or a caption.
    """
    captions = dict[str, Caption]()
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(_read_text(path).splitlines(), 1):
            if line.strip():
                name, text = _parse_list_line(line, f"{path}, line {number}")
                captions[name] = Caption(text, CaptionSource.LIST, path)
    return captions


def _parse_list_line(line: str, location: str) -> tuple[str, str]:
    try:
        parsed: object = json.loads(line)
    except (ValueError, RecursionError):
        raise BadDataset(f'{location} is not JSON: write {{"file_name": "cat.png", "text": "a cat"}}') from None
    fields = cast("dict[str, object]", parsed) if isinstance(parsed, dict) else {}
    name = next((fields[key] for key in LIST_FILE_FIELDS if isinstance(fields.get(key), str)), None)
    caption = next((fields[key] for key in LIST_CAPTION_FIELDS if fields.get(key)), None)
    if isinstance(caption, list):
        caption = ", ".join(map(str, cast("list[object]", caption)))
    if not isinstance(name, str) or not isinstance(caption, str) or not caption.strip():
        raise BadDataset(f'{location} lacks a file_name or a text: write {{"file_name": "cat.png", "text": "a cat"}}')
    return name.replace("\\", "/").rsplit("/", 1)[-1], caption.strip()


def _read_text(path: Path) -> str:
    if path.stat().st_size > MAX_CAPTION_BYTES:
        raise BadDataset(f"{path} is longer than {MAX_CAPTION_BYTES >> 20} MiB: split it")
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise BadDataset(f"{path} is not UTF-8 text: save the caption as UTF-8") from None
    except OSError as error:
        raise BadDataset(f"{path} cannot be read ({error.strerror}): change its permissions, or remove it") from None


def _read_nonempty_text(path: Path) -> str:
    caption = _read_text(path).strip()
    if not caption:
        raise BadDataset(f"{path} is empty: write what the picture shows into it, or remove it")
    return caption


def caption_from_name(path: Path, rules: NameRules) -> str:
    """Return the caption in a picture's name.

    Raises:
        BadDataset: The name has no words, or was given by a camera or program.
    """
    caption = rules.words(path.stem).strip()
    has_words = any(map(_is_meaningful, WORD.findall(caption)))
    if not has_words or CAMERA_NAME.match(path.stem) or HASH_NAME.fullmatch(path.stem):
        raise BadDataset(
            f"{path} has no caption, because there is no {path.stem}.txt and the name does not describe the picture: "
            "write what the picture shows into that file, or rename the picture"
        )
    return caption


def _is_meaningful(word: str) -> bool:
    return not MEANINGLESS_WORD.fullmatch(word) and (len(word) >= 3 or IDEOGRAM.search(word) is not None)
