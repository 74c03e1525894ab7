"""A finished run says what its numbers say, and which pictures to look at."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import velatura
from velatura.errors import NanLatents, VelaturaWarning
from velatura.training.run import end_sheet
from velatura.training.run.end_sheet import is_sheet_due, paint_end_sheet
from velatura.training.run.stored_verdict import read_verdict
from velatura.training.run.verdict import Verdict, a1111_command, little_was_learned, overpowers, sheet_command

PLAN = velatura.Plan(
    steps=4, batch_size=1, pixels=16, learning_rate="1e-3", precision="float32", validation_pictures=2, snapshot_every=2
)
FILE = Path("runs/inca/inca.safetensors")


@pytest.fixture
def learn(tiny, photos, tmp_path):
    def run(out="run", **changes):
        overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", seed=3, name="inca")
        return velatura.train(tiny, overlay, photos, PLAN.replace(**changes), out=tmp_path / out)

    return run


@pytest.fixture
def quick(monkeypatch):
    """Paint sheets with a single step for each picture."""
    paint = end_sheet.make_pictures
    monkeypatch.setattr(
        end_sheet,
        "make_pictures",
        lambda base, recipes, image: paint(base, [recipe.replace(steps=1) for recipe in recipes], image),
    )


def rows(verdict):
    return [(line[:21].rstrip(), line[21:]) for line in str(verdict).splitlines()]


def test_a_verdict_gives_the_losses_the_best_snapshot_and_the_pictures(learn):
    run = learn(preview_every=2)
    verdict = run.verdict
    assert (verdict.validation_before, verdict.validation_after) == (run.validation_losses[0], run.validation_losses[4])
    high = run.high_noise_losses
    assert (verdict.high_noise_before, verdict.high_noise_after) == (high[0], high[4])
    lowest = min(run.validation_losses, key=run.validation_losses.get)
    assert (verdict.best_step, verdict.best_loss, verdict.best) == (lowest, run.validation_losses[lowest], run.best)
    assert (verdict.steps, verdict.rate, verdict.rescues) == (4, 1e-3, 0)
    said = dict(rows(verdict))
    assert said["at high noise"] == f"{high[0]:.3g} before, {high[4]:.3g} after"
    assert said["look at"] == f"{run.folder / 'previews.png'}"
    assert said["losses"].startswith(f"{run.folder / 'loss.png'}; ")
    assert said["for A1111"] == f"velatura convert {run.file} {run.file.with_suffix('.pt')}"
    assert "good" not in str(verdict).replace("whether the pictures are good", "")


def test_a_run_without_validation_has_a_verdict_too(learn):
    verdict = learn(validation_pictures=0).verdict
    assert (verdict.validation_before, verdict.best, verdict.little_learned) == (None, None, False)
    assert not {"validation loss", "best snapshot"} & {label for label, _ in rows(verdict)}


def test_a_file_for_a1111_that_the_run_wrote_is_named(learn):
    run = learn(a1111=True)
    assert dict(rows(run.verdict))["for A1111"] == f"{run.folder / 'inca.pt'}"


@pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")
def test_the_rate_that_served_after_a_rescue_is_said(learn, monkeypatch):
    broken = iter([True])
    monkeypatch.setattr(
        "velatura.training.guard.LossMonitor.validation_problem", lambda *_: "wrong" if next(broken, False) else ""
    )
    verdict = learn().verdict
    assert (verdict.rescues, verdict.rate) == (1, pytest.approx(2e-4))  # the plan's rate times 0.2
    assert dict(rows(verdict))["rescues"].startswith("went back 1 time; a learning rate of 0.0002 served")


# Runs of 50 steps on the bundled neon pictures: losses, effect, and whether little was learned
@pytest.mark.parametrize(
    ("before", "after", "effect", "is_little"),
    [
        (0.484, 0.423, 0.21, False),
        (0.484, 0.212, 1.03, False),
        (0.468, 0.335, 0.74, False),
        (0.484, 0.470, 0.02, True),
        (0.484, 0.470, 0.50, False),
        (None, None, 0.001, True),
        (0.52, 0.51, None, False),
        (float("nan"), float("nan"), 0.9, False),
    ],
)
def test_little_is_learned_only_if_neither_loss_nor_effect_moved(before, after, effect, is_little):
    assert little_was_learned(before, after, effect) is is_little


# How often the bound is right is tested with the table of docs/training.md, in tests/tools/test_prompt_effect.py
@pytest.mark.parametrize(("prompt_left", "is_strong"), [(0.93, False), (0.2, False), (0.199, True), (-0.1, True)])
def test_an_overlay_overpowers_if_it_leaves_little_of_the_prompt(prompt_left, is_strong):
    assert overpowers(prompt_left) is is_strong


def test_what_was_not_measured_does_not_overpower():
    assert not overpowers(None)


def test_advice_is_in_the_units_of_the_options():
    little = Verdict(file=FILE, kind="hypernet", steps=60, rate=3e-5, effect=0.02, little_learned=True)
    assert dict(rows(little))["little was learned"] == "try ten times the rate: 0.0003"
    prodigy = Verdict(file=FILE, kind="hypernet", steps=60, rate=1, finds_rate=True, effect=0.02, little_learned=True)
    assert dict(rows(prodigy))["little was learned"] == "train for more steps"


@pytest.mark.parametrize("kind", ["hypernet", "lora", "embedding", "difference"])
def test_a_strong_overlay_is_answered_with_the_strength_that_was_measured(kind):
    strong = Verdict(file=FILE, kind=kind, steps=60, rate=1, effect=1.5, prompt_left=0.1, overpowers=True)
    milder = dict(rows(replace(strong, milder_strength=0.4)))["strong at strength 1"]
    assert f"write <{kind}:inca:0.4>" in milder
    nowhere = dict(rows(strong))["strong at strength 1"]
    assert "not even at 0.2 is enough of it left" in nowhere
    assert "<" not in nowhere
    assert dict(rows(strong))["effect at strength 1"] == (
        "changes predictions 1.5 times as much as a prompt does; 10% of what a prompt does is left"
    )
    tuned = dict(rows(replace(strong, strength=0.7, strength_note="best strength 0.7, 89% of the prompt kept")))
    assert "strong at strength 1" not in tuned
    assert tuned["effect at strength 1"] == "changes predictions 1.5 times as much as a prompt does"


def test_commands_can_be_pasted():
    assert sheet_command("hypernet", FILE, "a red house", "tiny") == (
        "velatura grid 'a red house <hypernet:inca:{strength}>' --x strength=0,0.5,1,1.5 --library runs/inca "
        "--out runs/inca/strengths.png"
    )
    assert "--base 'my sd15'" in sheet_command("lora", FILE, "a house", "my sd15")
    assert "'a house in inca <embedding:inca:{strength}>'" in sheet_command(
        "embedding", FILE, "a house in inca", "tiny"
    )
    assert a1111_command("embedding", FILE) == "velatura convert runs/inca/inca.safetensors runs/inca/inca.pt"
    assert a1111_command("lora", FILE) == a1111_command("difference", FILE) == ""


def test_a_sheet_is_painted_where_it_is_cheap_or_asked_for(tiny, xl):
    assert [is_sheet_due(tiny, asked) for asked in (None, True, False)] == [True, True, False]
    assert [is_sheet_due(xl, asked) for asked in (None, True, False)] == [False, True, False]


@pytest.mark.usefixtures("quick")
def test_the_sheet_has_a_row_for_each_of_two_prompts_and_changes_nothing(learn):
    plain, shown = learn("plain"), learn("shown", end_sheet=True)
    assert shown.file.read_bytes() == plain.file.read_bytes()
    assert shown.losses == plain.losses
    assert shown.verdict.pictures == (shown.folder / "strengths.png",)
    assert shown.verdict.effect > 0
    assert 0 < shown.verdict.prompt_left < 2
    assert read_verdict(shown.folder) == replace(shown.verdict, sheet_command="")
    with Image.open(shown.folder / "strengths.png") as sheet:  # pictures of 64 pixels, enlarged threefold
        assert sheet.width > 4 * 192
        assert 2 * 192 < sheet.height < 3 * 192
    assert not plain.verdict.pictures
    assert plain.verdict.sheet_command.startswith("velatura grid '")
    assert "a red ball <hypernet:inca:{strength}>' --x" in plain.verdict.sheet_command


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["hypernet", "lora", "embedding", "difference"])
def test_overlays_of_every_kind_are_painted(tiny, request, tmp_path, kind):
    overlay = request.getfixturevalue({"hypernet": "hyper"}.get(kind, kind))()
    before = [weight.clone() for weight in tiny.unet.parameters()]
    sheet = paint_end_sheet(tiny, overlay, ["a red house", "a red house", "a boat"], 7, path=tmp_path / "sheet.png")
    assert sheet.path.exists()
    assert sheet.effect.change > 0
    assert all(map(torch.equal, tiny.unet.parameters(), before))


@pytest.mark.parametrize("error", [NanLatents("not a number"), torch.OutOfMemoryError("no memory"), OSError("full")])
def test_a_sheet_that_fails_never_loses_the_overlay(learn, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(end_sheet, "make_pictures", fail)
    with pytest.warns(VelaturaWarning, match=f"the overlay is written, but .* not painted: .*{error}"):
        run = learn(end_sheet=True)
    assert run.file.exists()
    assert run.verdict.sheet_command


def test_what_fails_without_a_sheet_does_not_speak_of_one(tiny, hyper, monkeypatch):
    def fail(*_, **__):
        raise NanLatents("not a number")

    monkeypatch.setattr(end_sheet, "measure_effect", fail)
    message = "^the overlay is written, but its effect was not measured: not a number$"
    with pytest.warns(VelaturaWarning, match=message):
        assert paint_end_sheet(tiny, hyper(), ["a red house"], 7, path=None) == end_sheet.EndSheet()

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(end_sheet, "measure_effect", interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        paint_end_sheet(tiny, hyper(), ["a red house"], 7, path=None)
    assert caught.value.__notes__ == ["the run is finished and its overlay is written, but its effect was not measured"]


def test_an_interruption_while_the_sheet_is_painted_says_that_the_overlay_is_written(learn, monkeypatch, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(end_sheet, "make_pictures", interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        learn(end_sheet=True)
    assert caught.value.__notes__[0].endswith("its overlay is written, but its sheet of strengths was not painted")
    assert (tmp_path / "run" / "inca.safetensors").exists()
