"""From recipes to pictures."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from PIL import Image
from torch import Tensor

from velatura.base.base import Base
from velatura.library import Library
from velatura.overlays.effect import Effect
from velatura.overlays.overlay import Overlay
from velatura.sampling.guidance import ConditioningCache
from velatura.sampling.job import Job, split_into_batches
from velatura.sampling.masks import InitImage
from velatura.sampling.pipeline import check_overlays_fit, run_batch
from velatura.sampling.preview import Preview
from velatura.sampling.recipe.metadata import save_with_infotext
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.resolve_overlays import OverlayResolver

OnSamplingStep = Callable[[int, int], None]  # (steps done, steps in all), over all pictures
OnPreview = Callable[[list[Image.Image]], None]  # small pictures of a batch as they are guessed after a step


@dataclass(frozen=True)
class Picture:
    """A picture, the whole recipe of it, and what each overlay did that its prompts call.

    effects: of the batch that it was made in, measured on a first step; words first, then tags in their order.
    """

    image: Image.Image
    recipe: Recipe
    effects: tuple[Effect, ...] = ()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as .png, .jpg or .webp with the recipe inside, and give the path back."""
        path = Path(path).expanduser()
        save_with_infotext(self.image, path, self.recipe.infotext())
        return path


def generate(
    base: Base,
    prompt_or_recipe: str | Recipe,
    *,
    library: Library | None = None,
    overlays: Mapping[str, Overlay] | None = None,
    init_image: InitImage | None = None,
    lenient: bool = False,
    on_step: OnSamplingStep | None = None,
    on_preview: OnPreview | None = None,
    **fields: object,
) -> Picture:
    """Make one picture from a prompt or a recipe; fields are those of Recipe and overrule it.

    library, overlays: where tags in the prompt find the overlays they name. Overlays that were attached to the base by
    hand act too, but the recipe does not tell of them. source: an image to begin from, and perhaps a mask. lenient:
    tags that name nothing are warned of and left out. on_preview: hears after each step what it looks like, roughly.
    """
    recipe = prompt_or_recipe if isinstance(prompt_or_recipe, Recipe) else Recipe(prompt=prompt_or_recipe)
    pictures = generate_stream(
        *(base, [recipe.replace(**fields)]),
        library=library,
        overlays=overlays,
        init_image=init_image,
        lenient=lenient,
        on_step=on_step,
        on_preview=on_preview,
    )
    [(_, picture)] = pictures
    return picture


def generate_many(
    base: Base,
    recipes: Iterable[Recipe],
    *,
    library: Library | None = None,
    overlays: Mapping[str, Overlay] | None = None,
    init_image: InitImage | None = None,
    lenient: bool = False,
    on_step: OnSamplingStep | None = None,
) -> list[Picture]:
    """Make many pictures, those that have passes and sizes in common at once, and give them back in the recipes' order.

    A picture is the same as if it were made alone, but for the rounding of sums: noise depends on its own seed, tags
    apply to the picture whose prompt they stand in, and what a tag calls is given one picture at a time where it mixes
    the rows of a batch. Of overlays that were attached by hand that cannot be said. All recipes are checked before the
    first step.
    """
    pictures = generate_stream(
        base, recipes, library=library, overlays=overlays, init_image=init_image, lenient=lenient, on_step=on_step
    )
    return [picture for _, picture in sorted(pictures, key=lambda indexed_picture: indexed_picture[0])]


def generate_stream(
    base: Base,
    recipes: Iterable[Recipe],
    *,
    library: Library | None = None,
    overlays: Mapping[str, Overlay] | None = None,
    init_image: InitImage | None = None,
    lenient: bool = False,
    on_step: OnSamplingStep | None = None,
    on_preview: OnPreview | None = None,
) -> Iterator[tuple[int, Picture]]:
    """Make many pictures as generate_many does, and give each, with its place among the recipes, as soon as it is done.

    All recipes are checked at once, and the first step is taken when the first picture is asked for.
    """
    resolver = OverlayResolver(library, overlays, lenient=lenient)
    jobs = [Job(base, recipe, resolver, init_image) for recipe in recipes]
    batches = list(split_into_batches(jobs))
    for batch in batches:
        check_overlays_fit(base, batch)
    job_indices = {job: index for index, job in enumerate(jobs)}
    return _generate_batches(base, batches, job_indices, on_step, on_preview)


def _generate_batches(
    base: Base,
    batches: Sequence[Sequence[Job]],
    job_indices: Mapping[Job, int],
    on_step: OnSamplingStep | None,
    on_preview: OnPreview | None,
) -> Iterator[tuple[int, Picture]]:
    """Paint batch after batch, telling of each step."""
    total_steps, step_counter = sum(batch[0].steps for batch in batches), count(1)
    preview, conditioning_cache = Preview(base), ConditioningCache(base)

    def report_step(latents: Tensor) -> None:
        if on_step:
            on_step(next(step_counter), total_steps)
        if on_preview:
            on_preview([preview(picture_latents) for picture_latents in latents])

    for batch in batches:
        images, effects = run_batch(base, batch, conditioning_cache, report_step)
        for job, image in zip(batch, images, strict=True):
            yield job_indices[job], Picture(image, job.recipe, tuple(effects))
