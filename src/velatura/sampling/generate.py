"""Make pictures from prompts and recipes: the front door of this package.

The way of a picture: Recipe -> Job (`job.prepare_job`) -> batch (`job.split_into_batches`) -> `pipeline.run_batch` ->
`pipeline.denoise` -> Picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from PIL import Image
from torch import Tensor

from velatura.arguments import check_arguments
from velatura.base.base import Base
from velatura.base.pipeline import AnyBase, freeze_models, frozen_modules, to_base
from velatura.face_restoration import OnFace
from velatura.library import Library
from velatura.overlays.effect import Effect
from velatura.overlays.overlay import Overlay
from velatura.sampling.conditioning import ConditioningCache
from velatura.sampling.job import Job, prepare_job, split_into_batches
from velatura.sampling.masks import InitImage
from velatura.sampling.pipeline import OnDenoised, check_overlays_fit, run_batch
from velatura.sampling.preview import Preview
from velatura.sampling.recipe.expand import draw_templates
from velatura.sampling.recipe.keywords import FurtherRecipeFields, RecipeFields
from velatura.sampling.recipe.metadata import save_with_infotext
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.resolve.faces import find_face_files
from velatura.sampling.resolve.overlays import OverlayResolver
from velatura.sampling.validate import warn_of_tiny_limits

OnSamplingStep = Callable[[int, int], None]  # (steps done, steps in all), over all pictures
OnPreview = Callable[[list[Image.Image]], None]  # small, approximate pictures of a batch after a step


@dataclass(frozen=True)
class Picture:
    """A picture, with its complete recipe and the effect of each overlay.

    Attributes:
        image: The picture as a PIL image.
        recipe: The recipe with nothing left open; it makes the same picture again.
        effects: What the overlays of its batch changed in the first step: embeddings first, then overlays in the order
            of their tags.
    """

    image: Image.Image
    recipe: Recipe
    effects: tuple[Effect, ...] = ()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Save it with its recipe inside.

        Args:
            path: A file name that ends in .png, .jpg, .jpeg or .webp.

        Returns:
            The path as it was written.

        Raises:
            BadFile: The ending is unknown, or the format has no room for the picture or its recipe.
        """
        path = Path(path).expanduser()
        save_with_infotext(self.image, path, self.recipe.infotext())
        return path


class BatchRunner:
    """Makes batch after batch on one base, and keeps the encoded texts and the map of the previews between them."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self._preview, self._conditioning_cache = Preview(base), ConditioningCache(base)

    def run(self, batch: Sequence[Job], on_denoised: OnDenoised, on_face: OnFace | None = None) -> list[Picture]:
        """Make the pictures of a batch.

        Args:
            batch: Jobs with equal batch keys, as `split_into_batches` groups them.
            on_denoised: Called after each step with the denoised latents, (pictures, 4, height / 8, width / 8). What it
                raises ends the batch, and leaves the base as it was.
            on_face: Called with the faces done and the faces of a picture, before each face that is restored and at the
                end of each picture. What it raises ends the batch too.

        Raises:
            NanLatents: The latents became NaN or infinite, or there is not enough memory.
        """
        with frozen_modules(*self.base.models):
            images, effects = run_batch(self.base, batch, self._conditioning_cache, on_denoised, on_face)
        return [Picture(image, job.recipe, tuple(effects)) for job, image in zip(batch, images, strict=True)]

    def previews(self, latents: Tensor) -> list[Image.Image]:
        """Return small, approximate pictures of denoised latents, one pixel per latent."""
        return [self._preview(picture_latents) for picture_latents in latents]


@check_arguments(skip=Recipe.model_fields)
def generate(
    base: AnyBase,
    prompt_or_recipe: str | Recipe,
    *,
    negative: str | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    scheduler: str | None = None,
    guidance: float | None = None,
    seed: int | None = None,
    width: int | None = None,
    height: int | None = None,
    clip_skip: int | None = None,
    denoising: float | None = None,
    hires_scale: float | None = None,
    tiling: bool | None = None,
    library: Library | None = None,
    overlays: Mapping[str, Overlay] | None = None,
    init_image: InitImage | None = None,
    wildcards: str | os.PathLike[str] | None = None,
    lenient: bool = False,
    on_step: OnSamplingStep | None = None,
    on_preview: OnPreview | None = None,
    **fields: Unpack[FurtherRecipeFields],
) -> Picture:
    """Make one picture from a prompt or a recipe.

    All fields of a recipe can be given here, and replace those of the recipe. None keeps the recipe's value, which for
    a prompt is the default that is named below.

    Args:
        base: The base that makes the picture, or a diffusers pipeline. Overlays that are attached to it act too, but
            are not recorded.
        prompt_or_recipe: A prompt, or a complete recipe, such as `Recipe.from_image("picture.png")` returns.
        negative: The negative prompt. Default: empty.
        steps: Sampling steps, 1 to 1000. Default: 20.
        sampler: Name of the sampler, such as "Euler a" or "DPM++ 2M Karras". Default: "Euler a".
        scheduler: Name of the noise schedule, such as "Karras". Default: the sampler's own.
        guidance: CFG scale; 1 means no guidance. Default: 7.
        seed: Seed of the noise; -1 draws a new one. Default: a new one.
        width, height: Size in pixels, multiples of 8. Default: the base's own, 512 for SD1.
        clip_skip: Layer of the text encoder, counted from the end, 1 to 12. Default: 1.
        denoising: How much of the init image or of the first pass is replaced, 0 to 1. Default: 0.75 for an init image,
            0.7 for a second pass.
        hires_scale: Make a second pass at so many times the size (hires fix). Default: no second pass.
        tiling: Make a picture that can be tiled without seams. Default: False.
        library: Where overlays that the prompt names are searched.
        overlays: Overlays by the names that tags call them by; they are found before those of the library.
        init_image: The image, and perhaps a mask, to start from (img2img, inpainting).
        wildcards: The folder of wildcard files. Then `__colour__` in a prompt draws a line of colour.txt, and
            `{cat|dog}` one of the variants, by the seed; the recipe records the template. None draws nothing.
        lenient: Warn of tags whose overlay is unknown and leave them out, instead of raising UnknownName.
        on_step: Called with the steps done and the steps in all, after each step and while faces are restored.
        on_preview: Called after each step with a small, approximate picture.
        **fields: Further fields of Recipe.

    Returns:
        The picture, with its recipe filled in.

    Raises:
        BadRecipe: A field is unknown or out of range, or the recipe cannot be made with this base and image.
        BadPrompt: A prompt or tag cannot be read; the message points at the place.
        UnknownName: No such sampler, scheduler, upscaler or overlay exists.
        WrongBase: An overlay was made for bases of other widths.
        NanLatents: The latents became NaN or infinite, or there is not enough memory.
    """
    common_fields = {
        "negative": negative,
        "steps": steps,
        "sampler": sampler,
        "scheduler": scheduler,
        "guidance": guidance,
        "seed": seed,
        "width": width,
        "height": height,
        "clip_skip": clip_skip,
        "denoising": denoising,
        "hires_scale": hires_scale,
        "tiling": tiling,
    }
    given_fields = {name: value for name, value in common_fields.items() if value is not None}
    if not lenient:
        _refuse_missing_faces(fields, library)
    pictures = generate_stream(
        base,
        [_to_recipe(prompt_or_recipe).replace(**given_fields, **fields)],
        library=library,
        overlays=overlays,
        init_image=init_image,
        wildcards=wildcards,
        lenient=lenient,
        on_step=on_step,
        on_preview=on_preview,
    )
    [(_, picture)] = pictures
    return picture


@check_arguments()
def generate_many(
    base: AnyBase,
    prompts_or_recipes: Iterable[str | Recipe],
    *,
    library: Library | None = None,
    overlays: Mapping[str, Overlay] | None = None,
    init_image: InitImage | None = None,
    wildcards: str | os.PathLike[str] | None = None,
    lenient: bool = False,
    on_step: OnSamplingStep | None = None,
    **fields: Unpack[RecipeFields],
) -> list[Picture]:
    """Make many pictures; those of equal size and steps are made in one batch.

    Every picture is the same as if it were made alone, except for rounding: its noise comes from its own seed, and
    tags act on the picture whose prompt they are in. Overlays that depend on the whole batch are called for one
    picture at a time. Overlays that were attached to the base by hand act on all pictures.

    Args:
        base: The base that makes the pictures.
        prompts_or_recipes: Prompts or recipes, in any mixture. All are checked before the first step.
        library, overlays, init_image, wildcards, lenient: As in generate, for all pictures.
        on_step: As in generate, over all pictures.
        **fields: Fields of Recipe that replace those of every recipe.

    Returns:
        The pictures in the order of their recipes.

    Raises:
        VelaturaError: As generate raises.
    """
    pictures = generate_stream(
        base,
        prompts_or_recipes,
        library=library,
        overlays=overlays,
        init_image=init_image,
        wildcards=wildcards,
        lenient=lenient,
        on_step=on_step,
        **fields,
    )
    return [picture for _, picture in sorted(pictures, key=lambda indexed_picture: indexed_picture[0])]


@freeze_models
@check_arguments()
def generate_stream(
    base: AnyBase,
    prompts_or_recipes: Iterable[str | Recipe],
    *,
    library: Library | None = None,
    overlays: Mapping[str, Overlay] | None = None,
    init_image: InitImage | None = None,
    wildcards: str | os.PathLike[str] | None = None,
    lenient: bool = False,
    on_step: OnSamplingStep | None = None,
    on_preview: OnPreview | None = None,
    **fields: Unpack[RecipeFields],
) -> Iterator[tuple[int, Picture]]:
    """Make many pictures as generate_many does, and yield each as soon as it is ready.

    All recipes are checked at the call. The first step is taken when the first picture is asked for.

    Args:
        base: The base that makes the pictures.
        prompts_or_recipes: Prompts or recipes, in any mixture.
        library, overlays, init_image, wildcards, lenient: As in generate, for all pictures.
        on_step: As in generate, over all pictures.
        on_preview: Called after each step with small, approximate pictures of the current batch.
        **fields: Fields of Recipe that replace those of every recipe.

    Returns:
        An iterator over pairs of the recipe's index and its picture, in the order in which batches are made.

    Raises:
        VelaturaError: As generate raises.
    """
    base = to_base(base)
    if not lenient:
        _refuse_missing_faces(fields, library)
    requests = [_to_recipe(prompt_or_recipe).replace(**fields) for prompt_or_recipe in prompts_or_recipes]
    recipes = [draw_templates(recipe, wildcards) for recipe in requests]
    warn_of_tiny_limits(base, recipes, library, overlays, init_image=init_image)
    resolver = OverlayResolver(library, overlays, lenient=lenient)
    return _prepare_pictures(base, recipes, resolver, init_image, on_step=on_step, on_preview=on_preview)


def make_pictures(base: Base, recipes: Iterable[Recipe], init_image: InitImage | None = None) -> list[Picture]:
    """Make pictures as generate_many does, for trainings and measurements, which judge words and images by themselves.

    Args:
        base: The base, with the overlays attached that are looked at.
        recipes: Recipes without tags of a library.
        init_image: The image to start from.
    """
    resolver = OverlayResolver(None, None, lenient=False)
    pictures = _prepare_pictures(base, list(recipes), resolver, init_image)
    return [picture for _, picture in sorted(pictures, key=lambda indexed_picture: indexed_picture[0])]


def _prepare_pictures(
    base: Base,
    recipes: Sequence[Recipe],
    resolver: OverlayResolver,
    init_image: InitImage | None,
    *,
    on_step: OnSamplingStep | None = None,
    on_preview: OnPreview | None = None,
) -> Iterator[tuple[int, Picture]]:
    """Check all recipes, and return an iterator that makes the pictures."""
    jobs = [prepare_job(base, recipe, resolver, init_image) for recipe in recipes]
    batches = list(split_into_batches(jobs))
    for batch in batches:
        check_overlays_fit(base, batch)
    job_indices = {job: index for index, job in enumerate(jobs)}
    return _run_batches(base, batches, job_indices, on_step, on_preview)


def _to_recipe(prompt_or_recipe: str | Recipe) -> Recipe:
    return prompt_or_recipe if isinstance(prompt_or_recipe, Recipe) else Recipe(prompt=prompt_or_recipe)


def _refuse_missing_faces(fields: Mapping[str, object], library: Library | None) -> None:
    """Refuse to restore faces without the files; in a recipe that was read they are only warned of.

    Raises:
        UnknownName: The library does not have the files.
    """
    if fields.get("restore_faces"):
        name = fields.get("face_restorer")
        find_face_files(name if isinstance(name, str) else None, library)


def _run_batches(
    base: Base,
    batches: Sequence[Sequence[Job]],
    job_indices: Mapping[Job, int],
    on_step: OnSamplingStep | None,
    on_preview: OnPreview | None,
) -> Iterator[tuple[int, Picture]]:
    """Run batch after batch, and report each step."""
    total_steps, steps_done = sum(batch[0].steps for batch in batches), 0
    runner = BatchRunner(base)

    def report_step(latents: Tensor) -> None:
        nonlocal steps_done
        steps_done += 1
        if on_step:
            on_step(steps_done, total_steps)
        if on_preview:
            on_preview(runner.previews(latents))

    def report_face(_done: int, _total: int) -> None:
        if on_step:
            on_step(steps_done, total_steps)

    for batch in batches:
        for job, picture in zip(batch, runner.run(batch, report_step, report_face), strict=True):
            yield job_indices[job], picture
