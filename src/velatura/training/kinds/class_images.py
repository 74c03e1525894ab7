"""Class pictures made by the base itself, once: what it knows of a class before it learns one of its kind."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from velatura.base.base import Base
from velatura.datasets.folder import REGULARISATION_FOLDERS, read_dataset
from velatura.errors import BadPlan, BadRecipe, VelaturaError, VelaturaWarning
from velatura.files import atomic_write
from velatura.prompts.prompt import Prompt
from velatura.sampling.generate import generate_many
from velatura.sampling.recipe.recipe import Recipe
from velatura.training.distributed import Processes

CLASS_FOLDER = "reg"
PICTURES_PER_BATCH = 4


def count_missing_class_pictures(folder: str | os.PathLike[str], count: int) -> int:
    """How many pictures are to be made until reg/ in a folder holds so many, whoever made those that are there."""
    return max(0, count - len(read_dataset(folder).regularisation))


def check_class_prompt(prompt: str) -> None:
    """Refuse a prompt that says nothing, or calls overlays: class pictures show what the base itself knows."""
    if not prompt.strip() or Prompt.parse(prompt).tags:
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
    check_class_prompt(prompt)
    recipe = Recipe(prompt=prompt, seed=seed).replace(**fields)
    processes = Processes.join(base.device)
    with processes.fail_together():
        paths = processes.run_on_main(
            lambda: _make_pictures(base, Path(folder).expanduser(), recipe, count, on_picture)
        )
        missing = count_missing_class_pictures(folder, count)
        if missing:
            raise BadPlan(
                f"{folder} lacks {missing} class pictures that another machine made: share it, or copy them here"
            )
    return paths


def _make_pictures(
    base: Base, folder: Path, recipe: Recipe, count: int, on_picture: Callable[[int, int], None] | None
) -> list[Path]:
    """Fill reg/ with pictures of a recipe, whose seed each moves on by its number."""
    reg, missing = _class_folder(folder), count_missing_class_pictures(folder, count)
    _warn_if_made_otherwise(reg, base, recipe.prompt)
    existing_stems = {path.stem for path in reg.glob("class-*.png")}
    numbers = [number for number in range(1, count + len(existing_stems) + 1) if _stem(number) not in existing_stems][
        :missing
    ]
    paths: list[Path] = []
    for first in range(0, len(numbers), PICTURES_PER_BATCH):
        batch = numbers[first : first + PICTURES_PER_BATCH]
        recipes = [recipe.replace(seed=(recipe.seed or 0) + number) for number in batch]
        for number, picture in zip(batch, generate_many(base, recipes), strict=True):
            path = reg / f"{_stem(number)}.png"
            with atomic_write(path.with_suffix(".txt")) as temp_path:  # first: without it the picture has no caption
                temp_path.write_text(f"{recipe.prompt}\n", "utf-8")
            paths.append(picture.save(path))
            if on_picture:
                on_picture(len(paths), len(numbers))
    return paths


def _class_folder(folder: Path) -> Path:
    """The folder for class pictures in a folder of pictures: that which is there, or a new one."""
    folders = [path for path in folder.iterdir() if path.is_dir() and path.name.lower() in REGULARISATION_FOLDERS]
    return folders[0] if folders else folder / CLASS_FOLDER


def _stem(number: int) -> str:
    return f"class-{number:04}"


def _warn_if_made_otherwise(reg: Path, base: Base, prompt: str) -> None:
    """Warn of pictures that were made by another base, or of another prompt: they hold what this base never knew."""
    for path in sorted(reg.glob("class-*.png")):
        try:
            recipe = Recipe.from_image(path)
        except (BadRecipe, VelaturaError):
            continue
        base_id = recipe.base_hash or recipe.base
        if recipe.prompt != prompt or base_id not in {base.hash, base.name}:
            message = f'{path} was made by {recipe.base} of "{recipe.prompt}": take {reg} away to have all made anew'
            warnings.warn(message, VelaturaWarning, stacklevel=4)
            return
