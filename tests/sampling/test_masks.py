import numpy as np
import pytest
from PIL import Image

from velatura.errors import BadRecipe
from velatura.sampling.images import read_image, resize_image
from velatura.sampling.masks import (
    blur_mask,
    crop_box,
    fill_masked,
    latent_mask,
    paste_part,
    pixel_mask,
    read_mask,
)
from velatura.sampling.recipe.sizes import Resolution


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def square_mask(size, box):
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


@pytest.mark.parametrize("fit", ["stretch", "crop", "fill"])
@pytest.mark.parametrize("size", [Resolution(64, 64), Resolution(96, 32), Resolution(30, 50)])
def test_an_image_is_brought_to_the_size(fit, size):
    assert resize_image(picture(48, 40), size, fit).size == size


def test_filling_draws_out_the_edges():
    image = Image.new("RGB", (10, 20), (255, 0, 0))
    image.paste((0, 0, 255), (5, 0, 10, 20))
    wide = resize_image(image, Resolution(40, 20), "fill")
    assert wide.getpixel((0, 3)) == (255, 0, 0)
    assert wide.getpixel((39, 3)) == (0, 0, 255)


def test_the_opaque_part_of_a_transparent_mask_is_white():
    mask = Image.new("RGBA", (4, 1), (0, 0, 0, 0))
    mask.putpixel((1, 0), (0, 0, 0, 255))
    assert list(read_mask(mask).tobytes()) == [0, 255, 0, 0]
    assert list(read_mask(mask, invert=True).tobytes()) == [255, 0, 255, 255]


def test_a_blurred_edge_follows_the_normal_distribution():
    """Half a plane blurred by sigma is the normal distribution's integral: 0.8413 at one sigma."""
    soft = blur_mask(square_mask((64, 64), (0, 0, 32, 64)), 4)
    row = np.asarray(soft)[32].astype(float) / 255
    assert row[31] + row[32] == pytest.approx(1, abs=0.01)
    assert row[27:29].mean() == pytest.approx(0.8413, abs=0.01)


def test_a_blur_wider_than_the_mask_is_no_error():
    assert blur_mask(square_mask((8, 8), (2, 2, 4, 4)), 30).size == (8, 8)


def test_a_latent_is_painted_anew_or_stays():
    mask = latent_mask(square_mask((64, 32), (0, 0, 32, 32)), Resolution(8, 4))
    assert mask.shape == (1, 4, 8)
    assert mask[0, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_shades_of_a_mask_are_rounded_or_kept():
    mask = Image.new("L", (64, 32), 51)
    mask.paste(204, (0, 0, 32, 32))
    for scaled, size in ((latent_mask, Resolution(8, 4)), (pixel_mask, Resolution(64, 32))):
        assert set(scaled(mask, size).unique().tolist()) == {0, 1}
        kept = scaled(mask, size, is_rounded=False).reshape(size.height, size.width)
        assert kept[0, 0].item() == pytest.approx(0.8)
        assert kept[0, -1].item() == pytest.approx(0.2)


def test_what_is_masked_takes_the_colour_around_it():
    image = Image.new("RGB", (64, 64), (200, 40, 10))
    image.paste((0, 0, 0), (20, 20, 40, 40))
    done = np.asarray(fill_masked(image, square_mask((64, 64), (18, 18, 42, 42))))
    assert np.abs(done.astype(int) - (200, 40, 10)).max() <= 1


def test_what_is_not_masked_stays_when_the_rest_is_filled():
    image, mask = picture(33, 47), square_mask((33, 47), (5, 5, 20, 20))
    kept = np.asarray(mask) == 0
    assert (np.asarray(fill_masked(image, mask))[kept] == np.asarray(image)[kept]).all()


@pytest.mark.parametrize(
    ("box", "padding", "size", "expected"),
    [
        ((20, 20, 40, 40), 4, Resolution(64, 64), (16, 16, 44, 44)),
        ((20, 20, 40, 30), 0, Resolution(64, 64), (20, 15, 40, 35)),  # as high as it is wide, around the middle
        ((0, 20, 20, 30), 5, Resolution(64, 64), (0, 12, 25, 37)),  # padding ends at the edge
        ((0, 0, 100, 10), 0, Resolution(64, 128), (0, 0, 100, 80)),  # no higher than the picture
    ],
)
def test_only_the_masked_part_is_cut_out_in_the_shape_of_the_picture(box, padding, size, expected):
    assert crop_box(square_mask((100, 80), box), padding, size) == expected


def test_a_black_mask_is_refused():
    with pytest.raises(BadRecipe, match="completely black"):
        crop_box(Image.new("L", (10, 10), 0), 0, Resolution(8, 8))


def test_a_part_is_pasted_where_the_mask_is_white_only():
    whole, part = Image.new("RGB", (20, 20), (0, 0, 0)), Image.new("RGB", (64, 64), (255, 255, 255))
    done = np.asarray(paste_part(whole, part, (5, 5, 15, 15), square_mask((20, 20), (8, 8, 12, 12))))
    assert done.sum() == 4 * 4 * 3 * 255


def test_an_alpha_channel_that_is_opaque_all_over_is_no_mask():
    mask = square_mask((8, 8), (2, 2, 4, 4))
    for mode in ("RGBA", "LA", "L", "RGB", "P", "1"):
        assert read_mask(mask.convert(mode)).getbbox() == (2, 2, 4, 4)


def test_images_of_16_bits_are_brought_down_to_8():
    image = Image.fromarray(np.array([[0, 128 * 257, 65535]], dtype=np.uint16))
    for wide in (image, image.convert("I")):
        assert list(read_mask(wide).tobytes()) == [0, 128, 255]
        assert list(read_image(wide).tobytes()) == [0, 0, 0, 128, 128, 128, 255, 255, 255]


def test_what_is_transparent_in_an_image_is_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 255, 255))
    assert list(read_image(image).tobytes()) == [255, 255, 255, 0, 0, 255]


def test_an_image_in_colours_that_nothing_converts_is_refused():
    with pytest.raises(BadRecipe, match="LAB cannot be converted to L"):
        read_mask(Image.new("LAB", (2, 2)))


@pytest.mark.parametrize("size", [(1, 1000), (3000, 1)])
def test_a_line_of_pixels_fills_a_picture(size):
    assert resize_image(Image.new("RGB", size, "red"), Resolution(64, 48), "fill").getcolors() == [
        (64 * 48, (255, 0, 0))
    ]
