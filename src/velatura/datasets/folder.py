"""Folders of pictures with captions, in the layout of kohya's scripts and others: cat.png beside cat.txt."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from shlex import quote

from velatura.arguments import check_arguments
from velatura.datasets.name_captions import NameRules
from velatura.datasets.pictures import (
    BEFORE_FOLDERS,
    BEFORE_LABEL,
    MASK_FOLDERS,
    MASK_LABEL,
    MAX_REPEATS,
    PICTURE_SUFFIXES,
    REGULARISATION_FOLDERS,
    REPEATS_FOLDER,
    describe_unread,
    open_picture,
    picture_paths,
    read_picture,
    unread_pictures,
    upright_size,
    warn_of_header,
)
from velatura.datasets.read_captions import (
    Caption,
    CaptionSource,
    find_list_problems,
    find_unread_fields,
    odd_texts,
    read_caption,
    read_caption_lists,
    read_caption_text,
)
from velatura.datasets.zip_files import is_zip_file, unpack_dataset
from velatura.errors import BadDataset, MissingCaption, gather_warnings, warn
from velatura.files import suggest_similar

__all__ = [
    "Dataset",
    "Example",
    "all_folders",
    "describe_empty_folder",
    "folders_with_repeats",
    "read_dataset",
    "read_folder",
    "read_picture",
    "resolve_folder",
]

MAX_DEPTH, MAX_NAMED_FOLDERS = 3, 3  # of folders that a message points at
MAX_NAMES_SHOWN = 10  # of pictures without a caption
MAX_SHAPE_DIFFERENCE = 0.01  # of the aspect ratios of the two pictures of a pair


@dataclass(frozen=True)
class Example:
    """One picture to train on.

    Attributes:
        path: Picture file.
        caption: What the picture shows, in words.
        is_caption_from_name: The caption is the file's name, because it has no text file.
        repeats: How often the picture counts.
        mask: Picture that is white where the picture is to be learned.
        before: Picture that an edit turned into this one, for pix2pix models; the caption says what to do.
        is_mirrored: Its mirror image is learned, with left and right exchanged.
    """

    path: Path
    caption: str
    is_caption_from_name: bool = False
    repeats: int = 1
    mask: Path | None = None
    before: Path | None = None
    is_mirrored: bool = False


@dataclass(frozen=True)
class Dataset:
    """Pictures to train on, and regularisation pictures (class pictures for prior preservation)."""

    examples: list[Example]
    regularisation: list[Example] = field(default_factory=list[Example])

    def repeat_examples(self) -> list[Example]:
        """Return every training picture as often as it counts."""
        return [example for example in self.examples for _ in range(example.repeats)]


def read_folder(folder: str | os.PathLike[str]) -> list[Example]:
    """Return the training pictures of a folder as often as they count; see `read_dataset`."""
    return read_dataset(folder).repeat_examples()


@check_arguments()
@gather_warnings()
def read_dataset(
    folder: str | os.PathLike[str], *, rules: NameRules | None = None, needs_captions: bool = True
) -> Dataset:
    """Find the pictures of a folder, sorted by name, with captions, repeats and masks. Pictures are only opened.

    The caption of cat.png is the text of cat.txt, cat.caption or cat.png.txt, else that of a .jsonl or .csv list or of
    cat.json, else the words of its own name. Pictures in folders named 10_NAME count ten times. Pictures in
    reg/ are for regularisation, in 10_NAME folders or not. The mask of cat.png is mask/cat.png or cat-masklabel.png,
    and what it was before an edit is before/cat.png or cat.before.png.
    Pictures in formats that are not read are warned of. Other files and folders are ignored.

    A zip of such a folder is unpacked into the cache. Its broken pictures are left out with a warning, and pictures
    without a caption are learned without words.

    Args:
        folder: Folder of pictures, or a zip of one.
        rules: Make captions from file names; by default as the web UI does.
        needs_captions: Refuse pictures without a caption; otherwise their caption is empty.

    Raises:
        BadDataset: The folder is missing or has no pictures, a picture is broken or lacks a caption, a mask or a
            picture before an edit has no picture, or another shape, or a folder's number is out of range.
    """
    is_unpacked = is_zip_file(Path(folder).expanduser())
    folder = resolve_folder(folder)
    rules = rules or NameRules()
    if is_unpacked:
        needs_captions = False

    def read_examples(folder: Path) -> list[Example]:
        return [
            example
            for subfolder, repeats in folders_with_repeats(folder)
            for example in _read_examples(subfolder, repeats, rules, needs_captions)
        ]

    training_examples = read_examples(folder)
    if not training_examples:
        raise BadDataset(describe_empty_folder(folder))
    unread = [path for subfolder, _ in all_folders(folder) for path in unread_pictures(subfolder)]
    if unread:
        warn(f"{folder}: {describe_unread(unread)}")
    if is_unpacked:
        _warn_of_pictures_without_words(training_examples)
    class_examples = [example for subfolder in _regularisation_folders(folder) for example in read_examples(subfolder)]
    return Dataset(training_examples, class_examples)


def resolve_folder(folder: str | os.PathLike[str], *, is_written: bool = False) -> Path:
    """Return the path of a folder of pictures, with ~ expanded; a zip is unpacked into the cache.

    Args:
        folder: The folder, or a zip of one.
        is_written: Files will be written into the folder, so that a zip is refused.

    Raises:
        BadDataset: It is missing, or another file.
    """
    path = Path(folder).expanduser()
    if is_zip_file(path):
        if is_written:
            raise BadDataset(f"{path} is a zip, and files are written into the folder: unpack it, and name the folder")
        return unpack_dataset(path)
    if not path.is_dir():
        reason = "is a file" if path.exists() else f"does not exist{suggest_similar(path)}"
        raise BadDataset(f"{path} {reason}: name a folder of pictures, with a .txt file of the caption beside each")
    return path


def folders_with_repeats(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folder itself and the 10_NAME folders in it, with how often their pictures count.

    Raises:
        BadDataset: The number of a folder is 0 or larger than `MAX_REPEATS`.
    """
    yield folder, 1
    for subfolder in sorted(folder.iterdir()):
        match = REPEATS_FOLDER.fullmatch(subfolder.name)
        if match and subfolder.is_dir():
            repeats = int(match[1])
            if not 1 <= repeats <= MAX_REPEATS:
                raise BadDataset(
                    f"the pictures of {subfolder} would count {repeats} times, because its name begins with that "
                    f"number: rename the folder to begin with a number from 1 to {MAX_REPEATS}, or with none"
                )
            yield subfolder, repeats


def all_folders(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield what `folders_with_repeats` does, and then the same for the regularisation folders."""
    yield from folders_with_repeats(folder)
    for subfolder in _regularisation_folders(folder):
        yield from folders_with_repeats(subfolder)


def class_folders(folder: Path) -> list[Path]:
    """Return the folders of class pictures: the regularisation folders, and the 10_NAME folders in them."""
    return [
        subfolder
        for regularisation in _regularisation_folders(folder)
        for subfolder, _ in folders_with_repeats(regularisation)
    ]


def ignored_folders(folder: Path) -> list[Path]:
    """Return the folders inside that contain pictures and are ignored, because their names have no number."""
    entered = {subfolder for subfolder, _ in folders_with_repeats(folder)}
    others = [path for path in sorted(folder.iterdir()) if path.is_dir() and path not in entered]
    known = {*MASK_FOLDERS, *BEFORE_FOLDERS, *REGULARISATION_FOLDERS}
    return [path for path in others if path.name.lower() not in known and path.name[0] != "." and picture_paths(path)]


def describe_empty_folder(folder: Path) -> str:
    """Say that a folder contains no pictures, and what to do."""
    unread = [path for subfolder, _ in all_folders(folder) for path in unread_pictures(subfolder)]
    if unread:
        return f"{folder} contains no pictures that velatura reads; {describe_unread(unread)}"
    found = list(islice(_folders_with_pictures(folder, MAX_DEPTH), MAX_NAMED_FOLDERS + 1))
    if len(found) == 1:
        return f"{folder} contains no pictures, but its folder {found[0].relative_to(folder)} does: name that folder"
    if found:
        names = ", ".join(str(path.relative_to(folder)) for path in found[:MAX_NAMED_FOLDERS])
        more = " and others" if len(found) > MAX_NAMED_FOLDERS else ""
        return f"{folder} contains no pictures, but its folders {names}{more} do: name one of them"
    suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
    return f"{folder} contains no pictures: add some ({suffixes}), with a .txt file of the caption beside each"


def _folders_with_pictures(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the folders inside that can be trained on, down to a depth, but none inside another one."""
    known = {*MASK_FOLDERS, *BEFORE_FOLDERS, *REGULARISATION_FOLDERS}
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or path.name.startswith(".") or path.name.lower() in known:
            continue
        numbered = [inner for inner in path.iterdir() if REPEATS_FOLDER.fullmatch(inner.name) and inner.is_dir()]
        if any(picture_paths(place) for place in (path, *numbered)):
            yield path
        elif depth > 1:
            yield from _folders_with_pictures(path, depth - 1)


def _regularisation_folders(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower() in REGULARISATION_FOLDERS]


def _read_examples(folder: Path, repeats: int, rules: NameRules, needs_captions: bool) -> Iterator[Example]:
    list_captions = read_caption_lists(folder)
    paths = picture_paths(folder)
    stems = {path.stem for path in paths}
    masks = _find_companions(folder, stems, MASK_LABEL, MASK_FOLDERS, "mask")
    befores = find_befores(folder, stems)
    for file, problem in find_list_problems(list_captions, paths):
        warn(f"{file} {problem}")
    captions = _read_captions(folder, paths, list_captions, rules, needs_captions)
    if needs_captions:
        _warn_of_empty_texts(captions)
    _warn_of_infotexts(captions)
    for file, problem in find_unread_fields(captions.values()):
        warn(f"{file} {problem}")
    _warn_of_odd_texts(captions)
    for path, caption in captions.items():
        with open_picture(path) as picture:  # reads only the header, so broken files are found early
            warn_of_header(path, picture)
            size = upright_size(picture)
        before = befores.get(path.stem)
        if before is not None:
            check_same_shape(path, size, before)
        is_from_name = caption.source is CaptionSource.NAME
        yield Example(path, caption.text, is_from_name, repeats, masks.get(path.stem), before)


def _read_captions(
    folder: Path, paths: list[Path], list_captions: dict[str, Caption], rules: NameRules, needs_captions: bool
) -> dict[Path, Caption]:
    """Return the captions by picture; raises one error for all pictures that have none."""
    captions: dict[Path, Caption] = {}
    missing: dict[Path, MissingCaption] = {}
    for path in paths:
        try:
            captions[path] = _caption_or_empty(path, list_captions, rules, needs_captions)
        except MissingCaption as error:
            missing[path] = error
    if len(missing) == 1:
        raise next(iter(missing.values()))
    if missing:
        raise BadDataset(describe_missing_captions(folder, list(missing)))
    return captions


def describe_missing_captions(folder: Path, paths: Sequence[Path]) -> str:
    """Say which pictures of a folder have no caption, and what to do."""
    names = ", ".join(path.name for path in paths[:MAX_NAMES_SHOWN])
    more = f" and {len(paths) - MAX_NAMES_SHOWN} more" if len(paths) > MAX_NAMES_SHOWN else ""
    return (
        f"{len(paths)} pictures in {folder} have no caption ({names}{more}): write what each shows into a .txt file of "
        f"its name, rename them, or try `velatura dataset caption {quote(str(folder))}`"
    )


def _caption_or_empty(path: Path, list_captions: dict[str, Caption], rules: NameRules, needs_caption: bool) -> Caption:
    try:
        return read_caption(path, list_captions, rules)
    except BadDataset:
        if needs_caption or read_caption_text(path):
            raise
        return Caption("", CaptionSource.NAME)


def _warn_of_pictures_without_words(examples: list[Example]) -> None:
    names = [example.path.name for example in examples if not example.caption]
    if names:
        shown = ", ".join(names[:MAX_NAMES_SHOWN])
        warn(f"pictures without a caption are learned without words: {shown}; write what they show into .txt files")


def _warn_of_empty_texts(captions: dict[Path, Caption]) -> None:
    files = [caption.file for caption in captions.values() if caption.file and not caption.text]
    if files:
        found = f"{files[0]} is" if len(files) == 1 else f"{len(files)} text files, such as {files[0]}, are"
        warn(f"{found} empty: the picture is learned without words; write what it shows, or remove the file")


def _warn_of_infotexts(captions: dict[Path, Caption]) -> None:
    files = [caption.file for caption in captions.values() if caption.is_infotext and caption.file]
    if files:
        found = f"{files[0]} holds" if len(files) == 1 else f"{len(files)} text files, such as {files[0]}, hold"
        warn(f"{found} the settings of a generated picture: only the prompt is learned as caption, without its tags")


def _warn_of_odd_texts(captions: dict[Path, Caption]) -> None:
    """Warn once of every kind of caption that a person hardly wrote: they are learned as they are."""
    problems: dict[str, list[Path]] = {}
    for path, caption in captions.items():
        for problem in odd_texts(caption.text):
            problems.setdefault(problem, []).append(path)
    for problem, paths in problems.items():
        found = (
            f"the caption of {paths[0]} has" if len(paths) == 1 else f"{len(paths)} captions, as of {paths[0]}, have"
        )
        warn(f"{found} {problem}")


def _find_companions(
    folder: Path, stems: set[str], label: str, subfolders: Sequence[str], noun: str
) -> dict[str, Path]:
    """Return the masks, or the pictures before an edit, by the stem of their pictures.

    Args:
        folder: The folder of the pictures.
        stems: The stems of the pictures.
        label: What their own stems have behind that of the picture, if they are in the same folder.
        subfolders: Folders in which they have the picture's stem.
        noun: What they are called in messages.

    Raises:
        BadDataset: One of them has no picture.
    """
    beside = [path for path in sorted(folder.glob(f"*{label}.*")) if path.suffix.lower() in PICTURE_SUFFIXES]
    inside = [path for name in subfolders if (folder / name).is_dir() for path in picture_paths(folder / name)]
    companions = {path.stem.removesuffix(label): path for path in [*inside, *beside]}
    for stem, path in companions.items():
        if stem not in stems:
            raise BadDataset(f"the {noun} {path} has no picture: give both the same name, or remove the {noun}")
    return companions


def find_befores(folder: Path, stems: set[str]) -> dict[str, Path]:
    """Return the pictures before an edit in a folder, by the stem of those after it.

    Raises:
        BadDataset: One of them has no picture after it.
    """
    return _find_companions(folder, stems, BEFORE_LABEL, BEFORE_FOLDERS, "picture before an edit")


def check_same_shape(path: Path, size: tuple[int, int], before: Path) -> None:
    """Refuse two pictures of a pair that would be cropped differently, because they have another shape.

    Args:
        path: The picture after the edit.
        size: Its (width, height), upright.
        before: The picture before the edit.

    Raises:
        BadDataset: The shapes differ, or the picture before is damaged.
    """
    with open_picture(before) as picture:
        width, height = upright_size(picture)
    if abs(width * size[1] - height * size[0]) > MAX_SHAPE_DIFFERENCE * width * size[1]:
        raise BadDataset(
            f"{before} is {width}x{height} pixels and {path} {size[0]}x{size[1]}: crop both to the same shape, so that "
            "the one before an edit lies on the one after it"
        )
