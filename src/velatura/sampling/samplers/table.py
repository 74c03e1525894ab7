"""The samplers by their names in A1111; what other programs call them is in `sampling/recipe/sampler_names.py`."""

from dataclasses import replace

from torch import Tensor

from velatura.errors import UnknownName
from velatura.sampling.recipe.sampler_names import (
    NEAREST_SAMPLERS,
    SAMPLER_ALIASES,
    name_key,
    nearest,
    split_sampler_name,
)
from velatura.sampling.recipe.sampler_settings import SamplerSettings
from velatura.sampling.samplers.consistency import LCM_TIMESTEP_INTERVAL, lcm
from velatura.sampling.samplers.euler import dpm2, dpm2_ancestral, euler, euler_ancestral, heun
from velatura.sampling.samplers.multistep import dpmpp_2m, lms, plms
from velatura.sampling.samplers.restart import restart
from velatura.sampling.samplers.sampler import ANCESTRAL_SETTINGS, CHURN_SETTINGS, NOISE_SETTINGS, Sampler
from velatura.sampling.samplers.sde import (
    dpmpp_2m_sde,
    dpmpp_2m_sde_heun,
    dpmpp_2s_ancestral,
    dpmpp_3m_sde,
    dpmpp_sde,
)
from velatura.sampling.samplers.singlestep import dpm_adaptive, dpm_fast
from velatura.sampling.samplers.unipc import unipc, unipc_sigmas

UNIPC_SETTINGS = frozenset({"unipc_variant", "unipc_spacing", "unipc_order", "unipc_lower_order_final"})


def find_sampler(name: str) -> Sampler:
    """Return the sampler of a name.

    Args:
        name: A1111's name in any case, or the word of another program, such as "dpmpp_2m" or
            "EulerAncestralDiscreteScheduler". A scheduler at its end, as in "DPM++ 2M Karras", becomes the sampler's
            own.

    Raises:
        UnknownName: No such sampler exists; the message suggests similar names, or the nearest to one that only other
            programs have.
    """
    for key, scheduler in split_sampler_name(name):
        sampler = SAMPLERS.get(SAMPLER_ALIASES.get(key) or SAMPLER_NAME_BY_KEY.get(key, ""))
        if sampler is None:
            continue
        if scheduler is None:
            return sampler
        if sampler.timestep_sigmas:
            raise UnknownName(f"{sampler.name} has its own noise schedule: remove {scheduler} from {name!r}")
        return replace(sampler, name=f"{sampler.name} {scheduler}", scheduler=scheduler, automatic_scheduler=scheduler)
    if nearest_name := nearest(name, NEAREST_SAMPLERS):
        raise UnknownName(f"velatura does not have the sampler {name!r}: the nearest that it has is {nearest_name}")
    raise UnknownName.with_suggestions("sampler", name, [*SAMPLERS, *COMBINED_NAMES])


def ddim_timestep_sigmas(sigmas: Tensor, timesteps: Tensor, _first: int, _settings: SamplerSettings) -> Tensor:
    """Return the noise levels of DDIM's timesteps, the noisiest first."""
    return sigmas[timesteps].flip(0)


def unipc_timestep_sigmas(sigmas: Tensor, timesteps: Tensor, start_timestep: int, settings: SamplerSettings) -> Tensor:
    """Return the noise levels of UniPC, one more than there are timesteps."""
    return unipc_sigmas(sigmas, start_timestep, len(timesteps), settings.unipc_spacing)


SAMPLERS = {
    sampler.name: sampler
    for sampler in (
        Sampler("DPM++ 2M", dpmpp_2m, automatic_scheduler="Karras"),
        Sampler("DPM++ SDE", dpmpp_sde, ANCESTRAL_SETTINGS, automatic_scheduler="Karras", calls_per_step=2),
        Sampler("DPM++ 2M SDE", dpmpp_2m_sde, ANCESTRAL_SETTINGS, automatic_scheduler="Exponential"),
        Sampler("DPM++ 2M SDE Heun", dpmpp_2m_sde_heun, ANCESTRAL_SETTINGS, automatic_scheduler="Exponential"),
        Sampler(
            "DPM++ 2S a",
            dpmpp_2s_ancestral,
            ANCESTRAL_SETTINGS,
            automatic_scheduler="Karras",
            calls_per_step=2,
            draws_noise="eta",
            uses_ensd=True,
        ),
        Sampler(
            "DPM++ 3M SDE",
            dpmpp_3m_sde,
            ANCESTRAL_SETTINGS,
            automatic_scheduler="Exponential",
            discards_penultimate=True,
        ),
        Sampler("Euler a", euler_ancestral, ANCESTRAL_SETTINGS, draws_noise="eta", uses_ensd=True),
        Sampler("Euler", euler, CHURN_SETTINGS, draws_noise="churn"),
        Sampler("LMS", lms),
        Sampler("Heun", heun, CHURN_SETTINGS, calls_per_step=2, draws_noise="churn"),
        Sampler(
            "DPM2",
            dpm2,
            CHURN_SETTINGS,
            automatic_scheduler="Karras",
            calls_per_step=2,
            discards_penultimate=True,
            draws_noise="churn",
        ),
        Sampler(
            "DPM2 a",
            dpm2_ancestral,
            ANCESTRAL_SETTINGS,
            automatic_scheduler="Karras",
            calls_per_step=2,
            discards_penultimate=True,
            draws_noise="eta",
            uses_ensd=True,
        ),
        Sampler("DPM fast", dpm_fast, ANCESTRAL_SETTINGS, draws_noise="eta", uses_ensd=True),
        Sampler(
            "DPM adaptive", dpm_adaptive, ANCESTRAL_SETTINGS, draws_noise="eta", uses_ensd=True, depends_on_batch=True
        ),
        Sampler(
            "Restart",
            restart,
            NOISE_SETTINGS,
            scheduler="Karras",
            automatic_scheduler="Karras",
            calls_per_step=2,
            draws_noise="always",
        ),
        Sampler("LCM", lcm, timestep_interval=LCM_TIMESTEP_INTERVAL, draws_noise="always"),
        Sampler(
            "DDIM",
            euler_ancestral,
            ANCESTRAL_SETTINGS,
            eta=0.0,
            timestep_sigmas=ddim_timestep_sigmas,
            draws_noise="eta",
        ),  # with an eta of 0, an ancestral Euler step along these levels is the step of DDIM
        Sampler("PLMS", plms, timestep_sigmas=ddim_timestep_sigmas),
        Sampler("UniPC", unipc, UNIPC_SETTINGS, timestep_sigmas=unipc_timestep_sigmas),
    )
}

SAMPLER_NAME_BY_KEY = {name_key(name): name for name in SAMPLERS}
COMBINED_NAMES = [
    f"{name} {sampler.automatic_scheduler}"
    for name, sampler in SAMPLERS.items()
    if sampler.automatic_scheduler != "Uniform"
]
