"""Colours of pictures: profiles by the ICC's format, values by their range."""

import struct

import numpy as np
import pytest
from PIL import Image

from velatura.datasets.pictures import open_picture, read_picture, read_upright, upright_size
from velatura.errors import BadDataset, VelaturaWarning

# Display P3's primaries adapted to D50, as in its public profile (SMPTE EG 432-1 with a white of D65)
P3_TO_XYZ = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))


def fixed(*values):
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def display_p3(description=b"Display P3"):
    """A profile of ICC.1:2001-04: a header of 128 bytes, a table of tags, primaries and sRGB's tone curve."""
    parametric = b"para\0\0\0\0\0\x03\0\0" + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    text = b"desc\0\0\0\0" + struct.pack(">I", len(description) + 1) + description + bytes(1 + 4 + 4 + 2 + 1 + 67)
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0none\0", b"wtpt": b"XYZ \0\0\0\0" + fixed(0.96420, 1, 0.82491)}
    for letter, primary in zip(b"rgb", P3_TO_XYZ, strict=True):
        tags[bytes([letter]) + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(*primary)
        tags[bytes([letter]) + b"TRC"] = parametric
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, unpadded in tags.items():
        content = unpadded + bytes(-len(unpadded) % 4)
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content
    header = struct.pack(">I", start + len(data)) + b"\0\0\0\0\x04\0\0\0mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    return header + fixed(0.96420, 1, 0.82491) + bytes(48) + table + data


# By hand: sRGB's curve, P3's primaries, the inverse of sRGB's and the curve back give 228.3, 43.6 and 44.2
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_colour_profile_is_converted_to_srgb(tmp_path, mode):
    picture = Image.new("RGB", (4, 4), (210, 63, 55)).convert(mode, palette=Image.Palette.ADAPTIVE)
    picture.save(tmp_path / "a.png", icc_profile=display_p3())
    picture = read_upright(tmp_path / "a.png")
    assert np.abs(np.subtract(picture.getpixel((2, 2)), (228, 44, 44))).max() <= 1
    picture.save(tmp_path / "b.png")
    assert read_upright(tmp_path / "b.png").getpixel((2, 2)) == picture.getpixel((2, 2))


def test_a_profile_keeps_grey_and_transparency(tmp_path):
    picture = Image.new("RGBA", (4, 4), (128, 128, 128, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    picture.save(tmp_path / "a.png", icc_profile=display_p3())
    read = read_upright(tmp_path / "a.png")
    assert read.getpixel((0, 0)) == (255, 255, 255)
    assert np.abs(np.subtract(read.getpixel((2, 2)), 128)).max() <= 1


@pytest.mark.parametrize(("mode", "profile"), [("RGB", b"no profile"), ("CMYK", display_p3())])
def test_a_profile_that_cannot_be_used_is_warned_of(tmp_path, mode, profile):
    Image.new(mode, (4, 4)).save(tmp_path / "a.tif", icc_profile=profile)
    with pytest.warns(VelaturaWarning, match="colour profile of .* cannot be used .* taken for sRGB"):
        read_upright(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (np.float32, (0, 0.5, 1), (0, 128, 255)),
        (np.float32, (0, 128, 255), (0, 128, 255)),
        (np.float32, (0, 32896, 65535), (0, 128, 255)),
        (np.int32, (0, 128, 255), (0, 128, 255)),
        (np.int32, (0, 32896, 65535), (0, 128, 255)),  # 32896 = 128 x 257
    ],
)
def test_wide_values_are_read_by_their_range(tmp_path, dtype, values, expected):
    Image.fromarray(np.array([values] * 3, dtype)).save(tmp_path / "a.tif")
    picture = read_upright(tmp_path / "a.tif")
    assert [picture.getpixel((column, 1)) for column in range(3)] == [(value,) * 3 for value in expected]


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        *((np.float32, (0, 1.7, 0.5)), (np.float32, (-1, 0, 1)), (np.float32, (0, np.nan, 1))),
        *((np.float32, (0, 1, 1e6)), (np.int32, (0, 1, 2**30)), (np.int32, (-5, 0, 200))),
    ],
)
def test_values_of_an_unknown_range_are_refused(tmp_path, dtype, values):
    Image.fromarray(np.array([values] * 3, dtype)).save(tmp_path / "a.tif")
    with pytest.raises(BadDataset, match=r"a\.tif cannot be read \(its values go from .* save it with 8 or 16 bits"):
        read_picture(tmp_path / "a.tif", 3)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_of_a_picture_is_known_before_its_pixels(tmp_path, ending, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / f"a.{ending}", exif=exif)
    with open_picture(tmp_path / f"a.{ending}") as image:
        size = upright_size(image)
    assert size == read_upright(tmp_path / f"a.{ending}").size == ((20, 30) if orientation > 4 else (30, 20))
