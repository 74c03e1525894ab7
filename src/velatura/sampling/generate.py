"""From recipes to pictures."""

import os
import secrets
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import count
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from velatura.base.base import Base
from velatura.errors import BadRecipe, NoPicture, UnknownName, VelaturaWarning
from velatura.library import Library
from velatura.overlays import KINDS
from velatura.overlays.attach import attach
from velatura.overlays.overlay import Overlay
from velatura.prompts.grammar import Tag, misread
from velatura.prompts.prompt import Prompt
from velatura.sampling.conditioning import chunks_of, contexts
from velatura.sampling.infotext import save_with
from velatura.sampling.noise import Noise
from velatura.sampling.recipe import Recipe
from velatura.sampling.samplers import Denoise, find_sampler, timestep_of

OnStep = Callable[[int, int], None]  # (steps done, steps in all), over all pictures

SEEDS = 4294967294  # how many the webui draws from
MOST_AT_ONCE = 8  # pictures in a batch; the UNet sees each twice


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


@torch.no_grad()
def generate_many(
    base: Base,
    recipes: Iterable[Recipe],
    *,
    library: Library | None = None,
    overlays: Mapping[str, Overlay] | None = None,
    on_step: OnStep | None = None,
) -> list[Picture]:
    """Make many pictures, those that differ in prompt and seed only at once.

    A picture is the same as if it were made alone, but for the rounding of sums: noise depends on its own seed, and
    tags apply to the picture whose prompt they stand in. All recipes are checked before the first step.
    """
    orders = [_Order(base, recipe) for recipe in recipes]
    called = {tag: _overlay(tag, library, overlays) for order in orders for tag in order.prompt.tags}
    batches = list(_batches(orders))
    in_all, done = sum(len(batch[0].levels) - 1 for batch in batches), count(1)

    def tell() -> None:
        if on_step:
            on_step(next(done), in_all)

    images: dict[_Order, Image.Image] = {}
    for batch in batches:
        images |= zip(batch, _images(base, batch, called, tell), strict=True)
    return [Picture(images[order], order.recipe) for order in orders]


class _Order:
    """A recipe filled in, with all that a base makes of it before the first step."""

    def __init__(self, base: Base, recipe: Recipe) -> None:
        _warn_of_another_base(base, recipe)
        self.base = base
        self.sampler = find_sampler(recipe.sampler)
        self.prompt = Prompt.read(recipe.prompt)
        self.negative = Prompt.read_negative(recipe.negative)
        self.strengths = tuple((tag.kind, tag.name.lower(), tag.strength) for tag in self.prompt.tags)
        self.seed = secrets.randbelow(SEEDS) if recipe.seed is None else recipe.seed
        self.width = _side(base, "width", recipe.width)
        self.height = _side(base, "height", recipe.height)
        self.recipe = recipe.but(
            sampler=self.sampler.name,
            seed=self.seed,
            width=self.width,
            height=self.height,
            base=base.name,
            base_hash=base.hash or None,
            version=f"velatura {version('velatura')}",
        )

    @cached_property
    def levels(self) -> Tensor:
        return self.sampler.levels(self.base.schedule, self.recipe.steps)

    @cached_property
    def chunk_count(self) -> int:
        """Prompt and negative prompt are brought to the same length."""
        return max(len(chunks_of(self.base.text, each)) for each in (self.prompt, self.negative))

    @property
    def companions(self) -> object:
        """What pictures have in common that can be made at once."""
        alike = self.recipe.but(prompt="", negative="", seed=None)
        return alike, self.strengths, self.chunk_count

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        factor = self.base.family.latent_factor
        return int(self.base.unet.config["in_channels"]), self.height // factor, self.width // factor


def _side(base: Base, name: str, pixels: int | None) -> int:
    """The width or height in pixels, the base's own where none is wanted."""
    factor = base.family.latent_factor
    if pixels is None:
        return base.family.default_pixels
    if pixels % factor:
        down = max(factor, pixels - pixels % factor)
        raise BadRecipe(f"the {name} is {pixels} pixels; {base.name} makes multiples of {factor}, such as {down}")
    return pixels


def _warn_of_another_base(base: Base, recipe: Recipe) -> None:
    """Say that a recipe was made on another base than this one, which is the one that paints."""
    renamed = bool(recipe.base) and recipe.base != base.name
    known = recipe.base_hash if base.hash else None
    if (known and not base.hash.startswith(known)) or renamed:
        made_on = f"{recipe.base or 'a base'}{f' ({recipe.base_hash})' if recipe.base_hash else ''}"
        outcome = "only its name is another" if known and base.hash.startswith(known) else "the picture will be another"
        message = f"the recipe was made on {made_on}, this is {base.name} ({base.hash}): {outcome}"
        warnings.warn(message, VelaturaWarning, 5)


def _overlay(tag: Tag, library: Library | None, overlays: Mapping[str, Overlay] | None) -> Overlay:
    """The overlay that a tag names, first among those given by hand."""
    if tag.kind not in KINDS:
        raise UnknownName.among("kind of overlay", tag.kind, KINDS)
    at_hand = {name.lower(): overlay for name, overlay in (overlays or {}).items()}
    found = at_hand.get(tag.name.lower())
    if found is None:
        if library is None and not overlays:
            raise UnknownName(f"nobody knows the overlay {tag.name!r}: pass library= or overlays= to find it in")
        if library is None:
            raise UnknownName.among("overlay", tag.name, at_hand)
        found = library.overlay(tag.name)
    if found.kind != tag.kind:
        right = f"<{found.kind}:{tag.name}:{tag.strength:g}>"
        raise misread(tag.prompt, tag.start, f"{tag.name} is no {tag.kind} but a {found.kind}; write {right}")
    return found


def _batches(orders: Sequence[_Order]) -> Iterator[list[_Order]]:
    """Orders that can be made at once, a bounded number each."""
    groups: dict[object, list[_Order]] = {}
    for order in orders:
        groups.setdefault(order.companions, []).append(order)
    for group in groups.values():
        for start in range(0, len(group), MOST_AT_ONCE):
            yield group[start : start + MOST_AT_ONCE]


def _images(
    base: Base, batch: list[_Order], called: Mapping[Tag, Overlay], tell: Callable[[], None]
) -> list[Image.Image]:
    """Lay the overlays on, take the steps, telling of each, take the overlays off, and decode."""
    first = batch[0]
    with ExitStack() as laid:
        for tag in first.prompt.tags:
            laid.enter_context(attach(base, called[tag], tag.strength))
        prompts = [order.prompt for order in batch]
        if first.recipe.guidance != 1:  # without guidance the negative prompt has no say
            prompts += [order.negative for order in batch]
        context = contexts(base.text, prompts, first.chunk_count).to(base.device, base.dtype)
        noise = Noise([order.seed for order in batch], first.latent_shape, base.device)
        denoise = _denoiser(base, context, first.recipe.guidance)
        walk = first.sampler.sample(denoise, noise.draw, first.levels)
        latents = deque(_told(walk, tell), maxlen=1).pop()
    return [_image(base, each) for each in latents]


def _told(walk: Iterator[Tensor], tell: Callable[[], None]) -> Iterator[Tensor]:
    for latents in walk:
        tell()
        yield latents


def _denoiser(base: Base, context: Tensor, guidance: float) -> Denoise:
    """What the base takes for the clean latents, the prompt's guess drawn away from the negative prompt's.

    context: (pictures, tokens, width), or twice as many rows where the negative prompts follow the prompts.
    """
    rows = len(context)

    def denoise(latents: Tensor, sigma: Tensor) -> Tensor:
        copies = rows // len(latents)
        narrow = 1 / (1 + sigma**2).sqrt()
        timesteps = timestep_of(base.schedule, sigma).expand(rows)
        prediction = base.predict((latents * narrow).repeat(copies, 1, 1, 1), timesteps, context)
        if copies == 2:
            wanted, unwanted = prediction.chunk(2)
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
