"""The cells of a grid: what its axes mean, and the recipe of each cell."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import cast

from velatura.errors import BadRecipe, UnknownName
from velatura.prompts.axis_values import reorder_words, replace_words
from velatura.prompts.prompt_matrix import PromptMatrix
from velatura.prompts.styles import Style, apply_styles
from velatura.prompts.tags import TAG_PATTERN
from velatura.sampling.recipe.grid_fields import format_axis_value
from velatura.sampling.recipe.recipe import RECORDED_FIELDS, Recipe, refuse_recorded_field

Axis = tuple[str, Sequence[object]]  # the name of what changes, and its values

BASE_AXIS, CHECKPOINT_AXIS = "base", "checkpoint"  # the second is A1111's word for the first
REPLACE_AXIS = "replace"  # its first value is searched for in the prompts: A1111's Prompt S/R
ORDER_AXIS = "order"  # its values are words of the prompt in another order: A1111's Prompt order
STYLE_AXIS = "style"  # its values are names of styles: A1111's Styles
NO_STYLE = {"", "none"}
MATRIX_AXIS = "with"  # an axis of a prompt matrix


def is_base_axis(name: str, recipe: Recipe) -> bool:
    """Return True if an axis of this name goes through bases, False if its name is a word in braces of the prompts."""
    return name == BASE_AXIS or (name == CHECKPOINT_AXIS and "{checkpoint}" not in recipe.prompt + recipe.negative)


def name_base_axis(axis: Axis, recipe: Recipe) -> Axis:
    """Return the axis, under the name BASE_AXIS if it goes through bases."""
    return (BASE_AXIS, axis[1]) if is_base_axis(axis[0], recipe) else axis


def cell_recipes(
    recipe: Recipe, axes: Iterable[Axis | None], *, matrix: bool = False, styles: Mapping[str, Style] | None = None
) -> list[Recipe]:
    """Return the recipes of all cells of a grid, before a base is open.

    Args:
        recipe: The recipe that all cells share.
        axes: The axes of sheets, rows and columns; None for one that the grid does not have.
        matrix: Combine the parts of the prompt behind its bars instead.
        styles: Styles by name, for an axis of styles.

    Raises:
        BadRecipe: An axis has no values, or changes nothing.
        UnknownName: A value is the name of a style that does not exist.
    """
    if matrix:
        return matrix_recipes(recipe)[2]
    return axis_recipes(recipe, [name_base_axis(axis, recipe) for axis in axes if axis is not None], styles or {})


def axis_recipes(recipe: Recipe, axes: Sequence[Axis], styles: Mapping[str, Style]) -> list[Recipe]:
    """Return the recipes of all combinations of the axes' values; the last axis changes fastest."""
    for name, values in axes:
        if not values:
            raise BadRecipe(f"the axis {name!r} has no values; give some, such as {name}=1,2,3")
    combinations = product(*(axis[1] for axis in axes))
    return [_apply_changes(recipe, list(zip(axes, values, strict=True)), styles) for values in combinations]


def matrix_recipes(recipe: Recipe) -> tuple[Axis, Axis | None, list[Recipe]]:
    """Return the axes and recipes of a prompt matrix."""
    matrix = PromptMatrix.parse(recipe.prompt)
    if not matrix.options:
        raise BadRecipe('a prompt matrix needs parts to combine: write them behind bars, "a house|at night|in snow"')
    x = (MATRIX_AXIS, [" + ".join(options) or "-" for options in matrix.columns()])
    y = (MATRIX_AXIS, [" + ".join(options) or "-" for options in matrix.rows()]) if matrix.row_options else None
    return x, y, [recipe.replace(prompt=prompt) for row in matrix.prompts() for prompt in row]


def axis_labels(axis: Axis) -> list[str]:
    """Return the labels of an axis: the values with its name, or prompts without their tags."""
    name, values = axis
    if name in {"prompt", "negative"}:
        return [TAG_PATTERN.sub("", str(value)).strip(" ,") or "(empty)" for value in values]
    if name == ORDER_AXIS:
        return [", ".join(cast("Sequence[str]", value)) for value in values]
    if name in {REPLACE_AXIS, MATRIX_AXIS}:
        return [label or "(nothing)" for label in _shorten_numbers(values)]
    return [f"{name} {label}" for label in _shorten_numbers(values)]


def _shorten_numbers(values: Sequence[object]) -> list[str]:
    """Return values as texts, numbers with six digits unless those do not tell them apart."""
    texts = [format_axis_value(value) for value in values]
    short = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return short if len(set(short)) == len(set(texts)) else texts


def _apply_changes(recipe: Recipe, changes: Sequence[tuple[Axis, object]], styles: Mapping[str, Style]) -> Recipe:
    """Return the recipe with its fields set first, then with styles, and then the words of its prompts replaced."""
    changes = [(axis, value) for axis, value in changes if axis[0] != BASE_AXIS]
    for (name, _), _value in changes:
        refuse_recorded_field(name)
    recipe = recipe.replace(**{name: value for (name, _), value in changes if name in Recipe.model_fields})
    rewrites = [(axis, value) for axis, value in changes if axis[0] not in Recipe.model_fields]
    if styles and "{style}" not in recipe.prompt + recipe.negative:
        for (name, _), value in rewrites:
            recipe = _add_style(recipe, str(value), styles) if name == STYLE_AXIS else recipe
        rewrites = [(axis, value) for axis, value in rewrites if axis[0] != STYLE_AXIS]
    for (name, values), value in rewrites:
        recipe = _rewrite_prompt(recipe, name, values, value)
    return recipe


def _add_style(recipe: Recipe, name: str, styles: Mapping[str, Style]) -> Recipe:
    """Return the recipe with a style in its prompts; the names "None" and "" add none."""
    if name not in styles and name.casefold() in NO_STYLE:
        return recipe
    if name not in styles:
        raise UnknownName.with_suggestions("style", name, styles)
    prompt, negative = apply_styles(recipe.prompt, recipe.negative, [styles[name]])
    return recipe.replace(prompt=prompt, negative=negative)


def _rewrite_prompt(recipe: Recipe, name: str, values: Sequence[object], value: object) -> Recipe:
    """Return the recipe with words of its prompts changed by one value of an axis."""
    if name == ORDER_AXIS:
        words = cast("Sequence[str]", value)
        return recipe.replace(prompt=reorder_words(recipe.prompt, words))
    placeholder = f"{{{name}}}"
    if name != REPLACE_AXIS and placeholder not in recipe.prompt + recipe.negative:
        fields = ", ".join(field for field in Recipe.model_fields if field not in RECORDED_FIELDS)
        raise BadRecipe(
            f"the axis {name!r} changes nothing: write {placeholder} into the prompt, or choose one of {fields}"
        )
    search = format_axis_value(values[0]) if name == REPLACE_AXIS else placeholder
    prompt, negative = replace_words(recipe.prompt, recipe.negative, search, format_axis_value(value))
    return recipe.replace(prompt=prompt, negative=negative)
