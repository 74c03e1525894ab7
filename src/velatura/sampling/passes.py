"""The passes of a picture: one from noise or an image, and perhaps a second, larger one (hires fix)."""

from __future__ import annotations

from dataclasses import dataclass

from velatura.base.base import Base
from velatura.overlays.embedding import Embedding
from velatura.prompts.prompt import Prompt
from velatura.prompts.prompt_editing import Timing
from velatura.sampling.conditioning import PromptPair
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.recipe.sampler_settings import SamplerSettings
from velatura.sampling.recipe.sizes import HiresTarget, Resolution, compute_hires_target, setup_img2img_steps
from velatura.sampling.resolve.attached import attached_embeddings
from velatura.sampling.resolve.embeddings import NamedEmbedding
from velatura.sampling.resolve.overlays import OverlayCall, OverlayResolver
from velatura.sampling.samplers import Sampler, Trajectory, find_sampler
from velatura.sampling.validate import check_hires_size


@dataclass(frozen=True)
class SamplingPass:
    """A pass through the denoising loop, with everything that it needs.

    Attributes:
        sampler: The sampler.
        trajectory: The noise levels that the sampler steps along.
        prompt, negative: The prompts as they were parsed.
        timing: The calls of the model, by which prompt editing is timed.
        prompt_pair: Both prompts, scheduled over these calls.
        calls: The overlays that tags in the prompt call.
        embeddings: The embeddings that the words of both prompts name.
        size: Width and height in latents.
    """

    sampler: Sampler
    trajectory: Trajectory
    prompt: Prompt
    negative: Prompt
    timing: Timing
    prompt_pair: PromptPair
    calls: tuple[OverlayCall, ...]
    embeddings: tuple[NamedEmbedding, ...]
    size: Resolution

    def chunk_count(self, base: Base) -> int:
        """Return the number of chunks of the longest text, with its embeddings attached."""
        tag_embeddings = [
            NamedEmbedding(call.overlay, call.file) for call in self.calls if isinstance(call.overlay, Embedding)
        ]
        with attached_embeddings(base, [*tag_embeddings, *self.embeddings]):
            return self.prompt_pair.chunk_count(base)


def plan_passes(
    base: Base, recipe: Recipe, resolver: OverlayResolver, *, starts_from_image: bool
) -> tuple[SamplingPass, ...]:
    """Plan the passes that a recipe asks for.

    Args:
        base: The base.
        recipe: The recipe, with its width and height filled in.
        resolver: Finds the overlays and embeddings that the prompts name.
        starts_from_image: True for img2img, where the recipe's denoising decides how many steps are left.

    Raises:
        BadPrompt: A prompt or tag cannot be read.
        BadRecipe: The sampler settings or the size of the second pass make no sense.
        UnknownName: No such sampler, scheduler or overlay exists.
    """
    first_pass = _plan_first_pass(base, recipe, resolver, starts_from_image=starts_from_image)
    hires_target = plan_hires_target(base, recipe)
    if hires_target is None:
        return (first_pass,)
    return first_pass, _plan_second_pass(base, recipe, resolver, hires_target)


def first_pass_size(recipe: Recipe) -> Resolution:
    """Return the size of the first pass in pixels, from a recipe whose width and height are filled in."""
    assert recipe.width is not None
    assert recipe.height is not None
    return Resolution(recipe.width, recipe.height)


def plan_hires_target(base: Base, recipe: Recipe) -> HiresTarget | None:
    """Return the size that the first pass is upscaled to, or None without a second pass.

    Raises:
        BadRecipe: The size is too small or too large.
    """
    if not recipe.has_second_pass:
        return None
    latent_factor = base.family.vae_scale_factor
    hires_size = Resolution(*(recipe.hires_size or (0, 0)))
    target = compute_hires_target(first_pass_size(recipe), recipe.hires_scale or 1.0, hires_size, latent_factor)
    check_hires_size(target.upscale_to, latent_factor)
    return target


def _plan_first_pass(base: Base, recipe: Recipe, resolver: OverlayResolver, *, starts_from_image: bool) -> SamplingPass:
    sampler = find_sampler(recipe.sampler)
    img2img = setup_img2img_steps(recipe.steps, recipe.denoising or 0.0) if starts_from_image else None
    trajectory = sampler.trajectory(
        base.schedule, recipe.steps, SamplerSettings.of(recipe), img2img=img2img, family=base.family.name
    )
    latent_factor = base.family.vae_scale_factor
    width, height = first_pass_size(recipe)
    return _prepare_pass(
        base,
        recipe,
        resolver,
        sampler=sampler,
        trajectory=trajectory,
        prompt_texts=(recipe.prompt, recipe.negative),
        timing=Timing(recipe.steps * sampler.calls_per_step, uses_old_scheduling=recipe.old_editing),
        size=Resolution(width // latent_factor, height // latent_factor),
    )


def _plan_second_pass(base: Base, recipe: Recipe, resolver: OverlayResolver, hires_target: HiresTarget) -> SamplingPass:
    first_sampler = find_sampler(recipe.sampler)
    sampler = find_sampler(recipe.hires_sampler) if recipe.hires_sampler else first_sampler
    steps = recipe.hires_steps or recipe.steps
    trajectory = sampler.trajectory(
        base.schedule,
        steps,
        SamplerSettings.of(recipe),
        img2img=setup_img2img_steps(steps, recipe.denoising or 0.0, exact_steps=steps),
        family=base.family.name,
    )
    timing = Timing(
        recipe.steps * first_sampler.calls_per_step,
        hires_steps=steps * sampler.calls_per_step,
        uses_old_scheduling=recipe.old_editing,
    )
    latent_factor = base.family.vae_scale_factor
    upscale_to, truncate = hires_target
    size = Resolution(
        upscale_to.width // latent_factor - truncate.width, upscale_to.height // latent_factor - truncate.height
    )
    return _prepare_pass(
        base,
        recipe,
        resolver,
        sampler=sampler,
        trajectory=trajectory,
        prompt_texts=(recipe.hires_prompt or recipe.prompt, recipe.hires_negative or recipe.negative),
        timing=timing,
        size=size,
    )


def _prepare_pass(
    base: Base,
    recipe: Recipe,
    resolver: OverlayResolver,
    *,
    sampler: Sampler,
    trajectory: Trajectory,
    prompt_texts: tuple[str, str],
    timing: Timing,
    size: Resolution,
) -> SamplingPass:
    """Parse the prompts of a pass and find what they call and name."""
    prompt_text, negative_text = prompt_texts
    prompt = Prompt.parse(prompt_text, lenient=resolver.lenient)
    negative = Prompt.parse_negative(negative_text)
    prompt_pair = PromptPair.schedule(prompt, negative, timing, recipe.emphasis)
    calls = resolver.resolve(prompt, recipe.overlay_hashes, base=base)
    embeddings = resolver.embeddings.resolve(
        base,
        [fragment.text for text in prompt_pair.texts for fragment in text.fragments],
        tag_overlays=[call.overlay for call in calls],
        recipe_hashes=recipe.overlay_hashes,
    )
    return SamplingPass(
        sampler=sampler,
        trajectory=trajectory,
        prompt=prompt,
        negative=negative,
        timing=timing,
        prompt_pair=prompt_pair,
        calls=calls,
        embeddings=embeddings,
        size=size,
    )
