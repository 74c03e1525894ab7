"""Which rows of a batch are prompts: in velatura, in diffusers' pipelines of three kinds, and in a UNet alone.

The orders of rows are those of diffusers' pipelines: StableDiffusionPipeline has the negative prompts and the prompts,
StableDiffusionPAGPipeline the prompts once more, perturbed, and StableDiffusionInstructPix2PixPipeline the prompts, the
negative prompts with the image, and the negative prompts without it.
"""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPAGPipeline, StableDiffusionPipeline
from PIL import Image

import velatura
from tests.base.test_pipeline import make_scheduler
from velatura.errors import BadStrength


def make(pipeline_class, base, **options):
    pipeline = pipeline_class(
        unet=base.unet,
        vae=base.vae,
        text_encoder=base.text.model,
        tokenizer=base.text.tokenizer,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **options,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def paint(pipeline, **options):
    """Two pictures of two steps."""
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    options = {"guidance_scale": 4.0, "width": 64, "height": 64} | options
    if "Pix2Pix" in type(pipeline).__name__:
        del options["width"], options["height"]
        options["image"] = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    prompts = ["a red house", "a boat"]
    return pipeline(prompts, num_inference_steps=2, generator=generators, output_type="np", **options).images


@pytest.fixture
def pipelines(tiny, pix2pix):
    """Pipelines of the three kinds. Perturbed attention that an error interrupts stays in a UNet: it is taken out."""
    processors = tiny.unet.attn_processors
    yield {
        "plain": make(StableDiffusionPipeline, tiny),
        "pag": make(StableDiffusionPAGPipeline, tiny, pag_applied_layers=["mid"]),
        "pix2pix": make(StableDiffusionInstructPix2PixPipeline, pix2pix),
    }
    tiny.unet.set_attn_processor(processors)


ROWS = {"plain": [0, 0, 1, 1], "pag": [0, 0, 1, 1, 1, 1], "pix2pix": [1, 1, 0, 0, 0, 0]}


@pytest.mark.parametrize("kind", ROWS)
def test_a_side_of_a_pipeline_is_the_rows_that_it_gives_it(pipelines, hyper, kind):
    pipeline, rows, strong = pipelines[kind], torch.tensor(ROWS[kind], dtype=torch.float32), hyper()
    for side, strengths in (("prompt", rows), ("negative", 1 - rows)):
        with velatura.attach(pipeline, strong, on=side):
            painted = paint(pipeline)
        with velatura.attach(pipeline, strong, strengths):
            expected = paint(pipeline)
        assert np.array_equal(painted, expected)
        assert not np.array_equal(painted, paint(pipeline))


def test_strengths_of_pictures_follow_the_rows_of_each_kind_of_pipeline(pipelines, hyper):
    strong = hyper()
    for pipeline in pipelines.values():
        with velatura.attach(pipeline, strong, torch.tensor([0.0, 1.0])):
            painted = paint(pipeline)
        plain = paint(pipeline)
        assert np.allclose(painted[0], plain[0], atol=1e-4)
        assert not np.allclose(painted[1], plain[1], atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "options"), [("plain", {}), ("pag", {}), ("pag", {"pag_scale": 0.0}), ("pix2pix", {})], ids=str
)
def test_without_guidance_there_are_no_negative_prompts(pipelines, hyper, kind, options):
    off = pytest.raises(BadStrength, match=r"guidance is off in .*leave out on='prompt'")
    with velatura.attach(pipelines[kind], hyper(), on="prompt"), off:
        paint(pipelines[kind], guidance_scale=1.0, **options)


def test_perturbed_attention_that_is_off_leaves_halves(pipelines, hyper):
    strong, pipeline = hyper(), pipelines["pag"]
    with velatura.attach(pipeline, strong, on="prompt"):
        painted = paint(pipeline, pag_scale=0.0)
    with velatura.attach(pipeline, strong, torch.tensor([0.0, 0, 1, 1])):
        assert np.array_equal(painted, paint(pipeline, pag_scale=0.0))


def test_rows_that_are_not_known_are_refused(pipelines, tiny, hyper):
    """StableDiffusionSAGPipeline calls its UNet with halves, and once more with the negative prompts alone."""

    class StableDiffusionSAGPipeline:
        unet, text_encoder, do_classifier_free_guidance = tiny.unet, None, True

    sag, processors = StableDiffusionSAGPipeline(), tiny.unet.attn_processors
    latents, time, context = torch.zeros(6, 4, 16, 16), torch.tensor([10]), tiny.text.encode(["a tree"] * 6)
    unknown = pytest.raises(BadStrength, match=r"it is not known which rows of .* are prompts")
    with velatura.attach(sag, hyper(), on="prompt"), unknown:
        tiny.predict(latents, time, context)
    with velatura.attach(pipelines["pag"].unet, hyper(), on="prompt"), unknown:
        paint(pipelines["pag"])
    edited = pipelines["pix2pix"].unet
    with velatura.attach(edited, hyper(), on="prompt"), pytest.raises(BadStrength, match="it is not known"):
        edited(torch.zeros(6, 8, 16, 16), time, context)
    tiny.unet.set_attn_processor(processors)
    with velatura.attach(tiny.unet, hyper(), on="prompt"), pytest.raises(BadStrength, match="no prompt half"):
        tiny.predict(latents[:5], time, context[:5])
