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
from velatura.sampling.calls import Shelf
from velatura.sampling.carriers import save_with
from velatura.sampling.guidance import Lexicon
from velatura.sampling.masks import Source
from velatura.sampling.order import Order, batches
from velatura.sampling.painting import paint, refuse_misfits
from velatura.sampling.preview import Preview
from velatura.sampling.recipe import Recipe

OnStep = Callable[[int, int], None]  # (steps done, steps in all), over all pictures
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
        save_with(self.image, path, self.recipe.infotext())
        return path


def generate(
    base: Base,
    prompt_or_recipe: str | Recipe,
    *,
    library: Library | None = None,
    overlays: Mapping[str, Overlay] | None = None,
    source: Source | None = None,
    lenient: bool = False,
    on_step: OnStep | None = None,
    on_preview: OnPreview | None = None,
    **fields: object,
) -> Picture:
    """Make one picture from a prompt or a recipe; fields are those of Recipe and overrule it.

    library, overlays: where tags in the prompt find the overlays they name. Overlays that were attached to the base by
    hand act too, but the recipe does not tell of them. source: an image to begin from, and perhaps a mask. lenient:
    tags that name nothing are warned of and left out. on_preview: hears after each step what it looks like, roughly.
    """
    recipe = prompt_or_recipe if isinstance(prompt_or_recipe, Recipe) else Recipe(prompt=prompt_or_recipe)
    made = generate_each(
        *(base, [recipe.but(**fields)]),
        library=library,
        overlays=overlays,
        source=source,
        lenient=lenient,
        on_step=on_step,
        on_preview=on_preview,
    )
    [(_, picture)] = made
    return picture


def generate_many(
    base: Base,
    recipes: Iterable[Recipe],
    *,
    library: Library | None = None,
    overlays: Mapping[str, Overlay] | None = None,
    source: Source | None = None,
    lenient: bool = False,
    on_step: OnStep | None = None,
) -> list[Picture]:
    """Make many pictures, those that have passes and sizes in common at once, and give them back in the recipes' order.

    A picture is the same as if it were made alone, but for the rounding of sums: noise depends on its own seed, tags
    apply to the picture whose prompt they stand in, and what a tag calls is given one picture at a time where it mixes
    the rows of a batch. Of overlays that were attached by hand that cannot be said. All recipes are checked before the
    first step.
    """
    made = generate_each(
        base, recipes, library=library, overlays=overlays, source=source, lenient=lenient, on_step=on_step
    )
    return [picture for _, picture in sorted(made, key=lambda placed: placed[0])]


def generate_each(
    base: Base,
    recipes: Iterable[Recipe],
    *,
    library: Library | None = None,
    overlays: Mapping[str, Overlay] | None = None,
    source: Source | None = None,
    lenient: bool = False,
    on_step: OnStep | None = None,
    on_preview: OnPreview | None = None,
) -> Iterator[tuple[int, Picture]]:
    """Make many pictures as generate_many does, and give each, with its place among the recipes, as soon as it is done.

    All recipes are checked at once, and the first step is taken when the first picture is asked for.
    """
    shelf = Shelf(library, overlays, lenient=lenient)
    orders = [Order(base, recipe, shelf, source) for recipe in recipes]
    planned = list(batches(orders))
    for batch in planned:
        refuse_misfits(base, batch)
    places = {order: place for place, order in enumerate(orders)}
    return _painted(base, planned, places, on_step, on_preview)


def _painted(
    base: Base,
    planned: Sequence[Sequence[Order]],
    places: Mapping[Order, int],
    on_step: OnStep | None,
    on_preview: OnPreview | None,
) -> Iterator[tuple[int, Picture]]:
    """Paint batch after batch, telling of each step."""
    in_all, done = sum(batch[0].steps for batch in planned), count(1)
    preview, lexicon = Preview(base), Lexicon(base)

    def tell(latents: Tensor) -> None:
        if on_step:
            on_step(next(done), in_all)
        if on_preview:
            on_preview([preview(each) for each in latents])

    for batch in planned:
        images, effects = paint(base, batch, lexicon, tell)
        for order, image in zip(batch, images, strict=True):
            yield places[order], Picture(image, order.recipe, tuple(effects))
