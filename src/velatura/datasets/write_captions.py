"""Write captions for a folder of pictures with a captioner."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from velatura.datasets.captioners.captioner import Captioner
from velatura.datasets.folder import all_folders, resolve_folder
from velatura.datasets.name_captions import NameRules, caption_from_name
from velatura.datasets.pictures import picture_paths, read_upright
from velatura.datasets.read_captions import (
    Caption,
    find_caption_file,
    read_caption_lists,
    read_caption_text,
)
from velatura.errors import BadDataset, UnknownName
from velatura.files import atomic_write

# How an existing caption and a new one are combined; None leaves the picture out
EXISTING_CAPTION_MODES: dict[str, Callable[[str, str], str | None]] = {
    "keep": lambda _old, _new: None,
    "replace": lambda _old, new: new,
    "prepend": lambda old, new: f"{new}, {old}",
    "append": lambda old, new: f"{old}, {new}",
}


@dataclass(frozen=True)
class WrittenCaption:
    """A written caption: its file, and the whole text."""

    file: Path
    text: str


def caption_folder(
    folder: str | Path, captioner: Captioner, *, existing: str = "keep", prefix: str = ""
) -> Iterator[WrittenCaption]:
    """Write captions to the .txt files of all pictures, one after another, in subfolders and for regularisation too.

    Args:
        folder: Folder of pictures.
        captioner: Describes the pictures. If it returns an empty caption, no file is written.
        existing: What to do with captions in text files, lists and file names: "keep", "replace", "prepend" or
            "append" the new caption.
        prefix: Text before every new caption.

    Raises:
        UnknownName: The mode is unknown.
        BadDataset: The folder is missing, or a picture or text cannot be read.
    """
    if existing not in EXISTING_CAPTION_MODES:
        raise UnknownName.with_suggestions("mode for existing captions", existing, EXISTING_CAPTION_MODES)
    for subfolder, _ in all_folders(resolve_folder(folder, is_written=True)):
        list_captions = read_caption_lists(subfolder)
        for path in picture_paths(subfolder):
            yield from _caption_picture(path, list_captions, captioner, existing, prefix)


def write_caption(picture: Path, text: str) -> Path:
    """Write a picture's caption atomically to the file that is read for it, and return that file."""
    file = find_caption_file(picture) or picture.with_suffix(".txt")
    with atomic_write(file) as temporary:
        temporary.write_text(text + "\n", "utf-8")
    return file


def _caption_picture(
    path: Path, list_captions: dict[str, Caption], captioner: Captioner, existing: str, prefix: str
) -> Iterator[WrittenCaption]:
    old = _existing_caption(path, list_captions)
    if old and EXISTING_CAPTION_MODES[existing](old, "") is None:
        return
    generated = captioner.caption(read_upright(path))
    new = ", ".join(filter(None, (prefix, generated)))
    text = EXISTING_CAPTION_MODES[existing](old, new) if old else new
    if generated and text:
        yield WrittenCaption(write_caption(path, text), text)


def _existing_caption(path: Path, list_captions: dict[str, Caption]) -> str:
    """Return the caption in a text file or a list, or else a file name that describes the picture."""
    text = read_caption_text(path) or (list_captions[path.name].text if path.name in list_captions else "")
    if text:
        return text
    try:
        return caption_from_name(path, NameRules())
    except BadDataset:  # a name such as IMG_1234
        return ""
