"""X/Y/Z grids: pictures in which one thing changes by column, another by row, and a third by sheet."""

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import TypeVar, cast

from PIL import Image

from velatura.arguments import check_arguments
from velatura.base.pipeline import AnyBase, to_base
from velatura.compare.base_axis import (
    BASE_AXIS,
    OpenBase,
    base_label,
    check_base_values,
    generate_by_base,
    is_base_axis,
    open_base_value,
    refuse_second_base,
)
from velatura.errors import BadRecipe, UnknownName
from velatura.library import Library
from velatura.overlays.overlay import Overlay
from velatura.prompts.axis_values import reorder_words, replace_words
from velatura.prompts.prompt_matrix import PromptMatrix
from velatura.prompts.styles import Style, apply_styles
from velatura.prompts.tags import TAG_PATTERN
from velatura.sampling.generate import OnSamplingStep, Picture, generate_many
from velatura.sampling.image_grid import draw_grid, stack_grids
from velatura.sampling.masks import InitImage
from velatura.sampling.recipe.fields import RANDOM_SEED_COUNT
from velatura.sampling.recipe.infotext import write_infotext
from velatura.sampling.recipe.metadata import save_with_infotext
from velatura.sampling.recipe.recipe import RECORDED_FIELDS, Recipe, refuse_recorded_field

GridItem = TypeVar("GridItem")
Axis = tuple[str, Sequence[object]]  # the name of what changes, and its values

REPLACE_AXIS = "replace"  # its first value is searched for in the prompts: A1111's Prompt S/R
ORDER_AXIS = "order"  # its values are words of the prompt in another order: A1111's Prompt order
STYLE_AXIS = "style"  # its values are names of styles: A1111's Styles
NO_STYLE = {"", "none"}
MATRIX_AXIS = "with"  # an axis of a prompt matrix


@dataclass(frozen=True)
class Grid:
    """A grid of pictures.

    Attributes:
        sheets: One sheet for each value of z, each a sequence of rows.
        recipe: The recipe of the grid, without what its axes change.
        x, y, z: The axes of columns, rows and sheets.
    """

    sheets: Sequence[Sequence[Sequence[Picture]]]
    recipe: Recipe
    x: Axis
    y: Axis | None = None
    z: Axis | None = None

    @property
    def rows(self) -> Sequence[Sequence[Picture]]:
        """Rows of all sheets."""
        return [row for sheet in self.sheets for row in sheet]

    @cached_property
    def image(self) -> Image.Image:
        """Whole grid as one image, with labels."""
        columns, rows = axis_labels(self.x), axis_labels(self.y) if self.y else ()
        sheet_images = [
            draw_grid([[picture.image for picture in row] for row in sheet], columns=columns, rows=rows)
            for sheet in self.sheets
        ]
        return stack_grids(sheet_images, axis_labels(self.z)) if self.z else sheet_images[0]

    def infotext(self) -> str:
        """Return the first picture's recipe and the axes as an infotext, with the fields of A1111's X/Y/Z plot.

        As in A1111, the prompt and settings are those of the first picture, so that they make a picture of the grid:
        the recipe of the whole grid may have words in braces, or a seed that an axis replaced.
        """
        first = self.rows[0][0].recipe
        fields = first.fields() | {"Script": "X/Y/Z plot"}
        for letter, axis in (("X", self.x), ("Y", self.y), ("Z", self.z)):
            if axis:
                fields |= {f"{letter} Type": axis[0], f"{letter} Values": ", ".join(map(_format_value, axis[1]))}
        return write_infotext(first.prompt, first.negative, fields)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the image as .png, .jpg or .webp with its infotext in it, and return the path."""
        path = Path(path).expanduser()
        save_with_infotext(self.image, path, self.infotext())
        return path


@check_arguments()
def grid(
    base: AnyBase | None,
    recipe: Recipe | str,
    *,
    x: Axis | None = None,
    y: Axis | None = None,
    z: Axis | None = None,
    matrix: bool = False,
    library: Library | None = None,
    overlays: Mapping[str, Overlay] | None = None,
    source: InitImage | None = None,
    lenient: bool = False,
    styles: Mapping[str, Style] | None = None,
    open_base: OpenBase | None = None,
    on_step: OnSamplingStep | None = None,
) -> Grid:
    """Generate a grid of pictures. If the recipe has no seed, one is drawn for all pictures.

    Args:
        base: The base; None if an axis goes through bases.
        recipe: The recipe that all pictures share, or its prompt.
        x: The axis that changes from column to column: the name of a field of Recipe and its values,
            ("seed", [7, 8]); a word in braces in the prompt, ("s", [0, 0.5, 1]) for "a house <hypernet:inca:{s}>";
            ("replace", ["house", "boat", "tree"]), in which the first value is in the prompts and is replaced by the
            others; ("order", [("a", "b"), ("b", "a")]), in which words change places; ("base", ["sd15", "anime.ckpt"])
            with names in the library, paths, or bases, of which one at a time is open; or ("style", ["None", "ink"])
            with names of styles.
        y, z: The axes that change from row to row, and from sheet to sheet.
        matrix: Instead of axes, combine the parts of the prompt "a house|at night|in snow" behind its bars.
        library: Finds the overlays that prompts name.
        overlays: Overlays by the names that prompts use.
        source: An initial image for img2img or inpainting.
        lenient: Warn of what is wrong in a prompt instead of raising an error.
        styles: Styles by name, for an axis of styles.
        open_base: Opens the bases that an axis names, by default with the options of `velatura.open_base`.
        on_step: Called after each step.

    Raises:
        BadRecipe: No axis is given, an axis has no values, or it changes nothing; or a base is given beside an axis
            of bases.
        UnknownName: A value is the name of a sampler, overlay, base, style or the like that does not exist.
        BadFile: A base of an axis does not exist.
    """
    recipe = Recipe(prompt=recipe) if isinstance(recipe, str) else recipe
    recipe = recipe.replace(seed=_draw_seed(recipe.seed), variation_seed=_draw_variation_seed(recipe))
    x, y, z = (axis and _name_base_axis(_draw_seeds(axis), recipe) for axis in (x, y, z))
    axes = [] if matrix else [axis for axis in (z, y, x) if axis is not None]
    base_axes = [number for number, (name, _) in enumerate(axes) if name == BASE_AXIS]
    if len(base_axes) > 1:
        raise BadRecipe("two axes of the grid go through bases: give all bases in one of them")
    if base_axes:
        refuse_second_base(base)
        check_base_values(axes[base_axes[0]][1], library)
        recipe = recipe.replace(base=None, base_hash=None)
    else:
        base = to_base(base)
    if matrix:
        x, y, recipes = _matrix_recipes(recipe)
    elif x is not None:
        recipes = _axis_recipes(recipe, axes, styles or {})
    else:
        raise BadRecipe("a grid needs an axis: give x, as in x=('seed', [7, 8, 9])")

    def generate(base: AnyBase, recipes: Sequence[Recipe], on_step: OnSamplingStep | None) -> Sequence[Picture]:
        return generate_many(
            base, recipes, library=library, overlays=overlays, init_image=source, lenient=lenient, on_step=on_step
        )

    if base_axes:
        values, indexes = axes[base_axes[0]][1], _value_indexes(axes, base_axes[0])
        open_value = open_base or partial(open_base_value, library=library)
        pictures = generate_by_base(values, recipes, indexes, generate=generate, open_value=open_value, on_step=on_step)
        x, y, z = _label_bases(x), y and _label_bases(y), z and _label_bases(z)
    else:
        pictures = generate(cast("AnyBase", base), recipes, on_step)
    rows = _split(pictures, len(x[1]))
    return Grid(_split(rows, len(y[1]) if y else 1), _record(recipe, pictures, has_bases=bool(base_axes)), x, y, z)


def _record(recipe: Recipe, pictures: Sequence[Picture], *, has_bases: bool) -> Recipe:
    """Return the grid's recipe with what its pictures record, except for bases that an axis changes."""
    fields = {"version"} if has_bases else {"width", "height", "base", "base_hash", "version"}
    recorded = pictures[0].recipe.model_dump(include=fields)
    recorded["overlay_hashes"] = tuple(
        dict.fromkeys(file_hash for picture in pictures for file_hash in picture.recipe.overlay_hashes)
    )
    return recipe.replace(**recorded)


def _name_base_axis(axis: Axis, recipe: Recipe) -> Axis:
    return (BASE_AXIS, axis[1]) if is_base_axis(axis[0], recipe) else axis


def _label_bases(axis: Axis) -> Axis:
    """Return an axis with the names of its bases, which it would keep in memory."""
    return (axis[0], [base_label(value) for value in axis[1]]) if axis[0] == BASE_AXIS else axis


def _value_indexes(axes: Sequence[Axis], number: int) -> list[int]:
    """Return, for all combinations of the axes' values in their order, the index of the value of one axis."""
    return [indexes[number] for indexes in product(*(range(len(values)) for _, values in axes))]


def axis_labels(axis: Axis) -> list[str]:
    """Return the labels of an axis: the values with its name, or prompts without their tags."""
    name, values = axis
    if name in {"prompt", "negative"}:
        return [TAG_PATTERN.sub("", str(value)).strip(" ,") or "(empty)" for value in values]
    if name == ORDER_AXIS:
        return [", ".join(cast("Sequence[str]", value)) for value in values]
    if name in {REPLACE_AXIS, MATRIX_AXIS}:
        return [_format_value(value) or "(nothing)" for value in values]
    return [f"{name} {_format_value(value)}" for value in values]


def _axis_recipes(recipe: Recipe, axes: Sequence[Axis], styles: Mapping[str, Style]) -> list[Recipe]:
    """Return the recipes of all combinations of the axes' values; the last axis changes fastest."""
    for name, values in axes:
        if not values:
            raise BadRecipe(f"the axis {name!r} has no values; give some, such as {name}=1,2,3")
    combinations = product(*(axis[1] for axis in axes))
    return [_apply_changes(recipe, list(zip(axes, values, strict=True)), styles) for values in combinations]


def _draw_seeds(axis: Axis) -> Axis:
    """Return the axis with random seeds in place of missing ones, so that all cells of a value share one."""
    name, values = axis
    return (name, [_draw_seed(value) for value in values]) if name in {"seed", "variation_seed"} else axis


def _draw_seed(seed: object) -> object:
    return secrets.randbelow(RANDOM_SEED_COUNT) if seed in (None, -1, "-1", "") else seed


def _draw_variation_seed(recipe: Recipe) -> object:
    return _draw_seed(recipe.variation_seed) if recipe.variation_strength else recipe.variation_seed


def _matrix_recipes(recipe: Recipe) -> tuple[Axis, Axis | None, list[Recipe]]:
    """Return the axes and recipes of a prompt matrix."""
    matrix = PromptMatrix.parse(recipe.prompt)
    if not matrix.options:
        raise BadRecipe('a prompt matrix needs parts to combine: write them behind bars, "a house|at night|in snow"')
    x = (MATRIX_AXIS, [" + ".join(options) or "-" for options in matrix.columns()])
    y = (MATRIX_AXIS, [" + ".join(options) or "-" for options in matrix.rows()]) if matrix.row_options else None
    return x, y, [recipe.replace(prompt=prompt) for row in matrix.prompts() for prompt in row]


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
    search = _format_value(values[0]) if name == REPLACE_AXIS else placeholder
    prompt, negative = replace_words(recipe.prompt, recipe.negative, search, _format_value(value))
    return recipe.replace(prompt=prompt, negative=negative)


def _split(items: Sequence[GridItem], size: int) -> list[Sequence[GridItem]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _format_value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
