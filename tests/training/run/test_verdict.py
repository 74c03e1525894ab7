"""A finished run says what its numbers say, and which pictures to look at."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import velatura
from velatura.errors import NanLatents, VelaturaWarning
from velatura.overlays.effect import Effect, OutputEffect, WidthEffect, WordEffect
from velatura.training.run import end_sheet
from velatura.training.run.end_sheet import is_sheet_due, mean_change, paint_end_sheet
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
    many = end_sheet.make_pictures
    monkeypatch.setattr(
        end_sheet,
        "make_pictures",
        lambda base, recipes, **options: many(base, [recipe.replace(steps=1) for recipe in recipes], **options),
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


# Runs of 60 steps on the bundled neon pictures, see verdict.py: losses, effect, and what was seen
@pytest.mark.parametrize(
    ("before", "after", "effect", "is_little", "is_strong"),
    [
        (0.5237, 0.4973, 0.02, True, False),
        (0.5232, 0.2582, 0.34, False, False),
        (0.5235, 0.1926, 1.5, False, True),
        (0.5235, 0.5177, 0.001, True, False),
        (0.5235, 0.4470, 0.02, False, False),
        (0.5235, 0.2214, 0.16, False, False),
        (0.5235, 0.4689, 32.0, False, True),
        (0.5192, 0.5060, None, False, False),
        (None, None, 0.001, True, False),
        (float("nan"), float("nan"), 0.3, False, False),
    ],
)
def test_little_is_learned_only_if_neither_loss_nor_effect_moved(before, after, effect, is_little, is_strong):
    assert little_was_learned(before, after, effect) is is_little
    assert overpowers(effect) is is_strong


def test_advice_is_in_the_units_of_the_options():
    little = Verdict(file=FILE, kind="hypernet", steps=60, rate=3e-5, effect=0.02, little_learned=True)
    assert dict(rows(little))["little was learned"] == "try ten times the rate: 0.0003"
    prodigy = Verdict(file=FILE, kind="hypernet", steps=60, rate=1, finds_rate=True, effect=0.02, little_learned=True)
    assert dict(rows(prodigy))["little was learned"] == "train for more steps"
    strong = Verdict(file=FILE, kind="hypernet", steps=60, rate=1, effect=9.0, overpowers=True)
    assert "0.5 to 0.7" in dict(rows(strong))["strong at strength 1"]


def test_commands_can_be_pasted():
    assert sheet_command("hypernet", FILE, "a red house", "tiny") == (
        "velatura grid 'a red house <hypernet:inca:{strength}>' --x strength=0,0.5,1,1.5 --library runs/inca "
        "--out runs/inca/strengths.png"
    )
    assert "--base 'my sd15'" in sheet_command("lora", FILE, "a house", "my sd15")
    assert sheet_command("embedding", FILE, "a house in inca", "tiny") == (
        "velatura generate 'a house in inca' --library runs/inca"
    )
    assert a1111_command("embedding", FILE) == "velatura convert runs/inca/inca.safetensors runs/inca/inca.pt"
    assert a1111_command("lora", FILE) == a1111_command("difference", FILE) == ""


def test_the_mean_change_counts_k_v_and_outputs_alike():
    measured = Effect(
        overlay="o",
        target="t",
        widths=(WidthEffect(width=64, layers=2, k=0.1, v=0.3),),
        outputs=(OutputEffect(part="mid", layers=1, change=0.5), OutputEffect(part="in", layers=1)),
    )
    assert mean_change(measured) == pytest.approx(0.3)
    words = (WordEffect(word="inca", vectors=1, length=1.0, named=True),)
    assert mean_change(Effect(overlay="o", target="t", words=words)) is None


def test_a_sheet_is_painted_where_it_is_cheap_or_asked_for(tiny, xl):
    assert [is_sheet_due(tiny, asked) for asked in (None, True, False)] == [True, True, False]
    assert [is_sheet_due(xl, asked) for asked in (None, True, False)] == [False, True, False]


@pytest.mark.usefixtures("quick")
def test_the_sheet_has_a_row_for_each_of_two_prompts_and_changes_nothing(learn):
    plain, shown = learn("plain"), learn("shown", end_sheet=True)
    assert shown.file.read_bytes() == plain.file.read_bytes()
    assert shown.losses == plain.losses
    assert shown.verdict.pictures == (shown.folder / "strengths.png",)
    assert 0 < shown.verdict.effect < 1
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
    assert (sheet.effect is None) == (kind == "embedding")
    assert all(map(torch.equal, tiny.unet.parameters(), before))
    measured = paint_end_sheet(tiny, overlay, ["a red house"], 7, path=None)
    assert measured.path is None
    assert (measured.effect is None) == (kind == "embedding")


def test_an_overlay_that_changes_nothing_has_no_effect(tiny):
    untrained = velatura.Lora.for_base(tiny, rank=2, name="none")
    assert paint_end_sheet(tiny, untrained, ["a house"], 7, path=None).effect == 0


@pytest.mark.parametrize("error", [NanLatents("not a number"), torch.OutOfMemoryError("no memory"), OSError("full")])
def test_a_sheet_that_fails_never_loses_the_overlay(learn, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(end_sheet, "make_pictures", fail)
    with pytest.warns(VelaturaWarning, match=f"the overlay is written, but .* not painted: .*{error}"):
        run = learn(end_sheet=True)
    assert run.file.exists()
    assert run.verdict.sheet_command


def test_an_interruption_while_the_sheet_is_painted_says_that_the_overlay_is_written(learn, monkeypatch, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(end_sheet, "make_pictures", interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        learn(end_sheet=True)
    assert "its overlay is written" in caught.value.__notes__[0]
    assert (tmp_path / "run" / "inca.safetensors").exists()
