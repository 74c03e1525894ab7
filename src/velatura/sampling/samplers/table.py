"""The samplers by their names, which are the webui's."""

from dataclasses import replace

from torch import Tensor

from velatura.errors import UnknownName
from velatura.sampling.samplers.consistency import STRIDE, lcm
from velatura.sampling.samplers.multistep import dpmpp_2m, plms
from velatura.sampling.samplers.restart import restart
from velatura.sampling.samplers.sampler import CHURN, FRESH, STRENGTH, Sampler
from velatura.sampling.samplers.sde import (
    dpmpp_2m_sde,
    dpmpp_2m_sde_heun,
    dpmpp_2s_ancestral,
    dpmpp_3m_sde,
    dpmpp_sde,
)
from velatura.sampling.samplers.singlestep import dpm_adaptive, dpm_fast
from velatura.sampling.samplers.slopes import dpm2, dpm2_ancestral, euler, euler_ancestral, heun, lms
from velatura.sampling.samplers.unipc import unipc, unipc_levels
from velatura.sampling.schedules import SCHEDULERS
from velatura.sampling.settings import Settings

UNIPC = frozenset({"unipc_variant", "unipc_spacing", "unipc_order", "unipc_lower_order_final"})


def find_sampler(name: str) -> Sampler:
    """The sampler of a name or an alias, in any case; a scheduler at the name's end becomes its own.

    Raises UnknownName with those that are near.
    """
    if found := _named(name):
        return found
    for ending, scheduler in ENDINGS.items():
        found = _named(name[: -len(ending)]) if name.lower().endswith(ending) else None
        if found and found.ladder:
            raise UnknownName(f"{found.name} has levels of its own: leave {scheduler} out of {name!r}")
        if found:
            return replace(found, name=f"{found.name} {scheduler}", scheduler=scheduler, automatic=scheduler)
    raise UnknownName.among("sampler", name, [*SAMPLERS, *COMBINED])


def _named(name: str) -> Sampler | None:
    lower = name.lower()
    return SAMPLERS.get(ALIASES.get(lower, "")) or next(
        (sampler for each, sampler in SAMPLERS.items() if each.lower() == lower), None
    )


def along_timesteps(sigmas: Tensor, times: Tensor, _first: int, _settings: Settings) -> Tensor:
    """The levels of timesteps, noisiest first."""
    return sigmas[times].flip(0)


def along_times(sigmas: Tensor, times: Tensor, first: int, settings: Settings) -> Tensor:
    """The levels of UniPC: as many steps as there are timesteps, from the first on."""
    return unipc_levels(sigmas, first, len(times), settings.unipc_spacing)


SAMPLERS = {
    sampler.name: sampler
    for sampler in (
        Sampler("DPM++ 2M", dpmpp_2m, automatic="Karras"),
        Sampler("DPM++ SDE", dpmpp_sde, FRESH, automatic="Karras", calls_per_step=2),
        Sampler("DPM++ 2M SDE", dpmpp_2m_sde, FRESH, automatic="Exponential"),
        Sampler("DPM++ 2M SDE Heun", dpmpp_2m_sde_heun, FRESH, automatic="Exponential"),
        Sampler(
            "DPM++ 2S a", dpmpp_2s_ancestral, FRESH, automatic="Karras", calls_per_step=2, draws="eta", reads_ensd=True
        ),
        Sampler("DPM++ 3M SDE", dpmpp_3m_sde, FRESH, automatic="Exponential", discards=True),
        Sampler("Euler a", euler_ancestral, FRESH, draws="eta", reads_ensd=True),
        Sampler("Euler", euler, CHURN, draws="churn"),
        Sampler("LMS", lms),
        Sampler("Heun", heun, CHURN, calls_per_step=2, draws="churn"),
        Sampler("DPM2", dpm2, CHURN, automatic="Karras", calls_per_step=2, discards=True, draws="churn"),
        Sampler(
            "DPM2 a",
            dpm2_ancestral,
            FRESH,
            automatic="Karras",
            calls_per_step=2,
            discards=True,
            draws="eta",
            reads_ensd=True,
        ),
        Sampler("DPM fast", dpm_fast, FRESH, draws="eta", reads_ensd=True),
        Sampler("DPM adaptive", dpm_adaptive, FRESH, draws="eta", reads_ensd=True, reads_batch=True),
        Sampler("Restart", restart, STRENGTH, scheduler="Karras", automatic="Karras", calls_per_step=2, draws="always"),
        Sampler("LCM", lcm, stride=STRIDE, draws="always"),
        Sampler(
            "DDIM", euler_ancestral, FRESH, eta=0.0, ladder=along_timesteps, draws="eta"
        ),  # which it is in this space
        Sampler("PLMS", plms, ladder=along_timesteps),
        Sampler("UniPC", unipc, UNIPC, ladder=along_times),
    )
}

# The webui's own, and those that name a scheduler with "_ka" and "_exp" at their ends
ALIASES = {
    "k_dpmpp_2m": "DPM++ 2M",
    "k_dpmpp_sde": "DPM++ SDE",
    "k_dpmpp_2m_sde": "DPM++ 2M SDE",
    "k_dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun",
    "k_dpmpp_2s_a": "DPM++ 2S a",
    "k_dpmpp_3m_sde": "DPM++ 3M SDE",
    "k_euler_a": "Euler a",
    "k_euler_ancestral": "Euler a",
    "k_euler": "Euler",
    "k_lms": "LMS",
    "k_heun": "Heun",
    "k_dpm_2": "DPM2",
    "k_dpm_2_a": "DPM2 a",
    "k_dpm_fast": "DPM fast",
    "k_dpm_ad": "DPM adaptive",
    "k_lcm": "LCM",
}
ENDINGS = {f" {each.lower()}": each for each in SCHEDULERS} | {"_ka": "Karras", "_exp": "Exponential"}
COMBINED = [f"{name} {sampler.automatic}" for name, sampler in SAMPLERS.items() if sampler.automatic != "Uniform"]
