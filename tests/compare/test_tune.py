"""Auto-strength on the tiny base, with few steps; whether it is right is tested by the slow test of the tools."""

import json

import pytest
import torch

import velatura
from velatura.cli.app import main
from velatura.compare.picture_sets import read_picture_set
from velatura.compare.strength_trade import best_strength
from velatura.compare.tune import STRENGTHS, StrengthPainter
from velatura.compare.tune_prompts import TINY_PROMPTS, TunePrompt, other_prompts, tune_prompts
from velatura.errors import BadFile, BadPrompt, BadStrength, NoEffect
from velatura.overlays.overlay import Card
from velatura.tiny_world import words_unknown_to_tiny

BRIEF = {"prompts": ["a red house on the beach", "a blue boat in the snow"], "strengths": [0.5, 1.0], "steps": 3}


@pytest.fixture
def saved(overlay, tmp_path):
    velatura.save(overlay, tmp_path / "ink.safetensors")
    return tmp_path / "ink.safetensors"


@pytest.fixture(scope="module")
def overlay(tiny):
    return velatura.Hypernetwork.for_base(tiny, seed=1, init="xavier_normal", name="ink")


@pytest.fixture(scope="module")
def own_pictures(tiny, overlay, tmp_path_factory):
    """What the overlay paints at strength 1, which a tuning must find again."""
    folder = tmp_path_factory.mktemp("own") / "ink"
    folder.mkdir()
    prompts = [TunePrompt(text, text) for text in (*BRIEF["prompts"], "a green fish under the sea")]
    painted = StrengthPainter(tiny, overlay, prompts, 1, BRIEF["steps"]).paint(1.0)
    for number, (image, prompt) in enumerate(zip(painted, prompts, strict=True)):
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(prompt.text)
    return folder


@pytest.fixture(scope="module")
def measured(tiny, overlay):
    return velatura.tune(tiny, overlay, **BRIEF)


def test_the_curve_begins_at_the_base_and_its_top_is_the_strength(tiny, overlay, own_pictures):
    found = velatura.tune(tiny, overlay, pictures=own_pictures, **BRIEF)
    assert [point.strength for point in found.points] == [0, 0.5, 1]
    assert found.points[0].kept == pytest.approx(1, abs=1e-5)
    assert found.points[0].likeness == pytest.approx(0, abs=1e-5)
    assert found.low <= found.strength <= found.high
    assert found.reference == "pictures"
    assert f"best strength {found.strength:g}" in str(found)


@pytest.mark.parametrize("count", [1, 2])
def test_few_pictures_are_warned_of(count, tiny, overlay, own_pictures):
    images = read_picture_set(own_pictures).images[:count]
    with pytest.warns(UserWarning, match=r"^[12] pictures? cannot tell how much such pictures differ"):
        velatura.tune(tiny, overlay, pictures=images, **BRIEF)


def test_seeds_of_a_prompt_are_one_number_when_prompts_are_drawn_anew(tiny, overlay, monkeypatch):
    seen = {}

    def see(strengths, near, kept):
        seen.update(near=near, kept=kept)
        return best_strength(strengths, near, kept)

    monkeypatch.setattr("velatura.compare.tune.best_strength", see)
    # 3 strengths, and 2 prompts of 2 seeds: both pictures of a prompt stand side by side
    monkeypatch.setattr("velatura.compare.tune.likeness", lambda *_: torch.arange(12.0).reshape(3, 4))
    found = velatura.tune(tiny, overlay, **BRIEF, seeds=2)
    assert seen["near"].tolist() == [[0.5, 2.5], [4.5, 6.5], [8.5, 10.5]]
    assert seen["kept"].shape == (3, 2)
    assert found.seeds == 2


def test_without_pictures_likeness_is_how_far_it_goes(measured):
    assert measured.reference == "itself"
    assert max(point.likeness for point in measured.points) == pytest.approx(1)


def test_the_base_is_left_as_it_was_and_a_second_measurement_is_the_same(tiny, overlay, measured):
    before = tiny.unet.conv_in.weight.clone()
    assert velatura.tune(tiny, overlay, **BRIEF) == measured
    assert tiny.unet.conv_in.weight.equal(before)


def test_an_overlay_without_effect_is_refused(tiny):
    untrained = velatura.Lora.for_base(tiny, rank=2, name="new")
    with pytest.raises(NoEffect, match="new changes nothing"):
        velatura.tune(tiny, untrained, **BRIEF)


def test_an_overlay_that_leads_elsewhere_is_not_called_idle(tiny, overlay, monkeypatch):
    with pytest.raises(NoEffect, match="brings no picture nearer"):
        velatura.tune(tiny, overlay, pictures=velatura.tiny_pictures("robot"), **BRIEF)
    images = read_picture_set(velatura.tiny_pictures("robot")).images  # without captions, which would name the robot
    monkeypatch.setattr("velatura.compare.tune_prompts.TINY_PROMPTS", TINY_PROMPTS[:3])
    with pytest.raises(NoEffect, match="if it learned a subject, prompts that name it"):
        velatura.tune(tiny, overlay, pictures=images, **{**BRIEF, "prompts": None})


@pytest.mark.parametrize("strengths", [[1.0], [0.0, 1.0], [1.0, 0.5], [0.5, 0.5]])
def test_strengths_that_are_no_curve_are_refused(tiny, hyper, strengths):
    with pytest.raises(BadStrength, match="two or more above 0 that rise"):
        velatura.tune(tiny, hyper(), strengths=strengths)


def test_one_prompt_is_refused(tiny, overlay):
    with pytest.raises(BadPrompt, match="two or more that differ"):
        velatura.tune(tiny, overlay, prompts=["a house", "a house"])


def test_the_fixed_prompts_use_words_that_the_tiny_base_knows():
    assert words_unknown_to_tiny(TINY_PROMPTS) == []
    assert len(set(TINY_PROMPTS)) == len(TINY_PROMPTS)
    assert list(STRENGTHS) == sorted(STRENGTHS)


def test_an_embedding_is_called_by_its_name_and_trigger_words_by_theirs(embedding, lora):
    named = embedding()
    assert all(
        prompt.called == f"{prompt.text}, a" or "a" in prompt.text for prompt in tune_prompts(named, [], is_tiny=True)
    )
    triggered = lora()
    triggered.card = Card(kind="lora", trigger_words=("zwx",))
    assert all(prompt.called == f"{prompt.text}, zwx" for prompt in tune_prompts(triggered, [], is_tiny=True))


def test_a_subject_that_all_captions_name_is_painted_in_places(hyper):
    captions = ["a robot on a sandy beach", "robot, in the mountains", "in a dark forest, a robot"]
    prompts = tune_prompts(hyper(), captions, is_tiny=True)
    assert {prompt.text for prompt in prompts} > {"a robot on the beach"}
    style = tune_prompts(hyper(), ["a red boat", "a cat at night"], is_tiny=True)
    assert [prompt.text for prompt in style] == list(TINY_PROMPTS)


@pytest.mark.parametrize("is_tiny", [True, False])
def test_a_thing_that_is_the_subject_is_not_another_thing(is_tiny):
    def things(captions):
        places = other_prompts(captions, is_tiny=is_tiny)
        assert [len(texts) for texts in places] == [len(places[0])] * 2
        return [text for text in places[0] if "cat" in text], len(places[0])

    assert things(["a robot before a cat", "a robot on the beach"])[1] == 6
    assert things(["my black cat on a sofa", "my black cat in the snow"]) == ([], 5)
    assert things(["a red robot", "a red robot on the beach"])[1] == 6  # a red house is another thing


def test_the_command_writes_beside_the_file_and_prints_the_curve(saved, own_pictures, capsys):
    prompts = [word for text in BRIEF["prompts"] for word in ("--prompt", text)]
    words = ["tune", str(saved), *prompts, "--strengths", "0.5,1", "--steps", "3"]
    assert main([*words, "--pictures", "neon"]) == 2  # a bundled set, which the overlay does not paint
    assert "brings no picture nearer" in capsys.readouterr().err
    assert main([*words, "--pictures", str(own_pictures)]) == 0
    printed = capsys.readouterr().out
    assert "best strength" in printed
    written = json.loads(saved.with_suffix(".json").read_text())
    assert 0 < written["preferred weight"] <= 1
    saved.with_suffix(".json").unlink()
    assert main([*words, "--json", "--no-write"]) == 0
    assert json.loads(capsys.readouterr().out)["reference"] == "itself"
    assert not saved.with_suffix(".json").exists()


def test_the_command_refuses_what_it_cannot_read(saved, capsys):
    assert main(["tune", "nowhere.pt"]) == 2
    assert main(["tune", str(saved), "--strengths", "a,b"]) == 2
    assert "are not numbers" in capsys.readouterr().err


def test_a_training_ends_with_it_where_the_plan_asks(tiny, own_pictures, tmp_path, monkeypatch):
    brief = lambda base, overlay, **options: real(base, overlay, **options | BRIEF)  # noqa: E731
    from velatura.compare import tune as module

    real = module.tune
    monkeypatch.setattr(module, "tune", brief)
    overlay = velatura.Hypernetwork.for_base(tiny, init="xavier_normal", seed=1, name="ink")
    fields = {"steps": 1, "learning_rate": "1e-3", "pixels": 16, "precision": "float32", "validation_pictures": 0}
    run = velatura.train(tiny, overlay, own_pictures, velatura.Plan(**fields, tune=True), out=tmp_path / "run")
    assert run.verdict.strength in {round(0.01 * step, 2) for step in range(101)}
    assert run.verdict.strength_note in str(run.verdict)
    written = json.loads(run.file.with_suffix(".json").read_text())
    assert written["preferred weight"] == run.verdict.strength


def test_pictures_that_cannot_be_read_are_refused(tiny, hyper, tmp_path):
    with pytest.raises((BadFile, velatura.BadDataset)):
        velatura.tune(tiny, hyper(), pictures=tmp_path / "nowhere", **BRIEF)
