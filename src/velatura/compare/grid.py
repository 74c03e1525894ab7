"""Pictures side by side, one thing changed from column to column and another from row to row, with labels."""

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from velatura.base.base import Base
from velatura.errors import BadRecipe
from velatura.library import Library
from velatura.overlays.overlay import Overlay
from velatura.prompts.grammar import TAG
from velatura.sampling.generate import OnStep, Picture, generate_many
from velatura.sampling.infotext import save_with, write_infotext
from velatura.sampling.order import SEEDS
from velatura.sampling.recipe import RECORDED, Recipe, refuse_recorded

Axis = tuple[str, Sequence[object]]  # what changes, and the values it takes

CELL = 192  # pixels that a picture's longer side is brought to at least about, by a whole factor
GAP = 6  # pixels between two pictures, and around all
INK, PAPER = (32, 32, 36), (255, 255, 255)


@dataclass(frozen=True)
class Grid:
    """Rows of pictures, the labels of columns and rows, and the recipe and axes they came from."""

    rows: Sequence[Sequence[Picture]]
    recipe: Recipe
    x: Axis
    y: Axis | None = None

    @cached_property
    def image(self) -> Image.Image:
        """The whole grid as one picture."""
        images = [[picture.image for picture in row] for row in self.rows]
        return draw_grid(images, columns=_labels(self.x), rows=_labels(self.y) if self.y else ())

    def infotext(self) -> str:
        """The recipe and the axes, in the fields in which the webui's X/Y/Z plot writes them."""
        fields = self.recipe.fields() | {"Script": "X/Y/Z plot"}
        for letter, axis in (("X", self.x), ("Y", self.y)):
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
    x: Axis,
    y: Axis | None = None,
    library: Library | None = None,
    overlays: Mapping[str, Overlay] | None = None,
    on_step: OnStep | None = None,
) -> Grid:
    """Make a grid of pictures: x changes from column to column, y from row to row.

    An axis is named for a field of Recipe, ("seed", [7, 8]), or for a word that stands in braces in the prompt,
    ("s", [0, 0.5, 1]) for "a house <hypernet:inca:{s}>". Where the seed is open it is drawn once for all.
    """
    recipe = Recipe(prompt=recipe) if isinstance(recipe, str) else recipe
    recipe = recipe.but(seed=secrets.randbelow(SEEDS)) if recipe.seed is None else recipe
    axes = [axis for axis in (x, y) if axis is not None]
    for name, values in axes:
        if not values:
            raise BadRecipe(f"the axis {name!r} has no values; give some, such as {name}=1,2,3")
    ups = y[1] if y else [None]
    wanted = [_changed(recipe, [(x[0], right), *([(y[0], up)] if y else [])]) for up in ups for right in x[1]]
    pictures = generate_many(base, wanted, library=library, overlays=overlays, on_step=on_step)
    filled_in = pictures[0].recipe.model_dump(include={"width", "height", "base", "base_hash", "version"})
    filled_in["overlay_hashes"] = tuple(dict.fromkeys(each for made in pictures for each in made.recipe.overlay_hashes))
    across = len(x[1])
    rows = [pictures[start : start + across] for start in range(0, len(pictures), across)]
    return Grid(rows, recipe.but(**filled_in), x, y)


def draw_grid(
    images: Sequence[Sequence[Image.Image]], columns: Sequence[str] = (), rows: Sequence[str] = ()
) -> Image.Image:
    """Lay rows of images out with labels over the columns and beside them, small ones enlarged by a whole factor."""
    factor = max(1, round(CELL / max(max(image.size) for row in images for image in row)))
    width = factor * max(image.width for row in images for image in row)
    height = factor * max(image.height for row in images for image in row)
    font = ImageFont.load_default(max(14, min(28, width // 12)))
    over = [_wrapped(label, font, width) for label in columns]
    beside = [_wrapped(label, font, width) for label in rows]
    left = GAP + (int(max(_size(text, font)[0] for text in beside)) + 2 * GAP if beside else 0)
    top = GAP + (int(max(_size(text, font)[1] for text in over)) + 2 * GAP if over else 0)

    across = max(len(row) for row in images)
    sheet = Image.new("RGB", (left + across * (width + GAP), top + len(images) * (height + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, text in enumerate(over):
        pen.text((left + i * (width + GAP) + width // 2, top - GAP), text, INK, font, "md", align="center")
    for i, text in enumerate(beside):
        pen.text((left - 2 * GAP, top + i * (height + GAP) + height // 2), text, INK, font, "rm", align="right")
    for i, row in enumerate(images):
        for j, image in enumerate(row):
            place = left + j * (width + GAP), top + i * (height + GAP)
            sheet.paste(image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC), place)
    return sheet


def _changed(recipe: Recipe, changes: Sequence[tuple[str, object]]) -> Recipe:
    """The recipe with fields set first, and then words in braces filled in."""
    for name, _ in changes:
        refuse_recorded(name)
    recipe = recipe.but(**{name: value for name, value in changes if name in Recipe.model_fields})
    for name, value in changes:
        if name in Recipe.model_fields:
            continue
        hole = f"{{{name}}}"
        if hole not in recipe.prompt + recipe.negative:
            fields = ", ".join(each for each in Recipe.model_fields if each not in RECORDED)
            raise BadRecipe(f"nothing to change by {name!r}: write {hole} into the prompt, or name one of {fields}")
        prompt, negative = (text.replace(hole, _shown(value)) for text in (recipe.prompt, recipe.negative))
        recipe = recipe.but(prompt=prompt, negative=negative)
    return recipe


def _labels(axis: Axis) -> list[str]:
    """What stands over a column: the value with its name, or a prompt without its tags."""
    name, values = axis
    if name in {"prompt", "negative"}:
        return [TAG.sub("", str(value)).strip(" ,") or "(empty)" for value in values]
    return [f"{name} {_shown(value)}" for value in values]


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text with line breaks between words, so that lines are no wider than this if they can be."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _size(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> tuple[float, float]:
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    return right - left, bottom - top
