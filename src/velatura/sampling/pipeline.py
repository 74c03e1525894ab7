"""The denoising loop of a batch: attach overlays, take the steps of each pass, decode the latents into pictures."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from PIL import Image
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.base.image_condition import blank_condition
from velatura.errors import NanLatents
from velatura.face_restoration import OnFace
from velatura.overlays.effect import Effect
from velatura.overlays.hooks.seams import has_overlays
from velatura.sampling.conditioning import ConditioningCache
from velatura.sampling.guidance import GuidanceOptions, GuidedDenoiser
from velatura.sampling.hires import hires_conditions, upscale_latents
from velatura.sampling.images import decode_image
from velatura.sampling.img2img import BatchInitLatents
from velatura.sampling.job import Job
from velatura.sampling.noise.seeded import SeededNoise, Variation
from velatura.sampling.prompt_to_prompt import AttentionReplacement, map_tokens, replace_attention
from velatura.sampling.resolve.attached import AttachedOverlays, attached_overlays
from velatura.sampling.resolve.faces import restore_picture_faces

OnDenoised = Callable[[Tensor], None]  # the denoised latents after a step, (pictures, 4, height, width)

FIRST_PASS, HIRES_PASS = 0, 1


def check_overlays_fit(base: Base, batch: Sequence[Job]) -> None:
    """Attach the overlays of a batch and detach them again.

    Raises:
        VelaturaError: An overlay cannot be attached to this base.
    """
    for pass_index, _ in enumerate(batch[0].passes):
        with _attached(base, batch, pass_index):
            pass


@torch.no_grad()
def run_batch(
    base: Base,
    batch: Sequence[Job],
    conditioning_cache: ConditioningCache,
    on_denoised: OnDenoised,
    on_face: OnFace | None = None,
) -> tuple[list[Image.Image], list[Effect]]:
    """Make the pictures of a batch.

    Args:
        base: The base; it is as before at the end, also after an error.
        batch: Jobs with equal batch keys.
        conditioning_cache: Keeps encoded texts for later batches.
        on_denoised: Called after each step.
        on_face: Called while faces are restored, see `restore_picture_faces`.

    Returns:
        The pictures, and the effects that overlays had in the first pass. The effects of overlays that only the second
        pass calls are appended.

    Raises:
        NanLatents: The latents became NaN or infinite, or there is not enough memory.
    """
    recipe, hires_target = batch[0].recipe, batch[0].hires_target
    jobs = [*batch, *(job.layout_job for job in batch if job.layout_job)]
    with seamless_tiling(base) if recipe.tiling else nullcontext(), _translate_out_of_memory(batch):
        init_latents = [job.init_latents for job in jobs if job.init_latents]
        start = BatchInitLatents.stack(init_latents) if init_latents else None
        latents, effects = denoise(
            base, jobs, FIRST_PASS, start, conditioning_cache=conditioning_cache, on_denoised=on_denoised
        )
        if hires_target:
            latents = upscale_latents(base, latents, hires_target, batch[0].upscaler or recipe.hires_upscaler)
            start = BatchInitLatents(latents, image_conditions=hires_conditions(base, latents, recipe))
            latents, hires_effects = denoise(
                base, jobs, HIRES_PASS, start, conditioning_cache=conditioning_cache, on_denoised=on_denoised
            )
            known_overlays = {effect.overlay for effect in effects}
            effects += [effect for effect in hires_effects if effect.overlay not in known_overlays]
        pictures = [_decode_finite(base, picture_latents) for picture_latents in latents[: len(batch)]]
        if face_models := batch[0].face_models:
            weight = recipe.codeformer_weight
            pictures = restore_picture_faces(face_models, pictures, weight=weight, device=base.device, on_face=on_face)
    return [_paste_back(job, picture) for job, picture in zip(batch, pictures, strict=True)], effects


def denoise(
    base: Base,
    jobs: Sequence[Job],
    pass_index: int,
    start: BatchInitLatents | None,
    *,
    conditioning_cache: ConditioningCache,
    on_denoised: OnDenoised,
) -> tuple[Tensor, list[Effect]]:
    """Denoise a batch through all steps of one pass.

    Args:
        base: The base.
        jobs: The pictures, and behind them those whose layouts they keep.
        pass_index: FIRST_PASS or HIRES_PASS.
        start: The latents to start from, and what of them may change. None: start from noise alone.
        conditioning_cache: Keeps encoded texts.
        on_denoised: Called after each step.

    Returns:
        The clean latents, (jobs, 4, height, width), and the effects of the overlays.
    """
    passes = [job.passes[pass_index] for job in jobs]
    sampler, trajectory = passes[0].sampler, passes[0].trajectory
    with _attached(base, jobs, pass_index) as overlays:
        guided_denoiser = GuidedDenoiser(
            base,
            trajectory,
            [job_pass.prompt_pair for job_pass in passes],
            GuidanceOptions.of(jobs[0].recipe),
            conditioning_cache=_usable_cache(base, conditioning_cache),
            set_strengths=overlays.set_strengths,
            image_condition=_image_conditions(base, jobs, pass_index, start),
        )
        denoiser = start.masked_denoiser(guided_denoiser) if start else guided_denoiser
        noise = _batch_noise(base, jobs, pass_index)
        latents_by_step = sampler.sample(denoiser, noise, trajectory, start.latents if start else None)

        latents = torch.empty(0)
        with _kept_layouts(base, guided_denoiser, jobs) as attention_replacement:
            for step in range(trajectory.step_count):
                fraction = step / trajectory.step_count
                overlays.start_step(fraction)
                if attention_replacement:
                    attention_replacement.start_step(fraction)
                latents = next(latents_by_step)
                on_denoised(guided_denoiser.denoised)
        effects = overlays.effects
    return start.restore_unmasked(latents) if start else latents, effects


@contextmanager
def _attached(base: Base, jobs: Sequence[Job], pass_index: int) -> Generator[AttachedOverlays]:
    """Attach what the prompts of one pass of a batch call and name, until the context ends."""
    passes = [job.passes[pass_index] for job in jobs]
    calls_by_picture = [job_pass.calls for job_pass in passes]
    embeddings = [embedding for job_pass in passes for embedding in job_pass.embeddings]
    with attached_overlays(base, calls_by_picture, embeddings, combine=jobs[0].recipe.combine) as overlays:
        yield overlays


def _image_conditions(
    base: Base, jobs: Sequence[Job], pass_index: int, start: BatchInitLatents | None
) -> Tensor | None:
    """Return what an inpainting or pix2pix UNet reads beside the latents of each picture, None for other bases."""
    if base.image_condition is None:
        return None
    if start is not None and start.image_conditions is not None:
        return start.image_conditions
    size = jobs[0].passes[pass_index].size
    # encoded here and not in Base.predict, because tiling changes what the VAE makes of it
    return blank_condition(base, size.height, size.width).expand(len(jobs), -1, -1, -1)


def _usable_cache(base: Base, conditioning_cache: ConditioningCache) -> ConditioningCache:
    """Return the cache, or a new one while overlays change what texts are encoded to."""
    has_text_overlays = any(has_overlays(text_encoder.model) for text_encoder in base.text.encoders)
    return ConditioningCache(base) if has_text_overlays else conditioning_cache


def _batch_noise(base: Base, jobs: Sequence[Job], pass_index: int) -> SeededNoise:
    """Return the noise source of a batch, which draws from the seed of each picture."""
    recipe, size = jobs[0].recipe, jobs[0].passes[pass_index].size
    latent_factor = base.family.vae_scale_factor
    seed_size = None
    if recipe.seed_size:
        seed_width, seed_height = recipe.seed_size
        seed_size = (seed_height // latent_factor, seed_width // latent_factor)
    return SeededNoise(
        [job.seed for job in jobs],
        (base.latent_channels, size.height, size.width),
        base.device,
        source=recipe.noise,
        variation=Variation([job.recipe.variation_seed or 0 for job in jobs], recipe.variation_strength),
        seed_size=seed_size,
        ensd=recipe.ensd,
    )


@contextmanager
def _kept_layouts(
    base: Base, guided_denoiser: GuidedDenoiser, jobs: Sequence[Job]
) -> Generator[AttentionReplacement | None]:
    """Let the first half of a batch keep the layouts of the second half, if the recipes ask for it."""
    if not jobs[0].layout_job:
        yield None
        return
    picture_count = len(jobs) // 2
    token_ids = [guided_denoiser.token_ids(index) for index in range(len(jobs))]
    token_mappers = [map_tokens(token_ids[index], token_ids[picture_count + index]) for index in range(picture_count)]
    replacement = AttentionReplacement(token_mappers, jobs[0].recipe.keep_layout_until)
    with replace_attention(base.unet, replacement, parts=guided_denoiser.row_groups):
        yield replacement


@contextmanager
def seamless_tiling(base: Base) -> Generator[None]:
    """Let every convolution of the UNet and the VAE wrap around, so that opposite edges of a picture fit.

    The padding is as before at the end, also after an error.
    """
    layers = [
        layer
        for model in (base.unet, base.vae)
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros"
    ]
    try:
        for layer in layers:
            layer.padding_mode = "circular"
        yield
    finally:
        for layer in layers:
            layer.padding_mode = "zeros"


@contextmanager
def _translate_out_of_memory(batch: Sequence[Job]) -> Generator[None]:
    """Raise NanLatents where memory runs out; the CPU's allocator has no exception class of its own."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)):
            raise
        hires_target = batch[0].hires_target
        size = hires_target.upscale_to if hires_target else batch[0].size
        raise NanLatents(f"there is not enough memory for {size} pixels: make it smaller, or fewer at once") from None


def _decode_finite(base: Base, latents: Tensor) -> Image.Image:
    """Decode the latents of one picture, or raise NanLatents if they are NaN or infinite."""
    if not latents.isfinite().all():
        raise NanLatents(
            "the latents became NaN or infinite: lower the strength of overlays or the guidance, "
            "or open the base in float32"
        )
    return decode_image(base, latents)


def _paste_back(job: Job, picture: Image.Image) -> Image.Image:
    return job.init_latents.paste_back(picture) if job.init_latents else picture
