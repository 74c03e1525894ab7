"""Class pictures: learned from beside the others, so that the base keeps what it knows of their class."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import velatura
from velatura.cli.app import main
from velatura.datasets.folder import read_dataset
from velatura.errors import BadDataset, VelaturaWarning
from velatura.overlays.attach import attach
from velatura.training.data.cache import encode_dataset, encode_examples
from velatura.training.kinds.class_images import caption_class_pictures
from velatura.training.loss import denoising_errors
from velatura.training.noise import derive_seed, draw_batch
from velatura.training.optimizers import create_optimizer
from velatura.training.trainer import Trainer

PLAN = velatura.Plan(steps=2, batch_size=2, precision="float32", snapshot_every=0, validation_pictures=0)


@pytest.fixture
def classed(photos):
    """Photos with two class pictures, one of which counts three times."""
    inner = photos / "reg" / "3_a ball"
    inner.mkdir(parents=True)
    Image.new("RGB", (64, 64), "grey").save(inner / "one.png")
    (inner / "one.txt").write_text("a grey ball")
    Image.new("RGB", (64, 64), "black").save(photos / "reg" / "a black ball.png")
    return photos


def lessons(tiny, folder, **changes):
    return encode_dataset(tiny, velatura.Hypernetwork.for_base(tiny), read_dataset(folder), PLAN.replace(**changes))


def test_class_pictures_are_kept_apart_and_count_as_often_as_their_folder_says(tiny, classed):
    cache = lessons(tiny, classed)
    assert len(cache.latents) == 3
    assert cache.class_images is not None
    assert len(cache.class_images.latents) == 4


def test_a_folder_without_class_pictures_has_none(tiny, photos):
    assert lessons(tiny, photos).class_images is None


def test_class_pictures_of_no_weight_are_not_even_encoded(tiny, classed):
    assert lessons(tiny, classed, class_weight=0).class_images is None


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_loss_is_the_mean_over_pictures_and_class_pictures_weighed(tiny, classed, hyper, weight):
    plan, overlay = PLAN.replace(class_weight=weight), hyper()
    dataset = read_dataset(classed)
    pupil = Trainer(tiny, overlay, create_optimizer(plan, overlay.parameters()), lessons(tiny, classed), plan)
    expected = []
    with attach(tiny, overlay):
        overlay.train()
        for cache, seed in (
            (encode_examples(tiny, dataset.repeat_examples(), 64), plan.seed),
            (lessons(tiny, classed).class_images, derive_seed(plan.seed, "class pictures", 0)),
        ):
            count, shape = len(cache.latents), cache.latents.shape[1:]
            chance = draw_batch(seed, 0, batch_size=2, picture_count=count, latent_shape=shape)
            said = cache.captions.encode_fixed().select_rows(chance.pictures)
            with torch.no_grad():
                loss = denoising_errors(
                    tiny, cache.latents[chance.pictures], said, chance.noise, chance.timesteps
                ).mean()
            expected.append(loss.item())
        found = pupil.training_step(0, 1e-3)
    assert found == pytest.approx((expected[0] + weight * expected[1]) / 2, rel=1e-5)


def test_a_run_on_class_pictures_resumes_bit_for_bit(tiny, classed, hyper, tmp_path):
    plan = PLAN.replace(steps=3, snapshot_every=1)
    whole = velatura.train(tiny, hyper(), classed, plan, out=tmp_path / "whole")

    def stops(step):
        if step.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        velatura.train(tiny, hyper(), classed, plan, out=tmp_path / "parts", on_step=stops)
    resumed = velatura.resume(tiny, tmp_path / "parts")
    assert resumed.losses == whole.losses
    for name, weight in resumed.overlay.state_dict().items():
        assert torch.equal(weight, whole.overlay.state_dict()[name])


def test_a_run_is_told_when_its_class_pictures_changed(tiny, classed, hyper, tmp_path):
    def stops(_step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        velatura.train(tiny, hyper(), classed, PLAN, out=tmp_path / "run", on_step=stops)
    (classed / "reg" / "a black ball.png").unlink()
    with pytest.raises(BadDataset, match="1 missing"):
        velatura.resume(tiny, tmp_path / "run")


@pytest.mark.parametrize("name", ["0001", "IMG_4711", "a black ball"])
def test_class_pictures_without_captions_get_the_class_prompt(tiny, photos, tmp_path, name):
    inner = photos / "reg" / "2_balls"
    inner.mkdir(parents=True)
    Image.new("RGB", (64, 64), "black").save(inner / f"{name}.png")
    Image.new("RGB", (64, 64), "grey").save(photos / "reg" / "grey.png")
    (photos / "reg" / "grey.txt").write_text("a grey ball")
    overlay = velatura.Hypernetwork.for_base(tiny)
    with pytest.warns(VelaturaWarning, match=f"1 class picture without a caption, such as {name}, gets .* 'a ball'"):
        velatura.train(tiny, overlay, photos, PLAN, out=tmp_path / "run", class_prompt="a ball", class_pictures=2)
    captions = {example.path.stem: example.caption for example in read_dataset(photos).regularisation}
    assert captions == {name: "a ball", "grey": "a grey ball"}


def test_a_caption_that_cannot_be_written_is_refused_in_one_line(photos, monkeypatch):
    (photos / "reg").mkdir()
    Image.new("RGB", (64, 64), "black").save(photos / "reg" / "0001.png")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)  # as in a read-only folder
    with pytest.raises(BadDataset, match=r"0001\.png has no caption, and 0001\.txt cannot be written .* copy"):
        caption_class_pictures(photos, "a ball")
    assert not (photos / "reg" / "0001.txt").exists()


def test_the_command_takes_class_pictures_without_captions(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (photos / "reg").mkdir()
    Image.new("RGB", (64, 64), "black").save(photos / "reg" / "0001.png")
    words = ["train", "dreambooth", str(photos), "--class-prompt", "a ball", "--class-pictures", "1", "--steps", "1"]
    with pytest.warns(VelaturaWarning, match="gets the caption 'a ball'"):
        caption_class_pictures(photos, "a ball")
    assert main([*words, "--out", "run"]) == 0, capsys.readouterr().err
    assert (photos / "reg" / "0001.txt").read_text() == "a ball\n"
