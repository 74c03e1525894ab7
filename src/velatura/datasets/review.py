"""Editor for the captions of a folder: changes of one or many captions, saved at once, with undo and redo."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from velatura.datasets.folder import all_folders, describe_empty_folder, resolve_folder
from velatura.datasets.name_captions import NameRules, caption_from_name
from velatura.datasets.pictures import picture_paths
from velatura.datasets.read_captions import Caption, read_caption_lists, read_caption_text
from velatura.datasets.write_captions import write_caption
from velatura.errors import BadDataset

MAX_UNDO = 1000


@dataclass(frozen=True)
class CaptionChange:
    """Saved captions by picture before and after a change; None if there was no text file."""

    before: Mapping[int, str | None]
    after: Mapping[int, str | None]


@dataclass
class CaptionEditor:
    """Captions of the pictures of a folder, by the pictures' numbers.

    Attributes:
        folder: Folder of pictures.
        paths: Pictures by number.
        saved_captions: Captions in text files, None for a picture without one.
        fallback_captions: Captions from a list or a file name, which the first change writes to a text file.
    """

    folder: Path
    paths: list[Path]
    saved_captions: dict[int, str | None]
    fallback_captions: dict[int, str]
    _undo_stack: list[CaptionChange] = field(default_factory=list[CaptionChange])
    _redo_stack: list[CaptionChange] = field(default_factory=list[CaptionChange])

    @classmethod
    def from_folder(cls, folder: str | Path) -> "CaptionEditor":
        """Read the captions of a folder, in subfolders and for regularisation too.

        Raises:
            BadDataset: The folder is missing or has no pictures, or a text is not UTF-8.
        """
        folder = resolve_folder(folder, is_written=True)
        paths: list[Path] = []
        fallback_captions: dict[int, str] = {}
        for subfolder, _ in all_folders(folder):
            list_captions = read_caption_lists(subfolder)
            for path in picture_paths(subfolder):
                fallback_captions[len(paths)] = _fallback_caption(path, list_captions)
                paths.append(path)
        if not paths:
            raise BadDataset(describe_empty_folder(folder))
        saved_captions = {number: read_caption_text(path) or None for number, path in enumerate(paths)}
        return cls(folder, paths, saved_captions, fallback_captions)

    @property
    def captions(self) -> dict[int, str]:
        """Return the caption of every picture, empty if it has none."""
        return {number: saved or self.fallback_captions[number] for number, saved in self.saved_captions.items()}

    @property
    def undo_count(self) -> int:
        """Return how many changes can be undone."""
        return len(self._undo_stack)

    @property
    def redo_count(self) -> int:
        """Return how many changes can be redone."""
        return len(self._redo_stack)

    def set(self, number: int, text: str) -> Collection[int]:
        """Write a picture's caption and return the numbers of the pictures that changed, as the other edits do.

        Raises:
            BadDataset: The picture does not exist, a caption would be empty, or another program changed the file.
        """
        return self._change({number}, lambda _: " ".join(text.split()))

    def add(self, numbers: Collection[int], tag: str, *, at_start: bool = False) -> Collection[int]:
        """Add a tag to the captions that lack it, at the end or at the start."""
        tag = _single_tag(tag)

        def insert_tag(text: str) -> str:
            tags = split_tags(text)
            if tag in tags:
                return join_tags(tags)
            return join_tags([tag, *tags] if at_start else [*tags, tag])

        return self._change(numbers, insert_tag)

    def remove(self, numbers: Collection[int], tag: str) -> Collection[int]:
        """Remove a tag from captions."""
        tag = _single_tag(tag)
        return self._change(numbers, lambda text: join_tags([other for other in split_tags(text) if other != tag]))

    def replace(self, numbers: Collection[int], tag: str, replacement: str) -> Collection[int]:
        """Replace a tag by another in the captions that have it; the other tag then occurs once."""
        tag, replacement = _single_tag(tag), _single_tag(replacement)

        def replace_tag(text: str) -> str:
            tags = (replacement if old_tag == tag else old_tag for old_tag in split_tags(text))
            return join_tags(list(dict.fromkeys(tags)))

        return self._change([number for number in numbers if tag in split_tags(self.captions[number])], replace_tag)

    def undo(self) -> Collection[int]:
        """Undo the last change.

        Raises:
            BadDataset: There is none, or another program changed a file.
        """
        if not self._undo_stack:
            raise BadDataset("there is nothing to undo: change a caption first")
        change = self._undo_stack[-1]
        self._write(change.before)
        self._redo_stack.append(self._undo_stack.pop())
        return change.before.keys()

    def redo(self) -> Collection[int]:
        """Redo the change that was undone last.

        Raises:
            BadDataset: There is none, or another program changed a file.
        """
        if not self._redo_stack:
            raise BadDataset("there is nothing to redo: undo a change first")
        change = self._redo_stack[-1]
        self._write(change.after)
        self._undo_stack.append(self._redo_stack.pop())
        return change.after.keys()

    def _change(self, numbers: Collection[int], edit: Callable[[str], str]) -> Collection[int]:
        current = self.captions
        unknown = [number for number in numbers if number not in current]
        if unknown:
            raise BadDataset(f"picture {unknown[0]} does not exist: load the page again")
        edited = {number: edit(current[number]) for number in numbers}
        after = {number: text for number, text in edited.items() if text != current[number]}
        for number, text in after.items():
            if not text:
                raise BadDataset(f"{self.paths[number].name} would have no caption left: give it another first")
        if not after:
            return []
        before = {number: self.saved_captions[number] for number in after}
        self._write(after)
        self._undo_stack[:] = [*self._undo_stack, CaptionChange(before, after)][-MAX_UNDO:]
        self._redo_stack.clear()
        return after.keys()

    def _write(self, texts: Mapping[int, str | None]) -> None:
        """Write captions, or none of them if another program has changed one of the files."""
        for number in texts:
            text_on_disk = read_caption_text(self.paths[number]) or None
            if text_on_disk != self.saved_captions[number]:
                self.saved_captions[number] = text_on_disk
                name = self.paths[number].name
                raise BadDataset(f"the caption of {name} was changed by another program: look at it again")
        for number, text in texts.items():
            if text is None:
                self.paths[number].with_suffix(".txt").unlink(missing_ok=True)
            else:
                write_caption(self.paths[number], text)
            self.saved_captions[number] = text


def split_tags(caption: str) -> list[str]:
    """Return the comma-separated tags of a caption."""
    tags = (part.strip() for part in caption.split(","))
    return [tag for tag in tags if tag]


def join_tags(tags: Collection[str]) -> str:
    """Return a caption made of tags."""
    return ", ".join(tags)


def _single_tag(tag: str) -> str:
    tags = split_tags(" ".join(tag.split()))
    if len(tags) != 1:
        raise BadDataset(f"{tag!r} is not a single tag: write one, without commas")
    return tags[0]


def _fallback_caption(picture: Path, list_captions: Mapping[str, Caption]) -> str:
    """Return the caption from a list or from the picture's name, or an empty string."""
    if picture.name in list_captions:
        return list_captions[picture.name].text
    try:
        return caption_from_name(picture, NameRules())
    except BadDataset:
        return ""
