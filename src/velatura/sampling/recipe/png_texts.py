"""Texts in the chunks of a PNG that Pillow reads wrongly, or leaves out, without a warning."""

import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from velatura import text_encodings
from velatura.card import printable_text
from velatura.errors import warn
from velatura.png_files import PNG_TEXT_CHUNKS, png_chunks, split_png_text

MAX_KEY_BYTES = 79  # by the standard
MAX_TEXTS = 1000  # of which A1111 writes one, and ComfyUI two
MAX_TEXT_BYTES = 2**23  # of all texts, in the file and grown
MAX_SHOWN_KEYS, MAX_SHOWN_CHARACTERS = 3, 40


class PngText(NamedTuple):
    """A text of a PNG: its key and its bytes, None if they cannot be decompressed, and whether they should be UTF-8."""

    key: str
    data: bytes | None
    is_utf8: bool


def check_png_texts(path: Path) -> dict[str, str]:
    """Warn of odd texts in a PNG, and return those that Pillow leaves out because they are not UTF-8.

    Args:
        path: A PNG that Pillow opens.
    """
    texts = list(islice(_read_texts(path), MAX_TEXTS + 1))
    values: dict[str, set[bytes | None]] = {}
    for text in texts:
        values.setdefault(text.key, set()).add(text.data)
    damaged = [text.key for text in texts if text.data is None]
    not_utf8 = {
        text.key: text.data
        for text in texts
        if text.is_utf8 and text.data is not None and not text_encodings.is_utf8(text.data)
    }
    problems = {
        "that differ: the last of them is read": [key for key, found in values.items() if len(found) > 1],
        "that are damaged, and are left out": damaged,
        "that are not UTF-8, as they should be: their letters may be wrong": list(not_utf8),
        f"whose names have 0 or more than {MAX_KEY_BYTES} bytes, which PNG forbids": [
            key for key in values if not 0 < len(key) <= MAX_KEY_BYTES
        ],
    }
    for problem, keys in problems.items():
        if keys:
            warn(f"{path} has texts ({_list_keys(keys)}) {problem}")
    if len(texts) > MAX_TEXTS:
        warn(f"{path} has more than {MAX_TEXTS:,} texts, and programs write a few: the others are not checked")
    return {key: _decode(data) for key, data in not_utf8.items()}


def _read_texts(path: Path) -> Iterator[PngText]:
    """Yield the texts of a PNG until they take more than MAX_TEXT_BYTES together, of which it warns."""
    budget = MAX_TEXT_BYTES
    with path.open("rb") as file:
        for kind, length in png_chunks(file):
            if kind not in PNG_TEXT_CHUNKS:
                continue
            budget -= length
            text = _parse_text(kind, file.read(length), budget) if budget >= 0 else None
            if text is None:
                warn(
                    f"{path} has more than {MAX_TEXT_BYTES >> 20} MiB of texts: those behind them are not checked, and "
                    "may not be read"
                )
                return
            budget -= len(text.data or b"")
            yield text


def _parse_text(kind: bytes, body: bytes, max_bytes: int) -> PngText | None:
    """Return the text in a chunk, None if it grows to more bytes than are left."""
    key, data, is_compressed = split_png_text(kind, body)
    name, is_utf8 = key.decode("latin-1"), kind == b"iTXt"
    if not is_compressed:
        return PngText(name, data, is_utf8)
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(data, max_bytes + 1)
    except zlib.error:
        return PngText(name, None, is_utf8)
    return PngText(name, inflated, is_utf8) if len(inflated) <= max_bytes else None


def _decode(data: bytes) -> str:
    try:
        return text_encodings.decode_text(data).text
    except ValueError:
        return data.decode("utf-8", "replace")


def _list_keys(keys: list[str]) -> str:
    shown = ", ".join(repr(printable_text(key)[:MAX_SHOWN_CHARACTERS]) for key in keys[:MAX_SHOWN_KEYS])
    return f"{shown} and others" if len(keys) > MAX_SHOWN_KEYS else shown
