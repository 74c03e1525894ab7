"""Random styles, and the start that is learned from them."""

import numpy as np
import pytest
import torch
from PIL import ImageChops

import tools.learned_start
from tools.drawing.scene import Scene
from tools.learned_start import INNER_BATCH_SIZE, PICTURES_PER_STYLE, encode_style, learn, table
from tools.random_styles import random_style

BOAT = Scene("boat", "red", "beach", "day", "poster", seed=3)


def test_a_random_style_paints_a_scene_the_same_every_time():
    assert ImageChops.difference(random_style(7).paint(BOAT), random_style(7).paint(BOAT)).getbbox() is None


def test_random_styles_differ_from_each_other():
    pictures = [np.asarray(random_style(seed).paint(BOAT), dtype=np.float32) for seed in range(12)]
    distances = [abs(pictures[i] - pictures[j]).mean() for i in range(12) for j in range(i)]
    assert min(distances) > 5  # of 255; the painter's grain alone is less


@pytest.mark.parametrize("seed", range(8))
def test_a_random_style_shows_the_subject(seed):
    style = random_style(seed)
    away = Scene("boat", "red", "beach", "day", "poster", seed=3, size=1e-6)
    difference = ImageChops.difference(style.paint(BOAT), style.paint(away)).convert("L")
    assert sum(difference.histogram()[16:]) > 64 * 64 / 50


def test_pictures_of_a_random_style_are_encoded_with_their_captions(tiny):
    latents, captions = encode_style(tiny, random_style(0), 0)
    assert latents.shape == (PICTURES_PER_STYLE, 4, 16, 16)
    assert captions.shape == (PICTURES_PER_STYLE + 1, 77, 96)  # the empty caption is the last
    assert INNER_BATCH_SIZE <= PICTURES_PER_STYLE


def test_a_start_that_was_stopped_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.learned_start.INNER_STEPS", 1)
    monkeypatch.setattr("tools.learned_start.SNAPSHOT_STYLES", 1)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    learn("hypernetwork", whole, 2, minutes=60)

    def keep_and_stop(*arguments):
        keep(*arguments)
        raise KeyboardInterrupt

    keep = tools.learned_start._keep
    with monkeypatch.context() as patch:
        patch.setattr("tools.learned_start._keep", keep_and_stop)
        with pytest.raises(KeyboardInterrupt):
            learn("hypernetwork", parts, 2, minutes=60)
    assert torch.load(parts / "start-hypernetwork.pt", weights_only=True)["styles"] == 1
    learn("hypernetwork", parts, 2, minutes=60)
    start, resumed = (torch.load(work / "start-hypernetwork.pt", weights_only=True) for work in (whole, parts))
    assert start["styles"] == resumed["styles"] == 2
    assert all(torch.equal(start["weights"][name], resumed["weights"][name]) for name in start["weights"])


def test_the_table_shows_pairs_of_trials():
    shares = {"learned": 0.25, "score": 0.125}
    records = [
        {"kind": "hypernetwork", "style": "neon", "start": False, "shares": shares},
        {"kind": "hypernetwork", "style": "neon", "start": True, "shares": {"learned": 0.5, "score": 0.375}},
        {"kind": "hypernetwork", "style": "oil", "start": False, "shares": shares},
    ]
    assert table(records).splitlines()[2:] == ["| hypernetwork | neon | 0.25, 0.12 | 0.50, 0.38 |"]
