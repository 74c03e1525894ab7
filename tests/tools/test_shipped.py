import json

import numpy as np
import pytest
import torch

import velatura
from tools.drawing.paint import paint
from tools.tiny_base.architecture import SCHEDULER, make_unet, make_vae
from tools.tiny_base.data import any_scene, labels_of
from tools.tiny_base.judge import COLOURLESS, open_judge, picture_bytes, verdicts
from velatura.datasets.folder import read_folder, read_picture
from velatura.tiny import DATA_FOLDER

TINY = DATA_FOLDER / "tiny"


def settings(model):
    return {key: value for key, value in dict(model.config).items() if not key.startswith("_")}


@pytest.mark.parametrize(("part", "make"), [("unet", make_unet), ("vae", make_vae)])
def test_what_ships_has_the_shape_the_tools_make(part, make):
    shipped = json.loads((TINY / part / "config.json").read_text())
    made = json.loads(json.dumps(settings(make())))
    measured = {"scaling_factor"}
    assert {key: shipped[key] for key in made.keys() - measured} == {key: made[key] for key in made.keys() - measured}


def test_the_scheduler_is_the_one_of_the_tools():
    shipped = json.loads((TINY / "scheduler" / "scheduler_config.json").read_text())
    assert SCHEDULER.items() <= shipped.items()


def test_all_parts_together_stay_below_25_megabytes():
    assert sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file()) < 25e6


def test_latents_of_bundled_pictures_have_about_unit_variance(tiny):
    examples = [each for name in ("neon", "blueprint", "robot") for each in read_folder(velatura.tiny_pictures(name))]
    pixels = torch.stack([pixels_of(read_picture(each.path, 64)) for each in examples])
    # the scale is measured on other pictures, in other styles
    assert 0.6 < tiny.encode(pixels).std() < 1.6


@pytest.mark.parametrize(("name", "count"), [("neon", 16), ("blueprint", 16), ("robot", 8)])
def test_bundled_pictures_have_captions_that_do_not_name_them_as_a_style(name, count):
    folder = velatura.tiny_pictures(name)
    captions = [path.read_text() for path in sorted(folder.glob("*.txt"))]
    assert len(captions) == len(list(folder.glob("*.png"))) == count
    assert all((name in text) == (name == "robot") for text in captions)


def test_the_classifier_names_what_drawings_show_that_it_never_saw():
    scenes = [any_scene(45_000_000 + i) for i in range(120)]
    seen = verdicts(open_judge(), torch.stack([picture_bytes(paint(scene)) for scene in scenes]))
    right = seen == torch.tensor([labels_of(scene) for scene in scenes])
    has_colour = ~torch.isin(seen[:, 3], torch.tensor(COLOURLESS))
    assert right[:, [0, 2, 3]].float().mean(0).min() > 0.95
    assert right[has_colour, 1].float().mean() > 0.95


def pixels_of(image):
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1
