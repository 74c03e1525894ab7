"""Make several recipes of one: with increasing seeds, and with templates in prompts drawn by their seeds."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from secrets import randbelow

from velatura.sampling.recipe.fields import RANDOM_SEED_COUNT
from velatura.sampling.recipe.recipe import TEMPLATE_BY_PROMPT, Recipe

TEMPLATE_FIELDS = ("prompt", "hires_prompt", "negative", "hires_negative")  # in which wildcards are drawn


def draw_missing_seed(recipe: Recipe) -> Recipe:
    """Return the recipe with a random seed if it has none."""
    return recipe.replace(seed=randbelow(RANDOM_SEED_COUNT)) if recipe.seed is None else recipe


def increment_seeds(recipe: Recipe, count: int) -> Iterator[Recipe]:
    """Yield `count` recipes with increasing seeds; variations share one seed, which is drawn here if it is not set.

    Without a seed, all recipes are left without one. With a variation, the variation seed increases, as in A1111.
    """
    seed_field = "variation_seed" if recipe.variation_strength else "seed"
    if seed_field == "variation_seed" and count > 1:
        recipe = draw_missing_seed(recipe)
    first_seed = getattr(recipe, seed_field)
    for offset in range(count):
        yield recipe if first_seed is None else recipe.replace(**{seed_field: first_seed + offset})


def draw_templates(recipe: Recipe, folder: str | PathLike[str] | None) -> Recipe:
    """Return a recipe whose prompts have what their wildcards and variants stand for, drawn by its seed.

    Args:
        recipe: The recipe. Where a template is drawn, a missing seed is drawn too, so that the recipe replays. The
            templates of the prompt and of the negative prompt are recorded in it.
        folder: The folder of the wildcard files. None draws nothing.

    Raises:
        BadFile, BadPrompt, UnknownName: As `expand_template`.
    """
    from velatura.prompts.wildcards import expand_template, find_template

    if folder is None:
        return recipe
    templates = {field: text for field in TEMPLATE_FIELDS if find_template(text := getattr(recipe, field))}
    if not templates:
        return recipe
    recipe = draw_missing_seed(recipe)
    assert recipe.seed is not None
    folder = Path(folder).expanduser()
    # a negative prompt draws for itself; the prompt of the hires pass draws what the first pass drew
    drawn = {
        field: expand_template(text, folder, recipe.seed + ("negative" in field)) for field, text in templates.items()
    }
    recorded = {TEMPLATE_BY_PROMPT[field]: text for field, text in templates.items() if field in TEMPLATE_BY_PROMPT}
    return recipe.replace(**drawn, **recorded)
