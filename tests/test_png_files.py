"""Checks of PNG files: what Pillow writes is whole, and what is cut or changed is found."""

import zlib

import pytest
from PIL import Image

from tests.hostile.image_cases import END, SIGNATURE, chunk, header, png
from velatura.png_files import PngHeader, has_all_pixels, has_wrong_checksum


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (33, 64)])
def test_what_pillow_writes_is_whole(tmp_path, mode, size):
    path = tmp_path / "a.png"
    (Image.new("I;16", size) if mode == "I;16" else Image.new("RGB", size).convert(mode)).save(path)
    assert has_all_pixels(path)
    assert not has_wrong_checksum(path)


def test_the_size_of_interlaced_pixels_is_that_of_their_passes():
    # By hand, of 5 x 5 in grey: passes of 1 x 1, 1 x 1, 2 x 1, 1 x 2, 3 x 1, 2 x 3 and 5 x 2, a filter byte in each row
    assert PngHeader(5, 5, 8, 0, is_interlaced=True).byte_count == 2 + 2 + 3 + 4 + 4 + 9 + 12
    assert PngHeader(5, 5, 8, 0, is_interlaced=False).byte_count == 30
    assert PngHeader(1, 1, 8, 2, is_interlaced=True).byte_count == 4


@pytest.mark.parametrize("rows", [0, 1, 23])
def test_pixels_that_end_early_are_found(tmp_path, rows):
    pixels = zlib.compress(bytes(97) * rows)  # rows of 32 pixels in RGB, and their filter
    data = SIGNATURE + header(32, 24) + chunk(b"IDAT", pixels[:3]) + chunk(b"IDAT", pixels[3:]) + END
    (tmp_path / "a.png").write_bytes(data)
    assert not has_all_pixels(tmp_path / "a.png")


def test_a_changed_byte_of_any_chunk_is_found(tmp_path):
    path, data = tmp_path / "a.png", bytearray(png(chunk(b"tEXt", b"a\0b")))
    for position in (20, 45, len(data) - 20, len(data) - 2):
        changed = bytearray(data)
        changed[position] ^= 1
        path.write_bytes(changed)
        assert has_wrong_checksum(path)


def test_pixels_that_grow_beyond_the_picture_are_not_decompressed(tmp_path):
    grown = zlib.compress(bytes(97 * 24)) + b"no data of zlib"  # rows of 32 pixels in RGB, and their filter
    bomb = chunk(b"IDAT", grown) + chunk(b"IDAT", b"no data either")
    (tmp_path / "a.png").write_bytes(SIGNATURE + header(32, 24) + bomb + END)
    assert has_all_pixels(tmp_path / "a.png")
