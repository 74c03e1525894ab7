"""Texts in the chunks of a PNG that Pillow reads otherwise than they are meant, without a word."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from velatura import text_encodings
from velatura.card import printable_text
from velatura.errors import warn

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_CHUNKS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
MAX_KEY_BYTES = 79  # by the standard
MAX_TEXTS = 1000  # of which A1111 writes one, and ComfyUI two
MAX_TEXT_BYTES = 2**22
CRC_BYTES = 4
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
    texts = list(_read_texts(path))
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
        warn(f"{path} has {len(texts):,} texts, far more than programs write: most of them are not read")
    return {key: _decode(data) for key, data in not_utf8.items()}


def _read_texts(path: Path) -> Iterator[PngText]:
    with path.open("rb") as file:
        if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
            return
        while len(header := file.read(8)) == 8:
            length, kind = int.from_bytes(header[:4]), header[4:]
            if kind in TEXT_CHUNKS and length <= MAX_TEXT_BYTES:
                yield _parse_text(kind, file.read(length))
                file.seek(CRC_BYTES, 1)
            else:
                file.seek(length + CRC_BYTES, 1)


def _parse_text(kind: bytes, body: bytes) -> PngText:
    key, _, rest = body.partition(b"\0")
    is_compressed = kind == b"zTXt" or (kind == b"iTXt" and rest[:1] == b"\1")
    if kind == b"zTXt":
        rest = rest[1:]
    elif kind == b"iTXt":
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # after the language and the translated key
    return PngText(key.decode("latin-1"), _inflate(rest) if is_compressed else rest, kind == b"iTXt")


def _inflate(data: bytes) -> bytes | None:
    try:
        return zlib.decompressobj().decompress(data, MAX_TEXT_BYTES)
    except zlib.error:
        return None


def _decode(data: bytes) -> str:
    try:
        return text_encodings.decode_text(data).text
    except ValueError:
        return data.decode("utf-8", "replace")


def _list_keys(keys: list[str]) -> str:
    shown = ", ".join(repr(printable_text(key)[:MAX_SHOWN_CHARACTERS]) for key in keys[:MAX_SHOWN_KEYS])
    return f"{shown} and others" if len(keys) > MAX_SHOWN_KEYS else shown
