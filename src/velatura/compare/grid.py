"""Pictures side by side: one thing changed by column, another by row, a third by sheet."""

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TypeVar, cast

from PIL import Image

from velatura.base.base import Base
from velatura.errors import BadRecipe
from velatura.library import Library
from velatura.overlays.overlay import Overlay
from velatura.prompts.axis_values import reorder_words, replace_words
from velatura.prompts.prompt_matrix import PromptMatrix
from velatura.prompts.tags import TAG_PATTERN
from velatura.sampling.generate import OnSamplingStep, Picture, generate_many
from velatura.sampling.image_grid import draw_grid, stack_grids
from velatura.sampling.job import RANDOM_SEED_COUNT
from velatura.sampling.masks import InitImage
from velatura.sampling.recipe.infotext import write_infotext
from velatura.sampling.recipe.metadata import save_with_infotext
from velatura.sampling.recipe.recipe import RECORDED_FIELDS, Recipe, refuse_recorded_field

GridItem = TypeVar("GridItem")
Axis = tuple[str, Sequence[object]]  # what changes, and the values it takes

REPLACE_AXIS = "replace"  # an axis whose first value is searched for in the prompts, the webui's Prompt S/R
ORDER_AXIS = "order"  # one whose values are words of the prompt in another order, the webui's Prompt order
MATRIX_AXIS = "with"  # one of a matrix


@dataclass(frozen=True)
class Grid:
    """Sheets of rows of pictures, and the recipe and axes they came from: one sheet for each value of z."""

    sheets: Sequence[Sequence[Sequence[Picture]]]
    recipe: Recipe
    x: Axis
    y: Axis | None = None
    z: Axis | None = None

    @property
    def rows(self) -> Sequence[Sequence[Picture]]:
        """The rows of all sheets, one below the other."""
        return [row for sheet in self.sheets for row in sheet]

    @cached_property
    def image(self) -> Image.Image:
        """The whole grid as one picture."""
        columns, rows = axis_labels(self.x), axis_labels(self.y) if self.y else ()
        sheet_images = [
            draw_grid([[picture.image for picture in row] for row in sheet], columns=columns, rows=rows)
            for sheet in self.sheets
        ]
        return stack_grids(sheet_images, axis_labels(self.z)) if self.z else sheet_images[0]

    def infotext(self) -> str:
        """The recipe and the axes, in the fields in which the webui's X/Y/Z plot writes them."""
        fields = self.recipe.fields() | {"Script": "X/Y/Z plot"}
        for letter, axis in (("X", self.x), ("Y", self.y), ("Z", self.z)):
            if axis:
                fields |= {f"{letter} Type": axis[0], f"{letter} Values": ", ".join(map(_format_value, axis[1]))}
        return write_infotext(self.recipe.prompt, self.recipe.negative, fields)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as .png, .jpg or .webp with its recipe inside, and give the path back."""
        path = Path(path).expanduser()
        save_with_infotext(self.image, path, self.infotext())
        return path


def grid(
    base: Base,
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
    on_step: OnSamplingStep | None = None,
) -> Grid:
    """Make a grid of pictures: x changes from column to column, y from row to row, z from sheet to sheet.

    An axis is named for a field of Recipe, ("seed", [7, 8]), or for a word that stands in braces in the prompt,
    ("s", [0, 0.5, 1]) for "a house <hypernet:inca:{s}>"; or it is ("replace", ["house", "boat", "tree"]), where the
    first value stands in the prompts and is replaced by each, or ("order", [("a", "b"), ("b", "a")]), where words
    change places. matrix: instead of axes, the prompt "a house|at night|in snow" with all combinations of what stands
    behind bars. source: an image to begin from. Where the seed is open it is drawn once for all.
    """
    recipe = Recipe(prompt=recipe) if isinstance(recipe, str) else recipe
    recipe = recipe.replace(seed=_draw_seed(recipe.seed), variation_seed=_draw_variation_seed(recipe))
    x, y, z = (axis and _draw_seeds(axis) for axis in (x, y, z))
    if matrix:
        x, y, recipes = _matrix_recipes(recipe)
    elif x is not None:
        recipes = _axis_recipes(recipe, [axis for axis in (z, y, x) if axis is not None])
    else:
        raise BadRecipe("a grid without an axis has one picture: give x, as in x=('seed', [7, 8, 9])")
    pictures = generate_many(
        base, recipes, library=library, overlays=overlays, init_image=source, lenient=lenient, on_step=on_step
    )
    recorded = pictures[0].recipe.model_dump(include={"width", "height", "base", "base_hash", "version"})
    recorded["overlay_hashes"] = tuple(
        dict.fromkeys(file_hash for picture in pictures for file_hash in picture.recipe.overlay_hashes)
    )
    rows = _split(pictures, len(x[1]))
    return Grid(_split(rows, len(y[1]) if y else 1), recipe.replace(**recorded), x, y, z)


def axis_labels(axis: Axis) -> list[str]:
    """What stands over a column: the value with its name, or a prompt without its tags."""
    name, values = axis
    if name in {"prompt", "negative"}:
        return [TAG_PATTERN.sub("", str(value)).strip(" ,") or "(empty)" for value in values]
    if name == ORDER_AXIS:
        return [", ".join(cast("Sequence[str]", value)) for value in values]
    if name in {REPLACE_AXIS, MATRIX_AXIS}:
        return [_format_value(value) or "(nothing)" for value in values]
    return [f"{name} {_format_value(value)}" for value in values]


def _axis_recipes(recipe: Recipe, axes: Sequence[Axis]) -> list[Recipe]:
    """The recipes of all combinations of the axes' values, the last axis changing fastest."""
    for name, values in axes:
        if not values:
            raise BadRecipe(f"the axis {name!r} has no values; give some, such as {name}=1,2,3")
    return [
        _apply_changes(recipe, changes) for changes in product(*([(axis, value) for value in axis[1]] for axis in axes))
    ]


def _draw_seeds(axis: Axis) -> Axis:
    """The axis with open seeds drawn: each of its values is one seed for all cells."""
    name, values = axis
    return (name, [_draw_seed(value) for value in values]) if name in {"seed", "variation_seed"} else axis


def _draw_seed(seed: object) -> object:
    return secrets.randbelow(RANDOM_SEED_COUNT) if seed in (None, -1, "-1", "") else seed


def _draw_variation_seed(recipe: Recipe) -> object:
    return _draw_seed(recipe.variation_seed) if recipe.variation_strength else recipe.variation_seed


def _matrix_recipes(recipe: Recipe) -> tuple[Axis, Axis | None, list[Recipe]]:
    """The axes and recipes of a prompt whose parts are combined."""
    matrix = PromptMatrix.parse(recipe.prompt)
    if not matrix.options:
        raise BadRecipe('a matrix needs parts to combine: write them behind bars, "a house|at night|in snow"')
    column_labels, row_labels = (
        [" + ".join(options) or "-" for options in sides] for sides in (matrix.columns(), matrix.rows())
    )
    recipes = [recipe.replace(prompt=prompt) for row in matrix.prompts() for prompt in row]
    return (MATRIX_AXIS, column_labels), (MATRIX_AXIS, row_labels) if matrix.row_options else None, recipes


def _apply_changes(recipe: Recipe, changes: Sequence[tuple[Axis, object]]) -> Recipe:
    """The recipe with fields set first, and then words replaced and those in braces filled in."""
    for (name, _), _value in changes:
        refuse_recorded_field(name)
    recipe = recipe.replace(**{name: value for (name, _), value in changes if name in Recipe.model_fields})
    for (name, values), value in changes:
        if name in Recipe.model_fields:
            continue
        recipe = _rewrite_prompt(recipe, name, values, value)
    return recipe


def _rewrite_prompt(recipe: Recipe, name: str, values: Sequence[object], value: object) -> Recipe:
    """The recipe with words of its prompts changed as an axis says."""
    if name == ORDER_AXIS:
        words = cast("Sequence[str]", value)
        return recipe.replace(prompt=reorder_words(recipe.prompt, words))
    placeholder = f"{{{name}}}"
    if name != REPLACE_AXIS and placeholder not in recipe.prompt + recipe.negative:
        fields = ", ".join(field for field in Recipe.model_fields if field not in RECORDED_FIELDS)
        raise BadRecipe(f"nothing to change by {name!r}: write {placeholder} into the prompt, or name one of {fields}")
    search = _format_value(values[0]) if name == REPLACE_AXIS else placeholder
    prompt, negative = replace_words(recipe.prompt, recipe.negative, search, _format_value(value))
    return recipe.replace(prompt=prompt, negative=negative)


def _split(items: Sequence[GridItem], size: int) -> list[Sequence[GridItem]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _format_value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
