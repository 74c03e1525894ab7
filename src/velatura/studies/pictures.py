"""Pictures of a study or a sweep: most of them to train on, and some that are held out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from velatura.datasets.folder import Example, read_dataset
from velatura.errors import BadDataset, quantity
from velatura.training.run.folder import file_name

HELD_OUT_EVERY = 4  # one picture in four is never trained on
MIN_PICTURES = 4


class PictureSplit(NamedTuple):
    """Pictures of a study.

    Attributes:
        name: What overlays are called: the name of the user's folder.
        data: The folder of the training pictures.
        held_out: The folder of those that are held out.
        captions: The captions of all pictures.
    """

    name: str
    data: Path
    held_out: Path
    captions: list[str]


def split_pictures(pictures: Path, out: Path) -> PictureSplit:
    """Copy pictures into a folder to train on and one that is held out, or find both as they were.

    Args:
        pictures: The user's folder.
        out: The folder of the study.

    Raises:
        BadDataset: There are fewer than four pictures, or `out` holds other ones.
    """
    examples = read_dataset(pictures).examples
    check_picture_count(pictures, examples)
    held_out = examples[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    training = [example for example in examples if example not in held_out]
    name = file_name(pictures.absolute().name)
    split = PictureSplit(
        name, out / "pictures" / name, out / "pictures" / "held-out", [example.caption for example in examples]
    )
    _copy(training, split.data)
    _copy(held_out, split.held_out)
    return split


def check_picture_count(pictures: Path, examples: Sequence[Example]) -> None:
    """Refuse a folder with too few pictures to hold some out.

    Raises:
        BadDataset: There are fewer than four.
    """
    if len(examples) < MIN_PICTURES:
        raise BadDataset(
            f"{pictures} has {quantity(len(examples), 'picture')}: {MIN_PICTURES} or more are needed, of which some "
            "are held out"
        )


def _copy(examples: Sequence[Example], folder: Path) -> None:
    """Copy pictures with their captions, unless the folder holds them already."""
    names = {f"{number:03}{example.path.suffix.lower()}": example for number, example in enumerate(examples)}
    if folder.is_dir():
        present = {path.name: path.stat().st_size for path in folder.iterdir() if path.suffix != ".txt"}
        if present != {name: example.path.stat().st_size for name, example in names.items()}:
            raise BadDataset(f"{folder} holds other pictures than this study's: name another folder with --out")
        return
    temp = folder.with_name(f".{folder.name}")
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(parents=True)
    for name, example in names.items():
        shutil.copyfile(example.path, temp / name)
        (temp / name).with_suffix(".txt").write_text(example.caption, "utf-8")
    temp.rename(folder)
