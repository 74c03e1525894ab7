"""From recipes to pictures."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from velatura.base.base import Base
from velatura.base.conditioning import Conditioning
from velatura.errors import NoPicture
from velatura.library import Library
from velatura.overlays.overlay import Overlay
from velatura.sampling.calls import Shelf, laid_over
from velatura.sampling.conditioning import conditioning
from velatura.sampling.infotext import save_with
from velatura.sampling.noise import Noise
from velatura.sampling.order import Order, batches
from velatura.sampling.recipe import Recipe
from velatura.sampling.samplers import Denoise, timestep_of

OnStep = Callable[[int, int], None]  # (steps done, steps in all), over all pictures


@dataclass(frozen=True)
class Picture:
    """A picture and the whole recipe of it."""

    image: Image.Image
    recipe: Recipe

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
    on_step: OnStep | None = None,
    **fields: object,
) -> Picture:
    """Make one picture from a prompt or a recipe; fields are those of Recipe and overrule it.

    library, overlays: where tags in the prompt find the overlays they name. Overlays that were attached to the base by
    hand act too, but the recipe does not tell of them.
    """
    recipe = prompt_or_recipe if isinstance(prompt_or_recipe, Recipe) else Recipe(prompt=prompt_or_recipe)
    [picture] = generate_many(base, [recipe.but(**fields)], library=library, overlays=overlays, on_step=on_step)
    return picture


def generate_many(
    base: Base,
    recipes: Iterable[Recipe],
    *,
    library: Library | None = None,
    overlays: Mapping[str, Overlay] | None = None,
    on_step: OnStep | None = None,
) -> list[Picture]:
    """Make many pictures, those that differ in prompt and seed only at once, and give them back in the recipes' order.

    A picture is the same as if it were made alone, but for the rounding of sums: noise depends on its own seed, and
    tags apply to the picture whose prompt they stand in. All recipes are checked before the first step.
    """
    made = generate_each(base, recipes, library=library, overlays=overlays, on_step=on_step)
    return [picture for _, picture in sorted(made, key=lambda placed: placed[0])]


def generate_each(
    base: Base,
    recipes: Iterable[Recipe],
    *,
    library: Library | None = None,
    overlays: Mapping[str, Overlay] | None = None,
    on_step: OnStep | None = None,
) -> Iterator[tuple[int, Picture]]:
    """Make many pictures as generate_many does, and give each, with its place among the recipes, as soon as it is done.

    All recipes are checked at once, and the first step is taken when the first picture is asked for.
    """
    shelf = Shelf(library, overlays)
    orders = [Order(base, recipe, shelf) for recipe in recipes]
    planned = list(batches(orders))
    for batch in planned:
        with _laid(base, batch):
            pass  # what cannot lie over this base is refused here
    return _painted(base, planned, {order: place for place, order in enumerate(orders)}, on_step)


def _painted(
    base: Base, planned: Sequence[Sequence[Order]], places: Mapping[Order, int], on_step: OnStep | None
) -> Iterator[tuple[int, Picture]]:
    """Paint batch after batch, telling of each step."""
    in_all, done = sum(batch[0].steps for batch in planned), count(1)

    def tell() -> None:
        if on_step:
            on_step(next(done), in_all)

    for batch in planned:
        for order, image in zip(batch, _images(base, batch, tell), strict=True):
            yield places[order], Picture(image, order.recipe)


def _laid(base: Base, batch: Sequence[Order]) -> AbstractContextManager[Callable[[float], None]]:
    """The overlays that a batch calls, over the base for as long as this lasts."""
    first = batch[0]
    return laid_over(base, first.calls, combine=first.recipe.combine, pictures=len(batch), guided=first.guided)


@torch.no_grad()
def _images(base: Base, batch: Sequence[Order], tell: Callable[[], None]) -> list[Image.Image]:
    """Lay the overlays on, take the steps, telling of each, take the overlays off, and decode."""
    first = batch[0]
    with _laid(base, batch) as reach:
        # one tensor for all steps: overlays remember what they made of it
        said = _said(base, batch).to(base.device, base.dtype)
        noise = Noise([order.seed for order in batch], first.latent_shape, base.device)
        walk = first.sampler.sample(_denoiser(base, said, first.recipe.guidance), noise.draw, first.levels)
        latents = deque(_taken(walk, first.steps, reach, tell), maxlen=1).pop()
    return [_image(base, each) for each in latents]


def _taken(
    walk: Iterator[Tensor], steps: int, reach: Callable[[float], None], tell: Callable[[], None]
) -> Iterator[Tensor]:
    """The latents after each step; before it the overlays' strengths are brought to where it starts."""
    for step in range(steps):
        reach(step / steps)
        yield next(walk)
        tell()


def _said(base: Base, batch: Sequence[Order]) -> Conditioning:
    """What the prompts of a batch say, the negative prompts first as diffusers has them, if they have a say."""
    count = batch[0].chunk_count
    wanted = conditioning(base.text, [order.prompt for order in batch], count)
    if not batch[0].guided:
        return wanted
    unwanted = conditioning(base.text, [order.negative for order in batch], count, negative=True)
    return Conditioning.joined([unwanted, wanted])


def _denoiser(base: Base, said: Conditioning, guidance: float) -> Denoise:
    """What the base takes for the clean latents, the prompt's guess drawn away from the negative prompt's.

    said: by the prompts, a row for each picture, or two where it is guided.
    """
    rows = len(said)

    def denoise(latents: Tensor, sigma: Tensor) -> Tensor:
        copies = rows // len(latents)
        narrow = 1 / (1 + sigma**2).sqrt()
        timesteps = timestep_of(base.schedule, sigma).expand(rows)
        prediction = base.predict((latents * narrow).repeat(copies, 1, 1, 1), timesteps, said)
        if copies == 2:
            unwanted, wanted = prediction.chunk(2)
            prediction = unwanted + guidance * (wanted - unwanted)
        if base.family.prediction == "v_prediction":
            return latents * narrow**2 - prediction * sigma * narrow
        return latents - prediction * sigma

    return denoise


def _image(base: Base, latents: Tensor) -> Image.Image:
    """Decode the latents of one picture."""
    if not latents.isfinite().all():
        raise NoPicture(
            "the latents are no numbers any more: lower the strength of overlays or the guidance, "
            "or open the base in float32"
        )
    pixels = base.decode(latents.unsqueeze(0))[0]
    # A1111 cuts the fraction off rather than rounding it
    return Image.fromarray((pixels * 255).byte().permute(1, 2, 0).contiguous().cpu().numpy())
