from random import Random

import pytest
from PIL import ImageChops

from tools.drawing.paint import paint
from tools.drawing.places import PLACES
from tools.drawing.scene import BASE_STYLES, COLOURS, HELD_OUT_STYLES, Scene, caption, is_held_out, random_scene
from tools.drawing.styles import STYLES
from tools.drawing.subjects import HELD_OUT_SUBJECTS, SUBJECTS


def test_the_world_is_as_large_as_promised():
    assert len(SUBJECTS) >= 20
    assert len(COLOURS) >= 10
    assert len(PLACES) >= 10
    assert len(HELD_OUT_STYLES) >= 4
    assert len(HELD_OUT_SUBJECTS) == 2
    assert set(STYLES) == {*BASE_STYLES, *HELD_OUT_STYLES}


def test_one_combination_in_ten_is_held_out_and_no_subject_colour_or_place_is_missing():
    every = [(subject, colour, place) for subject in SUBJECTS for colour in COLOURS for place in PLACES]
    held_out = [each for each in every if is_held_out(*each)]
    assert len(held_out) == len(every) / 10
    assert [len(set(column)) for column in zip(*held_out, strict=True)] == [len(SUBJECTS), len(COLOURS), len(PLACES)]


def test_what_the_base_sees_holds_nothing_that_is_held_out():
    rng = Random(0)
    for _ in range(500):
        scene = random_scene(rng)
        assert not is_held_out(scene.subject, scene.colour, scene.place)
        assert scene.style in BASE_STYLES
        assert scene.subject in SUBJECTS


def test_a_scene_is_painted_the_same_every_time():
    scene = random_scene(Random(3))
    assert ImageChops.difference(paint(scene), paint(scene)).getbbox() is None


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("subject", ["house", "dragon"])
def test_every_style_paints_every_subject_apart_from_its_place(style, subject):
    scene = Scene(subject, "green", "beach", "day", style, seed=5)
    away = Scene(subject, "green", "beach", "day", style, seed=5, size=1e-6)
    difference = ImageChops.difference(paint(scene), paint(away)).convert("L")
    changed = sum(difference.histogram()[24:])
    assert changed > 64 * 64 / 20


def test_styles_differ_from_each_other():
    pictures = [paint(Scene("boat", "red", "sea", "day", style, seed=1)).tobytes() for style in STYLES]
    assert len(set(pictures)) == len(STYLES)


@pytest.mark.parametrize("seed", range(50))
def test_a_caption_says_subject_colour_and_number(seed):
    scene = random_scene(Random(seed))
    text = caption(scene, Random(seed))
    noun = (
        scene.subject
        if scene.count == 1
        else {"fish": "fish", "butterfly": "butterflies"}.get(scene.subject, f"{scene.subject}s")
    )
    assert f"{scene.colour} {noun}" in text
    assert scene.count == 1 or {2: "two", 3: "three"}[scene.count] in text
    assert "  " not in text
    assert not text.endswith((",", " "))


def test_captions_vary():
    scene = random_scene(Random(1))
    assert len({caption(scene, Random(seed)) for seed in range(40)}) > 8
