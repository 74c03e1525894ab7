"""Class pictures made by the base itself, once: what it knows of a class before it learns one of its kind."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from velatura.base.base import Base
from velatura.datasets.folder import REGULARISING, read_dataset
from velatura.errors import BadPlan, BadRecipe, VelaturaError, VelaturaWarning
from velatura.files import replacing
from velatura.prompts.prompt import Prompt
from velatura.sampling.generate import generate_many
from velatura.sampling.recipe import Recipe
from velatura.training.processes import Team

FOLDER = "reg"
AT_ONCE = 4


def lacking_class_pictures(folder: str | os.PathLike[str], count: int) -> int:
    """How many pictures are to be made until reg/ in a folder holds so many, whoever made those that are there."""
    return max(0, count - len(read_dataset(folder).regularising))


def refuse_no_class(prompt: str) -> None:
    """Refuse a prompt that says nothing, or calls overlays: class pictures show what the base itself knows."""
    if not prompt.strip() or Prompt.read(prompt).tags:
        raise BadPlan(f'the class prompt "{prompt}" must say what the pictures show, without tags: "a robot"')


def make_class_pictures(
    base: Base,
    folder: str | os.PathLike[str],
    prompt: str,
    count: int,
    *,
    seed: int = 0,
    on_picture: Callable[[int, int], None] | None = None,
    **fields: object,
) -> list[Path]:
    """Fill reg/ in a folder of pictures up to a count with pictures of a prompt, as "a robot"; gives back the new ones.

    Each is written as soon as it is made, with its caption and its recipe, so that what is broken off goes on. fields:
    those of Recipe (steps, sampler, ...). on_picture: hears how many are made, of how many. Of several processes the
    first makes them, and the others wait.
    """
    refuse_no_class(prompt)
    team, made = Team.joined(base.device), list[Path]()
    if team.leads:
        recipe = Recipe(prompt=prompt, seed=seed).but(**fields)
        made = _made(base, Path(folder).expanduser(), recipe, count, on_picture)
    team.wait()
    if lacking := lacking_class_pictures(folder, count):
        raise BadPlan(f"{folder} lacks {lacking} class pictures that another machine made: share it, or copy them here")
    return made


def _made(
    base: Base, folder: Path, recipe: Recipe, count: int, on_picture: Callable[[int, int], None] | None
) -> list[Path]:
    """Fill reg/ with pictures of a recipe, whose seed each moves on by its number."""
    reg, lacking = _kept_in(folder), lacking_class_pictures(folder, count)
    _warn_of_others(reg, base, recipe.prompt)
    taken = {path.stem for path in reg.glob("class-*.png")}
    numbers = [each for each in range(1, count + len(taken) + 1) if _stem(each) not in taken][:lacking]
    made: list[Path] = []
    for first in range(0, len(numbers), AT_ONCE):
        some = numbers[first : first + AT_ONCE]
        recipes = [recipe.but(seed=(recipe.seed or 0) + number) for number in some]
        for number, picture in zip(some, generate_many(base, recipes), strict=True):
            path = reg / f"{_stem(number)}.png"
            with replacing(path.with_suffix(".txt")) as beside:  # first: without it the picture has no caption
                beside.write_text(f"{recipe.prompt}\n", "utf-8")
            made.append(picture.save(path))
            if on_picture:
                on_picture(len(made), len(numbers))
    return made


def _kept_in(folder: Path) -> Path:
    """The folder for class pictures in a folder of pictures: that which is there, or a new one."""
    there = [path for path in folder.iterdir() if path.is_dir() and path.name.lower() in REGULARISING]
    return there[0] if there else folder / FOLDER


def _stem(number: int) -> str:
    return f"class-{number:04}"


def _warn_of_others(reg: Path, base: Base, prompt: str) -> None:
    """Warn of pictures that were made by another base, or of another prompt: they hold what this base never knew."""
    for path in sorted(reg.glob("class-*.png")):
        try:
            recipe = Recipe.from_image(path)
        except (BadRecipe, VelaturaError):
            continue
        made_by = recipe.base_hash or recipe.base
        if recipe.prompt != prompt or made_by not in {base.hash, base.name}:
            said = f'{path} was made by {recipe.base} of "{recipe.prompt}": take {reg} away to have all made anew'
            warnings.warn(said, VelaturaWarning, stacklevel=4)
            return
