"""Pictures cut to size."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from velatura.datasets.crop import CropOptions, crop_folder, mirror_caption
from velatura.datasets.folder import read_dataset, read_folder
from velatura.datasets.saliency import FOCUSES, best_box, saliency_map
from velatura.errors import AlreadyExists, BadDataset, UnknownName


def thing(size, place, background="lightgrey"):
    """A picture with one red disc in it, its middle at a place given in pixels."""
    image = Image.new("RGB", size, background)
    x, y = place
    ImageDraw.Draw(image).ellipse((x - 12, y - 12, x + 12, y + 12), fill="red")
    return image


def save(folder, image, caption="a red disc", name="0.png"):
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name)
    (folder / name).with_suffix(".txt").write_text(caption)
    return folder


@pytest.mark.parametrize("place", [(20, 50), (100, 50), (150, 50), (275, 50)])
def test_what_stands_out_is_kept_wherever_it_is(place):
    image = thing((300, 100), place)
    left, top, right, bottom = best_box(image.size, (64, 64), saliency_map(image))
    assert (right - left, top, bottom) == pytest.approx((100, 0, 100))
    assert left <= place[0] - 12
    assert place[0] + 12 <= right


def test_where_nothing_stands_out_the_middle_is_kept():
    flat = Image.new("RGB", (300, 100), "teal")
    for focus in ("middle", "salient"):
        assert best_box(flat.size, (64, 64), FOCUSES[focus](flat)) == pytest.approx((100, 0, 200, 100), abs=2)


def test_a_map_is_a_share_of_the_picture_for_every_focus_that_needs_nothing():
    image = thing((100, 100), (30, 30))
    for focus in ("middle", "salient"):
        assert FOCUSES[focus](image).sum() == pytest.approx(1)


def test_a_folder_is_cut_with_its_captions(tmp_path):
    save(tmp_path / "in", thing((300, 100), (250, 50)))
    cuts = crop_folder(tmp_path / "in", tmp_path / "out", CropOptions(64))
    assert [cut.file for cut in cuts] == [tmp_path / "out" / "00000-0-0.png"]
    (example,) = read_folder(tmp_path / "out")
    assert example.caption == "a red disc"
    with Image.open(example.path) as image:
        assert image.size == (64, 64)
        reds = np.asarray(image)[..., 0].astype(int) - np.asarray(image)[..., 1]
        assert (reds > 150).sum() == pytest.approx(np.pi * (12 * 0.64) ** 2, rel=0.1)  # the whole disc
    assert cuts[0].cropped_share == pytest.approx(2 / 3)
    assert not cuts[0].is_enlarged


def test_buckets_follow_the_shape_of_each_picture(tmp_path):
    save(tmp_path / "in", thing((300, 100), (50, 50)))
    save(tmp_path / "in", thing((100, 130), (50, 50)), name="1.png")
    cuts = crop_folder(tmp_path / "in", tmp_path / "out", CropOptions(64, shape="buckets"))
    assert [cut.size for cut in cuts] == [(96, 40), (56, 72)]


def test_long_pictures_are_split_where_asked(tmp_path):
    save(tmp_path / "in", thing((100, 400), (50, 350)))
    cuts = crop_folder(tmp_path / "in", tmp_path / "out", CropOptions(64, split_below=0.5))
    # 64 x 256 wants ceil((256 - 12.8) / 51.2) = 5 pieces of 64
    assert [cut.box[1] for cut in cuts] == pytest.approx([0, 75, 150, 225, 300])
    assert [cut.file.name for cut in cuts] == [f"00000-{place}-0.png" for place in range(5)]
    assert len(crop_folder(tmp_path / "in", tmp_path / "one", CropOptions(64, split_below=0.2))) == 1


def test_mirrored_pictures_are_added_with_left_and_right_exchanged(tmp_path):
    save(tmp_path / "in", thing((100, 100), (20, 50)), "a disc on the left")
    cuts = crop_folder(tmp_path / "in", tmp_path / "out", CropOptions(64, mirrors=True))
    assert [example.caption for example in read_folder(tmp_path / "out")] == [
        "a disc on the left",
        "a disc on the right",
    ]
    one, other = (np.asarray(Image.open(cut.file)) for cut in cuts)
    assert np.array_equal(one, other[:, ::-1])
    assert mirror_caption("Left of a leftover, to the right") == "Right of a leftover, to the left"


def test_masks_transparency_and_counted_folders_go_along(tmp_path):
    image = thing((200, 100), (150, 50))
    image.putalpha(Image.new("L", image.size, 128))
    save(tmp_path / "in" / "5_discs", image)
    (tmp_path / "in" / "5_discs" / "mask").mkdir()
    mask = Image.new("L", (200, 100))
    mask.paste(255, (100, 0, 200, 100))
    mask.save(tmp_path / "in" / "5_discs" / "mask" / "0.png")
    save(tmp_path / "in" / "reg", thing((64, 64), (30, 30)), "a disc")
    crop_folder(tmp_path / "in", tmp_path / "out", CropOptions(64))
    dataset = read_dataset(tmp_path / "out")
    assert [(example.repeats, example.mask is not None) for example in dataset.examples] == [(5, True)]
    assert len(dataset.regularisation) == 1
    with Image.open(dataset.examples[0].path) as cut, Image.open(dataset.examples[0].mask) as cut_mask:
        assert cut.mode == "RGBA"
        assert cut.getchannel("A").getextrema() == (128, 128)
        assert cut_mask.size == (64, 64)
        assert cut_mask.getpixel((60, 30)) == 255


def test_pictures_are_cut_before_they_have_captions_and_names_stay_captions(tmp_path):
    (tmp_path / "in").mkdir()
    thing((64, 64), (20, 50)).save(tmp_path / "in" / "IMG_0001.png")
    thing((64, 64), (20, 50)).save(tmp_path / "in" / "a red disc.png")
    crop_folder(tmp_path / "in", tmp_path / "out", CropOptions(64))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["00000-0-IMG_0001.png", "00001-0-a red disc.png"]
    with pytest.raises(BadDataset, match=r"IMG_0001\.png has no caption"):
        read_dataset(tmp_path / "out")
    captions = [example.caption for example in read_dataset(tmp_path / "out", needs_captions=False).examples]
    assert captions == ["", "a red disc"]


def test_nothing_is_written_into_the_folder_itself_nor_over_anything(tmp_path):
    save(tmp_path / "in", thing((100, 100), (50, 50)))
    with pytest.raises(BadDataset, match=r"is inside .*choose a folder elsewhere"):
        crop_folder(tmp_path / "in", tmp_path / "in" / "out", CropOptions(64))
    save(tmp_path / "out", thing((100, 100), (50, 50)))
    with pytest.raises(AlreadyExists, match="already exists and is not empty"):
        crop_folder(tmp_path / "in", tmp_path / "out", CropOptions(64))


def test_after_an_error_nothing_is_left(tmp_path):
    save(tmp_path / "in", Image.effect_noise((64, 64), 50).convert("RGB"), name="1.png")
    (tmp_path / "in" / "1.png").write_bytes((tmp_path / "in" / "1.png").read_bytes()[:500])
    with pytest.raises(BadDataset, match="cannot be read"):
        crop_folder(tmp_path / "in", tmp_path / "out", CropOptions(64))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pixels": 100}, "cannot be cropped to 100 pixels: choose a multiple of 8"),
        ({"split_below": 2}, "split_below is 2: choose a share from 0 to 1"),
        ({"overlap": 1}, "overlap is 1: choose a share"),
    ],
)
def test_impossible_cuts_are_refused(options, reason):
    with pytest.raises(BadDataset, match=reason):
        CropOptions(**options)
    with pytest.raises(UnknownName, match="no focus is called 'face': did you mean 'faces'"):
        CropOptions(focus="face")


def test_faces_are_looked_for_where_opencv_can(tmp_path):
    cv2 = pytest.importorskip("cv2")
    image = thing((300, 100), (250, 50))
    if not hasattr(cv2, "CascadeClassifier"):
        with pytest.raises(BadDataset, match="does not contain a face detector"):
            FOCUSES["faces"](image)
        return
    assert np.array_equal(FOCUSES["faces"](image), saliency_map(image))  # a disc is no face


def test_without_opencv_faces_are_refused_with_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(BadDataset, match=r"OpenCV, which is not installed: pip install"):
        FOCUSES["faces"](Image.new("RGB", (64, 64)))
