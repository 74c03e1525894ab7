"""The tiny base says which words and pictures it does not know: in prompts, init images, trainings and data sets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import velatura
from velatura.cli.app import main
from velatura.datasets.check import check_folder
from velatura.errors import VelaturaWarning
from velatura.tiny import bundled_picture_sets
from velatura.tiny_world import (
    SUBJECTS,
    TINY_WORDS,
    describe_far_pictures,
    select_judged,
    tiny_captions,
    words_of,
    words_unknown_to_tiny,
)

FAR = "far from what the tiny base was trained on"


def noise_picture(seed: int) -> Image.Image:
    """Return a picture of coarse noise in all colours, as no drawing has it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((64, 64))


@pytest.fixture
def noise_folder(tmp_path):
    folder = tmp_path / "noise"
    folder.mkdir()
    for number in range(4):
        noise_picture(number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red house" if number else "a red dinosaur")
    return folder


def pictures_of(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]


def test_its_captions_hold_words_that_it_was_trained_on():
    captions = tiny_captions()
    assert len(captions) == len(set(captions)) == 10 * len(SUBJECTS) * (7 * 3 + 3)
    assert words_unknown_to_tiny(captions) == []
    assert {word for caption in captions for word in words_of(caption)} >= {*SUBJECTS} <= TINY_WORDS


@pytest.mark.parametrize("name", bundled_picture_sets())
def test_bundled_drawings_are_near(name):
    pictures = pictures_of(velatura.tiny_pictures(name))
    assert describe_far_pictures(pictures) is None
    assert describe_far_pictures(pictures[:4]) is None


def test_noise_is_far():
    assert FAR in describe_far_pictures([noise_picture(number) for number in range(4)])
    assert FAR in describe_far_pictures([noise_picture(1)])


@pytest.mark.parametrize(("count", "judged"), [(1, 1), (32, 32), (33, 17), (1000, 32)])
def test_of_many_pictures_some_are_judged(count, judged):
    assert len(select_judged(range(count))) == judged


def test_a_prompt_in_python_is_judged(tiny):
    with pytest.warns(VelaturaWarning, match="on the words dinosaur: unless an overlay teaches them"):
        velatura.generate(tiny, "a red dinosaur", steps=1, guidance=1.0)
    with pytest.warns(VelaturaWarning, match="on the words dinosaur") as caught:
        velatura.generate_many(tiny, ["a dinosaur", "a red dinosaur"], steps=1, guidance=1.0)
    assert len(caught) == 1


def test_a_grid_in_python_is_judged(tiny):
    recipe = velatura.Recipe(prompt="a {what}", steps=1, guidance=1.0)
    with pytest.warns(VelaturaWarning, match="on the words dinosaur"):
        velatura.grid(tiny, recipe, x=("what", ["house", "dinosaur"]))


@pytest.mark.filterwarnings("error")
def test_words_of_overlays_at_hand_are_known(tiny, hyper):
    prompt = "a robosaur <hypernet:dinosaur:1>"
    overlay = hyper(name="dinosaur")
    overlay.card = overlay.card.replace(trigger_words=("robosaur",))
    velatura.generate(tiny, prompt, overlays={"dinosaur": overlay}, steps=1, guidance=1.0)
    embedding = velatura.Embedding.for_base(tiny, name="gizmo", vectors=1)
    with velatura.attach(tiny, embedding):
        velatura.generate(tiny, "a red gizmo", steps=1, guidance=1.0)


@pytest.mark.parametrize("is_far", [True, False])
def test_an_init_image_is_judged(tiny, is_far, recwarn):
    image = noise_picture(1) if is_far else pictures_of(velatura.tiny_pictures("robot"))[0]
    if is_far:
        with pytest.warns(VelaturaWarning, match=f"the init image is {FAR}"):
            velatura.generate(tiny, "a house", init_image=velatura.InitImage(image), steps=1, guidance=1.0)
        return
    velatura.generate(tiny, "a house", init_image=velatura.InitImage(image), steps=1, guidance=1.0)
    assert not [warning for warning in recwarn if "tiny base" in str(warning.message)]


def test_a_training_and_its_continuation_are_judged(tiny, hyper, noise_folder, tmp_path):
    def stop(step):
        raise KeyboardInterrupt

    plan = velatura.Plan(steps=3, preview_every=0, snapshot_every=1)
    with (
        pytest.warns(VelaturaWarning, match="on the words dinosaur: each stands in few captions") as caught,
        pytest.raises(KeyboardInterrupt),
    ):
        velatura.train(tiny, hyper(), noise_folder, plan, out=tmp_path / "run", on_step=stop)
    assert [FAR in str(warning.message) for warning in caught].count(True) == 1
    with pytest.warns(VelaturaWarning, match=f"the pictures are {FAR}"):
        velatura.resume(tiny, tmp_path / "run")


def test_a_data_set_is_judged_for_the_tiny_base(noise_folder, capsys):
    assert not [finding for finding in check_folder(noise_folder, 64).findings if finding.kind == "tiny"]
    assert main(["dataset", "check", str(noise_folder), "--base", "tiny"]) == 0
    printed = capsys.readouterr().out
    assert "on the words dinosaur" in printed
    assert f"the pictures are {FAR}" in printed
