"""A recipe filled in, with all that a base makes of it before the first step, and which can be made at once."""

import secrets
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.metadata import version

from torch import Tensor

from velatura.base.base import Base
from velatura.errors import BadRecipe, VelaturaWarning
from velatura.prompts.prompt import Prompt
from velatura.sampling.calls import Called, Shelf
from velatura.sampling.conditioning import chunks_of
from velatura.sampling.recipe import OverlayHash, Recipe
from velatura.sampling.samplers import find_sampler

SEEDS = 4294967294  # how many the webui draws from
LATENT_PIXELS = 8 * 64 * 64  # of a batch: those of eight pictures of 512 x 512; the UNet sees each twice


class Order:
    """One picture to be made: its recipe with nothing left open, its prompts read, its overlays found."""

    def __init__(self, base: Base, recipe: Recipe, shelf: Shelf) -> None:
        _warn_of_another_base(base, recipe)
        self.base = base
        self.sampler = find_sampler(recipe.sampler)
        self.prompt = Prompt.read(recipe.prompt)
        self.negative = Prompt.read_negative(recipe.negative)
        self.calls = tuple(map(shelf.called, self.prompt.tags))
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
            overlay_hashes=_hashes(self.calls),
            version=f"velatura {version('velatura')}",
        )
        _warn_of_other_overlays(recipe.overlay_hashes, self.recipe.overlay_hashes)
        for call in self.calls:
            call.warn_if_idle(self.steps, guided=self.guided)

    @cached_property
    def levels(self) -> Tensor:
        """The levels of noise that the sampler walks along."""
        return self.sampler.levels(self.base.schedule, self.recipe.steps)

    @property
    def steps(self) -> int:
        """How many steps the sampler takes; some take one less than they are asked for."""
        return len(self.levels) - 1

    @property
    def guided(self) -> bool:
        """Whether the negative prompt has a say."""
        return self.recipe.guidance != 1

    @cached_property
    def chunk_count(self) -> int:
        """Prompt and negative prompt are brought to the same length."""
        return max(len(chunks_of(self.base.text, each)) for each in (self.prompt, self.negative))

    @property
    def companions(self) -> object:
        """What pictures have in common that can be made at once."""
        alike = self.recipe.but(prompt="", negative="", seed=None, overlay_hashes=())
        return alike, tuple(call.how for call in self.calls), self.chunk_count

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of its latents."""
        factor = self.base.family.latent_factor
        return int(self.base.unet.config["in_channels"]), self.height // factor, self.width // factor


def batches(orders: Sequence[Order]) -> Iterator[list[Order]]:
    """Orders that can be made at once, as many as there is room for."""
    groups: dict[object, list[Order]] = {}
    for order in orders:
        groups.setdefault(order.companions, []).append(order)
    for group in groups.values():
        _, height, width = group[0].latent_shape
        at_once = max(1, LATENT_PIXELS // (height * width))
        for start in range(0, len(group), at_once):
            yield group[start : start + at_once]


def _side(base: Base, name: str, pixels: int | None) -> int:
    """The width or height in pixels, the base's own where none is wanted."""
    factor = base.family.latent_factor
    if pixels is None:
        return base.family.default_pixels
    if pixels % factor:
        down = max(factor, pixels - pixels % factor)
        raise BadRecipe(f"the {name} is {pixels} pixels; {base.name} makes multiples of {factor}, such as {down}")
    return pixels


def _hashes(calls: Sequence[Called]) -> tuple[OverlayHash, ...]:
    """What is recorded of the files of overlays, each once."""
    return tuple({(call.tag.kind, call.tag.name.lower()): call.hash for call in calls if call.hash}.values())


def _warn_of_another_base(base: Base, recipe: Recipe) -> None:
    """Say that a recipe was made on another base than this one, which is the one that paints."""
    renamed = bool(recipe.base) and recipe.base != base.name
    known = recipe.base_hash if base.hash else None
    if (known and not base.hash.startswith(known)) or renamed:
        made_on = f"{recipe.base or 'a base'}{f' ({recipe.base_hash})' if recipe.base_hash else ''}"
        outcome = "only its name is another" if known and base.hash.startswith(known) else "the picture will be another"
        message = f"the recipe was made on {made_on}, this is {base.name} ({base.hash}): {outcome}"
        warnings.warn(message, VelaturaWarning, 5)


def _warn_of_other_overlays(recorded: Sequence[OverlayHash], found: Sequence[OverlayHash]) -> None:
    """Say which overlays are not the files that a recipe was made with."""
    hashes = {(each.kind, each.name.lower()): each.hash for each in found}
    for each in recorded:
        ours = hashes.get((each.kind, each.name.lower()))
        if ours and ours != each.hash:
            message = f"the recipe was made with {each.name} ({each.hash}), the file found is another ({ours}): "
            warnings.warn(f"{message}the picture may be another", VelaturaWarning, 5)
