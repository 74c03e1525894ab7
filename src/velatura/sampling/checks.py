"""What is odd about a recipe that is painted all the same."""

import warnings
from collections.abc import Sequence

from velatura.base.base import Base
from velatura.errors import BadRecipe, VelaturaWarning
from velatura.sampling.beginning import hash_of, mask_hash_of
from velatura.sampling.fields import MOST_PIXELS, OverlayHash
from velatura.sampling.masks import Source
from velatura.sampling.recipe import DEFAULTS, Recipe
from velatura.sampling.sizes import Size

LEVEL = 6  # frames between here and whoever asked for a picture

IMAGE = ("fit", "noise_multiplier", "extra_noise")
MASK = ("mask_blur", "masked_content", "mask_padding")
AGAIN = ("hires_steps", "hires_upscaler", "hires_sampler", "hires_prompt", "hires_negative")


def warn_of_another_base(base: Base, recipe: Recipe) -> None:
    """Say that a recipe was made on another base than this one, which is the one that paints."""
    renamed = bool(recipe.base) and recipe.base != base.name
    known = recipe.base_hash if base.hash else None
    if (known and not base.hash.startswith(known)) or renamed:
        made_on = f"{recipe.base or 'a base'}{f' ({recipe.base_hash})' if recipe.base_hash else ''}"
        outcome = "only its name is another" if known and base.hash.startswith(known) else "the picture will be another"
        _warn(f"the recipe was made on {made_on}, this is {base.name} ({base.hash}): {outcome}")


def check_clip_skip(base: Base, recipe: Recipe) -> None:
    """Raise BadRecipe for a clip skip past the first layer; warn of one that a base has no use for.

    1 is no wish, and 2 is what bases read that take none, SD2 and SDXL, so pictures of theirs often carry it.
    """
    base.text.check_clip_skip(recipe.clip_skip)
    if recipe.clip_skip > 2 and not base.text.takes_clip_skip:
        _warn(f"clip_skip {recipe.clip_skip} changes nothing: {base.name} always reads the layer it was trained with")

    if recipe.vae_hash and recipe.vae_hash != base.vae_hash:
        own = f"{base.vae_source.name} ({base.vae_hash})" if base.vae_source else "the base's own"
        _warn(f"the recipe was made with the autoencoder {recipe.vae} ({recipe.vae_hash}), this is {own}: open it too")


def warn_of_other_overlays(recorded: Sequence[OverlayHash], found: Sequence[OverlayHash]) -> None:
    """Say which overlays are not the files that a recipe was made with."""
    hashes = {(each.kind, each.name.lower()): each.hash for each in found}
    for each in recorded:
        ours = hashes.get((each.kind, each.name.lower()))
        if ours and ours != each.hash:
            made = f"the recipe was made with {each.name} ({each.hash}), the file found is another ({ours})"
            _warn(f"{made}: the picture may be another")


def check_image(recipe: Recipe, source: Source | None) -> None:
    """Raise BadRecipe where the image that a recipe begins from is missing; warn of another one."""
    if recipe.image_hash and source is None:
        raise BadRecipe(f"the recipe begins from an image ({recipe.image_hash}), which no picture carries: give it too")
    if recipe.mask_hash and not (source and source.mask):
        raise BadRecipe(f"the recipe has a mask ({recipe.mask_hash}), which no picture carries: give it with the image")
    if source:
        _warn_of_another("image", recipe.image_hash, hash_of(source.image))
        _warn_of_another("mask", recipe.mask_hash, mask_hash_of(source))
    if source and (recipe.hires_scale or recipe.hires_size):
        raise BadRecipe(
            "a second pass is for pictures from a prompt alone: leave the image out, or hires_scale and size"
        )


def warn_of_idle_fields(recipe: Recipe, source: Source | None) -> None:
    """Say what is set and changes nothing."""
    again = bool(recipe.hires_scale or recipe.hires_size)
    idle = {
        "an image to begin from": () if source else IMAGE,
        "a mask": () if source and source.mask else MASK,
        "hires_scale or hires_size": () if again else AGAIN,
        "an image, or a second pass": () if source or again else ("denoising",),
        "variation_strength": () if recipe.variation_strength else ("variation_seed",),
        "keep_layout": () if recipe.keep_layout else ("keep_layout_until",),
    }
    for without, names in idle.items():
        for name in names:
            if getattr(recipe, name) != DEFAULTS[name]:
                _warn(f"{name} changes nothing without {without}")


def warn_of_idle_ensd(sampler: str) -> None:
    """Say that a sampler draws no noise whose seeds could be moved; the webui does not record the number then."""
    _warn(f"ensd changes nothing: {sampler} draws no noise on its way")


def check_second_pass(size: Size, factor: int) -> None:
    """Raise BadRecipe for a size that nothing can be painted at."""
    if not all(factor <= side <= MOST_PIXELS for side in size):
        raise BadRecipe(
            f"the second pass would be {size}: its sides must be of {factor} to {MOST_PIXELS} pixels, "
            "so change hires_scale or hires_size"
        )


def check_seed_size(base: Base, recipe: Recipe) -> None:
    """Raise BadRecipe for noise of less than one latent."""
    factor = base.family.latent_factor
    if recipe.seed_size and min(recipe.seed_size) < factor:
        raise BadRecipe(f"the seed_size {recipe.seed_size} is below {factor} pixels: give one such as 512x512")


def _warn_of_another(what: str, recorded: str | None, ours: str | None) -> None:
    """Say that an image is not the one that a recipe began from; other programs' hashes cannot be compared."""
    if recorded and len(recorded) == len(ours or "") and recorded != ours:
        _warn(f"the recipe began from another {what} ({recorded}, this is {ours}): the picture will be another", 1)


def _warn(message: str, deeper: int = 0) -> None:
    warnings.warn(message, VelaturaWarning, LEVEL + deeper)
