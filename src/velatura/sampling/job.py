"""A recipe filled in, with all that a base makes of it before the first step, and which can be made at once."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

from velatura.base.base import Base
from velatura.errors import BadRecipe
from velatura.overlays.embedding import Embedding
from velatura.prompts.prompt import Prompt
from velatura.prompts.prompt_editing import Timing
from velatura.sampling.guidance import PromptPair
from velatura.sampling.hires import find_upscaler
from velatura.sampling.img2img import DEFAULT_IMG2IMG_DENOISING, InitLatents, compute_image_hash, compute_mask_hash
from velatura.sampling.masks import InitImage
from velatura.sampling.recipe.fields import OverlayHash
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.recipe.sampler_settings import SamplerSettings
from velatura.sampling.recipe.sizes import HiresTarget, Resolution, compute_hires_target, setup_img2img_steps
from velatura.sampling.resolve_embeddings import NamedEmbedding, attached_embeddings
from velatura.sampling.resolve_overlays import OverlayCall, OverlayResolver
from velatura.sampling.samplers import Sampler, Trajectory, find_sampler
from velatura.sampling.validate import (
    check_clip_skip,
    check_image,
    check_second_pass,
    check_seed_size,
    warn_of_another_base,
    warn_of_other_overlays,
    warn_of_unused_ensd,
    warn_of_unused_fields,
)

RANDOM_SEED_COUNT = 4294967294  # how many the webui draws from
MAX_BATCH_LATENT_PIXELS = 8 * 64 * 64  # of a batch: those of eight pictures of 512 x 512; the UNet sees each twice
DEFAULT_HIRES_DENOISING = 0.7  # of a first pass is painted anew where a recipe leaves it open, the webui's default


@dataclass(frozen=True)
class SamplingPass:
    """One walk of a picture: the sampler and its levels, what is said and when, and the size in latents.

    calls: the overlays that tags call; named: the embeddings that the words name.
    """

    sampler: Sampler
    trajectory: Trajectory
    prompts: tuple[Prompt, Prompt]
    timing: Timing
    prompt_pair: PromptPair
    calls: tuple[OverlayCall, ...]
    embeddings: tuple[NamedEmbedding, ...]
    size: Resolution

    def chunk_count(self, base: Base) -> int:
        """Chunks of its longest text."""
        tag_embeddings = [
            NamedEmbedding(call.overlay, call.file) for call in self.calls if isinstance(call.overlay, Embedding)
        ]
        with attached_embeddings(base, [*tag_embeddings, *self.embeddings]):
            return self.prompt_pair.chunk_count(base)


class Job:
    """One picture to be made: its recipe with nothing left open, its prompts read, its overlays found."""

    def __init__(
        self, base: Base, recipe: Recipe, resolver: OverlayResolver, init_image: InitImage | None = None
    ) -> None:
        warn_of_another_base(base, recipe)
        check_clip_skip(base, recipe)
        check_seed_size(base, recipe)
        check_image(recipe, init_image)
        warn_of_unused_fields(recipe, init_image)
        self.base, self.init_image, self._resolver = base, init_image, resolver
        self.sampler = find_sampler(recipe.sampler)
        self._settings = SamplerSettings(**{name: getattr(recipe, name) for name in SamplerSettings.model_fields})
        self.size = Resolution(_side_pixels(base, "width", recipe.width), _side_pixels(base, "height", recipe.height))
        self.seed = secrets.randbelow(RANDOM_SEED_COUNT) if recipe.seed is None else recipe.seed
        self.recipe = self._fill_recipe(recipe)
        self.passes = [self._first_pass(), *([self._second_pass()] if self.hires_target else [])]
        self.layout_job = self._prepare_layout_job()
        if recipe.ensd and not any(
            sampling_pass.sampler.draws_later_noise(self._settings) for sampling_pass in self.passes
        ):
            warn_of_unused_ensd(self.sampler.name)
            self.recipe = self.recipe.replace(ensd=0)
        hashes = _overlay_hashes(self.passes)
        warn_of_other_overlays(recipe.overlay_hashes, hashes)
        self.recipe = self.recipe.replace(overlay_hashes=hashes)
        _warn_of_unreached(self.passes)
        for sampling_pass in self.passes:
            for call in sampling_pass.calls:
                call.warn_if_inactive(
                    sampling_pass.trajectory.step_count,
                    is_guided=self.recipe.guidance != 1 or not sampling_pass.prompt_pair.is_single_prompt,
                )

    @property
    def steps(self) -> int:
        """How many steps its passes take together; some samplers take one less than they are asked for."""
        return sum(sampling_pass.trajectory.step_count for sampling_pass in self.passes)

    @property
    def hires_target(self) -> HiresTarget | None:
        """What the second pass makes of the first, if there is one."""
        hires_scale, hires_size, latent_factor = (
            self.recipe.hires_scale,
            self.recipe.hires_size,
            self.base.family.vae_scale_factor,
        )
        if not hires_scale and not hires_size:
            return None
        target = compute_hires_target(self.size, hires_scale or 1.0, Resolution(*(hires_size or (0, 0))), latent_factor)
        check_second_pass(target.upscale_to, latent_factor)
        return target

    @cached_property
    def init_latents(self) -> InitLatents | None:
        """What of an image it begins from, if it does."""
        return self.init_image and InitLatents.of(self.base, self.init_image, self.recipe, self.size, self.seed)

    @property
    def batch_key(self) -> object:
        """What pictures have in common that can be made at once."""
        prompt_fields = {"prompt": "", "negative": "", "hires_prompt": "", "hires_negative": "", "overlay_hashes": ()}
        seed_fields = {"seed": None, "variation_seed": None, "keep_layout": "yes" if self.recipe.keep_layout else ""}
        overlay_keys = [tuple(call.batch_key for call in sampling_pass.calls) for sampling_pass in self.passes]
        all_passes = [*self.passes, *(self.layout_job.passes if self.layout_job else ())]
        chunk_counts = [sampling_pass.chunk_count(self.base) for sampling_pass in all_passes]
        recipe_hashes = {
            embedding.file_hash.hash
            for sampling_pass in all_passes
            for embedding in sampling_pass.embeddings
            if embedding.is_found_by_hash and embedding.file_hash
        }
        return (
            self.recipe.replace(**prompt_fields, **seed_fields),
            tuple(overlay_keys),
            tuple(chunk_counts),
            frozenset(recipe_hashes),
        )

    def _prepare_layout_job(self) -> "Job | None":
        """The picture whose layout is kept: of the same noise, with the same overlays, and another prompt."""
        if not self.recipe.keep_layout:
            return None
        for sampling_pass in self.passes:
            if not sampling_pass.prompt_pair.is_single_static_prompt or self.recipe.skip_negative_below:
                raise BadRecipe("keep_layout goes with one prompt: leave out AND, prompt editing, skip_negative_below")
        layout_prompt = Prompt.parse(self.recipe.keep_layout)
        if layout_prompt.tags:
            raise BadRecipe(f"{layout_prompt.tags[0]} in keep_layout calls nothing: write it into the prompt")
        prompt, *hires_prompts = (
            "".join(map(str, sampling_pass.prompts[0].tags)) + self.recipe.keep_layout for sampling_pass in self.passes
        )
        recipe = self.recipe.replace(
            prompt=prompt, keep_layout="", hires_prompt=hires_prompts[0] if hires_prompts else ""
        )
        return Job(
            self.base, recipe.replace(keep_layout_until=0.5, base=None, base_hash=None), self._resolver, self.init_image
        )

    def _fill_recipe(self, recipe: Recipe) -> Recipe:
        """The recipe with what was left open, and what is recorded of the base and the image."""
        needs_variation_seed = recipe.variation_strength > 0 and recipe.variation_seed is None
        default_denoising = (
            DEFAULT_IMG2IMG_DENOISING
            if self.init_image
            else DEFAULT_HIRES_DENOISING
            if recipe.hires_scale or recipe.hires_size
            else None
        )
        return recipe.replace(
            sampler=self.sampler.name,
            seed=self.seed,
            variation_seed=secrets.randbelow(RANDOM_SEED_COUNT) if needs_variation_seed else recipe.variation_seed,
            width=self.size.width,
            height=self.size.height,
            denoising=default_denoising if recipe.denoising is None else recipe.denoising,
            hires_upscaler=find_upscaler(recipe.hires_upscaler),
            hires_sampler=recipe.hires_sampler and find_sampler(recipe.hires_sampler).name,
            base=self.base.name,
            base_hash=self.base.hash or None,
            vae=self.base.vae_source and self.base.vae_source.name,
            vae_hash=self.base.vae_hash or None,
            image_hash=self.init_image and compute_image_hash(self.init_image.image),
            mask_hash=self.init_image and compute_mask_hash(self.init_image),
            version=f"velatura {version('velatura')}",
        )

    def _first_pass(self) -> SamplingPass:
        img2img = setup_img2img_steps(self.recipe.steps, self.recipe.denoising or 0.0) if self.init_image else None
        trajectory = self.sampler.trajectory(
            *(self.base.schedule, self.recipe.steps, self._settings), img2img=img2img, family=self.base.family.name
        )
        timing = Timing(self.recipe.steps * self.sampler.calls_per_step, uses_old_scheduling=self.recipe.old_editing)
        return self._prepare_pass(
            self.sampler, trajectory, (self.recipe.prompt, self.recipe.negative), timing, self.size
        )

    def _second_pass(self) -> SamplingPass:
        assert self.hires_target
        sampler = find_sampler(self.recipe.hires_sampler) if self.recipe.hires_sampler else self.sampler
        steps = self.recipe.hires_steps or self.recipe.steps
        img2img = setup_img2img_steps(steps, self.recipe.denoising or 0.0, exact_steps=steps)
        trajectory = sampler.trajectory(
            *(self.base.schedule, steps, self._settings), img2img=img2img, family=self.base.family.name
        )
        calls_per_step = sampler.calls_per_step
        first_pass_calls, old_editing = self.recipe.steps * self.sampler.calls_per_step, self.recipe.old_editing
        timing = Timing(first_pass_calls, hires_steps=steps * calls_per_step, uses_old_scheduling=old_editing)
        prompt, negative = self.recipe.hires_prompt or self.recipe.prompt, self.recipe.hires_negative
        latent_factor = self.base.family.vae_scale_factor
        size = Resolution(
            *(
                (side // latent_factor - truncate) * latent_factor
                for side, truncate in zip(self.hires_target.upscale_to, self.hires_target.truncate, strict=True)
            )
        )
        return self._prepare_pass(sampler, trajectory, (prompt, negative or self.recipe.negative), timing, size)

    def _prepare_pass(
        self, sampler: Sampler, trajectory: Trajectory, prompt_texts: tuple[str, str], timing: Timing, size: Resolution
    ) -> SamplingPass:
        prompt = Prompt.parse(prompt_texts[0], lenient=self._resolver.lenient)
        prompts = prompt, Prompt.parse_negative(prompt_texts[1])
        prompt_pair = PromptPair.of(*prompts, timing, self.recipe.emphasis)
        latent_factor = self.base.family.vae_scale_factor
        recipe_hashes = self.recipe.overlay_hashes
        calls = self._resolver.resolve(prompt, recipe_hashes)
        texts = (run.text for subprompt in prompt_pair.subprompts for run in subprompt.fragments)
        embeddings = self._resolver.embeddings.resolve(
            *(self.base, texts), tag_overlays=[call.overlay for call in calls], recipe_hashes=recipe_hashes
        )
        size = Resolution(*(side // latent_factor for side in size))
        return SamplingPass(sampler, trajectory, prompts, timing, prompt_pair, calls, embeddings, size)


def split_into_batches(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Orders that can be made at once, as many as there is room for."""
    groups_by_key: dict[object, list[Job]] = {}
    for job in jobs:
        groups_by_key.setdefault(job.batch_key, []).append(job)
    for group in groups_by_key.values():
        width, height = group[0].passes[-1].size
        batch_size = max(1, MAX_BATCH_LATENT_PIXELS // (height * width))
        if any(
            sampling_pass.sampler.depends_on_batch or _mixes_rows(sampling_pass.calls)
            for sampling_pass in group[0].passes
        ):
            batch_size = 1
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def _mixes_rows(calls: Sequence[OverlayCall]) -> bool:
    """Whether a picture would depend on what it is made together with."""
    return any(call.overlay.is_batch_dependent for call in calls)


def _warn_of_unreached(passes: Sequence[SamplingPass]) -> None:
    """Warn of words that never change, be it in the pass that they stand in or in a later one that says them too."""
    timings: dict[str, list[Timing]] = {}
    prompts_by_text: dict[str, Prompt] = {}
    for sampling_pass in passes:
        for prompt in sampling_pass.prompts:
            timings.setdefault(prompt.text, []).append(sampling_pass.timing)
            prompts_by_text[prompt.text] = prompt
    for text, prompt in prompts_by_text.items():
        prompt.warn_unreached_edits(*timings[text])


def _side_pixels(base: Base, side: str, pixels: int | None) -> int:
    """The width or height in pixels, the base's own where none is wanted."""
    latent_factor = base.family.vae_scale_factor
    if pixels is None:
        return base.family.default_pixels
    if pixels % latent_factor:
        multiple_below = max(latent_factor, pixels - pixels % latent_factor)
        raise BadRecipe(
            f"the {side} is {pixels} pixels; {base.name} makes multiples of {latent_factor}, such as {multiple_below}"
        )
    return pixels


def _overlay_hashes(passes: Sequence[SamplingPass]) -> tuple[OverlayHash, ...]:
    """What is recorded of the files of overlays, each once."""
    file_hashes = [
        overlay.file_hash for sampling_pass in passes for overlay in (*sampling_pass.calls, *sampling_pass.embeddings)
    ]
    return tuple(
        {(file_hash.kind, file_hash.name.lower()): file_hash for file_hash in file_hashes if file_hash}.values()
    )
