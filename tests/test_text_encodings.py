"""Texts in the encodings that programs write: expected letters are those that Python's codecs wrote."""

import pytest

from velatura.text_encodings import decode_text

HOUSE, RED_HOUSE, CAFE = "a red house", "\u8d64\u3044\u5bb6", "a caf\u00e9, pr\u00e9fet \u201cx\u201d"


@pytest.mark.parametrize(
    ("data", "text", "encoding"),
    [
        (b"", "", ""),
        (HOUSE.encode(), HOUSE, ""),
        (RED_HOUSE.encode("utf-8-sig"), RED_HOUSE, ""),
        (b"a\x00red\x00house", "a\x00red\x00house", ""),
        (b"cat\x00", "cat\x00", ""),
        (HOUSE.encode("utf-16"), HOUSE, "UTF-16"),
        (HOUSE.encode("utf-32"), HOUSE, "UTF-32"),
        (b"\xfe\xff" + RED_HOUSE.encode("utf-16-be"), RED_HOUSE, "UTF-16"),
        (HOUSE.encode("utf-16-le"), HOUSE, "UTF-16"),
        (HOUSE.encode("utf-16-be"), HOUSE, "UTF-16"),
        (HOUSE.encode("utf-16")[:-1], "a red hous\ufffd", "UTF-16"),
        (CAFE.encode("cp1252"), CAFE, "Windows-1252"),
        (
            "M\u00fcller, \u00c4rger, na\u00efve".encode("latin-1"),
            "M\u00fcller, \u00c4rger, na\u00efve",
            "Windows-1252",
        ),
        (b"\x81 is no letter of Windows-1252", "\x81 is no letter of Windows-1252", "Latin-1"),
        (RED_HOUSE.encode("shift_jis"), RED_HOUSE, "Shift-JIS"),
        ("\u8d64".encode("shift_jis"), "\u8d64", "Shift-JIS"),
        (RED_HOUSE.encode("euc_jp"), RED_HOUSE, "EUC-JP"),
        (b"a \xc0\xaf house", "a \ufffd\ufffd house", "damaged UTF-8"),  # overlong
        (b"a \xed\xa0\x80 house", "a \ufffd house", "damaged UTF-8"),  # half of a pair
        (b"a \xed\xa0\xbd\xed\xb8\x80", "a \U0001f600", "damaged UTF-8"),  # both halves, as Java writes an emoji
        ((RED_HOUSE * 5).encode()[:-1], (RED_HOUSE * 5)[:-1] + "\ufffd", "damaged UTF-8"),
    ],
)
def test_a_text_is_decoded_as_it_was_written(data, text, encoding):
    assert decode_text(data) == (text, encoding)


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\0\x10JFIF", b"\x80\x02}q\x00.", b"\xe9\x01"])
def test_what_is_no_text_is_refused(data):
    with pytest.raises(ValueError, match="not a text"):
        decode_text(data)
