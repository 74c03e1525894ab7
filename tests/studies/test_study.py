"""A whole study on the tiny base with trainings of two steps, interrupted and gone on with."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import velatura
from tests.conftest import copy_four_pictures
from tests.studies.conftest import open_setup
from tools.drawing.paint import paint as draw
from tools.tiny_base.export import robot_scene
from velatura.cli.app import main
from velatura.compare import tune_prompts
from velatura.compare.picture_sets import read_picture_set
from velatura.compare.tune import StrengthPainter
from velatura.errors import AlreadyExists, BadDataset, BadFile, BadPlan, UnknownName
from velatura.studies import study, trials
from velatura.studies.pictures import split_pictures

CHROMIUM = shutil.which("chromium")
STAGES = []  # of the finished study
BRIEF = {"kinds": ["hypernet", "aesthetic"], "seeds": 2, "steps": 2, "purpose": "subject"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return copy_four_pictures("robot", tmp_path_factory.mktemp("study") / "robots")


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


@pytest.mark.parametrize("kind", ["hypernet", "embedding", "lora", "dreambooth"])
def test_overlays_are_made_as_the_command_makes_them(tiny, photos, tmp_path, capsys, kind):
    overlay = open_setup(tiny, photos, tmp_path).overlay(kind, 0)
    assert main(["train", kind, str(photos), "--name", "robots", "--dry-run", "--out", str(tmp_path / "run")]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("overlay ")]
    assert line.partition("robots, ")[2].startswith(f"{overlay.card}, ")


def test_the_subject_of_the_captions_is_what_is_painted_to_be_judged(tiny, tmp_path, monkeypatch):
    """An overlay that paints the subject, and only where it is asked for, reaches the held-out pictures."""
    setup = open_setup(tiny, velatura.tiny_pictures("robot"), tmp_path)
    robots = read_picture_set(velatura.tiny_pictures("robot")).images
    others = [draw(replace(robot_scene(number), subject="mug", colour="blue")) for number in range(len(robots))]

    def paint(self, strength):
        return [
            (robots if strength and "robot" in prompt.text else others)[number]
            for number, prompt in enumerate(self.prompts)
            for _ in range(self.seeds)
        ]

    monkeypatch.setattr(StrengthPainter, "paint", paint)
    figures, _ = trials.judge(setup, setup.overlay("hypernet", 0), "hypernet")
    assert figures["likeness"] > 0.5


@pytest.mark.parametrize(("spoiled", "kept"), [(0, 1.0), (6, 0.0)])
def test_other_things_are_looked_at_in_the_same_place(spoiled, kept, tiny, tmp_path, monkeypatch):
    """If robots stand where other things were asked for, their places alone do not say which those were."""
    setup = open_setup(tiny, velatura.tiny_pictures("robot"), tmp_path)
    scenes = [replace(robot_scene(number), place="beach") for number in range(6)]
    things = [
        draw(replace(scene, subject=subject, colour=colour))
        for scene, (subject, colour) in zip(
            scenes,
            [
                ("house", "red"),
                ("boat", "blue"),
                ("car", "yellow"),
                ("flower", "purple"),
                ("cat", "black"),
                ("tree", "green"),
            ],
            strict=True,
        )
    ]
    robot = draw(scenes[0])

    def paint(self, strength):
        pictures = [robot] * spoiled + things[spoiled:] if strength else things
        return pictures[: len(self.prompts)]

    monkeypatch.setattr(StrengthPainter, "paint", paint)
    figures = trials._measure_others(setup, setup.overlay("hypernet", 0), 1.0)
    assert figures["others_kept"] == pytest.approx(kept, abs=0.05)
    assert (figures["base_change"] > 0) == bool(spoiled)


def test_one_or_two_held_out_pictures_are_not_all_that_likeness_is_measured_against(tiny, photos, tmp_path):
    few = open_setup(tiny, photos, tmp_path / "few")
    assert (len(few.held_out), len(few.references())) == (1, 4)
    more = open_setup(tiny, velatura.tiny_pictures("robot"), tmp_path / "more")
    assert (len(more.held_out), len(more.references())) == (2, 8)
    enough = open_setup(tiny, velatura.tiny_pictures("neon"), tmp_path / "enough")
    assert len(enough.references()) == len(enough.held_out) == 4


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


def test_the_page_says_how_its_pictures_are_painted_again(tiny, finished):
    page = (finished[0] / "index.html").read_text("utf-8")
    assert "Sampler Euler, 1 step, guidance 7; the first picture of each row has seed 1000, the next one 1001" in page
    prompt = f"a robot {tune_prompts.TINY_PLACES[1]}"
    again = velatura.generate(tiny, prompt, sampler="Euler", steps=1, guidance=7, seed=1001)
    shown = re.search(rf'base64,([^"]+)" alt="{prompt}"', page)[1]  # by the base alone, the first row with prompts
    with Image.open(io.BytesIO(base64.b64decode(shown))) as picture:
        difference = np.asarray(picture, int) - np.asarray(again.image, int)
    assert np.abs(difference).max() <= 2  # batches of another size round otherwise


def test_what_is_done_is_not_done_again(tiny, photos, finished, monkeypatch):
    out, results = finished
    monkeypatch.setattr(study, "run_trial", None)  # would fail if it were called
    assert velatura.study(tiny, photos, out=out, **BRIEF) == results


def test_a_study_that_was_stopped_in_a_training_goes_on_at_that_step(tiny, photos, finished, tmp_path):
    def stop(stage):
        if stage.name == "training":
            raise KeyboardInterrupt

    options, trained = BRIEF | {"kinds": ["hypernet"], "seeds": 1, "out": tmp_path / "study"}, []
    with pytest.raises(KeyboardInterrupt) as stopped:
        velatura.study(tiny, photos, on_stage=stop, **options)
    assert stopped.value.__notes__ == [f"start the study again with --out {tmp_path / 'study'} to go on where it was"]
    [trial] = velatura.study(tiny, photos, on_stage=trained.append, **options).trials
    assert [stage.done for stage in trained if stage.name == "training"] == [2]
    whole = finished[1].of_kind("hypernet")[0]
    assert trial.curve == whole.curve
    timed = {"training_seconds", "picture_seconds"}
    assert {name: trial.figures[name] for name in trial.figures.keys() - timed} == {
        name: whole.figures[name] for name in whole.figures.keys() - timed
    }


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to look at pages with: apt-get install chromium")
def test_the_page_shows_all_it_has_in_a_browser_and_fetches_nothing(finished, playwright_engine):
    out, results = finished
    browser = playwright_engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    page, asked, errors = browser.new_page(viewport={"width": 1100, "height": 800}), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    page.goto((out / "index.html").as_uri())
    assert page.get_by_text(results.recommendation()).is_visible()
    assert [heading.inner_text() for heading in page.locator("h3").all()][:2] == ["held out", "tiny alone"]
    shown = page.locator("img").evaluate_all("all => all.map(each => each.complete && each.naturalWidth > 0)")
    assert shown == [True] * (1 + 3 * 3)  # a held-out picture; three prompts by the base and by two kinds
    assert page.locator("svg polyline").count() == len(results.trials)
    assert page.locator("svg").first.bounding_box()["height"] > 50
    assert page.evaluate("document.documentElement.scrollWidth") <= 1100
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert errors == []
    browser.close()


def test_other_pictures_in_the_same_folder_are_refused(tiny, finished):
    out, _ = finished
    with pytest.raises(BadDataset, match=r"has changed since .* was begun: \d+ new"):
        velatura.study(tiny, velatura.tiny_pictures("robot"), out=out, **BRIEF)


def test_a_changed_caption_is_refused(tiny, photos, finished):
    caption = sorted(photos.glob("*.txt"))[0]
    before = caption.read_text()
    caption.write_text(before + " at night")
    with pytest.raises(BadDataset, match="1 changed"):
        velatura.study(tiny, photos, out=finished[0], **BRIEF)
    caption.write_text(before)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 3}, r"another budget \(2 steps, not 3 steps\)"),
        ({"steps": None, "minutes": 5}, r"another budget \(2 steps, not 5 minutes in all\)"),
        ({"purpose": "style"}, r"another purpose \(subject, not style\)"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(tiny, photos, finished, changes, words):
    with pytest.raises(AlreadyExists, match=words):
        velatura.study(tiny, photos, out=finished[0], **(BRIEF | changes))


def test_a_study_with_another_measure_is_refused(tiny, photos, finished, monkeypatch):
    monkeypatch.setattr("velatura.studies.study.LIKENESS_MEASURE", "a later one")
    with pytest.raises(AlreadyExists, match=r"another version of velatura began.*another folder with --out"):
        velatura.study(tiny, photos, out=finished[0], **BRIEF)


def test_another_base_in_the_same_folder_is_refused(tiny, photos, finished):
    parts = {"unet": tiny.unet, "vae": tiny.vae, "text": tiny.text, "schedule": tiny.schedule}
    with pytest.raises(AlreadyExists, match="another base"):
        velatura.study(velatura.Base("other", tiny.family, **parts), photos, out=finished[0], **BRIEF)


@pytest.mark.parametrize("name", ["settings.json", "pictures.json", "trials/hypernet-0.json"])
def test_a_damaged_file_of_a_study_is_refused_in_a_line(tiny, photos, finished, tmp_path, name):
    out = tmp_path / "study"
    shutil.copytree(finished[0], out)
    (out / name).write_text("{")
    with pytest.raises(BadFile, match=r"^[^\n]+ is damaged: [^\n]+$"):
        velatura.study(tiny, photos, out=out, **BRIEF)


def test_copies_of_pictures_keep_repeats_masks_and_class_pictures(photos, tmp_path):
    folder = tmp_path / "held-out"  # as the folder of the held-out pictures is called
    for number, path in enumerate(sorted(photos.glob("*.png"))):
        place = folder / "3_robot" if number in (1, 2) else folder
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / f"{number}.png")
        (place / f"{number}.txt").write_text(f"robot {number}")
    for place in ("mask", "reg"):
        (folder / place).mkdir()
        shutil.copy(folder / "0.png", folder / place)
    (folder / "reg" / "0.txt").write_text("any robot")
    split = split_pictures(folder, tmp_path / "study")
    copied = velatura.read_dataset(split.data)
    found = {(example.caption, example.repeats, example.mask is not None) for example in copied.examples}
    # subfolders come last, so that the fourth picture, which is held out, is the second of 3_robot
    assert found == {("robot 0", 1, True), ("robot 3", 1, False), ("robot 1", 3, False)}
    assert [(example.caption, example.repeats) for example in velatura.read_dataset(split.held_out).examples] == [
        ("robot 2", 1)
    ]
    assert [example.caption for example in copied.regularisation] == ["any robot"]


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
