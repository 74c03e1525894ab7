"""Chunks of PNG about colours: written byte by byte, expected values by the PNG specification and sRGB's curve."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from velatura.datasets.pictures import read_upright
from velatura.errors import VelaturaWarning

SRGB_PRIMARIES = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
P3_PRIMARIES = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def gamma(value):
    return chunk(b"gAMA", struct.pack(">I", value))


def primaries(values):
    return chunk(b"cHRM", struct.pack(">8I", *values))


def save(path, image, *chunks):
    """Save a PNG with chunks behind its header, which has 8 + 25 bytes."""
    image.save(path)
    content = path.read_bytes()
    path.write_bytes(content[:33] + b"".join(chunks) + content[33:])


def read(path):
    """Return a pixel of a picture that is read without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_upright(path).getpixel((1, 1))


# by hand: 128 / 255 = 0.50196 of light is 0.7354 by sRGB's curve, 187.5; 0.50196 to the power of 1.8 is 0.28911 of
# light, 0.5748 by the curve, 146.6
@pytest.mark.parametrize(("stored", "expected"), [(100_000, 188), (55_556, 147), (45_455, 128), (45_000, 128)])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "LA", "RGBA"])
def test_a_gamma_is_converted_to_srgb(tmp_path, mode, stored, expected):
    save(
        tmp_path / "a.png",
        Image.new("RGB", (3, 3), (128, 128, 128)).convert(mode, palette=Image.Palette.ADAPTIVE),
        gamma(stored),
    )
    assert np.abs(np.subtract(read(tmp_path / "a.png"), expected)).max() <= 1


def test_transparency_is_no_light(tmp_path):
    save(tmp_path / "a.png", Image.new("RGBA", (3, 3), (0, 0, 0, 128)), gamma(100_000))
    assert np.abs(np.subtract(read(tmp_path / "a.png"), 127)).max() <= 1


def test_a_picture_that_is_srgb_keeps_its_values(tmp_path):
    srgb = chunk(b"sRGB", b"\0")
    cicp = chunk(b"cICP", bytes((1, 13, 0, 1)))
    for chunks in ((srgb, gamma(100_000)), (cicp, gamma(100_000)), (primaries(SRGB_PRIMARIES), gamma(45_455))):
        save(tmp_path / "a.png", Image.new("RGB", (3, 3), (128, 60, 9)), *chunks)
        assert read(tmp_path / "a.png") == (128, 60, 9)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ((chunk(b"cICP", bytes((9, 16, 0, 1))),), "cICP states colours 9 with the transfer function 16"),
        ((primaries(P3_PRIMARIES), gamma(45_455)), "cHRM states other primary colours"),
        ((gamma(0),), "gAMA states a gamma of 0"),
    ],
)
def test_other_colours_are_warned_of(tmp_path, chunks, message):
    save(tmp_path / "a.png", Image.new("RGB", (3, 3), (128, 60, 9)), *chunks)
    with pytest.warns(VelaturaWarning, match=rf"not sRGB, and are taken for it.*{message}"):
        assert read_upright(tmp_path / "a.png").getpixel((1, 1)) == (128, 60, 9)


def test_a_converted_picture_is_not_converted_once_more(tmp_path):
    save(tmp_path / "a.png", Image.new("RGB", (3, 3), (128, 128, 128)), gamma(100_000))
    read_upright(tmp_path / "a.png").save(tmp_path / "b.png")
    assert read(tmp_path / "b.png") == read(tmp_path / "a.png")
