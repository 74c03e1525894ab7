"""What UNets of inpainting and pix2pix models read beside the latents."""

import pytest
import torch

import velatura
from velatura.base.image_condition import blank_condition, edit_condition, masked_condition
from velatura.errors import UnsupportedBase


@pytest.fixture
def pixels():
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def heard(base, *args, **options):
    """Return what the UNet read."""
    inputs = []
    hook = base.unet.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        base.predict(*args, **options)
    finally:
        hook.remove()
    return inputs[0]


def test_a_base_says_what_its_unet_reads(tiny, inpainting, pix2pix):
    assert [base.input_channels for base in (tiny, inpainting, pix2pix)] == [4, 9, 8]
    assert [base.image_condition for base in (tiny, inpainting, pix2pix)] == [None, "inpainting", "pix2pix"]
    assert [base.latent_channels for base in (tiny, inpainting, pix2pix)] == [4, 4, 4]


def test_without_an_image_an_inpainting_model_reads_a_full_mask_and_a_grey_image(inpainting):
    # A1111's txt2img: an image of 0.5, which is 0 in the VAE's range, behind a mask of ones
    condition = blank_condition(inpainting, 16, 12)
    assert torch.equal(condition[:, :1], torch.ones(1, 1, 16, 12))
    assert torch.equal(condition[:, 1:], inpainting.encode(torch.zeros(1, 3, 64, 48)))


def test_without_an_image_a_pix2pix_model_reads_zeros(pix2pix):
    assert torch.equal(blank_condition(pix2pix, 16, 12), torch.zeros(1, 4, 16, 12))


def test_the_mask_is_that_of_the_nearest_pixel_and_the_image_is_grey_below_it(inpainting, pixels):
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 5:40] = 1  # in latents of four pixels: from the second, whose first pixel is not masked, to the tenth
    condition = masked_condition(inpainting, pixels, mask)
    assert condition[0, 0, 0].tolist() == [0, 0] + [1] * 8 + [0] * 6
    grey = torch.where(mask > 0, torch.zeros(()), pixels)
    assert torch.equal(condition[:, 1:], inpainting.encode(grey))


@pytest.mark.parametrize(("strength", "share"), [(0.0, 1.0), (0.25, 0.75), (1.0, 0.0)])
def test_the_strength_decides_how_much_of_the_image_is_hidden(inpainting, pixels, strength, share):
    condition = masked_condition(inpainting, pixels, strength=strength)
    assert torch.equal(condition[:, :1], torch.ones(1, 1, 16, 16))
    torch.testing.assert_close(condition[:, 1:], inpainting.encode(pixels * share), rtol=1e-4, atol=1e-5)


def test_the_condition_of_an_edit_is_not_scaled(pixels, pix2pix, xl):
    with torch.no_grad():
        for base in (pix2pix, xl):
            expected = base.vae.encode(pixels).latent_dist.mode()  # as diffusers' pipeline, "argmax"
            torch.testing.assert_close(edit_condition(base, pixels), expected)


@torch.no_grad()
def test_the_condition_comes_behind_the_latents(inpainting, pix2pix):
    latents, timestep = torch.randn(3, 4, 8, 8), torch.tensor(500)
    for base, channels in ((inpainting, 5), (pix2pix, 4)):
        context, condition = base.text.encode(["a"]).expand(3, -1, -1), torch.randn(1, channels, 8, 8)
        read = heard(base, latents, timestep, context, image_condition=condition)
        assert torch.equal(read, torch.cat([latents, condition.expand(3, -1, -1, -1)], dim=1))
        blank = heard(base, latents, timestep, context)
        assert torch.equal(blank[:, 4:], blank_condition(base, 8, 8).expand(3, -1, -1, -1))


@torch.no_grad()
def test_a_plain_base_reads_the_latents_alone(tiny):
    latents = torch.randn(1, 4, 8, 8)
    assert torch.equal(heard(tiny, latents, torch.tensor(500), tiny.text.encode(["a"])), latents)


def test_a_condition_for_another_kind_of_base_is_refused(tiny, inpainting):
    latents, timestep = torch.randn(1, 4, 8, 8), torch.tensor(500)
    for base, expected in ((tiny, "reads 0 channels"), (inpainting, "reads 5 channels")):
        with pytest.raises(UnsupportedBase, match=f"{expected} beside the latents, and the image condition has 4"):
            base.predict(latents, timestep, base.text.encode(["a"]), image_condition=torch.zeros(1, 4, 8, 8))


def test_the_condition_without_an_image_follows_the_precision_of_the_vae(tiny):
    from tests.conftest import widen

    base = widen(velatura.tiny(), 9, name="inpainting")
    with torch.inference_mode():
        first = base._blank_condition(8, 8)
    assert base._blank_condition(8, 8) is first
    assert not first.is_inference()  # so that gradients can go through the UNet that reads it
    base.to(dtype=torch.bfloat16)
    assert base._blank_condition(8, 8) is not first
