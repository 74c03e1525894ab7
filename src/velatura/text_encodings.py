"""Decode texts of strangers: UTF-8, as they should be, and what other programs write in its place."""

from __future__ import annotations

import re
from typing import NamedTuple

# UTF-32 before UTF-16, whose mark it begins with
BYTE_ORDER_MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
UTF8_MARK = b"\xef\xbb\xbf"
MIN_NUL_SHARE = 0.4  # of the bytes of a text in UTF-16 without a mark: half of them in English
BINARY_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"PK\3\4", b"%PDF")
CONTROL_BYTE = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # not tabs, line breaks, escape
# What encoders write that are not strict: more bytes than needed, and halves of pairs of UTF-16
LOOSE_UTF8 = re.compile(
    rb"[\xc0\xc1][\x80-\xbf] | \xe0[\x80-\x9f][\x80-\xbf] | \xf0[\x80-\x8f][\x80-\xbf]{2} | \xed[\xa0-\xbf][\x80-\xbf]",
    re.VERBOSE,
)
LETTERS_OF_SEVERAL_BYTES = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
MIN_PROPER_SHARE = 0.8  # of the letters beyond ASCII of a text in UTF-8 that is damaged
KANA = re.compile("[\u3041-\u30fa]")
ONLY_JAPANESE = re.compile("[\\s\u3000-\u30ff\u4e00-\u9fff\uff01-\uff5e]+")
JAPANESE_ENCODINGS = {"shift_jis": "Shift-JIS", "euc_jp": "EUC-JP"}
WESTERN_ENCODINGS = {"cp1252": "Windows-1252", "latin-1": "Latin-1"}


class DecodedText(NamedTuple):
    """A text and the encoding that it was read in, in words; "" for proper UTF-8."""

    text: str
    encoding: str = ""


def decode_text(data: bytes) -> DecodedText:
    """Decode a text in any usual encoding.

    A byte order mark counts, then what is proper UTF-8. The encoding of any other text is guessed: Japanese is found
    by its kana, all else is read as Windows-1252. Bytes that are not letters become U+FFFD.

    Args:
        data: The bytes of a text.

    Raises:
        ValueError: It is not a text, but a picture or the like.
    """
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return DecodedText(data.decode(encoding, "replace"), encoding.upper())
    data = data.removeprefix(UTF8_MARK)
    if encoding := _guess_utf16(data):
        return DecodedText(data.decode(encoding, "replace"), "UTF-16")
    try:
        return DecodedText(data.decode("utf-8"))
    except UnicodeDecodeError:
        pass
    if data.startswith(BINARY_SIGNATURES) or CONTROL_BYTE.search(data):
        raise ValueError("it is not a text")
    if _is_damaged_utf8(data):
        text = data.decode("utf-8", "surrogatepass" if _has_only_pairs(data) else "replace")
        return DecodedText(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), "damaged UTF-8")
    for encoding, name in JAPANESE_ENCODINGS.items():
        text = _try_decoding(data, encoding)
        # Chinese texts are often valid EUC-JP, without kana
        if text is not None and (KANA.search(text) or (encoding == "shift_jis" and ONLY_JAPANESE.fullmatch(text))):
            return DecodedText(text, name)
    decoded = ((_try_decoding(data, encoding), name) for encoding, name in WESTERN_ENCODINGS.items())
    return next(DecodedText(text, name) for text, name in decoded if text is not None)


def is_utf8(data: bytes) -> bool:
    """Return True for bytes that are proper UTF-8."""
    return _try_decoding(data, "utf-8") is not None


def _guess_utf16(data: bytes) -> str:
    """Return the encoding of a text in UTF-16 without a mark: one byte of most letters is NUL."""
    nul_counts = data[::2].count(0), data[1::2].count(0)
    if min(nul_counts) or max(nul_counts) < max(2, MIN_NUL_SHARE * len(data)):
        return ""
    return "utf-16-be" if nul_counts[0] else "utf-16-le"


def _is_damaged_utf8(data: bytes) -> bool:
    """Return True for a text in UTF-8 with a few bytes that are none, or by an encoder that is not strict."""
    loose_count = len(LOOSE_UTF8.findall(data))
    rest = LOOSE_UTF8.sub(b"", data)
    proper_count = len(LETTERS_OF_SEVERAL_BYTES.findall(rest))
    stray_count = sum(byte >= 0x80 for byte in LETTERS_OF_SEVERAL_BYTES.sub(b"", rest))
    if not stray_count:
        return loose_count > 0
    return proper_count >= MIN_PROPER_SHARE * (proper_count + stray_count)


def _has_only_pairs(data: bytes) -> bool:
    """Return True if halves of pairs are all that keeps a text from being UTF-8, as some programs in Java write it."""
    return is_utf8(re.sub(rb"\xed[\xa0-\xbf][\x80-\xbf]", b"", data))


def _try_decoding(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None
