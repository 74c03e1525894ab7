"""Pictures by inpainting and pix2pix models are those of diffusers' pipelines."""

import numpy as np
import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
)
from PIL import Image

import velatura
from tests.conftest import widen
from tests.sampling.init_images import STEPS, WORDS, difference, make_image, make_mask, pixels_of
from velatura import InitImage, Recipe

# by diffusers' scheduler, with the newest numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
INPAINT = {"tiny": StableDiffusionInpaintPipeline, "xl": StableDiffusionXLInpaintPipeline}
EDIT = {"tiny": StableDiffusionInstructPix2PixPipeline, "xl": StableDiffusionXLInstructPix2PixPipeline}
FAMILIES = pytest.mark.parametrize("family", ["tiny", "xl"])


@pytest.fixture
def image():
    return make_image()


@pytest.fixture
def mask():
    return make_mask()


def pipeline_of(kind, base):
    parts = {"unet": base.unet, "vae": base.vae, "scheduler": EulerDiscreteScheduler(**BETAS)}
    for place, tower in enumerate(base.text.encoders, 1):
        suffix = "" if place == 1 else f"_{place}"
        parts |= {f"text_encoder{suffix}": tower.model, f"tokenizer{suffix}": tower.tokenizer}
    more = {"add_watermarker": False} if len(base.text.encoders) > 1 else NO_CHECKER
    pipeline = kind(**parts, **more)
    pipeline.vae.register_to_config(scaling_factor=base.family.scaling_factor)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise_of(base):
    side = 64 // base.family.vae_scale_factor
    return torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(3))


def by_diffusers(pipeline, start, guidance, **options):
    """Return the picture by a pipeline of diffusers from these latents, in eighths of a bit."""
    pipeline.scheduler.set_timesteps(STEPS)
    made = pipeline(
        "a red house",
        negative_prompt="blurry",
        latents=start / pipeline.scheduler.init_noise_sigma,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        output_type="np",
        **options,
    )
    return made.images[0] * 255


@FAMILIES
@pytest.mark.parametrize("guidance", [1, 7])
def test_an_inpainting_model_paints_from_noise_what_diffusers_paints_behind_a_full_mask(request, family, guidance):
    base = widen(request.getfixturevalue(family), 9, name="inpainting")
    pipeline = pipeline_of(INPAINT[family], base)
    sigma = pipeline.scheduler.sigmas[0]
    theirs = by_diffusers(
        pipeline,
        noise_of(base) * sigma,
        guidance,
        image=Image.new("RGB", (64, 64)),
        mask_image=Image.new("L", (64, 64), 255),
        masked_image_latents=base.encode(torch.zeros(1, 3, 64, 64)),
        strength=1.0,
        height=64,
        width=64,
    )
    assert difference(velatura.generate(base, "a red house", guidance=guidance, **WORDS), theirs) < 1


@FAMILIES
@pytest.mark.parametrize("masked_content", ["original", "fill"])
def test_it_fills_a_mask_as_in_diffusers(request, family, image, mask, masked_content):
    base = widen(request.getfixturevalue(family), 9, name="inpainting")
    pipeline = pipeline_of(INPAINT[family], base)
    init_image = InitImage(image, mask)
    recipe = Recipe(prompt="a red house", guidance=5, denoising=1, mask_blur=0, masked_content=masked_content, **WORDS)
    inputs = []
    hook = base.unet.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0][:1]))
    ours = velatura.generate(base, recipe, init_image=init_image)
    hook.remove()

    # What the UNet reads: latents of the picture at first, then the mask, then the image with grey below the mask
    white = (torch.tensor(np.asarray(mask)) > 127)[None, None]
    hidden = base.encode(torch.where(white, torch.zeros(()), pixels_of(image)))
    factor = base.family.vae_scale_factor
    latent_mask = white[..., ::factor, ::factor].float()
    assert all(torch.equal(read[:, 4:5], latent_mask) for read in inputs)
    assert all(torch.equal(read[:, 5:], hidden) for read in inputs)

    # A1111 keeps the unmasked latents at every step, which diffusers leaves to a callback
    noise, sigmas = noise_of(base), pipeline.scheduler.sigmas
    start = inputs[0][:, :4] * (sigmas[0] ** 2 + 1).sqrt()
    kept = start - noise * sigmas[0]

    def keep_unmasked(pipeline, step, _, tensors):
        noisy = kept + noise * pipeline.scheduler.sigmas[step + 1]
        return {"latents": torch.where(latent_mask > 0, tensors["latents"], noisy)}

    theirs = by_diffusers(
        pipeline,
        start,
        5,
        image=image,
        mask_image=mask,
        masked_image_latents=hidden,
        strength=1.0,
        height=64,
        width=64,
        callback_on_step_end=keep_unmasked,
    )
    assert difference(ours, theirs, (slice(16, 48), slice(8, 40))) < 1
    outside = np.asarray(mask) == 0
    assert np.array_equal(np.asarray(ours.image)[outside], np.asarray(image)[outside])


@FAMILIES
@pytest.mark.parametrize(("guidance", "image_guidance"), [(7, 1.5), (3, 2.2), (7, 1)])
def test_a_pix2pix_model_edits_as_in_diffusers(request, family, image, guidance, image_guidance):
    base = widen(request.getfixturevalue(family), 8, name="pix2pix")
    pipeline = pipeline_of(EDIT[family], base)
    start = base.encode(pixels_of(image)) + noise_of(base) * pipeline.scheduler.sigmas[0]
    theirs = by_diffusers(pipeline, start, guidance, image=image, image_guidance_scale=image_guidance)
    fields = {"guidance": guidance, "image_guidance": image_guidance, "denoising": 1, **WORDS}
    ours = velatura.generate(base, "a red house", init_image=InitImage(image), **fields)
    assert difference(ours, theirs) < 1
