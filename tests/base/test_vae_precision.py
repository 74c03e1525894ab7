"""Autoencoders that overflow in half precision, and how much memory a base takes."""

from copy import deepcopy

import pytest
import torch

import velatura
from velatura.base.text_encoder import TextEncoder
from velatura.errors import NanLatents, VelaturaWarning


def copy_base(base, vae=None):
    parts = {"unet": deepcopy(base.unet), "vae": vae or deepcopy(base.vae), "text": base.text.deep_copy()}
    return velatura.Base("copy", base.family, schedule=base.schedule, **parts)


@pytest.fixture
def overflowing(xl):
    """A base in float16 whose autoencoder's values are too large for it, as those of SDXL's first one are."""
    vae = deepcopy(xl.vae)
    with torch.no_grad():
        for layer in (vae.decoder.conv_in, vae.encoder.conv_in):  # a norm takes the size away again
            layer.weight.mul_(2e5)
            layer.bias.mul_(2e5)
    return copy_base(xl, vae)


def test_an_autoencoder_that_overflows_goes_on_in_float32(overflowing):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    exact = overflowing.decode(latents)
    overflowing.to(dtype=torch.float16)
    with pytest.warns(VelaturaWarning, match=r"copy's autoencoder overflows in float16: it computes in float32"):
        retried = overflowing.decode(latents)
    torch.testing.assert_close(retried, exact, atol=0.02, rtol=0)
    assert (overflowing.vae.dtype, overflowing.dtype) == (torch.float32, torch.float16)
    assert torch.equal(overflowing.decode(latents), retried)  # and warns no more


def test_an_autoencoder_that_overflows_while_encoding_goes_on_in_float32(overflowing):
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    overflowing.to(dtype=torch.float16)
    with pytest.warns(VelaturaWarning, match="overflows in float16"):
        assert overflowing.encode(pixels).isfinite().all()


def test_nan_latents_do_not_change_the_autoencoders_precision(overflowing):
    overflowing.to(dtype=torch.float16)
    assert not overflowing.decode(torch.full((1, 4, 8, 8), torch.nan)).isfinite().any()
    assert overflowing.vae.dtype == torch.float16


def test_a_picture_is_made_in_half_precision(overflowing):
    overflowing.to(dtype=torch.float16)
    with pytest.warns(VelaturaWarning, match="overflows in float16"):
        picture = velatura.generate(overflowing, "a house", seed=1, steps=2)
    assert picture.image.size == (64, 64)
    with pytest.raises(NanLatents, match="the latents became NaN or infinite"):
        velatura.generate(overflowing, "a house", seed=1, steps=2, guidance=1e38)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_makes_nearly_the_same_picture(xl, dtype):
    exact = velatura.generate(xl, "a house", seed=1, steps=2, guidance=2)
    half = velatura.generate(copy_base(xl).to(dtype=dtype), "a house", seed=1, steps=2, guidance=2)
    differences = [abs(a - b) for a, b in zip(exact.image.tobytes(), half.image.tobytes(), strict=True)]
    assert sum(differences) / len(differences) < 3


def test_bytes_are_those_of_all_weights(xl):
    models = [xl.unet, xl.vae, *(encoder.model for encoder in xl.text.encoders)]
    weights = sum(weight.numel() for model in models for weight in model.parameters())
    assert xl.byte_count == 4 * weights
    assert copy_base(xl).to(dtype=torch.bfloat16).byte_count == 2 * weights
    assert isinstance(xl.text, TextEncoder)


def test_moving_a_base_keeps_no_second_copy(xl):
    base = copy_base(xl)
    weight = base.unet.conv_in.weight.data_ptr()
    assert base.to("cpu").unet.conv_in.weight.dtype == torch.float32
    assert base.to(dtype=torch.bfloat16).to().unet.conv_in.weight.data_ptr() != weight
    again = base.unet.conv_in.weight.data_ptr()
    assert base.to("cpu", torch.bfloat16).unet.conv_in.weight.data_ptr() == again
