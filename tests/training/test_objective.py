"""The loss against diffusers' own schedulers and formulas."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers.schedulers import DDPMScheduler
from diffusers.training_utils import compute_snr

from velatura.training.objective import denoising_loss, min_snr_weights

SD1 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(params=["epsilon", "v_prediction"])
def base(request, tiny):
    predicting = copy.copy(tiny)
    predicting.family = replace(tiny.family, prediction=request.param)
    return predicting


@pytest.fixture
def batch(tiny):
    chance = torch.Generator().manual_seed(3)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=chance)
    return latents, torch.randn(3, 77, tiny.text.width, generator=chance), noise, torch.tensor([0, 400, 999])


@torch.no_grad()
def errors(base, latents, contexts, noise, timesteps):
    """The squared error of every picture, (batch,), its input and its target made by diffusers."""
    scheduler = DDPMScheduler(**SD1)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    velocity = scheduler.get_velocity(latents, noise, timesteps)
    target = noise if base.family.prediction == "epsilon" else velocity
    return (base.predict(noisy, timesteps, contexts) - target).square().mean(dim=(1, 2, 3))


def test_the_loss_is_the_mean_squared_error_of_the_prediction(base, batch):
    torch.testing.assert_close(denoising_loss(base, *batch), errors(base, *batch).mean(), rtol=1e-4, atol=1e-5)


# The paper's weights for both predictions, as diffusers' training scripts compute them
def test_min_snr_weighs_each_picture_by_its_timestep(base, batch):
    snr = compute_snr(DDPMScheduler(**SD1), batch[-1])
    capped = torch.minimum(snr, torch.tensor(5.0))
    weights = capped / snr if base.family.prediction == "epsilon" else capped / (snr + 1)
    expected = (weights * errors(base, *batch)).mean()
    torch.testing.assert_close(denoising_loss(base, *batch, min_snr=5), expected, rtol=1e-3, atol=1e-5)


def test_min_snr_leaves_noisy_timesteps_alone():
    assert min_snr_weights(torch.tensor([10.0, 5.0, 0.1]), 5, predicts_velocity=False).tolist() == [0.5, 1, 1]
