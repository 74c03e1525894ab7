"""Pictures of a study or a sweep: most of them to train on, and some that are held out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from velatura.datasets.folder import Example, read_dataset
from velatura.errors import BadDataset, BadFile, quantity
from velatura.files import atomic_write
from velatura.training.data.fingerprint import describe_changes, fingerprint_examples
from velatura.training.run.folder import file_name

HELD_OUT_EVERY = 4  # one picture in four is never trained on
MIN_PICTURES = 4
PICTURES_NAME = "pictures.json"  # hashes of the pictures with which a study was begun
RecordedT = TypeVar("RecordedT")
FINGERPRINTS = TypeAdapter(dict[str, dict[str, str]])


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
        BadDataset: There are fewer than four pictures, or other ones than when the study was begun.
    """
    dataset = read_dataset(pictures)
    examples = dataset.examples
    check_picture_count(pictures, examples)
    check_same_pictures(out, {str(pictures): [*examples, *dataset.regularisation]})
    held_out = examples[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    training = [example for example in examples if example not in held_out]
    name = file_name(pictures.absolute().name)
    split = PictureSplit(name, *split_folders(out, name), [example.caption for example in examples])
    _copy(training, split.data, dataset.regularisation)
    _copy([replace(example, repeats=1) for example in held_out], split.held_out)
    return split


def split_folders(out: Path, name: str) -> tuple[Path, Path]:
    """Return the folders of a study in which its training pictures and the held-out ones are.

    Args:
        out: The folder of the study.
        name: What overlays are called.
    """
    return out / "pictures" / name, out / "held-out"


def check_same_pictures(out: Path, groups: Mapping[str, Sequence[Example]]) -> None:
    """Record which pictures a study is begun with, or refuse others when it goes on.

    Args:
        out: The folder of the study.
        groups: The pictures, by the folder that they are from.

    Raises:
        BadDataset: Pictures, captions or masks are new, missing or changed.
    """
    path = out / PICTURES_NAME
    now = {
        "training" if number == 0 else "validation": fingerprint_examples(examples)
        for number, examples in enumerate(groups.values())
    }
    before = record_once(path, now, FINGERPRINTS)
    for (name, digests), folder in zip(now.items(), groups, strict=True):
        if changes := describe_changes(before.get(name, {}), digests):
            raise BadDataset(
                f"{folder} has changed since {out} was begun: {changes}; restore it, or name another folder with --out"
            )


def record_once(path: Path, value: RecordedT, adapter: TypeAdapter[RecordedT]) -> RecordedT:
    """Write what a study is begun with, or return what was written when it was begun.

    Args:
        path: The JSON file in the folder of the study.
        value: What it is begun with now.
        adapter: Checks what was written.

    Raises:
        BadFile: What was written cannot be read.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temp_path:
            temp_path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
        return value
    try:
        return adapter.validate_json(path.read_bytes())
    except ValidationError:
        raise BadFile(f"{path} is damaged: begin the study again in another folder") from None


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


def _copy(examples: Sequence[Example], folder: Path, class_examples: Sequence[Example] = ()) -> None:
    """Copy pictures with their captions, repeats, masks and pictures before an edit, unless the folder is there."""
    if folder.is_dir():
        return
    temp = folder.with_name(f".{folder.name}")
    shutil.rmtree(temp, ignore_errors=True)
    for place, copied in ((temp, examples), (temp / "reg", class_examples)):
        for number, example in enumerate(copied):
            _copy_example(example, place if example.repeats == 1 else place / f"{example.repeats}_pictures", number)
    temp.rename(folder)


def _copy_example(example: Example, folder: Path, number: int) -> None:
    """Copy a picture and what belongs to it, under a number for a name."""
    files = {folder: example.path, folder / "mask": example.mask, folder / "before": example.before}
    for place, path in files.items():
        if path is not None:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place / f"{number:03}{path.suffix.lower()}")
    (folder / f"{number:03}.txt").write_text(example.caption, "utf-8")
