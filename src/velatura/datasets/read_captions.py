"""What a picture shows, in words: from the text beside it, from a list of the whole folder, or from its own name."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import cast

from velatura.errors import BadDataset

CAPTION_SUFFIXES = (".txt", ".caption")
MAX_CAPTION_BYTES = 2**26  # of a list of captions: a million pictures

# The names that datasets, kohya's tools and SimpleTuner give to the fields of such a list
LIST_FILE_FIELDS = ("file_name", "file", "image", "image_path", "path")
LIST_CAPTION_FIELDS = ("text", "caption", "prompt", "tags")

# Names that a camera or a phone gave: IMG_1234, IMG_E1234, P1010012, PXL_20230101_120000000.PORTRAIT
CAMERA_NAME = re.compile(
    r"_?(fb_)?(img|dsc[fn]?|pxl|mvimg|gopr|g[hpx]|dji|cimg|hpim|imgp|pict|pano|sam_|vid|p(?=\d{7}))[-_ ]?e?\d{3,}",
    re.IGNORECASE,
)
HASH_NAME = re.compile(r"(?=.*\d)[0-9a-f-]{16,}", re.IGNORECASE)

# Letters that may end in a number, between spaces or signs: "robot12" is a word, a piece of a hash is none
WORD = re.compile(r"(?<![^\W_])([^\W\d_]+)\d*(?![^\W_])")
IDEOGRAM = re.compile("[\u3040-\u9fff\uac00-\ud7af]")  # one of these may be a word alone

# Words that a camera, a phone or a program puts into names: none says what is in the picture
MEANINGLESS_WORD = re.compile(
    r"""img | images? | dsc[fn]? | pxl | mvimg | gopr | dji | pano | burst | photos? | pic | pictures? | video | vid
    | scan | scanned | screenshot | screen | shot | snapshot | capture | bildschirmfoto | écran | captura | pantalla
    | schermata | 截屏 | 屏幕截图 | スクリーンショット | copy | copie | kopie | copia | file | untitled | unnamed
    | download | downloaded | new | final | edit | edited | crop | cropped | resized | whatsapp | signal | telegram
    | unknown | snapchat | comfyui | tmp | temp | jpe?g | png | webp | gif | bmp | heic""",
    re.IGNORECASE | re.VERBOSE,
)

# The webui drops a number that stands before the words, "0001-a cat" (dataset.py, run on eight names)
LEADING_NUMBER = re.compile(r"^[-\d]+\s*")


class CaptionSource(StrEnum):
    """Where a caption was found."""

    TEXT = "text"
    LIST = "list"
    NAME = "name"


@dataclass(frozen=True)
class Caption:
    """What a picture shows, and where that is said; file is the text or list that says it."""

    text: str
    source: CaptionSource
    file: Path | None = None


@dataclass(frozen=True)
class NameRules:
    """How a caption is made of a file's name: all that the pattern finds, joined; without a pattern the name itself.

    These are the webui's options dataset_filename_word_regex and dataset_filename_join_string.
    """

    pattern: str = ""
    join_string: str = " "

    def words(self, stem: str) -> str:
        """The name without its leading number, reduced to what the pattern finds; a group in it is what is kept."""
        caption = LEADING_NUMBER.sub("", stem)
        if not self.pattern:
            return caption
        try:
            found = cast("list[str | tuple[str, ...]]", re.findall(self.pattern, caption))
        except re.error as error:
            raise BadDataset(f"the pattern {self.pattern!r} for words in file names is broken: {error}") from None
        return self.join_string.join(words if isinstance(words, str) else "".join(words) for words in found)


def read_caption(path: Path, list_captions: Mapping[str, Caption], rules: NameRules) -> Caption:
    """The caption of a picture: its .txt or .caption file, else the folder's list, else its name.

    listed: what read_lists found in the picture's folder. Raises BadDataset where nothing says anything.
    """
    for suffix in CAPTION_SUFFIXES:
        caption_file = path.with_suffix(suffix)
        if caption_file.is_file():
            return Caption(_read_nonempty_text(caption_file), CaptionSource.TEXT, caption_file)
    return list_captions.get(path.name) or Caption(caption_from_name(path, rules), CaptionSource.NAME)


def read_caption_text(path: Path) -> str:
    """What is written beside a picture, empty where nothing is; raises BadDataset for what is no text."""
    caption_file = next(
        (candidate for suffix in CAPTION_SUFFIXES if (candidate := path.with_suffix(suffix)).is_file()), None
    )
    return _read_text(caption_file).strip() if caption_file else ""


def read_caption_lists(folder: Path) -> dict[str, Caption]:
    """The captions by the name of the picture, out of the .jsonl files of a folder, such as metadata.jsonl."""
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
        raise BadDataset(f'{location} is no JSON; write {{"file_name": "cat.png", "text": "a cat"}}') from None
    fields = cast("dict[str, object]", parsed) if isinstance(parsed, dict) else {}
    name = next((fields[key] for key in LIST_FILE_FIELDS if isinstance(fields.get(key), str)), None)
    caption = next((fields[key] for key in LIST_CAPTION_FIELDS if fields.get(key)), None)
    if isinstance(caption, list):
        caption = ", ".join(map(str, cast("list[object]", caption)))
    if not isinstance(name, str) or not isinstance(caption, str) or not caption.strip():
        raise BadDataset(f'{location} lacks a file_name or a text; write {{"file_name": "cat.png", "text": "a cat"}}')
    return name.replace("\\", "/").rsplit("/", 1)[-1], caption.strip()


def _read_text(path: Path) -> str:
    if path.stat().st_size > MAX_CAPTION_BYTES:
        raise BadDataset(f"{path} is longer than {MAX_CAPTION_BYTES >> 20} MiB; split it")
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise BadDataset(f"{path} is not UTF-8 text; save the caption as UTF-8") from None
    except OSError as error:
        raise BadDataset(f"{path} cannot be read ({error.strerror}); let it be read, or remove it") from None


def _read_nonempty_text(path: Path) -> str:
    caption = _read_text(path).strip()
    if not caption:
        raise BadDataset(f"{path} is empty; write what the picture shows into it, or remove it")
    return caption


def caption_from_name(path: Path, rules: NameRules) -> str:
    """What a picture's name says; raises BadDataset for names by cameras and the like, which say nothing."""
    caption = rules.words(path.stem).strip()
    has_words = any(map(_is_meaningful, WORD.findall(caption)))
    if not has_words or CAMERA_NAME.match(path.stem) or HASH_NAME.fullmatch(path.stem):
        raise BadDataset(
            f"{path} has no caption: its name says nothing and there is no {path.stem}.txt; "
            "write what the picture shows into that file, or name the picture so"
        )
    return caption


def _is_meaningful(word: str) -> bool:
    return not MEANINGLESS_WORD.fullmatch(word) and (len(word) >= 3 or IDEOGRAM.search(word) is not None)
