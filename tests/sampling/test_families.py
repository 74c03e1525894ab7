"""Bases of other families than the tiny one paint as well."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

import velatura
from velatura.errors import BadRecipe, VelaturaWarning

# by diffusers' scheduler, with the newest numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
STEPS = 4  # at timesteps 999, 666, 333 and 0: neither program has to interpolate
WORDS = {"negative": "blurry", "seed": 3, "steps": STEPS, "sampler": "Euler"}


def shared(base):
    return {"unet": base.unet, "vae": base.vae, "scheduler": EulerDiscreteScheduler(**BETAS)} | {
        f"{part}{'' if place == 1 else f'_{place}'}": each
        for place, tower in enumerate(base.text.encoders, 1)
        for part, each in (("text_encoder", tower.model), ("tokenizer", tower.tokenizer))
    }


def by_diffusers(pipeline, prompt, guidance, **options):
    """The same picture by a pipeline of diffusers, in eighths of a bit."""
    pipeline.set_progress_bar_config(disable=True)
    side = pipeline.unet.config["sample_size"]
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(3))
    made = pipeline(
        prompt,
        negative_prompt="blurry",
        latents=noise,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        output_type="np",
        **options,
    )
    return made.images[0] * 255


def difference(picture, theirs):
    return np.abs(np.asarray(picture.image, dtype=np.float32) + 0.5 - theirs).max()  # we cut, so are 0.5 too low


@pytest.mark.parametrize("guidance", [1, 7])
def test_an_sdxl_paints_what_it_paints_in_diffusers(xl, guidance):
    pipeline = StableDiffusionXLPipeline(**shared(xl), add_watermarker=False)
    ours = velatura.generate(xl, "a red house", guidance=guidance, **WORDS)
    assert difference(ours, by_diffusers(pipeline, "a red house", guidance, height=64, width=64)) < 1


@pytest.fixture
def velocity(tiny):
    """The tiny base taken for one that predicts velocity."""
    family = replace(tiny.family, prediction="v_prediction")
    return velatura.Base("v", family, unet=tiny.unet, vae=tiny.vae, text=tiny.text, schedule=tiny.schedule)


def test_a_base_that_predicts_velocity_paints_what_it_paints_in_diffusers(velocity):
    more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionPipeline(**shared(velocity), **more)
    pipeline.scheduler = EulerDiscreteScheduler(**BETAS, prediction_type="v_prediction")
    ours = velatura.generate(velocity, "a red house", guidance=7, **WORDS)
    assert difference(ours, by_diffusers(pipeline, "a red house", 7, height=64, width=64)) < 1


def test_pictures_of_an_sdxl_of_other_shapes_tell_of_them(xl):
    heard = []
    hook = xl.unet.register_forward_pre_hook(lambda _, args, more: heard.append((args, more)), with_kwargs=True)
    try:
        velatura.generate(xl, "a red house", width=96, height=64, seed=1, steps=3)
    finally:
        hook.remove()
    assert all(more["added_cond_kwargs"]["time_ids"].tolist() == [[64, 96, 0, 0, 64, 96]] * 2 for _, more in heard)
    assert len({id(args[2]) for args, _ in heard}) == 1  # the context, which overlays know again
    pooled = [more["added_cond_kwargs"]["text_embeds"] for _, more in heard]
    assert all(each is pooled[0] for each in pooled)
    assert pooled[0][0].count_nonzero() == 0  # of the empty negative prompt
    assert len(heard) == 3


@pytest.mark.parametrize("guidance", [1, 5])
def test_hypernetworks_lie_over_an_sdxl(xl, guidance):
    overlay = velatura.Hypernetwork.for_base(xl, widths=[40, 64], init="xavier_normal", seed=1)
    recipe = velatura.Recipe(prompt="a <hypernet:neon:0.8> house", seed=2, steps=2, guidance=guidance)
    with_it = velatura.generate(xl, recipe, overlays={"neon": overlay})
    without = velatura.generate(xl, recipe.replace(prompt="a  house"))
    off = velatura.generate(xl, recipe.replace(prompt="a <hypernet:neon:0> house"), overlays={"neon": overlay})
    assert with_it.image.tobytes() != without.image.tobytes() == off.image.tobytes()


def test_many_pictures_of_an_sdxl_are_what_they_are_alone(xl):
    recipes = [velatura.Recipe(prompt=words, seed=4, steps=2) for words in ("a house", "a (boat:1.3) at sea")]
    together = velatura.generate_many(xl, recipes)
    for recipe, picture in zip(recipes, together, strict=True):
        alone = velatura.generate(xl, recipe)
        assert np.abs(np.asarray(picture.image, int) - np.asarray(alone.image, int)).max() <= 1


def test_a_prompt_too_long_for_a_plain_encoding_is_cut_with_a_warning(xl):
    with pytest.warns(VelaturaWarning, match="the first 75 are read"):
        assert xl.text.conditioning(["house " * 80]).context.shape == (1, 77, 40)


def test_a_clip_skip_changes_what_is_painted_where_the_base_takes_one(tiny):
    pictures = {n: velatura.generate(tiny, "a red house", seed=1, steps=2, clip_skip=n).image for n in (1, 2)}
    assert pictures[1].tobytes() != pictures[2].tobytes()
    with pytest.raises(BadRecipe, match=r"clip_skip is 4: this base takes 1 .the last layer. to 3"):
        velatura.generate(tiny, "a red house", clip_skip=4)


def test_a_clip_skip_that_an_sdxl_has_no_use_for_is_said(xl):
    plain = velatura.generate(xl, "a red house", seed=1, steps=1)
    assert velatura.generate(xl, "a red house", seed=1, steps=1, clip_skip=2).image.tobytes() == plain.image.tobytes()
    with pytest.warns(VelaturaWarning, match="clip_skip 3 changes nothing: small XL always uses the layer"):
        velatura.generate(xl, "a red house", seed=1, steps=1, clip_skip=3)
