"""Random styles, and the start that is learned from them."""

import numpy as np
import pytest
import torch
from PIL import ImageChops

import tools.learned_start
from tools.drawing.scene import Scene
from tools.learned_start import (
    INNER_BATCH_SIZE,
    PICTURES_PER_STYLE,
    STYLES,
    encode_style,
    learn,
    main,
    measure,
    read_results,
    table,
)
from tools.learning.factors import PARAMETERS
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


def test_the_common_weights_go_a_share_of_the_way_to_those_of_a_style(tiny, monkeypatch):
    monkeypatch.setattr("tools.learned_start.INNER_STEPS", 2)
    before = PARAMETERS["hypernetwork"].make(tiny, 0).trainable_parameters
    after = {}
    for share in (0.0, 0.25, 1.0):
        overlay = PARAMETERS["hypernetwork"].make(tiny, 0)
        tools.learned_start._reptile_step(tiny, overlay, 0, share, "hypernetwork")
        after[share] = overlay.trainable_parameters
    for name, weight in before.items():
        assert torch.equal(after[0.0][name], weight)
        torch.testing.assert_close(after[0.25][name], weight.lerp(after[1.0][name], 0.25))
    assert any(not torch.equal(after[1.0][name], weight) for name, weight in before.items())


@pytest.fixture
def start(tiny, tmp_path):
    """A learned start in the work folder, all of whose weights are 1."""
    overlay = PARAMETERS["hypernetwork"].make(tiny, 0)
    with torch.no_grad():
        for weight in overlay.parameters():
            weight.fill_(1.0)
    tools.learned_start._keep(overlay, tmp_path / "start-hypernetwork.pt", 20)


@pytest.mark.usefixtures("start")
def test_every_style_is_trained_with_the_start_and_without_and_never_twice(tiny, tmp_path, monkeypatch):
    trained, results = [], tmp_path / "results.jsonl"

    def train(_base, overlay, plan, folder, _run):
        is_start = all(bool((weight == 1).all()) for weight in overlay.parameters())
        trained.append((folder.name, is_start, plan.steps))
        return overlay

    def judge(_base, _judge, overlay, style, *, count):
        assert count == tools.learned_start.PROMPTS
        is_start = all(bool((weight == 1).all()) for weight in overlay.parameters())
        return {"learned": 0.75 if is_start else 0.5, "score": STYLES.index(style) / 16}

    monkeypatch.setattr("tools.learned_start.train_with_plan", train)
    monkeypatch.setattr("tools.learned_start.judge_overlay", judge)
    monkeypatch.setattr("tools.learned_start.style_folder", lambda style, work: work / style)
    monkeypatch.setattr("tools.learned_start.velatura.tiny", lambda: tiny)
    measure("hypernetwork", tmp_path, results)
    assert trained == [(style, is_start, 30) for style in STYLES for is_start in (False, True)]
    records = read_results(results)
    assert [record["styles"] for record in records] == [0, 20] * len(STYLES)
    assert "| hypernetwork | blueprint | 0.50, 0.06 | 0.75, 0.06 |" in table(records)

    lines = results.read_text().splitlines()
    results.write_text("\n".join(lines[:3] + lines[4:]) + "\n")
    trained.clear()
    measure("hypernetwork", tmp_path, results)
    assert trained == [(STYLES[1], True, 30)]


def test_what_is_measured_has_to_be_learned_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)  # of all later tests too
    monkeypatch.setattr("sys.argv", ["learned_start", "measure", "--work", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert "start-hypernetwork.pt is missing: do `learn` first" in capsys.readouterr().err


def test_the_table_shows_pairs_of_trials():
    shares = {"learned": 0.25, "score": 0.125}
    records = [
        {"kind": "hypernetwork", "style": "neon", "start": False, "shares": shares},
        {"kind": "hypernetwork", "style": "neon", "start": True, "shares": {"learned": 0.5, "score": 0.375}},
        {"kind": "hypernetwork", "style": "oil", "start": False, "shares": shares},
    ]
    assert table(records).splitlines()[2:] == ["| hypernetwork | neon | 0.25, 0.12 | 0.50, 0.38 |"]
