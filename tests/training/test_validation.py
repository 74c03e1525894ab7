"""The pictures that a run is examined on: a folder of their own, or those that are learned from."""

import shutil

import pytest
from PIL import Image

import velatura
from velatura.errors import BadDataset
from velatura.training.run.folder import RunFolder

PLAN = velatura.Plan(steps=2, batch_size=1, pixels=16, precision="float32", snapshot_every=1, validation_pictures=4)


@pytest.fixture
def others(tmp_path):
    folder = tmp_path / "others"
    folder.mkdir()
    for number, color in enumerate(("pink", "black")):
        Image.new("RGB", (32, 32), color).save(folder / f"{number} a {color} wall.png")
    return folder


@pytest.fixture
def learn(tiny, photos, tmp_path):
    def run(out, *, on_step=None, **changes):
        overlay = velatura.Hypernetwork.for_base(tiny, activation="relu", seed=3, name="inca")
        return velatura.train(tiny, overlay, photos, PLAN.replace(**changes), out=tmp_path / out, on_step=on_step)

    return run


def test_a_folder_of_its_own_changes_what_is_told_and_not_what_is_learned(learn, others):
    same, other = learn("same"), learn("other", validation_folder=str(others))
    assert same.losses == other.losses
    assert same.validation_losses.keys() == other.validation_losses.keys()
    assert all(same.validation_losses[step] != other.validation_losses[step] for step in same.validation_losses)
    assert same.file.read_bytes() == other.file.read_bytes()


def test_the_folder_is_known_from_anywhere(learn, others, monkeypatch):
    monkeypatch.chdir(others.parent)
    run = learn("run", validation_folder="others")
    kept = RunFolder(run.folder, "inca", None)
    assert kept.plan.validation_folder == str(others)
    assert sum(name.startswith("validation/") for name in kept.data_fingerprint) == 2


def test_pictures_that_are_learned_from_are_not_examined_on(learn, photos, tmp_path):
    with pytest.raises(
        BadDataset, match=r"red ball\.png is in the training folder and in the validation folder: choose a validation"
    ):
        learn("run", validation_folder=str(photos))
    assert not (tmp_path / "run").exists()


def test_a_missing_folder_is_said_before_the_run(learn, tmp_path):
    with pytest.raises(BadDataset, match="nowhere does not exist"):
        learn("run", validation_folder=str(tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_on_another_examination(tiny, learn, others, tmp_path):
    def stop(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn("run", validation_folder=str(others), on_step=stop)
    kept = shutil.move(others / "0 a pink wall.png", tmp_path)
    with pytest.raises(BadDataset, match=r"1 missing \(validation/0 a pink wall\.png\)"):
        velatura.resume(tiny, tmp_path / "run")
    shutil.move(kept, others)
    assert len(velatura.resume(tiny, tmp_path / "run").losses) == 2
