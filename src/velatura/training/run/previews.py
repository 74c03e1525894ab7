"""Previews of a run: pictures with fixed prompts and seeds, and a sheet with one row per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from velatura.datasets.folder import Example
from velatura.datasets.pictures import read_upright
from velatura.errors import BadPlan
from velatura.prompts.prompt import Prompt
from velatura.sampling.image_grid import draw_grid
from velatura.sampling.recipe.recipe import Recipe
from velatura.training.plan import Plan
from velatura.training.run.log import atomic_write, flush

if TYPE_CHECKING:
    from velatura.base.base import Base
    from velatura.sampling.generate import Picture
    from velatura.sampling.masks import InitImage

MAX_CELL_PIXELS = 256  # longer side of a picture on the sheet
MAX_SHEET_ROWS = 60  # with more steps, the sheet shows every second, third, ... of them, counted from the last


def preview_recipes(plan: Plan, first_caption: str) -> list[Recipe]:
    """Return the recipes of a preview: every line of the plan's prompt with every seed.

    Args:
        plan: Preview options and the first seed.
        first_caption: Prompt if the plan has none.

    Raises:
        BadPlan: A line names other overlays.
    """
    lines = [line for line in (plan.preview_prompt or first_caption).splitlines() if line.strip()]
    for line in lines if plan.preview_every else ():
        if Prompt.parse(line).tags:
            raise BadPlan(f'the preview prompt "{line}" names other overlays: write a preview prompt without tags')
    return [Recipe(prompt=line, seed=plan.seed + number) for line, number in product(lines, range(plan.preview_seeds))]


def preview_image(base: Base, first: Example) -> InitImage | None:
    """Return the image that previews of a pix2pix model edit: a square of what the first picture was before.

    Args:
        base: The base; others need no image.
        first: The first training picture; without a picture before an edit, it is edited itself.
    """
    if base.image_condition != "pix2pix":
        return None
    from velatura.sampling.masks import InitImage

    pixels = base.family.default_pixels
    return InitImage(ImageOps.fit(read_upright(first.before or first.path), (pixels, pixels), Image.Resampling.LANCZOS))


@dataclass(frozen=True)
class Previews:
    """Preview pictures in a folder, named by the overlay and the step, and the sheet that is drawn from them.

    The sheet is drawn from the files in the folder, so a run may be stopped, go back or be resumed at any time.

    Attributes:
        folder: Folder of the pictures.
        sheet: Path of the sheet.
        name: Name of the overlay.
    """

    folder: Path
    sheet: Path
    name: str

    def add(self, pictures: Sequence[Picture], step: int) -> None:
        """Save the pictures of a step and draw the sheet."""
        for number, picture in enumerate(pictures):
            suffix = "" if len(pictures) == 1 else f"-{number + 1}"
            with atomic_write(self.folder / f"{self.name}-{step:06}{suffix}.png") as temp_path:
                picture.save(temp_path)
        self._draw([_label(picture.recipe, pictures) for picture in pictures])

    def remove_after(self, step: int) -> None:
        """Remove the pictures of later steps, and the sheet, which the next `add` draws again."""
        later_paths = [path for row_step, row in self.rows().items() if row_step > step for path in row]
        if later_paths:
            self.sheet.unlink(missing_ok=True)
            for path in later_paths:
                path.unlink()
            flush(self.folder)

    def rows(self) -> dict[int, list[Path]]:
        """Return the paths by step, in the order of prompts and seeds."""
        paths_by_step: dict[int, list[tuple[int, Path]]] = {}
        for path in self.folder.glob("*.png"):
            step, _, suffix = path.stem.removeprefix(f"{self.name}-").partition("-")
            if step.isdigit():
                paths_by_step.setdefault(int(step), []).append((int(suffix or 1), path))
        return {step: [path for _, path in sorted(paths_by_step[step])] for step in sorted(paths_by_step)}

    def _draw(self, columns: Sequence[str]) -> None:
        rows = _select_rows(self.rows())
        images = [[_thumbnail(path) for path in row] for row in rows.values()]
        with atomic_write(self.sheet) as temp_path:
            draw_grid(images, columns, [f"{step}" for step in rows]).save(temp_path)


def _select_rows(rows: dict[int, list[Path]]) -> dict[int, list[Path]]:
    """Return at most `MAX_SHEET_ROWS` rows, evenly spaced, with the last."""
    interval = -(-len(rows) // MAX_SHEET_ROWS)
    return {step: rows[step] for step in sorted(sorted(rows, reverse=True)[::interval])}


def _thumbnail(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.thumbnail((MAX_CELL_PIXELS, MAX_CELL_PIXELS), Image.Resampling.LANCZOS)
        return image.convert("RGB")


def _label(recipe: Recipe, pictures: Sequence[Picture]) -> str:
    """Return the prompt, with the seed if seeds differ."""
    seeds = {picture.recipe.seed for picture in pictures}
    return recipe.prompt if len(seeds) == 1 else f"{recipe.prompt}, seed {recipe.seed}"
