"""What is found in a folder before anybody trains on it."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

import velatura
from velatura.datasets.check import Grade, check_folder
from velatura.datasets.folder import read_dataset
from velatura.datasets.measures import blur, find_similar, grey, noise, perceptual_hash
from velatura.datasets.pictures import read_upright
from velatura.errors import BadDataset


@pytest.fixture(scope="module")
def pictures():
    return [
        read_upright(path) for name in ("neon", "robot") for path in sorted(velatura.tiny_pictures(name).glob("*.png"))
    ]


def found(folder, pixels=8):
    return {(finding.file.name, finding.kind) for finding in check_folder(folder, pixels).findings}


def a_scene(pictures, place=0):
    return pictures[place].copy()


@pytest.mark.parametrize("name", ["neon", "blueprint", "robot"])
def test_bundled_pictures_are_beyond_reproach(name):
    report = check_folder(velatura.tiny_pictures(name), 64)
    assert len(report.pictures) in {8, 16}
    assert report.findings == []


def test_every_mistake_is_found_by_name(tmp_path, pictures):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "broken.txt").write_text("a broken thing")
    a_scene(pictures).save(tmp_path / "IMG_0001.png")
    a_scene(pictures, 1).save(tmp_path / "a cat.png")
    a_scene(pictures, 2).save(tmp_path / "empty.png")
    (tmp_path / "empty.txt").write_text(" ")
    a_scene(pictures, 3).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:700])
    (tmp_path / "cut.txt").write_text("cut short")
    (tmp_path / "gone.txt").write_text("no picture")
    report = check_folder(tmp_path, 64)
    kinds = {(each.file.name, each.kind, each.grade) for each in report.findings}
    assert kinds == {
        ("broken.png", "unreadable", Grade.ERROR),
        ("cut.png", "unreadable", Grade.ERROR),
        ("IMG_0001.png", "caption", Grade.ERROR),
        ("empty.png", "empty", Grade.WARNING),
        ("a cat.png", "named", Grade.NOTE),
        ("gone.txt", "stray", Grade.NOTE),
    }
    assert {each.file.name for each in report.errors} == {"broken.png", "cut.png", "IMG_0001.png"}


def test_a_caption_of_several_lines_and_what_a_list_has_beside_captions_are_found(tmp_path, pictures):
    for number, name in enumerate(("one", "two", "three")):
        a_scene(pictures, number).save(tmp_path / f"{name}.png")
    (tmp_path / "one.txt").write_text("a cat\n\na red cat\n")
    (tmp_path / "two.txt").write_text("a dog\n")
    listed = [{"file_name": "three.png", "text": "a fox", "mood": "calm"}, {"file_name": "gone.png", "text": "a hen"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, listed)))
    assert found(tmp_path) == {("one.png", "lines"), ("metadata.jsonl", "fields"), ("metadata.jsonl", "missing")}
    texts = {finding.kind: finding.text for finding in check_folder(tmp_path, 8).findings}
    assert "several lines, learned as one text" in texts["lines"]
    assert texts["fields"] == "has fields that are not read (mood): they have no effect"
    assert texts["missing"] == "lists 1 picture that is not in the folder, such as 'gone.png'"


def test_odd_files_are_told(tmp_path, pictures):
    scene = a_scene(pictures)
    exif = Image.Exif()
    exif[0x0112] = 6  # held sideways
    scene.save(tmp_path / "turned thing.png", exif=exif)
    pictures[1].convert("CMYK").save(tmp_path / "printed thing.tif")
    pictures[2].convert("RGBA").save(tmp_path / "glass thing.png")
    pictures[3].save(tmp_path / "moving thing.gif", save_all=True, append_images=[scene])
    pictures[4].resize((96, 64)).save(tmp_path / "wide thing.png")
    pictures[5].save(tmp_path / "same.png")
    pictures[6].save(tmp_path / "same.webp", lossless=True)
    (tmp_path / "same.txt").write_text("word " * 80)
    kinds = found(tmp_path, 64)
    assert {
        ("turned thing.png", "turned"),
        ("printed thing.tif", "mode"),
        ("glass thing.png", "transparent"),
        ("moving thing.gif", "animated"),
        ("wide thing.png", "cropped"),
        ("same.png", "name"),
        ("same.webp", "name"),
        ("same.png", "long"),
    } <= kinds
    assert ("wide thing.png", "small") in found(tmp_path, 65)


def test_copies_are_found_resized_recoded_and_mirrored(tmp_path, pictures):
    pictures[0].save(tmp_path / "a one.png")
    pictures[0].resize((200, 200)).save(tmp_path / "b large.png")
    pictures[0].save(tmp_path / "c recoded.jpg", quality=30)
    ImageOps.mirror(pictures[0]).save(tmp_path / "d mirrored.png")
    pictures[1].save(tmp_path / "e other.png")
    report = check_folder(tmp_path, 64)
    copies = {each.file.name: each.text for each in report.findings if each.kind == "duplicate"}
    assert copies == {
        "b large.png": "it looks like a one.png",
        "c recoded.jpg": "it looks like a one.png",
        "d mirrored.png": "it looks like the mirror image of a one.png",
    }


def test_blur_and_noise_are_told_from_what_is_sharp_and_clean(pictures):
    chance = np.random.default_rng(0)
    for picture in pictures:
        soft = picture.filter(ImageFilter.GaussianBlur(2))
        shaken = np.asarray(picture) + chance.normal(0, 20, (64, 64, 3))
        assert blur(grey(soft)) > 1.5 * blur(grey(picture))
        assert noise(grey(Image.fromarray(np.clip(shaken, 0, 255).astype(np.uint8)))) > 10 > noise(grey(picture))


def test_a_flat_picture_and_the_smallest_are_measured_too(tmp_path):
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "teal.png")
    Image.new("RGB", (1, 1), "teal").save(tmp_path / "dot.png")
    assert ("teal.png", "blurred") in found(tmp_path)


def test_white_noise_has_the_deviation_it_was_made_with():
    picture = 128 + np.random.default_rng(0).normal(0, 10, (256, 256))
    assert noise(picture) == pytest.approx(10, rel=0.05)


def test_looks_differ_where_pictures_do(pictures):
    assert find_similar([perceptual_hash(each) for each in pictures], 4) == []
    assert find_similar([0b1111, 0b0000, 0b1110], 1) == [(0, 2)]


def test_counted_folders_and_tags_are_counted(tmp_path):
    (tmp_path / "3_cats").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "3_cats" / "0.png")
    (tmp_path / "3_cats" / "0.txt").write_text("cat, sofa, cat")
    report = check_folder(tmp_path, 8)
    assert [each.repeats for each in report.pictures] == [3]
    assert report.tags() == {"cat": 1, "sofa": 1}


def test_a_missing_folder_and_one_without_pictures_are_refused(tmp_path):
    with pytest.raises(BadDataset, match="does not exist: name a folder"):
        check_folder(tmp_path / "nowhere")
    with pytest.raises(BadDataset, match="contains no pictures: add some"):
        check_folder(tmp_path)


def test_a_list_that_cannot_be_read_is_an_error_of_the_folder(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a cat.png")
    (tmp_path / "metadata.jsonl").write_text("no json")
    assert (tmp_path.name, "list") in found(tmp_path)


def test_folders_that_are_never_entered_are_told(tmp_path):
    for name in ("boats", "3_keys", "mask", ".thumbs"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64), "teal").save(tmp_path / name / "a boat.png")
    (tmp_path / "empty").mkdir()
    told = [each for each in check_folder(tmp_path, 64).findings if each.kind == "folder"]
    assert [(each.file.name, each.text) for each in told] == [
        ("boats", "its pictures are ignored; rename it to 1_boats to train on them")
    ]
    shutil.rmtree(tmp_path / "3_keys")
    shutil.rmtree(tmp_path / "mask")
    with pytest.raises(BadDataset, match="contains no pictures, but its folder boats does: name that folder"):
        read_dataset(tmp_path)
