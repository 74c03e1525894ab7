"""The training loop: repeatable, harmless to the base, and never without a snapshot."""

import json
import shutil
from statistics import fmean

import pytest
import torch

import velatura
from velatura.datasets.folder import read_folder
from velatura.errors import AlreadyExists, BadDataset, BadFile, BadPlan, TrainingDiverged, VelaturaWarning, WrongBase
from velatura.formats import save as formats_save
from velatura.overlays.structure import HypernetworkStructure
from velatura.training import trainer
from velatura.training.data.cache import encode_examples
from velatura.training.loss import denoising_errors

PLAN = velatura.Plan(
    steps=3,
    batch_size=2,
    pixels=32,
    learning_rate="3e-3:1, 1e-3",
    snapshot_every=2,
    precision="float32",
    validation_pictures=2,
    rescues=0,
)


@pytest.fixture
def learn(tiny, photos, tmp_path):
    """Return a function that trains a small hypernetwork for a few steps."""

    def run(out="run", *, seed=0, on_step=None, on_stage=None, dropout=0.2, **changes):
        overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", dropout=dropout, seed=seed, name="inca")
        plan = PLAN.replace(seed=seed, **changes)
        return velatura.train(tiny, overlay, photos, plan, out=tmp_path / out, on_step=on_step, on_stage=on_stage)

    return run


def log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_runs_of_a_plan_are_equal_bit_for_bit(learn, precision):
    one, two = learn("one", precision=precision), learn("two", precision=precision)
    assert one.losses == two.losses
    assert all(map(torch.equal, one.overlay.parameters(), two.overlay.parameters()))


def test_another_seed_is_another_run(learn):
    assert learn("one").losses != learn("two", seed=1).losses


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_base_comes_out_as_it_went_in(tiny, learn, precision):
    def layouts():
        weights = tiny.unet.state_dict(keep_vars=True).items()
        return [(key, weight.dtype, weight.stride(), weight.requires_grad) for key, weight in weights]

    before, layout = {key: weight.clone() for key, weight in tiny.unet.state_dict().items()}, layouts()
    learn(precision=precision)
    assert layouts() == layout
    assert all(torch.equal(before[key], weight) for key, weight in tiny.unet.state_dict().items())
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in tiny.unet.modules())


def test_training_leaves_the_random_state_of_the_caller_alone(learn):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    learn()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("changes", "total"), [({}, 6), ({"flip": True}, 9), ({"class_weight": 0.0}, 3)])
def test_every_picture_is_prepared_once_and_counted_once(learn, photos, drawn, changes, total):
    """Three pictures that repeat, their mirror images, which class pictures do not have, and three class pictures."""
    shutil.rmtree(photos)
    shutil.copytree(drawn, photos / "2_ball")
    shutil.copytree(drawn, photos / "reg" / "2_ball")
    stages = []
    learn(steps=2, on_stage=stages.append, **changes)
    told = [(stage.done, stage.total) for stage in stages if stage.name == "preparing pictures"]
    assert told == [(done, total) for done in range(1, total + 1)]


@torch.no_grad()
def loss_of(base, overlay, cached):
    """The loss on fixed pictures, timesteps and noise, with the overlay at full strength."""
    noise = torch.randn((12, *cached.latents.shape[1:]), generator=torch.Generator().manual_seed(6))
    chosen = torch.arange(12) % len(cached.latents)
    with velatura.attach(base, overlay):
        latents, contexts = cached.latents[chosen], cached.captions.encode_fixed().context[chosen]
        return denoising_errors(base, latents, contexts, noise, torch.arange(50, 950, 75)).mean().item()


@pytest.mark.filterwarnings("ignore::velatura.VelaturaWarning")  # a single step does not reach all of the plan
def test_training_lowers_the_loss(tiny, learn, photos):
    cached = encode_examples(tiny, read_folder(photos), 32)
    barely, well = (learn(out, steps=steps, batch_size=4, dropout=0.0) for out, steps in (("barely", 1), ("well", 20)))
    assert loss_of(tiny, well.overlay, cached) < 0.97 * loss_of(tiny, barely.overlay, cached)


def test_the_folder_records_the_run(learn):
    run = learn()
    assert sorted(path.name for path in run.folder.rglob("*.*")) == [
        "data.json",
        "inca-000002.safetensors",
        "inca-000002.state",
        "inca-best.safetensors",
        "inca.safetensors",
        "log.jsonl",
        "loss.png",
        "plan.json",
        "verdict.json",
    ]
    header, *others = log(run.folder)
    steps = [record for record in others if "loss" in record]
    validations = [record for record in others if "validated" in record]
    assert {record["validated"]: record["validation"] for record in validations} == run.validation_losses
    assert {record["validated"]: record["high_noise"] for record in validations} == run.high_noise_losses
    assert all(record["low_noise"] > record["validation"] > record["high_noise"] for record in validations)
    for record in validations:  # one error for each row in the noisier half
        assert fmean(record["high_noise_errors"]) == pytest.approx(record["high_noise"], rel=1e-5)
        assert len(record["high_noise_errors"]) == 1  # of two
    assert (header["base"], header["pictures"], header["overlay"]["name"]) == ("tiny", 3, "inca")
    assert [(step["step"], step["rate"]) for step in steps] == [(1, 0.003), (2, 0.001), (3, 0.001)]
    assert [step["loss"] for step in steps] == run.losses


def test_without_a_plan_it_is_the_preset(tiny, photos, tmp_path, hyper):
    def stop(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        velatura.train(tiny, hyper(), photos, out=tmp_path / "run", on_step=stop)
    written = velatura.Plan.model_validate_json((tmp_path / "run" / "plan.json").read_text())
    assert written == velatura.Plan.preset("hypernet", "tiny")


def test_the_final_overlay_is_saved(learn):
    run = learn()
    saved = velatura.open_overlay(run.file)
    assert saved.card == run.overlay.card
    assert saved.card.steps == 3
    assert all(map(torch.equal, saved.parameters(), run.overlay.parameters()))
    assert not run.overlay.training


def test_a_schedule_that_ends_early_ends_the_training(learn):
    with pytest.warns(VelaturaWarning, match="after 2 of 10 steps"):
        assert len(learn(steps=10, learning_rate="1e-3:2").losses) == 2


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_whatever_stops_a_run_a_note_names_the_snapshot_that_is_saved(learn, tmp_path, failure):
    def stop(step):
        if step.done == 1:
            raise failure

    with pytest.raises(failure) as stopped:
        learn(on_step=stop)
    saved = tmp_path / "run" / "snapshots" / "inca-000001.safetensors"
    assert str(saved) == stopped.value.__notes__[0].split()[-1]
    assert velatura.open_overlay(saved).card.steps == 1
    assert not (tmp_path / "run" / "inca.safetensors").exists()


def test_the_snapshot_of_an_interrupted_run_equals_that_of_a_whole_one(learn, tmp_path):
    def stop(step):
        if step.done == 2:
            raise KeyboardInterrupt

    whole = learn("whole")
    with pytest.raises(KeyboardInterrupt):
        learn("stopped", on_step=stop, snapshot_every=0)
    snapshots = [path / "snapshots" / "inca-000002.safetensors" for path in (whole.folder, tmp_path / "stopped")]
    unbroken, saved = map(velatura.open_overlay, snapshots)
    assert all(map(torch.equal, unbroken.parameters(), saved.parameters()))


def test_a_nan_loss_stops_the_run_before_the_optimizer_step(learn, monkeypatch, tmp_path):
    losses = iter([trainer.denoising_errors])

    def diverge(*arguments, **options):
        return next(losses, lambda *_, **__: torch.tensor(torch.nan, requires_grad=True))(*arguments, **options)

    monkeypatch.setattr(trainer, "denoising_errors", diverge)
    with pytest.raises(TrainingDiverged, match=r"step 2 \(learning rate 0\.001\): lower the learning rate"):
        learn()
    saved = velatura.open_overlay(tmp_path / "run" / "snapshots" / "inca-000001.safetensors")
    assert all(weight.isfinite().all() for weight in saved.parameters())


@pytest.mark.filterwarnings("ignore:.*(will probably diverge|denormal numbers):velatura.VelaturaWarning")
def test_nan_and_infinite_weights_are_never_saved(learn, tmp_path):
    # AdamW multiplies weights by 1 - rate x decay: by 0 at the first step, by -1e39 at the second
    with pytest.raises(TrainingDiverged, match=r"weights became NaN or infinite at step 2 .*: lower the learning rate"):
        learn(learning_rate="1e-39:1, 1", weight_decay=1e39, steps=2, snapshot_every=1)
    assert not (tmp_path / "run" / "inca.safetensors").exists()
    saved = sorted((tmp_path / "run" / "snapshots").glob("*.safetensors"))
    assert saved
    assert all(weight.isfinite().all() for path in saved for weight in velatura.open_overlay(path).parameters())


def test_a_run_without_a_step_leaves_no_folder_behind(learn, monkeypatch, tmp_path):
    with monkeypatch.context() as bad:
        bad.setattr(trainer, "denoising_errors", lambda *_, **__: torch.tensor(torch.nan, requires_grad=True))
        with pytest.raises(TrainingDiverged):
            learn()
    assert not (tmp_path / "run").exists()
    assert len(learn().losses) == 3


@pytest.mark.parametrize(("failure", "raised"), [(KeyboardInterrupt, KeyboardInterrupt), (OSError, BadFile)])
def test_a_final_overlay_that_cannot_be_written_leaves_a_snapshot(learn, monkeypatch, tmp_path, failure, raised):
    save = formats_save.save

    def full(overlay, path):
        if path.name == "inca.safetensors":
            raise failure
        save(overlay, path)

    monkeypatch.setattr(formats_save, "save", full)
    with pytest.raises(raised) as stopped:
        learn(snapshot_every=0)
    saved = tmp_path / "run" / "snapshots" / "inca-000003.safetensors"
    assert velatura.open_overlay(saved).card.steps == 3
    assert str(saved) in stopped.value.__notes__[0]


def test_a_full_disk_does_not_hide_why_a_run_stopped(learn, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    def stop(step):
        monkeypatch.setattr("velatura.formats.save.save", full)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        learn(on_step=stop)
    assert "could not be saved" in stopped.value.__notes__[0]


def test_an_occupied_folder_is_refused_before_anything_else(tiny, tmp_path, hyper):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plan.json").touch()
    with pytest.raises(AlreadyExists, match="name another folder"):
        velatura.train(tiny, hyper(), tmp_path / "nowhere", PLAN, out=tmp_path / "run")


def test_previews_are_pictures_by_the_overlay_and_change_nothing(learn):
    plain, shown = learn("plain"), learn("shown", preview_every=2, preview_prompt="a red ball")
    names = sorted(path.name for path in (shown.folder / "previews").iterdir())
    assert names == ["inca-000000.png", "inca-000002.png"]
    assert plain.losses == shown.losses


def test_a_preview_that_cannot_be_made_is_refused_before_the_run(learn, tmp_path):
    with pytest.raises(BadPlan, match="write a preview prompt without tags"):
        learn(preview_every=1, preview_prompt="a red ball <hypernet:other:1>")
    assert not (tmp_path / "run").exists()


def test_a_bad_folder_or_a_wrong_base_leaves_nothing_behind(tiny, photos, tmp_path, learn):
    (photos / "3 a broken picture.png").write_bytes(b"no picture")
    with pytest.raises(BadDataset):
        learn()
    (photos / "3 a broken picture.png").unlink()
    structure = HypernetworkStructure.from_fields({"widths": (768,)}).model_dump(mode="json")
    overlay = velatura.Hypernetwork(velatura.Card(kind="hypernet", structure=structure))
    with pytest.raises(WrongBase):
        velatura.train(tiny, overlay, photos, PLAN, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
