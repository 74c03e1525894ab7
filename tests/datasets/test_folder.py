"""A folder of pictures: which files count, where captions come from, what every picture becomes."""

import re
from pathlib import Path

import pytest
from PIL import Image

from velatura.datasets.check import check_folder
from velatura.datasets.folder import Example, read_dataset, read_folder, read_picture
from velatura.errors import BadDataset, MissingCaption, VelaturaWarning


def draw(path, *, mode="RGB", size=(8, 8), color=0, **options):
    Image.new(mode, size, color).save(path, **options)
    return path


def test_a_caption_is_the_text_beside_the_picture(tmp_path):
    draw(tmp_path / "IMG_1234.png")
    (tmp_path / "IMG_1234.txt").write_text("\ufeffa red house, at night\n", "utf-8")
    assert read_folder(tmp_path) == [Example(tmp_path / "IMG_1234.png", "a red house, at night")]


# What the webui made of these names (v1.8.0, run); captions that say nothing, "x" for ---x, are errors here
@pytest.mark.parametrize(
    ("stem", "caption"),
    [
        ("0001-a cat, sitting", "a cat, sitting"),
        ("12 - dog", "- dog"),
        ("no digits", "no digits"),
        ("7seven", "seven"),
    ],
)
def test_without_a_text_the_caption_is_the_name_of_the_picture(tmp_path, stem, caption):
    draw(tmp_path / f"{stem}.png")
    assert [example.caption for example in read_folder(tmp_path)] == [caption]


@pytest.mark.parametrize(
    "stem",
    [
        *("robot12", "a red house on the beach, neon", "cat_sleeping (2)", "a photo of an old pier", "red-house-copy"),
        *("Sam at the sea", "pictures of an exhibition", "Été à la mer", "猫", "赤い家 01", "дом у моря", "scandal"),
    ],
)
def test_a_name_with_plain_words_is_a_caption_and_known_for_a_name(tmp_path, stem):
    draw(tmp_path / f"{stem}.png")
    assert read_folder(tmp_path) == [Example(tmp_path / f"{stem}.png", stem, is_caption_from_name=True)]


# Names as cameras, phones, scanners, systems and sites give them, and three that the webui would read as captions
@pytest.mark.parametrize(
    "stem",
    [
        *("IMG_1234", "IMG_E1234", "IMG-20230101-WA0001", "IMG_1234 copy", "IMG_1234-edited", "img20230101120000"),
        *(
            "0001",
            "20230101_120000",
            "DSC00042",
            "_DSC0042",
            "DSCN0042",
            "P1010012",
            "GOPR0012",
            "GX010012",
            "DJI_0012",
        ),
        *("PXL_20230101_120000000.PORTRAIT", "MVIMG_20230101_120000", "SAM_0012", "FB_IMG_1672531200000", "scan0001"),
        *(
            "photo (3)",
            "Photo 01-01-2024, 10 00 00",
            "image",
            "Untitled-1",
            "download (1)",
            "unnamed",
            "new file copy 2",
        ),
        *("Screenshot", "Screenshot 2024-01-01 at 10.00.00", "Bildschirmfoto 2024-01-01 um 10.00.00", "截屏2024-01-01"),
        *("WhatsApp Image 2024-01-01 at 10.00.00", "12345678_10203_n", "ComfyUI_00001_", "GX010012", "00012-3456789"),
        *("3f2a9c0d1b4e5f60718293a4", "3f2a9c0d-1b4e-5f60-7182-93a4deadbeef", "a8f3bcd9e", "---x", "a_b-c.d"),
        *("2022-10-01 photo", "IMG_1234 a red house"),
    ],
)
def test_a_name_that_says_nothing_is_no_caption(tmp_path, stem):
    draw(tmp_path / f"{stem}.jpg")
    with pytest.raises(MissingCaption, match=r"has no caption.*write what the picture shows") as refusal:
        read_folder(tmp_path)
    assert f"{stem}.txt" in str(refusal.value)


def test_pictures_come_by_name_and_other_files_are_left_alone(tmp_path):
    for name in ("b ball.png", "a cat.JPG", "c cup.webp"):
        draw(tmp_path / name)
    (tmp_path / "notes.md").write_text("not a picture")
    (tmp_path / "._a cat.JPG").write_bytes(b"what a Mac leaves behind")
    (tmp_path / "more.png").mkdir()
    assert [example.caption for example in read_folder(tmp_path)] == ["a cat", "b ball", "c cup"]


def test_a_missing_folder_a_file_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(BadDataset, match="does not exist: name a folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(BadDataset, match="is a file: name a folder"):
        read_folder(draw(tmp_path / "a cat.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadDataset, match=r"contains no pictures: add some \(.*\.png"):
        read_folder(tmp_path / "empty")


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n\0\0"])
def test_a_file_that_is_no_picture_is_refused_by_name(tmp_path, content):
    (tmp_path / "a cat.png").write_bytes(content)
    with pytest.raises(BadDataset, match=r"a cat\.png cannot be read .*replace it"):
        read_folder(tmp_path)


def test_a_picture_that_ends_too_early_is_refused_when_it_is_read(tmp_path):
    path = tmp_path / "a cat.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(BadDataset, match=r"a cat\.png cannot be read .*replace it"):
        read_picture(path, 8)


def test_a_caption_that_is_a_picture_is_refused(tmp_path):
    draw(tmp_path / "a cat.png")
    (tmp_path / "a cat.txt").write_bytes((tmp_path / "a cat.png").read_bytes())
    with pytest.raises(BadDataset, match=r"a cat\.txt is not a text: write what the picture shows"):
        read_folder(tmp_path)


@pytest.mark.parametrize("content", [b"", b" \n", b"\xef\xbb\xbf"])
def test_an_empty_caption_is_learned_without_words_with_a_warning(tmp_path, content):
    draw(tmp_path / "a cat.png")
    (tmp_path / "a cat.txt").write_bytes(content)
    with pytest.warns(VelaturaWarning, match=r"a cat\.txt is empty: the picture is learned without words"):
        [example] = read_folder(tmp_path)
    assert example.caption == ""


def test_empty_captions_are_counted_in_one_warning_where_captions_are_needed(tmp_path):
    for name in ("cat", "dog"):
        draw(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").touch()
    with pytest.warns(VelaturaWarning, match=r"^2 text files, such as .*cat\.txt, are empty") as caught:
        read_dataset(tmp_path)
    assert len(caught) == 1
    assert [example.caption for example in read_dataset(tmp_path, needs_captions=False).examples] == ["", ""]


def test_captions_in_other_encodings_are_read_with_one_warning_for_each_encoding(tmp_path):
    texts = {"a": "a caf\u00e9".encode("cp1252"), "b": "m\u00fcde".encode("cp1252"), "c": "a cat".encode("utf-16")}
    for name, text in texts.items():
        draw(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_bytes(text)
    with pytest.warns(VelaturaWarning) as caught:
        captions = [example.caption for example in read_folder(tmp_path)]
    assert captions == ["a caf\u00e9", "m\u00fcde", "a cat"]
    assert [str(each.message).partition("is not UTF-8")[2] for each in caught] == [
        " text, and is read as Windows-1252: check its letters, and save it as UTF-8 (and 1 more of this kind)",
        " text, and is read as UTF-16: check its letters, and save it as UTF-8",
    ]


def test_a_picture_is_cut_to_its_middle_square_and_resized(tmp_path):
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (10, 0, 30, 20))
    image.save(tmp_path / "wide.png")
    picture = read_picture(tmp_path / "wide.png", 10)
    assert picture.size == (10, 10)
    assert picture.getchannel("B").getextrema()[0] > 200


def test_a_picture_is_turned_as_its_camera_was_held(tmp_path):
    image = Image.new("RGB", (20, 20), "white")
    image.paste("black", (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "turned.png", exif=exif)
    upright = read_picture(tmp_path / "turned.png", 20)
    assert (upright.getpixel((5, 2)), upright.getpixel((5, 17))) == ((255, 255, 255), (0, 0, 0))


@pytest.mark.parametrize(
    ("mode", "color", "ending", "expected"),
    [
        ("L", 128, "png", (128, 128, 128)),
        ("1", 1, "png", (255, 255, 255)),
        ("I;16", 0x8000, "png", (128, 128, 128)),
        ("RGBA", (255, 0, 0, 0), "png", (255, 255, 255)),
        ("LA", (0, 0), "png", (255, 255, 255)),
        ("P", 0, "gif", (0, 0, 0)),
        ("CMYK", (0, 0, 0, 0), "tif", (255, 255, 255)),
    ],
)
@pytest.mark.filterwarnings("ignore:.* is fully transparent")
def test_every_mode_becomes_rgb_with_white_behind(tmp_path, mode, color, ending, expected):
    picture = read_picture(draw(tmp_path / f"one.{ending}", mode=mode, color=color), 8)
    assert (picture.mode, picture.size, picture.getpixel((4, 4))) == ("RGB", (8, 8), expected)


# Names that Pillow's own savers use, and those that phones, browsers and JPEG 2000 encoders give
@pytest.mark.parametrize(
    ("ending", "written_as"),
    [
        *(
            ("jfif", "JPEG"),
            ("JPE", "JPEG"),
            ("jif", "JPEG"),
            ("jp2", "JPEG2000"),
            ("j2k", "JPEG2000"),
            ("jpx", "JPEG2000"),
        ),
        *(
            ("ppm", "PPM"),
            ("pnm", "PPM"),
            ("tga", "TGA"),
            ("apng", "PNG"),
            ("dib", "DIB"),
            ("pcx", "PCX"),
            ("sgi", "SGI"),
        ),
        *(("qoi", "QOI"), ("mpo", "JPEG"), ("ico", "ICO"), ("dds", "DDS")),
    ],
)
def test_pictures_with_unusual_endings_are_read(tmp_path, ending, written_as):
    path = draw(tmp_path / f"a cat.{ending}", size=(16, 16), color=(200, 0, 0), format=written_as)
    assert [example.path for example in read_folder(tmp_path)] == [path]
    red, green, blue = read_picture(path, 16).getpixel((8, 8))
    assert red > 190
    assert max(green, blue) < 10


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("cat.heic", b"\0\0\0\x18ftypheic"), ("cat.JXL", b"\xff\x0a"), ("cat.CR2", b"II*\0"), ("cat.svg", b"<svg/>")),
        *(("cat.jpg_large", b"\xff\xd8\xff\xe0"), ("cat", b"\x89PNG\r\n\x1a\n"), ("cat.img", b"RIFF\0\0\0\0WEBPVP8 ")),
    ],
)
def test_pictures_that_are_not_read_are_warned_of_with_their_number(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadDataset, match=rf"no pictures that velatura reads; 1 picture, {name}, cannot be read"):
        read_folder(tmp_path)
    draw(tmp_path / "a dog.png")
    (tmp_path / "notes.md").write_text("not a picture")
    (tmp_path / "2_more").mkdir()
    (tmp_path / "2_more" / name).write_bytes(content)
    with pytest.warns(VelaturaWarning, match=rf"2 pictures, such as {name}, cannot be read and are left out: save"):
        assert len(read_folder(tmp_path)) == 1
    findings = check_folder(tmp_path, 8).findings
    assert [finding.file for finding in findings if finding.kind == "unread"] == [tmp_path, tmp_path / "2_more"]


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        (["boats/a.png"], "but its folder boats does: name that folder"),
        (["img/10_inca/a.png"], "but its folder img does: name that folder"),  # kohya's layout
        (["data/train/a.png", "data/reg/b.png"], f"but its folder {Path('data/train')} does"),
        (["boats/a.png", "cars/b.png"], "but its folders boats, cars do: name one of them"),
        (["a/1.png", "b/1.png", "c/1.png", "d/1.png"], "but its folders a, b, c and others do"),
        (["reg/a.png"], "contains no pictures: add some"),  # for regularisation only
        ([".thumbnails/a.png"], "contains no pictures: add some"),
    ],
)
def test_a_folder_one_level_too_high_points_at_the_folders_with_pictures(tmp_path, inner, words):
    for name in inner:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64)).save(path)
    with pytest.raises(BadDataset, match=re.escape(words)):
        read_dataset(tmp_path)
