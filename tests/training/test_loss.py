"""The loss against diffusers' own schedulers and formulas."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.schedulers import DDPMScheduler
from diffusers.training_utils import compute_snr

from velatura.errors import BadPlan
from velatura.training.loss import HuberLoss, LossWeighting, apply_zero_terminal_snr, denoising_errors, min_snr_weights
from velatura.training.noise import draw_batch
from velatura.training.plan import Plan

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
    torch.testing.assert_close(denoising_errors(base, *batch).mean(), errors(base, *batch).mean(), rtol=1e-4, atol=1e-5)


# The paper's weights for both predictions, as diffusers' training scripts compute them
def test_min_snr_weighs_each_picture_by_its_timestep(base, batch):
    snr = compute_snr(DDPMScheduler(**SD1), batch[-1])
    capped = torch.minimum(snr, torch.tensor(5.0))
    weights = capped / snr if base.family.prediction == "epsilon" else capped / (snr + 1)
    expected = (weights * errors(base, *batch)).mean()
    torch.testing.assert_close(
        denoising_errors(base, *batch, weighting=LossWeighting(5)).mean(), expected, rtol=1e-3, atol=1e-5
    )


# By hand: 16 ** -0.75 is 1 / 8, and 0.0001 ** -0.75 is 1000, above the limit; (15 + 1) ** -0.75 is 1 / 8
def test_inverse_snr_favours_noisy_timesteps_up_to_a_limit():
    weighting, snr = LossWeighting(inverse_snr=0.75), torch.tensor([16.0, 1.0, 1e-4, 0.0])
    assert weighting.factors(snr, predicts_velocity=False).tolist() == pytest.approx([0.125, 1, 10, 10])
    snr = torch.tensor([15.0, 0.0])
    assert weighting.factors(snr, predicts_velocity=True).tolist() == pytest.approx([0.125, 1])


def test_min_snr_leaves_noisy_timesteps_alone():
    assert min_snr_weights(torch.tensor([10.0, 5.0, 0.1]), 5, predicts_velocity=False).tolist() == [0.5, 1, 1]


GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "training_formulas.json").read_text())
HUBERS = [case for case in GOLDEN["huber"]["cases"] if case["loss"] in {"huber", "smooth_l1"}]


# kohya's sd-scripts, run on 54 numbers
@pytest.mark.parametrize("case", HUBERS, ids=lambda case: f"{case['loss']} {case['schedule']}")
def test_hubers_error_is_that_of_other_trainers(case):
    pred, target = (torch.tensor(GOLDEN["huber"][name]).view(9, 2, 3) for name in ("pred", "target"))
    timesteps, kept = torch.tensor(GOLDEN["huber"]["t"]), torch.tensor(GOLDEN["loss_weights"]["alphas_cumprod"])
    huber = HuberLoss(case["loss"], case["huber_c"], case["schedule"])
    found = huber.errors(pred - target, timesteps, kept, 1000).mean(dim=(1, 2))
    torch.testing.assert_close(found, torch.tensor(case["per_sample"]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gamma", [1, 5, 20])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_min_snr_weights_are_those_of_other_trainers(gamma, prediction):
    snr = torch.tensor(GOLDEN["loss_weights"]["snr"])
    expected = torch.tensor(GOLDEN["loss_weights"][f"min_snr_{prediction}_g{gamma}"])
    torch.testing.assert_close(min_snr_weights(snr, gamma, predicts_velocity=prediction == "v"), expected)


def test_places_count_by_their_weights(tiny, batch):
    everywhere, nowhere = torch.ones(3, 1, 8, 8), torch.zeros(3, 1, 8, 8)
    left = torch.cat([torch.full((3, 1, 8, 4), 2.0), torch.zeros(3, 1, 8, 4)], dim=-1)
    losses = [
        denoising_errors(tiny, *batch, weights=each).mean().item() for each in (everywhere, nowhere, left, 2 - left)
    ]
    assert losses[0] == pytest.approx(denoising_errors(tiny, *batch).mean().item())
    assert losses[1] == 0
    assert (losses[2] + losses[3]) / 2 == pytest.approx(losses[0], rel=1e-5)


def test_offset_noise_moves_every_channel_of_a_picture_as_a_whole():
    options = {"batch_size": 200, "picture_count": 3, "latent_shape": torch.Size((4, 8, 8))}
    plain, offset = draw_batch(1, 0, **options), draw_batch(1, 0, noise_offset=0.3, **options)
    shift = offset.noise - plain.noise
    torch.testing.assert_close(shift, shift[..., :1, :1].expand_as(shift), rtol=0, atol=1e-5)
    assert shift.std().item() == pytest.approx(0.3, rel=0.1)
    assert torch.equal(plain.timesteps, offset.timesteps)


GOLDEN_WEIGHTS = GOLDEN["loss_weights"]


# kohya's sd-scripts, run on nine timesteps
@pytest.mark.parametrize(
    ("name", "weighing", "prediction"),
    [
        ("debiased_eps", LossWeighting(debiased=True), "eps"),
        ("debiased_v", LossWeighting(debiased=True), "v"),
        ("scale_v_pred_like_noise", LossWeighting(velocity_as_noise=True), "v"),
        ("v_pred_like_0.5", LossWeighting(noise_as_velocity=0.5), "eps"),
    ],
)
def test_errors_are_weighed_as_in_other_trainers(name, weighing, prediction):
    found = weighing.factors(torch.tensor(GOLDEN_WEIGHTS["snr"]), predicts_velocity=prediction == "v")
    torch.testing.assert_close(found, torch.tensor(GOLDEN_WEIGHTS[name]), rtol=1e-5, atol=1e-6)


def test_all_weights_that_are_chosen_multiply():
    snr = torch.tensor(GOLDEN_WEIGHTS["snr"])
    both = LossWeighting(min_snr=5, debiased=True).factors(snr, predicts_velocity=False)
    alone = [
        each.factors(snr, predicts_velocity=False) for each in (LossWeighting(min_snr=5), LossWeighting(debiased=True))
    ]
    torch.testing.assert_close(both, alone[0] * alone[1])


# kohya's rescaled schedule
def test_a_schedule_that_ends_in_noise_is_that_of_other_trainers(base, tiny):
    plan = Plan(zero_terminal_snr=True)
    if base.family.prediction == "epsilon":
        with pytest.raises(BadPlan, match="tiny predicts noise, and zero_terminal_snr is for bases that predict vel"):
            apply_zero_terminal_snr(base, plan)
        return
    before = tiny.schedule.alphas_cumprod.clone()
    kept = apply_zero_terminal_snr(base, plan).schedule.alphas_cumprod[GOLDEN_WEIGHTS["t"]]
    torch.testing.assert_close(kept, torch.tensor(GOLDEN_WEIGHTS["zero_terminal_alphas_cumprod"]), rtol=1e-3, atol=1e-6)
    assert torch.equal(base.schedule.alphas_cumprod, before)
    assert apply_zero_terminal_snr(base, Plan()) is base


def test_the_loss_is_a_number_where_nothing_of_the_picture_is_left(base, batch):
    if base.family.prediction == "v_prediction":
        stretched = apply_zero_terminal_snr(base, Plan(zero_terminal_snr=True))
        assert denoising_errors(stretched, *batch, weighting=LossWeighting(5, debiased=True)).mean().isfinite()


def test_weights_of_the_other_prediction_are_refused(base):
    wrong = {"epsilon": {"velocity_as_noise": True}, "v_prediction": {"noise_as_velocity": 0.5}}
    [field] = wrong[base.family.prediction]
    with pytest.raises(BadPlan, match=f"{field} is for bases that predict (noise|velocity): set it to"):
        apply_zero_terminal_snr(base, Plan(**wrong[base.family.prediction]))


DRAWN = {"batch_size": 200, "picture_count": 3, "latent_shape": torch.Size((4, 8, 8))}


def test_pictures_are_mixed_with_more_noise_than_is_to_be_told():
    plain, perturbed = draw_batch(1, 0, **DRAWN), draw_batch(1, 0, input_perturbation=0.1, **DRAWN)
    assert plain.input_noise is None
    assert torch.equal(perturbed.noise, plain.noise)
    assert (perturbed.input_noise - plain.noise).std().item() == pytest.approx(0.1, rel=0.02)


def test_the_noise_that_is_mixed_in_need_not_be_the_one_to_be_told(base, batch):
    latents, said, noise, timesteps = batch
    other = noise + 0.1
    noisy = base.schedule.add_noise(latents, other, timesteps)
    velocity = DDPMScheduler(**SD1).get_velocity(latents, noise, timesteps)
    target = noise if base.family.prediction == "epsilon" else velocity
    with torch.no_grad():
        expected = (base.predict(noisy, timesteps, said) - target).square().mean()
        torch.testing.assert_close(
            denoising_errors(base, *batch, input_noise=other).mean(), expected, rtol=1e-4, atol=1e-5
        )


def test_pyramid_noise_is_noise_with_larger_shapes():
    plain, coarse = (draw_batch(1, 0, pyramid_noise=share, **DRAWN).noise for share in (0.0, 0.5))
    assert coarse.std(dim=(1, 2, 3)).sub(1).abs().max() < 1e-5
    beside = [(noise[..., 1:] * noise[..., :-1]).mean().item() for noise in (plain, coarse)]
    assert abs(beside[0]) < 0.01
    assert beside[1] > 0.1
    assert torch.equal(coarse, draw_batch(1, 0, pyramid_noise=0.5, **DRAWN).noise)
