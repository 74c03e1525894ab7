"""Painting a batch: overlays on, the steps of each pass, overlays off, and the latents into pictures."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.errors import NanLatents
from velatura.overlays.effect import Effect
from velatura.overlays.hooks.seams import has_overlays
from velatura.sampling.guidance import ConditioningCache, GuidanceOptions, GuidedDenoiser
from velatura.sampling.hires import upscale_latents
from velatura.sampling.img2img import masked_denoiser
from velatura.sampling.job import Job, SamplingPass
from velatura.sampling.noise import SeededNoise, Variation
from velatura.sampling.prompt_to_prompt import AttentionReplacement, map_tokens, replace_attention
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.resolve_embeddings import attached_embeddings
from velatura.sampling.resolve_overlays import MeasureEffects, StrengthSetter, attached_overlays

OnDenoised = Callable[[Tensor], None]  # the latents that are guessed, (pictures, 4, height, width)


def check_overlays_fit(base: Base, batch: Sequence[Job]) -> None:
    """Raise what painting a batch would raise of overlays that cannot lie over this base."""
    for pass_index, _ in enumerate(batch[0].passes):
        passes = [job.passes[pass_index] for job in batch]
        with _attach_overlays_and_embeddings(base, passes, batch[0].recipe):
            pass


@torch.no_grad()
def run_batch(
    base: Base, batch: Sequence[Job], conditioning_cache: ConditioningCache, on_denoised: OnDenoised
) -> tuple[list[Image.Image], list[Effect]]:
    """Make the pictures of a batch, telling of each step; the base is as before at the end, also after an error.

    Gives what overlays did in the first pass too, and in a second one where others are called there.
    """
    recipe = batch[0].recipe
    jobs = [*batch, *(job.layout_job for job in batch if job.layout_job)]
    with seamless_tiling(base, is_wanted=recipe.tiling), _translate_out_of_memory(batch):
        latents, effects = _denoise(base, jobs, conditioning_cache, on_denoised)
        if hires_target := batch[0].hires_target:
            upscaled = upscale_latents(base, latents, hires_target, recipe.hires_upscaler)
            latents, hires_effects = _denoise(base, jobs, conditioning_cache, on_denoised, upscaled)
            known_overlays = {effect.overlay for effect in effects}
            effects += [effect for effect in hires_effects if effect.overlay not in known_overlays]
        pictures = [_decode_image(base, picture_latents) for picture_latents in latents[: len(batch)]]
    composites = [
        job.init_latents.paste_back(picture) if job.init_latents else picture
        for job, picture in zip(batch, pictures, strict=True)
    ]
    return composites, effects


@contextmanager
def _translate_out_of_memory(batch: Sequence[Job]) -> Generator[None]:
    """Say in our words that a machine has no room for a picture; the CPU's allocator has no error of its own."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)):
            raise
        hires_target = batch[0].hires_target
        size = hires_target.upscale_to if hires_target else batch[0].size
        raise NanLatents(f"there is not enough memory for {size} pixels: make it smaller, or fewer at once") from None


def _denoise(
    base: Base,
    jobs: Sequence[Job],
    conditioning_cache: ConditioningCache,
    on_denoised: OnDenoised,
    start_latents: Tensor | None = None,
) -> tuple[Tensor, list[Effect]]:
    """The latents at the end of the first pass, or of the second where there are latents to start from; effects."""
    pass_index = 0 if start_latents is None else 1
    passes = [job.passes[pass_index] for job in jobs]
    recipe, batch_pass = jobs[0].recipe, passes[0]
    init_latents = [init for job in jobs if pass_index == 0 and (init := job.init_latents)]
    if init_latents:
        start_latents = torch.cat([init.latents for init in init_latents])
    with _attach_overlays_and_embeddings(base, passes, recipe) as (set_strengths, measure_effects):
        fraction = [0.0]
        clip_skip = recipe.clip_skip if recipe.clip_skip > 1 else None
        guidance_options = GuidanceOptions(
            recipe.guidance, recipe.skip_negative_below, clip_skip, recipe.emphasis == "Original"
        )
        if any(has_overlays(text_encoder.model) for text_encoder in base.text.encoders):
            conditioning_cache = ConditioningCache(base)  # what is said with overlays on is not for others
        guided_denoiser = GuidedDenoiser(
            *(base, batch_pass.trajectory, [job_pass.prompt_pair for job_pass in passes], guidance_options),
            conditioning_cache=conditioning_cache,
            set_strengths=lambda row_pictures, negative_count: set_strengths(fraction[0], row_pictures, negative_count),
        )
        denoiser = masked_denoiser(guided_denoiser, init_latents) if init_latents else guided_denoiser
        latents_by_step = batch_pass.sampler.sample(
            denoiser, _batch_noise(base, jobs, pass_index), batch_pass.trajectory, start_latents
        )
        latents = start_latents
        with _keep_layout(base, guided_denoiser, jobs) as update_layout:
            for step in range(batch_pass.trajectory.step_count):
                fraction[0] = step / batch_pass.trajectory.step_count
                update_layout(fraction[0])
                latents = next(latents_by_step)
                on_denoised(guided_denoiser.denoised)
        effects = measure_effects()
    assert latents is not None
    if init_latents:
        latents = masked_denoiser(lambda noisy, _sigma: noisy, init_latents)(latents, latents.new_zeros(()))
    return latents, effects


@contextmanager
def _attach_overlays_and_embeddings(
    base: Base, passes: Sequence[SamplingPass], recipe: Recipe
) -> Generator[tuple[StrengthSetter, MeasureEffects]]:
    """Lay what the prompts of a batch call and name over a base for a while; see laid_over."""
    embeddings, calls_by_job = (
        [embedding for job_pass in passes for embedding in job_pass.embeddings],
        [job_pass.calls for job_pass in passes],
    )
    with (
        attached_embeddings(base, embeddings) as embedding_effects,
        attached_overlays(base, calls_by_job, combine=recipe.combine) as (set_strengths, tag_effects),
    ):
        yield set_strengths, lambda: [*embedding_effects(), *tag_effects()]


def _batch_noise(base: Base, jobs: Sequence[Job], pass_index: int) -> SeededNoise:
    """The noise of a batch, from each picture's own seeds."""
    recipe, size = jobs[0].recipe, jobs[0].passes[pass_index].size
    latent_factor = base.family.vae_scale_factor
    return SeededNoise(
        [job.seed for job in jobs],
        (int(base.unet.config["in_channels"]), size.height, size.width),
        base.device,
        source=recipe.noise,
        variation=Variation([job.recipe.variation_seed or 0 for job in jobs], recipe.variation_strength),
        seed_size=(recipe.seed_size[1] // latent_factor, recipe.seed_size[0] // latent_factor)
        if recipe.seed_size
        else None,
        ensd=recipe.ensd,
    )


@contextmanager
def _keep_layout(
    base: Base, guided_denoiser: GuidedDenoiser, jobs: Sequence[Job]
) -> Generator[Callable[[float], None]]:
    """Let the first half of a batch keep the layouts of the second, for the share of the steps that is wanted."""
    picture_count = len(jobs) // 2
    if not jobs[0].layout_job:
        yield lambda _fraction: None
        return
    token_ids = [guided_denoiser.token_ids(index) for index in range(len(jobs))]
    replacement = AttentionReplacement(
        [map_tokens(token_ids[index], token_ids[picture_count + index]) for index in range(picture_count)]
    )
    until_fraction = jobs[0].recipe.keep_layout_until

    def update_layout(fraction: float) -> None:
        replacement.is_active = fraction < until_fraction

    with replace_attention(base.unet, replacement, parts=2 if guided_denoiser.is_guided else 1):
        yield update_layout


def _decode_image(base: Base, latents: Tensor) -> Image.Image:
    """Decode the latents of one picture."""
    if not latents.isfinite().all():
        raise NanLatents(
            "the latents are no numbers any more: lower the strength of overlays or the guidance, "
            "or open the base in float32"
        )
    pixels = base.decode(latents.unsqueeze(0))[0]
    # A1111 cuts the fraction off rather than rounding it
    return Image.fromarray((pixels * 255).byte().permute(1, 2, 0).contiguous().cpu().numpy())


@contextmanager
def seamless_tiling(base: Base, *, is_wanted: bool) -> Generator[None]:
    """Let each edge of a picture border on the opposite one, in every convolution of UNet and autoencoder.

    The base is as before at the end, also after an error.
    """
    models = (base.unet, base.vae) if is_wanted else ()
    layers = [layer for model in models for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    layers = [layer for layer in layers if layer.padding_mode == "zeros"]
    try:
        for layer in layers:
            layer.padding_mode = "circular"
        yield
    finally:
        for layer in layers:
            layer.padding_mode = "zeros"
