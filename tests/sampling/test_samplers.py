"""Runs of the webui's samplers on a toy model (tests/data/a1111/samplers.*), which ours must end in too."""

import json
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from velatura.base.schedule import Schedule
from velatura.errors import UnknownName
from velatura.sampling.noise import Noise
from velatura.sampling.samplers import SAMPLERS, find_sampler, timestep_of

GOLDEN = Path(__file__).parents[1] / "data" / "a1111"
TENSORS = load_file(GOLDEN / "samplers.safetensors")
# What only changes the levels is read from the recording; what changes the steps themselves is not ours yet.
ONLY_LEVELS = {"k_sched_type", "rho", "sigma_min", "sigma_max", "always_discard_next_to_last_sigma"}
ONLY_LEVELS |= {"use_old_karras_scheduler_sigmas"}


def ours(case):
    plain = set(case["options"]) <= ONLY_LEVELS and not {"peta", "sst"} & set(case)
    return case["sampler"] in SAMPLERS and plain


CASES = [case for case in json.loads((GOLDEN / "samplers.json").read_text("utf-8"))["cases"] if ours(case)]
SCHEDULE = Schedule()


def parts(prompt, call, calls):
    """What a prompt of the recordings says at a model call: texts with their AND weights.

    A row of a prompt's schedule holds up to and with the call of its number, counted from 0: the first row holds twice.
    """
    return {
        "[x|y] thing": [(("x thing", "y thing")[max(call - 1, 0) % 2], 1.0)],
        "a [cat:dog:0.5] AND sky:0.4": [("a cat" if call <= calls // 2 else "a dog", 1.0), (" sky", 0.4)],
    }.get(prompt, [(prompt, 1.0)])


def toy(x, timestep, text):
    """The model of the recordings: eps(x, t, c) = 0.8 tanh(x) + 0.1 sin(t / 100) + 0.2 mean(c)."""
    mean = (sum(map(ord, text)) % 97) / 97 - 0.5
    return 0.8 * torch.tanh(x) + 0.1 * torch.sin(timestep / 100) + 0.2 * mean


def denoiser(case, prompt, negative):
    """The toy model under guidance, for one picture; it counts its calls, by which prompts change."""
    calls = count()
    in_all = case["steps"] * (2 if case["sampler"] == "Heun" else 1)

    def denoise(latents, sigma):
        call, alpha = next(calls), 1 / (1 + sigma**2).sqrt()
        x, timestep = latents * alpha, timestep_of(SCHEDULE, sigma)

        def clean(text):
            out = toy(x, timestep, text)
            return alpha * x - sigma * alpha * out if case.get("v") else latents - sigma * out

        base = clean(negative)
        return base + sum(w * case["cfg_scale"] * (clean(text) - base) for text, w in parts(prompt, call, in_all))

    return denoise


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['id']} {case['sampler']}")
def test_a_run_ends_where_the_webuis_ends(case):
    sampler, levels = SAMPLERS[case["sampler"]], TENSORS[f"{case['id']}.schedule"]
    if sampler.preserves_variance:
        levels = SCHEDULE.sigmas[levels.long()].flip(0)
    for i, (seed, prompt, negative) in enumerate(zip(case["seeds"], case["prompts"], case["negs"], strict=True)):
        denoise, noise = denoiser(case, prompt, negative), Noise([seed], (4, 8, 8))
        if "ds" in case:  # image to image: later on the same way
            *_, end = image_to_image(case, denoise, noise, levels, start=TENSORS[f"{case['id']}.init"][i : i + 1])
        else:
            *_, end = sampler.sample(denoise, noise.draw, levels)
        expected = TENSORS[f"{case['id']}.out"][i : i + 1]
        assert (end - expected).abs().max() <= 1e-4 * max(1, expected.abs().max())


def image_to_image(case, denoise, noise, levels, *, start):
    """The webui's way into the middle: DDIM takes noise of one level above that which it then steps from."""
    sampler, stops = SAMPLERS[case["sampler"]], int(min(case["ds"], 0.999) * case["steps"])
    if not sampler.preserves_variance:
        levels = levels[-stops - 2 :]
        return sampler.walk(denoise, start + noise.draw() * levels[0], levels, noise.draw)
    above, levels = levels[-stops - 1], levels[-stops:]
    narrower = ((1 + levels[0] ** 2) / (1 + above**2)).sqrt()
    walk = sampler.walk(denoise, (start + noise.draw() * above) * narrower, levels, noise.draw)
    return (latents / (1 + levels[-1] ** 2).sqrt() for latents in walk)


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case["options"] and "ds" not in case], ids=lambda c: c["id"]
)
def test_levels_are_the_webuis(case):
    sampler, expected = SAMPLERS[case["sampler"]], TENSORS[f"{case['id']}.schedule"]
    levels = sampler.levels(SCHEDULE, case["steps"])
    if sampler.preserves_variance:
        levels = torch.stack([timestep_of(SCHEDULE, sigma) for sigma in levels]).round().flip(0)
    torch.testing.assert_close(levels, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=lambda sampler: sampler.name)
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 999, 1000])
def test_any_number_of_steps_goes_down_from_the_noisiest_to_the_cleanest(sampler, steps):
    levels = sampler.levels(SCHEDULE, steps)
    assert len(levels) >= 2
    assert (levels.diff() < 0).all()
    assert levels[0] > 10 or (sampler.preserves_variance and steps == 2)  # A1111's DDIM starts at timestep 501 then
    assert levels[-1] < 0.05


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=lambda sampler: sampler.name)
def test_a_perfect_guess_is_where_every_sampler_ends(sampler):
    target = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
    noise = Noise([3], (1, 4, 4))
    *_, end = sampler.sample(lambda _latents, _sigma: target, noise.draw, sampler.levels(SCHEDULE, 10))
    assert (end - target).abs().max() < 0.15  # DDIM stops at the first timestep, where a little noise is left


def test_timesteps_are_found_from_their_noise():
    for timestep in (0, 1, 500, 998, 999):
        assert timestep_of(SCHEDULE, SCHEDULE.sigmas[timestep]).item() == pytest.approx(timestep, abs=1e-3)


def test_samplers_are_found_in_any_case():
    assert find_sampler("euler A") is SAMPLERS["Euler a"]


def test_an_unknown_sampler_names_those_that_are_near():
    with pytest.raises(UnknownName, match="did you mean 'Euler a'"):
        find_sampler("Eular a")
