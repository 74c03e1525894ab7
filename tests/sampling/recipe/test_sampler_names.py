"""Names of samplers and noise schedules in other programs. The lists are those programs' own."""

import re

import pytest

from velatura.errors import UnknownName, VelaturaWarning
from velatura.sampling.job import fill_recipe
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.recipe.sampler_names import (
    NEAREST_SAMPLERS,
    NEAREST_SCHEDULERS,
    SAMPLER_ALIASES,
    SCHEDULER_ALIASES,
    SCHEDULER_SUFFIXES,
    name_key,
    nearest,
)
from velatura.sampling.samplers import SAMPLERS, SCHEDULERS, find_sampler, find_scheduler


def words(text):
    return text.split()


COMFYUI_SAMPLERS = words("""euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 dpm_2 dpm_2_ancestral
    lms dpm_fast dpm_adaptive dpmpp_2s_ancestral dpmpp_2s_ancestral_cfg_pp dpmpp_sde dpmpp_sde_gpu dpmpp_2m
    dpmpp_2m_cfg_pp dpmpp_2m_sde dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu
    ddpm lcm ipndm
    ipndm_v deis res_multistep res_multistep_cfg_pp res_multistep_ancestral res_multistep_ancestral_cfg_pp
    gradient_estimation gradient_estimation_cfg_pp er_sde seeds_2 seeds_3 sa_solver sa_solver_pece exp_heun_2_x0
    exp_heun_2_x0_sde ddim uni_pc uni_pc_bh2""")
COMFYUI_SCHEDULERS = words("simple sgm_uniform karras exponential ddim_uniform beta normal linear_quadratic kl_optimal")
KOHYA_SAMPLERS = words("""ddim pndm lms euler euler_a heun dpm_2 dpm_2_a dpmsolver dpmsolver++ dpmsingle k_lms k_euler
    k_euler_a k_dpm_2 k_dpm_2_a""")
INVOKEAI_SAMPLERS = words("""ddim ddpm deis deis_k dpmpp_2s dpmpp_2s_k dpmpp_2m dpmpp_2m_k dpmpp_2m_sde dpmpp_2m_sde_k
    dpmpp_3m dpmpp_3m_k dpmpp_sde dpmpp_sde_k euler euler_k euler_a heun heun_k kdpm_2 kdpm_2_k kdpm_2_a kdpm_2_a_k lcm
    lms lms_k pndm tcd unipc""")
DIFFUSERS_CLASSES = words("""DDIMScheduler DDPMScheduler PNDMScheduler LMSDiscreteScheduler EulerDiscreteScheduler
    EulerAncestralDiscreteScheduler HeunDiscreteScheduler KDPM2DiscreteScheduler KDPM2AncestralDiscreteScheduler
    DPMSolverMultistepScheduler DPMSolverSinglestepScheduler DPMSolverSDEScheduler UniPCMultistepScheduler LCMScheduler
    DEISMultistepScheduler EDMEulerScheduler IPNDMScheduler SASolverScheduler TCDScheduler""")


@pytest.mark.parametrize("word", [*COMFYUI_SAMPLERS, *KOHYA_SAMPLERS, *INVOKEAI_SAMPLERS, *DIFFUSERS_CLASSES])
def test_every_sampler_of_other_programs_is_found_or_refused_with_the_nearest(word):
    nearest_name = nearest(word, NEAREST_SAMPLERS)
    if nearest_name is None:
        assert find_sampler(word)
        return
    with pytest.raises(UnknownName, match=re.escape(f"the nearest that it has is {nearest_name}")):
        find_sampler(word)


@pytest.mark.parametrize("word", COMFYUI_SCHEDULERS)
def test_every_schedule_of_comfyui_is_found_or_refused_with_the_nearest(word):
    if word not in NEAREST_SCHEDULERS:
        assert find_scheduler(word) in SCHEDULERS
        return
    with pytest.raises(UnknownName, match=re.escape(f"the nearest that it has is {NEAREST_SCHEDULERS[word]}")):
        find_scheduler(word)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("euler_ancestral", "Euler a"),
        ("euler_a", "Euler a"),
        ("k_euler_a", "Euler a"),
        ("Euler Ancestral", "Euler a"),
        ("EulerAncestralDiscreteScheduler", "Euler a"),
        ("eulerdiscretescheduler", "Euler"),
        ("dpm_2", "DPM2"),
        ("k_dpm_2_ancestral", "DPM2 a"),
        ("dpmpp_2m", "DPM++ 2M"),
        ("DPM++ 2m", "DPM++ 2M"),
        ("dpm++_2m_sde", "DPM++ 2M SDE"),
        ("dpmpp_2m_sde_heun", "DPM++ 2M SDE Heun"),
        ("dpmpp_sde_gpu", "DPM++ SDE"),
        ("dpmpp_2s_ancestral", "DPM++ 2S a"),
        ("DPM++ 2M Karras", "DPM++ 2M Karras"),
        ("dpmpp_2m_karras", "DPM++ 2M Karras"),
        ("dpmpp_2m_k", "DPM++ 2M Karras"),
        ("k_dpmpp_2m_ka", "DPM++ 2M Karras"),
        ("DPM++ 3M SDE Exponential", "DPM++ 3M SDE Exponential"),
        ("DPM++ 2M AYS", "DPM++ 2M Align Your Steps"),
        ("dpm_adaptive", "DPM adaptive"),
        ("uni_pc", "UniPC"),
        ("ddpm", "Euler a"),
        ("lcm", "LCM"),
        ("plms", "PLMS"),
        ("pndm", "PLMS"),
    ],
)
def test_words_of_other_programs_mean_the_same_sampler(word, name):
    assert find_sampler(word).name == name


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("karras", "Karras"),
        ("sgm_uniform", "SGM Uniform"),
        ("SGM-Uniform", "SGM Uniform"),
        ("ddim_uniform", "DDIM"),
        ("kl_optimal", "KL Optimal"),
        ("ays", "Align Your Steps"),
        ("AlignYourSteps", "Align Your Steps"),
        ("automatic", "Automatic"),
    ],
)
def test_words_of_other_programs_mean_the_same_schedule(word, name):
    assert find_scheduler(word) == name


@pytest.mark.parametrize(
    ("word", "nearest_name"),
    [
        ("res_multistep", "DPM++ 2M"),
        ("heunpp2", "Heun"),
        ("k_heunpp2", "Heun"),
        ("deis_k", "DPM++ 2M"),
        ("TCDScheduler", "LCM"),
        ("uni_pc_bh2", "UniPC with unipc_variant=bh2"),
    ],
)
def test_a_sampler_that_only_others_have_is_refused_with_the_nearest(word, nearest_name):
    message = f"velatura does not have the sampler {word!r}: the nearest that it has is {nearest_name}"
    with pytest.raises(UnknownName, match=re.escape(message)):
        find_sampler(word)


def test_a_schedule_that_only_others_have_is_refused_with_the_nearest():
    with pytest.raises(UnknownName, match=r"the scheduler 'linear_quadratic': the nearest .* SGM Uniform"):
        find_scheduler("linear_quadratic")


def test_the_tables_point_at_names_that_exist():
    assert set(SAMPLER_ALIASES.values()) <= set(SAMPLERS)
    assert {*SCHEDULER_ALIASES.values(), *SCHEDULER_SUFFIXES.values()} <= set(SCHEDULERS)
    assert {name.partition(" with ")[0].removesuffix(" Karras") for name in NEAREST_SAMPLERS.values()} <= set(SAMPLERS)
    assert set(NEAREST_SCHEDULERS.values()) <= {"Automatic", *SCHEDULERS}


@pytest.mark.parametrize("table", [SAMPLER_ALIASES, SCHEDULER_ALIASES, NEAREST_SAMPLERS, NEAREST_SCHEDULERS])
def test_the_tables_are_written_in_keys(table):
    assert [name for name in table if name_key(name) != name and name != "dpmsolver++"] == []


def test_a_recipe_records_our_names_of_the_sampler_and_the_schedule(tiny):
    recipe = fill_recipe(tiny, Recipe(sampler="euler_ancestral", scheduler="ddim_uniform", hires_sampler="heun"), None)
    assert (recipe.sampler, recipe.scheduler, recipe.hires_sampler) == ("Euler a", "DDIM", "Heun")


def test_a_sampler_with_noise_of_the_gpu_is_warned_of_where_the_noise_is_not(tiny):
    with pytest.warns(VelaturaWarning, match="dpmpp_sde_gpu draws its noise on the GPU, and this recipe on the CPU"):
        fill_recipe(tiny, Recipe(sampler="dpmpp_sde_gpu"), None)
    assert fill_recipe(tiny, Recipe(sampler="dpmpp_sde_gpu", noise="NV"), None).sampler == "DPM++ SDE"
