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
from velatura.prompts.grammar import TAG
from velatura.prompts.matrix import Matrix
from velatura.prompts.replacing import reordered, replaced
from velatura.sampling.carriers import save_with
from velatura.sampling.generate import OnStep, Picture, generate_many
from velatura.sampling.infotext import write_infotext
from velatura.sampling.masks import Source
from velatura.sampling.order import SEEDS
from velatura.sampling.recipe import RECORDED, Recipe, refuse_recorded
from velatura.sampling.sheet import draw_grid, stacked

Thing = TypeVar("Thing")
Axis = tuple[str, Sequence[object]]  # what changes, and the values it takes

REPLACE = "replace"  # an axis whose first value is searched for in the prompts, the webui's Prompt S/R
ORDER = "order"  # one whose values are words of the prompt in another order, the webui's Prompt order
COMBINED = "with"  # one of a matrix


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
        columns, rows = labels(self.x), labels(self.y) if self.y else ()
        drawn = [
            draw_grid([[picture.image for picture in row] for row in sheet], columns=columns, rows=rows)
            for sheet in self.sheets
        ]
        return stacked(drawn, labels(self.z)) if self.z else drawn[0]

    def infotext(self) -> str:
        """The recipe and the axes, in the fields in which the webui's X/Y/Z plot writes them."""
        fields = self.recipe.fields() | {"Script": "X/Y/Z plot"}
        for letter, axis in (("X", self.x), ("Y", self.y), ("Z", self.z)):
            if axis:
                fields |= {f"{letter} Type": axis[0], f"{letter} Values": ", ".join(map(_shown, axis[1]))}
        return write_infotext(self.recipe.prompt, self.recipe.negative, fields)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as .png, .jpg or .webp with its recipe inside, and give the path back."""
        path = Path(path).expanduser()
        save_with(self.image, path, self.infotext())
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
    source: Source | None = None,
    lenient: bool = False,
    on_step: OnStep | None = None,
) -> Grid:
    """Make a grid of pictures: x changes from column to column, y from row to row, z from sheet to sheet.

    An axis is named for a field of Recipe, ("seed", [7, 8]), or for a word that stands in braces in the prompt,
    ("s", [0, 0.5, 1]) for "a house <hypernet:inca:{s}>"; or it is ("replace", ["house", "boat", "tree"]), where the
    first value stands in the prompts and is replaced by each, or ("order", [("a", "b"), ("b", "a")]), where words
    change places. matrix: instead of axes, the prompt "a house|at night|in snow" with all combinations of what stands
    behind bars. source: an image to begin from. Where the seed is open it is drawn once for all.
    """
    recipe = Recipe(prompt=recipe) if isinstance(recipe, str) else recipe
    recipe = recipe.but(seed=_drawn(recipe.seed), variation_seed=_drawn_if_varied(recipe))
    x, y, z = (axis and _with_seeds_drawn(axis) for axis in (x, y, z))
    if matrix:
        x, y, wanted = _matrix(recipe)
    elif x is not None:
        wanted = _crossed(recipe, [axis for axis in (z, y, x) if axis is not None])
    else:
        raise BadRecipe("a grid without an axis has one picture: give x, as in x=('seed', [7, 8, 9])")
    pictures = generate_many(
        base, wanted, library=library, overlays=overlays, source=source, lenient=lenient, on_step=on_step
    )
    filled_in = pictures[0].recipe.model_dump(include={"width", "height", "base", "base_hash", "version"})
    filled_in["overlay_hashes"] = tuple(dict.fromkeys(each for made in pictures for each in made.recipe.overlay_hashes))
    rows = _split(pictures, len(x[1]))
    return Grid(_split(rows, len(y[1]) if y else 1), recipe.but(**filled_in), x, y, z)


def labels(axis: Axis) -> list[str]:
    """What stands over a column: the value with its name, or a prompt without its tags."""
    name, values = axis
    if name in {"prompt", "negative"}:
        return [TAG.sub("", str(value)).strip(" ,") or "(empty)" for value in values]
    if name == ORDER:
        return [", ".join(cast("Sequence[str]", value)) for value in values]
    if name in {REPLACE, COMBINED}:
        return [_shown(value) or "(nothing)" for value in values]
    return [f"{name} {_shown(value)}" for value in values]


def _crossed(recipe: Recipe, axes: Sequence[Axis]) -> list[Recipe]:
    """The recipes of all combinations of the axes' values, the last axis changing fastest."""
    for name, values in axes:
        if not values:
            raise BadRecipe(f"the axis {name!r} has no values; give some, such as {name}=1,2,3")
    return [_changed(recipe, place) for place in product(*([(axis, value) for value in axis[1]] for axis in axes))]


def _with_seeds_drawn(axis: Axis) -> Axis:
    """The axis with open seeds drawn: each of its values is one seed for all cells."""
    name, values = axis
    return (name, [_drawn(value) for value in values]) if name in {"seed", "variation_seed"} else axis


def _drawn(seed: object) -> object:
    return secrets.randbelow(SEEDS) if seed in (None, -1, "-1", "") else seed


def _drawn_if_varied(recipe: Recipe) -> object:
    return _drawn(recipe.variation_seed) if recipe.variation_strength else recipe.variation_seed


def _matrix(recipe: Recipe) -> tuple[Axis, Axis | None, list[Recipe]]:
    """The axes and recipes of a prompt whose parts are combined."""
    parts = Matrix.read(recipe.prompt)
    if not parts.options:
        raise BadRecipe('a matrix needs parts to combine: write them behind bars, "a house|at night|in snow"')
    across, down = ([" + ".join(each) or "-" for each in labels] for labels in (parts.columns(), parts.rows()))
    wanted = [recipe.but(prompt=prompt) for row in parts.prompts() for prompt in row]
    return (COMBINED, across), (COMBINED, down) if parts.down else None, wanted


def _changed(recipe: Recipe, changes: Sequence[tuple[Axis, object]]) -> Recipe:
    """The recipe with fields set first, and then words replaced and those in braces filled in."""
    for (name, _), _value in changes:
        refuse_recorded(name)
    recipe = recipe.but(**{name: value for (name, _), value in changes if name in Recipe.model_fields})
    for (name, values), value in changes:
        if name in Recipe.model_fields:
            continue
        recipe = _reworded(recipe, name, values, value)
    return recipe


def _reworded(recipe: Recipe, name: str, values: Sequence[object], value: object) -> Recipe:
    """The recipe with words of its prompts changed as an axis says."""
    if name == ORDER:
        words = cast("Sequence[str]", value)
        return recipe.but(prompt=reordered(recipe.prompt, words))
    hole = f"{{{name}}}"
    if name != REPLACE and hole not in recipe.prompt + recipe.negative:
        fields = ", ".join(each for each in Recipe.model_fields if each not in RECORDED)
        raise BadRecipe(f"nothing to change by {name!r}: write {hole} into the prompt, or name one of {fields}")
    sought = _shown(values[0]) if name == REPLACE else hole
    prompt, negative = replaced(recipe.prompt, recipe.negative, sought, _shown(value))
    return recipe.but(prompt=prompt, negative=negative)


def _split(things: Sequence[Thing], size: int) -> list[Sequence[Thing]]:
    return [things[start : start + size] for start in range(0, len(things), size)]


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
