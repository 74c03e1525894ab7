"""X/Y/Z grids: pictures in which one thing changes by column, another by row, and a third by sheet."""

import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from PIL import Image

from velatura.arguments import check_arguments
from velatura.base.base import Base
from velatura.base.pipeline import AnyBase, freeze_models, to_base
from velatura.compare.base_axis import (
    OpenBase,
    base_label,
    check_base_values,
    generate_by_base,
    open_base_value,
    refuse_second_base,
)
from velatura.compare.cells import (
    BASE_AXIS,
    MATRIX_AXIS,
    Axis,
    axis_labels,
    axis_recipes,
    matrix_recipes,
    name_base_axis,
)
from velatura.compare.cluster import BaseReference, connect
from velatura.errors import BadRecipe, gather_warnings
from velatura.imports import check_ray_installed
from velatura.library import Library
from velatura.merging.bake.inputs import check_no_overlays_attached
from velatura.overlays.overlay import Overlay
from velatura.prompts.styles import Style
from velatura.sampling.generate import OnSamplingStep, Picture, generate_many
from velatura.sampling.image_grid import draw_grid, stack_grids
from velatura.sampling.masks import InitImage
from velatura.sampling.recipe.expand import draw_templates
from velatura.sampling.recipe.fields import RANDOM_SEED_COUNT
from velatura.sampling.recipe.grid_fields import write_grid_fields
from velatura.sampling.recipe.metadata import save_with_infotext
from velatura.sampling.recipe.recipe import Recipe

JOBS_PER_SLOT = 4  # of a cluster, so that a slow worker does not hold up the end
GridItem = TypeVar("GridItem")


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
        the recipe of the whole grid may have words in braces, or a seed that an axis replaced. The prompts of the grid
        have fields of their own, so that `velatura grid --recipe` makes the whole grid again.
        """
        first = self.rows[0][0].recipe
        axes = () if self.x[0] == MATRIX_AXIS else (self.x, self.y, self.z)
        prompts = (self.recipe.prompt, self.recipe.negative)
        grid_fields = write_grid_fields(axes, prompts, (first.prompt, first.negative))
        return first.infotext(grid_fields)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the image as .png, .jpg or .webp with its infotext in it, and return the path."""
        path = Path(path).expanduser()
        save_with_infotext(self.image, path, self.infotext())
        return path


@freeze_models
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
    wildcards: str | os.PathLike[str] | None = None,
    open_base: OpenBase | None = None,
    ray: str | None = None,
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
        wildcards: The folder of wildcard files, from which each picture draws by its seed, after its axes have changed
            its prompt; a prompt matrix draws before it is split. None draws nothing.
        open_base: Opens the bases that an axis names, by default with the options of `velatura.open_base`.
        ray: Address of a Ray cluster that makes the pictures side by side, "local" for one on this machine; see
            `velatura.compare.cluster.connect`. Files of the library must lie under the same path on every machine.
            None makes them in this process.
        on_step: Called after each step with the steps done and the steps in all; on a cluster after each job.

    Raises:
        BadRecipe: No axis is given, an axis has no values, or it changes nothing; or a base is given beside an axis
            of bases.
        UnknownName: A value is the name of a sampler, overlay, base, style or the like that does not exist.
        BadFile: A base of an axis does not exist.
        BadSettings: No Ray cluster answers at the address, or Ray is not installed.
        UnsupportedBase: A cluster is asked for, and the base was not opened from a file, or overlays are attached.
    """
    if ray is not None:
        check_ray_installed()
    recipe = Recipe(prompt=recipe) if isinstance(recipe, str) else recipe
    recipe = recipe.replace(seed=_draw_seed(recipe.seed), variation_seed=_draw_variation_seed(recipe))
    x, y, z = (axis and name_base_axis(_draw_seeds(axis), recipe) for axis in (x, y, z))
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
        recipe = draw_templates(recipe, wildcards)
        x, y, recipes = matrix_recipes(recipe)
    elif x is not None:
        recipes = axis_recipes(recipe, axes, styles or {})
    else:
        raise BadRecipe("a grid needs an axis: give x, as in x=('seed', [7, 8, 9])")
    recipes = [draw_templates(cell, wildcards) for cell in recipes]

    def generate(base: AnyBase, recipes: Sequence[Recipe], on_step: OnSamplingStep | None) -> Sequence[Picture]:
        if ray is not None:
            folders = () if library is None else tuple(folder.absolute() for folder in library.folders)
            cells = GridCells(0, tuple(recipes), folders, dict(overlays or {}), source, lenient)
            return _generate_on_cluster(ray, to_base(base), cells, on_step)
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


class GridCells(NamedTuple):
    """Cells of a grid that a worker makes, with what they share.

    Attributes:
        number: The number of the job.
        recipes: The recipes of the cells.
        folders: The folders of the library.
        overlays, init_image, lenient: As `generate_many` takes them.
    """

    number: int
    recipes: tuple[Recipe, ...]
    folders: tuple[Path, ...]
    overlays: dict[str, Overlay]
    init_image: InitImage | None
    lenient: bool


def run_grid_job(base: Base, cells: GridCells) -> list[Picture]:
    """Make cells in a process that has nothing but the base."""
    return generate_many(
        base,
        cells.recipes,
        library=Library(*cells.folders) if cells.folders else None,
        overlays=cells.overlays,
        init_image=cells.init_image,
        lenient=cells.lenient,
    )


def _generate_on_cluster(
    address: str, base: Base, cells: GridCells, on_step: OnSamplingStep | None
) -> Sequence[Picture]:
    """Make pictures on a cluster, a few in each job."""
    check_no_overlays_attached(base)
    reference, pictures = BaseReference.from_base(base), dict[int, list[Picture]]()
    with gather_warnings(), connect(address) as cluster:
        size = max(1, math.ceil(len(cells.recipes) / (JOBS_PER_SLOT * cluster.slots)))
        parts = enumerate(_split(cells.recipes, size))
        jobs = [cells._replace(number=number, recipes=tuple(recipes)) for number, recipes in parts]
        total, done = sum(recipe.steps for recipe in cells.recipes), 0
        for job, made in cluster.run(run_grid_job, reference, jobs, cells.folders):
            pictures[job.number] = made
            done += sum(recipe.steps for recipe in job.recipes)
            if on_step:
                on_step(done, total)
    return [picture for number in sorted(pictures) for picture in pictures[number]]


def _record(recipe: Recipe, pictures: Sequence[Picture], *, has_bases: bool) -> Recipe:
    """Return the grid's recipe with what its pictures record, except for bases that an axis changes."""
    fields = {"version"} if has_bases else {"width", "height", "base", "base_hash", "version"}
    recorded = pictures[0].recipe.model_dump(include=fields)
    recorded["overlay_hashes"] = tuple(
        dict.fromkeys(file_hash for picture in pictures for file_hash in picture.recipe.overlay_hashes)
    )
    return recipe.replace(**recorded)


def _label_bases(axis: Axis) -> Axis:
    """Return an axis with the names of its bases, which it would keep in memory."""
    return (axis[0], [base_label(value) for value in axis[1]]) if axis[0] == BASE_AXIS else axis


def _value_indexes(axes: Sequence[Axis], number: int) -> list[int]:
    """Return, for all combinations of the axes' values in their order, the index of the value of one axis."""
    return [indexes[number] for indexes in product(*(range(len(values)) for _, values in axes))]


def _draw_seeds(axis: Axis) -> Axis:
    """Return the axis with random seeds in place of missing ones, so that all cells of a value share one."""
    name, values = axis
    return (name, [_draw_seed(value) for value in values]) if name in {"seed", "variation_seed"} else axis


def _draw_seed(seed: object) -> object:
    return secrets.randbelow(RANDOM_SEED_COUNT) if seed in (None, -1, "-1", "") else seed


def _draw_variation_seed(recipe: Recipe) -> object:
    return _draw_seed(recipe.variation_seed) if recipe.variation_strength else recipe.variation_seed


def _split(items: Sequence[GridItem], size: int) -> list[Sequence[GridItem]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
