"""A run that goes wrong is noticed, goes back, and is rescued or given up; one that goes well is left alone."""

import copy
import json
import math
import random
from dataclasses import replace

import pytest
import torch

import velatura
from velatura.datasets.folder import read_folder
from velatura.errors import TrainingDiverged, VelaturaWarning
from velatura.training import trainer as lessons
from velatura.training.data.cache import encode_examples
from velatura.training.guard import LOSS_WINDOW, LossMonitor
from velatura.training.loss import apply_zero_terminal_snr, denoising_errors
from velatura.training.validation import ValidationSet, is_noise, smoothness

PLAN = velatura.Plan(
    steps=40, batch_size=2, pixels=32, learning_rate="1e-3", snapshot_every=10, precision="float32", seed=2
)


@pytest.fixture
def learn(tiny, tmp_path):
    def run(out="run", *, on_step=None, **changes):
        overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", seed=0, name="neon")
        pictures = velatura.tiny_pictures("neon")
        return velatura.train(tiny, overlay, pictures, PLAN.replace(**changes), out=tmp_path / out, on_step=on_step)

    return run


def records(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def watched(losses, **known):
    watch = LossMonitor(**known)
    for loss in losses:
        watch = watch.with_loss(loss)
        if trouble := watch.loss_problem(0.3):
            return trouble
    return ""


# At 1e-3 the validation loss of this run falls from 0.50 to 0.29, at 0.1 without a guard it ends at 0.99
@pytest.mark.filterwarnings("ignore:.*goes up to")
def test_a_run_at_a_rate_a_hundred_times_too_high_is_rescued(learn):
    with pytest.warns(
        VelaturaWarning, match=r"validation loss is .*; back to step 0, with the planned learning rate times 0\.2"
    ):
        run = learn(learning_rate="1e-1")
    assert run.validation_losses[0] == pytest.approx(0.50, abs=0.02)
    assert run.validation_losses[40] < 0.8 * run.validation_losses[0]
    assert len(run.losses) == 40
    back = [record for record in records(run.folder) if "back_to" in record]
    assert [(each["back_to"], each["from"]) for each in back] == [(0, 10)] * len(back)
    rates = [record["rate"] for record in records(run.folder) if "rate" in record]
    assert rates[-1] == pytest.approx(0.1 * 0.2 ** len(back))


@pytest.mark.filterwarnings("ignore:.*goes up to")
def test_without_rescues_the_same_run_is_lost(learn):
    run = learn(learning_rate="1e-1", rescues=0)
    assert run.validation_losses[40] > 1.5 * run.validation_losses[0]


def test_a_run_that_goes_well_is_left_alone_and_its_best_snapshot_is_kept(learn):
    run = learn()
    best = min(run.validation_losses, key=run.validation_losses.__getitem__)
    assert velatura.open_overlay(run.best).card.steps == best
    assert run.best.name == "neon-best.safetensors"
    assert not [record for record in records(run.folder) if "back_to" in record]


def test_validation_is_the_same_for_every_seed(learn):
    one, two = learn("one", steps=1, snapshot_every=0), learn("two", steps=1, snapshot_every=0, seed=9)
    assert one.validation_losses[0] == two.validation_losses[0]
    assert one.losses != two.losses


@pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")
def test_a_run_that_cannot_be_rescued_is_given_up_with_its_last_good_snapshot(learn, monkeypatch, tmp_path):
    real, calls = lessons.denoising_errors, []

    def burst(*given, **options):
        calls.append(given)
        return real(*given, **options) if len(calls) <= 12 else torch.tensor(torch.nan, requires_grad=True)

    monkeypatch.setattr(lessons, "denoising_errors", burst)
    with pytest.raises(
        TrainingDiverged, match=r"NaN or infinite at step 11.*; 2 lower learning rates did not help: train anew"
    ) as lost:
        learn(rescues=2)
    assert len(calls) == 15
    kept = tmp_path / "run" / "snapshots" / "neon-000010.safetensors"
    assert lost.value.__notes__[0] == f"the overlay after step 10 of 40 is saved in {kept}"
    assert velatura.open_overlay(kept).card.steps == 10


@pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")
@pytest.mark.parametrize("until", [12, pytest.param(25, marks=pytest.mark.slow)])
def test_a_rescued_run_that_is_stopped_and_resumed_ends_the_same(tiny, learn, tmp_path, until):
    def stop(step):
        if step.done == until:
            raise KeyboardInterrupt

    whole = learn("whole", learning_rate="1e-1")
    with pytest.raises(KeyboardInterrupt):
        learn("stopped", learning_rate="1e-1", on_step=stop)
    resumed = velatura.resume(tiny, tmp_path / "stopped")
    assert resumed.file.read_bytes() == whole.file.read_bytes()
    assert resumed.losses == whole.losses
    assert resumed.validation_losses == whole.validation_losses


@pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")
def test_a_preview_of_noise_takes_a_run_back(learn, monkeypatch):
    noisy = iter([True])
    monkeypatch.setattr(lessons.Trainer, "is_noise", lambda *_: next(noisy, False))
    run = learn(steps=6, preview_every=5, snapshot_every=2)
    assert [(each["back_to"], each["because"]) for each in records(run.folder) if "back_to" in each] == [
        (4, "the preview at step 5 is coloured noise")
    ]


def test_noise_is_told_from_pictures(tiny):
    chance = torch.Generator().manual_seed(0)
    noise = tiny.encode(torch.rand(2, 3, 64, 64, generator=chance) * 2 - 1)
    painted = velatura.generate(tiny, "a red house on the beach", seed=1).image
    pixels = torch.tensor(list(painted.tobytes())).view(1, *painted.size, 3).permute(0, 3, 1, 2) / 127.5 - 1
    picture = tiny.encode(pixels)
    assert is_noise(noise, picture)
    assert not is_noise(picture, picture)


def test_smoothness_is_a_correlation():
    chance = torch.Generator().manual_seed(0)
    ramp = torch.arange(64.0).expand(1, 4, 64, 64)
    assert smoothness(torch.randn(1, 4, 64, 64, generator=chance)).item() == pytest.approx(0, abs=0.02)
    assert smoothness(ramp).item() == pytest.approx(1, abs=0.05)
    assert smoothness(torch.zeros(1, 4, 8, 8)).item() == 1


def test_losses_as_noisy_as_those_of_single_pictures_are_no_trouble():
    chance = random.Random(4)
    assert not watched([abs(chance.gauss(0.12, 0.1)) for _ in range(2000)])


def test_a_loss_that_rises_against_its_own_history_is_trouble():
    chance = random.Random(4)
    falling = [abs(chance.gauss(0.08, 0.05)) for _ in range(300)]
    rising = [abs(chance.gauss(0.25, 0.05)) for _ in range(LOSS_WINDOW)]
    assert watched(falling + rising).startswith(f"the mean loss of {LOSS_WINDOW} steps rose from 0.0")


def test_a_loss_above_the_limit_for_long_is_trouble_unless_the_base_has_it_too():
    high = [0.4] * LOSS_WINDOW
    assert watched(high, first=0.1) == f"the mean loss of {LOSS_WINDOW} steps is 0.4, above the limit of 0.3"
    assert not watched(high[1:], first=0.1)
    assert not watched(high, first=0.5)


def test_without_validation_the_first_steps_tell_the_loss_of_the_base():
    high = [0.4] * LOSS_WINDOW
    assert "above the limit of 0.3" in watched([0.1] * 4 + high)
    assert not watched(high)  # as high from the beginning: the pictures are far from the base
    assert not watched([0.5, 0.3, 0.6, 0.4, *high])


@pytest.mark.parametrize(
    ("loss", "trouble"),
    [(math.nan, "is NaN or infinite"), (0.7, "before the training"), (0.31, "rose from 0.2 to"), (0.25, "")],
)
def test_a_validation_loss_is_judged_by_the_first_and_the_best(loss, trouble):
    watch = LossMonitor().with_validation(0.5, 0).with_validation(0.2, 10).with_validation(0.22, 20)
    assert (watch.best, watch.best_step) == (0.2, 10)
    assert (trouble in watch.validation_problem(loss)) if trouble else watch.validation_problem(loss) == ""


def test_an_examination_is_of_all_timesteps(tiny, photos):
    cached = encode_examples(tiny, read_folder(photos), 16)
    examination = ValidationSet.from_cache(cached, 5, 1000)
    assert examination.timesteps.tolist() == [100, 300, 500, 700, 900]
    assert torch.equal(examination.latents, cached.latents[[0, 1, 2, 0, 1]])
    # Its parts are means over the rows below 500, and from 500 on
    found, alone = examination.loss(tiny), [row_loss(tiny, examination, row) for row in range(5)]
    assert found.low == pytest.approx(sum(alone[:2]) / 2, rel=1e-4)
    assert found.high == pytest.approx(sum(alone[2:]) / 3, rel=1e-4)
    assert found.mean == pytest.approx(sum(alone) / 5, rel=1e-4)
    assert found.low > found.high  # where there is much noise, most of the input is what is asked for


@torch.no_grad()
def row_loss(base, examination, row):
    rows = torch.tensor([row])
    cond = examination.captions.encode_for_validation(examination.pictures[rows])
    noise, timesteps = examination.noise[rows], examination.timesteps[rows]
    return denoising_errors(base, examination.latents[rows], cond, noise, timesteps).mean().item()


def test_an_examination_of_one_timestep_has_no_low_noise(tiny, photos):
    found = ValidationSet.from_cache(encode_examples(tiny, read_folder(photos), 16), 1, 1000).loss(tiny)
    assert found.low is None
    assert found.high == found.mean


@pytest.mark.parametrize("options", [{"prediction": "v_prediction"}, {"prediction": "v_prediction", "zero_snr": True}])
def test_both_parts_are_measured_for_every_prediction(tiny, photos, options):
    base = copy.copy(tiny)
    base.family = replace(tiny.family, prediction=options["prediction"])
    if "zero_snr" in options:
        base = apply_zero_terminal_snr(base, velatura.Plan(zero_terminal_snr=True))
    found = ValidationSet.from_cache(encode_examples(base, read_folder(photos), 16), 4, 1000).loss(base)
    assert all(math.isfinite(value) and value > 0 for value in (found.mean, found.low, found.high))
