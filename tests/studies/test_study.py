"""A whole study on the tiny base with trainings of two steps, interrupted and gone on with."""

import json
import shutil

import pytest

import velatura
from velatura.cli.app import main
from velatura.compare import tune_prompts
from velatura.errors import BadDataset, BadPlan, UnknownName
from velatura.studies import study, trials

STAGES = []  # of the finished study
BRIEF = {"kinds": ["hypernet", "aesthetic"], "seeds": 2, "steps": 2, "purpose": "subject"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "robots"
    folder.mkdir()
    for path in sorted(velatura.tiny_pictures("robot").iterdir())[:8]:  # four pictures with their captions
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def brief():
    """Paint few pictures, of one step, at two strengths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "TINY_STEPS", 1)
        patch.setattr(trials, "DIVERSITY_SEEDS", 2)
        for name in ("TINY_PLACES", "TINY_PROMPTS"):
            patch.setattr(tune_prompts, name, getattr(tune_prompts, name)[:3])
        patch.setattr(trials, "STRENGTHS", (0.5, 1.0))
        yield


@pytest.fixture(scope="module")
def finished(tiny, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "study"
    results = velatura.study(
        tiny,
        photos,
        out=out,
        kinds=["hypernet", "aesthetic"],
        seeds=2,
        steps=2,
        purpose="subject",
        on_stage=STAGES.append,
    )
    return out, results


def test_every_kind_is_trained_from_every_seed_and_an_aesthetic_once(finished):
    _, results = finished
    assert [(trial.kind, trial.seed) for trial in results.trials] == [
        ("hypernet", 0),
        ("hypernet", 1),
        ("aesthetic", 0),
    ]
    assert {trial.steps for trial in results.of_kind("hypernet")} == {2}
    assert (results.training_pictures, results.held_out_pictures) == (3, 1)


def test_steps_and_strengths_are_told_as_they_come(finished):
    assert finished
    told = [(stage.name, stage.done, stage.total) for stage in STAGES]
    training = [("training", 1, 2), ("training", 2, 2)]
    painting = [("painting strengths", done, 3) for done in (1, 2, 3)]  # 0 and both strengths
    assert told == [*training, *painting, *painting, *training, *painting]  # the aesthetic is not trained


def test_the_page_needs_no_other_file_and_the_overlays_lie_beside_it(finished):
    out, results = finished
    page = (out / "index.html").read_text("utf-8")
    assert results.recommendation().replace("'", "&#x27;") in page
    assert "http" not in page.replace("http-equiv", "")
    for trial in results.trials:
        assert trial.file in page
        assert velatura.open_overlay(out / trial.file)
    assert json.loads((out / "study.json").read_text())["trials"]


def test_what_is_done_is_not_done_again(tiny, photos, finished, monkeypatch):
    out, results = finished
    monkeypatch.setattr(study, "run_trial", None)  # would fail if it were called
    assert velatura.study(tiny, photos, out=out, **BRIEF) == results


def test_other_pictures_in_the_same_folder_are_refused(tiny, finished):
    out, _ = finished
    with pytest.raises(BadDataset, match="other pictures than this study's"):
        velatura.study(tiny, velatura.tiny_pictures("robot"), out=out, steps=2)


def test_what_cannot_be_compared_is_refused(tiny, photos, tmp_path):
    with pytest.raises(UnknownName, match="lora"):
        velatura.study(tiny, photos, out=tmp_path, kinds=["lorra"])
    with pytest.raises(BadPlan, match="above 0"):
        velatura.study(tiny, photos, out=tmp_path, minutes=0)
    with pytest.raises(BadPlan, match="at least one kind"):
        velatura.study(tiny, photos, out=tmp_path, kinds=[])
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy(next(photos.glob("*.png")), few / "a robot.png")
    with pytest.raises(BadDataset, match="4 or more"):
        velatura.study(tiny, few, out=tmp_path / "out")


def test_the_command_prints_the_recommendation(finished, photos, capsys):
    out, results = finished
    words = [
        "compare",
        str(photos),
        "--kinds",
        "hypernet,aesthetic",
        "--seeds",
        "2",
        "--steps",
        "2",
        "--for",
        "subject",
    ]
    assert main([*words, "--out", str(out)]) == 0
    assert results.recommendation() in capsys.readouterr().out
    assert main([*words, "--minutes", "1", "--out", str(out)]) == 2
