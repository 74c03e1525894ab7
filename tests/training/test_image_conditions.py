"""Overlays learn on inpainting and pix2pix models."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from PIL import Image

import velatura
from velatura.base.image_condition import blank_condition
from velatura.datasets.folder import read_dataset, read_folder
from velatura.errors import BadPlan, VelaturaWarning
from velatura.sampling.images import compute_image_hash, image_pixels
from velatura.sampling.recipe.recipe import Recipe
from velatura.training.data.cache import encode_examples, warn_of_pairs
from velatura.training.estimate import estimate
from velatura.training.kinds.class_images import make_class_pictures
from velatura.training.loss import denoising_errors
from velatura.training.validation import ValidationSet

KINDS = pytest.mark.parametrize("kind", ["inpainting", "pix2pix"])
PLAN = velatura.Plan(steps=2, learning_rate="1e-2", pixels=64, precision="float32", seed=1)
OVERLAYS = {
    "hypernet": lambda base: velatura.Hypernetwork.for_base(base, init="xavier_normal", seed=1),
    "lora": lambda base: velatura.Lora.for_base(base, rank=2, targets="conv", algorithm="locon", text=True, seed=1),
    "embedding": lambda base: velatura.Embedding.for_base(base, name="ball", vectors=1),
    "difference": velatura.Difference.for_base,
}


@pytest.fixture
def base(request, kind):
    return request.getfixturevalue(kind)


@pytest.fixture
def expect_warning(kind):
    """Expect the warning that a pix2pix model is trained without images to edit."""
    if kind == "inpainting":
        return nullcontext
    return lambda: pytest.warns(VelaturaWarning, match="no picture has what it was before an edit")


@KINDS
@torch.no_grad()
def test_the_loss_is_that_of_a_model_that_reads_no_image(base, kind, photos):
    """A1111 trains inpainting models behind its txt2img condition, a full mask."""
    cached = encode_examples(base, read_folder(photos), 64)
    noise, times = torch.randn(cached.latents.shape), torch.tensor([10, 400, 900])
    cond = cached.captions.encode_fixed().select_rows(torch.arange(3))
    noisy = base.schedule.add_noise(cached.latents, noise, times)
    condition = blank_condition(base, 16, 16)
    by_hand = base.predict(noisy, times, cond, image_condition=condition) - noise
    torch.testing.assert_close(
        denoising_errors(base, cached.latents, cond, noise, times).mean(), by_hand.square().mean()
    )


@KINDS
@pytest.mark.parametrize("overlay", list(OVERLAYS))
def test_every_kind_of_overlay_learns(base, overlay, photos, tmp_path, expect_warning):
    made = OVERLAYS[overlay](base)
    before = {name: weight.clone() for name, weight in made.named_parameters()}
    with expect_warning():
        run = velatura.train(base, made, photos, PLAN, out=tmp_path / "run")
    assert any(not torch.equal(before[name], weight) for name, weight in run.overlay.named_parameters())


@pytest.mark.parametrize("kind", ["inpainting", pytest.param("pix2pix", marks=pytest.mark.slow)])
def test_previews_are_painted_and_a_resumed_run_ends_alike(base, kind, photos, tmp_path, expect_warning):
    plan = PLAN.replace(preview_every=1, snapshot_every=1, validation_pictures=2, rescues=0)

    def stop(step):
        raise KeyboardInterrupt

    runs = {}
    for name in ("whole", "stopped"):
        overlay = OVERLAYS["hypernet"](base)
        with expect_warning():
            if name == "whole":
                runs[name] = velatura.train(base, overlay, photos, plan, out=tmp_path / name)
                continue
            with pytest.raises(KeyboardInterrupt):
                velatura.train(base, overlay, photos, plan, out=tmp_path / name, on_step=stop)
        with expect_warning():
            runs[name] = velatura.resume(base, tmp_path / name)
    whole, stopped = (runs[name].overlay.state_dict() for name in ("whole", "stopped"))
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)
    previews = [sorted((tmp_path / name / "previews").glob("*.png")) for name in ("whole", "stopped")]
    assert [len(paths) for paths in previews] == [3, 3]  # the first shows the base as it was
    assert previews[0][-1].read_bytes() == previews[1][-1].read_bytes()
    recipe = Recipe.from_image(previews[0][-1])
    assert (recipe.image_guidance == 1.5 and recipe.image_hash is not None) == (kind == "pix2pix")


@KINDS
def test_a_dry_run_estimates(base, kind):
    measured = estimate(base, OVERLAYS["lora"](base), PLAN)
    assert measured.seconds > 0


def test_it_learns_in_half_precision(inpainting, photos, tmp_path):
    plan = PLAN.replace(precision="bfloat16", steps=1)
    run = velatura.train(inpainting, OVERLAYS["hypernet"](inpainting), photos, plan, out=tmp_path / "run")
    assert len(run.losses) == 1


def test_class_pictures_of_a_pix2pix_model_are_refused(pix2pix, inpainting, photos):
    with pytest.raises(BadPlan, match=r"makes no pictures from a prompt alone: put 2 class pictures of .a ball. into"):
        make_class_pictures(pix2pix, photos, "a ball", 2, steps=1)
    assert len(make_class_pictures(inpainting, photos, "a ball", 2, steps=1)) == 2
    with pytest.warns(VelaturaWarning, match="was generated by inpainting"):
        assert make_class_pictures(pix2pix, photos, "a ball", 2, steps=1) == []


def test_velocity_is_learned_too(inpainting, photos, tmp_path):
    family = replace(inpainting.family, prediction="v_prediction")
    parts = {"unet": inpainting.unet, "vae": inpainting.vae, "text": inpainting.text, "schedule": inpainting.schedule}
    base = velatura.Base("v", family, **parts)
    assert len(velatura.train(base, OVERLAYS["lora"](base), photos, PLAN, out=tmp_path / "run").losses) == 2


@pytest.fixture
def pairs(tmp_path):
    """Red pictures that were blue before, and a fourth without a pair."""
    folder = tmp_path / "pairs"
    (folder / "before").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (64, 64), (200 + number, 30, 30)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("make it red")
        if number < 3:
            Image.new("RGB", (64, 64), (30, 30, 200 + number)).save(folder / "before" / f"{number}.png")
    return folder


@torch.no_grad()
def test_the_loss_of_pairs_is_that_of_a_model_that_reads_the_picture_before(pix2pix, pairs):
    """The UNet reads the mean of the VAE, without the scale of latents; zeros where there is no picture before."""
    cached = encode_examples(pix2pix, read_folder(pairs), 64)
    rows = torch.arange(4)
    noise, times = torch.randn(cached.latents.shape), torch.tensor([10, 400, 900, 50])
    cond = cached.captions.encode_fixed().select_rows(rows)
    expected = torch.zeros(4, 4, 16, 16)
    for number in range(3):
        pixels = image_pixels(Image.open(pairs / "before" / f"{number}.png"))
        expected[number] = pix2pix.vae.encode(pixels).latent_dist.mode()[0]
    condition = cached.draw_image_conditions(rows, seed=1, offset=0, dropout=0.0)
    torch.testing.assert_close(condition, expected)
    noisy = pix2pix.schedule.add_noise(cached.latents, noise, times)
    by_hand = pix2pix.predict(noisy, times, cond, image_condition=expected) - noise
    loss = denoising_errors(pix2pix, cached.latents, cond, noise, times, image_condition=condition).mean()
    torch.testing.assert_close(loss, by_hand.square().mean())
    validation = ValidationSet.from_cache(cached, 4, 1000)
    by_hand = pix2pix.predict(
        pix2pix.schedule.add_noise(validation.latents, validation.noise, validation.timesteps),
        validation.timesteps,
        validation.captions.encode_for_validation(validation.pictures),
        image_condition=expected,
    )
    assert validation.loss(pix2pix).mean == pytest.approx((by_hand - validation.noise).square().mean().item(), rel=1e-5)


def test_a_share_of_the_pictures_before_is_left_out_by_seed_and_step(pix2pix, pairs):
    cached = encode_examples(pix2pix, read_folder(pairs), 64)
    pictures = torch.arange(3).repeat(400)
    drawn = cached.draw_image_conditions(pictures, seed=1, offset=0, dropout=0.25)
    is_dropped = (drawn == 0).flatten(1).all(1)
    assert is_dropped.float().mean().item() == pytest.approx(0.25, abs=0.05)
    later = cached.draw_image_conditions(pictures[1:], seed=1, offset=1, dropout=0.25)
    assert torch.equal(later, drawn[1:])
    other = cached.draw_image_conditions(pictures, seed=2, offset=0, dropout=0.25)
    assert not torch.equal(other, drawn)


def test_pairs_are_trained_on_and_named_where_one_is_missing(pix2pix, tiny, pairs, tmp_path):
    plan = PLAN.replace(steps=2, batch_size=4, image_dropout=0, preview_every=2, validation_pictures=0, rescues=0)
    losses = {}
    with pytest.warns(VelaturaWarning, match=r"1 picture, as 3\.png, does not have what it was before an edit"):
        losses["pairs"] = velatura.train(pix2pix, OVERLAYS["hypernet"](pix2pix), pairs, plan, out=tmp_path / "a").losses
    with Image.open(tmp_path / "a" / "previews" / "overlay-000000.png") as preview:
        recipe = Recipe.from_image(preview.filename)
    assert recipe.image_hash == compute_image_hash(Image.open(pairs / "before" / "0.png").convert("RGB"))
    with pytest.warns(VelaturaWarning, match=r"3 pictures before an edit \(before/\) are not read: tiny is not"):
        warn_of_pairs(tiny, read_dataset(pairs))
    for path in (pairs / "before").iterdir():
        path.unlink()
    plan = plan.replace(preview_every=0)
    with pytest.warns(VelaturaWarning, match="no picture has what it was before"):
        losses["alone"] = velatura.train(pix2pix, OVERLAYS["hypernet"](pix2pix), pairs, plan, out=tmp_path / "b").losses
    assert losses["pairs"] != losses["alone"]
