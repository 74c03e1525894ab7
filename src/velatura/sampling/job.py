"""A job is one picture ready to be made: its recipe filled in, its passes planned, its overlays found."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

from velatura.base.base import Base
from velatura.errors import BadRecipe, warn
from velatura.face_restoration.read_files import CODEFORMER
from velatura.prompts.prompt import Prompt
from velatura.prompts.prompt_editing import Timing
from velatura.sampling.hires import find_recipe_upscaler, find_upscaler
from velatura.sampling.img2img import InitLatents
from velatura.sampling.masks import InitImage
from velatura.sampling.passes import SamplingPass, first_pass_size, plan_hires_target, plan_passes
from velatura.sampling.recipe.fields import RANDOM_SEED_COUNT, FaceFields, OverlayHash
from velatura.sampling.recipe.recipe import RECIPE_DEFAULTS, Recipe
from velatura.sampling.recipe.sampler_names import draws_gpu_noise
from velatura.sampling.recipe.sampler_settings import SamplerSettings
from velatura.sampling.recipe.sizes import HiresTarget, Resolution
from velatura.sampling.resolve.faces import FaceModels, find_recipe_faces
from velatura.sampling.resolve.overlays import OverlayResolver
from velatura.sampling.resolve.resources import call_resources
from velatura.sampling.samplers import find_sampler, find_scheduler
from velatura.sampling.validate import (
    DEFAULT_IMAGE_GUIDANCE,
    DEFAULT_MASK_WEIGHT,
    check_recipe,
    warn_of_other_overlays,
    warn_of_unused_ensd,
)
from velatura.upscaling import Upscaler

MAX_BATCH_PICTURES = 8  # so that small pictures too are finished, and saved, a few at a time
MAX_BATCH_LATENT_PIXELS = 8 * 64 * 64  # latents of a batch: eight pictures of 512 x 512; the UNet gets each twice
DEFAULT_IMG2IMG_DENOISING = 0.75  # A1111's default
DEFAULT_HIRES_DENOISING = 0.7  # A1111's default
NO_FACES = {name: RECIPE_DEFAULTS[name] for name in FaceFields.model_fields}


@dataclass(frozen=True, eq=False)
class Job:
    """One picture ready to be made; prepare_job makes it from a recipe.

    Attributes:
        base: The base that makes it.
        recipe: The recipe with nothing left open, as it will be recorded in the picture.
        passes: The first pass, and the second one of hires fix.
        init_image: The image that the first pass starts from, if there is one.
        upscaler: The network that upscales the first pass, None where Lanczos or the like does.
        layout_job: The picture whose layout is kept, if there is one (prompt-to-prompt).
        face_models: The networks that restore its faces, if they are restored.
    """

    base: Base
    recipe: Recipe
    passes: tuple[SamplingPass, ...]
    init_image: InitImage | None = None
    layout_job: Job | None = None
    upscaler: Upscaler | None = None
    face_models: FaceModels | None = None

    @property
    def steps(self) -> int:
        """Return the steps of all passes together; some samplers take one step less than they are asked for."""
        return sum(sampling_pass.trajectory.step_count for sampling_pass in self.passes)

    @property
    def seed(self) -> int:
        """Return the seed of the first noise."""
        assert self.recipe.seed is not None
        return self.recipe.seed

    @property
    def size(self) -> Resolution:
        """Return the size of the first pass in pixels."""
        return first_pass_size(self.recipe)

    @property
    def hires_target(self) -> HiresTarget | None:
        """Return the size that the first pass is upscaled to, if there is a second pass."""
        return plan_hires_target(self.base, self.recipe)

    @cached_property
    def init_latents(self) -> InitLatents | None:
        """Return the encoded init image, if there is one."""
        if self.init_image is None:
            return None
        return InitLatents.encode(self.base, self.init_image, self.recipe, self.size, self.seed)

    @property
    def batch_key(self) -> object:
        """Return the key that jobs must share to be made in one batch."""
        prompt_fields = {"prompt": "", "negative": "", "hires_prompt": "", "hires_negative": "", "overlay_hashes": ()}
        prompt_fields |= {"template": None, "negative_template": None, "resources": ()}
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


def prepare_job(base: Base, recipe: Recipe, resolver: OverlayResolver, init_image: InitImage | None = None) -> Job:
    """Prepare one picture: check its recipe, fill it in, plan its passes and find its overlays.

    Warns of everything in the recipe that changes nothing, or that will make another picture than it records.

    Args:
        base: The base that makes the picture.
        recipe: The recipe as it was given.
        resolver: Finds overlays and embeddings; share it between jobs, so that each is loaded once.
        init_image: The image to start from (img2img, inpainting).

    Raises:
        BadRecipe: The recipe cannot be made with this base and image.
        BadPrompt: A prompt or tag cannot be read.
        UnknownName: No such sampler, scheduler, upscaler, overlay or embedding exists.
    """
    check_recipe(base, recipe, init_image)
    recipe = call_resources(recipe, resolver.library)
    upscaler = find_recipe_upscaler(recipe, resolver.library)
    face_models = find_recipe_faces(recipe, resolver.library, base.device)
    filled = _fill_faces(fill_recipe(base, recipe, init_image, upscaler), face_models)
    passes = plan_passes(base, filled, resolver, starts_from_image=init_image is not None)
    layout_job = None
    if filled.keep_layout:
        layout_recipe = _make_layout_recipe(filled.replace(resources=()), passes)
        layout_job = prepare_job(base, layout_recipe, resolver, init_image)
    hashes = _overlay_hashes(passes)
    warn_of_other_overlays(recipe.overlay_hashes, hashes)
    _warn_of_unreached_edits(passes)
    for sampling_pass in passes:
        is_guided = filled.guidance != 1 or not sampling_pass.prompt_pair.is_single_prompt
        for call in sampling_pass.calls:
            call.warn_if_inactive(sampling_pass.trajectory.step_count, is_guided=is_guided)
    recorded = filled.replace(ensd=_used_ensd(filled, passes), overlay_hashes=hashes)
    return Job(base, recorded, passes, init_image, layout_job, upscaler, face_models)


def fill_recipe(base: Base, recipe: Recipe, init_image: InitImage | None, upscaler: Upscaler | None = None) -> Recipe:
    """Fill in what a recipe leaves open, and record the base, the VAE, the init image and the version.

    Args:
        base: Gives the size where the recipe has none.
        recipe: The recipe; a missing seed is drawn at random.
        init_image: The image to start from; it decides the default of `denoising`.
        upscaler: The network that upscales the first pass, if it is one.

    Raises:
        BadRecipe: A side is not a multiple of the VAE's scale factor.
        UnknownName: No such sampler or upscaler exists.
    """
    sampler_name = find_sampler(recipe.sampler).name
    _warn_of_gpu_noise(recipe)
    needs_variation_seed = recipe.variation_strength > 0 and recipe.variation_seed is None
    return recipe.replace(
        sampler=sampler_name,
        scheduler=recipe.scheduler and find_scheduler(recipe.scheduler),
        seed=_random_seed() if recipe.seed is None else recipe.seed,
        variation_seed=_random_seed() if needs_variation_seed else recipe.variation_seed,
        width=_side_pixels(base, "width", recipe.width),
        height=_side_pixels(base, "height", recipe.height),
        denoising=_denoising(recipe, init_image),
        image_guidance=_image_guidance(base, recipe),
        inpainting_mask_weight=_inpainting_mask_weight(base, recipe, init_image),
        hires_upscaler=_hires_upscaler(recipe, upscaler),
        hires_sampler=recipe.hires_sampler and find_sampler(recipe.hires_sampler).name,
        base=base.name,
        base_hash=base.hash or None,
        vae=base.vae_source and base.vae_source.name,
        vae_hash=base.vae_hash or None,
        text=", ".join(path.name for path in base.text_sources) or None,
        text_hash=base.text_hash or None,
        prediction=base.open_options.prediction,
        zero_snr=base.open_options.zero_snr,
        weights=None if base.open_options.weights == "last" else base.open_options.weights,
        image_hash=init_image and init_image.image_hash,
        mask_hash=init_image and init_image.mask_hash,
        version=f"velatura {version('velatura')}",
    )


def _fill_faces(recipe: Recipe, face_models: FaceModels | None) -> Recipe:
    """Record what restores the faces, or that nothing does."""
    if face_models is None:
        return recipe.replace(**NO_FACES) if recipe.restore_faces else recipe
    if face_models.restorer.model != CODEFORMER and recipe.codeformer_weight != RECIPE_DEFAULTS["codeformer_weight"]:
        warn(f"codeformer_weight changes nothing with {face_models.name}: CodeFormer alone has it")
    return recipe.replace(face_restorer=face_models.name)


def _hires_upscaler(recipe: Recipe, upscaler: Upscaler | None) -> str:
    """Return the name of the upscaler as it is recorded: of none that is used, as it was given."""
    if upscaler is not None:
        return upscaler.name
    return find_upscaler(recipe.hires_upscaler) if recipe.has_second_pass else recipe.hires_upscaler


def split_into_batches(jobs: Sequence[Job], max_pictures: int = MAX_BATCH_PICTURES) -> Iterator[list[Job]]:
    """Group jobs that can be made in one batch, as many at once as memory allows.

    Args:
        jobs: The jobs.
        max_pictures: The most pictures of a batch.
    """
    groups_by_key: dict[object, list[Job]] = {}
    for job in jobs:
        groups_by_key.setdefault(job.batch_key, []).append(job)
    for group in groups_by_key.values():
        batch_size = min(max_pictures, _max_batch_size(group[0]))
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def _max_batch_size(job: Job) -> int:
    """Return 1 if a picture would depend on others in its batch, else as many as MAX_BATCH_LATENT_PIXELS allows."""
    for sampling_pass in job.passes:
        mixes_rows = any(call.overlay.is_batch_dependent for call in sampling_pass.calls)
        if sampling_pass.sampler.depends_on_batch or mixes_rows:
            return 1
    width, height = job.passes[-1].size
    return max(1, min(MAX_BATCH_PICTURES, MAX_BATCH_LATENT_PIXELS // (height * width)))


def _warn_of_gpu_noise(recipe: Recipe) -> None:
    """Warn of a sampler whose name asks for noise from the GPU, in a recipe that draws it on the CPU."""
    samplers = [name for name in (recipe.sampler, recipe.hires_sampler) if name and draws_gpu_noise(name)]
    if samplers and recipe.noise == "CPU":
        warn(f"{samplers[0]} draws its noise on the GPU, and this recipe on the CPU: set noise to GPU or NV for that")


def _random_seed() -> int:
    return secrets.randbelow(RANDOM_SEED_COUNT)


def _denoising(recipe: Recipe, init_image: InitImage | None) -> float | None:
    if recipe.denoising is not None:
        return recipe.denoising
    if init_image is not None:
        return DEFAULT_IMG2IMG_DENOISING
    return DEFAULT_HIRES_DENOISING if recipe.hires_scale or recipe.hires_size else None


def _image_guidance(base: Base, recipe: Recipe) -> float | None:
    if recipe.image_guidance is None and base.image_condition == "pix2pix":
        return DEFAULT_IMAGE_GUIDANCE
    return recipe.image_guidance


def _inpainting_mask_weight(base: Base, recipe: Recipe, init_image: InitImage | None) -> float | None:
    """Return the recipe's weight, or the default where an inpainting model reads an image, as A1111 records it."""
    reads_image = init_image is not None or recipe.hires_scale or recipe.hires_size
    if recipe.inpainting_mask_weight is None and base.image_condition == "inpainting" and reads_image:
        return DEFAULT_MASK_WEIGHT
    return recipe.inpainting_mask_weight


def _side_pixels(base: Base, side: str, pixels: int | None) -> int:
    """Return the width or height in pixels, the base's own if the recipe has none."""
    latent_factor = base.family.vae_scale_factor
    if pixels is None:
        return base.family.default_pixels
    if pixels % latent_factor:
        multiple_below = max(latent_factor, pixels - pixels % latent_factor)
        raise BadRecipe(
            f"the {side} is {pixels} pixels; {base.name} makes multiples of {latent_factor}, such as {multiple_below}"
        )
    return pixels


def _make_layout_recipe(recipe: Recipe, passes: Sequence[SamplingPass]) -> Recipe:
    """Return the recipe of the picture whose layout is kept: the same noise and overlays, and the other prompt.

    Raises:
        BadRecipe: The prompts change over the steps, or keep_layout has tags.
    """
    for sampling_pass in passes:
        if not sampling_pass.prompt_pair.is_single_static_prompt or recipe.skip_negative_below:
            raise BadRecipe("keep_layout works with one prompt: leave out AND, prompt editing and skip_negative_below")
    layout_prompt = Prompt.parse(recipe.keep_layout)
    if layout_prompt.tags:
        raise BadRecipe(f"{layout_prompt.tags[0]} in keep_layout calls no overlay: write it into the prompt")
    first_prompt, *hires_prompts = (
        "".join(map(str, sampling_pass.prompt.tags)) + recipe.keep_layout for sampling_pass in passes
    )
    return recipe.replace(
        prompt=first_prompt,
        hires_prompt=hires_prompts[0] if hires_prompts else "",
        keep_layout="",
        keep_layout_until=0.5,
        base=None,
        base_hash=None,
        **NO_FACES,
    )


def _used_ensd(recipe: Recipe, passes: Sequence[SamplingPass]) -> int:
    """Return the recipe's ENSD, or warn and return 0 if no sampler draws noise after the first."""
    settings = SamplerSettings.of(recipe)
    if recipe.ensd and not any(sampling_pass.sampler.draws_later_noise(settings) for sampling_pass in passes):
        warn_of_unused_ensd(recipe.sampler)
        return 0
    return recipe.ensd


def _overlay_hashes(passes: Sequence[SamplingPass]) -> tuple[OverlayHash, ...]:
    """Return what is recorded of the files of overlays and embeddings, each file once."""
    found = [overlay for sampling_pass in passes for overlay in (*sampling_pass.calls, *sampling_pass.embeddings)]
    file_hashes = [overlay.file_hash for overlay in found if overlay.file_hash]
    return tuple({(entry.kind, entry.name.lower()): entry for entry in file_hashes}.values())


def _warn_of_unreached_edits(passes: Sequence[SamplingPass]) -> None:
    """Warn of words that never change, neither in the pass whose prompt has them nor in a later one that has them."""
    timings_by_text: dict[str, list[Timing]] = {}
    prompt_by_text: dict[str, Prompt] = {}
    for sampling_pass in passes:
        for prompt in (sampling_pass.prompt, sampling_pass.negative):
            timings_by_text.setdefault(prompt.text, []).append(sampling_pass.timing)
            prompt_by_text[prompt.text] = prompt
    for text, prompt in prompt_by_text.items():
        prompt.warn_unreached_edits(*timings_by_text[text])
