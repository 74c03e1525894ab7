import numpy as np
import pytest
import torch

from velatura.base.families import FAMILIES, check_family_name, find_family, guess_family_name, normalize_family_name
from velatura.base.noise_schedule import NoiseSchedule
from velatura.errors import VelaturaWarning


def test_the_schedule_is_sd1s():
    # numpy in float64, as LDM makes it: betas linear in their square roots
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = np.cumprod(1 - betas)
    schedule = NoiseSchedule()
    np.testing.assert_array_equal(schedule.alphas_cumprod.numpy(), alphas.astype(np.float32))
    assert schedule.sigmas[-1].item() == pytest.approx(14.6146, abs=1e-4)  # k-diffusion's sigma_max of SD1
    assert schedule.sigmas[0].item() == pytest.approx(0.0292, abs=1e-4)


def test_noise_keeps_the_variance():
    latents, noise = torch.randn(2, 4, 64, 64), torch.randn(2, 4, 64, 64)
    noisy = NoiseSchedule().add_noise(latents, noise, torch.tensor([0, 999]))
    assert noisy.var().item() == pytest.approx(1, abs=0.05)
    assert (noisy[0] - latents[0]).abs().max() < 0.2
    assert (noisy[1] - noise[1]).abs().max() < 0.5


def test_a_base_is_frozen(tiny):
    models = (tiny.unet, tiny.vae, tiny.text.model)
    assert not any(weight.requires_grad for model in models for weight in model.parameters())
    assert not any(model.training for model in models)
    assert repr(tiny) == "Base('tiny', tiny, float32 on cpu)"


def test_pixels_become_latents_and_latents_pixels(tiny):
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    latents = tiny.encode(pixels)
    assert latents.shape == (2, 4, 16, 16)
    assert torch.equal(latents, tiny.encode(pixels))
    decoded = tiny.decode(latents)
    assert decoded.shape == pixels.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1


def test_with_a_generator_latents_are_a_sample(tiny):
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    one, other = (tiny.encode(pixels, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert not torch.equal(one, other)
    assert torch.equal(one, tiny.encode(pixels, torch.Generator().manual_seed(1)))


def test_prompts_get_bos_eos_and_padding(tiny):
    text, [encoder] = tiny.text, tiny.text.encoders
    ids = text.token_ids("a red house")
    assert encoder.bos_id not in ids
    assert text.encode(["a red house", ""]).shape == (2, 77, text.width) == (2, 77, 96)
    padded = torch.tensor([[encoder.bos_id, *ids, encoder.eos_id] + [encoder.pad_id] * (75 - len(ids))])
    assert torch.equal(encoder.encode_ids(padded).hidden, text.encode(["a red house"]))


def test_case_is_ignored(tiny):
    assert tiny.text.token_ids("A Red HOUSE") == tiny.text.token_ids("a red house")


def test_words_after_the_75th_token_give_a_warning(tiny):
    with pytest.warns(VelaturaWarning, match="the first 75 are read"):
        tiny.text.encode(["house " * 100])


@pytest.mark.parametrize("family", FAMILIES.values(), ids=str)
def test_a_family_is_recognised_by_its_widths(family):
    assert find_family(family.cross_width, family.self_widths) == family
    assert guess_family_name(family.widths) == family.name


def test_the_nearest_family_of_unknown_widths_is_named():
    assert find_family(768, (320,)) is None
    assert guess_family_name([768]) == "SD1"
    assert guess_family_name([320, 640, 1280, 1024]) == "SD2"
    assert not guess_family_name([7])


@pytest.mark.parametrize(
    ("stated", "widths", "family"),
    [
        ("tiny", (768,), "SD1"),  # made on the tiny base with widths of SD1
        ("SD1", (1024, 320), "SD2"),
        ("SD2", (2048, 640, 1280), "SDXL"),
        ("tiny", (7,), ""),
        ("", (768, 320), "SD1"),
        ("SD2", (320, 640, 1280), "SD2"),  # self-attention alone, which SD1 has too
        ("SD1", (768, 96), "SD1"),
        ("Kandinsky", (768,), "Kandinsky"),
        ("SD1", (), "SD1"),  # of convolutions alone
    ],
)
def test_a_stated_family_is_believed_unless_the_widths_are_those_of_another(stated, widths, family):
    assert check_family_name(stated, widths) == family


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (("SD1", "sd1", "SD1.5", "sd15", "1.5", "SD 1.4", "v1-5", "stable diffusion 1.5", "SD1.x"), "SD1"),
        (("SD2", "2.1", "sd21", "SD 2.1 768", "Stable-Diffusion-2"), "SD2"),
        (("SDXL", "xl", "XL", "sdxl 1.0", "SD_XL", "Pony", "Illustrious"), "SDXL"),
        (("tiny", "Tiny"), "tiny"),
        (("flux", "sd3", "SD 3.5"), None),
    ],
)
def test_families_are_known_by_the_names_that_people_use(names, family):
    for name in names:
        assert normalize_family_name(name) == (family or name)
