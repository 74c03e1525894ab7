"""UserComment in all forms that programs write. EXIF defines type and prefix; A1111 writes UTF-16, big end first."""

import struct
import zlib

import pytest
from PIL import Image

from velatura.errors import BadRecipe
from velatura.sampling.recipe.exif import decode_user_comment, exif_with_comment, odd_comment_name
from velatura.sampling.recipe.metadata import read_image_infotext, save_with_infotext
from velatura.sampling.recipe.recipe import Recipe

TEXT = "a house\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 8x8"
TEXTS = [
    TEXT,
    "a",
    "é",
    "一只猫坐在窗台上，油画",
    "猫",
    "夜景",
    "(杰作:1.2), 一个女孩\nSteps: 20, Sampler: Euler a, Seed: 1",
    "美しい少女、夕焼け",
    "ねこ",
    "고양이",
    "кот на окне",
    "ОКНО",  # of control bytes alone in UTF-16
    "חתול",
    "😀",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le"])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_both_byte_orders_of_unicode_are_read_in_files_of_both_orders(text, encoding, byte_order):
    comment = b"UNICODE\0" + text.encode(encoding)
    assert decode_user_comment(comment, byte_order) == text
    assert decode_user_comment(comment + b"\0\0\0\0", byte_order) == text


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("prefix", [b"UNICODE\0", b"ASCII\0\0\0", bytes(8), b"", b"JIS\0\0\0\0\0"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_decides_whatever_the_prefix_says(text, prefix, encoding):
    assert decode_user_comment(prefix + text.encode(encoding)) == text


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("prefix", [b"ASCII\0\0\0", bytes(8), b"", b"JIS\0\0\0\0\0"])
def test_utf8_is_read_behind_every_prefix(text, prefix):
    assert decode_user_comment(prefix + text.encode() + b"\0\0\0") == text


@pytest.mark.parametrize("name", [b"UTF-8\0\0\0", b"LATIN1  ", b"Foo\0\0\0\0\0", b"\1\2\3\4\5\6\7\x08"])
def test_a_name_that_the_standard_does_not_have_is_left_out_and_named(name):
    assert decode_user_comment(name + TEXT.encode()) == TEXT
    assert odd_comment_name(name + TEXT.encode()) == repr(name.rstrip(b"\0 "))[2:-1]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "name", [b"UNICODE\0", b"unicode\0", b"ASCII\0\0\0", b"ASCII   ", bytes(8), b"JIS\0\0\0\0\0", b""]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-be", "utf-16-le"])
def test_names_of_the_standard_and_texts_without_one_are_not_odd(text, name, encoding):
    assert odd_comment_name(name + text.encode(encoding)) == ""


def test_utf8_that_is_called_unicode_is_read_where_it_cannot_be_utf16():
    for text in (TEXT, "一只猫坐在窗台上，油画", "кот на окне"):
        assert decode_user_comment(b"UNICODE\0" + text.encode()) == text


def test_utf16_that_is_called_ascii_is_read():
    assert decode_user_comment(b"ASCII\0\0\0" + TEXT.encode("utf-16-le")) == TEXT
    assert decode_user_comment(TEXT.encode("utf-16-be")) == TEXT


@pytest.mark.parametrize("encoding", ["iso2022_jp", "shift_jis", "euc_jp"])
def test_encodings_of_japanese_are_read_behind_their_prefix(encoding):
    text = "美しい少女、夕焼け"
    assert decode_user_comment(b"JIS\0\0\0\0\0" + text.encode(encoding)) == text


@pytest.mark.parametrize("comment", [b"", b"UNICODE", b"UNICODE\0", bytes(8), bytes(99), b"ASCII\0\0\0", b"\xff\xfe"])
def test_a_comment_of_nothing_is_empty(comment):
    assert decode_user_comment(comment) in {"", "UNICODE"}


@pytest.mark.parametrize("comment", [b"UNICODE\0a", b"UNICODE\0\xd8\x00", b"\x81\xff\x00\xfe", b"UNICODE\0a\0b"])
def test_bytes_that_are_no_text_are_read_without_an_error(comment):
    assert isinstance(decode_user_comment(comment), str)


def entries(data, offset):
    """Return the entries of a TIFF directory: type, count and the four bytes of the value, by tag."""
    [count] = struct.unpack_from(">H", data, offset)
    rows = [struct.unpack_from(">HHL4s", data, offset + 2 + 12 * i) for i in range(count)]
    return {tag: (kind, size, value) for tag, kind, size, value in rows}


def test_our_comment_is_of_the_type_that_the_specification_asks_for():
    """EXIF 2.32: UserComment (9286) is of type UNDEFINED (7), and the first 8 bytes name the character set."""
    data = exif_with_comment("häuser 😀")
    assert data[:6] == b"Exif\0\0"
    tiff = data[6:]
    assert tiff[:8] == b"MM\0*\0\0\0\x08"
    kind, count, offset = entries(tiff, 8)[0x8769]
    assert (kind, count) == (4, 1)
    kind, count, offset = entries(tiff, int.from_bytes(offset))[0x9286]
    assert kind == 7
    start = int.from_bytes(offset)
    assert tiff[start : start + count] == b"UNICODE\0" + "häuser 😀".encode("utf-16-be")


@pytest.mark.parametrize("ending", [".jpg", ".webp"])
def test_pictures_hold_the_comment_as_a1111_reads_it(tmp_path, ending):
    path = tmp_path / f"picture{ending}"
    save_with_infotext(Image.new("RGB", (8, 8)), path, TEXT)
    assert b"\x92\x86\x00\x07" in path.read_bytes()  # the tag, and its type
    assert b"UNICODE\0" + TEXT.encode("utf-16-be") in path.read_bytes()
    assert Recipe.from_image(path).prompt == "a house"


def tiff_with_comment(comment, byte_order):
    """Return EXIF data in a byte order, with a comment as its only tag."""
    head = (b"II" if byte_order == "<" else b"MM") + struct.pack(f"{byte_order}HL", 42, 8)
    directory = struct.pack(f"{byte_order}HHHLLL", 1, 0x8769, 4, 1, 26, 0)
    inner = struct.pack(f"{byte_order}HHHLLL", 1, 0x9286, 7, len(comment), 44, 0)
    return b"Exif\0\0" + head + directory + inner + comment


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("prompt", ["a house", "猫"])
def test_recipes_by_civitai_and_swarmui_in_jpeg_are_read(tmp_path, byte_order, encoding, prompt):
    """They write UTF-16 in the other order than A1111 (DiffusionToolkit's issue 253, Exiv2's issue 3271)."""
    comment = b"UNICODE\0" + TEXT.replace("a house", prompt).encode(encoding)
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.jpg", exif=tiff_with_comment(comment, byte_order))
    assert Recipe.from_image(tmp_path / "picture.jpg").prompt == prompt


@pytest.mark.parametrize("tag", [0x010E, 0x9286, 0x9C9C])
def test_other_tags_are_read_where_they_hold_settings(tmp_path, tag):
    exif = Image.Exif()
    if tag == 0x9286:
        exif.get_ifd(0x8769)[tag] = TEXT
    else:
        exif[tag] = TEXT if tag == 0x010E else TEXT.encode("utf-16-le") + b"\0\0"
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.jpg", exif=exif)
    assert read_image_infotext(tmp_path / "picture.jpg") == TEXT


@pytest.mark.parametrize("ending", [".jpg", ".gif"])
def test_comments_of_jpeg_and_gif_are_read(tmp_path, ending):
    Image.new("RGB", (8, 8)).save(tmp_path / f"picture{ending}", comment=TEXT.encode())
    assert read_image_infotext(tmp_path / f"picture{ending}") == TEXT


def test_a_comment_that_is_none_hides_no_recipe(tmp_path):
    exif = tiff_with_comment(b"ASCII\0\0\0Screenshot", "<")
    Image.new("RGB", (8, 8)).save(tmp_path / "shot.jpg", exif=exif)
    with pytest.raises(BadRecipe, match="contains no recipe, only the comment 'Screenshot'"):
        Recipe.from_image(tmp_path / "shot.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "both.jpg", exif=exif, comment=TEXT.encode())
    assert Recipe.from_image(tmp_path / "both.jpg").prompt == "a house"


def test_the_recipe_of_a_very_large_picture_is_read_without_its_pixels(tmp_path):
    def chunk(kind: bytes, body: bytes) -> bytes:  # the PNG specification, section 5.3
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    text = chunk(b"tEXt", b"parameters\0" + TEXT.encode())
    pixels = chunk(b"IDAT", b"no pixels at all")  # decoding them would fail
    path = tmp_path / "large.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + text + pixels + chunk(b"IEND", b""))
    assert read_image_infotext(path) == TEXT
