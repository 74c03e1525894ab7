"""What is odd about a recipe that is painted all the same."""

import warnings
from collections.abc import Sequence

from velatura.base.base import Base
from velatura.errors import BadRecipe, VelaturaWarning
from velatura.sampling.img2img import compute_image_hash, compute_mask_hash
from velatura.sampling.masks import InitImage
from velatura.sampling.recipe.fields import MAX_SIDE_PIXELS, OverlayHash
from velatura.sampling.recipe.recipe import RECIPE_DEFAULTS, Recipe
from velatura.sampling.recipe.sizes import Resolution

WARNING_STACK_LEVEL = 6  # frames between here and whoever asked for a picture

IMG2IMG_FIELDS = ("fit", "noise_multiplier", "extra_noise")
MASK_FIELDS = ("mask_blur", "masked_content", "mask_padding")
HIRES_FIELDS = ("hires_steps", "hires_upscaler", "hires_sampler", "hires_prompt", "hires_negative")


def warn_of_another_base(base: Base, recipe: Recipe) -> None:
    """Say that a recipe was made on another base than this one, which is the one that paints."""
    has_other_name = bool(recipe.base) and recipe.base != base.name
    recipe_hash = recipe.base_hash if base.hash else None
    if (recipe_hash and not base.hash.startswith(recipe_hash)) or has_other_name:
        recipe_base = f"{recipe.base or 'a base'}{f' ({recipe.base_hash})' if recipe.base_hash else ''}"
        outcome = (
            "only its name is another"
            if recipe_hash and base.hash.startswith(recipe_hash)
            else "the picture will be another"
        )
        _warn(f"the recipe was made on {recipe_base}, this is {base.name} ({base.hash}): {outcome}")


def check_clip_skip(base: Base, recipe: Recipe) -> None:
    """Raise BadRecipe for a clip skip past the first layer; warn of one that a base has no use for.

    1 is no wish, and 2 is what bases read that take none, SD2 and SDXL, so pictures of theirs often carry it.
    """
    base.text.check_clip_skip(recipe.clip_skip)
    if recipe.clip_skip > 2 and not base.text.takes_clip_skip:
        _warn(f"clip_skip {recipe.clip_skip} changes nothing: {base.name} always reads the layer it was trained with")

    if recipe.vae_hash and recipe.vae_hash != base.vae_hash:
        current_vae = f"{base.vae_source.name} ({base.vae_hash})" if base.vae_source else "the base's own"
        _warn(
            f"the recipe was made with the autoencoder {recipe.vae} ({recipe.vae_hash}), this is {current_vae}: open it too"
        )


def warn_of_other_overlays(recipe_hashes: Sequence[OverlayHash], current_hashes: Sequence[OverlayHash]) -> None:
    """Say which overlays are not the files that a recipe was made with."""
    current_hash_by_overlay = {
        (overlay_hash.kind, overlay_hash.name.lower()): overlay_hash.hash for overlay_hash in current_hashes
    }
    for overlay_hash in recipe_hashes:
        current_hash = current_hash_by_overlay.get((overlay_hash.kind, overlay_hash.name.lower()))
        if current_hash and current_hash != overlay_hash.hash:
            mismatch = f"the recipe was made with {overlay_hash.name} ({overlay_hash.hash}), the file found is another ({current_hash})"
            _warn(f"{mismatch}: the picture may be another")


def check_image(recipe: Recipe, init_image: InitImage | None) -> None:
    """Raise BadRecipe where the image that a recipe begins from is missing; warn of another one."""
    if recipe.image_hash and init_image is None:
        raise BadRecipe(f"the recipe begins from an image ({recipe.image_hash}), which no picture carries: give it too")
    if recipe.mask_hash and not (init_image and init_image.mask):
        raise BadRecipe(f"the recipe has a mask ({recipe.mask_hash}), which no picture carries: give it with the image")
    if init_image:
        _warn_of_other_hash("image", recipe.image_hash, compute_image_hash(init_image.image))
        _warn_of_other_hash("mask", recipe.mask_hash, compute_mask_hash(init_image))
    if init_image and (recipe.hires_scale or recipe.hires_size):
        raise BadRecipe(
            "a second pass is for pictures from a prompt alone: leave the image out, or hires_scale and size"
        )


def warn_of_unused_fields(recipe: Recipe, init_image: InitImage | None) -> None:
    """Say what is set and changes nothing."""
    has_hires = bool(recipe.hires_scale or recipe.hires_size)
    unused_fields = {
        "an image to begin from": () if init_image else IMG2IMG_FIELDS,
        "a mask": () if init_image and init_image.mask else MASK_FIELDS,
        "hires_scale or hires_size": () if has_hires else HIRES_FIELDS,
        "an image, or a second pass": () if init_image or has_hires else ("denoising",),
        "variation_strength": () if recipe.variation_strength else ("variation_seed",),
        "keep_layout": () if recipe.keep_layout else ("keep_layout_until",),
    }
    for requirement, names in unused_fields.items():
        for name in names:
            if getattr(recipe, name) != RECIPE_DEFAULTS[name]:
                _warn(f"{name} changes nothing without {requirement}")


def warn_of_unused_ensd(sampler_name: str) -> None:
    """Say that a sampler draws no noise whose seeds could be moved; the webui does not record the number then."""
    _warn(f"ensd changes nothing: {sampler_name} draws no noise on its way")


def check_second_pass(size: Resolution, latent_factor: int) -> None:
    """Raise BadRecipe for a size that nothing can be painted at."""
    if not all(latent_factor <= side <= MAX_SIDE_PIXELS for side in size):
        raise BadRecipe(
            f"the second pass would be {size}: its sides must be of {latent_factor} to {MAX_SIDE_PIXELS} pixels, "
            "so change hires_scale or hires_size"
        )


def check_seed_size(base: Base, recipe: Recipe) -> None:
    """Raise BadRecipe for noise of less than one latent."""
    latent_factor = base.family.vae_scale_factor
    if recipe.seed_size and min(recipe.seed_size) < latent_factor:
        raise BadRecipe(f"the seed_size {recipe.seed_size} is below {latent_factor} pixels: give one such as 512x512")


def _warn_of_other_hash(what: str, recipe_hash: str | None, current_hash: str | None) -> None:
    """Say that an image is not the one that a recipe began from; other programs' hashes cannot be compared."""
    if recipe_hash and len(recipe_hash) == len(current_hash or "") and recipe_hash != current_hash:
        _warn(
            f"the recipe began from another {what} ({recipe_hash}, this is {current_hash}): the picture will be another",
            1,
        )


def _warn(message: str, extra_levels: int = 0) -> None:
    warnings.warn(message, VelaturaWarning, WARNING_STACK_LEVEL + extra_levels)
