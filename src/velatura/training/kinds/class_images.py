"""Class pictures for prior preservation: generated once by the base, before it learns one object of the class."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from velatura.arguments import check_arguments
from velatura.base.base import Base
from velatura.base.pipeline import AnyBase, freeze_models, to_base
from velatura.datasets.folder import class_folders, read_dataset, resolve_folder
from velatura.datasets.name_captions import NameRules
from velatura.datasets.pictures import REGULARISATION_FOLDERS, picture_paths
from velatura.datasets.read_captions import (
    Caption,
    CaptionSource,
    read_caption,
    read_caption_lists,
    read_caption_text,
)
from velatura.errors import BadDataset, BadFile, BadPlan, VelaturaError, choose_number, quantity, warn
from velatura.files import atomic_write
from velatura.prompts.prompt import Prompt
from velatura.sampling.generate import make_pictures
from velatura.sampling.recipe.recipe import Recipe
from velatura.training.distributed import Processes

CLASS_FOLDER = "reg"
PICTURES_PER_BATCH = 4


def caption_class_pictures(folder: str | os.PathLike[str], prompt: str) -> list[Path]:
    """Write the class prompt as the caption of every class picture that has no caption of its own.

    A class picture's file name says nothing of the class, so it does not count as a caption.
    Warns of how many are written.

    Args:
        folder: Folder of training pictures, whose class pictures are in reg/.
        prompt: Class of what is trained, such as "a robot".

    Returns:
        The text files.

    Raises:
        BadDataset: The folder is missing, or a caption cannot be read or written.
        BadPlan: The prompt is empty or has tags.
    """
    check_class_prompt(prompt)
    written: list[Path] = []
    for subfolder in class_folders(resolve_folder(folder)):
        list_captions = read_caption_lists(subfolder)
        for path in picture_paths(subfolder):
            if _has_caption(path, list_captions):
                continue
            written.append(_write_class_caption(path, prompt))
    if written:
        warn(
            f"{quantity(len(written), 'class picture')} without a caption, such as {written[0].stem}, "
            f"{choose_number(len(written), 'gets', 'get')} the caption {prompt!r} in a .txt file beside it"
        )
    return written


def _write_class_caption(path: Path, prompt: str) -> Path:
    text_file = path.with_suffix(".txt")
    try:
        with atomic_write(text_file) as temp_path:
            temp_path.write_text(f"{prompt}\n", "utf-8")
    except (BadFile, OSError):
        raise BadDataset(
            f"the class picture {path} has no caption, and {text_file.name} cannot be written beside it: write the "
            "captions of class pictures yourself, or copy the pictures to a folder that can be written"
        ) from None
    return text_file


def _has_caption(path: Path, list_captions: Mapping[str, Caption]) -> bool:
    """Return True if a picture has a caption in a text file or a list."""
    try:
        caption = read_caption(path, list_captions, NameRules())
    except BadDataset:
        if read_caption_text(path):
            raise
        return False
    return caption.source is not CaptionSource.NAME and bool(caption.text)


def count_missing_class_pictures(folder: str | os.PathLike[str], count: int) -> int:
    """Return how many class pictures a folder lacks.

    Args:
        folder: Folder of training pictures, whose class pictures are in reg/.
        count: Number of class pictures wanted; those that the user added count too.
    """
    return max(0, count - len(read_dataset(folder).regularisation))


def check_class_prompt(prompt: str) -> None:
    """Refuse a class prompt that is empty or names overlays, because class pictures show what the base itself knows.

    Raises:
        BadPlan: The prompt is empty, or has tags.
    """
    if not prompt.strip() or Prompt.parse(prompt).tags:
        raise BadPlan(f'the class prompt "{prompt}" must say what the pictures show, without tags: write "a robot"')


@freeze_models
@check_arguments()
def make_class_pictures(
    base: AnyBase,
    folder: str | os.PathLike[str],
    prompt: str,
    count: int,
    *,
    seed: int = 0,
    on_picture: Callable[[int, int], None] | None = None,
    **fields: object,
) -> list[Path]:
    """Generate class pictures for prior preservation into reg/ of a folder, up to a count.

    Every picture is written at once with its caption and its recipe, so an interrupted call can be repeated. If several
    processes train together, the first generates and the others wait.

    Args:
        base: Generates the pictures.
        folder: Folder of training pictures. Its class pictures are in reg/, or a folder named regularization.
        prompt: Class of what is trained, such as "a robot"; also the caption of every class picture.
        count: Number of class pictures that the folder shall have. Existing ones count.
        seed: Seed of the first picture; every further picture adds 1.
        on_picture: Called after every picture with the number of new pictures so far and of all new pictures.
        fields: Other fields of the recipe, such as steps and sampler.

    Returns:
        Paths of the new pictures.

    Raises:
        BadPlan: The prompt is empty or has tags, the base is a pix2pix model, or another machine generated the pictures
            and this one lacks them.
        BadDataset: The folder is missing or has no training pictures.
        BadRecipe: A recipe field is unknown or out of range.
    """
    base, folder = to_base(base), resolve_folder(folder, is_written=True)
    check_class_prompt(prompt)
    processes = Processes.join(base.device)
    with processes.fail_together():
        processes.run_on_main(lambda: caption_class_pictures(folder, prompt))
        _refuse_pix2pix(base, folder, prompt, count)
        recipe = Recipe(prompt=prompt, seed=seed).replace(**fields)
        paths = processes.run_on_main(lambda: _make_pictures(base, folder, recipe, count, on_picture))
        missing = count_missing_class_pictures(folder, count)
        if missing:
            raise BadPlan(
                f"{folder} lacks {quantity(missing, 'class picture')} that another machine generated: share the "
                "folder between the machines, or copy the pictures here"
            )
    return paths


def _refuse_pix2pix(base: Base, folder: str | os.PathLike[str], prompt: str, count: int) -> None:
    """Refuse to generate missing class pictures with a pix2pix model."""
    if base.image_condition != "pix2pix":
        return
    missing = count_missing_class_pictures(folder, count)
    if missing:
        raise BadPlan(
            f"{base.name} is a pix2pix model, which makes no pictures from a prompt alone: put {missing} class "
            f'pictures of "{prompt}" into {folder}/{CLASS_FOLDER} yourself, or leave out the class prompt'
        )


def _make_pictures(
    base: Base, folder: Path, recipe: Recipe, count: int, on_picture: Callable[[int, int], None] | None
) -> list[Path]:
    """Generate the missing pictures; the seed of a picture is the recipe's plus the picture's number."""
    class_folder = _class_folder(folder)
    _warn_if_made_otherwise(class_folder, base, recipe.prompt)
    existing_stems = {path.stem for path in class_folder.glob("class-*.png")}
    free = (number for number in itertools.count(1) if _stem(number) not in existing_stems)
    numbers = list(itertools.islice(free, count_missing_class_pictures(folder, count)))
    paths: list[Path] = []
    for start in range(0, len(numbers), PICTURES_PER_BATCH):
        batch = numbers[start : start + PICTURES_PER_BATCH]
        recipes = [recipe.replace(seed=(recipe.seed or 0) + number) for number in batch]
        for number, picture in zip(batch, make_pictures(base, recipes), strict=True):
            path = class_folder / f"{_stem(number)}.png"
            with atomic_write(path.with_suffix(".txt")) as temp_path:  # before the picture, which must have a caption
                temp_path.write_text(f"{recipe.prompt}\n", "utf-8")
            paths.append(picture.save(path))
            if on_picture:
                on_picture(len(paths), len(numbers))
    return paths


def _class_folder(folder: Path) -> Path:
    """Return the existing folder of class pictures, or the path for a new one."""
    folders = [path for path in folder.iterdir() if path.is_dir() and path.name.lower() in REGULARISATION_FOLDERS]
    return folders[0] if folders else folder / CLASS_FOLDER


def _stem(number: int) -> str:
    return f"class-{number:04}"


def _warn_if_made_otherwise(class_folder: Path, base: Base, prompt: str) -> None:
    """Warn if existing pictures come from another base or prompt, because they would teach this base what they show."""
    for path in sorted(class_folder.glob("class-*.png")):
        try:
            recipe = Recipe.from_image(path)
        except VelaturaError:
            continue
        base_id = recipe.base_hash or recipe.base
        if recipe.prompt != prompt or base_id not in {base.hash, base.name}:
            warn(
                f'{path} was generated by {recipe.base} with the prompt "{recipe.prompt}": '
                f"remove {class_folder} to generate all class pictures again"
            )
            return
