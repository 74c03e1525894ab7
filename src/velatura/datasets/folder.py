"""A folder of pictures with their captions, as trainers everywhere expect it: cat.png beside cat.txt."""

import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from velatura.datasets.pictures import MASK_LABEL, PICTURE_SUFFIXES, open_picture, picture_paths, read_picture
from velatura.datasets.read_captions import (
    Caption,
    CaptionSource,
    NameRules,
    read_caption,
    read_caption_lists,
    read_caption_text,
)
from velatura.errors import BadDataset, VelaturaWarning

__all__ = ["Dataset", "Example", "all_folders", "folders_with_repeats", "read_dataset", "read_folder", "read_picture"]

REPEATS_FOLDER = re.compile(r"(\d+)_.+")  # 10_inca: each picture in it counts ten times, as kohya's scripts have it
MAX_REPEATS = 1000  # a larger number before a name, 20231105_holiday, is a date
REGULARISATION_FOLDERS = frozenset({"reg", "regularisation", "regularization"})
MASK_FOLDERS = ("mask", "masks")


@dataclass(frozen=True)
class Example:
    """One picture file and what it shows, in words."""

    path: Path
    caption: str
    is_caption_from_name: bool = False  # the caption is the file's name, for lack of a text
    repeats: int = 1  # how often it counts
    mask: Path | None = None  # white where the picture is to be learned


@dataclass(frozen=True)
class Dataset:
    """The pictures to learn from, and those that keep the base as it is: regularisation, or prior preservation."""

    examples: list[Example]
    regularisation: list[Example] = field(default_factory=list[Example])

    def repeat_examples(self) -> list[Example]:
        """Every example as often as it counts."""
        return [example for example in self.examples for _ in range(example.repeats)]


def read_folder(folder: str | os.PathLike[str]) -> list[Example]:
    """The pictures of a folder to learn from, each as often as it counts: those in 10_NAME/ ten times."""
    return read_dataset(folder).repeat_examples()


def read_dataset(
    folder: str | os.PathLike[str], *, rules: NameRules | None = None, needs_captions: bool = True
) -> Dataset:
    """The pictures of a folder by name, each with its caption; the pictures are looked at, not yet read.

    The caption is the text of the .txt or .caption file of the same name, else what a .jsonl list in the folder says,
    else the words of the picture's own name, by the rules. Pictures in folders called 10_NAME count ten times, those
    in reg/ are for regularisation (with 10_NAME folders inside, or without). The mask of cat.png is mask/cat.png or
    cat-masklabel.png. Files that are no pictures are left alone, no other folders are entered. Raises BadDataset for a
    missing folder, one without pictures, a broken picture and, unless needs_captions is False, one without a caption.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise BadDataset(f"{folder} {found}; name a folder of pictures, each with its caption in a .txt file beside it")
    rules = rules or NameRules()

    def read_examples(folder: Path) -> list[Example]:
        folders = folders_with_repeats(folder)
        return [
            example for subfolder, count in folders for example in _examples(subfolder, count, rules, needs_captions)
        ]

    training_examples = read_examples(folder)
    if not training_examples:
        endings, ignored = ", ".join(sorted(PICTURE_SUFFIXES)), ignored_folders(folder)
        found = (
            f"holds no pictures, but its folder {ignored[0].name} does: name that one"
            if ignored
            else "holds no pictures"
        )
        raise BadDataset(f"{folder} {found}; put some in ({endings}), each with its caption in a .txt file")
    regularisation_folders = [
        path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower() in REGULARISATION_FOLDERS
    ]
    return Dataset(
        training_examples, [example for subfolder in regularisation_folders for example in read_examples(subfolder)]
    )


def folders_with_repeats(folder: Path) -> Iterator[tuple[Path, int]]:
    """The folder itself and the 10_NAME folders in it, each with how often its pictures count."""
    yield folder, 1
    for subfolder in sorted(folder.iterdir()):
        repeats_match = REPEATS_FOLDER.fullmatch(subfolder.name)
        if repeats_match and subfolder.is_dir():
            if not 1 <= int(repeats_match[1]) <= MAX_REPEATS:
                raise BadDataset(
                    f"the pictures of {subfolder} would count {int(repeats_match[1])} times, as the number before its name says: "
                    f"write one from 1 to {MAX_REPEATS} there, or none"
                )
            yield subfolder, int(repeats_match[1])


def all_folders(folder: Path) -> Iterator[tuple[Path, int]]:
    """Like folders_in, and then those for regularisation."""
    yield from folders_with_repeats(folder)
    for subfolder in sorted(folder.iterdir()):
        if subfolder.is_dir() and subfolder.name.lower() in REGULARISATION_FOLDERS:
            yield from folders_with_repeats(subfolder)


def ignored_folders(folder: Path) -> list[Path]:
    """The folders inside that hold pictures and are never entered, as their names do not say how they count."""
    entered = {subfolder for subfolder, _ in folders_with_repeats(folder)}
    others = [path for path in sorted(folder.iterdir()) if path.is_dir() and path not in entered]
    known = {*MASK_FOLDERS, *REGULARISATION_FOLDERS}
    return [path for path in others if path.name.lower() not in known and path.name[0] != "." and picture_paths(path)]


def _examples(folder: Path, repeats: int, rules: NameRules, needs_captions: bool) -> Iterator[Example]:
    list_captions = read_caption_lists(folder)
    paths = picture_paths(folder)
    masks = _find_masks(folder, {path.stem for path in paths})
    _warn_of_missing(list_captions, paths)
    for path in paths:
        with open_picture(path):  # reads the header: what is no picture at all is known before anything is loaded
            pass
        caption = _caption_or_empty(path, list_captions, rules, needs_captions)
        yield Example(path, caption.text, caption.source is CaptionSource.NAME, repeats, masks.get(path.stem))


def _caption_or_empty(path: Path, list_captions: dict[str, Caption], rules: NameRules, needs_caption: bool) -> Caption:
    try:
        return read_caption(path, list_captions, rules)
    except BadDataset:
        if needs_caption or read_caption_text(path):
            raise
        return Caption("", CaptionSource.NAME)


def _warn_of_missing(list_captions: dict[str, Caption], paths: list[Path]) -> None:
    missing = sorted(set(list_captions) - {path.name for path in paths})
    if missing:
        text = f"{list_captions[missing[0]].file} speaks of {len(missing)} pictures that are not there, {missing[0]!r} first"
        warnings.warn(text, VelaturaWarning, stacklevel=2)


def _find_masks(folder: Path, stems: set[str]) -> dict[str, Path]:
    """The mask of each picture by its stem; a mask of no picture is a mistake."""
    label_masks = (path for path in folder.glob(f"*{MASK_LABEL}.*") if path.suffix.lower() in PICTURE_SUFFIXES)
    folder_masks = [path for name in MASK_FOLDERS if (folder / name).is_dir() for path in picture_paths(folder / name)]
    masks = {path.stem.removesuffix(MASK_LABEL): path for path in [*folder_masks, *sorted(label_masks)]}
    for stem, path in masks.items():
        if stem not in stems:
            raise BadDataset(f"{path} is the mask of no picture; name it as its picture is, or take it away")
    return masks
