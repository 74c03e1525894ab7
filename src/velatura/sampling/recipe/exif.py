"""Text in the EXIF tag UserComment: decoding whatever programs write there, and encoding ours as A1111 does.

The tag holds the name of a character set in 8 bytes, and the text behind it. Programs disagree about the byte order of
`UNICODE`, leave the name out, name another set than they use, and pad with zeros.
"""

import re
import struct
import unicodedata
from collections.abc import Iterable, Iterator

EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
UNICODE_PREFIX = b"UNICODE\0"
PREFIX_LENGTH = 8
PREFIX_ENCODINGS = {
    b"UNICODE": (),  # see WIDE_ENCODINGS
    b"ASCII": ("utf-8", "cp1252", "latin-1"),
    b"JIS": ("iso2022_jp", "utf-8", "shift_jis", "euc_jp"),
    b"": ("utf-8", "shift_jis", "cp1252", "latin-1"),  # undefined, or no prefix at all
}
# Names that the standard does not have: a word with padding
ODD_NAME = re.compile(rb"[A-Za-z][\w.-]{2,6}(?:\0+|[\0 ]{2,})")
CONTROL_BYTES = frozenset({*range(1, 9), *range(14, 32)})
BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xfe\xff": "utf-16-be", b"\xff\xfe": "utf-16-le"}
WIDE_ENCODINGS = {">": ("utf-16-be", "utf-16-le"), "<": ("utf-16-le", "utf-16-be")}
SAMPLE_LENGTH = 2_000  # characters that decide on the encoding
MIN_BYTES_FOR_UTF8 = 16

# How unlikely a character is in a prompt: letters, marks and signs that people write, others, and what nobody writes
ASCII_COST, SCRIPT_COST, OTHER_COST, JUNK_COST = 0, 1, 4, 20
SCRIPT_RANGES = (
    (0x00A0, 0x052F),  # Latin, Greek, Cyrillic
    (0x0590, 0x0E7F),  # Hebrew, Arabic, scripts of India, Thai
    (0x2010, 0x203F),  # dashes, quotation marks, dots
    (0x3000, 0x30FF),  # marks of Chinese and Japanese, kana
    (0x4E00, 0x9FFF),  # Chinese characters
    (0xAC00, 0xD7A3),  # Hangul
    (0xFF01, 0xFF9F),  # full width
    (0x1F300, 0x1FAFF),  # emoji
)
JUNK_CATEGORIES = {"Cc", "Cn", "Co", "Cs"}

TIFF_UNDEFINED, TIFF_LONG = 7, 4


def decode_user_comment(value: bytes, byte_order: str = ">") -> str:
    """Decode the text of a UserComment.

    A byte order mark decides on the byte order. Without one, it is the order that gives the more plausible text: ASCII
    first, then characters of scripts that people write; if both are equally plausible, the order of the file.

    A name that the standard does not have is left out, see `odd_comment_name`.

    Args:
        value: The bytes of the tag.
        byte_order: The order of the EXIF data, ">" or "<".

    Returns:
        The text without padding; bytes that are not text in any encoding are replaced.
    """
    name, body = _split_prefix(value)
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if body.startswith(mark):
            return _clean(body[len(mark) :].decode(encoding, "replace"))
    if name == b"UNICODE" or b"\0" in body.strip(b"\0"):
        # a short text in UTF-16 may happen to be valid ASCII
        may_be_utf8 = len(body) >= MIN_BYTES_FOR_UTF8 or not body.isascii()
        return _most_plausible(body, (*WIDE_ENCODINGS[byte_order], *(["utf-8"] if may_be_utf8 else [])))
    body = body.strip(b"\0")
    texts = _decode(body, PREFIX_ENCODINGS[name])
    return next((_clean(text) for text in texts), body.decode("utf-8", "replace"))


def odd_comment_name(value: bytes) -> str:
    """Return the name of the character set in a UserComment if the standard does not have it, else an empty text.

    Args:
        value: The bytes of the tag.
    """
    prefix = value[:PREFIX_LENGTH]
    return repr(prefix.rstrip(b"\0 "))[2:-1] if _is_odd_name(prefix) else ""


def exif_with_comment(text: str) -> bytes:
    """Return EXIF data that holds a text as UserComment: of type UNDEFINED, in UTF-16 with the big end first, as A1111.

    Pillow would write the type BYTE, which A1111 and piexif do not read.

    Args:
        text: The text.
    """
    comment = UNICODE_PREFIX + text.encode("utf-16-be")
    header_size, directory_size = 8, 2 + 12 + 4
    exif_offset = header_size + directory_size
    comment_offset = exif_offset + directory_size
    header = b"MM" + struct.pack(">HL", 42, header_size)
    directory = struct.pack(">HHHLLL", 1, EXIF_IFD, TIFF_LONG, 1, exif_offset, 0)
    exif_directory = struct.pack(">HHHLLL", 1, USER_COMMENT, TIFF_UNDEFINED, len(comment), comment_offset, 0)
    return b"Exif\0\0" + header + directory + exif_directory + comment


def _split_prefix(value: bytes) -> tuple[bytes, bytes]:
    """Split off the name of the character set, which is empty if it is undefined or missing."""
    prefix, body = value[:PREFIX_LENGTH], value[PREFIX_LENGTH:]
    if _is_name(prefix):
        return prefix.strip(b"\0 ").upper(), body
    return b"", body if _is_odd_name(prefix) else value


def _is_name(prefix: bytes) -> bool:
    """Return True for the name of a character set that the standard has, all zeros among them."""
    name = prefix.strip(b"\0 ").upper()
    return name in PREFIX_ENCODINGS and (name != b"" or prefix == bytes(PREFIX_LENGTH))


def _is_odd_name(prefix: bytes) -> bool:
    """Return True for a name that the standard does not have: a word with padding, or control bytes.

    Text in UTF-16 without a name is neither. Its control bytes are the high bytes of a script, as 04 of Cyrillic: they
    are all the same, or all are the first or all the second bytes of characters.
    """
    if _is_name(prefix) or len(prefix) < PREFIX_LENGTH:
        return False
    if ODD_NAME.fullmatch(prefix):
        return True
    sides = (prefix[::2], prefix[1::2])
    return all(0 < byte < 128 for byte in prefix) and all(
        CONTROL_BYTES.intersection(side) and len(set(side)) > 1 for side in sides
    )


def _decode(body: bytes, encodings: Iterable[str]) -> Iterator[str]:
    """Yield the text by every encoding that can decode it, and by UTF-16 in any case."""
    for encoding in encodings:
        try:
            if encoding.startswith("utf-16"):
                yield body[: len(body) // 2 * 2].decode(encoding, "replace")
            else:
                yield body.strip(b"\0").decode(encoding)
        except UnicodeDecodeError:
            continue


def _most_plausible(body: bytes, encodings: Iterable[str]) -> str:
    return _clean(min(_decode(body, encodings), key=_implausibility, default=""))  # the first of equal ones


def _implausibility(text: str) -> float:
    """Return the mean cost of a text's characters, and a fraction for how many blocks of 256 they come from."""
    sample = text.strip("\0")[:SAMPLE_LENGTH]
    if not sample:
        return JUNK_COST
    blocks = len({ord(character) >> 8 for character in sample})
    return (sum(map(_character_cost, sample)) + blocks / 256) / len(sample)


def _character_cost(character: str) -> int:
    code = ord(character)
    if 0x20 <= code < 0x7F or character in "\n\r\t":
        return ASCII_COST
    if unicodedata.category(character) in JUNK_CATEGORIES:
        return JUNK_COST
    return SCRIPT_COST if any(first <= code <= last for first, last in SCRIPT_RANGES) else OTHER_COST


def _clean(text: str) -> str:
    """Remove the padding."""
    return text.replace("\0", "").strip()
