"""What holds of every walk, whatever the sampler; that they are the webui's, test_samplers.py says."""

import math
from itertools import pairwise

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from velatura.base.noise_schedule import NoiseSchedule
from velatura.errors import BadRecipe, UnknownName, VelaturaWarning
from velatura.sampling.noise.seeded import SeededNoise
from velatura.sampling.recipe.sizes import Img2ImgSteps, setup_img2img_steps
from velatura.sampling.samplers import SAMPLERS, SCHEDULERS, SamplerSettings, find_sampler

SCHEDULE = NoiseSchedule()
TARGET = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
STOP_SHORT = {"DPM fast", "DPM adaptive", "DDIM", "PLMS", "UniPC"}


def to_target(_latents, _sigma):
    return TARGET


@pytest.mark.parametrize("name", SAMPLERS)
def test_any_number_of_steps_goes_down_from_the_noisiest_to_the_cleanest(name):
    for steps in (1, 2, 3, 20, 999, 1000):
        levels = SAMPLERS[name].trajectory(SCHEDULE, steps).sigmas
        assert len(levels) >= 2
        assert (levels.diff() < 0).all()
        assert levels[0] > 10 or (name in {"DDIM", "PLMS"} and steps == 2)  # they start at timestep 501 then
        assert levels[-1] < 0.05


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_perfect_guess_is_where_every_sampler_ends_after_its_count_of_steps(name):
    sampler = SAMPLERS[name]
    for steps in (1, 2, 3, 4, 10, 21):
        trajectory = sampler.trajectory(SCHEDULE, steps)
        latents_by_step = list(sampler.sample(to_target, SeededNoise([3], (1, 4, 4)), trajectory))
        assert len(latents_by_step) == trajectory.step_count
        # some end at the cleanest level, where a little noise is left
        assert (latents_by_step[-1] - TARGET).abs().max() < (0.15 if name in STOP_SHORT else 1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_is_changed_the_more_the_stronger_it_is_begun(name):
    image, sampler = torch.linspace(-2, 2, 64).view(1, 1, 8, 8), SAMPLERS[name]
    added = []
    for strength in (0.0, 0.01, 0.3, 0.6, 1.0):
        trajectory = sampler.trajectory(SCHEDULE, 10, img2img=setup_img2img_steps(10, strength))
        added.append(trajectory.init_noise_sigma / trajectory.init_latents_factor)
        latents_by_step = list(
            sampler.sample(lambda _latents, _sigma: image, SeededNoise([3], (1, 8, 8)), trajectory, image)
        )
        assert len(latents_by_step) == trajectory.step_count
        assert (latents_by_step[-1] - image).abs().max() < 0.3
    assert added == sorted(added)
    assert added[0] < 0.6
    assert added[-1] > 5


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_second_pass_of_no_strength_begins_at_very_little_noise(name):
    trajectory = SAMPLERS[name].trajectory(SCHEDULE, 20, img2img=Img2ImgSteps(0, 11))
    assert trajectory.step_count >= 1
    assert trajectory.init_noise_sigma < 0.3


@pytest.mark.parametrize(
    "settings",
    [
        {"sigma_min": 2.0, "sigma_max": 1.0},
        {"sigma_min": 20.0},
        {"sigma_max": 0.02},
        {"scheduler": "Karras", "rho": 0.05},
    ],
)
def test_levels_that_do_not_fall_are_refused(settings):
    with pytest.raises(
        BadRecipe, match=r"gives no decreasing noise levels from .*: set sigma_min below sigma_max and rho near 7"
    ):
        SAMPLERS["Euler"].trajectory(SCHEDULE, 9, SamplerSettings(**settings))


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(list(SAMPLERS)),
    steps=st.integers(1, 30),
    strength=st.none() | st.just(0.0) | st.floats(1e-6, 1),
    exactly=st.booleans(),
    chosen=st.fixed_dictionaries(
        {},
        optional={
            "scheduler": st.sampled_from(list(SCHEDULERS)),
            "eta": st.floats(0, 2),
            "churn": st.floats(0, 100),
            "churn_to": st.floats(0, 20),
            "sigma_min": st.floats(0.001, 0.1),
            "sigma_max": st.floats(1, 100),
            "rho": st.floats(1, 20),
            "discards_penultimate": st.booleans(),
            "quantised": st.booleans(),
            "unipc_order": st.integers(1, 9),
            "unipc_spacing": st.sampled_from(["time_uniform", "time_quadratic", "logSNR"]),
        },
    ),
)
@pytest.mark.filterwarnings("ignore:.*changes nothing")
def test_whatever_is_set_a_walk_calls_the_model_at_real_levels_and_ends_at_the_guess(
    name, steps, strength, exactly, chosen
):
    img2img = None if strength is None else setup_img2img_steps(steps, strength, exact_steps=steps if exactly else None)
    try:
        trajectory = SAMPLERS[name].trajectory(SCHEDULE, steps, SamplerSettings(**chosen), img2img=img2img)
    except BadRecipe as refusal:  # a steep rho leaves no room between two levels
        assert "gives no decreasing noise levels" in str(refusal)  # noqa: PT017
        return

    def denoise(_latents, sigma):
        assert 0 < sigma < math.inf
        assert 0 <= trajectory.timestep(sigma) <= 999
        return TARGET

    latents_by_step = list(
        SAMPLERS[name].sample(denoise, SeededNoise([3], (1, 4, 4)), trajectory, None if img2img is None else TARGET)
    )
    assert len(latents_by_step) == trajectory.step_count
    if name == "LMS" and strength is not None and exactly and strength < 0.01:
        return  # the last step is thousands of times longer than the others, so that LMS amplifies their rounding
    assert (latents_by_step[-1] - TARGET).abs().max() < 1


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if not sampler.depends_on_batch])
def test_a_picture_is_the_same_alone_and_in_a_batch(name):
    sampler = SAMPLERS[name]
    trajectory = sampler.trajectory(SCHEDULE, 21)

    def denoise(latents, sigma):
        return latents - sigma * torch.tanh(latents)

    *_, together = sampler.sample(denoise, SeededNoise([5, 6], (4, 8, 8)), trajectory)
    *_, alone = sampler.sample(denoise, SeededNoise([6], (4, 8, 8)), trajectory)
    torch.testing.assert_close(together[1:], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if not sampler.timestep_sigmas])
def test_every_scheduler_goes_with_every_sampler(name):
    sampler = SAMPLERS[name]
    for scheduler in SCHEDULERS:
        trajectory = sampler.trajectory(SCHEDULE, 12, SamplerSettings(scheduler=scheduler))
        latents_by_step = list(sampler.sample(to_target, SeededNoise([3], (1, 4, 4)), trajectory))
        assert len(latents_by_step) == trajectory.step_count
        assert (latents_by_step[-1] - TARGET).abs().max() < 0.3


@pytest.mark.parametrize("name", SAMPLERS)
def test_schedules_of_zero_snr_end_too(name):
    sampler = SAMPLERS[name]
    trajectory = sampler.trajectory(NoiseSchedule(zero_snr=True), 12)
    *_, end = sampler.sample(to_target, SeededNoise([3], (1, 4, 4)), trajectory)
    assert (end - TARGET).abs().max() < 0.15


@pytest.mark.parametrize("name", SAMPLERS)
def test_latents_that_are_no_numbers_stop_no_walk(name):
    sampler = SAMPLERS[name]
    trajectory = sampler.trajectory(SCHEDULE, 5)
    latents_by_step = list(
        sampler.sample(lambda latents, _sigma: latents * math.nan, SeededNoise([3], (1, 4, 4)), trajectory)
    )
    assert latents_by_step[-1].isnan().all()


def test_automatic_is_what_the_webui_takes_since_1_9():
    # facts of A1111 1.9: karras for DPM++ 2M, SDE, 2S a, DPM2s and Restart, exponential for the 2M and 3M SDE
    karras = {"DPM++ 2M", "DPM++ SDE", "DPM++ 2S a", "DPM2", "DPM2 a", "Restart"}
    exponential = {"DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE"}
    for name, sampler in SAMPLERS.items():
        if sampler.timestep_sigmas is None:
            same_as = "Karras" if name in karras else "Exponential" if name in exponential else "Uniform"
            automatic, named = (
                sampler.trajectory(SCHEDULE, 7, SamplerSettings(scheduler=each)) for each in ("automatic", same_as)
            )
            assert torch.equal(automatic.sigmas, named.sigmas)


def test_a_scheduler_that_is_set_counts_more_than_the_one_in_the_name():
    plain, combined = find_sampler("DPM++ 2M"), find_sampler("dpm++ 2m sgm uniform")
    assert combined.name == "DPM++ 2M SGM Uniform"
    assert not torch.equal(plain.trajectory(SCHEDULE, 7).sigmas, combined.trajectory(SCHEDULE, 7).sigmas)
    set_to = SamplerSettings(scheduler="Karras")
    assert torch.equal(plain.trajectory(SCHEDULE, 7, set_to).sigmas, combined.trajectory(SCHEDULE, 7, set_to).sigmas)


def test_an_ancestral_sampler_without_eta_draws_no_noise():
    euler, ancestral = (SAMPLERS[name] for name in ("Euler", "Euler a"))
    ends = []
    for sampler, settings in ((euler, SamplerSettings()), (ancestral, SamplerSettings(eta=0))):
        trajectory = sampler.trajectory(SCHEDULE, 8, settings)
        *_, end = sampler.sample(lambda x, sigma: x / (1 + sigma**2), SeededNoise([3], (1, 4, 4)), trajectory)
        ends.append(end)
    torch.testing.assert_close(*ends)


def test_whole_timesteps_are_called_where_they_are_asked_for():
    plain, quantised = (
        SAMPLERS["Euler"].trajectory(SCHEDULE, 7, SamplerSettings(quantised=each)) for each in (False, True)
    )
    assert torch.equal(plain.sigmas, quantised.sigmas)
    times = [float(quantised.timestep(sigma)) for sigma in quantised.sigmas[:-1]]
    assert times == pytest.approx([999, 832.5, 666, 499.5, 333, 166.5, 0], abs=0.5)
    assert all(map(float.is_integer, times))


def test_what_is_set_without_effect_is_warned_of():
    with pytest.warns(VelaturaWarning, match="Euler does not use eta: setting it changes nothing"):
        SAMPLERS["Euler"].trajectory(SCHEDULE, 5, SamplerSettings(eta=0.5))
    with pytest.warns(VelaturaWarning, match="DDIM does not use scheduler, rho"):
        SAMPLERS["DDIM"].trajectory(SCHEDULE, 5, SamplerSettings(scheduler="Karras", rho=5))
    with pytest.warns(VelaturaWarning, match="Simple does not use sigma_min"):
        SAMPLERS["Euler"].trajectory(SCHEDULE, 5, SamplerSettings(scheduler="Simple", sigma_min=0.1))
    with pytest.warns(VelaturaWarning, match="Exponential does not use rho"):
        SAMPLERS["Euler"].trajectory(SCHEDULE, 5, SamplerSettings(scheduler="Exponential", rho=5))


def test_samplers_are_found_in_any_case():
    assert find_sampler("euler A") is SAMPLERS["Euler a"]
    assert find_sampler("K_Euler_Ancestral") is SAMPLERS["Euler a"]
    assert find_sampler("k_dpmpp_2m_sde_exp").name == "DPM++ 2M SDE Exponential"


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("Eular a", "'Euler a'"), ("DPM++ 2M Karas", "'DPM\\+\\+ 2M Karras'"), ("", "choose")],
)
def test_an_unknown_sampler_names_those_that_are_near(wrong, near):
    with pytest.raises(UnknownName, match=near):
        find_sampler(wrong)


def test_a_sampler_with_levels_of_its_own_goes_with_no_scheduler_but_the_automatic_one():
    with pytest.raises(UnknownName, match="DDIM has its own noise schedule: remove Karras from 'ddim Karras'"):
        find_sampler("ddim Karras")
    plain, automatic = (
        SAMPLERS["DDIM"].trajectory(SCHEDULE, 9, SamplerSettings(scheduler=each)) for each in (None, "Automatic")
    )
    assert torch.equal(plain.sigmas, automatic.sigmas)
    with pytest.raises(UnknownName, match="no scheduler is called 'Karas'"):
        SAMPLERS["DDIM"].trajectory(SCHEDULE, 9, SamplerSettings(scheduler="Karas"))


def test_a_restart_goes_back_up_once_from_20_steps_and_twice_from_36():
    ups = []
    for steps in (19, 20, 36):
        seen = []

        def denoise(latents, sigma, seen=seen):
            seen.append(float(sigma))
            return latents * 0

        sampler = SAMPLERS["Restart"]
        list(sampler.sample(denoise, SeededNoise([3], (1, 4, 4)), sampler.trajectory(SCHEDULE, steps)))
        ups.append(sum(after > before * 1.001 for before, after in pairwise(seen)))
    assert ups == [0, 1, 2]
