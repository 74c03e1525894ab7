"""Runs of the webui's samplers on a toy model (tests/data/a1111/samplers.*), which ours must end in too."""

import json
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from velatura.base.noise_schedule import NoiseSchedule
from velatura.sampling.noise.seeded import SeededNoise, Variation
from velatura.sampling.recipe.sizes import setup_img2img_steps
from velatura.sampling.samplers import SAMPLERS, SamplerSettings, find_sampler
from velatura.sampling.samplers.schedules import sigma_to_t

GOLDEN = Path(__file__).parents[2] / "data" / "a1111"
TENSORS = load_file(GOLDEN / "samplers.safetensors")
RECORDED = json.loads((GOLDEN / "samplers.json").read_text("utf-8"))
CASES = RECORDED["cases"]
SCHEDULE = NoiseSchedule()
# The webui's options and what we call them
SETTINGS = {
    "eta_ancestral": "eta",
    "eta_ddim": "eta",
    "s_churn": "churn",
    "s_tmin": "churn_from",
    "s_tmax": "churn_to",
    "s_noise": "churn_noise",
    "k_sched_type": "scheduler",
    "sigma_min": "sigma_min",
    "sigma_max": "sigma_max",
    "rho": "rho",
    "always_discard_next_to_last_sigma": "discards_penultimate",
    "sgm_noise_multiplier": "sgm_noise",
    "img2img_extra_noise": "extra_noise",
    "uni_pc_variant": "unipc_variant",
    "uni_pc_order": "unipc_order",
}
OLD_KARRAS = {"sigma_min": 0.1, "sigma_max": 10.0}
ELSEWHERE = {"eta_noise_seed_delta", "randn_source", "s_min_uncond", "img2img_fix_steps"}  # no matter of the sampler


def settings_of(case):
    options = dict(case["options"])
    old = OLD_KARRAS if options.pop("use_old_karras_scheduler_sigmas", False) else {}
    eta = {"eta": case["peta"]} if "peta" in case else {}
    return SamplerSettings(
        **{SETTINGS[key]: value for key, value in options.items() if key not in ELSEWHERE}, **old, **eta
    )


def img2img_of(case):
    exactly = case["steps"] if case["options"].get("img2img_fix_steps") else None
    return setup_img2img_steps(case["steps"], case["ds"], exact_steps=exactly) if "ds" in case else None


def noise_of(case, picture):
    options = case["options"]
    return SeededNoise(
        case["seeds"][picture : picture + 1],
        (4, 8, 8),
        source=options.get("randn_source", "CPU"),
        variation=Variation(case["subs"][picture : picture + 1], case["sst"]) if "sst" in case else None,
        ensd=options.get("eta_noise_seed_delta", 0),
    )


def parts(prompt, call, calls):
    """What a prompt of the recordings says at a model call: texts with their AND weights.

    A row of a prompt's schedule holds up to and with the call of its number, counted from 0: the first row holds twice,
    and again when there are more calls than the schedule foresees.
    """
    first = call <= calls // 2 or call > calls
    return {
        "[x|y] thing": [(("x thing", "y thing")[max(call - 1, 0) % 2], 1.0)],
        "a [cat:dog:0.5] AND sky:0.4": [("a cat" if first else "a dog", 1.0), (" sky", 0.4)],
    }.get(prompt, [(prompt, 1.0)])


def toy(x, timestep, text):
    """The model of the recordings: eps(x, t, c) = 0.8 tanh(x) + 0.1 sin(t / 100) + 0.2 mean(c)."""
    mean = (sum(map(ord, text)) % 97) / 97 - 0.5
    return 0.8 * torch.tanh(x) + 0.1 * torch.sin(timestep / 100) + 0.2 * mean


def denoiser(case, trajectory, prompt, negative, calls):
    """The toy model under guidance, for one picture; calls counts, and prompts change by it."""
    in_all = case["steps"] * find_sampler(case["sampler"]).calls_per_step

    def denoise(latents, sigma):
        call, alpha = next(calls), 1 / (1 + sigma**2).sqrt()
        x, timestep = latents * alpha, trajectory.timestep(sigma)

        def clean(text):
            out = toy(x, timestep, text)
            return alpha * x - sigma * alpha * out if case.get("v") else latents - sigma * out

        texts = parts(prompt, call, in_all)
        if call % 2 and sigma < case["options"].get("s_min_uncond", 0):
            return clean(texts[0][0])
        base = clean(negative)
        return base + sum(weight * case["cfg_scale"] * (clean(text) - base) for text, weight in texts)

    return denoise


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['id']} {case['sampler']}")
def test_a_run_ends_where_the_webuis_ends(case):
    sampler = find_sampler(case["sampler"])
    trajectory = sampler.trajectory(SCHEDULE, case["steps"], settings_of(case), img2img=img2img_of(case))
    for i, (prompt, negative) in enumerate(zip(case["prompts"], case["negs"], strict=True)):
        calls = count()
        denoise = denoiser(case, trajectory, prompt, negative, calls)
        image = TENSORS[f"{case['id']}.init"][i : i + 1] if "ds" in case else None
        *_, end = sampler.sample(denoise, noise_of(case, i), trajectory, image)
        expected = TENSORS[f"{case['id']}.out"][i : i + 1]
        assert (end - expected).abs().max() <= 2e-4 * max(1, expected.abs().max())
        assert next(calls) == case["model_calls"]


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["sampler"] != "UniPC"], ids=lambda case: f"{case['id']} {case['sampler']}"
)
def test_levels_are_the_webuis(case):
    sampler, expected = find_sampler(case["sampler"]), TENSORS[f"{case['id']}.schedule"]
    levels = sampler.trajectory(SCHEDULE, case["steps"], settings_of(case)).sigmas
    if sampler.timestep_sigmas:
        levels = torch.stack([sigma_to_t(SCHEDULE.sigmas, sigma) for sigma in levels]).round().flip(0)
    torch.testing.assert_close(levels, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row", RECORDED["sampler_table"], ids=lambda row: row["name"])
def test_every_name_of_the_webui_is_known_and_means_the_same(row):
    sampler, options = find_sampler(row["name"]), row["options"]
    assert sampler.name == row["name"]
    if row["name"] != "Restart":
        assert sampler.scheduler == options.get("scheduler", "Uniform").capitalize()
    assert sampler.calls_per_step == (2 if options.get("second_order") else 1)
    assert sampler.discards_penultimate == options.get("discard_next_to_last_sigma", False)
    if row["name"] != "DPM2 Karras":  # which the webui flags though it draws no noise
        assert sampler.uses_ensd == options.get("uses_ensd", False)
    if row["name"] != "DPM++ 2M SDE":  # whose alias is also another's there
        assert {find_sampler(alias).name for alias in row["aliases"]} == {row["name"]}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=lambda sampler: sampler.name)
@pytest.mark.parametrize(
    "settings",
    [SamplerSettings(), SamplerSettings(eta=0.5), SamplerSettings(eta=0.0), SamplerSettings(churn=5)],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::velatura.errors.VelaturaWarning")
def test_the_seeds_of_later_noise_count_where_it_is_drawn(sampler, settings):
    trajectory = sampler.trajectory(NoiseSchedule(), 24, settings)
    noises = (SeededNoise([1], (4, 2, 2), ensd=added) for added in (0, 9))
    one, other = (list(sampler.sample(lambda noisy, _sigma: noisy * 0.1, noise, trajectory))[-1] for noise in noises)
    assert bool((one != other).any()) == sampler.draws_later_noise(settings)
