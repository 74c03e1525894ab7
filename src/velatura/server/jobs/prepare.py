"""Settle requests before they are queued: draw seeds, store images, check limits."""

from __future__ import annotations

from velatura.sampling.recipe.expand import draw_missing_seed, increment_seeds
from velatura.sampling.recipe.recipe import Recipe
from velatura.server.errors import ApiError
from velatura.server.inputs import InputStore
from velatura.server.jobs.requests import GridRequest, PaintRequest
from velatura.server.settings import ServerSettings


def prepare_paint(request: PaintRequest, settings: ServerSettings, inputs: InputStore) -> PaintRequest:
    """Return a request with one recipe for each picture, each with its seed, and with its images stored."""
    picture_count = request.count * len(request.recipes)
    if picture_count > settings.max_pictures:
        raise ApiError(
            413,
            "too_many_pictures",
            f"{picture_count} pictures are asked for, {settings.max_pictures} at most",
            "count",
        )
    recipes = [
        draw_missing_seed(seeded) for recipe in request.recipes for seeded in increment_seeds(recipe, request.count)
    ]
    for recipe in recipes:
        check_size(recipe, settings)
    return request.model_copy(update={"recipes": tuple(recipes), "count": 1, **_stored_images(request, inputs)})


def prepare_grid(request: GridRequest, settings: ServerSettings, inputs: InputStore) -> GridRequest:
    """Return a request for a grid with its seed drawn, and with its images stored."""
    axes = [axis for axis in (request.x, request.y, request.z) if axis]
    cells = 1
    for axis in axes:
        cells *= len(axis.values)
    if request.matrix:
        cells = 2 ** request.recipe.prompt.count("|")
    if cells > settings.max_pictures:
        raise ApiError(413, "too_many_pictures", f"the grid has {cells} pictures, {settings.max_pictures} at most", "x")
    check_size(request.recipe, settings)
    for axis in axes:
        for value in axis.values if axis.name in {"width", "height", "hires_scale", "hires_size"} else ():
            check_size(request.recipe.replace(**{axis.name: value}), settings)
    recipe = draw_missing_seed(request.recipe)
    return request.model_copy(update={"recipe": recipe, **_stored_images(request, inputs)})


def check_size(recipe: Recipe, settings: ServerSettings) -> None:
    """Refuse a picture of more pixels than the server makes.

    Raises:
        ApiError: Width times height is too large, in the first pass or in the second.
    """
    width, height = recipe.width or 0, recipe.height or 0
    sides = max(width, 512) * max(height, 512) if width or height else 0
    scale = recipe.hires_scale or 1
    second = recipe.hires_size or (0, 0)
    pixels = max(width * height, sides * scale * scale if scale > 1 else 0, max(second) * (min(second) or max(second)))
    if pixels > settings.max_picture_pixels:
        raise ApiError(
            413,
            "too_large",
            f"the picture would have {round(pixels):,} pixels: {settings.max_picture_pixels:,} is the most",
            "width",
        )


def _stored_images(request: PaintRequest | GridRequest, inputs: InputStore) -> dict[str, str]:
    """Return references to the images of a request, which are stored."""
    if request.mask is not None and request.image is None:
        raise ApiError(422, "bad_recipe", "a mask is given without an image: give the image too", "mask")
    images = {"image": request.image, "mask": request.mask}
    return {field: inputs.add_text(text, field) for field, text in images.items() if text is not None}
