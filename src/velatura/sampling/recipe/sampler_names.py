"""What other programs call our samplers and noise schedules. One table for the command line and for all readers.

The words are those of ComfyUI (SwarmUI and Fooocus use them too), diffusers, kohya's scripts, InvokeAI, NovelAI, Easy
Diffusion and Draw Things. Our own names are those of A1111. Nothing here imports torch: the samplers themselves are in
`sampling/samplers`.
"""

import re
from collections.abc import Mapping

SAMPLER_NAMES = (
    "DPM++ 2M",
    "DPM++ SDE",
    "DPM++ 2M SDE",
    "DPM++ 2M SDE Heun",
    "DPM++ 2S a",
    "DPM++ 3M SDE",
    "Euler a",
    "Euler",
    "LMS",
    "Heun",
    "DPM2",
    "DPM2 a",
    "DPM fast",
    "DPM adaptive",
    "Restart",
    "LCM",
    "DDIM",
    "PLMS",
    "UniPC",
)
SCHEDULER_NAMES = (
    "Automatic",
    "Uniform",
    "Karras",
    "Exponential",
    "Polyexponential",
    "SGM Uniform",
    "KL Optimal",
    "Align Your Steps",
    "Simple",
    "Normal",
    "DDIM",
    "Beta",
)

# Words that may end the name of a sampler, and the noise schedule that they mean
SCHEDULER_SUFFIXES = {
    "karras": "Karras",
    "ka": "Karras",
    "k": "Karras",
    "exponential": "Exponential",
    "exp": "Exponential",
    "polyexponential": "Polyexponential",
    "sgm_uniform": "SGM Uniform",
    "uniform": "Uniform",
    "kl_optimal": "KL Optimal",
    "align_your_steps": "Align Your Steps",
    "ays": "Align Your Steps",
    "simple": "Simple",
    "normal": "Normal",
    "ddim": "DDIM",
    "beta": "Beta",
}

# By the key of the name (see name_key); "k_" before a name says only that it comes from k-diffusion
SAMPLER_ALIASES = {
    "ddim_v3": "DDIM",
    "ddimscheduler": "DDIM",
    "ddpm": "Euler a",  # the step of DDPM is that of Euler a with an eta of 1
    "ddpmscheduler": "Euler a",
    "dpm2": "DPM2",
    "dpm2_ancestral": "DPM2 a",
    "dpm_2": "DPM2",
    "dpm_2_a": "DPM2 a",
    "dpm_2_ancestral": "DPM2 a",
    "dpm_ad": "DPM adaptive",
    "dpmpp_2": "DPM++ 2M",
    "dpmpp_2_a": "DPM++ 2S a",
    "dpmpp_2m_sde_gpu": "DPM++ 2M SDE",
    "dpmpp_2m_sde_heun_gpu": "DPM++ 2M SDE Heun",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_3m_sde_gpu": "DPM++ 3M SDE",
    "dpmpp_sde_gpu": "DPM++ SDE",
    "dpmsolver++": "DPM++ 2M",
    "dpmsolvermultistep": "DPM++ 2M",
    "dpmsolvermultistepscheduler": "DPM++ 2M",
    "dpmsolversdescheduler": "DPM++ SDE",
    "euler_ancestral": "Euler a",
    "eulerancestraldiscretescheduler": "Euler a",
    "eulerdiscretescheduler": "Euler",
    "heundiscretescheduler": "Heun",
    "kdpm2": "DPM2",
    "kdpm2_a": "DPM2 a",
    "kdpm2ancestraldiscretescheduler": "DPM2 a",
    "kdpm2discretescheduler": "DPM2",
    "kdpm_2": "DPM2",
    "kdpm_2_a": "DPM2 a",
    "lcmscheduler": "LCM",
    "lmsdiscretescheduler": "LMS",
    "pndm": "PLMS",
    "pndmscheduler": "PLMS",
    "uni_pc": "UniPC",
    "unipc_tu": "UniPC",
    "unipcmultistepscheduler": "UniPC",
}
SCHEDULER_ALIASES = {
    "ays": "Align Your Steps",
    "ays_sd1": "Align Your Steps",
    "ays_sdxl": "Align Your Steps",
    "ddim_uniform": "DDIM",
    "exp": "Exponential",
}

# Samplers and schedules that other programs have and velatura has not, with the nearest that it has
NEAREST_SAMPLERS = {
    "cmstochasticiterativescheduler": "LCM",
    "deis": "DPM++ 2M",
    "deismultistepscheduler": "DPM++ 2M",
    "dpm_solver_stability": "DPM++ 2M",
    "dpmpp_2m_cfg_pp": "DPM++ 2M",
    "dpmpp_2s": "DPM++ 2S a with eta=0",
    "dpmpp_2s_ancestral_cfg_pp": "DPM++ 2S a",
    "dpmpp_3m": "DPM++ 3M SDE with eta=0",
    "dpmsingle": "DPM++ 2S a with eta=0",
    "dpmsolver": "DPM++ 2M",
    "dpmsolversinglestepscheduler": "DPM++ 2S a with eta=0",
    "edmdpmsolvermultistepscheduler": "DPM++ 2M Karras",
    "edmeulerscheduler": "Euler Karras",
    "er_sde": "DPM++ 3M SDE",
    "euler_ancestral_cfg_pp": "Euler a",
    "euler_cfg_pp": "Euler",
    "euler_dy": "Euler",
    "euler_smea_dy": "Euler",
    "exp_heun_2_x0": "Heun",
    "exp_heun_2_x0_sde": "DPM++ 2M SDE Heun",
    "flowmatcheulerdiscretescheduler": "Euler",
    "gradient_estimation": "Euler",
    "gradient_estimation_cfg_pp": "Euler",
    "heunpp2": "Heun",
    "ipndm": "LMS",
    "ipndm_v": "LMS",
    "ipndmscheduler": "LMS",
    "nai_smea": "Euler a",
    "nai_smea_dyn": "Euler a",
    "res_multistep": "DPM++ 2M",
    "res_multistep_ancestral": "DPM++ 2M SDE",
    "res_multistep_ancestral_cfg_pp": "DPM++ 2M SDE",
    "res_multistep_cfg_pp": "DPM++ 2M",
    "sa_solver": "DPM++ 2M SDE",
    "sa_solver_pece": "DPM++ 2M SDE",
    "sasolverscheduler": "DPM++ 2M SDE",
    "seeds_2": "DPM++ SDE",
    "seeds_3": "DPM++ 3M SDE",
    "tcd": "LCM",
    "tcdscheduler": "LCM",
    "uni_pc_bh2": "UniPC with unipc_variant=bh2",
    "unipc_snr": "UniPC with unipc_spacing=logSNR",
    "unipc_snr_2": "UniPC with unipc_spacing=logSNR",
    "unipc_tq": "UniPC with unipc_spacing=time_quadratic",
}
NEAREST_SCHEDULERS = {
    "ays_30": "Align Your Steps",
    "ays_svd": "Align Your Steps",
    "beta57": "Beta",
    "bong_tangent": "Beta",
    "gits": "Align Your Steps",
    "linear_quadratic": "SGM Uniform",
    "native": "Automatic",
    "sd_turbo": "SGM Uniform",
    "trailing": "SGM Uniform",
    "turbo": "SGM Uniform",
}


def name_key(name: str) -> str:
    """Return a name in a form for comparison: in lower case, with underscores, and pp for the two plus signs of DPM++.

    Args:
        name: The name of a sampler or noise schedule.
    """
    return re.sub(r"[\s_-]+", "_", name.strip().lower()).replace("dpm++", "dpmpp").replace("dpm_pp", "dpmpp")


def squeeze_name(name: str) -> str:
    """Return a name without what separates its words, as AlignYourSteps and align_your_steps are the same."""
    return name_key(name).replace("_", "")


def find_sampler_name(name: str) -> str | None:
    """Return what A1111 calls a sampler, with the scheduler that its name ends in, or None if velatura has none such.

    Args:
        name: The name in any program.
    """
    name_by_key = {name_key(sampler): sampler for sampler in SAMPLER_NAMES}
    for key, scheduler in split_sampler_name(name):
        sampler = SAMPLER_ALIASES.get(key) or name_by_key.get(key)
        if sampler is not None:
            return f"{sampler} {scheduler}" if scheduler else sampler
    return None


def find_scheduler_name(name: str) -> str | None:
    """Return what A1111 calls a noise schedule, or None if velatura has none such.

    Args:
        name: The name in any program.
    """
    name_by_key = {squeeze_name(scheduler): scheduler for scheduler in SCHEDULER_NAMES}
    return SCHEDULER_ALIASES.get(name_key(name)) or name_by_key.get(squeeze_name(name))


def draws_gpu_noise(sampler: str) -> bool:
    """Return True for ComfyUI's samplers whose noise is drawn on the GPU, such as dpmpp_sde_gpu."""
    return name_key(sampler).endswith("_gpu")


def split_sampler_name(name: str) -> list[tuple[str, str | None]]:
    """Return what the name of a sampler may mean, the most likely first: keys of a sampler and names of a scheduler.

    Args:
        name: A name such as "DPM++ 2M Karras", "k_dpmpp_2m_ka" or "dpmpp_2m_k".

    Returns:
        The whole name without a scheduler, then the name without the scheduler at its end.
    """
    whole = name_key(name)
    readings: list[tuple[str, str | None]] = []
    for key in dict.fromkeys([whole, whole.removeprefix("k_")]):
        readings.append((key, None))
        for suffix, scheduler in SCHEDULER_SUFFIXES.items():
            if key.endswith(f"_{suffix}"):
                readings.append((key.removesuffix(f"_{suffix}"), scheduler))
    return readings


def nearest(name: str, table: Mapping[str, str]) -> str | None:
    """Return the nearest sampler or scheduler to one that velatura does not have, or None for an unknown name.

    Args:
        name: The name in another program.
        table: NEAREST_SAMPLERS or NEAREST_SCHEDULERS.
    """
    return next((table[key] for key, _ in split_sampler_name(name) if key in table), None)
