"""A training knows when to stop, goes on from other overlays, and a finished one can be made longer."""

import json
import shutil
from contextlib import suppress

import pytest
import torch

import velatura
from velatura.cli.app import main
from velatura.errors import BadPlan, NoEffect
from velatura.training.guard import LossMonitor

PLAN = velatura.Plan(steps=8, batch_size=1, pixels=16, learning_rate="1e-3", precision="float32", validation_pictures=2)


def monitor(*losses, every=2):
    watched = LossMonitor()
    for number, loss in enumerate(losses):
        watched = watched.with_validation(loss, every * number)
    return watched


def test_patience_ends_after_so_many_snapshots_without_a_lower_loss():
    # snapshots at 0, 2, 4, 6, 8; the lowest loss at 4
    watched = monitor(5.0, 4.0, 3.0, 3.5, 3.1)
    assert not watched.is_out_of_patience(2, 2, 6)
    assert watched.is_out_of_patience(2, 2, 8)
    assert not watched.is_out_of_patience(3, 2, 8)
    assert not watched.is_out_of_patience(0, 2, 8)  # no patience, no end
    assert not watched.is_out_of_patience(2, 2, 9)  # not at a snapshot


@pytest.mark.parametrize("changes", [{"snapshot_every": 0}, {"validation_pictures": 0}])
def test_patience_without_validation_at_snapshots_is_refused(changes):
    with pytest.raises(BadPlan, match="patience = 2 has no effect without"):
        PLAN.replace(patience=2, **changes)


def test_patience_and_the_files_of_a1111_contradict_each_other(tiny, photos, tmp_path):
    overlay = velatura.Hypernetwork.for_base(tiny, name="inca")
    with pytest.raises(BadPlan, match="leave out a1111 or patience"):
        velatura.train(tiny, overlay, photos, PLAN, out=tmp_path / "run", a1111=True, patience=1, snapshot_every=2)


@pytest.fixture(scope="module")
def worsening(tiny, drawn, tmp_path_factory):
    """A run whose rate is so high from step 4 on that the loss rises."""
    folder = tmp_path_factory.mktemp("patience") / "run"
    overlay = velatura.Hypernetwork.for_base(tiny, seed=3, name="inca")
    fields = {"learning_rate": "3e-3:4, 0.04", "patience": 2, "snapshot_every": 2, "rescues": 0, "steps": 16}
    return velatura.train(tiny, overlay, drawn, PLAN.replace(**fields), out=folder)


def test_a_run_out_of_patience_ends_early_with_the_best_overlay(worsening):
    best_step = min(worsening.validation_losses, key=worsening.validation_losses.get)
    assert 0 < best_step < len(worsening.losses) < 16
    assert len(worsening.losses) == best_step + 4
    written, best = velatura.open_overlay(worsening.file), velatura.open_overlay(worsening.best)
    for name, weight in best.state_dict().items():
        assert torch.equal(weight, written.state_dict()[name])
        assert torch.equal(weight, worsening.overlay.state_dict()[name])
    assert written.card.steps == worsening.overlay.card.steps == best_step
    said = str(worsening.verdict)
    assert f"after {len(worsening.losses)} steps: the validation loss had not fallen for 2 snapshots" in said
    assert f"the overlay at step {best_step}" in said


def test_a_run_without_patience_ends_with_its_last_step(tiny, photos, tmp_path):
    overlay = velatura.Hypernetwork.for_base(tiny, seed=3, name="inca")
    run = velatura.train(tiny, overlay, photos, PLAN, out=tmp_path / "run", steps=2)
    assert run.overlay.card.steps == 2
    assert "ended" not in str(run.verdict)


@pytest.fixture(scope="module")
def finished(tiny, drawn, tmp_path_factory):
    """A run of 4 steps, and the run of 6 steps that it is a part of."""
    folder = tmp_path_factory.mktemp("longer")
    for steps in (4, 6):
        overlay = velatura.Hypernetwork.for_base(tiny, seed=3, name="inca")
        plan = PLAN.replace(steps=steps, snapshot_every=2)
        velatura.train(tiny, overlay, drawn, plan, out=folder / str(steps))
    return folder


def test_a_finished_run_is_made_longer_as_if_it_had_been_planned_so(tiny, finished, tmp_path):
    run = shutil.copytree(finished / "4", tmp_path / "run")
    before = (run / "inca.safetensors").read_bytes()
    longer = velatura.resume(tiny, run, steps=6)
    assert longer.file.read_bytes() == (finished / "6" / "inca.safetensors").read_bytes()
    assert len(longer.losses) == longer.overlay.card.steps == 6
    assert json.loads((run / "plan.json").read_text())["steps"] == 6
    assert longer.verdict.steps == json.loads((run / "verdict.json").read_text())["steps"] == 6
    assert (run / "snapshots" / "inca-000004-end.safetensors").read_bytes() == before


def test_steps_after_the_last_snapshot_are_taken_again_with_a_warning(tiny, finished, tmp_path):
    run = shutil.copytree(finished / "4", tmp_path / "run")
    for path in run.glob("snapshots/inca-000004*"):
        path.unlink()
    with pytest.warns(velatura.VelaturaWarning, match="step 2: the 2 steps after it are taken again"):
        longer = velatura.resume(tiny, run, steps=6)
    assert longer.file.read_bytes() == (finished / "6" / "inca.safetensors").read_bytes()


def test_a_run_is_made_longer_only_beyond_what_it_took(tiny, finished, tmp_path):
    run = shutil.copytree(finished / "4", tmp_path / "run")
    with pytest.raises(NoEffect, match="--steps"):
        velatura.resume(tiny, run)
    with pytest.raises(BadPlan, match="has taken 4 steps"):
        velatura.resume(tiny, run, steps=4)
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps(plan | {"learning_rate": "1e-3:4"}))
    with pytest.warns(velatura.VelaturaWarning), pytest.raises(BadPlan, match="ends at step 4"):
        velatura.resume(tiny, run, steps=6)
    assert (run / "inca.safetensors").exists()  # nothing was changed


def test_an_interrupted_run_is_made_longer_too(tiny, photos, tmp_path, finished):
    def stop(step):
        if step.done == 3:
            raise KeyboardInterrupt

    overlay = velatura.Hypernetwork.for_base(tiny, seed=3, name="inca")
    with suppress(KeyboardInterrupt):
        velatura.train(
            tiny, overlay, photos, PLAN.replace(steps=4, snapshot_every=2), out=tmp_path / "run", on_step=stop
        )
    longer = velatura.resume(tiny, tmp_path / "run", steps=6)
    assert longer.file.read_bytes() == (finished / "6" / "inca.safetensors").read_bytes()


SHORT = ["--steps", "1", "--batch", "1", "--pixels", "16", "--set", "validation_pictures=0", "--no-cache"]


def start_files(tiny, folder):
    """An overlay of each kind, in a file of another program where there is one."""
    hyper = velatura.Hypernetwork.for_base(tiny, name="old")
    hyper.card = hyper.card.replace(steps=700)
    lora = velatura.Lora.for_base(tiny, rank=2, name="old")
    lora.card = lora.card.replace(steps=700)
    embedding = velatura.Embedding.for_base(tiny, name="old", vectors=2)
    embedding.card = embedding.card.replace(steps=700)
    difference = velatura.Difference.for_base(tiny, name="old")
    difference.card = difference.card.replace(steps=700)
    velatura.save(hyper, folder / "hypernet.pt")
    velatura.save(lora, folder / "lora.safetensors", dialect="kohya")
    velatura.save(embedding, folder / "embedding.pt")
    velatura.save(difference, folder / "dreambooth.safetensors")


@pytest.fixture(scope="module")
def starts(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("starts")
    start_files(tiny, folder)
    return folder


@pytest.mark.parametrize("kind", ["hypernet", "lora", "embedding", "dreambooth"])
def test_start_goes_on_from_any_file_of_the_kind_and_counts_steps_on(kind, starts, photos, tmp_path, capsys):
    [file] = starts.glob(f"{kind}.*")
    words = ["train", kind, str(photos), "--start", str(file), "--name", "new", "--out", str(tmp_path / "run"), *SHORT]
    words += ["--template", "subject"] if kind == "embedding" else []
    assert main(words) == 0, capsys.readouterr().err
    result = velatura.open_overlay(tmp_path / "run" / "new.safetensors")
    assert (result.card.steps, result.card.name) == (701, "new")


def test_start_refuses_other_kinds_and_options_of_a_new_overlay(starts, photos, capsys):
    words = ["train", "lora", str(photos), "--start", str(starts / "hypernet.pt")]
    assert main(words) == 2
    assert "is a hypernetwork, and --start needs a LoRA" in capsys.readouterr().err
    words = ["train", "lora", str(photos), "--start", str(starts / "lora.safetensors"), "--rank", "8"]
    assert main(words) == 2
    assert "has a structure already, which --start keeps: leave out --rank" in capsys.readouterr().err


def test_the_command_makes_a_run_longer(finished, tmp_path, capsys):
    run = shutil.copytree(finished / "4", tmp_path / "run")
    assert main(["resume", str(run)]) == 2
    assert "--steps" in capsys.readouterr().err
    assert main(["resume", str(run), "--steps", "5"]) == 0
    assert velatura.open_overlay(run / "inca.safetensors").card.steps == 5
