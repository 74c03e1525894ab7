"""A folder of pictures with their captions, as trainers everywhere expect it: cat.png beside cat.txt."""

import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from velatura.datasets.captions import Caption, NameRules, Source, caption_of, read_lists, text_of
from velatura.datasets.pictures import MASK_LABEL, PICTURE_SUFFIXES, opened, picture_paths, read_picture
from velatura.errors import BadDataset, VelaturaWarning

__all__ = ["Dataset", "Example", "all_folders", "folders_in", "read_dataset", "read_folder", "read_picture"]

REPEATED = re.compile(r"(\d+)_.+")  # 10_inca: each picture in it counts ten times, as kohya's scripts have it
MOST_REPEATS = 1000  # a larger number before a name, 20231105_holiday, is a date
REGULARISING = frozenset({"reg", "regularisation", "regularization"})
MASKS = ("mask", "masks")


@dataclass(frozen=True)
class Example:
    """One picture file and what it shows, in words."""

    path: Path
    caption: str
    is_named_so: bool = False  # the caption is the file's name, for lack of a text
    repeats: int = 1  # how often it counts
    mask: Path | None = None  # white where the picture is to be learned


@dataclass(frozen=True)
class Dataset:
    """The pictures to learn from, and those that keep the base as it is: regularisation, or prior preservation."""

    examples: list[Example]
    regularising: list[Example] = field(default_factory=list[Example])

    def repeated(self) -> list[Example]:
        """Every example as often as it counts."""
        return [example for example in self.examples for _ in range(example.repeats)]


def read_folder(folder: str | os.PathLike[str]) -> list[Example]:
    """The pictures of a folder to learn from, each as often as it counts: those in 10_NAME/ ten times."""
    return read_dataset(folder).repeated()


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

    def examples(folder: Path) -> list[Example]:
        folders = folders_in(folder)
        return [each for inner, count in folders for each in _examples(inner, count, rules, needs_captions)]

    learned = examples(folder)
    if not learned:
        endings, inside = ", ".join(sorted(PICTURE_SUFFIXES)), folders_left_out(folder)
        found = (
            f"holds no pictures, but its folder {inside[0].name} does: name that one" if inside else "holds no pictures"
        )
        raise BadDataset(f"{folder} {found}; put some in ({endings}), each with its caption in a .txt file")
    kept = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower() in REGULARISING]
    return Dataset(learned, [example for inner in kept for example in examples(inner)])


def folders_in(folder: Path) -> Iterator[tuple[Path, int]]:
    """The folder itself and the 10_NAME folders in it, each with how often its pictures count."""
    yield folder, 1
    for inner in sorted(folder.iterdir()):
        counted = REPEATED.fullmatch(inner.name)
        if counted and inner.is_dir():
            if not 1 <= int(counted[1]) <= MOST_REPEATS:
                raise BadDataset(
                    f"the pictures of {inner} would count {int(counted[1])} times, as the number before its name says: "
                    f"write one from 1 to {MOST_REPEATS} there, or none"
                )
            yield inner, int(counted[1])


def all_folders(folder: Path) -> Iterator[tuple[Path, int]]:
    """Like folders_in, and then those for regularisation."""
    yield from folders_in(folder)
    for inner in sorted(folder.iterdir()):
        if inner.is_dir() and inner.name.lower() in REGULARISING:
            yield from folders_in(inner)


def folders_left_out(folder: Path) -> list[Path]:
    """The folders inside that hold pictures and are never entered, as their names do not say how they count."""
    entered = {inner for inner, _ in folders_in(folder)}
    others = [each for each in sorted(folder.iterdir()) if each.is_dir() and each not in entered]
    known = {*MASKS, *REGULARISING}
    return [each for each in others if each.name.lower() not in known and each.name[0] != "." and picture_paths(each)]


def _examples(folder: Path, repeats: int, rules: NameRules, needs_captions: bool) -> Iterator[Example]:
    listed = read_lists(folder)
    paths = picture_paths(folder)
    masks = _masks(folder, {path.stem for path in paths})
    _warn_of_missing(listed, paths)
    for path in paths:
        with opened(path):  # reads the header: what is no picture at all is known before anything is loaded
            pass
        caption = _caption(path, listed, rules, needs_captions)
        yield Example(path, caption.text, caption.source is Source.NAME, repeats, masks.get(path.stem))


def _caption(path: Path, listed: dict[str, Caption], rules: NameRules, needed: bool) -> Caption:
    try:
        return caption_of(path, listed, rules)
    except BadDataset:
        if needed or text_of(path):
            raise
        return Caption("", Source.NAME)


def _warn_of_missing(listed: dict[str, Caption], paths: list[Path]) -> None:
    missing = sorted(set(listed) - {path.name for path in paths})
    if missing:
        text = f"{listed[missing[0]].file} speaks of {len(missing)} pictures that are not there, {missing[0]!r} first"
        warnings.warn(text, VelaturaWarning, stacklevel=2)


def _masks(folder: Path, stems: set[str]) -> dict[str, Path]:
    """The mask of each picture by its stem; a mask of no picture is a mistake."""
    beside = (path for path in folder.glob(f"*{MASK_LABEL}.*") if path.suffix.lower() in PICTURE_SUFFIXES)
    inside = [path for name in MASKS if (folder / name).is_dir() for path in picture_paths(folder / name)]
    masks = {path.stem.removesuffix(MASK_LABEL): path for path in [*inside, *sorted(beside)]}
    for stem, path in masks.items():
        if stem not in stems:
            raise BadDataset(f"{path} is the mask of no picture; name it as its picture is, or take it away")
    return masks
