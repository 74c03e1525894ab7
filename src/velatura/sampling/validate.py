"""Check a recipe before the first step: refuse what cannot be made, and warn of what changes nothing."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from velatura.base.base import Base
from velatura.base.families import PREDICTION_WORDS
from velatura.errors import BadRecipe, warn
from velatura.library import Library
from velatura.overlays.overlay import Overlay
from velatura.prompts.tags import TAG_PATTERN
from velatura.sampling.masks import InitImage
from velatura.sampling.recipe.fields import MAX_SIDE_PIXELS, OverlayHash
from velatura.sampling.recipe.recipe import RECIPE_DEFAULTS, Recipe
from velatura.sampling.recipe.sizes import Resolution
from velatura.tiny import TINY_HASH
from velatura.tiny_world import warn_of_far_image, warn_of_words_unknown_to_tiny, words_of, words_unknown_to_tiny


class _UsualSizes(NamedTuple):
    """Sizes of a first pass that are not warned of, as shares of the size that a base was trained on."""

    shortest: float
    longest: float  # a side that is also so many times as long as the other
    largest: float  # area


# SD1 is used up to 512 x 896 and 768 x 1024; the buckets of SDXL go from 512 x 2048 to 2048 x 512 (appendix I of its
# paper).
USUAL_SIZES = _UsualSizes(shortest=0.6, longest=1.75, largest=3.0)
USUAL_SIZES_BY_FAMILY = {"SDXL": _UsualSizes(0.5, 2.0, 3.0), "tiny": _UsualSizes(1.0, 1.0, 1.0)}
IMG2IMG_FIELDS = ("fit", "noise_multiplier", "extra_noise")
MASK_FIELDS = ("mask_blur", "unrounded_mask", "masked_content", "mask_padding")
DEFAULT_IMAGE_GUIDANCE = 1.5  # A1111's default, and that of the paper's authors
DEFAULT_MASK_WEIGHT = 1.0  # A1111's default
FACE_FIELDS = ("face_restorer", "codeformer_weight")
HIRES_FIELDS = ("hires_steps", "hires_upscaler", "hires_sampler", "hires_prompt", "hires_negative")


def check_recipe(base: Base, recipe: Recipe, init_image: InitImage | None) -> None:
    """Check all of a recipe that needs no overlays to be checked.

    Warns of another base, VAE or image than the recipe was made with, and of fields that change nothing.

    Args:
        base: The base that will make the picture.
        recipe: The recipe as it was given.
        init_image: The image that the picture starts from, if there is one.

    Raises:
        BadRecipe: The recipe cannot be made with this base and image.
    """
    warn_of_another_base(base, recipe)
    warn_of_another_vae(base, recipe)
    warn_of_other_text_encoders(base, recipe)
    warn_of_another_opening(base, recipe)
    check_clip_skip(base, recipe)
    check_seed_size(base, recipe)
    check_init_image(recipe, init_image)
    if init_image is None:
        warn_of_unusual_size(base, recipe)
    check_edited_image(base, init_image)
    warn_of_unused_fields(recipe, init_image)
    warn_of_unused_image_conditions(base, recipe, init_image)


def warn_of_another_base(base: Base, recipe: Recipe) -> None:
    """Warn if a recipe was made with another base than this one."""
    recipe_hash = recipe.base_hash if base.hash else None
    has_same_hash = bool(recipe_hash) and base.hash.startswith(str(recipe_hash))
    has_other_hash = bool(recipe_hash) and not has_same_hash
    has_other_name = bool(recipe.base) and recipe.base != base.name
    if not has_other_hash and not has_other_name:
        return
    recipe_base = recipe.base or "a base"
    if recipe.base_hash:
        recipe_base += f" ({recipe.base_hash})"
    outcome = "only the name differs" if has_same_hash else "the picture will be different"
    warn(f"the recipe was made with {recipe_base}, but this base is {base.name} ({base.hash}): {outcome}")


def warn_of_another_vae(base: Base, recipe: Recipe) -> None:
    """Warn if a recipe was made with another VAE (autoencoder) than the base has now; other programs record a name."""
    if not recipe.vae and not recipe.vae_hash:
        return
    has_same_name = base.vae_source is not None and _vae_stem(base.vae_source.name) == _vae_stem(recipe.vae or "")
    if recipe.vae_hash == base.vae_hash if recipe.vae_hash else has_same_name:
        return
    recipe_vae = f"{recipe.vae} ({recipe.vae_hash})" if recipe.vae_hash else str(recipe.vae)
    current_vae = f"{base.vae_source.name} ({base.vae_hash})" if base.vae_source else "the base's own"
    warn(
        f"the recipe was made with the autoencoder {recipe_vae}, but this one is {current_vae}: give it with --vae "
        "(vae=)"
    )


def _vae_stem(name: str) -> str:
    """Return the name of a VAE's file without folders and suffixes."""
    file_name = re.split(r"[\\/]", name)[-1]
    return re.sub(r"(\.vae)?\.(safetensors|sft|ckpt|pth?|bin)$", "", file_name, flags=re.IGNORECASE).lower()


def warn_of_other_text_encoders(base: Base, recipe: Recipe) -> None:
    """Warn if a recipe was made with other text encoders than the base has now."""
    if not recipe.text_hash or recipe.text_hash == base.text_hash:
        return
    current = ", ".join(path.name for path in base.text_sources)
    current_text = f"{current} ({base.text_hash})" if current else "the base's own"
    warn(
        f"the recipe was made with the text encoder {recipe.text} ({recipe.text_hash}), but this one is "
        f"{current_text}: give it with --text (text=)"
    )


def warn_of_another_opening(base: Base, recipe: Recipe) -> None:
    """Warn if a recipe was made with a base that was opened with another prediction, schedule or kind of weights."""
    prediction = PREDICTION_WORDS[base.family.prediction]
    if recipe.prediction not in {None, prediction}:
        advice = f"prediction={recipe.prediction!r} (--prediction {recipe.prediction})"
        _warn_of_opening(f"that predicts {recipe.prediction}", f"predicts {prediction}", advice)
    if recipe.zero_snr not in {None, base.schedule.zero_snr}:
        flag = "--zero-snr" if recipe.zero_snr else "--no-zero-snr"
        words = ("with", "without") if recipe.zero_snr else ("without", "with")
        _warn_of_opening(
            f"{words[0]} a noise schedule to zero terminal SNR",
            f"is opened {words[1]} it",
            f"zero_snr={recipe.zero_snr} ({flag})",
        )
    if base.hash and recipe.base_hash and base.hash.startswith(recipe.base_hash):
        made_with = recipe.weights or "last"
        if made_with != base.open_options.weights:
            current = f"has the {base.open_options.weights} ones"
            _warn_of_opening(
                f"with the {made_with} weights of its file", current, f"weights={made_with!r} (--weights {made_with})"
            )


def _warn_of_opening(made_with: str, current: str, advice: str) -> None:
    warn(
        f"the recipe was made on a base {made_with}, but this one {current}, so the picture will be different: open it "
        f"with {advice}"
    )


def warn_of_tiny_limits(
    base: Base,
    recipes: Sequence[Recipe],
    library: Library | None = None,
    overlays: Mapping[str, Overlay] | None = None,
    *,
    init_image: InitImage | None = None,
) -> None:
    """Warn once of words in prompts, and of an init image, that are outside what the tiny base knows.

    Words in the names and trigger words of embeddings, and of overlays that the prompts call, do not count.

    Args:
        base: Any base; only the tiny one is judged.
        recipes: The recipes of the pictures.
        library: Where tags find overlays.
        overlays: Overlays by the names that tags call them by.
        init_image: The image to start from.
    """
    if base.hash != TINY_HASH:
        return
    fields = ("prompt", "negative", "hires_prompt", "hires_negative")
    prompts = list(dict.fromkeys(getattr(recipe, field) or "" for recipe in recipes for field in fields))
    words = words_unknown_to_tiny(TAG_PATTERN.sub(" ", prompt) for prompt in prompts)
    if words:
        taught = _taught_words(base, prompts, library, overlays or {})
        result = "unless an overlay teaches them, they change the picture at random"
        warn_of_words_unknown_to_tiny([word for word in words if word not in taught], result)
    if init_image is not None:
        warn_of_far_image(init_image.image)


def _taught_words(
    base: Base, prompts: Sequence[str], library: Library | None, overlays: Mapping[str, Overlay]
) -> set[str]:
    """Return the words of embeddings, and of the overlays that prompts call."""
    tags = " ".join(tag.group() for prompt in prompts for tag in TAG_PATTERN.finditer(prompt))
    names = [tags, *base.text.token_registry.names()]
    for entry in [] if library is None else library.entries():
        if entry.kind == "embedding" or entry.name.casefold() in tags.casefold():
            names += [entry.name, *entry.trigger_words]
    for name, overlay in overlays.items():
        if overlay.kind == "embedding" or name.casefold() in tags.casefold():
            names += [name, overlay.card.name, *overlay.card.trigger_words]
    return words_of(" ".join(names))


def check_clip_skip(base: Base, recipe: Recipe) -> None:
    """Refuse a clip skip beyond the first layer, and warn of one that this base ignores.

    SD2 and SDXL always use the layer that they were trained with, the last but one. Recipes for them often carry a
    clip_skip of 1 or 2, which is therefore not warned of.

    Raises:
        BadRecipe: The text encoder has fewer layers.
    """
    base.text.check_clip_skip(recipe.clip_skip)
    if recipe.clip_skip > 2 and not base.text.takes_clip_skip:
        warn(f"clip_skip {recipe.clip_skip} changes nothing: {base.name} always uses the layer it was trained with")


def warn_of_unusual_size(base: Base, recipe: Recipe) -> None:
    """Warn of a first pass that is much larger or smaller than the pictures that the base was trained on."""
    trained = base.family.default_pixels
    width, height = recipe.width or trained, recipe.height or trained
    larger, smaller = max(width, height) / trained, min(width, height) / trained
    usual = USUAL_SIZES_BY_FAMILY.get(base.family.name, USUAL_SIZES)
    is_too_long = larger > usual.longest and larger / smaller > usual.longest
    is_too_large = is_too_long or larger * smaller > usual.largest
    if not is_too_large and smaller >= usual.shortest:
        return
    if is_too_large:
        ratio, result = larger, "subjects usually appear twice; hires_scale makes large pictures from small ones"
    else:
        ratio, result = smaller, "pictures are usually cut off or blurred"
    warn(
        f"{base.name} was trained on pictures of {trained} x {trained} pixels, and {width} x {height} is {ratio:.2g} "
        f"times that along one side: {result}"
    )


def check_seed_size(base: Base, recipe: Recipe) -> None:
    """Refuse a seed_size of less than one latent.

    Raises:
        BadRecipe: A side is shorter than the pixels of one latent.
    """
    latent_factor = base.family.vae_scale_factor
    if recipe.seed_size and min(recipe.seed_size) < latent_factor:
        raise BadRecipe(f"the seed_size {recipe.seed_size} is below {latent_factor} pixels: use one such as 512x512")


def check_init_image(recipe: Recipe, init_image: InitImage | None) -> None:
    """Refuse a recipe whose init image or mask is missing, and warn if they are not those of the recipe.

    Raises:
        BadRecipe: The recipe records an image or mask that was not given, or has a second pass, which img2img has not.
    """
    if recipe.image_hash and init_image is None:
        raise BadRecipe(
            f"the recipe starts from an image ({recipe.image_hash}), which saved pictures do not contain: "
            "pass that image as init_image"
        )
    if recipe.mask_hash and not (init_image and init_image.mask):
        raise BadRecipe(
            f"the recipe has a mask ({recipe.mask_hash}), which saved pictures do not contain: "
            "pass it together with the init image"
        )
    if init_image is None:
        return
    _warn_of_another_image("image", recipe.image_hash, init_image.image_hash)
    _warn_of_another_image("mask", recipe.mask_hash, init_image.mask_hash)
    if recipe.hires_scale or recipe.hires_size:
        raise BadRecipe(
            "a second pass is for pictures that start from noise alone: "
            "leave out the image, or hires_scale and hires_size"
        )


def check_edited_image(base: Base, init_image: InitImage | None) -> None:
    """Refuse to make a picture with a pix2pix model from noise alone.

    Raises:
        BadRecipe: The base is such a model, and the init image is missing.
    """
    if base.image_condition == "pix2pix" and init_image is None:
        raise BadRecipe(
            f"{base.name} is a pix2pix model, which edits an image as the prompt says, and there is none: pass one as "
            "init_image (--image), or open a plain base"
        )


def warn_of_unused_fields(recipe: Recipe, init_image: InitImage | None) -> None:
    """Warn of fields that are set but change nothing."""
    unused_fields = {
        "an init image": () if init_image else IMG2IMG_FIELDS,
        "a mask": () if init_image and init_image.mask else MASK_FIELDS,
        "hires_scale or hires_size": () if recipe.has_second_pass else HIRES_FIELDS,
        "an init image or a second pass": () if init_image or recipe.has_second_pass else ("denoising",),
        "variation_strength": () if recipe.variation_strength else ("variation_seed",),
        "keep_layout": () if recipe.keep_layout else ("keep_layout_until",),
        "restore_faces": () if recipe.restore_faces else FACE_FIELDS,
    }
    for requirement, names in unused_fields.items():
        for name in names:
            if getattr(recipe, name) != RECIPE_DEFAULTS[name]:
                warn(f"{name} changes nothing without {requirement}")


def warn_of_unused_image_conditions(base: Base, recipe: Recipe, init_image: InitImage | None) -> None:
    """Warn of fields for inpainting and pix2pix models that change nothing.

    A1111's defaults are not warned of: older versions record them for every base.
    """
    if recipe.image_guidance not in {None, DEFAULT_IMAGE_GUIDANCE} and base.image_condition != "pix2pix":
        warn(f"image_guidance changes nothing: {base.name} is not a pix2pix model")
    if recipe.inpainting_mask_weight not in {None, DEFAULT_MASK_WEIGHT}:
        reads_image = init_image is not None or recipe.has_second_pass
        if base.image_condition != "inpainting":
            warn(f"inpainting_mask_weight changes nothing: {base.name} is not an inpainting model")
        elif not reads_image:
            warn("inpainting_mask_weight changes nothing without an init image or a second pass")
    if recipe.skip_negative_below and base.image_condition == "pix2pix" and recipe.image_guidance != 1:
        warn("skip_negative_below changes nothing with an image_guidance other than 1, as in A1111")


def warn_of_unused_ensd(sampler_name: str) -> None:
    """Warn that a sampler draws no noise whose seed ENSD could change; A1111 does not record ENSD then."""
    warn(f"ensd changes nothing: {sampler_name} draws no noise after the first")


def warn_of_other_overlays(recipe_hashes: Sequence[OverlayHash], current_hashes: Sequence[OverlayHash]) -> None:
    """Warn of overlays whose files are not those that a recipe was made with."""
    current_hash_by_overlay = {(entry.kind, entry.name.lower()): entry.hash for entry in current_hashes}
    for entry in recipe_hashes:
        current_hash = current_hash_by_overlay.get((entry.kind, entry.name.lower()))
        if current_hash and current_hash != entry.hash:
            recorded = f"the recipe was made with {entry.name} ({entry.hash})"
            warn(f"{recorded}, but the file found is another ({current_hash}): the picture may be different")


def check_hires_size(size: Resolution, latent_factor: int) -> None:
    """Refuse a size of the second pass that cannot be made.

    Raises:
        BadRecipe: A side is too short or too long.
    """
    if not all(latent_factor <= side <= MAX_SIDE_PIXELS for side in size):
        raise BadRecipe(
            f"the second pass would be {size} pixels, but sides must be {latent_factor} to {MAX_SIDE_PIXELS}: "
            "change hires_scale or hires_size"
        )


def _warn_of_another_image(what: str, recipe_hash: str | None, current_hash: str | None) -> None:
    """Warn if an image is not the one of the recipe; hashes of other programs have another length."""
    if recipe_hash and len(recipe_hash) == len(current_hash or "") and recipe_hash != current_hash:
        warn(
            f"the recipe started from another {what} ({recipe_hash}, this one is {current_hash}): "
            "the picture will be different"
        )
