import math

import pytest
import torch

from velatura.base.noise_schedule import NoiseSchedule
from velatura.errors import BadRecipe, UnknownName
from velatura.sampling.recipe.sampler_settings import SamplerSettings
from velatura.sampling.samplers.schedules import (
    SCHEDULERS,
    SigmaRange,
    compute_model_sigmas,
    find_scheduler,
    sigma_to_t,
    t_to_sigma,
)

SCHEDULE = NoiseSchedule()
SIGMAS = compute_model_sigmas(SCHEDULE)
LOW, HIGH = 0.0291675, 14.614642  # of SD's schedule, as k-diffusion has them


def sigmas_of(name, steps, **options):
    return SCHEDULERS[name](SigmaRange.of(SIGMAS, **options), steps)


def close(found, expected, rtol=1e-4):
    torch.testing.assert_close(found, torch.tensor(expected), rtol=rtol, atol=1e-6)


def at(timestep):
    """Sigma at a timestep, by DDPM's definition of SD's schedule: linear in the roots of beta."""
    alpha = 1.0
    for place in range(timestep + 1):
        alpha *= 1 - (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * place / 999) ** 2
    return ((1 - alpha) / alpha) ** 0.5


@pytest.mark.parametrize("name", SCHEDULERS)
def test_levels_go_down_from_the_noisiest(name):
    for steps in (1, 2, 10, 30, 999, 1000):
        sigmas = sigmas_of(name, steps)
        assert (sigmas.diff() < 0).all()
        assert sigmas[0] > 13 or name == "DDIM"  # which starts at 901 when there are 10 steps
        assert sigmas[-1] < 0.03


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in {"Simple", "DDIM", "Align Your Steps"}])
def test_levels_lie_between_the_ends_that_are_asked_for(name):
    sigmas = sigmas_of(name, 6, sigma_min=0.1, sigma_max=10.0)
    assert sigmas[0] == pytest.approx(10, rel=1e-4)
    assert sigmas[sigmas > 0][-1] >= 0.1 * 0.999


def test_sgm_uniform_leaves_the_cleanest_out():
    expected = [at(999), *(math.exp((math.log(at(t)) + math.log(at(t + 1))) / 2) for t in (499,)), 0.0]
    close(sigmas_of("SGM Uniform", 2), expected)


def test_simple_takes_every_nth_level():
    close(sigmas_of("Simple", 4), [at(999), at(749), at(499), at(249), 0.0])
    close(sigmas_of("Simple", 3), [at(999), at(666), at(333), 0.0])


def test_ddim_takes_every_nth_level_from_the_second_on():
    close(sigmas_of("DDIM", 4), [at(751), at(501), at(251), at(1), 0.0])
    assert len(sigmas_of("DDIM", 6)) == 8  # 1000 // 6 = 166, which is seven times in it


def test_kl_optimal_is_even_in_the_arc_tangent():
    high, low = math.atan(HIGH), math.atan(LOW)
    close(sigmas_of("KL Optimal", 4), [math.tan(high + (low - high) * step / 4) for step in range(5)])


def test_align_your_steps_has_the_published_levels():
    # Sabour et al. 2024 for ten steps, from NVIDIA's page of the paper
    sd1 = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029, 0.0]
    sdxl = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029, 0.0]
    close(sigmas_of("Align Your Steps", 11), sd1)
    close(sigmas_of("Align Your Steps", 11, family="SDXL"), sdxl)
    between = sigmas_of("Align Your Steps", 21)
    close(between[::2][:11], sd1[:11])
    close(between[1], math.sqrt(14.615 * 6.475))


def test_beta_has_the_quantiles_of_its_distribution():
    # scipy.stats.beta.ppf(x, 0.6, 0.6) for x = 1, 0.8, ..., 0
    quantiles = [1.0, 0.8770782495416671, 0.6372990092467856, 0.36270099075321405, 0.12292175045833284, 0.0]
    close(sigmas_of("Beta", 6), [*(LOW + each * (HIGH - LOW) for each in quantiles), 0.0])
    finest = sigmas_of("Beta", 1001)[-3] - LOW
    assert finest == pytest.approx(1.855873851745199e-05 * (HIGH - LOW), rel=2e-2)  # its ppf(0.001), in float32


def test_uniform_and_normal_are_one():
    assert torch.equal(sigmas_of("Uniform", 13), sigmas_of("Normal", 13))


def test_timesteps_are_found_from_their_noise():
    for timestep in (0, 1, 500, 998, 999):
        assert sigma_to_t(SCHEDULE.sigmas, SCHEDULE.sigmas[timestep]).item() == pytest.approx(timestep, abs=1e-3)
    times = torch.tensor([0.0, 0.25, 499.5, 999.0])
    torch.testing.assert_close(sigma_to_t(SIGMAS, t_to_sigma(SIGMAS, times)), times, rtol=0, atol=1e-2)


@pytest.mark.parametrize("written", ["SGM Uniform", "sgm_uniform", "sgm uniform", "SGMUNIFORM"])
def test_schedulers_are_found_however_they_are_written(written):
    assert find_scheduler(written) == "SGM Uniform"
    assert find_scheduler("automatic") == "Automatic"


def test_an_unknown_scheduler_names_those_that_are_near():
    with pytest.raises(UnknownName, match="no scheduler is called 'Karas': did you mean 'Karras'"):
        find_scheduler("Karas")


def test_settings_out_of_bounds_say_what_they_are():
    with pytest.raises(BadRecipe, match=r"the sampler's eta is -1: it should be greater than or equal to 0"):
        SamplerSettings(eta=-1)
    with pytest.raises(BadRecipe, match=r"a sampler has no chrun: did you mean churn"):
        SamplerSettings(chrun=1)
    with pytest.raises(BadRecipe, match=r"the sampler's rho is nan: it should be a finite number"):
        SamplerSettings(rho=math.nan)


def test_settings_are_taken_from_a_recipe_by_their_names():
    from pydantic import BaseModel

    class Wanted(BaseModel):
        steps: int = 20
        eta: float = 0.5
        scheduler: str = "Karras"

    assert SamplerSettings.of(Wanted()) == SamplerSettings(eta=0.5, scheduler="Karras")
