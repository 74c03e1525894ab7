"""Captions of pictures: from a text file, from a .jsonl list of the folder, or from the file name."""

import csv
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from io import StringIO
from pathlib import Path
from typing import cast

from velatura.card import has_control_characters, printable_text
from velatura.datasets.name_captions import NameRules, caption_from_name
from velatura.datasets.pictures import PICTURE_SUFFIXES
from velatura.errors import BadDataset, choose_number, quantity, warn, warn_of_picture
from velatura.files import parse_json
from velatura.text_encodings import decode_text

CAPTION_SUFFIXES = (".txt", ".caption")
MAX_SHOWN_LENGTH = 80  # characters of a stranger's text in a message
MAX_CAPTION_LENGTH = 10_000  # characters of a caption that a person may have written
MAX_CAPTION_BYTES = 2**26  # a list for a million pictures

# Field names of a list in Hugging Face datasets, kohya's tools and SimpleTuner
LIST_FILE_FIELDS = ("file_name", "file", "image", "image_path", "path")
LIST_CAPTION_FIELDS = ("text", "caption", "prompt", "tags")
FINETUNING_TEXTS = ("caption", "tags")  # of kohya's meta_cap.json and meta_lat.json
FINETUNING_FIELDS = (*FINETUNING_TEXTS, "train_resolution")  # the size follows from the picture and the plan

# The line of settings of A1111's generation data, which it saves as cat.txt beside pictures; and its <lora:name:1>
INFOTEXT_FIELDS = re.compile(r"Steps: \d+, (.*, )?(Sampler|Seed|CFG scale|Size|Model): ")
EXTRA_NETWORK_TAG = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>")


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
    is_infotext: bool = False  # the file holds A1111's generation data, and the caption is its prompt
    unread: tuple[str, ...] = ()  # fields beside the caption, which have no effect


def read_caption(path: Path, list_captions: Mapping[str, Caption], rules: NameRules) -> Caption:
    """Return the caption of a picture from its .txt or .caption file, else from the folder's list, else from its name.

    Of A1111's generation data, saved as cat.txt, the prompt is the caption.

    Args:
        path: Picture file.
        list_captions: Result of `read_caption_lists` for the picture's folder.
        rules: Make a caption from the name.

    An empty text file is a caption without words. Texts that are not UTF-8 are warned of.

    Raises:
        BadDataset: The picture has no caption, or its file is not a text.
    """
    caption_file = find_caption_file(path)
    if caption_file:
        text = _decode_text(caption_file).strip()
        prompt = _prompt_of_infotext(text)
        if prompt == "":
            raise BadDataset(f"{caption_file} holds settings of a picture, but no prompt: write what the picture shows")
        return Caption(prompt or text, CaptionSource.TEXT, caption_file, is_infotext=prompt is not None)
    names = (name for name in _spellings(path.name) if name in list_captions)
    name = next(names, None)
    if name:
        return list_captions[name]
    return _read_json_caption(path) or Caption(caption_from_name(path, rules), CaptionSource.NAME)


def find_caption_file(path: Path) -> Path | None:
    """Return the text file of a picture, or None.

    It is cat.txt or cat.caption, else cat.png.txt, in capital letters too. The name may be composed or decomposed
    Unicode: archives made on a Mac hold the one for a picture and the other for its text.
    """
    stems = list(dict.fromkeys([*_spellings(path.stem), *_spellings(path.name)]))
    suffixes = [
        *CAPTION_SUFFIXES,
        *(changed for suffix in CAPTION_SUFFIXES for changed in (suffix.upper(), suffix.title())),
    ]
    candidates = (path.with_name(stem + suffix) for stem in stems for suffix in suffixes)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def read_caption_text(path: Path) -> str:
    """Return the text of a picture's .txt or .caption file, or an empty string if there is none.

    Raises:
        BadDataset: The file is not UTF-8 text.
    """
    caption_file = find_caption_file(path)
    return _read_text(caption_file).strip() if caption_file else ""


def read_caption_lists(folder: Path) -> dict[str, Caption]:
    """Return the captions in the lists of a folder, by the name of the picture.

    Lists are .jsonl files, such as metadata.jsonl, .csv files with a column of file names and one of captions, and the
    metadata of kohya's fine-tuning, such as meta_cap.json.

    Raises:
        BadDataset: A line or a file is not JSON, or a line lacks a file name or a caption.
    """
    captions = dict[str, Caption]()
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(_read_text(path).splitlines(), 1):
            if line.strip():
                name, caption = _parse_list_line(line, path, number)
                _add_caption(captions, name, caption)
    for path in sorted(folder.glob("*.csv")):
        for name, text in _parse_csv_list(path):
            _add_caption(captions, name, Caption(text, CaptionSource.LIST, path))
    for name, caption in _read_finetuning_metadata(folder):
        captions.setdefault(name, caption)
    return captions


def _read_finetuning_metadata(folder: Path) -> Iterator[tuple[str, Caption]]:
    """Yield captions from metadata of kohya's fine-tuning, {picture: {"caption": ..., "tags": ...}} in meta_cap.json.

    Its scripts write a new file at each step, so of several only the last one is read.
    """
    pictures = {path.stem: path.name for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES}
    own_stems = {*pictures, *pictures.values()}
    candidates = (path for path in sorted(folder.glob("*.json")) if path.stem not in own_stems)
    found = {path: entries for path in candidates if (entries := _parse_finetuning_metadata(path)) is not None}
    if not found:
        return
    path = max(found, key=_finetuning_step)
    if len(found) > 1:
        warn(f"{folder} holds {len(found)} files of metadata of kohya's scripts, and only {path.name} is read")
    for key, fields in found[path].items():
        name = key.replace("\\", "/").rsplit("/", 1)[-1]
        name = next((pictures[stem] for stem in _spellings(name) if stem in pictures), name)
        caption = _finetuning_caption(fields)
        if caption and not _is_elsewhere(key, folder):
            unread = tuple(field for field in fields if field not in FINETUNING_FIELDS)
            yield name, Caption(caption, CaptionSource.LIST, path, unread=unread)


def _parse_finetuning_metadata(path: Path) -> Mapping[str, Mapping[str, object]] | None:
    """Return the entries of a file of metadata, or None, with a warning if its name says that it is one."""
    is_named_so = path.stem.startswith("meta")
    try:
        parsed = parse_json(_read_text(path))
    except (ValueError, RecursionError) as error:
        if is_named_so:
            raise BadDataset(f"{path} is not JSON ({error}): write it again, or remove it") from None
        return None
    entries = cast("dict[str, object]", parsed) if isinstance(parsed, dict) else {}
    fields_by_key = {
        key: cast("dict[str, object]", fields) for key, fields in entries.items() if isinstance(fields, dict)
    }
    has_captions = any(map(_finetuning_caption, fields_by_key.values()))
    if len(fields_by_key) == len(entries) and has_captions:
        return fields_by_key
    if is_named_so:
        warn(f"{path} holds no captions by pictures ({', '.join(FINETUNING_TEXTS)}), so it is not read")
    return None


def _finetuning_step(path: Path) -> tuple[bool, bool, str]:
    """Order files of metadata as kohya's scripts write them: captions, cleaned captions, latents."""
    return "lat" in path.stem, "clean" in path.stem, path.stem


def _finetuning_caption(fields: Mapping[str, object]) -> str:
    """Return the caption, and behind it the tags, as kohya's trainer joins them."""
    texts = (fields.get(key) for key in FINETUNING_TEXTS)
    return ", ".join(text.strip() for text in texts if isinstance(text, str) and text.strip())


def _is_elsewhere(key: str, folder: Path) -> bool:
    """Return True for the path of a picture in another folder: its name may be that of a picture here."""
    path = Path(key)
    return path.is_absolute() and path.is_file() and path.parent.resolve() != folder.resolve()


def _add_caption(captions: dict[str, Caption], name: str, caption: Caption) -> None:
    """Add a caption from a list; of two for one picture the later counts, with a warning if they differ."""
    earlier = captions.get(name)
    if earlier is not None and earlier.text != caption.text:
        warn_of_picture(
            "two captions",
            f"{caption.file} has two captions for {name[:MAX_SHOWN_LENGTH]!r}: the later one is learned, so remove "
            "one of them",
        )
    captions[name] = caption


def _spellings(name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))))


def _prompt_of_infotext(text: str) -> str | None:
    """Return the prompt in A1111's generation data, without tags of extra networks, or None for another text."""
    lines = text.splitlines()
    fields = [index for index, line in enumerate(lines) if INFOTEXT_FIELDS.match(line)]
    if not fields:
        return None
    prompts = lines[: fields[-1]]
    negatives = [index for index, line in enumerate(prompts) if line.startswith("Negative prompt:")]
    prompt = "\n".join(prompts[: negatives[0]] if negatives else prompts)
    return EXTRA_NETWORK_TAG.sub("", prompt).strip().strip(",").strip()


def _parse_list_line(line: str, path: Path, number: int) -> tuple[str, Caption]:
    location = f"{path}, line {number}"
    try:
        parsed = parse_json(line)
    except (ValueError, RecursionError) as error:
        raise BadDataset(
            f'{location} is not JSON ({error}): write {{"file_name": "cat.png", "text": "a cat"}}'
        ) from None
    fields = cast("dict[str, object]", parsed) if isinstance(parsed, dict) else {}
    name = next((fields[key] for key in LIST_FILE_FIELDS if isinstance(fields.get(key), str)), None)
    caption = _caption_field(fields)
    if not isinstance(name, str) or caption is None:
        raise BadDataset(f'{location} lacks a file_name or a text: write {{"file_name": "cat.png", "text": "a cat"}}')
    unread = _unread_fields(fields)
    return name.replace("\\", "/").rsplit("/", 1)[-1], Caption(caption, CaptionSource.LIST, path, unread=unread)


def _unread_fields(fields: Mapping[str, object]) -> tuple[str, ...]:
    """Return the fields that are neither the picture's name nor the one that gives the caption."""
    caption_key = next((key for key in LIST_CAPTION_FIELDS if fields.get(key)), None)
    return tuple(key for key in fields if key not in {caption_key, *LIST_FILE_FIELDS})


def _parse_csv_list(path: Path) -> Iterator[tuple[str, str]]:
    reader = csv.DictReader(StringIO(_decode_text(path), newline=""), strict=True, restkey="", restval="")
    try:
        columns = reader.fieldnames or ()
        file_column = next((column for column in LIST_FILE_FIELDS if column in columns), None)
        caption_column = next((column for column in LIST_CAPTION_FIELDS if column in columns), None)
        if file_column is None or caption_column is None:
            if path.stem == "metadata" or file_column or caption_column:
                warn(f"{path} has no columns file_name and text, so no captions are taken from it")
            return
        unread = [printable_text(column) for column in columns if column not in {file_column, caption_column}]
        if unread:
            warn(f"{path} has columns that are not read ({', '.join(unread)[:MAX_SHOWN_LENGTH]}): they have no effect")
        for row in reader:
            if row.get(""):
                raise BadDataset(f"{path}, line {reader.line_num} has more texts than columns: put captions in quotes")
            if row[file_column].strip() and row[caption_column].strip():
                yield row[file_column].replace("\\", "/").rsplit("/", 1)[-1], row[caption_column].strip()
    except csv.Error as error:
        raise BadDataset(
            f'{path}, line {reader.line_num} is not CSV ({error}): write file_name,text and below cat.png,"a cat, old"'
        ) from None


def _read_json_caption(path: Path) -> Caption | None:
    """Return the caption in cat.json or cat.png.json, if there is one."""
    files = (path.with_name(name + ".json") for name in (path.stem, path.name))
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    try:
        parsed = parse_json(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise BadDataset(f'{file} is not JSON ({error}): write {{"text": "a cat"}}, or remove it') from None
    fields = cast("dict[str, object]", parsed) if isinstance(parsed, dict) else {}
    caption = _caption_field(fields)
    if caption is None:
        warn_of_picture(
            "a .json without a caption",
            f"{file} holds no caption ({', '.join(LIST_CAPTION_FIELDS)}), so the picture's name is learned: add a text",
        )
        return None
    return Caption(caption, CaptionSource.LIST, file, unread=_unread_fields(fields))


def _caption_field(fields: Mapping[str, object]) -> str | None:
    caption = next((fields[key] for key in LIST_CAPTION_FIELDS if fields.get(key)), None)
    if isinstance(caption, list):
        caption = ", ".join(map(str, cast("list[object]", caption)))
    return caption.strip() or None if isinstance(caption, str) else None


def _read_text(path: Path) -> str:
    """Return the text of a file that must be UTF-8."""
    try:
        return _join_line_ends(_read_bytes(path).decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise BadDataset(f"{path} is not UTF-8 text: save the caption as UTF-8") from None


def _decode_text(path: Path) -> str:
    """Return the text of a file in any encoding, with a warning if it is not UTF-8."""
    try:
        text, encoding = decode_text(_read_bytes(path))
    except ValueError:
        raise BadDataset(f"{path} is not a text: write what the picture shows into it, or remove it") from None
    if encoding:
        warn_of_picture(
            f"the encoding {encoding}",
            f"{path} is not UTF-8 text, and is read as {encoding}: check its letters, and save it as UTF-8",
        )
    return _join_line_ends(text)


def _join_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_CAPTION_BYTES:
            raise BadDataset(f"{path} is longer than {MAX_CAPTION_BYTES >> 20} MiB: split it")
        return path.read_bytes()
    except OSError as error:
        raise BadDataset(f"{path} cannot be read ({error.strerror}): change its permissions, or remove it") from None


def odd_texts(text: str) -> Iterator[str]:
    """Yield what a caption has that a person hardly wrote, each as a noun and what it means."""
    if has_control_characters(text):
        yield "control characters, such as terminal codes: the text encoder learns them as words, so remove them"
    if EXTRA_NETWORK_TAG.search(text):
        yield "tags such as <lora:name:1>: captions attach nothing, so the tags are learned as words"
    if len(text) > MAX_CAPTION_LENGTH:
        yield f"more than {MAX_CAPTION_LENGTH:,} characters: check that they are captions, and cut them"


def find_unread_fields(captions: Iterable[Caption]) -> Iterator[tuple[Path, str]]:
    """Yield the first file with fields that have no effect, and the names of all such fields of the folder.

    Args:
        captions: The captions of a folder.
    """
    captions = [caption for caption in captions if caption.unread]
    fields = sorted({printable_text(field)[:40] for caption in captions for field in caption.unread})
    if captions and captions[0].file is not None:
        shown = ", ".join(fields[:5]) + (", ..." if len(fields) > 5 else "")
        yield captions[0].file, f"has fields that are not read ({shown}): they have no effect"


def find_list_problems(list_captions: Mapping[str, Caption], paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Yield the file that lists pictures which are not in its folder, and what is wrong.

    Args:
        list_captions: The captions in the lists of a folder, by the name of the picture.
        paths: The pictures of the folder.
    """
    names = {unicodedata.normalize("NFC", path.name) for path in paths}
    missing = sorted(name for name in list_captions if unicodedata.normalize("NFC", name) not in names)
    file = list_captions[missing[0]].file if missing else None
    if file is not None:
        verb = choose_number(len(missing), "is", "are")
        yield file, f"lists {quantity(len(missing), 'picture')} that {verb} not in the folder, such as {missing[0]!r}"
